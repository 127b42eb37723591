//! A line of the log as AzureML's inference server writes it.

use std::fmt::Write as _;

use tracing::Level;

use super::parts::{ACCESS, Parts, SCRIPT, Value};

/// `2024-01-31 12:00:00,123 I [pid] logger - text`, in UTC. The logger is the event's field `logger` where it has one; the process is that
/// in the field `pid`, else this one. Other fields follow the text, but for requests and for what scripts print, where the text is all.
pub(super) fn line(parts: &Parts) -> String {
    let bare = parts.is_scripts() || parts.target.starts_with(ACCESS);
    let logger = match (parts.text("logger"), parts.target) {
        (None, SCRIPT) => "azmlinfsrv.print",
        (None, _) => "azmlinfsrv",
        (Some(logger), _) => logger,
    };
    let letter = match parts.level {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        Level::INFO => 'I',
        _ => 'D',
    };
    let own = || u64::from(std::process::id());
    let pid = parts.fields.iter().find_map(|(name, value)| match value {
        Value::Unsigned(pid) if *name == "pid" => Some(*pid),
        Value::Signed(pid) if *name == "pid" => u64::try_from(*pid).ok(),
        _ => None,
    });
    let (time, pid) = (timestamp(&parts.time), pid.unwrap_or_else(own));
    let mut line = format!("{time} {letter} [{pid}] {logger} - ");
    push_visible(&mut line, &parts.message, &['\n', '\t']);
    if !bare {
        for (name, value) in parts.fields.iter().filter(|(name, _)| !["logger", "pid"].contains(name)) {
            // Writing to a `String` cannot fail.
            let _ = write!(line, " {name}=");
            push_visible(&mut line, &value.to_string(), &[]);
        }
    }
    line
}

/// Writes control characters as escapes, but for some: that server writes tracebacks as they are. In a field, the end of a line would be taken
/// for the beginning of another.
fn push_visible(out: &mut String, text: &str, but: &[char]) {
    for c in text.chars() {
        if c.is_control() && !but.contains(&c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
}

/// `2024-01-31T12:00:00.123456Z` as `2024-01-31 12:00:00,123`.
fn timestamp(time: &str) -> String {
    let milliseconds = time.get(..23).unwrap_or(time);
    milliseconds.replace('T', " ").replace('.', ",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_loses_its_letters_and_microseconds() {
        assert_eq!(timestamp("2024-01-31T12:00:00.123456Z"), "2024-01-31 12:00:00,123");
    }
}
