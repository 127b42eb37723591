//! How long a change of busy and idle is under way to who watches `GET /busy?watch`: a real replica, one watcher, one call after another.
//!
//! `cargo run --release -p outrigger-benches --bin busy_watch -- [CALLS]`
//!
//! Both figures are upper bounds. *busy*: from before the client writes its request, so that the way to the replica, its head and its key count
//! too. *idle*: from the script's own end, so that the way from the worker to the replica counts too.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use outrigger_benches::{answer, clock, load, server, stats};
use outrigger_testkit::Launch;
use outrigger_testkit::replica::KEY;

const SCRIPT: &str = "import time\n\ndef init():\n    pass\n\n\ndef run(data):\n    time.sleep(0.02)\n    return time.monotonic_ns()\n";
/// Longer than the time between two events: each change is the first one.
const PAUSE: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let calls = std::env::args().nth(1).map_or(Ok(2000), |calls| calls.parse())?;
    let replica = Launch::new(server::outrigger()?).script(SCRIPT).start();
    let events = watch(replica.observe.trim_start_matches("http://"))?;
    let mut stream = TcpStream::connect(replica.score.trim_start_matches("http://"))?;
    stream.set_nodelay(true)?;
    let request = load::post("/score", Some(KEY), "application/json", b"1");
    let until = |busy: bool| -> anyhow::Result<u64> {
        loop {
            let (now, event) = events.recv_timeout(PATIENCE).context("no event")?;
            if event == busy {
                return Ok(now);
            }
        }
    };
    until(false)?;
    let (mut to_busy, mut to_idle) = (Vec::new(), Vec::new());
    for _ in 0..calls {
        std::thread::sleep(PAUSE);
        let begun = clock::monotonic_ns();
        stream.write_all(&request)?;
        to_busy.push((until(true)? as f64 - begun as f64) / 1e6);
        let ended = read_number(&mut stream)?;
        to_idle.push((until(false)? as f64 - ended as f64) / 1e6);
    }
    for (what, mut times) in [("busy", to_busy), ("idle", to_idle)] {
        times.sort_by(f64::total_cmp);
        let at = |part: f64| stats::quantile(&times, part);
        println!(
            "{what}: {} changes, p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, max {:.3} ms",
            times.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
    }
    Ok(())
}

/// Reads events on a thread of its own: when each came, and whether the replica was busy.
fn watch(address: &str) -> anyhow::Result<mpsc::Receiver<(u64, bool)>> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /busy?watch HTTP/1.1\r\nHost: replica\r\n\r\n")?;
    let (send, events) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let now = clock::monotonic_ns();
            let Ok(line) = line else { return };
            let known = line.starts_with("data: ").then(|| line.contains("\"busy\":true"));
            if known.is_some_and(|busy| send.send((now, busy)).is_err()) {
                return;
            }
        }
    });
    Ok(events)
}

/// The number that is the body of the next answer.
fn read_number(stream: &mut TcpStream) -> anyhow::Result<u64> {
    let (mut bytes, mut block) = (Vec::new(), [0; 4096]);
    loop {
        let size = stream.read(&mut block)?;
        ensure!(size > 0, "connection closed");
        bytes.extend_from_slice(&block[..size]);
        let Some(head) = answer::head(&bytes)? else { continue };
        if head.framing.is_complete(&bytes[head.size..])? {
            let text = std::str::from_utf8(&bytes[head.size..])?;
            return text.trim().parse().with_context(|| format!("the answer is {text:?}"));
        }
    }
}
