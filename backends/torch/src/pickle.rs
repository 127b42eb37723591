//! Reads an archive's pickle for one purpose: that libtorch can do so without harm. No tensor in it reaches beyond the bytes that it has,
//! and nothing in it is without end.
//!
//! libtorch takes shapes and strides from the pickle as they are, and would read memory of others; it keeps functions in a list and calls
//! whichever number it is given. What is nested without end overflows its stack. So this follows it instruction by instruction, refuses what it
//! has no instruction for, and knows of each value what libtorch will take it for. What PyTorch writes is never changed once it is remembered,
//! so a value that is remembered has its depth for good, and none can be in itself.
//! Source: `torch/csrc/jit/serialization/unpickler.cpp` and `pickler.cpp` of PyTorch 2.11; pickle is PEP 307 and Python's `pickletools`.

#[cfg(test)]
mod tests;

use std::rc::Rc;

use crate::limits::{BYTES_PER_VALUE, DIMENSIONS, NAME_BYTES, REACHED, VALUE_DEPTH};

/// What is wrong with a pickle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PickleError {
    #[error("its pickle is cut off")]
    End,
    #[error("its pickle has an instruction that is not known, {0:#04x}")]
    Instruction(u8),
    #[error("its pickle is broken: {0}")]
    Broken(&'static str),
    #[error("its pickle refers to `{0}`, which is not known")]
    Global(String),
    #[error("its pickle is nested more than {VALUE_DEPTH} deep")]
    Deep,
    #[error(
        "its pickle has more than {most} values; the setting `code_bytes` allows one for each {BYTES_PER_VALUE} bytes"
    )]
    Many { most: u64 },
    #[error("its pickle has values in values in more than {REACHED} ways")]
    Reached,
    #[error("tensor `{key}` claims {claimed} bytes, the archive has {there} for it")]
    Bytes { key: String, claimed: u128, there: u64 },
    #[error("a tensor in `{key}` reaches beyond its {elements} elements")]
    Reach { key: String, elements: i64 },
    #[error("a tensor in `{key}` has more than {DIMENSIONS} dimensions")]
    Dimensions { key: String },
}

type Result<T> = std::result::Result<T, PickleError>;

/// What a pickle may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Values.
    values: u64,
    /// The same, each as often as it can be reached.
    reached: u64,
}

impl Limits {
    /// Of one that makes a module, where `code_bytes` is the setting.
    pub(crate) fn module(code_bytes: u64) -> Self {
        Self { values: code_bytes / BYTES_PER_VALUE, reached: REACHED }
    }

    /// Of one that says where code came from. Every line of it refers to the same text, which libtorch reads once.
    pub(crate) fn debug(code_bytes: u64) -> Self {
        Self { reached: u64::MAX, ..Self::module(code_bytes) }
    }
}

/// What an instruction leaves, as far as tensors are concerned. Texts stay where they are.
#[derive(Clone, Debug)]
enum Value<'a> {
    Mark,
    Number(i64),
    Text(&'a str),
    Global(Global),
    Tuple(Rc<Tuple<'a>>),
    /// Bytes of tensors.
    Storage(Rc<Storage<'a>>),
    List(Extent),
    Dictionary(Extent),
    Other(Extent),
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    /// What makes a tensor out of bytes.
    Tensor,
    /// What says of which type a list or dictionary is.
    Tag,
    /// Another function.
    Function,
    /// A class of the archive's.
    Class,
    /// Bytes of elements that have this many each.
    Elements(u8),
    /// A number with a name.
    Number,
}

#[derive(Debug)]
struct Tuple<'a> {
    items: Vec<Value<'a>>,
    extent: Extent,
}

#[derive(Debug)]
struct Storage<'a> {
    key: &'a str,
    elements: i64,
}

/// What is in a value.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    depth: u16,
    /// Whether it is remembered, so that it may be in others.
    is_remembered: bool,
    /// Values in it, each as often as it can be reached.
    reached: u64,
}

impl<'a> Value<'a> {
    fn extent(&self) -> Extent {
        match self {
            Self::Tuple(tuple) => tuple.extent,
            Self::List(extent) | Self::Dictionary(extent) | Self::Other(extent) => *extent,
            _ => Extent::default(),
        }
    }

    fn number(&self) -> Option<i64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    fn text(&self) -> Option<&'a str> {
        if let Self::Text(text) = self { Some(*text) } else { None }
    }

    fn items(&self) -> Option<&[Self]> {
        if let Self::Tuple(tuple) = self { Some(&tuple.items) } else { None }
    }
}

