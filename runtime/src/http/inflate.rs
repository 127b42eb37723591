//! Request bodies that came compressed: inflated piece by piece, within limits of size and of ratio.

use std::sync::Arc;

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_protocol::error::{CallError, ErrorCode};

use crate::busy::{Busy, Reserved};
use crate::config::LimitsConfig;

/// Memory is taken in steps of so many bytes.
const STEP: usize = 64 * 1024;
/// Short bodies may have any ratio: so much costs nobody anything.
const FREE: usize = 64 * 1024;

/// How a body was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 1950, as `deflate` is defined in HTTP.
    Zlib,
}

impl Coding {
    /// What a header says: `Content-Encoding`, or gRPC's.
    ///
    /// # Errors
    /// `unsupported_media_type` for another coding, and for several.
    pub(super) fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Self, CallError> {
        let mut values = headers.get_all(name).iter();
        let (first, second) = (values.next(), values.next());
        match first.map(HeaderValue::as_bytes) {
            _ if second.is_some() => {}
            None | Some(b"identity" | b"") => return Ok(Self::Identity),
            Some(b"gzip" | b"x-gzip") => return Ok(Self::Gzip),
            Some(b"deflate") => return Ok(Self::Zlib),
            Some(_) => {}
        }
        let text = format!("`{name}` is none of identity, gzip and deflate");
        Err(CallError::new(ErrorCode::UnsupportedMediaType, text))
    }
}

/// Inflates a body. The memory of the result is counted for as long as the second value lives.
///
/// # Errors
/// `bad_request` for what is not compressed so, `body_too_large` for what becomes more than `limits.body`, or more than `limits.inflate`
/// times as long, `overloaded` when all bodies together hold too much.
pub(super) fn inflate(
    coding: Coding,
    body: &[u8],
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
) -> Result<(Bytes, Reserved), CallError> {
    let wrong = || CallError::new(ErrorCode::BadRequest, "the body is not compressed as its header says");
    let mut inflater = match coding {
        Coding::Identity => return Err(wrong()),
        Coding::Gzip => Decompress::new_gzip(15),
        Coding::Zlib => Decompress::new(true),
    };
    let most = body.len().saturating_mul(limits.inflate).max(FREE).min(limits.body);
    let mut reserved = busy.reserve(0, limits.bodies).ok_or_else(|| super::body::full(busy))?;
    let mut inflated = Vec::new();
    loop {
        let before = (inflater.total_in(), inflater.total_out());
        if inflated.len() == inflated.capacity() {
            // One more than is allowed is asked for, to see whether there is more.
            let step = STEP.max(inflated.len()).min(most.saturating_sub(inflated.len())) + 1;
            if !reserved.grow_to(inflated.len() + step, limits.bodies) {
                return Err(super::body::full(busy));
            }
            inflated.try_reserve_exact(step).map_err(|_| super::body::full(busy))?;
        }
        let rest = usize::try_from(before.0).ok().and_then(|taken| body.get(taken..)).unwrap_or_default();
        let status =
            inflater.decompress_vec(rest, &mut inflated, FlushDecompress::None).map_err(|_| wrong())?;
        if inflated.len() > most {
            let text = if most == limits.body {
                format!("the body becomes larger than limits.body, {most} bytes")
            } else {
                format!("the body becomes more than {} times as long, limits.inflate", limits.inflate)
            };
            return Err(CallError::new(ErrorCode::BodyTooLarge, text));
        }
        match status {
            Status::StreamEnd if inflater.total_in() == body.len() as u64 => {
                return Ok((Bytes::from(inflated), reserved));
            }
            // Something follows its end.
            Status::StreamEnd => return Err(wrong()),
            // It is cut short.
            _ if (inflater.total_in(), inflater.total_out()) == before => return Err(wrong()),
            _ => {}
        }
    }
}

/// The same for what may be not compressed at all, which stays as it is.
///
/// # Errors
/// As [`inflate`].
pub(super) fn inflated(
    coding: Coding,
    (body, reserved): (Bytes, Reserved),
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
) -> Result<(Bytes, Reserved), CallError> {
    match coding {
        Coding::Identity => Ok((body, reserved)),
        coding => super::infer::apart(body.len().saturating_mul(8), || inflate(coding, &body, limits, busy)),
    }
}
