//! What a key looks like.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::Secret;

/// The fewest characters of a key: 22 drawn at random from 64 symbols have 132 bits, 128 and more.
pub const MIN_KEY_CHARS: usize = 22;

/// The most characters of a key.
pub const MAX_KEY_CHARS: usize = 512;

/// Why a text is no key. The text itself is never part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// Fewer than [`MIN_KEY_CHARS`].
    #[error("it has {actual} characters, and {MIN_KEY_CHARS} are the fewest")]
    TooShort {
        /// How many it has.
        actual: usize,
    },
    /// More than [`MAX_KEY_CHARS`].
    #[error("it has {actual} characters, and {MAX_KEY_CHARS} are the most")]
    TooLong {
        /// How many it has.
        actual: usize,
    },
    /// A space, a line break, or something outside ASCII.
    #[error("its character {position} is not a visible ASCII character")]
    NotVisible {
        /// Which one, the first being 1.
        position: usize,
    },
}

/// Checks a key that an operator has chosen.
///
/// # Errors
/// [`KeyFault`] if it is too short, too long, or cannot be sent in a header as it is.
pub fn check_key(key: &Secret) -> Result<(), KeyFault> {
    let text = key.expose();
    if let Some(position) = text.chars().position(|character| !character.is_ascii_graphic()) {
        return Err(KeyFault::NotVisible { position: position + 1 });
    }
    match text.len() {
        actual @ ..MIN_KEY_CHARS => Err(KeyFault::TooShort { actual }),
        actual if actual > MAX_KEY_CHARS => Err(KeyFault::TooLong { actual }),
        _ => Ok(()),
    }
}

/// Makes a key: `or_`, an identifier of 8 hexadecimal digits that may be shown, a point, and 256 random bits
/// in base64url.
///
/// # Errors
/// If the operating system has no random numbers.
pub fn generate_key() -> Result<Secret, getrandom::Error> {
    let id = getrandom::u32()?;
    let mut bits = [0u8; 32];
    getrandom::fill(&mut bits)?;
    // Reserved in one piece, so that growing leaves no copy behind.
    let mut key = String::with_capacity(64);
    key.push_str(&format!("or_{id:08x}."));
    URL_SAFE_NO_PAD.encode_string(bits, &mut key);
    bits.fill(0);
    std::hint::black_box(&bits);
    Ok(Secret::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_have_their_form() {
        let (first, second) = (generate_key().unwrap(), generate_key().unwrap());
        assert_ne!(first.expose(), second.expose());
        for key in [first, second] {
            check_key(&key).unwrap();
            let (id, secret) = key.expose().strip_prefix("or_").unwrap().split_once('.').unwrap();
            assert_eq!(id.len(), 8);
            assert!(id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)), "{id}");
            assert_eq!(secret.len(), 43);
            assert_eq!(URL_SAFE_NO_PAD.decode(secret).unwrap().len(), 32);
        }
    }

    #[test]
    fn chosen_keys_are_long_and_visible() {
        let check = |text: &str| check_key(&Secret::new(text));
        assert_eq!(check(""), Err(KeyFault::TooShort { actual: 0 }));
        assert_eq!(check(&"k".repeat(21)), Err(KeyFault::TooShort { actual: 21 }));
        assert_eq!(check(&"k".repeat(22)), Ok(()));
        assert_eq!(check(&"~".repeat(512)), Ok(()));
        assert_eq!(check(&"k".repeat(513)), Err(KeyFault::TooLong { actual: 513 }));
        for wrong in [" ", "\n", "\t", "é", "\u{7f}", "\0"] {
            let text = format!("{}{wrong}", "k".repeat(30));
            assert_eq!(check(&text), Err(KeyFault::NotVisible { position: 31 }));
        }
    }
}
