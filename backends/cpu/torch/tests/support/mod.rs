//! The plug-in as a host opens it, and models with what is said of them.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::{
    Backend, BackendError, DataType, Device, Instance, LoadOptions, Model, ModelInfo, TensorInfo, host,
};
use outrigger_testkit::torchscript::Module;

/// The library that cargo built; these tests lie in target/PROFILE/deps.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let library = test.ancestors().nth(2).unwrap().join("liboutrigger_cpu_torch.so");
    assert!(library.is_file(), "{} is missing: run `cargo build -p outrigger-cpu-torch`", library.display());
    library
}

pub(crate) fn open(settings: &[(&str, &str)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings: Vec<_> = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    host::load(&library(), &settings)
}

/// The device; `None`, and a line that says why, where there is no libtorch.
pub(crate) fn device_with(settings: &[(&str, &str)]) -> Option<Arc<dyn Device>> {
    let backend = open(settings).unwrap();
    if let Some(reason) = &backend.info().reason {
        println!("skipped: {reason}");
        return None;
    }
    Some(backend.open(0).unwrap())
}

pub(crate) fn device() -> Option<Arc<dyn Device>> {
    device_with(&[("intra_threads", "2")])
}

/// FP32 `[batch, width]`.
pub(crate) fn row(name: &str, width: i64) -> TensorInfo {
    TensorInfo::new(name, DataType::Fp32, &[(-1, "batch"), (width, "")])
}

/// A folder with a model in it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("model.pt")
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(), bytes).unwrap();
        self.path()
    }

    /// Loads a module of which this is said.
    pub(crate) fn load(
        &self,
        device: &dyn Device,
        module: &Module,
        inputs: &[TensorInfo],
        outputs: &[TensorInfo],
    ) -> Result<Arc<dyn Model>, BackendError> {
        device.load(&options(&self.write(&module.archive()), inputs, outputs))
    }

    /// The same, of one that loads.
    pub(crate) fn instance(
        &self,
        device: &dyn Device,
        module: &Module,
        inputs: &[TensorInfo],
        outputs: &[TensorInfo],
    ) -> (Arc<dyn Model>, Arc<dyn Instance>) {
        let model = self.load(device, module, inputs, outputs).unwrap();
        let instance = model.instance().unwrap();
        (model, instance)
    }

    /// Why it does not load: in one line, which names the file.
    pub(crate) fn refused(&self, result: Result<Arc<dyn Model>, BackendError>) -> String {
        let error = result.err().expect("it does not load");
        assert!(matches!(error, BackendError::Load(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&self.path().display().to_string()) && !text.contains('\n'), "{text}");
        text
    }
}

pub(crate) fn options(path: &Path, inputs: &[TensorInfo], outputs: &[TensorInfo]) -> LoadOptions {
    let signature = ModelInfo { inputs: inputs.into(), outputs: outputs.into() };
    LoadOptions { signature, ..LoadOptions::of(path) }
}
