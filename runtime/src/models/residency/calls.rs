//! What calls and administrators ask for: a model, now or once it is loaded; and that one leaves, or stays.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_protocol::error::{CallError, ErrorCode};

use super::super::lease::Lease;
use super::super::served::ServedModel;
use super::Residency;
use super::core::{Core, Left, Want};
use super::fetch::Fetches;
use super::history::{Happening, ModelEvent};
use super::room::let_go;
use super::state::ModelState;
use crate::scheduler;

/// The shortest time after which it is worth while to ask again for a model that is being loaded.
pub(super) const SOON: Duration = Duration::from_secs(1);

pub(super) fn retired(model: &ServedModel) -> CallError {
    let text = format!("version {} of model `{}` is not served any more", model.version, model.name);
    CallError::new(ErrorCode::ModelNotFound, text)
}

fn wanted(model: &ServedModel, want: Want) -> Result<Want, CallError> {
    match want {
        Want::Ready | Want::Loading { .. } | Want::Assemble => Ok(want),
        Want::Failed { retry_after, .. } => {
            let text = format!("model `{}` does not load; the log says why", model.name);
            Err(CallError::new(ErrorCode::ModelUnavailable, text).with_retry_after(retry_after.max(SOON)))
        }
    }
}

impl Residency {
    /// A lease of a model, which is loaded if it is not; who comes meanwhile waits for the same load, as long as it is the one that is meant.
    ///
    /// # Errors
    /// `model_not_found` if it is not any more;
    /// `model_unavailable` if it does not load, or not before `until`; `overloaded` if too many wait already.
    pub(in crate::models) async fn lease(
        self: &Arc<Self>,
        model: &ServedModel,
        is_meant: &(dyn Fn() -> bool + Sync),
        until: Instant,
    ) -> Result<Lease, CallError> {
        if let Some(lease) = model.lease() {
            return Ok(lease);
        }
        let _counted = self.count_waiter()?;
        self.hold(model, is_meant, until).await.inspect(|_| model.is_used())
    }

    /// The same for who is counted as one that waits already, and does not use it yet. Of an ensemble that is what it is itself.
    pub(super) async fn hold(
        self: &Arc<Self>,
        model: &ServedModel,
        is_meant: &(dyn Fn() -> bool + Sync),
        until: Instant,
    ) -> Result<Lease, CallError> {
        let _waiting = model.wait();
        loop {
            let mut changed = pin!(model.changed.notified());
            // From here on nothing is missed.
            changed.as_mut().enable();
            if let Some(lease) = model.hold() {
                return Ok(lease);
            }
            if self.stopping.load(Ordering::Acquire) {
                return Err(scheduler::draining());
            }
            if model.is_retired() || !is_meant() {
                return Err(retired(model));
            }
            if self.want(model)? == Want::Ready {
                continue;
            }
            let late = || {
                let eta = self.residents.lock().eta(model.number, self.now());
                let text = format!(
                    "model `{}` is being loaded, which takes about {:.1} s more",
                    model.name,
                    eta.as_secs_f64()
                );
                CallError::new(ErrorCode::ModelUnavailable, text).with_retry_after(eta.max(SOON))
            };
            tokio::time::timeout_at(until.into(), changed).await.map_err(|_| late())?;
        }
    }

    /// Has a model loaded, if it is not; says how far it is, other than failed.
    pub(super) fn want(self: &Arc<Self>, model: &ServedModel) -> Result<Want, CallError> {
        let want = {
            let mut core = self.residents.lock();
            // Under the lock: its number may be another's from then on.
            if model.is_retired() {
                return Err(retired(model));
            }
            let before = core.phase(model.number);
            let want = core.want(model.number, self.now());
            match before {
                _ if want == Want::Assemble => {
                    self.history.asked(model.number);
                    drop(self.tell(model, Happening::Loading));
                }
                ModelState::Queued | ModelState::Fetching => {}
                _ => {
                    self.note_fetching(&core, model);
                    self.note_queued(&core, model);
                }
            }
            want
        };
        wanted(model, want)
    }

    /// Whether the files of a model are here. If not, they are fetched.
    pub(super) fn want_files(self: &Arc<Self>, model: &ServedModel) -> Result<bool, CallError> {
        let want = {
            let mut core = self.residents.lock();
            // Under the lock: its number may be another's from then on.
            if model.is_retired() {
                return Err(retired(model));
            }
            if core.is_here(model.number) {
                return Ok(true);
            }
            let before = core.phase(model.number);
            // Of what is away nothing else is begun.
            let want = core.want(model.number, self.now());
            if before != ModelState::Fetching {
                self.note_fetching(&core, model);
            }
            want
        };
        wanted(model, want).map(|_| false)
    }

    /// If a load of a model has just been asked for, that begins its history. Under the lock of who knows, so that no thread comes to it before.
    pub(super) fn note_queued(&self, core: &Core, model: &ServedModel) {
        if core.phase(model.number) == ModelState::Queued {
            self.history.asked(model.number);
            drop(self.tell(model, Happening::Queued));
            self.residents.announce();
        }
    }

    /// How long a call waits at most that says nothing of it.
    pub(in crate::models) fn patience(&self) -> Duration {
        self.config.queue.wait
    }

    pub(super) fn count_waiter(&self) -> Result<impl Drop + '_, CallError> {
        struct Counted<'a>(&'a Residency);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let most = self.config.residency.waiters;
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self);
        if before >= most {
            let text = format!("{most} calls wait for models to be loaded already (residency.waiters)");
            return Err(CallError::new(ErrorCode::Overloaded, text).with_retry_after(SOON));
        }
        Ok(counted)
    }

    /// Has a model leave once the calls are through that have it; does not return before. Not for an async task.
    pub(in crate::models) fn unload(&self, model: &ServedModel) {
        let mut core = self.residents.lock();
        // What is on its way comes first, or leaves already.
        let settled = |phase: ModelState| phase == ModelState::Ready || phase.is_at_rest();
        while !settled(core.phase(model.number)) && !self.stopping.load(Ordering::Acquire) {
            core = self.residents.wait(core);
        }
        let Some(resident) = model.resident().filter(|_| core.phase(model.number) == ModelState::Ready)
        else {
            return;
        };
        resident.door.gate.close();
        core.leaving(model.number, self.now());
        drop(self.tell(model, Happening::Draining));
        while !resident.door.gate.is_idle() && !self.stopping.load(Ordering::Acquire) {
            core = self.residents.wait(core);
        }
        drop(core);
        let bytes = resident.bytes_held();
        drop(model.take());
        let_go(resident);
        drop(self.tell(model, Happening::Unloaded).with(|event: &mut ModelEvent| event.bytes = Some(bytes)));
        let mut core = self.residents.lock();
        core.left(model.number, Left::Asked, self.now());
        self.note_queued(&core, model);
        drop(core);
        model.changed.notify_waiters();
        self.residents.has_changed();
    }

    /// The events after that number which are kept, and those to come.
    pub(in crate::models) fn events(
        &self,
        after: u64,
    ) -> (Vec<ModelEvent>, tokio::sync::broadcast::Receiver<ModelEvent>) {
        self.history.after(after)
    }

    /// Nothing is loaded any more, and who waits for a load is told.
    pub(in crate::models) fn break_off(&self) {
        self.stopping.store(true, Ordering::Release);
        self.fetches.iter().for_each(Fetches::break_off);
        self.residents.has_changed();
        self.served().iter().for_each(|model: &Arc<ServedModel>| model.changed.notify_waiters());
    }
}
