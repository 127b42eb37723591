//! The page: one document with its style and script in it, which loads the description that lies beside it and nothing else.
//!
//! It is our own because none of the viewers that there are fits. Swagger UI (5.32.6), the only one that a crate ships whole
//! (`utoipa-swagger-ui-vendored` 0.2), is 1.5 MB of script and 0.2 MB of style in several files for what 22 KB do here. The crates with RapiDoc,
//! Redoc and Scalar (`utoipa-rapidoc` 7, `utoipa-redoc` 7, `utoipa-scalar` 0.4) have the reader's browser load them from a network, which it may not have
//! and the policy below forbids.

use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use flate2::Compression;
use http::header;
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::gzip::{gzip, takes_gzip};

const FRAME: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page, as it is sent.
struct Page {
    plain: Bytes,
    /// Nothing if it cannot be compressed, which does not happen.
    gzip: Option<Bytes>,
    policy: HeaderValue,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let plain = FRAME.replacen("{style}", STYLE, 1).replacen("{script}", SCRIPT, 1);
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        source(STYLE),
        source(SCRIPT)
    );
    Page {
        gzip: gzip(plain.as_bytes(), Compression::best()).ok(),
        plain: Bytes::from(plain),
        // It is ASCII; if it were not, nothing would be allowed.
        policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'")),
    }
});

/// What the policy calls a text that stands in the page.
fn source(text: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// The page for a request with these headers.
pub(super) fn page(request: &HeaderMap) -> Response {
    let page = &*PAGE;
    let compressed = page.gzip.clone().filter(|_| takes_gzip(request));
    let encoded = compressed.is_some();
    let mut response = Response::new(Body::from(compressed.unwrap_or_else(|| page.plain.clone())));
    let headers = response.headers_mut();
    let mut set =
        |name: HeaderName, value: &'static str| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(header::CACHE_CONTROL, "no-cache");
    set(header::VARY, "Accept-Encoding");
    if encoded {
        set(header::CONTENT_ENCODING, "gzip");
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, page.policy.clone());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_page_is_from_elsewhere_or_outside_its_hashes() {
        let page = std::str::from_utf8(&PAGE.plain).unwrap();
        for foreign in [
            "http:",
            "https:",
            "//cdn",
            "@import",
            "url(",
            " style=",
            " onclick=",
            "javascript:",
            "innerHTML",
            "eval(",
        ] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<style>").count() + page.matches("<script>").count(), 2);
        assert!(!page.contains("{style}") && !page.contains("{script}"));
        assert!(page.len() < 64 * 1024);
    }
}
