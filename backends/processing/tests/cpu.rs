//! The form on the CPU, held against what each step's documentation says, by numbers worked out another way.

use bytes::Bytes;
use half::{bf16, f16};
use outrigger_backend::{DataType, Shape, Tensor, TensorInfo};
use outrigger_processing::{Chain, Problem, Step, StepError};
use proptest::prelude::*;

fn tensor<T, const N: usize>(
    data_type: DataType,
    shape: &[i64],
    values: &[T],
    to: impl Fn(&T) -> [u8; N],
) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(to).collect();
    Tensor::new(data_type, Shape::new(shape).unwrap(), Bytes::from(data)).unwrap()
}

fn fp32(shape: &[i64], values: &[f32]) -> Tensor {
    tensor(DataType::Fp32, shape, values, |value| value.to_ne_bytes())
}

fn uint8(shape: &[i64], values: &[u8]) -> Tensor {
    tensor(DataType::Uint8, shape, values, |value| [*value])
}

fn int64(values: &[i64]) -> Tensor {
    tensor(DataType::Int64, &[values.len() as i64], values, |value| value.to_ne_bytes())
}

fn info(name: &str, tensor: &Tensor) -> TensorInfo {
    TensorInfo {
        name: name.into(),
        data_type: tensor.data_type(),
        shape: tensor.shape().extents().into(),
        symbols: Vec::new(),
    }
}

/// Runs one step on a tensor `x`, with `i` beside it.
fn run(step: Step, x: &Tensor, i: Option<&Tensor>) -> Result<Vec<Tensor>, StepError> {
    let mut chain: Chain = [step.clone()].into_iter().collect();
    chain.stages[0].from = Some("x".into());
    let inputs: Vec<TensorInfo> =
        [info("x", x)].into_iter().chain(i.map(|tensor| info("i", tensor))).collect();
    let wanted: &[&str] = if matches!(step, Step::TopK { .. }) { &["x", "indices"] } else { &["x"] };
    let inputs_of_run: Vec<Tensor> = [x].into_iter().chain(i).cloned().collect();
    chain.plan(&inputs, wanted)?.run(&inputs_of_run)
}

fn one(step: Step, x: &Tensor) -> Tensor {
    run(step, x, None).unwrap().remove(0)
}

fn step(text: &str) -> Step {
    toml::from_str(text).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.data_type(), DataType::Fp32);
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

fn longs(tensor: &Tensor) -> Vec<i64> {
    assert_eq!(tensor.data_type(), DataType::Int64);
    tensor.data().as_chunks().0.iter().map(|bytes| i64::from_ne_bytes(*bytes)).collect()
}

fn to(datatype: DataType) -> Step {
    Step::Convert { datatype }
}

#[test]
fn floats_become_the_nearest_integer_towards_zero_that_there_is() {
    let x = [1.9, -1.9, 0.5, 255.9, 256., -128.9, 3e9, -3e9, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.];
    let x = fp32(&[12], &x);
    assert_eq!(&one(to(DataType::Uint8), &x).data()[..], [1, 0, 0, 255, 255, 0, 255, 0, 0, 255, 0, 0]);
    let bytes = one(to(DataType::Int8), &x);
    let bytes: Vec<i8> = bytes.data().iter().map(|byte| *byte as i8).collect();
    assert_eq!(bytes, [1, -1, 0, 127, 127, -128, 127, -128, 0, 127, -128, 0]);
    let expected = [1, -1, 0, 255, 256, -128, 3_000_000_000, -3_000_000_000, 0, i64::MAX, i64::MIN, 0];
    assert_eq!(longs(&one(to(DataType::Int64), &x)), expected);
}

