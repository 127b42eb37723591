//! Each kind of step gives in a graph what it gives on the CPU: on the CPU's provider, and on WebGPU.

use outrigger_backend::DataType;

use DataType::{Bf16, Fp16, Fp32, Int8, Int32, Int64, Uint8};

use crate::bench::{Bench, Near, awkward, bits, fp32, measured, on_webgpu};

fn conversions(bench: &Bench, pairs: &[(DataType, &[DataType])]) {
    for (from, all) in pairs {
        for to in *all {
            let step = format!("[[steps]]\nstep = 'convert'\ndatatype = '{to}'");
            let opset = if [*from, *to].contains(&Bf16) { 13 } else { 11 };
            for opset in [opset, 21] {
                for length in [1, 3, 255, 1023] {
                    bench.agrees(opset, &step, &[-1], &bits(*from, &[length]), Near::Same);
                    bench.agrees(opset, &step, &[length], &measured(*from, &[length], 300.), Near::Same);
                }
            }
            if *from == Fp32 {
                bench.agrees(17, &step, &[-1], &awkward(), Near::Same);
            }
        }
    }
}

#[test]
fn conversions_are_the_same_on_the_cpu() {
    let bench = Bench::host();
    conversions(
        &bench,
        &[
            (Uint8, &[Uint8, Int32, Int64, Fp16, Bf16, Fp32]),
            (Int8, &[Int8, Int32, Int64, Fp16, Bf16, Fp32]),
            (Int32, &[Int32, Int64, Fp16, Bf16, Fp32]),
            (Int64, &[Int64, Fp16, Bf16, Fp32]),
            (Fp16, &[Fp16, Bf16, Fp32]),
            (Bf16, &[Fp16, Bf16, Fp32]),
            (Fp32, &[Fp16, Bf16, Fp32]),
        ],
    );
}

fn normalisations(bench: &Bench, types: &[DataType]) {
    let step = "[[steps]]\nstep = 'normalize'\nscale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]";
    let plain = "[[steps]]\nstep = 'normalize'\nscale = 2.0\nmean = [-1.0]";
    for data_type in types {
        for opset in bench.opsets.iter().copied().filter(|opset| *opset >= 13 || *data_type != Bf16) {
            // Of 255 / 0.224 and 1 / 0.224 the larger one.
            let near = Near::Ulps(2., 300. * 0.0175 + 2.2);
            let x = measured(*data_type, &[2, 5, 7, 3], 300.);
            // How many channels a model gives it may tell wrongly.
            bench.agrees_on(&["before"], opset, step, &[-1, -1, -1, 3], &x, near);
            bench.agrees_on(&["before"], opset, step, &[2, 5, 7, 3], &x, near);
            let first = format!("{step}\naxis = 1");
            let x = measured(*data_type, &[2, 3, 5, 7], 300.);
            bench.agrees_on(&["before"], opset, &first, &[-1, 3, -1, 7], &x, near);
            bench.agrees(opset, plain, &[-1], &measured(*data_type, &[1001], 300.), Near::Ulps(2., 600.));
        }
    }
    let odd = fp32(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0., -0.]);
    bench.agrees(17, plain, &[-1], &odd, Near::Ulps(2., 1.));
}

#[test]
fn what_is_normalised_is_near_on_the_cpu() {
    normalisations(&Bench::host(), &[Uint8, Int8, Fp16, Bf16, Fp32]);
}

/// Sizes of images and what they become; whole and other ratios, up and down.
const SIZES: [([i64; 2], [i64; 2]); 7] = [
    ([8, 8], [4, 4]),
    ([5, 7], [8, 3]),
    ([30, 40], [8, 8]),
    ([1, 1], [3, 2]),
    ([7, 6], [7, 6]),
    ([6, 9], [7, 5]),
    ([121, 77], [64, 48]),
];

