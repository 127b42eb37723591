//! Far more calls than can be executed: what is accepted is answered in time, the rest hears of it at once, and no capacity is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::{KEY, SECONDARY_KEY};
use reqwest::Client;

use crate::proof::{proving, say};
use crate::support::{busy, client, outrigger, until_busy};

/// What a call takes.
const SERVICE: Duration = Duration::from_millis(20);
/// By when it must be answered.
const DEADLINE: Duration = Duration::from_millis(500);
/// As many calls as two workers can execute, five times over.
const PAUSE: Duration = Duration::from_millis(2);

const SCRIPT: &str =
    "import time\ndef init():\n    pass\ndef run(data):\n    time.sleep(0.02)\n    return data\n";

fn replica() -> ReplicaProcess {
    outrigger().script(SCRIPT).args(["--script-workers", "2"]).start()
}

/// Asks once; the status, and how long it took.
async fn ask(client: &Client, replica: &str, key: &str) -> (u16, Duration) {
    let begun = Instant::now();
    let request = client.post(format!("{replica}/score")).bearer_auth(key).body("x");
    let answer =
        request.header("x-request-deadline-ms", DEADLINE.as_millis().to_string()).send().await.unwrap();
    let status = answer.status().as_u16();
    answer.bytes().await.unwrap();
    (status, begun.elapsed())
}

/// Calls in a second, with as many under way as the slots take.
async fn capacity(replica: &ReplicaProcess, time: Duration) -> f64 {
    let (begun, done) = (Instant::now(), AtomicUsize::new(0));
    let client = client();
    let one = async || {
        while begun.elapsed() < time {
            assert_eq!(ask(&client, &replica.score, KEY).await.0, 200);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::join!(one(), one(), one(), one());
    done.into_inner() as f64 / begun.elapsed().as_secs_f64()
}

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    late: AtomicUsize,
    refused: AtomicUsize,
    expired: AtomicUsize,
    other: AtomicUsize,
}

/// Sends a call every [`PAUSE`], whatever becomes of those before, until `while_` is over.
async fn flood(replica: &ReplicaProcess, time: Duration, counts: &Arc<Counts>) {
    let (begun, client) = (Instant::now(), client());
    let mut calls = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(PAUSE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    while begun.elapsed() < time {
        ticks.tick().await;
        let (client, score, counts) = (client.clone(), replica.score.clone(), Arc::clone(counts));
        calls.spawn(async move {
            let (status, took) = ask(&client, &score, KEY).await;
            let count = match status {
                // The client's own part of the time is not the server's.
                200 if took <= DEADLINE + SERVICE => &counts.answered,
                200 => &counts.late,
                503 => &counts.refused,
                504 => &counts.expired,
                _ => &counts.other,
            };
            count.fetch_add(1, Ordering::Relaxed);
        });
        while calls.try_join_next().is_some() {}
    }
    while calls.join_next().await.is_some() {}
}

/// Memory that a process has in use, bytes.
fn resident(pid: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_times_what_can_be_done_costs_nothing_of_what_can() {
    let time = Duration::from_secs(if proving() { 60 } else { 3 });
    let replica = replica();
    let capacity = capacity(&replica, time.min(Duration::from_secs(10))).await;
    let before = resident(replica.pid());
    let counts = Arc::<Counts>::default();
    let begun = Instant::now();
    flood(&replica, time, &counts).await;
    let goodput = counts.answered.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    let grown = resident(replica.pid()).saturating_sub(before);
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let (answered, late, expired) = (count(&counts.answered), count(&counts.late), count(&counts.expired));
    say(format!(
        "capacity {capacity:.1}/s, goodput {goodput:.1}/s ({:.1} %); answered in time {answered}, late {late}, expired {expired}, \
         refused {}; memory grew by {} KiB",
        100.0 * goodput / capacity,
        count(&counts.refused),
        grown >> 10,
    ));
    let (least, most_late) = if proving() { (0.9, 0.01) } else { (0.7, 0.1) };
    assert!(goodput >= least * capacity, "goodput {goodput}, capacity {capacity}");
    assert!((late + expired) as f64 <= most_late * answered as f64, "{late} late, {expired} expired");
    assert!(count(&counts.refused) > answered && count(&counts.other) == 0);
    assert!(grown < 64 << 20, "{grown} bytes");
    let seen = until_busy(&replica, 0, 0).await;
    let number = |name: &str| seen[name].as_u64().unwrap();
    let ends =
        number("answered") + number("refused") + number("expired") + number("cancelled") + number("failed");
    assert_eq!(number("arrived"), ends, "{seen}");
    assert!(!replica.log_text().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_greedy_caller_hardly_slows_down_another() {
    let time = Duration::from_secs(if proving() { 30 } else { 3 });
    let replica = replica();
    let client = client();
    let median = async |time: Duration| {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let (status, took) = ask(&client, &replica.score, SECONDARY_KEY).await;
            assert_eq!(status, 200);
            times.push(took);
            // At about a tenth of what there is.
            tokio::time::sleep(SERVICE * 4).await;
        }
        times.sort();
        times[times.len() / 2]
    };
    let alone = median(time.min(Duration::from_secs(10))).await;
    let counts = Arc::<Counts>::default();
    let (beside, ()) = tokio::join!(median(time), flood(&replica, time, &counts));
    println!(
        "median alone {alone:?}, beside a greedy caller {beside:?} ({:.2} times)",
        beside.as_secs_f64() / alone.as_secs_f64()
    );
    assert!(counts.refused.load(Ordering::Relaxed) > counts.answered.load(Ordering::Relaxed), "it is greedy");
    let most = if proving() { 2 } else { 3 };
    assert!(beside < alone * most, "alone {alone:?}, beside a greedy caller {beside:?}");
    assert_eq!(busy(&replica).await["failed"], 0);
}
