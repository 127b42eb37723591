//! Frames of the worker protocol, as pure functions; the text of the protocol is `entry-scripts/PROTOCOL.md`.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Bytes of a frame's header.
pub const HEADER: usize = 16;
/// Bytes of the reference to a region with which a frame with a tail begins.
pub const REFERENCE: usize = 24;
/// The header's flag for a payload whose last part lies in a region.
const TAIL: u8 = 1;
/// The call's flag for a batch that goes on.
const MORE: u8 = 1;
/// The reply's flag for a run function that failed.
const RUN_FAILED: u8 = 1;

macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident = $number:literal;)+) => {
        /// The kinds of frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])+ $kind = $number,)+
        }

        impl Kind {
            fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$kind),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// What to run.
    Start = 1;
    /// A call.
    Call = 2;
    /// Results of a model.
    Tensors = 3;
    /// A model's inputs and outputs.
    ModelInfo = 4;
    /// A model failed.
    ModelError = 5;
    /// A call is not wanted any more.
    Cancel = 6;
    /// More chunks may come.
    Credit = 7;
    /// A reader is done with a region.
    Release = 8;
    /// An owner has retired a region.
    Forget = 9;
    /// `init()` has returned.
    Ready = 16;
    /// The script does not load, or `init()` failed.
    Failed = 17;
    /// A call's answer, or its beginning.
    Reply = 18;
    /// A model is to be run.
    Infer = 19;
    /// A model is asked for.
    Model = 20;
    /// What the worker does before it is ready.
    Phase = 21;
    /// A line for the log.
    Log = 22;
    /// Bytes of a streamed answer.
    Chunk = 23;
    /// The end of a streamed answer.
    End = 24;
    /// The worker has forked.
    Leave = 25;
    /// The task of a call that is out of time has been cancelled: the loop of an async script turns.
    Cancelling = 26;
}

impl Kind {
    /// Whether a worker may send it.
    fn is_workers(self) -> bool {
        self as u8 >= Self::Ready as u8 || matches!(self, Self::Release | Self::Forget)
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow.
    pub length: usize,
    /// Kind.
    pub kind: Kind,
    /// Whether the payload's last part lies in a region; a [`Reference`] follows the header.
    pub tail: bool,
    /// Number of the call, request or region.
    pub id: u64,
}

/// Where a payload's last part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Number of the region.
    pub region: u32,
    /// Where in it, bytes.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
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
    /// The payload ends early, its fields contradict each other, or it has no place here.
    #[error("{0} frame is malformed")]
    Malformed(&'static str),
}

impl Header {
    /// A header without a tail.
    pub fn new(kind: Kind, id: u64, length: usize) -> Self {
        Self { length, kind, tail: false, id }
    }

