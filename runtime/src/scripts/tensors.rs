//! Tensor blocks of the worker protocol: named tensors, their bytes aligned and never copied.

use bytes::{Buf, BufMut, Bytes};
use outrigger_backend::{DataType, MAX_RANK, Shape, Tensor};

use super::frame::{FrameError, Header, Kind};

/// What the bytes of each tensor are aligned to, from the start of the payload.
const ALIGNMENT: usize = 64;
/// The most tensors in one block.
const MAX_TENSORS: usize = 1024;
const BAD: FrameError = FrameError::Malformed("INFER");

/// An INFER frame: run this model on these inputs.
#[derive(Debug)]
pub struct Infer {
    /// The model's name as the script gave it.
    pub model: String,
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
}

/// Takes an INFER's payload apart. The tensors are slices of `tail`, where there is one, else of `payload`, which then starts at a
/// multiple of 64 in memory.
///
/// # Errors
/// [`FrameError::Malformed`] for anything that does not add up; sizes are checked before they are used.
pub fn decode_infer(payload: &Bytes, tail: Option<&Bytes>) -> Result<Infer, FrameError> {
    let mut cursor = Cursor { at: 0, payload };
    let name_length = cursor.take(8)?.get_u16_le() as usize;
    let model = cursor.text(name_length)?;
    cursor.align()?;
    let count = cursor.take(8)?.get_u16_le() as usize;
    if count > MAX_TENSORS {
        return Err(BAD);
    }
    let mut heads = Vec::with_capacity(count);
    for _ in 0..count {
        let mut head = cursor.take(8)?;
        let (code, bits, rank) = (head.get_u8(), head.get_u8(), head.get_u8() as usize);
        head.advance(1);
        let name_length = head.get_u16_le() as usize;
        if rank > MAX_RANK {
            return Err(BAD);
        }
        let mut extents = cursor.take(rank * 8)?;
        let extents: Vec<i64> = (0..rank).map(|_| extents.get_i64_le()).collect();
        let name = cursor.text(name_length)?;
        let data_type = DataType::from_dlpack(code, bits).ok_or(BAD)?;
        heads.push((name, data_type, Shape::new(extents).map_err(|_| BAD)?));
    }
    let mut cursor = match tail {
        Some(tail) => Cursor { at: 0, payload: tail },
        None => cursor,
    };
    let mut inputs = Vec::with_capacity(count);
    for (name, data_type, shape) in heads {
        cursor.align()?;
        let length = shape.bytes(data_type).map_err(|_| BAD)?;
        let start = cursor.at;
        cursor.take(length)?;
        let data = cursor.payload.slice(start..start + length);
        inputs.push((name, Tensor::new(data_type, shape, data).map_err(|_| BAD)?));
    }
    Ok(Infer { model, inputs })
}

struct Cursor<'a> {
    at: usize,
    payload: &'a Bytes,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let end = self.at.checked_add(length).ok_or(BAD)?;
        let bytes = self.payload.get(self.at..end).ok_or(BAD)?;
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self, length: usize) -> Result<String, FrameError> {
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BAD)
    }

    fn align(&mut self) -> Result<(), FrameError> {
        let aligned = self.at.next_multiple_of(ALIGNMENT);
        // A block without data may end before the next multiple.
        self.at = aligned.min(self.payload.len());
        Ok(())
    }
}

/// A tensor block in two parts: what describes the tensors, up to where the first one's bytes begin, and how the bytes lie.
pub struct Block {
    /// From the start of the payload, a multiple of 64 long.
    pub head: Vec<u8>,
    /// Where each tensor's bytes begin, from the end of the head.
    pub starts: Vec<usize>,
    /// Bytes of all data, the gaps between counted in.
    pub length: usize,
}

