//! Choices made of the bytes that libFuzzer comes up with.

use outrigger_backend::{DataType, TensorInfo};

/// Bytes that are taken from the front; behind the end there are zeros.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u8) -> usize {
        usize::from(self.byte() % end)
    }

    /// So many bytes, or as many as there are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// As many bytes as the first one says.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.take(len.into())
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// All that is left, if it is text.
    pub fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok()
    }

    /// An input or output of a model, of few dimensions with small extents, some of which are free and have names.
    pub fn tensor(&mut self, name: &str) -> TensorInfo {
        let data_type = DataType::ALL[self.below(DataType::ALL.len() as u8)];
        let rank = self.below(5);
        let dimensions: Vec<(i64, &str)> = (0..rank)
            .map(|_| match self.below(9) {
                0 => (-1, ""),
                1 => (-1, "n"),
                2 => (-1, "m"),
                extent => (extent as i64 - 3, ""),
            })
            .collect();
        TensorInfo::new(name, data_type, &dimensions)
    }
}
