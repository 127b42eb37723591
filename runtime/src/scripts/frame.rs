//! Frames of the worker protocol, as pure functions; the text of the protocol is `entry-scripts/PROTOCOL.md`.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

/// Bytes of a frame's header.
pub const HEADER: usize = 16;

/// The kinds of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// What to run.
    Start = 1,
    /// A call.
    Call = 2,
    /// Results of a model.
    Tensors = 3,
    /// A model's inputs and outputs.
    ModelInfo = 4,
    /// A model failed.
    ModelError = 5,
    /// `init()` has returned.
    Ready = 16,
    /// The script does not load, or `init()` failed.
    Failed = 17,
    /// A call's answer.
    Reply = 18,
    /// A model is to be run.
    Infer = 19,
    /// A model is asked for.
    Model = 20,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow.
    pub length: usize,
    /// Kind.
    pub kind: Kind,
    /// Number of the call or request.
    pub id: u64,
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// A kind that a worker does not send.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// A length over the limit.
    #[error("frame of {length} bytes is over the limit of {limit}")]
    Length {
        /// Said by the worker.
        length: usize,
        /// Allowed.
        limit: usize,
    },
    /// The payload ends early or its fields contradict each other.
    #[error("{0} frame is malformed")]
    Malformed(&'static str),
}

impl Header {
    /// The header as bytes.
    pub fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        // Frames that we send are bounded by `limits.body` and `limits.answer`, both at most 1 GiB.
        bytes[..4].copy_from_slice(&u32::try_from(self.length).unwrap_or(u32::MAX).to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// Reads a header that a worker sent.
    ///
    /// # Errors
    /// [`FrameError::Kind`], [`FrameError::Length`].
    pub fn decode(bytes: &[u8; HEADER], limit: usize) -> Result<Self, FrameError> {
        let mut fields = &bytes[..];
        let length = fields.get_u32_le() as usize;
        let kind = match fields.get_u8() {
            16 => Kind::Ready,
            17 => Kind::Failed,
            18 => Kind::Reply,
            19 => Kind::Infer,
            20 => Kind::Model,
            kind => return Err(FrameError::Kind(kind)),
        };
        fields.advance(3);
        if length > limit {
            return Err(FrameError::Length { length, limit });
        }
        Ok(Self { length, kind, id: fields.get_u64_le() })
    }
}

/// What a call carries besides its body.
#[derive(Clone, Copy, Debug)]
pub struct CallHead<'a> {
    /// Number of the call.
    pub id: u64,
    /// GET rather than POST.
    pub get: bool,
    /// The request's id, for what the script logs.
    pub request_id: &'a [u8],
    /// The query string as it stands in the URL.
    pub query: &'a [u8],
    /// Headers, where the script asks for them.
    pub headers: Option<&'a http::HeaderMap>,
    /// Length of the body that follows.
    pub body: usize,
}

/// Appends everything of a CALL up to its body to `out`.
pub fn encode_call(head: &CallHead<'_>, out: &mut Vec<u8>) {
    let frame = out.len();
    out.extend_from_slice(&[0; HEADER]);
    out.put_u8(u8::from(!head.get));
    out.put_u8(0);
    // Ids are at most 100 bytes and header blocks at most 1 MiB by the limits at the door.
    out.put_u16_le(head.request_id.len() as u16);
    out.put_u32_le(head.query.len() as u32);
    let block = out.len();
    out.put_u32_le(0);
    out.put_u32_le(0);
    out.extend_from_slice(head.request_id);
    out.extend_from_slice(head.query);
    let start = out.len();
    for (name, value) in head.headers.into_iter().flatten() {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        let Ok(length) = u16::try_from(value.len()) else { continue };
        out.put_u16_le(name.len() as u16);
        out.put_u16_le(length);
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
    let written = (out.len() - start) as u32;
    out[block..block + 4].copy_from_slice(&written.to_le_bytes());
    let header = Header { length: out.len() - frame - HEADER + head.body, kind: Kind::Call, id: head.id };
    out[frame..frame + HEADER].copy_from_slice(&header.encode());
}

/// What became of a call in the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `run()` returned; the JSON text.
    Returned(Bytes),
    /// `run()` raised; what, and the traceback.
    Raised {
        /// `Type: text`.
        message: String,
        /// For the log.
        traceback: String,
    },
    /// The input could not be handed over; what to tell the caller.
    BadInput(String),
    /// The result cannot be serialised; why, and the traceback.
    Unserialisable {
        /// `Type: text`.
        message: String,
        /// For the log.
        traceback: String,
    },
}

/// Takes a REPLY apart; the JSON text is a slice of `payload`, not a copy.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode_reply(mut payload: Bytes) -> Result<(Reply, Duration), FrameError> {
    const BAD: FrameError = FrameError::Malformed("REPLY");
    if payload.len() < 16 {
        return Err(BAD);
    }
    let outcome = payload.get_u8();
    payload.advance(3);
    let length = payload.get_u32_le() as usize;
    let run = Duration::from_nanos(payload.get_u64_le());
    if length > payload.len() {
        return Err(BAD);
    }
    let message = payload.split_to(length);
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let reply = match outcome {
        0 => Reply::Returned(payload),
        1 => Reply::Raised { message: text(&message), traceback: text(&payload) },
        2 => Reply::BadInput(text(&message)),
        3 => Reply::Unserialisable { message: text(&message), traceback: text(&payload) },
        _ => return Err(BAD),
    };
    Ok((reply, run))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_protocol_says() {
        let mut headers = http::HeaderMap::new();
        headers.insert("x-a", http::HeaderValue::from_static("b"));
        let mut out = vec![9; 3];
        // What was there before stays.
        let head = CallHead {
            id: 7,
            get: false,
            request_id: b"rid",
            query: b"q=1",
            headers: Some(&headers),
            body: 5,
        };
        encode_call(&head, &mut out);
        let out = out.split_off(3);
        let payload = 16 + 3 + 3 + 4 + 3 + 1 + 5;
        assert_eq!(out[..4], (payload as u32).to_le_bytes());
        assert_eq!((out[4], out[8]), (2, 7));
        assert_eq!(out[16..32], [1, 0, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&out[32..], b"ridq=1\x03\x00\x01\x00x-ab");
    }

    #[test]
    fn replies_are_taken_apart() {
        let mut payload = vec![1, 0, 0, 0, 2, 0, 0, 0];
        payload.extend_from_slice(&1500u64.to_le_bytes());
        payload.extend_from_slice(b"E!trace");
        let (reply, run) = decode_reply(payload.into()).unwrap();
        assert_eq!(run, Duration::from_nanos(1500));
        assert_eq!(reply, Reply::Raised { message: "E!".into(), traceback: "trace".into() });
    }

    #[test]
    fn headers_from_a_worker_are_checked() {
        let bytes = Header { length: 5, kind: Kind::Reply, id: 3 }.encode();
        assert_eq!(Header::decode(&bytes, 5).unwrap(), Header { length: 5, kind: Kind::Reply, id: 3 });
        assert_eq!(Header::decode(&bytes, 4), Err(FrameError::Length { length: 5, limit: 4 }));
        let ours = Header { length: 5, kind: Kind::Call, id: 3 }.encode();
        assert_eq!(Header::decode(&ours, 5), Err(FrameError::Kind(2)), "a worker may not send our kinds");
    }

    proptest! {
        #[test]
        fn no_payload_of_a_worker_panics(bytes: Vec<u8>) {
            let _ = decode_reply(bytes.into());
        }
    }
}
