//! One call of `forward`: inputs as libtorch's tensors, results as they came.

use std::cell::Cell;

use outrigger_backend::{BackendError, Buffer, DataType, Tensor};

use crate::error::{self, TorchError};
use crate::model::Loaded;
use crate::sys::{self, NoGradients, Results};

/// Runs the model, of which a stateful one is the caller's alone until the results are read: they may be its attributes. On the processor inputs
/// are read where they lie, unless the code might write to them or keep them. On a GPU the caller has entered a lane, and leaves it when the
/// results are read; until then inputs may be on their way.
pub(crate) fn forward(loaded: &Loaded, inputs: &[Tensor]) -> Result<Results, BackendError> {
    let failed = |error: TorchError| error::run(&error, loaded.has_free_extents);
    share(loaded.threads).map_err(failed)?;
    let _no_gradients = NoGradients::begin();
    let mut aligned = Vec::new();
    let place = &loaded.common.place;
    let views = inputs
        .iter()
        .map(|input| view(input, place.is_host(), &mut aligned))
        .collect::<Result<Vec<_>, _>>()?;
    let views = if !place.is_host() {
        let device = place.number();
        views.iter().map(|view| view.on_device(device)).collect::<Result<_, _>>().map_err(failed)?
    } else if loaded.copies_inputs {
        views.iter().map(sys::Tensor::copied).collect::<Result<_, _>>().map_err(failed)?
    } else {
        views
    };
    let value = loaded.module.forward(&views).map_err(failed)?;
    let results = value.tensors().map_err(failed)?.ok_or_else(|| {
        BackendError::Run(
            "`forward` gave neither a tensor, nor a tuple or list of tensors, nor a dictionary from names to tensors".into(),
        )
    })?;
    // Memory of inputs is the caller's again when this returns, so what is a view of it is copied while it is there.
    let owned = results.into_iter().map(|(name, tensor)| Ok((name, detached(tensor, inputs, &aligned)?)));
    owned.collect::<Result<_, TorchError>>().map_err(failed)
}

/// The type of a result.
pub(crate) fn data_type(name: &str, tensor: &sys::Tensor) -> Result<DataType, BackendError> {
    if !tensor.is_plain().map_err(|error| error::run(&error, false))? {
        return Err(BackendError::Run(format!(
            "`{name}` is a sparse tensor or of another kind that is not carried"
        )));
    }
    let unknown = |number| {
        BackendError::Run(format!("`{name}` is of PyTorch's type number {number}, which is not carried"))
    };
    tensor.data_type().map_err(unknown)
}

/// How many threads share a run is PyTorch's for each thread that begins one, so it is said where it differs from the last run there.
fn share(threads: usize) -> Result<(), TorchError> {
    thread_local! {
        static LAST: Cell<usize> = const { Cell::new(0) };
    }
    if LAST.get() != threads {
        sys::set_threads(threads)?;
        LAST.set(threads);
    }
    Ok(())
}

/// A tensor that lies at an odd address is copied to one that fits, if it is to be read there and not only copied to a device. It happens where one
/// is cut out of a message without padding.
fn view(input: &Tensor, is_read: bool, aligned: &mut Vec<Buffer>) -> Result<sys::Tensor, BackendError> {
    let mut data: &[u8] = input.data();
    let size = input.data_type().size().unwrap_or(1);
    if is_read && !data.as_ptr().addr().is_multiple_of(size) {
        let len = data.len();
        let mut buffer = Buffer::zeroed(len)
            .map_err(|error| BackendError::OutOfMemory(format!("{len} bytes for a tensor: {error}")))?;
        buffer.copy_from_slice(data);
        aligned.push(buffer);
        data = aligned.last().map_or(&[], |buffer| buffer);
    }
    // SAFETY: as long as the tensor's type and shape say, aligned unless it is only copied, and read only by code that was looked at. The inputs and
    // `aligned` outlive the run, and what shares their memory after it is copied.
    let made = unsafe { sys::Tensor::view(data, input.data_type(), input.shape().extents()) };
    made.map_err(|error| error::run(&error, false))
}

/// The result in memory of its own if it lies in an input's.
fn detached(tensor: sys::Tensor, inputs: &[Tensor], aligned: &[Buffer]) -> Result<sys::Tensor, TorchError> {
    let start = tensor.address()?;
    let lies_in = |bytes: &[u8]| bytes.as_ptr_range().contains(&start);
    if inputs.iter().any(|input| lies_in(input.data())) || aligned.iter().any(|buffer| lies_in(buffer)) {
        return tensor.copied();
    }
    Ok(tensor)
}
