//! Rows of tables as AzureML's v1 SDK writes them: Python's `csv.writer` with its defaults.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::date::Date;
use super::{Layout, events, push_segment};
use crate::counts::Reason;
use crate::record::{Designation, Record, Table};
use crate::redact::Cell;
use crate::settings::Rolling;

/// The folder of all tables.
pub(crate) const ROOT: &str = "modeldata";
/// The column that rows are deleted by.
pub(crate) const CORRELATION: &str = "$aml_dc_correlation_id";
/// What is appended to rows, in this order.
const CORRELATIONS: [&str; 8] = [
    CORRELATION,
    "$aml_dc_scoring_timestamp",
    "$aml_dc_boundary",
    "$aml_workspace",
    "$aml_service_name",
    "$aml_model_name",
    "$aml_model_version",
    "$aml_request_id",
];
/// Most columns.
const MAX_COLUMNS: usize = 16_384;
/// Longest header, bytes: it is in memory for as long as its object waits.
const MAX_HEADER: usize = 256 << 10;

impl Layout {
    /// `modeldata/sub/group/workspace/service/model/version/inputs/2026/11/30/inputs-`
    pub(super) fn table_folder(&self, record: &Record, table: &Table, date: &Date) -> String {
        let workspace = table.workspace.as_deref().unwrap_or(&self.workspace);
        let mut folder = service_folder(workspace, table.service.as_deref().unwrap_or(&self.endpoint));
        let model = record.model.as_deref().unwrap_or("default");
        let version = record.version.as_deref().unwrap_or("default");
        for part in [model, version, table.designation.name()] {
            push_segment(&mut folder, part);
            folder.push('/');
        }
        date.write_folder(self.rolling, &mut folder);
        folder.push('/');
        let named = matches!(table.designation, Designation::Signals | Designation::General);
        match table.name.as_deref().filter(|_| named) {
            Some(name) => push_segment(&mut folder, name),
            None => folder.push_str(table.designation.name()),
        }
        folder.push('-');
        folder
    }

    /// The first line of the file.
    pub(super) fn table_header(&self, table: &Table, rows: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut names: Vec<String> = table.columns.iter().map(|name| name.to_string()).collect();
        if names.is_empty() {
            let rows: Vec<Vec<&RawValue>> = serde_json::from_slice(rows).map_err(|_| Reason::Invalid)?;
            let width = rows.first().map_or(0, Vec::len);
            names.extend((0..width).map(|number| number.to_string()));
        }
        if names.is_empty() || names.len() > MAX_COLUMNS {
            return Err(Reason::Invalid);
        }
        names.retain(|name| !self.redactor.drops_column(name));
        for name in &mut names {
            if let Cow::Owned(redacted) = self.redactor.text(name) {
                *name = redacted;
            }
        }
        if table.correlated {
            names.extend(CORRELATIONS.map(str::to_owned));
        }
        let mut header = Vec::new();
        write_row(&mut header, &names)?;
        if header.len() > MAX_HEADER { Err(Reason::Invalid) } else { Ok(header) }
    }

    /// Appends the rows.
    pub(super) fn write_rows(
        &self,
        record: &Record,
        date: Date,
        most: usize,
        to: &mut Vec<u8>,
    ) -> Result<(), Reason> {
        let table = record.table.as_ref().ok_or(Reason::Invalid)?;
        let rows: Vec<Vec<&RawValue>> = serde_json::from_slice(&record.data).map_err(|_| Reason::Invalid)?;
        let columns = match table.columns.len() {
            0 => rows.first().map_or(0, Vec::len),
            columns => columns,
        };
        let correlations = self.correlations(record, table, date);
        let start = to.len();
        for row in rows {
            let mut cells = Vec::with_capacity(columns + CORRELATIONS.len());
            if row.len() != columns {
                to.truncate(start);
                return Err(Reason::Invalid);
            }
            for (number, value) in row.into_iter().enumerate() {
                let name = match table.columns.get(number) {
                    Some(name) => Cow::Borrowed(&**name),
                    None => Cow::Owned(number.to_string()),
                };
                match self.redactor.cell(&name, value.get()) {
                    Ok(Cell::Dropped) => {}
                    Ok(Cell::Kept(json)) => cells.push(text_of(json)),
                    Err(_) => {
                        to.truncate(start);
                        return Err(Reason::Redaction);
                    }
                }
            }
            cells.extend(correlations.iter().map(|text| Cow::Borrowed(text.as_str())));
            write_row(to, &cells)?;
            if to.len() - start > most {
                // Rows are short where what is appended to them is not.
                to.truncate(start);
                return Err(Reason::Large);
            }
        }
        Ok(())
    }

    fn correlations(&self, record: &Record, table: &Table, date: Date) -> Vec<String> {
        if !table.correlated {
            return Vec::new();
        }
        let mut timestamp = Vec::new();
        date.write_iso(&mut timestamp);
        let boundary = if self.rolling == Rolling::Hour { "60" } else { "1440" };
        vec![
            events::correlation(record).to_owned(),
            String::from_utf8(timestamp).unwrap_or_default(),
            boundary.to_owned(),
            table.workspace.as_deref().unwrap_or(&self.workspace).to_lowercase(),
            table.service.as_deref().unwrap_or(&self.endpoint).to_owned(),
            record.model.as_deref().unwrap_or("default").to_owned(),
            record.version.as_deref().unwrap_or("default").to_owned(),
            record.request_id.to_string(),
        ]
    }
}

/// `modeldata/sub/group/workspace/service/`
pub(super) fn service_folder(workspace: &str, service: &str) -> String {
    let mut folder = format!("{ROOT}/");
    let workspace = workspace.to_lowercase();
    let mut parts = workspace.splitn(3, '/');
    for _ in 0..3 {
        push_segment(&mut folder, parts.next().unwrap_or("default"));
        folder.push('/');
    }
    push_segment(&mut folder, service);
    folder.push('/');
    folder
}

/// A value as `str()` has it in Python, as far as there is a difference: nothing for `null`, and capital letters for truth.
fn text_of(json: Cow<'_, str>) -> Cow<'_, str> {
    match &*json {
        "null" => Cow::Borrowed(""),
        "true" => Cow::Borrowed("True"),
        "false" => Cow::Borrowed("False"),
        text if text.starts_with('"') => match serde_json::from_str(text) {
            Ok(text) => Cow::Owned(text),
            Err(_) => json,
        },
        _ => json,
    }
}

/// Appends a row: quoted where needed, `\r\n` at its end.
pub(crate) fn write_row(to: &mut Vec<u8>, cells: &[impl AsRef<str>]) -> Result<(), Reason> {
    let mut writer = ::csv::WriterBuilder::new()
        .terminator(::csv::Terminator::CRLF)
        .buffer_capacity(1024)
        .flexible(true)
        .from_writer(&mut *to);
    let cells = cells.iter().map(|cell| cell.as_ref().as_bytes());
    writer.write_record(cells).and_then(|()| writer.flush().map_err(Into::into)).map_err(|_| Reason::Invalid)
}
