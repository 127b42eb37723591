//! Many threads in the same sessions at once, with results that are known; runs are cancelled and models come and go meanwhile.
//! A few seconds here; `cargo xtask prove cpu-stress` does it for longer.

mod support;

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger_backend::conformance::{fp32, instance, tensor, values};
use outrigger_backend::{
    BackendError, DataType, Device, Instance, LoadOptions, Model, Output, Run, Shape, Tensor,
};
use outrigger_testkit::onnx::{self, Dim, Graph};
use support::Mlp;

const THREADS: u64 = 8;
/// Calls of different data that a case has.
const CALLS: usize = 12;

/// A model, and what it gives for some inputs.
struct Case {
    name: &'static str,
    model: Vec<u8>,
    intra_threads: Option<usize>,
    calls: Vec<(Vec<Tensor>, Tensor)>,
}

/// A generator of numbers that differ enough: xorshift64*, from Vigna (2016).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() % 2001) as f32 / 1000. - 1.).collect()
    }
}

fn case(
    name: &'static str,
    model: Vec<u8>,
    intra_threads: Option<usize>,
    mut call: impl FnMut(&mut Numbers) -> (Vec<Tensor>, Tensor),
) -> Case {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    Case { name, model, intra_threads, calls: (0..CALLS).map(|_| call(&mut numbers)).collect() }
}

fn cases() -> Vec<Case> {
    let mlp = |name, intra_threads| {
        let mlp = Mlp::new(&[64, 128, 128, 10]);
        case(name, mlp.encode(), intra_threads, move |numbers| {
            let batch = 1 + numbers.next() as usize % 9;
            let x = numbers.floats(batch * 64);
            let y: Vec<f32> = x.chunks(64).flat_map(|row| mlp.run(row)).collect();
            (vec![fp32(&[batch as i64, 64], &x)], fp32(&[batch as i64, 10], &y))
        })
    };
    vec![
        mlp("mlp", None),
        mlp("mlp with threads of its own", Some(2)),
        conv(),
        non_zero(),
        steps(),
        strings(),
    ]
}

/// A convolution of 3 channels to 4, 3 by 3, on images of any size.
fn conv() -> Case {
    let weights = Numbers(99).floats(4 * 3 * 3 * 3);
    let dims = |channels| [Dim::Named("n"), Dim::Fixed(channels), Dim::Named(""), Dim::Named("")];
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &dims(3));
    graph.initializer("w", &[4, 3, 3, 3], &weights);
    graph.node("Conv", &["x", "w"], &["c"]);
    graph.node("Relu", &["c"], &["y"]);
    graph.output("y", DataType::Fp32, &dims(4));
    case("conv", graph.model(), None, move |numbers| {
        let size = 3 + numbers.next() as usize % 20;
        let x = numbers.floats(3 * size * size);
        let out = size - 2;
        let at =
            |channel: usize, row: usize, column: usize| f64::from(x[(channel * size + row) * size + column]);
        let y = (0..4 * out * out).map(|index| {
            let (channel, row, column) = (index / (out * out), index / out % out, index % out);
            let sum: f64 = (0..27)
                .map(|tap| {
                    let weight = f64::from(weights[channel * 27 + tap]);
                    weight * at(tap / 9, row + tap / 3 % 3, column + tap % 3)
                })
                .sum();
            sum.max(0.) as f32
        });
        let y: Vec<f32> = y.collect();
        let (size, out) = (size as i64, out as i64);
        (vec![fp32(&[1, 3, size, size], &x)], fp32(&[1, 4, out, out], &y))
    })
}

/// An output whose shape is known only after the run.
fn non_zero() -> Case {
    case("non-zero", onnx::non_zero(), None, |numbers| {
        let x: Vec<f32> = (0..numbers.next() % 500).map(|_| (numbers.next() % 3) as f32).collect();
        let found: Vec<i64> = (0i64..).zip(&x).filter(|(_, value)| **value != 0.).map(|(at, _)| at).collect();
        let bytes: Vec<u8> = found.iter().flat_map(|at| at.to_ne_bytes()).collect();
        let y = tensor(DataType::Int64, &[1, found.len() as i64], &bytes);
        (vec![fp32(&[x.len() as i64], &x)], y)
    })
}

/// Many operators, so that a run can be cancelled between them.
fn steps() -> Case {
    let shape = [Dim::Named("n"), Dim::Fixed(64)];
    let one: Vec<f32> = (0..64 * 64).map(|at| f32::from(u8::from(at % 65 == 0))).collect();
    let mut graph = Graph::default();
    graph.input("h0", DataType::Fp32, &shape);
    graph.initializer("one", &[64, 64], &one);
    for step in 0..100 {
        graph.node("MatMul", &[&format!("h{step}"), "one"], &[&format!("h{}", step + 1)]);
    }
    graph.output("h100", DataType::Fp32, &shape);
    case("steps", graph.model(), None, |numbers| {
        let rows = 1 + numbers.next() as i64 % 16;
        let x = fp32(&[rows, 64], &numbers.floats(rows as usize * 64));
        (vec![x.clone()], x)
    })
}

fn strings() -> Case {
    case("strings", onnx::identity(DataType::Bytes, &[Dim::Named("n")]), None, |numbers| {
        let texts: Vec<Vec<u8>> = (0..numbers.next() % 20)
            .map(|_| vec![b'a' + numbers.next() as u8 % 26; numbers.next() as usize % 99])
            .collect();
        let x = Tensor::strings(Shape::new([texts.len() as i64]).unwrap(), &texts).unwrap();
        (vec![x.clone()], x)
    })
}

