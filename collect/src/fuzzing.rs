//! What `fuzz/` sees of this crate's own parts.

use std::io::Cursor;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::Value;

use crate::layout::date::Calendar;
use crate::layout::{Layout, events, parquet};
use crate::log::frame::{self, Body, Kind, Reader, SEGMENT_HEAD, Stored};
use crate::log::fuzzing::frames;
use crate::record::{Designation, Record, Table};
use crate::redact::Redactor;
use crate::settings::{CollectionSettings, Format, Pattern, Redaction, Replacement, Rolling, Settings};

const SALT: u64 = 0x0123_4567_89ab_cdef;

/// Segments as they may be found. The first byte says whether what follows is a segment as it is, or bodies, each after its length and its kind, of one that is
/// written here and then damaged where the last three bytes say.
pub fn log(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    if how % 2 == 0 {
        frames(rest);
        return;
    }
    let (rest, [low, high, with]) = rest.split_last_chunk().unwrap_or((rest, &[0; 3]));
    let mut segment = frame::segment_head(7, SALT).to_vec();
    let (mut bodies, mut left) = (Vec::new(), rest);
    while let Some(([length, kind], next)) = left.split_first_chunk() {
        let (body, next) = next.split_at(next.len().min(usize::from(*length)));
        left = next;
        let at = frame::begin_frame(&mut segment);
        segment.extend_from_slice(body);
        let kinds = [Kind::Open, Kind::Record, Kind::Done];
        frame::end_frame(
            &mut segment,
            at,
            SALT,
            kinds[usize::from(*kind) % 3],
            bodies.len() as u64,
            u64::from(kind / 3),
        );
        bodies.push((at, body));
    }
    frames(&segment);
    let at = usize::from(u16::from_le_bytes([*low, *high])) % segment.len();
    segment[at] ^= with;
    frames(&segment);
    let reader = Reader::of_segment(Cursor::new(&segment), 7, segment.len() as u64).expect("memory");
    let Some(mut reader) = reader else {
        assert!(at < SEGMENT_HEAD);
        return;
    };
    let mut expected = bodies.iter();
    while let Some((place, _, body)) = reader.next(|_| true).expect("memory") {
        // One whose head is damaged is passed by.
        let found = expected.find(|(at, _)| *at as u64 == place || *with == 0);
        let (wanted, whole) = found.expect("no others than there are");
        assert_eq!(place, *wanted as u64);
        match body {
            Body::Whole(body) => assert_eq!(body, *whole),
            Body::Erased | Body::Damaged => assert!(*with != 0),
            Body::Passed => unreachable!("each is wanted"),
        }
    }
    assert!(expected.next().is_none() || *with != 0, "all is read that is whole");
    if let Some(stored) = Stored::read(rest) {
        let mut again = Vec::new();
        stored.write(&mut again);
        assert_eq!(Stored::read(&again), Some(stored));
    }
}

fn has_digits(text: &str) -> bool {
    text.as_bytes().windows(4).any(|window| window.iter().all(u8::is_ascii_digit))
}

fn check_digits(value: &Value) {
    match value {
        Value::String(text) => assert!(!has_digits(text)),
        Value::Array(elements) => elements.iter().for_each(check_digits),
        Value::Object(members) => {
            assert!(members.keys().all(|name| !has_digits(name)));
            members.values().for_each(check_digits);
        }
        _ => {}
    }
}

