//! Calls: where tensors lie, what is kept, and what is too much.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_backend::conformance::values;
use outrigger_backend::{
    BackendError, Buffer, DataType, Health, LoadOptions, ModelInfo, Output, Run, RunId, Shape, Tensor,
};

use crate::support::{Hosted, call, doubles, hosted, input, mapping_of, text, until};

#[test]
fn tensors_of_every_size_come_back_right() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    for n in [0, 1, 3, 1023, 1024, 1025, 16 << 10, 100_000, 3_000_000, 20_000_000, 5] {
        doubles(&*instance, n as f32 + 0.5, n).unwrap();
    }
    assert_eq!((instance.bytes_held(), hosted.restarts()), (7, 0));
    assert_eq!(hosted.device.status().unwrap().memory_free, 1 << 29);
    assert_eq!(hosted.device.estimate(&LoadOptions::of("/nowhere")).unwrap(), 42);
}

#[test]
fn views_of_results_stay_what_they_are() {
    let hosted = hosted();
    let (model, instance) = hosted.model("double");
    // More than a connection keeps, with some let go of in between, so that regions are used again.
    let mut held: Vec<(f32, Tensor)> = Vec::new();
    for number in 0..200 {
        let value = number as f32;
        let n = 2000 + 700 * (number % 7);
        held.push((value, call(&*instance, &input(value, n)).unwrap()));
        if number % 3 == 0 {
            held.remove(held.len() / 2);
        }
        for (value, tensor) in &held {
            assert!(values(tensor).iter().all(|got| *got == value * 2.), "{value}");
        }
    }
    // They outlive all that made them.
    drop((model, instance, hosted));
    for (value, tensor) in &held {
        assert!(values(tensor).iter().all(|got| *got == value * 2.), "{value}");
    }
}

#[test]
fn results_are_not_copied_on_their_way() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    let result = call(&*instance, &input(1., 100_000)).unwrap();
    let line = mapping_of(&result);
    assert!(line.contains("r--s") && line.contains("memfd:outrigger"), "{line}");
}

#[test]
fn a_result_with_a_place_is_written_there() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    for n in [10usize, 100_000] {
        let buffer = Buffer::zeroed(n * 4).unwrap();
        let address = buffer.as_ptr();
        let shape = Shape::new([n as i64]).unwrap();
        let mut outputs = [Output::place(0, DataType::Fp32, shape, buffer).unwrap()];
        instance.infer(&[input(4., n)], &mut outputs, Run::default()).unwrap();
        let [output] = outputs;
        let tensor = output.into_tensor().unwrap();
        assert_eq!(tensor.data().as_ptr(), address);
        assert!(values(&tensor).iter().all(|got| *got == 8.));
    }
}

#[test]
fn inputs_that_a_backend_keeps_are_not_written_over() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("keep");
    // The backend itself looks at all that it has kept, in each call, and answers with the first.
    for number in 1..40 {
        let n = if number % 2 == 0 { 5 } else { 50_000 };
        let result = call(&*instance, &input(number as f32, n)).unwrap();
        assert!(values(&result).iter().all(|got| *got == 1.), "call {number}");
    }
}

#[test]
fn many_threads_at_once() {
    let hosted = Hosted::with(|options| options.limits.connections = 4);
    let (_model, instance) = hosted.model("double");
    std::thread::scope(|scope| {
        for thread in 0..12usize {
            let instance = &*instance;
            scope.spawn(move || {
                for call in 0..150usize {
                    doubles(instance, (thread * 1000 + call) as f32, 1 + (call * 37 + thread) % 3000)
                        .unwrap();
                }
            });
        }
    });
}

#[test]
fn more_calls_than_connections_wait_and_then_hear_why() {
    let hosted = Hosted::with(|options| {
        options.limits.connections = 1;
        options.limits.connection_wait = Duration::from_millis(50);
    });
    let (_model, waiting) = hosted.model("wait");
    let (_other, instance) = hosted.model("double");
    std::thread::scope(|scope| {
        let run = Run { id: RunId::new(1) };
        let waiting = &waiting;
        let blocked = scope.spawn(move || waiting.infer(&[input(1., 1)], &mut [Output::allocate(0)], run));
        let mut last = String::new();
        until("the one connection to be taken", || match doubles(&*instance, 1., 1) {
            Ok(()) => false,
            Err(error) => {
                last = error.to_string();
                true
            }
        });
        assert!(last.contains("the device host of `odd` has 1 calls under way"), "{last}");
        waiting.cancel(RunId::new(1).unwrap());
        assert!(matches!(blocked.join().unwrap(), Err(BackendError::Cancelled)));
    });
    doubles(&*instance, 1., 1).unwrap();
}

