//! Reading a request's body: bounded in size, in time, and in what all bodies together hold.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use outrigger_protocol::error::{CallError, ErrorCode};

use crate::busy::{Busy, Reserved};
use crate::config::LimitsConfig;
use crate::scripts::{Body as ScriptBody, Filled, Pool};
use crate::telemetry::{self, Phase};

/// What memory of tensors is aligned to, bytes.
const ALIGNMENT: usize = 64;

/// Reads the whole body. The memory is counted for as long as the second value lives. What comes after `front` bytes begins where memory is
/// aligned, if the body comes in several pieces and its length is known.
///
/// # Errors
/// `body_too_large`, `body_timeout`, `overloaded` when all bodies together hold too much, `bad_request` when it breaks off.
pub(super) async fn read_aligned(
    body: Body,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
    front: Option<usize>,
) -> Result<(Bytes, Reserved), CallError> {
    let (gathered, reserved) = gather(body, limits, busy, None, front).await?;
    Ok((gathered.bytes_of(), reserved))
}

/// The same; long bodies are read into memory of `pool`, which a worker can map.
///
/// # Errors
/// As [`read`].
pub(super) async fn read_for_script(
    body: Body,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
    pool: Option<&Arc<Pool>>,
) -> Result<(ScriptBody, Reserved), CallError> {
    let (gathered, reserved) = gather(body, limits, busy, pool, None).await?;
    Ok((gathered.finish(), reserved))
}

async fn gather(
    body: Body,
    limits: &LimitsConfig,
    busy: &Arc<Busy>,
    pool: Option<&Arc<Pool>>,
    front: Option<usize>,
) -> Result<(Gathered, Reserved), CallError> {
    let announced = http_body::Body::size_hint(&body);
    let lower = usize::try_from(announced.lower()).unwrap_or(usize::MAX);
    if lower > limits.body {
        return Err(too_large(limits));
    }
    // A body of known length takes its memory before its first byte is read; others as they come.
    let reserved = busy.reserve(lower, limits.bodies).ok_or_else(|| full(busy))?;
    let gathered = Gathered::Nothing;
    let mut collector = Collector { limits, busy, pool, known: lower, length: 0, front, reserved, gathered };
    let since = Instant::now();
    let collected = tokio::time::timeout(limits.body_timeout, collector.collect(body)).await;
    telemetry::spent(Phase::Receive, since);
    match collected {
        Ok(Ok(())) => Ok((collector.gathered, collector.reserved)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(late(limits)),
    }
}

struct Collector<'a> {
    limits: &'a LimitsConfig,
    busy: &'a Arc<Busy>,
    pool: Option<&'a Arc<Pool>>,
    /// The length that was announced, at most `limits.body`; 0 if none was.
    known: usize,
    length: usize,
    /// How many bytes come before that which is to be aligned.
    front: Option<usize>,
    reserved: Reserved,
    gathered: Gathered,
}

/// What has come so far.
enum Gathered {
    Nothing,
    /// Small bodies come in one piece, which is used as it is.
    One(Bytes),
    /// Behind so many bytes that are not of the body.
    Many(BytesMut, usize),
    Shared(Filled),
}

impl Gathered {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::One(bytes) => bytes,
            Self::Many(bytes, before) => bytes.get(*before..).unwrap_or_default(),
            Self::Shared(filled) => filled.bytes(),
        }
    }

    /// All of it, wherever it lies.
    fn bytes_of(self) -> Bytes {
        match self.finish() {
            ScriptBody::Bytes(bytes) => bytes,
            ScriptBody::Shared(filled) => Bytes::from_owner(filled),
        }
    }

    fn finish(self) -> ScriptBody {
        match self {
            Self::Nothing => ScriptBody::Bytes(Bytes::new()),
            Self::One(bytes) => ScriptBody::Bytes(bytes),
            Self::Many(bytes, before) => ScriptBody::Bytes(bytes.freeze().split_off(before)),
            Self::Shared(filled) => ScriptBody::Shared(filled),
        }
    }
}

