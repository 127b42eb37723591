//! `cargo xtask demo`: from a fresh checkout to a service that reads handwritten digits.

mod picture;
mod scans;
mod server;

use std::fs;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::args::{Arguments, Flag, Spec};
use crate::http::Client;
use crate::repo::Repo;
use crate::table::{self, Align};
use crate::{build, say, setup, train};
use picture::{Card, Ink};
use scans::{HeldOut, Scored};
use server::{Ports, Server};

pub(crate) const SPEC: Spec = Spec {
    name: "demo",
    about: "set up, build, train, serve the digits example and score it",
    details: "\
Does all of the set-up, builds the release, trains a small classifier of handwritten digits, serves it on loopback and
scores through HTTP the scans that training has not seen. Then serves on until Ctrl-C.

Services: `classic` is an AzureML score.py that loads its model itself; `handle` asks the replica for the model.",
    operands: None,
    flags: &[
        Flag { name: "--port", value: Some("N"), about: "score on port N, probes on N + 1 [default: 5001; 0: any]" },
        Flag { name: "--service", value: Some("NAME"), about: "classic or handle [default: classic]" },
        Flag { name: "--once", value: None, about: "end after the table" },
    ],
};

const EXAMPLE: &str = "entry-scripts/examples/digits";
const STATE: &str = ".outrigger/state/digits";
const LOG: &str = ".outrigger/demo.log";
/// Scans that are shown, beside those that the service got wrong.
const SHOWN: usize = 12;

pub(crate) fn run(repo: &Repo, arguments: &Arguments) -> Result<ExitCode> {
    let service = arguments.value("--service")?.unwrap_or_else(|| "classic".to_owned());
    if !["classic", "handle"].contains(&service.as_str()) {
        bail!("there is no service `{service}`: `--service` takes `classic` or `handle`");
    }
    let ports = Ports::reserve(arguments.value("--port")?.unwrap_or(5001))?;
    let environment = setup::ensure(repo)?;
    let executable = build::product(repo, true)?;
    let digits = train::ensure(repo, &environment)?;
    let held_out = HeldOut::read(&digits.join("held_out.json"))?;

    say::step(&format!("serving {EXAMPLE}/{service}.toml on {}", ports.score));
    let state = repo.path(STATE);
    fs::create_dir_all(&state).with_context(|| format!("could not make {}", state.display()))?;
    let mut command = repo.command(executable);
    command.args(["serve", "--config", &format!("{EXAMPLE}/{service}.toml")]);
    command.env("OUTRIGGER_STATE_DIR", &state);
    command.env("OUTRIGGER_SCRIPT_PYTHON", &environment.python);
    command.env("OUTRIGGER_BACKENDS_ONNXRUNTIME", &environment.onnxruntime);
    let mut server = Server::start(command, ports, &repo.path(LOG))?;
    say::line(&format!("its log is {LOG}"));
    server.wait_until_ready()?;

    let keys = Keys::read(&state.join("keys.toml"))?;
    let sample = held_out.sample();
    let start = Instant::now();
    let scored = held_out.score(&mut Client::new(ports.score), &keys.primary)?;
    let terminal = std::io::stdout().is_terminal();
    print!("{}", report(&scored, start.elapsed(), terminal));
    print!("{}", invitation(&ports, &keys, &sample, terminal));

    let status = if arguments.has("--once") {
        server.end()?
    } else {
        say::step("serving until Ctrl-C");
        server.serve()?
    };
    say::line(&format!("the server has ended: {status}"));
    Ok(ExitCode::from(server::code(status)))
}

/// The keys that the server made for itself.
#[derive(Deserialize)]
struct Keys {
    primary: String,
    secondary: String,
}

impl Keys {
    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("{} does not hold keys", file.display()))
    }
}

