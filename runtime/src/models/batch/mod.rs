//! Calls of one model that are run together.
//!
//! Calls that wait for such a model stand in its [`Former`], which has at most one message under way to the device threads: a thread that
//! comes to it chooses ([`choice`]) which of them go together. With no thread free they wait and so become a batch; with one free the
//! first is run at once, unless the model's `max_delay` says that it waits for others.

mod able;
mod choice;
mod cost;
mod metrics;
mod rows;
mod run;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, ModelInfo};

use super::job::{self, Failure, Job};
use super::steps::StepBytes;
use super::wanted::Wanted;
use crate::busy::Outcome;
use crate::config::BatchDelay;
use choice::{Bucket, Choice, Rules, Waiting};
use cost::Costs;

pub use able::NotBatchable;
pub(crate) use metrics::BatchMetrics;
use metrics::ModelMetrics;
pub(super) use run::{Around, run};

/// With `max_delay = "auto"`, saving less than this per run is worth no wait: to wake up takes as long.
const WORTH_WAITING: Duration = Duration::from_micros(100);

/// The calls that wait for one model.
pub(super) struct Former {
    max_rows: usize,
    /// Bytes that the inputs, and the outputs, of one run may take.
    max_bytes: usize,
    /// What steps around the model take.
    steps: Option<StepBytes>,
    delay: BatchDelay,
    /// Calls that may wait.
    most: usize,
    state: Mutex<State>,
    pool: rows::Pool,
    metrics: ModelMetrics,
    /// Whether it was said that batches of this model cannot be taken apart.
    told: AtomicBool,
}

struct State {
    waiting: VecDeque<Member>,
    watch: Watch,
    costs: Costs,
    /// Since when the last call is here, and about how long it is from one to the next.
    last: Option<Instant>,
    gap: Duration,
}

/// Whether a device thread will look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Nothing waits.
    Nobody,
    /// A message is under way.
    Called,
    /// One will look in a while.
    Later,
}

/// A call that waits.
pub(super) struct Member {
    job: Job,
    about: Waiting,
}

impl AsRef<Waiting> for Member {
    fn as_ref(&self) -> &Waiting {
        &self.about
    }
}

/// What there is to do for who has left a call.
pub(super) enum Put {
    /// Somebody has to be told to look.
    Call,
    /// Nothing: somebody will look.
    Wait,
}

/// Why a call was not taken.
pub(super) enum Refused {
    /// So many wait already.
    Full,
    /// It does not fit the model.
    Unfit(Failure),
}

/// What there is to do for a thread that looks.
pub(super) enum Visit {
    Nothing,
    /// Look again then.
    Later(Instant),
    /// Run these. With `more`, somebody has to be told to look at the others.
    Run {
        members: Vec<Member>,
        more: bool,
    },
}

/// Whether calls of a model can be run together, as its inputs and outputs tell.
///
/// # Errors
/// [`NotBatchable`], if they cannot.
pub(super) fn check(info: &ModelInfo) -> Result<(), NotBatchable> {
    able::check(info)
}

