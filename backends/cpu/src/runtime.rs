//! ONNX Runtime's library and its environment, one for the life of the process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::LoadDynamicError;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use crate::raw;
use crate::settings::Settings;

/// The library, opened.
pub(crate) struct Runtime {
    pub(crate) environment: Environment,
    /// Describes memory of the process, the only kind that tensors live in here.
    pub(crate) memory: MemoryInfo<'static>,
    /// The library's version.
    pub(crate) version: String,
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("no library of ONNX Runtime 1.{} or later; {}", ort::MINOR_VERSION, tried.join("; "))]
    Library { tried: Vec<String> },
    #[error("ONNX Runtime does not start: {0}")]
    Environment(#[from] ort::Error),
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// The process's runtime, started on the first call that finds the library.
pub(crate) fn start(settings: &Settings) -> Result<&'static Runtime, StartError> {
    // ONNX Runtime refuses a second environment, so two first calls at once must not both make one.
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = Runtime::new(settings)?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

impl Runtime {
    fn new(settings: &Settings) -> Result<Self, StartError> {
        let names = ["libonnxruntime.so.1", "libonnxruntime.so"].map(PathBuf::from);
        let candidates = settings.onnxruntime.as_ref().map_or(&names[..], std::slice::from_ref);
        let version = open_first(candidates)?;
        let threads = settings.intra_threads.get();
        let affinity = settings.affinity.as_ref().and_then(|affinity| affinity.for_pool(threads));
        let threads = GlobalThreadPoolOptions::default()
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            // Threads that wait would otherwise burn the cores that other calls and the entry script need.
            .with_spin_control(false)?;
        let threads = match affinity {
            Some(affinity) => threads.with_intra_affinity(affinity)?,
            None => threads,
        };
        let environment = ort::init()
            .with_name("outrigger")
            .with_telemetry(false)
            .with_global_thread_pool(threads)
            .build()?;
        // Errors are returned as well, and ONNX Runtime would write them to stderr past the log's format.
        environment.set_log_level(LogLevel::Fatal);
        let arena = memory_info(AllocatorType::Arena)?;
        raw::share_allocator(&environment, &arena)?;
        Ok(Self { environment, memory: memory_info(AllocatorType::Device)?, version })
    }
}

fn memory_info(allocator: AllocatorType) -> ort::Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CPU, 0, allocator, MemoryType::Default)
}

/// Opens the first library that opens and fits, and tells its version.
fn open_first(candidates: &[PathBuf]) -> Result<String, StartError> {
    let mut tried = Vec::new();
    for path in candidates {
        // Asked before `ort` opens it, for `ort` does not tell the version afterwards.
        let opened = raw::version(path).and_then(|version| {
            ort::init_from(path).map_err(|error| why(&error))?;
            Ok(version)
        });
        match opened {
            Ok(version) => return Ok(version),
            Err(why) => tried.push(describe(path, &why)),
        }
    }
    Err(StartError::Library { tried })
}

fn describe(path: &Path, why: &str) -> String {
    format!("tried `{}`: {why}", path.display())
}

fn why(error: &LoadDynamicError) -> String {
    match error {
        LoadDynamicError::Dlopen { error, .. } => outrigger_backend::chain(error),
        LoadDynamicError::BadVersion { version_str, .. } => format!("is version {version_str}"),
        other => other.to_string(),
    }
}
