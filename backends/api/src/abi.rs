//! The table of functions that a backend library exports, and what its entries take and give.
//!
//! A library exports [`SYMBOL`], of type [`EntryPoint`]. It takes nothing and returns a [`Table`] that stays valid and
//! unchanged for the life of the process; the host never unloads the library.
//!
//! # Versions
//! `major` must be equal on both sides. Within a major version [`Table`] only grows at its end, and `minor` counts
//! that growth; every other struct here is frozen. The host copies the smaller of the two sizes over a table of nulls, so
//! that an entry which the library does not know is null. Each entry names the minor version since which it exists; those
//! since 0 must not be null, unless they say that they may.
//!
//! # What holds for every entry
//! - It returns a [`code`], and on failure writes why into the [`Message`], in one line. The message is the host's and may be null.
//! - What an `out` pointer points to is written on success and left alone on failure. No `out` pointer is null.
//! - Pointers given to the library are valid for the time of the call only, unless the entry says otherwise. A list or text of length
//!   0 may have any address.
//! - It may be called from any thread. Calls may overlap, also on the same handle, with one exception: the entry that
//!   ends a handle runs alone, when no other call on that handle or on anything made from it is under way, and after
//!   all that was made from it has been ended: instances before their model, models and buffers before their device, devices
//!   before their backend. No entry is called out of a function of the host's that the library has called.
//! - It neither unwinds nor jumps out of its frame.
//!
//! # Tensors
//! They are DLPack's, dense and row-major; null strides say the same. A tensor without elements may have any address, null too.
//! What describes a tensor is only read by whoever it was given to.
//! - Host memory has the device [`KDL_CPU`], also where it is pinned. Inputs in it are of any alignment. Places of outputs are aligned to
//!   64 bytes, and so is pinned memory. What a library allocates for an output need not be aligned.
//! - Any other device is memory of the device, of which the host knows nothing but what the library gave it: it adds
//!   `byte_offset` to `data`, never reads through the sum, and gives it to the same device handle again, with an offset of 0. So `data` may
//!   be a handle, if the library's own offset is 0.
//! - The elements of a tensor of strings are [`Text`]s, aligned as such, of any bytes and in host memory: the code of their type is
//!   [`type_code::TEXT`], its bits are those of a `Text` (128 where pointers have 64). The bytes belong to the tensor as the texts do.
//!
//! # Who ends a tensor
//! Whoever has been given a [`DLManagedTensor`] owns it and ends it once, by its deleter if that is not null, on any thread. A deleter may call
//! a deleter of the other side's, whose tensor it had kept: so no lock is held around one that one's own deleters take.

use std::ffi::c_void;

pub use crate::dlpack::{
    DLDataType, DLDevice, DLManagedTensor, DLTensor, KDL_CPU, KDL_CUDA_HOST, KDL_EXT_DEV, KDL_OPAQUE_HANDLE,
};

/// The one symbol that a library exports.
pub const SYMBOL: &str = "outrigger_backend_v1";

/// The version whose tables are understood; the symbol's name carries it too.
pub const MAJOR: u32 = 1;

/// How far the table has grown within [`MAJOR`].
pub const MINOR: u32 = 0;

/// The type of [`SYMBOL`].
pub type EntryPoint = unsafe extern "C" fn() -> *const Table;

/// What every entry returns.
pub mod code {
    /// It worked.
    pub const OK: i32 = 0;
    /// The library, its driver or something it needs is not there.
    pub const UNAVAILABLE: i32 = 1;
    /// The model's files cannot be read, or are no model for this backend.
    pub const LOAD: i32 = 2;
    /// An input has the wrong count, type or shape.
    pub const INPUT: i32 = 3;
    /// The device has not enough memory.
    pub const OUT_OF_MEMORY: i32 = 4;
    /// The model failed while it ran.
    pub const RUN: i32 = 5;
    /// A bug in the backend. The host reads every code that it does not know as this one.
    pub const INTERNAL: i32 = 6;
    /// The run was asked to end by [`Table::instance_cancel`](super::Table::instance_cancel), and did.
    pub const CANCELLED: i32 = 7;
    /// The device is lost: nothing on it succeeds any more in this process.
    pub const LOST: i32 = 8;
    /// Something that the backend cannot do, however often it is tried.
    pub const UNSUPPORTED: i32 = 9;
}

/// What [`Device::kind`] says. Others are read as a broken description.
pub mod kind {
    /// The processor.
    pub const CPU: u32 = 0;
    /// An NVIDIA GPU.
    pub const CUDA: u32 = 1;
    /// A GPU reached through Vulkan, Metal or DX12.
    pub const GPU: u32 = 2;
    /// An FPGA.
    pub const FPGA: u32 = 3;
}

