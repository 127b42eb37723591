//! Each step as a shader gives what its form on the CPU gives: bit by bit, or within what the step's documentation states.

mod support;

use std::sync::Arc;

use outrigger_backend::{DataType, Shape, Tensor, TensorInfo};
use outrigger_gpu::{Gpu, Program};
use outrigger_processing::{Chain, Plan, Step};
use proptest::prelude::*;

use support::{Numbers, floats, fp32, gpu, info, int64, tensor};

use DataType::{Bf16, Bool, Fp16, Fp32, Fp64, Int8, Int32, Int64, Uint8, Uint16};

const CONVERTED: [DataType; 7] = [Uint8, Int8, Int32, Int64, Fp16, Bf16, Fp32];
/// Not multiples of a word, of a workgroup, of anything; and one that a word does not even fill.
const LENGTHS: [i64; 6] = [1, 2, 3, 255, 257, 1023];

fn chain(text: &str) -> Chain {
    #[derive(serde::Deserialize)]
    struct File {
        steps: Chain,
    }
    toml::from_str::<File>(text).unwrap().steps
}

/// One step on `x`, with `i` beside it.
fn step(text: &str) -> Chain {
    chain(&format!("[[steps]]\nfrom = 'x'\n{text}"))
}

/// Both forms of a chain on `x` and `i`, with all that it gives.
fn both(gpu: &Arc<Gpu>, chain: &Chain, inputs: &[Tensor]) -> (Plan, Vec<Tensor>, Vec<Tensor>) {
    let infos: Vec<TensorInfo> =
        ["x", "i"].iter().zip(inputs).map(|(name, tensor)| info(name, tensor)).collect();
    let mut names = vec!["x"];
    if chain.stages.iter().any(|stage| matches!(stage.step, Step::TopK { .. })) {
        names.push("indices");
    }
    let plan = chain.plan(&infos, &names).unwrap();
    let expected = plan.run(inputs).unwrap();
    let program = Program::new(Arc::clone(gpu), chain.clone(), &infos, &names).unwrap();
    let got = program.run(inputs).unwrap();
    // Buffers that were used before hold other bytes at first.
    assert_eq!(bytes(&program.run(inputs).unwrap()), bytes(&got), "again");
    (plan, got, expected)
}

fn bytes(tensors: &[Tensor]) -> Vec<(DataType, Vec<i64>, Vec<u8>)> {
    tensors.iter().map(|t| (t.data_type(), t.shape().extents().to_vec(), t.data().to_vec())).collect()
}

fn exact(gpu: &Arc<Gpu>, chain: &Chain, inputs: &[Tensor]) {
    let (_, got, expected) = both(gpu, chain, inputs);
    assert!(bytes(&got) == bytes(&expected), "{chain:?} of {inputs:?}: {}", difference(&got, &expected));
}

fn difference(got: &[Tensor], expected: &[Tensor]) -> String {
    let pairs = got.iter().zip(expected).enumerate();
    let first = pairs.flat_map(|(number, (got, expected))| {
        let size = got.data_type().size().unwrap();
        let elements = got.data().chunks(size).zip(expected.data().chunks(size)).enumerate();
        elements.filter(|(_, (got, expected))| got != expected).map(move |(at, (got, expected))| {
            format!("output {number}, element {at}: {got:02x?}, expected {expected:02x?}")
        })
    });
    first.take(5).collect::<Vec<_>>().join("; ")
}

/// `|got - expected| <= tolerance(index)`; NaN where NaN is expected, infinities as expected.
fn close(gpu: &Arc<Gpu>, chain: &Chain, inputs: &[Tensor], tolerance: impl Fn(usize, f32) -> f32) {
    let (_, got, expected) = both(gpu, chain, inputs);
    assert_eq!(got[0].shape(), expected[0].shape());
    for (at, (got, expected)) in floats(&got[0]).into_iter().zip(floats(&expected[0])).enumerate() {
        let alike = got == expected || got.is_nan() && expected.is_nan();
        let near = (got - expected).abs() <= tolerance(at, expected);
        assert!(alike || near, "{chain:?}, element {at}: {got:e}, expected {expected:e}");
    }
}