#[test]
fn integers_become_the_nearest_that_there_is() {
    let x = int64(&[0, -1, 300, i64::MAX, i64::MIN, 16_777_217, -16_777_219]);
    assert_eq!(&one(to(DataType::Uint8), &x).data()[..], [0, 0, 255, 255, 0, 255, 0]);
    let expected = [0., -1., 300., 9.223_372e18, -9.223_372e18, 16_777_216., -16_777_220.];
    assert_eq!(floats(&one(to(DataType::Fp32), &x)), expected);
    let halves = one(to(DataType::Fp16), &x);
    let halves: Vec<f16> =
        halves.data().as_chunks().0.iter().map(|bytes| f16::from_ne_bytes(*bytes)).collect();
    let expected = [0., -1., 300., f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, f32::NEG_INFINITY];
    assert_eq!(halves, expected.map(f16::from_f32_const));
}

#[test]
fn images_are_normalised_by_channel() {
    let x = uint8(&[1, 2, 2], &[0, 255, 51, 102]);
    let normalize = |axis| {
        step(&format!(
            "step = 'normalize'\nscale = 0.00392156862745098\nmean = [0.5, 0.2]\nstd = [0.5, 0.1]\naxis = {axis}"
        ))
    };
    let close = |got: Vec<f32>, expected: [f32; 4]| {
        assert!(got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 1e-6), "{got:?}");
    };
    close(floats(&one(normalize(-1), &x)), [-1., 8., -0.6, 2.]);
    close(floats(&one(normalize(1), &x)), [-1., 1., 0., 2.]);
    let x = fp32(&[3], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    let got = floats(&one(step("step = 'normalize'\nmean = [1]\nstd = [-2]"), &x));
    assert!(got[0].is_nan());
    assert_eq!(got[1..], [f32::NEG_INFINITY, f32::INFINITY]);
}

#[test]
fn softmax_of_rows_that_are_hard() {
    let infinity = f32::INFINITY;
    let x = [
        [1., 2., 3.],
        [1e38, -1e38, 1e38],
        [-infinity, 0., -infinity],
        [-infinity, -infinity, -infinity],
        [infinity, 0., 0.],
        [f32::NAN, 0., 0.],
        [0., -86.9, -87.1],
    ];
    let got = floats(&one(step("step = 'softmax'"), &fp32(&[7, 3], &x.concat())));
    let expected = [0.090_030_57, 0.244_728_47, 0.665_240_96];
    assert!(got[..3].iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-7), "{got:?}");
    assert_eq!(got[3..9], [0.5, 0., 0.5, 0., 1., 0.]);
    assert!(got[9..18].iter().all(|value| value.is_nan()), "{got:?}");
    assert!(got[19] > 1e-38 && got[20] == 0., "{got:?}");
    // Along the first axis, which is a stride for each row.
    let got = floats(&one(step("step = 'softmax'\naxis = 0"), &fp32(&[2, 2], &[0., 5., 0., 5.])));
    assert_eq!(got, [0.5; 4]);
}

#[test]
fn the_largest_come_first_and_ties_by_their_index() {
    let nan = f32::NAN;
    let x = fp32(&[2, 5], &[1., nan, 3., 3., -nan, -0., 0., -1., f32::INFINITY, f32::NEG_INFINITY]);
    let got = run(step("step = 'top_k'\nk = 5"), &x, None).unwrap();
    assert_eq!(longs(&got[1]), [1, 4, 2, 3, 0, 3, 0, 1, 2, 4]);
    assert_eq!(floats(&got[0])[2..], [3., 3., 1., f32::INFINITY, -0., 0., -1., f32::NEG_INFINITY]);
    assert!(floats(&got[0])[5 + 1].is_sign_negative());
    let x = tensor(DataType::Int32, &[3, 2], &[5, i32::MIN, 7, -1, 7, i32::MAX], |value| value.to_ne_bytes());
    let got = run(step("step = 'top_k'\nk = 2\naxis = 0"), &x, None).unwrap();
    assert_eq!(longs(&got[1]), [1, 2, 2, 1]);
    assert_eq!(got[0].shape().extents(), [2, 2]);
}

