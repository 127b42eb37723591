//! libtorch behind functions that cannot be misused: tensors, modules, what a module gives. Everything that it throws is a [`TorchError`].

use std::ffi::{CStr, c_char, c_int};
use std::ptr::NonNull;

use outrigger_backend::DataType;
use torch_sys::{C_tensor, CIValue, CModule_};

use crate::error::TorchError;

/// The processor, as the C interface numbers devices.
pub(crate) const CPU: c_int = -1;

type Result<T> = std::result::Result<T, TorchError>;

unsafe extern "C" {
    /// The C library's; texts of libtorch's are to be given to it.
    fn free(memory: *mut std::ffi::c_void);
}

/// Calls and looks whether something was thrown: the C interface keeps that, for each thread, until it is asked.
fn checked<T>(call: impl FnOnce() -> T) -> Result<T> {
    let value = call();
    // SAFETY: returns null, or a text that is the caller's.
    match unsafe { owned_text(torch_sys::get_and_reset_last_err()) } {
        None => Ok(value),
        Some(message) => Err(TorchError::new(&message)),
    }
}

/// # Safety
/// `text` is null, or of the C library's `malloc` and nobody else's.
pub(crate) unsafe fn owned_text(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: a C string, by the caller's promise.
    let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: nobody else's.
    unsafe { free(text.cast()) };
    Some(owned)
}

fn not_null<T>(pointer: *mut T) -> Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(|| TorchError::new("libtorch returned nothing"))
}

/// Sets how many threads share a run that is begun on this thread.
pub(crate) fn set_threads(threads: usize) -> Result<()> {
    let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
    // SAFETY: both take and give numbers. The first use on a thread sets what was said last in the process, so that comes before.
    checked(|| unsafe {
        torch_sys::at_get_num_threads();
        torch_sys::at_set_num_threads(threads);
    })
}

/// Sets how many runs of parts of one model may be under way beside each other. Only before the first run of all.
pub(crate) fn set_interop_threads(threads: c_int) -> Result<()> {
    // SAFETY: takes a number.
    checked(|| unsafe { torch_sys::at_set_num_interop_threads(threads) })
}

/// While it lives, this thread keeps no gradients.
pub(crate) struct NoGradients(c_int);

impl NoGradients {
    pub(crate) fn begin() -> Self {
        // SAFETY: takes a flag, and gives the one that was there.
        Self(unsafe { torch_sys::at_grad_set_enabled(0) })
    }
}

impl Drop for NoGradients {
    fn drop(&mut self) {
        // SAFETY: takes a flag.
        unsafe { torch_sys::at_grad_set_enabled(self.0) };
    }
}

/// A tensor of libtorch's: memory of its own, or a view of somebody's.
pub(crate) struct Tensor(NonNull<C_tensor>);

// SAFETY: a handle with an atomic count; what is done with it here only reads.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: made by libtorch, and ended once.
        unsafe { torch_sys::at_free(self.0.as_ptr()) }
    }
}

impl Tensor {
    /// A view of `data`, dense and row-major.
    ///
    /// # Safety
    /// `data` is as long as type and shape ask for and aligned for the type, lives as long as the view and everything that shares its
    /// memory, and is not written to meanwhile.
    pub(crate) unsafe fn view(data: &[u8], data_type: DataType, shape: &[i64]) -> Result<Self> {
        let kind = kind(data_type).ok_or_else(|| TorchError::new("a type that libtorch does not have"))?;
        // SAFETY: promised by the caller; no strides mean row-major.
        let made = checked(|| unsafe {
            torch_sys::at_tensor_of_blob(
                data.as_ptr().cast(),
                shape.as_ptr(),
                shape.len(),
                std::ptr::null(),
                0,
                kind,
                CPU,
            )
        })?;
        Ok(Self(not_null(made)?))
    }

    /// The same elements in memory of libtorch's own.
    pub(crate) fn copied(&self) -> Result<Self> {
        // SAFETY: the place is for one tensor.
        let own = self.made(|out, tensor| unsafe { torch_sys::c_generated::atg_empty_like(out, tensor) })?;
        // SAFETY: of one shape and type.
        checked(|| unsafe { torch_sys::at_copy_(own.0.as_ptr(), self.0.as_ptr()) })?;
        Ok(own)
    }

    /// The same, dense and row-major: itself where it is so.
    pub(crate) fn contiguous(&self) -> Result<Self> {
        // SAFETY: the place is for one tensor.
        self.made(|out, tensor| unsafe { torch_sys::c_generated::atg_contiguous(out, tensor) })
    }

    /// The same elements in a device's memory, copied there in this thread's stream: they have arrived once that has been waited for, and until
    /// then those here must stay.
    pub(crate) fn on_device(&self, device: c_int) -> Result<Self> {
        // SAFETY: reads.
        let kind = checked(|| unsafe { torch_sys::at_scalar_type(self.0.as_ptr()) })?;
        // SAFETY: the place is for one tensor.
        self.made(|out, tensor| unsafe {
            torch_sys::c_generated::atg_to_device(out, tensor, device, kind, 1, 1)
        })
    }