impl Former {
    /// For a model that can batch and is said to; `None` if it is not said to.
    ///
    /// # Errors
    /// [`NotBatchable`], if its inputs and outputs tell that it cannot.
    pub(super) fn new(
        name: &str,
        config: &Wanted,
        info: &ModelInfo,
        limits: Limits,
        metrics: &BatchMetrics,
    ) -> Result<Option<Self>, NotBatchable> {
        if config.max_batch <= 1 {
            return Ok(None);
        }
        able::check(info)?;
        Ok(Some(Self {
            max_rows: config.max_batch,
            max_bytes: limits.bytes,
            steps: limits.steps,
            delay: config.max_delay,
            most: limits.waiting,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                watch: Watch::Nobody,
                costs: Costs::default(),
                last: None,
                gap: Duration::MAX,
            }),
            pool: rows::Pool::default(),
            metrics: metrics.model(name),
            told: AtomicBool::new(false),
        }))
    }

    /// So many calls may wait from now on.
    pub(super) fn let_wait(&mut self, most: usize) {
        self.most = most;
    }

    /// Takes a call.
    pub(super) fn put(&self, job: Job) -> Result<Put, Refused> {
        let member = self.member(job).map_err(Refused::Unfit)?;
        let mut state = self.lock();
        if state.waiting.len() >= self.most {
            state.waiting.retain(|member| !member.job.is_left());
            if state.waiting.len() >= self.most {
                member.job.refuse(Outcome::Refused);
                return Err(Refused::Full);
            }
        }
        state.arrived(member.about.since);
        let now_due = state.watch == Watch::Later && self.completes(&state, &member.about);
        state.waiting.push_back(member);
        if state.watch == Watch::Nobody || now_due {
            state.watch = Watch::Called;
            return Ok(Put::Call);
        }
        Ok(Put::Wait)
    }

    /// A look at those who wait has failed by a mistake of ours: they are answered, and the next one is looked at anew.
    pub(super) fn recover(&self) {
        let waiting = {
            let mut state = self.lock();
            state.watch = Watch::Nobody;
            std::mem::take(&mut state.waiting)
        };
        for member in waiting {
            member.job.finish(Err(BackendError::Internal("the batch could not be formed".into()).into()));
        }
    }

    /// Whether a call never waits while a thread is free.
    pub(super) fn holds_nothing_back(&self) -> bool {
        self.delay == BatchDelay::AtMost(Duration::ZERO)
    }

    /// A call that had not to wait was run and took so long.
    pub(super) fn ran_alone(&self, job: &Job, took: Duration) {
        self.note(&bucket(job), rows::of(&job.inputs).unwrap_or(1).max(1), took);
    }

    fn member(&self, job: Job) -> Result<Member, Failure> {
        // Each by itself, so that one that does not fit never gets among others.
        let bytes = job::check(&job.model, &job.inputs, &job.outputs, self.max_bytes);
        // What can never be run is not held back for others either.
        let bytes = bytes.and_then(|outputs| {
            let steps = self.steps.as_ref().map_or(Ok(0), |steps| steps.of(&job.inputs, &job.outputs))?;
            Ok((outputs, steps))
        });
        let (outputs, steps) = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                job.refuse(Outcome::Failed);
                return Err(error);
            }
        };
        let inputs = job.inputs.iter().map(|input| input.data().len()).fold(0, usize::saturating_add);
        let rows = rows::of(&job.inputs);
        let bucket = bucket(&job);
        let about = Waiting {
            bucket,
            // Of no rows at all, a model may say something else than of none among others.
            alone: rows.is_none_or(|rows| rows == 0),
            rows: rows.unwrap_or(1).max(1),
            bytes: inputs.max(outputs),
            steps,
            since: Instant::now(),
            deadline: job.deadline,
        };
        Ok(Member { job, about })
    }

    /// Whether a batch that is held back need not be any longer, or should be looked at, once `new` is here.
    fn completes(&self, state: &State, new: &Waiting) -> bool {
        if new.alone || new.deadline.is_some() {
            return true;
        }
        let alike = state.waiting.iter().map(|member| &member.about);
        let alike = alike.filter(|about| !about.alone && about.bucket == new.bucket);
        let sum = |[rows, bytes, steps]: [usize; 3], about: &Waiting| {
            let (rows, bytes) = (rows.saturating_add(about.rows), bytes.saturating_add(about.bytes));
            [rows, bytes, steps.saturating_add(about.steps)]
        };
        let [rows, bytes, steps] = alike.fold([new.rows, new.bytes, new.steps], sum);
        rows >= self.max_rows || bytes > self.max_bytes || steps >= self.max_steps()
    }

    /// Bytes that steps may take in one run.
    fn max_steps(&self) -> usize {
        self.steps.as_ref().map_or(usize::MAX, StepBytes::limit)
    }

    /// A device thread looks what there is to do. Nothing is held back for one that is `hurried`.
    pub(super) fn visit(&self, now: Instant, hurried: bool) -> Visit {
        let mut skipped = VecDeque::new();
        let mut state = self.lock();
        let unwanted = |member: &Member| member.job.is_left() || member.job.is_late(now);
        if state.waiting.iter().any(unwanted) {
            (skipped, state.waiting) = state.waiting.drain(..).partition(unwanted);
        }
        let hold = if hurried { Duration::ZERO } else { self.hold(&state) };
        let rules = Rules { rows: self.max_rows, bytes: self.max_bytes, steps: self.max_steps(), hold };
        let cost = |bucket: &Bucket, rows: usize| state.costs.get(bucket)?.of(rows);
        let visit = match choice::choose(&state.waiting, &rules, cost, now) {
            Choice::Nothing => {
                state.watch = Watch::Nobody;
                Visit::Nothing
            }
            Choice::Later(at) => {
                state.watch = Watch::Later;
                Visit::Later(at)
            }
            Choice::Now(places) => {
                let members = take(&mut state.waiting, &places);
                let more = !state.waiting.is_empty();
                state.watch = if more { Watch::Called } else { Watch::Nobody };
                Visit::Run { members, more }
            }
        };
        drop(state);
        skipped.into_iter().for_each(|member| self.skip(member.job));
        visit
    }

    /// How long a batch that could grow is held back.
    fn hold(&self, state: &State) -> Duration {
        match self.delay {
            BatchDelay::AtMost(delay) => delay,
            // Joining saves the fixed part of a run. Waiting for as long as that, where somebody is likely to come meanwhile,
            // costs at most as much again as there was to save.
            BatchDelay::Auto => {
                let bucket = state.waiting.front().map(|member| &member.about.bucket);
                let fixed = bucket.and_then(|bucket| state.costs.get(bucket)?.fixed());
                fixed.filter(|fixed| *fixed >= WORTH_WAITING && state.gap < *fixed).unwrap_or_default()
            }
        }
    }

    /// Ends a job that is not begun any more.
    fn skip(&self, job: Job) {
        // One whose deadline is over has left because of that.
        if job.is_left() && !job.is_late(Instant::now()) {
            // Dropping it counts it as cancelled and frees its slot.
            self.metrics.left.inc();
        } else {
            self.metrics.late.inc();
            job.finish(Err(Failure::Late));
        }
    }

    /// A run took so long.
    fn note(&self, bucket: &Bucket, rows: usize, took: Duration) {
        self.metrics.rows.observe(rows as f64);
        self.lock().costs.note(bucket, rows, took);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while the lock is held; a poisoned lock would still hold a state that is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn arrived(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let gap = now.saturating_duration_since(last);
            self.gap = if self.gap == Duration::MAX { gap } else { (self.gap * 7 + gap) / 8 };
        }
    }
}

/// What bounds the calls of a model.
#[derive(Clone)]
pub(super) struct Limits {
    /// Bytes of the inputs, and of the outputs, of one run.
    pub(super) bytes: usize,
    /// What steps take in one run, which has a limit of its own.
    pub(super) steps: Option<StepBytes>,
    /// Calls that wait.
    pub(super) waiting: usize,
}

fn bucket(job: &Job) -> Bucket {
    Bucket { extents: able::extents(&job.model.info, &job.inputs), outputs: job.outputs.clone() }
}

/// Takes out those at `places`, in that order.
fn take<T>(list: &mut VecDeque<T>, places: &[usize]) -> Vec<T> {
    if places.iter().enumerate().all(|(at, place)| at == *place) {
        return list.drain(..places.len().min(list.len())).collect();
    }
    let mut all: Vec<Option<T>> = list.drain(..).map(Some).collect();
    let taken = places.iter().filter_map(|place| all.get_mut(*place)?.take()).collect();
    list.extend(all.into_iter().flatten());
    taken
}
