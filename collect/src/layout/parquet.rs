//! Events as columns. An object is made of the lines that the log has, so it is the same each time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Type;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::FileReader as _;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::record::Field;
use parquet::schema::parser::parse_message_type;
use serde_json::value::RawValue;

/// Columns of text; each may be empty but the first.
const TEXTS: [&str; 15] = [
    "id",
    "source",
    "type",
    "datacontenttype",
    "data",
    "path",
    "method",
    "contentrange",
    "correlationid",
    "xrequestid",
    "modelname",
    "modelversion",
    "collectdatatype",
    "agent",
    "attributes",
];
/// Where `data` stands in them.
const DATA: usize = 4;
/// Where `correlationid` stands in them.
const CORRELATION: usize = 8;
/// Where `attributes` stands in them: what has no column, as JSON.
const ATTRIBUTES: usize = 14;

/// One event.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    texts: [Option<String>; TEXTS.len()],
    /// Microseconds since 1970.
    time: i64,
    aside: bool,
    status: Option<i32>,
    latency: Option<f64>,
}

impl Row {
    /// Of a line and its time.
    pub(crate) fn of_line(line: &[u8], time: u64) -> Option<Self> {
        let mut fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(line).ok()?;
        let mut row = Self { time: i64::try_from(time).ok()?, ..Self::default() };
        let is_json = |kind: Option<&str>| kind.is_none_or(|kind| kind.contains("json"));
        for (text, name) in row.texts.iter_mut().zip(TEXTS) {
            if name != "data" && name != "attributes" {
                *text = fields.remove(name).and_then(|value| serde_json::from_str(value.get()).ok());
            }
        }
        row.aside = fields.remove("datainblob").is_some_and(|value| value.get() == "true");
        row.status = fields.remove("status").and_then(|value| value.get().parse().ok());
        row.latency = fields.remove("latencyms").and_then(|value| value.get().parse().ok());
        let raw = fields.remove("data").map(RawValue::get).filter(|raw| *raw != "null");
        let kind = row.texts.get(3).and_then(Option::as_deref);
        let data = match raw {
            Some(raw) if !row.aside && is_json(kind) => Some(raw.to_owned()),
            Some(raw) => Some(serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned())),
            None => None,
        };
        row.set(DATA, data);
        fields.retain(|name, _| !matches!(&**name, "specversion" | "time"));
        if !fields.is_empty() {
            row.set(ATTRIBUTES, serde_json::to_string(&fields).ok());
        }
        Some(row)
    }

    fn set(&mut self, column: usize, text: Option<String>) {
        if let Some(place) = self.texts.get_mut(column) {
            *place = text;
        }
    }

    fn text(&self, column: usize) -> Option<&str> {
        self.texts.get(column)?.as_deref()
    }

    pub(crate) fn correlation(&self) -> &str {
        self.text(CORRELATION).unwrap_or_default()
    }

    /// The URL of its data, if that is an object of its own.
    pub(crate) fn side(&self) -> Option<&str> {
        self.text(DATA).filter(|_| self.aside)
    }
}

fn schema() -> String {
    let texts = TEXTS.iter().map(|name| format!("OPTIONAL BYTE_ARRAY {name} (UTF8);"));
    format!(
        "message event {{ {} REQUIRED INT64 time (TIMESTAMP(MICROS,true)); REQUIRED BOOLEAN datainblob; OPTIONAL INT32 status; OPTIONAL \
         DOUBLE latencyms; }}",
        texts.collect::<Vec<_>>().join(" ")
    )
}

