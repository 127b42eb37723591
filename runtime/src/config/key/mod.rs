//! The table of configuration keys: name, kind, default, further names, meaning. Flags, environment variables, `--help`, the
//! effective configuration and the table in `docs/configuration.md` all come from it.

mod table;
mod tables;

use super::value::Kind;
pub use table::*;
pub use tables::*;

/// One configuration key.
#[derive(Debug)]
pub struct Key {
    /// Dotted name in the file, such as `script.workers`.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The default as text; empty for none.
    pub default: &'static str,
    /// Environment variables of AzureML's that mean the same.
    pub aliases: &'static [Alias],
    /// One line for `--help`.
    pub doc: &'static str,
}

/// Another environment variable for a key.
#[derive(Debug)]
pub struct Alias {
    /// The variable.
    pub variable: &'static str,
    /// What to put before its value, where it is only the end of what the key takes.
    pub prefix: &'static str,
    /// What to append to its value, where it carries no unit of its own.
    pub suffix: &'static str,
}

impl Key {
    /// The environment variable: `script.max_wait` is `OUTRIGGER_SCRIPT_MAX_WAIT`.
    pub fn variable(&self) -> String {
        format!("OUTRIGGER_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// The flag without its dashes: `script.max_wait` is `script-max-wait`.
    pub fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }
}

const fn alias(variable: &'static str) -> Alias {
    Alias { variable, prefix: "", suffix: "" }
}

/// A number of milliseconds.
const fn millis(variable: &'static str) -> Alias {
    Alias { variable, prefix: "", suffix: "ms" }
}

/// A port at which everybody may call, as the platforms mean it that say so.
const fn port(variable: &'static str) -> Alias {
    Alias { variable, prefix: "0.0.0.0:", suffix: "" }
}

/// A port on this machine.
const fn collector(variable: &'static str) -> Alias {
    Alias { variable, prefix: "127.0.0.1:", suffix: "" }
}

/// Defaults that are others with `compat = true`.
pub(super) const COMPAT_DEFAULTS: &[(&Key, &str)] = &[
    (LOG_FORMAT, "azureml"),
    (LOG_REQUESTS, "all"),
    (SCORE_CONTRACTS, "aml"),
    (OPENAPI_ENABLED, "false"),
    (SCORE_SERVER_VERSION, "azmlinfsrv/1.5.1"),
    (SCRIPT_TIMEOUT, "1h"),
];
