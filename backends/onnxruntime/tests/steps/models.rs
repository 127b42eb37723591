//! Whatever a model calls things, and promises of them, its steps do the same.

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_backend::{BackendError, DataType, LoadOptions, ModelInfo, Output, Run, Tensor, TensorInfo};
use outrigger_onnxruntime::Settings;
use outrigger_testkit::onnx::{Dim, Graph};

use DataType::{Fp32, Int64, Uint8};

use crate::bench::{Bench, Near, chain, floats, info, measured, rand, tensor};
use crate::support;

/// A model with steps, loaded after it was asked for.
fn load(
    bench: &Bench,
    graph: &Graph,
    text: &str,
    inputs: Vec<TensorInfo>,
) -> Result<Arc<dyn outrigger_backend::Model>, BackendError> {
    let path = bench.folder.path().join(format!("{:x}.onnx", rand()));
    std::fs::write(&path, graph.model()).unwrap();
    let options = LoadOptions {
        format: Some("onnx+steps".into()),
        settings: vec![("steps".into(), text.into())],
        signature: ModelInfo { inputs, outputs: vec![] },
        ..LoadOptions::of(&path)
    };
    bench.device.estimate(&options)?;
    bench.device.load(&options)
}

fn run(model: &dyn outrigger_backend::Model, inputs: &[Tensor]) -> Result<Tensor, BackendError> {
    let mut output = [Output::allocate(0)];
    model.instance()?.infer(inputs, &mut output, Run::default())?;
    let [output] = output;
    Ok(output.into_tensor().unwrap())
}

#[test]
fn what_a_model_promises_of_its_results_is_not_believed() {
    let bench = Bench::host();
    let named = [Dim::Named("n"), Dim::Named("c"), Dim::Named("h"), Dim::Named("w")];
    // Two rows of two channels, 8 x 6, and what the model says of some of it.
    let x = measured(Fp32, &[2, 2, 8, 6], 9.);
    let lies: [&[(usize, i64)]; 7] = [
        &[(0, 1)],
        &[(1, 3)],
        &[(2, 4)],
        &[(3, 4)],
        &[(0, 1), (1, 3)],
        &[(2, 4), (3, 4)],
        &[(1, 3), (2, 4), (3, 4)],
    ];
    for (mode, layout) in
        [("nearest", "NCHW"), ("bilinear", "NCHW"), ("nearest", "NHWC"), ("bilinear", "NHWC")]
    {
        let step = format!(
            "[[steps]]\nstep = 'resize'\nheight = 2\nwidth = 3\nmode = '{mode}'\nlayout = '{layout}'"
        );
        let plan = chain(&step).plan(&[info(Fp32, &[2, 2, 8, 6])], &["x"]).unwrap();
        let expected = plan.run(std::slice::from_ref(&x)).unwrap().remove(0);
        for opset in [13, 17, 18, 21] {
            for lie in lies {
                let mut said = named;
                lie.iter().for_each(|(axis, extent)| said[*axis] = Dim::Fixed(*extent));
                let mut graph = Graph::default();
                graph.opset = Some(opset);
                graph.input("x", Fp32, &named);
                graph.output("y", Fp32, &said);
                graph.node("Relu", &["x"], &["r"]);
                graph.node("Sub", &["x", "r"], &["m"]);
                graph.node("Add", &["m", "r"], &["y"]);
                let text = step.replace("[[steps]]", "[[after]]");
                let got = load(&bench, &graph, &text, vec![])
                    .and_then(|model| run(&*model, std::slice::from_ref(&x)));
                let said = format!("{mode} {layout} {lie:?}, opset {opset}");
                let got = got.unwrap_or_else(|error| panic!("{said}: {error}"));
                bench.compare(&got, &expected, Near::Ulps(60., 9.), &said);
            }
        }
    }
}

