//! A child that dies: what callers hear, and that it goes on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use outrigger_backend::{BackendError, DataType, Health, LoadOptions, Shape, Tensor};

use crate::support::{Hosted, call, doubles, halt, hosted, input, resident_bytes, text, until};

#[test]
fn killed_under_load_every_call_ends_and_the_instances_go_on() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    let (_slow, slow) = hosted.model("slow");
    let stop = AtomicBool::new(false);
    let (right, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (instance, stop, right, lost) =
                (if thread % 2 == 0 { &instance } else { &slow }, &stop, &right, &lost);
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    match doubles(&**instance, number as f32, 1 + number % 5000) {
                        Ok(()) => right.fetch_add(1, Ordering::Relaxed),
                        Err(BackendError::Lost(why)) => {
                            assert!(
                                why.contains("the device host of `odd` was ended by signal 9 (SIGKILL"),
                                "{why}"
                            );
                            lost.fetch_add(1, Ordering::Relaxed)
                        }
                        Err(error) => panic!("{error:?}"),
                    };
                }
            });
        }
        for death in 0..5 {
            let before = right.load(Ordering::Relaxed);
            until("calls to succeed", || right.load(Ordering::Relaxed) > before + 50);
            hosted.kill();
            until("the restart", || hosted.restarts() > death && hosted.health().pid.is_some());
        }
        let before = right.load(Ordering::Relaxed);
        until("calls to succeed again", || right.load(Ordering::Relaxed) > before + 50);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(lost.load(Ordering::Relaxed) > 0);
    assert_eq!(hosted.restarts(), 5);
}

#[test]
fn an_abort_and_a_sticky_error_end_the_child_and_not_the_device() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    let (_a, aborting) = hosted.model("abort");
    let (_b, lost) = hosted.model("lost");
    for (number, (bad, why)) in
        [(&aborting, "was ended by signal 6 (SIGABRT"), (&lost, "a sticky error")].into_iter().enumerate()
    {
        doubles(&**bad, 1., 1).err().map_or_else(
            || panic!("it fails"),
            |error| {
                assert!(matches!(&error, BackendError::Lost(text) if text.contains(why)), "{error:?}");
            },
        );
        until("the next child", || doubles(&*instance, 1., 1000).is_ok());
        until("word of it", || hosted.restarts() == number as u64 + 1);
    }
}

#[test]
fn health_is_followed_by_whoever_asks() {
    let hosted = Hosted::with(|options| options.timing.backoff = Duration::from_millis(300));
    let (_model, instance) = hosted.model("double");
    assert_eq!(hosted.health().health, Health::Healthy);
    // The second death is followed by a pause in which it can be looked at.
    for _ in 0..2 {
        hosted.kill();
    }
    until(
        "the pause",
        || matches!(hosted.device.status().unwrap().health, Health::Recovering(why) if why.contains("restarting")),
    );
    assert!(text(doubles(&*instance, 1., 1)).contains("it is being restarted"));
    assert!(text(hosted.device.load(&LoadOptions::of("/x"))).contains("signal 9"));
    until("the next child", || doubles(&*instance, 1., 1).is_ok());
    let status = hosted.device.status().unwrap();
    assert_eq!(status.health, Health::Healthy);
    until("word of it", || hosted.restarts() == 2);
    assert_eq!(hosted.health().device, "cpu:0");
}

#[test]
fn one_device_s_death_is_not_another_s() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    let other = hosted.backend.open(1).unwrap();
    let model = other.load(&LoadOptions::of(hosted.file("abort"))).unwrap();
    let aborting = model.instance().unwrap();
    assert!(doubles(&*aborting, 1., 1).is_err());
    doubles(&*instance, 1., 1).unwrap();
    until("the other's next child", || other.status().unwrap().health == Health::Healthy);
}

#[test]
fn one_that_keeps_dying_is_quarantined_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let deadly = folder.path().join("deadly");
    let hosted = Hosted::with(|options| {
        options.settings = vec![("die_if".into(), deadly.display().to_string())];
        options.timing.backoff_most = Duration::from_millis(100);
        options.timing.quarantine = Duration::from_millis(500);
    });
    let (_model, instance) = hosted.model("double");
    std::fs::write(&deadly, "").unwrap();
    hosted.kill();
    until("the quarantine", || matches!(hosted.health().health, Health::Lost(_)));
    let Health::Lost(why) = hosted.device.status().unwrap().health else { panic!("it is lost") };
    assert!(why.contains("died 5 times in a row and is quarantined"), "{why}");
    assert!(why.contains("was ended by signal 6 (SIGABRT"), "{why}");
    assert!(text(doubles(&*instance, 1., 1)).contains("quarantined"));
    std::fs::remove_file(&deadly).unwrap();
    until("the next try", || doubles(&*instance, 1., 1).is_ok());
    assert_eq!(hosted.device.status().unwrap().health, Health::Healthy);
}

