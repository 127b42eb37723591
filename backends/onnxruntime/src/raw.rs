//! The calls that `ort` has no safe form for: tensors over memory of the caller's, and runs from many threads at once.

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;

use bytes::Bytes;
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::MemoryInfo;
use ort::sys::{
    ONNXTensorElementDataType as ElementType, OrtAllocator, OrtApiBase, OrtIoBinding, OrtRunOptions,
    OrtStatusPtr, OrtValue,
};
use outrigger_backend::{DLDevice, DataType, DeviceMemory, STRING_PREFIX, Shape, ShapeError, Tensor};
use smallvec::SmallVec;

use crate::kept::Kept;

/// Asks the library at `path` for its version.
pub(crate) fn version(path: &Path) -> Result<String, String> {
    // SAFETY: that the library may be loaded is what the setting says. It stays loaded, as `ort` keeps it too.
    let library = Box::leak(Box::new(
        unsafe { libloading::Library::new(path) }.map_err(|error| outrigger_backend::chain(&error))?,
    ));
    // SAFETY: the type is that of ONNX Runtime's C API, in all its versions.
    let base = unsafe { library.get::<unsafe extern "system" fn() -> *const OrtApiBase>("OrtGetApiBase") }
        .map_err(|_| "is no ONNX Runtime, for it exports no `OrtGetApiBase`".to_owned())?;
    // SAFETY: the function takes nothing and returns a static; its version is a static string.
    unsafe {
        let base = base().as_ref().ok_or("its `OrtGetApiBase` returns nothing")?;
        Ok(CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned())
    }
}

/// Makes one allocator for all sessions that ask for it, which saves each an arena of its own.
pub(crate) fn share_allocator(environment: &Environment, arena: &MemoryInfo<'_>) -> ort::Result<()> {
    let environment = environment.ptr().cast_mut();
    let mut allocator = null_mut();
    // SAFETY: all pointers are live; no arena configuration means the default one. The allocator is the environment's, which
    // lives as long as the process.
    unsafe {
        check((ort::api().CreateAndRegisterAllocator)(environment, arena.ptr(), null()))?;
        check((ort::api().GetSharedAllocator)(environment, arena.ptr(), &mut allocator))?;
        // The arena never gives its first region back, so that is made a small one: else it could be the first model's weights.
        if let Some(OrtAllocator { Alloc: Some(alloc), Free: Some(free), .. }) = allocator.as_ref() {
            free(allocator, alloc(allocator, 1));
        }
    }
    Ok(())
}

/// A tensor of ONNX Runtime's.
#[repr(transparent)]
struct Value(NonNull<OrtValue>);

// SAFETY: a value has no tie to a thread, and is only read once a run has made it.
unsafe impl Send for Value {}
// SAFETY: as above; reads may overlap.
unsafe impl Sync for Value {}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: the value is owned, and released only here.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// A tensor over memory of the caller's, borrowed as long as this lives.
#[repr(transparent)]
pub(crate) struct Borrowed<'a>(Value, PhantomData<&'a mut [u8]>);

impl<'a> Borrowed<'a> {
    /// Over memory that is only read. Its address must be aligned to the element.
    pub(crate) fn input(memory: &MemoryInfo<'_>, tensor: &'a Tensor) -> ort::Result<Self> {
        if tensor.data_type() == DataType::Bytes {
            return Ok(Self(strings(tensor)?, PhantomData));
        }
        // ONNX Runtime's call takes a pointer to mutable data, but runs never write to an input.
        let data = tensor.data().as_ptr().cast_mut();
        Self::new(memory, tensor.data_type(), tensor.shape(), data, tensor.data().len())
    }

    /// Over a device's memory that is only read. `memory` describes it.
    pub(crate) fn resident(
        memory: &MemoryInfo<'_>,
        tensor: &'a Tensor,
        resident: &'a DeviceMemory,
    ) -> ort::Result<Self> {
        let data = std::ptr::without_provenance_mut(resident.address());
        Self::new(memory, tensor.data_type(), tensor.shape(), data, resident.len())
    }

    /// Over a device's memory, all of a tensor that lies there, for a run to read or to write. Nobody else looks at it meanwhile.
    pub(crate) fn on_device(memory: &MemoryInfo<'_>, tensor: &'a Tensor) -> ort::Result<Self> {
        let resident =
            tensor.resident().ok_or_else(|| ort::Error::new("a tensor that is not on the device"))?;
        Self::resident(memory, tensor, resident)
    }

