//! What a model's names for extents say, in the words of callers: which extents are equal, and which count rows.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_backend::TensorInfo;
use outrigger_processing::{Plan, plan_before};

use super::Asked;

/// Begins names of extents that callers have none for, while it is looked where these go.
const UNNAMED: char = '\0';

/// Names of extents that are equal.
#[derive(Default)]
struct Equal<'a> {
    model: Vec<&'a str>,
    theirs: BTreeSet<String>,
}

/// What callers send, with the same name for all extents that the model has the same one for. Callers who give none would otherwise not be held to
/// what the model says of its extents, and nobody would know of its outputs whether they count the rows of calls.
///
/// # Errors
/// What does not fit the model, and what nothing would hold callers to.
pub(super) fn named(asked: &Asked, model: &[TensorInfo]) -> Result<Vec<TensorInfo>, String> {
    let mut inputs = asked.inputs.clone();
    for (slot, input) in inputs.iter_mut().enumerate() {
        input.symbols.resize(input.shape.len(), String::new());
        for (axis, (extent, symbol)) in input.shape.iter().zip(&mut input.symbols).enumerate() {
            if *extent < 0 && symbol.is_empty() {
                *symbol = format!("{UNNAMED}{slot}:{axis}");
            }
        }
    }
    let plan = plan_before(&asked.around.before, &inputs, model)?;
    let mut sets: Vec<Equal<'_>> = Vec::new();
    for (symbol, theirs) in meets(&plan, model)? {
        let (mut same, others): (Vec<_>, Vec<_>) =
            sets.into_iter().partition(|set| !set.theirs.is_disjoint(&theirs));
        let mut set = Equal { model: vec![symbol], theirs };
        for other in &mut same {
            set.model.append(&mut other.model);
            set.theirs.append(&mut other.theirs);
        }
        sets = others;
        sets.push(set);
    }
    let mut taken: BTreeSet<String> = inputs.iter().flat_map(|input| input.symbols.iter().cloned()).collect();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for Equal { model, theirs } in sets {
        let name = theirs.iter().find(|name| !name.starts_with(UNNAMED)).cloned().unwrap_or_else(|| {
            let mut name = model.iter().min().map_or_else(String::new, |name| (*name).to_owned());
            while taken.contains(&name) {
                name.push('\'');
            }
            name
        });
        taken.insert(name.clone());
        names.extend(theirs.into_iter().map(|symbol| (symbol, name.clone())));
    }
    for symbol in inputs.iter_mut().flat_map(|input| &mut input.symbols) {
        match names.get(symbol) {
            Some(name) => name.clone_into(symbol),
            None if symbol.starts_with(UNNAMED) => symbol.clear(),
            None => {}
        }
    }
    Ok(inputs)
}

/// For each name that the model has those of callers for the extents that become its own.
fn meets<'a>(plan: &Plan, model: &'a [TensorInfo]) -> Result<BTreeMap<&'a str, BTreeSet<String>>, String> {
    let mut free: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut fixed: BTreeSet<&str> = BTreeSet::new();
    for (planned, input) in plan.outputs().zip(model) {
        for ((extent, theirs), symbol) in planned.dimensions().zip(&input.symbols) {
            if symbol.is_empty() {
                continue;
            }
            if extent >= 0 {
                fixed.insert(symbol);
            } else {
                free.entry(symbol).or_default().insert(theirs.to_owned());
            }
        }
    }
    match free.iter().find(|(symbol, theirs)| fixed.contains(*symbol) || theirs.contains("")) {
        Some((symbol, _)) => Err(format!(
            "the model calls extents `{symbol}` of which some are free and some fixed, and callers would not be held to it"
        )),
        None => Ok(free),
    }
}

/// Whether what callers do not see of a model's outputs says anything of rows.
///
/// # Errors
/// An output that tells that calls cannot run together, and that steps take away.
pub(super) fn check_dropped(
    plan: &Plan,
    inputs: &[TensorInfo],
    outputs: &[TensorInfo],
) -> Result<(), String> {
    let symbol = |info: &TensorInfo| info.symbols.first().cloned().unwrap_or_default();
    let rows: Vec<String> = inputs.iter().map(symbol).filter(|symbol| !symbol.is_empty()).collect();
    for (slot, output) in outputs.iter().enumerate().filter(|(slot, _)| !plan.wanted().contains(slot)) {
        let own = symbol(output);
        let counts_rows = output.shape.first().is_some_and(|extent| *extent < 0)
            && (own.is_empty() || rows.is_empty() || rows.contains(&own));
        let mut further = output.symbols.iter().skip(1).filter(|symbol| !symbol.is_empty());
        if further.any(|symbol| *symbol == own || rows.contains(symbol))
            || !counts_rows && !is_seen(plan, slot)
        {
            return Err(format!(
                "the model's `{}` is not by rows of calls, which callers would not see",
                output.name
            ));
        }
    }
    Ok(())
}

/// Whether steps make an output, with the same first extent, out of a tensor.
fn is_seen(plan: &Plan, slot: usize) -> bool {
    plan.wanted().contains(&slot)
        || plan.operations().iter().any(|operation| {
            operation.inputs.contains(&slot) && operation.outputs.iter().any(|made| is_seen(plan, *made))
        })
}
