//! What a replica that collects does while blob storage is away, and when the disk is full.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_testkit::faults::{Fault, On, Proxy};
use outrigger_testkit::storage::Azurite;
use outrigger_testkit::{Launch, onnx};

use super::{addends, collected, collecting, metrics};
use crate::devices::until;
use crate::proof::{proving, say, scale};
use crate::support::infer;

/// CPU time that a process has taken.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = [11, 12].map(|at| fields[at].parse::<u64>().unwrap()).iter().sum();
    Duration::from_millis(ticks * 10)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Blocks of calls, with blob storage there and away by turns: what is collected waits on disk, and calls do not notice.
#[tokio::test]
async fn calls_do_not_notice_that_blob_storage_is_away() {
    let Some(azurite) = Azurite::found() else { return };
    azurite.create_container("data");
    let proxy = Proxy::start(azurite.address());
    let launch = collecting("request, response").env("OUTRIGGER_COLLECT_TO", "az://data/x");
    let launch = azurite
        .environment_at(proxy.address())
        .into_iter()
        .fold(launch, |l, (name, value)| l.env(name, value));
    let launch = launch.env("OUTRIGGER_COLLECT_RETRY_MAX", "1s").file("add.onnx", onnx::add(2));
    let replica = launch.args(["--model", "add=add.onnx"]).start();
    // Twenty seconds without storage, or five minutes of a proof.
    let block = Duration::from_secs(scale(5, 30) as u64);
    let (mut cost, mut latency) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut sent = 0.0;
    for number in 0..scale(8, 20) {
        let away = number % 2;
        if away == 1 {
            proxy.inject(On::any().always(), Fault::Hangup);
        }
        let (before, since) = (cpu(replica.pid()), Instant::now());
        let (mut calls, mut times) = (0.0, Vec::new());
        while since.elapsed() < block {
            let begun = Instant::now();
            let answer = infer(&replica, "add", addends([1.0, 2.0]).to_string())
                .header("content-type", "application/json")
                .send()
                .await;
            assert_eq!(answer.unwrap().status(), 200);
            times.push(begun.elapsed().as_secs_f64());
            calls += 1.0;
        }
        sent += calls;
        cost[away].push((cpu(replica.pid()) - before).as_secs_f64() / calls * 1e6);
        latency[away].push(median(times) * 1e6);
        let lag = metrics(&replica).await["outrigger_collect_lag_seconds{collection=\"request\"}"];
        if away == 1 {
            let degraded = metrics(&replica).await["outrigger_degraded{part=\"storage\"}"];
            assert!(degraded > 0.0, "{}", replica.log_text());
            assert!(lag >= block.as_secs_f64() / 2.0, "it grows: {lag} s");
            proxy.heal();
        }
    }
    for collection in ["request", "response"] {
        let counted = super::until_settled(&replica, collection, sent).await;
        assert_eq!((counted.persisted, counted.dropped), (sent, 0.0));
    }
    let settled = metrics(&replica).await;
    assert_eq!(settled["outrigger_collect_lag_seconds{collection=\"request\"}"], 0.0);
    assert_eq!(settled["outrigger_degraded{part=\"storage\"}"], 0.0);
    for (what, [there, away]) in [("CPU time of a call", cost), ("median latency", latency)] {
        let (there, away) = (median(there), median(away));
        say(format!("{what}: {there:.1} us with blob storage, {away:.1} us without"));
        // Noise of a machine that does other things beside is much less than what a call that waits would take.
        assert!(away < there * if proving() { 1.5 } else { 3.0 }, "{what}: {there} us, {away} us");
    }
}

/// A replica whose log is on a file system of 2 MiB, which is there for it alone.
fn on_a_small_disk(disk: &Path) -> Option<Launch> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs -o size=2m tmpfs \"$0\" && exec \"$@\"").arg(disk);
    let mut trial = Command::new("unshare");
    trial.args(command.get_args()).arg("true");
    if !trial.output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no file system can be mounted here");
        return None;
    }
    command.arg(env!("CARGO_BIN_EXE_outrigger")).arg("serve");
    let launch = collected(Launch::of(command), "request, response");
    Some(
        launch
            .env("OUTRIGGER_COLLECT_SPOOL", disk)
            .env("OUTRIGGER_COLLECT_SEGMENT", "64KiB")
            .env("OUTRIGGER_COLLECT_ITEMS", "64"),
    )
}

/// Calls go on, what finds no room is counted, and once there is room again everything goes on by itself.
#[tokio::test]
async fn calls_go_on_while_the_disk_is_full() {
    let Some(azurite) = Azurite::found() else { return };
    let disk = tempfile::tempdir().unwrap();
    let Some(launch) = on_a_small_disk(disk.path()) else { return };
    azurite.create_container("data");
    let proxy = Proxy::start(azurite.address());
    proxy.inject(On::any().always(), Fault::Hangup);
    let launch = launch.env("OUTRIGGER_COLLECT_TO", "az://data/x").env("OUTRIGGER_COLLECT_RETRY_MAX", "1s");
    let launch = azurite
        .environment_at(proxy.address())
        .into_iter()
        .fold(launch, |launch, (name, value)| launch.env(name, value));
    let replica = launch.file("add.onnx", onnx::add(2)).args(["--model", "add=add.onnx"]).start();
    let long = addends([1.0, 2.0]).to_string().replacen(
        '{',
        &format!("{{\"parameters\":{{\"note\":\"{}\"}},", "x".repeat(8000)),
        1,
    );
    let call = async || {
        let asked = infer(&replica, "add", long.clone()).header("content-type", "application/json");
        assert_eq!(asked.send().await.unwrap().status(), 200, "{}", replica.log_text());
    };
    let dropped = "outrigger_collect_dropped_total{collection=\"request\",reason=\"full\"}";
    let mut calls = 0.0;
    until("a disk that is full", async || {
        call().await;
        calls += 1.0;
        metrics(&replica).await.get(dropped).is_some_and(|dropped| *dropped > 20.0)
    })
    .await;
    assert!(metrics(&replica).await["outrigger_degraded{part=\"storage\"}"] > 0.0);
    proxy.heal();
    let before = super::until_settled(&replica, "request", calls).await;
    assert_eq!(before.persisted + before.dropped, calls);
    call().await;
    let after = super::until_settled(&replica, "request", calls + 1.0).await;
    assert_eq!((after.persisted, after.dropped), (before.persisted + 1.0, before.dropped));
    assert_eq!(metrics(&replica).await["outrigger_degraded{part=\"storage\"}"], 0.0);
}
