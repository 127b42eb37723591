//! What a worker may do: plain data, made by the caller.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::Part;

/// What a worker may do. [`Policy::for_python`] makes one that an ordinary Python script runs under; a caller adds to it
/// what its configuration says.
///
/// Paths are opened once, by [`Policy::prepare`](crate::Policy::prepare): what is put in their place later is not covered.
/// A symbolic link stands for what it points to at that time.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Files, and directories with all that is below, that may be read (and executed, see `execute`). Missing ones are
    /// reported.
    pub read: Vec<PathBuf>,
    /// Files, and directories with all that is below, that may be read, written, made and removed. Missing ones are reported.
    pub write: Vec<PathBuf>,
    /// As `read`, for what only some machines have: a missing one is no news.
    pub read_if_present: Vec<PathBuf>,
    /// As `write`, for what only some machines have.
    pub write_if_present: Vec<PathBuf>,
    /// Devices that may be read, written and controlled (`ioctl`); missing ones are no news.
    pub devices: Vec<PathBuf>,
    /// Which programs may be started.
    pub execute: Execute,
    /// What may be reached by network.
    pub network: Network,
    /// Whether Unix sockets may be made while `network` is not [`Network::On`]. Those that the worker was given work always,
    /// and so do pairs (`socketpair`).
    pub unix_sockets: bool,
    /// Bytes of memory for a worker and all that it starts.
    pub memory: Option<u64>,
    /// Processes and threads of a worker and all that it starts.
    pub processes: Option<u64>,
    /// Thousandths of a processor core for a worker and all that it starts.
    pub cpu_millicores: Option<u64>,
    /// Whether limits may be held by control groups. Without, memory alone is bounded, by each process's own limit.
    pub cgroups: bool,
    /// Parts that are not wanted. [`Part::NoNewPrivileges`] stays on as long as a part that rests on it is on.
    pub off: BTreeSet<Part>,
}

/// Which programs may be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Execute {
    /// Any in a path that may be read.
    Readable,
    /// Only these files, which must hold the interpreter of the worker itself; loaders of dynamic libraries are allowed with it.
    Only(Vec<PathBuf>),
}

/// What may be reached by network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nothing.
    Off,
    /// TCP connections by IPv4 to these ports, for the collector on the loopback interface. The kernel has no rule about
    /// addresses: the same port of another host can be reached too.
    Ports(Vec<u16>),
    /// Everything that the container can.
    On,
}

/// System libraries and what they read at run time. Of `/etc`, only what libraries need: no key, no password, no secret.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/etc/OpenCL",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/glvnd",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hostname",
    "/etc/hosts",
    // Where distributions keep what a Java machine reads before its first line.
    "/etc/java",
    "/etc/java-11-openjdk",
    "/etc/java-17-openjdk",
    "/etc/java-21-openjdk",
    "/etc/java-25-openjdk",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/locale.alias",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/java",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
    "/etc/vulkan",
    // Other processes show here what anybody may see; their memory, environment and descriptors are refused by the
    // kernel's check on tracing, which the sandbox never passes for a process outside.
    "/proc",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    "/sys/devices",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
    "/sys/module",
    // Driver files that container tools put there.
    "/run/nvidia",
    "/var/cache/fontconfig",
];

/// Devices for everybody, and accelerators.
const DEVICES: &[&str] =
    &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/dri", "/dev/kfd"];

/// Accelerators whose nodes are numbered: what begins so.
const DEVICE_PREFIXES: &[&str] = &[
    // NVIDIA: PCI, Jetson, WSL.
    "nvidia",
    "nvhost",
    "nvmap",
    "dxg",
    // Linux' own class of accelerators, Coral, Gaudi, Trainium.
    "accel",
    "apex_",
    "habanalabs",
    "hl",
    "neuron",
    // Ascend.
    "davinci",
    "devmm_svm",
    "hisi_hdc",
    // FPGA cards.
    "xdma",
    "qdma",
    "xclmgmt",
    "dfl-fpga",
];

/// Variables by which an operator puts a library's cache elsewhere.
const CACHE_VARIABLES: &[&str] = &[
    "XDG_CACHE_HOME",
    "CUDA_CACHE_PATH",
    "HF_HOME",
    "KERAS_HOME",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
    "TORCH_HOME",
    "TRITON_CACHE_DIR",
];

