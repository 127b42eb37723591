//! NVIDIA's GPUs as ONNX Runtime's providers for CUDA and TensorRT have them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::{BackendError, Buffer, DLDevice, DeviceInfo, DeviceKind, DeviceMemory, LoadOptions};
use outrigger_cuda_driver::{
    self as cuda_driver, Address, Card, Context, DeviceBlock, Driver, DriverError, Gpu, HostBlock, faults,
};
use outrigger_onnxruntime::{
    Arena, Beside, EndsBeside, ExecutionProvider, Fault, Memory, Plan, PlanError, Provider, Recordings,
    Residence, Runtime, Shrink, private_folder,
};

use crate::libraries;
use crate::settings::{Convolutions, Sessions, Settings, TensorRt};

const CUDA: &str = "CUDAExecutionProvider";
const TENSORRT: &str = "TensorrtExecutionProvider";

/// DLPack's type of CUDA's devices.
const KDL_CUDA: i32 = 2;

/// Runs that it is worth having under way at once: while one computes, another's tensors are copied.
const LANES: u32 = 2;

/// A recording takes the calls of all threads for its own, on all devices.
static RECORDINGS: Recordings = Recordings::new();

/// A context, while nothing is recorded.
struct Entered {
    context: Arc<Context>,
    _beside: Beside,
}

impl std::ops::Deref for Entered {
    type Target = Arc<Context>;

    fn deref(&self) -> &Arc<Context> {
        &self.context
    }
}

pub(crate) struct Cuda {
    settings: Settings,
    /// The driver, with the GPUs that can be used; else why there are none.
    driver: Result<(Arc<Driver>, Vec<Card>), String>,
}

/// Why a model cannot have TensorRT.
#[derive(Debug, thiserror::Error)]
enum TensorRtError {
    #[error(
        "`graphs` does not go with `tensorrt`, which has one recording for all sets of shapes; leave one of the two out (`graphs=off`, `tensorrt=false`)"
    )]
    Graphs,
    #[error("setting `tensorrt_cache`: {}: {why} (name a folder that can be written, or leave it out)", path.display())]
    Folder { path: PathBuf, why: std::io::Error },
    #[error("setting `tensorrt_cache`: {} must be this user's, and closed to others (mode 0700), for engines are code: remove it or name another folder", path.display())]
    Open { path: PathBuf },
}

impl Cuda {
    pub(crate) fn new(settings: Settings) -> Self {
        let driver = Driver::open(&settings.driver);
        Self::on(settings, driver)
    }

    pub(crate) fn on(settings: Settings, driver: Result<Arc<Driver>, DriverError>) -> Self {
        let driver = driver.map_err(|error| outrigger_backend::chain(&error));
        let driver = driver.and_then(|driver| {
            let cards = cuda_driver::usable(&driver, "ONNX Runtime")?;
            Ok((driver, cards))
        });
        Self { settings, driver }
    }

    fn cards(&self) -> &[Card] {
        self.driver.as_ref().map_or(&[], |(_, cards)| cards)
    }

    /// A device's context, for calls that nothing is recorded beside.
    fn context(&self, device: usize) -> Result<Entered, BackendError> {
        let none = || BackendError::Input(format!("there is no device number {device}"));
        let card = self.cards().get(device).ok_or_else(none)?;
        let beside = RECORDINGS.beside();
        Ok(Entered { context: card.context()?, _beside: beside })
    }

    fn dl_device(gpu: &Gpu) -> DLDevice {
        DLDevice { device_type: KDL_CUDA, device_id: gpu.number }
    }

    /// How sessions are made on a GPU.
    fn sessions(&self, gpu: &Gpu, sessions: &Sessions) -> Result<Plan, TensorRtError> {
        let graphs = sessions.graphs();
        // It replays what a session has recorded last, whatever number a run has.
        if graphs.is_some() && sessions.tensorrt != TensorRt::Off {
            return Err(TensorRtError::Graphs);
        }
        let mut providers = vec![cuda(gpu, sessions)];
        if sessions.tensorrt != TensorRt::Off {
            let folder = self.settings.tensorrt_cache.as_deref();
            folder.map(own_folder).transpose()?;
            providers.insert(0, tensorrt(gpu, sessions.tensorrt, folder));
        }
        if let Some(cuda) = providers.last_mut().filter(|_| graphs.is_some()) {
            cuda.options.push(("enable_cuda_graph".into(), "1".into()));
        }
        // The arena of such a session is its own, with the same limit; all others share one, which is made elsewhere.
        if let (Some(cuda), true, 1..) = (providers.last_mut(), graphs.is_some(), self.settings.arena_bytes) {
            cuda.options.push(("gpu_mem_limit".into(), self.settings.arena_bytes.to_string()));
        }
        // Weights in the arena would stay in it when their model goes.
        let entries = vec![("session.use_device_allocator_for_initializers".into(), "1".into())];
        Ok(Plan { providers, leftovers: sessions.leftovers, entries, graphs, ..Plan::default() })
    }

