//! The conformance suite, case by case, on every backend in every place: `cpu::in_process::adds`. The same names mean the same promise.

#[path = "../../../backends/api/examples/adder.rs"]
mod adder;
mod files;
mod signed;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use outrigger_backend::conformance::{Case, Fixtures, Skipped, cases};
use outrigger_backend::{Backend, BackendError, host};
use outrigger_testkit::agreement::{self, Exception, Models, Tolerance};
use outrigger_testkit::webgpu;
use signed::{Signatures, Signed};

type Opened = Result<Arc<dyn Backend>, BackendError>;

/// A backend somewhere.
struct Place {
    /// `cpu::in_process`.
    name: &'static str,
    fixtures: Fixtures,
    open: Box<dyn Fn() -> Opened + Send + Sync>,
    /// The models that Python writes for it, and how far it may be from what Python gives.
    agreement: Option<(Format, Tolerance)>,
    /// Whether a machine without it is no failure.
    may_be_absent: bool,
    /// What is different about some of those.
    exceptions: &'static [(&'static str, Exception)],
    /// Why there is no such place here.
    absent: Option<&'static str>,
    /// Opened by the first case, for all of them.
    opened: OnceLock<Opened>,
}

/// What models are written in.
#[derive(Clone, Copy)]
enum Format {
    Onnx,
    TorchScript,
}

/// Models are written once, for all places.
#[derive(Default)]
struct Written {
    onnx: OnceLock<Models>,
    torchscript: OnceLock<Models>,
}

impl Written {
    /// # Errors
    /// What is missing.
    fn in_format(&self, format: Format) -> Result<&Models, &'static str> {
        match format {
            Format::Onnx => Ok(self.onnx.get_or_init(Models::onnx)),
            Format::TorchScript => {
                let pytorch = agreement::pytorch()?;
                Ok(self.torchscript.get_or_init(|| Models::torchscript(&pytorch)))
            }
        }
    }
}

impl Place {
    fn new(
        name: &'static str,
        fixtures: &Fixtures,
        open: impl Fn() -> Opened + Send + Sync + 'static,
    ) -> Self {
        // Libtorch is large, and nobody needs it who does not ask for it; and for GPUs it needs one of those.
        let may_be_absent = name.starts_with("cpu_torch") || name.starts_with("cuda_torch");
        let (fixtures, open) = (fixtures.clone(), Box::new(open));
        Self {
            name,
            fixtures,
            open,
            agreement: None,
            exceptions: &[],
            absent: None,
            may_be_absent,
            opened: OnceLock::new(),
        }
    }

    /// Whether it takes the models that Python writes, and how far it may be from what Python gives.
    fn agreeing(self, format: Format, tolerance: Tolerance) -> Self {
        Self { agreement: Some((format, tolerance)), ..self }
    }

    /// What is different about some of those.
    fn except(self, exceptions: &'static [(&'static str, Exception)]) -> Self {
        Self { exceptions, ..self }
    }

    /// What it needs, if that is not there.
    fn unless(self, absent: Option<&'static str>) -> Self {
        Self { absent, ..self }
    }

    fn backend(&self) -> Result<&dyn Backend, Failed> {
        let opened = self.opened.get_or_init(&self.open).as_ref();
        opened.map(|backend| &**backend).map_err(|error| Failed::from(error.to_string()))
    }

    /// The backend, or why it may be absent.
    fn there(&self) -> Result<Result<&dyn Backend, &str>, Failed> {
        if let Some(absent) = self.absent {
            return Ok(Err(absent));
        }
        let backend = self.backend()?;
        let reason = backend.info().reason.as_deref().filter(|_| self.may_be_absent);
        Ok(reason.map_or(Ok(backend), Err))
    }

    fn run(&self, case: Case) -> Result<Completion, Failed> {
        let backend = match self.there()? {
            Ok(backend) => backend,
            Err(reason) => return Ok(Completion::ignored_with(reason)),
        };
        Ok(match case.run(backend, &self.fixtures) {
            Ok(()) => Completion::Completed,
            Err(Skipped(reason)) => Completion::ignored_with(reason),
        })
    }
}

