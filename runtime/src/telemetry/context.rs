//! To which trace a request belongs, as its headers say it, and as it is passed on.
//!
//! Source: W3C, *Trace Context*, sections 3.2 and 3.3, and *Baggage*, section 3.3. What is malformed or too long is as if it were not there.

use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use super::Phase;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// What is passed on of a trace's state, bytes; vendors have to make do with as much.
const MAX_STATE: usize = 512;
/// What is passed on of baggage, bytes: what any platform has to.
const MAX_BAGGAGE: usize = 8192;
/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// A span of a trace, by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanId {
    pub(crate) trace: [u8; 16],
    pub(crate) span: [u8; 8],
}

/// What a request says of the trace that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) id: SpanId,
    pub(crate) sampled: bool,
    /// `tracestate`.
    pub(crate) state: Option<HeaderValue>,
}

impl Parent {
    /// Reads the headers of a request.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut sent = headers.get_all(&TRACEPARENT).iter();
        let (Some(one), None) = (sent.next(), sent.next()) else { return None };
        let (id, flags) = parse(one.to_str().ok()?)?;
        Some(Self { id, sampled: flags & SAMPLED != 0, state: joined(headers, &TRACESTATE, MAX_STATE) })
    }
}

/// `baggage`, if there is not too much of it.
pub(crate) fn baggage(headers: &HeaderMap) -> Option<HeaderValue> {
    joined(headers, &BAGGAGE, MAX_BAGGAGE)
}

/// One value of all of a name: a list may come in several.
fn joined(headers: &HeaderMap, name: &HeaderName, most: usize) -> Option<HeaderValue> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    let visible = |value: &HeaderValue| value.to_str().is_ok();
    let value = match all.next() {
        None => first.clone(),
        Some(_) => {
            let parts: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            HeaderValue::from_bytes(&parts.join(b",".as_slice())).ok()?
        }
    };
    (value.len() <= most && !value.is_empty() && visible(&value)).then_some(value)
}

/// `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`; versions to come may have more behind that.
fn parse(text: &str) -> Option<(SpanId, u8)> {
    let bytes = text.as_bytes();
    let [version] = hex::<1>(bytes.get(..2)?)?;
    let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
    let length = match version {
        0 => bytes.len() == 55,
        0xff => false,
        _ => bytes.len() == 55 || bytes.get(55) == Some(&b'-'),
    };
    if !dashes || !length {
        return None;
    }
    let id = SpanId { trace: hex(bytes.get(3..35)?)?, span: hex(bytes.get(36..52)?)? };
    let [flags] = hex::<1>(bytes.get(53..55)?)?;
    (id.trace != [0; 16] && id.span != [0; 8]).then_some((id, flags))
}

/// Digits in lower case alone.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

impl SpanId {
    /// A span of a trace of its own. Who samples by ratio goes by the second half.
    pub(crate) fn new() -> Self {
        let (mut trace, halves) = ([0; 16], [new_span(), new_span()]);
        trace.iter_mut().zip(halves.into_iter().flatten()).for_each(|(to, from)| *to = from);
        Self { trace, span: new_span() }
    }

    /// Another span of the same trace.
    pub(crate) fn another(self) -> Self {
        Self { span: new_span(), ..self }
    }

    /// The number of the span of one of its phases: this one's but for the last byte, so that it need not be drawn. It is not 0, as the version is in
    /// another byte, and two requests of a trace would have to be apart in that byte alone to have one in common.
    pub(crate) fn child(self, phase: Phase) -> [u8; 8] {
        let mut span = self.span;
        if let Some(last) = span.last_mut() {
            *last ^= phase as u8 + 1;
        }
        span
    }

    /// As a header says it.
    pub(crate) fn header(self, sampled: bool) -> String {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        push_hex(&mut text, &self.trace);
        text.push('-');
        push_hex(&mut text, &self.span);
        text.push_str(if sampled { "-01" } else { "-00" });
        text
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    let digit = |half: u8| char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 });
    bytes.iter().for_each(|byte| text.extend([digit(byte >> 4), digit(byte & 15)]));
}

/// The first half of a UUID, which has 60 random bits, the first ones among them, and is never 0, for it holds the version.
fn new_span() -> [u8; 8] {
    let mut span = [0; 8];
    span.iter_mut().zip(Uuid::new_v4().into_bytes()).for_each(|(to, from)| *to = from);
    span
}

/// The context as it is handed on: the trace's span that is under way here, its state, and baggage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// The span, and whether it is recorded. What it is as a header is made for who gets it.
    parent: Option<(SpanId, bool)>,
    state: Option<HeaderValue>,
    baggage: Option<HeaderValue>,
}

