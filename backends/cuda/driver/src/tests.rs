//! What holds on any driver, on one that is the host's memory.

use std::path::Path;
use std::sync::Arc;

use outrigger_backend::BackendError;

use crate::fake::{self, TOTAL, fail, number, seen};
use crate::*;

fn context() -> (Number, Arc<Context>) {
    let number = number();
    (number, Context::retain(&fake::driver(), number).unwrap())
}

fn device_bytes(context: &Context, block: &DeviceBlock, len: usize) -> Vec<u8> {
    let mut bytes = vec![7; len];
    copy_to_host(context, block.address(), &mut bytes).unwrap();
    bytes
}

#[test]
fn gpus_are_told_without_a_context() {
    let driver = fake::driver();
    assert_eq!(driver.version(), (13, 1));
    let gpu =
        |number, name: &str, capability| Gpu { number, name: name.into(), memory: TOTAL as u64, capability };
    assert_eq!(driver.gpus().unwrap(), [gpu(0, "Old card", (6, 1)), gpu(1, "Fine card", (9, 1))]);
}

#[test]
fn memory_is_zeroed_aligned_counted_and_given_back() {
    let (number, context) = context();
    for len in [0, 1, 63, 4096] {
        let block = DeviceBlock::zeroed(&context, len).unwrap();
        let mut pinned = HostBlock::zeroed(&context, len).unwrap();
        assert_eq!(seen(number).blocks(), (1, 1));
        assert!(block.address() != 0 && block.address().is_multiple_of(64));
        assert!(pinned.as_ref().as_ptr().addr().is_multiple_of(64));
        assert_eq!((device_bytes(&context, &block, len), pinned.as_ref()), (vec![0; len], &vec![0; len][..]));
        let free = context.memory().unwrap().free;
        assert_eq!(free, (TOTAL - len.max(1)) as u64);
        pinned.as_mut().fill(3);
        copy_to_device(&context, pinned.as_ref(), block.address()).unwrap();
        assert_eq!(device_bytes(&context, &block, len), vec![3; len]);
    }
    assert_eq!(seen(number).blocks(), (0, 0));
    assert_eq!(seen(number).contexts, 1);
    drop(context);
    assert_eq!(seen(number).contexts, 0);
}

#[test]
fn memory_outlives_whoever_had_the_context() {
    let (number, context) = context();
    let block = DeviceBlock::zeroed(&context, 8).unwrap();
    drop(context);
    assert_eq!((seen(number).contexts, seen(number).blocks()), (1, (1, 0)));
    drop(block);
    assert_eq!((seen(number).contexts, seen(number).blocks()), (0, (0, 0)));
}

#[test]
fn the_context_is_current_during_a_call_on_any_thread_and_not_after_it() {
    let (number, context) = context();
    let (other, another) = self::context();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let block = DeviceBlock::zeroed(&context, 8).unwrap();
                assert!(fake::current().is_empty());
                let inside = another.call("test", |_| {
                    // What was current before is so again.
                    copy_to_device(&context, &[1; 8], block.address()).unwrap();
                    assert_eq!(fake::current(), [other]);
                    0
                });
                inside.unwrap();
                assert_eq!(device_bytes(&context, &block, 8), [1; 8]);
            });
        }
    });
    assert_eq!(seen(number).blocks(), (0, 0));
}

#[test]
fn what_is_copied_has_arrived() {
    let (number, context) = context();
    let block = DeviceBlock::zeroed(&context, 8).unwrap();
    assert_eq!(seen(number).waits, 1);
    copy_to_device(&context, &[1; 8], block.address()).unwrap();
    assert_eq!(seen(number).waits, 2);
    copy_to_device(&context, &[], block.address()).unwrap();
    copy_on_device(&context, block.address(), block.address(), 0).unwrap();
    assert_eq!(seen(number).waits, 2, "of nothing");
    let other = DeviceBlock::zeroed(&context, 8).unwrap();
    copy_on_device(&context, block.address(), other.address(), 8).unwrap();
    assert_eq!(seen(number).waits, 4);
    assert_eq!(device_bytes(&context, &other, 8), [1; 8]);
}

#[test]
fn what_the_device_does_not_take_back_stays_counted() {
    let (number, context) = context();
    drop(DeviceBlock::zeroed(&context, 8).unwrap());
    assert_eq!(context.unfreed(), 0);
    let block = DeviceBlock::zeroed(&context, 8).unwrap();
    fail(number, 719);
    drop(block);
    assert_eq!(context.unfreed(), 8);
}

#[test]
fn errors_are_sorted_and_named() {
    let (number, context) = context();
    let error = DeviceBlock::zeroed(&context, fake::MOST_BYTES + 1).err().unwrap();
    let text = "CUDA failure 2: out of memory (CUDA_ERROR_OUT_OF_MEMORY) in cuMemAlloc";
    assert_eq!(error.to_string(), text);
    assert!(matches!(BackendError::from(error), BackendError::OutOfMemory(told) if told == text));
    let error = HostBlock::zeroed(&context, fake::MOST_BYTES + 1).err().unwrap();
    assert!(
        matches!(BackendError::from(error), BackendError::OutOfMemory(told) if told.contains("cuMemHostAlloc"))
    );
    let block = DeviceBlock::zeroed(&context, 8).unwrap();
    let error = copy_to_device(&context, &[0; 9], block.address()).unwrap_err();
    assert!(
        matches!(BackendError::from(error), BackendError::Internal(told) if told.contains("CUDA failure 1"))
    );
    fail(number, 700);
    let error = context.memory().err().unwrap();
    assert!(
        matches!(BackendError::from(error), BackendError::Lost(told) if told.contains("illegal memory access"))
    );
    assert!(fake::current().is_empty(), "also after an error");
}

#[test]
fn a_library_that_is_missing_or_is_no_driver_is_told() {
    let told = |path: &str| Driver::open(Path::new(path)).err().unwrap().to_string();
    let missing = told("/nowhere/libcuda.so.1");
    assert!(missing.starts_with("NVIDIA driver not found: /nowhere/libcuda.so.1: "), "{missing}");
    assert!(missing.contains("No such file") && missing.contains("install the driver"), "{missing}");
    #[cfg(target_os = "linux")]
    assert_eq!(told("libc.so.6"), "libc.so.6 is no driver of NVIDIA's: it has no function `cuInit`");
}
