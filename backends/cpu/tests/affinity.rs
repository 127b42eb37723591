//! How many threads the pool has, and where they run. Each case is a process of its own, for a process has one pool.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_backend::LoadOptions;
use outrigger_testkit::onnx;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Settings, `key=value` in lines; what [`child`] opens the backend with.
const SETTINGS: &str = "OUTRIGGER_TEST_SETTINGS";
/// CPUs that it narrows itself to before.
const MASK: &str = "OUTRIGGER_TEST_MASK";
/// A control group that it enters before.
const GROUP: &str = "OUTRIGGER_TEST_GROUP";
/// Settings of a model that it loads.
const MODEL: &str = "OUTRIGGER_TEST_MODEL_SETTINGS";

/// What the others start: tells the CPUs of each thread that opening and loading has started, or the error.
#[test]
fn child() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    if let Ok(group) = std::env::var(GROUP) {
        std::fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }
    if let Ok(mask) = std::env::var(MASK) {
        let mut set = CpuSet::new();
        mask.split(',').for_each(|cpu| set.set(cpu.parse().unwrap()));
        sched_setaffinity(None, &set).unwrap();
    }
    let before = threads();
    let mut pairs = pairs(&settings);
    pairs.push(("onnxruntime".into(), outrigger_testkit::onnxruntime().display().to_string()));
    let backend = match outrigger_cpu::open(&pairs) {
        Ok(backend) => backend,
        Err(error) => return println!("told: {error}"),
    };
    if let Ok(settings) = std::env::var(MODEL) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, onnx::add(3)).unwrap();
        let mut options = LoadOptions { settings: self::pairs(&settings), ..LoadOptions::of(path) };
        options.settings.retain(|(key, value)| {
            if key == "intra_threads" {
                options.intra_threads = value.parse().ok();
            }
            key != "intra_threads"
        });
        let model = backend.open(0).unwrap().load(&options).unwrap();
        tell(&before);
        drop(model);
    } else {
        tell(&before);
    }
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    text.lines().filter_map(pair).collect()
}

fn tell(before: &[PathBuf]) {
    let started = || threads().into_iter().filter(|thread| !before.contains(thread)).collect::<Vec<_>>();
    // The trimmer, which comes after a load, soon ends; the pool's threads stay.
    let (mut lasting, mut since) = (started(), Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(10));
        let now = started();
        if now != lasting {
            (lasting, since) = (now, Instant::now());
        }
    }
    let allowed = |thread: &Path| {
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        cpus.unwrap().trim().to_owned()
    };
    let mut cpus: Vec<String> = lasting.iter().map(|thread| allowed(thread)).collect();
    cpus.sort();
    println!("told: {}", cpus.join(" "));
}

fn threads() -> Vec<PathBuf> {
    std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()).collect()
}

/// What a child with these variables tells.
fn told(variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(SETTINGS, "");
    // ONNX Runtime has a thread for its telemetry, unless it is told, or sees that a machine tests it.
    command.env("ORT_DISABLE_TELEMETRY", "1").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("told: "));
    line.unwrap_or_else(|| panic!("{text}")).1.trim().to_owned()
}

/// The first two CPUs that this process may use; none if there is only one.
fn two() -> Option<(usize, usize)> {
    let set = sched_getaffinity(None).unwrap();
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    let two = cpus.next().zip(cpus.next());
    if two.is_none() {
        println!("skipped: this process has one CPU only");
    }
    two
}

#[test]
fn the_pool_runs_where_it_is_told() {
    let Some((one, other)) = two() else { return };
    let settings = format!("affinity={other}\nintra_threads=3");
    assert_eq!(told(&[(SETTINGS, &settings)]), format!("{other} {other}"), "two threads and the caller");
    // Without a number there are as many threads as CPUs, of which the caller is one.
    assert_eq!(told(&[(SETTINGS, &format!("affinity={one}"))]), "");
    let both = told(&[(SETTINGS, &format!("affinity={one},{other}"))]);
    assert!(both == format!("{one}-{other}") || both == format!("{one},{other}"), "{both}");
    let refused = told(&[(SETTINGS, &format!("affinity={other}")), (MASK, &one.to_string())]);
    let expected =
        format!("setting `affinity` names CPU {other}, which this process may not use; it may use {one}");
    assert!(refused.contains(&expected), "{refused}");
}

#[test]
fn a_models_own_pool_runs_where_it_is_told() {
    let Some((one, other)) = two() else { return };
    let shared = (SETTINGS, "intra_threads=1");
    let own = |settings: &str| told(&[shared, (MODEL, settings)]);
    assert_eq!(own(""), "");
    assert_eq!(own(&format!("affinity={other}\nintra_threads=3")), format!("{other} {other}"));
    assert_eq!(own(&format!("affinity={one}")), "");
    // The backend's list is for pools of models too.
    let settings = format!("intra_threads=1\naffinity={one}");
    assert_eq!(told(&[(SETTINGS, &settings), (MODEL, "intra_threads=2")]), one.to_string());
}

#[test]
fn the_mask_of_the_process_says_how_many_threads_there_are() {
    let Some((one, other)) = two() else { return };
    assert_eq!(told(&[(MASK, &one.to_string())]), "");
    let both = told(&[(MASK, &format!("{one},{other}"))]);
    assert_eq!(both.split(' ').filter(|cpus| !cpus.is_empty()).count(), 1, "{both}");
}

#[test]
fn the_quota_of_the_control_group_says_how_many_threads_there_are() {
    let Some((one, other)) = two() else { return };
    let Some(group) = Group::with_one_cpu() else {
        return println!("skipped: no control group with a quota can be made here");
    };
    let path = group.0.display().to_string();
    let mask = format!("{one},{other}");
    assert_eq!(told(&[(GROUP, &path), (MASK, &mask)]), "", "one CPU's worth is one thread: the caller");
    let asked = told(&[(GROUP, &path), (MASK, &mask), (SETTINGS, "intra_threads=2")]);
    assert_eq!(asked.split(' ').filter(|cpus| !cpus.is_empty()).count(), 1, "a number is a number: {asked}");
}

/// A control group, removed at the end.
struct Group(PathBuf);

impl Group {
    fn with_one_cpu() -> Option<Self> {
        let lines = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("outrigger-test-{}", std::process::id());
        let make = |parent: PathBuf, files: &[(&str, &str)]| {
            let group = Self(parent.join(&name));
            std::fs::create_dir(&group.0).ok()?;
            files.iter().all(|(file, text)| std::fs::write(group.0.join(file), text).is_ok()).then_some(group)
        };
        lines.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            if controllers.is_empty() {
                return make(Path::new("/sys/fs/cgroup").join(path), &[("cpu.max", "100000 100000")]);
            }
            let is_cpu = controllers.split(',').any(|controller| controller == "cpu");
            let folder = Path::new("/sys/fs/cgroup").join(controllers);
            let folder = if folder.is_dir() { folder } else { "/sys/fs/cgroup/cpu".into() };
            let files = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")];
            is_cpu.then(|| make(folder.join(path), &files))?
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
