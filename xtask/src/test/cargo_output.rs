//! Reads what `cargo test -- --show-output` prints, line by line: counts, names of failures, skips.

use std::collections::{BTreeMap, BTreeSet};

use super::suite::{Skip, Suite};

/// What has been read so far.
#[derive(Default)]
pub(crate) struct Reader {
    /// Which crate a test program belongs to, by its file name, and what its tests are called before their own names.
    programs: BTreeMap<String, Program>,
    suites: Vec<Suite>,
    current: Option<Program>,
    part: Part,
    /// The test whose output is being read.
    test: Option<String>,
    /// A test program has begun its tests and not given its result.
    unfinished: bool,
    /// Skips of this program that its result will count as passed.
    passed_over: usize,
    /// Tests of this program that have passed and failed, for the case that its result never comes.
    listed: (usize, usize),
    /// Tests that libtest called slow and that have not ended since.
    slow: BTreeSet<String>,
}

/// A test program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) suite: String,
    pub(crate) prefix: String,
    /// How many parts at the beginning of a test's name say what was tested and where: each such beginning is a suite of its own.
    pub(crate) places: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    /// A line per test.
    #[default]
    List,
    /// Output of tests that passed.
    Successes,
    /// Output of tests that failed.
    Failures,
}

impl Reader {
    pub(crate) fn new(programs: BTreeMap<String, Program>) -> Self {
        Self { programs, ..Self::default() }
    }

