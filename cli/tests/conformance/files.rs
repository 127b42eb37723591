//! What the cases run: models for each backend, and the example in C.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_backend::DataType;
use outrigger_backend::conformance::Fixtures;
use outrigger_backend::{ModelInfo, TensorInfo};
use outrigger_testkit::onnx::{self, Dim};
use outrigger_testkit::torchscript::{self, Module};
use outrigger_testkit::webgpu;

use crate::adder;
use crate::signed::Signatures;

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
    let folder = folder.join("onnx");
    std::fs::create_dir_all(&folder).unwrap();
    onnx::fixtures(&folder, &onnx::TYPES)
}

/// For libtorch, with what is to be said of each file beside it. Of `nonzero` the outputs are said as well: how many are found in zeros does
/// not depend on how many are looked at.
pub(crate) fn torchscript(folder: &Path) -> (Fixtures, Signatures) {
    use DataType::*;
    let write = writer(folder, "torchscript");
    let mut signatures = Signatures::new();
    let mut write = |name: &str, module: Module, inputs: Vec<TensorInfo>, outputs: Vec<TensorInfo>| {
        let path = write(name, &module.archive());
        signatures.insert(path.clone(), ModelInfo { inputs, outputs });
        path
    };
    let row = |name, data_type, width| TensorInfo::new(name, data_type, &[(-1, "batch"), (width, "")]);
    let rows = |width| vec![row("x", Fp32, width)];
    let (x, y, z) = (row("x", Fp32, 3), row("y", Fp32, 3), row("z", Fp32, 3));
    let identity = torchscript::TYPES.map(|data_type| {
        let [x, y] = ["x", "y"].map(|name| row(name, data_type, 2));
        (data_type, write(data_type.name(), torchscript::identity(), vec![x], vec![y]))
    });
    let found = TensorInfo::new("y", Int64, &[(1, ""), (-1, "")]);
    let (column, line) = (
        TensorInfo::new("x", Fp32, &[(-1, "n"), (1, "")]),
        TensorInfo::new("y", Fp32, &[(1, ""), (-1, "m")]),
    );
    let fixtures = Fixtures {
        add: write("add", torchscript::add(), vec![x, y], vec![z]),
        identity: identity.into(),
        nonzero: write(
            "nonzero",
            torchscript::non_zero(),
            vec![TensorInfo::new("x", Fp32, &[(-1, "")])],
            vec![found],
        ),
        strings: None,
        outer: Some(write("outer", torchscript::add(), vec![column, line], vec![])),
        slow: None,
        stubborn: Some(write("stubborn", torchscript::mlp(&[256, 256]), rows(256), vec![])),
        weights: Some((write("weights", torchscript::mlp(&[1024, 1024, 1024]), rows(1024), vec![]), 8 << 20)),
        scratch: folder.join("torchscript/scratch"),
    };
    (fixtures, signatures)
}

pub(crate) fn settings_of_cpu_torch() -> Vec<(String, String)> {
    vec![("intra_threads".into(), "2".into())]
}

/// With the libtorch that `OUTRIGGER_TEST_TORCH_CUDA` names, else with that of `python3`.
pub(crate) fn settings_of_cuda_torch() -> Vec<(String, String)> {
    let libtorch = std::env::var("OUTRIGGER_TEST_TORCH_CUDA").ok();
    libtorch.map(|folder| ("libtorch".into(), folder)).into_iter().collect()
}

/// For ONNX Runtime with WebGPU: each has an operator that WebGPU has.
pub(crate) fn webgpu(folder: &Path) -> Fixtures {
    use DataType::*;
    let write = writer(folder, "webgpu");
    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    let identity =
        |data_type: DataType| (data_type, write(data_type.name(), &onnx::identity(data_type, &row)));
    Fixtures {
        add: write("add", &onnx::add(3)),
        identity: [Fp32, Fp16, Int32, Uint32].map(identity).into(),
        nonzero: write("nonzero", &onnx::non_zero_of_abs()),
        strings: None,
        outer: Some(write("outer", &onnx::outer_sum())),
        slow: None,
        // Its runs cannot be cancelled.
        stubborn: Some(write("stubborn", &onnx::add(3))),
        weights: Some((write("weights", &onnx::mlp(&[1024, 1024, 1024])), 8 << 20)),
        scratch: folder.join("webgpu/scratch"),
    }
}

/// With WebGPU's library, where there is one, on a driver in software.
pub(crate) fn settings_of_gpu() -> Vec<(String, String)> {
    let library = webgpu::set_up().map(|webgpu| ("onnxruntime".into(), webgpu.library.display().to_string()));
    library.into_iter().chain([("software".into(), "true".into())]).collect()
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
