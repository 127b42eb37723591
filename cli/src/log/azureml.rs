//! The log in the lines of AzureML's inference server.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What scripts print and log.
const SCRIPT: &str = "outrigger::script";
/// The lines of requests.
const ACCESS: &str = "outrigger::access";

/// `2024-01-31 12:00:00,123 I [pid] logger - text`, in UTC. The logger is the event's field `logger` where it has one; the process is that
/// in the field `pid`, else this one. Other fields follow the text, but for what scripts print, where the text is all.
pub(super) struct AzureMl;

impl<S, N> FormatEvent<S, N> for AzureMl
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::with_capacity(32);
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let target = event.metadata().target();
        let mut line =
            Line { bare: target.starts_with(SCRIPT) || target.starts_with(ACCESS), ..Line::default() };
        event.record(&mut line);
        let logger = match (line.logger.as_str(), target) {
            ("", SCRIPT) => "azmlinfsrv.print",
            ("", _) => "azmlinfsrv",
            (logger, _) => logger,
        };
        let letter = match *event.metadata().level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            Level::INFO => 'I',
            _ => 'D',
        };
        let pid = line.pid.unwrap_or_else(|| u64::from(std::process::id()));
        writeln!(writer, "{} {letter} [{pid}] {logger} - {}{}", timestamp(&time), line.message, line.fields)
    }
}

/// `2024-01-31T12:00:00.123456Z` as `2024-01-31 12:00:00,123`.
fn timestamp(time: &str) -> String {
    let milliseconds = time.get(..23).unwrap_or(time);
    milliseconds.replace('T', " ").replace('.', ",")
}

/// An event's parts.
#[derive(Default)]
struct Line {
    bare: bool,
    message: String,
    logger: String,
    pid: Option<u64>,
    fields: String,
}

impl Line {
    fn other(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Writing to a `String` cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            "logger" => write!(self.logger, "{value}"),
            _ if self.bare => Ok(()),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.other(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.other(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "pid" {
            self.pid = Some(value);
        } else {
            self.other(field, format_args!("{value}"));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match u64::try_from(value) {
            Ok(value) => self.record_u64(field, value),
            Err(_) => self.other(field, format_args!("{value}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_have_the_grammar_of_azureml_s_server() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().event_format(AzureMl).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "outrigger::script", worker = 0, pid = 77, stream = "stdout", "printed: {}", "it");
            tracing::info!(target: "outrigger::script", pid = 77, logger = "mine", "logged");
            tracing::info!(target: "outrigger::access", "POST /score 200 1.234ms 27");
            tracing::warn!(worker = 3, name = %"x", "worker lost");
            tracing::error!("bad");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let own = std::process::id();
        let expected = [
            "I [77] azmlinfsrv.print - printed: it".to_owned(),
            "I [77] mine - logged".to_owned(),
            format!("I [{own}] azmlinfsrv - POST /score 200 1.234ms 27"),
            format!("W [{own}] azmlinfsrv - worker lost worker=3 name=x"),
            format!("E [{own}] azmlinfsrv - bad"),
        ];
        assert_eq!(text.lines().count(), expected.len(), "{text}");
        for (line, expected) in text.lines().zip(expected) {
            // `YYYY-mm-dd HH:MM:SS,mmm`
            let (time, rest) = line.split_at(24);
            assert_eq!(rest, expected);
            let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            assert_eq!(shape, "0000-00-00 00:00:00,000 ");
        }
    }

    #[test]
    fn a_time_loses_its_letters_and_microseconds() {
        assert_eq!(timestamp("2024-01-31T12:00:00.123456Z"), "2024-01-31 12:00:00,123");
    }
}