    /// Over memory that a run writes to. Its address must be aligned to the element.
    pub(crate) fn place(
        memory: &MemoryInfo<'_>,
        data_type: DataType,
        shape: &Shape,
        bytes: &'a mut [u8],
    ) -> ort::Result<Self> {
        Self::new(memory, data_type, shape, bytes.as_mut_ptr(), bytes.len())
    }

    fn new(
        memory: &MemoryInfo<'_>,
        data_type: DataType,
        shape: &Shape,
        data: *mut u8,
        len: usize,
    ) -> ort::Result<Self> {
        let extents = shape.extents();
        let mut value = null_mut();
        // SAFETY: the memory is borrowed for `'a` and `len` bytes long; the extents are copied.
        check(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.cast(),
                len,
                extents.as_ptr(),
                extents.len(),
                element_type(data_type),
                &mut value,
            )
        })?;
        Ok(Self(made(value)?, PhantomData))
    }
}

/// What a run can be told while it is under way.
pub(crate) struct RunOptions(NonNull<OrtRunOptions>);

// SAFETY: nothing of it is tied to a thread.
unsafe impl Send for RunOptions {}
// SAFETY: what a shared reference reaches is the mark, which ONNX Runtime reads while another thread sets it: that is what it is for.
unsafe impl Sync for RunOptions {}

impl RunOptions {
    pub(crate) fn new() -> ort::Result<Self> {
        let mut options = null_mut();
        // SAFETY: the pointer is a place of this frame.
        check(unsafe { (ort::api().CreateRunOptions)(&mut options) })?;
        NonNull::new(options).map(Self).ok_or_else(|| ort::Error::new("ONNX Runtime made no run options"))
    }

    pub(crate) fn as_ptr(&self) -> *const OrtRunOptions {
        self.0.as_ptr()
    }

    /// Adds an entry of the run's configuration.
    pub(crate) fn add(&self, key: &CStr, value: &str) -> ort::Result<()> {
        let value = CString::new(value).map_err(|error| ort::Error::new(error.to_string()))?;
        // SAFETY: the options are live, and nobody runs with them yet; both texts are copied.
        check(unsafe { (ort::api().AddRunConfigEntry)(self.0.as_ptr(), key.as_ptr(), value.as_ptr()) })
    }

    /// Marks the run that has these options to end, or takes the mark off.
    pub(crate) fn set_terminate(&self, ends: bool) -> ort::Result<()> {
        let api = ort::api();
        let set = if ends { api.RunOptionsSetTerminate } else { api.RunOptionsUnsetTerminate };
        // SAFETY: the options are live.
        check(unsafe { set(self.0.as_ptr()) })
    }
}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: the options are owned, and released only here.
        unsafe { (ort::api().ReleaseRunOptions)(self.0.as_ptr()) }
    }
}

/// As many inputs or outputs as most models have: more need an allocation for each list of them.
pub(crate) const FEW: usize = 4;

/// Outputs asked for, each with its place if it has one.
pub(crate) type Wanted<'a> = SmallVec<[(usize, Option<Borrowed<'a>>); FEW]>;

/// What ONNX Runtime allocated, in the order of the outputs asked for; `None` for those that have a place.
pub(crate) type Made = SmallVec<[Option<Allocated>; FEW]>;

/// A session's input and output names, in the form that a run takes.
pub(crate) struct Names {
    inputs: Vec<*const c_char>,
    outputs: Vec<*const c_char>,
    /// Owns what the others point to.
    _texts: Vec<CString>,
}

// SAFETY: the texts are owned and never written to.
unsafe impl Send for Names {}
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    pub(crate) fn new(inputs: Vec<CString>, outputs: Vec<CString>) -> Self {
        // The bytes of a text are on the heap, so moving it does not move them.
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect();
        let (in_pointers, out_pointers) = (pointers(&inputs), pointers(&outputs));
        Self {
            inputs: in_pointers,
            outputs: out_pointers,
            _texts: inputs.into_iter().chain(outputs).collect(),
        }
    }
}

