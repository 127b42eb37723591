//! Members, as errors name them.

use std::fmt;

use crate::path::FilePath;

/// What a member is, other than a file or a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberKind {
    /// A symbolic link.
    Symlink,
    /// A hard link.
    HardLink,
    /// A device, of characters or blocks.
    Device,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A file with holes, by GNU's or PAX's ways of saying so.
    Sparse,
    /// A folder in the mode and none by the name, or the other way round.
    FolderByHalf,
    /// Another kind, by the byte that tar has for it.
    Other(u8),
}

impl fmt::Display for MemberKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symlink => "a symbolic link",
            Self::HardLink => "a hard link",
            Self::Device => "a device",
            Self::Fifo => "a named pipe",
            Self::Socket => "a socket",
            Self::Sparse => "a sparse file",
            Self::FolderByHalf => "a folder by its mode or by its name alone",
            Self::Other(byte) => return write!(f, "of kind `{}`", byte.escape_ascii()),
        })
    }
}

/// A member's name as it is shown: whatever the archive had there, escaped, and cut after 120 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberName(String);

/// Bytes of a name that are shown.
const SHOWN: usize = 120;

impl MemberName {
    /// Of a name as it is in the archive.
    pub(super) fn new(raw: &[u8]) -> Self {
        let (shown, more) = match raw.len() {
            0..=SHOWN => (raw, ""),
            _ => (&raw[..boundary(raw, SHOWN)], "…"),
        };
        let mut text = String::new();
        for chunk in shown.utf8_chunks() {
            text.extend(chunk.valid().escape_debug());
            text.extend(chunk.invalid().escape_ascii().map(char::from));
        }
        text.push_str(more);
        Self(text)
    }
}

impl From<&FilePath> for MemberName {
    fn from(path: &FilePath) -> Self {
        Self::new(path.as_str().as_bytes())
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where bytes that may be UTF-8 can be cut: before `at`, if a character goes on there.
fn boundary(bytes: &[u8], at: usize) -> usize {
    (at.saturating_sub(3)..=at).rev().find(|&at| bytes[at] & 0xc0 != 0x80).unwrap_or(at)
}

/// A method of zip by its name, where it is one that is met with.
pub(super) fn method_name(number: u16) -> String {
    let name = match number {
        1 => "shrink",
        2..=5 => "reduce",
        6 => "implode",
        9 => "deflate64",
        12 => "bzip2",
        14 => "lzma",
        20 | 93 => "zstd",
        95 => "xz",
        98 => "ppmd",
        _ => return format!("method {number}"),
    };
    format!("{name} (method {number})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_escaped_and_short() {
        for (raw, shown) in [
            (&b"a/b.bin"[..], "a/b.bin"),
            ("é".as_bytes(), "é"),
            (b"a\nb\0", "a\\nb\\0"),
            (b"a\xffb", "a\\xffb"),
            ("\u{202e}gpj".as_bytes(), "\\u{202e}gpj"),
            (b"\x1b[2J", "\\u{1b}[2J"),
        ] {
            assert_eq!(MemberName::new(raw).to_string(), shown);
        }
        assert_eq!(MemberName::new(&[b'x'; 5000]).to_string(), format!("{}…", "x".repeat(SHOWN)));
        let cut_within = format!("{}é{}", "x".repeat(SHOWN - 1), "y".repeat(SHOWN));
        assert_eq!(MemberName::new(cut_within.as_bytes()).to_string(), format!("{}…", "x".repeat(SHOWN - 1)));
    }
}