    /// Takes the next line; says whether a reader of the terminal wants to see it.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        if let Some(program) = self.started(line) {
            self.finish_program();
            self.current = Some(program);
            self.part = Part::List;
            return true;
        }
        if let Some((_, result)) = line.split_once("test result: ") {
            self.result(result);
            self.part = Part::List;
            return true;
        }
        match line {
            "successes:" => (self.part, self.test) = (Part::Successes, None),
            "failures:" => (self.part, self.test) = (Part::Failures, None),
            _ => self.other(line),
        }
        self.part != Part::Successes
    }

    /// What ran, once everything has been read.
    pub(crate) fn finish(mut self) -> Vec<Suite> {
        self.finish_program();
        self.suites.retain(|suite| suite.passed + suite.failed + suite.skips.len() > 0);
        self.suites
    }

    fn started(&self, line: &str) -> Option<Program> {
        let line = line.trim_start();
        if let Some(name) = line.strip_prefix("Doc-tests ") {
            let suite = name.replace('_', "-");
            return Some(Program { prefix: format!("{suite}::doc"), suite, places: 0 });
        }
        let (_, path) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
        let file = path.rsplit('/').next().unwrap_or(path);
        let unknown = || Program { suite: file.to_owned(), prefix: file.to_owned(), places: 0 };
        Some(self.programs.get(file).cloned().unwrap_or_else(unknown))
    }

    /// A program that crashed or was killed before its result is one failure: what it had listed counts, the rest is
    /// lost.
    fn finish_program(&mut self) {
        let (passed, failed) = std::mem::take(&mut self.listed);
        let passed_over = std::mem::take(&mut self.passed_over);
        let slow = std::mem::take(&mut self.slow);
        if !std::mem::take(&mut self.unfinished) {
            return;
        }
        let prefix = self.current.clone().map_or_else(|| "rust".to_owned(), |program| program.prefix);
        let running = if slow.is_empty() { String::new() } else { ", in the middle of ".to_owned() };
        let running = running + &slow.into_iter().collect::<Vec<_>>().join(", ");
        // Those of places have been counted there.
        let (passed, failed) = if self.has_places() { (0, 0) } else { (passed, failed) };
        let suite = self.suite();
        suite.passed += passed.saturating_sub(passed_over);
        suite.failed += failed + 1;
        suite.failures.push(format!("{prefix}: ended before its tests did{running}"));
    }

    /// `ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.12s`
    fn result(&mut self, text: &str) {
        self.unfinished = false;
        let listed = std::mem::take(&mut self.listed);
        // Those of places have been counted there.
        let counted = if self.has_places() { listed } else { (0, 0) };
        let passed_over = std::mem::take(&mut self.passed_over);
        let mut numbers = BTreeMap::new();
        for part in text.split(['.', ';']) {
            if let Some((number, what)) = part.trim().split_once(' ')
                && let Ok(number) = number.parse::<usize>()
            {
                numbers.insert(what, number);
            }
        }
        let count = |what| numbers.get(what).copied().unwrap_or(0);
        let seconds =
            text.rsplit_once("finished in ").and_then(|(_, rest)| rest.trim_end_matches('s').parse().ok());
        let suite = self.suite();
        suite.passed += count("passed").saturating_sub(passed_over + counted.0);
        suite.failed += count("failed").saturating_sub(counted.1);
        suite.seconds += seconds.unwrap_or(0.0);
    }

    fn other(&mut self, line: &str) {
        if self.part == Part::List {
            self.listed(line);
            return;
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = Some(name.to_owned());
        } else if let Some(reason) = line.trim_start().strip_prefix("skipped: ")
            && self.part == Part::Successes
            && let Some(test) = self.test.take()
        {
            self.skip(&test, reason);
            self.passed_over += 1;
        }
    }

    /// `running 3 tests`, and then `test name ... ok`, `... FAILED`, `... ignored, reason`
    fn listed(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" test") || line.ends_with(" tests")) {
            self.unfinished = true;
            return;
        }
        if let Some(reason) = line.strip_prefix("skipped: ") {
            // Printed by a thread that is not the test's own, so that libtest did not keep it and the name is lost.
            self.skip("(unknown)", reason);
            self.passed_over += 1;
            return;
        }
        let Some(rest) = line.strip_prefix("test ") else { return };
        if let Some((name, _)) = rest.split_once(" has been running for over ") {
            self.slow.insert(name.to_owned());
            return;
        }
        let Some((name, outcome)) = rest.split_once(" ... ") else { return };
        // Harnesses that are not Rust's align what comes after it.
        let name = name.trim_end();
        self.slow.remove(name);
        let has_places = self.has_places();
        match outcome {
            "ok" => {
                self.listed.0 += 1;
                self.suite_of(name).passed += usize::from(has_places);
            }
            "FAILED" => {
                self.listed.1 += 1;
                let full = self.full(name);
                let suite = self.suite_of(name);
                suite.failed += usize::from(has_places);
                suite.failures.push(full);
            }
            _ => {
                if let Some(reason) = outcome.strip_prefix("ignored") {
                    // Known only once it ran; told in that way by harnesses that are not Rust's.
                    let told = reason.strip_prefix(" (").and_then(|reason| reason.strip_suffix(')'));
                    self.skip(name, &told.map_or_else(|| format!("ignored{reason}"), str::to_owned));
                }
            }
        }
    }

    fn skip(&mut self, test: &str, reason: &str) {
        let full = self.full(test);
        let suite = self.suite_of(test);
        let test = full;
        let skip = Skip { suite: suite.name.clone(), test, reason: reason.trim().to_owned() };
        suite.skips.push(skip);
    }

    fn full(&self, test: &str) -> String {
        let prefix = self.current.as_ref().map_or("rust", |program| &program.prefix);
        format!("{prefix}::{}", test.trim_end_matches(" - should panic"))
    }

    fn has_places(&self) -> bool {
        self.current.as_ref().is_some_and(|program| program.places > 0)
    }

    fn suite(&mut self) -> &mut Suite {
        let name = self.current.as_ref().map_or("rust", |program| &program.suite).to_owned();
        self.suite_called(&name)
    }

    /// The place's, if the program has such.
    fn suite_of(&mut self, test: &str) -> &mut Suite {
        let places = self.current.as_ref().map_or(0, |program| program.places);
        let parts: Vec<&str> = test.split("::").take(places).collect();
        if places == 0 || parts.len() < places {
            return self.suite();
        }
        let name = self.full(&parts.join("::"));
        self.suite_called(&name)
    }

    fn suite_called(&mut self, name: &str) -> &mut Suite {
        let index = self.suites.iter().position(|suite| suite.name == name).unwrap_or_else(|| {
            self.suites.push(Suite::new(name));
            self.suites.len() - 1
        });
        &mut self.suites[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "     Running unittests src/lib.rs (target/debug/deps/outrigger_auth-0a1b)

running 3 tests
test keys::tests::equal ... ok
test keys::tests::device ... ok
test keys::tests::broken ... FAILED

successes:

---- keys::tests::device stdout ----
looking
skipped: no CUDA device

---- keys::tests::equal stdout ----
not skipped: all is well

successes:
    keys::tests::device
    keys::tests::equal

failures:

---- keys::tests::broken stdout ----
skipped: this test fails all the same
assertion failed

failures:
    keys::tests::broken

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.25s

     Running tests/serve.rs (target/debug/deps/serve-9f8e)

running 3 tests
skipped: no second core
test drains ... ok
test drains_twice ... ok
test slow ... ignored, takes an hour
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.50s

   Doc-tests outrigger_auth

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn reader() -> Reader {
        let program =
            |suite: &str, prefix: &str| Program { suite: suite.into(), prefix: prefix.into(), places: 0 };
        let conformance = Program { places: 2, ..program("outrigger", "outrigger::conformance") };
        Reader::new(BTreeMap::from([
            ("conformance-5c".into(), conformance),
            ("outrigger_auth-0a1b".into(), program("outrigger-auth", "outrigger-auth")),
            ("serve-9f8e".into(), program("outrigger", "outrigger::serve")),
        ]))
    }

    #[test]
    fn counts_failures_and_skips() {
        let mut reader = reader();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| reader.line(line)).collect();
        assert!(shown.contains(&"assertion failed") && !shown.contains(&"looking"), "{shown:?}");
        let skip = |suite: &str, test: &str, reason: &str| Skip {
            suite: suite.into(),
            test: test.into(),
            reason: reason.into(),
        };
        let auth = Suite {
            name: "outrigger-auth".into(),
            passed: 1,
            failed: 1,
            seconds: 0.25,
            failures: vec!["outrigger-auth::keys::tests::broken".into()],
            skips: vec![skip("outrigger-auth", "outrigger-auth::keys::tests::device", "no CUDA device")],
        };
        let serve = Suite {
            name: "outrigger".into(),
            passed: 1,
            seconds: 1.5,
            skips: vec![
                skip("outrigger", "outrigger::serve::(unknown)", "no second core"),
                skip("outrigger", "outrigger::serve::slow", "ignored, takes an hour"),
            ],
            ..Suite::default()
        };
        assert_eq!(reader.finish(), [auth, serve]);
    }

    const PLACES: &str = "     Running tests/conformance/main.rs (target/debug/deps/conformance-5c)

running 5 tests
test fake::in_process::adds     ... ok
test fake::in_process::cancels  ... ok
test cpu::in_process::adds      ... FAILED
test cpu::in_process::cancels   ... ignored (no model that can be cancelled)
test cpu::elsewhere             ... ok

failures:

---- cpu::in_process::adds ----
test panicked: 1 is not 2

failures:
    cpu::in_process::adds

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2.50s
";

    #[test]
    fn every_backend_has_a_row_for_every_place() {
        let mut reader = reader();
        for line in PLACES.lines() {
            reader.line(line);
        }
        let suites = reader.finish();
        let rows: Vec<_> = suites
            .iter()
            .map(|suite| (suite.name.as_str(), suite.passed, suite.failed, suite.skips.len()))
            .collect();
        assert_eq!(
            rows,
            [
                ("outrigger::conformance::fake::in_process", 2, 0, 0),
                ("outrigger::conformance::cpu::in_process", 0, 1, 1),
                ("outrigger::conformance::cpu::elsewhere", 1, 0, 0),
            ]
        );
        assert_eq!(suites[1].failures, ["outrigger::conformance::cpu::in_process::adds"]);
        assert_eq!(suites[1].skips[0].reason, "no model that can be cancelled");

        let mut reader = super::tests::reader();
        for line in PLACES.lines().take(5) {
            reader.line(line);
        }
        let suites = reader.finish();
        assert_eq!(
            suites.iter().map(|suite| (suite.passed, suite.failed)).collect::<Vec<_>>(),
            [(2, 0), (0, 1)]
        );
    }

    #[test]
    fn a_crash_is_a_failure() {
        let mut reader = reader();
        for line in OUTPUT.lines().take(5) {
            reader.line(line);
        }
        for test in ["keys::tests::broken", "keys::tests::hung"] {
            reader.line(&format!("test {test} has been running for over 60 seconds"));
        }
        reader.line("test keys::tests::broken ... FAILED");
        let suites = reader.finish();
        assert_eq!(
            suites[0].failures,
            [
                "outrigger-auth::keys::tests::broken",
                "outrigger-auth: ended before its tests did, in the middle of keys::tests::hung"
            ]
        );
        assert_eq!((suites[0].passed, suites[0].failed), (2, 2));
    }
}