/// What [`DeviceStatus::health`] says. Others are read as [`LOST`](health::LOST).
pub mod health {
    /// It can be used.
    pub const HEALTHY: u32 = 0;
    /// It can be used, but something is wrong with it.
    pub const DEGRADED: u32 = 1;
    /// Nothing on it succeeds any more.
    pub const LOST: u32 = 2;
    /// It cannot be used now, and will be able to be again.
    pub const RECOVERING: u32 = 3;
}

/// Where memory is.
pub mod memory {
    /// Any memory of the host.
    pub const HOST: u32 = 0;
    /// Memory of the host that the device reads and writes fastest.
    pub const PINNED: u32 = 1;
    /// The device's own.
    pub const DEVICE: u32 = 2;
}

/// DLPack's codes for types of elements, beside the bits of one: `FLOAT` with 32 bits, `BOOL` with 8.
pub mod type_code {
    /// Signed integers of 8, 16, 32 and 64 bits.
    pub const INT: u8 = 0;
    /// Unsigned integers of 8, 16, 32 and 64 bits.
    pub const UINT: u8 = 1;
    /// IEEE 754, of 16, 32 and 64 bits.
    pub const FLOAT: u8 = 2;
    /// A [`Text`](super::Text), with as many bits as that has.
    pub const TEXT: u8 = super::KDL_OPAQUE_HANDLE;
    /// The upper half of an IEEE 754 single: 16 bits.
    pub const BFLOAT: u8 = 4;
    /// A byte of 0 or 1: 8 bits.
    pub const BOOL: u8 = 6;
}

/// An open backend; the library's own.
#[derive(Debug)]
pub struct BackendHandle {
    _opaque: [u8; 0],
}

/// An open device; the library's own.
#[derive(Debug)]
pub struct DeviceHandle {
    _opaque: [u8; 0],
}

/// A loaded model; the library's own.
#[derive(Debug)]
pub struct ModelHandle {
    _opaque: [u8; 0],
}

/// That which runs a model; the library's own.
#[derive(Debug)]
pub struct InstanceHandle {
    _opaque: [u8; 0],
}

/// UTF-8 text with a length and no terminator. Whoever made it owns it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// The first byte; may be null if `len` is 0.
    pub data: *const u8,
    /// Bytes.
    pub len: usize,
}

/// Room for the reason of a failure. The host owns it; the library writes at most `capacity` bytes of UTF-8 to `data`
/// and sets `len` to how many it wrote.
#[repr(C)]
#[derive(Debug)]
pub struct Message {
    /// The first byte of the room.
    pub data: *mut u8,
    /// Bytes of room.
    pub capacity: usize,
    /// Bytes written; 0 at first.
    pub len: usize,
}

/// One setting.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub key: Text,
    /// Its value.
    pub value: Text,
}

/// What a backend says of itself. All that it points to belongs to the backend's handle.
#[repr(C)]
#[derive(Debug)]
pub struct Description {
    /// Short name: `cpu`, `cuda`, `gpu`, `fpga`.
    pub name: Text,
    /// The backend's version, and that of the library it drives.
    pub version: Text,
    /// File formats it takes. One whose name ends in `+steps` is another with steps before and after the model, which the setting `steps` has, as
    /// TOML; [`LoadRequest::signature`] then says what callers send and want.
    pub formats: *const Text,
    /// How many.
    pub format_count: usize,
    /// The devices that are there.
    pub devices: *const Device,
    /// How many.
    pub device_count: usize,
    /// Why there are no devices; of length 0 where there are some.
    pub reason: Text,
}

/// One device.
#[repr(C)]
#[derive(Debug)]
pub struct Device {
    /// `cpu:0`, `cuda:1`.
    pub name: Text,
    /// One of [`kind`].
    pub kind: u32,
    /// Runs that it is worth having under way at once; 0 if that is left to the host.
    pub lanes: u32,
    /// Memory in all, in bytes; 0 if not known.
    pub memory_total: u64,
    /// 1 if tensors can stay in memory of its own, else 0; then [`Table::buffer_allocate`] and [`Table::buffer_copy`] are not null.
    pub resident: u32,
    /// Zero.
    pub reserved: u32,
}