/// ONNX Runtime moves transpositions past other operators, and what these take with them.
#[test]
fn transpositions_around_a_resize_change_nothing() {
    let bench = Bench::host();
    for opset in [13, 17, 18, 21] {
        for mode in ["bilinear", "nearest"] {
            for [reversed, back] in [["t", "y"], ["x", "y"]] {
                let mut graph = Graph::default();
                graph.opset = Some(opset);
                graph.input("x", Fp32, &[Dim::Named("n"), Dim::Named("c"), Dim::Named("h"), Dim::Named("w")]);
                let said = [Dim::Named("a"), Dim::Named("b"), Dim::Named("d"), Dim::Named("e")];
                graph.output("y", Fp32, &said);
                // Twice the same, or once.
                if reversed == "t" {
                    graph.node("Transpose", &["x"], &["t"]);
                }
                graph.node("Relu", &[reversed], &["r"]);
                graph.node("Transpose", &["r"], &[back]);
                let steps = format!(
                    "step = 'layout'\nlayout = 'NCHW'\n[[side]]\nstep = 'resize'\nheight = 4\nwidth = 6\nmode = '{mode}'\nlayout = 'NCHW'\n[[side]]\nstep = 'layout'\nlayout = 'NHWC'\n[[side]]\nstep = 'resize'\nheight = 5\nwidth = 3\nmode = '{mode}'\nlayout = 'NHWC'\n[[side]]\nstep = 'normalize'\nscale = 0.5"
                );
                let before = format!("[[side]]\n{steps}").replace("[[side]]", "[[before]]");
                let x = measured(Uint8, &[2, 7, 5, 3], 255.);
                let plan = chain(&before.replace("[[before]]", "[[steps]]"))
                    .plan(&[info(Uint8, &[2, 7, 5, 3])], &["x"]);
                let expected = plan.unwrap().run(std::slice::from_ref(&x)).unwrap().remove(0);
                let model = load(&bench, &graph, &before, vec![info(Uint8, &[-1, -1, -1, -1])]).unwrap();
                let got = run(&*model, std::slice::from_ref(&x)).unwrap();
                let said = format!("{mode}, opset {opset}, {reversed}");
                if reversed == "t" {
                    bench.compare(&got, &expected, Near::Ulps(99., 255.), &said);
                } else {
                    assert_eq!(got.shape().extents(), [3, 3, 5, 2], "{said}");
                    let (mut sums, all) = ((0., 0.), (floats(&got), floats(&expected)));
                    all.0.iter().for_each(|value| sums.0 += value);
                    all.1.iter().for_each(|value| sums.1 += value);
                    assert!((sums.0 - sums.1).abs() < 1e-2, "{said}: {sums:?}");
                }
            }
        }
    }
}

#[test]
fn a_model_s_own_names_stay_its_own() {
    let bench = Bench::host();
    let rows = [Dim::Named("n"), Dim::Fixed(2)];
    let half = "[[before]]\nstep = 'normalize'\nscale = 0.5";
    let bytes = || vec![info(Uint8, &[-1, 2])];
    let x = tensor(Uint8, &[1, 2], vec![10, 20]);
    let model = |constant: &str, between: &str| {
        let mut graph = Graph::default();
        graph.input("x", Fp32, &rows);
        graph.output("y", Fp32, &rows);
        graph.initializer(constant, &[], &[7.]);
        graph.named_node("x", "Mul", &["x", constant], &[between]);
        graph.named_node("outrigger:in:x", "Identity", &[between], &["y"]);
        graph
    };
    let got = run(&*load(&bench, &model("k", "m"), half, bytes()).unwrap(), std::slice::from_ref(&x));
    assert_eq!(floats(&got.unwrap()), [35., 70.]);
    for (constant, between) in [("outrigger:before:1", "m"), ("k", "outrigger:before:0")] {
        let error = load(&bench, &model(constant, between), half, bytes()).err().unwrap().to_string();
        assert!(error.contains("it has names that begin with `outrigger:`"), "{error}");
    }
    // Without steps they are names as any other.
    let mut graph = Graph::default();
    graph.input("x", Fp32, &rows);
    graph.input("outrigger:in:x", Fp32, &rows);
    graph.output("outrigger:out:y", Fp32, &rows);
    graph.node("Add", &["x", "outrigger:in:x"], &["outrigger:out:y"]);
    let path = bench.folder.path().join("plain.onnx");
    std::fs::write(&path, graph.model()).unwrap();
    let plain = bench.device.load(&LoadOptions::of(&path)).unwrap();
    let names: Vec<_> = plain.info().inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(
        (&names[..], plain.info().outputs[0].name.as_str()),
        (&["x", "outrigger:in:x"][..], "outrigger:out:y")
    );
    let x = tensor(Fp32, &[1, 2], vec![0; 8]);
    run(&*plain, &[x.clone(), x]).unwrap();
}

