//! What tests can do without: where it is not to be had they are skipped, and where it should be that is an error.

use anyhow::Result;

use crate::say;

/// What was made, or nothing where that could not be, for which it says why.
///
/// # Errors
/// Where it is expected, what it failed at, unless a registry could not be reached, which is nobody's fault: a package that is there no more, or
/// another than it was, is to be noticed.
pub(crate) fn or_without<T>(made: Result<T>, is_expected: bool, what: &str) -> Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) => {
            say::line(&format!("skipped: {}", excused(error, is_expected, what)?));
            Ok(None)
        }
    }
}

/// Why it may be absent.
fn excused(error: anyhow::Error, is_expected: bool, what: &str) -> Result<String> {
    let text = format!("{error:#}");
    if is_expected && !is_unreachable(&text) {
        return Err(error.context(format!("{what} cannot be tested")));
    }
    Ok(format!("{text}; {what} is not tested"))
}

/// Whether this is CI, by the variable that all of them set.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false")
}

/// Words of apt's, pip's and npm's, for they have no code for it, and of `timeout`, which ends with 124.
const WORDS: [&str; 16] = [
    "could not resolve",
    "temporary failure",
    "name or service not known",
    "could not connect",
    "unable to connect",
    "connection refused",
    "connection failed",
    "connection timed out",
    "network is unreachable",
    "newconnectionerror",
    "timed out",
    "exit status: 124",
    "enotfound",
    "eai_again",
    "econnrefused",
    "etimedout",
];

fn is_unreachable(error: &str) -> bool {
    let error = error.to_lowercase();
    WORDS.iter().any(|words| error.contains(words))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn only_what_should_be_there_is_an_error() {
        // Nothing is said here: what begins with `skipped` is taken for a skip of this test.
        let said = |error: &'static str, is_expected: bool| {
            excused(anyhow!(error), is_expected, "it").map_err(|error| format!("{error:#}"))
        };
        assert_eq!(said("404", true), Err("it cannot be tested: 404".into()));
        assert_eq!(said("404", false), Ok("404; it is not tested".into()));
        assert_eq!(said("connection refused", true), Ok("connection refused; it is not tested".into()));
        assert_eq!(or_without(Ok(1), true, "it").unwrap(), Some(1));
    }

    #[test]
    fn what_is_gone_is_told_from_what_cannot_be_reached() {
        for unreachable in [
            "E: Failed to fetch http://x/y.deb  Temporary failure resolving 'x'",
            "Err:1 http://x bookworm InRelease  Could not connect to x:80 (1.2.3.4). - connect (111: Connection refused)",
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'",
            "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool: Read timed out.",
            "`timeout --kill-after=5 120 apt-get update` failed: exit status: 124",
            "npm error network request to http://x/azurite failed, reason: getaddrinfo EAI_AGAIN x",
            "npm error code ECONNREFUSED",
            "timed out after 300s: /run/outrigger-apt.lock is held",
        ] {
            assert!(is_unreachable(unreachable), "{unreachable}");
        }
        for broken in [
            "E: Unable to locate package chromium-common",
            "E: Failed to fetch http://x/y.deb  404  Not Found",
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "npm error code ETARGET: No matching version found for azurite@3.35.0.",
            "npm error code EINTEGRITY",
            "chromium-common has no usr/lib/chromium/libvk_swiftshader.so",
        ] {
            assert!(!is_unreachable(broken), "{broken}");
        }
    }
}