/// A device, now. Why it is not healthy goes into the entry's [`Message`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceStatus {
    /// Memory in all, in bytes; 0 if not known.
    pub memory_total: u64,
    /// Memory free, in bytes; 0 if not known.
    pub memory_free: u64,
    /// Bytes that models and buffers of this backend hold; 0 if not known.
    pub memory_held: u64,
    /// One of [`health`].
    pub health: u32,
    /// Zero.
    pub reserved: u32,
}

/// An instance, now.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct InstanceStatus {
    /// Bytes of device memory that it holds, its share of the weights counted in; 0 if not known.
    pub bytes_held: u64,
    /// 1 if [`Table::instance_cancel`] ends its runs early, else 0; does not change. A run that goes on long after its cancel is then
    /// taken to hang, and its process may be ended for that. Not looked at where that entry is null.
    pub can_cancel: u32,
    /// Zero.
    pub reserved: u32,
}

/// What to load, and how.
#[repr(C)]
#[derive(Debug)]
pub struct LoadRequest {
    /// The model file, as the bytes of a path of the operating system (on Unix any bytes but 0; elsewhere UTF-8).
    pub path: Text,
    /// One of [`Description::formats`], or of length 0: the library sees for itself.
    pub format: Text,
    /// Settings for this model; one that is not known is [`code::LOAD`].
    pub settings: *const Setting,
    /// How many.
    pub setting_count: usize,
    /// Threads inside one run; 0 lets the backend decide.
    pub intra_threads: u32,
    /// Zero.
    pub reserved: u32,
    /// What is said of inputs and outputs beside the file, for formats that do not say it themselves; others ignore it. Null, or of
    /// no inputs or no outputs, where nothing is said.
    pub signature: *const Signature,
}

/// Inputs and outputs of a model. All that it points to belongs to the model's handle.
#[repr(C)]
#[derive(Debug)]
pub struct Signature {
    /// In the order in which [`Table::instance_infer`] takes them.
    pub inputs: *const TensorType,
    /// How many.
    pub input_count: usize,
    /// In the order of [`Output::index`].
    pub outputs: *const TensorType,
    /// How many.
    pub output_count: usize,
}

/// Name, type and shape of an input or output.
#[repr(C)]
#[derive(Debug)]
pub struct TensorType {
    /// The name.
    pub name: Text,
    /// The element type.
    pub data_type: DLDataType,
    /// Dimensions, at most 32.
    pub rank: u32,
    /// One extent for each dimension, −1 where free.
    pub shape: *const i64,
    /// A name for each dimension, of length 0 where it has none; may be null if none has one.
    pub symbols: *const Text,
}

/// One output asked for.
#[repr(C)]
#[derive(Debug)]
pub struct Output {
    /// Which of [`Signature::outputs`].
    pub index: usize,
    /// Where to write it: memory of the host's, dense, aligned to 64 bytes, which nobody else touches until the run is over.
    /// It is to be written as a whole: what lies there before may be an older result, of somebody else's.
    /// Null if the library is to allocate, as it always is for strings.
    pub place: *const DLTensor,
    /// Set by the library where it allocated: always if `place` is null, and otherwise only if the result does not have
    /// the shape of the place. The host owns it after success and ends it by its deleter, from any thread, at any
    /// time before the model is unloaded. After a failure the host does not look at it, so that a library which had allocated
    /// some of the outputs ends those itself. Null when called.
    pub allocated: *mut DLManagedTensor,
    /// Where the library is to allocate: [`memory::HOST`], or [`memory::DEVICE`] for a result that stays there; where the device has
    /// no memory of its own that is [`code::UNSUPPORTED`]. Strings are in host memory whatever this says.
    pub memory: u32,
    /// Zero.
    pub reserved: u32,
}

/// What belongs to a run beside its tensors.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The number by which [`Table::instance_cancel`] names it, unlike that of any other run under way on the instance; 0 if it
    /// will not be cancelled.
    pub id: u64,
    /// Zero.
    pub reserved: u64,
}

/// See [`Table::backend_open`].
pub type BackendOpen = unsafe extern "C" fn(
    settings: *const Setting,
    count: usize,
    out: *mut *mut BackendHandle,
    message: *mut Message,
) -> i32;
/// See [`Table::backend_close`].
pub type BackendClose = unsafe extern "C" fn(backend: *mut BackendHandle);
/// See [`Table::backend_describe`].
pub type BackendDescribe = unsafe extern "C" fn(
    backend: *mut BackendHandle,
    out: *mut *const Description,
    message: *mut Message,
) -> i32;
/// See [`Table::device_open`].
pub type DeviceOpen = unsafe extern "C" fn(
    backend: *mut BackendHandle,
    index: usize,
    out: *mut *mut DeviceHandle,
    message: *mut Message,
) -> i32;
/// See [`Table::device_close`].
pub type DeviceClose = unsafe extern "C" fn(device: *mut DeviceHandle);
/// See [`Table::device_status`].
pub type DeviceStatusEntry =
    unsafe extern "C" fn(device: *mut DeviceHandle, out: *mut DeviceStatus, message: *mut Message) -> i32;
