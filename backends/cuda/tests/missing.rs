//! What is said where something is missing: the driver, a GPU, the right library of ONNX Runtime, CUDA's libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_backend::BackendInfo;
use outrigger_testkit::cuda::driver;

/// What the backend says of itself with these settings.
fn info(settings: &[(&str, &Path)]) -> BackendInfo {
    let settings: Vec<_> =
        settings.iter().map(|(key, value)| ((*key).to_owned(), value.display().to_string())).collect();
    outrigger_cuda::open(&settings).unwrap().info().clone()
}

/// Why there is no device.
fn reason(settings: &[(&str, &Path)]) -> String {
    let info = info(settings);
    assert!(info.devices.is_empty(), "{:?}", info.devices);
    info.reason.unwrap()
}

#[test]
fn without_a_driver_or_a_gpu_there_are_no_devices_and_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let onnxruntime = outrigger_testkit::onnxruntime();
    let check = |driver: &Path, expected: &[&str]| {
        let reason = reason(&[("onnxruntime", &onnxruntime), ("cuda_driver", driver)]);
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
        &["the NVIDIA driver is for CUDA 12.4", "needs 13.0", "update the driver"],
    );
    check(&driver(folder.path(), &["COUNT=0"]), &["has no GPU for this process", "CUDA_VISIBLE_DEVICES"]);
    check(
        &driver(folder.path(), &["COUNT=2", "CAPABILITY=6"]),
        &["compute capability 7.5 is needed", "Pretended GPU (6.0), Pretended GPU (6.0)"],
    );
    // The library of the tests is that of the package for the CPU.
    check(
        &driver(folder.path(), &[]),
        &["has no CUDAExecutionProvider, only ", "install the Python package onnxruntime-gpu"],
    );
}

#[test]
fn settings_that_are_not_known_are_refused() {
    let error = outrigger_cuda::open(&[("colour".into(), "red".into())]).err().unwrap().to_string();
    assert!(error.contains("unknown setting `colour`"), "{error}");
}

/// With the library of the package `onnxruntime-gpu`, which is large, and none of those that it needs. In a process of its own, for the
/// first library of ONNX Runtime stays.
#[test]
fn libraries_of_cuda_s_that_are_missing_are_named() {
    const ALONE: &str = "OUTRIGGER_TEST_ALONE";
    let Some(library) = std::env::var_os("OUTRIGGER_TEST_ORT_GPU") else {
        println!("skipped: no library of ONNX Runtime with CUDA");
        return;
    };
    if std::env::var_os(ALONE).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again
            .args(["libraries_of_cuda_s_that_are_missing_are_named", "--exact", "--nocapture"])
            .env(ALONE, "1")
            .env_remove("LD_LIBRARY_PATH");
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{errors}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (library, driver) = (PathBuf::from(library), driver(folder.path(), &[]));
    let ask = || reason(&[("onnxruntime", &library), ("cuda_driver", &driver), ("libraries", folder.path())]);
    let reason = ask();
    assert!(reason.starts_with("CUDAExecutionProvider: Failed to load library "), "{reason}");
    assert!(reason.contains("libcublasLt.so.13: cannot open shared object file"), "{reason}");
    assert!(reason.contains(&format!("looked in {}", folder.path().display())), "{reason}");
    std::fs::write(folder.path().join("libcublasLt.so.13"), "no library").unwrap();
    let reason = ask();
    assert!(reason.contains("these do not open: ") && reason.contains("file too short"), "{reason}");
}