#[test]
fn what_does_not_load_again_says_why() {
    let hosted = Hosted::with(|options| options.timing.backoff_most = Duration::from_millis(200));
    let (_gone_model, gone) = hosted.model("double gone");
    let (_changed_model, changed) = hosted.model("double changed");
    let (_model, instance) = hosted.model("double");
    std::fs::remove_file(hosted.file("double gone")).unwrap();
    let path = hosted.file("double changed");
    std::fs::write(&path, "claim 5").unwrap();
    hosted.kill();
    until("the next child", || doubles(&*instance, 1., 1).is_ok());
    let why = text(doubles(&*gone, 1., 1));
    assert!(why.contains("after its device host was restarted") && why.contains("double-gone"), "{why}");
    let why = text(call(&*changed, &input(1., 1)));
    assert!(why.contains("it has other inputs or outputs than before"), "{why}");
    let degraded = |health| matches!(health, Health::Degraded(why) if why.contains("did not load again"));
    assert!(degraded(hosted.device.status().unwrap().health));
    assert!(degraded(hosted.health().health));
    // They are tried again by and by.
    std::fs::write(&path, "double").unwrap();
    std::fs::write(hosted.file("double gone"), "double").unwrap();
    until("the next try", || doubles(&*gone, 1., 1).is_ok() && doubles(&*changed, 1., 1).is_ok());
    until("word of it", || hosted.health().health == Health::Healthy);
    assert_eq!((hosted.device.status().unwrap().health, hosted.restarts()), (Health::Healthy, 1));
}

/// Starts that fail, for a reason that ends.
fn fails_to_start_until(
    hosted: &Hosted,
    instance: &dyn outrigger_backend::Instance,
    why: &str,
    end: impl FnOnce(),
) {
    hosted.kill();
    until("the quarantine", || matches!(hosted.health().health, Health::Lost(_)));
    let Health::Lost(text) = hosted.health().health else { panic!("it is lost") };
    assert!(text.contains(why), "{text}");
    end();
    until("the next try", || doubles(instance, 1., 1).is_ok());
}

fn quick(options: &mut outrigger_device_host::Options) {
    options.timing.backoff_most = Duration::from_millis(100);
    options.timing.quarantine = Duration::from_millis(500);
}

#[test]
fn a_device_without_memory_for_what_it_had_has_not_started() {
    let hosted = Hosted::with(quick);
    let (_model, instance) = hosted.model("double");
    let path = hosted.file("double");
    std::fs::write(&path, "greedy").unwrap();
    fails_to_start_until(&hosted, &*instance, "did not load again", || {
        std::fs::write(&path, "double").unwrap();
    });
}

#[test]
fn a_model_without_memory_is_missing_and_the_others_serve() {
    let hosted = Hosted::with(quick);
    let (_greedy, greedy) = hosted.model("double greedy");
    let (_model, instance) = hosted.model("double");
    let path = hosted.file("double greedy");
    std::fs::write(&path, "greedy").unwrap();
    hosted.kill();
    until("the next child", || doubles(&*instance, 1., 1).is_ok());
    let error = doubles(&*greedy, 1., 1).unwrap_err();
    let names =
        |why: &str| why.contains("double-greedy` did not load again") && why.contains("out of memory");
    assert!(matches!(&error, BackendError::Lost(why) if names(why)), "{error:?}");
    let degraded = |health| matches!(health, Health::Degraded(why) if names(&why));
    assert!(degraded(hosted.device.status().unwrap().health));
    // It is tried again by and by, and costs the others nothing.
    std::fs::write(&path, "double").unwrap();
    until("the next try", || {
        doubles(&*instance, 1., 1).unwrap();
        doubles(&*greedy, 1., 1).is_ok()
    });
    until("word of it", || hosted.health().health == Health::Healthy);
    assert_eq!(hosted.restarts(), 1);
}

#[test]
fn another_device_than_before_has_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let shrunk = folder.path().join("shrunk");
    let hosted = Hosted::with(|options| {
        options.settings = vec![("shrunk_if".into(), shrunk.display().to_string())];
        quick(options);
    });
    let (_model, instance) = hosted.model("double");
    std::fs::write(&shrunk, "").unwrap();
    let why = "found 1 devices where there were 2";
    assert!(text(hosted.backend.open(1)).contains(why));
    fails_to_start_until(&hosted, &*instance, why, || std::fs::remove_file(&shrunk).unwrap());
}

