//! What becomes of an event: a line in one of the formats, or none where there are too many of its kind. It is kept for who asks for it
//! later, too.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use outrigger_runtime::config::LogFormat;
use outrigger_runtime::telemetry::{KeptLine, KeptLines, Source};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::azureml;
use super::parts::{ACCESS, Parts, SCRIPT, Value, push_safe};
use super::rate::Rate;

/// Makes lines.
pub(super) struct Lines {
    /// One that is decided: not [`LogFormat::Auto`].
    pub(super) format: LogFormat,
    /// Whether they are for a terminal that has colours.
    pub(super) colours: bool,
    pub(super) rate: Rate,
    pub(super) kept: Option<Arc<KeptLines>>,
}

impl<S, N> FormatEvent<S, N> for Lines
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
        // What is written for nothing is no line.
        let Some(left_out) = self.left_out(event) else { return Ok(()) };
        let mut parts = Parts::of(event);
        if left_out > 0 {
            parts.fields.push(("left_out", Value::Unsigned(left_out)));
        }
        let line = self.line(&parts);
        writeln!(writer, "{line}")?;
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.keeps()) {
            let request = parts.text("request").map(str::to_owned);
            let source = if parts.is_scripts() { Source::Script } else { Source::Replica };
            // Colours are the terminal's.
            let line = if self.colours { text(&parts, false) } else { line };
            kept.keep(KeptLine { level: parts.severity(), source, request, line, time: parts.time });
        }
        Ok(())
    }
}

impl Lines {
    /// How many lines like it have been left out before it; nothing where it is left out as well.
    fn left_out(&self, event: &Event<'_>) -> Option<u64> {
        let metadata = event.metadata();
        let (level, target) = (*metadata.level(), metadata.target());
        // The name of an event that nobody has named begins otherwise; whoever wants all requests has all of them.
        let of_many = target == ACCESS && metadata.name() != "request";
        if !of_many && (level > Level::WARN || target.starts_with(SCRIPT)) {
            return Some(0);
        }
        self.rate.admit(metadata.callsite(), Instant::now())
    }

    fn line(&self, parts: &Parts) -> String {
        match self.format {
            LogFormat::Auto | LogFormat::Text => text(parts, self.colours),
            LogFormat::Json => json(parts),
            LogFormat::AzureMl => azureml::line(parts),
        }
    }
}

