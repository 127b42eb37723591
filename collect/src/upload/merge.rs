//! An object of which the log has lost something: what blob has of it stays, and what blob does not have is appended.

use bytes::Bytes;

use super::job::{Content, Whole};
use crate::layout::parquet;
use crate::settings::Format;

/// Joins what is there with what the log has. Both are in the order in which they were written.
pub(super) fn merged(there: &Bytes, ours: &Content, format: Format) -> Whole {
    match format {
        Format::Events | Format::Csv => {
            let begins = std::iter::once(&ours.header).chain(&ours.ends);
            let records = begins.zip(&ours.ends).filter_map(|(begin, end)| ours.bytes.get(*begin..*end));
            let more = missing(&pieces(there), records.map(pieces)).concat().concat();
            match more.is_empty() {
                true => Whole::There,
                false => Whole::Joined([there, &more[..]].concat()),
            }
        }
        Format::Parquet => {
            let Ok(mut rows) = parquet::read(there.clone()) else { return Whole::Unreadable };
            let more = missing(&rows, ours.rows.iter().map(|row| vec![row.clone()]));
            if more.is_empty() {
                return Whole::There;
            }
            rows.extend(more.into_iter().flatten());
            parquet::write(&rows).map_or(Whole::Unreadable, Whole::Joined)
        }
    }
}

/// Lines, or parts of rows that have a line's end in a cell.
fn pieces(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').collect()
}

/// The records that are not there. Each is looked for behind the one before it.
fn missing<T: PartialEq>(there: &[T], ours: impl Iterator<Item = Vec<T>>) -> Vec<Vec<T>> {
    let (mut from, mut more) = (0, Vec::new());
    for record in ours {
        let rest = there.get(from..).unwrap_or_default();
        match rest.windows(record.len().max(1)).position(|window| window == record) {
            Some(at) => from += at + record.len(),
            None => more.push(record),
        }
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(header: &str, records: &[&str]) -> Content {
        let mut content = Content { bytes: header.into(), header: header.len(), ..Content::default() };
        for record in records {
            content.bytes.extend_from_slice(record.as_bytes());
            content.ends.push(content.bytes.len());
        }
        content
    }

    fn check(there: &str, ours: &[&str], expected: Option<&str>) {
        let merged = merged(&Bytes::copy_from_slice(there.as_bytes()), &content("h\r\n", ours), Format::Csv);
        match (merged, expected) {
            (Whole::There, None) => {}
            (Whole::Joined(bytes), Some(expected)) => {
                assert_eq!(String::from_utf8(bytes).as_deref(), Ok(expected))
            }
            _ => panic!("{there:?} and {ours:?}"),
        }
    }

    #[test]
    fn what_blob_has_stays_and_what_it_has_not_is_appended_once() {
        check("h\r\na\nb\nc\n", &["a\n", "c\n"], None);
        check("h\r\na\nb\nc\n", &["b\n", "d\n", "e\n"], Some("h\r\na\nb\nc\nd\ne\n"));
        check("h\r\na\n", &["b\n", "b\n"], Some("h\r\na\nb\nb\n"));
        check("h\r\na\na\n", &["a\n", "a\n", "a\n"], Some("h\r\na\na\na\n"));
        check(
            "h\r\n\"x\n1\"\r\ny\r\n",
            &["\"x\n1\"\r\n", "y\r\n", "\"y\n2\"\r\n"],
            Some("h\r\n\"x\n1\"\r\ny\r\n\"y\n2\"\r\n"),
        );
    }
}
