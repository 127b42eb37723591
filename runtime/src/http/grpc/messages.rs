//! The messages of a request, one after the other: bounded in size, in time, and in what all bodies together hold.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::grpc::{ENCODING, PREFIX, Prefix};

use super::super::body::{full, kept};
use super::super::inflate::{Coding, inflate};
use crate::replica::Replica;
use crate::telemetry::{self, Phase};

/// Up to so many bytes no memory of those for bodies is asked for: whoever has no key may ask for health.
const SMALL: usize = 1024;
/// So much of a message that is not read is kept, for the name that its sender gave it.
const FRONT: usize = 4096;

/// Reads them.
pub(super) struct Messages {
    replica: Arc<Replica>,
    body: Body,
    /// What has come and was not read yet.
    left: Bytes,
    /// How messages are compressed that say they are.
    coding: Result<Coding, CallError>,
    /// The longest message.
    most: usize,
}

impl Messages {
    /// Those of a body, each of `most` bytes at most.
    pub(super) fn new(replica: &Arc<Replica>, headers: &HeaderMap, body: Body, most: usize) -> Self {
        let coding = Coding::of(headers, &ENCODING);
        Self { replica: Arc::clone(replica), body, left: Bytes::new(), coding, most }
    }

    /// The one small message of a request that anybody may make.
    pub(super) fn small(replica: &Arc<Replica>, headers: &HeaderMap, body: Body) -> Self {
        Self::new(replica, headers, body, SMALL.min(replica.config.limits.message))
    }

    /// The one message of a request that has one.
    ///
    /// # Errors
    /// As [`Messages::begun`] and [`Messages::rest`]; `bad_request` where there is none or more than one.
    pub(super) async fn only(&mut self) -> Result<Bytes, CallError> {
        let limit = self.replica.config.limits.body_timeout;
        let only = async {
            let wrong = || CallError::new(ErrorCode::BadRequest, "the request is not one message");
            let prefix = self.begun().await?.ok_or_else(wrong)?;
            let message = self.message(prefix).await?;
            if self.left.is_empty() && !self.more().await? { Ok(message) } else { Err(wrong()) }
        };
        let since = Instant::now();
        let only = tokio::time::timeout(limit, only).await;
        telemetry::spent(Phase::Receive, since);
        only.unwrap_or_else(|_| Err(self.late()))
    }

    /// What stands before the next message; nothing once there is no more. [`Messages::rest`] or [`Messages::skip`] follows.
    ///
    /// # Errors
    /// `body_too_large`, `body_timeout` for one that has begun and does not go on, `bad_request` for what is no message.
    pub(super) async fn begun(&mut self) -> Result<Option<Prefix>, CallError> {
        if self.left.is_empty() && !self.more().await? {
            return Ok(None);
        }
        let limit = self.replica.config.limits.body_timeout;
        let prefix = tokio::time::timeout(limit, self.prefix()).await.unwrap_or_else(|_| Err(self.late()));
        prefix.map(Some)
    }

    /// The message whose beginning was there, which has to come in time. Its memory is counted for as long as any part of it is there.
    ///
    /// # Errors
    /// `body_timeout`, `overloaded` when all bodies together hold too much, `body_too_large` for what is inflated to more than it may be,
    /// `unsupported_media_type` for a compression that is not known, `bad_request` for what is no message.
    pub(super) async fn rest(&mut self, prefix: Prefix) -> Result<Bytes, CallError> {
        let limit = self.replica.config.limits.body_timeout;
        let since = Instant::now();
        let message = tokio::time::timeout(limit, self.message(prefix)).await;
        telemetry::spent(Phase::Receive, since);
        message.unwrap_or_else(|_| Err(self.late()))
    }

