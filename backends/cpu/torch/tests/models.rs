//! What a model takes and gives, and that it leaves its inputs alone.

mod support;

use outrigger_backend::conformance::{fp32, infer, tensor, values};
use outrigger_backend::{BackendError, DataType, Model, Output, Run, Shape, TensorInfo};
use outrigger_testkit::torchscript::{self, Module};
use support::{Folder, device, row};

fn outputs(model: &dyn Model) -> Vec<(String, Vec<i64>, Vec<String>)> {
    let outputs = model.info().outputs.iter();
    outputs.map(|info| (info.name.clone(), info.shape.clone(), info.symbols.clone())).collect()
}

fn named(name: &str, shape: &[i64], symbols: &[&str]) -> (String, Vec<i64>, Vec<String>) {
    (name.into(), shape.into(), symbols.iter().map(|symbol| (*symbol).into()).collect())
}

#[test]
fn numbers_are_those_of_the_model() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let widths = [8i64, 16, 4];
    let (model, instance) = folder.instance(&*device, &torchscript::mlp(&widths), &[row("x", 8)], &[]);
    assert_eq!(outputs(&*model), [named("output_0", &[-1, 4], &["batch", ""])]);
    let x: Vec<f32> = (0..3 * 8).map(|number| (number as f32 * 0.37).sin()).collect();
    let got = infer(&*model, &*instance, &[fp32(&[3, 8], &x)]).unwrap();
    // In double precision, with the weights of `torchscript::mlp`.
    let expected: Vec<f64> = x
        .chunks(8)
        .flat_map(|row| {
            let mut row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
            for (number, pair) in widths.windows(2).enumerate() {
                let (from, to) = (pair[0] as usize, pair[1] as usize);
                let weight = |at: usize| f64::from(((at * 7919 % 1013) as f32 / 1013.0 - 0.5) / from as f32);
                let sum = |column: usize| (0..from).map(|at| row[at] * weight(at * to + column)).sum::<f64>();
                row = (0..to)
                    .map(|column| if number == 0 { sum(column).max(0.) } else { sum(column) })
                    .collect();
            }
            row
        })
        .collect();
    for (got, expected) in values(&got[0]).into_iter().zip(expected) {
        assert!((f64::from(got) - expected).abs() < 1e-6, "{got} is not {expected}");
    }
}

#[test]
fn tuples_lists_and_dictionaries_come_apart() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let x = fp32(&[1, 2], &[1., -2.]);
    let check = |result: &str, value: &str, said: &[&str], expected: &[(&str, [f32; 2])]| {
        let module = Module::forward("x: Tensor", result, &[&format!("return {value}")]);
        let said: Vec<_> = said.iter().map(|name| row(name, 2)).collect();
        let (model, instance) = folder.instance(&*device, &module, &[row("x", 2)], &said);
        let names: Vec<_> = expected.iter().map(|(name, _)| named(name, &[-1, 2], &["batch", ""])).collect();
        assert_eq!(outputs(&*model), names, "{result}");
        let got = infer(&*model, &*instance, std::slice::from_ref(&x)).unwrap();
        let got: Vec<_> = got.iter().map(values).collect();
        assert_eq!(got, expected.iter().map(|(_, values)| values.to_vec()).collect::<Vec<_>>(), "{result}");
    };
    let (relu, neg) = ([1., 0.], [-1., 2.]);
    let both = "torch.relu(x), torch.neg(x)";
    check("Tuple[Tensor, Tensor]", &format!("({both})"), &[], &[("output_0", relu), ("output_1", neg)]);
    check("List[Tensor]", &format!("[{both}]"), &["a", "b"], &[("a", relu), ("b", neg)]);
    let dictionary = "{\"logits\": torch.relu(x), \"score\": torch.neg(x)}";
    check("Dict[str, Tensor]", dictionary, &[], &[("logits", relu), ("score", neg)]);
    // What is said decides what is given, and in which order.
    check("Dict[str, Tensor]", dictionary, &["score", "logits"], &[("score", neg), ("logits", relu)]);
    check("Dict[str, Tensor]", dictionary, &["score"], &[("score", neg)]);
}

