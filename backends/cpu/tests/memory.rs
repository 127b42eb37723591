//! Memory goes back to the operating system when models are unloaded. A process of its own, for it looks at the whole of it.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_backend::conformance::{fp32, infer, instance};
use outrigger_backend::{Device, Instance, Model};
use outrigger_testkit::onnx;

/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());

type Loaded = (Arc<dyn Model>, Arc<dyn Instance>);

fn device() -> Arc<dyn Device> {
    let path = outrigger_testkit::onnxruntime().display().to_string();
    let settings = [("onnxruntime".into(), path), ("intra_threads".into(), "2".into())];
    outrigger_cpu::open(&settings).unwrap().open(0).unwrap()
}

fn write(folder: &Path, widths: &[i64]) -> PathBuf {
    let path = folder.join("model.onnx");
    std::fs::write(&path, onnx::mlp(widths)).unwrap();
    path
}

fn run((model, instance): &Loaded, rows: i64, width: i64) {
    let x = fp32(&[rows, width], &vec![0.5; (rows * width) as usize]);
    infer(&**model, &**instance, &[x]).unwrap();
}

/// KiB that the process has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The least that the process comes down to, once it has not come down any further for longer than two passes may be apart.
fn settled() -> u64 {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    while since.elapsed() < Duration::from_millis(1600) {
        let now = resident();
        if now < least - least.min(64) {
            (least, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    least
}

/// Holds what `round` leaves, the second time, against what it left the first time, within 5 %.
fn comes_back(what: &str, mut round: impl FnMut() -> u64) {
    // The first round fills what stays: caches of the library, the pool's stacks.
    round();
    let start = settled();
    let peak = round();
    let end = settled();
    println!("{what}: {start} KiB before, {peak} at most, {end} afterwards");
    assert!(peak > start + start / 2, "{what}: {peak} of {start} KiB shows nothing");
    assert!(end <= start + start / 20, "{what}: {start} KiB before, {end} afterwards");
}

#[test]
fn a_thousand_sessions_come_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &[64, 128, 128, 10]);
    let device = device();
    let mut each = (0, 0);
    comes_back("1000 sessions of 102 KB", || {
        let before = settled();
        let sessions: Vec<Loaded> = (0..1000).map(|_| instance(&*device, &path)).collect();
        sessions.iter().for_each(|session| run(session, 1, 64));
        let peak = resident();
        each = ((peak - before) / 1000, sessions[0].1.bytes_held() / 1024);
        peak
    });
    let (measured, told) = each;
    println!("{measured} KiB each, {told} told");
    assert!((100..=260).contains(&measured), "{measured} KiB for a small session");
    assert!(told.abs_diff(measured) <= measured / 4, "{told} KiB told of {measured}");
}

#[test]
fn a_hundred_loads_come_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &[512, 2048, 2048, 512]);
    let device = device();
    comes_back("100 loads of 25 MB", || {
        let mut peak = 0;
        for _ in 0..100 {
            let session = instance(&*device, &path);
            run(&session, 16, 512);
            peak = peak.max(resident());
        }
        peak
    });
    let before = settled();
    let session = instance(&*device, &path);
    run(&session, 16, 512);
    let (held, told) = (settled() - before, session.1.bytes_held() / 1024);
    println!("{held} KiB held, {told} told");
    assert!(told.abs_diff(held) <= held / 4, "{told} KiB told of {held}");
}

/// What runs took is ONNX Runtime's arena's, which the heap's own trimming does not reach.
#[test]
fn what_wide_runs_took_comes_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &[8, 1024, 1024, 8]);
    let device = device();
    comes_back("runs that take 64 MB", || {
        let session = instance(&*device, &path);
        run(&session, 8192, 8);
        resident()
    });
}
