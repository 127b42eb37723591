//! Whether devices can be used: a thread asks them, and runs that are lost are heard of at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_backend::{Device, DeviceStatus, Health};

use crate::busy::Busy;
use crate::placement::DeviceId;

/// How often a device is asked.
const CALM: Duration = Duration::from_secs(1);
/// How often while one cannot be used, so that it is used again soon after it can be.
const ANXIOUS: Duration = Duration::from_millis(20);

/// What is known of a device.
pub(crate) struct DeviceHealth {
    id: DeviceId,
    device: Arc<dyn Device>,
    seen: Mutex<Seen>,
    /// The same as `seen` for who picks a device, without its lock.
    usable: AtomicBool,
    /// A run was lost since it was asked last.
    suspect: AtomicBool,
    /// How often it could not be used any more.
    losses: AtomicU64,
    watch: Arc<Watch>,
}

struct Seen {
    /// What it said last; `None` if it did not answer.
    status: Option<DeviceStatus>,
    /// Why it cannot be used.
    trouble: Option<String>,
    /// How often it lost runs and then said that it is well, and when last.
    denials: u32,
    denied: Option<Instant>,
}

/// A device that has lost runs and said that it is well so many times...
const DENIALS: u32 = 20;
/// ...each within this time of the one before is not believed any more for as long.
const DISBELIEF: Duration = Duration::from_secs(60);

impl Seen {
    fn new(status: Option<DeviceStatus>, trouble: Option<String>) -> Self {
        Self { status, trouble, denials: 0, denied: None }
    }

    /// Whether a device that says that it is well is to be believed.
    fn believes(&mut self, suspect: bool, now: Instant) -> bool {
        let lately = self.denied.is_some_and(|denied| now.saturating_duration_since(denied) < DISBELIEF);
        if !lately {
            self.denials = 0;
        }
        if suspect {
            self.denials += 1;
            self.denied = Some(now);
        }
        self.denials < DENIALS
    }
}

/// Wakes the thread that asks.
#[derive(Default)]
pub(crate) struct Watch {
    state: Mutex<State>,
    alarm: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    suspicion: bool,
}

impl DeviceHealth {
    pub(super) fn new(
        id: DeviceId,
        device: Arc<dyn Device>,
        status: DeviceStatus,
        watch: Arc<Watch>,
    ) -> Self {
        let trouble = trouble(Some(&status), false);
        let (usable, suspect) = (AtomicBool::new(trouble.is_none()), AtomicBool::new(false));
        Self {
            id,
            device,
            seen: Mutex::new(Seen::new(Some(status), trouble)),
            usable,
            suspect,
            losses: AtomicU64::new(0),
            watch,
        }
    }

    /// Whether runs on it may succeed.
    pub(super) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    /// A run was lost with it: it is not used until it says that it is well.
    pub(super) fn suspect(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
        self.suspect.store(true, Ordering::Release);
        self.usable.store(false, Ordering::Relaxed);
        self.watch.nudge();
    }

    /// How often it could not be used any more, since the start.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// What it said last.
    pub(super) fn status(&self) -> Option<DeviceStatus> {
        self.seen().status.clone()
    }

    /// What is wrong with it, whether it can be used all the same or not.
    pub(super) fn concern(&self) -> Option<String> {
        let seen = self.seen();
        seen.trouble.clone().or_else(|| degraded(seen.status.as_ref()).map(str::to_owned))
    }

    /// Why it cannot be used.
    pub(super) fn trouble(&self) -> Option<String> {
        self.seen().trouble.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks it.
    fn ask(&self) {
        let suspect = self.suspect.swap(false, Ordering::AcqRel);
        let status = self.device.status();
        let status = match status {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::debug!(device = %self.id, %error, "a device does not tell its status");
                None
            }
        };
        let mut seen = self.seen();
        // What was suspected of it holds until it says that it is well.
        let doubted = suspect || seen.trouble.is_some();
        let mut trouble = trouble(status.as_ref(), doubted);
        if trouble.is_none() && !seen.believes(suspect, Instant::now()) {
            trouble = Some(format!("it lost {DENIALS} runs and said each time that it is well"));
        }
        match (&seen.trouble, &trouble) {
            (None, Some(reason)) => {
                self.losses.fetch_add(1, Ordering::Relaxed);
                tracing::error!(device = %self.id, reason, "a device cannot be used");
            }
            (Some(_), None) => tracing::info!(device = %self.id, "a device can be used again"),
            _ => {}
        }
        if trouble.is_none()
            && let Some(reason) = degraded(status.as_ref())
            && degraded(seen.status.as_ref()) != Some(reason)
        {
            tracing::warn!(device = %self.id, reason, "something is wrong with a device, which can be used");
        }
        // A run that was lost meanwhile has said so itself.
        self.usable.store(trouble.is_none() && !self.suspect.load(Ordering::Acquire), Ordering::Relaxed);
        (seen.status, seen.trouble) = (status, trouble);
    }
}