/// `2024-01-31T12:00:00.123456Z  INFO target: message field=value`.
fn text(parts: &Parts, colours: bool) -> String {
    let (begin, end, dim) = match (colours, parts.level) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\u{1b}[31m", "\u{1b}[0m", "\u{1b}[2m"),
        (true, Level::WARN) => ("\u{1b}[33m", "\u{1b}[0m", "\u{1b}[2m"),
        (true, Level::INFO) => ("\u{1b}[32m", "\u{1b}[0m", "\u{1b}[2m"),
        (true, _) => ("\u{1b}[34m", "\u{1b}[0m", "\u{1b}[2m"),
    };
    let Parts { time, level, target, .. } = parts;
    let mut line = format!("{dim}{time}{end} {begin}{level:>5}{end} {dim}{target}:{end} ");
    push_safe(&mut line, &parts.message);
    for (name, value) in &parts.fields {
        line.push(' ');
        line.push_str(name);
        line.push('=');
        match value {
            // What has a space in it would look like two fields.
            Value::Text(text) if text.is_empty() || text.contains([' ', '"', '=']) => {
                line.push('"');
                push_safe(&mut line, &text.replace('\\', "\\\\").replace('"', "\\\""));
                line.push('"');
            }
            value => push_safe(&mut line, &value.to_string()),
        }
    }
    line
}

/// `{"timestamp": ..., "level": ..., "fields": {"message": ..., ...}, "target": ...}`.
fn json(parts: &Parts) -> String {
    let mut fields = serde_json::Map::new();
    fields.insert("message".into(), parts.message.clone().into());
    for (name, value) in &parts.fields {
        let value = match value {
            Value::Text(text) => text.clone().into(),
            Value::Unsigned(number) => (*number).into(),
            Value::Signed(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Flag(flag) => (*flag).into(),
        };
        fields.insert((*name).into(), value);
    }
    let line = serde_json::json!({
        "timestamp": parts.time,
        "level": parts.level.as_str(),
        "fields": fields,
        "target": parts.target,
    });
    line.to_string()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written in a format, without its times.
    fn written(format: LogFormat, rate: usize, kept: Option<Arc<KeptLines>>, say: impl FnOnce()) -> String {
        let written = Written::default();
        let lines = Lines { format, colours: false, rate: Rate::new(rate), kept };
        let writer = written.clone();
        let subscriber =
            tracing_subscriber::fmt().event_format(lines).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, say);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn lines_have_the_grammar_of_azureml_s_server() {
        let text = written(LogFormat::AzureMl, 0, None, || {
            tracing::info!(target: "outrigger::script", worker = 0, pid = 77, stream = "stdout", "printed: {}", "it");
            tracing::info!(target: "outrigger::script", pid = 77, logger = "mine", "logged");
            tracing::info!(target: "outrigger::access", request = "a", status = 200, "POST /score 200 1.234ms 27");
            tracing::warn!(worker = 3, name = %"x", "worker lost");
            tracing::error!("bad\r");
        });
        let own = std::process::id();
        let expected = [
            "I [77] azmlinfsrv.print - printed: it".to_owned(),
            "I [77] mine - logged".to_owned(),
            format!("I [{own}] azmlinfsrv - POST /score 200 1.234ms 27"),
            format!("W [{own}] azmlinfsrv - worker lost worker=3 name=x"),
            format!("E [{own}] azmlinfsrv - bad\\r"),
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
    fn text_is_for_people_and_cannot_be_forged() {
        let text = written(LogFormat::Text, 0, None, || {
            tracing::warn!(target: "t", count = 3, name = "a b=\"c\"", more = "x\u{1b}[2J", "two\nlines");
        });
        let (time, rest) = text.split_at(27);
        assert!(time.ends_with('Z'), "{time}");
        assert_eq!(rest, "  WARN t: two\n    lines count=3 name=\"a b=\\\"c\\\"\" more=x\\u{1b}[2J\n");
    }

    #[test]
    fn json_has_fields_with_their_types() {
        let text = written(LogFormat::Json, 0, None, || {
            tracing::info!(target: "t", count = 3_u64, part = 0.5, is = true, name = "a\"b", "said\n");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((text.lines().count(), &line["level"], &line["target"]), (1, &"INFO".into(), &"t".into()));
        let expected =
            serde_json::json!({"message": "said\n", "count": 3, "part": 0.5, "is": true, "name": "a\"b"});
        assert_eq!(line["fields"], expected);
    }

    #[test]
    fn a_flood_is_left_out_and_told_of_and_scripts_say_what_they_like() {
        let text = written(LogFormat::Text, 2, None, || {
            for number in 0..10 {
                tracing::warn!(target: "t", number, "again");
                tracing::error!(target: "outrigger::script", number, "a script's");
                tracing::info!(name: "failed request", target: "outrigger::access", number, "refused");
                tracing::info!(name: "request", target: "outrigger::access", number, "each");
            }
        });
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!((count("again"), count("a script's"), count("refused"), count("each")), (2, 10, 2, 10));
    }

    #[test]
    fn nothing_that_is_said_makes_a_line_of_its_own() {
        let said = "x\n2024-01-31 12:00:00,123 I [1] root - made up";
        let text = written(LogFormat::AzureMl, 0, None, || tracing::warn!(said, "two\nlines"));
        let lines: Vec<_> = text.lines().collect();
        // What that server says of itself has several lines where it is a traceback.
        assert!(lines.len() == 2 && lines[1].starts_with("lines said=x\\n2024-01-31"), "{lines:?}");
    }

    #[test]
    fn what_is_kept_says_whose_it_is() {
        let kept = KeptLines::new(1 << 20);
        let text = written(LogFormat::Json, 0, Some(Arc::clone(&kept)), || {
            tracing::error!(target: "outrigger::script", request = "r1", "raised");
            tracing::info!("ready");
        });
        let lines = kept.all();
        let said: Vec<_> =
            lines.iter().map(|line| (line.source, line.request.as_deref(), line.line.as_str())).collect();
        let written: Vec<_> = text.lines().collect();
        assert_eq!(said, [(Source::Script, Some("r1"), written[0]), (Source::Replica, None, written[1])]);
    }
}
