//! The headers of calls that are passed on, both ways: without those of one connection, without the caller's credential, and with what the
//! other end is to know.
//!
//! Source: RFC 9110, section 7.6.1, for what is of one connection alone.

use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_protocol::headers::{
    CALLER, MS_CLIENT_REQUEST_ID, MS_REQUEST_ID, REQUEST_DEADLINE_MS, REQUEST_ID,
};
use outrigger_protocol::ids::RequestIds;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

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
    let named =
        headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named: Vec<HeaderName> =
        named.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect();
    // What those before us have said is not the caller's to take away.
    let named = named.iter().filter(|name| !is_forwarding(name));
    for name in named.chain(&OF_ONE_CONNECTION) {
        headers.remove(name);
    }
}

/// Whether a header says where a request has come from, and what it was before.
fn is_forwarding(name: &HeaderName) -> bool {
    *name == FORWARDED || *name == REAL_IP || name.as_str().starts_with("x-forwarded-")
}

/// Removes what the caller has no say in: its credentials, what is said in our own words, and where it came from unless `trusted`. Servers that
/// turn headers into variables take `_` for `-`.
fn strip_claims(headers: &mut HeaderMap, trusted: bool) {
    let is_claim = |name: &HeaderName| {
        // The length is that of the body as it is sent, and whether it is wanted has been said.
        [AUTHORIZATION, PROXY_AUTHORIZATION, CONTENT_LENGTH, EXPECT, CALLER, REQUEST_DEADLINE_MS]
            .contains(name)
    };
    let is_disguised = |name: &HeaderName| {
        let Ok(name) = name.as_str().replace('_', "-").parse::<HeaderName>() else { return true };
        let is_ours = [REQUEST_ID, MS_REQUEST_ID, MS_CLIENT_REQUEST_ID].contains(&name);
        is_ours || is_claim(&name) || is_forwarding(&name) || OF_ONE_CONNECTION.contains(&name)
    };
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| match name.as_str().contains('_') {
            true => is_disguised(name),
            false => is_claim(name) || (!trusted && is_forwarding(name)),
        })
        .cloned()
        .collect();
    for name in &claims {
        headers.remove(name);
    }
}

/// Makes one of several: HTTP/2 may split it, HTTP/1.1 must not. Source: RFC 9113, section 8.2.3.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(b"; ".as_slice()))
    {
        headers.insert(COOKIE, joined);
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

/// What an upstream is told of a call beside the call's own headers.
pub(crate) struct Told<'a> {
    /// What it is called itself.
    pub(crate) host: &'a HeaderValue,
    /// The request's identifiers.
    pub(crate) ids: &'a RequestIds,
    /// The caller's name.
    pub(crate) caller: &'a str,
    /// Who is at the other end of the connection.
    pub(crate) peer: Option<IpAddr>,
    /// Whether that one speaks TLS.
    pub(crate) is_encrypted: bool,
    /// Whether what that one says of those before it is passed on.
    pub(crate) trusts: bool,
}

