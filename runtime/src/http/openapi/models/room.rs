//! How many bytes of models one description has: a model can have thousands of tensors, with names as long as its file.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Write};

use outrigger_backend::{ModelInfo, TensorInfo};
use serde_json::value::RawValue;

use super::super::written::{Methods, Written};
use super::Fitting;

/// What is at least said of a tensor beside its name and its extents.
const TENSOR: usize = 64;
/// What is at least said of an extent.
const EXTENT: usize = 11;

/// Operations by path and method, written down.
pub(super) type Paths = BTreeMap<String, BTreeMap<&'static str, Box<RawValue>>>;

/// How many bytes there may still be.
pub(super) struct Room {
    left: usize,
}

impl Room {
    pub(super) fn of(bytes: usize) -> Self {
        Self { left: bytes }
    }

    /// Half of it, to be given back with [`Room::put`].
    pub(super) fn half(&mut self) -> Self {
        let half = self.left / 2;
        self.left -= half;
        Self { left: half }
    }

    /// Gives back what is left of a part.
    pub(super) fn put(&mut self, part: Self) {
        self.left += part.left;
    }

    /// Whether there can be room for a model, before anything is made of it.
    pub(super) fn may_have(&self, model: &ModelInfo) -> bool {
        let tensor = |info: &TensorInfo| {
            let symbols: usize = info.symbols.iter().map(String::len).sum();
            TENSOR + info.name.len() + EXTENT * info.shape.len() + symbols
        };
        let tensors = model.inputs.iter().chain(&model.outputs);
        let least = tensors.map(tensor).fold(0, usize::saturating_add);
        least <= self.left
    }

    /// Takes the room that it needs; nothing, if there is not so much.
    pub(super) fn take(&mut self, written: Written) -> Option<Fitting> {
        let mut left = self.left;
        let mut paths = Paths::new();
        for (path, methods) in written.paths {
            left = left.checked_sub(path.len())?;
            let methods = fitting(&methods, &mut left)?;
            paths.insert(path, methods);
        }
        self.left = left;
        Some(Fitting { paths, responses: written.responses, tags: written.tags })
    }
}

fn fitting(methods: &Methods, left: &mut usize) -> Option<BTreeMap<&'static str, Box<RawValue>>> {
    let mut fitting = BTreeMap::new();
    for (method, operation) in methods {
        let mut written = Bounded { bytes: Vec::new(), most: *left };
        serde_json::to_writer(&mut written, operation).ok()?;
        *left -= written.bytes.len();
        let json = String::from_utf8(written.bytes).ok()?;
        fitting.insert(*method, RawValue::from_string(json).ok()?);
    }
    Some(fitting)
}

/// Takes so many bytes, and is in error beyond.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.most.saturating_sub(self.bytes.len()) {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use outrigger_backend::DataType;
    use serde_json::json;

    use super::*;

    fn written(text: usize) -> Written {
        let mut written = Written::new();
        written.paths.insert("/path".into(), Methods::from([("get", json!("x".repeat(text)))]));
        written
    }

    #[test]
    fn what_fits_is_taken_and_what_does_not_takes_nothing() {
        let mut room = Room::of(5 + 12 + 5 + 2);
        assert!(room.take(written(20)).is_none());
        let fitting = room.take(written(10)).unwrap();
        assert_eq!(fitting.paths["/path"]["get"].get(), "\"xxxxxxxxxx\"");
        assert!(room.take(written(1)).is_none());
        assert!(room.take(written(0)).is_some());
        assert!(room.take(written(0)).is_none());
    }

    #[test]
    fn a_model_that_is_far_too_large_is_not_described_to_find_that_out() {
        let of = |name: usize, rank: usize, count: usize| {
            let info = TensorInfo {
                name: "n".repeat(name),
                data_type: DataType::Fp32,
                shape: vec![1; rank],
                symbols: vec![String::new(); rank],
            };
            Room::of(1000).may_have(&ModelInfo { inputs: vec![info; count], outputs: Vec::new() })
        };
        assert!(of(10, 2, 2) && of(936, 0, 1));
        assert!(!of(937, 0, 1) && !of(1, 86, 1) && !of(1, 1, 20));
    }
}
