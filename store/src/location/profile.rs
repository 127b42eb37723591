//! Credentials for S3 from the file that its command line keeps them in, for those who have no variables: `~/.aws/credentials`.

use std::path::PathBuf;

use super::{Environment, LocationError};

/// What may stand in the environment instead; then the file is not looked at.
const INSTEAD: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];
/// Fields of a profile that a client takes.
const FIELDS: &[&str] = &["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
/// Largest file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// What the profile that is asked for (`AWS_PROFILE`, else `default`) has, by the names of the client's settings. Nothing where there is no file,
/// unless the environment names one.
pub(super) fn credentials(environment: &Environment) -> Result<Vec<(String, String)>, LocationError> {
    if INSTEAD.iter().any(|name| environment.has(name)) {
        return Ok(Vec::new());
    }
    let named = environment.get("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let asked = named.is_some() || environment.has("AWS_PROFILE");
    let home = || environment.get("HOME").map(|home| PathBuf::from(home).join(".aws/credentials"));
    let Some(path) = named.or_else(home) else { return Ok(Vec::new()) };
    let text = match read(&path) {
        Ok(text) => text,
        Err(_) if !asked => return Ok(Vec::new()),
        Err(error) => return Err(LocationError::Credentials { path, reason: error.to_string() }),
    };
    let profile = environment.get("AWS_PROFILE").unwrap_or("default");
    let found = section(&text, profile);
    if found.is_empty() && asked {
        let reason = format!("it has no key in a profile `{profile}`");
        return Err(LocationError::Credentials { path, reason });
    }
    Ok(found)
}

fn read(path: &std::path::Path) -> std::io::Result<String> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(std::io::Error::other(format!("it has {size} bytes, and {MAX_FILE} is the limit")));
    }
    std::fs::read_to_string(path)
}

/// The fields of a section.
pub(super) fn section(text: &str, profile: &str) -> Vec<(String, String)> {
    let mut here = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            here = name.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| here) {
            let name = name.trim().to_ascii_lowercase();
            if FIELDS.contains(&name.as_str()) {
                found.push((name, value.trim().to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\n[default]\naws_access_key_id = A\naws_secret_access_key=a=b\nregion = x\n\n[ other ]\nAWS_ACCESS_KEY_ID=B\n";

    fn environment(of: &[(&str, &str)]) -> Environment {
        of.iter().copied().collect()
    }

    #[test]
    fn a_profile_is_found_by_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("credentials");
        std::fs::write(&path, FILE).expect("a file");
        let file = ("AWS_SHARED_CREDENTIALS_FILE", path.to_str().expect("a path"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let default = credentials(&environment(&[file])).expect("credentials");
        assert_eq!(default, [pair("aws_access_key_id", "A"), pair("aws_secret_access_key", "a=b")]);
        let other = credentials(&environment(&[file, ("AWS_PROFILE", "other")])).expect("credentials");
        assert_eq!(other, [pair("aws_access_key_id", "B")]);
        let none = credentials(&environment(&[file, ("AWS_PROFILE", "third")])).expect_err("no profile");
        assert!(none.to_string().ends_with("it has no key in a profile `third`"), "{none}");
        let instead = credentials(&environment(&[file, ("AWS_ACCESS_KEY_ID", "C")])).expect("nothing");
        assert!(instead.is_empty());
    }

    #[test]
    fn without_a_file_there_is_nothing_unless_it_was_asked_for() {
        assert!(credentials(&environment(&[("HOME", "/no/such")])).expect("nothing").is_empty());
        assert!(credentials(&environment(&[])).expect("nothing").is_empty());
        assert!(credentials(&environment(&[("AWS_SHARED_CREDENTIALS_FILE", "/no/such")])).is_err());
    }
}