#[test]
fn rows_are_picked_and_put_back() {
    let x = uint8(&[3, 2], &[1, 2, 3, 4, 5, 6]);
    let gather = step("step = 'gather'\nindices = 'i'");
    let got = run(gather.clone(), &x, Some(&int64(&[2, 0, 2, 1]))).unwrap();
    assert_eq!(got[0], uint8(&[4, 2], &[5, 6, 1, 2, 5, 6, 3, 4]));
    assert_eq!(run(gather.clone(), &x, Some(&int64(&[]))).unwrap()[0], uint8(&[0, 2], &[]));
    for index in [3, -1, i64::MAX, 1 << 32] {
        let error = run(gather.clone(), &x, Some(&int64(&[0, index]))).unwrap_err();
        let problem = Problem::Index { index, tensor: "i".into(), rows: 3 };
        assert_eq!(error, StepError::Step { number: 1, step: "gather", problem });
    }
    let scatter = step("step = 'scatter'\nindices = 'i'\nrows = 4");
    let got = run(scatter.clone(), &x, Some(&int64(&[3, 0, 3]))).unwrap();
    assert_eq!(got[0], uint8(&[4, 2], &[3, 4, 0, 0, 0, 0, 5, 6]));
    let error = run(scatter, &x, Some(&int64(&[0, 1, 4]))).unwrap_err();
    assert!(error.to_string().ends_with("index 4 in tensor `i` is outside 0 to 3"), "{error}");
}

#[test]
fn nothing_and_a_single_element_are_tensors_like_others() {
    let steps = [
        "step = 'convert'\ndatatype = 'FP16'",
        "step = 'normalize'",
        "step = 'normalize'\naxis = 0",
        "step = 'resize'\nheight = 3\nwidth = 2",
        "step = 'resize'\nheight = 3\nwidth = 2\nmode = 'nearest'",
        "step = 'layout'\nlayout = 'NCHW'",
        "step = 'layout'\nlayout = 'NHWC'",
        "step = 'softmax'",
        "step = 'softmax'\naxis = 0",
        "step = 'top_k'\nk = 1\naxis = 1",
    ];
    for text in steps {
        for shape in [[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]] {
            let elements = shape.iter().product::<i64>() as usize;
            let got = run(step(text), &fp32(&shape, &vec![7.; elements]), None).unwrap();
            let is_empty = got[0].shape().elements() == 0;
            assert_eq!(is_empty, elements == 0, "{text} of {shape:?}");
        }
    }
}

