//! An ensemble as what runs samples: as a call is run, but on the thread that asks, before calls can have it.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use outrigger_backend::{BackendError, Instance, Output, Run, RunId, Tensor};
use outrigger_protocol::error::CallError;

use super::ensemble::Gathered;
use super::run::{Asked, Broken, Terms, run};
use crate::config::LimitsConfig;
use crate::models::instance::ModelInstance;
use crate::models::job::{self, Failure};

/// Runs the models that were gathered.
pub(in crate::models) struct GraphInstance {
    gathered: Arc<Gathered>,
    /// By which its runs are told apart from all others on the same instances.
    id: RunId,
    /// Bytes that the outputs of one run may take, and what goes between runs.
    limits: (usize, usize),
    /// What is running, and whether all of it is cancelled.
    state: Mutex<(Option<Arc<ModelInstance>>, bool)>,
}

/// Why a sample has no result.
enum Ended {
    Run(BackendError),
    Call(CallError),
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl GraphInstance {
    pub(in crate::models) fn new(gathered: Arc<Gathered>, id: RunId, limits: &LimitsConfig) -> Self {
        let limits = (limits.answer, limits.ensemble);
        Self { gathered, id, limits, state: Mutex::default() }
    }

    fn begins(&self, instance: Option<&Arc<ModelInstance>>) -> Result<(), BackendError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = instance.cloned();
        if state.1 { Err(BackendError::Cancelled) } else { Ok(()) }
    }

    /// One run of a model, at once.
    fn execute(&self, asked: &Asked) -> Result<Vec<Tensor>, BackendError> {
        let missing = || BackendError::Internal("a model of the ensemble is not there".into());
        let run = self.gathered.wired.runs.get(asked.run).ok_or_else(missing)?;
        let instance = self.gathered.leaves.get(run.leaf).and_then(|lease| lease.choose());
        let instance = instance.ok_or_else(missing)?;
        self.begins(Some(instance))?;
        let Asked { inputs, outputs, .. } = asked;
        let (limit, _) = self.limits;
        let given = job::check(instance, inputs, outputs, limit).and_then(|_| {
            let asked = job::Asked { inputs, outputs, stay: &[] };
            job::execute(instance, asked, Run { id: Some(self.id) }, limit)
        });
        self.begins(None)?;
        given.map_err(|failure| match failure {
            Failure::Backend(error) => at(&run.name, &instance.name, error),
            failure => at(&run.name, &instance.name, BackendError::Run(failure.to_string())),
        })
    }
}

impl Instance for GraphInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], _: Run) -> Result<(), BackendError> {
        let wired = &self.gathered.wired;
        wired.info.check_inputs(inputs)?;
        wired.info.check_outputs(outputs)?;
        let wanted: Vec<usize> = outputs.iter().map(Output::index).collect();
        let broken = Broken::default();
        let (home, (most, bytes)) = (|_| None, self.limits);
        let terms = Terms { home, bytes, most, runs: 1, counters: None, broken: &broken };
        let one = |asked: Asked| async move { self.execute(&asked).map_err(Ended::Run) };
        let given = waiting_for_nothing(run(wired, inputs.to_vec(), &wanted, terms, one));
        let given = given.map_err(|ended| match ended {
            Ended::Run(error) => error,
            Ended::Call(error) => BackendError::Run(error.message.into_owned()),
        })?;
        outputs.iter_mut().zip(given).for_each(|(output, tensor)| output.set(tensor));
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

/// The result of a future that does all its work whenever it is asked.
fn waiting_for_nothing<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
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
