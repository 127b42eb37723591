//! What confines the processes that run a user's code: the sandbox that they are started in, and what they see of our environment.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use outrigger_sandbox::{Cgroup, Execute, Policy, Prepared, Refused, Report, Rules, State, hint, scrub};
use tokio::process::Command;

use super::scratch::{self, Scratch};
use crate::config::ScriptConfig;

/// The confinement of a service's workers, prepared once.
pub(super) struct Confinement {
    prepared: Prepared,
    /// All that a worker has of an environment.
    environment: Vec<(OsString, OsString)>,
    /// Where workers may write what they need not keep; removed at the end.
    _scratch: Option<Scratch>,
}

impl Confinement {
    /// Prepares everything that takes memory or opens files, and says in the log what holds.
    pub(super) fn prepare(
        config: &ScriptConfig,
        host: &Path,
        model_dir: Option<&Path>,
        compat: bool,
    ) -> Self {
        let rules = Rules { keep: &config.sandbox.keep_environment, compat };
        let scrubbed = scrub(std::env::vars_os(), rules);
        if !scrubbed.dropped.is_empty() {
            tracing::debug!(variables = ?scrubbed.dropped, "scripts do not see these variables");
        }
        let mut environment = scrubbed.kept;
        let home = value(&environment, "HOME").map(PathBuf::from);
        let scratch = scratch();
        let scratch_path = scratch.as_ref().map(Scratch::path);
        let policy = policy(config, host, model_dir, scratch_path, &environment, compat);
        policy.make_directories(home.as_deref());
        if let Some(scratch) = scratch_path {
            for (name, path) in Policy::variables(scratch, home.as_deref()) {
                environment.retain(|(known, _)| known != name);
                environment.push((name.into(), path.into()));
            }
            for_java(&mut environment, scratch);
        }
        let prepared = policy.prepare();
        announce(prepared.report());
        Self { prepared, environment, _scratch: scratch }
    }

