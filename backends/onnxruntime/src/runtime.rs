//! ONNX Runtime's library and its environment, one for the life of the process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::LoadDynamicError;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{OutputSelector, RunOptions, Session};
use ort::value::Tensor;

use crate::arena::{Arena, Arenas};
use crate::provider::{Plan, Pool};
use crate::session::Maker;
use crate::turns::{Turn, Turns};
use crate::{append, complaints, raw};

/// `y = x`, FP32 `[1]`: what `onnx.helper` makes of one `Identity`, opset 17.
const IDENTITY: &[u8] = b"\x08\x08:7\n\x10\n\x01x\x12\x01y\"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11";

/// ONNX Runtime's library, opened, with its environment.
pub struct Runtime {
    pub(crate) environment: Environment,
    /// Describes memory of the process.
    pub(crate) memory: MemoryInfo<'static>,
    version: String,
    arenas: Arenas,
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

/// ONNX Runtime refuses a second environment, so two first calls at once must not both make one.
static STARTING: Mutex<()> = Mutex::new(());

/// The process's runtime, started on the first call that finds the library.
pub(crate) fn start(library: Option<&Path>, pool: &Pool) -> Result<&'static Runtime, StartError> {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = Runtime::new(library, pool)?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// The version of the library that the runtime is, or will be, started from.
pub(crate) fn version(library: Option<&Path>) -> Result<String, StartError> {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    match RUNTIME.get() {
        Some(runtime) => Ok(runtime.version.clone()),
        None => open_first(&candidates(library)),
    }
}

/// Whether the library, which is open, has an execution provider.
pub(crate) fn has(version: &str, provider: &str) -> Result<(), String> {
    let available = append::available().map_err(|error| error.message().to_owned())?;
    if available.iter().any(|name| name == provider) {
        return Ok(());
    }
    Err(format!("ONNX Runtime {version} has no {provider}, only {}", available.join(", ")))
}

/// Where the library is looked for.
fn candidates(library: Option<&Path>) -> Vec<PathBuf> {
    let names = ["libonnxruntime.so.1", "libonnxruntime.so"].map(PathBuf::from);
    library.map_or(names.to_vec(), |library| vec![library.to_owned()])
}

impl Runtime {
    fn new(library: Option<&Path>, pool: &Pool) -> Result<Self, StartError> {
        let version = open_first(&candidates(library))?;
        let threads = GlobalThreadPoolOptions::default()
            .with_intra_threads(pool.threads)?
            .with_inter_threads(1)?
            // Threads that wait would otherwise burn the cores that other calls and the entry script need.
            .with_spin_control(false)?;
        let threads = match &pool.affinity {
            Some(affinity) => threads.with_intra_affinity(affinity)?,
            None => threads,
        };
        let environment = ort::init()
            .with_name("outrigger")
            .with_telemetry(false)
            .with_logger(complaints::logger())
            .with_global_thread_pool(threads)
            .build()?;
        environment.set_log_level(LogLevel::Error);
        let arena = memory_info(AllocatorType::Arena)?;
        raw::share_allocator(&environment, &arena)?;
        Ok(Self {
            environment,
            memory: memory_info(AllocatorType::Device)?,
            version,
            arenas: Arenas::default(),
        })
    }

    /// The library's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the library has an execution provider, which may still fail to start.
    ///
    /// # Errors
    /// That it has not, and which there are.
    pub fn has(&self, provider: &str) -> Result<(), String> {
        has(&self.version, provider)
    }

    /// Makes a session by a plan, of a model for nothing else, runs it, and lets it go again: what is not there to run it shows here. A device
    /// that is lost may let sessions be made, so only the run tells.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn probe(&'static self, plan: &Plan, turns: Option<&'static Turns>) -> Result<(), String> {
        let _turn = Turn::take(turns);
        Maker { runtime: self, plan: plan.clone(), cache: None, steps: None }.probe(IDENTITY)
    }

    /// Whether a plan's execution providers open and take their options. Uses no device, as [`Runtime::probe`] does.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn can_append(&'static self, plan: &Plan) -> Result<(), String> {
        Maker { runtime: self, plan: plan.clone(), cache: None, steps: None }.can_append()
    }

    /// Gives all sessions on a device one arena, if it has none yet. Comes before any session on it.
    ///
    /// # Errors
    /// What ONNX Runtime says, and that there is one with another limit.
    pub fn share_arena(&self, arena: &Arena) -> Result<(), String> {
        self.arenas.share(&self.environment, arena)
    }

    /// Frees the unused regions of the arena that all sessions share. ONNX Runtime does that only at the end of a run that asks for it,
    /// so a model is run that is there for nothing else. Whether it worked; if not, the memory stays where later runs take it from.
    pub fn shrink_arena(&self) -> bool {
        self.run_and_shrink().is_ok()
    }

    fn run_and_shrink(&self) -> ort::Result<()> {
        let mut session =
            Session::builder(&self.environment)?.with_env_allocators()?.commit_from_memory(IDENTITY)?;
        let value = || Tensor::from_array(([1], vec![0f32]));
        // A result in the arena would hold a region of it just when that is to be freed.
        let mut options =
            RunOptions::new()?.with_outputs(OutputSelector::default().preallocate("y", value()?));
        options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
        session.run_with_options(ort::inputs![value()?], &options)?;
        Ok(())
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