/// Lays out a block of tensors.
pub fn lay_out(tensors: &[(&str, &Tensor)]) -> Block {
    let mut head = Vec::with_capacity(64 * (1 + tensors.len()));
    head.put_u16_le(tensors.len() as u16);
    head.put_u16_le(0);
    head.put_u32_le(0);
    for (name, tensor) in tensors {
        // A tensor without a DLPack type cannot be made, see `Tensor::new`.
        let (code, bits) = tensor.data_type().dlpack().unwrap_or((0, 0));
        head.put_u8(code);
        head.put_u8(bits);
        head.put_u8(tensor.shape().extents().len() as u8);
        head.put_u8(0);
        head.put_u16_le(name.len() as u16);
        head.put_u16_le(0);
        for extent in tensor.shape().extents() {
            head.put_i64_le(*extent);
        }
        head.extend_from_slice(name.as_bytes());
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    let mut starts = Vec::with_capacity(tensors.len());
    let mut length = 0usize;
    for (_, tensor) in tensors {
        let start = length.next_multiple_of(ALIGNMENT);
        starts.push(start);
        length = start + tensor.data().len();
    }
    Block { head, starts, length }
}

/// A TENSORS frame in pieces to be written one after the other; the tensors' bytes are shared, not copied.
pub fn encode_tensors(id: u64, tensors: &[(&str, &Tensor)]) -> Vec<Bytes> {
    let block = lay_out(tensors);
    let header = Header::new(Kind::Tensors, id, block.head.len() + block.length).encode();
    let mut pieces = Vec::with_capacity(1 + 2 * tensors.len());
    pieces.push([&header[..], &block.head].concat().into());
    let mut length = 0;
    for ((_, tensor), start) in tensors.iter().zip(block.starts) {
        let zeros: &'static [u8] = &[0; ALIGNMENT];
        pieces.push(Bytes::from_static(&zeros[..start - length]));
        pieces.push(tensor.data().clone());
        length = start + tensor.data().len();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use outrigger_backend::Buffer;

    use super::super::frame::HEADER;
    use super::*;

    fn buffer(bytes: &[u8]) -> Bytes {
        let mut buffer = Buffer::zeroed(bytes.len()).unwrap();
        buffer.copy_from_slice(bytes);
        buffer.freeze()
    }

    fn tensor(data_type: DataType, extents: &[i64]) -> Tensor {
        let shape = Shape::new(extents).unwrap();
        let bytes: Vec<u8> = (0..shape.bytes(data_type).unwrap()).map(|byte| byte as u8).collect();
        Tensor::new(data_type, shape, bytes.into()).unwrap()
    }

    /// An INFER's payload round a tensor block, as a worker builds it.
    fn infer_payload(model: &str, tensors: &[(&str, &Tensor)]) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.put_u16_le(model.len() as u16);
        payload.put_slice(&[0; 6]);
        payload.extend_from_slice(model.as_bytes());
        payload.resize(payload.len().next_multiple_of(64), 0);
        payload.extend_from_slice(&encode_tensors(1, tensors).concat()[HEADER..]);
        payload
    }

    #[test]
    fn tensors_go_there_and_back_without_a_copy() {
        let (x, y) = (tensor(DataType::Fp32, &[2, 3]), tensor(DataType::Int64, &[1]));
        let payload = buffer(&infer_payload("digits", &[("x", &x), ("why", &y)]));
        let range = payload.as_ptr_range();
        let infer = decode_infer(&payload, None).unwrap();
        assert_eq!(infer.model, "digits");
        assert_eq!(infer.inputs, [("x".to_owned(), x), ("why".to_owned(), y)]);
        for (_, tensor) in &infer.inputs {
            assert!(range.contains(&tensor.data().as_ptr()), "must be a slice of the payload");
            assert_eq!(tensor.data().as_ptr() as usize % 64, 0);
        }
    }

    #[test]
    fn tensors_in_a_region_are_slices_of_it() {
        let (x, y) = (tensor(DataType::Fp32, &[2, 3]), tensor(DataType::Int64, &[1]));
        let block = lay_out(&[("x", &x), ("why", &y)]);
        let mut data = vec![0; block.length];
        for (tensor, start) in [&x, &y].into_iter().zip(&block.starts) {
            data[*start..start + tensor.data().len()].copy_from_slice(tensor.data());
        }
        let whole = infer_payload("digits", &[("x", &x), ("why", &y)]);
        let (inline, tail) = whole.split_at(whole.len() - block.length);
        assert_eq!(tail, data, "the tail is what lies behind the head in one payload");
        let (inline, tail) = (buffer(inline), buffer(tail));
        let infer = decode_infer(&inline, Some(&tail)).unwrap();
        assert_eq!(infer.inputs, [("x".to_owned(), x), ("why".to_owned(), y)]);
        assert!(infer.inputs.iter().all(|(_, tensor)| tail.as_ptr_range().contains(&tensor.data().as_ptr())));
        assert!(decode_infer(&inline, Some(&tail.slice(..tail.len() - 1))).is_err());
    }

    #[test]
    fn empty_blocks_and_empty_tensors_are_fine() {
        assert!(decode_infer(&buffer(&infer_payload("m", &[])), None).unwrap().inputs.is_empty());
        let empty = tensor(DataType::Fp32, &[0, 3]);
        let infer = decode_infer(&buffer(&infer_payload("m", &[("x", &empty)])), None).unwrap();
        assert_eq!(infer.inputs[0].1.shape().extents(), [0, 3]);
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes: Vec<u8>) {
            let _ = decode_infer(&buffer(&bytes), None);
            let _ = decode_infer(&buffer(&bytes), Some(&buffer(&bytes)));
        }

        #[test]
        fn no_changed_byte_of_a_good_payload_panics(at in 0usize..200, byte: u8) {
            let x = tensor(DataType::Fp32, &[2, 3]);
            let mut payload = infer_payload("digits", &[("x", &x)]);
            let at = at % payload.len();
            payload[at] = byte;
            let _ = decode_infer(&buffer(&payload), None);
        }
    }
}
