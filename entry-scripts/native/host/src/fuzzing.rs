//! What `fuzz/` sees of this crate: frames that the runtime sends, and answers of scripts.

use outrigger_script_abi as abi;

use crate::Head;
pub use crate::worker::fuzzing::frames;

/// What becomes of an answer with these headers: its status and its headers as a block of the worker protocol, or why it is none.
///
/// # Errors
/// What is wrong with it.
pub fn head(status: u32, headers: &[(&[u8], &[u8])], content_type: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let bytes = abi::Bytes::of;
    let headers: Vec<abi::Header> =
        headers.iter().map(|(name, value)| abi::Header { name: bytes(name), value: bytes(value) }).collect();
    let response = abi::Response {
        status,
        headers: headers.as_ptr(),
        header_count: headers.len(),
        content_type: bytes(content_type),
        ..abi::Response::EMPTY
    };
    // SAFETY: all that it points to is borrowed here.
    let head = unsafe { Head::read(&response) }.map_err(|error| error.to_string())?;
    let listed: usize = head.headers().map(|(name, value)| 4 + name.len() + value.len()).sum();
    assert_eq!(listed, head.block.len(), "all of the block is headers");
    Ok((head.status, head.block))
}
