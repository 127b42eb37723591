//! Chains as they stand in files: read, checked, planned.

use outrigger_backend::{DataType, Shape, Tensor, TensorInfo};
use outrigger_processing::{Chain, Step, StepError};

#[derive(serde::Deserialize)]
struct File {
    steps: Chain,
}

fn read(text: &str) -> Result<Chain, String> {
    toml::from_str::<File>(text).map(|file| file.steps).map_err(|error| error.message().to_owned())
}

fn tensor(name: &str, data_type: DataType, shape: &[i64]) -> TensorInfo {
    TensorInfo { name: name.into(), data_type, shape: shape.into(), symbols: Vec::new() }
}

fn image() -> TensorInfo {
    let symbols = ["batch", "height", "width", ""].map(Into::into).to_vec();
    TensorInfo { symbols, ..tensor("image", DataType::Uint8, &[-1, -1, -1, 3]) }
}

const IMAGES: &str = r#"
    [[steps]]
    step = "resize"
    height = 224
    width = 200
    [[steps]]
    step = "normalize"
    scale = 0.00392156862745098
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    [[steps]]
    step = "layout"
    layout = "NCHW"
    to = "pixels"
    [[steps]]
    step = "convert"
    datatype = "FP16"
"#;

#[test]
fn what_steps_take_beside_their_tensors_is_counted() {
    let takes = |step: &str, inputs: &[TensorInfo]| {
        let chain = read(&format!("[[steps]]\nfrom = 'x'\n{step}")).unwrap();
        chain.plan(inputs, &["x"]).unwrap().made_bytes().unwrap()
    };
    let x = |data_type, shape: &[i64]| tensor("x", data_type, shape);
    let indices = tensor("i", DataType::Int32, &[1000]);
    assert_eq!(takes("step = 'top_k'\nk = 1", &[x(DataType::Uint8, &[1, 1000])]), 1 + 8 + 8 * 1000);
    assert_eq!(takes("step = 'softmax'", &[x(DataType::Fp16, &[2, 1000])]), 4 * 2000 + 4 * 1000);
    assert_eq!(takes("step = 'normalize'", &[x(DataType::Uint8, &[2, 3])]), 4 * 6 + 8);
    assert_eq!(takes("step = 'normalize'\nmean = [1, 2, 3]", &[x(DataType::Uint8, &[2, 3])]), 4 * 6 + 8 * 3);
    let nearest = "step = 'resize'\nmode = 'nearest'\nheight = 2\nwidth = 5";
    assert_eq!(takes(nearest, &[x(DataType::Uint8, &[1, 1, 1])]), 2 * 5 + 12 * 7);
    let gather = "step = 'gather'\nindices = 'i'";
    assert_eq!(takes(gather, &[x(DataType::Uint8, &[7]), indices]), 1000 + 8 * 1000);
    // Only that of one step at a time; and of nothing nothing.
    let twice = "step = 'softmax'\n[[steps]]\nstep = 'softmax'";
    assert_eq!(takes(twice, &[x(DataType::Fp32, &[10])]), 2 * 40 + 40);
    assert_eq!(takes("step = 'softmax'", &[x(DataType::Fp32, &[0, 1 << 40])]), 0);
}

#[test]
fn free_extents_pass_through() {
    let chain = read(IMAGES).unwrap();
    let plan = chain.plan(&[image()], &["pixels", "image"]).unwrap();
    let outputs: Vec<_> = plan.outputs().collect();
    assert_eq!((outputs[0].data_type, &outputs[0].shape[..]), (DataType::Fp16, &[-1, 3, 224, 200][..]));
    assert_eq!(outputs[0].symbols, ["batch", "", "", ""]);
    assert_eq!((outputs[1].data_type, &outputs[1].shape[..]), (DataType::Fp32, &[-1, 224, 200, 3][..]));
    assert_eq!(plan.made_bytes(), Err(StepError::Free("image".into())));
    let image = tensor("image", DataType::Uint8, &[2, 10, 10, 3]);
    // After each step, in FP32 three times and in FP16 once; and beside them where rows and columns come from, and two rows.
    let (pixels, beside) = (2 * 224 * 200 * 3, 12 * (224 + 200) + 2 * 4 * 200 * 3);
    let made = chain.plan(&[image], &["pixels"]).unwrap().made_bytes();
    assert_eq!(made, Ok(pixels * (4 + 4 + 4 + 2) + beside));
    let error = plan.run(&[]).unwrap_err();
    assert_eq!(error, StepError::Inputs { actual: 0, expected: 1 });
}