/// Whatever callers call their extents, and whether they do.
#[test]
fn extents_that_a_model_calls_the_same_are_the_same() {
    let bench = Bench::host();
    let mut graph = Graph::default();
    graph.input("a", Fp32, &[Dim::Named("n"), Dim::Fixed(2)]);
    graph.input("b", Fp32, &[Dim::Fixed(2), Dim::Named("n")]);
    graph.output("y", Fp32, &[Dim::Named("n"), Dim::Named("n")]);
    graph.node("MatMul", &["a", "b"], &["y"]);
    let text = "[[before]]\nstep = 'convert'\nfrom = 'a'\ndatatype = 'FP32'\n[[before]]\nstep = 'convert'\nfrom = 'b'\ndatatype = 'FP32'";
    for names in [["", ""], ["their", ""], ["one", "other"], ["same", "same"]] {
        let inputs = vec![
            TensorInfo::new("a", Uint8, &[(-1, names[0]), (2, "")]),
            TensorInfo::new("b", Uint8, &[(2, ""), (-1, names[1])]),
        ];
        let model = load(&bench, &graph, text, inputs).unwrap();
        let symbols = &model.info().outputs[0].symbols;
        assert!(!symbols[0].is_empty() && symbols[0] == symbols[1], "{symbols:?}");
        assert_eq!(model.info().inputs[0].symbols[0], symbols[0]);
        let b = |wide: i64| tensor(Uint8, &[2, wide], vec![1; 2 * wide as usize]);
        let a = tensor(Uint8, &[2, 2], vec![1, 2, 3, 4]);
        assert_eq!(floats(&run(&*model, &[a.clone(), b(2)]).unwrap()), [3., 3., 7., 7.]);
        let error = run(&*model, &[a, b(3)]).unwrap_err();
        assert!(matches!(error, BackendError::Input(_)), "{names:?}: {error}");
    }
}

