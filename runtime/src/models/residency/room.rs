//! Finds room for a model that is about to be loaded: where it fits, or where it would if others made way, which then do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::super::ModelsError;
use super::super::instance::LoadedModel;
use super::super::served::ServedModel;
use super::super::survey::{self, Estimates};
use super::accounts::Charges;
use super::core::{Core, Left, Waits};
use super::history::Happening;
use super::{Residency, charges};
use crate::fetching::FetchingError;
use crate::placement::{self, DeviceId, Plan};

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Models(#[from] ModelsError),
    #[error("its files cannot be fetched")]
    Fetching(#[source] FetchingError),
    /// Nothing made way.
    #[error(
        "there is no room for it: the models that could make way were in use for {0:?} (residency.room_wait)"
    )]
    NoRoom(Duration),
    #[error("the load was broken off: the replica ends")]
    Ending,
    #[error("it is not served any more")]
    Unwanted,
    #[error("the load was broken off by a panic, which the log shows")]
    Broken,
}

impl Residency {
    /// Reserves what a model will hold, on the devices that it is planned on; others make way for it where they have to. Gives the plan.
    ///
    /// # Errors
    /// [`Failure`]: it has no place, or none is free in time.
    pub(super) fn make_room(&self, model: &ServedModel, estimates: &Estimates) -> Result<Plan, Failure> {
        let number = model.number;
        let mut patience = self.config.residency.room_wait;
        let mut claims = false;
        let mut core = self.residents.lock();
        loop {
            if model.is_retired() {
                return Err(Failure::Unwanted);
            }
            // All that follows goes by one look: calls come and go meanwhile.
            let seen: Vec<_> = self.served().iter().map(|model| model.usage()).collect();
            let usage = |number: usize| seen.get(number).copied().unwrap_or_default();
            let mut plan = self.plan(estimates, &core.held(Some(number)));
            if !plan.unplaced.is_empty() {
                plan = self.plan(estimates, &core.held_at_least(Some(number), &usage));
            }
            let mut turn = true;
            if plan.unplaced.is_empty() {
                let planned = plan.placed.iter().map(|placed| (placed.device.clone(), placed.bytes));
                let charges = charges(&self.devices, &planned.collect::<Vec<_>>());
                let bytes = charges.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
                core.expect_bytes(number, bytes);
                // Nothing makes way for a load whose turn it is not.
                turn = core.has_turn(number, bytes);
                let victims = if turn { core.victims(number, &charges, &usage, self.now()) } else { None };
                if let Some(victims) = victims.as_deref().filter(|victims| !victims.is_empty()) {
                    core = self.leave(core, victims, model);
                    self.check_stopping()?;
                    continue;
                }
                // Where others have to leave first, it waits.
                if victims.is_some() && core.reserve(number, charges) {
                    self.residents.announce();
                    return Ok(plan);
                }
                if std::mem::replace(&mut claims, victims.is_some()) && victims.is_none() {
                    // What was kept for it is there for others.
                    self.residents.announce();
                }
            } else if !core.may_change(number, &usage) {
                return Err(ModelsError::NoPlace(plan.unplaced).into());
            }
            if core.waits(number, if turn { Waits::Room } else { Waits::Turn }) {
                // Another load may begin, or may not any more.
                self.residents.announce();
            }
            let began = Instant::now();
            core = self.wait_for_change(core, turn.then_some(patience))?;
            if turn {
                patience = patience.saturating_sub(began.elapsed());
            }
        }
    }