/// What FP32 has that is awkward, and around what the other types hold at most.
fn awkward() -> Vec<f32> {
    let mut values = vec![0., f32::MIN_POSITIVE, 1e-40, f32::from_bits(1), f32::MAX, f32::INFINITY, f32::NAN];
    values.extend([
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0x7fff_ffff),
        65504.,
        65519.9,
        65520.,
        5.96e-8,
    ]);
    values.extend([
        2.98e-8,
        2.980_233e-8,
        6.1e-5,
        6.097e-5,
        0.5,
        0.999,
        1.,
        1.5,
        2.5,
        127.,
        127.9,
        128.,
        255.5,
    ]);
    values.extend([256., 1e9, 2_147_483_500., 2_147_483_600., 4e9, 1e15, 9.2e18, 9.3e18, 3.3895e38]);
    values.iter().flat_map(|value| [*value, -*value]).collect()
}

#[test]
fn conversions_are_exact_for_any_bits() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(1);
    for from in CONVERTED {
        for to in CONVERTED {
            let chain = step(&format!("step = 'convert'\ndatatype = '{to}'"));
            for length in LENGTHS {
                exact(&gpu, &chain, &[numbers.bits(from, &[length])]);
                exact(&gpu, &chain, &[numbers.measured(from, &[length], 300.)]);
            }
        }
    }
}

#[test]
fn conversions_are_exact_at_the_edges() {
    let Some(gpu) = gpu() else { return };
    let floats = awkward();
    let floats = fp32(&[floats.len() as i64], &floats);
    let longs: Vec<i64> = (0..64)
        .flat_map(|bit| {
            let power = 1i64 << bit;
            [power.wrapping_sub(1), power, power.wrapping_add(1), power.wrapping_neg(), !power]
        })
        // Around halves of what FP32 has: where rounding is up, down and to even.
        .chain((24..62).flat_map(|bit| {
            let (whole, half) = (1i64 << bit, 1i64 << (bit - 24));
            [whole + half - 1, whole + half, whole + half + 1, whole + 3 * half, -whole - 3 * half - 1]
        }))
        .collect();
    for to in CONVERTED {
        let chain = step(&format!("step = 'convert'\ndatatype = '{to}'"));
        exact(&gpu, &chain, std::slice::from_ref(&floats));
        exact(&gpu, &chain, &[int64(&longs)]);
    }
    // Every FP16 and every BF16.
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_ne_bytes).collect();
    for from in [Fp16, Bf16] {
        for to in CONVERTED {
            let chain = step(&format!("step = 'convert'\ndatatype = '{to}'"));
            exact(&gpu, &chain, &[tensor(from, &[65536], all.clone())]);
        }
    }
}

#[test]
fn normalising_is_within_two_ulp() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(2);
    for data_type in [Uint8, Int8, Fp16, Bf16, Fp32] {
        for (axis, shape) in [(-1, [2, 7, 5, 3]), (1, [5, 3, 2, 11]), (0, [3, 1, 1, 1])] {
            let text = "step = 'normalize'\nscale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, -0.224, 0.225]";
            let chain = step(&format!("{text}\naxis = {axis}"));
            let x = numbers.measured(data_type, &shape, 255.);
            // The largest that goes into any sum: 255 / 255 / 0.224, or a mean over its deviation.
            close(&gpu, &chain, &[x], |_, y| 2. * f32::EPSILON * y.abs().max(4.5));
        }
    }
    let x = awkward();
    let x = fp32(&[x.len() as i64], &x);
    let chain = step("step = 'normalize'\nstd = [-2]");
    // What is subnormal may be 0.
    close(&gpu, &chain, &[x], |_, y| (2. * f32::EPSILON * y.abs()).max(f32::MIN_POSITIVE));
}

