//! What the programs share that measure backends: they are the hosts of devices, too, and call one model over and over.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use outrigger_backend::{Backend, BackendError, Instance, LoadOptions, Model, Output, Run, Tensor, host};
use outrigger_device_host::Options;

/// Measures, or is the process of a device: a device host starts its own program again.
pub fn main(measure: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("device-host") {
        return outrigger_device_host::serve().into();
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One backend twice: in this process and in one of its own.
pub struct Both {
    /// Here.
    pub inside: Arc<dyn Backend>,
    /// There.
    pub outside: Arc<dyn Backend>,
}

impl Both {
    /// Opens the library of a backend that was built beside this program.
    ///
    /// # Errors
    /// If it does not open. That there are no devices is none.
    pub fn open(backend: &str, settings: &[(String, String)]) -> anyhow::Result<Self> {
        let executable = std::env::current_exe()?;
        let library = library(&executable, backend)?;
        let inside = host::load(&library, settings)?;
        let outside = outrigger_device_host::open(Options::new(&executable, &library, backend, settings))?;
        Ok(Self { inside, outside })
    }
}

fn library(executable: &Path, backend: &str) -> anyhow::Result<PathBuf> {
    let folder = executable.parent().context("no build folder")?;
    Ok(folder.join(format!("liboutrigger_{backend}.so")))
}

/// A loaded model of one output.
pub struct Loaded {
    _model: Arc<dyn Model>,
    instance: Arc<dyn Instance>,
}

impl Loaded {
    /// Loads it on the backend's first device.
    ///
    /// # Errors
    /// The backend's.
    pub fn load(backend: &dyn Backend, options: &LoadOptions) -> Result<Self, BackendError> {
        let model = backend.open(0)?.load(options)?;
        let instance = model.instance()?;
        Ok(Self { _model: model, instance })
    }

    /// Runs it; what comes is in memory of the backend's.
    ///
    /// # Errors
    /// The backend's.
    pub fn call(&self, inputs: &[Tensor]) -> Result<Option<Tensor>, BackendError> {
        let mut outputs = [Output::allocate(0)];
        self.instance.infer(inputs, &mut outputs, Run::default())?;
        let [output] = outputs;
        Ok(output.into_tensor())
    }
}
