//! The threads that load models, one load after the other; less urgent to the processor than calls are.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use outrigger_backend::chain;

use super::super::loader::{Ground, LoadStep, Loader, Others};
use super::super::served::ServedModel;
use super::super::survey;
use super::history::{Happening, Step};
use super::room::Failure;
use super::{Residency, charges};
use crate::fetching::FetchingError;

/// Threads for loads that wait for room, beside those that load: so many do not keep others from being loaded.
const WAITING: usize = 4;

impl Residency {
    /// Starts the threads.
    pub(super) fn start_loaders(self: &Arc<Self>) -> std::io::Result<()> {
        let mut loaders = self.loaders.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..self.config.residency.loads + WAITING {
            let residency = Arc::clone(self);
            let thread = std::thread::Builder::new().name(format!("load-{number}"));
            loaders.push(thread.spawn(move || residency.load_what_is_wanted())?);
        }
        Ok(())
    }

    fn load_what_is_wanted(&self) {
        while let Some(model) = self.next() {
            self.history.over(model.number, Step::Queued);
            drop(self.tell(&model, Happening::Loading));
            // A panic is a bug of ours. It costs the load, not the thread.
            let loaded = catch_unwind(AssertUnwindSafe(|| self.load(&model)));
            let loaded = loaded.unwrap_or(Err(Failure::Broken));
            self.end(&model, loaded);
        }
    }

    /// The model that is to be loaded next; nothing at the end.
    fn next(&self) -> Option<Arc<ServedModel>> {
        let mut core = self.residents.lock();
        loop {
            if self.stopping.load(Ordering::Acquire) {
                return None;
            }
            let next = core.next(self.now()).and_then(|number| self.at(number));
            if next.is_some() {
                return next;
            }
            core = self.residents.wait(core);
        }
    }

    /// Does the work of a load on a thread that has the processor only where calls leave it. Threads of a library that such a thread
    /// starts are like it for good, so a model whose runs have threads of their own is loaded on this one.
    fn behind_calls<T: Send>(&self, model: &ServedModel, work: impl FnOnce() -> T + Send) -> Option<T> {
        let nice = self.config.residency.nice;
        let threads = model.wanted.intra_threads.unwrap_or(self.config.backends.intra_threads);
        if nice == 0 || threads != 1 || !model.wanted.settings.is_empty() {
            return Some(work());
        }
        std::thread::scope(|scope| {
            let behind = || {
                yield_to_calls(nice);
                work()
            };
            let thread = std::thread::Builder::new().name("load".into()).spawn_scoped(scope, behind).ok()?;
            thread.join().ok()
        })
    }

    /// Loads a model, others making way for it.
    fn load(&self, model: &ServedModel) -> Result<u64, Failure> {
        if model.is_retired() {
            return Err(Failure::Unwanted);
        }
        let wanted = [&model.wanted];
        let mut estimates = survey::estimate(&self.config.backends, &wanted, &self.backends);
        self.correct(model, &mut estimates);
        let starving = self.residents.starve();
        let plan = self.make_room(model, &estimates)?;
        drop(starving);
        self.history.over(model.number, Step::Room);

        let number = model.number;
        let served = self.served();
        let usage = |number: usize| served.get(number).map(|model| model.usage()).unwrap_or_default();
        let staying = self.residents.lock().held_at_least(Some(number), &usage);
        let residents = served.iter().filter(|model| model.resident().is_some()).count();
        let held = || self.residents.lock().held(Some(number));
        let models = u32::try_from(residents).unwrap_or(u32::MAX);
        let others = Others { held: &held, staying, is_start: false, models };
        let ground = Ground {
            config: &self.config,
            counters: &self.counters,
            backends: &self.backends,
            devices: &self.devices,
        };
        let watch = |step| self.has_come(model, step);
        let loader = Loader::new(ground, &wanted, estimates, others, &watch).following(plan);
        let loaded = self.behind_calls(model, || loader.all()).ok_or(Failure::Broken)??;
        let copies = loaded.into_iter().next().ok_or(Failure::Broken)?;
        let measured = charges(&self.devices, &copies.held);
        let bytes = measured.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        self.note_measured(model, &copies.held);
        let resident = self.settled(model, copies.instances)?;
        // It may hold more than was thought.
        let starving = self.residents.starve();
        let mut core = self.make_way(model, &measured)?;
        drop(starving);
        // Before its number can be another's.
        self.history.ended(number, Ok(bytes));
        model.put(resident);
        core.loaded(number, measured, self.now());
        Ok(bytes)
    }

    /// A step of a copy of a model is over.
    fn has_come(&self, model: &ServedModel, step: LoadStep) {
        match step {
            LoadStep::Loaded => {
                self.history.over(model.number, Step::Load);
                self.residents.lock().warming(model.number);
                drop(self.tell(model, Happening::Warming));
            }
            LoadStep::Warmed => {
                self.history.over(model.number, Step::Warm);
            }
        }
    }

    /// Tells everybody how a load has ended.
    pub(super) fn end(&self, model: &ServedModel, loaded: Result<u64, Failure>) {
        match loaded {
            Ok(bytes) => {
                let seconds = self.history.timeline(model.number).map(|timeline| timeline.seconds());
                self.counters.models.loaded(seconds);
                drop(self.tell(model, Happening::Ready).with(|event| {
                    (event.bytes, event.seconds) = (Some(bytes), seconds);
                }));
            }
            Err(failure) => {
                let reason = chain(&failure);
                let unwanted =
                    matches!(failure, Failure::Unwanted | Failure::Fetching(FetchingError::Unwanted));
                if !unwanted {
                    self.counters.models.failed();
                    tracing::error!(model = %model.name, reason, "model does not load");
                }
                self.history.ended(model.number, Err(&reason));
                self.residents.lock().failed(model.number, reason.as_str().into(), self.now());
                drop(self.tell(model, Happening::Failed).with(|event| event.reason = Some(reason)));
            }
        }
        let thrash = self.residents.lock().thrash(self.now());
        if let Some(thrash) = thrash {
            self.warn_of(&thrash, model);
        }
        model.changed.notify_waiters();
        self.residents.has_changed();
    }
}

/// Has the thread take the processor only where calls leave it.
fn yield_to_calls(nice: u8) {
    // Of this thread alone: that is what Linux does, whatever the call is said to do.
    if let Err(error) = rustix::process::nice(i32::from(nice)) {
        tracing::debug!(%error, "loads are as urgent as calls");
    }
}
