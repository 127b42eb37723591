//! What CUDA's errors say of the device.

/// What an error says of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing on it succeeds any more in this process.
    Lost,
    /// There was not enough memory.
    OutOfMemory,
}

/// An error after which nothing on the device succeeds in this process.
struct Sticky {
    code: i32,
    /// As the runtime calls it; the driver's has the same number.
    name: &'static str,
    /// What `cudaGetErrorString` says, where it can be taken for nothing else.
    text: Option<&'static str>,
}

const fn sticky(code: i32, name: &'static str, text: &'static str) -> Sticky {
    Sticky { code, name, text: if text.is_empty() { None } else { Some(text) } }
}

/// Source: CUDA Runtime API, `cudaError_t` (13.0). Of those in the first part it says "To continue using CUDA, the process must be
/// terminated and relaunched". It does not of those in the second, of which the first two are memory or a link that is broken, and the
/// others a device that is not there for this process (any more); another process may have more luck.
const STICKY: &[Sticky] = &[
    sticky(226, "cudaErrorContained", ""),
    sticky(700, "cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    sticky(702, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"),
    sticky(710, "cudaErrorAssert", "device-side assert triggered"),
    sticky(714, "cudaErrorHardwareStackError", "hardware stack error"),
    sticky(715, "cudaErrorIllegalInstruction", "an illegal instruction was encountered"),
    sticky(716, "cudaErrorMisalignedAddress", "misaligned address"),
    sticky(717, "cudaErrorInvalidAddressSpace", "operation not supported on global/shared address space"),
    sticky(718, "cudaErrorInvalidPc", "invalid program counter"),
    sticky(719, "cudaErrorLaunchFailure", "unspecified launch failure"),
    sticky(721, "cudaErrorTensorMemoryLeak", ""),
    sticky(809, "cudaErrorMpsClientTerminated", ""),
    sticky(911, "cudaErrorExternalDevice", ""),
    //
    sticky(214, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"),
    sticky(220, "cudaErrorNvlinkUncorrectable", ""),
    sticky(46, "cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"),
    sticky(100, "cudaErrorNoDevice", "no CUDA-capable device is detected"),
    sticky(709, "cudaErrorContextIsDestroyed", "context is destroyed"),
];

/// `cudaErrorMemoryAllocation`.
pub(crate) const OUT_OF_MEMORY: i32 = 2;

/// What an error of the driver's says; `None` where it concerns the call alone.
pub fn of_code(code: i32) -> Option<Fault> {
    if code == OUT_OF_MEMORY {
        return Some(Fault::OutOfMemory);
    }
    STICKY.iter().any(|sticky| sticky.code == code).then_some(Fault::Lost)
}

/// What a message of ONNX Runtime's or PyTorch's says. Its forms are `CUDA failure 700: … ; GPU=0 ; …` and `CUDA error cudaErrorIllegalAddress:…`, and
/// `CUDA error: an illegal memory access was encountered`; beside them the libraries on CUDA have errors of their own, and the arena says that it has reached its limit.
pub fn of_message(message: &str) -> Option<Fault> {
    if let Some(fault) = number_after(message, "CUDA failure ").and_then(of_code) {
        return Some(fault);
    }
    let says = |sticky: &Sticky| {
        let text = sticky.text.is_some_and(|text| message.contains(text));
        text || is_named(message, sticky.name)
    };
    if STICKY.iter().any(says) {
        return Some(Fault::Lost);
    }
    const NO_MEMORY: [&str; 5] = [
        "cudaErrorMemoryAllocation",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "Available memory of ",
        "OutOfMemory",
    ];
    NO_MEMORY.iter().any(|words| message.contains(words)).then_some(Fault::OutOfMemory)
}

/// The device that a message is of, by CUDA's number, where a library on CUDA has failed for a reason that does not show in the message: it
/// may be an error of the device that came before. `None` for all others.
pub fn unclear(message: &str) -> Option<i32> {
    let failed = ["CUDA failure ", "CUBLAS failure ", "CUDNN failure ", "CURAND failure ", "CUFFT failure "];
    failed.iter().any(|words| message.contains(words)).then(|| number_after(message, "; GPU="))?
}

fn number_after(message: &str, words: &str) -> Option<i32> {
    let (_, rest) = message.split_once(words)?;
    let end = rest.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn is_named(message: &str, name: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric());
    message.match_indices(name).any(|(at, _)| ends(&message[at + name.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_process_and_what_does_not_is_told_by_number() {
        // Those of the documentation's sentence, and those of the table's second part.
        for code in [226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 809, 911, 214, 220, 46, 100, 709]
        {
            assert_eq!(of_code(code), Some(Fault::Lost), "{code}");
        }
        assert_eq!(of_code(2), Some(Fault::OutOfMemory));
        // Invalid value, invalid context, not found, not ready, out of resources, cooperative launch, not supported, capture, unknown.
        for code in [0, 1, 201, 500, 600, 701, 720, 801, 900, 901, 999] {
            assert_eq!(of_code(code), None, "{code}");
        }
    }

    #[test]
    fn messages_are_read() {
        let check = |message: &str, expected| assert_eq!(of_message(message), expected, "{message}");
        let failure = |code: i32, text: &str| {
            format!(
                "Non-zero status code returned while running Add node. Name:'' Status Message: CUDA failure {code}: {text} ; GPU=1 ; \
                 hostname=h ; file=cuda_call.cc ; line=1 ; expr=cudaStreamSynchronize(stream); "
            )
        };
        check(&failure(700, "an illegal memory access was encountered"), Some(Fault::Lost));
        check(&failure(719, "unspecified launch failure"), Some(Fault::Lost));
        check(&failure(214, "uncorrectable ECC error encountered"), Some(Fault::Lost));
        check(&failure(2, "out of memory"), Some(Fault::OutOfMemory));
        check(&failure(1, "invalid argument"), None);
        check(&failure(7001, "no such error"), None);
        check("CUDA error cudaErrorAssert:device-side assert triggered", Some(Fault::Lost));
        check("CUDA error cudaErrorContained:x", Some(Fault::Lost));
        check("CUDA error cudaErrorInvalidPc:", Some(Fault::Lost));
        check("CUDA error cudaErrorInvalidPcx:", None);
        check("CUDA error cudaErrorInvalidConfiguration:invalid configuration argument", None);
        check("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", Some(Fault::OutOfMemory));
        check(
            "bfc_arena.cc:376 Available memory of 100 is smaller than requested bytes of 256",
            Some(Fault::OutOfMemory),
        );
        check("add.cc:540 Attempting to broadcast an axis by a dimension other than 1. 2 by 3", None);
        check("CUDA failure ", None);
    }

    #[test]
    fn failures_that_may_have_another_cause_name_their_device() {
        assert_eq!(
            unclear("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=3 ; hostname=h"),
            Some(3)
        );
        assert_eq!(unclear("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; "), Some(0));
        assert_eq!(unclear("CUDA failure 999: unknown error ; GPU=12"), Some(12));
        for text in ["CUDA failure 999: unknown error", "broadcast ; GPU=1", "CUDA failure 1 ; GPU=-1"] {
            assert_eq!(unclear(text), None, "{text}");
        }
    }
}
