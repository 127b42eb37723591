//! The steps on one side of a model, planned for the shapes of each call.

use std::sync::{Arc, Mutex, PoisonError};

use outrigger_backend::{BackendError, Tensor, TensorInfo};
use outrigger_processing::{Chain, Plan, StepError};

/// Plans that are kept, for the shapes that came last.
const KEPT: usize = 16;

/// Steps, and what they begin and end with.
pub(super) struct Side {
    /// `before` or `after`.
    name: &'static str,
    chain: Chain,
    inputs: Vec<TensorInfo>,
    outputs: Vec<String>,
    /// Bytes that they may make in one run.
    limit: usize,
    plans: Mutex<Vec<(Key, Arc<Plan>)>>,
}

/// The ranks and extents of what they begin with.
type Key = Vec<i64>;

impl Side {
    pub(super) fn new(
        name: &'static str,
        chain: Chain,
        inputs: Vec<TensorInfo>,
        outputs: Vec<String>,
        limit: usize,
    ) -> Self {
        Self { name, chain, inputs, outputs, limit, plans: Mutex::default() }
    }

    /// Runs the steps on this thread. Tensors that none touches share their bytes.
    ///
    /// # Errors
    /// [`BackendError::Input`] for what does not fit the steps before the model, and for more than they may make;
    /// [`BackendError::Run`] for what does not fit those after it, [`BackendError::OutOfMemory`], [`BackendError::Cancelled`].
    pub(super) fn run(
        &self,
        tensors: &[Tensor],
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Vec<Tensor>, BackendError> {
        if let Some((_, info)) =
            tensors.iter().zip(&self.inputs).find(|(tensor, _)| tensor.resident().is_some())
        {
            let name = &info.name;
            return Err(BackendError::Unsupported(format!(
                "tensor `{name}` is in a device's memory, where no step reaches it"
            )));
        }
        self.held(tensors)?.run_unless(tensors, is_cancelled).map_err(|error| self.failed(&error))
    }

    /// Holds what comes against the steps, which run elsewhere, and what they will make against the limit.
    ///
    /// # Errors
    /// As [`Side::run`].
    pub(super) fn hold(&self, tensors: &[Tensor]) -> Result<(), BackendError> {
        self.held(tensors).map(drop)
    }

    fn held(&self, tensors: &[Tensor]) -> Result<Arc<Plan>, BackendError> {
        let plan = self.plan(tensors).map_err(|error| self.failed(&error))?;
        let made = plan.made_bytes().map_err(|error| self.failed(&error))?;
        self.check(made)?;
        Ok(plan)
    }

    /// Holds bytes against what may be made in one run.
    pub(super) fn check(&self, bytes: usize) -> Result<(), BackendError> {
        let (name, limit) = (self.name, self.limit);
        if bytes <= limit {
            return Ok(());
        }
        Err(BackendError::Input(format!(
            "the steps {name} the model take {bytes} bytes, more than limits.steps, {limit} bytes"
        )))
    }

    fn plan(&self, tensors: &[Tensor]) -> Result<Arc<Plan>, StepError> {
        let mut key = Key::new();
        for tensor in tensors {
            let extents = tensor.shape().extents();
            key.push(extents.len() as i64);
            key.extend(extents);
        }
        let found = {
            let mut plans = self.lock();
            let at = plans.iter().position(|(known, _)| *known == key);
            at.map(|at| {
                // Those that are used stay at the end.
                plans[at..].rotate_left(1);
                plans.last().map(|(_, plan)| Arc::clone(plan))
            })
        };
        if let Some(plan) = found.flatten() {
            return Ok(plan);
        }
        let shaped = |(info, tensor): (&TensorInfo, &Tensor)| TensorInfo {
            shape: tensor.shape().extents().to_vec(),
            symbols: Vec::new(),
            ..info.clone()
        };
        let inputs: Vec<_> = self.inputs.iter().zip(tensors).map(shaped).collect();
        let plan = Arc::new(self.chain.plan(&inputs, &self.outputs)?);
        let mut plans = self.lock();
        if plans.len() >= KEPT {
            plans.remove(0);
        }
        plans.push((key, Arc::clone(&plan)));
        Ok(plan)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Key, Arc<Plan>)>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &StepError) -> BackendError {
        let text = format!("{} the model: {error}", self.name);
        match error {
            StepError::Cancelled => BackendError::Cancelled,
            StepError::Memory(_) => BackendError::OutOfMemory(text),
            // Before the model it is what the caller sent.
            _ if self.name == "before" => BackendError::Input(text),
            _ => BackendError::Run(text),
        }
    }

    #[cfg(test)]
    pub(super) fn plans_kept(&self) -> usize {
        self.lock().len()
    }
}
