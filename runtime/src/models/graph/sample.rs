//! An ensemble as what runs samples: one run after the other, on the thread that asks, before calls can have it.

use std::sync::{Arc, Mutex, PoisonError};

use outrigger_backend::{BackendError, Instance, Output, Run, RunId, Tensor};

use super::ensemble::Gathered;
use crate::models::instance::ModelInstance;
use crate::models::job;

/// Runs the models that were gathered.
pub(in crate::models) struct GraphInstance {
    gathered: Arc<Gathered>,
    /// By which its runs are told apart from all others on the same instances.
    id: RunId,
    /// Bytes that the outputs of one run may take.
    limit: usize,
    /// What is running, and whether all of it is cancelled.
    state: Mutex<(Option<Arc<ModelInstance>>, bool)>,
}

impl GraphInstance {
    pub(in crate::models) fn new(gathered: Arc<Gathered>, id: RunId, limit: usize) -> Self {
        Self { gathered, id, limit, state: Mutex::default() }
    }

    fn begins(&self, instance: Option<&Arc<ModelInstance>>) -> Result<(), BackendError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = instance.cloned();
        if state.1 { Err(BackendError::Cancelled) } else { Ok(()) }
    }
}

impl Instance for GraphInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], _: Run) -> Result<(), BackendError> {
        let missing = || BackendError::Internal("a tensor of the ensemble is not there".into());
        let wired = &self.gathered.wired;
        wired.info.check_inputs(inputs)?;
        wired.info.check_outputs(outputs)?;
        let mut tensors: Vec<Option<Tensor>> = inputs.iter().cloned().map(Some).collect();
        for run in &wired.runs {
            let taken = run.inputs.iter().map(|tensor| tensors.get(*tensor).cloned().flatten());
            let taken = taken.collect::<Option<Vec<_>>>().ok_or_else(missing)?;
            let instance = self.gathered.leaves.get(run.leaf).and_then(|lease| lease.choose());
            let instance = instance.ok_or_else(missing)?;
            self.begins(Some(instance))?;
            let all: Vec<usize> = (0..run.info.outputs.len()).collect();
            let given = job::check(instance, &taken, &all, self.limit).and_then(|_| {
                let asked = job::Asked { inputs: &taken, outputs: &all, stay: &[] };
                job::execute(instance, asked, Run { id: Some(self.id) }, self.limit)
            });
            let given = given.map_err(|error| at(&run.name, &instance.name, error));
            self.begins(None)?;
            tensors.extend(given?.into_iter().map(Some));
        }
        for output in outputs {
            let tensor = wired.outputs.get(output.index()).and_then(|tensor| tensors.get(*tensor));
            output.set(tensor.cloned().flatten().ok_or_else(missing)?);
        }
        Ok(())
    }

    fn allocates_best(&self) -> bool {
        true
    }

    fn cancel(&self, _: RunId) {
        let running = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.1 = true;
            state.0.clone()
        };
        running.iter().for_each(|instance| instance.instance.cancel(self.id));
    }

    fn can_cancel(&self) -> bool {
        true
    }

    fn bytes_held(&self) -> u64 {
        0
    }
}

/// The same error with the node in it.
fn at(node: &str, model: &str, error: BackendError) -> BackendError {
    let with = |text: String| format!("node `{node}` (model `{model}`): {text}");
    match error {
        BackendError::Input(text) => BackendError::Input(with(text)),
        BackendError::Run(text) => BackendError::Run(with(text)),
        BackendError::OutOfMemory(text) => BackendError::OutOfMemory(with(text)),
        BackendError::Unsupported(text) => BackendError::Unsupported(with(text)),
        BackendError::Lost(text) => BackendError::Lost(with(text)),
        error => error,
    }
}
