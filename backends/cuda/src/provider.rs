//! NVIDIA's GPUs as ONNX Runtime's providers for CUDA and TensorRT have them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_backend::{BackendError, Buffer, DLDevice, DeviceInfo, DeviceKind, DeviceMemory, LoadOptions};
use outrigger_onnxruntime::{
    Arena, ExecutionProvider, Fault, Memory, Plan, PlanError, Provider, Residence, Runtime,
};

use crate::driver::{Address, Context, Driver, DriverError, Gpu};
use crate::memory::{self, DeviceBlock, HostBlock};
use crate::settings::{Convolutions, Sessions, Settings, TensorRt};
use crate::{faults, libraries};

const CUDA: &str = "CUDAExecutionProvider";
const TENSORRT: &str = "TensorrtExecutionProvider";

/// DLPack's type of CUDA's devices.
const KDL_CUDA: i32 = 2;

/// CUDA that ONNX Runtime's packages are built with, from 1.27 on.
const CUDA_VERSION: (i32, i32) = (13, 0);
/// The oldest GPUs that this has code for: Turing.
const CAPABILITY: (i32, i32) = (7, 5);

/// Runs that it is worth having under way at once: while one computes, another's tensors are copied.
const LANES: u32 = 2;

pub(crate) struct Cuda {
    settings: Settings,
    /// The driver, with the GPUs that can be used; else why there are none.
    driver: Result<(Arc<Driver>, Vec<Card>), String>,
}

struct Card {
    gpu: Gpu,
    /// Made when something is first asked of it, for it takes memory, and most processes use one GPU of all.
    context: Mutex<Option<Arc<Context>>>,
}

/// Why a model cannot have TensorRT.
#[derive(Debug, thiserror::Error)]
enum TensorRtError {
    #[error("setting `tensorrt_cache`: {}: {why} (name a folder that can be written, or leave it out)", path.display())]
    Folder { path: PathBuf, why: std::io::Error },
    #[error("setting `tensorrt_cache`: {} must be closed to others (mode 0700), for engines are code", path.display())]
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
            let cards = usable(&driver)?;
            Ok((driver, cards))
        });
        Self { settings, driver }
    }

    fn cards(&self) -> &[Card] {
        self.driver.as_ref().map_or(&[], |(_, cards)| cards)
    }

    fn context(&self, device: usize) -> Result<Arc<Context>, BackendError> {
        let none = || BackendError::Input(format!("there is no device number {device}"));
        let (driver, cards) = self.driver.as_ref().map_err(|_| none())?;
        let card = cards.get(device).ok_or_else(none)?;
        let mut context = card.context.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = &*context {
            return Ok(Arc::clone(context));
        }
        let made = Context::retain(driver, card.gpu.number)?;
        Ok(Arc::clone(context.insert(made)))
    }

    fn dl_device(gpu: &Gpu) -> DLDevice {
        DLDevice { device_type: KDL_CUDA, device_id: gpu.number }
    }

    /// How sessions are made on a GPU.
    fn sessions(&self, gpu: &Gpu, sessions: Sessions) -> Result<Plan, TensorRtError> {
        let mut providers = vec![cuda(gpu, sessions)];
        if sessions.tensorrt != TensorRt::Off {
            let folder = self.settings.tensorrt_cache.as_deref();
            folder.map(private_folder).transpose()?;
            providers.insert(0, tensorrt(gpu, sessions.tensorrt, folder));
        }
        // Weights in the arena would stay in it when their model goes.
        let entries = vec![("session.use_device_allocator_for_initializers".into(), "1".into())];
        Ok(Plan { providers, leftovers: sessions.leftovers, entries, ..Plan::default() })
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
            let plan = Plan { providers: vec![cuda(&card.gpu, self.settings.sessions)], ..Plan::default() };
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
                residence: residence(&card.gpu),
                most_bytes: self.settings.arena_bytes,
            };
            runtime.share_arena(&arena)?;
        }
        Ok(())
    }
}