/// See [`Table::buffer_allocate`].
pub type BufferAllocate = unsafe extern "C" fn(
    device: *mut DeviceHandle,
    memory: u32,
    bytes: usize,
    out: *mut *mut DLManagedTensor,
    message: *mut Message,
) -> i32;
/// See [`Table::buffer_copy`].
pub type BufferCopy = unsafe extern "C" fn(
    device: *mut DeviceHandle,
    from: *const DLTensor,
    to: *const DLTensor,
    message: *mut Message,
) -> i32;
/// See [`Table::model_estimate`].
pub type ModelEstimate = unsafe extern "C" fn(
    device: *mut DeviceHandle,
    request: *const LoadRequest,
    out: *mut u64,
    message: *mut Message,
) -> i32;
/// See [`Table::model_load`].
pub type ModelLoad = unsafe extern "C" fn(
    device: *mut DeviceHandle,
    request: *const LoadRequest,
    out: *mut *mut ModelHandle,
    message: *mut Message,
) -> i32;
/// See [`Table::model_unload`].
pub type ModelUnload = unsafe extern "C" fn(model: *mut ModelHandle);
/// See [`Table::model_info`].
pub type ModelInfo =
    unsafe extern "C" fn(model: *mut ModelHandle, out: *mut *const Signature, message: *mut Message) -> i32;
/// See [`Table::instance_create`].
pub type InstanceCreate = unsafe extern "C" fn(
    model: *mut ModelHandle,
    out: *mut *mut InstanceHandle,
    message: *mut Message,
) -> i32;
/// See [`Table::instance_destroy`].
pub type InstanceDestroy = unsafe extern "C" fn(instance: *mut InstanceHandle);
/// See [`Table::instance_status`].
pub type InstanceStatusEntry = unsafe extern "C" fn(
    instance: *mut InstanceHandle,
    out: *mut InstanceStatus,
    message: *mut Message,
) -> i32;
/// See [`Table::instance_infer`].
pub type InstanceInfer = unsafe extern "C" fn(
    instance: *mut InstanceHandle,
    inputs: *const *mut DLManagedTensor,
    input_count: usize,
    outputs: *mut Output,
    output_count: usize,
    run: *const Run,
    message: *mut Message,
) -> i32;
/// Hears the end of a submitted run: the context that came with it, a [`code`], and the reason of a failure, which may be null and is
/// valid during the call only. Called once for each run, from any thread.
pub type Finished = unsafe extern "C" fn(context: *mut c_void, code: i32, message: *const Message);
/// See [`Table::instance_submit`].
pub type InstanceSubmit = unsafe extern "C" fn(
    instance: *mut InstanceHandle,
    inputs: *const *mut DLManagedTensor,
    input_count: usize,
    outputs: *mut Output,
    output_count: usize,
    run: *const Run,
    finished: Finished,
    context: *mut c_void,
    message: *mut Message,
) -> i32;
/// See [`Table::instance_cancel`].
pub type InstanceCancel = unsafe extern "C" fn(instance: *mut InstanceHandle, id: u64);

