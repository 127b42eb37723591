//! Calls of ensembles, as the replica's models run them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use outrigger_backend::{BackendError, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};

use super::ensemble::{Ensemble, Gathered};
use super::groups::Groups;
use super::picks::Picks;
use super::run::{Asked, Broken, Terms, run};
use super::wired::WiredRun;
use crate::busy::Outcome;
use crate::models::Models;
use crate::models::begun::Begun;
use crate::models::job::Failure;
use crate::models::lease::Lease;
use crate::models::picked::Picked;
use crate::models::refusal::call_error;
use crate::models::statistics::{Statistics, Times};
use crate::models::turn::{SharedSlot, Turn};
use crate::scheduler::Slot;
use crate::telemetry::{self, Phase};

/// A call of an ensemble: what it is made of, and where its runs go.
pub(in crate::models) struct GraphCall {
    pub(in crate::models) ensemble: Arc<Ensemble>,
    pub(in crate::models) gathered: Arc<Gathered>,
    pub(in crate::models) picks: Picks,
    pub(in crate::models) statistics: Option<Arc<Statistics>>,
}

/// A call whose runs are under way.
struct Calling<'a> {
    models: &'a Models,
    gathered: &'a Gathered,
    groups: Groups<'a>,
    /// Of each run, whether it is needed.
    needed: Vec<bool>,
    broken: &'a Broken,
    deadline: Option<Instant>,
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
    ) -> Result<Vec<Tensor>, CallError> {
        let GraphCall { ensemble, gathered, picks, statistics } = call;
        statistics.iter().for_each(|statistics| statistics.ran());
        let wired = &gathered.wired;
        let slot = slot.map(|slot| SharedSlot::new(slot, deadline));
        let wanted: Vec<usize> =
            outputs.iter().filter_map(|output| wired.outputs.get(*output).copied()).collect();
        let broken = Broken::default();
        let calling = Calling {
            models: self,
            gathered: &gathered,
            groups: Groups::new(&gathered.groups),
            needed: wired.needed(&wanted),
            broken: &broken,
            deadline,
        };
        let homes: Vec<Option<usize>> =
            (0..wired.runs.len()).map(|run| picks.get(run).and_then(Picked::home)).collect();
        let picks = Mutex::new(picks);
        let terms = Terms {
            home: |run: usize| homes.get(run).copied().flatten(),
            bytes: self.ensemble_bytes,
            most: self.run_bytes,
            runs: self.ensemble_runs,
            counters: ensemble.counters.get(),
            broken: &broken,
        };
        let one = |asked: Asked| {
            // Held for a moment only, by one future.
            let picked = picks.lock().unwrap_or_else(PoisonError::into_inner).take(asked.run);
            calling.run(picked, asked, slot.clone().map(Turn::Shared))
        };
        let since = Instant::now();
        let answer = run(wired, inputs, &outputs, terms, one).await;
        telemetry::with(|passage| {
            let waited = passage.spent(Phase::Batch).unwrap_or_default();
            passage.add(Phase::Run, since.elapsed().saturating_sub(waited));
        });
        let within = broken.by().and_then(|run| wired.runs.get(run)).map(|run| run.groups.as_slice());
        calling.groups.end(answer.as_ref().map(drop).map_err(|error| (error, within.unwrap_or_default())));
        let outcome = match &answer {
            Ok(_) if deadline.is_some_and(|deadline| deadline <= Instant::now()) => Some(Outcome::Failed),
            Ok(_) => Some(Outcome::Answered),
            // The slot knows whether anything had begun by then.
            Err(error) if error.code == ErrorCode::DeadlineExceeded => None,
            Err(_) => Some(Outcome::Failed),
        };
        if let Some((slot, outcome)) = slot.zip(outcome) {
            slot.ends(outcome);
        }
        answer
    }
}

impl Calling<'_> {
    /// One run: a call of its model.
    async fn run(
        &self,
        picked: Option<Picked>,
        asked: Asked,
        turn: Option<Turn>,
    ) -> Result<Vec<Tensor>, CallError> {
        let run = self.gathered.wired.runs.get(asked.run);
        let lease = run.and_then(|run| self.gathered.leaves.get(run.leaf));
        let (Some(run), Some(lease), Some(picked)) = (run, lease, picked) else {
            return Err(CallError::new(ErrorCode::Internal, "a run of the ensemble has no model"));
        };
        self.groups.begin(&run.groups);
        let part = Part { begun: Some(lease.begin()), since: Instant::now(), lease, broken: self.broken };
        let Asked { inputs, outputs, stay, .. } = asked;
        let answer =
            self.models.failing_on(picked, inputs, (outputs.clone(), stay), turn, self.deadline).await;
        let answer = match answer {
            Ok(Ok(given)) => match self.gathered.wired.misfit(run, &outputs, &given, &self.needed) {
                None => Ok(given),
                Some(problem) => {
                    tracing::error!(node = %run.name, model = %lease.name, problem, "a model gave a wrong tensor");
                    Err(CallError::new(ErrorCode::ModelFailed, problem))
                }
            },
            Ok(Err((_, Failure::Backend(BackendError::Input(problem))))) if self.is_inner(run) => {
                return Err(at(run, lease, part.does_not_take(problem)));
            }
            Ok(Err((instance, failure))) => Err(call_error(&instance, failure)),
            Err(error) => Err(error),
        };
        self.groups.ran(&run.groups);
        part.ended(&answer);
        answer.map_err(|error| at(run, lease, error))
    }

    /// Whether all that a run takes comes from other ones.
    fn is_inner(&self, run: &WiredRun) -> bool {
        !run.inputs.is_empty() && !self.gathered.wired.is_fed_by_callers(run)
    }
}

/// A run as a call of its model.
struct Part<'a> {
    begun: Option<Begun>,
    since: Instant,
    lease: &'a Lease,
    broken: &'a Broken,
}

impl Part<'_> {
    fn ended<T>(mut self, answer: &Result<T, CallError>) {
        let (Some(begun), took) = (self.begun.take(), self.since.elapsed()) else { return };
        match answer {
            Ok(_) => {
                begun.ended(true);
                let times = Times { infer: took, whole: took, ..Times::default() };
                self.lease.statistics().iter().for_each(|statistics| statistics.succeeded(&times));
            }
            Err(error) => {
                begun.ended_as(error);
                self.lease.statistics().iter().for_each(|statistics| statistics.failed(took));
            }
        }
    }

    /// Its model does not take what others have given, which says nothing of its own version, and is nothing that the caller has sent.
    fn does_not_take(mut self, problem: String) -> CallError {
        self.begun.take().into_iter().for_each(Begun::aside);
        self.lease.statistics().iter().for_each(|statistics| statistics.failed(self.since.elapsed()));
        tracing::error!(model = %self.lease.name, problem, "a model does not take what other nodes have given");
        CallError::new(ErrorCode::ModelFailed, format!("{problem}; all that it takes comes from other nodes"))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        if self.broken.is_so() {
            // Another one has failed, and it is left because of that.
            return begun.aside();
        }
        // Nobody waits for the whole any more: how long this one took says whether it was at fault.
        self.lease.statistics().iter().for_each(|statistics| statistics.failed(self.since.elapsed()));
    }
}

/// The same error with the node in it, and its model.
fn at(run: &WiredRun, lease: &Lease, error: CallError) -> CallError {
    if matches!(error.code, ErrorCode::DeadlineExceeded | ErrorCode::Draining) {
        // Which node had its turn says nothing of that.
        return error;
    }
    let message = format!("node `{}` (model `{}`): {}", run.name, lease.name, error.message);
    CallError { message: message.into(), ..error }
}
