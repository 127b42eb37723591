//! Which object a record belongs to, and how it looks there.

pub(crate) mod csv;
pub(crate) mod date;
pub(crate) mod events;
pub(crate) mod json;
pub(crate) mod parquet;

use self::date::{Calendar, Date};
use crate::counts::Reason;
use crate::record::Record;
use crate::redact::Redactor;
use crate::settings::{CollectionSettings, Format, Rolling, Settings};

/// The layout of one collection.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    rolling: Rolling,
    /// Of events: up to the time.
    folder: String,
    /// Of tables that say neither workspace nor service: up to the model.
    tables: String,
    fields: events::Fields,
    endpoint: String,
    workspace: String,
    url: String,
    inline_bytes: usize,
    attributes: usize,
    redactor: Redactor,
}

/// What tells the objects of a collection from each other that are open at the same time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// Of events: the folder.
    Time(u64),
    /// Of tables: the folder, and the header.
    Table(Box<str>, Box<[u8]>),
}

/// Where a record goes.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) key: Key,
    /// When the next folder begins, microseconds since 1970.
    pub(crate) until: u64,
    pub(crate) time: u64,
    pub(crate) date: Date,
    /// Whether its data is an object of its own.
    pub(crate) aside: bool,
}

impl Layout {
    pub(crate) fn new(
        name: &str,
        all: &Settings,
        settings: &CollectionSettings,
        redactor: Redactor,
        shown: &str,
    ) -> Self {
        let (endpoint, deployment) = (&all.endpoint, &all.deployment);
        let source = || format!("/endpoints/{endpoint}/deployments/{deployment}");
        let rolling = match (settings.format, settings.rolling) {
            (Format::Csv, Rolling::Minute | Rolling::Hour) => Rolling::Hour,
            (Format::Csv, _) => Rolling::Day,
            (_, rolling) => rolling,
        };
        Self {
            format: settings.format,
            rolling,
            folder: format!("modelDataCollector/{endpoint}/{deployment}/{name}/"),
            tables: csv::service_folder(&all.workspace, endpoint),
            fields: events::Fields::new(&all.source.clone().unwrap_or_else(source), name),
            endpoint: endpoint.clone(),
            workspace: all.workspace.clone(),
            url: all.url.as_deref().unwrap_or(shown).trim_end_matches('/').to_owned(),
            inline_bytes: all.inline_bytes,
            attributes: all.attributes,
            redactor,
        }
    }

    /// Where objects of this collection are, those apart whose rows say another workspace or service.
    pub(crate) fn prefix(&self) -> &str {
        match self.format {
            Format::Events | Format::Parquet => &self.folder,
            Format::Csv => &self.tables,
        }
    }

    /// The folder among whose objects those of this collection are: rows may say another workspace or service.
    pub(crate) fn root(&self) -> &str {
        match self.format {
            Format::Events | Format::Parquet => self.folder.trim_end_matches('/'),
            Format::Csv => csv::ROOT,
        }
    }

    /// What the URLs of separate objects begin with.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A correlation id as it is written.
    pub(crate) fn correlation<'a>(&self, id: &'a str) -> std::borrow::Cow<'a, str> {
        self.redactor.identifier(id)
    }

    /// Takes out of a record what must not be written, and says where it goes.
    ///
    /// # Errors
    /// Why it is not written at all.
    pub(crate) fn prepare(&self, record: &mut Record, calendar: &mut Calendar) -> Result<Place, Reason> {
        let time = date::micros(record.time);
        let (date, bucket, until) = calendar.at(time, self.rolling);
        if self.format == Format::Csv {
            self.redactor.texts(record);
            let table = record.table.as_ref().ok_or(Reason::Invalid)?;
            let folder = self.table_folder(record, table, &date);
            let header = self.table_header(table, &record.data)?;
            let key = Key::Table(folder.into_boxed_str(), header.into_boxed_slice());
            return Ok(Place { key, until, time, date, aside: false });
        }
        self.redactor.record(record).map_err(|_| Reason::Redaction)?;
        let aside = record.data.len() > self.inline_bytes || !events::is_text(record);
        Ok(Place { key: Key::Time(bucket), until, time, date, aside })
    }

    /// The name of an object below the target.
    pub(crate) fn path(&self, place: &Place, instance: &str, number: u64) -> String {
        match &place.key {
            Key::Table(folder, _) => {
                // The folder ends with `/NAME-`: files are called as `inputs*.csv` finds them.
                format!("{folder}{instance}-{number}.csv")
            }
            Key::Time(_) => {
                let mut path = self.folder.clone();
                place.date.write_folder(self.rolling, &mut path);
                format!("{path}/{instance}-{number}.{}", self.format.extension())
            }
        }
    }

    /// The name of the object of a record's own data, beside its line's.
    pub(crate) fn side_path(&self, path: &str, nth: u64, record: &Record) -> String {
        let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
        let extension = if events::is_json(record) { "json" } else { "bin" };
        format!("{stem}-{nth}.{extension}")
    }

    /// What the object begins with.
    pub(crate) fn header<'a>(&self, place: &'a Place) -> &'a [u8] {
        match &place.key {
            Key::Time(_) => &[],
            Key::Table(_, header) => header,
        }
    }

    /// Appends what a record adds to its object: `most` bytes, or not much more.
    ///
    /// # Errors
    /// Why it is not written at all.
    pub(crate) fn write_line(
        &self,
        record: &Record,
        place: &Place,
        side: Option<&str>,
        most: usize,
        to: &mut Vec<u8>,
    ) -> Result<(), Reason> {
        match self.format {
            Format::Csv => self.write_rows(record, place.date, most, to),
            Format::Events | Format::Parquet => {
                self.write_event(record, place.date, side, to);
                Ok(())
            }
        }
    }
}

impl Format {
    /// How the names of objects end.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Events => "jsonl",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// Appends a text as a part of a path: what is not harmless in one is `_`.
pub(crate) fn push_segment(to: &mut String, text: &str) {
    let start = to.len();
    let harmless =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    to.extend(text.chars().take(128).map(|character| if harmless(character) { character } else { '_' }));
    match to.get(start..) {
        Some("") => to.push_str("default"),
        Some(part) if part.bytes().all(|byte| byte == b'.') => {
            to.truncate(start);
            to.push('_');
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_folder() {
        let segment = |text| {
            let mut path = String::new();
            push_segment(&mut path, text);
            path
        };
        assert_eq!(segment("iris-2.0"), "iris-2.0");
        assert_eq!(segment(""), "default");
        assert_eq!((segment("."), segment(".."), segment("../..")), ("_".into(), "_".into(), ".._..".into()));
        assert_eq!(segment("a/b\\c\0ü"), "a_b_c__");
        assert_eq!(segment(&"a".repeat(500)).len(), 128);
    }
}