#[test]
fn a_cancel_ends_its_run_and_no_other() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("wait");
    let id = |number| RunId::new(number).unwrap();
    std::thread::scope(|scope| {
        let start = |number| {
            let instance = &instance;
            let run = Run { id: Some(id(number)) };
            scope.spawn(move || instance.infer(&[input(1., 1)], &mut [Output::allocate(0)], run))
        };
        let runs = [start(1), start(2)];
        // One that is not under way is nothing to do. How far the others are does not matter.
        instance.cancel(id(9));
        until("the first run to end", || {
            instance.cancel(id(1));
            runs[0].is_finished()
        });
        assert!(!runs[1].is_finished());
        until("the second run to end", || {
            instance.cancel(id(2));
            runs[1].is_finished()
        });
        for run in runs {
            assert!(matches!(run.join().unwrap(), Err(BackendError::Cancelled)));
        }
    });
    assert_eq!(hosted.restarts(), 0);
}

#[test]
fn a_run_that_does_not_end_when_it_is_cancelled_ends_with_its_host() {
    let hosted = Hosted::with(|options| options.timing.cancel_grace = Duration::from_millis(100));
    let (_model, hanging) = hosted.model("hang");
    let (_other, instance) = hosted.model("double");
    let ended = std::thread::scope(|scope| {
        let run = Run { id: RunId::new(7) };
        let hanging = &hanging;
        let blocked = scope.spawn(move || hanging.infer(&[input(1., 1)], &mut [Output::allocate(0)], run));
        until("the run to begin", || hosted.file("hang").with_extension("begun").exists());
        hanging.cancel(RunId::new(7).unwrap());
        blocked.join().unwrap()
    });
    let why = text(ended);
    assert!(why.contains("a run did not end within 100ms of its cancel"), "{why}");
    until("the next child", || doubles(&*instance, 3., 3).is_ok());
    until("word of it", || hosted.restarts() == 1);
}

#[test]
fn a_run_that_cannot_be_cancelled_is_not_held_against_its_host() {
    let grace = Duration::from_millis(50);
    let hosted = Hosted::with(|options| options.timing.cancel_grace = grace);
    let (_model, stubborn) = hosted.model("stubborn");
    let file = hosted.file("stubborn");
    let id = RunId::new(7).unwrap();
    std::thread::scope(|scope| {
        let stubborn = &stubborn;
        let run = scope
            .spawn(move || stubborn.infer(&[input(1., 1)], &mut [Output::allocate(0)], Run { id: Some(id) }));
        until("the run to begin", || file.with_extension("begun").exists());
        let cancelled = Instant::now();
        until("the grace to be over, several times", || {
            stubborn.cancel(id);
            cancelled.elapsed() > grace * 10
        });
        std::fs::write(file.with_extension("go"), "").unwrap();
        run.join().unwrap().unwrap();
    });
    assert_eq!(hosted.restarts(), 0);
}

#[test]
fn memory_of_the_device() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    let device = &hosted.device;
    for n in [2usize, 60_000] {
        let memory = device.allocate(n * 4).unwrap();
        device.upload(input(3., n).data(), &memory).unwrap();
        let on_device =
            Tensor::on_device(DataType::Fp32, Shape::new([n as i64]).unwrap(), memory.clone()).unwrap();
        let mut outputs = [Output::resident(0)];
        instance.infer(&[on_device], &mut outputs, Run::default()).unwrap();
        let [output] = outputs;
        let result = output.into_tensor().unwrap();
        // Into the next run, without a way through here.
        let mut outputs = [Output::resident(0)];
        instance.infer(std::slice::from_ref(&result), &mut outputs, Run::default()).unwrap();
        let [output] = outputs;
        let last = output.into_tensor().unwrap();
        let mut bytes = vec![0; n * 4];
        device.download(last.resident().unwrap(), &mut bytes).unwrap();
        assert!(bytes.as_chunks().0.iter().all(|value| f32::from_ne_bytes(*value) == 12.));
        assert!(matches!(device.upload(&[1], &memory), Err(BackendError::Input(_))));
    }
    let other = hosted.backend.open(1).unwrap();
    let memory = device.allocate(4).unwrap();
    assert_eq!(text(other.upload(&[0; 4], &memory)), "the memory is another device's");
    hosted.kill();
    until("the next child", || doubles(&*instance, 1., 1).is_ok());
    let error = device.upload(&[0; 4], &memory).unwrap_err();
    assert!(matches!(error, BackendError::Lost(_)), "{error:?}");
}

