//! Which paths are passed on to an upstream as they are.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A path, or all paths below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// Just this one.
    Exactly(String),
    /// What comes after this, which ends with a slash.
    Below(String),
}

/// As it is configured.
impl std::fmt::Display for PathPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(path) => f.write_str(path),
            Self::Below(path) => write!(f, "{path}*"),
        }
    }
}

/// A path that is decoded so often and still holds escapes hides something.
const ROUNDS: usize = 3;

impl PathPattern {
    /// Reads `/predict` or `/v1/*`; nothing if it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (path, open) = text.strip_suffix('*').map_or((text, false), |path| (path, true));
        let is_path = path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok();
        if !is_path || path.contains(['*', '?', '#']) || (open && !path.ends_with('/')) {
            return None;
        }
        Some(if open { Self::Below(path.to_owned()) } else { Self::Exactly(path.to_owned()) })
    }

    /// Whether it is `/*`.
    pub(crate) fn is_all(&self) -> bool {
        matches!(self, Self::Below(path) if path == "/")
    }

    /// Whether it means this path. What an upstream could take for a path elsewhere, once it has undone escapes and dots, is below
    /// nothing.
    pub(crate) fn means(&self, path: &str) -> bool {
        match self {
            Self::Exactly(known) => known == path,
            Self::Below(known) => path.strip_prefix(known.as_str()).is_some_and(stays_below),
        }
    }
}

/// Whether a path that is resolved against a folder stays in it, however a server reads it.
fn stays_below(path: &str) -> bool {
    let mut path = Cow::Borrowed(path);
    for round in 0..ROUNDS {
        // Slashes that came as escapes are ones for some servers, and part of a name for others.
        let slashes = |path: &str| path.bytes().filter(|byte| *byte == b'/').count();
        let decoded: Cow<'_, [u8]> = percent_decode_str(&path).into();
        let decoded = String::from_utf8_lossy(&decoded).into_owned();
        if slashes(&decoded) != slashes(&path) || decoded.contains('\\') || decoded.contains('\0') {
            return false;
        }
        // Parameters after a `;` are left out by some before dots are undone.
        let name = |segment: &str| segment.split(';').next().unwrap_or_default().trim().to_owned();
        if decoded.split('/').any(|segment| matches!(name(segment).as_str(), "." | "..")) {
            return false;
        }
        if decoded == *path {
            return true;
        }
        if round + 1 < ROUNDS {
            path = Cow::Owned(decoded);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |text: &str, expected: Option<PathPattern>| {
            assert_eq!(PathPattern::parse(text), expected, "{text}");
        };
        check("/predict", Some(PathPattern::Exactly("/predict".into())));
        check("/v1/*", Some(PathPattern::Below("/v1/".into())));
        check("/*", Some(PathPattern::Below("/".into())));
        for wrong in ["", "predict", "/a*", "/*/a", "/a?b=*", "/a?b", "*", "/ü ", "/a#b", "http://x/a"] {
            check(wrong, None);
        }
    }

    #[test]
    fn what_is_meant() {
        let check = |pattern: &str, path: &str, expected: bool| {
            assert_eq!(PathPattern::parse(pattern).unwrap().means(path), expected, "{pattern} {path}");
        };
        check("/predict", "/predict", true);
        check("/predict", "/predict/", false);
        check("/predict", "/predict/x", false);
        check("/v1/*", "/v1/chat/completions", true);
        check("/v1/*", "/v1/models/a%20b", true);
        check("/v1/*", "/v1/100%25", true);
        check("/v1/*", "/v1/m:predict", true);
        check("/v1/*", "/v1/", true);
        check("/v1/*", "/v1", false);
        check("/v1/*", "/v10/x", false);
        check("/v1/*", "/v1/a..b/.hidden/x...", true);
        for elsewhere in [
            "/v1/..",
            "/v1/../admin",
            "/v1/./x",
            "/v1/a/../../admin",
            "/v1/%2e%2e/admin",
            "/v1/%2E./admin",
            "/v1/%252e%252e/admin",
            "/v1/..%2fadmin",
            "/v1/..;/admin",
            "/v1/..;x=y/admin",
            "/v1/a%2fb",
            "/v1/a%5c..%5cadmin",
            "/v1/a\\..\\admin",
            "/v1/a%00",
            "/v1/%25252525252e",
        ] {
            check("/v1/*", elsewhere, false);
        }
    }
}
