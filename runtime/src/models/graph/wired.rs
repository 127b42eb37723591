//! A graph with its models, ready to be run: all runs of models in one list, those of ensembles in it too, and tensors by numbers.

use std::sync::Arc;

use outrigger_backend::{ModelInfo, TensorInfo};

use super::choice::{Choice, Unfit, typed};
use super::read::Graph;
use super::types::{From, Typed};
use crate::models::served::ServedModel;
use crate::models::versions::NamedModel;

/// A model that an ensemble is made of: what it is called by, and the version that is meant.
pub(in crate::models) type Leaf = (Arc<NamedModel>, Arc<ServedModel>);

/// A graph whose models and ensembles are these versions.
pub(in crate::models) struct Wired {
    /// What callers send and get.
    pub(in crate::models) info: Arc<ModelInfo>,
    /// The models, each once.
    pub(in crate::models) leaves: Vec<Arc<ServedModel>>,
    /// The ensembles that are nodes of it, each once, and each after those that it is made of.
    pub(in crate::models) groups: Vec<Arc<ServedModel>>,
    /// The runs, each after those that it takes tensors from.
    pub(super) runs: Vec<WiredRun>,
    /// The numbers of the tensors that are outputs. Those that callers send come first.
    pub(super) outputs: Vec<usize>,
    /// Of each tensor who gives it: a run; nobody for those that callers send.
    pub(super) givers: Vec<Option<usize>>,
    /// Of each tensor who takes it: a run, and as which of its inputs.
    takers: Vec<Vec<(usize, usize)>>,
}

/// A run of a model.
pub(super) struct WiredRun {
    /// The node's name, after those of the nodes that it is in.
    pub(super) name: String,
    /// The model, by its place among the leaves.
    pub(super) leaf: usize,
    pub(super) info: Arc<ModelInfo>,
    /// The numbers of the tensors that it takes.
    pub(super) inputs: Vec<usize>,
    /// The number of the first one that it gives; the others follow.
    pub(super) first: usize,
    /// Of each of those whether its size is known before the run.
    pub(super) sized: Vec<bool>,
    /// The ensembles that it is in, by their places among the groups.
    pub(super) groups: Vec<usize>,
}

impl WiredRun {
    /// The numbers of the tensors that it gives.
    pub(super) fn outputs(&self) -> std::ops::Range<usize> {
        self.first..self.first.saturating_add(self.info.outputs.len())
    }
}

impl Wired {
    /// Wires a graph with what its nodes mean.
    ///
    /// # Errors
    /// [`Unfit`], also if a model has never been loaded.
    pub(super) fn new(graph: &Graph, choices: &[Choice]) -> Result<Self, Unfit> {
        let look = |model: &ServedModel| model.known().map(|(_, info)| ModelInfo::clone(info));
        let mut groups = Vec::new();
        ensembles(choices, &mut groups);
        let (leaves, runs, givers) = Default::default();
        let mut wiring = Wiring { look: &look, leaves, groups, runs, givers };
        let top = typed(graph, choices, &look)?.ok_or_else(|| unknown(choices))?;
        wiring.givers.resize(graph.inputs.len(), None);
        let inputs: Vec<usize> = (0..graph.inputs.len()).collect();
        let outputs = wiring.wire(graph, choices, &top, &inputs, "", &[])?;
        let Wiring { leaves, groups, runs, givers, .. } = wiring;
        let mut takers = vec![Vec::new(); givers.len()];
        for (number, run) in runs.iter().enumerate() {
            for (at, tensor) in run.inputs.iter().enumerate() {
                takers.get_mut(*tensor).into_iter().for_each(|all| all.push((number, at)));
            }
        }
        Ok(Self { info: Arc::new(top.info), leaves, groups, runs, outputs, givers, takers })
    }

    /// Who takes a tensor: a run, and as which of its inputs.
    pub(super) fn takers_of(&self, tensor: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.takers.get(tensor).into_iter().flatten().copied()
    }

    /// Whether callers send something that a run takes.
    pub(super) fn is_fed_by_callers(&self, run: &WiredRun) -> bool {
        run.inputs.iter().any(|tensor| self.givers.get(*tensor).copied().flatten().is_none())
    }

    /// Of each run whether it is needed for these tensors.
    pub(super) fn needed(&self, wanted: &[usize]) -> Vec<bool> {
        let mut needed = vec![false; self.runs.len()];
        let mut open = wanted.to_vec();
        while let Some(tensor) = open.pop() {
            let Some(giver) = self.givers.get(tensor).copied().flatten() else { continue };
            if let (Some(run), Some(is_needed)) = (self.runs.get(giver), needed.get_mut(giver))
                && !std::mem::replace(is_needed, true)
            {
                open.extend(&run.inputs);
            }
        }
        needed
    }
}