#[test]
fn a_child_that_stands_still_is_replaced_when_it_is_asked() {
    let hosted = Hosted::with(|options| options.timing.answer = Duration::from_millis(500));
    let (_model, instance) = hosted.model("double");
    let pid = hosted.pid();
    halt(pid);
    // It does not need to be asked for that.
    assert_eq!(instance.bytes_held(), 7);
    let status = hosted.device.status().unwrap();
    assert!(!matches!(status.health, Health::Healthy), "{status:?}");
    until("the next child", || doubles(&*instance, 1., 1).is_ok());
    assert_ne!(hosted.pid(), pid);
}

#[test]
fn memory_that_went_with_a_child_is_no_fault_of_the_next() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    let memory = hosted.device.allocate(8).unwrap();
    let lost = Tensor::on_device(DataType::Fp32, Shape::new([2]).unwrap(), memory).unwrap();
    hosted.kill();
    until("the next child", || doubles(&*instance, 1., 1).is_ok());
    let pid = hosted.pid();
    for _ in 0..3 {
        let error = call(&*instance, &lost).unwrap_err();
        assert!(matches!(&error, BackendError::Lost(why) if why.contains("was lost")), "{error:?}");
    }
    doubles(&*instance, 1., 1).unwrap();
    assert_eq!((hosted.pid(), hosted.restarts()), (pid, 1));
}

#[test]
fn whatever_takes_too_long_names_its_key() {
    let hosted = Hosted::with(|options| {
        options.timing.request = Duration::from_secs(1);
        options.timing.answer = Duration::from_secs(600);
    });
    let (_model, instance) = hosted.model("double");
    let n = 20_000;
    let halted = |what: &str, ask: &dyn Fn(&outrigger_backend::DeviceMemory) -> Result<(), BackendError>| {
        until("a child", || doubles(&*instance, 1., 1).is_ok());
        let memory = hosted.device.allocate(n * 4).unwrap();
        halt(hosted.pid());
        let why = text(ask(&memory));
        assert!(why.contains("it did not answer within 1s (request_timeout)"), "{what}: {why}");
    };
    halted("an upload", &|memory| hosted.device.upload(&vec![0; n * 4], memory));
    halted("a download", &|memory| hosted.device.download(memory, &mut vec![0; n * 4]));
    // Of a region that the child has not heard of it is told first.
    let pinned = hosted.device.pinned(n * 4).unwrap().freeze();
    let input = Tensor::new(DataType::Fp32, Shape::new([n as i64]).unwrap(), pinned).unwrap();
    halted("a region", &|_| call(&*instance, &input).map(drop));
}

#[test]
fn loading_again_that_takes_too_long_names_its_key() {
    let hosted = Hosted::with(|options| {
        options.timing.reload = Duration::from_secs(1);
        options.timing.backoff_most = Duration::from_millis(200);
    });
    let (_model, _instance) = hosted.model("double");
    let path = hosted.file("double");
    // In the next child, and later in one that serves without it.
    std::fs::write(&path, "lazy").unwrap();
    hosted.kill();
    until("the next child to be given up", || {
        hosted.was_said("its device host did not get ready in time: load_timeout is 1s")
    });
    std::fs::write(&path, "broken").unwrap();
    until("one without it", || matches!(hosted.health().health, Health::Degraded(_)));
    std::fs::write(&path, "lazy").unwrap();
    until("that to be given up", || hosted.was_said("it did not answer within 1s (load_timeout)"));
    std::fs::write(path.with_extension("go"), "").unwrap();
}

#[test]
fn what_was_let_go_of_while_the_next_child_loaded_it_is_unloaded_there() {
    let hosted = Hosted::with(|options| options.timing.backoff_most = Duration::from_secs(3600));
    let large = hosted.model("large");
    let (_model, instance) = hosted.model("double");
    // It loads what is older first.
    let path = hosted.file("double");
    std::fs::write(&path, "lazy").unwrap();
    hosted.kill();
    until("the next child to load", || path.with_extension("begun").exists());
    drop(large);
    std::fs::write(path.with_extension("go"), "").unwrap();
    until("the next child", || doubles(&*instance, 1., 1).is_ok());
    until("the memory to be given back", || resident_bytes(hosted.pid()) < 256 << 20);
    assert_eq!(hosted.restarts(), 1);
}