/// Within `1e-5 + 1e-5 * |expected|` for floating point, else the same.
fn check(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!((got.data_type(), got.shape()), (expected.data_type(), expected.shape()), "{what}");
    if got.data_type() != DataType::Fp32 {
        return assert!(got.data() == expected.data(), "{what}");
    }
    for (got, expected) in values(got).iter().zip(values(expected)) {
        assert!((got - expected).abs() <= 1e-5 + 1e-5 * expected.abs(), "{what}: {got} is not {expected}");
    }
}

struct Loaded {
    case: Case,
    model: Arc<dyn Model>,
    instance: Arc<dyn Instance>,
}

/// One call of a thread's; whether it was cancelled.
fn call(loaded: &Loaded, numbers: &mut Numbers, next: &AtomicU64) -> bool {
    let (inputs, expected) = &loaded.case.calls[numbers.next() as usize % CALLS];
    let is_placed = numbers.next().is_multiple_of(2);
    let mut outputs = match is_placed {
        true => loaded.model.info().place_outputs(inputs, &[0]).unwrap(),
        false => vec![Output::allocate(0)],
    };
    let id = numbers.next().is_multiple_of(2).then(|| next.fetch_add(1, Ordering::Relaxed));
    let run = Run { id: id.and_then(NonZeroU64::new) };
    match loaded.instance.infer(inputs, &mut outputs, run) {
        Ok(()) => {
            let what = format!("{}, placed: {is_placed}", loaded.case.name);
            check(&outputs.pop().unwrap().into_tensor().unwrap(), expected, &what);
            false
        }
        Err(BackendError::Cancelled) if run.id.is_some() => true,
        Err(error) => panic!("{}: {error}", loaded.case.name),
    }
}

fn stress(device: &dyn Device, folder: &Path, lasts: Duration) {
    let load = |(number, case): (usize, Case)| {
        let path = folder.join(format!("{number}.onnx"));
        std::fs::write(&path, &case.model).unwrap();
        let options = LoadOptions { intra_threads: case.intra_threads, ..LoadOptions::of(path) };
        let model = device.load(&options).unwrap();
        let instance = model.instance().unwrap();
        Loaded { case, model, instance }
    };
    let loaded: Vec<Loaded> = cases().into_iter().enumerate().map(load).collect();
    let end = Instant::now() + lasts;
    let (next, is_over) = (AtomicU64::new(1), AtomicBool::new(false));
    let (mut calls, mut cancelled, mut loads) = (0u64, 0u64, 0u64);
    std::thread::scope(|scope| {
        let worker = |seed: u64| {
            let (loaded, next) = (&loaded, &next);
            move || {
                let (mut numbers, mut calls, mut cancelled) = (Numbers(seed + 1), 0u64, 0u64);
                while Instant::now() < end {
                    let loaded = &loaded[numbers.next() as usize % loaded.len()];
                    cancelled += u64::from(call(loaded, &mut numbers, next));
                    calls += 1;
                }
                (calls, cancelled)
            }
        };
        let workers: Vec<_> = (0..THREADS).map(|seed| scope.spawn(worker(seed))).collect();
        // Cancels what is under way, what is over and what has not begun.
        scope.spawn(|| {
            let mut numbers = Numbers(7);
            while !is_over.load(Ordering::Relaxed) {
                let at = next.load(Ordering::Relaxed) + numbers.next() % 3;
                let instance = &loaded[numbers.next() as usize % loaded.len()].instance;
                NonZeroU64::new(at.saturating_sub(2)).into_iter().for_each(|id| instance.cancel(id));
                std::thread::yield_now();
            }
        });
        // Loads, runs and unloads, so that memory goes back while others run.
        let loader = scope.spawn(|| {
            let mut loads = 0;
            while !is_over.load(Ordering::Relaxed) {
                let (_model, instance) = instance(device, &folder.join("0.onnx"));
                let (inputs, expected) = &loaded[0].case.calls[0];
                let mut outputs = [Output::allocate(0)];
                instance.infer(inputs, &mut outputs, Run::default()).unwrap();
                let [output] = outputs;
                check(&output.into_tensor().unwrap(), expected, "just loaded");
                loads += 1;
            }
            loads
        });
        // The others end, whatever becomes of one.
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        for end in ends {
            let (some, ended) = end.unwrap();
            (calls, cancelled) = (calls + some, cancelled + ended);
        }
        loads = loader.join().unwrap();
    });
    println!(
        "{THREADS} threads, {calls} calls of which {cancelled} were cancelled, {loads} loads, no wrong result"
    );
    assert!(calls > 100 && loads > 0);
}

#[test]
fn many_threads_get_their_own_results() {
    let settings = [
        ("onnxruntime".into(), outrigger_testkit::onnxruntime().display().to_string()),
        ("intra_threads".into(), "2".into()),
    ];
    let backend = outrigger_cpu::open(&settings).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let proves = std::env::var_os("OUTRIGGER_PROVE").is_some();
    let lasts = Duration::from_secs(if proves { 90 } else { 3 });
    stress(&*backend.open(0).unwrap(), folder.path(), lasts);
}
