//! Ensembles: a call of one has leases of all that it is made of before it begins, so that nothing of it leaves meanwhile.
//!
//! What is not loaded is brought, at first by one load after the other as for any call, with nothing held. Only if something has made way again by then
//! a call holds what there is while it waits for the rest, and one call at a time does that: two that did could wait for each other's room for
//! ever. Whether all of it can be there together is asked before.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::future::try_join_all;
use outrigger_protocol::error::{CallError, ErrorCode};

use super::super::ModelsError;
use super::super::graph::{Ensemble, Leaf, Placing, Unfit};
use super::super::lease::Lease;
use super::super::served::ServedModel;
use super::Residency;
use super::calls::{SOON, retired};
use super::history::{Happening, ModelEvent};
use crate::scheduler;

/// Leases of all of them, if all are loaded.
fn all_held(leaves: &[Leaf]) -> Option<Vec<Lease>> {
    leaves.iter().map(|(_, leaf)| leaf.hold()).collect()
}

pub(super) fn late(model: &ServedModel) -> CallError {
    let text = format!("the models of ensemble `{}` are not loaded yet", model.name);
    CallError::new(ErrorCode::ModelUnavailable, text).with_retry_after(SOON)
}

impl Residency {
    /// A lease of an ensemble, with those of all that it is made of.
    ///
    /// # Errors
    /// As [`Residency::lease`], of any of them; and `model_unavailable` if it cannot be made of the versions that there are, or devices do
    /// not hold all of it together.
    pub(in crate::models) async fn lease_ensemble(
        self: &Arc<Self>,
        model: &ServedModel,
        is_meant: &(dyn Fn() -> bool + Sync),
        until: Instant,
    ) -> Result<Lease, CallError> {
        let (Some(ensemble), Some(own)) = (&model.ensemble, self.at(model.number)) else {
            return Err(retired(model));
        };
        let _counted = self.count_waiter()?;
        let _waiting = model.wait();
        loop {
            if let Some(lease) = model.lease() {
                return Ok(lease);
            }
            if self.stopping.load(Ordering::Acquire) {
                return Err(scheduler::draining());
            }
            if model.is_retired() || !is_meant() || !std::ptr::eq(Arc::as_ptr(&own), model) {
                return Err(retired(model));
            }
            if Instant::now() >= until {
                return Err(late(model));
            }
            let members = ensemble.members(&model.name);
            let members = members.map_err(|unfit| self.refused(model, ensemble, &[], &unfit))?;
            // What is known not to go together is not loaded for that.
            if let Err(unfit @ (Unfit::Graph(_) | Unfit::Versions(_))) = ensemble.wire(model) {
                return Err(self.refused(model, ensemble, &members.leaves, &unfit));
            }
            // Before anything is held, however long that takes.
            let files = members.ensembles.iter().chain([&own]).map(|one| self.fetched_itself(one, until));
            if try_join_all(files).await?.contains(&false) {
                continue;
            }
            let leaves = &members.leaves;
            let Some(_held) = self.bring_together(model, ensemble, leaves, until).await? else { continue };
            let wired = match ensemble.wire(model) {
                Ok(wired) => wired,
                // Another version is meant since, which has never been loaded.
                Err(Unfit::Unknown(_)) => continue,
                Err(unfit) => return Err(self.refused(model, ensemble, leaves, &unfit)),
            };
            for group in wired.groups.iter().chain([&own]) {
                if !self.assembled(group, until).await? {
                    break;
                }
            }
            // While all are still held: who let go of them first would have to gather them again.
            if let Some(lease) = model.lease() {
                return Ok(lease);
            }
        }
    }

    /// Has the files of an ensemble itself fetched; nothing comes of it where it is not meant any more meanwhile.
    async fn fetched_itself(
        self: &Arc<Self>,
        model: &Arc<ServedModel>,
        until: Instant,
    ) -> Result<bool, CallError> {
        loop {
            let mut changed = pin!(model.changed.notified());
            // From here on nothing is missed.
            changed.as_mut().enable();
            if self.stopping.load(Ordering::Acquire) {
                return Err(scheduler::draining());
            }
            if model.is_retired() {
                return Ok(false);
            }
            if self.want_files(model)? {
                return Ok(true);
            }
            tokio::time::timeout_at(until.into(), changed).await.map_err(|_| late(model))?;
        }
    }