#[test]
fn nearest_pixels_and_layouts_are_exact_for_any_bits() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(3);
    for data_type in [Bool, Uint8, Uint16, Fp16, Int32, Fp32, Int64, Fp64] {
        for (height, width, layout) in [(1, 1, "NHWC"), (7, 3, "NHWC"), (16, 33, "NCHW"), (5, 64, "NCHW")] {
            let text = format!(
                "step = 'resize'\nmode = 'nearest'\nheight = {height}\nwidth = {width}\nlayout = '{layout}'"
            );
            exact(&gpu, &step(&text), &[numbers.bits(data_type, &[2, 5, 9, 3])]);
        }
        for layout in ["NCHW", "NHWC"] {
            let chain = step(&format!("step = 'layout'\nlayout = '{layout}'"));
            exact(&gpu, &chain, &[numbers.bits(data_type, &[3, 5, 7, 3])]);
            exact(&gpu, &chain, &[numbers.bits(data_type, &[1, 300, 1])]);
        }
    }
}

#[test]
fn bilinear_is_within_four_ulp_of_the_largest_pixel() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(4);
    for data_type in [Uint8, Int8, Fp16, Bf16, Fp32] {
        for (height, width, layout) in [(1, 1, "NHWC"), (9, 14, "NHWC"), (224, 3, "NHWC"), (6, 31, "NCHW")] {
            let text = format!("step = 'resize'\nheight = {height}\nwidth = {width}\nlayout = '{layout}'");
            for shape in [[2, 5, 9, 3], [1, 1, 1, 2], [1, 40, 2, 4]] {
                let x = numbers.measured(data_type, &shape, 250.);
                close(&gpu, &step(&text), &[x], |_, _| 4. * f32::EPSILON * 250.);
            }
        }
    }
}

#[test]
fn bilinear_of_the_largest_numbers_is_finite() {
    let Some(gpu) = gpu() else { return };
    let (least, most) = (f32::MIN, f32::MAX);
    let x = fp32(&[2, 3, 1], &[least, most, 1., most, least, -1.8e38]);
    let chain = step("step = 'resize'\nheight = 7\nwidth = 8");
    let (_, got, expected) = both(&gpu, &chain, std::slice::from_ref(&x));
    for (got, expected) in floats(&got[0]).into_iter().zip(floats(&expected[0])) {
        let near = (got / 2. - expected / 2.).abs() <= 2. * f32::EPSILON * most;
        assert!(got.is_finite() && near, "{got:e}, expected {expected:e}");
    }
}

#[test]
fn what_a_pixel_that_is_not_finite_touches_is_not_finite() {
    let Some(gpu) = gpu() else { return };
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let x = fp32(&[3, 3, 1], &[1., 2., 3., 4., odd, 6., 7., 8., 9.]);
        for text in ["height = 7\nwidth = 5", "height = 2\nwidth = 2", "height = 3\nwidth = 3"] {
            let (_, got, expected) =
                both(&gpu, &step(&format!("step = 'resize'\n{text}")), std::slice::from_ref(&x));
            let finite =
                |tensor: &Tensor| floats(tensor).iter().map(|value| value.is_finite()).collect::<Vec<_>>();
            assert_eq!(finite(&got[0]), finite(&expected[0]), "{text}");
        }
    }
}

#[test]
fn softmax_is_within_its_ulp() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(5);
    let within =
        |n: i64| move |_: usize, y: f32| ((32. + n as f32 / 256.) * f32::EPSILON * y).max(f32::MIN_POSITIVE);
    for data_type in [Fp16, Bf16, Fp32] {
        for n in [1, 2, 255, 256, 257, 5000] {
            for (size, axis, shape) in [(5., -1, [3, n]), (1000., -1, [2, n]), (20., 0, [n, 3])] {
                let x = numbers.measured(data_type, &shape, size);
                close(&gpu, &step(&format!("step = 'softmax'\naxis = {axis}")), &[x], within(n));
            }
        }
    }
    let infinity = f32::INFINITY;
    let rows = [
        [1., 2., 3.],
        [1e38, -1e38, 1e38],
        [f32::MAX, f32::MIN, 0.],
        [-infinity, 0., -infinity],
        [-infinity, -infinity, -infinity],
        [infinity, 0., infinity],
        [f32::NAN, 0., 0.],
        [0., -86.9, -87.1],
        [-0., 0., 1e-40],
        [infinity, -f32::NAN, -infinity],
    ];
    close(&gpu, &step("step = 'softmax'"), &[fp32(&[10, 3], &rows.concat())], within(3));
}

