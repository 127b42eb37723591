//! WebGPU without a GPU: a library of ONNX Runtime that has it, and a driver of Vulkan's that Dawn takes, which calculates in software.
//!
//! `cargo xtask setup` fetches both, and `cargo xtask test` says where they are: `OUTRIGGER_TEST_WEBGPU` and `OUTRIGGER_TEST_VULKAN`. Vulkan's
//! loader looks for drivers where the environment says, in which a process cannot safely write; so what needs this one begins anew.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How Vulkan's loader is told of a driver, under its present name and its older one.
const VARIABLES: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
/// Says that a process has begun anew.
const AGAIN: &str = "OUTRIGGER_TEST_AGAIN";

/// What there is.
#[derive(Clone, Debug)]
pub struct WebGpu {
    /// ONNX Runtime's library.
    pub library: PathBuf,
    /// The driver, as Vulkan's loader is told of it.
    pub driver: PathBuf,
}

/// Where everything is.
///
/// # Errors
/// What is missing.
pub fn set_up() -> Result<WebGpu, &'static str> {
    let path = |variable| std::env::var_os(variable).map(PathBuf::from);
    let library = path("OUTRIGGER_TEST_WEBGPU").ok_or("no library of ONNX Runtime with WebGPU")?;
    let driver = path("OUTRIGGER_TEST_VULKAN").ok_or("no driver of Vulkan's for WebGPU")?;
    Ok(WebGpu { library, driver })
}

/// Begins this process anew with the driver, if there is one.
///
/// # Panics
/// If the process cannot be begun anew.
pub fn begin_anew_with_its_driver() {
    let to_be_begun = set_up().ok().filter(|_| std::env::var_os(AGAIN).is_none());
    let Some(WebGpu { driver, .. }) = to_be_begun else { return };
    let mut again = Command::new(std::env::current_exe().expect("this executable's path"));
    again.args(std::env::args_os().skip(1)).env(AGAIN, "1");
    self::driver(&mut again, &driver);
    panic!("could not begin anew: {}", again.exec());
}

/// Begins one test of many anew, with that driver, in a process of its own. The library in the process where the test is to go on; `None` in
/// that which is done with it, and where something is missing, which it says.
///
/// # Panics
/// If the test fails there.
pub fn alone(test: &str) -> Option<PathBuf> {
    alone_on(test, driver)
}

/// The same where the process is to be prepared in another way: what prepares it is given the driver.
///
/// # Panics
/// If the test fails there.
pub fn alone_on(test: &str, prepare: impl FnOnce(&mut Command, &Path)) -> Option<PathBuf> {
    let WebGpu { library, driver } = match set_up() {
        Ok(webgpu) => webgpu,
        Err(missing) => {
            println!("skipped: {missing}");
            return None;
        }
    };
    if std::env::var_os(AGAIN).is_some() {
        return Some(library);
    }
    let mut again = Command::new(std::env::current_exe().expect("this executable's path"));
    again.args([test, "--exact"]).env(AGAIN, "1");
    prepare(&mut again, &driver);
    let output = again.output().expect("this executable starts once more");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{complained}");
    None
}

/// What a driver can fail at.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// Whatever is submitted loses the device.
    Lost,
    /// 16 MiB of memory and more cannot be had at once.
    Memory,
}

/// A driver that is another one, until it is told to fail.
#[derive(Clone, Debug)]
pub struct FailingDriver(PathBuf);

impl FailingDriver {
    /// Compiles one in a folder, which is where it is told, too: for whichever process.
    ///
    /// # Panics
    /// If there is no C compiler, or it fails.
    pub fn make(folder: &Path, of: &Path) -> Self {
        let described: serde_json::Value =
            serde_json::from_slice(&std::fs::read(of).expect("the driver's file")).expect("JSON");
        let other = described["ICD"]["library_path"].as_str().expect("a library");
        let other = of.parent().expect("a folder").join(other);
        let library = folder.join("libfailing.so");
        let text = |name: &str, path: &Path| format!("-D{name}=\"{}\"", path.display());
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o"])
            .args([&library, &crate::repository().join("testkit/webgpu/failing_driver.c")])
            .args([text("OTHER", &other), text("FOLDER", folder), "-ldl".into()]);
        let output = cc.output().expect("a C compiler, `cc`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut failing = described;
        failing["ICD"]["library_path"] = library.to_str().expect("a path that is a text").into();
        std::fs::write(folder.join("failing.json"), failing.to_string()).expect("a folder to write in");
        Self(folder.to_owned())
    }

    /// That which was made in this folder.
    pub fn of(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// As Vulkan's loader is told of it.
    pub fn file(&self) -> PathBuf {
        self.0.join("failing.json")
    }

    /// From now on it fails.
    ///
    /// # Panics
    /// If the folder cannot be written to.
    pub fn fail(&self, failure: Failure) {
        std::fs::write(self.switch(failure), "").expect("a folder to write in");
    }

    /// From now on it does not.
    ///
    /// # Panics
    /// If it did not fail before.
    pub fn mend(&self, failure: Failure) {
        std::fs::remove_file(self.switch(failure)).expect("it failed before");
    }

    fn switch(&self, failure: Failure) -> PathBuf {
        self.0.join(match failure {
            Failure::Lost => "lost",
            Failure::Memory => "memory",
        })
    }
}

/// Tells a test where the driver is.
const FAILING: &str = "OUTRIGGER_TEST_FAILING_DRIVER";

/// As [`alone`], on a driver that can be told to fail.
///
/// # Panics
/// If the test fails there.
pub fn alone_on_failing(test: &str) -> Option<(PathBuf, FailingDriver)> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = alone_on(test, |command, driver| {
        let failing = FailingDriver::make(folder.path(), driver);
        self::driver(command.env(FAILING, folder.path()), &failing.file());
    })?;
    let folder = std::env::var_os(FAILING).expect("it was said above");
    Some((library, FailingDriver::of(folder.into())))
}

/// Has a process look for drivers nowhere but in this file.
pub fn driver(command: &mut Command, file: &Path) {
    command.envs(VARIABLES.map(|name| (name, file)));
}
