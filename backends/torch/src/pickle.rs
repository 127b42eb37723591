//! Reads an archive's pickle for one purpose: that no tensor in it reaches beyond the bytes that it has.
//!
//! libtorch takes shapes and strides from the pickle as they are, and would read memory of others. What is nested without end would
//! overflow its stack. The instructions are those that libtorch's own reader has; it refuses all others, too.
//! Source: `torch/csrc/jit/serialization/unpickler.cpp` of PyTorch 2.11; pickle is PEP 307 and Python's `pickletools`.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Modules in modules, tuples in lists: no model has as many.
const MOST_DEPTH: u32 = 200;

/// What is wrong with a pickle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PickleError {
    #[error("its pickle is cut off")]
    End,
    #[error("its pickle has an instruction that is not known, {0:#04x}")]
    Instruction(u8),
    #[error("its pickle is broken: {0}")]
    Broken(&'static str),
    #[error("its pickle makes tensors by `{0}`, which is not known")]
    Function(String),
    #[error("its pickle is nested more than {MOST_DEPTH} deep")]
    Deep,
    #[error("its tensors are of the type `{0}`, which is not known")]
    Storage(String),
    #[error("tensor `{key}` claims {claimed} bytes, the archive has {there} for it")]
    Bytes { key: String, claimed: u128, there: u64 },
    #[error("a tensor in `{key}` reaches beyond its {elements} elements")]
    Reach { key: String, elements: i64 },
}

type Result<T> = std::result::Result<T, PickleError>;

/// What an instruction leaves, as far as tensors are concerned.
#[derive(Debug)]
enum Value {
    Mark,
    Number(i64),
    Text(String),
    Global(String),
    Tuple {
        items: Vec<Rc<Value>>,
        depth: u32,
    },
    /// Bytes of tensors.
    Storage {
        key: String,
        elements: i64,
    },
    Other {
        depth: u32,
    },
}

impl Value {
    fn depth(&self) -> u32 {
        match self {
            Self::Tuple { depth, .. } | Self::Other { depth } => *depth,
            _ => 0,
        }
    }

    fn number(&self) -> Option<i64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn items(&self) -> Option<&[Rc<Self>]> {
        if let Self::Tuple { items, .. } = self { Some(items) } else { None }
    }

    fn numbers(&self) -> Option<Vec<i64>> {
        self.items()?.iter().map(|item| item.number()).collect()
    }
}

/// Checks a pickle; `size` tells how many bytes the archive has for a tensor's key.
pub(crate) fn check(pickle: &[u8], size: impl Fn(&str) -> Option<u64>) -> Result<()> {
    let mut machine = Machine { rest: pickle, stack: Vec::new(), memo: BTreeMap::new(), size };
    while machine.step()? {}
    Ok(())
}

struct Machine<'a, S> {
    rest: &'a [u8],
    stack: Vec<Rc<Value>>,
    memo: BTreeMap<u32, Rc<Value>>,
    size: S,
}