/// A whole file: one group of rows.
///
/// # Errors
/// Never in practice: memory takes what is written to it.
pub(crate) fn write(rows: &[Row]) -> Result<Vec<u8>> {
    let schema = Arc::new(parse_message_type(&schema())?);
    let properties = WriterProperties::builder().set_created_by("outrigger".to_owned()).build();
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let mut number = 0;
    while let Some(mut column) = group.next_column()? {
        match column.untyped() {
            ColumnWriter::ByteArrayColumnWriter(writer) => {
                let texts = || rows.iter().map(|row| row.text(number));
                let values: Vec<_> = texts().flatten().map(ByteArray::from).collect();
                let present: Vec<_> = texts().map(|text| i16::from(text.is_some())).collect();
                writer.write_batch(&values, Some(&present), None)?;
            }
            ColumnWriter::Int64ColumnWriter(writer) => {
                let values: Vec<_> = rows.iter().map(|row| row.time).collect();
                writer.write_batch(&values, None, None)?;
            }
            ColumnWriter::BoolColumnWriter(writer) => {
                let values: Vec<_> = rows.iter().map(|row| row.aside).collect();
                writer.write_batch(&values, None, None)?;
            }
            ColumnWriter::Int32ColumnWriter(writer) => {
                let values: Vec<_> = rows.iter().filter_map(|row| row.status).collect();
                let present: Vec<_> = rows.iter().map(|row| i16::from(row.status.is_some())).collect();
                writer.write_batch(&values, Some(&present), None)?;
            }
            ColumnWriter::DoubleColumnWriter(writer) => {
                let values: Vec<_> = rows.iter().filter_map(|row| row.latency).collect();
                let present: Vec<_> = rows.iter().map(|row| i16::from(row.latency.is_some())).collect();
                writer.write_batch(&values, Some(&present), None)?;
            }
            _ => {
                return Err(ParquetError::General(format!(
                    "no column is of another kind than {}",
                    Type::DOUBLE
                )));
            }
        }
        column.close()?;
        number += 1;
    }
    group.close()?;
    writer.close()?;
    Ok(file)
}

/// The rows of a file that [`write`] has made.
///
/// # Errors
/// If it is none.
pub(crate) fn read(file: Bytes) -> Result<Vec<Row>> {
    let reader = SerializedFileReader::new(file)?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None)? {
        let mut read = Row::default();
        for (name, field) in row?.into_columns() {
            let column = TEXTS.iter().position(|known| *known == name);
            match (field, column) {
                (Field::Str(text), Some(column)) => read.set(column, Some(text)),
                (Field::TimestampMicros(time), None) => read.time = time,
                (Field::Bool(aside), None) => read.aside = aside,
                (Field::Int(status), None) => read.status = Some(status),
                (Field::Double(latency), None) => read.latency = Some(latency),
                (Field::Null, _) => {}
                _ => {
                    return Err(ParquetError::General(format!(
                        "the column `{name}` is not one that is written here"
                    )));
                }
            }
        }
        rows.push(read);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let lines = [
            r#"{"specversion":"1.0","id":"1","datacontenttype":"application/json","time":"2026-11-30T08:00:00Z","data":{"a":[1.50,"x"]},"status":500,"latencyms":1.5,"correlationid":"c","xrequestid":"r","ours":"x"}"#,
            r#"{"specversion":"1.0","id":"2","datacontenttype":"text/plain","data":"a \"text\"","correlationid":"d"}"#,
            r#"{"id":"3","data":"az://c/x.bin","datainblob":true,"datacontenttype":"application/json"}"#,
            r#"{"id":"4","data":null}"#,
        ];
        let rows: Vec<_> = lines
            .iter()
            .zip(1..)
            .map(|(line, time)| Row::of_line(line.as_bytes(), time).expect("a line"))
            .collect();
        assert_eq!(rows[0].text(DATA), Some(r#"{"a":[1.50,"x"]}"#));
        assert_eq!(rows[0].text(ATTRIBUTES), Some(r#"{"ours":"x"}"#));
        assert_eq!((rows[0].correlation(), rows[0].status, rows[0].latency), ("c", Some(500), Some(1.5)));
        assert_eq!(rows[1].text(DATA), Some("a \"text\""));
        assert_eq!((rows[2].side(), rows[1].side()), (Some("az://c/x.bin"), None));
        assert_eq!(rows[3].text(DATA), None);
        let file = write(&rows).expect("memory");
        assert_eq!(file, write(&rows).expect("memory"));
        assert_eq!(read(file.into()).expect("it is ours"), rows);
    }
}