#[test]
fn what_is_to_be_said_is_named() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let refused = |module: &Module, inputs: &[_], said: &[_], words: &[&str]| {
        let text = folder.refused(folder.load(&*device, module, inputs, said));
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    };
    let add = torchscript::add();
    refused(&add, &[], &[], &["describe `x`, `y` in model.toml, as `[[inputs]]`, `name = \"x\"`"]);
    refused(&add, &[row("x", 3)], &[], &["does not describe input `y`"]);
    refused(&add, &[row("x", 3), row("z", 3)], &[], &["describes input `z`, `forward` takes `x`, `y`"]);
    refused(
        &add,
        &[row("x", 3), row("y", 2)],
        &[],
        &["describe its outputs in model.toml", "must match the size"],
    );
    let strings = TensorInfo::new("y", DataType::Bytes, &[(-1, "")]);
    refused(&add, &[row("x", 3), strings], &[], &["`y` is BYTES"]);
    let number = Module::forward("x: Tensor, n: int", "Tensor", &["return x"]);
    refused(&number, &[row("x", 3)], &[], &["argument `n` of its `forward` is of type int"]);
    let nothing = Module::forward("x: Tensor", "int", &["return 3"]);
    refused(&nothing, &[row("x", 3)], &[], &["neither a tensor, nor a tuple"]);
    let complex = Module::forward("x: Tensor", "Tensor", &["return torch.view_as_complex(x)"]);
    refused(&complex, &[row("x", 2)], &[], &["PyTorch's type number 9"]);
}

#[test]
fn what_comes_is_held_against_what_was_said() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let fails = |said: &[_], expected: &str| {
        let module = Module::forward("x: Tensor", "Tuple[Tensor, Tensor]", &["return (x, x)"]);
        let (model, instance) = folder.instance(&*device, &module, &[row("x", 2)], said);
        let error = infer(&*model, &*instance, &[fp32(&[1, 2], &[1., 2.])]).unwrap_err();
        assert!(matches!(&error, BackendError::Run(text) if text == expected), "{error:?}");
    };
    fails(&[row("a", 2)], "`forward` gave 2 tensors, the model has 1 outputs");
    let other = TensorInfo::new("b", DataType::Fp64, &[(-1, "batch"), (2, "")]);
    fails(&[row("a", 2), other], "`b` came as FP32, the model says FP64");
    // Another shape than was said comes as it is.
    let (_, instance) = folder.instance(&*device, &torchscript::identity(), &[row("x", 2)], &[row("y", 5)]);
    let place = outrigger_backend::Buffer::zeroed(20).unwrap();
    let mut outputs = [Output::place(0, DataType::Fp32, Shape::new([1, 5]).unwrap(), place).unwrap()];
    instance.infer(&[fp32(&[1, 2], &[1., 2.])], &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    assert_eq!(values(&output.into_tensor().unwrap()), [1., 2.]);
}

/// Inputs are the caller's memory: neither written to, nor looked at after the call.
#[test]
fn inputs_are_left_alone() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let run = |module: &Module| {
        let (model, instance) = folder.instance(&*device, module, &[row("x", 2)], &[row("y", 2)]);
        let input = fp32(&[1, 2], &[-1., 2.]);
        let got = values(&infer(&*model, &*instance, std::slice::from_ref(&input)).unwrap()[0]);
        assert_eq!(values(&input), [-1., 2.], "the input is what it was");
        drop(input);
        // Memory of the size of the first input, likely in its place.
        let second = fp32(&[1, 2], &[5., 6.]);
        let again = values(&infer(&*model, &*instance, &[second]).unwrap()[0]);
        (got, again)
    };
    let in_place = Module::forward("x: Tensor", "Tensor", &["return torch.relu_(x)"]);
    assert_eq!(run(&in_place), (vec![0., 2.], vec![5., 6.]));
    let kept =
        Module::forward("x: Tensor", "Tensor", &["before = self.last", "self.last = x", "return before"]);
    assert_eq!(run(&kept.weight("last", &[1, 2], vec![7., 8.])), (vec![7., 8.], vec![-1., 2.]));
}