/// Documents, of which nothing is left that must not be.
pub fn redaction(data: &[u8]) {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let salt = Some("0123456789abcdef".to_owned());
    let rewritten = |of: Redaction| {
        let redactor = Redactor::new(&of).expect("rules");
        let mut to = Vec::new();
        redactor.json(data, &mut to).ok()?;
        Some(serde_json::from_slice::<Value>(&to))
    };
    let deny = Redaction { deny: texts(&["/a", "/*/b", "/c/0"]), ..Redaction::default() };
    if let Some(Ok(value)) = rewritten(deny) {
        assert!(value.get("a").is_none() && value.pointer("/c/0").is_none_or(Value::is_null));
        let inner = value
            .as_object()
            .map(|members| members.values().collect())
            .or(value.as_array().map(|all| all.iter().collect()));
        let inner: Vec<&Value> = inner.unwrap_or_default();
        assert!(inner.iter().all(|value| value.get("b").is_none()));
    }
    let allow = Redaction {
        allow: texts(&["/a/b"]),
        hash: texts(&["/a/b"]),
        salt: salt.clone(),
        ..Redaction::default()
    };
    if let Some(value) = rewritten(allow) {
        let value = value.expect("JSON");
        let is_only = |value: &Value, name: &str| {
            value.as_object().is_none_or(|members| members.keys().all(|key| key == name))
        };
        assert!(is_only(&value, "a") && value.get("a").is_none_or(|a| is_only(a, "b")));
        if let Some(hash) = value.pointer("/a/b") {
            assert!(hash.as_str().is_some_and(|hash| hash.starts_with("hash:")));
        }
    }
    let digits = Pattern { regex: "[0-9]{4,}".into(), with: Replacement::Text("#".into()) };
    if let Some(Ok(value)) =
        rewritten(Redaction { patterns: vec![digits], text_chars: Some(8), ..Redaction::default() })
    {
        check_digits(&value);
    }
}

fn record(kind: &str, parts: &[&[u8]], data: &[u8]) -> Record {
    let text = |nth: usize| {
        parts.get(nth).map(|part| String::from_utf8_lossy(part).into_owned()).unwrap_or_default()
    };
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(data.len() as u64 * 86_399_999_999);
    let mut record = Record::new(text(0), time, Bytes::copy_from_slice(data));
    record.content_type = (!kind.is_empty()).then(|| kind.to_owned().into());
    record.path = Some(text(1).into());
    record.version = Some(text(2).into());
    record.attributes = vec![(text(1).into(), text(2).into()), ("id".into(), text(0).into())];
    record.table = Some(Table {
        designation: Designation::General,
        columns: if parts.len() > 3 {
            parts.iter().map(|part| String::from_utf8_lossy(part).into()).collect()
        } else {
            Vec::new()
        },
        correlated: parts.len().is_multiple_of(2),
        workspace: Some(text(1).into()),
        service: Some(text(2).into()),
        name: Some(text(0).into()),
    });
    record
}

/// Records as they are written: each is one line that says what it should, in a folder of its own collection. Texts are up to a zero byte each, four at most, and
/// the data is what follows the last one.
pub fn lines(data: &[u8]) {
    let mut parts: Vec<&[u8]> = data.splitn(6, |byte| *byte == 0).collect();
    let body = parts.pop().unwrap_or_default();
    let most = 64 * data.len() + 16_384;
    let layout = |format| {
        let settings =
            CollectionSettings { format, rolling: Rolling::Minute, ..CollectionSettings::default() };
        Layout::new("c", &Settings::default(), &settings, Redactor::default(), "mem:")
    };
    for kind in ["", "application/json", "text/plain"] {
        let (layout, mut record) = (layout(Format::Events), record(kind, &parts, body));
        let place = layout.prepare(&mut record, &mut Calendar::default()).expect("nothing is redacted");
        assert_eq!(place.aside, str::from_utf8(body).is_err());
        let path = layout.path(&place, "i", 1);
        assert!(path.starts_with(layout.prefix()) && path.ends_with("/i-1.jsonl"));
        let mut line = Vec::new();
        layout
            .write_line(&record, &place, place.aside.then_some("x"), most, &mut line)
            .expect("it is written");
        assert!(line.ends_with(b"}\n") && line.iter().filter(|byte| **byte == b'\n').count() == 1);
        // Numbers that are too large for a reader are left as they are.
        if let Ok(read) = serde_json::from_slice::<Value>(&line) {
            assert_eq!(read["xrequestid"].as_str(), Some(&*record.request_id));
            assert_eq!(read["correlationid"].as_str(), Some(events::correlation(&record)));
            assert!(read["id"].as_str().is_some_and(|id| id.len() == 36));
        }
        if let Some(row) = parquet::Row::of_line(&line, place.time) {
            assert_eq!(row.correlation(), events::correlation(&record));
        }
    }
    let (layout, mut record) = (layout(Format::Csv), record("", &parts, body));
    let Ok(place) = layout.prepare(&mut record, &mut Calendar::default()) else { return };
    let path = layout.path(&place, "i", 1);
    assert!(
        path.starts_with("modeldata/")
            && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    );
    let mut object = layout.header(&place).to_vec();
    if layout.write_line(&record, &place, None, most, &mut object).is_ok() {
        let mut reader = ::csv::ReaderBuilder::new().has_headers(false).from_reader(&object[..]);
        let rows: Vec<_> = reader.byte_records().collect::<Result<_, _>>().expect("rows of one width");
        let data: Vec<Vec<Value>> = serde_json::from_slice(body).unwrap_or_default();
        assert!(data.is_empty() || rows.len() == data.len() + 1);
    }
}

