//! Arguments of a task: flags with or without a value, operands, and the help text, all from one table.

use std::fmt::Write as _;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// A flag that a task takes.
pub(crate) struct Flag {
    /// With its dashes.
    pub(crate) name: &'static str,
    /// What stands for its value in the help text; `None` for a flag without one.
    pub(crate) value: Option<&'static str>,
    /// One line.
    pub(crate) about: &'static str,
}

/// What can be typed after the name of a task.
pub(crate) struct Spec {
    /// Name of the task.
    pub(crate) name: &'static str,
    /// One line for the list of tasks.
    pub(crate) about: &'static str,
    /// Further paragraphs for `--help`; may be empty.
    pub(crate) details: &'static str,
    /// Name of the operands, if there may be any.
    pub(crate) operands: Option<&'static str>,
    /// Flags.
    pub(crate) flags: &'static [Flag],
}

impl Spec {
    pub(crate) fn help(&self) -> String {
        let mut text = format!("{}\n\nUsage: cargo xtask {}", self.about, self.name);
        if !self.flags.is_empty() {
            text.push_str(" [FLAGS]");
        }
        if let Some(operands) = self.operands {
            let _ = write!(text, " [{operands}]");
        }
        text.push('\n');
        if !self.details.is_empty() {
            let _ = write!(text, "\n{}\n", self.details.trim_end());
        }
        let mut rows: Vec<(String, &str)> = self
            .flags
            .iter()
            .map(|flag| match flag.value {
                Some(value) => (format!("{} {value}", flag.name), flag.about),
                None => (flag.name.to_owned(), flag.about),
            })
            .collect();
        rows.push(("--help".into(), "print this"));
        let _ = write!(text, "\n{}", aligned(&rows));
        text
    }
}

/// What was typed after the name of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    flags: Vec<(&'static str, String)>,
    /// What was no flag.
    pub(crate) operands: Vec<String>,
}

impl Arguments {
    /// Parses by the table; `None` when help is asked for.
    pub(crate) fn parse(spec: &Spec, given: impl IntoIterator<Item = String>) -> Result<Option<Self>> {
        let mut arguments = Self::default();
        let mut given = given.into_iter();
        while let Some(word) = given.next() {
            if matches!(word.as_str(), "--help" | "-h") {
                return Ok(None);
            }
            if !word.starts_with('-') {
                if spec.operands.is_none() {
                    bail!("`{}` takes no operand, got `{word}`", spec.name);
                }
                arguments.operands.push(word);
                continue;
            }
            let (name, attached) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let flag = spec.flags.iter().find(|flag| flag.name == name);
            let flag = flag.with_context(|| format!("`{}` has no flag `{name}`", spec.name))?;
            let value = match (flag.value, attached) {
                (None, None) => String::new(),
                (None, Some(_)) => bail!("`{name}` takes no value"),
                (Some(_), Some(value)) => value,
                (Some(what), None) => {
                    given.next().with_context(|| format!("`{name}` needs its value {what}"))?
                }
            };
            arguments.flags.push((flag.name, value));
        }
        Ok(Some(arguments))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|(flag, _)| *flag == name)
    }

    /// All values of a flag that may be repeated.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(flag, _)| *flag == name).map(|(_, value)| value.as_str())
    }

    /// The value of a flag, the last one where it was repeated.
    pub(crate) fn value<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some((_, text)) = self.flags.iter().rev().find(|(flag, _)| *flag == name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("`{name}` does not take `{text}`"),
        }
    }
}

/// Two columns, indented.
pub(crate) fn aligned(rows: &[(String, &str)]) -> String {
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (left, right)| {
        let _ = writeln!(text, "  {left:width$}  {right}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: Spec = Spec {
        name: "paint",
        about: "paints",
        details: "",
        operands: None,
        flags: &[
            Flag { name: "--once", value: None, about: "only once" },
            Flag { name: "--port", value: Some("N"), about: "where" },
        ],
    };

    fn parse(words: &[&str]) -> Result<Option<Arguments>> {
        Arguments::parse(&SPEC, words.iter().map(|word| word.to_string()))
    }

    #[test]
    fn flags_with_and_without_values() {
        let arguments = parse(&["--once", "--port", "1", "--port=2"]).unwrap().unwrap();
        assert!(arguments.has("--once"));
        assert_eq!(arguments.value::<u16>("--port").unwrap(), Some(2));
        assert_eq!(parse(&[]).unwrap().unwrap().value::<u16>("--port").unwrap(), None);
        assert_eq!(parse(&["--once", "--help"]).unwrap(), None);
    }

    #[test]
    fn mistakes_are_named() {
        let message = |words: &[&str]| parse(words).unwrap_err().to_string();
        assert_eq!(message(&["--twice"]), "`paint` has no flag `--twice`");
        assert_eq!(message(&["--port"]), "`--port` needs its value N");
        assert_eq!(message(&["--once=yes"]), "`--once` takes no value");
        assert_eq!(message(&["red"]), "`paint` takes no operand, got `red`");
        let port = parse(&["--port=70000"]).unwrap().unwrap().value::<u16>("--port");
        assert_eq!(port.unwrap_err().to_string(), "`--port` does not take `70000`");
    }

    #[test]
    fn help_lists_every_flag() {
        let help = SPEC.help();
        assert!(help.starts_with("paints\n\nUsage: cargo xtask paint [FLAGS]\n"), "{help}");
        assert!(help.contains("  --port N  where\n"), "{help}");
    }
}