/// Every backend in every place that there is for it. A new place is one more line for each.
fn places(folder: &Path) -> Vec<Place> {
    let (text, onnx) = (files::text(folder), files::onnx(folder));
    let tiny = files::tiny(folder);
    let also_tiny = tiny.clone();
    let fake = || built("examples", "adder_backend", "-p outrigger --examples");
    let cpu = || built("", "outrigger_cpu", "-p outrigger-cpu");
    let torch = || built("", "outrigger_cpu_torch", "-p outrigger-cpu-torch");
    let gpu_torch = || built("", "outrigger_cuda_torch", "-p outrigger-cuda-torch");
    let (scripts, signatures) = files::torchscript(folder);
    let signatures = [(); 4].map({
        let signatures = Arc::new(signatures);
        move |()| Arc::clone(&signatures)
    });
    let [inside, outside, gpu_inside, gpu_outside] = signatures;
    let mut places = vec![
        Place::new("fake::in_process", &text, || adder::open(&[])),
        Place::new("fake::library", &text, move || host::load(&fake(), &[])),
        Place::new("fake::out_of_process", &text, move || out_of_process(fake(), &[])),
        Place::new("c_example::in_process", &text, move || host::load(&tiny, &[])),
        Place::new("c_example::out_of_process", &text, move || out_of_process(also_tiny.clone(), &[])),
        Place::new("cpu::in_process", &onnx, move || host::load(&cpu(), &files::settings_of_cpu()))
            .agreeing(Format::Onnx, Tolerance::CPU),
        Place::new("cpu::out_of_process", &onnx, move || out_of_process(cpu(), &files::settings_of_cpu()))
            .agreeing(Format::Onnx, Tolerance::CPU),
        Place::new("cpu_torch::in_process", &scripts, move || {
            signed(host::load(&torch(), &files::settings_of_cpu_torch()), &inside)
        })
        .agreeing(Format::TorchScript, Tolerance::CPU),
        Place::new("cpu_torch::out_of_process", &scripts, move || {
            signed(out_of_process(torch(), &files::settings_of_cpu_torch()), &outside)
        })
        .agreeing(Format::TorchScript, Tolerance::CPU),
        Place::new("cuda_torch::in_process", &scripts, move || {
            signed(host::load(&gpu_torch(), &files::settings_of_cuda_torch()), &gpu_inside)
        }),
        Place::new("cuda_torch::out_of_process", &scripts, move || {
            signed(out_of_process(gpu_torch(), &files::settings_of_cuda_torch()), &gpu_outside)
        }),
    ];
    places.extend(gpu(folder));
    places.extend(cuda(&onnx));
    places
}

/// Vulkan, in software where there is no GPU, and a library of ONNX Runtime that has WebGPU.
fn gpu(folder: &Path) -> [Place; 2] {
    let (fixtures, absent) = (files::webgpu(folder), webgpu::set_up().err());
    let library = || built("", "outrigger_gpu", "-p outrigger-gpu");
    let places = [
        Place::new("gpu::in_process", &fixtures, move || host::load(&library(), &files::settings_of_gpu())),
        Place::new("gpu::out_of_process", &fixtures, move || {
            out_of_process(library(), &files::settings_of_gpu())
        }),
    ];
    places.map(|place| place.agreeing(Format::Onnx, Tolerance::WEBGPU).except(ON_WEBGPU).unless(absent))
}

/// Of the models that Python writes, those that WebGPU has not, or not as the CPU has them.
const ON_WEBGPU: &[(&str, Exception)] = &[
    ("trees", Exception::Refused("takes none of its operators")),
    ("trees_named", Exception::Refused("takes none of its operators")),
    ("strings", Exception::Refused("takes none of its operators")),
    ("quantised", Exception::Quantised(0.2)),
    ("many", Exception::MayFail("it calculates with FP16, which the shaders of this device have not")),
];