impl<'a, S: Fn(&str) -> Option<u64>> Machine<'a, S> {
    /// Does one instruction; false at the last.
    fn step(&mut self) -> Result<bool> {
        let [instruction] = self.take()?;
        match instruction {
            b'.' => return Ok(false),
            0x80 => drop(self.take::<1>()?),
            b'(' => self.push(Value::Mark),
            b'N' | 0x88 | 0x89 => self.push(Value::Other { depth: 0 }),
            b'K' => self.number(|[byte]: [u8; 1]| byte.into())?,
            b'M' => self.number(|bytes| u16::from_le_bytes(bytes).into())?,
            b'J' => self.number(|bytes| i32::from_le_bytes(bytes).into())?,
            0x8a => self.long()?,
            b'G' => {
                self.take::<8>()?;
                self.push(Value::Other { depth: 0 });
            }
            b'X' => {
                let len = u32::from_le_bytes(self.take()?);
                let bytes = self.bytes(len as usize)?;
                let text =
                    std::str::from_utf8(bytes).map_err(|_| PickleError::Broken("a text is no UTF-8"))?;
                self.push(Value::Text(text.into()));
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}")));
            }
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
            b')' | b']' | b'}' => self.empty(instruction == b')'),
            b't' => {
                let items = self.marked()?;
                self.tuple(items)?;
            }
            0x85..=0x87 => {
                let count = usize::from(instruction - 0x84);
                let start = self.stack.len().checked_sub(count).ok_or(EMPTY)?;
                let items = self.stack.split_off(start);
                self.tuple(items)?;
            }
            b'l' | b'd' => {
                let items = self.marked()?;
                self.put(Value::Other { depth: 0 }, &items)?;
            }
            // What is put into a list or dictionary, or makes the state of an object.
            b'e' | b'u' => {
                let items = self.marked()?;
                let into = self.pop()?;
                self.put(Value::Other { depth: into.depth() }, &items)?;
            }
            b'a' | b'b' | 0x81 => {
                let items = [self.pop()?];
                let into = self.pop()?;
                // libtorch calls what it is by the same means as `R` does.
                let is_fit = match &*into {
                    Value::Global(name) => instruction != b'a' && name.starts_with("__torch__"),
                    Value::Mark => false,
                    _ => instruction != 0x81,
                };
                if !is_fit {
                    return Err(CALLED);
                }
                let depth = into.depth();
                // A class stays what it is: its state follows.
                if instruction == 0x81 {
                    self.stack.push(into)
                } else {
                    self.put(Value::Other { depth }, &items)?
                }
            }
            b's' => {
                let items = [self.pop()?, self.pop()?];
                let into = self.pop()?;
                self.put(Value::Other { depth: into.depth() }, &items)?;
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

    fn line(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::End)?;
        let line = String::from_utf8_lossy(self.bytes(end)?).into_owned();
        self.take::<1>()?;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Rc::new(value));
    }

    fn pop(&mut self) -> Result<Rc<Value>> {
        self.stack.pop().ok_or(EMPTY)
    }

    /// What lies above the last mark, which goes.
    fn marked(&mut self) -> Result<Vec<Rc<Value>>> {
        let mark = self.stack.iter().rposition(|value| matches!(**value, Value::Mark));
        let items = self.stack.split_off(mark.ok_or(PickleError::Broken("a mark is missing"))?);
        Ok(items.into_iter().skip(1).collect())
    }

    fn number<const N: usize>(&mut self, read: impl Fn([u8; N]) -> i64) -> Result<()> {
        let number = read(self.take()?);
        self.push(Value::Number(number));
        Ok(())
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
        self.push(Value::Number(i64::from_le_bytes(all)));
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let value = self.stack.last().ok_or(EMPTY)?;
        self.memo.insert(key, Rc::clone(value));
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let value = self.memo.get(&key).ok_or(PickleError::Broken("it refers to what it has not"))?;
        self.stack.push(Rc::clone(value));
        Ok(())
    }

    fn empty(&mut self, is_tuple: bool) {
        self.push(if is_tuple {
            Value::Tuple { items: Vec::new(), depth: 0 }
        } else {
            Value::Other { depth: 0 }
        });
    }

    fn tuple(&mut self, items: Vec<Rc<Value>>) -> Result<()> {
        let depth = deeper(0, &items)?;
        self.push(Value::Tuple { items, depth });
        Ok(())
    }

    /// What becomes of a value with these items in it.
    fn put(&mut self, into: Value, items: &[Rc<Value>]) -> Result<()> {
        let depth = deeper(into.depth(), items)?;
        self.push(Value::Other { depth });
        Ok(())
    }