    fn made(&self, call: impl FnOnce(*mut *mut C_tensor, *mut C_tensor)) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        checked(|| call(&mut out, self.0.as_ptr()))?;
        Ok(Self(not_null(out)?))
    }

    /// The type, if it is one that is carried; `Err` with PyTorch's number for it otherwise.
    pub(crate) fn data_type(&self) -> std::result::Result<DataType, c_int> {
        let number = checked(|| {
            // SAFETY: reads.
            unsafe { torch_sys::at_scalar_type(self.0.as_ptr()) }
        });
        let number = number.unwrap_or(-1);
        DataType::ALL.into_iter().find(|data_type| kind(*data_type) == Some(number)).ok_or(number)
    }

    pub(crate) fn shape(&self) -> Result<Vec<i64>> {
        // SAFETY: reads.
        let rank = checked(|| unsafe { torch_sys::at_dim(self.0.as_ptr()) })?;
        let mut shape = vec![0; rank];
        // SAFETY: has room for as many extents as there are.
        checked(|| unsafe { torch_sys::at_shape(self.0.as_ptr(), shape.as_mut_ptr()) })?;
        Ok(shape)
    }

    /// Whether its elements lie in memory as such, in the processor's or a GPU's.
    pub(crate) fn is_plain(&self) -> Result<bool> {
        let tensor = self.0.as_ptr();
        // SAFETY: reads.
        checked(|| unsafe {
            torch_sys::at_defined(tensor) != 0
                && torch_sys::at_is_sparse(tensor) == 0
                && torch_sys::at_is_mkldnn(tensor) == 0
                && torch_sys::at_device(tensor) >= CPU
        })
    }

    fn is_in_host(&self) -> Result<bool> {
        // SAFETY: reads.
        checked(|| unsafe { torch_sys::at_device(self.0.as_ptr()) == CPU })
    }

    /// Where its first element lies in the processor's memory; null where it does not.
    pub(crate) fn address(&self) -> Result<*const u8> {
        if !self.is_plain()? || !self.is_in_host()? {
            return Ok(std::ptr::null());
        }
        // SAFETY: reads.
        checked(|| unsafe { torch_sys::at_data_ptr(self.0.as_ptr()) })
            .map(|data| data.cast::<u8>().cast_const())
    }

    /// The same, with elements that are what they mean: `x.conj().imag` is a view of `x` and a note that each is to be negated. Complex numbers,
    /// of which there is such a note as well, are not carried.
    fn resolved(self) -> Result<Self> {
        // SAFETY: reads.
        if checked(|| unsafe { torch_sys::c_generated::atg_is_neg(self.0.as_ptr()) })? == 0 {
            return Ok(self);
        }
        // SAFETY: the place is for one tensor.
        self.made(|out, tensor| unsafe { torch_sys::c_generated::atg_resolve_neg(out, tensor) })
    }

    /// Writes its elements to `place`, which has their size.
    pub(crate) fn write(&self, place: &mut [u8]) -> Result<()> {
        let size = self.data_type().ok().and_then(DataType::size);
        let extents = self.shape()?.into_iter().map(|extent| usize::try_from(extent).ok());
        let bytes = extents.fold(size, |bytes, extent| bytes?.checked_mul(extent?));
        if bytes != Some(place.len()) {
            return Err(TorchError::new("a place of another size"));
        }
        if !place.is_empty() && !self.is_in_host()? {
            let data_type = self.data_type().map_err(|_| TorchError::new("a type that is not carried"))?;
            // SAFETY: as long as is asked for, which was checked, and aligned, for it is copied to byte by byte by the driver; it is written to
            // through the view alone, which goes before this returns.
            let view = unsafe { Self::view(place, data_type, &self.shape()?) }?;
            // SAFETY: of one shape and type. Waits for the stream, and so for the copy.
            return checked(|| unsafe { torch_sys::at_copy_(view.0.as_ptr(), self.0.as_ptr()) });
        }
        let dense = self.contiguous()?.resolved()?;
        if place.is_empty() {
            return Ok(());
        }
        // SAFETY: reads.
        let data = checked(|| unsafe { torch_sys::at_data_ptr(dense.0.as_ptr()) })?;
        let data = not_null(data)?.cast::<u8>();
        // SAFETY: dense, so that as many bytes lie there; memory of libtorch's or an input's, which no place overlaps.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place.as_mut_ptr(), place.len()) };
        Ok(())
    }
}

/// PyTorch's number of a type. Source: `c10/core/ScalarType.h` of PyTorch 2.11. Of the unsigned types beyond a byte it has hardly more than
/// the names.
fn kind(data_type: DataType) -> Option<c_int> {
    Some(match data_type {
        DataType::Uint8 => 0,
        DataType::Int8 => 1,
        DataType::Int16 => 2,
        DataType::Int32 => 3,
        DataType::Int64 => 4,
        DataType::Fp16 => 5,
        DataType::Fp32 => 6,
        DataType::Fp64 => 7,
        DataType::Bool => 11,
        DataType::Bf16 => 15,
        _ => return None,
    })
}

