//! A device's host as its parent knows it, from one child to the next: what is loaded, and how it is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use outrigger_backend::{BackendError, BackendInfo, Health};

use super::bell::Bell;
use super::link::Link;
use super::loaded::{Fault, Loaded};
use super::options::{DeviceHealth, Options};

/// What all handles of a device share with the thread that watches over its child.
pub(super) struct Host {
    pub(super) options: Arc<Options>,
    pub(super) bell: Arc<Bell>,
    /// The device that it serves, as its users know it: `cuda:1`. Known once one is opened.
    pub(super) device: Arc<OnceLock<String>>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    next: AtomicU64,
    first: OnceLock<BackendInfo>,
}

struct State {
    phase: Phase,
    /// What the clients hold, and so what a new child loads.
    loaded: Loaded,
    restarts: u64,
}

impl State {
    fn degraded(&self) -> Option<String> {
        let Loaded { models, instances, .. } = &self.loaded;
        let models = models.values().map(|model| &*model.fault);
        models.chain(instances.values().map(|instance| &instance.known.fault)).find_map(Fault::why)
    }
}

/// Where a host stands.
#[derive(Clone)]
pub(super) enum Phase {
    /// A child serves.
    Up(Arc<Link>, u32),
    /// There is none: why, and that one is about to be started.
    Restarting(String),
    /// There is none, and there will not be one soon: why.
    Quarantined(String),
}

impl Host {
    pub(super) fn new(options: Arc<Options>) -> std::io::Result<Arc<Self>> {
        let phase = Phase::Restarting("it has not been started".into());
        Ok(Arc::new(Self {
            options,
            bell: Arc::new(Bell::new()?),
            device: Arc::default(),
            state: Mutex::new(State { phase, loaded: Loaded::default(), restarts: 0 }),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            next: AtomicU64::new(1),
            first: OnceLock::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the first child said of the backend; that is this one, if there was none.
    pub(super) fn first(&self, info: &BackendInfo) -> &BackendInfo {
        self.first.get_or_init(|| info.clone())
    }

    /// Why something that a client holds is not there, if something is not.
    pub(super) fn degraded(&self) -> Option<String> {
        self.state().degraded()
    }

    /// A number for something new; unlike every other, also of children before.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Where it stands.
    pub(super) fn phase(&self) -> Phase {
        self.state().phase.clone()
    }

    /// The way to the child that serves now.
    pub(super) fn link(&self) -> Result<Arc<Link>, BackendError> {
        match &self.state().phase {
            Phase::Up(link, _) => Ok(Arc::clone(link)),
            Phase::Restarting(why) => Err(BackendError::Lost(format!("{why}; it is being restarted"))),
            Phase::Quarantined(why) => Err(BackendError::Lost(why.clone())),
        }
    }

    /// Changes what is loaded, if that is so in the child that serves now: another one would not know of it.
    pub(super) fn register(
        &self,
        link: &Arc<Link>,
        change: impl FnOnce(&mut Loaded),
    ) -> Result<(), BackendError> {
        let mut state = self.state();
        match &state.phase {
            Phase::Up(now, _) if Arc::ptr_eq(now, link) => {
                change(&mut state.loaded);
                Ok(())
            }
            _ => Err(BackendError::Lost(format!(
                "the device host of `{}` ended while this was made",
                self.options.name
            ))),
        }
    }

    /// Something is not wanted any more; the way to the child that has it, if there is one.
    pub(super) fn unregister(&self, change: impl FnOnce(&mut Loaded)) -> Option<Arc<Link>> {
        let mut state = self.state();
        change(&mut state.loaded);
        match &state.phase {
            Phase::Up(link, _) => Some(Arc::clone(link)),
            _ => None,
        }
    }

    /// Counts something of what is loaded.
    pub(super) fn count(&self, count: impl FnOnce(&Loaded) -> usize) -> usize {
        count(&self.state().loaded)
    }

    /// What instances hold, as the child that serves now says.
    pub(super) fn hold(&self, held: &[(u64, u64)]) {
        let state = self.state();
        for (number, bytes) in held {
            if let Some(entry) = state.loaded.instances.get(number) {
                entry.known.holds(*bytes);
            }
        }
    }

    pub(super) fn loaded(&self) -> Loaded {
        self.state().loaded.clone()
    }

    /// A child serves. Numbers of what it has loaded and nobody wants any more.
    pub(super) fn up(&self, link: &Arc<Link>, pid: u32, loaded: &Loaded) -> Vec<u64> {
        let mut state = self.state();
        state.phase = Phase::Up(Arc::clone(link), pid);
        let instances = loaded.instances.keys().filter(|number| !state.loaded.instances.contains_key(number));
        let models = loaded.models.keys().filter(|number| !state.loaded.models.contains_key(number));
        let unwanted = instances.chain(models).copied().collect();
        drop(state);
        self.tell();
        unwanted
    }

    pub(super) fn restarting(&self, why: String) {
        self.state().phase = Phase::Restarting(why);
        self.tell();
    }

    pub(super) fn quarantined(&self, why: String) {
        self.state().phase = Phase::Quarantined(why);
        self.tell();
    }

    pub(super) fn restarted(&self) {
        self.state().restarts += 1;
    }

    pub(super) fn health(&self) -> DeviceHealth {
        let state = self.state();
        let (health, pid) = match &state.phase {
            Phase::Up(_, pid) => (state.degraded().map_or(Health::Healthy, Health::Degraded), Some(*pid)),
            Phase::Restarting(why) => (Health::Recovering(format!("restarting: {why}")), None),
            Phase::Quarantined(why) => (Health::Lost(why.clone()), None),
        };
        let device = state.loaded.device.as_ref().map(|(_, name)| name.clone()).unwrap_or_default();
        DeviceHealth { device, health, restarts: state.restarts, pid }
    }

    fn tell(&self) {
        if let Some(on_change) = &self.options.on_change {
            let health = self.health();
            // Before a device is opened there is nobody's health to tell.
            if !health.device.is_empty() {
                // A panic of whoever listens is his own: the thread that watches over the child goes on.
                let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| on_change(&health)));
                if told.is_err() {
                    tracing::error!(backend = %self.options.name, "whoever follows a device's health panicked");
                }
            }
        }
    }

    /// Tells the health once, for whoever follows it.
    pub(super) fn tell_first(&self) {
        self.tell();
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Nobody needs it any more.
    pub(super) fn stop(&self) {
        // Under the lock, so that whoever is about to sleep sees it.
        let _state = self.state();
        self.stop.store(true, Ordering::Release);
        self.changed.notify_all();
        self.bell.ring();
    }

    /// Sleeps; whether it was told to stop.
    pub(super) fn sleep(&self, time: std::time::Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |_| !self.stopped());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.stopped()
    }
}