/// The headers of a request as the upstream gets them, but for what depends on the body, and the deadline: that is known when it is sent.
pub(crate) fn for_the_upstream(parts: &mut Parts, told: &Told<'_>) -> HeaderMap {
    let asked = parts.headers.get(HOST).cloned();
    let authority =
        parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let asked = asked.or(authority);
    let mut headers = std::mem::take(&mut parts.headers);
    strip(&mut headers);
    strip_claims(&mut headers, told.trusts);
    join_cookies(&mut headers);
    headers.insert(HOST, told.host.clone());
    told.ids.write(&mut headers);
    if let Ok(caller) = HeaderValue::from_str(told.caller) {
        headers.insert(CALLER, caller);
    }
    if let Some(peer) = told.peer {
        let before = headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<String> = before.map(str::to_owned).chain([peer.to_string()]).collect();
        if let Ok(value) = HeaderValue::from_str(&all.join(", ")) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
    if let Some(asked) = asked.filter(|_| !headers.contains_key(&FORWARDED_HOST)) {
        headers.insert(FORWARDED_HOST, asked);
    }
    let protocol = if told.is_encrypted { "https" } else { "http" };
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(protocol));
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
        sent_by(parts(fields), false)
    }

    fn sent_by(parts: Parts, trusts: bool) -> HeaderMap {
        sent_over(parts, trusts, false)
    }

    fn sent_over(mut parts: Parts, trusts: bool, is_encrypted: bool) -> HeaderMap {
        let ids = RequestIds::from_headers(&parts.headers).unwrap();
        let (host, peer) = (HeaderValue::from_static("127.0.0.1:9000"), "10.0.0.7".parse().ok());
        let told = Told { host: &host, ids: &ids, caller: "bob", peer, is_encrypted, trusts };
        for_the_upstream(&mut parts, &told)
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
    fn it_is_told_whether_the_client_speaks_tls() {
        for (is_encrypted, expected) in [(true, "https"), (false, "http")] {
            let headers = sent_over(parts(&[]), false, is_encrypted);
            assert_eq!(text(&headers, "x-forwarded-proto"), [expected]);
        }
    }

    #[test]
    fn a_connection_s_names_are_read_one_by_one() {
        let mut parts = parts(&[("x-hop", "1"), ("x-other", "1")]);
        let named = HeaderValue::from_bytes(b"x-hop, \xff, \tx-other ,").unwrap();
        parts.headers.insert(CONNECTION, named);
        let headers = sent_by(parts, false);
        assert!(!headers.contains_key("x-hop") && !headers.contains_key("x-other"), "{headers:?}");
    }

    #[test]
    fn split_cookies_are_joined() {
        let headers = sent(&[("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d=4")]);
        assert_eq!(text(&headers, "cookie"), ["a=1; b=2; c=3; d=4"]);
    }

    const BEFORE: [(&str, &str); 17] = [
        ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
        ("x-forwarded-for", "192.0.2.3"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "front.example"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-prefix", "/v7"),
        ("forwarded", "for=192.0.2.9"),
        ("x-real-ip", "192.0.2.9"),
        ("x_forwarded_for", "192.0.2.9"),
        ("x-forwarded_proto", "https"),
        ("x_real_ip", "192.0.2.9"),
        ("x_request_id", "mine"),
        ("transfer_encoding", "chunked"),
        ("own_name", "1"),
        ("connection", "x-forwarded-for, Forwarded, x-real-ip, x-forwarded-proto, x-forwarded-port"),
        ("host", "models.example"),
        ("x-request-id", "id-1"),
    ];

    #[test]
    fn where_a_call_came_from_is_not_its_caller_s_to_say() {
        let headers = sent(&BEFORE);
        let said: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let mut said: Vec<_> =
            said.into_iter().filter(|(name, _)| name.contains("for") || name.contains('_')).collect();
        said.sort_unstable();
        let expected = [
            ("own_name", "1"),
            ("x-forwarded-for", "10.0.0.7"),
            ("x-forwarded-host", "models.example"),
            ("x-forwarded-proto", "http"),
        ];
        assert_eq!(said, expected);
        assert!(!headers.contains_key("x-real-ip"));
    }

    #[test]
    fn who_came_before_is_kept_where_that_is_trusted() {
        let headers = sent_by(parts(&BEFORE), true);
        assert_eq!(text(&headers, "x-forwarded-port"), ["443"]);
        assert_eq!(text(&headers, "x-forwarded-prefix"), ["/v7"]);
        assert_eq!(
            (text(&headers, "forwarded"), text(&headers, "x-real-ip")),
            (vec!["for=192.0.2.9"], vec!["192.0.2.9"])
        );
        for disguised in
            ["x_forwarded_for", "x-forwarded_proto", "x_real_ip", "x_request_id", "transfer_encoding"]
        {
            assert!(!headers.contains_key(disguised), "{disguised}");
        }
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
