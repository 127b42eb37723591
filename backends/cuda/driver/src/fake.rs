//! A driver that is the host's memory. Its devices are numbered from 0; each test takes a few that no other has, so that they can run side
//! by side: what a function is told about is the device whose context is current.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::without_provenance_mut;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::{Address, Driver, Functions, Handle, Number, Status};

/// One device, seen from outside.
#[derive(Clone, Default)]
pub struct Seen {
    /// Contexts that are retained.
    pub contexts: i32,
    /// Blocks that are there, by their address: the device's and pinned ones. What holds them, and how many bytes.
    blocks: BTreeMap<u64, (Vec<u128>, usize)>,
    pinned: BTreeMap<u64, (Vec<u128>, usize)>,
    /// What every call fails with, if any does.
    failure: Status,
    /// Calls that waited for the stream of calls without one.
    pub waits: usize,
}

static DEVICES: Mutex<BTreeMap<Number, Seen>> = Mutex::new(BTreeMap::new());

/// The most bytes that a device gives at once.
pub const MOST_BYTES: usize = 1 << 30;
/// The memory that it says it has.
pub const TOTAL: usize = 16 << 30;

thread_local! {
    static CURRENT: RefCell<Vec<Number>> = const { RefCell::new(Vec::new()) };
}

fn devices() -> MutexGuard<'static, BTreeMap<Number, Seen>> {
    DEVICES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A device of a test's own.
