//! What steps cost on the CPU: the best of several runs, on one thread.
//!
//! `cargo run --release -p outrigger-processing --example cost`

use std::time::Instant;

use outrigger_backend::{DataType, Shape, Tensor, TensorInfo};
use outrigger_processing::{Chain, Step};

fn main() {
    let step = |text: &str| -> Step { toml::from_str(text).expect("a step") };
    let image = "scale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]";
    let cases: [(&str, Vec<Step>, DataType, &[i64]); 12] = [
        (
            "convert to FP32",
            vec![step("step = 'convert'\ndatatype = 'FP32'")],
            DataType::Uint8,
            &[1, 224, 224, 3],
        ),
        (
            "convert to FP16",
            vec![step("step = 'convert'\ndatatype = 'FP16'")],
            DataType::Fp32,
            &[1, 224, 224, 3],
        ),
        (
            "convert to FP32",
            vec![step("step = 'convert'\ndatatype = 'FP32'")],
            DataType::Fp16,
            &[1, 224, 224, 3],
        ),
        (
            "convert to UINT8",
            vec![step("step = 'convert'\ndatatype = 'UINT8'")],
            DataType::Fp32,
            &[1, 224, 224, 3],
        ),
        (
            "normalize",
            vec![step(&format!("step = 'normalize'\n{image}"))],
            DataType::Uint8,
            &[1, 224, 224, 3],
        ),
        (
            "normalize, axis 1",
            vec![step(&format!("step = 'normalize'\naxis = 1\n{image}"))],
            DataType::Uint8,
            &[1, 3, 224, 224],
        ),
        (
            "resize, bilinear",
            vec![step("step = 'resize'\nheight = 224\nwidth = 224")],
            DataType::Uint8,
            &[1, 480, 640, 3],
        ),
        (
            "resize, nearest",
            vec![step("step = 'resize'\nheight = 224\nwidth = 224\nmode = 'nearest'")],
            DataType::Uint8,
            &[1, 480, 640, 3],
        ),
        ("layout to NCHW", vec![step("step = 'layout'\nlayout = 'NCHW'")], DataType::Fp32, &[1, 224, 224, 3]),
        ("softmax", vec![step("step = 'softmax'")], DataType::Fp32, &[1, 1000]),
        ("top_k", vec![step("step = 'top_k'\nk = 5")], DataType::Fp32, &[1, 1000]),
        (
            "resize, normalize, layout",
            vec![
                step("step = 'resize'\nheight = 224\nwidth = 224"),
                step(&format!("step = 'normalize'\n{image}")),
                step("step = 'layout'\nlayout = 'NCHW'"),
            ],
            DataType::Uint8,
            &[1, 480, 640, 3],
        ),
    ];
    for (name, steps, data_type, shape) in cases {
        let chain: Chain = steps.into_iter().collect();
        let symbols = Vec::new();
        let info = TensorInfo { name: "x".into(), data_type, shape: shape.into(), symbols };
        let plan = chain.plan(&[info], &["x"]).expect("it fits");
        let shape = Shape::new(shape).expect("a shape");
        let bytes = shape.bytes(data_type).expect("a size");
        let data: Vec<u8> = (0..bytes).map(|byte| (byte * 37 % 113) as u8).collect();
        let input = Tensor::new(data_type, shape.clone(), data.into()).expect("as many bytes");
        let runs = (0..40).map(|_| {
            let start = Instant::now();
            plan.run(std::slice::from_ref(&input)).expect("it runs");
            start.elapsed()
        });
        let best = runs.min().unwrap_or_default();
        println!(
            "{name:<28} {:<6} {:<20} {:>9.1} us",
            data_type.name(),
            shape.to_string(),
            best.as_secs_f64() * 1e6
        );
    }
}