/// Checks a pickle; `size` tells how many bytes the archive has for a tensor's key.
pub(crate) fn check(pickle: &[u8], limits: Limits, size: impl Fn(&str) -> Option<u64>) -> Result<()> {
    let rest = pickle.strip_prefix(b"\x80\x02").ok_or(PickleError::Broken("it is not of protocol 2"))?;
    let mut machine = Machine { rest, stack: Vec::new(), memo: Vec::new(), values: 0, limits, size };
    while machine.step()? {}
    match machine.stack.as_slice() {
        [value] if !matches!(value, Value::Mark) => Ok(()),
        _ => Err(PickleError::Broken("it ends with more or less than one value")),
    }
}

struct Machine<'a, S> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    memo: Vec<Value<'a>>,
    /// How many there have been.
    values: u64,
    limits: Limits,
    size: S,
}

impl<'a, S: Fn(&str) -> Option<u64>> Machine<'a, S> {
    /// Does one instruction; false at the last.
    fn step(&mut self) -> Result<bool> {
        let [instruction] = self.take()?;
        match instruction {
            b'.' => return Ok(false),
            b'(' => self.push(Value::Mark)?,
            b'N' | 0x88 | 0x89 => self.push(Value::Other(Extent::default()))?,
            b'K' => self.number(|[byte]: [u8; 1]| byte.into())?,
            b'M' => self.number(|bytes| u16::from_le_bytes(bytes).into())?,
            b'J' => self.number(|bytes| i32::from_le_bytes(bytes).into())?,
            0x8a => self.long()?,
            b'G' => {
                self.take::<8>()?;
                self.push(Value::Other(Extent::default()))?;
            }
            b'X' => {
                let len = u32::from_le_bytes(self.take()?);
                let bytes = self.bytes(len as usize)?;
                let text =
                    std::str::from_utf8(bytes).map_err(|_| PickleError::Broken("a text is no UTF-8"))?;
                self.push(Value::Text(text))?;
            }
            b'c' => self.global()?,
            b'q' => {
                let [key] = self.take()?;
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.take()?);
                self.remember(key)?;
            }
            b'h' => {
                let [key] = self.take()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.take()?);
                self.recall(key)?;
            }
            b')' => self.tuple(Vec::new())?,
            b']' => self.push(Value::List(Extent::default()))?,
            b'}' => self.push(Value::Dictionary(Extent::default()))?,
            b't' => {
                let items = self.marked()?;
                self.tuple(items)?;
            }
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x84..instruction {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.tuple(items)?;
            }
            b'l' => {
                let items = self.marked()?;
                let extent = self.holding(Extent::default(), &items)?;
                self.push(Value::List(extent))?;
            }
            b'd' => {
                let items = self.pairs()?;
                let extent = self.holding(Extent::default(), &items)?;
                self.push(Value::Dictionary(extent))?;
            }
            b'e' => {
                let items = self.marked()?;
                self.append(&items)?;
            }
            b'a' => {
                let items = [self.pop()?];
                self.append(&items)?;
            }
            b'u' => {
                let items = self.pairs()?;
                self.set(&items)?;
            }
            b's' => {
                let items = [self.pop()?, self.pop()?];
                self.set(&items)?;
            }
            // Of a new object nothing is looked at but its class, which stays where it is; its state follows.
            0x81 => {
                self.pop()?;
                match self.stack.last() {
                    Some(Value::Global(Global::Class)) => {}
                    _ => return Err(CALLED),
                }
            }
            // libtorch calls what it is by the same means as `R` does.
            b'b' => {
                let state = self.pop()?;
                match self.pop()? {
                    Value::Global(Global::Class) => self.made_of(&state)?,
                    _ => return Err(CALLED),
                }
            }
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            other => return Err(PickleError::Instruction(other)),
        }
        Ok(true)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(PickleError::End)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(PickleError::End)?;
        self.rest = rest;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a str> {
        let near = self.rest.get(..=NAME_BYTES).unwrap_or(self.rest);
        let end = near.iter().position(|byte| *byte == b'\n');
        let long = near.len() > NAME_BYTES;
        let end =
            end.ok_or(if long { PickleError::Broken("a name is too long") } else { PickleError::End })?;
        let line = self.bytes(end)?;
        self.take::<1>()?;
        std::str::from_utf8(line).map_err(|_| PickleError::Broken("a name is no UTF-8"))
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.values += 1;
        if self.values > self.limits.values {
            return Err(PickleError::Many { most: self.limits.values });
        }
        self.stack.push(value);
        Ok(())
    }

    /// The last value. A mark is none: libtorch keeps marks elsewhere, and would take the value before it.
    fn pop(&mut self) -> Result<Value<'a>> {
        match self.stack.pop() {
            None | Some(Value::Mark) => Err(EMPTY),
            Some(value) => Ok(value),
        }
    }

    /// What lies above the last mark, which goes.
    fn marked(&mut self) -> Result<Vec<Value<'a>>> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark));
        let mark = mark.ok_or(PickleError::Broken("a mark is missing"))?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    /// The same, of keys and values.
    fn pairs(&mut self) -> Result<Vec<Value<'a>>> {
        let items = self.marked()?;
        if items.len() % 2 == 1 {
            return Err(PickleError::Broken("a key has no value"));
        }
        Ok(items)
    }

    fn number<const N: usize>(&mut self, read: impl Fn([u8; N]) -> i64) -> Result<()> {
        let number = read(self.take()?);
        self.push(Value::Number(number))
    }

    /// A number of up to eight bytes.
    fn long(&mut self) -> Result<()> {
        let [len] = self.take()?;
        let bytes = self.bytes(len.into())?;
        let sign = bytes.last().is_some_and(|byte| *byte >= 0x80);
        let mut all = [if sign { 0xff } else { 0 }; 8];
        let place =
            all.get_mut(..bytes.len()).ok_or(PickleError::Broken("a number has more than eight bytes"))?;
        place.copy_from_slice(bytes);
        self.push(Value::Number(i64::from_le_bytes(all)))
    }

    fn global(&mut self) -> Result<()> {
        let (module, name) = (self.line()?, self.line()?);
        let global = global(module, name).ok_or_else(|| PickleError::Global(format!("{module}.{name}")))?;
        self.push(Value::Global(global))
    }

    /// libtorch makes room for as many values as the number says. Those that PyTorch writes count up.
    fn remember(&mut self, key: u32) -> Result<()> {
        let value = match self.stack.last_mut() {
            None | Some(Value::Mark) => return Err(EMPTY),
            Some(value) => value,
        };
        if let Value::List(extent) | Value::Dictionary(extent) = value {
            extent.is_remembered = true;
        }
        let (value, key) = (value.clone(), key as usize);
        if let Some(place) = self.memo.get_mut(key) {
            *place = value;
        } else if key == self.memo.len() {
            self.memo.push(value);
        } else {
            return Err(PickleError::Broken("it leaves out numbers for what it remembers"));
        }
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let value = self.memo.get(key as usize);
        let value = value.cloned().ok_or(PickleError::Broken("it refers to what it has not"))?;
        self.push(value)
    }

    /// What becomes of a value with these items in it.
    fn holding(&self, mut extent: Extent, items: &[Value<'a>]) -> Result<Extent> {
        if extent.is_remembered {
            return Err(PickleError::Broken("it changes what it has remembered"));
        }
        for item in items {
            let inner = item.extent();
            extent.depth = extent.depth.max(inner.depth + 1);
            extent.reached = extent.reached.saturating_add(inner.reached).saturating_add(1);
        }
        if extent.depth > VALUE_DEPTH {
            return Err(PickleError::Deep);
        }
        if extent.reached > self.limits.reached {
            return Err(PickleError::Reached);
        }
        Ok(extent)
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        let extent = self.holding(Extent::default(), &items)?;
        self.push(Value::Tuple(Rc::new(Tuple { items, extent })))
    }

    fn append(&mut self, items: &[Value<'a>]) -> Result<()> {
        let Value::List(extent) = self.pop()? else { return Err(INTO) };
        let extent = self.holding(extent, items)?;
        self.stack.push(Value::List(extent));
        Ok(())
    }

    fn set(&mut self, items: &[Value<'a>]) -> Result<()> {
        let Value::Dictionary(extent) = self.pop()? else { return Err(INTO) };
        let extent = self.holding(extent, items)?;
        self.stack.push(Value::Dictionary(extent));
        Ok(())
    }

    /// What a function gives, or an object with this state.
    fn made_of(&mut self, value: &Value<'a>) -> Result<()> {
        let extent = self.holding(Extent::default(), std::slice::from_ref(value))?;
        self.push(Value::Other(extent))
    }

    /// `("storage", type, key, device, number of elements)`: bytes of the archive.
    fn storage(&mut self) -> Result<()> {
        let told = self.pop()?;
        let strange = PickleError::Broken("a tensor's bytes are described in a way that is not known");
        let Some([what, kind, key, device, elements]) = told.items() else { return Err(strange) };
        let (Some("storage"), Value::Global(Global::Elements(size)), Some(key), Some(_), Some(elements)) =
            (what.text(), kind, key.text(), device.text(), elements.number())
        else {
            return Err(strange);
        };
        if key.len() > NAME_BYTES {
            return Err(strange);
        }
        let claimed = u128::from(u64::try_from(elements).map_err(|_| strange)?) * u128::from(*size);
        let there = (self.size)(key).unwrap_or(0);
        if claimed > u128::from(there) {
            return Err(PickleError::Bytes { key: key.into(), claimed, there });
        }
        self.push(Value::Storage(Rc::new(Storage { key, elements })))
    }

    /// A function called: if it makes a tensor, that must lie in its bytes.
    fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        match self.pop()? {
            Value::Global(Global::Tensor) => reach(&arguments)?,
            Value::Global(Global::Tag) => tag(&arguments)?,
            Value::Global(Global::Function | Global::Class) => {}
            _ => return Err(CALLED),
        }
        self.made_of(&arguments)
    }
}

const CALLED: PickleError = PickleError::Broken("it calls what is no function");
const EMPTY: PickleError = PickleError::Broken("it takes more than it has");
const INTO: PickleError = PickleError::Broken("it puts something into what is no list or dictionary");

/// The names that TorchScript has, and no others: what libtorch does with one that it does not know is its own affair.
fn global(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_qtensor") => Global::Tensor,
        ("torch.jit._pickle", "restore_type_tag") => Global::Tag,
        (
            "torch.jit._pickle",
            "build_intlist" | "build_tensorlist" | "build_doublelist" | "build_boollist",
        )
        | ("builtins", "complex")
        | ("collections", "OrderedDict")
        | ("torch", "device") => Global::Function,
        (
            "torch",
            "per_tensor_affine"
            | "per_channel_affine"
            | "per_tensor_symmetric"
            | "per_channel_symmetric"
            | "per_channel_affine_float_qparams",
        ) => Global::Number,
        ("torch", name) => Global::Elements(element_size(name.strip_suffix("Storage")?)?),
        ("__torch__", _) => Global::Class,
        (module, _) if module.starts_with("__torch__.") => Global::Class,
        _ => return None,
    })
}

