//! Libraries that break the contract of the table: whatever can be seen is an error, never undefined behaviour.
#![allow(unsafe_code, reason = "plays a library on the other side of the C boundary")]

#[path = "../examples/adder.rs"]
mod adder;

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrigger_backend::abi::{
    self, DLDataType, DLDevice, DLManagedTensor, DLTensor, KDL_CPU, KDL_OPAQUE_HANDLE, Message, Table, Text,
};
use outrigger_backend::conformance::{fp32, instance};
use outrigger_backend::export::{Open, table};
use outrigger_backend::{
    Backend, BackendError, Buffer, DataType, LoadOptions, Output, Run, Shape, Tensor, host,
};

struct Adder;

impl Open for Adder {
    fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
        adder::open(settings)
    }
}

fn attach(table: &Table) -> Result<Arc<dyn Backend>, BackendError> {
    // SAFETY: the tables of these tests lie in what they say, but their pointers are readable.
    unsafe { host::attach(table, "hostile", &[]) }
}

fn refused(change: impl FnOnce(&mut Table)) -> String {
    let mut table = table::<Adder>();
    change(&mut table);
    attach(&table).err().expect("the table is refused").to_string()
}

#[test]
fn tables_are_checked_before_they_are_used() {
    let broken = |what: &str| {
        format!("internal error of the backend: backend `hostile` broke the contract of the table: {what}")
    };
    assert_eq!(refused(|table| table.major = 2), "backend `hostile` speaks ABI 2.0, this host needs 1.0");
    assert_eq!(refused(|table| table.size = 8), broken("its table has a size of 8 bytes"));
    assert_eq!(refused(|table| table.size -= 4), broken("its table has a size of 156 bytes"));
    assert_eq!(refused(|table| table.model_load = None), broken("its table has no `model_load`"));
    assert_eq!(
        refused(|table| table.buffer_copy = None),
        broken("`cpu:0` has memory of its own, which no entry gives or copies")
    );
    // A table that ends early has nulls where ours goes on; one that goes on where ours ends is read as far as ours.
    let short = std::mem::offset_of!(Table, instance_infer);
    assert_eq!(refused(|table| table.size = short), broken("its table has no `instance_infer`"));
    let mut long = table::<Adder>();
    (long.size, long.minor) = (4096, 7);
    assert!(attach(&long).is_ok());
    // SAFETY: null is allowed.
    let error = unsafe { host::attach(null(), "hostile", &[]) }.err().unwrap().to_string();
    assert_eq!(error, broken("it has no table"));
}

#[test]
fn handles_and_descriptions_are_checked() {
    unsafe extern "C" fn open_null(
        _: *const abi::Setting,
        _: usize,
        _: *mut *mut abi::BackendHandle,
        _: *mut Message,
    ) -> i32 {
        0
    }
    unsafe extern "C" fn describe_null(
        _: *mut abi::BackendHandle,
        _: *mut *const abi::Description,
        _: *mut Message,
    ) -> i32 {
        0
    }
    unsafe extern "C" fn describe_wrongly(
        _: *mut abi::BackendHandle,
        out: *mut *const abi::Description,
        _: *mut Message,
    ) -> i32 {
        let name = Text { data: [0xff].as_ptr(), len: 1 };
        let description = abi::Description {
            name,
            version: Text::of("1"),
            formats: null(),
            format_count: 0,
            devices: null(),
            device_count: 0,
            reason: Text::of(""),
        };
        // SAFETY: `out` is the host's. What it gets is leaked.
        unsafe { *out = Box::leak(Box::new(description)) };
        0
    }
    unsafe extern "C" fn lie_about_the_message(
        _: *mut abi::BackendHandle,
        _: *mut *const abi::Description,
        message: *mut Message,
    ) -> i32 {
        // SAFETY: `message` is the host's.
        unsafe { (*message).len = usize::MAX };
        77
    }
    let check = |error: String, expected: &str| assert!(error.contains(expected), "{error}");
    check(refused(|table| table.backend_open = Some(open_null)), "it made a handle that is null");
    check(refused(|table| table.backend_describe = Some(describe_null)), "its description is null");
    check(refused(|table| table.backend_describe = Some(describe_wrongly)), "`name` is no UTF-8 text");
    check(refused(|table| table.backend_describe = Some(lie_about_the_message)), "code 77");
}