    /// Goes past it, and keeps no more than its first bytes.
    ///
    /// # Errors
    /// `body_timeout`, `bad_request` where it is cut short.
    pub(super) async fn skip(&mut self, prefix: Prefix) -> Result<Bytes, CallError> {
        let limit = self.replica.config.limits.body_timeout;
        let skipped = async {
            let front = self.bytes(prefix.length.min(FRONT)).await?;
            let mut left = prefix.length.saturating_sub(front.len());
            while left > 0 {
                if self.left.is_empty() && !self.more().await? {
                    return Err(broken_off());
                }
                let there = left.min(self.left.len());
                self.left.advance(there);
                left -= there;
            }
            // What is compressed says nothing by its first bytes.
            Ok(if prefix.compressed { Bytes::new() } else { front })
        };
        tokio::time::timeout(limit, skipped).await.unwrap_or_else(|_| Err(self.late()))
    }

    fn late(&self) -> CallError {
        let limit = self.replica.config.limits.body_timeout;
        CallError::new(ErrorCode::BodyTimeout, format!("the message did not arrive within {limit:?}"))
    }

    async fn prefix(&mut self) -> Result<Prefix, CallError> {
        let prefix = loop {
            if let Some(prefix) = self.left.first_chunk::<PREFIX>() {
                break Prefix::parse(*prefix)?;
            }
            if !self.more().await? {
                return Err(broken_off());
            }
        };
        self.left.advance(PREFIX);
        if prefix.length > self.most {
            let text = format!("a message has {} bytes, the limit is {}", prefix.length, self.most);
            return Err(CallError::new(ErrorCode::BodyTooLarge, text));
        }
        Ok(prefix)
    }

    async fn message(&mut self, prefix: Prefix) -> Result<Bytes, CallError> {
        let (limits, busy) = (&self.replica.config.limits, Arc::clone(&self.replica.busy));
        let coding = match (prefix.compressed, &self.coding) {
            (false, _) => Coding::Identity,
            (true, Ok(Coding::Identity)) => {
                let text = "a message is compressed, and `grpc-encoding` does not say how";
                return Err(CallError::new(ErrorCode::BadRequest, text));
            }
            (true, coding) => coding.clone()?,
        };
        if self.most <= SMALL && coding == Coding::Identity {
            return self.bytes(prefix.length).await;
        }
        let reserved = busy.reserve(prefix.length, limits.bodies).ok_or_else(|| full(&busy))?;
        let message = self.bytes(prefix.length).await?;
        match coding {
            Coding::Identity => Ok(kept(message, reserved)),
            coding => {
                let limits = &self.replica.config.limits;
                let (message, reserved) = inflate(coding, &message, self.most, limits, &busy)?;
                Ok(kept(message, reserved))
            }
        }
    }

    /// So many bytes: those that came, if they came in one piece.
    async fn bytes(&mut self, length: usize) -> Result<Bytes, CallError> {
        if self.left.len() >= length {
            return Ok(self.left.split_to(length));
        }
        let mut bytes = BytesMut::with_capacity(length);
        loop {
            let missing = length.saturating_sub(bytes.len());
            bytes.extend_from_slice(&self.left.split_to(missing.min(self.left.len())));
            if bytes.len() >= length {
                return Ok(bytes.freeze());
            }
            if !self.more().await? {
                return Err(broken_off());
            }
        }
    }

    /// Waits for more bytes; says whether any came.
    async fn more(&mut self) -> Result<bool, CallError> {
        while let Some(frame) = self.body.frame().await {
            let data = frame.map_err(|_| broken_off())?.into_data().unwrap_or_default();
            if data.is_empty() {
                continue;
            }
            if self.left.is_empty() {
                self.left = data;
            } else {
                // Less than what stands before a message.
                let mut both = BytesMut::with_capacity(self.left.len() + data.len());
                both.extend_from_slice(&self.left);
                both.extend_from_slice(&data);
                self.left = both.freeze();
            }
            return Ok(true);
        }
        Ok(false)
    }
}

fn broken_off() -> CallError {
    CallError::new(ErrorCode::BadRequest, "the request broke off")
}
