//! What a device says outside of any call: ONNX Runtime writes it to its log and goes on.

use std::sync::{Arc, Mutex, PoisonError};

use ort::logging::{LogLevel, LoggerFunction};

/// How its lines about WebGPU's device begin; after it comes a number for the kind of error, and what the driver said.
const BEGINNING: &str = "WebGPU device error(";

/// The first of them since somebody looked.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Keeps those lines for [`take`], and lets all others go: errors are returned as well, and ONNX Runtime would write them to stderr past the
/// log's format.
pub(crate) fn logger() -> LoggerFunction {
    Arc::new(|level, _, _, _, message| {
        if let Some(said) = complaint(message).filter(|_| level >= LogLevel::Error) {
            let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| said.to_owned());
        }
    })
}

fn complaint(message: &str) -> Option<&str> {
    let (_, said) = message.strip_prefix(BEGINNING)?.split_once("): ")?;
    said.lines().next()
}

/// What was said since the last time, the first of it.
pub(crate) fn take() -> Option<String> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_a_device_is_kept_until_it_is_heard() {
        let log = logger();
        let say = |level, message: &str| log(level, "", "", "", message);
        say(
            LogLevel::Error,
            "Non-zero status code returned while running Add node. Name:'WebGPU device error(3): x'",
        );
        say(LogLevel::Warning, "WebGPU device error(3): warned");
        assert_eq!(take(), None);
        say(LogLevel::Error, "WebGPU device error(3): vkAllocateMemory failed with VK_ERROR_X\n - While");
        say(LogLevel::Error, "WebGPU device error(2): second");
        assert_eq!(take().as_deref(), Some("vkAllocateMemory failed with VK_ERROR_X"));
        assert_eq!(take(), None);
    }
}