impl Collector<'_> {
    async fn collect(&mut self, mut body: Body) -> Result<(), CallError> {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| CallError::new(ErrorCode::BadRequest, "the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            self.length += data.len();
            if self.length > self.limits.body {
                return Err(too_large(self.limits));
            }
            if !self.reserved.grow_to(self.length, self.limits.bodies) {
                return Err(full(self.busy));
            }
            self.add(data)?;
        }
        Ok(())
    }

    fn add(&mut self, data: Bytes) -> Result<(), CallError> {
        let expected = self.known.max(self.length);
        match &mut self.gathered {
            Gathered::Shared(filled) => {
                return filled.extend(&data).map_err(|_| full(self.busy));
            }
            gathered => {
                let fits = self.pool.filter(|pool| expected >= pool.threshold());
                if let Some(mut filled) = fits.and_then(|pool| Filled::new(pool, expected)) {
                    let extended = filled.extend(gathered.bytes()).and_then(|()| filled.extend(&data));
                    self.gathered = Gathered::Shared(filled);
                    return extended.map_err(|_| full(self.busy));
                }
            }
        }
        match &mut self.gathered {
            Gathered::Nothing => self.gathered = Gathered::One(data),
            Gathered::One(first) => {
                let (mut many, before) = room(expected, self.front);
                many.extend_from_slice(first);
                many.extend_from_slice(&data);
                self.gathered = Gathered::Many(many, before);
            }
            Gathered::Many(many, _) => many.extend_from_slice(&data),
            Gathered::Shared(_) => {}
        }
        Ok(())
    }
}

/// Reads the body of a request that has no tensors in it: `limits.message` bytes at most.
///
/// # Errors
/// `body_too_large`, `body_timeout`, `bad_request` when it breaks off.
pub(super) async fn read_small(body: Body, limits: &LimitsConfig) -> Result<Bytes, CallError> {
    let too_large = || {
        let text = format!("the body is larger than limits.message, {} bytes", limits.message);
        CallError::new(ErrorCode::BodyTooLarge, text)
    };
    // One that says so itself is not waited for.
    if http_body::Body::size_hint(&body).lower() > limits.message as u64 {
        return Err(too_large());
    }
    let read = Limited::new(body, limits.message).collect();
    match tokio::time::timeout(limits.body_timeout, read).await {
        Ok(Ok(read)) => Ok(read.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(CallError::new(ErrorCode::BadRequest, "the body broke off")),
        Err(_) => Err(late(limits)),
    }
}

fn late(limits: &LimitsConfig) -> CallError {
    let text = format!("the body did not arrive within {:?}", limits.body_timeout);
    CallError::new(ErrorCode::BodyTimeout, text)
}

/// A body whose memory is counted for as long as any part of it is there.
pub(super) fn kept(body: Bytes, reserved: Reserved) -> Bytes {
    if body.is_empty() { body } else { Bytes::from_owner(Kept { body, _reserved: reserved }) }
}

struct Kept {
    body: Bytes,
    _reserved: Reserved,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Room for a body, and how many bytes are before it so that what comes after `front` of its own is aligned. That holds as long as it does
/// not grow beyond `expected`; where it does, whoever needs it aligned copies.
fn room(expected: usize, front: Option<usize>) -> (BytesMut, usize) {
    let Some(front) = front else { return (BytesMut::with_capacity(expected), 0) };
    let mut room = BytesMut::with_capacity(expected.saturating_add(ALIGNMENT));
    let before = (room.as_ptr() as usize).wrapping_add(front).wrapping_neg() % ALIGNMENT;
    room.resize(before, 0);
    (room, before)
}

pub(super) fn too_large(limits: &LimitsConfig) -> CallError {
    CallError::new(
        ErrorCode::BodyTooLarge,
        format!("the body is larger than limits.body, {} bytes", limits.body),
    )
}

/// A request is refused for its body, and counted so.
pub(super) fn full(busy: &Busy) -> CallError {
    busy.refuse();
    no_room()
}

/// That there is no memory for what a request brings.
pub(super) fn no_room() -> CallError {
    CallError::new(
        ErrorCode::Overloaded,
        "the bodies of other requests hold all the memory there is for them",
    )
    .with_retry_after(std::time::Duration::from_secs(1))
}
