//! Settings by key, as the types that a configuration is made of.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Settings;
use super::key::Key;
use super::value::{Endpoint, Value};

/// Reads values by key. The kind of each key stands in the table, and a test reads every one of them, so a value of
/// another kind cannot be met; the fallbacks only keep the types honest.
pub(super) struct Getter<'a> {
    pub(super) settings: &'a Settings,
}

impl Getter<'_> {
    pub(super) fn value(&self, key: &Key) -> Option<&Value> {
        self.settings.keys.get(key.name).map(|setting| &setting.value)
    }

    pub(super) fn text(&self, key: &Key) -> String {
        match self.value(key) {
            Some(Value::Text(text)) => text.clone(),
            Some(Value::Path(path)) => path.to_string_lossy().into_owned(),
            _ => String::new(),
        }
    }

    pub(super) fn path(&self, key: &Key) -> Option<PathBuf> {
        match self.value(key) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    pub(super) fn list(&self, key: &Key) -> &[String] {
        match self.value(key) {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }

    pub(super) fn optional_count(&self, key: &Key) -> Option<usize> {
        match self.value(key) {
            Some(Value::Count(count)) => usize::try_from(*count).ok(),
            _ => None,
        }
    }

    pub(super) fn count(&self, key: &Key) -> usize {
        self.optional_count(key).unwrap_or_default()
    }

    pub(super) fn number(&self, key: &Key) -> f64 {
        match self.value(key) {
            Some(Value::Number(number)) => *number,
            _ => 0.0,
        }
    }

    pub(super) fn optional_size(&self, key: &Key) -> Option<usize> {
        match self.value(key) {
            Some(Value::Size(size)) => Some(usize::try_from(*size).unwrap_or(usize::MAX)),
            _ => None,
        }
    }

    pub(super) fn size(&self, key: &Key) -> usize {
        self.optional_size(key).unwrap_or_default()
    }

    pub(super) fn flag(&self, key: &Key) -> bool {
        matches!(self.value(key), Some(Value::Flag(true)))
    }

    pub(super) fn duration(&self, key: &Key) -> Duration {
        match self.value(key) {
            Some(Value::Duration(duration)) => *duration,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn address(&self, key: &Key) -> SocketAddr {
        match self.value(key) {
            Some(Value::Endpoint(Endpoint::Tcp(address))) => *address,
            _ => SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}