/// The GPUs that can be used.
fn usable(driver: &Arc<Driver>) -> Result<Vec<Card>, String> {
    let (major, minor) = driver.version();
    if (major, minor) < CUDA_VERSION {
        return Err(format!(
            "the NVIDIA driver is for CUDA {major}.{minor}, ONNX Runtime needs {}.{} (driver 580 or later); update the driver",
            CUDA_VERSION.0, CUDA_VERSION.1
        ));
    }
    let gpus = driver.gpus().map_err(|error| error.to_string())?;
    let (usable, old): (Vec<_>, Vec<_>) = gpus.into_iter().partition(|gpu| gpu.capability >= CAPABILITY);
    if usable.is_empty() {
        let old = old.iter().map(|gpu| format!("{} ({}.{})", gpu.name, gpu.capability.0, gpu.capability.1));
        let old = old.collect::<Vec<_>>();
        return Err(match &old[..] {
            [] => "the NVIDIA driver has no GPU for this process (CUDA_VISIBLE_DEVICES can hide them)".into(),
            old => format!(
                "compute capability {}.{} is needed, there are only {}",
                CAPABILITY.0,
                CAPABILITY.1,
                old.join(", ")
            ),
        });
    }
    Ok(usable.into_iter().map(|gpu| Card { gpu, context: Mutex::default() }).collect())
}

fn residence(gpu: &Gpu) -> Residence {
    Residence { allocator: "Cuda".into(), id: gpu.number, device: Cuda::dl_device(gpu) }
}

fn options(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn cuda(gpu: &Gpu, sessions: Sessions) -> ExecutionProvider {
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

/// Makes a folder that is this user's alone, or finds that it is.
fn private_folder(path: &Path) -> Result<(), TensorRtError> {
    let failed = |why| TensorRtError::Folder { path: path.to_owned(), why };
    let mut maker = std::fs::DirBuilder::new();
    maker.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut maker, 0o700);
    maker.create(path).map_err(failed)?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).map_err(failed)?);
        if mode & 0o022 != 0 {
            return Err(TensorRtError::Open { path: path.to_owned() });
        }
    }
    Ok(())
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
            memory_total: card.gpu.memory,
            lanes: LANES,
            resident: true,
        };
        Ok(cards.iter().enumerate().map(device).collect())
    }

    fn plan(&self, device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        let sessions = self.settings.sessions.over(&options.settings)?;
        match self.cards().get(device) {
            Some(card) => Ok(self.sessions(&card.gpu, sessions)?),
            None => Err(format!("there is no device number {device}").into()),
        }
    }

    fn memory(&self, device: usize) -> Result<Memory, BackendError> {
        Ok(self.context(device)?.memory()?)
    }

    /// What is left to a provider of a graph depends on the GPU, and on the driver as far as it compiles.
    fn circumstances(&self) -> String {
        let Ok((driver, cards)) = &self.driver else { return String::new() };
        let of = |card: &Card| format!("{} {:?}", card.gpu.name, card.gpu.capability);
        format!("{:?}\n{}", driver.version(), cards.iter().map(of).collect::<Vec<_>>().join("\n"))
    }

    /// Where the message does not say, the driver does: an error that ends the process comes back from every call after it.
    fn fault(&self, message: &str) -> Option<Fault> {
        if let Some(fault) = faults::of_message(message) {
            return Some(fault);
        }
        let number = faults::unclear(message)?;
        let device = self.cards().iter().position(|card| card.gpu.number == number)?;
        matches!(self.memory(device), Err(BackendError::Lost(_))).then_some(Fault::Lost)
    }

    fn residence(&self, device: usize) -> Option<Residence> {
        self.cards().get(device).map(|card| residence(&card.gpu))
    }

    fn pinned(&self, device: usize, bytes: usize) -> Result<Buffer, BackendError> {
        Ok(Buffer::over(HostBlock::zeroed(&self.context(device)?, bytes)?))
    }

    fn allocate(&self, device: usize, bytes: usize) -> Result<DeviceMemory, BackendError> {
        let block = DeviceBlock::zeroed(&self.context(device)?, bytes)?;
        let address = usize::try_from(block.address())
            .map_err(|_| BackendError::Internal("the device's addresses are wider than the host's".into()))?;
        let place = self.cards().get(device).map(|card| Self::dl_device(&card.gpu));
        let place = place.unwrap_or(DLDevice { device_type: KDL_CUDA, device_id: 0 });
        Ok(DeviceMemory::new(place, address, bytes, Arc::new(block)))
    }

    fn upload(&self, device: usize, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        Ok(memory::copy_to_device(&*self.context(device)?, from, to.address() as Address)?)
    }

    fn download(&self, device: usize, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        Ok(memory::copy_to_host(&*self.context(device)?, from.address() as Address, to)?)
    }

    /// By the time that a run is cancelled its operators are in the device's queue.
    fn can_cancel(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
