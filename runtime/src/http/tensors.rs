//! The body of a request that has tensors, or instances, for a model.

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use outrigger_protocol::error::{CallError, ErrorCode};

use super::body::{kept, read_aligned};
use super::inflate::{Coding, inflated};
use crate::replica::Replica;

/// Reads it, inflated where it came compressed. Its memory is counted for as long as any part of it is there. What comes after `front` bytes begins
/// where memory is aligned, as far as that can be had.
///
/// # Errors
/// Those of [`read_aligned`] and [`inflated`]; `unsupported_media_type` for a form, and for a compression that is not known.
pub(super) async fn read(
    replica: &Replica,
    headers: &HeaderMap,
    body: Body,
    front: Option<usize>,
) -> Result<Bytes, CallError> {
    if is_form(headers) {
        let text = "a call of a model is no form of several parts: its body is JSON, or JSON with bytes of tensors behind it";
        return Err(CallError::new(ErrorCode::UnsupportedMediaType, text));
    }
    let coding = Coding::of(headers, &CONTENT_ENCODING)?;
    // What lies behind the JSON is used where it is read to, so it is read to where a model can use it.
    let front = front.filter(|_| coding == Coding::Identity);
    let (limits, busy) = (&replica.config.limits, &replica.busy);
    let read = read_aligned(body, limits, busy, front).await?;
    let (body, reserved) = inflated(coding, read, limits, busy)?;
    Ok(kept(body, reserved))
}

/// Whether a request says that it has several parts. Other types are not looked at: clients send all kinds of them along with JSON.
fn is_form(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let begins = media.and_then(|media| media.get(..b"multipart/".len()));
    begins.is_some_and(|begins| begins.eq_ignore_ascii_case(b"multipart/"))
}
