//! What never reaches the disk.
//!
//! Whatever cannot be looked at as the rules need it is not written at all. JSON is rewritten as it is read: members stay in their order, numbers keep their
//! digits, and a member that is there twice is looked at twice.

mod encoded;
mod json;
mod rules;

use std::borrow::Cow;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use self::rules::{Action, Rules};
use crate::erase::{UUID, is_uuid};
use crate::layout::events;
use crate::record::{Record, Table};
use crate::settings::{MAX_RULES, Redaction, Replacement};

/// Largest compiled pattern, bytes.
const PATTERN_BYTES: usize = 1 << 20;
/// Largest data that is looked at, where the settings do not say it.
const DATA_BYTES: usize = 4 << 20;
/// Keeps these uses of the hash apart from others.
const CONTEXT: &str = "outrigger 2026-11 what is redacted in collected data";

/// The rules of a collection.
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    rules: Rules,
    /// The same for the cells of tables, whose first part is the column.
    cells: Rules,
    patterns: Vec<(Regex, Replacement)>,
    key: [u8; 32],
    text_chars: Option<usize>,
    data_bytes: usize,
}

/// It cannot be looked at as the rules need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// What is left of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    /// Its column is left out.
    Dropped,
    /// JSON.
    Kept(Cow<'a, str>),
}

impl Redactor {
    /// Reads the rules.
    ///
    /// # Errors
    /// Which rule is wrong, and what is.
    pub(crate) fn new(of: &Redaction) -> Result<Self, (&'static str, String)> {
        let mut rules = Rules::default();
        let lists = [
            ("allow", &of.allow, Action::Allow),
            ("deny", &of.deny, Action::Deny),
            ("hash", &of.hash, Action::Hash),
        ];
        for (name, pointers, action) in lists {
            if pointers.len() > MAX_RULES {
                return Err((name, format!("{} are named, {MAX_RULES} are the most", pointers.len())));
            }
            for pointer in pointers {
                rules.add(pointer, action).map_err(|problem| (name, problem))?;
            }
        }
        if of.patterns.len() > MAX_RULES {
            return Err(("patterns", format!("{} are named, {MAX_RULES} are the most", of.patterns.len())));
        }
        let mut patterns = Vec::new();
        for pattern in &of.patterns {
            let regex = RegexBuilder::new(&pattern.regex)
                .size_limit(PATTERN_BYTES)
                .dfa_size_limit(PATTERN_BYTES)
                .build();
            let regex =
                regex.map_err(|error| ("patterns", format!("`{}` is not taken: {error}", pattern.regex)))?;
            if regex.is_match("") {
                return Err(("patterns", format!("`{}` matches where there is nothing", pattern.regex)));
            }
            patterns.push((regex, pattern.with.clone()));
        }
        let hashes =
            !of.hash.is_empty() || of.patterns.iter().any(|pattern| pattern.with == Replacement::Hash);
        let salt = of.salt.as_deref().unwrap_or_default();
        if hashes && salt.len() < 16 {
            let problem = "hashes need 16 bytes of salt or more: without one, who guesses a value can tell whether it is right";
            return Err(("salt", problem.into()));
        }
        if of.text_chars == Some(0) {
            return Err(("text_chars", "1 is the least".into()));
        }
        Ok(Self {
            cells: rules.for_cells(),
            rules,
            patterns,
            key: blake3::derive_key(CONTEXT, salt.as_bytes()),
            text_chars: of.text_chars,
            data_bytes: if of.data_bytes == 0 { DATA_BYTES } else { of.data_bytes },
        })
    }

    fn is_idle(&self) -> bool {
        self.rules.is_empty() && self.patterns.is_empty() && self.text_chars.is_none()
    }