/// Objects out of blob, of which records are to be gone: what is left has none of them, and is what was there but for these.
pub fn erasing(data: &[u8]) {
    const WANTED: &[u8] = b"ann";
    for format in [Format::Events, Format::Csv] {
        let settings = CollectionSettings { format, ..CollectionSettings::default() };
        let layout = Layout::new("c", &Settings::default(), &settings, Redactor::default(), "mem:");
        let without = |bytes: &[u8]| layout.without(format, Bytes::copy_from_slice(bytes), WANTED);
        let Ok(Some(left)) = without(data) else { continue };
        assert!(left.records > 0);
        let Some(bytes) = left.bytes else { continue };
        assert!(bytes.len() < data.len());
        assert!(without(&bytes).is_ok_and(|left| left.is_none()));
        let mut rest = data.iter();
        assert!(bytes.iter().all(|byte| rest.any(|other| other == byte)), "nothing else is in it");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Bytes of which many mean something.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u0061", "\"a\":", "\"b\":", "\"c\":", "[1,2]",
            "null", "true", "12345", "-1.5e3", " ", "\n", "\0", "\u{1}", "\u{2}", "\u{3}", "\u{4}", "ü",
        ];
        let word = prop_oneof![
            9 => prop::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
    }

    fn json() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop::sample::select(vec![
            "1",
            "null",
            "\"x\"",
            "\"12345\"",
            "123456",
            "\"\\u0031234\"",
            "-0.5e2",
            "\"a,\\n\\\"b\"",
        ]);
        let leaf = leaf.prop_map(str::to_owned);
        let json = leaf.prop_recursive(4, 24, 4, |inner| {
            let name = prop::sample::select(vec!["a", "b", "c", "\\u0061", "12345"]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|all| format!("[{}]", all.join(" , "))),
                prop::collection::vec((name, inner), 0..4).prop_map(|all| {
                    let all: Vec<_> =
                        all.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
                    format!("{{{}}}", all.join(","))
                }),
            ]
        });
        json.prop_map(String::into_bytes)
    }

    proptest! {
        #[test]
        fn what_fuzz_targets_say_holds(bytes in bytes(), json in json()) {
            for data in [&bytes, &json] {
                super::log(data);
                super::redaction(data);
                super::lines(data);
                super::erasing(data);
                super::lines(&[&b"a\0b\0c\0\0\0"[..], data].concat());
                super::lines(&[&b"a\0b\0c\0d\0e\0["[..], data, b"]"].concat());
            }
        }

        #[test]
        fn what_is_left_has_nothing_of_what_is_to_be_gone(
            rows in prop::collection::vec(prop::sample::select(vec![
                "x,ann\r\n", "\"a\nb\",ann\r\n", "y,bob\n", "\"\"\"\",\"ann\"\r\n", "z,\"b,\r\nc\"\r\n", "\n", "q",
            ]), 0..12),
            lines in prop::collection::vec(prop::sample::select(vec![
                "{\"correlationid\":\"ann\",\"data\":{\"a\":[1]}}\n", "{\"data\":1}\n", "{\"correlationid\":\"bob\"}\n", "\n", "{",
                "{\"correlationid\":\"\\u0061nn\"}",
            ]), 0..12),
        ) {
            super::erasing(format!("text,$aml_dc_correlation_id\r\n{}", rows.concat()).as_bytes());
            super::erasing(lines.concat().as_bytes());
        }

        #[test]
        fn segments_are_read_whatever_they_are(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            super::log(&[&[1], &bytes[..]].concat());
        }
    }
}
