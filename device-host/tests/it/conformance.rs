//! The suite that every backend passes in process, passed through a child.

use std::path::PathBuf;

use outrigger_backend::DataType;
use outrigger_backend::conformance::{self, Fixtures};
use outrigger_device_host::Options;
use outrigger_testkit::onnx::{self, Dim};

use crate::support::{example, executable};

#[test]
fn the_fake_conforms_through_a_child() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let types = [DataType::Fp32, DataType::Fp64, DataType::Uint8, DataType::Int64];
    let fixtures = Fixtures {
        add: write("add", "add \n"),
        identity: types
            .map(|data_type| (data_type, write(data_type.name(), &format!("identity {data_type}"))))
            .into(),
        nonzero: write("nonzero", "nonzero \n"),
        strings: Some(write("strings", "identity BYTES")),
        outer: Some(write("outer", "outer \n")),
        slow: Some(write("slow", "slow 60000")),
        stubborn: Some(write("stubborn", "stubborn 20")),
        weights: Some((write("weights", "weights 8388608"), 8 << 20)),
        scratch,
    };
    let options = Options::new(executable(), example("libdevice_host_adder.so"), "adder", &[]);
    let backend = outrigger_device_host::open(options).unwrap();
    assert_eq!(backend.info().name, "adder");
    conformance::all(&*backend, &fixtures);
}

/// The plug-in, which `cargo test` of the whole workspace builds beside the tests.
fn cpu() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let plugin = test.parent().unwrap().parent().unwrap().join("liboutrigger_cpu.so");
    assert!(plugin.is_file(), "{} is missing: run `cargo build -p outrigger-cpu`", plugin.display());
    plugin
}

#[test]
fn onnx_on_the_cpu_conforms_through_a_child() {
    use DataType::*;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let types = [Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64];
    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    let identity =
        |data_type: DataType| (data_type, write(data_type.name(), &onnx::identity(data_type, &row)));
    let fixtures = Fixtures {
        add: write("add", &onnx::add(3)),
        identity: types.into_iter().map(identity).collect(),
        nonzero: write("nonzero", &onnx::non_zero()),
        strings: Some(write("strings", &onnx::identity(Bytes, &row))),
        outer: Some(write("outer", &onnx::outer_sum())),
        slow: Some(write("slow", &onnx::slow())),
        stubborn: None,
        weights: Some((write("weights", &onnx::mlp(&[1024, 1024, 1024])), 8 << 20)),
        scratch,
    };
    let library = outrigger_testkit::onnxruntime().display().to_string();
    let settings = [("onnxruntime".to_owned(), library), ("intra_threads".to_owned(), "2".to_owned())];
    let backend = outrigger_device_host::open(Options::new(executable(), cpu(), "cpu", &settings)).unwrap();
    assert!(backend.info().version.contains("ONNX Runtime 1."), "{}", backend.info().version);
    conformance::all(&*backend, &fixtures);
}
