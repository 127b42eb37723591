//! Runs: on many threads, finishing later, cancelled.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use super::{
    Fixtures, Heard, PATIENCE, Skipped, fp32, heard, infer, instance, need, open, rows, skip, submit,
    tensors, values, zeros,
};
use crate::{Backend, BackendError, Instance, Model, Output, Run, RunId};

pub(super) fn on_many_threads(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let (model, instance) = instance(&*device, &fixtures.add);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (model, instance) = (&*model, &*instance);
            scope.spawn(move || {
                for call in 0..200 {
                    let batch = 1 + (call % 5) as i64;
                    let x = fp32(&[batch, 3], &vec![thread as f32; batch as usize * 3]);
                    let y = fp32(&[batch, 3], &vec![call as f32; batch as usize * 3]);
                    let outputs = infer(model, instance, &[x, y]).expect("add runs");
                    let expected = vec![(thread + call) as f32; batch as usize * 3];
                    assert_eq!(values(&outputs[0]), expected, "thread {thread}, call {call}");
                }
            });
        }
    });
    Ok(())
}

pub(super) fn finishes_what_is_submitted(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let (model, instance) = instance(&*open(backend), &fixtures.add);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (model, instance) = (&model, &instance);
            scope.spawn(move || {
                let begun: Vec<Heard> = (0..20)
                    .map(|call| {
                        let inputs = vec![rows(2, thread as f32), rows(2, call as f32)];
                        let outputs = match call % 2 {
                            0 => vec![Output::allocate(0)],
                            _ => model.info().place_outputs(&inputs, &[0]).expect("memory for 6 numbers"),
                        };
                        submit(instance, inputs, outputs, Run::default())
                    })
                    .collect();
                for (call, begun) in begun.into_iter().enumerate() {
                    let outputs = heard(begun).expect("add runs");
                    assert_eq!(
                        values(&outputs[0]),
                        [(thread + call) as f32; 6],
                        "thread {thread}, call {call}"
                    );
                }
            });
        }
    });
    // What is refused is told in the same way, and once.
    let error = heard(submit(&instance, vec![rows(1, 0.)], vec![Output::allocate(0)], Run::default())).err();
    assert!(matches!(error, Some(BackendError::Input(_))), "{error:?}");
    let error =
        heard(submit(&instance, vec![rows(1, 0.); 2], vec![Output::allocate(9)], Run::default())).err();
    assert!(matches!(error, Some(BackendError::Input(_))), "{error:?}");
    heard(submit(&instance, vec![rows(1, 0.); 2], vec![], Run::default())).expect("nothing asked for");
    Ok(())
}

pub(super) fn finishes_when_the_instance_is_gone(
    backend: &dyn Backend,
    fixtures: &Fixtures,
) -> Result<(), Skipped> {
    let device = open(backend);
    for _ in 0..20 {
        let (model, instance) = instance(&*device, &fixtures.add);
        let begun: Vec<Heard> = (0..4)
            .map(|call| {
                let inputs = vec![rows(1, 1.), rows(1, call as f32)];
                submit(&instance, inputs, vec![Output::allocate(0)], Run::default())
            })
            .collect();
        drop((model, instance));
        for (call, begun) in begun.into_iter().enumerate() {
            assert_eq!(values(&heard(begun).expect("add runs")[0]), [1. + call as f32; 3]);
        }
    }
    Ok(())
}

pub(super) fn returns_while_under_way(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let path = need(&fixtures.slow, "that can be cancelled")?;
    let (model, instance) = instance(&*open(backend), path);
    if !instance.is_asynchronous() {
        return skip("its runs are over when `submit` returns");
    }
    let begun = begin(&model, &instance, 1);
    assert_eq!(begun.try_recv().err(), Some(TryRecvError::Empty), "it has returned, and the run goes on");
    let error = end(&*instance, number(1), &begun);
    assert!(matches!(error, Err(BackendError::Cancelled)), "{error:?}");
    Ok(())
}

pub(super) fn says_what_it_can_cancel(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    match &fixtures.slow {
        Some(path) => {
            assert!(instance(&*device, path).1.can_cancel(), "it says that it cancels its slow model")
        }
        None => assert!(!instance(&*device, &fixtures.add).1.can_cancel(), "it says that it cancels nothing"),
    }
    let path = need(&fixtures.stubborn, "that cannot be cancelled")?;
    let (model, instance) = instance(&*device, path);
    assert!(!instance.can_cancel(), "it says that it does not cancel its stubborn model");
    // Whoever asks all the same gets the result.
    let begun = begin(&model, &instance, 1);
    let ended = end(&*instance, number(1), &begun);
    assert!(ended.is_ok(), "{ended:?}");
    Ok(())
}