/// NVIDIA's GPU, where there is one, and a library of ONNX Runtime that has CUDA (`OUTRIGGER_TEST_ORT_GPU`). Elsewhere no case is made for it.
fn cuda(onnx: &Fixtures) -> Vec<Place> {
    let Some(settings) = files::settings_of_cuda() else { return Vec::new() };
    let library = || built("", "outrigger_cuda", "-p outrigger-cuda");
    if host::load(&library(), &settings).map_or(true, |backend| backend.info().devices.is_empty()) {
        return Vec::new();
    }
    // It has no operator for strings, and its runs cannot be cancelled.
    let fixtures = Fixtures { strings: None, slow: None, stubborn: Some(onnx.add.clone()), ..onnx.clone() };
    let again = settings.clone();
    vec![
        Place::new("cuda::in_process", &fixtures, move || host::load(&library(), &settings)),
        Place::new("cuda::out_of_process", &fixtures, move || out_of_process(library(), &again)),
    ]
}

fn signed(backend: Opened, signatures: &Arc<Signatures>) -> Opened {
    Ok(Arc::new(Signed { backend: backend?, signatures: Arc::clone(signatures) }))
}

/// In a child, which is the executable under test.
fn out_of_process(library: PathBuf, settings: &[(String, String)]) -> Opened {
    let executable = env!("CARGO_BIN_EXE_outrigger");
    outrigger_device_host::open(outrigger_device_host::Options::new(executable, library, "hosted", settings))
}

/// A library that cargo built; these tests lie in target/PROFILE/deps.
fn built(folder: &str, name: &str, how: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let file = format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = test.ancestors().nth(2).unwrap().join(folder).join(file);
    assert!(library.is_file(), "{} is missing: run `cargo build {how}`", library.display());
    library
}

/// Those that look at the memory of the process or a device run alone.
static MEMORY: RwLock<()> = RwLock::new(());

fn trial(place: &Arc<Place>, case: Case) -> Trial {
    let place = Arc::clone(place);
    Trial::ignorable_test(format!("{}::{}", place.name, case.name), move || {
        if case.alone {
            let _alone = MEMORY.write().unwrap_or_else(PoisonError::into_inner);
            place.run(case)
        } else {
            let _beside_others = MEMORY.read().unwrap_or_else(PoisonError::into_inner);
            place.run(case)
        }
    })
}

/// Python gives the same.
fn agreement(place: &Arc<Place>, written: &Arc<Written>) -> Option<Trial> {
    let ((format, tolerance), place, written) = (place.agreement?, Arc::clone(place), Arc::clone(written));
    Some(Trial::ignorable_test(format!("{}::agrees_with_python", place.name), move || {
        let _beside_others = MEMORY.read().unwrap_or_else(PoisonError::into_inner);
        let there = place.there()?;
        Ok(match there.and_then(|backend| Ok((backend, written.in_format(format)?))) {
            Err(missing) => Completion::ignored_with(missing),
            Ok((backend, models)) => {
                models.agree_but(backend, &tolerance, place.exceptions);
                Completion::Completed
            }
        })
    }))
}

fn main() {
    let arguments = Arguments::from_args();
    webgpu::begin_anew_with_its_driver();
    let folder = tempfile::tempdir().unwrap();
    let places: Vec<Arc<Place>> = places(folder.path()).into_iter().map(Arc::new).collect();
    let trials = places.iter().flat_map(|place| cases().iter().map(|case| trial(place, *case)));
    let written = Arc::new(Written::default());
    let agreements = places.iter().filter_map(|place| agreement(place, &written));
    let conclusion = libtest_mimic::run(&arguments, trials.chain(agreements).collect());
    // Before the end of the process, which would leave them behind.
    drop((folder, written));
    conclusion.exit()
}
