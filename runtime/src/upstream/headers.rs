//! The headers of calls that are passed on, both ways: without those of one connection, without the caller's credential, and with what the
//! other end is to know.
//!
//! Source: RFC 9110, section 7.6.1, for what is of one connection alone.

use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_protocol::headers::{CALLER, REQUEST_DEADLINE_MS};
use outrigger_protocol::ids::RequestIds;

/// What servers that turn headers into variables take for [`CALLER`].
const CALLER_TOO: HeaderName = HeaderName::from_static("outrigger_caller");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What is of one connection alone, whether `Connection` names it or not.
const OF_ONE_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];

/// Removes what is of one connection alone. A length beside another framing is none.
pub(super) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    for name in named.iter().chain(&OF_ONE_CONNECTION) {
        headers.remove(name);
    }
}

/// Whether a request asks for another protocol on its connection, one that whoever ignores the wish does not speak.
pub(crate) fn asks_for_an_upgrade(headers: &HeaderMap) -> bool {
    let wishes = headers.get_all(UPGRADE).iter();
    // HTTP/2 is only an offer: the same request is answered in HTTP/1.1.
    wishes.filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|protocol| {
            let protocol = protocol.trim();
            !protocol.is_empty() && !protocol.eq_ignore_ascii_case("h2c")
        })
    })
}

/// The headers of a request as the upstream gets them, but for the deadline: that is known when it is sent.
pub(crate) fn for_the_upstream(
    parts: &mut Parts,
    host: &HeaderValue,
    ids: &RequestIds,
    caller: &str,
    peer: Option<IpAddr>,
) -> HeaderMap {
    let asked = parts.headers.get(HOST).cloned();
    let authority =
        parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let asked = asked.or(authority);
    let mut headers = std::mem::take(&mut parts.headers);
    strip(&mut headers);
    // The length is that of the body as it is sent, and whether it is wanted has been said.
    for name in
        [AUTHORIZATION, PROXY_AUTHORIZATION, CONTENT_LENGTH, EXPECT, CALLER, CALLER_TOO, REQUEST_DEADLINE_MS]
    {
        headers.remove(name);
    }
    headers.insert(HOST, host.clone());
    ids.write(&mut headers);
    if let Ok(caller) = HeaderValue::from_str(caller) {
        headers.insert(CALLER, caller);
    }
    if let Some(peer) = peer {
        let before = headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<String> = before.map(str::to_owned).chain([peer.to_string()]).collect();
        if let Ok(value) = HeaderValue::from_str(&all.join(", ")) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
    if let Some(asked) = asked.filter(|_| !headers.contains_key(&FORWARDED_HOST)) {
        headers.insert(FORWARDED_HOST, asked);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    headers
}

/// How many bytes a head takes, as HTTP/1.1 writes it.
pub(super) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::post("/score");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn sent(fields: &[(&str, &str)]) -> HeaderMap {
        let mut parts = parts(fields);
        let ids = RequestIds::from_headers(&parts.headers).unwrap();
        let (host, peer) = (HeaderValue::from_static("127.0.0.1:9000"), "10.0.0.7".parse().ok());
        for_the_upstream(&mut parts, &host, &ids, "bob", peer)
    }

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn what_is_of_one_connection_or_secret_is_not_passed_on() {
        let headers = sent(&[
            ("host", "models.example"),
            ("authorization", "Bearer key"),
            ("authorization", "Bearer other"),
            ("proxy-authorization", "Basic x"),
            ("connection", "keep-alive, X-Hop ,, not a name"),
            ("connection", "X-Other"),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-connection", "x"),
            ("expect", "100-continue"),
            ("content-length", "3"),
            ("outrigger-caller", "root"),
            ("outrigger_caller", "root"),
            ("x-request-deadline-ms", "100"),
            ("content-type", "text/csv"),
            ("cookie", "a=b"),
            ("x-own", "1"),
            ("x-own", "2"),
        ]);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "content-type",
            "cookie",
            "host",
            "outrigger-caller",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-ms-request-id",
            "x-own",
            "x-request-id",
        ];
        assert_eq!(names, expected);
        assert_eq!(text(&headers, "x-own"), ["1", "2"]);
        assert_eq!(text(&headers, "host"), ["127.0.0.1:9000"]);
        assert_eq!(text(&headers, "outrigger-caller"), ["bob"]);
        assert_eq!(text(&headers, "x-forwarded-host"), ["models.example"]);
    }

    #[test]
    fn who_came_before_is_kept() {
        let headers = sent(&[
            ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
            ("x-forwarded-for", "192.0.2.3"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "front.example"),
            ("host", "models.example"),
            ("x-request-id", "id-1"),
        ]);
        assert_eq!(text(&headers, "x-forwarded-for"), ["192.0.2.1, 192.0.2.2, 192.0.2.3, 10.0.0.7"]);
        assert_eq!(text(&headers, "x-forwarded-proto"), ["https"]);
        assert_eq!(text(&headers, "x-forwarded-host"), ["front.example"]);
        assert_eq!(
            (text(&headers, "x-request-id"), text(&headers, "x-ms-request-id")),
            (vec!["id-1"], vec!["id-1"])
        );
    }

    #[test]
    fn upgrades() {
        let asks = |fields: &[(&str, &str)]| asks_for_an_upgrade(&parts(fields).headers);
        assert!(asks(&[("connection", "upgrade"), ("upgrade", "websocket")]));
        assert!(asks(&[("upgrade", "h2c, WebSocket")]));
        assert!(!asks(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]));
        assert!(!asks(&[("upgrade", "")]) && !asks(&[]));
    }
}
