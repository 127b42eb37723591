//! What is left of an object when some of its records are gone.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::is_meant;
use crate::layout::{Layout, csv, parquet};
use crate::settings::Format;

/// An object without some records.
#[derive(Default)]
pub(crate) struct Left {
    /// Nothing where there are no others.
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) records: u64,
    /// Objects of the data of those that go.
    pub(super) sides: BTreeSet<String>,
}

impl Layout {
    /// What is left of an object; nothing where no record is meant.
    ///
    /// # Errors
    /// Why it cannot be told, as it is none that is written here.
    pub(crate) fn without(
        &self,
        format: Format,
        object: Bytes,
        wanted: &[u8],
    ) -> Result<Option<Left>, String> {
        let left = match format {
            Format::Events => self.events_without(&object, wanted),
            Format::Csv => rows_without(&object, wanted),
            Format::Parquet => self.columns_without(object, wanted),
        };
        Ok(Some(left?).filter(|left| left.records > 0))
    }

    fn events_without(&self, object: &[u8], wanted: &[u8]) -> Result<Left, String> {
        #[derive(serde::Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            correlationid: Option<Cow<'a, str>>,
            #[serde(default)]
            datainblob: bool,
            #[serde(borrow)]
            data: Option<&'a RawValue>,
        }
        let mut left = Left::default();
        let mut bytes = Vec::with_capacity(object.len());
        for (line, number) in object.split_inclusive(|byte| *byte == b'\n').zip(1..) {
            if line.trim_ascii().is_empty() {
                bytes.extend_from_slice(line);
                continue;
            }
            let read: Line<'_> = serde_json::from_slice(line)
                .map_err(|error| format!("line {number} is no event, from column {} on", error.column()))?;
            if !read.correlationid.is_some_and(|found| is_meant(found.as_bytes(), wanted)) {
                bytes.extend_from_slice(line);
                continue;
            }
            left.records += 1;
            let url =
                read.data.filter(|_| read.datainblob).map(|data| serde_json::from_str::<String>(data.get()));
            left.sides.extend(url.and_then(Result::ok).and_then(|url| self.side_of(&url)));
        }
        left.bytes = (!bytes.is_empty()).then_some(bytes);
        Ok(left)
    }

    fn columns_without(&self, object: Bytes, wanted: &[u8]) -> Result<Left, String> {
        let mut left = Left::default();
        let mut rows = parquet::read(object).map_err(|error| error.to_string())?;
        rows.retain(|row| {
            let meant = is_meant(row.correlation().as_bytes(), wanted);
            if meant {
                left.records += 1;
                left.sides.extend(row.side().and_then(|url| self.side_of(url)));
            }
            !meant
        });
        if left.records > 0 && !rows.is_empty() {
            left.bytes = Some(parquet::write(&rows).map_err(|error| error.to_string())?);
        }
        Ok(left)
    }

    /// The object of a URL that a line has, if it is one of this collection's.
    fn side_of(&self, url: &str) -> Option<String> {
        let path = url.strip_prefix(self.url())?.strip_prefix('/')?;
        path.starts_with(self.prefix()).then(|| path.to_owned())
    }
}

/// Rows that stay are as they were, to the byte.
fn rows_without(object: &[u8], wanted: &[u8]) -> Result<Left, String> {
    let mut reader = ::csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(object);
    let mut row = ::csv::ByteRecord::new();
    let (mut left, mut bytes, mut kept) = (Left::default(), Vec::with_capacity(object.len()), 0_u64);
    let (mut column, mut number, mut from) = (None, 0_u64, 0);
    loop {
        let is_row = reader.read_byte_record(&mut row).map_err(|error| error.to_string())?;
        let to = if is_row {
            usize::try_from(reader.position().byte()).unwrap_or(usize::MAX)
        } else {
            object.len()
        };
        let raw = object.get(from..to).unwrap_or_default();
        from = to;
        if !is_row {
            bytes.extend_from_slice(raw);
            break;
        }
        number += 1;
        let stays = match column {
            None => {
                let Some(found) = row.iter().position(|name| name == csv::CORRELATION.as_bytes()) else {
                    // Rows that are joined with nothing are found by nothing.
                    return Ok(left);
                };
                column = Some(found);
                true
            }
            Some(column) => {
                let found =
                    row.get(column).ok_or_else(|| format!("row {number} is shorter than the header"))?;
                kept += 1;
                !is_meant(found, wanted)
            }
        };
        if stays {
            bytes.extend_from_slice(raw);
        } else {
            kept -= 1;
            left.records += 1;
        }
    }
    left.bytes = (kept > 0).then_some(bytes);
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Redactor;
    use crate::settings::{CollectionSettings, Settings};

    fn left(format: Format, object: &str) -> Result<Option<(u64, Option<String>)>, String> {
        let settings = CollectionSettings { format, ..CollectionSettings::default() };
        let layout = Layout::new("c", &Settings::default(), &settings, Redactor::default(), "mem:");
        let left = layout.without(format, Bytes::copy_from_slice(object.as_bytes()), b"ann")?;
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Ok(left.map(|left| (left.records, left.bytes.map(text))))
    }

    #[test]
    fn rows_that_stay_are_as_they_were() {
        let header = "text,$aml_dc_correlation_id\r\n";
        let of = |rows: &str| left(Format::Csv, &format!("{header}{rows}"));
        let kept = |records, rows: &str| Ok(Some((records, Some(format!("{header}{rows}")))));
        let (ann, bob) = ("\"a\r\n,\"\"b\",ann\r\n", "\"c\nd\",\"bob\"\r\n");
        assert_eq!(of(&[ann, bob, ann].concat()), kept(2, bob));
        assert_eq!(of(&[bob, ann, bob].concat()), kept(1, &[bob, bob].concat()));
        assert_eq!(of(ann), Ok(Some((1, None))));
        assert_eq!((of(bob), of("")), (Ok(None), Ok(None)));
        assert_eq!(left(Format::Csv, "text\r\nann\r\n"), Ok(None));
        assert!(of("\"ann\"\r\n").is_err_and(|why| why.contains("row 2")));
        // What is not UTF-8 is read all the same.
        let object = [header.as_bytes(), b"\xff,ann\r\n\xfe,bob\r\n"].concat();
        let found = rows_without(&object, b"ann").expect("rows");
        assert_eq!(found.bytes, Some([header.as_bytes(), b"\xfe,bob\r\n"].concat()));
    }

    #[test]
    fn what_is_no_event_keeps_a_deletion_from_being_done() {
        let ann = "{\"correlationid\":\"ann\",\"data\":null}\n";
        let other = "{\"correlationid\":\"bob\",\"data\":1}\n{\"data\":2}\n\n";
        assert_eq!(left(Format::Events, &[other, ann].concat()), Ok(Some((1, Some(other.into())))));
        assert!(left(Format::Events, &[ann, "{\"corr"].concat()).is_err_and(|why| why.contains("line 2")));
        assert!(left(Format::Parquet, ann).is_err());
    }
}
