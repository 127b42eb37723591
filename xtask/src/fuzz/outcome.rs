//! What became of a target, as libFuzzer tells it.

use std::path::PathBuf;
use std::process::ExitStatus;

/// What a target did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) target: String,
    /// Inputs that it was run on.
    pub(crate) executions: u64,
    /// Places in the code that were reached.
    pub(crate) coverage: u64,
    /// Inputs that are worth keeping, and their bytes as libFuzzer shows them: `1234b`, `56Kb`.
    pub(crate) corpus: String,
    /// Where the input was written that it did not survive.
    pub(super) input: Option<String>,
    /// What it said of that: the panic or the limit, and the input as Base64, for where its files are gone.
    pub(super) said: Vec<String>,
    pub(crate) crash: Option<Crash>,
}

/// Why a target has failed.
#[derive(Debug)]
pub(crate) struct Crash {
    pub(crate) status: ExitStatus,
    /// All that it printed.
    pub(crate) log: PathBuf,
    /// What does it again.
    pub(crate) reproduce: Option<String>,
    /// The panic or the limit that was met, and the input as Base64.
    pub(crate) said: Vec<String>,
}

impl Crash {
    /// What happened and how to see it again, for people.
    pub(crate) fn shown(&self) -> String {
        let what = match &self.reproduce {
            Some(command) => format!("again with `{command}`"),
            None => "no input was written".into(),
        };
        let said: String = self.said.iter().map(|line| format!("\n    {line}")).collect();
        format!("{}; {what}; its log is {}{said}", self.status, self.log.display())
    }
}

impl Outcome {
    /// Reads what a target printed: lines of progress such as `#65536 NEW    cov: 553 ft: 1009 corp: 98/4511b lim: 43 exec/s: 0 …`, and in the end
    /// `stat::number_of_executed_units: 65536`.
    pub(super) fn read(target: &str, text: &str) -> Self {
        let mut outcome = Self { target: target.to_owned(), ..Self::default() };
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |name: &str| {
                words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied()
            };
            if let Some(count) = words.first().and_then(|word| word.strip_prefix('#')?.parse().ok()) {
                outcome.executions = count;
                outcome.coverage =
                    after("cov:").and_then(|word| word.parse().ok()).unwrap_or(outcome.coverage);
                outcome.corpus = after("corp:").map_or(outcome.corpus, str::to_owned);
            }
            if let Some(count) = after("stat::number_of_executed_units:").and_then(|word| word.parse().ok()) {
                outcome.executions = count;
            }
            if let Some((_, path)) = line.split_once("Test unit written to ") {
                outcome.input = Some(path.to_owned());
            }
            let is_reason = line.contains("ERROR: libFuzzer: ") && !line.contains("deadly signal");
            if is_reason || line.starts_with("Base64: ") {
                outcome.said.push(shortened(line));
            } else if line.contains(" panicked at ") {
                // What it says stands on the line behind.
                outcome.said.extend([line, lines.next().unwrap_or_default()].map(shortened));
            }
        }
        outcome
    }

    /// A line of the log.
    pub(crate) fn line(&self) -> String {
        let verdict = self.crash.as_ref().map_or("ok".into(), Crash::shown);
        format!(
            "{:<20} {:>12} executions, coverage {:>5}, corpus {:>10}: {verdict}",
            self.target, self.executions, self.coverage, self.corpus
        )
    }
}

/// As much of a line as is of use in a list of failures.
fn shortened(line: &str) -> String {
    const MOST: usize = 4096;
    line.chars().take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        let text = "INFO: seed corpus: files: 5\n\
                    #6\tINITED cov: 12 ft: 13 corp: 2/40b exec/s: 0 rss: 40Mb\n\
                    #4096\tpulse  cov: 19 ft: 20 corp: 4/2Kb lim: 43 exec/s: 2048 rss: 41Mb\n\
                    #5000\tDONE   cov: 21 ft: 25 corp: 5/3Kb lim: 43 exec/s: 2500 rss: 41Mb\n\
                    Done 5000 runs in 2 second(s)\n\
                    stat::number_of_executed_units: 5001\n";
        let outcome = Outcome::read("a", text);
        assert_eq!((outcome.executions, outcome.coverage, outcome.corpus.as_str()), (5001, 21, "5/3Kb"));
        assert_eq!(outcome.input, None);
        let line = "a                            5001 executions, coverage    21, corpus      5/3Kb: ok";
        assert_eq!(outcome.line(), line);
    }

    #[test]
    fn the_input_of_a_crash_is_named() {
        let text = "#7\tNEW    cov: 1 ft: 1 corp: 1/1b lim: 4 exec/s: 0 rss: 1Mb\n\
                    thread '<unnamed>' (7) panicked at fuzz_targets/a.rs:9:1:\n\
                    it is not whole\n\
                    note: run with a backtrace\n\
                    ==7== ERROR: libFuzzer: deadly signal\n\
                    artifact_prefix='/r/'; Test unit written to /r/crash-0a\nBase64: AA==\n";
        let outcome = Outcome::read("a", text);
        assert_eq!((outcome.executions, outcome.input.as_deref()), (7, Some("/r/crash-0a")));
        let panic = "thread '<unnamed>' (7) panicked at fuzz_targets/a.rs:9:1:";
        assert_eq!(outcome.said, [panic, "it is not whole", "Base64: AA=="]);
        let text = "==7== ERROR: libFuzzer: timeout after 61 seconds\n";
        assert_eq!(Outcome::read("a", text).said, [text.trim_end()]);
    }
}