/// What a library exports. What holds for all entries stands at the top.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Must be [`MAJOR`].
    pub major: u32,
    /// The [`MINOR`] that the library was made with.
    pub minor: u32,
    /// The size of the library's table in bytes.
    pub size: usize,

    /// Opens the backend. The host owns the handle and ends it with `backend_close`. A library that lacks its driver
    /// opens all the same and describes no devices and the reason; a setting that it does not know is
    /// [`code::UNAVAILABLE`]. Since 1.0.
    pub backend_open: Option<BackendOpen>,
    /// Ends a backend. The handle is gone afterwards. Since 1.0.
    pub backend_close: Option<BackendClose>,
    /// Describes the backend. What `out` gets belongs to the backend, does not change, and is valid until
    /// `backend_close`. Since 1.0.
    pub backend_describe: Option<BackendDescribe>,

    /// Opens device number `index` of the description. The host owns the handle and ends it with `device_close`. No
    /// such device is [`code::INPUT`]. Since 1.0.
    pub device_open: Option<DeviceOpen>,
    /// Ends a device. The handle is gone afterwards. Since 1.0.
    pub device_close: Option<DeviceClose>,
    /// Tells memory and health, now; cheap enough to be asked every second. Since 1.0.
    pub device_status: Option<DeviceStatusEntry>,

    /// Gives memory as a tensor of `bytes` elements of 8 bits, which may be 0: [`memory::PINNED`], which the host may read and write, or
    /// [`memory::DEVICE`]. What is in it does not matter. The host ends it by its deleter, before the device is closed. May be null: then
    /// there is neither. Since 1.0.
    pub buffer_allocate: Option<BufferAllocate>,
    /// Copies the bytes of one tensor to another that has as many, one in the host's memory and one in the device's, and returns when
    /// they are there. Another number of bytes, or memory that is not this device's, is [`code::INPUT`]. May be null as
    /// `buffer_allocate`. Since 1.0.
    pub buffer_copy: Option<BufferCopy>,

    /// Tells the bytes of device memory that an instance of the model would take, before it is loaded; 0 if not known. May be
    /// null: not known. Since 1.0.
    pub model_estimate: Option<ModelEstimate>,

    /// Loads a model. The host owns the handle and ends it with `model_unload`. Since 1.0.
    pub model_load: Option<ModelLoad>,
    /// Ends a model and everything it holds. The handle is gone afterwards. Since 1.0.
    pub model_unload: Option<ModelUnload>,
    /// Tells inputs and outputs. What `out` gets belongs to the model, does not change, and is valid until
    /// `model_unload`. Since 1.0.
    pub model_info: Option<ModelInfo>,

    /// Makes an instance. The host owns the handle and ends it with `instance_destroy`. Since 1.0.
    pub instance_create: Option<InstanceCreate>,
    /// Ends an instance. The handle is gone afterwards. Since 1.0.
    pub instance_destroy: Option<InstanceDestroy>,
    /// Tells what the instance holds, now, and whether its runs can be ended early. Since 1.0.
    pub instance_status: Option<InstanceStatusEntry>,
    /// Runs the model and returns when the results are there. `run` may be null: nothing belongs to it. Since 1.0.
    ///
    /// The library owns each of `inputs` from the call on, whether it succeeds or fails, and ends each by its deleter
    /// exactly once, on any thread: at the latest when the instance is ended, or with an output that is made of it. An input may also
    /// be handed back itself as an output, without a copy. Inputs are only read, for others may read them too; they are in host memory, or in
    /// the device's if this device handle gave them. Count, type and shape of inputs and outputs are the library's to check: another is
    /// [`code::INPUT`]. A placed output is written in its place; see [`Output`] for who owns the others.
    pub instance_infer: Option<InstanceInfer>,
    /// Begins a run and returns, after which `finished` is called, or before: once, on any thread. Inputs, outputs and places are
    /// as for `instance_infer`, except that `outputs` and the places stay valid until then. `inputs` and `run` do not. If this returns a failure
    /// `finished` is not called. `finished` does not block, though it may end tensors. A run counts as a call that is
    /// under way until `finished` has been called: the instance may be ended on another thread before that call has
    /// returned, and its end waits for whatever is left of it. May be null: the host runs on threads of its own, as it should where
    /// the run would be over before this returns. Since 1.0.
    pub instance_submit: Option<InstanceSubmit>,
    /// Asks for the run `id` of the instance, which is not 0, to end soon with [`code::CANCELLED`], and returns without waiting. The run may
    /// still succeed; one that is not under way is nothing to do and nothing to remember, and so is every run of an instance whose
    /// [`InstanceStatus::can_cancel`] is 0. May be null: no run can be ended. Since 1.0.
    pub instance_cancel: Option<InstanceCancel>,
}

impl Table {
    /// A table without entries.
    pub(crate) const EMPTY: Self = Self {
        major: 0,
        minor: 0,
        size: 0,
        backend_open: None,
        backend_close: None,
        backend_describe: None,
        device_open: None,
        device_close: None,
        device_status: None,
        buffer_allocate: None,
        buffer_copy: None,
        model_estimate: None,
        model_load: None,
        model_unload: None,
        model_info: None,
        instance_create: None,
        instance_destroy: None,
        instance_status: None,
        instance_infer: None,
        instance_submit: None,
        instance_cancel: None,
    };
}

impl Text {
    /// Text that borrows `text`; as valid as that is.
    pub const fn of(text: &str) -> Self {
        Self::of_bytes(text.as_bytes())
    }

    /// Text of bytes that need not be UTF-8: a path.
    pub const fn of_bytes(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), len: bytes.len() }
    }
}