    /// Takes out of a record, tables apart, what must not be written.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub(crate) fn record(&self, record: &mut Record) -> Result<(), Unreadable> {
        if self.is_idle() {
            return Ok(());
        }
        self.texts(record);
        if record.data.is_empty() {
            return Ok(());
        }
        if record.data.len() > self.data_bytes || record.cut && !self.patterns.is_empty() {
            return Err(Unreadable);
        }
        if !self.rules.is_empty() || events::is_json(record) {
            let mut data = Vec::with_capacity(record.data.len());
            self.json(&record.data, &mut data)?;
            record.data = data.into();
            return Ok(());
        }
        let text = str::from_utf8(&record.data).map_err(|_| Unreadable)?;
        let decoded = if events::is_form(record) { self.encoded(text) } else { Cow::Borrowed(text) };
        let is_changed = matches!(decoded, Cow::Owned(_));
        if let Cow::Owned(text) = self.value(&decoded) {
            record.data = text.into_bytes().into();
        } else if is_changed {
            record.data = decoded.into_owned().into_bytes().into();
        }
        Ok(())
    }

    /// What stands beside the data.
    pub(crate) fn texts(&self, record: &mut Record) {
        if self.patterns.is_empty() {
            return;
        }
        let with = |text: &mut Arc<str>, redacted: Cow<'_, str>| {
            if let Cow::Owned(redacted) = redacted {
                *text = redacted.into();
            }
        };
        let text = |text: &mut Arc<str>| with(text, self.text(&Arc::clone(text)));
        let own = |text: &mut Cow<'static, str>, redacted: Option<String>| {
            if let Some(redacted) = redacted {
                *text = redacted.into();
            }
        };
        let changed =
            |redacted: Cow<'_, str>| matches!(redacted, Cow::Owned(_)).then(|| redacted.into_owned());
        let encoded = |text: &mut Arc<str>| with(text, self.encoded(&Arc::clone(text)));
        let identifier = |text: &mut Arc<str>| with(text, self.identifier(&Arc::clone(text)));
        identifier(&mut record.request_id);
        let Record { id, kind, correlation_id, path, model, version, content_type, attributes, .. } = record;
        [id, correlation_id].into_iter().flatten().for_each(identifier);
        [kind, model, version].into_iter().flatten().for_each(text);
        content_type.iter_mut().for_each(|text| own(text, changed(self.text(text))));
        path.iter_mut().for_each(|text| own(text, changed(self.encoded(text))));
        attributes.retain(|(name, _)| matches!(self.text(name), Cow::Borrowed(_)));
        attributes.iter_mut().for_each(|(_, value)| encoded(value));
        if let Some(Table { workspace, service, name, .. }) = &mut record.table {
            [workspace, service, name].into_iter().flatten().for_each(text);
        }
    }

    /// A document, rewritten.
    ///
    /// # Errors
    /// If it is no JSON, or too deep.
    pub(crate) fn json(&self, document: &[u8], to: &mut Vec<u8>) -> Result<(), Unreadable> {
        json::rewrite(self, &self.rules, self.rules.all(), 0, document, to)
    }

    /// Whether a table's column is left out.
    pub(crate) fn drops_column(&self, name: &str) -> bool {
        let matching = self.cells.step(&self.cells.all(), 0, name);
        let denied = self.cells.ends(&matching, 1, Action::Deny);
        denied || self.cells.has(Action::Allow) && !self.cells.leads(&matching, Action::Allow)
    }

    /// A cell of a column, which is JSON.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub(crate) fn cell<'a>(&self, column: &str, json: &'a str) -> Result<Cell<'a>, Unreadable> {
        if self.is_idle() {
            return Ok(Cell::Kept(Cow::Borrowed(json)));
        }
        if self.drops_column(column) {
            return Ok(Cell::Dropped);
        }
        if json.len() > self.data_bytes {
            return Err(Unreadable);
        }
        let matching = self.cells.step(&self.cells.all(), 0, column);
        let mut to = Vec::with_capacity(json.len());
        json::rewrite(self, &self.cells, matching, 1, json.as_bytes(), &mut to)?;
        String::from_utf8(to).map(|json| Cell::Kept(Cow::Owned(json))).map_err(|_| Unreadable)
    }

    /// A text without what the patterns match.
    pub(crate) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for (regex, with) in &self.patterns {
            let replaced = match with {
                Replacement::Text(with) => regex.replace_all(&text, regex::NoExpand(with)),
                Replacement::Hash => regex.replace_all(&text, |found: &regex::Captures<'_>| {
                    self.hash(found.get(0).map_or("", |found| found.as_str()))
                }),
            };
            if let Cow::Owned(replaced) = replaced {
                text = Cow::Owned(replaced);
            }
        }
        text
    }

    /// An identifier without what the patterns match. A UUID says nothing of anybody and has digits by chance, so that nothing within one is replaced, or records
    /// that belong together would not any more, and none were found that are to be deleted; where a pattern matches one as a whole, that is meant.
    pub(crate) fn identifier<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Some((before, uuid)) = text.len().checked_sub(UUID).and_then(|at| text.split_at_checked(at))
        else {
            return self.text(text);
        };
        if !(is_uuid(uuid) && (before.is_empty() || before.ends_with('-'))) {
            return self.text(text);
        }
        let is_meant = |regex: &Regex| regex.find(uuid).is_some_and(|found| found.range() == (0..UUID));
        let uuid = match self.patterns.iter().any(|(regex, _)| is_meant(regex)) {
            true => self.text(uuid),
            false => Cow::Borrowed(uuid),
        };
        let before = match before.strip_suffix('-') {
            Some(said) => Cow::Owned(format!("{}-", self.text(said))),
            None => Cow::Borrowed(before),
        };
        let whole = format!("{before}{uuid}");
        if whole == text { Cow::Borrowed(text) } else { Cow::Owned(whole) }
    }

    /// A value: what the patterns match taken out, and then what is too long cut off.
    fn value<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let text = self.text(text);
        let Some(most) = self.text_chars else { return text };
        match text.char_indices().nth(most) {
            Some((at, _)) => Cow::Owned(format!("{}…", text.get(..at).unwrap_or_default())),
            None => text,
        }
    }

    /// 128 bits of a keyed hash.
    fn hash(&self, text: &str) -> String {
        let hash = blake3::keyed_hash(&self.key, text.as_bytes()).to_hex();
        format!("hash:{}", hash.get(..32).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
