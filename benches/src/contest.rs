//! Servers that take turns under the same load, round by round, so that a noisy machine is noisy for all of them.

use std::net::SocketAddr;

use anyhow::Context as _;
use outrigger_testkit::ReplicaProcess;

use crate::options::Options;
use crate::server::Server;
use crate::{cpu, load, stats};

/// A server that takes part.
#[derive(Debug)]
pub struct Contender {
    /// What the table calls it.
    pub name: String,
    /// One of the servers that ours is held against.
    pub is_peer: bool,
    /// The process whose CPU time counts, with its descendants'.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is sent.
    pub request: Vec<u8>,
}

impl Contender {
    /// One of the servers that this crate starts.
    pub fn server(name: &str, server: &Server, request: Vec<u8>) -> Self {
        Self { name: name.into(), is_peer: false, pid: server.pid(), address: server.address, request }
    }

    /// A replica.
    ///
    /// # Errors
    /// If its address does not parse.
    pub fn replica(name: &str, replica: &ReplicaProcess, request: Vec<u8>) -> anyhow::Result<Self> {
        let address = replica.score.trim_start_matches("http://").parse()?;
        Ok(Self { name: name.into(), is_peer: false, pid: replica.pid(), address, request })
    }
}

/// What a contender's turns came to, a value for each round that counts.
#[derive(Debug, Default)]
pub struct Figures {
    /// CPU time per request in microseconds.
    pub cpu: Vec<f64>,
    /// Requests per second.
    pub rate: Vec<f64>,
    /// The median latency in milliseconds.
    pub p50: Vec<f64>,
    /// The latency in milliseconds that one request in a hundred exceeds.
    pub p99: Vec<f64>,
}

/// Lets the contenders take turns; the figures are in their order. `aside` has the last turn of each round that counts.
///
/// # Errors
/// The first request that fails, or what `aside` fails with.
pub async fn hold(
    contenders: &[Contender],
    connections: usize,
    options: &Options,
    mut aside: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Figures>> {
    let mut all: Vec<Figures> = contenders.iter().map(|_| Figures::default()).collect();
    for round in 0..=options.rounds {
        // The first round warms caches and code paths up.
        let counts = round > 0;
        for (contender, figures) in contenders.iter().zip(&mut all) {
            let before = cpu::tree(contender.pid);
            let run = load::run(contender.address, &contender.request, connections, options.turn)
                .await
                .with_context(|| contender.name.clone())?;
            let spent = cpu::tree(contender.pid).saturating_sub(before);
            if counts {
                figures.cpu.push(spent.as_secs_f64() * 1e6 / run.requests as f64);
                figures.rate.push(run.requests as f64 / run.took.as_secs_f64());
                figures.p50.push(stats::quantile(&run.latencies, 0.5) * 1e3);
                figures.p99.push(stats::quantile(&run.latencies, 0.99) * 1e3);
            }
        }
        if counts {
            aside()?;
        }
    }
    Ok(all)
}

/// The line above a table: machine and rounds.
pub fn circumstances(options: &Options) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (rounds, turn) = (options.rounds, options.turn.as_secs_f64());
    format!("{cores} cores, {}; {rounds} rounds of {turn} s each", cpu::name())
}

/// The first lines of a table of contenders; `baseline` is what the ratios are to.
pub fn heading(baseline: &str, peers: bool) -> String {
    let (title, line) = if peers { (" best peer's µs to this (95 %) |", "---|") } else { ("", "") };
    format!(
        "| connections | server | CPU µs/request | ratio to {baseline} (95 %) |{title} requests/s | p50 ms | p99 ms |\n\
         |---|---|---|---|{line}---|---|---|\n"
    )
}