#[test]
fn top_k_is_exact_for_any_bits() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(6);
    for data_type in [Uint8, Int8, Int32, Fp16, Bf16, Fp32] {
        for (n, k) in [(1, 1), (5, 5), (255, 3), (257, 7), (1000, 40), (700, 256), (600, 600)] {
            let last = step(&format!("step = 'top_k'\nk = {k}"));
            exact(&gpu, &last, &[numbers.bits(data_type, &[3, n])]);
            // Few different values: many ties.
            exact(&gpu, &last, &[numbers.measured(data_type, &[3, n], 2.)]);
            let middle = step(&format!("step = 'top_k'\nk = {k}\naxis = 1"));
            exact(&gpu, &middle, &[numbers.bits(data_type, &[2, n, 3])]);
        }
    }
    // Ties that only the last bytes of their places tell apart.
    let x = fp32(&[2, 70_000], &vec![1.; 140_000]);
    exact(&gpu, &step("step = 'top_k'\nk = 300"), &[x]);
    let values = awkward();
    let x = fp32(&[values.len() as i64], &values);
    exact(&gpu, &step(&format!("step = 'top_k'\nk = {}", values.len())), &[x]);
    exact(&gpu, &step("step = 'top_k'\nk = 4"), &[fp32(&[6], &[f32::NAN, -0., 0., f32::NAN, -0., 0.])]);
}

#[test]
fn rows_are_picked_and_put_back_exactly() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(7);
    for data_type in [Bool, Fp16, Fp32, Fp64] {
        for shape in [[1i64, 1], [5, 3], [7, 300], [700, 1]] {
            for count in [1, 4, 300] {
                let indices: Vec<i64> =
                    (0..count).map(|_| (numbers.next() % shape[0] as u64) as i64).collect();
                let x = numbers.bits(data_type, &shape);
                exact(&gpu, &step("step = 'gather'\nindices = 'i'"), &[x, int64(&indices)]);
                // With many that mean the same row, of which the last counts.
                let x = numbers.bits(data_type, &[count, shape[1]]);
                let narrow: Vec<u8> =
                    indices.iter().flat_map(|index| (*index as i32).to_ne_bytes()).collect();
                let narrow = tensor(Int32, &[count], narrow);
                let text = format!("step = 'scatter'\nindices = 'i'\nrows = {}", shape[0]);
                exact(&gpu, &step(&text), &[x, narrow]);
            }
        }
    }
}

#[test]
fn an_index_that_is_none_is_the_same_error() {
    let Some(gpu) = gpu() else { return };
    let x = fp32(&[3, 2], &[0.; 6]);
    let check = |chain: &Chain, indices: Tensor| {
        let inputs = [x.clone(), indices];
        let infos = [info("x", &inputs[0]), info("i", &inputs[1])];
        let expected = chain.plan(&infos, &["x"]).unwrap().run(&inputs).unwrap_err().to_string();
        let program = Program::new(Arc::clone(&gpu), chain.clone(), &infos, &["x"]).unwrap();
        assert_eq!(program.run(&inputs).unwrap_err().to_string(), expected);
        assert!(expected.contains("is outside 0 to"), "{expected}");
        // It costs that run alone, and nothing of what is kept for the next.
        let held = program.held();
        assert!(held > 0);
        let good = [x.clone(), int64(&[0, 1, 2])];
        if infos[1].data_type == Int64 && infos[1].shape == [3] {
            assert!(program.run(&good).is_ok());
            assert_eq!(program.held(), held);
        }
    };
    for index in [3, -1, i64::MAX, i64::MIN, 1 << 32, (1 << 32) + 1, -(1 << 32)] {
        check(&step("step = 'gather'\nindices = 'i'"), int64(&[0, index, 1]));
        check(&step("step = 'scatter'\nindices = 'i'\nrows = 3"), int64(&[0, index, 1]));
    }
    let narrow = |index: i32| tensor(Int32, &[1], index.to_ne_bytes().to_vec());
    check(&step("step = 'gather'\nindices = 'i'"), narrow(-1));
    check(&step("step = 'gather'\nindices = 'i'"), narrow(3));
}

