//! Calls of ensembles, as the replica's models run them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outrigger_backend::Tensor;
use outrigger_protocol::error::{CallError, ErrorCode};

use super::ensemble::Gathered;
use super::picks::Picks;
use super::run::{Asked, Counters, run};
use crate::busy::Outcome;
use crate::models::Models;
use crate::models::instance::{Begun, Picked};
use crate::models::job::{SharedSlot, Turn};
use crate::scheduler::Slot;

/// A call of an ensemble: what it is made of, and where its runs go.
pub(in crate::models) struct GraphCall {
    pub(in crate::models) gathered: Arc<Gathered>,
    pub(in crate::models) picks: Picks,
}

impl Models {
    /// Runs an ensemble as [`Models::infer`] does a model. Its runs are calls of their models, but for the slot, which is the one that the whole of it has.
    ///
    /// # Errors
    /// As [`Models::infer`], naming node and model.
    pub(in crate::models) async fn infer_graph(
        &self,
        call: GraphCall,
        inputs: Vec<Tensor>,
        outputs: Vec<usize>,
        slot: Option<Slot>,
        deadline: Option<Instant>,
        counters: Option<&Counters>,
    ) -> Result<Vec<Tensor>, CallError> {
        let GraphCall { gathered, picks } = call;
        let (gathered, slot) = (&*gathered, slot.map(SharedSlot::new));
        let homes: Vec<Option<usize>> =
            (0..gathered.wired.runs.len()).map(|run| picks.get(run).and_then(Picked::home)).collect();
        let home = |run: usize| homes.get(run).copied().flatten();
        let mut groups: Vec<Option<Begun>> =
            gathered.groups.iter().map(|group| Some(group.begin())).collect();
        let picks = Mutex::new(picks);
        let failed = Mutex::new(None);
        let one = |asked: Asked| {
            let picked = lock(&picks).take(asked.run);
            let turn = slot.clone().map(Turn::Shared);
            let failed = &failed;
            async move {
                let number = asked.run;
                let answer = self.infer_run(gathered, picked, asked, turn, deadline).await;
                if answer.is_err() {
                    lock(failed).get_or_insert(number);
                }
                answer
            }
        };
        let limit = self.ensemble_bytes;
        let answer = run(&gathered.wired, inputs, &outputs, (home, limit), counters, one).await;
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let within = failed.and_then(|run| gathered.wired.runs.get(run)).map(|run| run.groups.as_slice());
        for (number, group) in groups.iter_mut().enumerate() {
            let Some(begun) = group.take() else { continue };
            match &answer {
                Ok(_) => begun.ended(true),
                Err(error) if within.is_some_and(|within| within.contains(&number)) => begun.ended_as(error),
                // It was another one's fault.
                Err(_) => begun.aside(),
            }
        }
        if let Some(slot) = slot {
            slot.ends(match &answer {
                Ok(_) if deadline.is_some_and(|deadline| deadline <= Instant::now()) => Outcome::Failed,
                Ok(_) => Outcome::Answered,
                Err(error) if error.code == ErrorCode::DeadlineExceeded => Outcome::Expired,
                Err(_) => Outcome::Failed,
            });
        }
        answer
    }

    /// One run of an ensemble's: a call of its model.
    async fn infer_run(
        &self,
        gathered: &Gathered,
        picked: Option<Picked>,
        asked: Asked,
        turn: Option<Turn>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Tensor>, CallError> {
        let run = gathered.wired.runs.get(asked.run);
        let lease = run.and_then(|run| gathered.leaves.get(run.leaf));
        let (Some(run), Some(lease), Some(picked)) = (run, lease, picked) else {
            return Err(CallError::new(ErrorCode::Internal, "a run of the ensemble has no model"));
        };
        let begun = lease.begin();
        let Asked { inputs, outputs, stay, .. } = asked;
        match self.infer_on(picked, inputs, (outputs, stay), turn, deadline).await {
            Ok(tensors) => {
                begun.ended(true);
                Ok(tensors)
            }
            Err(error) => {
                begun.ended_as(&error);
                Err(at(&run.name, &lease.name, error))
            }
        }
    }
}

/// Held for a moment only, by one future.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same error with the node in it, and its model.
fn at(node: &str, model: &str, error: CallError) -> CallError {
    if matches!(error.code, ErrorCode::DeadlineExceeded | ErrorCode::Draining) {
        // Which node had its turn says nothing of that.
        return error;
    }
    let message = format!("node `{node}` (model `{model}`): {}", error.message);
    CallError { message: message.into(), ..error }
}