/// Everything at once: names that are the model's and the callers', an input that no step touches, one that goes to both, free extents by their
/// names, and what is kept of it on disk.
#[test]
fn callers_see_their_side_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let (rows, high, wide) = (Dim::Named("batch"), Dim::Named("h"), Dim::Named("w"));
    let mut graph = Graph::default();
    graph.input("image", Fp32, &[rows, Dim::Fixed(3), high, wide]);
    graph.input("tag", Int64, &[rows]);
    graph.output("same", Fp32, &[rows, Dim::Fixed(3), high, wide]);
    graph.output("tags", Int64, &[rows]);
    graph.node("Identity", &["image"], &["same"]);
    graph.node("Identity", &["tag"], &["tags"]);
    std::fs::write(&path, graph.model()).unwrap();
    let named = |name: &str, data_type, dims: &[(i64, &str)]| TensorInfo {
        name: name.into(),
        data_type,
        shape: dims.iter().map(|dim| dim.0).collect(),
        symbols: dims.iter().map(|dim| dim.1.into()).collect(),
    };
    let rows = (-1, "n");
    let image = named("image", Uint8, &[rows, (-1, "height"), (-1, "width"), (3, "")]);
    let tag = named("tag", Int64, &[rows]);
    let text = "[[before]]\nstep = 'layout'\nfrom = 'image'\nlayout = 'NCHW'\n[[before]]\nstep = 'normalize'\nscale = 2.0
        [[before]]\nstep = 'convert'\ndatatype = 'FP32'\nfrom = 'tag'\nto = 'unused'
        [[after]]\nstep = 'softmax'\nfrom = 'same'\naxis = 1\nto = 'image'";
    let options = LoadOptions {
        format: Some("onnx+steps".into()),
        settings: vec![("steps".into(), text.into())],
        signature: ModelInfo { inputs: vec![image.clone(), tag.clone()], outputs: vec![] },
        ..LoadOptions::of(&path)
    };
    let settings = Settings { cache: Some(folder.path().join("cache")), ..support::settings() };
    // The second time out of what is kept; then without steps, which must not get that.
    for _ in 0..2 {
        let device = support::open(support::Pretended::default(), &settings).open(0).unwrap();
        let model = device.load(&options).unwrap();
        assert_eq!(model.info().inputs, [image.clone(), tag.clone()]);
        let outputs = [
            named("tags", Int64, &[rows]),
            named("image", Fp32, &[rows, (3, ""), (-1, "height"), (-1, "width")]),
        ];
        assert_eq!(model.info().outputs, outputs);
        let pixels = tensor(Uint8, &[1, 1, 2, 3], vec![0, 1, 0, 9, 9, 9]);
        let tags = tensor(Int64, &[1], 7i64.to_ne_bytes().into());
        let mut got: Vec<_> = (0..2).map(Output::allocate).collect();
        model.instance().unwrap().infer(&[pixels, tags], &mut got, Run::default()).unwrap();
        let got: Vec<_> = got.into_iter().map(|output| floats(&output.into_tensor().unwrap())).collect();
        assert_eq!(got[0], [7.]);
        let (less, more) = (0.1065, 0.7870);
        let expected = [less, 1. / 3., more, 1. / 3., less, 1. / 3.];
        assert!(got[1].iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-3), "{got:?}");
        let plain = device.load(&LoadOptions::of(&path)).unwrap();
        assert_eq!(plain.info().inputs[0].data_type, Fp32);
    }
    let kept = std::fs::read_dir(folder.path().join("cache/outrigger-pretended")).unwrap();
    let is_model = |path: PathBuf| path.extension().is_some_and(|end| end == "optimised");
    assert_eq!(kept.filter(|file| is_model(file.as_ref().unwrap().path())).count(), 2);
}

/// Data in other files stays there.
#[test]
fn a_model_with_data_in_other_files_has_steps_too() {
    let bench = Bench::host();
    let mut graph = Graph::default();
    graph.input("x", Fp32, &[Dim::Named("n"), Dim::Fixed(2)]);
    graph.output("y", Fp32, &[Dim::Named("n"), Dim::Fixed(2)]);
    graph.external("w", &[2], &[("location", "w.bin")]);
    graph.node("Mul", &["x", "w"], &["y"]);
    let path = bench.folder.path().join("model.onnx");
    std::fs::write(&path, graph.model()).unwrap();
    let weights: Vec<u8> = [3f32, 5.].iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(bench.folder.path().join("w.bin"), weights).unwrap();
    let options = LoadOptions {
        format: Some("onnx+steps".into()),
        settings: vec![("steps".into(), "[[before]]\nstep = 'convert'\ndatatype = 'FP32'".into())],
        signature: ModelInfo { inputs: vec![info(Uint8, &[-1, 2])], outputs: vec![] },
        ..LoadOptions::of(&path)
    };
    let model = bench.device.load(&options).unwrap();
    let mut output = [Output::allocate(0)];
    let x = tensor(Uint8, &[1, 2], vec![200, 7]);
    model.instance().unwrap().infer(&[x], &mut output, Run::default()).unwrap();
    let [output] = output;
    assert_eq!(floats(&output.into_tensor().unwrap()), [600., 35.]);
}
