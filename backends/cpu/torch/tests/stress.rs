//! Many threads on one module, while others come and go.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use outrigger_backend::conformance::{fp32, infer, values};
use outrigger_testkit::torchscript::{self, Module};
use support::{Folder, device, row};

const THREADS: usize = 8;
const RUNS: usize = 400;

/// Two layers; of a row of equal numbers, so that what comes is known.
fn net() -> Module {
    let statements =
        ["h = torch.relu_(torch.matmul(x, self.a))", "return torch.add(torch.matmul(h, self.b), x)"];
    let halves = |count| vec![0.5; count];
    Module::forward("x: Tensor", "Tensor", &statements).weight("a", &[16, 32], halves(512)).weight(
        "b",
        &[32, 16],
        halves(512),
    )
}

#[test]
fn runs_of_one_module_do_not_mix() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let (model, instance) = folder.instance(&*device, &net(), &[row("x", 16)], &[]);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (model, instance) = (&*model, &*instance);
                scope.spawn(move || {
                    for run in 0..RUNS {
                        // Another number of rows each time, so that code which libtorch made for one shape meets others.
                        let (rows, value) = (1 + (run * 7 + thread) % 5, (1 + run % 9 + thread) as f32);
                        let input = fp32(&[rows as i64, 16], &vec![value; rows * 16]);
                        let got = infer(model, instance, &[input]).unwrap();
                        // 16 halves of it, then 32 halves of those, and itself: all exact.
                        assert_eq!(
                            values(&got[0]),
                            vec![value * 8. * 16. + value; rows * 16],
                            "run {run} of {thread}"
                        );
                    }
                })
            })
            .collect();
        let (device, ended) = (&*device, &ended);
        scope.spawn(move || {
            let folder = Folder::new();
            while !ended.load(Ordering::Relaxed) {
                let (model, instance) =
                    folder.instance(device, &torchscript::add(), &[row("x", 3), row("y", 3)], &[]);
                let x = fp32(&[1, 3], &[1., 2., 3.]);
                assert_eq!(values(&infer(&*model, &*instance, &[x.clone(), x]).unwrap()[0]), [2., 4., 6.]);
            }
        });
        // The one that loads must end also where a run fails.
        let outcomes: Vec<_> = runs.into_iter().map(|run| run.join()).collect();
        ended.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok), "a thread failed");
    });
}

/// A module's attributes have no lock of their own, so its runs take turns.
#[test]
fn runs_of_a_module_that_remembers_take_turns() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let statements = ["self.sum = torch.add(self.sum, x)", "return self.sum"];
    let module = Module::forward("x: Tensor", "Tensor", &statements).weight("sum", &[1, 1], vec![0.]);
    let (model, instance) = folder.instance(&*device, &module, &[row("x", 1)], &[row("y", 1)]);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..RUNS {
                    infer(&*model, &*instance, &[fp32(&[1, 1], &[1.])]).unwrap();
                }
            });
        }
    });
    let got = infer(&*model, &*instance, &[fp32(&[1, 1], &[0.])]).unwrap();
    assert_eq!(values(&got[0]), [(THREADS * RUNS) as f32]);
}