#[test]
fn an_index_that_a_step_has_made_is_the_same_error() {
    let Some(gpu) = gpu() else { return };
    let check = |text: &str, x: &Tensor, i: &Tensor| {
        let (infos, inputs) = ([info("x", x), info("i", i)], [x.clone(), i.clone()]);
        let chain = chain(text);
        let expected = chain.plan(&infos, &["y"]).unwrap().run(&inputs).unwrap_err().to_string();
        let program = Program::new(Arc::clone(&gpu), chain, &infos, &["y"]).unwrap();
        assert_eq!(program.run(&inputs).unwrap_err().to_string(), expected);
    };
    let best = "[[steps]]\nfrom = 'i'\nstep = 'top_k'\nk = 3\nto = 'best'\nindices = 'at'";
    let gather = "[[steps]]\nfrom = 'x'\nstep = 'gather'\nindices = 'at'\nto = 'y'";
    let x = fp32(&[3, 2], &[0.; 6]);
    check(&format!("{best}\n{gather}"), &x, &fp32(&[6], &[1., 6., 5., 2., 3., 4.]));
    for to in ["INT32", "INT64"] {
        let numbers = format!("[[steps]]\nfrom = 'i'\nstep = 'convert'\ndatatype = '{to}'\nto = 'at'");
        let twice = "[[steps]]\nfrom = 'x'\nstep = 'scatter'\nrows = 4\nindices = 'at'\nto = 'z'";
        check(&format!("{numbers}\n{gather}"), &x, &fp32(&[3], &[2., -7., 9.]));
        check(&format!("{numbers}\n{twice}\n{gather}"), &x, &fp32(&[3], &[2., 3., 1.]));
        check(&format!("{numbers}\n{twice}\n{gather}"), &x, &fp32(&[3], &[4., 3., 1.]));
    }
}

const IMAGES: &str = "
    [[steps]]
    from = 'x'
    step = 'resize'
    height = 24
    width = 17
    [[steps]]
    step = 'normalize'
    scale = 0.00392156862745098
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    [[steps]]
    step = 'layout'
    layout = 'NCHW'
";

#[test]
fn a_chain_goes_through_buffers_that_share_memory() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = Numbers(8);
    for batch in [1, 3] {
        let x = numbers.bits(Uint8, &[batch, 31, 40, 3]);
        // 255 / 255 / 0.224, with the tolerance of `resize` let through.
        close(&gpu, &chain(IMAGES), &[x], |_, _| 4. * 4. * f32::EPSILON * 4.5);
    }
    let there_and_back = chain(&format!(
        "{IMAGES}\n[[steps]]\nstep = 'layout'\nlayout = 'NHWC'\n[[steps]]\nstep = 'convert'\ndatatype = 'BF16'"
    ));
    let program = {
        let infos =
            [TensorInfo { name: "x".into(), data_type: Uint8, shape: vec![-1, -1, -1, 3], symbols: vec![] }];
        Program::new(Arc::clone(&gpu), there_and_back, &infos, &["x"]).unwrap()
    };
    for side in [8, 31, 8, 64] {
        let x = numbers.bits(Uint8, &[1, side, side, 3]);
        let got = program.run(&[x]).unwrap();
        assert_eq!((got[0].data_type(), got[0].shape().extents()), (Bf16, &[1, 24, 17, 3][..]));
    }
}

#[test]
fn nothing_is_a_tensor_too() {
    let Some(gpu) = gpu() else { return };
    exact(&gpu, &chain(IMAGES), &[tensor(Uint8, &[0, 31, 40, 3], vec![])]);
    exact(&gpu, &step("step = 'softmax'"), &[fp32(&[4, 0], &[])]);
    exact(&gpu, &step("step = 'top_k'\nk = 2"), &[fp32(&[0, 9], &[])]);
    exact(&gpu, &step("step = 'gather'\nindices = 'i'"), &[fp32(&[3, 2], &[1.; 6]), int64(&[])]);
    exact(&gpu, &step("step = 'scatter'\nindices = 'i'\nrows = 2"), &[fp32(&[0, 2], &[]), int64(&[])]);
    exact(&gpu, &Chain::default(), &[fp32(&[1], &[7.])]);
}