pub(super) fn cancels(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let path = need(&fixtures.slow, "that can be cancelled")?;
    let (model, instance) = instance(&*open(backend), path);
    // One that is waited for, and one that finishes later; a number that was cancelled can be used again.
    for (waits, id) in [(true, 5), (false, 6), (true, 5)] {
        // Begun one after the other: two with one number must not be under way at once.
        let begun = if waits { wait(&model, &instance, id) } else { begin(&model, &instance, id) };
        let end = end_any(&*instance, &[number(5), number(6)], &begun);
        assert!(matches!(end, Err(BackendError::Cancelled)), "{end:?}");
    }
    Ok(())
}

pub(super) fn cancels_no_other(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let path = need(&fixtures.slow, "that can be cancelled")?;
    let device = open(backend);
    let (model, instance) = instance(&*device, path);
    let (_, of_another) = super::instance(&*device, path);
    let (one, other) = (wait(&model, &instance, 1), begin(&model, &instance, 2));
    let unnumbered = wait_for(&model, &of_another, Run { id: Some(number(1)) });
    instance.cancel(number(3));
    instance.cancel(RunId::MAX);
    let ended = end(&*instance, number(1), &one);
    assert!(matches!(ended, Err(BackendError::Cancelled)), "{ended:?}");
    for (what, begun) in [("with another number", &other), ("of another instance", &unnumbered)] {
        assert_eq!(begun.try_recv().err(), Some(TryRecvError::Empty), "a run {what} goes on");
    }
    let ended = end(&*instance, number(2), &other);
    assert!(matches!(ended, Err(BackendError::Cancelled)), "{ended:?}");
    assert!(matches!(end(&*of_another, number(1), &unnumbered), Err(BackendError::Cancelled)));
    Ok(())
}

pub(super) fn forgets_what_it_cannot_cancel(
    backend: &dyn Backend,
    fixtures: &Fixtures,
) -> Result<(), Skipped> {
    let (model, instance) = instance(&*open(backend), &fixtures.add);
    let run = Run { id: Some(number(7)) };
    for _ in 0..3 {
        // Before there is such a run, and after there was one.
        instance.cancel(number(7));
        let mut outputs = vec![Output::allocate(0)];
        instance.infer(&[rows(1, 1.), rows(1, 2.)], &mut outputs, run).expect("add runs");
        assert_eq!(values(&tensors(outputs)[0]), [3.; 3]);
        instance.cancel(number(7));
        let submitted = heard(submit(&instance, vec![rows(1, 1.); 2], vec![Output::allocate(0)], run));
        assert_eq!(values(&submitted.expect("add runs")[0]), [2.; 3]);
    }
    assert_eq!(
        values(&infer(&*model, &*instance, &[rows(1, 1.), fp32(&[1, 3], &[0.; 3])]).expect("add runs")[0]),
        [1.; 3]
    );
    Ok(())
}

fn number(id: u64) -> RunId {
    NonZeroU64::new(id).expect("not 0")
}

/// Begins a run that finishes later, where there are such; else on a thread of its own.
fn begin(model: &Arc<dyn Model>, instance: &Arc<dyn Instance>, id: u64) -> Heard {
    if !instance.is_asynchronous() {
        return wait(model, instance, id);
    }
    submit(instance, zeros(model.info()), vec![Output::allocate(0)], Run { id: Some(number(id)) })
}

/// A run that a thread waits for.
fn wait(model: &Arc<dyn Model>, instance: &Arc<dyn Instance>, id: u64) -> Heard {
    wait_for(model, instance, Run { id: Some(number(id)) })
}

fn wait_for(model: &Arc<dyn Model>, instance: &Arc<dyn Instance>, run: Run) -> Heard {
    let (sender, heard) = std::sync::mpsc::channel();
    let (inputs, instance) = (zeros(model.info()), Arc::clone(instance));
    std::thread::spawn(move || {
        let mut outputs = vec![Output::allocate(0)];
        let result = instance.infer(&inputs, &mut outputs, run);
        drop(sender.send(result.map(|()| outputs)));
    });
    heard
}

/// Cancels until it has ended: one that has not begun yet is not there to be cancelled.
fn end(instance: &dyn Instance, id: RunId, begun: &Heard) -> Result<(), BackendError> {
    end_any(instance, &[id], begun)
}

fn end_any(instance: &dyn Instance, ids: &[RunId], begun: &Heard) -> Result<(), BackendError> {
    let patience = Instant::now() + PATIENCE;
    loop {
        ids.iter().for_each(|id| instance.cancel(*id));
        match begun.recv_timeout(Duration::from_millis(20)) {
            Ok(result) => return result.map(drop),
            Err(_) => assert!(Instant::now() < patience, "a run that is cancelled ends"),
        }
    }
}
