//! Steps in their order, as they stand in a file.

use outrigger_backend::TensorInfo;
use serde::{Deserialize, Serialize};

use crate::infer::check_size;
use crate::{Operation, Plan, Problem, Step, StepError};

/// The most steps of a chain.
pub const MAX_STEPS: usize = 64;

/// Steps in their order. Each takes tensors by name and gives them by name; a name that is given again means the newer tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chain {
    /// The steps.
    pub stages: Vec<Stage>,
}

/// A step, and the names of what it takes and gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The tensor that it takes; without one the one that the step before gave, and for the first step the only one that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The name of what it gives; without one the name stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What it does.
    #[serde(flatten)]
    pub step: Step,
}

impl From<Step> for Stage {
    fn from(step: Step) -> Self {
        Self { from: None, to: None, step }
    }
}

impl<S: Into<Stage>> FromIterator<S> for Chain {
    fn from_iter<T: IntoIterator<Item = S>>(stages: T) -> Self {
        Self { stages: stages.into_iter().map(Into::into).collect() }
    }
}

impl Chain {
    /// Checks the steps against the tensors that they begin with, and finds out what they give. Extents below 0 are free; with some of
    /// them the plan says what comes out, and cannot run.
    ///
    /// `outputs` are the names of the tensors that are wanted in the end, in the order wanted.
    ///
    /// # Errors
    /// What is wrong, by step and tensor.
    pub fn plan<N: AsRef<str>>(&self, inputs: &[TensorInfo], outputs: &[N]) -> Result<Plan, StepError> {
        let (names, operations) = self.walk(inputs)?;
        let wanted = outputs.iter().map(|name| {
            let name = name.as_ref();
            names.find(name).ok_or_else(|| StepError::NoOutput { name: name.into(), there: names.list() })
        });
        let outputs = wanted.collect::<Result<_, _>>()?;
        Ok(Plan::new(names.tensors, inputs.len(), operations, outputs))
    }

    /// The names of the tensors that are there in the end and that no step takes, inputs among them: what is wanted where nobody says.
    ///
    /// # Errors
    /// As [`Chain::plan`].
    pub fn left(&self, inputs: &[TensorInfo]) -> Result<Vec<String>, StepError> {
        let (names, operations) = self.walk(inputs)?;
        let is_taken = |slot: &usize| operations.iter().any(|operation| operation.inputs.contains(slot));
        let left = names.current.iter().filter(|slot| !is_taken(slot));
        Ok(left.map(|&slot| names.tensors[slot].name.clone()).collect())
    }

    /// The tensors that come to be, and by what.
    fn walk(&self, inputs: &[TensorInfo]) -> Result<(Names, Vec<Operation>), StepError> {
        if self.stages.len() > MAX_STEPS {
            return Err(StepError::TooMany(self.stages.len()));
        }
        let mut names = Names::default();
        for input in inputs {
            if names.find(&input.name).is_some() {
                return Err(StepError::Twice(input.name.clone()));
            }
            names.add(input.clone());
        }
        let mut operations = Vec::with_capacity(self.stages.len());
        for (index, stage) in self.stages.iter().enumerate() {
            let step = stage.step.name();
            let failed = |problem| StepError::Step { number: index + 1, step, problem };
            operations.push(names.apply(stage).map_err(failed)?);
        }
        Ok((names, operations))
    }
}

/// Tensors as they come to be, and which of them each name means by now.
#[derive(Default)]
struct Names {
    tensors: Vec<TensorInfo>,
    current: Vec<usize>,
    last: Option<usize>,
}

impl Names {
    fn find(&self, name: &str) -> Option<usize> {
        self.current.iter().copied().find(|&slot| self.tensors[slot].name == name)
    }

    fn list(&self) -> String {
        let names: Vec<String> =
            self.current.iter().map(|&slot| format!("`{}`", self.tensors[slot].name)).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }

    fn add(&mut self, tensor: TensorInfo) -> usize {
        self.current.retain(|&slot| self.tensors[slot].name != tensor.name);
        self.tensors.push(tensor);
        let slot = self.tensors.len() - 1;
        self.current.push(slot);
        slot
    }

    fn named(&self, name: &str) -> Result<usize, Problem> {
        self.find(name).ok_or_else(|| Problem::NoTensor { name: name.into(), there: self.list() })
    }

    fn apply(&mut self, stage: &Stage) -> Result<Operation, Problem> {
        let first = match (&stage.from, self.last, &self.current[..]) {
            (Some(name), ..) => self.named(name)?,
            (None, Some(last), _) => last,
            (None, None, [only]) => *only,
            _ => return Err(Problem::Which { there: self.list() }),
        };
        let second = stage.step.second_input().map(|name| self.named(name)).transpose()?;
        for slot in [Some(first), second].into_iter().flatten() {
            check_size(&self.tensors[slot])?;
        }
        let mut results =
            stage.step.infer(&self.tensors[first], second.map(|slot| &self.tensors[slot]))?.into_iter();
        let mut outputs = Vec::new();
        if let Some(mut result) = results.next() {
            result.name = stage.to.clone().unwrap_or(result.name);
            if stage.step.second_output() == Some(&result.name) {
                return Err(Problem::SameName(result.name));
            }
            outputs.push(self.add(result));
        }
        self.last = outputs.first().copied();
        if let (Some(mut result), Some(name)) = (results.next(), stage.step.second_output()) {
            result.name = name.into();
            outputs.push(self.add(result));
        }
        let inputs = [Some(first), second].into_iter().flatten().collect();
        Ok(Operation { step: stage.step.clone(), inputs, outputs })
    }
}