/// Whether `(bytes, offset, extents, strides, ...)` lies in its bytes.
fn reach(arguments: &Value<'_>) -> Result<()> {
    let strange = PickleError::Broken("a tensor is described in a way that is not known");
    let Some([bytes, offset, extents, strides, ..]) = arguments.items() else { return Err(strange) };
    let (Value::Storage(storage), Some(offset), Some(extents), Some(strides)) =
        (bytes, offset.number(), extents.items(), strides.items())
    else {
        return Err(strange);
    };
    let (key, elements) = (storage.key, storage.elements);
    let beyond = || PickleError::Reach { key: key.into(), elements };
    if extents.len() > DIMENSIONS {
        return Err(PickleError::Dimensions { key: key.into() });
    }
    if extents.len() != strides.len() || offset < 0 {
        return Err(beyond());
    }
    let (mut last, mut is_empty) = (i128::from(offset), false);
    for (extent, stride) in extents.iter().zip(strides) {
        let (Some(extent), Some(stride)) = (extent.number(), stride.number()) else { return Err(strange) };
        if extent < 0 || stride < 0 {
            return Err(beyond());
        }
        is_empty |= extent == 0;
        // At most 2^126; what would overflow the sum is beyond anything.
        last = last.saturating_add(i128::from(extent.saturating_sub(1)) * i128::from(stride));
    }
    if is_empty || last < i128::from(elements) { Ok(()) } else { Err(beyond()) }
}