/// Why a device cannot be used; `doubted`: unless it is quite well.
fn trouble(status: Option<&DeviceStatus>, doubted: bool) -> Option<String> {
    match status.map(|status| &status.health) {
        Some(Health::Healthy) => None,
        Some(Health::Degraded(reason)) if doubted => Some(reason.clone()),
        Some(Health::Degraded(_)) => None,
        Some(Health::Recovering(reason) | Health::Lost(reason)) => Some(reason.clone()),
        _ => Some("it does not tell its status".into()),
    }
}

/// What is wrong with a device that can be used all the same.
fn degraded(status: Option<&DeviceStatus>) -> Option<&str> {
    match status.map(|status| &status.health) {
        Some(Health::Degraded(reason)) => Some(reason),
        _ => None,
    }
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has devices asked now.
    pub(super) fn nudge(&self) {
        self.lock().suspicion = true;
        self.alarm.notify_one();
    }

    /// Starts the thread. It looks after `devices`, and tells `busy` whether each of the models can run somewhere, which `able` says.
    pub(super) fn start(
        self: &Arc<Self>,
        devices: Vec<Arc<DeviceHealth>>,
        busy: Arc<Busy>,
        able: impl Fn() -> bool + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let watch = Arc::clone(self);
        std::thread::Builder::new().name("devices".into()).spawn(move || {
            while watch.wait(devices.iter().all(|device| device.is_usable())) {
                devices.iter().for_each(|device| device.ask());
                busy.set_devices_able(able());
            }
        })
    }

    /// Waits until devices are to be asked again; `false` at the end.
    fn wait(&self, calm: bool) -> bool {
        let time = if calm { CALM } else { ANXIOUS };
        let state = self.lock();
        let idle = |state: &mut State| !(state.stopping || calm && state.suspicion);
        let woken = self.alarm.wait_timeout_while(state, time, idle);
        let (mut state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        state.suspicion = false;
        !state.stopping
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.alarm.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use outrigger_backend::{BackendError, LoadOptions, Model};

    use super::*;

    /// A device that is as it is told to be.
    struct Patient(Mutex<Result<Health, ()>>);

    impl Device for Patient {
        fn status(&self) -> Result<DeviceStatus, BackendError> {
            let health = self.0.lock().unwrap().clone();
            let health = health.map_err(|()| BackendError::Lost("gone".into()))?;
            Ok(DeviceStatus { memory_total: 0, memory_free: 0, memory_held: 0, health })
        }

        fn estimate(&self, _options: &LoadOptions) -> Result<u64, BackendError> {
            Ok(0)
        }

        fn load(&self, _options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
            Err(BackendError::Load("not here".into()))
        }
    }

    #[test]
    fn a_device_is_used_while_it_is_well_and_after_a_lost_run_when_it_is_well_again() {
        let patient = Arc::new(Patient(Mutex::new(Ok(Health::Healthy))));
        let id = DeviceId { backend: "gpu".into(), index: 0 };
        let health =
            DeviceHealth::new(id, Arc::clone(&patient) as _, patient.status().unwrap(), Arc::default());
        let becomes = |state: Result<Health, ()>| {
            *patient.0.lock().unwrap() = state;
            health.ask();
            (health.is_usable(), health.trouble())
        };
        let degraded = || Ok(Health::Degraded("hot".into()));
        assert_eq!(becomes(degraded()), (true, None));
        health.suspect();
        assert!(!health.is_usable());
        assert_eq!(becomes(degraded()), (false, Some("hot".into())));
        assert_eq!(becomes(degraded()), (false, Some("hot".into())), "not before it is well");
        assert_eq!(becomes(Ok(Health::Healthy)), (true, None));
        assert_eq!(becomes(Ok(Health::Recovering("soon".into()))), (false, Some("soon".into())));
        assert_eq!(becomes(Ok(Health::Lost("dead".into()))), (false, Some("dead".into())));
        assert_eq!(becomes(Err(())), (false, Some("it does not tell its status".into())));
        assert_eq!(becomes(Ok(Health::Healthy)), (true, None));
        // One that goes on losing runs and says that it is well is not believed for ever.
        for _ in 0..DENIALS - 1 {
            health.suspect();
            assert_eq!(becomes(Ok(Health::Healthy)), (true, None));
        }
        health.suspect();
        let (usable, why) = becomes(Ok(Health::Healthy));
        assert!(!usable && why.is_some_and(|why| why.contains("said each time that it is well")));
        assert!(!becomes(Ok(Health::Healthy)).0);
    }
}
