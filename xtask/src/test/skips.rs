//! The skips that are allowed: a line per case, `suite or test : beginning of the reason`.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::suite::Skip;

/// The lines of `ci/allowed-skips`.
#[derive(Debug)]
pub(crate) struct Allowed {
    lines: Vec<Line>,
    /// Beginnings of reasons that are none here, whatever the lines say.
    demanded: Vec<String>,
}

/// Beginnings of reasons, divided by `;`, for which nothing may be skipped: what whoever runs the tests knows to be there.
pub(crate) const DEMAND: &str = "OUTRIGGER_TEST_DEMAND";

#[derive(Debug)]
struct Line {
    /// Matches a suite or the full name of a test; `*` stands for anything.
    pattern: String,
    reason: String,
}

impl Allowed {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // With spaces, since names of tests have `::` in them.
            match line.split_once(" : ").map(|(pattern, reason)| (pattern.trim(), reason.trim())) {
                Some((pattern, reason)) if !pattern.is_empty() && !reason.is_empty() => {
                    lines.push(Line { pattern: pattern.into(), reason: reason.into() });
                }
                _ => bail!(
                    "line {}: expected `suite or test : beginning of the reason`, got `{line}`",
                    index + 1
                ),
            }
        }
        Ok(Self { lines, demanded: Vec::new() })
    }

    /// Allows no skip for these reasons, as [`DEMAND`] has them.
    #[must_use]
    pub(crate) fn demanding(mut self, reasons: &str) -> Self {
        let reasons = reasons.split(';').map(str::trim).filter(|reason| !reason.is_empty());
        self.demanded = reasons.map(Into::into).collect();
        self
    }

    /// The number of the first line that allows a skip.
    pub(crate) fn line_for(&self, skip: &Skip) -> Option<usize> {
        if self.demanded.iter().any(|reason| skip.reason.starts_with(reason)) {
            return None;
        }
        self.lines.iter().position(|line| {
            (matches(&line.pattern, &skip.suite) || matches(&line.pattern, &skip.test))
                && skip.reason.starts_with(&line.reason)
        })
    }

    /// Lines that were not needed: normal where a machine has the device, a leftover where no machine does.
    pub(crate) fn unused(&self, used: &BTreeSet<usize>) -> Vec<String> {
        let unused = self.lines.iter().enumerate().filter(|(index, _)| !used.contains(index));
        unused.map(|(_, line)| format!("{} : {}", line.pattern, line.reason)).collect()
    }
}

/// Whether all of `text` matches; `*` stands for any text, the empty one too.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let check = |pattern: &str, text: &str, expected: bool| {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        };
        check("outrigger-cpu", "outrigger-cpu", true);
        check("outrigger-cpu", "outrigger-cpu::x", false);
        check("outrigger-cpu::*", "outrigger-cpu::x::y", true);
        check("*::cuda_*_works", "a::cuda_two_works", true);
        check("*::cuda_*_works", "a::cuda_works", false);
        check("*", "", true);
        check("a*a", "a", false);
        check("a*b*b", "a-b-b", true);
        check("a*b*b", "a-b", false);
    }

    #[test]
    fn a_skip_needs_name_and_reason() {
        let allowed = Allowed::parse(
            "# a comment\n\n outrigger-cuda : no CUDA device \npython : no GPU\n*::test_memfd : needs Linux",
        )
        .unwrap();
        let check = |suite: &str, test: &str, reason: &str, expected| {
            let skip = Skip { suite: suite.into(), test: test.into(), reason: reason.into() };
            assert_eq!(allowed.line_for(&skip), expected, "{test} {reason}");
        };
        check("outrigger-cuda", "outrigger-cuda::a", "no CUDA device, no driver", Some(0));
        check("outrigger-cuda", "outrigger-cuda::a", "too slow", None);
        check("outrigger-cpu", "outrigger-cpu::a", "no CUDA device", None);
        check("python", "tests/test_x.py::test_memfd", "needs Linux 3.17", Some(2));
        assert_eq!(allowed.unused(&BTreeSet::from([0, 2])), ["python : no GPU"]);
    }

    #[test]
    fn what_is_known_to_be_there_is_no_reason() {
        let allowed = Allowed::parse("a : no CUDA device\na : no Vulkan device").unwrap();
        let allowed = allowed.demanding(" no Vulkan device; no engine ;");
        let line_for = |reason: &str| {
            allowed.line_for(&Skip { suite: "a".into(), test: "a::b".into(), reason: reason.into() })
        };
        assert_eq!(line_for("no CUDA device"), Some(0));
        assert_eq!(line_for("no Vulkan device: vulkan offers no device"), None);
        assert_eq!(
            allowed.demanding("").line_for(&Skip {
                suite: "a".into(),
                test: "a::b".into(),
                reason: "no Vulkan device".into(),
            }),
            Some(1)
        );
    }

    #[test]
    fn a_line_without_a_reason_is_a_mistake() {
        let error = Allowed::parse("# fine\noutrigger-cuda::x\n").unwrap_err().to_string();
        assert_eq!(
            error,
            "line 2: expected `suite or test : beginning of the reason`, got `outrigger-cuda::x`"
        );
    }
}
