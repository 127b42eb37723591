//! Whether something is a JSON document: each record's data is looked at, before it becomes a part of a line.
//!
//! `serde_json` tells the same, but for depth, a byte at a time, which was a third of what collecting took; tests hold the two against each other.

/// The most containers within each other. Whoever reads lines reads these within one more, and most libraries stop somewhere.
const DEPTH: usize = 128;

/// A JSON document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    /// Whether there is a line end between its parts.
    pub(crate) has_lines: bool,
}

/// Looks whether these bytes are one. Its strings may be of other bytes than UTF-8.
pub(crate) fn document(bytes: &[u8]) -> Option<Document> {
    let mut scan = Scan { bytes, at: 0, has_lines: false };
    scan.document()?;
    Some(Document { has_lines: scan.has_lines })
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    has_lines: bool,
}

/// What a container is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

impl Scan<'_> {
    fn document(&mut self) -> Option<()> {
        let (mut open, mut depth) = ([Container::Array; DEPTH], 0_usize);
        loop {
            // A value, or the beginning of a container.
            match self.next()? {
                b'[' => {
                    if self.peek()? != b']' {
                        *open.get_mut(depth)? = Container::Array;
                        depth += 1;
                        continue;
                    }
                    self.at += 1;
                    (depth < DEPTH).then_some(())?;
                }
                b'{' => {
                    if self.peek()? != b'}' {
                        *open.get_mut(depth)? = Container::Object;
                        depth += 1;
                        self.name()?;
                        continue;
                    }
                    self.at += 1;
                    (depth < DEPTH).then_some(())?;
                }
                b'"' => self.string()?,
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                _ => {
                    self.at -= 1;
                    self.numbers(depth.checked_sub(1).and_then(|last| open.get(last)))?;
                }
            }
            // What is behind a value.
            loop {
                let Some(container) = depth.checked_sub(1).and_then(|last| open.get(last)) else {
                    return self.peek().is_none().then_some(());
                };
                match (self.next()?, container) {
                    (b',', Container::Array) => break,
                    (b',', Container::Object) => {
                        self.name()?;
                        break;
                    }
                    (b']', Container::Array) | (b'}', Container::Object) => depth -= 1,
                    _ => return None,
                }
            }
        }
    }

    /// A member's name, and what is between it and its value.
    fn name(&mut self) -> Option<()> {
        (self.next()? == b'"').then_some(())?;
        self.string()?;
        (self.next()? == b':').then_some(())
    }

    /// The rest of a string.
    fn string(&mut self) -> Option<()> {
        loop {
            match self.byte()? {
                b'"' => return Some(()),
                b'\\' => match self.byte()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = self.bytes.get(self.at..self.at + 4)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                        self.at += 4;
                    }
                    _ => return None,
                },
                0..0x20 => return None,
                _ => {}
            }
        }
    }

    /// A number, and in an array those that follow it: numbers are most of what there is.
    fn numbers(&mut self, container: Option<&Container>) -> Option<()> {
        let in_array = container == Some(&Container::Array);
        loop {
            self.at = behind_number(self.bytes, self.at)?;
            self.at += match self.bytes.get(self.at..) {
                Some([b',', b'-' | b'0'..=b'9', ..]) if in_array => 1,
                Some([b',', b' ', b'-' | b'0'..=b'9', ..]) if in_array => 2,
                _ => return Some(()),
            };
        }
    }

    fn word(&mut self, rest: &[u8]) -> Option<()> {
        let end = self.at + rest.len();
        (self.bytes.get(self.at..end)? == rest).then_some(())?;
        self.at = end;
        Some(())
    }

    /// The next byte that is no white space.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            match byte {
                b' ' | b'\t' => {}
                b'\n' | b'\r' => self.has_lines = true,
                _ => return Some(byte),
            }
            self.at += 1;
        }
    }

    /// The same, gone past.
    #[inline]
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }
}

