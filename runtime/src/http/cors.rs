//! Cross-origin requests: which origins' pages may call, and what a preflight is answered.
//!
//! Source: the CORS protocol of the Fetch standard; for which origin is named when, the contract of the model server that we succeed.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

/// What a request says of where it comes from, kept until it is answered.
pub(super) struct Cors {
    /// The origin that the answer names.
    allowed: Option<HeaderValue>,
    /// Headers that a preflight asks for; `Some` for a preflight.
    preflight: Option<Option<HeaderValue>>,
    varies: bool,
}

impl Cors {
    /// Looks at a request. With no `origins` there is nothing to say.
    pub(super) fn of(origins: &[HeaderValue], method: &Method, headers: &HeaderMap) -> Option<Self> {
        let first = origins.first()?;
        let any = origins.iter().any(|origin| origin == "*");
        let allowed = match headers.get(ORIGIN) {
            _ if any => Some(HeaderValue::from_static("*")),
            Some(origin) => origins.iter().find(|known| *known == origin).cloned(),
            // Nobody asked; caches see what they would see.
            None => Some(first.clone()),
        };
        let asks = *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = asks.then(|| headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned());
        Some(Self { allowed, preflight, varies: !any })
    }

    /// Says so in the answer.
    pub(super) fn write(self, headers: &mut HeaderMap) {
        if self.varies {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(allowed) = self.allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if let Some(asked) = self.preflight {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
            if let Some(asked) = asked {
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
        let two = ["http://a.example", "http://b.example"];
        let table: [(&[&str], Option<&'static str>, Option<&str>); 6] = [
            (&[], Some("http://a.example"), None),
            (&two, Some("http://b.example"), Some("http://b.example")),
            (&two, None, Some("http://a.example")),
            (&two, Some("http://c.example"), None),
            (&two, Some("null"), None),
            (&["*"], Some("http://c.example"), Some("*")),
        ];
        for (origins, sent, expected) in table {
            let origins: Vec<&'static str> = origins
                .iter()
                .map(|origin| two.iter().find(|known| *known == origin).copied().unwrap_or("*"))
                .collect();
            let request: Vec<_> = sent.map(|origin| ("origin", origin)).into_iter().collect();
            let headers = answer(&origins, Method::POST, &request);
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
        let stranger = answer(&["http://b.example"], Method::OPTIONS, &request);
        assert!(!stranger.contains_key(ACCESS_CONTROL_ALLOW_METHODS));
    }
}
