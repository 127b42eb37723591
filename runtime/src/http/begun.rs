//! Reading the beginning of a request's body: all of a short one; of a long one so much that whoever sends it is seen to send it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::time::Instant;

use super::body::{full, too_large};
use crate::busy::{Busy, Reserved};
use crate::config::LimitsConfig;
use crate::telemetry::{self, Phase};
use crate::upstream::Pieces;

/// What has come.
pub(super) struct Gathered {
    /// The beginning, or all of it.
    pub(super) first: Pieces,
    /// What is still to come.
    pub(super) rest: Option<Body>,
    /// The memory that the beginning takes.
    pub(super) memory: Reserved,
    /// What is left of the time for the whole body.
    pub(super) left: Duration,
}

/// Reads until more than `enough` bytes are there, or the end.
///
/// # Errors
/// `body_too_large`, `body_timeout`, `overloaded` when all bodies together hold too much, `bad_request` when it breaks off.
pub(super) async fn read(
    body: Body,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
    enough: usize,
) -> Result<Gathered, CallError> {
    let announced = usize::try_from(http_body::Body::size_hint(&body).lower()).unwrap_or(usize::MAX);
    if announced > limits.body {
        return Err(too_large(limits));
    }
    let began = Instant::now();
    // Of a body that is passed on as it comes no more is ever here.
    let memory = busy.reserve(announced.min(enough), limits.bodies).ok_or_else(|| full(busy))?;
    let reading = begin(body, limits, busy, enough, memory);
    let gathered = tokio::time::timeout(limits.body_timeout, reading).await;
    telemetry::spent(Phase::Receive, began.into_std());
    let mut gathered = gathered.unwrap_or_else(|_| {
        let text = format!("the body did not arrive within {:?}", limits.body_timeout);
        Err(CallError::new(ErrorCode::BodyTimeout, text))
    })?;
    gathered.left = limits.body_timeout.saturating_sub(began.elapsed());
    Ok(gathered)
}

async fn begin(
    mut body: Body,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
    enough: usize,
    mut memory: Reserved,
) -> Result<Gathered, CallError> {
    let mut first = Pieces::default();
    let left = limits.body_timeout;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| CallError::new(ErrorCode::BadRequest, "the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = first.length() + data.len();
        if length > limits.body {
            return Err(too_large(limits));
        }
        if !memory.grow_to(length, limits.bodies) {
            return Err(full(busy));
        }
        first.add(data);
        if length > enough {
            return Ok(Gathered { first, rest: Some(body), memory, left });
        }
    }
    Ok(Gathered { first, rest: None, memory, left })
}