#[test]
fn a_view_of_an_input_outlives_it() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let module = Module::forward("x: Tensor", "Tensor", &["return torch.slice(x, 1, 1, 3)"]);
    let (_, instance) = folder.instance(&*device, &module, &[row("x", 4)], &[]);
    let mut outputs = [Output::allocate(0)];
    let input = fp32(&[2, 4], &[0., 1., 2., 3., 4., 5., 6., 7.]);
    instance.infer(&[input], &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    let output = output.into_tensor().unwrap();
    let _other = fp32(&[2, 4], &[9.; 8]);
    assert_eq!((output.shape().extents(), values(&output)), ([2, 2].as_slice(), vec![1., 2., 5., 6.]));
}

/// libtorch puts off what it can: such a result has the bytes of another tensor, and a note.
#[test]
fn what_is_to_be_negated_comes_negated() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let check = |value: &str, expected: [f32; 2]| {
        let module = Module::forward("x: Tensor", "Tensor", &[&format!("return {value}")]);
        let (model, instance) = folder.instance(&*device, &module, &[row("x", 2)], &[row("y", 2)]);
        let got = infer(&*model, &*instance, &[fp32(&[1, 2], &[1., -2.])]).unwrap();
        assert_eq!(values(&got[0]), expected, "{value}");
    };
    check("torch._neg_view(x)", [-1., 2.]);
    check("torch._neg_view(torch.add(x, x))", [-2., 4.]);
    check("torch._neg_view(torch._neg_view(x))", [1., -2.]);
    check("torch.imag(torch._conj(torch.complex(x, x)))", [-1., 2.]);
    check("torch.real(torch._conj(torch.complex(x, x)))", [1., -2.]);
}

#[test]
fn a_model_is_as_for_inference() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    // Drops everything where it trains; `training` is true in the file.
    let module = Module::forward("x: Tensor", "Tensor", &["return torch.dropout(x, 1., self.training)"]);
    let (model, instance) = folder.instance(&*device, &module, &[row("x", 2)], &[]);
    let got = infer(&*model, &*instance, &[fp32(&[1, 2], &[1., 2.])]).unwrap();
    assert_eq!(values(&got[0]), [1., 2.]);
}

#[test]
fn failures_are_one_line_and_whose_fault_it_is() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let fails = |module: &Module, inputs: &[_], given: &[_]| {
        let (_, instance) = folder.instance(&*device, module, inputs, &[row("y", 3)]);
        let error = instance.infer(given, &mut [Output::allocate(0)], Run::default()).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        error
    };
    let free = |name: &str| TensorInfo::new(name, DataType::Fp32, &[(-1, "")]);
    let given = [fp32(&[2], &[1.; 2]), fp32(&[3], &[1.; 3])];
    let error = fails(&torchscript::add(), &[free("x"), free("y")], &given);
    let sizes = "The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0";
    assert!(matches!(&error, BackendError::Input(text) if text == sizes), "{error:?}");
    let rows = Module::forward("x: Tensor", "Tensor", &["return torch.embedding(self.table, x)"]);
    let rows = rows.weight("table", &[2, 3], vec![0.; 6]);
    let ids = tensor(DataType::Int64, &[1], &7i64.to_ne_bytes());
    let error = fails(&rows, &[TensorInfo::new("x", DataType::Int64, &[(1, "")])], &[ids]);
    assert!(matches!(&error, BackendError::Input(text) if text == "index out of range in self"), "{error:?}");
    let raises = ["ops.prim.RaiseException(\"boom\", \"builtins.ValueError\")", "return x"];
    let error =
        fails(&Module::forward("x: Tensor", "Tensor", &raises), &[row("x", 3)], &[fp32(&[1, 3], &[0.; 3])]);
    assert!(matches!(&error, BackendError::Run(text) if text.contains("boom")), "{error:?}");
}
