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

/// Has a process look for drivers nowhere but in this file.
pub fn driver(command: &mut Command, file: &Path) {
    command.envs(VARIABLES.map(|name| (name, file)));
}
