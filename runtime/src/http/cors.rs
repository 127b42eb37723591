//! Cross-origin requests: which origins' pages may call, and what a preflight is answered.
//!
//! Source: the CORS protocol of the Fetch standard; for which origin is named when, the contract of the model server that we succeed.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

/// Methods that pages of other origins may use.
const METHODS: [&str; 2] = ["GET", "POST"];

/// What a request says of where it comes from, kept until it is answered.
pub(super) struct Cors {
    /// The origin that the answer names.
    allowed: Option<HeaderValue>,
    preflight: Option<Preflight>,
    varies: bool,
}

/// A browser asks before it sends the request itself.
struct Preflight {
    /// Whether the method that it asks for is one of [`METHODS`].
    allowed: bool,
    /// The headers that it asks for.
    headers: Option<HeaderValue>,
}

impl Cors {
    /// Looks at a request. With no `origins`, which are sorted, there is nothing to say.
    pub(super) fn of(origins: &[HeaderValue], method: &Method, headers: &HeaderMap) -> Option<Self> {
        let first = origins.first()?;
        let any = origins.iter().any(|origin| origin == "*");
        let sent = headers.get(ORIGIN);
        let known = |origin: &HeaderValue| {
            any || origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
        };
        let allowed = match sent {
            Some(origin) => known(origin).then(|| origin.clone()),
            None if any => Some(HeaderValue::from_static("*")),
            // Nobody asked; caches see what the first one would see.
            None => Some(first.clone()),
        };
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| *method == Method::OPTIONS);
        let preflight = asked.map(|asked| Preflight {
            allowed: METHODS.iter().any(|known| asked.as_bytes().eq_ignore_ascii_case(known.as_bytes())),
            headers: headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
        });
        Some(Self { allowed, preflight, varies: sent.is_some() || !any })
    }

    /// Says so in the answer.
    pub(super) fn write(self, headers: &mut HeaderMap) {
        if self.varies {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(allowed) = self.allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if let Some(asked) = self.preflight.filter(|preflight| preflight.allowed) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
            if let Some(asked) = asked.headers {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(
        origins: &[&'static str],
        method: Method,
        request: &[(&'static str, &'static str)],
    ) -> HeaderMap {
        let origins: Vec<_> = origins.iter().map(|origin| HeaderValue::from_static(origin)).collect();
        let request = request
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .collect();
        let mut headers = HeaderMap::new();
        if let Some(cors) = Cors::of(&origins, &method, &request) {
            cors.write(&mut headers);
        }
        headers
    }

    #[test]
    fn origins_are_named_as_the_contract_says() {
        const A: &str = "http://a.example";
        const B: &str = "http://b.example";
        let table: [(&[&'static str], Option<&'static str>, Option<&str>); 8] = [
            (&[], Some(A), None),
            (&[A, B], Some(B), Some(B)),
            (&[A, B], Some("HTTP://B.example"), Some("HTTP://B.example")),
            (&[A, B], None, Some(A)),
            (&[A, B], Some("http://c.example"), None),
            (&[A, B], Some("null"), None),
            (&["*"], Some("http://c.example"), Some("http://c.example")),
            (&["*"], None, Some("*")),
        ];
        for (origins, sent, expected) in table {
            let request: Vec<_> = sent.map(|origin| ("origin", origin)).into_iter().collect();
            let headers = answer(origins, Method::POST, &request);
            let got = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().unwrap());
            assert_eq!(got, expected, "{origins:?} {sent:?}");
            assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_METHODS));
        }
    }

    #[test]
    fn a_preflight_is_told_methods_and_headers() {
        let request = [
            ("origin", "http://a.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type"),
        ];
        let headers = answer(&["http://a.example"], Method::OPTIONS, &request);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "GET, POST");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], "authorization, content-type");
        assert_eq!(headers[VARY], "Origin");
        let other = [("origin", "http://a.example"), ("access-control-request-method", "DELETE")];
        let other = answer(&["http://a.example"], Method::OPTIONS, &other);
        assert_eq!(other[ACCESS_CONTROL_ALLOW_ORIGIN], "http://a.example");
        assert!(!other.contains_key(ACCESS_CONTROL_ALLOW_METHODS));
        let stranger = answer(&["http://b.example"], Method::OPTIONS, &request);
        assert!(!stranger.contains_key(ACCESS_CONTROL_ALLOW_METHODS));
    }
}
