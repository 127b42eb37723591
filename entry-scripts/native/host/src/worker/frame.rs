//! Frames of the worker protocol, as pure functions; the text of the protocol is `entry-scripts/PROTOCOL.md`.

use std::sync::Arc;
use std::time::Duration;

use outrigger_regions::Mapping;

use crate::Method;

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 16;
/// Bytes of a reference into a region.
pub(super) const REFERENCE: usize = 24;
/// Flag of a frame: its payload's last part lies in a region.
pub(super) const TAIL: u8 = 1;
/// Fixed bytes of a CALL.
const CALL_HEAD: usize = 24;

/// Why bytes are no frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

macro_rules! kinds {
    ($($name:ident = $number:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Kind {
            $($name = $number,)*
        }

        impl Kind {
            pub(super) fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

// TENSORS and what else answers a question of a worker's is not here: a native script asks none.
kinds! {
    Start = 1,
    Call = 2,
    Cancel = 6,
    Credit = 7,
    Release = 8,
    Forget = 9,
    Ready = 16,
    Failed = 17,
    Reply = 18,
    Phase = 21,
    Log = 22,
    Chunk = 23,
    End = 24,
    Leave = 25,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) id: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let length = fields.u32()?;
        let [kind, flags, _, _] = fields.array()?;
        let kind = Kind::from_number(kind).ok_or(Malformed("a frame of an unknown kind"))?;
        Ok(Self { length, kind, flags, id: fields.u64()? })
    }
}

/// Where in a region the tail of a payload lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) region: u32,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Reference {
    pub(super) fn encode(self) -> [u8; REFERENCE] {
        let mut bytes = [0; REFERENCE];
        bytes[..4].copy_from_slice(&self.region.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let [region, _] = [fields.u32()?, fields.u32()?];
        Ok(Self { region, offset: fields.u64()?, size: fields.u64()? })
    }
}

/// A payload's tail, mapped, and known to be inside its region.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) mapping: Arc<Mapping>,
    pub(super) reference: Reference,
}

impl Tail {
    #[expect(unsafe_code, reason = "reads what the runtime has shared")]
    pub(super) fn bytes(&self) -> &[u8] {
        let Reference { offset, size, .. } = self.reference;
        // SAFETY: the runtime does not write there until RELEASE is sent, which is when this is gone.
        unsafe { self.mapping.bytes(offset, size) }.unwrap_or_default()
    }
}

/// A CALL. The body is where it was received: in the frame, or in a region of the runtime's.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) method: Method,
    /// Of `run()`, from its begin.
    pub(super) limit: Option<Duration>,
    /// Set when a CANCEL came before the call's turn.
    cancelled: bool,
    payload: Vec<u8>,
    query: usize,
    headers: usize,
    body: usize,
    tail: Option<Tail>,
}

impl Call {
    pub(super) fn decode(id: u64, payload: Vec<u8>, tail: Option<Tail>) -> Result<Self, Malformed> {
        let start = if tail.is_some() { REFERENCE } else { 0 };
        let mut fields = Fields(payload.get(start..).unwrap_or_default());
        let [method, _flags] = fields.array()?;
        let method = Method::ALL.get(usize::from(method)).ok_or(Malformed("a CALL of an unknown method"))?;
        let id_len = usize::from(u16::from_le_bytes(fields.array()?));
        let (query_len, headers_len) = (fields.u32()? as usize, fields.u32()? as usize);
        fields.u32()?;
        let limit = fields.u64()?;
        let query = start + CALL_HEAD + id_len;
        let headers = query + query_len;
        let body = headers + headers_len;
        if body > payload.len() || (tail.is_some() && body != payload.len()) {
            return Err(Malformed("a CALL whose parts do not add up"));
        }
        let limit = (limit > 0).then(|| Duration::from_nanos(limit));
        let call = Self { id, method: *method, limit, cancelled: false, payload, query, headers, body, tail };
        let mut block = Fields(&call.payload[headers..body]);
        while !block.0.is_empty() {
            block.header()?;
        }
        Ok(call)
    }

    pub(super) fn cancelled(&self) -> bool {
        self.cancelled
    }

    pub(super) fn cancel(&mut self) {
        self.cancelled = true;
    }

    pub(super) fn request_id(&self) -> &[u8] {
        let start = if self.tail.is_some() { REFERENCE } else { 0 };
        &self.payload[start + CALL_HEAD..self.query]
    }

    pub(super) fn query(&self) -> &[u8] {
        &self.payload[self.query..self.headers]
    }

    pub(super) fn headers(&self) -> Vec<(&[u8], &[u8])> {
        let mut block = Fields(&self.payload[self.headers..self.body]);
        // Checked in `decode`, where it would have failed.
        std::iter::from_fn(|| (!block.0.is_empty()).then(|| block.header().ok()).flatten()).collect()
    }