pub fn number() -> Number {
    static NEXT: AtomicI32 = AtomicI32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The driver.
///
/// # Panics
/// Never, for it starts.
pub fn driver() -> Arc<Driver> {
    Driver::over(FUNCTIONS).expect("it starts")
}

/// From now on every call of the device's fails.
pub fn fail(number: Number, failure: Status) {
    devices().entry(number).or_default().failure = failure;
}

/// What there is of a device now.
pub fn seen(number: Number) -> Seen {
    devices().entry(number).or_default().clone()
}

/// The devices whose contexts are current on this thread.
pub fn current() -> Vec<Number> {
    CURRENT.with_borrow(Clone::clone)
}

impl Seen {
    /// Blocks of the device's memory, and pinned ones.
    pub fn blocks(&self) -> (usize, usize) {
        (self.blocks.len(), self.pinned.len())
    }
}

/// Runs for the current device.
fn on(call: impl FnOnce(&mut Seen) -> Status) -> Status {
    // Invalid context.
    let Some(number) = CURRENT.with_borrow(|current| current.last().copied()) else { return 201 };
    let mut devices = devices();
    let seen = devices.entry(number).or_default();
    match seen.failure {
        0 => call(seen),
        failure => failure,
    }
}

/// Zeroed by the allocator, so filled: what was there before is anybody's.
fn block(bytes: usize) -> (Vec<u128>, u64) {
    // Aligned to 256, as the driver's are: one more block of 16 for each that may be skipped.
    let mut block = vec![u128::MAX; bytes.div_ceil(16) + 16];
    let address = (block.as_mut_ptr().expose_provenance() as u64).next_multiple_of(256);
    (block, address)
}

fn holds(blocks: &BTreeMap<u64, (Vec<u128>, usize)>, address: u64, bytes: usize) -> bool {
    blocks.get(&address).is_some_and(|(_, len)| bytes <= *len)
}

unsafe extern "C" fn init(flags: c_uint) -> Status {
    c_int::from(flags != 0)
}

unsafe extern "C" fn driver_version(version: *mut c_int) -> Status {
    // SAFETY: the caller's place.
    unsafe { *version = 13_010 };
    0
}

unsafe extern "C" fn error_name(status: Status, text: *mut *const c_char) -> Status {
    let name = match status {
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => return 1,
    };
    // SAFETY: the caller's place.
    unsafe { *text = name.as_ptr() };
    0
}

unsafe extern "C" fn error_text(status: Status, text: *mut *const c_char) -> Status {
    let name = match status {
        2 => c"out of memory",
        700 => c"an illegal memory access was encountered",
        _ => return 1,
    };
    // SAFETY: the caller's place.
    unsafe { *text = name.as_ptr() };
    0
}

unsafe extern "C" fn device_count(count: *mut c_int) -> Status {
    // SAFETY: the caller's place.
    unsafe { *count = 2 };
    0
}

unsafe extern "C" fn device_get(number: *mut Number, index: c_int) -> Status {
    // SAFETY: the caller's place.
    unsafe { *number = index };
    0
}

/// The first is too old.
unsafe extern "C" fn device_name(name: *mut c_char, room: c_int, number: Number) -> Status {
    let text = if number == 0 { c"Old card" } else { c"Fine card" };
    assert!(room as usize > text.count_bytes());
    // SAFETY: there is room for it.
    unsafe { name.copy_from_nonoverlapping(text.as_ptr(), text.count_bytes()) };
    0
}

unsafe extern "C" fn device_memory(bytes: *mut usize, _number: Number) -> Status {
    // SAFETY: the caller's place.
    unsafe { *bytes = TOTAL };
    0
}

unsafe extern "C" fn device_attribute(value: *mut c_int, attribute: c_int, number: Number) -> Status {
    let told = match (attribute, number) {
        (75, 0) => 6,
        (75, _) => 9,
        (76, _) => 1,
        _ => return 1,
    };
    // SAFETY: the caller's place.
    unsafe { *value = told };
    0
}

unsafe extern "C" fn context_retain(handle: *mut Handle, number: Number) -> Status {
    let mut devices = devices();
    let seen = devices.entry(number).or_default();
    if seen.failure != 0 {
        return seen.failure;
    }
    seen.contexts += 1;
    // SAFETY: the caller's place.
    unsafe { *handle = without_provenance_mut(number as usize + 1) };
    0
}

unsafe extern "C" fn context_release(number: Number) -> Status {
    devices().entry(number).or_default().contexts -= 1;
    0
}

unsafe extern "C" fn context_push(handle: Handle) -> Status {
    let number = handle.addr() as Number - 1;
    assert!(seen(number).contexts > 0, "a context that is not retained");
    CURRENT.with_borrow_mut(|current| current.push(number));
    0
}

unsafe extern "C" fn context_pop(handle: *mut Handle) -> Status {
    let Some(number) = CURRENT.with_borrow_mut(Vec::pop) else { return 201 };
    // SAFETY: the caller's place.
    unsafe { *handle = without_provenance_mut(number as usize + 1) };
    0
}

unsafe extern "C" fn stream_wait(stream: *mut c_void) -> Status {
    assert!(stream.is_null());
    on(|seen| {
        seen.waits += 1;
        0
    })
}

unsafe extern "C" fn memory_info(free: *mut usize, total: *mut usize) -> Status {
    on(|seen| {
        let taken: usize = seen.blocks.values().map(|(_, len)| len).sum();
        // SAFETY: the caller's places.
        unsafe { (*free, *total) = (TOTAL - taken, TOTAL) };
        0
    })
}

unsafe extern "C" fn memory_take(address: *mut Address, bytes: usize) -> Status {
    on(|seen| {
        match bytes {
            0 => return 1,
            1..=MOST_BYTES => {}
            _ => return 2,
        }
        let (block, at) = block(bytes);
        seen.blocks.insert(at, (block, bytes));
        // SAFETY: the caller's place.
        unsafe { *address = at };
        0
    })
}

unsafe extern "C" fn memory_free(address: Address) -> Status {
    on(|seen| c_int::from(seen.blocks.remove(&address).is_none()))
}

fn pointer(address: Address) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

unsafe extern "C" fn memory_set(address: Address, value: u8, bytes: usize) -> Status {
    on(|seen| {
        if !holds(&seen.blocks, address, bytes) {
            return 1;
        }
        // SAFETY: a block of as many bytes.
        unsafe { pointer(address).write_bytes(value, bytes) };
        0
    })
}

unsafe extern "C" fn copy_to_device(to: Address, from: *const c_void, bytes: usize) -> Status {
    on(|seen| {
        if bytes == 0 || !holds(&seen.blocks, to, bytes) {
            return 1;
        }
        // SAFETY: a block of as many bytes, and the caller's.
        unsafe { pointer(to).copy_from_nonoverlapping(from.cast(), bytes) };
        0
    })
}

unsafe extern "C" fn copy_to_host(to: *mut c_void, from: Address, bytes: usize) -> Status {
    on(|seen| {
        // Also results of ONNX Runtime's, which are no blocks of this driver.
        let known = seen.blocks.contains_key(&from);
        if bytes == 0 || known && !holds(&seen.blocks, from, bytes) {
            return 1;
        }
        // SAFETY: as many bytes on both sides.
        unsafe { pointer(from).copy_to_nonoverlapping(to.cast(), bytes) };
        0
    })
}

unsafe extern "C" fn copy_on_device(to: Address, from: Address, bytes: usize) -> Status {
    on(|seen| {
        // Also from results of ONNX Runtime's, which are no blocks of this driver.
        let known = seen.blocks.contains_key(&from);
        if bytes == 0 || !holds(&seen.blocks, to, bytes) || known && !holds(&seen.blocks, from, bytes) {
            return 1;
        }
        // SAFETY: as many bytes on both sides.
        unsafe { pointer(from).copy_to(pointer(to), bytes) };
        0
    })
}

unsafe extern "C" fn pinned_take(address: *mut *mut c_void, bytes: usize, flags: c_uint) -> Status {
    on(|seen| {
        match (bytes, flags) {
            (1..=MOST_BYTES, 1) => {}
            (0, _) => return 1,
            _ => return 2,
        }
        let (block, at) = block(bytes);
        seen.pinned.insert(at, (block, bytes));
        // SAFETY: the caller's place.
        unsafe { *address = pointer(at).cast() };
        0
    })
}

unsafe extern "C" fn pinned_free(address: *mut c_void) -> Status {
    on(|seen| c_int::from(seen.pinned.remove(&(address.addr() as u64)).is_none()))
}

/// Its table.
pub const FUNCTIONS: Functions = Functions {
    init,
    driver_version,
    error_name,
    error_text,
    device_count,
    device_get,
    device_name,
    device_memory,
    device_attribute,
    context_retain,
    context_release,
    context_push,
    context_pop,
    stream_wait,
    memory_info,
    memory_take,
    memory_free,
    memory_set,
    copy_to_device,
    copy_to_host,
    copy_on_device,
    pinned_take,
    pinned_free,
};
