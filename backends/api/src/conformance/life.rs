//! Loading, unloading, and what stays in between.

use super::{Fixtures, Skipped, fp32, infer, instance, need, open, run, settled, skip, until, values};
use crate::{Backend, LoadOptions, Output};

/// How much more than its weights a model may take: what surrounds them, copies in other forms.
const TIMES: u64 = 8;
const BESIDE: u64 = 64 << 20;

pub(super) fn counts_what_it_holds(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let (path, weights) = need(&fixtures.weights, "of a known size")?;
    let device = open(backend);
    let held = || device.status().expect("it tells its status").memory_held;
    // The first one may fill what stays.
    drop(instance(&*device, path));
    let before = settled(held);
    let (model, instance) = instance(&*device, path);
    let during = held();
    if during == 0 {
        return skip("the device does not tell what models hold");
    }
    assert!(during >= before + weights / 2, "{weights} bytes of weights took it from {before} to {during}");
    assert!(
        during <= before + weights * TIMES + BESIDE,
        "{weights} bytes of weights took it from {before} to {during}"
    );
    let bytes = instance.bytes_held();
    assert!(
        (weights / 2..=weights * TIMES + BESIDE).contains(&bytes),
        "{bytes} held for {weights} of weights"
    );
    drop((model, instance));
    until("what a model held is given back", || held() <= before);
    Ok(())
}

pub(super) fn estimates(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let missing = device.estimate(&LoadOptions::of(fixtures.scratch.join("missing")));
    assert!(!matches!(missing, Ok(1..)), "nothing is known of a file that is not there: {missing:?}");
    let (path, weights) = need(&fixtures.weights, "of a known size")?;
    let bytes = device.estimate(&LoadOptions::of(path)).expect("an estimate");
    if bytes == 0 {
        return skip("the device does not estimate");
    }
    assert!(
        (weights / 2..=weights * TIMES + BESIDE).contains(&bytes),
        "{bytes} estimated for {weights} of weights"
    );
    Ok(())
}

pub(super) fn loads_and_unloads(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let once = || {
        let (model, instance) = instance(&*device, &fixtures.add);
        let input = fp32(&[1, 3], &[1., 2., 3.]);
        let outputs = infer(&*model, &*instance, &[input.clone(), input]).expect("add runs");
        assert_eq!(values(&outputs[0]), [2., 4., 6.]);
        instance.bytes_held()
    };
    let heavy = || {
        if let Some((path, _)) = &fixtures.weights {
            drop(instance(&*device, path));
        }
    };
    // The first ones fill caches that stay.
    for _ in 0..10 {
        once();
        heavy();
    }
    let held = || device.status().expect("it tells its status").memory_held;
    let (before, held_before) = (resident_bytes(), held());
    for _ in 0..100 {
        once();
        heavy();
    }
    let grown = resident_bytes().saturating_sub(before);
    // One small model kept per load would show as megabytes with what surrounds it, a large one as many more.
    assert!(grown < 16 << 20, "100 loads and unloads left {grown} bytes");
    until("the device's memory is given back", || held() <= held_before);
    Ok(())
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

pub(super) fn loads_on_many_threads(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let device = &*device;
            scope.spawn(move || {
                for _ in 0..10 {
                    let (model, instance) = instance(device, &fixtures.add);
                    let inputs = [super::rows(1, thread as f32), super::rows(1, 1.)];
                    let outputs = infer(&*model, &*instance, &inputs).expect("add runs");
                    drop((model, instance));
                    assert_eq!(values(&outputs[0]), [thread as f32 + 1.; 3]);
                }
            });
        }
    });
    Ok(())
}

pub(super) fn results_outlive_what_made_them(
    backend: &dyn Backend,
    fixtures: &Fixtures,
) -> Result<(), Skipped> {
    let output = {
        let device = backend.open(0).expect("device 0 opens");
        let (model, instance) = instance(&*device, &fixtures.add);
        // The instance alone keeps what it was made from.
        drop((model, device));
        let input = fp32(&[1, 3], &[1., 2., 3.]);
        run(&*instance, &[input.clone(), input], vec![Output::allocate(0)]).expect("add runs").remove(0)
    };
    let other =
        std::thread::spawn(move || values(&output)).join().expect("a tensor can go to another thread");
    assert_eq!(other, [2., 4., 6.]);
    Ok(())
}
