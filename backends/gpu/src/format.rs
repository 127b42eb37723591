//! The formats of models.

use std::fs::File;
use std::io::Read as _;

use outrigger_backend::{BackendError, LoadOptions};

use crate::model::load_error;

/// What a model's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A chain of steps.
    Steps,
    /// A graph for ONNX Runtime.
    Onnx,
    /// The same with steps in it.
    OnnxWithSteps,
}

/// As much of a file is looked at.
const HEAD: u64 = 4096;

impl Format {
    pub(crate) const ALL: [Self; 3] = [Self::Steps, Self::Onnx, Self::OnnxWithSteps];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Onnx => "onnx",
            Self::OnnxWithSteps => "onnx+steps",
        }
    }

    /// The format that is asked for; without one, that of the file.
    pub(crate) fn of(options: &LoadOptions) -> Result<Self, BackendError> {
        let Some(name) = options.format.as_deref() else {
            let mut head = Vec::new();
            let file = File::open(&options.path).map_err(|error| load_error(options, error))?;
            file.take(HEAD).read_to_end(&mut head).map_err(|error| load_error(options, error))?;
            return Ok(Self::seen(&head));
        };
        let known = Self::ALL.into_iter().find(|format| format.name() == name);
        let names = || Self::ALL.map(Self::name).join(", ");
        known.ok_or_else(|| {
            load_error(options, format_args!("the format `{name}` is not known, only {}", names()))
        })
    }

    /// TOML has no control characters but these (TOML 1.0.0, "Spec"), and ONNX always has one: the key of its version, 8.
    fn seen(head: &[u8]) -> Self {
        let is_text = head.iter().all(|byte| *byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r'));
        if is_text { Self::Steps } else { Self::Onnx }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_onnx() {
        assert_eq!(Format::seen(b""), Format::Steps);
        assert_eq!(Format::seen(b"outputs = [\r\n\t'\xc3\xa4']\n"), Format::Steps);
        assert_eq!(Format::seen(&outrigger_testkit::onnx::add(3)), Format::Onnx);
        assert_eq!(Format::seen(b"\x08\x08:7"), Format::Onnx);
    }
}