#[test]
fn names_mean_the_newest_tensor() {
    let chain = read(
        r#"
        [[steps]]
        step = "softmax"
        from = "logits"
        [[steps]]
        step = "top_k"
        k = 2
        to = "scores"
        indices = "classes"
        [[steps]]
        step = "gather"
        from = "labels"
        indices = "rows"
    "#,
    )
    .unwrap();
    let inputs = [
        tensor("logits", DataType::Fp16, &[-1, 10]),
        tensor("labels", DataType::Int32, &[10, 4]),
        tensor("rows", DataType::Int64, &[7]),
    ];
    let plan = chain.plan(&inputs, &["classes", "scores", "labels", "logits"]).unwrap();
    let outputs: Vec<_> = plan.outputs().map(|output| (output.data_type, output.shape.clone())).collect();
    let expected = [
        (DataType::Int64, vec![-1, 2]),
        (DataType::Fp32, vec![-1, 2]),
        (DataType::Int32, vec![7, 4]),
        (DataType::Fp32, vec![-1, 10]),
    ];
    assert_eq!(outputs, expected);
    // A file that was written reads as it was.
    let text = toml::to_string(&std::collections::BTreeMap::from([("steps", &chain)])).unwrap();
    assert_eq!(read(&text).unwrap(), chain);
}

#[test]
fn what_no_step_takes_is_left() {
    let left = |text: &str, inputs: &[TensorInfo]| read(text).unwrap().left(inputs);
    assert_eq!(left(IMAGES, &[image()]), Ok(vec!["pixels".into()]));
    let inputs = [tensor("logits", DataType::Fp32, &[-1, 10]), tensor("other", DataType::Bytes, &[3])];
    let best = "[[steps]]\nstep = \"top_k\"\nk = 2\nfrom = \"logits\"\nto = \"scores\"";
    assert_eq!(left(best, &inputs).unwrap(), ["other", "scores", "indices"]);
    assert_eq!(left("steps = []", &inputs).unwrap(), ["logits", "other"]);
    assert!(left(best, &inputs[1..]).is_err());
}

#[test]
fn steps_that_mix_rows_are_found() {
    let mixes = |shape: &[i64], step: &str| {
        let inputs = [tensor("x", DataType::Fp32, shape), tensor("rows", DataType::Int64, &[-1])];
        let text = format!("[[steps]]\nfrom = \"x\"\n{step}");
        read(&text).unwrap().plan(&inputs, &["x"]).unwrap().mixes_rows()
    };
    let (rows, image) = ([-1, 5], [-1, 8, 8, 3]);
    let nchw = "step = \"layout\"\nlayout = \"NCHW\"";
    let resize = "step = \"resize\"\nheight = 2\nwidth = 2";
    for (shape, step) in [
        (&rows[..], "step = \"convert\"\ndatatype = \"FP16\""),
        (&rows, "step = \"softmax\""),
        (&rows, "step = \"top_k\"\nk = 1"),
        (&rows, "step = \"normalize\"\nmean = [1, 2, 3, 4, 5]"),
        (&rows, "step = \"normalize\"\naxis = 0"),
        (&image, nchw),
        (&image, resize),
        (&[-1, 8, 8], &format!("{resize}\nlayout = \"NCHW\"")),
    ] {
        assert_eq!(mixes(shape, step), None, "{step}");
    }
    for (shape, step) in [
        (&rows[..], "step = \"softmax\"\naxis = 0"),
        (&rows, "step = \"softmax\"\naxis = -2"),
        (&rows, "step = \"top_k\"\nk = 1\naxis = -2"),
        (&rows, "step = \"normalize\"\nmean = [1, 2]\naxis = 0"),
        (&rows, "step = \"gather\"\nindices = \"rows\""),
        (&rows, "step = \"scatter\"\nindices = \"rows\"\nrows = 3"),
        (&image[1..], nchw),
        (&image[1..], resize),
        (&[-1, 8], &format!("{resize}\nlayout = \"NCHW\"")),
    ] {
        assert_eq!(mixes(shape, step), Some(0), "{step}");
    }
}

#[test]
fn a_run_ends_before_the_step_at_which_it_is_cancelled() {
    let shape = [1, 4, 4, 3];
    let plan = read(IMAGES).unwrap().plan(&[tensor("image", DataType::Uint8, &shape)], &["pixels"]).unwrap();
    let data = bytes::Bytes::from(vec![7; 48]);
    let image = Tensor::new(DataType::Uint8, Shape::new(shape).unwrap(), data).unwrap();
    let asked = std::cell::Cell::new(0);
    let cancelled_at = |step: usize| {
        asked.set(0);
        plan.run_unless(std::slice::from_ref(&image), || {
            asked.set(asked.get() + 1);
            asked.get() == step
        })
    };
    for step in 1..=4 {
        assert_eq!((cancelled_at(step), asked.get()), (Err(StepError::Cancelled), step));
    }
    assert_eq!(cancelled_at(5), plan.run(std::slice::from_ref(&image)));
}