    /// Holds the library against what is needed of it, and gives each device its arena.
    fn prepare(&self, runtime: &'static Runtime, cards: &[Card]) -> Result<(), String> {
        runtime.has(CUDA).map_err(|why| {
            format!("{why}: install the Python package onnxruntime-gpu instead of onnxruntime, or name its library by the setting `onnxruntime`")
        })?;
        let folders =
            libraries::folders(self.settings.libraries.as_deref(), self.settings.common.library.as_deref());
        let broken = libraries::open(&folders);
        let looked = || match (&folders[..], &broken[..]) {
            ([], _) => "no folder of NVIDIA's Python packages was found beside ONNX Runtime".to_owned(),
            (_, []) => format!("looked in {}", list(&folders)),
            (_, broken) => format!("these do not open: {}", broken.join("; ")),
        };
        for card in cards {
            let plan = Plan { providers: vec![cuda(card.gpu(), &self.settings.sessions)], ..Plan::default() };
            runtime.can_append(&plan).map_err(|why| {
                if !why.contains("Failed to load library") {
                    return why;
                }
                format!(
                    "{why}; {}; install onnxruntime-gpu[cuda,cudnn], or name the folders by the setting `libraries`",
                    looked()
                )
            })?;
            let arena = Arena {
                provider: CUDA,
                residence: residence(card.gpu()),
                most_bytes: self.settings.arena_bytes,
            };
            runtime.share_arena(&arena)?;
        }
        Ok(())
    }
}

fn residence(gpu: &Gpu) -> Residence {
    Residence { allocator: "Cuda".into(), id: gpu.number, device: Cuda::dl_device(gpu) }
}

