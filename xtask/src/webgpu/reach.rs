//! Whether a registry could not be reached: by what apt and pip say, for they have no code for it.

/// Words of theirs, and of `timeout`, which ends with 124.
const WORDS: [&str; 12] = [
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
];

pub(super) fn is_unreachable(error: &str) -> bool {
    let error = error.to_lowercase();
    WORDS.iter().any(|words| error.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_told_from_what_cannot_be_reached() {
        for unreachable in [
            "E: Failed to fetch http://x/y.deb  Temporary failure resolving 'x'",
            "Err:1 http://x bookworm InRelease  Could not connect to x:80 (1.2.3.4). - connect (111: Connection refused)",
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'",
            "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool: Read timed out.",
            "`timeout --kill-after=5 120 apt-get update` failed: exit status: 124",
            "timed out after 300s: /run/outrigger-apt.lock is held",
        ] {
            assert!(is_unreachable(unreachable), "{unreachable}");
        }
        for broken in [
            "E: Unable to locate package chromium-common",
            "E: Failed to fetch http://x/y.deb  404  Not Found",
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "chromium-common has no usr/lib/chromium/libvk_swiftshader.so",
        ] {
            assert!(!is_unreachable(broken), "{broken}");
        }
    }
}