/// Where libraries keep what they have compiled or fetched, below HOME.
const HOME_CACHES: &[&str] = &[
    ".cache",
    ".nv",
    ".triton",
    ".torch",
    ".keras",
    ".config/matplotlib",
    ".theano",
    ".numba",
    ".EasyOCR",
    "nltk_data",
];
/// Those that are made when they are missing, so that the first use works.
const HOME_CACHES_MADE: &[&str] = &[".cache", ".nv"];

/// Directories of an interpreter's prefix that hold Python.
const PREFIX_PARTS: &[&str] = &[
    "bin",
    "lib",
    "lib32",
    "lib64",
    "include",
    "share",
    "etc/fonts",
    "ssl",
    "targets",
    "pyvenv.cfg",
    "libexec",
];

impl Default for Policy {
    /// System libraries, ordinary devices and `/dev/shm`; no network, no limits.
    fn default() -> Self {
        let mut devices: Vec<PathBuf> = DEVICES.iter().map(PathBuf::from).collect();
        for entry in std::fs::read_dir("/dev").into_iter().flatten().flatten() {
            let name = entry.file_name();
            if DEVICE_PREFIXES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                devices.push(entry.path());
            }
        }
        Self {
            read: Vec::new(),
            write: Vec::new(),
            read_if_present: SYSTEM.iter().map(PathBuf::from).collect(),
            // Semaphores and shared memory of `multiprocessing`.
            write_if_present: vec!["/dev/shm".into()],
            devices,
            execute: Execute::Readable,
            network: Network::Off,
            unix_sockets: false,
            memory: None,
            processes: None,
            cpu_millicores: None,
            cgroups: true,
            off: BTreeSet::new(),
        }
    }
}

impl Policy {
    /// The default policy, and what a Python interpreter needs: its prefix, that of the virtual environment it belongs to,
    /// the directories in `PYTHONPATH` and `LD_LIBRARY_PATH`, user packages, and the caches below `HOME` or where a variable
    /// such as `XDG_CACHE_HOME` puts them.
    ///
    /// `python` is the interpreter's path; one without a slash is looked for in `PATH`. `variable` looks up the environment
    /// that the worker will have.
    pub fn for_python(python: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let mut policy = Self::default();
        let home = variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let search = variable("PATH").unwrap_or_default();
        for prefix in prefixes(python, &search) {
            policy.read_if_present.extend(narrowed(prefix, home.as_deref()));
        }
        for list in ["PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "AZUREML_CONDA_ENVIRONMENT_PATH"] {
            let list = variable(list).unwrap_or_default();
            policy.read_if_present.extend(std::env::split_paths(&list).filter(|path| path.is_absolute()));
        }
        let moved = CACHE_VARIABLES.iter().filter_map(|name| variable(name)).map(PathBuf::from);
        policy.write_if_present.extend(moved.filter(|path| path.is_absolute()));
        if let Some(home) = home {
            policy.read_if_present.push(home.join(".local/lib"));
            policy.write_if_present.extend(HOME_CACHES.iter().map(|cache| home.join(cache)));
        }
        policy
    }

    /// Makes the directories that the policy lets a worker write: those of `write`, and the usual caches below `home`. A
    /// directory that cannot be made is left out; [`Policy::prepare`] then reports it if it was asked for.
    pub fn make_directories(&self, home: Option<&Path>) {
        for path in &self.write {
            let _ = std::fs::create_dir_all(path);
        }
        if let Some(home) = home.filter(|home| home.is_dir()) {
            for cache in HOME_CACHES_MADE {
                let _ = std::fs::create_dir(home.join(cache));
            }
        }
    }

    /// Variables that a worker is to have beside those it keeps: `TMPDIR`, and places below `scratch` for the caches of
    /// libraries where `home` has none that can be written. To be called after [`Policy::make_directories`].
    pub fn variables(scratch: &Path, home: Option<&Path>) -> Vec<(&'static str, PathBuf)> {
        let has = |cache: &str| home.is_some_and(|home| home.join(cache).is_dir());
        let mut variables = vec![("TMPDIR", scratch.to_owned())];
        if !has(".cache") {
            variables.push(("XDG_CACHE_HOME", scratch.join("cache")));
        }
        if !has(".nv") {
            variables.push(("CUDA_CACHE_PATH", scratch.join("cache/cuda")));
        }
        if !has(".config/matplotlib") {
            variables.push(("MPLCONFIGDIR", scratch.join("cache/matplotlib")));
        }
        variables
    }

