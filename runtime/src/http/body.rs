//! Reading a request's body: bounded in size, in time, and in what all bodies together hold.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use outrigger_protocol::error::{CallError, ErrorCode};

use crate::busy::{Busy, Reserved};
use crate::config::LimitsConfig;

/// Reads the whole body. The memory is counted for as long as the second value lives.
///
/// # Errors
/// `body_too_large`, `body_timeout`, `overloaded` when all bodies together hold too much, `bad_request` when it breaks off.
pub(super) async fn read(
    body: Body,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
) -> Result<(Bytes, Reserved), CallError> {
    let announced = http_body::Body::size_hint(&body);
    let lower = usize::try_from(announced.lower()).unwrap_or(usize::MAX);
    if lower > limits.body {
        return Err(too_large(limits));
    }
    // A body of known length takes its memory before its first byte is read; others as they come.
    let reserved = busy.reserve(lower, limits.bodies).ok_or_else(|| full(busy))?;
    tokio::time::timeout(limits.body_timeout, collect(body, limits, busy, reserved)).await.unwrap_or_else(
        |_| {
            Err(CallError::new(
                ErrorCode::BodyTimeout,
                format!("the body did not arrive within {:?}", limits.body_timeout),
            ))
        },
    )
}

async fn collect(
    mut body: Body,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
    mut reserved: Reserved,
) -> Result<(Bytes, Reserved), CallError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut length = 0usize;
    // At most `limits.body`, which the caller has checked.
    let known = usize::try_from(http_body::Body::size_hint(&body).lower()).unwrap_or(0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| CallError::new(ErrorCode::BadRequest, "the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > limits.body {
            return Err(too_large(limits));
        }
        if !reserved.grow_to(length, limits.bodies) {
            return Err(full(busy));
        }
        // Small bodies come in one piece, which is used as it is.
        if first.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.reserve(known.max(first.len() + data.len()));
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok((if rest.is_empty() { first } else { rest.freeze() }, reserved))
}

fn too_large(limits: &LimitsConfig) -> CallError {
    CallError::new(
        ErrorCode::BodyTooLarge,
        format!("the body is larger than limits.body, {} bytes", limits.body),
    )
}

fn full(busy: &Busy) -> CallError {
    busy.refuse();
    CallError::new(
        ErrorCode::Overloaded,
        "the bodies of other requests hold all the memory there is for them",
    )
    .with_retry_after(std::time::Duration::from_secs(1))
}
