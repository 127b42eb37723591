//! The steps on one side of a model, planned for the shapes of each call.

use std::sync::{Arc, Mutex, PoisonError};

use outrigger_backend::{BackendError, Tensor, TensorInfo};
use outrigger_processing::{Chain, Plan, StepError};

/// Plans that are kept, for the shapes that came last.
const KEPT: usize = 32;

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

    /// Runs the steps on this thread. Tensors that none touches share their bytes. So many bytes are held beside what the steps make.
    ///
    /// # Errors
    /// [`BackendError::Input`] for what does not fit the steps before the model, and for more than they may make;
    /// [`BackendError::Run`] for what does not fit those after it, [`BackendError::OutOfMemory`], [`BackendError::Cancelled`].
    pub(super) fn run(
        &self,
        tensors: &[Tensor],
        beside: usize,
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
        self.held(tensors, beside)?.run_unless(tensors, is_cancelled).map_err(|error| self.failed(&error))
    }

    /// Holds what comes against the steps, which run elsewhere, and what they will make against the limit.
    ///
    /// # Errors
    /// As [`Side::run`].
    pub(super) fn hold(&self, tensors: &[Tensor]) -> Result<(), BackendError> {
        self.held(tensors, 0).map(drop)
    }

    fn held(&self, tensors: &[Tensor], beside: usize) -> Result<Arc<Plan>, BackendError> {
        let shapes = tensors.iter().map(|tensor| tensor.shape().extents());
        let plan = self.plan(shapes).map_err(|error| self.failed(&error))?;
        let made = plan.made_bytes().map_err(|error| self.failed(&error))?;
        self.check(made.saturating_add(beside))?;
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

    /// Bytes that the steps make out of tensors of these shapes; 0 for such as do not fit.
    pub(super) fn made<'a>(&self, shapes: impl Iterator<Item = &'a [i64]> + Clone) -> usize {
        self.plan(shapes).and_then(|plan| plan.made_bytes()).unwrap_or(0)
    }

    /// Bytes that may be made in one run.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn plan<'a>(&self, shapes: impl Iterator<Item = &'a [i64]> + Clone) -> Result<Arc<Plan>, StepError> {
        let mut key = Key::new();
        for extents in shapes.clone() {
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
        let shaped = |(info, extents): (&TensorInfo, &[i64])| TensorInfo {
            shape: extents.to_vec(),
            symbols: Vec::new(),
            ..info.clone()
        };
        let inputs: Vec<_> = self.inputs.iter().zip(shapes).map(shaped).collect();
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
