//! A JSON object in which no name is there twice: two readers of one that has a name twice may see different things.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

/// The members of an object.
#[derive(Debug)]
pub(super) struct Object(BTreeMap<String, Value>);

impl Object {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A text; `Err` where there is something else under the name.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, ()> {
        self.get(name).map(|value| value.as_str().ok_or(())).transpose()
    }

    /// Whole seconds since 1970: a number, with whatever fraction. `Err` for anything else, and for what no clock will show.
    pub(super) fn time(&self, name: &str) -> Result<Option<u64>, ()> {
        let Some(value) = self.get(name) else { return Ok(None) };
        if let Some(whole) = value.as_u64() {
            return if whole <= LAST { Ok(Some(whole)) } else { Err(()) };
        }
        let number = value.as_f64().ok_or(())?;
        // In range, so the conversion keeps the whole part.
        if (0.0..=LAST as f64).contains(&number) { Ok(Some(number as u64)) } else { Err(()) }
    }

    /// Texts in a list, or apart from each other by spaces; nothing where there is nothing.
    pub(super) fn words(&self, name: &str) -> Result<Vec<&str>, ()> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(text.split(' ').filter(|word| !word.is_empty()).collect()),
            Some(Value::Array(items)) => items.iter().map(|item| item.as_str().ok_or(())).collect(),
            Some(_) => Err(()),
        }
    }
}

/// The last second of the year 9999.
const LAST: u64 = 253_402_300_799;

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name is there twice"));
                    }
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}