/// Whether `(value, type)` names a type that libtorch's parser, which calls itself for what is in brackets, has the stack for.
fn tag(arguments: &Value<'_>) -> Result<()> {
    let strange = PickleError::Broken("a type is described in a way that is not known");
    let Some([_, Value::Text(kind)]) = arguments.items() else { return Err(strange) };
    let open = |byte: &u8| matches!(byte, b'[' | b'(');
    if kind.bytes().filter(|byte| open(byte)).count() > usize::from(VALUE_DEPTH) {
        return Err(PickleError::Deep);
    }
    Ok(())
}

/// Bytes of an element. Source: `torch/csrc/jit/serialization/storage_context.h` and `c10/core/ScalarType.h`.
fn element_size(kind: &str) -> Option<u8> {
    Some(match kind {
        "Byte" | "Char" | "Bool" | "QInt8" | "QUInt8" | "QUInt4x2" | "QUInt2x4" | "Float8_e5m2"
        | "Float8_e4m3fn" | "Float8_e5m2fnuz" | "Float8_e4m3fnuz" => 1,
        "Short" | "Half" | "BFloat16" | "UInt16" => 2,
        "Int" | "Float" | "QInt32" | "ComplexHalf" | "UInt32" => 4,
        "Long" | "Double" | "ComplexFloat" | "UInt64" => 8,
        "ComplexDouble" => 16,
        _ => return None,
    })
}
