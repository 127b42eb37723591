//! The plug-in as a host opens it.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::{Backend, BackendError, host};

/// The library that cargo built; these tests lie in target/PROFILE/deps.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let library = test.ancestors().nth(2).unwrap().join("liboutrigger_cuda_torch.so");
    assert!(library.is_file(), "{} is missing: run `cargo build -p outrigger-cuda-torch`", library.display());
    library
}

pub(crate) fn open(settings: &[(&str, &Path)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings: Vec<_> =
        settings.iter().map(|(key, value)| ((*key).to_owned(), value.display().to_string())).collect();
    host::load(&library(), &settings)
}

/// Why there is no device.
pub(crate) fn reason(settings: &[(&str, &Path)]) -> String {
    let backend = open(settings).unwrap();
    let info = backend.info();
    assert!(
        info.devices.is_empty() && info.formats == ["torchscript"] && info.name == "cuda_torch",
        "{info:?}"
    );
    info.reason.clone().unwrap()
}
