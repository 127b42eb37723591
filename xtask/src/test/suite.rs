//! What ran: counts, names of failures, skips with their reasons.

use anyhow::Error;

use crate::table::{self, Align};

/// The tests of one crate, or all of Python's.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) seconds: f64,
    /// Names of failed tests, as far as they are known.
    pub(crate) failures: Vec<String>,
    pub(crate) skips: Vec<Skip>,
}

/// A test that did not test, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) suite: String,
    /// Full name: `crate::path::test`, or pytest's node id.
    pub(crate) test: String,
    pub(crate) reason: String,
}

impl Suite {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A suite that could not be run, which is one failure.
    pub(crate) fn broken(name: &str, error: &Error) -> Self {
        Self { failed: 1, failures: vec![format!("{name}: {error:#}")], ..Self::new(name) }
    }
}

/// Sums over suites.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Totals {
    pub(crate) fn of(suites: &[Suite]) -> Self {
        Self {
            passed: suites.iter().map(|suite| suite.passed).sum(),
            failed: suites.iter().map(|suite| suite.failed).sum(),
            skipped: suites.iter().map(|suite| suite.skips.len()).sum(),
        }
    }

    /// Tests that tested something.
    pub(crate) fn ran(&self) -> usize {
        self.passed + self.failed
    }

    pub(crate) fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Names of all failed tests.
pub(crate) fn failures(suites: &[Suite]) -> Vec<String> {
    suites.iter().flat_map(|suite| suite.failures.iter().cloned()).collect()
}

/// All skips with their reasons.
pub(crate) fn skips(suites: &[Suite]) -> Vec<String> {
    suites
        .iter()
        .flat_map(|suite| &suite.skips)
        .map(|skip| format!("{}: {}", skip.test, skip.reason))
        .collect()
}

/// One row per suite.
pub(crate) fn table(suites: &[Suite]) -> String {
    let header = [
        ("suite", Align::Left),
        ("passed", Align::Right),
        ("failed", Align::Right),
        ("skipped", Align::Right),
        ("seconds", Align::Right),
    ];
    let row = |suite: &Suite| {
        vec![
            suite.name.clone(),
            suite.passed.to_string(),
            suite.failed.to_string(),
            suite.skips.len().to_string(),
            format!("{:.1}", suite.seconds),
        ]
    };
    table::render(&header, &suites.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_table() {
        let skip = Skip { suite: "b".into(), test: "b::t".into(), reason: "no device".into() };
        let suites = [
            Suite { passed: 10, seconds: 1.25, ..Suite::new("a") },
            Suite {
                passed: 2,
                failures: vec!["b::x".into()],
                failed: 1,
                skips: vec![skip],
                ..Suite::new("b")
            },
        ];
        assert_eq!(Totals::of(&suites).line(), "12 passed, 1 failed, 1 skipped");
        assert_eq!(Totals::of(&suites).ran(), 13);
        assert_eq!(failures(&suites), ["b::x"]);
        assert_eq!(skips(&suites), ["b::t: no device"]);
        assert_eq!(
            table(&suites),
            "suite  passed  failed  skipped  seconds\n\
             -----  ------  ------  -------  -------\n\
             a          10       0        0      1.2\n\
             b           2       1        1      0.0\n"
        );
    }
}
