//! DLPack: how tensors cross the table, both ways.
//!
//! Source: `dlpack.h` of DLPack 1.x, structs `DLTensor` and `DLManagedTensor`.

use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;

use crate::abi::Text;
use crate::buffer::{ALIGNMENT, Line, Pinned};
use crate::elsewhere::called;
use crate::{Buffer, DataType, DeviceMemory, MAX_RANK, Shape, ShapeError, Tensor};

/// DLPack's device type for host memory.
pub const KDL_CPU: i32 = 1;
/// DLPack's device type for pinned memory of the host, by CUDA; read as memory of the host.
pub const KDL_CUDA_HOST: i32 = 3;
/// DLPack's device type for a device that has none of its own.
pub const KDL_EXT_DEV: i32 = 12;
/// DLPack's type code for what it has no other code for; with the bits of a [`Text`] it stands for [`DataType::Bytes`].
pub const KDL_OPAQUE_HANDLE: u8 = 3;
/// Bits of an element of [`DataType::Bytes`].
const TEXT_BITS: u8 = (size_of::<Text>() * 8) as u8;

/// Where the data is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDevice {
    /// What kind of memory.
    pub device_type: i32,
    /// Which of that kind.
    pub device_id: i32,
}

/// The type of one element.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    /// One of [`type_code`](crate::abi::type_code).
    pub code: u8,
    /// Bits of one element.
    pub bits: u8,
    /// Always 1 here.
    pub lanes: u16,
}

/// A tensor that somebody else owns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DLTensor {
    /// The allocation.
    pub data: *mut c_void,
    /// Where it is.
    pub device: DLDevice,
    /// Dimensions.
    pub ndim: i32,
    /// The element type.
    pub dtype: DLDataType,
    /// One extent for each dimension.
    pub shape: *mut i64,
    /// Elements from one index to the next for each dimension; null for dense and row-major.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

/// A tensor that owns itself, and ends by its deleter.
#[repr(C)]
#[derive(Debug)]
pub struct DLManagedTensor {
    /// The tensor.
    pub dl_tensor: DLTensor,
    /// For whoever made it.
    pub manager_ctx: *mut c_void,
    /// Ends it; null if nothing is to be done.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// Why a tensor that came over the table is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the tensor is null")]
    Null,
    #[error("strings are in memory of device type {0}, not in the host's")]
    Device(i32),
    #[error("a string has {0} bytes and no address, or too many")]
    String(usize),
    #[error("strings have no place, they are allocated")]
    PlacedStrings,
    #[error("rank {0} is not between 0 and {MAX_RANK}")]
    Rank(i32),
    #[error("element type (code {}, bits {}, lanes {}) is not known", .0.code, .0.bits, .0.lanes)]
    Type(DLDataType),
    #[error("the shape is null")]
    NullShape,
    #[error("the data is null")]
    NullData,
    #[error("the tensor, its strings or the place for it are not aligned")]
    Alignment,
    #[error("the strides are not those of a dense, row-major tensor")]
    Strides,
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// What a checked [`DLTensor`] points to.
pub(crate) struct View {
    pub(crate) data_type: DataType,
    pub(crate) shape: Shape,
    pub(crate) data: NonNull<u8>,
    /// Bytes.
    pub(crate) len: usize,
    /// The device, if it is not in memory of the host's.
    pub(crate) device: Option<DLDevice>,
}

impl DLDataType {
    /// The form that crosses the table.
    pub(crate) fn of(data_type: DataType) -> Self {
        let (code, bits) = data_type.dlpack().unwrap_or((KDL_OPAQUE_HANDLE, TEXT_BITS));
        Self { code, bits, lanes: 1 }
    }

