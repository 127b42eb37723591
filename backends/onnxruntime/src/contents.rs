//! What a model's file claims, looked at before ONNX Runtime sees it: that its data lies in its own folder, and that a constant
//! is not larger than what is there for it.
//!
//! Only the skeleton is read; the data of constants is skipped, so this takes no memory and next to no time.
//!
//! Source of the field numbers: `onnx.proto3` of ONNX 1.23; the wire format is Protocol Buffers'.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use outrigger_backend::BackendError;

use crate::error;
use crate::steps::NAMES;
use crate::tensor::{Claim, ClaimError};

/// Graphs in graphs; ONNX Runtime's own parser stops at 100 messages.
const MOST_NESTED: usize = 100;
/// Extents of one constant; tensors have 8 in practice.
const MOST_EXTENTS: usize = 256;
/// Files that one constant says it is in; it is in one.
const MOST_LOCATIONS: usize = 16;
/// Elements of a sparse constant, which ONNX Runtime makes dense when it loads it, however few of them are in the file.
const MOST_SPARSE: u64 = 1 << 26;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// Bytes of constants that lie in other files.
    pub(crate) external_bytes: u64,
    /// Bytes that sparse constants take when they are dense, at most.
    pub(crate) dense_bytes: u64,
    /// Whether there are other files.
    pub(crate) is_external: bool,
    /// Whether an input, an output, a constant, or what an operator makes is called as what steps add to a graph.
    pub(crate) has_step_names: bool,
    /// Whether there are tensors of FP16, as far as the file says.
    has_halves: bool,
    /// Whether an operator does more than pass tensors on.
    calculates: bool,
}

impl Contents {
    /// Whether something is calculated in a model that has FP16.
    pub(crate) fn calculates_with_halves(&self) -> bool {
        self.has_halves && self.calculates
    }
}

/// FP16, as `TensorProto.DataType` has it.
const HALF: u64 = 10;
/// Operators that look at no element.
const PASSING: [&str; 5] = ["Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// Why a file is not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentsError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("is no file")]
    NoFile,
    #[error("is empty")]
    Empty,
    #[error("is cut off, or no ONNX model: a part at byte {at} claims {claimed} bytes, {left} are left")]
    CutOff { at: u64, claimed: u64, left: u64 },
    #[error("is no ONNX model: there is no such thing as what byte {0} begins")]
    Syntax(u64),
    #[error("is nested more than {MOST_NESTED} deep")]
    Nested,
    #[error("has a constant with more than {0} extents or places")]
    Many(usize),
    #[error(
        "has a sparse constant of {0} elements, more than {MOST_SPARSE}, all of which would be in memory"
    )]
    Sparse(u64),
    #[error("has a name or path of more than {0} bytes")]
    Text(u64),
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// The messages on the way to tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
    /// An input, an output, or what is between.
    Value,
    Type,
    TensorType,
}

impl Message {
    /// The message in a field, if there are tensors or their types in it.
    fn child(self, field: u64) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 20) => Self::Training,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::Sparse,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Self::Tensor,
            (Self::Graph, 11..=13) => Self::Value,
            (Self::Value, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            _ => return None,
        })
    }
}

/// Whether there is a file at `path` that has the form of a model, as far as that is seen without ONNX Runtime.
///
/// # Errors
/// [`BackendError::Load`] if not.
pub fn look_at(path: &Path) -> Result<(), BackendError> {
    inspect(path).map(drop).map_err(|why| error::load(path, why))
}

/// Looks through the model at `path`.
///
/// # Errors
/// [`ContentsError`], without the path.
pub(crate) fn inspect(path: &Path) -> Result<Contents, ContentsError> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(ContentsError::NoFile);
    }
    let file = File::open(path)?;
    let bytes = metadata.len();
    if bytes == 0 {
        return Err(ContentsError::Empty);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let contents = Contents { bytes, ..Contents::default() };
    let mut walk = Walk { reader: BufReader::with_capacity(1 << 16, file), at: 0, folder, contents };
    walk.message(Message::Model, bytes, 0)?;
    Ok(walk.contents)
}

