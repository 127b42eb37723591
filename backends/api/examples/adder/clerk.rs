//! Models at work.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_backend::{
    BackendError, Buffer, DataType, Instance, Model, ModelInfo, Output, Run, RunId, Shape, Submission, Tensor,
};

use super::heap::{Heap, Part};
use super::text::{Task, Text};

pub(crate) struct Loaded(Arc<Weights>);

/// What the instances of a model share, for as long as one of them lives.
struct Weights {
    text: Text,
    heap: Arc<Heap>,
    _memory: Part,
}

impl Loaded {
    pub(crate) fn new(text: Text, heap: &Arc<Heap>) -> Result<Self, BackendError> {
        let memory = heap.take(text.weights)?;
        Ok(Self(Arc::new(Weights { text, heap: Arc::clone(heap), _memory: memory })))
    }
}

impl Model for Loaded {
    fn info(&self) -> &ModelInfo {
        &self.0.text.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::new(Clerk {
            weights: Arc::clone(&self.0),
            under_way: Mutex::default(),
            cancelled: Condvar::new(),
            has_run: AtomicBool::new(false),
        }))
    }
}

struct Clerk {
    weights: Arc<Weights>,
    /// Runs that can be cancelled; one that was is not here any more.
    under_way: Mutex<BTreeSet<RunId>>,
    cancelled: Condvar,
    has_run: AtomicBool,
}

impl Instance for Clerk {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        if let Some(id) = run.id {
            self.runs().insert(id);
        }
        let result = self.run(inputs, outputs, run);
        if let Some(id) = run.id {
            self.runs().remove(&id);
        }
        result
    }

    fn submit(self: Arc<Self>, mut submission: Submission) {
        // Before the thread is there, so that the run can be cancelled as soon as this has returned.
        self.runs().extend(submission.run.id);
        let work = move || {
            let run = submission.run;
            let result = self.run(&submission.inputs, &mut submission.outputs, run);
            if let Some(id) = run.id {
                self.runs().remove(&id);
            }
            submission.finish(result);
        };
        // Where no thread can be had the submission is dropped, which tells whoever waits.
        let _ = std::thread::Builder::new().spawn(work);
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn cancel(&self, id: RunId) {
        self.runs().remove(&id);
        self.cancelled.notify_all();
    }

    fn can_cancel(&self) -> bool {
        !matches!(self.weights.text.task, Task::Stubborn(_))
    }

    fn bytes_held(&self) -> u64 {
        let Text { task, weights, .. } = self.weights.text;
        let hoards = task == Task::Hoard && self.has_run.load(Ordering::Relaxed);
        if hoards { 2 * weights } else { weights }
    }
}

impl Clerk {
    fn runs(&self) -> std::sync::MutexGuard<'_, BTreeSet<RunId>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        let Text { task, info, .. } = &self.weights.text;
        info.check_inputs(inputs)?;
        info.check_outputs(outputs)?;
        self.has_run.store(true, Ordering::Relaxed);
        match task {
            Task::Slow(time) => self.wait(*time, run.id)?,
            Task::Stubborn(time) => self.wait(*time, None)?,
            _ => {}
        }
        for output in outputs {
            self.fill(*task, inputs, output)?;
        }
        Ok(())
    }

    fn wait(&self, time: Duration, id: Option<RunId>) -> Result<(), BackendError> {
        let end = Instant::now() + time;
        let mut runs = self.runs();
        loop {
            if id.is_some_and(|id| !runs.contains(&id)) {
                return Err(BackendError::Cancelled);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let woken = self.cancelled.wait_timeout(runs, left).unwrap_or_else(PoisonError::into_inner);
            runs = woken.0;
        }
    }

    fn fill(&self, task: Task, inputs: &[Tensor], output: &mut Output) -> Result<(), BackendError> {
        let floats = |number: usize| self.floats(&inputs[number]);
        match task {
            Task::Add | Task::Hoard | Task::Slow(_) | Task::Stubborn(_) => {
                let (x, y) = (floats(0)?, floats(1)?);
                let sums = x.iter().zip(&y).flat_map(|(x, y)| (x + y).to_ne_bytes()).collect();
                self.put(output, DataType::Fp32, inputs[0].shape().clone(), sums)
            }
            Task::Identity => self.pass_on(&inputs[0], output),
            Task::NonZero => {
                let x = floats(0)?;
                let indices = (0i64..).zip(&x).filter(|(_, value)| **value != 0.);
                let bytes: Vec<u8> = indices.flat_map(|(index, _)| index.to_ne_bytes()).collect();
                let shape = Shape::new([1, bytes.len() as i64 / 8]).map_err(internal)?;
                self.put(output, DataType::Int64, shape, bytes)
            }
            Task::Outer => {
                let (x, y) = (floats(0)?, floats(1)?);
                let shape = Shape::new([x.len() as i64, y.len() as i64]).map_err(internal)?;
                self.weights.heap.fits(shape.bytes(DataType::Fp32).map_err(internal)?)?;
                let sums = x.iter().flat_map(|x| y.iter().flat_map(move |y| (x + y).to_ne_bytes())).collect();
                self.put(output, DataType::Fp32, shape, sums)
            }
            Task::Panic => panic!("the clerk tripped"),
            Task::Keep => {
                static KEPT: Mutex<Vec<Output>> = Mutex::new(Vec::new());
                let kept = std::mem::replace(output, Output::allocate(0));
                KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
                Ok(())
            }
            Task::Fail => Err(BackendError::OutOfMemory("the desk is full".repeat(1000))),
        }
    }

    /// Without a place the input itself is the answer if it lies where that is wanted, and no byte of it is copied.
    fn pass_on(&self, input: &Tensor, output: &mut Output) -> Result<(), BackendError> {
        let is_string = input.data_type() == DataType::Bytes;
        if output.place_mut().is_none()
            && (is_string || output.wants_resident() == input.resident().is_some())
        {
            output.set(input.clone());
            return Ok(());
        }
        self.put(output, input.data_type(), input.shape().clone(), self.bytes(input)?)
    }

    fn bytes(&self, tensor: &Tensor) -> Result<Vec<u8>, BackendError> {
        match tensor.resident() {
            Some(memory) => self.weights.heap.read(memory, <[u8]>::to_vec),
            None => Ok(tensor.data().to_vec()),
        }
    }

    fn floats(&self, tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
        Ok(self.bytes(tensor)?.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
    }

    fn put(
        &self,
        output: &mut Output,
        data_type: DataType,
        shape: Shape,
        bytes: Vec<u8>,
    ) -> Result<(), BackendError> {
        let resident = output.wants_resident();
        match output.place_mut() {
            Some((_, place_shape, place)) if *place_shape == shape => place.copy_from_slice(&bytes),
            _ if resident => {
                let memory = self.weights.heap.allocate(bytes)?;
                output.set(Tensor::on_device(data_type, shape, memory).map_err(internal)?);
            }
            _ => {
                let mut buffer = Buffer::zeroed(bytes.len()).map_err(internal)?;
                buffer.copy_from_slice(&bytes);
                output.set(Tensor::new(data_type, shape, buffer.freeze()).map_err(internal)?);
            }
        }
        Ok(())
    }
}

fn internal(error: impl std::fmt::Display) -> BackendError {
    BackendError::Internal(error.to_string())
}
