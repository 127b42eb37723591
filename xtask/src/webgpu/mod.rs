//! What WebGPU is tested with where there is no GPU: ONNX Runtime's library with it, and a driver of Vulkan's that calculates in software.
//! Mesa's (lavapipe), which other tests run on, is not enough for Dawn before version 23; SwiftShader is, which comes with Chromium.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt;
use crate::cache::{self, Cache};
use crate::optional;
use crate::process;
use crate::repo::Repo;
use crate::say;
use crate::wheels::Wheels;

/// Out of a package whose Python module is that of the CPU's package, so that no environment can have both.
const LIBRARY: Wheels = Wheels {
    name: "onnxruntime-webgpu",
    package: "onnxruntime-webgpu",
    lock: "backends/gpu/requirements.lock",
    unpack: include_str!("unpack.py"),
};

/// The package of Debian's with the driver, and where it has it. The version is whichever is current.
const PACKAGE: &str = "chromium-common";
const FOLDER: &str = "usr/lib/chromium";
/// The driver, and the file by which Vulkan's loader finds it.
const DRIVER: [&str; 2] = ["libvk_swiftshader.so", "vk_swiftshader_icd.json"];
/// Below the cache.
const KEPT: &str = "swiftshader";
/// Beside them: which package they are out of.
const ORIGIN: &str = "package.txt";

/// Where both are.
pub(crate) struct WebGpu {
    library: PathBuf,
    /// The file by which Vulkan's loader finds it.
    driver: PathBuf,
}

impl WebGpu {
    /// How tests are told of them.
    pub(crate) fn variables(self) -> [(&'static str, PathBuf); 2] {
        [("OUTRIGGER_TEST_WEBGPU", self.library), ("OUTRIGGER_TEST_VULKAN", self.driver)]
    }
}

/// Fetches what is not there yet. Where that cannot be, it says why; where it should be, that is an error.
///
/// It should be where it always is: in CI, as root on Debian for x86-64. Vulkan's loader is not ours to fetch: without it nothing is.
pub(crate) fn ensure(repo: &Repo, python: &Path) -> Result<Option<WebGpu>> {
    let made = || {
        if !IS_SUPPORTED {
            bail!("ONNX Runtime with WebGPU is to be had for x86-64 Linux only");
        }
        let cache = Cache::open("webgpu")?;
        let library = LIBRARY.ensure(repo, python, &cache.folder)?;
        driver(repo, &cache.folder)?;
        found(&library, &cache.folder)
    };
    // It is installed, or not, by others.
    if let Err(error) = loader(repo, python) {
        say::line(&format!("skipped: {error:#}; WebGPU is not tested"));
        return Ok(None);
    }
    optional::or_without(made(), is_expected(repo), "WebGPU")
}

const IS_SUPPORTED: bool = cfg!(all(target_os = "linux", target_arch = "x86_64"));

fn is_expected(repo: &Repo) -> bool {
    IS_SUPPORTED && apt::is_expected(repo)
}

/// What an earlier set-up left behind.
pub(crate) fn existing(repo: &Repo, python: &Path) -> Result<WebGpu> {
    loader(repo, python)?;
    let cache = cache::folder()?;
    found(&LIBRARY.existing(repo, &cache)?, &cache)
}

/// Vulkan's loader is the system's. Whether it is there is asked as programs look for it.
fn loader(repo: &Repo, python: &Path) -> Result<()> {
    let mut command = repo.command(python);
    command.args(["-c", "import ctypes; ctypes.CDLL('libvulkan.so.1')"]);
    process::capture(command).ok().context("there is no loader of Vulkan's, libvulkan.so.1")?;
    Ok(())
}

fn found(library: &Path, cache: &Path) -> Result<WebGpu> {
    let driver = cache.join(KEPT);
    if !is_there(&driver) {
        bail!("there is no driver in {}", driver.display());
    }
    let library = library.join("libonnxruntime.so");
    if !library.is_file() {
        bail!("{} is missing; remove its folder to have it made anew", library.display());
    }
    Ok(WebGpu { library, driver: driver.join(DRIVER[1]) })
}

fn is_there(driver: &Path) -> bool {
    DRIVER.iter().all(|file| driver.join(file).is_file())
}

/// Takes the driver out of the package, which is not installed.
fn driver(repo: &Repo, cache: &Path) -> Result<()> {
    let kept = cache.join(KEPT);
    if is_there(&kept) {
        let origin = fs::read_to_string(kept.join(ORIGIN))
            .unwrap_or_else(|_| format!("{PACKAGE}, before it was written down"));
        say::line(&format!("{} is up to date, out of {}", kept.display(), origin.trim()));
        return Ok(());
    }
    // Nobody else is at it, so what is there was left by one that was interrupted.
    let work = cache.join(format!("{KEPT}-work"));
    for folder in [&work, &kept] {
        let _ = fs::remove_dir_all(folder);
    }
    let made = work.join("made");
    fs::create_dir_all(&made).with_context(|| format!("could not make {}", made.display()))?;
    say::line(&format!("fetching SwiftShader out of {PACKAGE}"));
    apt::download(repo, &work, PACKAGE).context("could not fetch the driver")?;
    let package = apt::downloaded(&work)?;
    let origin = origin(repo, &package)?;
    say::line(&format!("  {origin}"));
    let mut unpack = repo.command("dpkg-deb");
    unpack.arg("--extract").arg(&package).arg(work.join("unpacked"));
    process::capture(unpack)?;
    for file in DRIVER {
        let from = work.join("unpacked").join(FOLDER).join(file);
        fs::rename(from, made.join(file)).with_context(|| format!("{PACKAGE} has no {FOLDER}/{file}"))?;
    }
    fs::write(made.join(ORIGIN), format!("{origin}\n")).context("could not write down the package")?;
    fs::rename(&made, &kept).with_context(|| format!("could not make {}", kept.display()))?;
    let _ = fs::remove_dir_all(&work);
    Ok(())
}

/// Name, version and digest of a package, for whoever asks which driver it was.
fn origin(repo: &Repo, package: &Path) -> Result<String> {
    let mut fields = repo.command("dpkg-deb");
    fields.args(["--show", "--showformat=${Package} ${Version}"]).arg(package);
    let mut digest = repo.command("sha256sum");
    digest.arg(package);
    let (fields, digest) = (process::capture(fields)?, process::capture(digest)?);
    Ok(format!("{}, sha256 {}", fields.trim(), digest.split_whitespace().next().unwrap_or_default()))
}