    /// Gives a command the variables that a script may see.
    pub(super) fn environment(&self, command: &mut Command) {
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    /// Confines what a command will start; `group` is the one that it is to live in.
    pub(super) fn confine(&self, command: &mut Command, group: Option<&Cgroup>) -> io::Result<()> {
        self.prepared.confine(command.as_std_mut(), group)
    }

    /// Makes a control group for a worker; `None` where there are none.
    pub(super) fn cgroup(&self) -> Option<Cgroup> {
        self.prepared.cgroup().unwrap_or_else(|error| {
            tracing::warn!(%error, "a control group could not be made; the worker's limits are not held");
            None
        })
    }

    /// For an exception's text: which setting may be behind it, if the sandbox may.
    pub(super) fn hint(&self, text: &str) -> Option<String> {
        hint(refused(text)?, self.prepared.report())
    }
}

/// What a Python exception says was refused.
fn refused(text: &str) -> Option<Refused> {
    let number = |text: &str| text.split(']').next().and_then(|number| number.parse::<i32>().ok());
    if let Some(found) = text.rfind("[Errno ") {
        let rest = &text[found + "[Errno ".len()..];
        let number = number(rest)?;
        // Names that are not known have numbers of their own, below 0.
        let line = rest.lines().next().unwrap_or_default();
        return if number < 0 {
            Some(Refused::Name)
        } else {
            Refused::from_errno(number, line.contains(": '") || line.contains(": b'"))
        };
    }
    if text.contains("MemoryError") {
        Some(Refused::Memory)
    } else if text.contains("can't start new thread") {
        Some(Refused::Process)
    } else if text.contains("Java gateway process exited") {
        // Spark talks to its Java machine over a socket of the loopback interface.
        Some(Refused::Network)
    } else {
        None
    }
}

fn value<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsString> {
    environment.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

/// A Java machine keeps its temporary files in `/tmp`, whatever `TMPDIR` says. The `java` launcher (Spark's; from version 9) can be told
/// otherwise here. What the operator says there comes later and holds.
fn for_java(environment: &mut Vec<(OsString, OsString)>, scratch: &Path) {
    const NAME: &str = "JDK_JAVA_OPTIONS";
    // Quoted: the launcher takes words apart at spaces.
    let mut options = OsString::from("\"-Djava.io.tmpdir=");
    options.push(scratch);
    options.push("\"");
    if let Some(said) = value(environment, NAME) {
        options.push(" ");
        options.push(said);
    }
    environment.retain(|(known, _)| known != NAME);
    environment.push((NAME.into(), options));
}

/// A directory of this replica's alone.
fn scratch() -> Option<Scratch> {
    let folder = std::env::temp_dir();
    for path in scratch::remove_stale(&folder) {
        tracing::info!(path = %path.display(), "removed what a replica that was killed has left");
    }
    match Scratch::create(&folder) {
        Ok(scratch) => Some(scratch),
        Err(error) => {
            tracing::warn!(%error, folder = %folder.display(), "scripts have no directory for temporary files");
            None
        }
    }
}

fn policy(
    config: &ScriptConfig,
    host: &Path,
    model_dir: Option<&Path>,
    scratch: Option<&Path>,
    environment: &[(OsString, OsString)],
    compat: bool,
) -> Policy {
    let sandbox = &config.sandbox;
    let variable = |name: &str| value(environment, name).cloned();
    let mut policy = Policy::for_python(Path::new(&config.python), variable);
    let read = &mut policy.read;
    read.extend([config.app_root.clone(), host.to_owned()]);
    // Outside of the root where the operator says so.
    read.extend(config.entry.parent().map(Path::to_owned));
    read.extend(model_dir.map(Path::to_owned));
    if let Some(library) = &config.native {
        read.extend(library.parent().map(Path::to_owned));
        // Where links lead: there are the libraries that it looks for beside itself.
        read.extend(library.canonicalize().ok().as_deref().and_then(Path::parent).map(Path::to_owned));
    }
    read.extend(sandbox.read.iter().cloned());
    policy.write.extend(scratch.map(Path::to_owned));
    policy.write.extend(config.outputs_dir.clone());
    policy.write.extend(sandbox.write.iter().cloned());
    policy.write_if_present.push(config.app_root.join("outputs"));
    if compat {
        // Scripts of AzureML's may write beside their code.
        policy.write.push(config.app_root.clone());
    }
    if !sandbox.execute.is_empty() {
        let own = config.native.is_some().then(|| host.to_owned());
        policy.execute = Execute::Only(sandbox.execute.iter().cloned().chain(own).collect());
    }
    policy.network = sandbox.network.clone();
    policy.unix_sockets = sandbox.unix_sockets;
    policy.memory = sandbox.memory.or_else(most_memory);
    policy.processes = Some(sandbox.processes);
    policy.cpu_millicores = sandbox.cpu_millicores;
    policy.cgroups = sandbox.cgroups;
    policy.off = sandbox.off.clone();
    policy
}

/// Nine tenths of the memory of the machine, or of the container where that has less.
fn most_memory() -> Option<u64> {
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let machine = text("/proc/meminfo").and_then(|info| {
        let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let container = limits.into_iter().filter_map(text).filter_map(|text| text.trim().parse::<u64>().ok());
    container.chain(machine).min().map(|bytes| bytes / 10 * 9)
}

/// Says in the log what confines the workers; what the machine cannot hold, loudly.
fn announce(report: &Report) {
    let mut on = Vec::new();
    for (part, state) in report.entries() {
        match state {
            State::Active(means) => on.push(format!("{part} ({means})")),
            State::Partly { means, lacking } => {
                on.push(format!("{part} ({means})"));
                tracing::warn!(%part, lacking, "the sandbox does not hold this fully");
            }
            State::Off { setting } => tracing::info!(%part, setting, "the sandbox leaves this open"),
            State::Unavailable(reason) => {
                tracing::warn!(%part, reason, "the sandbox DOES NOT HOLD this on this machine");
            }
        }
    }
    for path in report.missing_paths() {
        tracing::warn!(path = %path.display(), "the sandbox was to open a path that is not there");
    }
    tracing::info!(on = on.join(", "), "workers are confined");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_is_told_of_the_directory_for_temporary_files_and_the_operator_has_the_last_word() {
        let mut environment = vec![("HOME".into(), "/home".into())];
        for_java(&mut environment, Path::new("/scratch"));
        let said = |environment: &[(OsString, OsString)]| value(environment, "JDK_JAVA_OPTIONS").cloned();
        assert_eq!(said(&environment).unwrap(), "\"-Djava.io.tmpdir=/scratch\"");
        let mut environment = vec![("JDK_JAVA_OPTIONS".into(), "-Xmx1g".into())];
        for_java(&mut environment, Path::new("/scratch"));
        assert_eq!(said(&environment).unwrap(), "\"-Djava.io.tmpdir=/scratch\" -Xmx1g");
    }

    #[test]
    fn refusals_are_told_from_what_an_exception_says() {
        let table = [
            ("PermissionError: [Errno 13] Permission denied: '/etc/shadow'", Some(Refused::File)),
            ("PermissionError: [Errno 13] Permission denied", Some(Refused::Network)),
            ("URLError: <urlopen error [Errno 13] Permission denied>", Some(Refused::Network)),
            ("gaierror: [Errno -3] Temporary failure in name resolution", Some(Refused::Name)),
            ("PermissionError: [Errno 1] Operation not permitted", Some(Refused::SystemCall)),
            ("BlockingIOError: [Errno 11] Resource temporarily unavailable", Some(Refused::Process)),
            ("RuntimeError: can't start new thread", Some(Refused::Process)),
            ("PySparkRuntimeError: Java gateway process exited before", Some(Refused::Network)),
            ("MemoryError", Some(Refused::Memory)),
            ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate", Some(Refused::Memory)),
            ("FileNotFoundError: [Errno 2] No such file or directory: 'x'", None),
            ("ValueError: [Errno x] 13", None),
            ("ValueError: wrong", None),
        ];
        for (text, expected) in table {
            assert_eq!(refused(text), expected, "{text}");
        }
    }
}