/// Such a tensor takes no bytes, so that nothing but the time holds whoever sends it.
#[test]
fn tensors_without_elements_take_no_time() {
    let many = 1i64 << 50;
    for (shape, text) in [
        ([many, 5, 5, 0], "step = \"resize\"\nheight = 8\nwidth = 8"),
        ([many, 5, 5, 0], "step = \"resize\"\nheight = 8\nwidth = 8\nmode = \"nearest\""),
        ([many, 0, 5, 5], "step = \"resize\"\nheight = 8\nwidth = 8\nlayout = \"NCHW\""),
        ([many, 5, 5, 0], "step = \"layout\"\nlayout = \"NCHW\""),
        ([many, 5, 5, 0], "step = \"normalize\""),
        ([many, 0, 5, 5], "step = \"normalize\"\naxis = 1"),
        ([many, 5, 5, 0], "step = \"softmax\""),
        ([many, 0, 5, 5], "step = \"softmax\"\naxis = 1"),
        ([0, many, 5, 5], "step = \"softmax\"\naxis = 0"),
        ([0, many, 5, 5], "step = \"softmax\"\naxis = 1"),
        ([many, 5, 0, 5], "step = \"top_k\"\nk = 2"),
        ([0, many, 5, 5], "step = \"top_k\"\nk = 2"),
        ([many, 5, 5, 0], "step = \"convert\"\ndatatype = \"INT8\""),
        ([0, 3, 1, many], "step = \"normalize\""),
        ([0, 3, 1, 4_000_000_000], "step = \"top_k\"\nk = 2"),
        ([1 << 40, 21, 0, 5], "step = \"top_k\"\nk = 2\naxis = 1"),
        ([0, 1, 1, 1 << 40], "step = \"resize\"\nheight = 2\nwidth = 224"),
        ([0, 1 << 30, 1 << 30, 4], "step = \"resize\"\nheight = 2\nwidth = 2\nmode = \"nearest\""),
        ([0, 1 << 40, 1 << 40, 3], "step = \"layout\"\nlayout = \"NCHW\""),
    ] {
        let chain = read(&format!("[[steps]]\n{text}")).unwrap();
        let plan = chain.plan(&[tensor("x", DataType::Fp32, &shape)], &["x"]).unwrap();
        let empty = Tensor::new(DataType::Fp32, Shape::new(shape).unwrap(), bytes::Bytes::new()).unwrap();
        assert!(plan.run(&[empty]).unwrap()[0].data().is_empty(), "{text}");
    }
}

