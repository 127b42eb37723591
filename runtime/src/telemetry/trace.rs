//! Which requests are recorded as spans, and what a span is made of.

use http::{HeaderMap, HeaderValue};

use super::context::{Carried, Parent, SpanId};

/// Which requests are recorded. Source: OpenTelemetry's specification of `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether what the request's own trace says is followed, where it has one.
    pub follows_parent: bool,
    /// Of the others, so many are, from 0 to 1.
    pub ratio: f64,
}

impl Sampler {
    /// The same trace is decided upon alike by all who decide by ratio: by its number.
    fn takes(self, id: &SpanId, parent: Option<&Parent>) -> bool {
        if let Some(parent) = parent.filter(|_| self.follows_parent) {
            return parent.sampled;
        }
        let [.., a, b, c, d, e, f, g, h] = id.trace;
        let part = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        // Beyond 2⁵³ a number is rounded, by less than anybody could count.
        self.ratio >= 1.0 || (part as f64) < self.ratio * (u64::MAX >> 1) as f64
    }
}

/// The span of a request.
pub(crate) struct Trace {
    pub(crate) id: SpanId,
    /// The span that it belongs to, in somebody else's process.
    pub(crate) parent: Option<[u8; 8]>,
    /// Whether it is recorded.
    pub(crate) sampled: bool,
    pub(crate) state: Option<HeaderValue>,
}

impl Trace {
    /// That of a request with these headers, and what is handed on of it.
    pub(crate) fn begin(sampler: Sampler, headers: &HeaderMap) -> (Self, Carried) {
        let parent = Parent::of(headers);
        let id = parent.as_ref().map_or_else(SpanId::new, |parent| parent.id.another());
        let sampled = sampler.takes(&id, parent.as_ref());
        let (of, state) = match parent {
            Some(parent) => (Some(parent.id.span), parent.state),
            None => (None, None),
        };
        let carried = Carried::on(&id, sampled, state.clone(), headers);
        (Self { id, parent: of, sampled, state }, carried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(flags: &str) -> HeaderMap {
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        HeaderMap::from_iter([("traceparent".parse().unwrap(), parent.parse().unwrap())])
    }

    #[test]
    fn a_trace_goes_on_and_its_decision_with_it() {
        let follows = Sampler { follows_parent: true, ratio: 0.0 };
        let (trace, _) = Trace::begin(follows, &headers("01"));
        assert!(trace.sampled && trace.parent == Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
        assert_eq!(trace.id.trace[0], 0x0a);
        assert!(!Trace::begin(Sampler { ratio: 1.0, ..follows }, &headers("00")).0.sampled);
        assert!(Trace::begin(Sampler { follows_parent: false, ratio: 1.0 }, &headers("00")).0.sampled);
        let (own, _) = Trace::begin(follows, &HeaderMap::new());
        assert!(!own.sampled && own.parent.is_none());
    }

    #[test]
    fn a_ratio_is_kept() {
        let sampler = Sampler { follows_parent: true, ratio: 0.25 };
        let taken = (0..4000).filter(|_| Trace::begin(sampler, &HeaderMap::new()).0.sampled).count();
        assert!((700..1300).contains(&taken), "{taken} of 4000");
    }
}