    pub(super) fn body(&self) -> &[u8] {
        match &self.tail {
            Some(tail) => tail.bytes(),
            None => &self.payload[self.body..],
        }
    }

    /// The region that the body is in.
    pub(super) fn region(&self) -> Option<u32> {
        self.tail.as_ref().map(|tail| tail.reference.region)
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Outcome {
    Returned = 0,
    Raised = 1,
    Input = 2,
    Unserialisable = 3,
    Whole = 4,
    Streamed = 5,
    Cancelled = 6,
}

/// The fixed part of REPLY and END.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyHead {
    outcome: Outcome,
    status: u16,
    message: u32,
    run: Duration,
}

impl ReplyHead {
    pub(super) const BYTES: usize = 16;

    pub(super) fn new(outcome: Outcome, status: u16, message: usize, run: Duration) -> Self {
        // Messages are at most 16 Ki characters, header blocks little over 64 KiB.
        Self { outcome, status, message: u32::try_from(message).unwrap_or_default(), run }
    }

    pub(super) fn bare(outcome: Outcome, run: Duration) -> Self {
        Self::new(outcome, 0, 0, run)
    }

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.outcome as u8;
        bytes[1] = u8::from(self.outcome == Outcome::Raised);
        bytes[2..4].copy_from_slice(&self.status.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.message.to_le_bytes());
        let run = u64::try_from(self.run.as_nanos()).unwrap_or(u64::MAX);
        bytes[8..].copy_from_slice(&run.to_le_bytes());
        bytes
    }
}

/// The payload of a LOG up to its text: no logger's name.
pub(super) fn log_head(level: u8) -> [u8; 8] {
    [level, 0, 0, 0, 0, 0, 0, 0]
}

/// Bytes that are taken from the front.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    const SHORT: Malformed = Malformed("a frame that ends early");

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Self::SHORT)?;
        self.0 = rest;
        Ok(*array)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Self::SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn header(&mut self) -> Result<(&'a [u8], &'a [u8]), Malformed> {
        let name = u16::from_le_bytes(self.array()?);
        let value = u16::from_le_bytes(self.array()?);
        Ok((self.take(name.into())?, self.take(value.into())?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_is_taken_apart_as_the_protocol_says() {
        let mut payload = vec![1, 1, 3, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        payload.extend_from_slice(&1500u64.to_le_bytes());
        payload.extend_from_slice(b"rid");
        payload.extend_from_slice(b"?q");
        payload.extend_from_slice(b"\x03\0\x02\0x-abc");
        payload.extend_from_slice(b"body");
        let call = Call::decode(7, payload, None).unwrap();
        assert_eq!((call.id, call.method, call.limit), (7, Method::Post, Some(Duration::from_nanos(1500))));
        assert_eq!((call.request_id(), call.query(), call.body()), (&b"rid"[..], &b"?q"[..], &b"body"[..]));
        assert_eq!(call.headers(), [(&b"x-a"[..], &b"bc"[..])]);
        assert_eq!(call.region(), None);
    }

    #[test]
    fn replies_and_references_are_laid_out_as_the_protocol_says() {
        let head = ReplyHead::new(Outcome::Raised, 0, 5, Duration::from_nanos(258)).encode();
        assert_eq!(head, [1, 1, 0, 0, 5, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let head = ReplyHead::new(Outcome::Whole, 404, 0, Duration::ZERO).encode();
        assert_eq!(head[..4], [4, 0, 148, 1]);
        let reference = Reference { region: 1, offset: 2, size: 3 };
        assert_eq!(Reference::decode(&reference.encode()), Ok(reference));
        let header = Header { length: 1, kind: Kind::Chunk, flags: TAIL, id: 2 };
        assert_eq!(header.encode()[..8], [1, 0, 0, 0, 23, 1, 0, 0]);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    proptest! {
        #[test]
        fn no_payload_panics(payload: Vec<u8>) {
            let _ = Reference::decode(&payload);
            if let Ok(call) = Call::decode(0, payload, None) {
                let _ = (call.request_id(), call.query(), call.headers(), call.body());
            }
        }

        #[test]
        fn no_lengths_panic(id: u16, query: u32, headers: u32, payload: Vec<u8>) {
            let mut head = vec![1, 0];
            head.extend_from_slice(&(id % 16).to_le_bytes());
            head.extend_from_slice(&(query % 16).to_le_bytes());
            head.extend_from_slice(&(headers % 16).to_le_bytes());
            head.extend_from_slice(&[0; 12]);
            head.extend_from_slice(&payload);
            if let Ok(call) = Call::decode(0, head, None) {
                let _ = (call.request_id(), call.query(), call.headers(), call.body());
            }
        }
    }
}
