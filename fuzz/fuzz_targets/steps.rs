//! Steps before and after a model: what is read is the same when it is written, what is planned runs, and gives what the plan says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_backend::{Buffer, DataType, ModelInfo, Shape, Tensor, TensorInfo};
use outrigger_fuzz::{Input, memory};
use outrigger_processing::{Around, Chain, StepError, plan_after, plan_before, rename};

/// Bytes that a run may make.
const MADE: usize = 1 << 18;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let tensors: Vec<TensorInfo> =
        ["image", "i"].iter().take(1 + input.below(2)).map(|name| input.tensor(name)).collect();
    let seed = input.byte();
    let Some(text) = input.text() else { return };
    let around = match Around::of_text(text) {
        Ok(around) => around,
        Err(said) => {
            assert!(!said.is_empty());
            return;
        }
    };
    // Numbers of floating point come back as they were, NaN apart, which no plan takes.
    if let Ok(text) = around.to_text() {
        let again = Around::of_text(&text).expect("what is written can be read");
        assert_eq!(format!("{again:?}"), format!("{around:?}"));
    }
    run(&around.before, &tensors, seed);
    let made = around.before.left(&tensors).and_then(|left| around.before.plan(&tensors, &left));
    let Ok(plan) = made else { return };
    let model = ModelInfo { inputs: plan.outputs().cloned().collect(), outputs: tensors.clone() };
    if let Ok(plan) = plan_before(&around.before, &tensors, &model.inputs)
        && let Ok(outputs) = rename(&model.inputs, &plan, &model.outputs)
    {
        let _ = plan_after(&around.after, &[], &outputs);
    }
});

/// Runs a chain, free extents being what the seed says.
fn run(chain: &Chain, tensors: &[TensorInfo], seed: u8) {
    let fixed: Vec<TensorInfo> = tensors
        .iter()
        .map(|info| {
            let shape =
                info.shape.iter().map(|extent| if *extent < 0 { i64::from(seed % 4) } else { *extent });
            TensorInfo { shape: shape.collect(), ..info.clone() }
        })
        .collect();
    let Ok(plan) = chain.left(&fixed).and_then(|left| chain.plan(&fixed, &left)) else { return };
    let made = plan.made_bytes().expect("nothing is free");
    if made > MADE {
        return;
    }
    let Some(inputs) = fixed.iter().map(|info| tensor(info, seed)).collect::<Option<Vec<_>>>() else {
        return;
    };
    // Beside what it makes there are lists of tensors and taps, small ones.
    match memory::within(made + 64 * 1024, || plan.run(&inputs)) {
        Ok(outputs) => {
            let infos: Vec<&TensorInfo> = plan.outputs().collect();
            assert_eq!(outputs.len(), infos.len());
            for (output, info) in outputs.iter().zip(infos) {
                assert_eq!((output.data_type(), output.shape().extents()), (info.data_type, &info.shape[..]));
            }
        }
        // An index that is none.
        Err(StepError::Step { .. }) => {}
        Err(error) => panic!("it was planned, and {error}"),
    }
}

fn tensor(info: &TensorInfo, seed: u8) -> Option<Tensor> {
    if info.data_type == DataType::Bytes {
        return None;
    }
    let shape = Shape::new(info.shape.clone()).ok()?;
    let mut buffer = Buffer::zeroed(shape.bytes(info.data_type).ok()?).ok()?;
    for (at, byte) in buffer.iter_mut().enumerate() {
        *byte = if seed & 1 == 0 { at as u8 % 2 } else { (at as u8).wrapping_mul(seed) };
    }
    Tensor::new(info.data_type, shape, buffer.freeze()).ok()
}
