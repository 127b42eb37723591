//! Runs over the table: those that are waited for, and those that finish later.

use std::ffi::c_void;
use std::sync::Arc;

use smallvec::SmallVec;

use super::handles::{Handle, LoadedModel};
use super::{broken, call, error};
use crate::abi::{self, Message, code};
use crate::buffer::ALIGNMENT;
use crate::elsewhere::{Elsewhere, called};
use crate::{BackendError, DataType, Instance, Output, Run, RunId, Submission, Tensor, dlpack};

pub(super) struct HostInstance(pub(super) Arc<Elsewhere<LiveInstance>>);

/// An instance; lives until the last run on it is over.
pub(super) struct LiveInstance {
    pub(super) raw: Handle<abi::InstanceHandle>,
    pub(super) model: Arc<Elsewhere<LoadedModel>>,
    /// What it said when it was made.
    pub(super) can_cancel: bool,
}

impl Drop for LiveInstance {
    fn drop(&mut self) {
        // SAFETY: the handle is ended only here; no call on it is under way, for they borrow this or keep it.
        unsafe { (self.model.backend().entries.instance_destroy)(self.raw.get()) }
    }
}

impl Instance for HostInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        let live = &*self.0;
        let backend = live.model.backend();
        live.check(inputs, outputs)?;
        let places = places(outputs);
        let mut asked = asked(outputs, &places);
        let given: SmallVec<[_; FEW]> = inputs.iter().map(|input| dlpack::give(input.clone())).collect();
        let run = number(run);
        call(&backend.name, |message| {
            let infer = backend.entries.instance_infer;
            let (inputs, outputs) = ((given.as_ptr(), given.len()), (asked.as_mut_ptr(), asked.len()));
            // SAFETY: the handle is open and the pointers are valid for the call; the inputs are the library's from
            // now on; the places are in `outputs`, which this call has alone.
            unsafe { infer(live.raw.get(), inputs.0, inputs.1, outputs.0, outputs.1, &run, message) }
        })?;
        live.collect(&asked, &places, outputs)
    }

    fn submit(self: Arc<Self>, mut submission: Submission) {
        let live = Arc::clone(&self.0);
        let Some(submit) = live.model.backend().entries.instance_submit else {
            let result = self.infer(&submission.inputs, &mut submission.outputs, submission.run);
            return submission.finish(result);
        };
        if let Err(error) = live.check(&submission.inputs, &mut submission.outputs) {
            return submission.finish(Err(error));
        }
        let given: Vec<_> = submission.inputs.drain(..).map(dlpack::give).collect();
        let run = number(submission.run);
        let mut under_way =
            Box::new(UnderWay { live, places: Places::new(), asked: Asked::new(), submission });
        under_way.places = places(&mut under_way.submission.outputs);
        under_way.asked = asked(&under_way.submission.outputs, &under_way.places);
        let outputs = (under_way.asked.as_mut_ptr(), under_way.asked.len());
        let name = self.0.model.backend().name.clone();
        let context = Box::into_raw(under_way);
        let accepted = call(&name, |message| {
            // SAFETY: the handle is open until `finished` has dropped what keeps it; the inputs are the library's from now on;
            // outputs and places lie behind `context`, which nobody touches before `finished`.
            unsafe {
                submit(
                    self.0.raw.get(),
                    given.as_ptr(),
                    given.len(),
                    outputs.0,
                    outputs.1,
                    &run,
                    finished,
                    context.cast(),
                    message,
                )
            }
        });
        if let Err(error) = accepted {
            // SAFETY: the library does not call `finished` after a failure, so the context is this side's again.
            unsafe { Box::from_raw(context) }.submission.finish(Err(error));
        }
    }

    fn is_asynchronous(&self) -> bool {
        self.0.model.backend().entries.instance_submit.is_some()
    }

    fn cancel(&self, id: RunId) {
        if let Some(cancel) = self.0.model.backend().entries.instance_cancel {
            // SAFETY: the handle is open.
            unsafe { cancel(self.0.raw.get(), id.get()) }
        }
    }

    fn can_cancel(&self) -> bool {
        self.0.can_cancel
    }

    fn bytes_held(&self) -> u64 {
        self.0.status().map_or(0, |status| status.bytes_held)
    }
}

/// A submitted run. The addresses of what it holds do not change until it is over.
struct UnderWay {
    live: Arc<Elsewhere<LiveInstance>>,
    places: Places,
    asked: Asked,
    submission: Submission,
}

/// What the library calls when a submitted run is over.
unsafe extern "C" fn finished(context: *mut c_void, code: i32, message: *const Message) {
    // A panic in whoever is told must not pass to the library.
    let tell = std::panic::AssertUnwindSafe(|| {
        // SAFETY: called once, with the context that came with the run.
        let UnderWay { live, asked, mut submission, places } =
            *unsafe { Box::from_raw(context.cast::<UnderWay>()) };
        let result = if code == code::OK {
            live.collect(&asked, &places, &mut submission.outputs)
        } else {
            // SAFETY: null or valid during the call.
            Err(error(&live.model.backend().name, code, unsafe { text(message) }))
        };
        drop(places);
        submission.finish(result);
    });
    let _ = std::panic::catch_unwind(|| called(tell));
}

