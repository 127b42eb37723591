//! What libtorch says, sorted into the codes of [`BackendError`].

use std::path::Path;

use outrigger_backend::BackendError;

/// A failure of libtorch's, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TorchError(String);

impl TorchError {
    /// From a message of many lines: a stack of C++ frames follows the first one, and where code of the model failed, a copy of it
    /// goes before the last one.
    pub(crate) fn new(message: &str) -> Self {
        let mut lines = message.trim().lines().map(str::trim);
        let first = lines.next().unwrap_or_default();
        let last = lines.rfind(|line| line.split_once(": ").is_some_and(|(kind, _)| is_kind(kind)));
        let line =
            if first.contains("in the TorchScript interpreter") { last.unwrap_or(first) } else { first };
        Self(line.strip_prefix("RuntimeError: ").unwrap_or(line).to_owned())
    }
}

/// Whether it is the name of an exception.
fn is_kind(word: &str) -> bool {
    word.ends_with("Error") && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
}

/// A model that does not load.
pub(crate) fn load(path: &Path, why: impl std::fmt::Display) -> BackendError {
    let text = why.to_string();
    let line = text.lines().next().unwrap_or_default();
    BackendError::Load(format!("{}: {line}", path.display()))
}

/// A run that failed. libtorch has no codes at all, so the words decide; a model without free extents cannot fail for the shapes of its
/// inputs, which have been checked before.
pub(crate) fn run(error: &TorchError, has_free_extents: bool) -> BackendError {
    let text = error.0.clone();
    let lower = text.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if says(&["can't allocate memory", "bad_alloc", "out of memory"]) {
        BackendError::OutOfMemory(text)
    } else if says(&["index out of range", "out of bounds"])
        || has_free_extents && says(&["size", "shape", "dimension", "broadcast"])
    {
        BackendError::Input(text)
    } else {
        BackendError::Run(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: &str = "The following operation failed in the TorchScript interpreter.\n\
        Traceback of TorchScript, serialized code (most recent call last):\n  \
        File \"code/__torch__.py\", line 8, in forward\n    return torch.add(x, y)\n           ~~~~~~~~~ <--- HERE\n\
        RuntimeError: The size of tensor a (3) must match the size of tensor b (2)\n";
    const MEMORY: &str = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you \
        tried to allocate 9 bytes.\nframe #0: c10::ThrowEnforceNotMet\nframe #1: <unknown function>";

    #[test]
    fn messages_are_one_line_and_sorted() {
        let check = |message: &str, free, expected: &str| {
            assert_eq!(format!("{:?}", run(&TorchError::new(message), free)), expected);
        };
        let sizes = "The size of tensor a (3) must match the size of tensor b (2)";
        check(SHAPES, true, &format!("Input(\"{sizes}\")"));
        check(SHAPES, false, &format!("Run(\"{sizes}\")"));
        let memory = MEMORY.lines().next().unwrap();
        check(MEMORY, true, &format!("OutOfMemory({memory:?})"));
        check("index out of range in self\nframe #0", false, "Input(\"index out of range in self\")");
        check(
            "The following operation failed in the TorchScript interpreter.\nValueError: no: more",
            true,
            "Run(\"ValueError: no: more\")",
        );
        check("", true, "Run(\"\")");
        let error = load(Path::new("/m.pt"), TorchError::new(MEMORY)).to_string();
        assert!(error.contains("/m.pt: [enforce fail") && !error.contains('\n'), "{error}");
    }
}
