//! The last lines of the log, for who asks for them: a ring that is bounded in bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What a line holds beside its texts, bytes.
const OVERHEAD: usize = 128;

/// How severe a line is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The least severe.
    Trace,
    /// For who looks for a mistake.
    Debug,
    /// What happens.
    Info,
    /// What may be wrong.
    Warn,
    /// What is wrong.
    Error,
}

/// Who has written a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The replica.
    Replica,
    /// A script: what it prints and logs.
    Script,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct KeptLine {
    /// When it was written, as RFC 3339 has it, in UTC.
    pub time: String,
    /// How severe it is.
    pub level: Severity,
    /// Who has written it.
    pub source: Source,
    /// The request to which it belongs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The line as it stands in the log.
    pub line: String,
}

/// Which lines are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) request: Option<String>,
    /// No less severe ones.
    pub(crate) level: Option<Severity>,
    pub(crate) source: Option<Source>,
}

impl Wanted {
    fn wants(&self, line: &KeptLine) -> bool {
        self.request.as_ref().is_none_or(|id| line.request.as_ref() == Some(id))
            && self.level.is_none_or(|level| line.level >= level)
            && self.source.is_none_or(|source| line.source == source)
    }
}

/// The last lines.
pub struct KeptLines {
    limit: usize,
    lines: Mutex<Ring>,
    /// How many lines there have ever been.
    count: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Arc<KeptLine>>,
    bytes: usize,
    /// The number of the first line.
    first: u64,
}

impl KeptLines {
    /// Keeps so many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, lines: Mutex::default(), count: watch::Sender::new(0) })
    }

    /// Whether any are kept at all.
    pub fn keeps(&self) -> bool {
        self.limit > 0
    }

    /// Keeps one more, and lets those go for which there is no room then. One that is larger than all the room is not kept.
    pub fn keep(&self, line: KeptLine) {
        let size = size(&line);
        if size > self.limit {
            return;
        }
        let count = {
            let mut ring = self.lock();
            ring.bytes += size;
            ring.lines.push_back(Arc::new(line));
            while ring.bytes > self.limit
                && let Some(oldest) = ring.lines.pop_front()
            {
                ring.bytes -= self::size(&oldest);
                ring.first += 1;
            }
            ring.first + ring.lines.len() as u64
        };
        self.count.send_replace(count);
    }

    /// All that are kept.
    pub fn all(&self) -> Vec<Arc<KeptLine>> {
        self.last(&Wanted::default(), usize::MAX).0
    }

    /// The last `most` of those that are wanted, and the number of the next that may come.
    pub(crate) fn last(&self, wanted: &Wanted, most: usize) -> (Vec<Arc<KeptLine>>, u64) {
        let ring = self.lock();
        let wanting = ring.lines.iter().rev().filter(|line| wanted.wants(line)).take(most);
        let mut lines: Vec<_> = wanting.cloned().collect();
        lines.reverse();
        (lines, ring.first + ring.lines.len() as u64)
    }

    /// Those that are wanted from this number on, the number after them, and how many have gone meanwhile.
    pub(crate) fn since(&self, wanted: &Wanted, number: u64) -> (Vec<Arc<KeptLine>>, u64, u64) {
        let ring = self.lock();
        let gone = ring.first.saturating_sub(number);
        let skip = usize::try_from(number.saturating_sub(ring.first)).unwrap_or(usize::MAX);
        let lines = ring.lines.iter().skip(skip).filter(|line| wanted.wants(line)).cloned().collect();
        (lines, ring.first + ring.lines.len() as u64, gone)
    }

    /// Tells of further lines.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Nothing panics while the lock is held; a poisoned lock would still hold lines.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(line: &KeptLine) -> usize {
    line.line.len() + line.time.len() + line.request.as_ref().map_or(0, String::len) + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, request: Option<&str>, level: Severity, source: Source) -> KeptLine {
        let request = request.map(str::to_owned);
        KeptLine { time: String::new(), level, source, request, line: text.into() }
    }

    fn texts(lines: &[Arc<KeptLine>]) -> Vec<&str> {
        lines.iter().map(|line| line.line.as_str()).collect()
    }

    #[test]
    fn bytes_are_bounded_and_the_oldest_go() {
        let kept = KeptLines::new(3 * (1 + OVERHEAD));
        let watch = kept.watch();
        for text in ["a", "b", "c", "d", "e"] {
            kept.keep(line(text, None, Severity::Info, Source::Replica));
        }
        kept.keep(line(&"x".repeat(1000), None, Severity::Info, Source::Replica));
        let all = Wanted::default();
        let (lines, next) = kept.last(&all, 2);
        assert_eq!((texts(&lines), next, *watch.borrow()), (vec!["d", "e"], 5, 5));
        let (lines, next, gone) = kept.since(&all, 1);
        assert_eq!((texts(&lines), next, gone), (vec!["c", "d", "e"], 5, 1));
        let (lines, _, gone) = kept.since(&all, 5);
        assert!(lines.is_empty() && gone == 0);
    }

    #[test]
    fn what_is_wanted_is_found() {
        let kept = KeptLines::new(1 << 20);
        kept.keep(line("a", Some("1"), Severity::Info, Source::Script));
        kept.keep(line("b", Some("2"), Severity::Error, Source::Script));
        kept.keep(line("c", Some("1"), Severity::Warn, Source::Replica));
        kept.keep(line("d", None, Severity::Debug, Source::Replica));
        let check = |request: Option<&str>, level, source, expected: &[&str]| {
            let wanted = Wanted { request: request.map(str::to_owned), level, source };
            assert_eq!(texts(&kept.last(&wanted, 9).0), expected);
        };
        check(Some("1"), None, None, &["a", "c"]);
        check(None, Some(Severity::Warn), None, &["b", "c"]);
        check(None, None, Some(Source::Replica), &["c", "d"]);
        check(Some("1"), Some(Severity::Warn), Some(Source::Script), &[]);
        check(Some("3"), None, None, &[]);
    }
}
