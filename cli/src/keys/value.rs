//! The key itself: made and shown once, or one's own, read from where nobody else sees it.

use std::io::{IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches};
use outrigger_auth::{MAX_KEY_CHARS, Secret, StoredKey, check_key, generate_key};

/// More than any key, with the line end behind it.
const MOST: u64 = MAX_KEY_CHARS as u64 + 2;

/// A key of one's own.
pub(super) fn argument() -> Arg {
    Arg::new("key-file").long("key-file").value_name("FILE").help(
        "Takes the key in this file, or on stdin (`-`), in place of a new one: 22 visible ASCII characters or more, \
         drawn at random with 128 bits or more. On the command line others would see it",
    )
}

/// A key, and whether it is one that nobody knows yet.
pub(super) struct Value {
    pub(super) key: Secret,
    is_new: bool,
}

/// Takes one's own, or makes one, where there is somebody to show it to.
pub(super) fn get(matches: &ArgMatches) -> anyhow::Result<Value> {
    if let Some(file) = matches.get_one::<String>("key-file") {
        return Ok(Value { key: own(file)?, is_new: false });
    }
    if !matches.get_flag("show") && !std::io::stdout().is_terminal() {
        bail!(
            "a key is shown once, and stdout is no terminal: add --show if it is to be written there, or --key-file for one of your own"
        );
    }
    let key = generate_key().context("there are no random numbers to make a key of")?;
    Ok(Value { key, is_new: true })
}

fn own(file: &str) -> anyhow::Result<Secret> {
    let mut text = String::with_capacity(MAX_KEY_CHARS + 2);
    let read = match file {
        "-" => std::io::stdin().lock().take(MOST + 1).read_to_string(&mut text),
        path => std::fs::File::open(path).and_then(|file| file.take(MOST + 1).read_to_string(&mut text)),
    };
    read.with_context(|| format!("the key cannot be read from {file}"))?;
    let text = Secret::new(text);
    let key = text.expose();
    let key = key.strip_suffix('\n').map_or(key, |key| key.strip_suffix('\r').unwrap_or(key));
    let key = Secret::new(key);
    check_key(&key).with_context(|| format!("the key from {file} is not usable"))?;
    if is_plain(key.expose()) {
        bail!(
            "the key from {file} has too few different characters to be drawn at random: `openssl rand -base64 32` makes a good one"
        );
    }
    Ok(key)
}

/// Of 22 characters that are drawn at random hardly ever fewer than 8 differ, even where they are digits.
fn is_plain(key: &str) -> bool {
    let mut characters: Vec<_> = key.bytes().collect();
    characters.sort_unstable();
    characters.dedup();
    characters.len() < 8
}

impl Value {
    /// Shows a key that is new, alone on its line.
    pub(super) fn show(&self, stored: &StoredKey) -> anyhow::Result<()> {
        if !self.is_new {
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", self.key.expose()).and_then(|()| stdout.flush()).with_context(|| {
            format!("the key could not be written to stdout, and nobody knows it: `outrigger keys regen {} {}` makes another", stored.principal, stored.which)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_keys_are_told() {
        assert!(is_plain(&"ab".repeat(20)) && is_plain("1111111111111111111111"));
        assert!(!is_plain("3141592653589793238462") && !is_plain("0123456789abcdef0123456789"));
    }
}