    /// The header as bytes.
    pub fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        // Frames that we send are bounded by `limits.body` and `limits.answer`, both at most 1 GiB.
        bytes[..4].copy_from_slice(&u32::try_from(self.length).unwrap_or(u32::MAX).to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = if self.tail { TAIL } else { 0 };
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// Reads a header that a worker sent.
    ///
    /// # Errors
    /// [`FrameError::Kind`], [`FrameError::Length`]; [`FrameError::Malformed`] for a tail that has no reference.
    pub fn decode(bytes: &[u8; HEADER], limit: usize) -> Result<Self, FrameError> {
        let mut fields = &bytes[..];
        let length = fields.get_u32_le() as usize;
        let number = fields.get_u8();
        let kind = Kind::from_number(number).filter(|kind| kind.is_workers());
        let kind = kind.ok_or(FrameError::Kind(number))?;
        let tail = fields.get_u8() & TAIL != 0;
        fields.advance(2);
        if length > limit {
            return Err(FrameError::Length { length, limit });
        }
        if tail && length < REFERENCE {
            return Err(FrameError::Malformed("tailed"));
        }
        Ok(Self { length, kind, tail, id: fields.get_u64_le() })
    }
}

impl Reference {
    /// The reference as bytes.
    pub fn encode(self) -> [u8; REFERENCE] {
        let mut bytes = [0; REFERENCE];
        bytes[..4].copy_from_slice(&self.region.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// Takes the reference off the front of a frame with a tail.
    ///
    /// # Errors
    /// [`FrameError::Malformed`].
    pub fn split_off(payload: &mut Bytes) -> Result<Self, FrameError> {
        if payload.len() < REFERENCE {
            return Err(FrameError::Malformed("tailed"));
        }
        let region = payload.get_u32_le();
        payload.advance(4);
        Ok(Self { region, offset: payload.get_u64_le(), size: payload.get_u64_le() })
    }
}

/// How a script is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Method {
    /// The input is the query.
    Get = 0,
    /// The input is the body.
    Post = 1,
    /// For scripts that see the request itself.
    Options = 2,
    /// For scripts that see the request itself.
    Head = 3,
}

/// What a call carries besides its body.
#[derive(Clone, Copy, Debug)]
pub struct CallHead<'a> {
    /// Number of the call.
    pub id: u64,
    /// Its method.
    pub method: Method,
    /// More calls of the same batch follow at once.
    pub more: bool,
    /// The request's id, for what the script logs.
    pub request_id: &'a [u8],
    /// To which trace it belongs, which goes behind the id.
    pub trace: &'a [u8],
    /// The query string as it stands in the URL.
    pub query: &'a [u8],
    /// The headers that the script asks for.
    pub headers: Option<&'a HeaderMap>,
    /// Limit of `run()`.
    pub limit: Duration,
    /// The body.
    pub body: CallBody,
}

/// Where a call's body is.
#[derive(Clone, Copy, Debug)]
pub enum CallBody {
    /// So many bytes follow the head.
    Follows(usize),
    /// In a region.
    In(Reference),
}

/// Appends everything of a CALL up to its body to `out`.
pub fn encode_call(head: &CallHead<'_>, out: &mut Vec<u8>) {
    let frame = out.len();
    out.extend_from_slice(&[0; HEADER]);
    let (tail, follows) = match head.body {
        CallBody::Follows(length) => (false, length),
        CallBody::In(reference) => {
            out.extend_from_slice(&reference.encode());
            (true, 0)
        }
    };
    out.put_u8(head.method as u8);
    out.put_u8(if head.more { MORE } else { 0 });
    // Ids are at most 100 bytes, contexts of traces 9 KiB, and header blocks at most 1 MiB by the limits at the door.
    out.put_u16_le((head.request_id.len() + head.trace.len()) as u16);
    out.put_u32_le(head.query.len() as u32);
    let block = out.len();
    out.put_u32_le(0);
    out.put_u32_le(0);
    out.put_u64_le(u64::try_from(head.limit.as_nanos()).unwrap_or(0));
    out.extend_from_slice(head.request_id);
    out.extend_from_slice(head.trace);
    out.extend_from_slice(head.query);
    let start = out.len();
    if let Some(headers) = head.headers {
        encode_headers(headers, out);
    }
    let written = (out.len() - start) as u32;
    out[block..block + 4].copy_from_slice(&written.to_le_bytes());
    let length = out.len() - frame - HEADER + follows;
    let header = Header { length, kind: Kind::Call, tail, id: head.id };
    out[frame..frame + HEADER].copy_from_slice(&header.encode());
}

fn encode_headers(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        let Ok(length) = u16::try_from(value.len()) else { continue };
        out.put_u16_le(name.len() as u16);
        out.put_u16_le(length);
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
}

/// The most headers that a script may answer with: 256, and the type of its body, which native scripts give beside them.
const MOST_HEADERS: usize = 257;

/// Takes a header block apart. Hop-by-hop headers and the length, which are the server's own, are left out.
///
/// # Errors
/// [`FrameError::Malformed`] for a block that ends early, for a name or value that HTTP forbids, and for more than 257 headers.
pub fn decode_headers(mut block: &[u8]) -> Result<HeaderMap, FrameError> {
    const BAD: FrameError = FrameError::Malformed("header block of a REPLY");
    let mut headers = HeaderMap::new();
    while !block.is_empty() {
        if block.len() < 4 || headers.len() == MOST_HEADERS {
            return Err(BAD);
        }
        let (name, value) = (block.get_u16_le() as usize, block.get_u16_le() as usize);
        if block.len() < name + value {
            return Err(BAD);
        }
        let name_bytes = &block[..name];
        let value_bytes = &block[name..name + value];
        block = &block[name + value..];
        let name = HeaderName::from_bytes(name_bytes).map_err(|_| BAD)?;
        let value = HeaderValue::from_bytes(value_bytes).map_err(|_| BAD)?;
        if !is_servers_own(&name) {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// Headers that say how the message is carried. Source: RFC 9110, section 7.6.1.
fn is_servers_own(name: &HeaderName) -> bool {
    use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
    [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// What became of a call in the worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `run()` returned; the JSON text.
    Returned(Bytes),
    /// `run()` raised; what, and the traceback.
    Raised(Trouble),
    /// The input could not be handed over.
    Refused {
        /// 400, 405, 415 or 500.
        status: u16,
        /// What to tell the caller.
        message: String,
        /// What to log; may be empty.
        log: String,
    },
    /// The result cannot be serialised; why, and the traceback.
    Unserialisable(Trouble),
    /// A whole answer that the script has made itself.
    Answer(ReplyHead, Bytes),
    /// The beginning of an answer whose body comes in pieces.
    Stream(ReplyHead),
    /// The call was cancelled and has ended.
    Cancelled,
}

/// An exception as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// `Type: text`.
    pub message: String,
    /// For the log.
    pub traceback: String,
}

/// Status and headers of an answer that the script has made itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplyHead {
    /// Status.
    pub status: StatusCode,
    /// Headers, without those that are the server's own.
    pub headers: HeaderMap,
    /// The script says of itself that it failed.
    pub failed: bool,
}

/// Takes a REPLY or an END apart; what the script returned is a slice of `payload`, or `tail`, not a copy.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode_reply(mut payload: Bytes, tail: Option<Bytes>) -> Result<(Reply, Duration), FrameError> {
    const BAD: FrameError = FrameError::Malformed("REPLY");
    if payload.len() < 16 {
        return Err(BAD);
    }
    let outcome = payload.get_u8();
    let failed = payload.get_u8() & RUN_FAILED != 0;
    let status = payload.get_u16_le();
    let length = payload.get_u32_le() as usize;
    let run = Duration::from_nanos(payload.get_u64_le());
    if length > payload.len() {
        return Err(BAD);
    }
    let message = payload.split_to(length);
    let rest = match tail {
        // The rest begins in the frame and ends in the region only if somebody splits a text for no reason.
        Some(_) if !payload.is_empty() => return Err(BAD),
        Some(tail) => tail,
        None => payload,
    };
    // What lies in a region can change while it is looked at: what is checked to be text is a copy.
    let text = |bytes: &Bytes| {
        String::from_utf8(bytes.to_vec())
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    };
    let trouble = || Trouble { message: text(&message), traceback: text(&rest) };
    let head = || {
        let status = StatusCode::from_u16(status).ok().filter(|status| status.as_u16() >= 200);
        Ok(ReplyHead { status: status.ok_or(BAD)?, headers: decode_headers(&message)?, failed })
    };
    let reply = match outcome {
        0 => Reply::Returned(rest),
        1 => Reply::Raised(trouble()),
        2 => Reply::Refused { status, message: text(&message), log: text(&rest) },
        3 => Reply::Unserialisable(trouble()),
        4 => Reply::Answer(head()?, rest),
        5 => Reply::Stream(head()?),
        6 => Reply::Cancelled,
        _ => return Err(BAD),
    };
    Ok((reply, run))
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How bad it is.
    pub level: LogLevel,
    /// Who wrote it.
    pub source: LogSource,
    /// The logger's name; empty for what was printed.
    pub logger: String,
    /// The text.
    pub text: String,
}

/// Python's five levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// 10 and below.
    Debug,
    /// 20.
    Info,
    /// 30.
    Warning,
    /// 40.
    Error,
    /// 50 and above.
    Critical,
}

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// A logger.
    Logger,
    /// `print` and the like.
    Stdout,
    /// The same, for errors.
    Stderr,
}

/// The longest line of a LOG, and the longest name of a logger, bytes: 8 Ki characters.
const LONGEST_LINE: usize = 4 * 8 * 1024;

/// Takes a LOG apart.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode_log(mut payload: Bytes) -> Result<LogLine, FrameError> {
    const BAD: FrameError = FrameError::Malformed("LOG");
    if payload.len() < 8 {
        return Err(BAD);
    }
    let level = match payload.get_u8() {
        0..20 => LogLevel::Debug,
        20..30 => LogLevel::Info,
        30..40 => LogLevel::Warning,
        40..50 => LogLevel::Error,
        50.. => LogLevel::Critical,
    };
    let source = match payload.get_u8() {
        0 => LogSource::Logger,
        1 => LogSource::Stdout,
        2 => LogSource::Stderr,
        _ => return Err(BAD),
    };
    let length = payload.get_u16_le() as usize;
    payload.advance(4);
    if length > payload.len() || length > LONGEST_LINE || payload.len() - length > LONGEST_LINE {
        return Err(BAD);
    }
    let name = payload.split_to(length);
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(LogLine { level, source, logger: text(&name), text: text(&payload) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply_bytes(outcome: u8, flags: u8, status: u16, message: &[u8], rest: &[u8]) -> Bytes {
        let mut payload = vec![outcome, flags];
        payload.put_u16_le(status);
        payload.put_u32_le(message.len() as u32);
        payload.put_u64_le(1500);
        payload.extend_from_slice(message);
        payload.extend_from_slice(rest);
        payload.into()
    }

    fn head<'a>(headers: Option<&'a HeaderMap>, body: CallBody) -> CallHead<'a> {
        CallHead {
            id: 7,
            method: Method::Post,
            more: true,
            request_id: b"rid",
            trace: b"",
            query: b"q=1",
            headers,
            limit: Duration::from_nanos(9),
            body,
        }
    }

