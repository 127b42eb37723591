//! What is a caller's credential by its name: such headers are not kept, and such values of a query are left out.

use std::borrow::Cow;

/// What stands in the place of a value.
const MASK: &str = "***";
/// Words that are in the names of credentials.
const WORDS: [&str; 12] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "passwd",
    "apikey",
    "accesskey",
    "subscriptionkey",
    "functionskey",
    "credential",
    "signature",
];
/// Whole names of them.
const NAMES: [&str; 10] = ["key", "sig", "code", "auth", "pass", "pwd", "sid", "jwt", "session", "sessionid"];

/// Whether what has this name is a credential: `x-api-key`, `access_token`, `sig`. How many tokens there are is none.
pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name: String =
        name.trim_start_matches("x-").chars().filter(|character| character.is_ascii_alphanumeric()).collect();
    let counted = name.replace("tokens", "");
    NAMES.contains(&name.as_str()) || WORDS.iter().any(|word| counted.contains(word))
}

/// Path and query without the values of credentials.
pub(super) fn without(path: &str) -> Cow<'_, str> {
    let Some((before, query)) = path.split_once('?') else { return Cow::Borrowed(path) };
    let is_one = |pair: &str| is_secret(&decoded(pair.split('=').next().unwrap_or_default()));
    if !query.split(['&', ';']).any(is_one) {
        return Cow::Borrowed(path);
    }
    let mut kept = format!("{before}?");
    for pair in query.split_inclusive(['&', ';']) {
        let (bare, end) = match pair.strip_suffix(['&', ';']) {
            Some(bare) => (bare, pair.get(bare.len()..).unwrap_or_default()),
            None => (pair, ""),
        };
        match bare.split_once('=') {
            Some((name, _)) if is_one(bare) => kept.extend([name, "=", MASK, end]),
            _ => kept.push_str(pair),
        }
    }
    Cow::Owned(kept)
}

/// A name, of which `%61` is an `a`.
fn decoded(name: &str) -> String {
    let mut parts = name.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(part.get(2..).unwrap_or_default());
            }
            None => text.push_str(part),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_known_by_their_names() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "Set-Cookie",
            "X-Api-Key",
            "api_key",
            "Ocp-Apim-Subscription-Key",
            "x-functions-key",
            "X-Amz-Security-Token",
            "X-Amz-Signature",
            "access_token",
            "client_secret",
            "sig",
            "code",
            "key",
            "x-auth",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["x-tenant", "max_tokens", "keyword", "user-agent", "x-request-id", "accept", "signal"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_query_has_no_values_of_credentials() {
        for (path, expected) in [
            ("/score", "/score"),
            ("/score?a=1&b", "/score?a=1&b"),
            ("/score?key", "/score?key"),
            ("/score?a=1&api_key=x%20y&b=2", "/score?a=1&api_key=***&b=2"),
            ("/score?sig=a=b;token=c;d=e", "/score?sig=***;token=***;d=e"),
            ("/score?%6Bey=x&max_tokens=5", "/score?%6Bey=***&max_tokens=5"),
        ] {
            assert_eq!(without(path), expected, "{path}");
        }
    }
}
