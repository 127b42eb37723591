//! Steps that cannot be in a graph are refused by name.

use outrigger_backend::DataType;

use DataType::{Fp16, Fp32, Uint8};

use crate::bench::{Bench, Near, chain, info, measured, on_webgpu};

#[test]
fn what_cannot_be_in_a_graph_is_named() {
    let bench = Bench::host();
    let x = measured(Fp32, &[2, 4, 4, 3], 9.);
    let refused = |opset, side, step: &str, why| {
        let step = format!("[[steps]]\n{step}");
        bench.refused(opset, side, &step, &[-1, -1, -1, 3], &x, why);
    };
    let integer = "(`convert`): ONNX leaves open what becomes of a number that does not fit";
    refused(17, "before", "step = 'convert'\ndatatype = 'UINT8'", integer);
    refused(17, "after", "step = 'convert'\ndatatype = 'INT64'", integer);
    refused(
        17,
        "before",
        "step = 'top_k'\nk = 1",
        "step 1 of `[[before]]` (`top_k`): ONNX leaves open which",
    );
    refused(
        10,
        "before",
        "step = 'layout'\nlayout = 'NCHW'",
        "opset 10, steps in its graph need 11 or later",
    );
    refused(11, "before", "step = 'softmax'\naxis = 1", "along another axis than the last it needs 13");
    refused(17, "after", "step = 'softmax'\naxis = 0", "(`softmax`): it does not take each row for itself");
    refused(12, "after", "step = 'convert'\ndatatype = 'BF16'", "BF16 needs 13 or later");
    let channels = "step = 'normalize'\nmean = [1.0, 2.0, 3.0]";
    refused(17, "after", channels, "(`normalize`): how many channels there are is known at the call alone");
    let twice = "step = 'resize'\nheight = 999\nwidth = 999\nto = 'a'\n[[steps]]\nstep = 'resize'\nfrom = 'a'\nheight = 2\nwidth = 2";
    refused(17, "after", twice, "step 1 of `[[after]]` (`resize`): what it makes is not what comes out");
    for mode in ["nearest", "bilinear"] {
        let step = format!("[[steps]]\nstep = 'resize'\nheight = 2\nwidth = 2\nmode = '{mode}'");
        let why = "(`resize`): it takes extents which the model only promises";
        bench.refused(17, "after", &step, &[2, 4, 4, 3], &x, why);
    }
}

/// What an image is for, and what a device lacks for others; operators left for the CPU are refused here.
#[test]
fn webgpu_has_what_images_need() {
    let Some(bench) = on_webgpu("refusals::webgpu_has_what_images_need") else { return };
    let step = "[[steps]]\nstep = 'resize'\nheight = 8\nwidth = 8
        [[steps]]\nstep = 'normalize'\nscale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]
        [[steps]]\nstep = 'layout'\nlayout = 'NCHW'";
    let x = measured(Uint8, &[1, 30, 41, 3], 255.);
    let plan = chain(step).plan(&[info(Uint8, &[1, 30, 41, 3])], &["x"]).unwrap();
    let expected = plan.run(std::slice::from_ref(&x)).unwrap().remove(0);
    let got = bench.graph(17, "before", step, &[1, -1, -1, 3], &x).unwrap().remove(0);
    bench.compare(&got, &expected, Near::Ulps(400., 4.), "an image");
    let bytes = "[[steps]]\nstep = 'layout'\nlayout = 'NCHW'";
    bench.refused(
        17,
        "before",
        bytes,
        &[1, 4, 4, 3],
        &measured(Uint8, &[1, 4, 4, 3], 9.),
        "which the device has as FP32 alone",
    );
    let shapes = "[[steps]]\nstep = 'resize'\nheight = 8\nwidth = 8";
    bench.refused(17, "before", shapes, &[-1, -1, -1, 3], &x, "would run on the CPU, which is refused");
    let half = measured(Fp16, &[4], 9.);
    bench.refused(
        17,
        "before",
        "[[steps]]\nstep = 'normalize'",
        &[-1],
        &half,
        "the device has no operator `Cast` for FP16",
    );
}