fn resized(
    bench: &Bench,
    types: &[DataType],
    mode: &str,
    ranks: &[usize],
    is_free: bool,
    near: impl Fn(f32) -> Near,
) {
    for (from, to) in SIZES {
        for (layout, last) in [("NHWC", true), ("NCHW", false)] {
            let step = format!(
                "[[steps]]\nstep = 'resize'\nheight = {}\nwidth = {}\nmode = '{mode}'\nlayout = '{layout}'",
                to[0], to[1]
            );
            let longest = from.into_iter().chain(to).max().unwrap() as f32;
            for data_type in types {
                for opset in bench.opsets.iter().filter(|opset| **opset >= 13 || *data_type != Bf16) {
                    for rank in ranks {
                        let shape = if last { [2, from[0], from[1], 3] } else { [2, 3, from[0], from[1]] };
                        let shape = &shape[4 - rank..];
                        let mut declared = shape.to_vec();
                        if is_free {
                            declared
                                .iter_mut()
                                .for_each(|extent| *extent = if *extent == 3 { 3 } else { -1 });
                        }
                        let most = if matches!(data_type, Uint8 | Int8) { 255. } else { 300. };
                        let near = match near(longest) {
                            Near::Ulps(ulps, _) => Near::Ulps(ulps, most),
                            same => same,
                        };
                        // What a model promises of its results it need not keep.
                        let sides: &[_] = if is_free { &["before", "after"] } else { &["before"] };
                        let x = measured(*data_type, shape, 300.);
                        bench.agrees_on(sides, *opset, &step, &declared, &x, near);
                    }
                }
            }
        }
    }
}

/// As [`Step`](outrigger_processing::Step) states it.
fn bilinear(longest: f32) -> Near {
    Near::Ulps(4. + 6. * longest, 0.)
}

#[test]
fn what_is_resized_is_near_on_the_cpu() {
    let bench = Bench::host();
    for is_free in [true, false] {
        resized(&bench, &[Uint8, Int8, Fp16, Bf16, Fp32], "bilinear", &[4], is_free, bilinear);
        let moved = [Uint8, Int8, Int32, Int64, Fp16, Bf16, Fp32];
        resized(&bench, &moved, "nearest", &[4], is_free, |_| Near::Same);
    }
}

fn moved(bench: &Bench, types: &[DataType], ranks: &[usize]) {
    for (layout, shape) in [("NCHW", [2, 1, 4, 5, 3]), ("NHWC", [2, 1, 3, 4, 5])] {
        let step = format!("[[steps]]\nstep = 'layout'\nlayout = '{layout}'");
        for data_type in types {
            for opset in bench.opsets.iter().copied().filter(|opset| *opset >= 13 || *data_type != Bf16) {
                for rank in ranks {
                    let shape = &shape[5 - rank..];
                    bench.agrees(
                        opset,
                        &step,
                        &vec![-1; *rank],
                        &measured(*data_type, shape, 9.),
                        Near::Same,
                    );
                    bench.agrees(opset, &step, shape, &measured(*data_type, shape, 9.), Near::Same);
                }
            }
        }
    }
}

#[test]
fn layouts_are_the_same_on_the_cpu() {
    moved(&Bench::host(), &[Uint8, Int8, Int32, Int64, Fp16, Bf16, Fp32], &[4, 5]);
}

/// The limit, in ulps of the largest, for rows of so many: the shader's `exp` may be off by `3 + 2 |x|` of its own result.
fn softmaxes(bench: &Bench, types: &[DataType], near: impl Fn(usize) -> Near) {
    for data_type in types {
        for opset in bench.opsets.iter().copied().filter(|opset| *opset >= 13 || *data_type != Bf16) {
            for (rows, wide) in [(1, 1), (3, 2), (2, 7), (1, 1000), (65, 64), (2, 1001)] {
                for most in [1., 20., 300.] {
                    let x = measured(*data_type, &[rows, wide], most);
                    bench.agrees(opset, "[[steps]]\nstep = 'softmax'", &[-1, wide], &x, near(wide as usize));
                }
            }
            if opset >= 13 {
                let x = measured(*data_type, &[2, 5, 3], 9.);
                bench.agrees(opset, "[[steps]]\nstep = 'softmax'\naxis = 1", &[-1, 5, 3], &x, near(5));
            }
        }
    }
}

#[test]
fn softmax_is_near_on_the_cpu() {
    let bench = Bench::host();
    softmaxes(&bench, &[Fp16, Bf16, Fp32], |wide| Near::Ulps(32. + wide as f32 / 256., 1.));
}

#[test]
fn steps_are_the_same_or_near_on_webgpu() {
    let Some(bench) = on_webgpu("agreement::steps_are_the_same_or_near_on_webgpu") else { return };
    conversions(&bench, &[(Uint8, &[Fp32]), (Int8, &[Fp32])]);
    normalisations(&bench, &[Uint8, Int8, Fp32]);
    moved(&bench, &[Fp32, Int32], &[4, 5]);
    softmaxes(&bench, &[Fp32], |wide| Near::Ulps(256. + wide as f32 / 256., 1.));
    resized(&bench, &[Uint8, Int8, Fp32], "bilinear", &[4], false, bilinear);
    resized(&bench, &[Fp32, Int32], "nearest", &[4], false, |_| Near::Same);
}
