//! What is collected, how, and every limit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::lane::BATCH_BYTES;
use crate::redact::Redactor;

/// Most collections.
pub const MAX_COLLECTIONS: usize = 32;
/// Longest name of a collection, an endpoint or a deployment, bytes.
pub const MAX_NAME: usize = 64;
/// Most pointers, and most patterns, of a collection.
pub const MAX_RULES: usize = 64;
/// Longest time that anybody waits with [`Full::Block`].
const MAX_BLOCK: Duration = Duration::from_secs(600);

/// What is collected. `Settings::default()` collects nothing.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the logs. One process has it at a time.
    pub spool: PathBuf,
    /// The endpoint's name: a folder in blob storage.
    pub endpoint: String,
    /// The deployment's name: a folder in blob storage.
    pub deployment: String,
    /// `source` of events; `/endpoints/ENDPOINT/deployments/DEPLOYMENT` where there is none.
    pub source: Option<String>,
    /// `subscription/group/workspace` of v1 rows that say none. Default: `default/default/default`.
    pub workspace: String,
    /// What the URLs of separate objects begin with; how the location is shown where there is none.
    pub url: Option<String>,
    /// By name: lower-case letters, digits, `-` and `_`, beginning with a letter or digit.
    pub collections: BTreeMap<String, CollectionSettings>,
    /// Most records that wait for the writer, for each collection. Default: 4096.
    pub ring_items: usize,
    /// Most bytes that wait for the writer, for each collection. Default: 64 MiB.
    pub ring_bytes: usize,
    /// Largest record, bytes; a larger one is dropped. Default: 16 MiB.
    pub record_bytes: usize,
    /// Most attributes of a record, each of at most 1024 bytes; more are left out. Default: 32.
    pub attributes: usize,
    /// Size of a log's segments, bytes. Default: 16 MiB.
    pub segment_bytes: u64,
    /// Size at which an object is closed, and the next begins, bytes. Default: 4 MiB.
    pub object_bytes: u64,
    /// Largest data inside a line, bytes; what is larger is an object of its own. Default: 4 MiB.
    pub inline_bytes: usize,
    /// Most objects that are open in a collection; the oldest is closed for another. Default: 16.
    pub open_objects: usize,
    /// Most objects of a collection that wait to be written to blob: each is a few hundred bytes in memory. Default: 65,536.
    pub waiting_objects: usize,
    /// How long new records of an open object wait until it is written again. Default: 30 s.
    pub flush_interval: Duration,
    /// Most objects that are written to blob at a time: each is in memory meanwhile. Default: 4.
    pub uploads: usize,
    /// Longest time for one object. Default: 60 s.
    pub upload_timeout: Duration,
    /// First time between attempts after a failure; each further one waits twice as long, with jitter. Default: 500 ms.
    pub retry_min: Duration,
    /// Longest time between attempts. Default: 30 s.
    pub retry_max: Duration,
    /// How often retention looks for what is too old. Default: 1 h.
    pub retention_interval: Duration,
    /// What sampling is keyed with, so that nobody who chooses a request id chooses whether it is kept. The same on all replicas. Default: none.
    pub sampling_key: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            spool: PathBuf::from("collect"),
            endpoint: "default".into(),
            deployment: "default".into(),
            source: None,
            workspace: "default/default/default".into(),
            url: None,
            collections: BTreeMap::new(),
            ring_items: 4096,
            ring_bytes: 64 << 20,
            record_bytes: 16 << 20,
            attributes: 32,
            segment_bytes: 16 << 20,
            object_bytes: 4 << 20,
            inline_bytes: 4 << 20,
            open_objects: 16,
            waiting_objects: 65_536,
            flush_interval: Duration::from_secs(30),
            uploads: 4,
            upload_timeout: Duration::from_secs(60),
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
            retention_interval: Duration::from_secs(3600),
            sampling_key: None,
        }
    }
}