#[test]
fn files_are_strict() {
    let refuses = |text: &str, expected: &str| {
        let error = read(&format!("[[steps]]\n{text}")).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    refuses("step = \"blur\"", "unknown variant `blur`");
    refuses("step = \"softmax\"\nform = \"x\"", "unknown field `form`");
    refuses("step = \"resize\"\nheight = 3", "missing field `width`");
    refuses("step = \"layout\"\nlayout = \"HWC\"", "unknown variant `HWC`");
    refuses("k = 3", "missing field `step`");
    refuses("step = \"top_k\"\nk = -3", "invalid value");
}

#[test]
fn what_does_not_fit_is_named() {
    let refuses = |step: &str, inputs: &[TensorInfo], expected: &str| {
        let error = read(&format!("[[steps]]\n{step}")).unwrap().plan(inputs, &["x"]).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    let x = |data_type, shape: &[i64]| tensor("x", data_type, shape);
    use DataType::*;
    refuses(
        "step = \"convert\"\ndatatype = \"FP32\"",
        &[x(Fp64, &[1])],
        "step 1 (`convert`): tensor `x` is FP64, it takes UINT8, INT8, INT32, INT64, FP16, BF16 or FP32",
    );
    refuses(
        "step = \"convert\"\ndatatype = \"BOOL\"",
        &[x(Fp32, &[1])],
        "step 1 (`convert`): it gives UINT8, INT8, INT32, INT64, FP16, BF16 or FP32, not BOOL",
    );
    refuses(
        "step = \"normalize\"\nmean = [1, 2]",
        &[x(Uint8, &[4, 3])],
        "step 1 (`normalize`): `mean` has 2 values, axis -1 of tensor `x` has 3",
    );
    refuses(
        "step = \"normalize\"\nmean = [1, 2]\nstd = [1, 2, 3]",
        &[x(Uint8, &[4, -1])],
        "step 1 (`normalize`): `std` has 3 values, axis -1 of tensor `x` has 2",
    );
    refuses(
        "step = \"normalize\"\nstd = [0.0]",
        &[x(Uint8, &[4, 3])],
        "step 1 (`normalize`): `std` is 0, it must be a number that FP32 holds, not 0, also `scale` divided by it",
    );
    refuses(
        "step = \"normalize\"\nmean = [0, 1e30]\nstd = [1, 1e-10]",
        &[x(Uint8, &[4, 2])],
        &format!(
            "step 1 (`normalize`): `mean` is {}, it must be a number that FP32 holds, also divided by `std`",
            1e30f64
        ),
    );
    refuses(
        "step = \"normalize\"\nmean = [1e30]\nstd = [1, 1e-10]",
        &[x(Uint8, &[4, 2])],
        &format!(
            "step 1 (`normalize`): `mean` is {}, it must be a number that FP32 holds, also divided by `std`",
            1e30f64
        ),
    );
    refuses(
        "step = \"normalize\"\nscale = 1e30\nstd = [1e-10]",
        &[x(Uint8, &[4, 2])],
        "step 1 (`normalize`): `std` is 0.0000000001, it must be a number that FP32 holds, not 0, also `scale` divided by it",
    );
    refuses(
        "step = \"normalize\"\nscale = 1e300",
        &[x(Uint8, &[4, 3])],
        &format!("step 1 (`normalize`): `scale` is {}, it must be a number that FP32 holds, not 0", 1e300f64),
    );
    refuses(
        "step = \"resize\"\nheight = 0\nwidth = 1",
        &[x(Uint8, &[4, 3, 3])],
        "step 1 (`resize`): `height` is 0, it must be from 1 to 16384",
    );
    refuses(
        "step = \"resize\"\nheight = 1\nwidth = 16385",
        &[x(Uint8, &[4, 3, 3])],
        "step 1 (`resize`): `width` is 16385, it must be from 1 to 16384",
    );
    refuses(
        "step = \"resize\"\nheight = 1\nwidth = 1",
        &[x(Uint8, &[4, 0, 3])],
        "step 1 (`resize`): tensor `x` has images of 4 x 0 pixels, out of which none can be made",
    );
    refuses(
        "step = \"resize\"\nheight = 1\nwidth = 1",
        &[x(Uint8, &[4, 3])],
        "step 1 (`resize`): tensor `x` has 2 axes, it takes 3 or more (height, width, channels)",
    );
    refuses(
        "step = \"softmax\"\naxis = 2",
        &[x(Fp32, &[4, 3])],
        "step 1 (`softmax`): there is no axis 2, tensor `x` has 2",
    );
    refuses(
        "step = \"softmax\"",
        &[x(Int32, &[4, 3])],
        "step 1 (`softmax`): tensor `x` is INT32, it takes FP16, BF16 or FP32",
    );
    refuses(
        "step = \"top_k\"\nk = 4",
        &[x(Fp32, &[4, 3])],
        "step 1 (`top_k`): `k` is 4, axis -1 of tensor `x` has 3",
    );
    refuses(
        "step = \"top_k\"\nk = 1\nindices = \"x\"",
        &[x(Fp32, &[4, 3])],
        "step 1 (`top_k`): both of its results have the name `x`",
    );
    refuses(
        "step = \"gather\"\nindices = \"i\"",
        &[x(Fp32, &[4, 3])],
        "step 1 (`gather`): no tensor `i` is there, only `x`",
    );
    let index = tensor("i", Int32, &[2]);
    refuses(
        "step = \"gather\"\nindices = \"i\"",
        &[x(Fp32, &[4, 3]), index.clone()],
        "step 1 (`gather`): `from` must say which tensor it takes, there are `x`, `i`",
    );
    refuses(
        "step = \"scatter\"\nfrom = \"x\"\nindices = \"i\"\nrows = 9",
        &[x(Fp32, &[4, 3]), index],
        "step 1 (`scatter`): tensor `x` has 4 rows, `i` has 2 indices",
    );
    refuses(
        "step = \"softmax\"",
        &[tensor("y", Fp32, &[3])],
        "no tensor `x` is there after the steps, only `y`",
    );
    refuses("step = \"softmax\"", &[x(Fp32, &[3]), x(Fp32, &[3])], "two inputs have the name `x`");
    refuses(
        "step = \"resize\"\nheight = 16384\nwidth = 16384\nmode = \"nearest\"",
        &[x(Fp32, &[1 << 31, 1, 1, 1 << 31])],
        "step 1 (`resize`): the number of elements overflows",
    );
    let many: Chain = (0..65).map(|_| Step::Convert { datatype: Fp32 }).collect();
    assert_eq!(many.plan(&[x(Fp32, &[1])], &["x"]), Err(StepError::TooMany(65)));
}