    #[test]
    fn a_line_of_the_log_has_an_end() {
        let line = |length: usize| {
            let mut payload = vec![20, 0, 0, 0, 0, 0, 0, 0];
            payload.resize(8 + length, b'x');
            decode_log(payload.into())
        };
        assert_eq!(line(LONGEST_LINE).unwrap().text.len(), LONGEST_LINE);
        assert_eq!(line(LONGEST_LINE + 1), Err(FrameError::Malformed("LOG")));
    }

    #[test]
    fn a_call_is_laid_out_as_the_protocol_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("b"));
        let mut out = vec![9; 3];
        // What was there before stays.
        encode_call(&head(Some(&headers), CallBody::Follows(5)), &mut out);
        let out = out.split_off(3);
        let payload = 24 + 3 + 3 + 4 + 3 + 1 + 5;
        assert_eq!(out[..4], (payload as u32).to_le_bytes());
        assert_eq!((out[4], out[5], out[8]), (2, 0, 7));
        assert_eq!(out[16..40], [1, 1, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&out[40..], b"ridq=1\x03\x00\x01\x00x-ab");
    }

    #[test]
    fn a_body_in_a_region_is_named_in_front() {
        let mut out = Vec::new();
        let reference = Reference { region: 3, offset: 64, size: 1 << 33 };
        encode_call(&head(None, CallBody::In(reference)), &mut out);
        assert_eq!(out[..4], (24 + 24 + 6u32).to_le_bytes());
        assert_eq!((out[4], out[5]), (2, 1));
        let mut rest = Bytes::copy_from_slice(&out[16..]);
        assert_eq!(Reference::split_off(&mut rest).unwrap(), reference);
        assert_eq!(rest.len(), 24 + 6);
    }

    #[test]
    fn replies_are_taken_apart() {
        let (reply, run) = decode_reply(reply_bytes(1, 0, 0, b"E!", b"trace"), None).unwrap();
        assert_eq!(run, Duration::from_nanos(1500));
        assert_eq!(reply, Reply::Raised(Trouble { message: "E!".into(), traceback: "trace".into() }));
        let (reply, _) =
            decode_reply(reply_bytes(0, 0, 0, b"", b""), Some(Bytes::from_static(b"{}"))).unwrap();
        assert_eq!(reply, Reply::Returned(Bytes::from_static(b"{}")));
        let block = b"\x03\x00\x02\x00x-aok\x0e\x00\x01\x00content-length9";
        let (reply, _) = decode_reply(reply_bytes(4, 1, 503, block, b"body"), None).unwrap();
        let Reply::Answer(head, body) = reply else { panic!("{reply:?}") };
        assert_eq!((head.status.as_u16(), head.failed, &body[..]), (503, true, &b"body"[..]));
        assert_eq!(head.headers.len(), 1, "the length is the server's to say");
        assert_eq!(head.headers["x-a"], "ok");
    }

    #[test]
    fn answers_that_http_forbids_are_refused() {
        for (status, block) in [
            (99, &b""[..]),
            (100, b""),
            (1000, b""),
            (0, b""),
            (200, b"\x03\x00\x03\x00x-aa\r\n"),
            (200, b"\x03\x00\x01\x00x a1"),
            (200, b"\x00\x00\x01\x001"),
            (200, b"\x03\x00\x09\x00x-a1"),
            (200, b"\x03\x00"),
        ] {
            assert!(decode_reply(reply_bytes(4, 0, status, block, b""), None).is_err(), "{status} {block:?}");
        }
        let many = |count: usize| {
            let block = b"\x01\x00\x00\x00a".repeat(count);
            decode_reply(reply_bytes(5, 0, 200, &block, b""), None)
        };
        assert!(many(257).is_ok(), "a native script's 256, and the type of its body");
        assert!(many(258).is_err());
    }

    #[test]
    fn headers_from_a_worker_are_checked() {
        let bytes = Header::new(Kind::Reply, 3, 5).encode();
        assert_eq!(Header::decode(&bytes, 5).unwrap(), Header::new(Kind::Reply, 3, 5));
        assert_eq!(Header::decode(&bytes, 4), Err(FrameError::Length { length: 5, limit: 4 }));
        let ours = Header::new(Kind::Call, 3, 5).encode();
        assert_eq!(Header::decode(&ours, 5), Err(FrameError::Kind(2)), "a worker may not send our kinds");
        let short = Header { tail: true, ..Header::new(Kind::Chunk, 3, 23) }.encode();
        assert_eq!(Header::decode(&short, 99), Err(FrameError::Malformed("tailed")));
    }

    #[test]
    fn log_lines_are_taken_apart() {
        let mut payload = vec![30, 0, 3, 0, 0, 0, 0, 0];
        payload.extend_from_slice(b"a.bhi\xff");
        let line = decode_log(payload.into()).unwrap();
        assert_eq!((line.level, line.source), (LogLevel::Warning, LogSource::Logger));
        assert_eq!((line.logger.as_str(), line.text.as_str()), ("a.b", "hi\u{fffd}"));
        assert!(decode_log(Bytes::from_static(&[20, 3, 0, 0, 0, 0, 0, 0])).is_err());
        assert!(decode_log(Bytes::from_static(&[20, 0, 9, 0, 0, 0, 0, 0, b'x'])).is_err());
    }

    proptest! {
        #[test]
        fn no_payload_of_a_worker_panics(bytes: Vec<u8>, tail: Option<Vec<u8>>) {
            let _ = decode_reply(bytes.clone().into(), tail.map(Bytes::from));
            let _ = decode_log(bytes.clone().into());
            let _ = decode_headers(&bytes);
            let _ = Reference::split_off(&mut bytes.into());
        }
    }
}