fn options(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn cuda(gpu: &Gpu, sessions: &Sessions) -> ExecutionProvider {
    let convolutions = match sessions.convolutions {
        Convolutions::Heuristic => "HEURISTIC",
        Convolutions::Exhaustive => "EXHAUSTIVE",
        Convolutions::Default => "DEFAULT",
    };
    let options = options(&[
        ("device_id", &gpu.number.to_string()),
        // What a shape has needed once stays: the next power of two would be up to twice as much.
        ("arena_extend_strategy", "kSameAsRequested"),
        ("cudnn_conv_algo_search", convolutions),
        ("use_tf32", if sessions.tf32 { "1" } else { "0" }),
    ]);
    ExecutionProvider { name: CUDA.into(), options }
}

fn tensorrt(gpu: &Gpu, precision: TensorRt, folder: Option<&Path>) -> ExecutionProvider {
    let fp16 = if precision == TensorRt::Fp16 { "1" } else { "0" };
    let mut options = options(&[("device_id", &gpu.number.to_string()), ("trt_fp16_enable", fp16)]);
    if let Some(folder) = folder {
        let folder = folder.to_string_lossy();
        // Engines are named by model, GPU and version; how long each layer took is kept as well, which speeds up what is new.
        for (enable, path) in [
            ("trt_engine_cache_enable", "trt_engine_cache_path"),
            ("trt_timing_cache_enable", "trt_timing_cache_path"),
        ] {
            options.push((enable.into(), "1".into()));
            options.push((path.into(), folder.clone().into_owned()));
        }
    }
    ExecutionProvider { name: TENSORRT.into(), options }
}

/// Sees to it that a folder is this user's alone. Unlike the model files, which their owner names, engines come from wherever this folder is.
fn own_folder(path: &Path) -> Result<(), TensorRtError> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let made = above.map_or(Ok(()), std::fs::create_dir_all).and_then(|()| private_folder(path));
    match made {
        Ok(true) => Ok(()),
        Ok(false) => Err(TensorRtError::Open { path: path.to_owned() }),
        Err(why) => Err(TensorRtError::Folder { path: path.to_owned(), why }),
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Provider for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn devices(&self, runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        let (_, cards) = self.driver.as_ref().map_err(Clone::clone)?;
        self.prepare(runtime, cards)?;
        let device = |(index, card): (usize, &Card)| DeviceInfo {
            name: format!("cuda:{index}"),
            kind: DeviceKind::Cuda,
            memory_total: card.gpu().memory,
            lanes: LANES,
            resident: true,
        };
        Ok(cards.iter().enumerate().map(device).collect())
    }

    fn plan(&self, device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        let sessions = self.settings.sessions.clone().over(&options.settings)?;
        match self.cards().get(device) {
            Some(card) => Ok(self.sessions(card.gpu(), &sessions)?),
            None => Err(format!("there is no device number {device}").into()),
        }
    }

    fn memory(&self, device: usize) -> Result<Memory, BackendError> {
        let cuda_driver::Memory { total, free } = self.context(device)?.memory()?;
        Ok(Memory { total, free })
    }

    fn unfreed(&self, device: usize) -> u64 {
        self.context(device).map_or(0, |entered| entered.unfreed())
    }

    /// What is left to a provider of a graph depends on the GPU, and on the driver as far as it compiles.
    fn circumstances(&self) -> String {
        let Ok((driver, cards)) = &self.driver else { return String::new() };
        let of = |card: &Card| format!("{} {:?}", card.gpu().name, card.gpu().capability);
        format!("{:?}\n{}", driver.version(), cards.iter().map(of).collect::<Vec<_>>().join("\n"))
    }

    /// Where the message does not say, the driver does: an error that ends the process comes back from every call after it.
    fn fault(&self, message: &str) -> Option<Fault> {
        if let Some(fault) = faults::of_message(message) {
            return Some(match fault {
                cuda_driver::Fault::Lost => Fault::Lost,
                cuda_driver::Fault::OutOfMemory => Fault::OutOfMemory,
            });
        }
        let number = faults::unclear(message)?;
        let device = self.cards().iter().position(|card| card.gpu().number == number)?;
        matches!(self.memory(device), Err(BackendError::Lost(_))).then_some(Fault::Lost)
    }

    fn residence(&self, device: usize) -> Option<Residence> {
        self.cards().get(device).map(|card| residence(card.gpu()))
    }

    fn pinned(&self, device: usize, bytes: usize) -> Result<Buffer, BackendError> {
        let block = HostBlock::zeroed(&self.context(device)?.context, bytes)?;
        Ok(Buffer::over(EndsBeside::new(&RECORDINGS, block)))
    }

    fn allocate(&self, device: usize, bytes: usize) -> Result<DeviceMemory, BackendError> {
        let block = DeviceBlock::zeroed(&self.context(device)?.context, bytes)?;
        let address = usize::try_from(block.address())
            .map_err(|_| BackendError::Internal("the device's addresses are wider than the host's".into()))?;
        let place = self.cards().get(device).map(|card| Self::dl_device(card.gpu()));
        let place = place.unwrap_or(DLDevice { device_type: KDL_CUDA, device_id: 0 });
        Ok(DeviceMemory::new(place, address, bytes, Arc::new(EndsBeside::new(&RECORDINGS, block))))
    }

    fn upload(&self, device: usize, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        Ok(cuda_driver::copy_to_device(&self.context(device)?.context, from, to.address() as Address)?)
    }

    fn download(&self, device: usize, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        Ok(cuda_driver::copy_to_host(&self.context(device)?.context, from.address() as Address, to)?)
    }

    fn copy(&self, device: usize, from: &DeviceMemory, to: &DeviceMemory) -> Result<(), BackendError> {
        let context = self.context(device)?;
        let (from, bytes) = (from.address() as Address, from.len());
        Ok(cuda_driver::copy_on_device(&context, from, to.address() as Address, bytes)?)
    }

    fn shrink(&self, device: usize) -> Option<Shrink> {
        let number = self.cards().get(device)?.gpu().number;
        self.settings.shrink.map(|after| Shrink { arena: format!("gpu:{number}"), after })
    }

    fn recordings(&self) -> Option<&'static Recordings> {
        Some(&RECORDINGS)
    }

    /// By the time that a run is cancelled its operators are in the device's queue.
    fn can_cancel(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