    /// `("storage", type, key, device, number of elements)`: bytes of the archive.
    fn storage(&mut self) -> Result<()> {
        let told = self.pop()?;
        let strange = PickleError::Broken("a tensor's bytes are described in a way that is not known");
        let Some([_, kind, key, _, elements]) = told.items() else { return Err(strange) };
        let (Value::Global(kind), Some(key), Some(elements)) = (&**kind, key.text(), elements.number())
        else {
            return Err(strange);
        };
        let size = element_size(kind).ok_or_else(|| PickleError::Storage(kind.clone()))?;
        let claimed = u128::from(u64::try_from(elements).map_err(|_| strange)?) * u128::from(size);
        let there = (self.size)(key).unwrap_or(0);
        if claimed > u128::from(there) {
            return Err(PickleError::Bytes { key: key.into(), claimed, there });
        }
        self.push(Value::Storage { key: key.into(), elements });
        Ok(())
    }

    /// A function called: if it makes a tensor, that must lie in its bytes. What makes tensors in another way has nothing that we hold it
    /// against, such as the indices of a sparse one.
    fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Value::Global(name) = &*function else { return Err(CALLED) };
        match name.as_str() {
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_qtensor" => reach(&arguments)?,
            other if ["torch._utils.", "torch._tensor."].iter().any(|start| other.starts_with(start)) => {
                return Err(PickleError::Function(name.clone()));
            }
            _ => {}
        }
        self.put(Value::Other { depth: 0 }, &[arguments])
    }
}

const CALLED: PickleError = PickleError::Broken("it calls what is no function");
const EMPTY: PickleError = PickleError::Broken("it takes more than it has");

fn deeper(depth: u32, items: &[Rc<Value>]) -> Result<u32> {
    let depth = items.iter().map(|item| item.depth() + 1).fold(depth, u32::max);
    if depth > MOST_DEPTH { Err(PickleError::Deep) } else { Ok(depth) }
}

/// Whether `(bytes, offset, extents, strides, ...)` lies in its bytes.
fn reach(arguments: &Value) -> Result<()> {
    let strange = PickleError::Broken("a tensor is described in a way that is not known");
    let Some([bytes, offset, extents, strides, ..]) = arguments.items() else { return Err(strange) };
    let (Value::Storage { key, elements }, Some(offset), Some(extents), Some(strides)) =
        (&**bytes, offset.number(), extents.numbers(), strides.numbers())
    else {
        return Err(strange);
    };
    let beyond = || PickleError::Reach { key: key.clone(), elements: *elements };
    if extents.len() != strides.len()
        || [&extents, &strides].into_iter().flatten().any(|number| *number < 0)
        || offset < 0
    {
        return Err(beyond());
    }
    if extents.contains(&0) {
        return Ok(());
    }
    let last =
        extents.iter().zip(&strides).map(|(extent, stride)| i128::from(extent - 1) * i128::from(*stride));
    // At most 2^126 each; as many dimensions as would overflow the sum are none that a tensor can have.
    let last = last.fold(i128::from(offset), i128::saturating_add);
    if last < i128::from(*elements) { Ok(()) } else { Err(beyond()) }
}

