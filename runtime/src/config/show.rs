//! The effective configuration as text: TOML that can be used as a file, each line with where its value came from.

use std::fmt::Write as _;

use super::key::{KEYS, Key};
use super::{Section, Settings};

impl Settings {
    /// All keys with their values, a line each; keys without a value as comments.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            let (prefix, name) = key.name.split_once('.').unwrap_or(("", key.name));
            // Top-level keys must stand above the first table.
            if prefix.is_empty() {
                self.line(&mut text, &self.keys, key, name);
            }
        }
        for key in KEYS {
            let Some((prefix, name)) = key.name.split_once('.') else { continue };
            if prefix != section {
                section = prefix;
                let _ = writeln!(text, "\n[{section}]");
            }
            self.line(&mut text, &self.keys, key, name);
        }
        for (name, section) in &self.models {
            let _ = writeln!(text, "\n[models.\"{name}\"]");
            for key in super::key::MODEL_KEYS {
                self.line(&mut text, section, key, key.name);
            }
        }
        for (name, backend) in &self.backends {
            let _ = writeln!(text, "\n[backends.{name}]");
            for key in super::key::BACKEND_KEYS {
                self.line(&mut text, &backend.section, key, key.name);
            }
        }
        for (name, issuer) in &self.issuers {
            let _ = writeln!(text, "\n[tokens.issuers.{name}]");
            for key in super::key::ISSUER_KEYS {
                self.line(&mut text, &issuer.section, key, key.name);
            }
        }
        for (name, caller) in &self.callers {
            let _ = writeln!(text, "\n[callers.{name}]");
            for key in super::key::CALLER_KEYS {
                // Those that have their keys elsewhere may not have one here, so none is shown as possible.
                if caller.section.contains_key(key.name) || !super::callers::is_foreign(name, key) {
                    self.line(&mut text, &caller.section, key, key.name);
                }
            }
        }
        for (name, collection) in &self.collections {
            let _ = writeln!(text, "\n[collections.{name}]");
            for key in super::key::COLLECTION_KEYS {
                self.line(&mut text, &collection.section, key, key.name);
            }
        }
        text
    }

    fn line(&self, text: &mut String, section: &Section, key: &Key, name: &str) {
        // Writing to a `String` cannot fail.
        let _ = match section.get(key.name) {
            Some(setting) => {
                writeln!(text, "{:<48} # {}", format!("{name} = {}", setting.value), setting.origin)
            }
            None => writeln!(text, "{:<48} # {}", format!("# {name} ="), key.doc),
        };
    }
}