struct Walk {
    reader: BufReader<File>,
    /// The byte that is read next.
    at: u64,
    folder: PathBuf,
    contents: Contents,
}

impl Walk {
    fn message(&mut self, message: Message, end: u64, depth: usize) -> Result<(), ContentsError> {
        if depth > MOST_NESTED {
            return Err(ContentsError::Nested);
        }
        let mut claim = Claim::default();
        // The extents of a sparse constant.
        let mut dense = Vec::new();
        // Of an attribute: that it is the type which `Cast` makes, and that this is FP16.
        let (mut is_target, mut is_half) = (false, false);
        while self.at < end {
            let begin = self.at;
            let key = self.varint(end)?;
            let (field, wire) = (key >> 3, key & 7);
            if message == Message::Tensor && self.tensor_field(&mut claim, field, wire, end)? {
                continue;
            }
            if message == Message::Sparse && field == 3 && matches!(wire, 0 | 2) {
                self.extents(&mut dense, wire, end)?;
                continue;
            }
            match (message, field, wire) {
                (Message::Node, 2, 2) | (Message::Value, 1, 2) => {
                    self.name(end)?;
                    continue;
                }
                (Message::Node, 4, 2) => {
                    let operator = self.text(end)?;
                    self.contents.calculates |= !PASSING.contains(&operator.as_str());
                    continue;
                }
                (Message::Attribute, 1, 2) => {
                    is_target = self.text(end)? == "to";
                    continue;
                }
                (Message::Attribute, 3, 0) => {
                    is_half = self.varint(end)? == HALF;
                    continue;
                }
                (Message::TensorType, 1, 0) => {
                    self.contents.has_halves |= self.varint(end)? == HALF;
                    continue;
                }
                _ => {}
            }
            match wire {
                0 => _ = self.varint(end)?,
                1 => self.skip(8, end)?,
                5 => self.skip(4, end)?,
                2 => {
                    let len = self.length(end)?;
                    match message.child(field) {
                        Some(child) => self.message(child, self.at + len, depth + 1)?,
                        None => self.skip(len, end)?,
                    }
                }
                _ => return Err(ContentsError::Syntax(begin)),
            }
        }
        if message == Message::Sparse {
            let product =
                |sum: u64, extent: &i64| sum.saturating_mul(u64::try_from(*extent).unwrap_or(u64::MAX));
            let elements = dense.iter().fold(1, product);
            if elements > MOST_SPARSE {
                return Err(ContentsError::Sparse(elements));
            }
            self.contents.dense_bytes = self.contents.dense_bytes.saturating_add(elements.saturating_mul(8));
        }
        self.contents.has_halves |= is_target && is_half;
        if message == Message::Tensor {
            self.contents.has_halves |= claim.element == HALF;
            let external = claim.check(&self.folder)?;
            self.contents.is_external |= external.is_some();
            self.contents.external_bytes = self.contents.external_bytes.saturating_add(external.unwrap_or(0));
        }
        Ok(())
    }