static ENDED: AtomicUsize = AtomicUsize::new(0);
static CASE: AtomicUsize = AtomicUsize::new(0);

const CASES: [(&str, &str); 17] = [
    ("good", ""),
    ("device", "is in other memory than was asked for"),
    ("rank over", "rank 33 is not between"),
    ("rank under", "rank -1 is not between"),
    ("type", "element type (code 9, bits 7, lanes 1) is not known"),
    ("lanes", "element type (code 2, bits 32, lanes 4) is not known"),
    ("null shape", "the shape is null"),
    ("null data", "the data is null"),
    ("negative", "extent -3 is negative"),
    ("overflow", "the number of elements overflows"),
    ("strides", "the strides are not those of a dense"),
    ("other type", "is of type INT32, not FP32"),
    ("misaligned", "are not aligned"),
    ("many strings", "there is no memory for 300647710930000 bytes of strings"),
    // What the library writes into the host's question counts for nothing.
    ("index", ""),
    ("memory", "is in other memory than was asked for"),
    ("place", "was not set"),
];

unsafe extern "C" fn end(tensor: *mut DLManagedTensor) {
    ENDED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: `infer` boxed it.
    drop(unsafe { Box::from_raw(tensor) });
}

unsafe extern "C" fn infer(
    _: *mut abi::InstanceHandle,
    inputs: *const *mut DLManagedTensor,
    input_count: usize,
    outputs: *mut abi::Output,
    _: usize,
    _: *const abi::Run,
    _: *mut Message,
) -> i32 {
    static DATA: [f32; 3] = [1., 2., 3.];
    let shape = |extents: [i64; 2]| Box::leak(Box::new(extents)).as_mut_ptr();
    let float = DLDataType { code: 2, bits: 32, lanes: 1 };
    let text = DLDataType { code: KDL_OPAQUE_HANDLE, bits: 8 * size_of::<Text>() as u8, lanes: 1 };
    let mut tensor = DLTensor {
        data: DATA.as_ptr().cast::<c_void>().cast_mut(),
        device: DLDevice { device_type: KDL_CPU, device_id: 0 },
        ndim: 2,
        dtype: float,
        shape: shape([1, 3]),
        strides: shape([3, 1]),
        byte_offset: 0,
    };
    match CASES[CASE.load(Ordering::Relaxed)].0 {
        "device" => tensor.device.device_type = 2,
        "rank over" => tensor.ndim = 33,
        "rank under" => tensor.ndim = -1,
        "type" => tensor.dtype = DLDataType { code: 9, bits: 7, lanes: 1 },
        "lanes" => tensor.dtype.lanes = 4,
        "null shape" => tensor.shape = null_mut(),
        "null data" => tensor.data = null_mut(),
        "negative" => tensor.shape = shape([1, -3]),
        "overflow" => tensor.shape = shape([i64::MAX, i64::MAX]),
        "strides" => (tensor.shape, tensor.strides) = (shape([2, 3]), shape([4, 1])),
        "other type" => tensor.dtype.code = 0,
        "misaligned" => {
            (tensor.dtype, tensor.data) = (text, std::ptr::without_provenance_mut(DATA.as_ptr().addr() | 1))
        }
        // 70000 times the same string, which is never read.
        "many strings" => {
            let all = Text { data: DATA.as_ptr().cast(), len: u32::MAX as usize };
            (tensor.dtype, tensor.shape, tensor.strides) = (text, shape([70_000, 1]), null_mut());
            tensor.data = Box::leak(vec![all; 70_000].into_boxed_slice()).as_mut_ptr().cast();
        }
        // SAFETY: the host passes one output.
        "index" => unsafe { (*outputs).index = 7 },
        "memory" => {
            tensor.device.device_type = 12;
            // SAFETY: as above.
            unsafe { (*outputs).memory = abi::memory::DEVICE }
        }
        _ => {}
    }
    let managed = DLManagedTensor { dl_tensor: tensor, manager_ctx: null_mut(), deleter: Some(end) };
    // SAFETY: the host passes as many inputs as it says, to be ended here, and one output.
    unsafe {
        if CASES[CASE.load(Ordering::Relaxed)].0 == "place" {
            ENDED.fetch_add(1, Ordering::Relaxed);
            (*outputs).place = &raw const (**inputs).dl_tensor;
        } else {
            (*outputs).allocated = Box::into_raw(Box::new(managed));
        }
        for number in 0..input_count {
            let input = *inputs.add(number);
            (*input).deleter.unwrap()(input);
        }
    }
    0
}