/// Runs a session for the outputs `wanted`, each with its place if it has one; gives back those that ONNX Runtime
/// allocated.
///
/// ONNX Runtime promises that runs of one session may overlap, which `ort` does not allow. The CPU's provider keeps the promise;
/// for providers that say that they cannot, ONNX Runtime itself lets the runs of a session wait for each other.
pub(crate) fn run(
    session: &Arc<Kept>,
    names: &Names,
    inputs: &[Borrowed<'_>],
    wanted: &[(usize, Option<Borrowed<'_>>)],
    options: *const OrtRunOptions,
) -> ort::Result<Made> {
    let output_names = wanted.iter().map(|(index, _)| names.outputs.get(*index).copied());
    let output_names = output_names.collect::<Option<SmallVec<[*const c_char; FEW]>>>();
    let output_names = output_names.ok_or_else(|| ort::Error::new("no such output"))?;
    if names.inputs.len() != inputs.len() {
        return Err(ort::Error::new("another number of inputs than the model takes"));
    }
    let place = |place: &Option<Borrowed<'_>>| place.as_ref().map_or(null_mut(), |place| place.0.0.as_ptr());
    let mut outputs: SmallVec<[*mut OrtValue; FEW]> = wanted.iter().map(|(_, given)| place(given)).collect();
    // SAFETY: names and values are as many as is said and live until the end of the call; the session is live. A `Borrowed` is
    // the pointer to its value. The options are null or those of a run that `Cancels` has not ended.
    let status = unsafe {
        (ort::api().Run)(
            session.ptr().cast_mut(),
            options,
            names.inputs.as_ptr(),
            inputs.as_ptr().cast(),
            inputs.len(),
            output_names.as_ptr(),
            output_names.len(),
            outputs.as_mut_ptr(),
        )
    };
    // Whatever came is owned before an error can return.
    let made = outputs.into_iter().zip(wanted).map(|(value, (_, place))| match place {
        Some(_) => None,
        None => {
            NonNull::new(value).map(|value| Allocated { value: Value(value), _session: Arc::clone(session) })
        }
    });
    let made: Made = made.collect();
    check(status)?;
    Ok(made)
}

/// What each output is bound to.
pub(crate) enum Bound<'a> {
    /// Memory of the caller's.
    Place(Borrowed<'a>),
    /// Memory that ONNX Runtime takes, of the kind that is described.
    Memory(&'a MemoryInfo<'static>),
}

struct Binding(NonNull<OrtIoBinding>);

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: the binding is owned, and released only here.
        unsafe { (ort::api().ReleaseIoBinding)(self.0.as_ptr()) }
    }
}

/// As [`run`], where results are to stay on a device: only a binding says where ONNX Runtime is to allocate them. All that come back have
/// arrived.
pub(crate) fn run_bound(
    session: &Arc<Kept>,
    names: &Names,
    inputs: &[Borrowed<'_>],
    wanted: &[(usize, Bound<'_>)],
    options: *const OrtRunOptions,
) -> ort::Result<Made> {
    let api = ort::api();
    let pointer = session.ptr().cast_mut();
    let (mut binding, mut allocator, mut values, mut count) = (null_mut(), null_mut(), null_mut(), 0);
    // SAFETY: the pointer is a place of this frame.
    check(unsafe { (api.CreateIoBinding)(pointer, &mut binding) })?;
    let binding = NonNull::new(binding).map(Binding);
    let binding = binding.ok_or_else(|| ort::Error::new("ONNX Runtime made no binding"))?;
    if names.inputs.len() != inputs.len() {
        return Err(ort::Error::new("another number of inputs than the model takes"));
    }
    for (name, input) in names.inputs.iter().zip(inputs) {
        // SAFETY: all three are live; the binding shares in the value.
        check(unsafe { (api.BindInput)(binding.0.as_ptr(), *name, input.0.0.as_ptr()) })?;
    }
    for (index, bound) in wanted {
        let name = names.outputs.get(*index).ok_or_else(|| ort::Error::new("no such output"))?;
        // SAFETY: as above; a description of memory is copied.
        check(unsafe {
            match bound {
                Bound::Place(place) => (api.BindOutput)(binding.0.as_ptr(), *name, place.0.0.as_ptr()),
                Bound::Memory(memory) => (api.BindOutputToDevice)(binding.0.as_ptr(), *name, memory.ptr()),
            }
        })?;
    }
    // SAFETY: session and binding are live. The options are null or those of a run that `Cancels` has not ended. Then all pointers are
    // places of this frame; a list comes that the allocator has made, of values that are ours.
    let made = unsafe {
        check((api.RunWithBinding)(pointer, options, binding.0.as_ptr()))?;
        check((api.SynchronizeBoundOutputs)(binding.0.as_ptr()))?;
        check((api.GetAllocatorWithDefaultOptions)(&mut allocator))?;
        check((api.GetBoundOutputValues)(binding.0.as_ptr(), allocator, &mut values, &mut count))?;
        let list = if values.is_null() { &[][..] } else { std::slice::from_raw_parts(values, count) };
        let made: SmallVec<[Option<Value>; FEW]> =
            list.iter().map(|value| NonNull::new(*value).map(Value)).collect();
        if !values.is_null() {
            check((api.AllocatorFree)(allocator, values.cast()))?;
        }
        made
    };
    if made.len() != wanted.len() {
        return Err(ort::Error::new("another number of outputs than were bound"));
    }
    let made = made.into_iter().zip(wanted).map(|(value, (_, bound))| match bound {
        Bound::Place(_) => None,
        Bound::Memory(_) => value.map(|value| Allocated { value, _session: Arc::clone(session) }),
    });
    Ok(made.collect())
}

/// A tensor that ONNX Runtime allocated. It may be part of the session's memory (a constant of the model), so it keeps the
/// session.
pub(crate) struct Allocated {
    value: Value,
    _session: Arc<Kept>,
}

/// Why an allocated tensor cannot be handed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TensorError {
    #[error(transparent)]
    Runtime(#[from] ort::Error),
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("it has element type {0:?}, which is not carried")]
    Type(ElementType),
    #[error("it has no data")]
    Null,
    #[error("no memory for {0} bytes of strings")]
    Memory(usize),
}

impl TensorError {
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self, Self::Memory(_))
    }
}

impl Allocated {
    /// The tensor, in the host's memory, which frees itself when its last clone is dropped.
    pub(crate) fn into_tensor(self) -> Result<Tensor, TensorError> {
        let (data_type, shape, data) = self.describe()?;
        if data_type == DataType::Bytes {
            let data = self.value.read_strings(shape.elements())?;
            return Ok(Tensor::new(data_type, shape, data.into())?);
        }
        let len = shape.bytes(data_type)?;
        let data = match NonNull::new(data) {
            Some(data) => data,
            None if len == 0 => NonNull::dangling(),
            None => return Err(TensorError::Null),
        };
        Ok(Tensor::new(data_type, shape, Bytes::from_owner(Owner { data, len, _allocated: self }))?)
    }

    /// The tensor, in the memory of a device. It keeps `inputs` that it is part of, as where a model passes one on.
    pub(crate) fn into_resident(self, device: DLDevice, inputs: &[Tensor]) -> Result<Tensor, TensorError> {
        let (data_type, shape, data) = self.describe()?;
        let (address, len) = (data.addr(), shape.bytes(data_type)?);
        let overlaps = |input: &&DeviceMemory| {
            address < input.address() + input.len() && input.address() < address + len
        };
        let inputs = inputs.iter().filter_map(Tensor::resident).filter(overlaps).cloned();
        let owner = Arc::new((self, inputs.collect::<Vec<_>>()));
        Ok(Tensor::on_device(data_type, shape, DeviceMemory::new(device, address, len, owner))?)
    }

    /// Type, shape, and where the elements are; strings are nowhere.
    fn describe(&self) -> Result<(DataType, Shape, *mut u8), TensorError> {
        let value = self.value.0.as_ptr();
        let mut element = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let (mut extents, mut rank, mut data) = (null(), 0, null_mut());
        // SAFETY: the value is live, and all pointers are places of this frame.
        unsafe {
            check((ort::api().GetTensorElementTypeAndShapeDataReference)(
                value,
                &mut element,
                &mut extents,
                &mut rank,
            ))?;
            if element != ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING {
                check((ort::api().GetTensorMutableData)(value, &mut data))?;
            }
        }
        let extents = match rank {
            0 => Vec::new(),
            // SAFETY: ONNX Runtime says that there are `rank` extents, in memory of the value's.
            _ if !extents.is_null() => unsafe { std::slice::from_raw_parts(extents, rank) }.to_vec(),
            _ => return Err(TensorError::Null),
        };
        let data_type = data_type(element).ok_or(TensorError::Type(element))?;
        Ok((data_type, Shape::new(extents)?, data.cast()))
    }
}

/// Copies strings into a tensor of ONNX Runtime's, which has an object for each.
fn strings(tensor: &Tensor) -> ort::Result<Value> {
    let extents = tensor.shape().extents();
    let (mut allocator, mut value) = (null_mut(), null_mut());
    // SAFETY: all pointers are live; the allocator is ONNX Runtime's own and lives as long as the process.
    unsafe {
        check((ort::api().GetAllocatorWithDefaultOptions)(&mut allocator))?;
        check((ort::api().CreateTensorAsOrtValue)(
            allocator,
            extents.as_ptr(),
            extents.len(),
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
            &mut value,
        ))?;
    }
    let value = made(value)?;
    for (index, string) in tensor.iter_strings().enumerate() {
        let mut buffer = null_mut();
        // SAFETY: the value is live and has an element of that index, for a tensor has as many strings as its shape says. The
        // buffer has the length that was asked for. Not `FillStringTensor`, which would stop at a zero.
        unsafe {
            let resize = ort::api().GetResizedStringTensorElementBuffer;
            check(resize(value.0.as_ptr(), index, string.len(), &mut buffer))?;
            if let Some(buffer) = NonNull::new(buffer) {
                std::ptr::copy_nonoverlapping(string.as_ptr(), buffer.as_ptr().cast(), string.len());
            }
        }
    }
    Ok(value)
}

impl Value {
    /// The strings of a tensor of strings, in the form that a [`Tensor`] has them in.
    fn read_strings(&self, count: usize) -> Result<Vec<u8>, TensorError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut len = 0;
        // SAFETY: the value is live and holds strings.
        check(unsafe { (ort::api().GetStringTensorDataLength)(self.0.as_ptr(), &mut len) })?;
        let (mut text, mut starts) = (zeros(len, 0u8)?, zeros(count, 0usize)?);
        // SAFETY: as above; the two places are as long as is said.
        check(unsafe {
            (ort::api().GetStringTensorContent)(
                self.0.as_ptr(),
                text.as_mut_ptr().cast(),
                text.len(),
                starts.as_mut_ptr(),
                starts.len(),
            )
        })?;
        let total = len + count * STRING_PREFIX;
        let mut data = Vec::new();
        data.try_reserve_exact(total).map_err(|_| TensorError::Memory(total))?;
        for (index, &start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(len);
            let string = text.get(start..end).ok_or(TensorError::Null)?;
            let prefix = u32::try_from(string.len()).map_err(|_| ShapeError::Overflow)?;
            data.extend_from_slice(&prefix.to_le_bytes());
            data.extend_from_slice(string);
        }
        Ok(data)
    }
}