/// Pictures of some scans, all mistakes, accuracy and latency.
fn report(scored: &[Scored], elapsed: Duration, terminal: bool) -> String {
    let ink = Ink::choose(terminal, say::no_colour(), &std::env::var("COLORTERM").unwrap_or_default());
    // Six coloured cards fit into 80 columns; pictures of shades are twice as wide.
    let (across, width) = (if ink == Ink::Shades { 4 } else { 6 }, scans::EDGE * ink.columns());
    let gallery = |scans: &[&Scored]| {
        let cards: Vec<Card> = scans.iter().map(|scan| card(scan, ink)).collect();
        picture::gallery(&cards, across, width)
    };
    let shown: Vec<&Scored> = scored.iter().take(SHOWN).collect();
    let wrong: Vec<&Scored> = scored.iter().filter(|scan| !scan.is_right()).collect();
    let mut text =
        format!("\nThe first {} of {} held-out scans:\n\n{}", shown.len(), scored.len(), gallery(&shown));
    if !wrong.is_empty() {
        text += &format!("All {} that it got wrong:\n\n{}", wrong.len(), gallery(&wrong));
    }
    let right = scored.len() - wrong.len();
    let percent = 100.0 * right as f64 / scored.len() as f64;
    text += &format!("accuracy: {right} of {} held-out scans right ({percent:.1} %)\n", scored.len());
    text + &latencies(scored.iter().map(|scan| scan.latency).collect(), elapsed)
}

fn card(scan: &Scored, ink: Ink) -> Card {
    let colour = (!scan.is_right() && ink != Ink::Shades).then_some("1;31");
    let verdict = if scan.is_right() { "✓" } else { "✗" };
    Card {
        picture: picture::draw(&scan.image, scans::EDGE, ink),
        captions: vec![
            (format!("scan {}", scan.id), None),
            (format!("answer {} {verdict}", scan.answer), colour),
            (format!("truth  {}", scan.truth), None),
        ],
    }
}

fn latencies(mut latencies: Vec<Duration>, elapsed: Duration) -> String {
    latencies.sort();
    let rank = |percent: usize| latencies[(latencies.len() * percent).div_ceil(100).max(1) - 1];
    let cell = |latency: Duration| format!("{:.2} ms", latency.as_secs_f64() * 1e3);
    let header = ["requests", "p50", "p90", "p99", "slowest", "a second"].map(|name| (name, Align::Right));
    let rate = latencies.len() as f64 / elapsed.as_secs_f64();
    let mut row = vec![latencies.len().to_string()];
    row.extend([50, 90, 99, 100].map(|percent| cell(rank(percent))));
    row.push(format!("{rate:.0}"));
    format!(
        "latency, one request after the other, each with one scan:\n\n{}\n",
        table::render(&header, &[row])
    )
}

/// URL, keys, and a line to paste. Keys are shown on a terminal only; a log gets the way to the file.
fn invitation(ports: &Ports, keys: &Keys, sample: &str, terminal: bool) -> String {
    let file = format!("{STATE}/keys.toml");
    let (primary, secondary, key) = if terminal {
        (keys.primary.clone(), keys.secondary.clone(), keys.primary.clone())
    } else {
        let elsewhere = format!("in {file}, not printed because this is no terminal");
        (elsewhere.clone(), elsewhere, format!(r#"$(sed -n 's/^primary = "\(.*\)"/\1/p' {file})"#))
    };
    format!(
        "URL            http://{}/score\nprimary key    {primary}\nsecondary key  {secondary}\n\
         probes         http://{}/ready, /live, /busy, /metrics\n\nTry it:\n\n\
         curl http://{}/score -H \"Authorization: Bearer {key}\" -H 'Content-Type: application/json' \\\n  -d '{sample}'\n\n",
        ports.score, ports.observe, ports.score
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(id: u64, truth: i64, answer: i64) -> Scored {
        Scored { id, image: vec![1.0; 64], truth, answer, latency: Duration::from_millis(id) }
    }

    #[test]
    fn the_report_shows_mistakes_and_sums() {
        let scored: Vec<Scored> = (1..=20).map(|id| scan(id, 3, if id == 15 { 8 } else { 3 })).collect();
        let text = report(&scored, Duration::from_secs(2), false);
        for expected in [
            "The first 12 of 20 held-out scans:",
            "All 1 that it got wrong:",
            "scan 15",
            "answer 8 ✗",
            "accuracy: 19 of 20 held-out scans right (95.0 %)",
            "20  10.00 ms  18.00 ms  20.00 ms  20.00 ms        10",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn keys_go_to_a_terminal_only() {
        let ports = Ports::reserve(0).unwrap();
        let keys = Keys { primary: "first-secret".into(), secondary: "second-secret".into() };
        let watched = invitation(&ports, &keys, "{}", true);
        assert!(watched.contains("Bearer first-secret\"") && watched.contains("second-secret"), "{watched}");
        let logged = invitation(&ports, &keys, "{}", false);
        assert!(
            !logged.contains("secret") && logged.contains(".outrigger/state/digits/keys.toml"),
            "{logged}"
        );
    }
}