/// # Safety
/// `message` is null or valid.
unsafe fn text<'a>(message: *const Message) -> &'a [u8] {
    // SAFETY: promised by the caller.
    match unsafe { message.as_ref() } {
        Some(message) if !message.data.is_null() => {
            let len = message.len.min(message.capacity).min(super::MESSAGE_BYTES);
            // SAFETY: promised by the caller: `capacity` bytes, of which `len` are written.
            unsafe { std::slice::from_raw_parts(message.data, len) }
        }
        _ => &[],
    }
}

fn number(run: Run) -> abi::Run {
    abi::Run { id: run.id.map_or(0, RunId::get), reserved: 0 }
}

/// As many inputs or outputs as most models have: more need an allocation for each list of them.
const FEW: usize = 2;

type Places = SmallVec<[Option<abi::DLTensor>; FEW]>;
type Asked = SmallVec<[abi::Output; FEW]>;

fn places(outputs: &mut [Output]) -> Places {
    let place = |output: &mut Output| {
        let (data_type, shape, bytes) = output.place_mut()?;
        // Memory that lies elsewhere may lie anyhow; a library may count on what the table says of places.
        if !bytes.is_empty() && !bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            return None;
        }
        Some(dlpack::describe(data_type, shape, bytes.as_mut_ptr()))
    };
    outputs.iter_mut().map(place).collect()
}

/// What is asked of the library; points to `places`.
fn asked(outputs: &[Output], places: &[Option<abi::DLTensor>]) -> Asked {
    let asked = outputs.iter().zip(places).map(|(output, place)| abi::Output {
        index: output.index(),
        place: place.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        allocated: std::ptr::null_mut(),
        memory: if output.wants_resident() { abi::memory::DEVICE } else { abi::memory::HOST },
        reserved: 0,
    });
    asked.collect()
}

impl LiveInstance {
    /// What it says of itself, now.
    pub(super) fn status(&self) -> Result<abi::InstanceStatus, BackendError> {
        let backend = self.model.backend();
        let mut status = abi::InstanceStatus::default();
        call(&backend.name, |message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (backend.entries.instance_status)(self.raw.get(), &mut status, message) }
        })?;
        Ok(status)
    }

    /// What must hold before the library sees it.
    fn check(&self, inputs: &[Tensor], outputs: &mut [Output]) -> Result<(), BackendError> {
        self.model.info.check_outputs(outputs)?;
        let foreign =
            |tensor: &Tensor| tensor.resident().is_some_and(|memory| !self.model.device.is_home_of(memory));
        match inputs.iter().position(foreign) {
            Some(number) => {
                Err(BackendError::Input(format!("input number {number} lies in memory of another device")))
            }
            None => Ok(()),
        }
    }

    /// Takes what the library allocated.
    fn collect(
        &self,
        asked: &[abi::Output],
        places: &[Option<abi::DLTensor>],
        outputs: &mut [Output],
    ) -> Result<(), BackendError> {
        if asked.iter().zip(places).all(|(asked, place)| asked.allocated.is_null() && place.is_some()) {
            return Ok(());
        }
        // All are taken before one is refused, so that each is ended.
        let results: SmallVec<[_; FEW]> = asked
            .iter()
            .zip(places)
            .zip(&*outputs)
            .map(|((asked, place), output)| self.result(asked.allocated, place.is_some(), output))
            .collect();
        for (output, result) in outputs.iter_mut().zip(results) {
            let Some(tensor) = result? else { continue };
            match output.place_mut() {
                // It was not offered, for its alignment, or the library did not look.
                Some((data_type, shape, place))
                    if data_type == tensor.data_type()
                        && shape == tensor.shape()
                        && place.len() == tensor.data().len() =>
                {
                    place.copy_from_slice(tensor.data());
                }
                _ => output.set(tensor),
            }
        }
        Ok(())
    }

    /// The tensor that the library allocated for an output; `None` if it wrote in the output's place. What was asked is known on
    /// this side: the library may have changed its own copy.
    fn result(
        &self,
        allocated: *mut abi::DLManagedTensor,
        placed: bool,
        output: &Output,
    ) -> Result<Option<Tensor>, BackendError> {
        let name = &self.model.backend().name;
        let index = output.index();
        let what =
            |problem: &dyn std::fmt::Display| broken(name, format_args!("output number {index}: {problem}"));
        if allocated.is_null() {
            return if !placed { Err(what(&"was not set")) } else { Ok(None) };
        }
        // The tensor's memory may be part of the model's, so the model stays as long as the tensor.
        let model: dlpack::Keep = self.model.clone();
        // SAFETY: by the contract the tensor is the host's after success.
        let tensor = unsafe { dlpack::take(allocated, Some(model), self.model.device.home()) }
            .map_err(|fault| what(&fault))?;
        if tensor.resident().is_some() != output.wants_resident() && tensor.data_type() != DataType::Bytes {
            return Err(what(&"is in other memory than was asked for"));
        }
        match self.model.info.outputs.get(index) {
            Some(info) if info.data_type == tensor.data_type() => Ok(Some(tensor)),
            Some(info) => {
                Err(what(&format_args!("is of type {}, not {}", tensor.data_type(), info.data_type)))
            }
            None => Err(what(&"the model has no such output")),
        }
    }
}
