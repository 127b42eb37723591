//! What is said where something is missing: the driver, a GPU, a libtorch that has CUDA.

mod support;

use std::path::Path;

use outrigger_testkit::cuda::driver;
use support::{open, reason};

#[test]
fn without_a_driver_or_a_gpu_there_are_no_devices_and_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let check = |driver: &Path, expected: &[&str]| {
        let reason = reason(&[("cuda_driver", driver), ("libtorch", Path::new("/nowhere"))]);
        for words in expected {
            assert!(reason.contains(words), "{words} is not in: {reason}");
        }
    };
    check(
        Path::new("/nowhere/libcuda.so.1"),
        &[
            "NVIDIA driver not found: /nowhere/libcuda.so.1: ",
            "No such file",
            "; install the driver of the GPU",
        ],
    );
    check(
        &driver(folder.path(), &["VERSION=12040"]),
        &["the NVIDIA driver is for CUDA 12.4, PyTorch needs 13.0", "update the driver"],
    );
    check(&driver(folder.path(), &["COUNT=0"]), &["has no GPU for this process", "CUDA_VISIBLE_DEVICES"]);
    check(
        &driver(folder.path(), &["CAPABILITY=6"]),
        &["compute capability 7.5 is needed", "Pretended GPU (6.0)"],
    );
}

#[test]
fn a_libtorch_without_cuda_will_not_do() {
    let core = support::library().with_file_name("outrigger_torch_core.so");
    if !core.is_file() {
        println!("skipped: no libtorch is set up");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (driver, libtorch) = (driver(folder.path(), &[]), folder.path().join("torch"));
    let check = |expected: &str| {
        let reason = reason(&[("cuda_driver", &driver), ("libtorch", &libtorch)]);
        assert_eq!(
            reason,
            format!("no libtorch 2.11.0 with CUDA; tried `{}`: {expected}", libtorch.display())
        );
    };
    check("there is no lib/libc10.so");
    std::fs::create_dir_all(libtorch.join("lib")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(libtorch.join(name), text).unwrap();
    for name in ["libc10.so", "libtorch_cpu.so"] {
        write(&format!("lib/{name}"), "no library");
    }
    check("there is no lib/libc10_cuda.so");
    for name in ["libc10_cuda.so", "libtorch_cuda.so"] {
        write(&format!("lib/{name}"), "no library");
    }
    write("version.py", "__version__ = '2.12.0+cu130'\n");
    check("is version 2.12.0");
    write("version.py", "__version__ = '2.11.0+cu130'\n");
    let reason = reason(&[("cuda_driver", &driver), ("libtorch", &libtorch)]);
    assert!(reason.starts_with("libtorch does not load: ") && reason.contains("file too short"), "{reason}");
}

#[test]
fn settings_that_are_wrong_are_named_whatever_is_missing() {
    let fails = |key, value: &str, expected: &str| {
        let error = open(&[("cuda_driver", Path::new("/nowhere")), (key, Path::new(value))]).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    };
    fails("colour", "red", "unknown setting `colour`; there are `libtorch`");
    fails("memory_bytes", "1GiB", "setting `memory_bytes` is `1GiB`, not a number of bytes");
    fails("kind", "cpu_torch", "unknown setting `kind`");
}