    /// Whether a part is wanted.
    pub(crate) fn wants(&self, part: Part) -> bool {
        !self.off.contains(&part)
    }
}

/// The prefix of the interpreter and of the one it was made from, as `sys.prefix` and `sys.base_prefix`.
fn prefixes(python: &Path, search: &std::ffi::OsStr) -> Vec<PathBuf> {
    let found = if python.components().count() == 1 && !python.is_absolute() {
        std::env::split_paths(search).map(|folder| folder.join(python)).find(|path| path.is_file())
    } else {
        std::path::absolute(python).ok()
    };
    let Some(mut link) = found else { return Vec::new() };
    let mut prefixes = Vec::new();
    // A chain of links: the virtual environment's python3, the version's, the system's. The kernel follows at most 40.
    for _ in 0..40 {
        if let Some(prefix) = link.parent().and_then(Path::parent) {
            prefixes.push(prefix.to_owned());
        }
        let Ok(target) = std::fs::read_link(&link) else { break };
        link = link.parent().map_or_else(|| target.clone(), |folder| folder.join(&target));
    }
    prefixes.dedup();
    prefixes
}

/// A prefix as a whole, unless more than Python lives there.
fn narrowed(prefix: PathBuf, home: Option<&Path>) -> Vec<PathBuf> {
    let too_wide = prefix.parent().is_none() || home.is_some_and(|home| home.starts_with(&prefix));
    if too_wide { PREFIX_PARTS.iter().map(|part| prefix.join(part)).collect() } else { vec![prefix] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_lies_in_what_everybody_may_read() {
        let policy = Policy::default();
        let all = policy.read_if_present.iter().chain(&policy.write_if_present).chain(&policy.devices);
        for path in all {
            for secret in [
                "/etc/shadow",
                "/etc/ssl/private/key.pem",
                "/run/secrets/x",
                "/var/run/secrets/x",
                "/root/.ssh/id",
            ] {
                assert!(!Path::new(secret).starts_with(path), "{} is below {}", secret, path.display());
            }
        }
    }

    #[test]
    fn an_interpreter_in_home_or_at_the_root_does_not_open_all_of_it() {
        let home = Path::new("/home/user");
        assert_eq!(narrowed("/opt/conda".into(), Some(home)), [PathBuf::from("/opt/conda")]);
        for wide in ["/", "/home", "/home/user"] {
            let paths = narrowed(wide.into(), Some(home));
            assert!(
                !paths.contains(&PathBuf::from(wide)) && paths.contains(&Path::new(wide).join("lib")),
                "{wide}"
            );
        }
    }

    #[test]
    fn caches_that_an_operator_has_moved_are_writable() {
        let variable = |name: &str| (name == "HF_HOME").then(|| "/data/hf".into());
        let policy = Policy::for_python(Path::new("no-such-python"), variable);
        assert!(policy.write_if_present.contains(&"/data/hf".into()));
    }

    #[test]
    fn a_user_without_a_home_has_his_caches_in_scratch() {
        let scratch = Path::new("/scratch");
        let names = |home: Option<&Path>| {
            Policy::variables(scratch, home)
                .into_iter()
                .map(|(name, path)| {
                    assert!(path.starts_with(scratch));
                    name
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["TMPDIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH", "MPLCONFIGDIR"]);
        let home = tempfile::tempdir().unwrap();
        Policy::default().make_directories(Some(home.path()));
        assert_eq!(names(Some(home.path())), ["TMPDIR", "MPLCONFIGDIR"]);
    }

    #[test]
    fn links_of_an_interpreter_are_followed_to_its_base() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for bin in ["venv/bin", "base/bin"] {
            std::fs::create_dir_all(root.join(bin)).unwrap();
        }
        std::fs::write(root.join("base/bin/python3.11"), "").unwrap();
        std::os::unix::fs::symlink(root.join("base/bin/python3.11"), root.join("venv/bin/python3")).unwrap();
        std::os::unix::fs::symlink("python3", root.join("venv/bin/python")).unwrap();
        let expected = vec![root.join("venv"), root.join("base")];
        assert_eq!(prefixes(&root.join("venv/bin/python"), "".as_ref()), expected);
        assert_eq!(prefixes(Path::new("python"), root.join("venv/bin").as_os_str()), expected);
        assert!(prefixes(Path::new("no-such-python"), "".as_ref()).is_empty());
    }
}
