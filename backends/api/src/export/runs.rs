//! The entries that run a model.

use std::ffi::c_void;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::entries::{LiveInstance, broken, handle, list, list_mut};
use super::{guard, reason};
use crate::abi::{self, DLManagedTensor, Message, code};
use crate::dlpack;
use crate::lent::Loan;
use crate::{BackendError, DataType, Output, Run, Submission, Tensor};

pub(super) unsafe extern "C" fn instance_infer(
    instance: *mut abi::InstanceHandle,
    inputs: *const *mut DLManagedTensor,
    input_count: usize,
    outputs: *mut abi::Output,
    output_count: usize,
    run: *const abi::Run,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: the host passes `input_count` tensors, which are ours from now on.
        let inputs = unsafe { take_all(inputs, input_count) }?;
        // SAFETY: made by `instance_create`.
        let instance = unsafe { handle::<LiveInstance, _>(instance) }?;
        // SAFETY: the host passes `output_count` outputs, and nobody else touches them during the call.
        let asked = unsafe { list_mut(outputs, output_count) }?;
        // Before `lent`, so that the loan ends after what it counts.
        let loan = Loan::default();
        // SAFETY: the places are lent for this call, which `loan` does not outlive.
        let mut lent = unsafe { lend_all(&loan, asked) }?;
        // SAFETY: null or valid during the call.
        instance.infer(&inputs, &mut lent, unsafe { number(run) })?;
        give_all(asked, lent)
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

pub(super) unsafe extern "C" fn instance_submit(
    instance: *mut abi::InstanceHandle,
    inputs: *const *mut DLManagedTensor,
    input_count: usize,
    outputs: *mut abi::Output,
    output_count: usize,
    run: *const abi::Run,
    finished: abi::Finished,
    context: *mut c_void,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: as in `instance_infer`.
        let inputs = unsafe { take_all(inputs, input_count) }?;
        // SAFETY: made by `instance_create`.
        let instance = Arc::clone(unsafe { handle::<LiveInstance, _>(instance) }?);
        // SAFETY: as in `instance_infer`, until `finished` has been called.
        let asked = unsafe { list_mut(outputs, output_count) }?;
        let loan = Loan::default();
        // SAFETY: the places are lent until `finished` has been called, before which `loan` ends.
        let lent = unsafe { lend_all(&loan, asked) }?;
        let told = Told { asked: asked.as_mut_ptr(), count: asked.len(), finished, context };
        let done = move |result: Result<Vec<Output>, BackendError>| told.tell(result, loan);
        // SAFETY: null or valid during the call.
        let run = unsafe { number(run) };
        let submission = Submission::new(inputs, lent, run, Box::new(done));
        // From here on the end is told by `finished` alone: a panic drops the submission, which tells it.
        let _ = catch_unwind(AssertUnwindSafe(|| instance.submit(submission)));
        Ok(())
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

pub(super) unsafe extern "C" fn instance_cancel(instance: *mut abi::InstanceHandle, id: u64) {
    let body = || {
        // SAFETY: made by `instance_create`.
        let instance = unsafe { handle::<LiveInstance, _>(instance) }?;
        NonZeroU64::new(id).into_iter().for_each(|id| instance.cancel(id));
        Ok(())
    };
    // There is nobody to tell of a failure.
    // SAFETY: a message may be null.
    let _ = unsafe { guard(std::ptr::null_mut(), body) };
}

/// Whom to tell that a submitted run is over, and where its outputs go.
struct Told {
    asked: *mut abi::Output,
    count: usize,
    finished: abi::Finished,
    context: *mut c_void,
}

// SAFETY: `finished` may be called from any thread, and until then the outputs are this side's alone.
unsafe impl Send for Told {}

impl Told {
    fn tell(self, result: Result<Vec<Output>, BackendError>, loan: Loan) {
        // SAFETY: the host's until `finished` has been called; `count` of them.
        let asked = unsafe { list_mut(self.asked, self.count) };
        let result = result.and_then(|outputs| give_all(asked?, outputs));
        // The places go back to their owner now.
        drop(loan);
        let (code, text) = result.map_or_else(reason, |()| (code::OK, String::new()));
        let mut text = text.into_bytes();
        let message = Message { data: text.as_mut_ptr(), capacity: text.len(), len: text.len() };
        // SAFETY: called once, with the context that came with it.
        unsafe { (self.finished)(self.context, code, &message) };
    }
}

/// # Safety
/// `run` is null or valid.
unsafe fn number(run: *const abi::Run) -> Run {
    // SAFETY: promised by the caller.
    Run { id: unsafe { run.as_ref() }.and_then(|run| NonZeroU64::new(run.id)) }
}

/// # Safety
/// The places are lent until `loan` is dropped.
unsafe fn lend_all(loan: &Loan, asked: &[abi::Output]) -> Result<Vec<Output>, BackendError> {
    // SAFETY: promised by the caller.
    asked.iter().map(|output| unsafe { lend(loan, output) }).collect()
}

/// First all, then give: an error in between would leave a tensor with nobody.
fn give_all(asked: &mut [abi::Output], outputs: Vec<Output>) -> Result<(), BackendError> {
    if asked.len() != outputs.len() {
        return Err(broken("another number of outputs came back"));
    }
    let results = asked.iter().zip(outputs).map(|(asked, output)| finish(asked, output));
    let results = results.collect::<Result<Vec<_>, _>>()?;
    for (asked, result) in asked.iter_mut().zip(results) {
        asked.allocated = result.map_or(std::ptr::null_mut(), dlpack::give);
    }
    Ok(())
}

/// Takes all, so that each is ended whatever happens; then looks whether one was broken.
///
/// # Safety
/// `inputs` has `count` tensors, which are this side's from now on.
unsafe fn take_all(inputs: *const *mut DLManagedTensor, count: usize) -> Result<Vec<Tensor>, BackendError> {
    // SAFETY: passed on.
    let inputs = unsafe { list(inputs, count) }?;
    // SAFETY: passed on.
    let taken: Vec<_> = inputs.iter().map(|input| unsafe { dlpack::take(*input, None, 0) }).collect();
    let taken = taken.into_iter().enumerate().map(|(number, tensor)| {
        tensor.map_err(|fault| BackendError::Internal(format!("input number {number} came broken: {fault}")))
    });
    taken.collect()
}

/// # Safety
/// The place, if there is one, is lent until `loan` is dropped.
unsafe fn lend(loan: &Loan, output: &abi::Output) -> Result<Output, BackendError> {
    // SAFETY: a place is null or a tensor, valid during the call.
    let Some(place) = (unsafe { output.place.as_ref() }) else {
        return Ok(match output.memory {
            abi::memory::DEVICE => Output::resident(output.index),
            _ => Output::allocate(output.index),
        });
    };
    // SAFETY: as above, its shape too.
    let view = unsafe { dlpack::view(place) }.map_err(|fault| {
        BackendError::Internal(format!("the place of output number {} came broken: {fault}", output.index))
    })?;
    if view.device.is_some() || view.data_type == DataType::Bytes {
        return Err(broken("a place is in host memory, and not for strings"));
    }
    if !dlpack::is_place(&view) {
        return Err(broken("a place is not aligned to 64 bytes"));
    }
    // SAFETY: promised by the caller.
    let lent = unsafe { loan.lend(view.data, view.len) };
    Ok(Output::lend(output.index, view.data_type, view.shape, lent))
}

/// What of an output goes back over the table; `None` if it was written in its place.
fn finish(asked: &abi::Output, output: Output) -> Result<Option<Tensor>, BackendError> {
    if output.index() != asked.index {
        return Err(broken("the outputs came back in another order"));
    }
    match output.into_tensor() {
        None if asked.place.is_null() => {
            Err(BackendError::Internal(format!("output number {} was not set", asked.index)))
        }
        result => Ok(result),
    }
}