    /// Leases of all models of an ensemble; nothing if other versions are meant meanwhile.
    async fn bring_together(
        self: &Arc<Self>,
        model: &ServedModel,
        ensemble: &Ensemble,
        leaves: &[Leaf],
        until: Instant,
    ) -> Result<Option<Vec<Lease>>, CallError> {
        if let Some(all) = all_held(leaves) {
            return Ok(Some(all));
        }
        self.check_place(model, ensemble, leaves, until).await?;
        if self.bring_each(model, leaves, until).await?.is_none() {
            return Ok(None);
        }
        if let Some(all) = all_held(leaves) {
            return Ok(Some(all));
        }
        let turn = tokio::time::timeout_at(until.into(), self.gathering.lock()).await;
        let _turn = turn.map_err(|_| late(model))?;
        // What stays may be more by now, and whoever waits here in vain has all others wait.
        let moves = self.check_place(model, ensemble, leaves, until).await?;
        // What is in the way of the others where it is comes last: it could not go elsewhere once it is held.
        let (last, first): (Vec<_>, Vec<_>) =
            leaves.iter().map(|(_, leaf)| leaf).partition(|leaf| moves.contains(&leaf.number));
        let mut held = try_join_all(first.into_iter().map(|leaf| self.bring_one(model, leaf, until))).await?;
        held.extend(try_join_all(last.into_iter().map(|leaf| self.bring_one(model, leaf, until))).await?);
        Ok(held.into_iter().collect())
    }

    /// Has each of them loaded, and holds none; nothing if one is not meant any more.
    async fn bring_each(
        self: &Arc<Self>,
        model: &ServedModel,
        leaves: &[Leaf],
        until: Instant,
    ) -> Result<Option<()>, CallError> {
        let each = leaves.iter().map(|(_, leaf)| async move {
            Ok::<_, CallError>(self.bring_one(model, leaf, until).await?.map(drop))
        });
        Ok(try_join_all(each).await?.into_iter().collect())
    }

    async fn bring_one(
        self: &Arc<Self>,
        model: &ServedModel,
        leaf: &Arc<ServedModel>,
        until: Instant,
    ) -> Result<Option<Lease>, CallError> {
        match self.hold(leaf, &|| true, until).await {
            Ok(lease) => Ok(Some(lease)),
            Err(_) if leaf.is_retired() => Ok(None),
            Err(error) => {
                let message = format!("ensemble `{}`: {}", model.name, error.message);
                Err(CallError { message: message.into(), ..error })
            }
        }
    }

    /// Whether devices hold all models of an ensemble together, as far as that can be told: else it is not tried. Of many calls that ask at once one
    /// finds it out for all. Gives the numbers of those that would not be where they are.
    async fn check_place(
        self: &Arc<Self>,
        model: &ServedModel,
        ensemble: &Ensemble,
        leaves: &[Leaf],
        until: Instant,
    ) -> Result<Vec<usize>, CallError> {
        let (since, of) = (Instant::now(), leaves.iter().map(|(_, leaf)| leaf.number).collect::<Vec<_>>());
        let placing = tokio::time::timeout_at(until.into(), ensemble.placing.lock()).await;
        let mut placing = placing.map_err(|_| late(model))?;
        let moves = match placing.as_ref().filter(|last| last.at >= since && last.of == of) {
            Some(last) => last.moves.clone(),
            None => {
                let (at, models) =
                    (Instant::now(), leaves.iter().map(|(_, leaf)| Arc::clone(leaf)).collect());
                let moves = self.ask_for_place(model, models).await;
                *placing = Some(Placing { at, of, moves: moves.clone() });
                moves
            }
        };
        drop(placing);
        let text = match moves {
            Ok(moves) => return Ok(moves),
            Err(text) => text,
        };
        if ensemble.refused(Some(&text)) {
            tracing::error!(model = %model.name, reason = text, "an ensemble cannot be had");
            drop(
                self.tell(model, Happening::Refused)
                    .with(|event: &mut ModelEvent| event.reason = Some(text.clone())),
            );
        }
        Err(CallError::new(ErrorCode::ModelUnavailable, text))
    }

    /// Which of these would not be where they are, or why devices do not hold them together.
    async fn ask_for_place(
        self: &Arc<Self>,
        model: &ServedModel,
        models: Vec<Arc<ServedModel>>,
    ) -> Result<Vec<usize>, String> {
        let this = Arc::clone(self);
        let place = tokio::task::spawn_blocking(move || this.have_place(&models)).await;
        let together = |unplaced| ModelsError::Together { name: model.name.clone(), unplaced }.to_string();
        // A panic, which is a bug of ours, says nothing of it.
        place.map_or(Ok(Vec::new()), |place| place.map_err(together))
    }

    /// It cannot be made of the versions that there are. If one of those is watched which took the place of one that would do, that counts against it.
    fn refused(&self, model: &ServedModel, ensemble: &Ensemble, leaves: &[Leaf], unfit: &Unfit) -> CallError {
        let text = format!("ensemble `{}` cannot be had: {unfit}", model.name);
        if ensemble.refused(Some(&text)) {
            tracing::error!(model = %model.name, reason = %unfit, "an ensemble cannot be had with the versions that there are now");
            drop(
                self.tell(model, Happening::Refused)
                    .with(|event: &mut ModelEvent| event.reason = Some(text.clone())),
            );
        }
        let at_fault =
            leaves.iter().filter(|(named, leaf)| ensemble.did_with_the_one_before(model, named, leaf));
        at_fault.for_each(|(_, leaf)| leaf.outcomes.note(true));
        CallError::new(ErrorCode::ModelUnavailable, text)
    }
}
