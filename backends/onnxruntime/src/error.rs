//! What ONNX Runtime says, sorted into the codes of [`BackendError`].

use std::path::Path;

use ort::ErrorCode;
use outrigger_backend::BackendError;

/// A model that does not load.
pub(crate) fn load(path: &Path, why: impl std::fmt::Display) -> BackendError {
    BackendError::Load(format!("{}: {}", path.display(), first_line(&why.to_string())))
}

/// A run that failed. ONNX Runtime has no code for inputs whose extents do not go together, so the words decide; a model
/// without free extents cannot fail for its inputs, which have been checked before.
pub(crate) fn run(error: &ort::Error, has_free_extents: bool) -> BackendError {
    classify(error.code(), error.message(), has_free_extents)
}

fn classify(code: ErrorCode, message: &str, has_free_extents: bool) -> BackendError {
    let text = first_line(message).to_owned();
    let said = said(message).to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if says(&["failed to allocate memory", "bad_alloc", "out of memory"]) {
        BackendError::OutOfMemory(text)
    } else if code == ErrorCode::InvalidArgument
        || has_free_extents && says(&["shape", "dimension", "broadcast", "axis", "out of bounds"])
    {
        BackendError::Input(text)
    } else {
        BackendError::Run(text)
    }
}

/// Whether a run failed because a result has not the shape of its place. There is no code for it; the words are those of
/// ONNX Runtime 1.32 and of those before it, and the tests hold them.
pub(crate) fn is_misplaced(error: &ort::Error) -> bool {
    ["output OrtValue provided for output", "shape verification failed"]
        .iter()
        .any(|words| error.message().contains(words))
}

/// What ONNX Runtime says itself, in one line. Before it stands which node failed, by the name that the model's author gave it, and that may be
/// anything; some operators begin what they say with that name once more.
pub(crate) fn said(message: &str) -> &str {
    const NAME: &str = "Name:'";
    const SAID: &str = "' Status Message: ";
    // A name may contain these words as well, so where it ends is seen by where it comes again.
    let repeated = message.match_indices(NAME).find_map(|(at, _)| {
        let rest = &message[at + NAME.len()..];
        rest.match_indices(SAID).find_map(|(end, _)| {
            let said = rest[end + SAID.len()..].strip_prefix(&rest[..end])?;
            said.strip_prefix(": ")
        })
    });
    let last = || message.rsplit_once(SAID).map_or(message, |(_, said)| said);
    first_line(repeated.unwrap_or_else(last))
}

/// The same of a model that did not load, for which the message names its file.
pub(crate) fn said_of(path: &Path, message: &str) -> String {
    said(message.replace(&*path.to_string_lossy(), "").trim_start_matches(": ")).to_owned()
}

/// Longer messages go on with a stack of C++ frames or a copy of the model.
pub(crate) fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sorted() {
        let add = "Non-zero status code returned while running Add node. Name:'' Status Message: \
                   add.cc:540 Attempting to broadcast an axis by a dimension other than 1. 2 by 3\n#0 0x1234";
        let no_memory = "Failed to allocate memory for requested buffer of size 99";
        let gather =
            "Non-zero status code returned while running Gather node. indices element out of data bounds";
        let input = |text: &str| format!("{:?}", BackendError::Input(first_line(text).into()));
        let check = |code, message, free, expected: String| {
            assert_eq!(format!("{:?}", classify(code, message, free)), expected);
        };
        check(ErrorCode::RuntimeException, add, true, input(add));
        check(ErrorCode::InvalidArgument, gather, false, input(gather));
        let run = format!("{:?}", BackendError::Run(first_line(add).into()));
        check(ErrorCode::RuntimeException, add, false, run);
        check(
            ErrorCode::GenericFailure,
            no_memory,
            true,
            format!("{:?}", BackendError::OutOfMemory(no_memory.into())),
        );
        assert!(!first_line(add).contains('\n'));
    }

    #[test]
    fn names_that_a_model_has_say_nothing() {
        let failed = |name: &str, said: &str| {
            format!(
                "Non-zero status code returned while running Add node. Name:'{name}' Status Message: {said}\n#0"
            )
        };
        let check = |name: &str| {
            let text = failed(name, "add.cc:540 no");
            assert_eq!(said(&text), "add.cc:540 no", "{name}");
            let text = failed(name, &format!("{name}: add.cc:540 no"));
            assert_eq!(said(&text), "add.cc:540 no", "{name}");
            let error = classify(ErrorCode::RuntimeException, &text, true);
            assert!(matches!(error, BackendError::Run(_)), "{error:?}");
        };
        check("CUDA failure 700: ");
        check("bad_alloc");
        check("a shape\nout of memory");
        check("' Status Message: out of memory");
        assert_eq!(said("no such part\n#0"), "no such part");
        let path = Path::new("/CUDA failure 700: /m.onnx");
        assert_eq!(
            said_of(path, "Load model from /CUDA failure 700: /m.onnx failed:x"),
            "Load model from  failed:x"
        );
    }
}