impl Carried {
    /// Whether a request brings any.
    pub(crate) fn are_there(headers: &HeaderMap) -> bool {
        headers.contains_key(&TRACEPARENT) || headers.contains_key(&BAGGAGE)
    }

    /// That of a request of which no span is made: what it came with.
    pub(crate) fn through(headers: &HeaderMap) -> Self {
        match Parent::of(headers) {
            Some(parent) => Self::on(&parent.id, parent.sampled, parent.state, headers),
            None => Self { baggage: baggage(headers), ..Self::default() },
        }
    }

    /// That of a span.
    pub(crate) fn on(id: &SpanId, sampled: bool, state: Option<HeaderValue>, headers: &HeaderMap) -> Self {
        Self { parent: Some((*id, sampled)), state, baggage: baggage(headers) }
    }

    fn values(&self) -> [Option<HeaderValue>; 3] {
        let parent = self.parent.and_then(|(id, sampled)| HeaderValue::try_from(id.header(sampled)).ok());
        [parent, self.state.clone(), self.baggage.clone()]
    }

    /// Puts it into the headers of a request, in place of what is there.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let [parent, state, baggage] = self.values();
        for (name, value) in [(TRACEPARENT, parent), (TRACESTATE, state), (BAGGAGE, baggage)] {
            match value {
                Some(value) => drop(headers.insert(name, value)),
                None => drop(headers.remove(name)),
            }
        }
    }

    /// The three of them, each behind the end of a line, for a worker; nothing where there is none.
    pub(crate) fn lines(&self) -> Vec<u8> {
        let values = self.values();
        if values.iter().all(|value| value.is_none()) {
            return Vec::new();
        }
        let mut lines = Vec::with_capacity(64);
        for value in values {
            lines.push(b'\n');
            lines.extend(value.iter().flat_map(|value| value.as_bytes()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_parent_is_read_and_written_alike() {
        let (id, flags) = parse(PARENT).unwrap();
        assert_eq!((id.header(true).as_str(), flags), (PARENT, 1));
        assert_eq!(id.trace[..2], [0x0a, 0xf7]);
        // Of a version to come.
        let later = format!("{}-what-else", PARENT.replacen("00", "cc", 1));
        assert_eq!(parse(&later).unwrap().0, id);
    }

    #[test]
    fn what_is_malformed_is_as_if_it_were_not_there() {
        let wrong = [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
        ];
        for text in wrong {
            assert_eq!(Parent::of(&headers(&[("traceparent", text)])), None, "{text}");
        }
        assert_eq!(Parent::of(&headers(&[("traceparent", PARENT), ("traceparent", PARENT)])), None);
    }

    #[test]
    fn state_and_baggage_are_bounded() {
        let (long, much) = ("a=".to_owned() + &"b".repeat(600), "a=".to_owned() + &"b".repeat(9000));
        let all = headers(&[
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
            ("baggage", "user=7"),
        ]);
        assert_eq!(Parent::of(&all).unwrap().state.unwrap(), "a=1,b=2");
        let mut passed = HeaderMap::new();
        Carried::through(&all).write(&mut passed);
        assert_eq!(
            (&passed["traceparent"], &passed["baggage"]),
            (&PARENT.parse().unwrap(), &"user=7".parse().unwrap())
        );
        assert_eq!(Carried::through(&all).lines(), format!("\n{PARENT}\na=1,b=2\nuser=7").into_bytes());
        let too_much = headers(&[("traceparent", PARENT), ("tracestate", &long), ("baggage", &much)]);
        let carried = Carried::through(&too_much);
        assert_eq!((carried.state, carried.baggage), (None, None));
        assert!(Carried::through(&HeaderMap::new()).lines().is_empty());
        // What cannot be read is not passed on either.
        let mut odd = headers(&[("traceparent", "odd"), ("tracestate", "a=1")]);
        Carried::through(&odd.clone()).write(&mut odd);
        assert!(odd.is_empty());
    }

    #[test]
    fn spans_have_numbers_of_their_own() {
        let one = SpanId::new();
        let other = one.another();
        assert!(one.trace == other.trace && one.span != other.span && one.span != [0; 8]);
        let mut all: Vec<_> = Phase::ALL.map(|phase| one.child(phase)).into();
        all.push(one.span);
        all.sort_unstable();
        all.dedup();
        assert!(all.len() == Phase::ALL.len() + 1 && !all.contains(&[0; 8]), "{all:?}");
    }
}
