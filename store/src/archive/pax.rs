//! PAX records: `length key=value` and a new line each, as POSIX has them (pax, "pax Extended Header").
//!
//! They are cut by their lengths, for a value may hold new lines (attributes of files do), and a reader that splits at those sees other
//! records than one that doesn't.

use super::error::Damage;

/// What records say that matters here. Times, owners and attributes don't.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    /// The member's name, in place of the header's.
    pub(super) path: Option<Vec<u8>>,
    /// The member's size, in place of the header's.
    pub(super) size: Option<u64>,
    /// The member is a sparse file, whose contents aren't what stands in the archive.
    pub(super) sparse: bool,
}

impl Pax {
    /// Reads all records of one extended header. A path or a size twice is a contradiction, for programs differ in which they take.
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, Damage> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let (key, value);
            (key, value, records) = record(records).ok_or(Damage::Pax)?;
            match key {
                b"path" => once(&mut pax.path, value.to_vec())?,
                b"size" => once(&mut pax.size, number(value).ok_or(Damage::SizeField)?)?,
                _ if key.starts_with(b"GNU.sparse.") => pax.sparse = true,
                _ => {}
            }
        }
        Ok(pax)
    }

    /// Whether nothing of a member depends on them.
    pub(super) fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// The first record's key and value, and what follows it.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = records.iter().take(10).position(|&byte| byte == b' ')?;
    let length = usize::try_from(number(&records[..digits])?).ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let pair = record.get(digits + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], rest))
}

/// Decimal digits and nothing else: no sign, as Rust's own parser takes one.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), Damage> {
    match field.replace(value) {
        Some(_) => Err(Damage::Contradiction),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(records: &[u8], expected: Result<(Option<&str>, Option<u64>, bool), Damage>) {
        let expected = expected.map(|(path, size, sparse)| Pax { path: path.map(Into::into), size, sparse });
        assert_eq!(Pax::parse(records), expected, "{}", records.escape_ascii());
    }

    #[test]
    fn records_are_cut_by_their_lengths() {
        check(b"", Ok((None, None, false)));
        check(b"9 path=a\n", Ok((Some("a"), None, false)));
        check(b"9 path=a\n10 size=9\n", Ok((Some("a"), Some(9), false)));
        check(b"20 SCHILY.xattr=\n\n\n\n9 path=b\n", Ok((Some("b"), None, false)));
        check(b"22 GNU.sparse.major=1\n", Ok((None, None, true)));
        check(b"11 path=a=b\n", Err(Damage::Pax));
        check(b"12 path=a=b\n", Ok((Some("a=b"), None, false)));
    }

    #[test]
    fn others_are_refused() {
        for records in [
            &b"\n9 path=a\n"[..],
            b"0 path=a\n",
            b"1 \n",
            b"+9 path=a\n",
            b"8 path=a\n",
            b"11 path=a\n",
            b"99999999999 path=a\n",
            b"999999999 path=a\n",
            b"7 path\n",
            b"9 path=a\n\0\0",
        ] {
            check(records, Err(Damage::Pax));
        }
        check(b"9 path=a\n9 path=a\n", Err(Damage::Contradiction));
        check(b"11 size=+9\n", Err(Damage::SizeField));
        check(b"8 size=\n", Err(Damage::SizeField));
        check(b"30 size=99999999999999999999\n", Err(Damage::Pax));
        check(b"29 size=99999999999999999999\n", Err(Damage::SizeField));
    }
}
