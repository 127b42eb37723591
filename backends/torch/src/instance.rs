//! Running a model. Instances of one model share its module, which any number of threads may run at once.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use outrigger_backend::{BackendError, Buffer, Instance, Output, Run, Shape, Tensor};

use crate::model::Loaded;
use crate::streams::Lane;
use crate::sys::{self, Results};
use crate::{error, run};

pub(crate) struct ScriptInstance {
    loaded: Arc<Loaded>,
}

impl ScriptInstance {
    pub(crate) fn new(loaded: Arc<Loaded>) -> Self {
        loaded.instances.fetch_add(1, Ordering::Relaxed);
        Self { loaded }
    }

    fn run(&self, inputs: &[Tensor], outputs: &mut [Output]) -> Result<(), BackendError> {
        let failed = |error| error::run(&error, false);
        let lane = self.loaded.common.place.enter(self.loaded.stream)?;
        let ran = self.run_in(lane.as_ref(), inputs, outputs);
        // Last of all, when everything that was put into its stream is done, and all of the run's tensors have gone.
        let left = lane.map_or(Ok(()), Lane::leave).map_err(failed);
        ran.and(left)
    }

    fn run_in(
        &self,
        lane: Option<&Lane>,
        inputs: &[Tensor],
        outputs: &mut [Output],
    ) -> Result<(), BackendError> {
        let results = run::forward(&self.loaded, inputs)?;
        // What `forward` has put into the stream fails here, before anything is read.
        if let Some(lane) = lane {
            lane.wait().map_err(|error| error::run(&error, self.loaded.has_free_extents))?;
        }
        for output in outputs {
            let result = self.result(&results, output.index())?;
            self.deliver(output, result)?;
        }
        Ok(())
    }

    /// The result for an output: by its name where results have names, else by its number.
    fn result<'a>(&self, results: &'a Results, index: usize) -> Result<&'a sys::Tensor, BackendError> {
        let outputs = &self.loaded.info.outputs;
        let name = outputs.get(index).map_or("", |info| &info.name);
        if results.first().is_some_and(|(name, _)| name.is_some()) {
            let found = results.iter().find(|(key, _)| key.as_deref() == Some(name));
            return found
                .map(|(_, tensor)| tensor)
                .ok_or_else(|| BackendError::Run(format!("`forward` gave a dictionary without `{name}`")));
        }
        let different = || {
            let (got, want) = (results.len(), outputs.len());
            BackendError::Run(format!("`forward` gave {got} tensors, the model has {want} outputs"))
        };
        results
            .get(index)
            .filter(|_| results.len() == outputs.len())
            .map(|(_, tensor)| tensor)
            .ok_or_else(different)
    }

    /// Hands over a result: into the output's place if it has one of that shape, else as it is.
    fn deliver(&self, output: &mut Output, result: &sys::Tensor) -> Result<(), BackendError> {
        let failed = |error| error::run(&error, false);
        let Some(info) = self.loaded.info.outputs.get(output.index()) else { return Ok(()) };
        let data_type = run::data_type(&info.name, result)?;
        if data_type != info.data_type {
            return Err(BackendError::Run(format!(
                "`{}` came as {data_type}, the model says {}",
                info.name, info.data_type
            )));
        }
        let shape = result.shape().map_err(failed)?;
        if let Some((_, place_shape, place)) = output.place_mut()
            && place_shape.extents() == shape
        {
            return result.write(place).map_err(failed);
        }
        let internal =
            |error: &dyn std::fmt::Display| BackendError::Internal(format!("`{}`: {error}", info.name));
        let shape = Shape::new(shape).map_err(|error| internal(&error))?;
        let bytes = shape.bytes(data_type).map_err(|error| internal(&error))?;
        let mut buffer = Buffer::zeroed(bytes)
            .map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes for output `{}`", info.name)))?;
        result.write(&mut buffer).map_err(failed)?;
        output.set(Tensor::new(data_type, shape, buffer.freeze()).map_err(|error| internal(&error))?);
        Ok(())
    }
}

impl Instance for ScriptInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], _: Run) -> Result<(), BackendError> {
        let loaded = &*self.loaded;
        loaded.info.check_inputs(inputs)?;
        loaded.info.check_outputs(outputs)?;
        if outputs.is_empty() {
            return Ok(());
        }
        if inputs.iter().any(|input| input.resident().is_some()) || outputs.iter().any(Output::wants_resident)
        {
            return Err(BackendError::Unsupported("tensors are in the host's memory".into()));
        }
        let _alone = loaded.alone.as_ref().map(|alone| alone.lock().unwrap_or_else(PoisonError::into_inner));
        let place = &loaded.common.place;
        self.run(inputs, outputs).map_err(|error| place.heard(error))
    }

    fn bytes_held(&self) -> u64 {
        self.loaded.bytes.bytes / (self.loaded.instances.load(Ordering::Relaxed).max(1) as u64)
    }
}

impl Drop for ScriptInstance {
    fn drop(&mut self) {
        self.loaded.instances.fetch_sub(1, Ordering::Relaxed);
    }
}