    /// Reads a field that says something of a tensor's size or place; `false` leaves it for others.
    fn tensor_field(
        &mut self,
        claim: &mut Claim,
        field: u64,
        wire: u64,
        end: u64,
    ) -> Result<bool, ContentsError> {
        match (field, wire) {
            (1, 0 | 2) => self.extents(&mut claim.extents, wire, end)?,
            // An int32 to whoever reads it: what is above is cut off.
            (2, 0) => claim.element = u64::from(self.varint(end)? as u32),
            (8, 2) => {
                claim.name = self.text(end)?;
                self.contents.has_step_names |= claim.name.starts_with(NAMES);
            }
            (9, 2) => claim.raw = Some(self.data(end)?),
            // Floats, integers, strings and so on, in fields of their own.
            (4..=7 | 10 | 11, 2) => claim.listed += self.data(end)?,
            (4, 5) => {
                self.skip(4, end)?;
                claim.listed += 4;
            }
            (10, 1) => {
                self.skip(8, end)?;
                claim.listed += 8;
            }
            (5 | 7 | 11, 0) => {
                self.varint(end)?;
                claim.listed += 1;
            }
            (13, 2) => {
                let end = self.length(end)? + self.at;
                self.entry(claim, end)?;
            }
            (14, 0) => claim.is_external = self.varint(end)? == 1,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// One extent, or several that are packed.
    fn extents(&mut self, extents: &mut Vec<i64>, wire: u64, end: u64) -> Result<(), ContentsError> {
        let end = if wire == 0 { end } else { self.length(end)? + self.at };
        while self.at < end {
            if extents.len() >= MOST_EXTENTS {
                return Err(ContentsError::Many(MOST_EXTENTS));
            }
            let extent = self.varint(end)? as i64;
            extents.push(extent);
            if wire == 0 {
                break;
            }
        }
        Ok(())
    }

    /// A key and a value that say where external data is.
    fn entry(&mut self, claim: &mut Claim, end: u64) -> Result<(), ContentsError> {
        let (mut key, mut value) = (String::new(), String::new());
        while self.at < end {
            let begin = self.at;
            let tag = self.varint(end)?;
            match (tag >> 3, tag & 7) {
                (1, 2) => key = self.text(end)?,
                (2, 2) => value = self.text(end)?,
                (_, 0) => _ = self.varint(end)?,
                (_, 2) => _ = self.data(end)?,
                _ => return Err(ContentsError::Syntax(begin)),
            }
        }
        claim.entry(&key, value)?;
        if claim.locations() > MOST_LOCATIONS {
            return Err(ContentsError::Many(MOST_LOCATIONS));
        }
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64, ContentsError> {
        let begin = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                return Err(ContentsError::CutOff { at: begin, claimed: 1, left: 0 });
            }
            let mut byte = [0];
            self.reader.read_exact(&mut byte).map_err(|error| self.ended(error))?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(ContentsError::Syntax(begin))
    }

    /// A length that fits into what is left of the message.
    fn length(&mut self, end: u64) -> Result<u64, ContentsError> {
        let at = self.at;
        let claimed = self.varint(end)?;
        let left = end - self.at;
        if claimed > left { Err(ContentsError::CutOff { at, claimed, left }) } else { Ok(claimed) }
    }

    /// Skips data, and tells how much.
    fn data(&mut self, end: u64) -> Result<u64, ContentsError> {
        let len = self.length(end)?;
        self.skip(len, end)?;
        Ok(len)
    }

    fn skip(&mut self, len: u64, end: u64) -> Result<(), ContentsError> {
        let left = end - self.at;
        if len > left {
            return Err(ContentsError::CutOff { at: self.at, claimed: len, left });
        }
        self.reader.seek_relative(len as i64)?; // below the file's length, which is an i64 itself
        self.at += len;
        Ok(())
    }

    /// A name or a path; the kernel's limit for paths is enough for both.
    fn text(&mut self, end: u64) -> Result<String, ContentsError> {
        const MOST: u64 = 4096;
        let len = self.length(end)?;
        if len > MOST {
            return Err(ContentsError::Text(MOST));
        }
        let mut bytes = Vec::new();
        self.reader.by_ref().take(len).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        self.skip(len - bytes.len() as u64, end)?;
        // What is not UTF-8 names no file that could be found under it.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The beginning of a name, however long it is.
    fn name(&mut self, end: u64) -> Result<(), ContentsError> {
        let len = self.length(end)?;
        let mut bytes = Vec::new();
        self.reader.by_ref().take(len.min(NAMES.len() as u64)).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        self.contents.has_step_names |= bytes == NAMES.as_bytes();
        self.skip(len - bytes.len() as u64, end)
    }

    /// A file that became shorter since its length was asked.
    fn ended(&mut self, error: std::io::Error) -> ContentsError {
        if error.kind() == ErrorKind::UnexpectedEof && self.reader.fill_buf().is_ok_and(<[u8]>::is_empty) {
            return ContentsError::CutOff { at: self.at, claimed: 1, left: 0 };
        }
        error.into()
    }
}
