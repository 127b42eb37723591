//! The end of a child, and that nothing is left of it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use outrigger_backend::Output;
use outrigger_backend::Run;

use crate::support::{
    Hosted, doubles, executable, hosted, input, is_there, kill, odd, resident_bytes, until,
};

/// What a process holds; other tests run beside this one, so this looks at a process of its own.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn the_last_handle_ends_the_child_and_returns_its_memory() {
    let hosted = hosted();
    let pid = hosted.pid();
    let model = hosted.model("large");
    doubles(&*model.1, 1., 1).unwrap();
    assert!(resident_bytes(pid) > 256 << 20);
    let (model, instance) = model;
    drop((model, hosted));
    // The instance keeps what it was made from.
    doubles(&*instance, 1., 1).unwrap();
    drop(instance);
    assert!(!is_there(pid), "it is reaped when the last handle is gone");
}

#[test]
fn unloading_a_model_ends_it_in_the_child() {
    let hosted = hosted();
    let pid = hosted.pid();
    let before = resident_bytes(pid);
    for _ in 0..5 {
        drop(hosted.model("large"));
    }
    assert!(resident_bytes(pid) < before + (64 << 20));
}

#[test]
fn a_hundred_open_and_close_and_leave_nothing() {
    // In a process of its own, for descriptors of other tests come and go.
    let counts = |rounds: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ends::rounds_of_open_and_close", "--nocapture"])
            .env("OUTRIGGER_TEST_ROUNDS", rounds)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line =
            text.lines().find_map(|line| line.split_once("left: ")).unwrap_or_else(|| panic!("{text}"));
        line.1.to_owned()
    };
    let (few, many) = (counts("3"), counts("100"));
    assert_eq!(few, many, "descriptors, threads, children");
}

/// What the test above runs; alone it does one round.
#[test]
fn rounds_of_open_and_close() {
    let rounds: usize = std::env::var("OUTRIGGER_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        let hosted = hosted();
        let (_model, instance) = hosted.model("double");
        doubles(&*instance, 1., 5000).unwrap();
    }
    let own = std::process::id();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    let children: usize = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap())
        .map(|children| children.split_whitespace().count())
        .sum();
    println!("\nleft: {} {threads} {children}", descriptors(own));
}

#[test]
fn a_child_that_hangs_is_ended_all_the_same() {
    let hosted = Hosted::with(|options| options.timing.end_grace = Duration::from_millis(100));
    let pid = hosted.pid();
    let (model, instance) = hosted.model("hang");
    let hanging = std::thread::spawn(move || {
        instance.infer(&[input(1., 1)], &mut [Output::allocate(0)], Run::default())
    });
    drop(model);
    // Nobody asks the run to end; the host is taken away under it.
    kill(pid);
    assert!(hanging.join().unwrap().is_err());
    drop(hosted);
    until("its end", || !is_there(pid));
}

#[test]
fn the_parent_s_death_ends_the_child() {
    let mut parent =
        Command::new(executable()).arg("parent").arg(odd()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let child: u32 = line.trim().parse().unwrap();
    assert!(child > 0 && is_there(child));
    kill(parent.id());
    parent.wait().unwrap();
    // Whoever inherits it may take its time to reap it.
    until("the child's end", || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

#[test]
fn a_device_that_is_opened_while_it_closes_waits_for_that() {
    let hosted = hosted();
    for round in 0..10 {
        let (pid, backend) = (hosted.pid(), &hosted.backend);
        let device = backend.open(1).unwrap();
        let before = hosted.pid_of("cpu:1");
        assert_ne!(before, pid);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(device));
            let file = hosted.file("double");
            let again = backend.open(1).unwrap();
            let model = again.load(&outrigger_backend::LoadOptions::of(file)).unwrap();
            doubles(&*model.instance().unwrap(), round as f32, 10).unwrap();
            // Either the same child, if it was opened in time, or another after that one's end.
            let now = hosted.pid_of("cpu:1");
            assert!(now == before || !is_there(before), "{before} and {now} serve one device");
        });
    }
}

#[test]
fn a_child_goes_before_its_parent_when_memory_runs_out() {
    let hosted = hosted();
    let score = |pid: u32| -> i32 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    let own = score(std::process::id());
    assert_eq!(score(hosted.pid()), (own + 300).min(1000), "the parent has {own}");
}
