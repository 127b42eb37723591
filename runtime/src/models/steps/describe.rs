//! What callers send and get, out of what the manifest says and what the model takes and gives.

use std::collections::BTreeMap;

use outrigger_backend::{ModelInfo, TensorInfo};
use outrigger_processing::{Chain, Plan, StepError};

use super::side::Side;
use crate::models::batch::NotBatchable;
use crate::models::manifest::{Manifest, check_side};

/// A model with steps around it, as its inputs and outputs tell.
pub(super) struct Described {
    /// What callers send and get.
    pub(super) info: ModelInfo,
    /// The steps before, where there are any: out of all inputs all that the model takes.
    pub(super) before: Option<Side>,
    /// Those after.
    pub(super) after: Option<After>,
    /// The first step that keeps calls from being run together.
    pub(super) mixes_rows: Option<NotBatchable>,
}

/// Steps after a model.
pub(super) struct After {
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
pub(super) fn describe(manifest: &Manifest, model: &ModelInfo, limit: usize) -> Result<Described, String> {
    let (described, mut mixes_rows) = (&manifest.described, None);
    let (inputs, before, outputs) = if manifest.before.stages.is_empty() {
        check_side("input", &described.inputs, &model.inputs)?;
        (model.inputs.clone(), None, model.outputs.clone())
    } else {
        let inputs = described.inputs.clone();
        let plan = plan_before(&manifest.before, &inputs, &model.inputs)?;
        mixes_rows = mixing("before", &plan);
        let outputs = rename(&model.inputs, &plan, &model.outputs)?;
        let names = model.inputs.iter().map(|input| input.name.clone()).collect();
        (inputs.clone(), Some(Side::new("before", manifest.before.clone(), inputs, names, limit)), outputs)
    };
    if manifest.after.stages.is_empty() {
        check_side("output", &described.outputs, &outputs)?;
        return Ok(Described { info: ModelInfo { inputs, outputs }, before, after: None, mixes_rows });
    }
    let given = ModelInfo { inputs: inputs.clone(), outputs };
    let (after, plan) = plan_after(manifest, given, limit)?;
    let info = ModelInfo { inputs, outputs: plan.outputs().cloned().collect() };
    check_side("output", &described.outputs, &info.outputs)?;
    let mixes_rows = mixes_rows.or_else(|| mixing("after", &plan));
    Ok(Described { info, before, after: Some(after), mixes_rows })
}

fn plan_before(chain: &Chain, inputs: &[TensorInfo], model: &[TensorInfo]) -> Result<Plan, String> {
    let names: Vec<&str> = model.iter().map(|input| input.name.as_str()).collect();
    let plan = chain.plan(inputs, &names).map_err(|error| match &error {
        StepError::NoOutput { name, there } => {
            let takes = model.iter().filter(|input| input.name == *name).map(shown).collect::<String>();
            format!("the model takes {takes}, and after `[[before]]` there are only {there}; `to` gives what a step makes another name")
        }
        _ => wrong("before", &error),
    })?;
    let takes_free = |planned: &TensorInfo, input: &TensorInfo| {
        planned.data_type == input.data_type
            && planned.shape.len() == input.shape.len()
            && planned.shape.iter().zip(&input.shape).all(|(planned, takes)| *takes < 0 || planned == takes)
    };
    if let Some((planned, input)) =
        plan.outputs().zip(model).find(|(planned, input)| !takes_free(planned, input))
    {
        return Err(format!("`[[before]]` gives {}, the model takes {}", shown(planned), shown(input)));
    }
    match (0..inputs.len()).find(|slot| plan.last_use(*slot) == 0) {
        Some(slot) => {
            Err(format!("input `{}` is taken neither by a step nor by the model", inputs[slot].name))
        }
        None => Ok(plan),
    }
}

fn plan_after(manifest: &Manifest, model: ModelInfo, limit: usize) -> Result<(After, Plan), String> {
    let (chain, described, given) = (&manifest.after, &manifest.described.outputs, &model.outputs);
    let names: Vec<String> = if described.is_empty() {
        chain.left(given).map_err(|error| wrong("after", &error))?
    } else {
        described.iter().map(|output| output.name.clone()).collect()
    };
    if let Some(twice) =
        names.iter().enumerate().find_map(|(at, name)| names[..at].iter().find(|one| *one == name))
    {
        return Err(format!("output `{twice}` is described twice"));
    }
    let plan = chain.plan(given, &names).map_err(|error| wrong("after", &error))?;
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
    Ok((After { side, given: model, taken, sources }, plan))
}

fn mixing(side: &'static str, plan: &Plan) -> Option<NotBatchable> {
    let index = plan.mixes_rows()?;
    Some(NotBatchable::Step { side, number: index + 1, step: plan.operations()[index].step.name() })
}

/// The model's outputs with the names that free extents have for callers, or the extents that they have by the steps. A name that
/// says nothing to callers goes, for one of theirs may be the same.
fn rename(model: &[TensorInfo], plan: &Plan, outputs: &[TensorInfo]) -> Result<Vec<TensorInfo>, String> {
    let mut known: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
    for (planned, input) in plan.outputs().zip(model) {
        for (at, symbol) in input.symbols.iter().enumerate().filter(|(_, symbol)| !symbol.is_empty()) {
            let extent = planned.shape[at];
            let known = known.entry(symbol).or_insert((extent, ""));
            match known.0 {
                other if other >= 0 && extent >= 0 && other != extent => {
                    return Err(format!(
                        "`{symbol}` of the model is {other} and {extent} after `[[before]]`"
                    ));
                }
                other => known.0 = other.max(extent),
            }
            if known.1.is_empty() {
                known.1 = planned.symbols.get(at).map_or("", String::as_str);
            }
        }
    }
    let renamed = |output: &TensorInfo| {
        let mut output = output.clone();
        for (extent, symbol) in output.shape.iter_mut().zip(&mut output.symbols) {
            if *extent < 0 {
                let (fixed, name) = known.get(symbol.as_str()).copied().unwrap_or((-1, ""));
                *extent = fixed;
                *symbol = if fixed < 0 { name.to_owned() } else { String::new() };
            }
        }
        output
    };
    Ok(outputs.iter().map(renamed).collect())
}

fn wrong(side: &str, error: &StepError) -> String {
    format!("`[[{side}]]`: {error}")
}

fn shown(tensor: &TensorInfo) -> String {
    format!("`{}` {} {:?}", tensor.name, tensor.data_type, tensor.shape)
}
