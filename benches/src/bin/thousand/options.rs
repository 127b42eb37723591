//! What can be typed after the program's name.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};

const USAGE: &str = "--cases LIST, --models N, --megabytes N, --seed N, --loads LIST, --requests N, --skew S, --connections N, \
                     --resident N, --blocks N, --seconds S, --every S, --callers N";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Ready,
    Zipf,
    Reload,
}

/// When models are loaded: `residency.load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Nothing is said.
    Default,
    /// When a call wants them.
    Use,
    /// Before the replica is ready.
    Start,
}

/// The flags of a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    pub(crate) cases: Vec<Case>,
    pub(crate) models: usize,
    pub(crate) megabytes: f64,
    pub(crate) seed: u64,
    pub(crate) loads: Vec<Load>,
    pub(crate) requests: usize,
    pub(crate) skew: f64,
    pub(crate) connections: usize,
    /// Models of the mean size that fit into memory at once.
    pub(crate) resident: usize,
    pub(crate) blocks: usize,
    pub(crate) turn: Duration,
    /// From one reload to the next; zero for none.
    pub(crate) every: Duration,
    pub(crate) callers: usize,
}

impl Options {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Self {
            cases: vec![Case::Ready, Case::Zipf, Case::Reload],
            models: 1000,
            megabytes: 2000.0,
            seed: 1,
            loads: vec![Load::Use, Load::Start],
            requests: 100_000,
            skew: 1.0,
            connections: 16,
            resident: 100,
            blocks: 20,
            turn: Duration::from_secs(10),
            every: Duration::from_secs(2),
            callers: 1,
        };
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            let text = args.next().with_context(|| format!("{flag} needs a value; {USAGE}"))?;
            match flag.as_str() {
                "--cases" => options.cases = list(&flag, &text)?,
                "--models" => options.models = value(&flag, &text)?,
                "--megabytes" => options.megabytes = value(&flag, &text)?,
                "--seed" => options.seed = value(&flag, &text)?,
                "--loads" => options.loads = list(&flag, &text)?,
                "--requests" => options.requests = value(&flag, &text)?,
                "--skew" => options.skew = value(&flag, &text)?,
                "--connections" => options.connections = value(&flag, &text)?,
                "--resident" => options.resident = value(&flag, &text)?,
                "--blocks" => options.blocks = value(&flag, &text)?,
                "--seconds" => options.turn = seconds(&flag, &text)?,
                "--every" => options.every = seconds(&flag, &text)?,
                "--callers" => options.callers = value(&flag, &text)?,
                _ => bail!("unknown flag {flag}: {USAGE}"),
            }
        }
        let counts =
            [options.models, options.requests, options.connections, options.resident, options.callers];
        ensure!(
            !counts.contains(&0),
            "--models, --requests, --connections, --resident and --callers take more than 0"
        );
        ensure!(
            options.megabytes > 0.0 && options.skew >= 0.0,
            "--megabytes takes more than 0, --skew 0 or more"
        );
        ensure!(
            options.blocks >= 2 && !options.turn.is_zero(),
            "--blocks takes 2 or more, --seconds more than 0"
        );
        Ok(options)
    }

    pub(crate) fn has(&self, case: Case) -> bool {
        self.cases.contains(&case)
    }
}

fn value<T: FromStr>(flag: &str, text: &str) -> anyhow::Result<T>
where
    T::Err: Display,
{
    text.parse().map_err(|error| anyhow!("{flag} does not take {text:?}: {error}"))
}

fn list<T: FromStr>(flag: &str, text: &str) -> anyhow::Result<Vec<T>>
where
    T::Err: Display,
{
    text.split(',').map(|text| value(flag, text)).collect()
}

fn seconds(flag: &str, text: &str) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value(flag, text)?).with_context(|| format!("{flag} does not take {text:?}"))
}

impl FromStr for Case {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ready" => Ok(Self::Ready),
            "zipf" => Ok(Self::Zipf),
            "reload" => Ok(Self::Reload),
            _ => Err("there are ready, zipf and reload"),
        }
    }
}

impl FromStr for Load {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self::Default),
            "use" => Ok(Self::Use),
            "start" => Ok(Self::Start),
            _ => Err("there are use, start and default"),
        }
    }
}

impl Load {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Use => "use",
            Self::Start => "start",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> anyhow::Result<Options> {
        Options::parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn flags_over_the_defaults() {
        let options = parse(&["--cases", "zipf,ready", "--every", "0", "--loads", "default"]).unwrap();
        assert!(options.has(Case::Zipf) && options.has(Case::Ready) && !options.has(Case::Reload));
        assert_eq!(
            (options.models, options.every, options.loads),
            (1000, Duration::ZERO, vec![Load::Default])
        );
    }

    #[test]
    fn mistakes_are_named() {
        let check = |args: &[&str], expected: &str| {
            let error = format!("{:#}", parse(args).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check(&["--cases", "huge"], "--cases does not take \"huge\": there are ready, zipf and reload");
        check(&["--loads", "later"], "--loads does not take \"later\": there are use, start and default");
        check(&["--models"], "--models needs a value");
        check(&["--models", "0"], "take more than 0");
        check(&["--blocks", "1"], "--blocks takes 2 or more");
        check(&["--seconds", "-1"], "--seconds does not take \"-1\"");
        check(&["--model", "1"], "unknown flag --model");
    }
}
