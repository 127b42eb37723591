//! What steps take in one run, as far as that is known before it: so that no more calls go together than may.

use std::sync::Arc;

use outrigger_backend::{BackendError, ModelInfo, Shape, Tensor};

use super::describe::{After, Before, CpuAfter, Described, Source};

/// What the steps around a model take.
#[derive(Clone)]
pub(in crate::models) struct StepBytes(pub(super) Arc<Described>);

impl StepBytes {
    /// Bytes that the steps on that side take for a call which take more, with what the model gives to those after it; what is known only after
    /// the model has run is not counted. A run of several calls takes at most the sum.
    ///
    /// # Errors
    /// [`BackendError::Input`] for a call that takes too much by itself, as its run would say.
    pub(in crate::models) fn of(&self, inputs: &[Tensor], outputs: &[usize]) -> Result<usize, BackendError> {
        let before = match &self.0.before {
            Before::None => 0,
            Before::Graph(side) | Before::Cpu(side) => {
                let made = side.made(inputs.iter().map(|input| input.shape().extents()));
                side.check(made)?;
                made
            }
        };
        let after = match &self.0.after {
            After::None => 0,
            After::Graph(side) => {
                let all: Vec<usize> = (0..self.0.info.outputs.len()).collect();
                let given = self.0.info.output_bytes(inputs, &all);
                side.check(given)?;
                given
            }
            After::Cpu(after) => {
                let takes = after.takes(&after.given, inputs, &after.wanted(outputs));
                after.side.check(takes)?;
                takes
            }
        };
        Ok(before.max(after))
    }

    /// Bytes that each side may take in one run.
    pub(in crate::models) fn limit(&self) -> usize {
        let before = match &self.0.before {
            Before::None => None,
            Before::Graph(side) | Before::Cpu(side) => Some(side),
        };
        let after = match &self.0.after {
            After::None => None,
            After::Graph(side) => Some(side),
            After::Cpu(after) => Some(&after.side),
        };
        [before, after].into_iter().flatten().map(|side| side.limit()).min().unwrap_or(usize::MAX)
    }
}

/// What is wanted of a model for some outputs of it with its steps.
pub(super) struct Wanted {
    /// Outputs of the model.
    pub(super) outputs: Vec<usize>,
    /// Whether steps run after it.
    pub(super) has_steps: bool,
}

impl CpuAfter {
    /// What is wanted of the model for these outputs, which have been checked.
    pub(super) fn wanted(&self, outputs: &[usize]) -> Wanted {
        let sources: Vec<&Source> = outputs.iter().filter_map(|output| self.sources.get(*output)).collect();
        let has_steps = sources.iter().any(|source| matches!(source, Source::Steps(_)));
        let mut wanted = if has_steps { self.taken.clone() } else { Vec::new() };
        for source in sources {
            if let Source::Model(index) = source
                && !wanted.contains(index)
            {
                wanted.push(*index);
            }
        }
        Wanted { outputs: wanted, has_steps }
    }

    /// Bytes of what the model gives for these inputs, and of what the steps make out of it, as far as the shapes are known. `info` describes
    /// the inputs, and outputs that are those of the model.
    pub(super) fn takes(&self, info: &ModelInfo, inputs: &[Tensor], wanted: &Wanted) -> usize {
        let given = info.output_bytes(inputs, &wanted.outputs);
        if !wanted.has_steps {
            return given;
        }
        let shapes = info.resolve_outputs(inputs);
        let taken: Option<Vec<&Shape>> =
            self.taken.iter().map(|index| shapes.get(*index).and_then(Option::as_ref)).collect();
        let made = taken.map_or(0, |taken| self.side.made(taken.iter().map(|shape| shape.extents())));
        given.saturating_add(made)
    }
}