/// A model that has never been loaded.
fn unknown(choices: &[Choice]) -> Unfit {
    let mut open: Vec<&Choice> = choices.iter().collect();
    while let Some(choice) = open.pop() {
        if choice.served.graph().is_none() && choice.served.known().is_none() {
            return Unfit::Unknown(choice.served.name.clone());
        }
        open.extend(&choice.inner);
    }
    Unfit::Unknown(String::new())
}

/// Adds the ensembles that choices mean, each once, and each after those that it is made of.
pub(super) fn ensembles(choices: &[Choice], all: &mut Vec<Arc<ServedModel>>) {
    for choice in choices.iter().filter(|choice| choice.served.graph().is_some()) {
        ensembles(&choice.inner, all);
        place(all, &choice.served);
    }
}

/// All models that choices mean, each once, with what it is called by.
pub(super) fn leaves(choices: &[Choice]) -> Vec<Leaf> {
    let mut all: Vec<Leaf> = Vec::new();
    let mut open: Vec<&Choice> = choices.iter().rev().collect();
    while let Some(choice) = open.pop() {
        open.extend(choice.inner.iter().rev());
        let is_new = all.iter().all(|(_, known)| !Arc::ptr_eq(known, &choice.served));
        if choice.served.graph().is_none() && is_new {
            all.push((Arc::clone(&choice.named), Arc::clone(&choice.served)));
        }
    }
    all
}

struct Wiring<'a> {
    look: &'a dyn Fn(&ServedModel) -> Option<ModelInfo>,
    leaves: Vec<Arc<ServedModel>>,
    groups: Vec<Arc<ServedModel>>,
    runs: Vec<WiredRun>,
    givers: Vec<Option<usize>>,
}

impl Wiring<'_> {
    /// Adds the runs of a graph whose inputs are these tensors, and gives the numbers of its outputs.
    fn wire(
        &mut self,
        graph: &Graph,
        choices: &[Choice],
        typed: &Typed,
        inputs: &[usize],
        prefix: &str,
        within: &[usize],
    ) -> Result<Vec<usize>, Unfit> {
        // Of each node the numbers of what it gives.
        let mut given: Vec<Vec<usize>> = Vec::with_capacity(graph.nodes.len());
        let number = |from: &From, given: &[Vec<usize>]| match from {
            From::Input(at) => inputs.get(*at).copied(),
            From::Node(node, index) => given.get(*node)?.get(*index).copied(),
        };
        let lost = || Unfit::Graph("a tensor is given by nobody".into());
        for ((node, choice), from) in graph.nodes.iter().zip(choices).zip(&typed.nodes) {
            let taken = from.iter().map(|from| number(from, &given)).collect::<Option<Vec<_>>>();
            let (taken, name) = (taken.ok_or_else(lost)?, format!("{prefix}{}", node.name));
            given.push(match choice.served.graph() {
                None => self.run(name, &choice.served, taken, within)?,
                Some(inner) => {
                    let own = super::choice::typed(inner, &choice.inner, self.look)?;
                    let own = own.ok_or_else(|| unknown(&choice.inner))?;
                    let mut groups = within.to_vec();
                    groups.push(place(&mut self.groups, &choice.served));
                    self.wire(inner, &choice.inner, &own, &taken, &format!("{name}."), &groups)?
                }
            });
        }
        let outputs = typed.outputs.iter().map(|from| number(from, &given));
        outputs.collect::<Option<Vec<_>>>().ok_or_else(lost)
    }

    fn run(
        &mut self,
        name: String,
        model: &Arc<ServedModel>,
        inputs: Vec<usize>,
        within: &[usize],
    ) -> Result<Vec<usize>, Unfit> {
        let info = model.known_info().ok_or_else(|| Unfit::Unknown(model.name.clone()))?;
        let (leaf, first) = (place(&mut self.leaves, model), self.givers.len());
        let (number, groups) = (self.runs.len(), within.to_vec());
        self.givers.extend(info.outputs.iter().map(|_| Some(number)));
        let sized = info.outputs.iter().map(|output| is_sized(&info, output)).collect();
        let run = WiredRun { name, leaf, info, inputs, first, sized, groups };
        let outputs = run.outputs().collect();
        self.runs.push(run);
        Ok(outputs)
    }
}

/// Whether the size of an output follows from the inputs.
fn is_sized(model: &ModelInfo, output: &TensorInfo) -> bool {
    let known = |symbol: &str| {
        let mut dimensions = model.inputs.iter().flat_map(TensorInfo::dimensions);
        !symbol.is_empty() && dimensions.any(|(_, other)| other == symbol)
    };
    output.data_type.size().is_some()
        && output.dimensions().all(|(extent, symbol)| extent >= 0 || known(symbol))
}

/// The place of a model in a list that has each once.
fn place(all: &mut Vec<Arc<ServedModel>>, model: &Arc<ServedModel>) -> usize {
    all.iter().position(|known| Arc::ptr_eq(known, model)).unwrap_or_else(|| {
        all.push(Arc::clone(model));
        all.len() - 1
    })
}
