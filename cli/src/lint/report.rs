//! What is said of an entry script: as text for people, as JSON for programs.

use std::fmt::Write as _;
use std::net::SocketAddr;

use outrigger_runtime::config::{Config, ScriptConfig};
use outrigger_runtime::scripts::{Ready, StartError};
use outrigger_runtime::with_causes;
use serde_json::{Value, json};

/// A longer sample does not fit a command line well.
const SAMPLE_LIMIT: usize = 4096;
/// As many of the lines that a script writes are shown.
const LINES_SHOWN: usize = 3;

/// The findings.
pub(super) struct Report {
    script: String,
    outcome: Result<Ready, Fault>,
    warnings: Vec<String>,
    address: SocketAddr,
    key_needed: bool,
}

/// Why a script does not come up.
struct Fault {
    phase: String,
    message: String,
    detail: String,
}

impl Fault {
    fn new(error: &StartError) -> Self {
        match error {
            StartError::Script(failure) => Self {
                phase: failure.phase.clone(),
                message: failure.message.clone(),
                detail: failure.traceback.trim_end().to_owned(),
            },
            StartError::Died(death) => {
                Self { phase: "import".into(), message: error.to_string(), detail: death.tail.join("\n") }
            }
            StartError::Timeout { phase, death, .. } => {
                Self { phase: (*phase).into(), message: error.to_string(), detail: death.tail.join("\n") }
            }
            error => Self { phase: "start".into(), message: with_causes(error), detail: String::new() },
        }
    }
}

impl Report {
    /// `lines` are what the script has written, `init` whether `init()` was called.
    pub(super) fn new(
        script: &ScriptConfig,
        outcome: Result<Ready, StartError>,
        lines: Vec<String>,
        init: bool,
        config: &Config,
        notices: &[String],
    ) -> Self {
        let mut warnings = notices.to_vec();
        if !lines.is_empty() {
            let shown: Vec<_> = lines.iter().take(LINES_SHOWN).map(|line| format!("`{line}`")).collect();
            let more = if lines.len() > LINES_SHOWN { ", ..." } else { "" };
            let when = if init { "while it is imported or in init()" } else { "while it is imported" };
            warnings.push(format!("the script writes {when}, in every worker: {}{more}", shown.join(", ")));
        }
        if let Ok(examined) = &outcome {
            let missing: Vec<_> =
                examined.versions().iter().filter(|(_, there)| !there).map(|(v, _)| *v).collect();
            if !missing.is_empty() {
                warnings.push(format!(
                    "the types of the schema cannot be said in swagger {}, so /swagger.json?version= {0} is a 404",
                    missing.join(", ")
                ));
            }
        }
        Self {
            script: script.entry.display().to_string(),
            outcome: outcome.map_err(|error| Fault::new(&error)),
            warnings,
            address: crate::health::reachable(config.listen.score),
            key_needed: config.auth.enabled,
        }
    }

    /// Whether the script would come up.
    pub(super) fn is_ok(&self) -> bool {
        self.outcome.is_ok()
    }

    /// As one JSON object.
    pub(super) fn json(&self) -> Value {
        let mut object = json!({ "script": self.script, "ok": self.is_ok(), "warnings": self.warnings });
        let more = match &self.outcome {
            Ok(examined) => json!({
                "mode": examined.mode,
                "kind": examined.kind.as_str(),
                "headers": examined.headers.as_str(),
                "methods": examined.methods,
                "python": examined.python,
                "swagger": examined.versions().iter().filter(|(_, there)| *there).map(|(v, _)| *v).collect::<Vec<_>>(),
                "sample": sample(examined).map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text))),
                "curl": self.curl(examined),
            }),
            Err(fault) => json!({
                "error": { "phase": fault.phase, "message": fault.message, "detail": fault.detail },
            }),
        };
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more);
        }
        object
    }

    /// As text.
    pub(super) fn text(&self) -> String {
        // Writing to a `String` cannot fail.
        let mut text = String::new();
        match &self.outcome {
            Ok(examined) => {
                let _ = writeln!(text, "{}: ok", self.script);
                let versions = examined.versions();
                let versions: Vec<_> = versions.iter().filter(|(_, there)| *there).map(|(v, _)| *v).collect();
                let headers = match examined.headers.as_str() {
                    "none" => "run() gets no headers",
                    "some" => "run() gets content-type and accept",
                    _ => "run() gets all headers but the caller's key",
                };
                for (name, value) in [
                    ("mode", mode(&examined.mode).to_owned()),
                    ("kind", kind(examined.kind.as_str()).to_owned()),
                    ("methods", examined.methods.join(", ")),
                    ("headers", headers.to_owned()),
                    ("swagger", versions.join(", ")),
                    ("python", examined.python.clone()),
                ] {
                    let _ = writeln!(text, "  {name:<9}{value}");
                }
                let _ = writeln!(text, "a request:\n  {}", self.curl(examined));
                if sample(examined).is_some_and(|sample| sample.len() > SAMPLE_LIMIT) {
                    let _ = writeln!(text, "  (sample.json: `outrigger lint --json` has it as `sample`)");
                }
            }
            Err(fault) => {
                let _ = writeln!(text, "{}: {}: {}", self.script, fault.phase, fault.message);
                for line in fault.detail.lines() {
                    let _ = writeln!(text, "  {line}");
                }
            }
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        text
    }

    /// A request to paste.
    fn curl(&self, examined: &Ready) -> String {
        let mut command = format!("curl -s http://{}/score", self.address);
        if self.key_needed {
            command += " -H \"Authorization: Bearer $KEY\"";
        }
        let body = match sample(examined) {
            Some(sample) => {
                command += " -H 'Content-Type: application/json'";
                if sample.len() > SAMPLE_LIMIT { "@sample.json".into() } else { sample }
            }
            None if examined.mode == "raw" => return command + " --data-binary @FILE",
            None => {
                command += " -H 'Content-Type: application/json'";
                "{\"data\": []}".into()
            }
        };
        command + " -d " + &quoted(&body)
    }
}

/// The body of a sample request, which workers send as text.
fn sample(examined: &Ready) -> Option<String> {
    match examined.sample.as_ref()? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        sample => Some(sample.to_string()),
    }
}

fn mode(mode: &str) -> &str {
    match mode {
        "plain" => "plain: run() gets the body as text",
        "schema" => "schema: run() gets the members of a JSON object",
        "raw" => "raw: run() gets the request",
        mode => mode,
    }
}

fn kind(kind: &str) -> &str {
    match kind {
        "sync" => "sync: one call at a time for each worker",
        "async" => "async: several calls at once in each worker",
        "batch" => "batch: several calls in one",
        kind => kind,
    }
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_for_a_shell() {
        assert_eq!(quoted("{\"a\": \"it's\"}"), "'{\"a\": \"it'\\''s\"}'");
    }
}