/// A table's rows. Ratios are formed within a round and their median is shown. `baseline` is CPU µs by round; `peers` gives every row
/// its ratio to the peer with the smallest median.
pub fn rows(
    contenders: &[Contender],
    all: &[Figures],
    connections: usize,
    baseline: &[f64],
    peers: bool,
) -> String {
    let best = best_peer(contenders, all);
    let mut text = String::new();
    for (contender, figures) in contenders.iter().zip(all) {
        let mut cells = vec![
            connections.to_string(),
            contender.name.clone(),
            format!("{:.1}", stats::median(&figures.cpu)),
            ratio(&figures.cpu, baseline),
        ];
        if peers {
            cells.push(best.map_or_else(String::new, |best| ratio(best, &figures.cpu)));
        }
        cells.extend([
            format!("{:.0}", stats::median(&figures.rate)),
            format!("{:.2}", stats::median(&figures.p50)),
            format!("{:.2}", stats::median(&figures.p99)),
        ]);
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

fn best_peer<'a>(contenders: &[Contender], all: &'a [Figures]) -> Option<&'a [f64]> {
    let peers = contenders.iter().zip(all).filter(|(contender, _)| contender.is_peer);
    let costs = peers.map(|(_, figures)| figures.cpu.as_slice());
    costs.min_by(|one, other| stats::median(one).total_cmp(&stats::median(other)))
}

/// The median of a ratio, with its interval.
fn ratio(values: &[f64], to: &[f64]) -> String {
    let ratios: Vec<f64> = values.iter().zip(to).map(|(value, to)| value / to).collect();
    let (low, high) = stats::interval(&ratios);
    format!("{:.2} ({low:.2} to {high:.2})", stats::median(&ratios))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_round_that_warms_up_and_those_that_count() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let route = axum::routing::post(async |body: axum::body::Bytes| body);
        let server =
            tokio::spawn(async { axum::serve(listener, axum::Router::new().route("/", route)).await });
        let one = Contender {
            address,
            pid: std::process::id(),
            request: load::post("/", None, "application/json", b"{}"),
            ..contender("echo", false)
        };
        let options = Options {
            rounds: 2,
            turn: std::time::Duration::from_millis(5),
            connections: vec![2],
            servers: Vec::new(),
            cases: Vec::new(),
        };
        let mut asides = 0;
        let aside = || {
            asides += 1;
            Ok(())
        };
        let all = hold(&[one], 2, &options, aside).await.unwrap();
        server.abort();
        assert_eq!((all.len(), asides), (1, 2));
        let Figures { cpu, rate, p50, p99 } = &all[0];
        assert_eq!([cpu.len(), rate.len(), p50.len(), p99.len()], [2; 4]);
        assert!(rate.iter().all(|rate| *rate > 0.0) && p50.iter().zip(p99).all(|(p50, p99)| p50 <= p99));
    }

    fn contender(name: &str, is_peer: bool) -> Contender {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Contender { name: name.into(), is_peer, pid: 0, address, request: Vec::new() }
    }

    fn figures(cpu: [f64; 3]) -> Figures {
        Figures { cpu: cpu.into(), rate: vec![10.0; 3], p50: vec![0.5; 3], p99: vec![2.0; 3] }
    }

    #[test]
    fn ratios_are_formed_within_a_round() {
        // Each round is twice as slow as the one before, for everybody: the ratios do not notice.
        let contenders = [contender("echo", false), contender("ours", false), contender("theirs", true)];
        let all = [figures([1.0, 2.0, 4.0]), figures([2.0, 4.0, 8.0]), figures([8.0, 16.0, 32.0])];
        let text = rows(&contenders, &all, 16, &all[0].cpu, true);
        let expected = "\
            | 16 | echo | 2.0 | 1.00 (1.00 to 1.00) | 8.00 (8.00 to 8.00) | 10 | 0.50 | 2.00 |\n\
            | 16 | ours | 4.0 | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) | 10 | 0.50 | 2.00 |\n\
            | 16 | theirs | 16.0 | 8.00 (8.00 to 8.00) | 1.00 (1.00 to 1.00) | 10 | 0.50 | 2.00 |\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_best_peer_is_the_cheapest() {
        let contenders = [contender("ours", false), contender("slow", true), contender("fast", true)];
        let all = [figures([1.0; 3]), figures([9.0; 3]), figures([3.0; 3])];
        assert_eq!(best_peer(&contenders, &all), Some(all[2].cpu.as_slice()));
        assert_eq!(best_peer(&contenders[..1], &all[..1]), None);
    }

    #[test]
    fn a_table_has_as_many_columns_in_its_heading_as_in_its_rows() {
        for peers in [false, true] {
            let all = [figures([1.0; 3])];
            let text =
                heading("echo", peers) + &rows(&[contender("echo", false)], &all, 1, &all[0].cpu, peers);
            let columns: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
            assert_eq!(columns, [columns[0]; 3], "{text}");
        }
    }
}