#[test]
fn tensors_that_come_back_are_checked_and_ended() {
    let mut table = table::<Adder>();
    table.instance_infer = Some(infer);
    let backend = attach(&table).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, "add x y").unwrap();
    let (_, instance) = instance(&*backend.open(0).unwrap(), &path);
    let input = fp32(&[1, 3], &[1., 2., 3.]);
    for (number, (case, expected)) in CASES.into_iter().enumerate() {
        CASE.store(number, Ordering::Relaxed);
        let mut outputs = [Output::allocate(0)];
        let result = instance.infer(&[input.clone(), input.clone()], &mut outputs, Run::default());
        let [output] = outputs;
        match result {
            Ok(()) => {
                assert_eq!(output.into_tensor().as_ref().map(Tensor::data), Some(input.data()), "{case}")
            }
            Err(BackendError::Internal(text)) => {
                assert!(!expected.is_empty() && text.contains(expected), "{case}: {text}");
            }
            Err(error) => panic!("{case}: {error:?}"),
        }
        assert_eq!(ENDED.load(Ordering::Relaxed), number + 1, "{case}: every tensor is ended once");
    }
    // A library that allocates although it was given a place of that shape: the result is in the place all the same.
    CASE.store(0, Ordering::Relaxed);
    let place = Buffer::zeroed(12).unwrap();
    let address = place.as_ptr();
    let shape = Shape::new([1, 3]).unwrap();
    let mut outputs = [Output::place(0, DataType::Fp32, shape, place).unwrap()];
    instance.infer(&[input.clone(), input.clone()], &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    let output = output.into_tensor().unwrap();
    assert_eq!((output.data(), output.data().as_ptr()), (input.data(), address));
    assert_eq!(ENDED.load(Ordering::Relaxed), CASES.len() + 1);
}

#[test]
fn pinned_memory_that_no_output_may_lie_in_is_refused_and_what_was_in_it_is_gone() {
    unsafe extern "C" fn allocate(
        _: *mut abi::DeviceHandle,
        _: u32,
        bytes: usize,
        out: *mut *mut DLManagedTensor,
        _: *mut Message,
    ) -> i32 {
        // 128 bytes somewhere, at a multiple of 64, or beside it for an odd number of them.
        let room = Box::leak(Box::new([7u8; 192]));
        let start = room.as_ptr().align_offset(64) + bytes % 2;
        let tensor = DLTensor {
            data: room[start..].as_mut_ptr().cast(),
            device: DLDevice { device_type: KDL_CPU, device_id: 0 },
            ndim: 1,
            dtype: DLDataType { code: 1, bits: 8, lanes: 1 },
            shape: Box::leak(Box::new(bytes as i64)),
            strides: null_mut(),
            byte_offset: 0,
        };
        let managed = DLManagedTensor { dl_tensor: tensor, manager_ctx: null_mut(), deleter: None };
        // SAFETY: `out` is the host's. What it gets is leaked.
        unsafe { *out = Box::leak(Box::new(managed)) };
        0
    }
    let mut table = table::<Adder>();
    table.buffer_allocate = Some(allocate);
    let device = attach(&table).unwrap().open(0).unwrap();
    let error = device.pinned(5).unwrap_err();
    assert!(matches!(&error, BackendError::Internal(text) if text.contains("not aligned")), "{error:?}");
    assert_eq!(*device.pinned(6).unwrap(), [0; 6]);
    let error = device.allocate(6).unwrap_err();
    assert!(matches!(&error, BackendError::Internal(text) if text.contains("other memory")), "{error:?}");
}

#[test]
fn a_path_that_a_c_string_would_cut_short_does_not_cross() {
    let device = attach(&table::<Adder>()).unwrap().open(0).unwrap();
    let error = device.load(&LoadOptions::of("/etc/hostname\0.onnx")).err().unwrap();
    assert!(matches!(&error, BackendError::Load(text) if text.contains("a byte of 0")), "{error:?}");
}
