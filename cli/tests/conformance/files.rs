//! What the cases run: models for each backend, and the example in C.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_backend::DataType;
use outrigger_backend::conformance::Fixtures;
use outrigger_testkit::onnx::{self, Dim};

use crate::adder;

/// Writes models into a folder of their own.
fn writer(folder: &Path, name: &str) -> impl Fn(&str, &[u8]) -> PathBuf + use<> {
    let folder = folder.join(name);
    std::fs::create_dir_all(folder.join("scratch")).unwrap();
    move |name, bytes| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// For the examples in Rust and in C.
pub(crate) fn text(folder: &Path) -> Fixtures {
    let write = writer(folder, "text");
    let identity = |data_type: DataType| {
        (data_type, write(data_type.name(), format!("identity {data_type}").as_bytes()))
    };
    Fixtures {
        add: write("add", b"add x y"),
        identity: adder::TYPES.into_iter().map(identity).collect(),
        nonzero: write("nonzero", b"nonzero indices"),
        strings: Some(write("strings", b"identity BYTES")),
        outer: Some(write("outer", b"outer sum")),
        slow: Some(write("slow", b"slow 60000")),
        stubborn: Some(write("stubborn", b"stubborn 20")),
        weights: Some((write("weights", b"weights 8388608"), 8 << 20)),
        scratch: folder.join("text/scratch"),
    }
}

/// For ONNX Runtime.
pub(crate) fn onnx(folder: &Path) -> Fixtures {
    use DataType::*;
    let write = writer(folder, "onnx");
    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    let types = [Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64];
    let identity =
        |data_type: DataType| (data_type, write(data_type.name(), &onnx::identity(data_type, &row)));
    Fixtures {
        add: write("add", &onnx::add(3)),
        identity: types.into_iter().map(identity).collect(),
        nonzero: write("nonzero", &onnx::non_zero()),
        strings: Some(write("strings", &onnx::identity(DataType::Bytes, &row))),
        outer: Some(write("outer", &onnx::outer_sum())),
        slow: Some(write("slow", &onnx::slow())),
        stubborn: None,
        weights: Some((write("weights", &onnx::mlp(&[1024, 1024, 1024])), 8 << 20)),
        scratch: folder.join("onnx/scratch"),
    }
}

pub(crate) fn settings_of_cpu() -> Vec<(String, String)> {
    let library = outrigger_testkit::onnxruntime().display().to_string();
    vec![("onnxruntime".into(), library), ("intra_threads".into(), "2".into())]
}

/// `None` where there is no library of ONNX Runtime that has CUDA. FP32 is FP32, as on the CPU.
pub(crate) fn settings_of_cuda() -> Option<Vec<(String, String)>> {
    let library = std::env::var("OUTRIGGER_TEST_ORT_GPU").ok()?;
    Some(vec![("onnxruntime".into(), library), ("tf32".into(), "false".into())])
}

/// Compiles the example in C.
pub(crate) fn tiny(folder: &Path) -> PathBuf {
    let api = outrigger_testkit::repository().join("backends/api");
    let library = folder.join("libtiny.so");
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-O1", "-shared", "-fPIC", "-pthread", "-I"])
        .arg(api.join("include"))
        .arg("-o")
        .arg(&library);
    let output = cc.arg(api.join("examples/tiny/tiny.c")).output().expect("a C compiler, `cc`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}