/// One collection.
#[derive(Clone, Debug)]
pub struct CollectionSettings {
    /// How it looks in blob storage. Default: `Events`.
    pub format: Format,
    /// How often another folder begins. Default: `Hour`; of `Csv`, where it is `Hour` or `Day` alone, see there.
    pub rolling: Rolling,
    /// Share of calls that are kept, from 0 to 1. Default: 1.
    pub sampling: f64,
    /// Whether calls that failed are kept whatever the share. Default: no.
    pub keep_errors: bool,
    /// Calls that took longer are kept whatever the share. Default: none.
    pub keep_slower: Option<Duration>,
    /// What happens when there is no room. Default: `DropNewest`.
    pub full: Full,
    /// When the log is on the disk, not only with the kernel. Default: `Interval(1 s)`.
    pub sync: Sync,
    /// Most bytes of the log on disk. Default: 1 GiB.
    pub disk_bytes: u64,
    /// What never reaches the disk. Default: all does.
    pub redaction: Redaction,
    /// Objects of days that are longer ago are deleted. Default: none are.
    pub retention_days: Option<u32>,
}

impl Default for CollectionSettings {
    fn default() -> Self {
        Self {
            format: Format::Events,
            rolling: Rolling::Hour,
            sampling: 1.0,
            keep_errors: false,
            keep_slower: None,
            full: Full::DropNewest,
            sync: Sync::Interval(Duration::from_secs(1)),
            disk_bytes: 1 << 30,
            redaction: Redaction::default(),
            retention_days: None,
        }
    }
}

/// How a collection looks in blob storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// CloudEvents, one JSON object a line: AzureML's v2 layout.
    Events,
    /// Rows of tables: AzureML's v1 layout. Folders are of a day, or of an hour with [`Rolling::Hour`] or [`Rolling::Minute`].
    Csv,
    /// The fields of `Events` as columns, in the same folders.
    Parquet,
}

/// How often another folder begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rolling {
    /// `yyyy/MM/dd/HH/mm`
    Minute,
    /// `yyyy/MM/dd/HH`
    Hour,
    /// `yyyy/MM/dd`
    Day,
    /// `yyyy/MM`
    Month,
    /// `yyyy`
    Year,
}

/// What happens when there is no room, in memory or on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// What comes is dropped, and counted.
    DropNewest,
    /// What has waited longest is dropped, and counted: of the log, whole objects that have not reached blob.
    DropOldest,
    /// Who offers waits until the record is in the log, for so long at most; then it goes on, and a record that found no room is dropped, and counted.
    Block(Duration),
}

/// When the log is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before anybody is told that a record is kept; records that come together are synced together.
    Always,
    /// That often.
    Interval(Duration),
    /// When the kernel likes, and before records go to blob. A process may be killed without loss, the machine may not.
    Never,
}

/// What never reaches the disk. Rules are applied in the order of the fields.
///
/// Pointers are those of RFC 6901, `*` in them being each element or member: `/data/*/name`. What cannot be looked at as the rules need it (JSON where there
/// are pointers, UTF-8 where there are patterns) is not written at all, and counted. Of a [`Table`](crate::Table) the pointer `/column` names a column.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    /// Where there are any, all that is not below them is left out.
    pub allow: Vec<String>,
    /// Left out.
    pub deny: Vec<String>,
    /// Replaced by a keyed hash, so that equal values stay equal.
    pub hash: Vec<String>,
    /// What the hash is keyed with. Needed where anything is hashed.
    pub salt: Option<String>,
    /// Replaced wherever they match in texts, names of members, numbers, paths and attributes.
    pub patterns: Vec<Pattern>,
    /// Longest text, characters; of a longer one the beginning is kept.
    pub text_chars: Option<usize>,
    /// Largest data that is looked at, bytes; what is larger is not written. 0 is 4 MiB.
    pub data_bytes: usize,
}

/// What is replaced wherever it matches.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// A regular expression of the crate `regex`.
    pub regex: String,
    /// What by.
    pub with: Replacement,
}

/// What takes the place of what matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// This text, as it is.
    Text(String),
    /// A keyed hash of it.
    Hash,
}

/// What is wrong with settings.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct SettingsError {
    /// Which: the field, of a collection after its name.
    pub at: String,
    /// What, and what would do.
    pub problem: String,
}

