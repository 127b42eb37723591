//! For tests only: a replica as a child process, models made in memory, what Python gives for models of its own, blob storage and a proxy that
//! fails in front of it, servers to stand in front of, Vulkan, and WebGPU and CUDA without a GPU.

pub mod agreement;
pub mod cuda;
pub mod faults;
pub mod http;
pub mod oidc;
pub mod onnx;
pub mod replica;
pub mod storage;
pub mod torchscript;
pub mod upstream;
pub mod vulkan;
pub mod webgpu;

pub use replica::{Ended, Launch, ReplicaProcess};

/// The repository's root.
pub fn repository() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Python interpreter of the project's environment.
///
/// # Panics
/// If the environment has not been set up; the message says how.
pub fn python() -> std::path::PathBuf {
    let python = repository().join(".venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `cargo xtask setup`", python.display());
    python
}

/// ONNX Runtime's library: `OUTRIGGER_ONNXRUNTIME`, else that of the project's environment.
///
/// # Panics
/// If there is none; the message says how to get it.
pub fn onnxruntime() -> std::path::PathBuf {
    if let Some(path) = std::env::var_os("OUTRIGGER_ONNXRUNTIME") {
        return path.into();
    }
    let libraries = repository().join(".venv/lib");
    let found = std::fs::read_dir(&libraries).into_iter().flatten().flatten().find_map(|python| {
        let folder = python.path().join("site-packages/onnxruntime/capi");
        let files = std::fs::read_dir(folder).ok()?.flatten();
        files.map(|file| file.path()).find(|file| {
            file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
        })
    });
    found.unwrap_or_else(|| panic!("no ONNX Runtime below {}: run `cargo xtask setup`", libraries.display()))
}
