//! Running a model. Instances of one model share its session, which any number of threads may run at once.

use std::borrow::Cow;
use std::ptr::null;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ort::sys::OrtRunOptions;
use outrigger_backend::{BackendError, Buffer, Instance, Output, Run, RunId, Tensor};
use smallvec::SmallVec;

use crate::cancel::Cancels;
use crate::graphs::Frames;
use crate::model::Loaded;
use crate::raw::{self, Allocated, Borrowed, Bound, FEW, Made, Wanted};
use crate::recordings::Beside;
use crate::turns::Turn;
use crate::{error, graphs};

pub(crate) struct OnnxInstance {
    loaded: Arc<Loaded>,
    cancels: Cancels,
}

impl OnnxInstance {
    pub(crate) fn new(loaded: Arc<Loaded>) -> Self {
        loaded.instances.fetch_add(1, Ordering::Relaxed);
        Self { loaded, cancels: Cancels::default() }
    }

    /// Runs, and once more where a result has not the shape that the model promises for its place.
    fn run_twice(
        &self,
        inputs: &[Tensor],
        outputs: &mut [Output],
        options: *const OrtRunOptions,
    ) -> ort::Result<Made> {
        let in_place = !self.loaded.promises_wrong_shapes.load(Ordering::Relaxed);
        match self.run(inputs, outputs, options, in_place) {
            Err(error) if in_place && error::is_misplaced(&error) => {
                self.run(inputs, outputs, options, false)
            }
            results => results,
        }
    }

    /// Runs, and gives back what the device's arena has too much of, if it is time for that.
    fn run_and_shrink(&self, inputs: &[Tensor], outputs: &mut [Output]) -> ort::Result<Made> {
        let Some((shrink, pauses)) = &self.loaded.device.shrink else {
            return self.run_twice(inputs, outputs, null());
        };
        let options = pauses.begin(shrink, Instant::now());
        let made = self.run_twice(inputs, outputs, options);
        pauses.end(Instant::now());
        made
    }

    /// Runs once. Without `in_place` ONNX Runtime allocates every output, also those that have a place.
    fn run(
        &self,
        inputs: &[Tensor],
        outputs: &mut [Output],
        options: *const OrtRunOptions,
        in_place: bool,
    ) -> ort::Result<Made> {
        let host = &self.loaded.device.told.runtime.memory;
        let home = self.loaded.device.home.as_ref();
        let values = inputs.iter().map(|input| match input.resident().zip(home) {
            Some((resident, home)) => Borrowed::resident(&home.memory, input, resident),
            None => Borrowed::input(host, input),
        });
        let values = values.collect::<ort::Result<SmallVec<[_; FEW]>>>()?;
        let stays = outputs.iter().any(Output::wants_resident);
        let wanted = outputs.iter_mut().map(|output| {
            let index = output.index();
            let passed_on = self.loaded.passed_on.get(index).copied().unwrap_or(false);
            let memory = if output.wants_resident() { home.map_or(host, |home| &home.memory) } else { host };
            let place = output.place_mut().filter(|(data_type, _, bytes)| {
                in_place && !passed_on && is_aligned(bytes, data_type.size().unwrap_or(1))
            });
            let place = place.map(|(data_type, shape, bytes)| Borrowed::place(host, data_type, shape, bytes));
            Ok((index, place.transpose()?, memory))
        });
        let (session, names) = (&self.loaded.session, &self.loaded.names);
        if stays {
            let bound = wanted.map(|wanted| {
                wanted
                    .map(|(index, place, memory)| (index, place.map_or(Bound::Memory(memory), Bound::Place)))
            });
            let bound = bound.collect::<ort::Result<SmallVec<[_; FEW]>>>()?;
            let _beside = Beside::enter(self.loaded.device.told.provider.recordings());
            let _turn = Turn::take(self.loaded.device.told.provider.turns());
            return raw::run_bound(session, names, &values, &bound, options);
        }
        let wanted = wanted.map(|wanted| wanted.map(|(index, place, _)| (index, place)));
        let wanted = wanted.collect::<ort::Result<Wanted<'_>>>()?;
        let _beside = Beside::enter(self.loaded.device.told.provider.recordings());
        let _turn = Turn::take(self.loaded.device.told.provider.turns());
        raw::run(session, names, &values, &wanted, options)
    }

    /// Hands over an allocated result: into the output's place if it has one of that shape, else as it is.
    fn deliver(
        &self,
        output: &mut Output,
        allocated: Allocated,
        inputs: &[Tensor],
    ) -> Result<(), BackendError> {
        let index = output.index();
        let home = self.loaded.device.home.as_ref().filter(|_| output.wants_resident());
        let tensor = match home {
            Some(home) => allocated.into_resident(home.device, inputs),
            None => allocated.into_tensor(),
        };
        let tensor = tensor.map_err(|error| {
            let name = self.loaded.info.outputs.get(index).map_or("", |info| &info.name);
            let text = format!("output `{name}`: {error}");
            if error.is_memory() { BackendError::OutOfMemory(text) } else { BackendError::Internal(text) }
        })?;
        if home.is_some() && self.loaded.graphs.is_some() {
            // It lies where the next run of the model may write.
            return graphs::deliver(&self.loaded, output, &tensor);
        }
        match output.place_mut() {
            Some((data_type, shape, place)) if data_type == tensor.data_type() && shape == tensor.shape() => {
                place.copy_from_slice(tensor.data());
                return Ok(());
            }
            Some((_, shape, _)) => {
                // The place was not what came. If it was what the model's text promises, the next one would fail as well.
                let promised = self.loaded.info.resolve_outputs(inputs).into_iter().nth(index).flatten();
                if promised.as_ref() == Some(shape) {
                    self.loaded.promises_wrong_shapes.store(true, Ordering::Relaxed);
                }
            }
            None => {}
        }
        output.set(if home.is_some() { tensor } else { detached(tensor, inputs)? });
        Ok(())
    }