/// A loaded module. Runs on many threads at once are allowed: its interpreter keeps the state of each.
pub(crate) struct Module(NonNull<CModule_>);

// SAFETY: libtorch's modules may be run from any thread.
unsafe impl Send for Module {}
// SAFETY: as above; it is not changed after it is loaded.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: made by libtorch, and ended once.
        unsafe { torch_sys::atm_free(self.0.as_ptr()) }
    }
}

impl Module {
    /// Loads an archive onto a device; the module is then as for inference.
    pub(crate) fn load(path: &CStr, device: c_int) -> Result<Self> {
        // SAFETY: a C string.
        let made = checked(|| unsafe { torch_sys::atm_load_on_device(path.as_ptr(), device) })?;
        let module = Self(not_null(made)?);
        // SAFETY: nobody else has it yet.
        checked(|| unsafe { torch_sys::atm_eval(module.0.as_ptr()) })?;
        Ok(module)
    }

    /// Calls `forward`.
    pub(crate) fn forward(&self, inputs: &[Tensor]) -> Result<Value> {
        let values = inputs.iter().map(|input| {
            // SAFETY: makes a value that shares the tensor.
            Ok(Value(not_null(checked(|| unsafe { torch_sys::ati_tensor(input.0.as_ptr()) })?)?))
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        let given: Vec<_> = values.iter().map(|value| value.0.as_ptr()).collect();
        let count = c_int::try_from(given.len()).unwrap_or(c_int::MAX);
        // SAFETY: as many values as it says, which are only read.
        let made = checked(|| unsafe { torch_sys::atm_forward_(self.0.as_ptr(), given.as_ptr(), count) })?;
        Ok(Value(not_null(made)?))
    }
}

/// What `forward` takes and gives.
pub(crate) struct Value(NonNull<CIValue>);

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: made by libtorch, and ended once.
        unsafe { torch_sys::ati_free(self.0.as_ptr()) }
    }
}

/// Tensors that came, with their names if they have any.
pub(crate) type Results = Vec<(Option<String>, Tensor)>;

impl Value {
    /// The tensors in it: one, or those of a tuple, a list or a dictionary. `None` for anything else.
    pub(crate) fn tensors(&self) -> Result<Option<Results>> {
        let value = self.0.as_ptr();
        let tag = self.tag()?;
        // SAFETY: each entry is for the kind of value before it, which it only reads.
        let items = unsafe {
            match tag {
                1 => return Ok(Some(vec![(None, self.tensor()?)])),
                5 => self.items(1, torch_sys::ati_tuple_length(value), torch_sys::ati_to_tuple)?,
                10 | 12 => self.items(1, torch_sys::ati_length(value), torch_sys::ati_to_generic_list)?,
                13 => self.items(2, torch_sys::ati_length(value), torch_sys::ati_to_generic_dict)?,
                _ => return Ok(None),
            }
        };
        if tag != 13 {
            let tensors = items.iter().map(|item| item.only_tensor().map(|tensor| Some((None, tensor?))));
            return tensors.collect();
        }
        let pairs = items.chunks_exact(2).map(|pair| match pair {
            [key, value] => {
                Ok(key.text()?.zip(value.only_tensor()?).map(|(key, tensor)| (Some(key), tensor)))
            }
            _ => Ok(None),
        });
        pairs.collect()
    }

    fn tag(&self) -> Result<c_int> {
        // SAFETY: reads.
        checked(|| unsafe { torch_sys::ati_tag(self.0.as_ptr()) })
    }

    /// # Safety
    /// `take` fills as many places as it is told, `each` for each of the `length`.
    unsafe fn items(
        &self,
        each: usize,
        length: c_int,
        take: unsafe extern "C" fn(*mut CIValue, *mut *mut CIValue, c_int),
    ) -> Result<Vec<Self>> {
        let count = usize::try_from(length).unwrap_or(0);
        let mut items = vec![std::ptr::null_mut(); count * each];
        // SAFETY: promised by the caller.
        let taken = checked(|| unsafe { take(self.0.as_ptr(), items.as_mut_ptr(), length) });
        // Before the failure is looked at, so that those that were made are ended.
        let items: Vec<Self> = items.into_iter().filter_map(|item| NonNull::new(item).map(Self)).collect();
        taken.map(|()| items)
    }

    fn tensor(&self) -> Result<Tensor> {
        // SAFETY: a tensor, as its tag says.
        Ok(Tensor(not_null(checked(|| unsafe { torch_sys::ati_to_tensor(self.0.as_ptr()) })?)?))
    }

    fn only_tensor(&self) -> Result<Option<Tensor>> {
        if self.tag()? == 1 { self.tensor().map(Some) } else { Ok(None) }
    }

    fn text(&self) -> Result<Option<String>> {
        if self.tag()? != 9 {
            return Ok(None);
        }
        // SAFETY: a string, as its tag says; the copy is the caller's.
        let text = checked(|| unsafe { torch_sys::ati_to_string(self.0.as_ptr()) })?;
        // SAFETY: as above.
        Ok(unsafe { owned_text(text) })
    }
}