#[test]
fn more_workgroups_than_one_dimension_has_are_spread() {
    let Some(gpu) = gpu() else { return };
    // 65535 groups of 256 words are 64 MiB; and one more row than there are groups in a dimension.
    let rows = 65_537i64;
    let mut numbers = Numbers(9);
    let x = numbers.bits(Int8, &[rows, 2]);
    exact(&gpu, &step("step = 'top_k'\nk = 1"), &[x]);
    let x = numbers.bits(Uint8, &[rows * 258]);
    exact(&gpu, &step("step = 'convert'\ndatatype = 'FP32'"), &[x]);
}

#[test]
fn what_the_device_cannot_bind_is_refused() {
    let Some(gpu) = gpu() else { return };
    let limit = gpu.info().max_binding;
    let info = |shape: &[i64]| TensorInfo {
        name: "x".into(),
        data_type: Uint8,
        shape: shape.into(),
        symbols: vec![],
    };
    let program =
        Program::new(Arc::clone(&gpu), step("step = 'convert'\ndatatype = 'FP32'"), &[info(&[-1])], &["x"])
            .unwrap();
    let shape = |elements: u64| [Shape::new([elements as i64]).unwrap()];
    let most = (limit / 4).min((1 << 31) - 1);
    assert!(program.estimate(&shape(most)).unwrap() >= most * 5);
    let error = program.estimate(&shape(most + 1)).unwrap_err().to_string();
    assert!(error.starts_with("tensor `x` takes ") && error.contains(&format!("at most {limit}")), "{error}");
}

#[test]
fn a_row_that_would_take_too_long_is_refused() {
    let Some(gpu) = gpu() else { return };
    let info = |shape: &[i64]| {
        [TensorInfo { name: "x".into(), data_type: Uint8, shape: shape.into(), symbols: vec![] }]
    };
    let chain = step("step = 'top_k'\nk = 1024");
    let program = Program::new(Arc::clone(&gpu), chain, &info(&[-1, -1]), &["x"]).unwrap();
    let estimate = |shape: [i64; 2]| {
        let estimate = program.estimate(&[Shape::new(shape).unwrap()]);
        estimate.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(estimate([1, 1 << 24]), Ok(()));
    let said = estimate([1, 1 << 25]).unwrap_err();
    assert!(
        said.contains("`k` is 1024, for which the device looks 302046208 times at each of 1 rows, it must be at most 2^28"),
        "{said}"
    );
}

#[test]
fn threads_share_a_program() {
    let Some(gpu) = gpu() else { return };
    let infos = [TensorInfo { name: "x".into(), data_type: Fp32, shape: vec![-1, 100], symbols: vec![] }];
    let chain = step("step = 'softmax'");
    let program = Program::new(Arc::clone(&gpu), chain.clone(), &infos, &["x"]).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (program, chain) = (&program, &chain);
            scope.spawn(move || {
                let mut numbers = Numbers(thread);
                for batch in [1, 7, 1, 3] {
                    let x = numbers.measured(Fp32, &[batch, 100], 9.);
                    let x = &[x][..];
                    let expected = chain.plan(&[info("x", &x[0])], &["x"]).unwrap().run(x).unwrap();
                    let got = program.run(x).unwrap();
                    let pairs = floats(&got[0]).into_iter().zip(floats(&expected[0]));
                    for (got, expected) in pairs {
                        assert!((got - expected).abs() <= 33. * f32::EPSILON * expected);
                    }
                }
            });
        }
    });
    assert!(program.held() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_converts_and_moves_alike(
        shape in proptest::collection::vec(0i64..9, 3..5), from in 0usize..7, to in 0usize..7, seed in any::<u64>()
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let x = Numbers(seed).bits(CONVERTED[from], &shape);
        let convert = format!("[[steps]]\nfrom = 'x'\nstep = 'convert'\ndatatype = '{}'", CONVERTED[to]);
        exact(&gpu, &chain(&format!("{convert}\n[[steps]]\nstep = 'layout'\nlayout = 'NCHW'")), &[x]);
    }

    #[test]
    fn any_row_has_the_same_largest(
        values in proptest::collection::vec(any::<f32>(), 1..600), k in 1usize..20
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let k = k.min(values.len());
        let x = fp32(&[values.len() as i64], &values);
        exact(&gpu, &step(&format!("step = 'top_k'\nk = {k}")), &[x]);
    }
}