impl Settings {
    /// Looks at all of it.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&self) -> Result<(), Vec<SettingsError>> {
        let mut wrong = Vec::new();
        let mut error = |at: &str, problem: String| wrong.push(SettingsError { at: at.into(), problem });
        for (at, name) in [("endpoint", &self.endpoint), ("deployment", &self.deployment)] {
            if !is_name(name, true) {
                error(
                    at,
                    format!(
                        "`{name}` is no name: letters, digits, `-`, `_` and `.`, at most {MAX_NAME}, beginning with a letter or digit"
                    ),
                );
            }
        }
        if self.workspace.split('/').count() != 3 || self.workspace.len() > 3 * MAX_NAME {
            error("workspace", format!("`{}` is not `subscription/group/workspace`", self.workspace));
        }
        if self.collections.len() > MAX_COLLECTIONS {
            error(
                "collections",
                format!("{} are named, {MAX_COLLECTIONS} are the most", self.collections.len()),
            );
        }
        let at_least = [
            ("ring_items", self.ring_items as u64, 1),
            ("ring_bytes", self.ring_bytes as u64, 4096),
            ("record_bytes", self.record_bytes as u64, 1024),
            ("segment_bytes", self.segment_bytes, 64 << 10),
            ("object_bytes", self.object_bytes, 1024),
            ("inline_bytes", self.inline_bytes as u64, 1),
            ("open_objects", self.open_objects as u64, 1),
            ("waiting_objects", self.waiting_objects as u64, 1024),
            ("uploads", self.uploads as u64, 1),
        ];
        for (at, value, least) in at_least {
            if value < least {
                error(at, format!("{value} is too little, {least} is the least"));
            }
        }
        if self.record_bytes > 1 << 30 {
            error("record_bytes", "1 GiB is the most".into());
        }
        if self.ring_bytes < self.record_bytes {
            error(
                "ring_bytes",
                format!("it holds no record of `record_bytes`, which is {}", self.record_bytes),
            );
        }
        let times = [
            ("flush_interval", self.flush_interval),
            ("upload_timeout", self.upload_timeout),
            ("retry_min", self.retry_min),
            ("retry_max", self.retry_max),
            ("retention_interval", self.retention_interval),
        ];
        for (at, time) in times {
            if time < Duration::from_millis(1) {
                error(at, "1 ms is the least".into());
            }
        }
        for (name, collection) in &self.collections {
            if !is_name(name, false) {
                let problem = format!(
                    "no name: lower-case letters, digits, `-` and `_`, at most {MAX_NAME}, beginning with a letter or digit"
                );
                error(name, problem);
            }
            self.check_collection(name, collection, &mut error);
        }
        let tables = self.collections.values().filter(|of| of.format == Format::Csv);
        let mut kept = tables.map(|of| of.retention_days);
        if let Some(first) = kept.next()
            && kept.any(|other| other != first)
        {
            wrong.push(SettingsError {
                at: "retention_days".into(),
                problem: "collections of tables share their folders, and so are kept equally long".into(),
            });
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Longest line of an object: what a record becomes may be longer than it was.
    pub(crate) fn line_bytes(&self) -> usize {
        self.record_bytes.saturating_mul(2)
    }

    fn check_collection(&self, name: &str, of: &CollectionSettings, error: &mut dyn FnMut(&str, String)) {
        if !(0.0..=1.0).contains(&of.sampling) {
            error(&format!("{name}.sampling"), format!("{} is no share: 0 to 1", of.sampling));
        }
        // A segment can be dropped while another is written, and a record always finds room in what can be made free.
        let batch = (BATCH_BYTES + 2 * self.line_bytes()) as u64;
        let least = self.segment_bytes.saturating_mul(2).saturating_add(2 * batch);
        if of.disk_bytes < least {
            let problem = format!(
                "{} is too little: two segments and two of the largest records are {least}",
                of.disk_bytes
            );
            error(&format!("{name}.disk_bytes"), problem);
        }
        if let Full::Block(bound) = of.full
            && bound.is_zero()
        {
            error(
                &format!("{name}.full"),
                "who waits for no time does not wait: drop the newest instead".into(),
            );
        }
        if let Full::Block(bound) = of.full
            && bound > MAX_BLOCK
        {
            error(
                &format!("{name}.full"),
                format!("{bound:?} is too long to wait, {MAX_BLOCK:?} are the most"),
            );
        }
        if of.retention_days == Some(0) {
            error(&format!("{name}.retention_days"), "1 is the least".into());
        }
        if let Err((at, problem)) = Redactor::new(&of.redaction) {
            error(&format!("{name}.redaction.{at}"), problem);
        }
    }
}

/// Whether it can be a folder, in blob storage and on disk.
pub(crate) fn is_name(name: &str, cased: bool) -> bool {
    let first =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || cased && byte.is_ascii_uppercase();
    let any = |byte: u8| first(byte) || byte == b'-' || byte == b'_' || cased && byte == b'.';
    name.len() <= MAX_NAME && name.bytes().next().is_some_and(first) && name.bytes().all(any)
}