fn zeros<T: Copy>(len: usize, zero: T) -> Result<Vec<T>, TensorError> {
    let mut all = Vec::new();
    all.try_reserve_exact(len).map_err(|_| TensorError::Memory(len))?;
    all.resize(len, zero);
    Ok(all)
}

/// The bytes of an allocated tensor.
struct Owner {
    data: NonNull<u8>,
    len: usize,
    /// Owns what `data` points to.
    _allocated: Allocated,
}

// SAFETY: the bytes are not written to any more, and go with the value that owns them.
unsafe impl Send for Owner {}
// SAFETY: as above; a shared reference allows reading only.
unsafe impl Sync for Owner {}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the value has as many bytes as its type and shape take, and lives as long as this.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

pub(crate) fn check(status: OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status comes from a call of the API, and is consumed here.
    unsafe { ort::Error::result_from_status(status) }
}

fn made(value: *mut OrtValue) -> ort::Result<Value> {
    NonNull::new(value).map(Value).ok_or_else(|| ort::Error::new("ONNX Runtime made no value"))
}

macro_rules! element_types {
    ($($data_type:ident $element:ident)*) => {
        /// For what is not carried, undefined.
        pub(crate) fn element_type(data_type: DataType) -> ElementType {
            match data_type {
                $(DataType::$data_type => ElementType::$element,)*
                _ => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
            }
        }

        /// `None` for what has no [`DataType`].
        pub(crate) fn data_type(element: ElementType) -> Option<DataType> {
            Some(match element {
                $(ElementType::$element => DataType::$data_type,)*
                _ => return None,
            })
        }
    };
}

element_types! {
    Bool ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL
    Uint8 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
    Uint16 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16
    Uint32 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32
    Uint64 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64
    Int8 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8
    Int16 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16
    Int32 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32
    Int64 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
    Fp16 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
    Bf16 ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16
    Fp32 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
    Fp64 ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE
    Bytes ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING
}
