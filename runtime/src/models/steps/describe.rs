//! What callers send and get, out of what the manifest says and what the model takes and gives.

use outrigger_backend::{ModelInfo, TensorInfo};
use outrigger_processing::{Chain, Plan, StepError, plan_after, plan_before, rename};

use super::place::{StepsPlace, Where};
use super::side::Side;
use crate::models::batch::NotBatchable;
use crate::models::manifest::{Manifest, check_side};

/// A model with steps around it, as its inputs and outputs tell.
pub(super) struct Described {
    /// What callers send and get.
    pub(super) info: ModelInfo,
    pub(super) before: Before,
    pub(super) after: After,
    /// The first step that keeps calls from being run together.
    pub(super) mixes_rows: Option<NotBatchable>,
}

/// Steps before a model.
pub(super) enum Before {
    /// There are none.
    None,
    /// They are in its graph: what comes is only held against them, so that it is refused for what it would be on the CPU.
    Graph(Side),
    /// They run here: out of all inputs all that the model takes.
    Cpu(Side),
}

/// Steps after a model.
pub(super) enum After {
    /// There are none.
    None,
    /// They are in its graph. What they make in between is not known here; what comes out is held against the limit.
    Graph(Side),
    /// They run here.
    Cpu(CpuAfter),
}

/// Steps after a model that run here.
pub(super) struct CpuAfter {
    pub(super) side: Side,
    /// What callers send, and what the model gives out of it in their words.
    pub(super) given: ModelInfo,
    /// The outputs of the model that they take.
    pub(super) taken: Vec<usize>,
    /// Where each output comes from.
    pub(super) sources: Vec<Source>,
}

/// Where an output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From the model, by number: no step touches it.
    Model(usize),
    /// From the steps, by number.
    Steps(usize),
}

/// What a backend is told of a model's own inputs and outputs, where the manifest describes what callers send and get.
///
/// # Errors
/// What is missing, and what is wrong with the steps before the model.
pub(in crate::models) fn signature(
    described: &ModelInfo,
    before: &Chain,
    after: &Chain,
) -> Result<ModelInfo, String> {
    let mut signature = described.clone();
    if !before.stages.is_empty() {
        if described.inputs.is_empty() {
            return Err("`[[before]]` needs `[[inputs]]`, which say what callers send: each with its `name`, `datatype` (UINT8) and \
                        `shape` ([\"batch\", \"height\", \"width\", 3])"
                .into());
        }
        let plan = before.left(&described.inputs).and_then(|left| before.plan(&described.inputs, &left));
        signature.inputs = plan.map_err(|error| wrong("before", &error))?.outputs().cloned().collect();
    }
    if !after.stages.is_empty() {
        signature.outputs = Vec::new();
    }
    Ok(signature)
}

/// Holds the steps against the model, and the model with them against what is described.
///
/// # Errors
/// What does not fit, by names.
pub(super) fn describe(
    manifest: &Manifest,
    model: &ModelInfo,
    steps: &StepsPlace,
    limit: usize,
) -> Result<Described, String> {
    let (described, mut mixes_rows) = (&manifest.described, None);
    let side = |inputs: &[TensorInfo], names| {
        Side::new("before", manifest.before.clone(), inputs.to_vec(), names, limit)
    };
    let (inputs, before, outputs) = match &steps.before {
        None => {
            check_side("input", &described.inputs, &model.inputs)?;
            (model.inputs.clone(), Before::None, model.outputs.clone())
        }
        Some(Where::Graph) => {
            check_side("input", &described.inputs, &model.inputs)?;
            // Callers', with names for extents that the model says are equal.
            let inputs = model.inputs.clone();
            let planned = manifest
                .before
                .left(&inputs)
                .and_then(|left| Ok((manifest.before.plan(&inputs, &left)?, left)));
            let (plan, left) = planned.map_err(|error| wrong("before", &error))?;
            mixes_rows = mixing("before", &plan);
            let side = side(&inputs, left);
            (inputs, Before::Graph(side), model.outputs.clone())
        }
        Some(Where::Cpu(_)) => {
            let inputs = described.inputs.clone();
            let plan = plan_before(&manifest.before, &inputs, &model.inputs)?;
            mixes_rows = mixing("before", &plan);
            let outputs = rename(&model.inputs, &plan, &model.outputs)?;
            let side = side(&inputs, model.inputs.iter().map(|input| input.name.clone()).collect());
            (inputs, Before::Cpu(side), outputs)
        }
    };
    let (after, outputs) = match &steps.after {
        None => (After::None, outputs),
        // It was refused to the device if it mixes rows.
        Some(Where::Graph) => {
            (After::Graph(Side::new("after", manifest.after.clone(), Vec::new(), Vec::new(), limit)), outputs)
        }
        Some(Where::Cpu(_)) => {
            let (after, plan) = cpu_after(manifest, ModelInfo { inputs: inputs.clone(), outputs }, limit)?;
            mixes_rows = mixes_rows.or_else(|| mixing("after", &plan));
            (After::Cpu(after), plan.outputs().cloned().collect())
        }
    };
    check_side("output", &described.outputs, &outputs)?;
    Ok(Described { info: ModelInfo { inputs, outputs }, before, after, mixes_rows })
}

fn cpu_after(manifest: &Manifest, model: ModelInfo, limit: usize) -> Result<(CpuAfter, Plan), String> {
    let (chain, given) = (&manifest.after, &model.outputs);
    let plan = plan_after(chain, &manifest.described.outputs, given)?;
    let names: Vec<String> = plan.outputs().map(|output| output.name.clone()).collect();
    let is_taken = |slot: &usize| plan.operations().iter().any(|operation| operation.inputs.contains(slot));
    let taken: Vec<usize> = (0..given.len()).filter(is_taken).collect();
    let mut made = Vec::new();
    let mut source = |(slot, name): (&usize, &String)| {
        if *slot < given.len() {
            return Source::Model(*slot);
        }
        made.push(name.clone());
        Source::Steps(made.len() - 1)
    };
    let sources = plan.wanted().iter().zip(&names).map(&mut source).collect();
    let inputs = taken.iter().map(|&slot| given[slot].clone()).collect();
    let side = Side::new("after", chain.clone(), inputs, made, limit);
    Ok((CpuAfter { side, given: model, taken, sources }, plan))
}

fn mixing(side: &'static str, plan: &Plan) -> Option<NotBatchable> {
    let index = plan.mixes_rows()?;
    Some(NotBatchable::Step { side, number: index + 1, step: plan.operations()[index].step.name() })
}

fn wrong(side: &str, error: &StepError) -> String {
    format!("`[[{side}]]`: {error}")
}