/// Bytes of an element. Source: `torch/csrc/jit/serialization/storage_context.h` and `c10/core/ScalarType.h`.
fn element_size(kind: &str) -> Option<u64> {
    Some(match kind.strip_prefix("torch.")?.strip_suffix("Storage")? {
        "Byte" | "Char" | "Bool" | "QInt8" | "QUInt8" | "QUInt4x2" | "QUInt2x4" | "Float8_e5m2"
        | "Float8_e4m3fn" | "Float8_e5m2fnuz" | "Float8_e4m3fnuz" => 1,
        "Short" | "Half" | "BFloat16" | "UInt16" => 2,
        "Int" | "Float" | "QInt32" | "ComplexHalf" | "UInt32" => 4,
        "Long" | "Double" | "ComplexFloat" | "UInt64" => 8,
        "ComplexDouble" => 16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor of 8 elements of 4 bytes in key 0, with this offset, these extents and strides.
    fn tensor(elements: u8, offset: i32, extents: &[i32], strides: &[i32]) -> Vec<u8> {
        let mut out =
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
        out.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK");
        out.push(elements);
        out.extend(b"tQJ");
        out.extend(offset.to_le_bytes());
        for numbers in [extents, strides] {
            out.push(b'(');
            numbers.iter().for_each(|number| out.extend([&b"J"[..], &number.to_le_bytes()].concat()));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR.");
        out
    }

    fn size(key: &str) -> Option<u64> {
        (key == "0").then_some(32)
    }

    fn said(pickle: &[u8]) -> String {
        check(pickle, size).map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    #[test]
    fn what_is_called_is_a_function_that_is_known() {
        let good = tensor(8, 0, &[1 << 20], &[1]);
        let with = |from: &[u8], to: &[u8]| {
            let at = good.windows(from.len()).rposition(|part| part == from).unwrap();
            said(&[&good[..at], to, &good[at + from.len()..]].concat())
        };
        let called = "its pickle is broken: it calls what is no function";
        // libtorch keeps functions in a list of their own, and calls by `b` as by `R`.
        assert_eq!(with(b"R.", b"b."), called);
        assert_eq!(with(b"_rebuild_tensor_v2\n(", b"_rebuild_tensor_v2\n(("), called);
        assert_eq!(with(b"ctorch._utils\n_rebuild_tensor_v2\n", b"K\x00"), called);
        for name in ["_rebuild_sparse_tensor", "_rebuild_from_type_v2"] {
            let expected = format!("its pickle makes tensors by `torch._utils.{name}`, which is not known");
            assert_eq!(with(b"_rebuild_tensor_v2", name.as_bytes()), expected);
        }
    }

    #[test]
    fn tensors_lie_in_their_bytes() {
        let check = |elements, offset, extents: &[i32], strides: &[i32], expected: &str| {
            assert_eq!(said(&tensor(elements, offset, extents, strides)), expected);
        };
        let beyond = "a tensor in `0` reaches beyond its 8 elements";
        check(8, 0, &[2, 4], &[4, 1], "fine");
        check(8, 7, &[], &[], "fine");
        check(8, 0, &[1 << 20, 8], &[0, 1], "fine");
        check(8, 0, &[0, 1 << 20], &[1, 1], "fine");
        check(8, 1, &[2, 4], &[4, 1], beyond);
        check(8, 0, &[1 << 20], &[1], beyond);
        check(8, 0, &[2], &[-1], beyond);
        check(8, -1, &[2], &[1], beyond);
        check(8, 0, &[-2], &[1], beyond);
        check(8, 0, &[2, 2], &[1], beyond);
        check(8, i32::MAX, &[i32::MAX; 9], &[i32::MAX; 9], beyond);
        check(9, 0, &[2], &[1], "tensor `0` claims 36 bytes, the archive has 32 for it");
    }

    #[test]
    fn what_is_no_pickle_of_libtorchs_is_refused() {
        let whole = tensor(8, 0, &[2, 4], &[4, 1]);
        for len in 0..whole.len() {
            assert_ne!(said(&whole[..len]), "fine", "{len}");
        }
        assert_eq!(said(b"\x80\x02\x95."), "its pickle has an instruction that is not known, 0x95");
        assert_eq!(said(b"\x80\x02t."), "its pickle is broken: a mark is missing");
        assert_eq!(said(b"\x80\x02R."), "its pickle is broken: it takes more than it has");
        assert_eq!(said(b"\x80\x02h\x07."), "its pickle is broken: it refers to what it has not");
        let deep = "its pickle is nested more than 200 deep";
        assert_eq!(said(&[b"N".to_vec(), vec![0x85; 1 << 20], b".".to_vec()].concat()), deep);
        let lists = [vec![b']'; 1 << 20], vec![b'a'; (1 << 20) - 1], b".".to_vec()].concat();
        assert_eq!(said(&lists), deep);
        let at = whole.windows(12).position(|name| name == b"FloatStorage").unwrap();
        let other = [&whole[..at], b"FlatStorage", &whole[at + 12..]].concat();
        assert_eq!(said(&other), "its tensors are of the type `torch.FlatStorage`, which is not known");
    }
}