    /// Runs on the thread that runs of the model are for: by a recording where there is one.
    fn infer_there(
        &self,
        inputs: &[Tensor],
        outputs: &mut [Output],
        run: Run,
        mut graphs: Option<&mut Frames>,
    ) -> Result<(), BackendError> {
        let loaded = &*self.loaded;
        if let Some(graphs) = &mut graphs
            && graphs.run(loaded, inputs, outputs)?
        {
            return Ok(());
        }
        let results = match run.id.filter(|_| self.can_cancel()) {
            None if graphs.is_none() => self.run_and_shrink(inputs, outputs),
            None => {
                self.run_twice(inputs, outputs, graphs.as_ref().map_or(null(), |graphs| graphs.without()))
            }
            Some(id) => {
                let options = self.cancels.begin(id).map_err(|error| loaded.failed(&error))?;
                let results = self.run_twice(inputs, outputs, options);
                match (self.cancels.end(id), results) {
                    (true, Err(_)) => return Err(BackendError::Cancelled),
                    (_, results) => results,
                }
            }
        };
        let results = results.map_err(|error| loaded.failed(&error))?;
        for (output, result) in outputs.iter_mut().zip(results) {
            if let Some(allocated) = result {
                self.deliver(output, allocated, inputs)?;
            }
        }
        Ok(())
    }
}

impl Instance for OnnxInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        let loaded = &*self.loaded;
        loaded.info.check_inputs(inputs)?;
        loaded.info.check_outputs(outputs)?;
        if outputs.is_empty() {
            return Ok(());
        }
        loaded.check_places(inputs, outputs)?;
        let inputs = aligned(inputs)?;
        let Some(recorded) = &loaded.graphs else { return self.infer_there(&inputs, outputs, run, None) };
        // Held until the results are delivered.
        let mut frames = recorded.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let frames = &mut *frames;
        let ran = recorded.thread.call(|| self.infer_there(&inputs, outputs, run, Some(frames)));
        ran.unwrap_or_else(|| Err(BackendError::Internal("a run panicked".into())))
    }

    fn cancel(&self, id: RunId) {
        self.cancels.cancel(id);
    }

    fn can_cancel(&self) -> bool {
        self.loaded.graphs.is_none() && self.loaded.device.told.provider.can_cancel()
    }

    fn bytes_held(&self) -> u64 {
        self.loaded.bytes.bytes / (self.loaded.instances.load(Ordering::Relaxed).max(1) as u64)
    }
}

impl Drop for OnnxInstance {
    fn drop(&mut self) {
        self.loaded.instances.fetch_sub(1, Ordering::Relaxed);
    }
}

/// ONNX Runtime reads elements as such, so a tensor that lies at an odd address is copied to one that fits: the only copy of
/// an input. It happens where a tensor is cut out of a message without padding.
fn aligned(inputs: &[Tensor]) -> Result<Cow<'_, [Tensor]>, BackendError> {
    let fits = |tensor: &Tensor| {
        tensor.resident().is_some() || is_aligned(tensor.data(), tensor.data_type().size().unwrap_or(1))
    };
    if inputs.iter().all(fits) {
        return Ok(Cow::Borrowed(inputs));
    }
    inputs.iter().map(|tensor| if fits(tensor) { Ok(tensor.clone()) } else { copy(tensor) }).collect()
}

/// A result that ONNX Runtime did not allocate but took from an input, as it does where a model passes an input on, must
/// not outlive the input's borrow, so it is copied.
fn detached(tensor: Tensor, inputs: &[Tensor]) -> Result<Tensor, BackendError> {
    let range = tensor.data().as_ptr_range();
    let overlaps = |input: &Tensor| {
        let input = input.data().as_ptr_range();
        range.start < input.end && input.start < range.end
    };
    if inputs.iter().any(overlaps) { copy(&tensor) } else { Ok(tensor) }
}

fn is_aligned(bytes: &[u8], size: usize) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(size)
}

fn copy(tensor: &Tensor) -> Result<Tensor, BackendError> {
    let bytes = tensor.data();
    let mut buffer = Buffer::zeroed(bytes.len())
        .map_err(|error| BackendError::OutOfMemory(format!("{} bytes for a tensor: {error}", bytes.len())))?;
    buffer.copy_from_slice(bytes);
    Tensor::new(tensor.data_type(), tensor.shape().clone(), buffer.freeze())
        .map_err(|error| BackendError::Internal(error.to_string()))
}
