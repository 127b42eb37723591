//! What a script hands back, checked.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use outrigger_script_abi as abi;

use crate::{CallError, Script};

/// Headers that a response may have, and bytes of all their names and values. The header names the same.
const MAX_HEADERS: usize = 256;
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// What a call came to.
#[derive(Debug)]
pub enum Answer<B> {
    /// A response.
    Whole(Head, Body<B>),
    /// A streamed response, which is complete.
    Streamed,
}

/// Status and headers, valid as HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// 200 to 599.
    pub status: u16,
    /// As in a REPLY: u16 length of the name, u16 length of the value, name, value, and so on; little-endian.
    pub block: Vec<u8>,
}

impl Head {
    /// The headers.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.block[..];
        std::iter::from_fn(move || {
            let (lengths, after) = rest.split_first_chunk::<4>()?;
            let [n0, n1, v0, v1] = *lengths;
            let (name, after) = after.split_at_checked(u16::from_le_bytes([n0, n1]).into())?;
            let (value, after) = after.split_at_checked(u16::from_le_bytes([v0, v1]).into())?;
            rest = after;
            Some((name, value))
        })
    }

    /// Reads the head of `response`.
    ///
    /// # Safety
    /// What it points to is there.
    pub(crate) unsafe fn read(response: &abi::Response) -> Result<Self, CallError> {
        let status = match u16::try_from(response.status) {
            Ok(status @ 200..=599) => status,
            _ => return Err(broken(format!("status {} is none of 200 to 599", response.status))),
        };
        let count = response.header_count;
        if count > MAX_HEADERS {
            return Err(broken(format!("{count} headers are more than {MAX_HEADERS}")));
        }
        // SAFETY: the caller's promise, here and below.
        let headers = unsafe { list(response.headers, count, "the headers") }?;
        let mut block = Vec::with_capacity(64);
        let mut typed = false;
        let mut total = 0;
        let mut push = |name: &[u8], value: &[u8]| {
            total += name.len() + value.len();
            let lengths = u16::try_from(name.len()).ok().zip(u16::try_from(value.len()).ok());
            let Some((name_len, value_len)) = lengths.filter(|_| total <= MAX_HEADER_BYTES) else {
                return Err(broken(format!("its headers have more than {MAX_HEADER_BYTES} bytes")));
            };
            let printed = name.escape_ascii();
            if !is_token(name) {
                return Err(broken(format!("`{printed}` is no name of a header")));
            }
            if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
                return Err(broken(format!("the value of header `{printed}` has control characters")));
            }
            block.extend_from_slice(&name_len.to_le_bytes());
            block.extend_from_slice(&value_len.to_le_bytes());
            block.extend_from_slice(name);
            block.extend_from_slice(value);
            Ok(())
        };
        for header in headers {
            // SAFETY: as above.
            let (name, value) = unsafe { (bytes(header.name, "a name")?, bytes(header.value, "a value")?) };
            typed |= name.eq_ignore_ascii_case(b"content-type");
            push(name, value)?;
        }
        // SAFETY: as above.
        let content_type = unsafe { bytes(response.content_type, "the content type") }?;
        match (typed, content_type) {
            (true, []) => {}
            (true, _) => return Err(broken("it has two content types".into())),
            (false, []) => push(b"content-type", b"application/octet-stream")?,
            (false, content_type) => push(b"content-type", content_type)?,
        }
        Ok(Self { status, block })
    }
}

fn is_token(name: &[u8]) -> bool {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(token)
}

/// The body of an answer. Where the script made it, dropping it ends it there, from any thread.
#[derive(Debug)]
pub struct Body<B>(Kind<B>);

#[derive(Debug)]
enum Kind<B> {
    /// The script's.
    Script(Handed),
    /// In memory that the caller lent.
    Lent(B, Range<usize>),
    /// Copied, because the script would not keep it.
    Copied(Vec<u8>),
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Body<B> {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Kind::Script(handed) => handed.bytes(),
            Kind::Lent(buffer, range) => buffer.as_ref().get(range.clone()).unwrap_or_default(),
            Kind::Copied(bytes) => bytes,
        }
    }
}

impl<B: AsRef<[u8]>> Body<B> {
    /// # Safety
    /// What `handed` points to is there until it is dropped, or, if it has no `free`, until the next run on
    /// this thread.
    pub(crate) unsafe fn read(handed: Handed, lent: impl IntoIterator<Item = B>) -> Result<Self, CallError> {
        // SAFETY: the caller's promise.
        let body = unsafe { bytes(handed.response.body, "the body") }?;
        let body = body.as_ptr_range();
        for buffer in lent {
            let memory = buffer.as_ref().as_ptr_range();
            if body.start != body.end && memory.start <= body.start && body.end <= memory.end {
                let start = body.start as usize - memory.start as usize;
                return Ok(Self(Kind::Lent(buffer, start..start + handed.response.body.len)));
            }
        }
        Ok(Self(Kind::Script(handed)))
    }

    /// The memory that the caller lent and where in it the body is, if it is there.
    pub(crate) fn lent(&mut self) -> Option<(&mut B, Range<usize>)> {
        match &mut self.0 {
            Kind::Lent(buffer, range) => Some((buffer, range.clone())),
            _ => None,
        }
    }

    /// Copies what the script would not keep beyond its next run on this thread.
    pub(crate) fn keep(self) -> Self {
        match self.0 {
            Kind::Script(handed) if handed.response.free.is_none() => {
                Self(Kind::Copied(handed.bytes().to_vec()))
            }
            kind => Self(kind),
        }
    }
}

/// A response that the script handed over; ended by its `free` when dropped.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) response: abi::Response,
    /// What keeps the script from being shut down before.
    pub(crate) _script: Arc<Script>,
}

// SAFETY: what it points to may be read and freed from any thread, by the ABI.
unsafe impl Send for Handed {}
// SAFETY: as above; through a shared reference it is only read.
unsafe impl Sync for Handed {}

impl Handed {
    fn bytes(&self) -> &[u8] {
        // SAFETY: it was checked when the body was read, and stays until it is freed, which is when this is
        // dropped. Without a `free` this value is not kept beyond the thread's next run.
        unsafe { bytes(self.response.body, "the body") }.unwrap_or_default()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some(free) = self.response.free {
            let owner: *mut c_void = self.response.owner;
            // SAFETY: once, after success, before the script's shutdown: as the ABI has it.
            unsafe { free(owner) };
        }
    }
}

/// # Safety
/// If it is not null, it has as many bytes as it says, for as long as the result is used.
pub(crate) unsafe fn bytes<'a>(bytes: abi::Bytes, what: &str) -> Result<&'a [u8], CallError> {
    // SAFETY: the caller's promise.
    unsafe { list(bytes.data, bytes.len, what) }
}

/// # Safety
/// As [`bytes`].
unsafe fn list<'a, T>(data: *const T, count: usize, what: &str) -> Result<&'a [T], CallError> {
    if count == 0 {
        return Ok(&[]);
    }
    if data.is_null() || !data.is_aligned() {
        return Err(broken(format!("{what} of length {count} has no address")));
    }
    if count.checked_mul(size_of::<T>()).is_none_or(|size| isize::try_from(size).is_err()) {
        return Err(broken(format!("{what} cannot have a length of {count}")));
    }
    // SAFETY: neither null, misaligned nor too long; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, count) })
}

pub(crate) fn broken(what: String) -> CallError {
    CallError::Broken { what }
}
