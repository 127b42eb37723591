//! What `fuzz/` sees of locations: texts that hold secrets.

use super::{azure, profile as file};

/// A text as it is shown.
pub fn scrubbed(text: &str) -> String {
    super::scrubbed(text)
}

/// The fields of a connection string.
pub fn connection_string(text: &str) -> Vec<(&str, &str)> {
    azure::fields(text).collect()
}

/// What a profile has in a file of credentials.
pub fn profile(text: &str, name: &str) -> Vec<(String, String)> {
    file::section(text, name)
}
