//! Models of format `steps`: a file that says which tensors come in, what happens to them, and which go out.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_backend::{
    BackendError, DataType, Instance, LoadOptions, Model, ModelInfo, Output, Run, Tensor, TensorInfo,
};
use outrigger_processing::Chain;
use serde::Deserialize;

use crate::settings::SettingsError;
use crate::{Gpu, GpuError, Program};

/// The largest file, in bytes: as of a manifest.
const MAX_BYTES: u64 = 256 * 1024;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Steps {
    inputs: Vec<Described>,
    #[serde(default)]
    steps: Chain,
    /// Names, in their order.
    outputs: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    datatype: DataType,
    shape: Vec<Extent>,
}

/// An extent: a number, -1 where it is free, or a name where it is free and the same wherever the name stands.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Extent {
    Number(i64),
    Name(String),
}

impl From<Described> for TensorInfo {
    fn from(described: Described) -> Self {
        let (shape, symbols) = described
            .shape
            .into_iter()
            .map(|extent| match extent {
                Extent::Number(extent) => (extent, String::new()),
                Extent::Name(name) => (-1, name),
            })
            .unzip();
        Self { name: described.name, data_type: described.datatype, shape, symbols }
    }
}

/// Reads a model's file.
fn read(options: &LoadOptions) -> Result<Steps, BackendError> {
    let failed = |why: String| load_error(options, why);
    if let Some((key, _)) = options.settings.first() {
        return Err(failed(SettingsError::UnknownForModel(key.clone()).to_string()));
    }
    let mut text = String::new();
    let file = File::open(&options.path).map_err(|error| failed(error.to_string()))?;
    let bytes =
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if bytes as u64 > MAX_BYTES {
        return Err(failed(format!("it is larger than {MAX_BYTES} bytes")));
    }
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        failed(format!("line {line}: {}", error.message().replace('\n', "; ")))
    })
}

/// A model that does not load.
pub(crate) fn load_error(options: &LoadOptions, why: impl std::fmt::Display) -> BackendError {
    BackendError::Load(format!("{}: {why}", options.path.display()))
}

/// A loaded model.
pub(crate) struct StepsModel {
    loaded: Arc<Loaded>,
}

struct Loaded {
    info: ModelInfo,
    program: Program,
    /// Which share what it holds.
    instances: AtomicU64,
}

/// Bytes that a model takes for a run, as [`Program::needs`] says.
pub(crate) fn estimate(gpu: &Gpu, options: &LoadOptions) -> Result<u64, BackendError> {
    let (inputs, steps, outputs) = read(options)?.parts();
    Program::needs(gpu, &steps, &inputs, &outputs).map_err(|error| failed(options, error))
}

/// What is wrong with the steps is wrong with the file.
fn failed(options: &LoadOptions, error: GpuError) -> BackendError {
    match error {
        GpuError::Step(error) => load_error(options, error),
        error => error.into(),
    }
}

impl Steps {
    fn parts(self) -> (Vec<TensorInfo>, Chain, Vec<String>) {
        (self.inputs.into_iter().map(TensorInfo::from).collect(), self.steps, self.outputs)
    }
}

impl StepsModel {
    pub(crate) fn load(gpu: &Arc<Gpu>, idle_bytes: u64, options: &LoadOptions) -> Result<Self, BackendError> {
        let (inputs, steps, outputs) = read(options)?.parts();
        let program = Program::new(Arc::clone(gpu), steps, &inputs, &outputs);
        let program = program.map_err(|error| failed(options, error))?.keeping(idle_bytes);
        let info = ModelInfo { inputs, outputs: program.plan().outputs().cloned().collect() };
        Ok(Self { loaded: Arc::new(Loaded { info, program, instances: AtomicU64::new(0) }) })
    }
}

impl Model for StepsModel {
    fn info(&self) -> &ModelInfo {
        &self.loaded.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        self.loaded.instances.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(StepsInstance(Arc::clone(&self.loaded))))
    }
}

struct StepsInstance(Arc<Loaded>);

impl Instance for StepsInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], _: Run) -> Result<(), BackendError> {
        let Loaded { info, program, .. } = &*self.0;
        info.check_inputs(inputs)?;
        info.check_outputs(outputs)?;
        if inputs.iter().any(|input| input.resident().is_some()) || outputs.iter().any(Output::wants_resident)
        {
            return Err(BackendError::Unsupported("tensors of this backend are in the host's memory".into()));
        }
        if outputs.is_empty() {
            return Ok(());
        }
        let results = program.run(inputs)?;
        for output in outputs {
            // `check_outputs` has seen to the index.
            let Some(result) = results.get(output.index()) else { continue };
            match output.place_mut() {
                Some((_, shape, place)) if shape == result.shape() => place.copy_from_slice(result.data()),
                _ => output.set(result.clone()),
            }
        }
        Ok(())
    }

    fn bytes_held(&self) -> u64 {
        self.0.program.held() / self.0.instances.load(Ordering::Relaxed).max(1)
    }
}

impl Drop for StepsInstance {
    fn drop(&mut self) {
        self.0.instances.fetch_sub(1, Ordering::Relaxed);
    }
}
