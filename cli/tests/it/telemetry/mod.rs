//! What a replica tells of requests: phases, series by model, lines of the log.

mod collector;
mod health;
mod insights;
mod kept;
mod lines;
mod models;
mod phases;
mod promtool;
mod traces;

use outrigger_testkit::replica::message;
use serde_json::Value;

/// Of a line of the log, whether it is one of a request, and that of this one.
fn is_line_of(line: &Value, request: &str) -> bool {
    line["target"] == "outrigger::access" && line["fields"]["request"] == request
}

/// What a script has printed.
fn is_printed(line: &Value, text: &str) -> bool {
    line["target"] == "outrigger::script" && message(line) == text
}
