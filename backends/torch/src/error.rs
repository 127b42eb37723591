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

/// A failure on an NVIDIA GPU: `lacks_memory` is whether a message of CUDA's says that, `asked` what the device's driver says of it if it is lost.
///
/// A model can raise what text it likes, as a `RuntimeError` that looks like CUDA's own: so a device is lost if the driver says so, which it does at
/// every call after such an error, and not for any words.
pub(crate) fn on_cuda(
    error: BackendError,
    lacks_memory: impl FnOnce(&str) -> bool,
    asked: impl FnOnce() -> Option<String>,
) -> BackendError {
    let (text, is_load) = match &error {
        BackendError::Load(text) => (text, true),
        BackendError::Run(text) | BackendError::Input(text) | BackendError::Internal(text) => (text, false),
        _ => return error,
    };
    if let Some(why) = asked() {
        return BackendError::Lost(why);
    }
    // What stands before it is the model's path, where it did not load.
    let after = |library: &str| {
        if is_load {
            text.rsplit_once(&format!(": {library} ")).map(|(_, own)| own)
        } else {
            text.strip_prefix(library)?.strip_prefix(' ')
        }
    };
    let own = after("CUDA").or_else(|| after("cuDNN")).unwrap_or_default();
    if own.starts_with("out of memory")
        || own
            .strip_prefix("error: ")
            .is_some_and(|own| own.starts_with("out of memory") || lacks_memory(own))
    {
        return BackendError::OutOfMemory(text.clone());
    }
    error
}

/// Whether the limit that the process has is the one that is meant.
pub(crate) fn is_that_limit(set: Option<u64>, bytes: u64) -> Result<(), String> {
    let limit = |bytes: u64| if bytes == 0 { "no limit".into() } else { format!("a limit of {bytes} bytes") };
    match set {
        Some(set) if set != bytes => Err(format!(
            "PyTorch's allocator has {} in this process already, not {} (`memory_bytes`)",
            limit(set),
            limit(bytes)
        )),
        _ => Ok(()),
    }
}

/// The part of a device's memory that so many bytes are, in a form that PyTorch reads; `None` for no limit. Never more than said.
pub(crate) fn fraction(bytes: u64, of: u64) -> Option<String> {
    if bytes == 0 || bytes >= of {
        return None;
    }
    // In millionths, rounded down but for what would be nothing.
    let millionths = (u128::from(bytes) * 1_000_000 / u128::from(of)).max(1);
    Some(format!("0.{millionths:06}"))
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

    #[test]
    fn failures_on_a_gpu_are_held_against_its_driver() {
        let check = |error: BackendError, driver: Option<&str>, expected: &str| {
            let lacks_memory = |text: &str| text.contains("ALLOC_FAILED");
            let got = on_cuda(error, lacks_memory, || driver.map(str::to_owned));
            assert_eq!(format!("{got:?}"), expected);
        };
        let run = |text: &str| run(&TorchError::new(text), true);
        let illegal = "CUDA error: an illegal memory access was encountered";
        // The driver agrees, or a model has raised it.
        let said = || run(&format!("{illegal}\nCUDA kernel errors might be"));
        check(said(), Some("CUDA failure 700"), "Lost(\"CUDA failure 700\")");
        check(said(), None, &format!("Run({illegal:?})"));
        let blas = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`";
        check(run(blas), None, &format!("Run({blas:?})"));
        check(run(blas), Some("CUDA failure 719"), "Lost(\"CUDA failure 719\")");
        let raised = "ValueError: CUDA error: an illegal memory access was encountered";
        check(run(raised), None, &format!("Run({raised:?})"));
        let memory = "CUDA out of memory. Tried to allocate 2.00 GiB.";
        check(run(memory), None, &format!("OutOfMemory({memory:?})"));
        for text in [
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        ] {
            check(run(text), None, &format!("OutOfMemory({text:?})"));
        }
        let loaded = load(Path::new("/CUDA error: m.pt"), format!("{memory}\nframe"));
        check(loaded, None, &format!("OutOfMemory(\"/CUDA error: m.pt: {memory}\")"));
        let other = load(Path::new("/CUDA error: illegal memory access/m.pt"), "no archive");
        check(other, None, "Load(\"/CUDA error: illegal memory access/m.pt: no archive\")");
    }

    #[test]
    fn a_process_has_one_limit() {
        assert_eq!(is_that_limit(None, 7), Ok(()));
        assert_eq!(is_that_limit(Some(7), 7), Ok(()));
        let error = is_that_limit(Some(0), 7).unwrap_err();
        assert!(error.contains("has no limit in this process already, not a limit of 7 bytes"), "{error}");
    }

    #[test]
    fn a_limit_is_a_part_of_the_memory() {
        assert_eq!((fraction(0, 100), fraction(100, 100), fraction(101, 100)), (None, None, None));
        assert_eq!(fraction(1 << 30, 16 << 30).unwrap(), "0.062500");
        assert_eq!(fraction(2, 3).unwrap(), "0.666666");
        assert_eq!(fraction(1, u64::MAX).unwrap(), "0.000001");
    }
}