    /// Has others make way for what a model that has been loaded holds beyond what was reserved for it.
    ///
    /// # Errors
    /// [`Failure`], if none does in time.
    pub(super) fn make_way<'a>(
        &'a self,
        model: &ServedModel,
        measured: &Charges,
    ) -> Result<MutexGuard<'a, Core>, Failure> {
        let until = Instant::now() + self.config.residency.room_wait;
        let mut core = self.residents.lock();
        loop {
            let seen: Vec<_> = self.served().iter().map(|model| model.usage()).collect();
            let usage = |number: usize| seen.get(number).copied().unwrap_or_default();
            match core.victims(model.number, measured, &usage, self.now()) {
                Some(victims) if victims.is_empty() => return Ok(core),
                Some(victims) => core = self.leave(core, &victims, model),
                None => {
                    let patience = until.saturating_duration_since(Instant::now());
                    core = self.wait_for_change(core, Some(patience))?;
                }
            }
            self.check_stopping()?;
        }
    }

    fn check_stopping(&self) -> Result<(), Failure> {
        if self.stopping.load(Ordering::Acquire) { Err(Failure::Ending) } else { Ok(()) }
    }

    /// Waits for something to change: for room no longer than that, for its turn as long as it takes.
    fn wait_for_change<'a>(
        &self,
        core: MutexGuard<'a, Core>,
        patience: Option<Duration>,
    ) -> Result<MutexGuard<'a, Core>, Failure> {
        self.check_stopping()?;
        match patience {
            None => Ok(self.residents.wait(core)),
            Some(Duration::ZERO) => Err(Failure::NoRoom(self.config.residency.room_wait)),
            Some(patience) => Ok(self.residents.wait_for(core, patience)),
        }
    }

    /// Where a model would go if devices held so much.
    fn plan(&self, estimates: &Estimates, held: &[u64]) -> Plan {
        placement::plan(&estimates.models, &survey::states(&self.backends, held))
    }

    /// Lets models go; all of them, unless a call has come for one meanwhile.
    fn leave<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        victims: &[usize],
        for_whom: &ServedModel,
    ) -> MutexGuard<'a, Core> {
        let mut leaving = Vec::new();
        for victim in victims.iter().filter_map(|number| self.at(*number)) {
            if let Some(resident) = victim.take_if_idle() {
                core.leaving(victim.number, self.now());
                leaving.push((victim, resident));
            }
        }
        // What a device takes to give memory back, nobody else waits for.
        drop(core);
        let mut left = Vec::new();
        for (victim, resident) in leaving {
            let bytes = resident.bytes_held();
            let_go(resident);
            tracing::debug!(model = %victim.name, bytes, place = %for_whom.name, "model makes way");
            self.counters.models.evicted();
            drop(self.tell(&victim, Happening::Evicted).with(|event| {
                event.bytes = Some(bytes);
                event.reason = Some(format!("makes way for model `{}`", for_whom.name));
            }));
            left.push(victim);
        }
        let mut core = self.residents.lock();
        for victim in left {
            core.left(victim.number, Left::Evicted, self.now());
            self.note_queued(&core, &victim);
            victim.changed.notify_waiters();
        }
        self.residents.announce();
        core
    }

    /// What a model was measured to hold when it was loaded last takes the place of what devices think.
    pub(super) fn correct(&self, model: &ServedModel, estimates: &mut Estimates) {
        for wanted in &mut estimates.models {
            for (device, bytes) in model.measured() {
                if let Some(Ok(estimate)) = wanted.estimates.get_mut(&device) {
                    *estimate = bytes;
                }
            }
        }
    }

    /// Keeps what a model was measured to hold, by copy.
    pub(super) fn note_measured(&self, model: &ServedModel, held: &[(DeviceId, u64)]) {
        // Copies on one device share what they hold, so that the first one tells most.
        let mut most: Vec<(DeviceId, u64)> = Vec::new();
        for (device, bytes) in held.iter().filter(|(_, bytes)| *bytes > 0) {
            match most.iter_mut().find(|(known, _)| known == device) {
                Some((_, most)) => *most = (*most).max(*bytes),
                None => most.push((device.clone(), *bytes)),
            }
        }
        model.note_measured(most);
    }
}

/// How long a model may still be held by who only looks at it, or by who has just been told that its run is over...
const LOOKED_AT: Duration = Duration::from_secs(1);
/// ...and how often that is asked.
const ASKED: Duration = Duration::from_micros(50);

/// Drops a model that nobody can have any more, so that its memory is free afterwards.
pub(super) fn let_go(resident: Arc<LoadedModel>) {
    let until = Instant::now() + LOOKED_AT;
    let is_held = || {
        Arc::strong_count(&resident) > 1
            || resident.instances().any(|instance| Arc::strong_count(instance) > 1)
    };
    while is_held() && Instant::now() < until {
        std::thread::sleep(ASKED);
    }
    // A backend that panics here has lost what it held; the model is gone all the same.
    if catch_unwind(AssertUnwindSafe(|| drop(resident))).is_err() {
        tracing::error!("a model was let go of by a panic");
    }
}