#[test]
fn what_is_too_much_is_a_clear_error() {
    let hosted = Hosted::with(|options| options.limits.call_bytes = 1 << 20);
    let (_model, instance) = hosted.model("double");
    let error = call(&*instance, &input(1., 300_000)).unwrap_err();
    assert!(matches!(error, BackendError::Input(_)), "{error:?}");
    let limit = "inputs of 1200000 bytes are over max_call_bytes of the device host, 1048576 bytes";
    assert_eq!(error.to_string(), limit);
    // A result that is said to have 4 GB.
    let (model, claiming) = hosted.model("claim 1000000000");
    let info: &ModelInfo = model.info();
    assert_eq!(info.outputs[0].shape, [1_000_000_000]);
    let error = call(&*claiming, &input(1., 4)).unwrap_err();
    assert!(matches!(error, BackendError::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains("results of 4000000000 bytes are over"), "{error}");
    doubles(&*instance, 1., 4).unwrap();
    assert_eq!(hosted.restarts(), 0);
}

#[test]
fn results_that_are_too_much_together_are_a_clear_error() {
    let hosted = Hosted::with(|options| options.limits.call_bytes = 1 << 20);
    let (_model, pair) = hosted.model("pair");
    // Each of the two is below the limit.
    let n = 150_000usize;
    let place = |index| {
        let buffer = Buffer::zeroed(n * 4).unwrap();
        Output::place(index, DataType::Fp32, Shape::new([n as i64]).unwrap(), buffer).unwrap()
    };
    for mut outputs in [[Output::allocate(0), Output::allocate(1)], [place(0), place(1)]] {
        let error = pair.infer(&[input(1., n)], &mut outputs, Run::default()).unwrap_err();
        assert!(matches!(error, BackendError::Unsupported(_)), "{error:?}");
        let limit = "results of 1200000 bytes are over max_call_bytes of the device host, 1048576 bytes";
        assert!(error.to_string().contains(limit), "{error}");
        let mut outputs = [Output::allocate(0), Output::allocate(1)];
        pair.infer(&[input(1., n / 2)], &mut outputs, Run::default()).unwrap();
    }
    assert_eq!(hosted.restarts(), 0);
}

#[test]
fn connections_that_nobody_uses_lapse() {
    let hosted = Hosted::with(|options| options.timing.idle = Duration::from_millis(100));
    let (_model, waiting) = hosted.model("wait");
    let (_other, instance) = hosted.model("double");
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", hosted.pid())).unwrap();
        let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        // One that has ended meanwhile has no name.
        tasks.flatten().filter(|task| name(task).is_ok_and(|name| name.trim() == "connection")).count()
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (1..=6)
            .map(|number| {
                let waiting = &waiting;
                let run = Run { id: RunId::new(number) };
                scope.spawn(move || waiting.infer(&[input(1., 1)], &mut [Output::allocate(0)], run))
            })
            .collect();
        until("a connection for each run", || threads() >= 6);
        until("the runs to end", || {
            (1..=6).for_each(|number| waiting.cancel(RunId::new(number).unwrap()));
            runs.iter().all(|run| run.is_finished())
        });
    });
    // One for runs, one for the rest.
    until("all others to lapse", || threads() <= 2);
    doubles(&*instance, 1., 1).unwrap();
    assert_eq!(hosted.restarts(), 0);
}

#[test]
fn models_and_instances_have_limits() {
    let hosted = Hosted::with(|options| (options.limits.models, options.limits.instances) = (2, 3));
    let (model, one) = hosted.model("double");
    let (_other, _two) = hosted.model("double");
    let third = hosted.device.load(&LoadOptions::of(hosted.file("double"))).err().unwrap();
    assert!(matches!(&third, BackendError::Load(why) if why.contains("holds 2 models")), "{third:?}");
    let three = model.instance().unwrap();
    assert!(text(model.instance()).contains("holds 3 instances"));
    drop(one);
    let four = model.instance().unwrap();
    doubles(&*three, 1., 1).unwrap();
    doubles(&*four, 1., 1).unwrap();
}

#[test]
fn an_idle_host_takes_no_processor_time() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("double");
    for _ in 0..200 {
        doubles(&*instance, 1., 1).unwrap();
    }
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", hosted.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (before, began) = (ticks(), Instant::now());
    until("a second to pass", || began.elapsed() > Duration::from_secs(1));
    // A tick is 10 ms: a thread that goes on looking would take a hundred.
    assert!(ticks() - before <= 10, "{} ticks in {:?}", ticks() - before, began.elapsed());
    assert_eq!(hosted.device.status().unwrap().health, Health::Healthy);
    let kept: Arc<dyn outrigger_backend::Instance> = instance;
    doubles(&*kept, 2., 2).unwrap();
}
