//! Tensors that workers send: what is taken fits its payload, and is the same when it is laid out and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_backend::{Buffer, Tensor};
use outrigger_fuzz::{Input, memory};
use outrigger_runtime::scripts::frame::HEADER;
use outrigger_runtime::scripts::tensors::{decode_infer, encode_tensors};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let tail_len = usize::from(input.byte());
    let is_tailed = input.byte() & 1 == 1;
    let (payload, tail) = match is_tailed {
        true => {
            let tail = buffer(input.take(tail_len));
            (buffer(input.rest()), Some(tail))
        }
        false => (buffer(input.rest()), None),
    };
    let read =
        memory::within(64 * 1024 + 64 * data.len() + 128 * 1024, || decode_infer(&payload, tail.as_ref()));
    let Ok(infer) = read else { return };
    let place = tail.as_ref().unwrap_or(&payload).as_ptr_range();
    for (_, tensor) in &infer.inputs {
        let own = tensor.data().as_ptr_range();
        assert!(tensor.data().is_empty() || place.start <= own.start && own.end <= place.end, "not a copy");
        assert!(tensor.data().is_empty() || (own.start as usize).is_multiple_of(64));
    }
    if infer.model.len() > usize::from(u16::MAX) {
        return;
    }
    let tensors: Vec<(&str, &Tensor)> =
        infer.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut again = (infer.model.len() as u16).to_le_bytes().to_vec();
    again.resize(8, 0);
    again.extend_from_slice(infer.model.as_bytes());
    again.resize(again.len().next_multiple_of(64), 0);
    let pieces = encode_tensors(1, &tensors);
    again.extend_from_slice(&pieces.concat()[HEADER..]);
    let read = decode_infer(&buffer(&again), None).expect("what is written can be read");
    assert_eq!((read.model, read.inputs), (infer.model, infer.inputs));
});

/// In memory as frames are received into.
fn buffer(bytes: &[u8]) -> Bytes {
    let mut buffer = Buffer::zeroed(bytes.len()).expect("memory is there");
    buffer.copy_from_slice(bytes);
    buffer.freeze()
}
