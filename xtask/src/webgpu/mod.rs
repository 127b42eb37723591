//! What WebGPU is tested with where there is no GPU: ONNX Runtime's library with it, and a driver of Vulkan's that calculates in software.
//! Mesa's (lavapipe), which other tests run on, is not enough for Dawn before version 23; SwiftShader is, which comes with Chromium.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache};
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
/// Held by whoever is at apt, as in `.ci/run`.
const LOCK: &str = "/run/outrigger-apt.lock";
/// Longest wait for it, and longest time for apt, in seconds.
const TURN: &str = "300";
const PATIENCE: &str = "120";

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

/// Fetches what is not there yet. Where that cannot be, it says why. `python` has pip.
pub(crate) fn ensure(repo: &Repo, python: &Path) -> Option<WebGpu> {
    let made = || {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("ONNX Runtime with WebGPU is to be had for x86-64 Linux only");
        }
        loader(repo, python)?;
        let cache = Cache::open("webgpu")?;
        let library = LIBRARY.ensure(repo, python, &cache.folder)?;
        driver(repo, &cache.folder)?;
        found(&library, &cache.folder)
    };
    match made() {
        Ok(webgpu) => Some(webgpu),
        Err(error) => {
            say::line(&format!("skipped: {error:#}; WebGPU is not tested"));
            None
        }
    }
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
    match is_there(&driver) {
        true => Ok(WebGpu { library: library.join("libonnxruntime.so"), driver: driver.join(DRIVER[1]) }),
        false => bail!("there is no driver in {}", driver.display()),
    }
}

fn is_there(driver: &Path) -> bool {
    DRIVER.iter().all(|file| driver.join(file).is_file())
}

/// Takes the driver out of the package, which is not installed.
fn driver(repo: &Repo, cache: &Path) -> Result<()> {
    let kept = cache.join(KEPT);
    if is_there(&kept) {
        say::line(&format!("{} is up to date", kept.display()));
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
    download(repo, &work)?;
    let package = fs::read_dir(&work)?.flatten().map(|entry| entry.path());
    let package = package.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
    let package = package.with_context(|| format!("apt left no package in {}", work.display()))?;
    let mut unpack = repo.command("dpkg-deb");
    unpack.arg("--extract").arg(package).arg(work.join("unpacked"));
    process::capture(unpack)?;
    for file in DRIVER {
        let from = work.join("unpacked").join(FOLDER).join(file);
        fs::rename(from, made.join(file)).with_context(|| format!("{PACKAGE} has no {FOLDER}/{file}"))?;
    }
    fs::rename(&made, &kept).with_context(|| format!("could not make {}", kept.display()))?;
    let _ = fs::remove_dir_all(&work);
    Ok(())
}

/// Downloads the package. The lists of packages may be missing or old: once more with new ones, if that is permitted.
fn download(repo: &Repo, folder: &Path) -> Result<()> {
    let fetch = || process::capture(apt(repo, folder, &["download", PACKAGE]));
    if fetch().is_err() {
        process::capture(apt(repo, folder, &["update"])).context("could not fetch the driver")?;
        fetch().context("could not fetch the driver")?;
    }
    Ok(())
}

/// One after the other, and not for ever.
fn apt(repo: &Repo, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = repo.command("flock");
    command.args(["--wait", TURN, LOCK, "timeout", "--kill-after=5", PATIENCE, "apt-get"]);
    command.args(arguments).current_dir(folder).stdin(std::process::Stdio::null());
    command
}
