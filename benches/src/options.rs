//! What can be typed after the name of a measuring program.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

/// The flags of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Rounds that count; one more comes before them, to warm caches and code paths up.
    pub rounds: usize,
    /// How long each server has its turn in a round.
    pub turn: Duration,
    /// Connections at once; a table for each.
    pub connections: Vec<usize>,
    /// Servers that take part.
    pub servers: Vec<String>,
    /// Cases that are measured; empty for a program that has no choice of them.
    pub cases: Vec<String>,
}

impl Options {
    /// Parses flags over the defaults, whose `servers` and `cases` are also all that there are.
    ///
    /// # Errors
    /// If a flag, a server or a case is not known, or a value does not parse.
    pub fn parse(defaults: Self, args: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = defaults.clone();
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            let value = args.next().with_context(|| format!("{flag} needs a value"))?;
            let context = || format!("{flag} does not take {value:?}");
            match flag.as_str() {
                "--rounds" => options.rounds = value.parse().with_context(context)?,
                "--seconds" => {
                    let seconds = value.parse().with_context(context)?;
                    options.turn = Duration::try_from_secs_f64(seconds).with_context(context)?;
                }
                "--connections" => {
                    let numbers = value.split(',').map(str::parse).collect::<Result<_, _>>();
                    options.connections = numbers.with_context(context)?;
                }
                "--servers" => options.servers = chosen("server", &defaults.servers, &value)?,
                "--cases" if !defaults.cases.is_empty() => {
                    options.cases = chosen("case", &defaults.cases, &value)?;
                }
                _ => bail!(
                    "unknown flag {flag}: --rounds N, --seconds S, --connections LIST, --servers LIST{}",
                    if defaults.cases.is_empty() { "" } else { ", --cases LIST" }
                ),
            }
        }
        ensure!(options.rounds > 0 && !options.turn.is_zero(), "--rounds and --seconds take more than 0");
        ensure!(!options.connections.contains(&0), "--connections takes more than 0");
        Ok(options)
    }

    /// Whether a server takes part.
    pub fn server(&self, name: &str) -> bool {
        self.servers.iter().any(|server| server == name)
    }

    /// Whether a case is measured.
    pub fn case(&self, name: &str) -> bool {
        self.cases.iter().any(|case| case == name)
    }
}

fn chosen(what: &str, all: &[String], value: &str) -> anyhow::Result<Vec<String>> {
    let chosen: Vec<String> = value.split(',').map(str::to_owned).collect();
    match chosen.iter().find(|name| !all.contains(name)) {
        Some(unknown) => bail!("there is no {what} {unknown:?}, but {}", all.join(", ")),
        None => Ok(chosen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> anyhow::Result<Options> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let defaults = Options {
            rounds: 7,
            turn: Duration::from_secs(2),
            connections: vec![1, 16],
            servers: names(&["ours", "theirs"]),
            cases: names(&["small", "large"]),
        };
        Options::parse(defaults, args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn flags_over_the_defaults() {
        let options = parse(&["--seconds", "0.5", "--servers", "theirs", "--connections", "4,8"]).unwrap();
        assert_eq!((options.rounds, options.turn), (7, Duration::from_millis(500)));
        assert_eq!(options.connections, [4, 8]);
        assert!(options.server("theirs") && !options.server("ours"));
        assert!(options.case("small") && options.case("large") && !options.case("smal"));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |args: &[&str], expected: &str| {
            let error = format!("{:#}", parse(args).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check(&["--servers", "ours,hers"], "there is no server \"hers\", but ours, theirs");
        check(&["--cases", "huge"], "there is no case \"huge\", but small, large");
        check(&["--rounds"], "--rounds needs a value");
        check(&["--rounds", "-1"], "--rounds does not take \"-1\"");
        check(&["--seconds", "-1"], "--seconds does not take \"-1\"");
        check(&["--rounds", "0"], "take more than 0");
        check(&["--connections", "1,0"], "--connections takes more than 0");
        check(&["--round", "1"], "unknown flag --round");
    }
}
