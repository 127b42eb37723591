//! Texts that may be percent-encoded: paths, forms, and values of headers. What a pattern looks for is looked for in what they say.

use std::borrow::Cow;

use super::Redactor;

/// How often a text may be encoded.
const ROUNDS: usize = 4;
/// What stands for a text that is encoded more often.
const MASK: &str = "***";

impl Redactor {
    /// A text without what the patterns match, in it or in what it stands for; what had to be decoded for that stays so.
    pub(super) fn encoded<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut kept = self.text(text);
        let mut decoded = kept.to_string();
        for _ in 0..ROUNDS {
            // In forms `+` is a blank, elsewhere it is not.
            if decoded.contains('+') {
                self.look_at(decoded.replace('+', " "), &mut decoded, &mut kept);
            }
            let next = decode(&decoded);
            if next == decoded {
                return kept;
            }
            decoded.clone_from(&next);
            self.look_at(next, &mut decoded, &mut kept);
        }
        Cow::Owned(MASK.to_owned())
    }

    /// Where the patterns match, what is left is what is kept, and goes on being looked at.
    fn look_at(&self, read: String, decoded: &mut String, kept: &mut Cow<'_, str>) {
        let redacted = self.text(&read).into_owned();
        if redacted != read {
            decoded.clone_from(&redacted);
            *kept = Cow::Owned(redacted);
        }
    }
}

/// Once; what is no UTF-8 then is a mark in its place.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .split_first_chunk::<2>()
            .filter(|(digits, _)| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|(digits, _)| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        match (byte, digits) {
            (Some(byte), Some((_, after))) => {
                bytes.push(byte);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_digits_behind_a_percent_sign_are_a_byte() {
        for (text, expected) in [
            ("a%40b", "a@b"),
            ("%c3%BC", "\u{fc}"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz%2540", "%zz%40"),
            ("%ff", "\u{fffd}"),
            ("%+1", "%+1"),
        ] {
            assert_eq!(decode(text), expected, "{text}");
        }
    }
}
