//! Steps before and after a model, held against it: what callers send and get.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_backend::TensorInfo;
use serde::{Deserialize, Serialize};

use crate::{Chain, Plan, StepError};

/// Ends the name of a format whose models a backend loads with steps around them. A model's inputs and outputs are then those of callers.
///
/// [`LoadOptions::signature`](outrigger_backend::LoadOptions::signature) says what callers send, where there are steps before the model,
/// and which outputs they want, where there are steps after it; without outputs it is those that no step takes. The setting [`SETTING`] has the
/// steps. A backend that lists such a format estimates and loads with the steps of either side or of both, and refuses with
/// [`BackendError::Load`](outrigger_backend::BackendError::Load), naming the step, what it cannot do.
pub const WITH_STEPS: &str = "+steps";

/// The setting of a model that has the steps: [`Around`] as text.
pub const SETTING: &str = "steps";

/// Steps on both sides of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Around {
    /// Those before it.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub before: Chain,
    /// Those after it.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub after: Chain,
}

fn is_empty(chain: &Chain) -> bool {
    chain.stages.is_empty()
}

impl Around {
    /// As `[[before]]` and `[[after]]` stand in a file: TOML.
    ///
    /// # Errors
    /// What of it cannot be written.
    pub fn to_text(&self) -> Result<String, String> {
        toml::to_string(self).map_err(|error| error.to_string())
    }

    /// Reads that.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_text(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }
}

/// Plans the steps that make what a model takes, in its order, out of what callers send.
///
/// # Errors
/// What does not fit, by names.
pub fn plan_before(chain: &Chain, inputs: &[TensorInfo], model: &[TensorInfo]) -> Result<Plan, String> {
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

/// Plans the steps that make what callers get out of what a model gives: what is described, or what no step takes.
///
/// # Errors
/// What does not fit, by names.
pub fn plan_after(chain: &Chain, described: &[TensorInfo], given: &[TensorInfo]) -> Result<Plan, String> {
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
    chain.plan(given, &names).map_err(|error| wrong("after", &error))
}

/// A model's outputs with the names that free extents have for callers, or the extents that they have by the steps before it. A name
/// that says nothing to callers goes, for one of theirs may be the same; that of rows stays, as one that is none of theirs: it tells that these
/// are not the rows of the inputs.
///
/// # Errors
/// An extent of the model's that would have to be two.
pub fn rename(model: &[TensorInfo], plan: &Plan, outputs: &[TensorInfo]) -> Result<Vec<TensorInfo>, String> {
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
    let theirs: BTreeSet<&str> =
        plan.inputs().iter().flat_map(|input| &input.symbols).map(String::as_str).collect();
    let unlike_theirs = |symbol: &str| {
        let mut symbol = symbol.to_owned();
        while !symbol.is_empty() && theirs.contains(symbol.as_str()) {
            symbol.push('\'');
        }
        symbol
    };
    let renamed = |output: &TensorInfo| {
        let mut output = output.clone();
        let first = output.symbols.first().cloned().unwrap_or_default();
        for (at, (extent, symbol)) in output.shape.iter_mut().zip(&mut output.symbols).enumerate() {
            if *extent < 0 {
                *symbol = match known.get(symbol.as_str()) {
                    Some((fixed, _)) if *fixed >= 0 => {
                        *extent = *fixed;
                        String::new()
                    }
                    Some((_, name)) => (*name).to_owned(),
                    // Of one that is further on too rows are no rows of calls.
                    None if at == 0 || *symbol == first => unlike_theirs(symbol),
                    None => String::new(),
                };
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