/// Where the number ends that begins here, if one does.
#[inline]
fn behind_number(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut first = *bytes.get(at)?;
    if first == b'-' {
        at += 1;
        first = *bytes.get(at)?;
    }
    at = match first {
        b'0' => at + 1,
        b'1'..=b'9' => behind_digits(bytes, at + 1),
        _ => return None,
    };
    if bytes.get(at) == Some(&b'.') {
        at = behind_some_digits(bytes, at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        let is_signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
        at = behind_some_digits(bytes, at + 1 + usize::from(is_signed))?;
    }
    Some(at)
}

/// Where digits end, of which there is one at least.
#[inline]
fn behind_some_digits(bytes: &[u8], from: usize) -> Option<usize> {
    let at = behind_digits(bytes, from);
    (at > from).then_some(at)
}

/// Where digits end: eight at a time.
#[inline]
fn behind_digits(bytes: &[u8], from: usize) -> usize {
    const EACH: u64 = u64::MAX / 0xff;
    let mut at = from;
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let eight = u64::from_le_bytes(*eight);
        // Digits are 0x30 to 0x39: so is the upper half, and stays when 6 is added. What is carried comes from what is none.
        let upper = |bytes: u64| (bytes & (EACH * 0xf0)) ^ (EACH * 0x30);
        let others = upper(eight) | upper(eight.wrapping_add(EACH * 6));
        if others != 0 {
            return at + others.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn check(bytes: &[u8]) {
        let expected = serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
        let found = document(bytes);
        assert_eq!(found.is_some(), expected, "{}", bytes.escape_ascii());
    }

    #[test]
    fn it_is_what_the_library_says() {
        for text in [
            "",
            " ",
            "1",
            "-",
            "-0",
            "01",
            "1.",
            "1.5",
            ".5",
            "1e",
            "1e5",
            "1E+05",
            "1e-",
            "-1.25e-7",
            "+1",
            "0x1",
            "1 2",
            "tru",
            "true",
            "false ",
            "null",
            "nul",
            "nan",
            "[]",
            "[ ]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1,2]",
            "[1, 2]",
            "[1,  2]",
            "[-1, -2.5e3,0,01]",
            "[-1, -2.5e3,0]",
            "[1,-]",
            "[1, ]",
            "[1,,2]",
            "[1,2",
            "1,2",
            "{\"a\":1,2}",
            "{\"a\":1, 2}",
            "[[],[[]]]",
            "]",
            "[1",
            "{}",
            "{ }",
            "{\"a\":1}",
            "{\"a\" : [1, {\"b\": null}] , \"c\":\"d\"}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:2}",
            "{\"a\":1]",
            "[1}",
            "\"\"",
            "\"a",
            "\"\\n\\u12aF\"",
            "\"\\u12g4\"",
            "\"\\x\"",
            "\"\t\"",
            "\"\\\"\"",
            "\u{feff}1",
            "\"\u{7f}é\"",
            "\"\\ud800\"",
        ] {
            check(text.as_bytes());
        }
        check("[".repeat(DEPTH).as_bytes());
        for (containers, is_taken) in [(DEPTH, true), (DEPTH + 1, false), (5000, false)] {
            let within = |open: &str, inner: &str, close: &str| {
                let (outside, inside) = (containers - 1, inner);
                document(format!("{}{inside}{}", open.repeat(outside), close.repeat(outside)).as_bytes())
                    .is_some()
            };
            assert_eq!(within("[", "[]", "]"), is_taken);
            assert_eq!(within("[", "{}", "]"), is_taken);
            assert_eq!(within("{\"a\":", "[1]", "}"), is_taken);
            assert_eq!(within("[1,", "{\"a\":1}", "]"), is_taken);
        }
    }

    #[test]
    fn numbers_of_any_length_end_where_they_end() {
        for digits in 1..40 {
            for end in ["", ",", " ", ":", "/", "\u{7f}", "ú", ".", ".5", "e", "E-3"] {
                check(format!("{}{end}", "9".repeat(digits)).as_bytes());
                check(format!("[0.{}{end}0]", "1".repeat(digits)).as_bytes());
            }
        }
    }

    #[test]
    fn line_ends_between_parts_are_seen() {
        let lines = |text: &str| document(text.as_bytes()).map(|document| document.has_lines);
        assert_eq!(lines("{\"a\": [1, \"x\\ny\"]}"), Some(false));
        assert_eq!(lines("[1,\n2]"), Some(true));
        assert_eq!(lines("[]\r"), Some(true));
        assert_eq!(lines("\n[]"), Some(true));
    }

    proptest! {
        #[test]
        fn of_anything_it_says_the_same(text in "[\\[\\]{}\",:0-2.eE+\\-tfn\\\\u \n\ttrue|false|null]{0,24}") {
            check(text.as_bytes());
        }

        #[test]
        fn of_what_is_nearly_json_it_says_the_same(
            text in r#"(\[|\{"a":|"|-|[0-9.]{1,3}|true|null|,|\]|\}| |\\[nu"0]){1,20}"#,
        ) {
            check(text.as_bytes());
        }
    }
}