    /// The reverse of [`DLDataType::of`].
    pub(crate) fn data_type(self) -> Option<DataType> {
        match (self.lanes, self.code, self.bits) {
            (1, KDL_OPAQUE_HANDLE, TEXT_BITS) => Some(DataType::Bytes),
            (1, code, bits) => DataType::from_dlpack(code, bits),
            _ => None,
        }
    }
}

/// Describes dense memory; valid as long as `shape` and what `data` points to.
pub(crate) fn describe(data_type: DataType, shape: &Shape, data: *mut u8) -> DLTensor {
    DLTensor {
        data: data.cast(),
        device: DLDevice { device_type: KDL_CPU, device_id: 0 },
        ndim: i32::try_from(shape.extents().len()).unwrap_or(i32::MAX), // at most MAX_RANK
        dtype: DLDataType::of(data_type),
        shape: shape.extents().as_ptr().cast_mut(),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    }
}

/// A tensor on its way to the other side.
struct Given {
    managed: DLManagedTensor,
    /// Owns what `managed` points to.
    _owner: Owner,
}

enum Owner {
    Tensor { _tensor: Tensor, _texts: Vec<Text> },
    Memory { _buffer: Buffer, _extents: Shape },
}

/// Gives a tensor to the other side, which ends it by its deleter. No byte of data is copied.
pub(crate) fn give(tensor: Tensor) -> *mut DLManagedTensor {
    // The extents, the bytes and the texts are on the heap, so moving what owns them does not move them.
    let texts: Vec<Text> = tensor.iter_strings().map(Text::of_bytes).collect();
    let data =
        if tensor.data_type() == DataType::Bytes { texts.as_ptr().cast() } else { tensor.data().as_ptr() };
    let mut dl_tensor = describe(tensor.data_type(), tensor.shape(), data.cast_mut());
    if let Some(memory) = tensor.resident() {
        (dl_tensor.device, dl_tensor.data) = (memory.device(), memory.address() as *mut c_void);
    }
    hand_over(dl_tensor, Owner::Tensor { _tensor: tensor, _texts: texts })
}

/// Gives memory to the other side, to be written to.
pub(crate) fn give_memory(mut buffer: Buffer, extents: Shape) -> *mut DLManagedTensor {
    // As in `give`: moving the owners moves neither bytes nor extents.
    let dl_tensor = describe(DataType::Uint8, &extents, buffer.as_mut_ptr());
    hand_over(dl_tensor, Owner::Memory { _buffer: buffer, _extents: extents })
}

fn hand_over(dl_tensor: DLTensor, owner: Owner) -> *mut DLManagedTensor {
    let managed = DLManagedTensor { dl_tensor, manager_ctx: std::ptr::null_mut(), deleter: Some(end_given) };
    let given = Box::into_raw(Box::new(Given { managed, _owner: owner }));
    // SAFETY: `given` is a live allocation that nobody else has yet.
    unsafe {
        (*given).managed.manager_ctx = given.cast();
        &raw mut (*given).managed
    }
}

unsafe extern "C" fn end_given(managed: *mut DLManagedTensor) {
    // Whatever the bytes belong to may run code when dropped, and no panic may pass to the other side.
    let end = AssertUnwindSafe(|| {
        // SAFETY: the deleter is called once, with the pointer that `hand_over` returned, whose context is the box.
        drop(unsafe { Box::from_raw((*managed).manager_ctx.cast::<Given>()) });
    });
    let _ = catch_unwind(|| called(end));
}

/// A tensor that came from the other side; ended when dropped.
struct Taken {
    _owned: Owned,
    data: NonNull<u8>,
    len: usize,
    home: Home,
}

/// Something that has to live as long as a tensor.
pub(crate) type Keep = Arc<dyn Send + Sync>;

/// Which of this side's open devices a tensor came from, as long as what keeps it lives; 0 for none.
pub(crate) type Home = usize;

/// The device that memory came from, if it came over the table.
pub(crate) fn home(memory: &DeviceMemory) -> Option<Home> {
    memory.owner().downcast_ref::<Taken>().map(|taken| taken.home)
}

// SAFETY: by the table's contract a tensor may be read and ended on any thread, and nobody writes to it.
unsafe impl Send for Taken {}
// SAFETY: as above; reading is all that a shared reference allows.
unsafe impl Sync for Taken {}

impl Taken {
    fn new(managed: NonNull<DLManagedTensor>, keeps: Option<Keep>, home: Home) -> Self {
        let owned = Owned(Some(Ending { managed, keeps }));
        Self { _owned: owned, data: NonNull::dangling(), len: 0, home }
    }
}

impl AsRef<[u8]> for Taken {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `take` has checked pointer and length as far as they can be; the deleter has not been called yet.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

/// Ends a tensor when dropped.
struct Owned(Option<Ending>);

struct Ending {
    managed: NonNull<DLManagedTensor>,
    /// What the bytes may be part of; dropped after the tensor is ended.
    keeps: Option<Keep>,
}

thread_local! {
    /// Tensors to be ended after the one whose deleter is running; `None` if none is.
    static NEXT: RefCell<Option<Vec<Ending>>> = const { RefCell::new(None) };
}

impl Drop for Owned {
    /// A tensor that was handed back holds the one that it was made of, and that perhaps a third: one after the other, for no
    /// stack is deep enough for all of them. It is enough that the host's side does so.
    fn drop(&mut self) {
        let Some(first) = self.0.take() else { return };
        if first.keeps.is_none() {
            return first.now();
        }
        let mut next = Some(first);
        let outermost = NEXT.try_with(|list| match &mut *list.borrow_mut() {
            Some(list) => {
                list.extend(next.take());
                false
            }
            list @ None => {
                *list = Some(Vec::new());
                true
            }
        });
        while let Some(ending) = next {
            ending.now();
            next = NEXT.try_with(|list| list.borrow_mut().as_mut().and_then(Vec::pop)).ok().flatten();
        }
        if outermost == Ok(true) {
            let _ = NEXT.try_with(|list| list.take());
        }
    }
}

impl Ending {
    fn now(self) {
        // SAFETY: the tensor was given to this side, which ends it here and nowhere else.
        unsafe {
            if let Some(deleter) = self.managed.as_ref().deleter {
                deleter(self.managed.as_ptr());
            }
        }
    }
}

/// Takes a tensor from the other side, without a copy but of strings. It is ended when the last clone of the result is dropped, and
/// at once if it is refused. `keeps` lives until then too.
///
/// # Safety
/// `managed` is null, or a tensor by the table's contract that is this side's from now on.
pub(crate) unsafe fn take(
    managed: *mut DLManagedTensor,
    keeps: Option<Keep>,
    home: Home,
) -> Result<Tensor, Fault> {
    let managed = aligned(managed)?;
    let mut taken = Taken::new(managed, keeps, home);
    // SAFETY: the caller promises that the tensor is one.
    let view = unsafe { view(&managed.as_ref().dl_tensor) }?;
    if view.data_type == DataType::Bytes {
        // SAFETY: the caller promises that the elements are texts.
        return unsafe { strings(&view) };
    }
    if let Some(device) = view.device {
        let memory = DeviceMemory::new(device, view.data.as_ptr() as usize, view.len, Arc::new(taken));
        return Ok(Tensor::on_device(view.data_type, view.shape, memory)?);
    }
    (taken.data, taken.len) = (view.data, view.len);
    Ok(Tensor::new(view.data_type, view.shape, Bytes::from_owner(taken))?)
}

/// Takes memory that the other side gave: pinned, which is the host's, or the device's.
///
/// # Safety
/// As [`take`], and nobody else reaches the memory until it is ended.
pub(crate) unsafe fn take_memory(
    managed: *mut DLManagedTensor,
    keeps: Keep,
    home: Home,
) -> Result<Memory, Fault> {
    let managed = aligned(managed)?;
    let taken = Taken::new(managed, Some(keeps), home);
    // SAFETY: the caller promises that the tensor is one.
    let view = unsafe { view(&managed.as_ref().dl_tensor) }?;
    if view.data_type == DataType::Bytes {
        return Err(Fault::PlacedStrings);
    }
    Ok(match view.device {
        Some(device) => {
            Memory::Device(DeviceMemory::new(device, view.data.as_ptr() as usize, view.len, Arc::new(taken)))
        }
        None if !is_place(&view) => return Err(Fault::Alignment),
        // SAFETY: promised by the caller.
        None => Memory::Host(Buffer::pinned(unsafe { Pinned::new(view.data, view.len, Box::new(taken)) })),
    })
}

/// One that is not aligned cannot even be ended.
fn aligned(managed: *mut DLManagedTensor) -> Result<NonNull<DLManagedTensor>, Fault> {
    let managed = NonNull::new(managed).ok_or(Fault::Null)?;
    if managed.is_aligned() { Ok(managed) } else { Err(Fault::Alignment) }
}

/// Whether memory is aligned as what outputs are written to.
pub(crate) fn is_place(view: &View) -> bool {
    view.len == 0 || view.data.addr().get().is_multiple_of(ALIGNMENT)
}

/// Memory that came over the table.
pub(crate) enum Memory {
    Host(Buffer),
    Device(DeviceMemory),
}

/// Describes plain bytes.
pub(crate) fn describe_bytes(data: *const u8, extents: &[i64; 1]) -> DLTensor {
    DLTensor {
        data: data.cast_mut().cast(),
        device: DLDevice { device_type: KDL_CPU, device_id: 0 },
        ndim: 1,
        dtype: DLDataType::of(DataType::Uint8),
        shape: extents.as_ptr().cast_mut(),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    }
}

/// Describes memory of a device.
pub(crate) fn describe_memory(memory: &DeviceMemory, extents: &[i64; 1]) -> DLTensor {
    let bytes = describe_bytes(std::ptr::null(), extents);
    DLTensor { data: memory.address() as *mut c_void, device: memory.device(), ..bytes }
}

/// Copies strings.
///
/// # Safety
/// The view's elements are texts, valid now.
unsafe fn strings(view: &View) -> Result<Tensor, Fault> {
    if let Some(device) = view.device {
        return Err(Fault::Device(device.device_type));
    }
    let count = view.shape.elements();
    if count == 0 {
        return Ok(Tensor::strings(view.shape.clone(), &[[0u8; 0]; 0])?);
    }
    if !view.data.cast::<Text>().is_aligned() {
        return Err(Fault::Alignment);
    }
    // SAFETY: as many as the shape has, which was checked to be addressable; promised by the caller.
    let texts = unsafe { std::slice::from_raw_parts(view.data.cast::<Text>().as_ptr(), count) };
    let slices = texts.iter().map(|text| match (text.data.is_null(), text.len) {
        (_, 0) => Ok(&[][..]),
        (false, len) if u32::try_from(len).is_ok() => {
            // SAFETY: not null; promised by the caller.
            Ok(unsafe { std::slice::from_raw_parts(text.data, len) })
        }
        (_, len) => Err(Fault::String(len)),
    });
    Ok(Tensor::strings(view.shape.clone(), &slices.collect::<Result<Vec<_>, _>>()?)?)
}

/// Checks everything about `tensor` that can be checked.
///
/// # Safety
/// `shape` and `strides` are null or point to `ndim` extents.
pub(crate) unsafe fn view(tensor: &DLTensor) -> Result<View, Fault> {
    let rank = usize::try_from(tensor.ndim).ok().filter(|rank| *rank <= MAX_RANK);
    let rank = rank.ok_or(Fault::Rank(tensor.ndim))?;
    let data_type = tensor.dtype.data_type().ok_or(Fault::Type(tensor.dtype))?;
    // SAFETY: the caller promises what the shape points to, and the rank has been checked.
    let extents = unsafe { copy_extents(tensor.shape, rank) }.ok_or(Fault::NullShape)?;
    let shape = Shape::new(extents)?;
    let size = data_type.size().unwrap_or(size_of::<Text>());
    let len = shape.elements().checked_mul(size).ok_or(ShapeError::Overflow)?;
    if !tensor.strides.is_null() {
        // SAFETY: as for the shape.
        let strides = unsafe { copy_extents(tensor.strides, rank) }.ok_or(Fault::Strides)?;
        if !is_dense(shape.extents(), &strides) {
            return Err(Fault::Strides);
        }
    }
    let offset = usize::try_from(tensor.byte_offset).map_err(|_| ShapeError::Overflow)?;
    let start = (tensor.data as usize).checked_add(offset).ok_or(ShapeError::Overflow)?;
    if isize::try_from(len).is_err() || start.checked_add(len).is_none() {
        return Err(ShapeError::Overflow.into());
    }
    let data = match NonNull::new(tensor.data.cast::<u8>()) {
        // No more than a pointer is made; what it may reach is bounded by `len`.
        Some(data) => NonNull::new(data.as_ptr().wrapping_add(offset)).ok_or(Fault::NullData)?,
        None if len == 0 => NonNull::<Line>::dangling().cast(),
        None => return Err(Fault::NullData),
    };
    let is_host = matches!(tensor.device.device_type, KDL_CPU | KDL_CUDA_HOST);
    Ok(View { data_type, shape, data, len, device: (!is_host).then_some(tensor.device) })
}

/// Copies `rank` extents; `None` if there should be some and there are none.
///
/// # Safety
/// `data` is null or points to `rank` extents.
unsafe fn copy_extents(data: *const i64, rank: usize) -> Option<Vec<i64>> {
    if rank == 0 {
        return Some(Vec::new());
    }
    if data.is_null() || !data.is_aligned() {
        return None;
    }
    // SAFETY: neither null nor misaligned, and the caller promises the rest.
    Some(unsafe { std::slice::from_raw_parts(data, rank) }.to_vec())
}

/// Whether `strides` are those of a dense, row-major tensor. The stride of an extent of 1 does not matter, nor does any
/// where there are no elements.
fn is_dense(extents: &[i64], strides: &[i64]) -> bool {
    if extents.contains(&0) {
        return true;
    }
    let mut expected = 1i64;
    for (extent, stride) in extents.iter().zip(strides).rev() {
        if *extent != 1 && *stride != expected {
            return false;
        }
        expected = expected.wrapping_mul(*extent); // a product that overflows is refused for its bytes
    }
    true
}