#[test]
fn bilinear_is_what_other_libraries_calculate() {
    // python -c "import torch.nn.functional as f; print(f.interpolate(torch.arange(6.).reshape(1,1,2,3), size=(4,2), mode='bilinear'))"
    let x = fp32(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
    let resize = step("step = 'resize'\nheight = 4\nwidth = 2\nlayout = 'NCHW'");
    assert_eq!(floats(&one(resize, &x)), [0.25, 1.75, 1., 2.5, 2.5, 4., 3.25, 4.75]);
    // Bytes become FP32, and channels keep to themselves.
    let x = uint8(&[1, 2, 2], &[0, 100, 10, 200]);
    let resize = step("step = 'resize'\nheight = 1\nwidth = 4");
    assert_eq!(floats(&one(resize, &x)), [0., 100., 2.5, 125., 7.5, 175., 10., 200.]);
}

/// A pixel of `x`, `[h, w, c]`, worked out from the definition in FP64.
fn bilinear_pixel(x: &[f32], [h, w, c]: [usize; 3], to: [usize; 2], at: [usize; 3]) -> f64 {
    let side = |at: usize, from: usize, to: usize| {
        let centre = ((at as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0., from as f64 - 1.);
        (centre.floor() as usize, (centre.floor() as usize + 1).min(from - 1), centre.fract())
    };
    let ((top, bottom, down), (left, right, across)) = (side(at[0], h, to[0]), side(at[1], w, to[1]));
    let pixel = |y: usize, x_at: usize| f64::from(x[(y * w + x_at) * c + at[2]]);
    let row = |y| pixel(y, left) * (1. - across) + pixel(y, right) * across;
    row(top) * (1. - down) + row(bottom) * down
}

proptest! {
    #[test]
    fn bilinear_follows_its_definition(
        sides in (1usize..9, 1usize..9, 1usize..4), to in (1usize..12, 1usize..12), seed in any::<u64>()
    ) {
        let (h, w, c) = sides;
        let x: Vec<f32> = (0..h * w * c).map(|i| (seed.wrapping_mul(i as u64 + 7) >> 40) as f32 / 1e3 - 8.).collect();
        let text = format!("step = 'resize'\nheight = {}\nwidth = {}", to.0, to.1);
        let got = floats(&one(step(&text), &fp32(&[h as i64, w as i64, c as i64], &x)));
        let largest = x.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let tolerance = f64::from(4. * f32::EPSILON * largest);
        for (number, got) in got.iter().enumerate() {
            let at = [number / c / to.1, number / c % to.1, number % c];
            let expected = bilinear_pixel(&x, [h, w, c], [to.0, to.1], at);
            prop_assert!((f64::from(*got) - expected).abs() <= tolerance, "{at:?}: {got}, expected {expected}");
        }
    }

    #[test]
    fn layouts_undo_each_other(shape in proptest::collection::vec(0i64..6, 3..6), size in 0usize..4) {
        let data_type = [DataType::Uint8, DataType::Fp16, DataType::Int32, DataType::Fp64][size];
        let bytes = Shape::new(shape.clone()).unwrap().bytes(data_type).unwrap();
        let data: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
        let x = Tensor::new(data_type, Shape::new(shape.clone()).unwrap(), data.into()).unwrap();
        let first = one(step("step = 'layout'\nlayout = 'NCHW'"), &x);
        prop_assert_eq!(first.shape().extents().last(), shape.get(shape.len() - 2));
        prop_assert_eq!(one(step("step = 'layout'\nlayout = 'NHWC'"), &first), x);
    }

    #[test]
    fn top_k_is_the_beginning_of_a_stable_sort(
        rows in proptest::collection::vec(proptest::array::uniform7(-3i8..3), 1..5), k in 1usize..8
    ) {
        let x = tensor(DataType::Int8, &[rows.len() as i64, 7], &rows.concat(), |value| value.to_ne_bytes());
        let got = run(step(&format!("step = 'top_k'\nk = {k}")), &x, None).unwrap();
        let sorted = rows.iter().flat_map(|row| {
            let mut indices: Vec<i64> = (0..7).collect();
            indices.sort_by_key(|index| -row[*index as usize]);
            indices.truncate(k);
            indices
        });
        prop_assert_eq!(longs(&got[1]), sorted.collect::<Vec<_>>());
    }

    #[test]
    fn gather_undoes_scatter(order in Just((0i64..9).collect::<Vec<_>>()).prop_shuffle()) {
        let x = fp32(&[9, 2], &(0..18).map(|value| value as f32).collect::<Vec<_>>());
        let there = run(step("step = 'scatter'\nindices = 'i'\nrows = 9"), &x, Some(&int64(&order))).unwrap();
        let back = run(step("step = 'gather'\nindices = 'i'"), &there[0], Some(&int64(&order))).unwrap();
        prop_assert_eq!(&back[0], &x);
    }

    #[test]
    fn integers_survive_the_types_that_hold_them(values in proptest::collection::vec(any::<i8>(), 0..40)) {
        let x = tensor(DataType::Int8, &[values.len() as i64], &values, |value| value.to_ne_bytes());
        for through in [DataType::Int32, DataType::Int64, DataType::Fp16, DataType::Bf16, DataType::Fp32] {
            prop_assert_eq!(&one(to(DataType::Int8), &one(to(through), &x)), &x);
        }
        let doubled = one(to(DataType::Bf16), &x);
        let doubled = doubled.data().as_chunks().0.iter().map(|bytes| bf16::from_ne_bytes(*bytes).to_f32());
        prop_assert_eq!(doubled.collect::<Vec<_>>(), values.iter().map(|value| f32::from(*value)).collect::<Vec<_>>());
    }
}
