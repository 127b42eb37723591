//! A folder with everything that a worker has, and Python scripts run in it under a policy.
// Each test program uses a part of it.
#![allow(dead_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use outrigger_sandbox::{Cgroup, Part, Policy, Prepared};
use tempfile::TempDir;

pub struct Place {
    pub root: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["app", "model", "scratch", "outputs", "outside", "home"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        std::fs::write(root.path().join("model/weights"), "weights").unwrap();
        std::fs::write(root.path().join("outside/secret"), "secret").unwrap();
        std::fs::write(root.path().join("app/score.py"), "x = 1\n").unwrap();
        Self { root }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What a worker of this place may do.
    pub fn policy(&self) -> Policy {
        let home = self.path("home");
        let mut policy = Policy::for_python(&python(), |name| match name {
            "HOME" => Some(home.clone().into()),
            "PATH" => std::env::var_os("PATH"),
            _ => None,
        });
        policy.read.extend([self.path("app"), self.path("model")]);
        policy.write.extend([self.path("scratch"), self.path("outputs")]);
        policy.make_directories(Some(&home));
        policy
    }

    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new(python());
        command
            .args(["-P", "-c", script])
            .current_dir(self.path("app"))
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| (OsString::from("PATH"), path)))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("scratch"))
            .env("ROOT", self.root.path())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, prepared: &Prepared, script: &str) -> Output {
        self.run_in(prepared, None, script)
    }

    pub fn run_in(&self, prepared: &Prepared, group: Option<&Cgroup>, script: &str) -> Output {
        let mut command = self.command(script);
        prepared.confine(&mut command, group).unwrap();
        command.output().unwrap()
    }

    /// Runs a script that asserts what is to be asserted.
    pub fn passes(&self, policy: &Policy, script: &str) {
        let prepared = policy.prepare();
        let output = self.run(&prepared, script);
        assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output), prepared.report());
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The project's Python, with its libraries; the system's where that was not set up.
pub fn python() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    let search = std::env::var_os("PATH").unwrap_or_default();
    let systems =
        || std::env::split_paths(&search).map(|folder| folder.join("python3")).find(|path| path.exists());
    if ours.exists() { std::path::absolute(ours).unwrap() } else { systems().unwrap() }
}

/// Whether the machine holds a part; if not, says that the test was skipped.
pub fn holds(policy: &Policy, parts: &[Part]) -> bool {
    let prepared = policy.prepare();
    let lacking: Vec<_> = parts.iter().filter(|part| !prepared.report().is_active(**part)).collect();
    if !lacking.is_empty() {
        println!("skipped: this machine cannot hold {lacking:?}");
    }
    lacking.is_empty()
}

/// Python that asserts that an expression raises OSError with one of some numbers.
pub const REFUSED: &str = r"
import errno, os, sys
def refused(call, *numbers):
    try:
        call()
    except OSError as error:
        assert error.errno in numbers, error
    else:
        raise AssertionError('was not refused')
root = os.environ['ROOT']
";

pub fn script(body: &str) -> String {
    format!("{REFUSED}{body}")
}
