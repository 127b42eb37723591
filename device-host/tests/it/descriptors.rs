//! A process that has no more descriptors: calls that need one say so, and all goes on afterwards.

use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, Instance, LoadOptions, Output, Run, RunId};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::support::{Hosted, call, doubles, hosted, input, resident_bytes, until};

/// Many bytes, which go through shared memory.
const LARGE: usize = 20_000;

/// What a call says that needs a descriptor where there is none.
fn says_so(result: Result<(), BackendError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, BackendError::Run(_) | BackendError::OutOfMemory(_)), "{error:?}");
    assert!(error.to_string().contains("open files"), "{error}");
}

/// A call while a run of a model that waits has the one connection that there is. Which of the two comes too late for that does not
/// matter: what that one hears.
fn beside_a_run(waiting: &dyn Instance, instance: &dyn Instance) -> Result<(), BackendError> {
    let id = RunId::new(1).unwrap();
    std::thread::scope(|scope| {
        let run = scope
            .spawn(move || waiting.infer(&[input(1., 1)], &mut [Output::allocate(0)], Run { id: Some(id) }));
        let mut last = Ok(());
        until("a call that needs a further connection", || {
            last = doubles(instance, 1., 1);
            last.is_err() || run.is_finished()
        });
        until("the run to end", || {
            waiting.cancel(id);
            run.is_finished()
        });
        let run = run.join().unwrap();
        if last.is_err() { last } else { run }
    })
}

fn goes_on(hosted: &Hosted, instance: &dyn Instance, pid: u32) {
    for n in [1, LARGE, LARGE * 10] {
        doubles(instance, n as f32, n).unwrap();
    }
    let many = |instance: &dyn Instance| (0..50).try_for_each(|n| doubles(instance, n as f32, 1));
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| many(instance))).collect();
        calls.into_iter().for_each(|calls| calls.join().unwrap().unwrap());
    });
    assert_eq!((hosted.pid(), hosted.restarts()), (pid, 0));
}

/// Leaves a process no further descriptor; its limit before.
fn exhaust(pid: u32) -> Rlimit {
    // The first number that it does not use; those above, if there are any, stay open.
    let first_free = (0..).find(|fd| !std::path::Path::new(&format!("/proc/{pid}/fd/{fd}")).exists());
    restrict(pid, first_free)
}

fn restrict(pid: u32, current: Option<u64>) -> Rlimit {
    let limit = Rlimit { current, maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).unwrap()
}

#[test]
fn a_child_without_descriptors_says_so_and_goes_on() {
    let hosted = hosted();
    let ((_model, instance), (_other, waiting)) = (hosted.model("double"), hosted.model("wait"));
    doubles(&*instance, 1., 1).unwrap();
    let pid = hosted.pid();
    let before = exhaust(pid);
    says_so(beside_a_run(&*waiting, &*instance));
    doubles(&*instance, 1., 1).unwrap();
    // The descriptor of a region for inputs does not arrive, for which the connection pays.
    says_so(doubles(&*instance, 1., LARGE));
    until("its descriptor to be there for another", || doubles(&*instance, 1., 1).is_ok());
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, before).unwrap();
    goes_on(&hosted, &*instance, pid);
}

#[test]
fn a_child_that_cannot_even_take_a_connection_goes_on() {
    let hosted = hosted();
    let ((_model, instance), (_other, waiting)) = (hosted.model("double"), hosted.model("wait"));
    doubles(&*instance, 1., 1).unwrap();
    let pid = hosted.pid();
    // As if somebody else in it were always faster to take the number that it has in reserve.
    let before = restrict(pid, Some(3));
    for _ in 0..2 {
        says_so(beside_a_run(&*waiting, &*instance));
    }
    doubles(&*instance, 1., 1).unwrap();
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, before).unwrap();
    goes_on(&hosted, &*instance, pid);
}

#[test]
fn what_cannot_be_unloaded_for_want_of_descriptors_is_unloaded_later() {
    let hosted = Hosted::with(|options| options.timing.backoff_most = Duration::from_millis(100));
    let large = hosted.model("large");
    let lazy = hosted.file("lazy");
    let pid = hosted.pid();
    let before = std::thread::scope(|scope| {
        // It has the one connection that there is for this.
        let loads = scope.spawn(|| hosted.device.load(&LoadOptions::of(&lazy)).map(drop));
        until("it to load", || lazy.with_extension("begun").exists());
        let before = exhaust(pid);
        drop(large);
        let held = resident_bytes(pid);
        // It is tried in vain meanwhile, and forgotten for that no more than it was before.
        let since = Instant::now();
        until("a few tries", || since.elapsed() > Duration::from_millis(300));
        std::fs::write(lazy.with_extension("go"), "").unwrap();
        loads.join().unwrap().unwrap();
        assert!(held > 256 << 20, "{held}");
        before
    });
    until("the memory to be given back", || resident_bytes(pid) < 256 << 20);
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, before).unwrap();
    assert_eq!((hosted.pid(), hosted.restarts()), (pid, 0));
}

#[test]
fn a_parent_without_descriptors_says_so_and_goes_on() {
    // In a process of its own, for other tests need descriptors.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "descriptors::without_descriptors", "--nocapture"])
        .env("OUTRIGGER_TEST_DESCRIPTORS", "64")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What the test above runs; alone it does nothing.
#[test]
fn without_descriptors() {
    let Ok(limit) = std::env::var("OUTRIGGER_TEST_DESCRIPTORS") else { return };
    let current = Some(limit.parse().unwrap());
    setrlimit(Resource::Nofile, Rlimit { current, ..getrlimit(Resource::Nofile) }).unwrap();
    let hosted = hosted();
    let ((_model, instance), (_other, waiting)) = (hosted.model("double"), hosted.model("wait"));
    doubles(&*instance, 1., LARGE).unwrap();
    let pid = hosted.pid();
    let taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    assert!(!taken.is_empty());
    says_so(beside_a_run(&*waiting, &*instance));
    // One result holds the region for results that both sides have; the descriptor of the next does not arrive.
    let held = call(&*instance, &input(1., LARGE)).unwrap();
    says_so(doubles(&*instance, 1., LARGE));
    drop((held, taken));
    goes_on(&hosted, &*instance, pid);
}
