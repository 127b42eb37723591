//! What the tests share: a device host of this build, with a backend that misbehaves on demand.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outrigger_backend::conformance::{fp32, values};
use outrigger_backend::{Backend, BackendError, Device, Instance, LoadOptions, Model, Output, Run, Tensor};
use outrigger_device_host::{DeviceHealth, Options};
use tempfile::TempDir;

/// How long anything may take here before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A file that `cargo test` builds beside the tests.
pub(crate) fn example(file: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples").join(file);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p outrigger-device-host --examples`",
        path.display()
    );
    path
}

pub(crate) fn executable() -> PathBuf {
    example("device_host")
}

pub(crate) fn odd() -> PathBuf {
    example("libdevice_host_backend.so")
}

/// Waits for something; fails with what it was.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A backend in a child, and what is heard of its health.
pub(crate) struct Hosted {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) device: Arc<dyn Device>,
    healths: Arc<Mutex<Vec<DeviceHealth>>>,
    folder: TempDir,
}

pub(crate) fn hosted() -> Hosted {
    Hosted::with(|_| {})
}

impl Hosted {
    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let healths: Arc<Mutex<Vec<DeviceHealth>>> = Arc::default();
        let heard = Arc::clone(&healths);
        let mut options = Options::new(executable(), odd(), "odd", &[]);
        options.on_change = Some(Arc::new(move |health| heard.lock().unwrap().push(health.clone())));
        change(&mut options);
        let backend = outrigger_device_host::open(options).unwrap();
        let device = backend.open(0).unwrap();
        Self { backend, device, healths, folder: tempfile::tempdir().unwrap() }
    }

    /// The first device's.
    pub(crate) fn health(&self) -> DeviceHealth {
        self.health_of("cpu:0")
    }

    fn health_of(&self, device: &str) -> DeviceHealth {
        let healths = self.healths.lock().unwrap();
        healths.iter().rfind(|health| health.device == device).expect("it was told").clone()
    }

    /// Whether its health was ever told with this.
    pub(crate) fn was_said(&self, text: &str) -> bool {
        self.healths.lock().unwrap().iter().any(|health| format!("{:?}", health.health).contains(text))
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.health().restarts
    }

    /// The child that serves the first device now.
    pub(crate) fn pid(&self) -> u32 {
        self.pid_of("cpu:0")
    }

    pub(crate) fn pid_of(&self, device: &str) -> u32 {
        let mut pid = None;
        until("a child", || {
            pid = self.health_of(device).pid;
            pid.is_some()
        });
        pid.unwrap()
    }

    /// The file of a model that does what `word` says.
    pub(crate) fn file(&self, word: &str) -> PathBuf {
        let path = self.folder.path().join(word.replace(' ', "-"));
        std::fs::write(&path, word).unwrap();
        path
    }

    pub(crate) fn model(&self, word: &str) -> (Arc<dyn Model>, Arc<dyn Instance>) {
        let model = self.device.load(&LoadOptions::of(self.file(word))).unwrap();
        let instance = model.instance().unwrap();
        (model, instance)
    }

    /// Kills the child, and waits until its parent has heard of that.
    pub(crate) fn kill(&self) {
        let pid = self.pid();
        kill(pid);
        until("its end to be heard of", || self.health().pid != Some(pid));
    }
}

pub(crate) fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Has a process stand still.
pub(crate) fn halt(pid: u32) {
    signal(pid, rustix::process::Signal::STOP);
    until("all of its threads to stand", || {
        let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        tasks.all(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap().contains(") T "))
    });
}

/// Whether there is a process, dead or alive, of that number.
pub(crate) fn is_there(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// What a process has in memory.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The line of this process's memory map in which a tensor's bytes lie.
pub(crate) fn mapping_of(tensor: &Tensor) -> String {
    let address = tensor.data().as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        let hex = |text: &str| usize::from_str_radix(text, 16).unwrap();
        (hex(start)..hex(end)).contains(&address)
    });
    line.expect("it is mapped").to_owned()
}

/// A vector of `n` times `value`.
pub(crate) fn input(value: f32, n: usize) -> Tensor {
    fp32(&[n as i64], &vec![value; n])
}

/// Runs with memory of the backend's for the result.
pub(crate) fn call(instance: &dyn Instance, input: &Tensor) -> Result<Tensor, BackendError> {
    let mut outputs = [Output::allocate(0)];
    instance.infer(std::slice::from_ref(input), &mut outputs, Run::default())?;
    let [output] = outputs;
    Ok(output.into_tensor().expect("it is set"))
}

/// Runs, and says whether every element is twice what was given.
pub(crate) fn doubles(instance: &dyn Instance, value: f32, n: usize) -> Result<(), BackendError> {
    let result = call(instance, &input(value, n))?;
    assert_eq!(result.shape().extents(), [n as i64]);
    assert!(values(&result).iter().all(|got| *got == value * 2.), "{value} × 2");
    Ok(())
}

pub(crate) fn text<T>(result: Result<T, BackendError>) -> String {
    result.err().expect("it fails").to_string()
}
