//! Threads that run models: fed by a bounded channel, joined at the end.
//!
//! A thread that finds the channel empty sleeps at once. The channel's own blocking receive would first yield the processor several
//! times, which cost 1.4 `sched_yield` calls and about 10 µs of CPU for each run of a small model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use outrigger_backend::{Instance, RunId};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;

use super::ModelInstance;
use super::batch::{self, Around as _, Put, Refused, Visit};
use super::bed::Bed;
use super::cancels::{Cancels, UnderWay};
use super::job::{self, Answer, Failure, Job};
use crate::busy::Outcome;
use crate::telemetry::{self, Phase};

/// Jobs that may wait for a thread, or for one model that batches. Calls are admitted by slots, and a worker asks for one run at a time
/// in each of its threads, so only a script with very many threads can come near it.
pub(super) const WAITING: usize = 1024;

/// Runs are short when this many in a row...
const SHORT_RUNS: u32 = 32;
/// ...took at most this long each.
const SHORT_TIME: Duration = Duration::from_micros(100);
/// Messages that one thread is left with while others sleep.
const BACKLOG: usize = 16;
/// How long a run that was left to a thread which is awake may take before another is woken.
const SHORT_WAIT: Duration = Duration::from_millis(1);
/// In place of a time: nothing is held back.
const NEVER: u64 = u64::MAX;

#[expect(
    clippy::large_enum_variant,
    reason = "a box for each run would cost more than the bytes of a message"
)]
enum Message {
    Run(Job),
    /// Calls of a model that batches wait.
    Look(Arc<ModelInstance>),
    Stop,
}

/// The channel, and where threads sleep while it is empty.
struct Feed {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    /// Threads that sleep, or are about to or have just done so.
    sleeping: AtomicUsize,
    threads: usize,
    /// Short runs in a row, about.
    short_runs: AtomicU32,
    bed: Mutex<Bed>,
    cancels: Arc<Cancels>,
    alarm: Condvar,
    /// When the first of the models that are to be looked at later is due, in nanoseconds since the start; [`NEVER`] for none.
    due: AtomicU64,
    started: Instant,
    /// Bytes that the outputs of one run may take.
    output_limit: usize,
    /// Jobs that have not begun are dropped, which answers them.
    broken_off: AtomicBool,
    /// Nothing is held back any more.
    stopping: AtomicBool,
}

pub(super) struct Threads {
    feed: Arc<Feed>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts `count` threads of a device, in front of which `ahead` admitted jobs may wait.
    pub(super) fn start(
        device: &str,
        count: usize,
        ahead: usize,
        output_limit: usize,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = crossbeam_channel::bounded(ahead + WAITING);
        let feed = Arc::new(Feed {
            threads: count,
            short_runs: AtomicU32::new(0),
            sender,
            receiver,
            sleeping: AtomicUsize::new(0),
            bed: Mutex::default(),
            cancels: Arc::default(),
            alarm: Condvar::new(),
            due: AtomicU64::new(NEVER),
            started: Instant::now(),
            output_limit,
            broken_off: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        });
        let mut handles = Vec::with_capacity(count);
        for number in 0..count {
            let feed = Arc::clone(&feed);
            let name = format!("{device}-{number}");
            handles.push(std::thread::Builder::new().name(name).spawn(move || work(&feed))?);
        }
        Ok(Self { feed, handles: Mutex::new(handles) })
    }

    /// Has a thread run a job; the outer error is for one that did not reach a thread. `answer` is the other end of its `done`.
    pub(super) async fn run(&self, job: Job, answer: oneshot::Receiver<Answer>) -> Result<Answer, CallError> {
        let mut caller = Caller::of(&job, answer, &self.feed.cancels);
        let awake = match job.model.former.is_some() {
            false => self.send(job)?,
            true => match self.put(job)? {
                Ok(awake) => awake,
                Err(unfit) => return Ok(Err(unfit)),
            },
        };
        if !awake {
            // If this caller leaves, others may still rely on the same message.
            let mut relied = Relied { feed: &self.feed, holds: true };
            let soon = tokio::time::timeout(SHORT_WAIT, &mut caller.answer).await;
            relied.holds = soon.is_err();
            drop(relied);
            if let Ok(answer) = soon {
                caller.has_heard();
                return answer.map_err(|_| crate::scheduler::draining());
            }
        }
        let answer = (&mut caller.answer).await;
        caller.has_heard();
        answer.map_err(|_| crate::scheduler::draining())
    }

    /// Sends a job to whichever thread comes to it first; `false` as for [`Feed::wake`].
    fn send(&self, job: Job) -> Result<bool, CallError> {
        match self.feed.sender.try_send(Message::Run(job)) {
            Ok(()) => Ok(self.feed.wake()),
            Err(TrySendError::Full(message)) => {
                if let Message::Run(job) = message {
                    job.refuse(Outcome::Refused);
                }
                Err(full())
            }
            Err(TrySendError::Disconnected(_)) => Err(crate::scheduler::draining()),
        }
    }

    /// Leaves a job where others of its model wait; the inner error is for one that does not fit the model.
    fn put(&self, job: Job) -> Result<Result<bool, Failure>, CallError> {
        let model = Arc::clone(&job.model);
        let Some(former) = &model.former else { return self.send(job).map(Ok) };
        if former.holds_nothing_back() && self.feed.is_idle() {
            // It would be the only one. To be looked for first costs 5 µs where each thread has a core of its own.
            return self.send(job).map(Ok);
        }
        match former.put(job) {
            Ok(Put::Call) => Ok(Ok(self.feed.call(&model))),
            Ok(Put::Wait) => Ok(Ok(true)),
            Err(Refused::Full) => Err(full()),
            Err(Refused::Unfit(failure)) => Ok(Err(failure)),
        }
    }

    /// Jobs that have not begun are not begun any more; whoever waits for them is told.
    pub(super) fn break_off(&self) {
        self.feed.broken_off.store(true, Ordering::Release);
        self.feed.release_held();
    }

    #[cfg(test)]
    pub(super) fn cancels(&self) -> Arc<Cancels> {
        Arc::clone(&self.feed.cancels)
    }

    /// Ends the threads after the jobs that were there before.
    pub(super) fn stop(&self) {
        self.feed.stopping.store(true, Ordering::Release);
        self.feed.release_held();
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for _ in &handles {
            // An error means that all threads have ended already.
            let _ = self.feed.sender.send(Message::Stop);
            self.feed.alarm();
        }
        for handle in handles {
            if handle.join().is_err() {
                tracing::error!("a device thread ended by a panic");
            }
        }
        self.feed.cancels.stop();
    }
}

fn full() -> CallError {
    CallError::new(ErrorCode::Overloaded, "too many runs wait for a device thread")
}

/// Somebody who waits for a run. It is cancelled if they leave.
struct Caller {
    answer: oneshot::Receiver<Answer>,
    waits_for: Option<(Arc<dyn Instance>, RunId)>,
    cancels: Arc<Cancels>,
}

impl Caller {
    fn of(job: &Job, answer: oneshot::Receiver<Answer>, cancels: &Arc<Cancels>) -> Self {
        let waits_for = job.run.id.map(|id| (Arc::clone(&job.model.instance), id));
        Self { answer, waits_for, cancels: Arc::clone(cancels) }
    }

    fn has_heard(&mut self) {
        self.waits_for = None;
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some((instance, id)) = &self.waits_for {
            // First: a run that is not on its way to the model yet sees that it is left, and one that is has told so.
            self.answer.close();
            self.cancels.cancel(*id, instance);
        }
    }
}

/// Somebody who relies on a thread that is awake. Unless that has come to it, another is woken in the end.
struct Relied<'a> {
    feed: &'a Feed,
    holds: bool,
}

impl Drop for Relied<'_> {
    fn drop(&mut self) {
        if self.holds {
            // The thread that was relied on is at a longer run after all.
            self.feed.alarm();
        }
    }
}

impl Feed {
    /// Sees to it that a thread takes the message that was just sent. Where runs are short and a thread is awake, that one comes to it
    /// soon enough, and waking another would cost more than the run; `false` says that this was relied on.
    fn wake(&self) -> bool {
        // Pairs with the one in `take`: either the count is seen here, or the message there.
        fence(Ordering::SeqCst);
        let sleeping = self.sleeping.load(Ordering::Relaxed);
        let soon = self.short_runs.load(Ordering::Relaxed) >= SHORT_RUNS && self.receiver.len() <= BACKLOG;
        if sleeping > 0 && sleeping < self.threads && soon {
            return false;
        }
        if sleeping > 0 {
            self.alarm();
        }
        true
    }

    /// Whether all threads sleep and nothing has been sent to them.
    fn is_idle(&self) -> bool {
        self.sleeping.load(Ordering::Relaxed) == self.threads && self.receiver.is_empty()
    }

    fn alarm(&self) {
        // Whoever counts as sleeping and holds the lock is not waiting yet and would miss the alarm.
        drop(self.bed());
        self.alarm.notify_one();
    }

    fn bed(&self) -> MutexGuard<'_, Bed> {
        self.bed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread look at a model; `false` as for [`Feed::wake`].
    fn call(&self, model: &Arc<ModelInstance>) -> bool {
        match self.sender.try_send(Message::Look(Arc::clone(model))) {
            Ok(()) => self.wake(),
            // All threads are at it, and whichever is free next looks first at what is due.
            Err(_) => {
                self.look_later(model, Instant::now());
                true
            }
        }
    }

    /// Has a thread look at a model then.
    fn look_later(&self, model: &Arc<ModelInstance>, at: Instant) {
        let mut bed = self.bed();
        bed.add(at, Arc::clone(model));
        self.note_due(&bed);
    }

    fn note_due(&self, bed: &Bed) {
        let due = bed.next().map_or(NEVER, |at| self.nanos(at));
        self.due.store(due, Ordering::Relaxed);
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started).as_nanos();
        u64::try_from(since).unwrap_or(NEVER - 1).min(NEVER - 1)
    }

    /// A model that is to be looked at now.
    fn due(&self) -> Option<Message> {
        let due = self.due.load(Ordering::Relaxed);
        if due == NEVER {
            return None;
        }
        let now = Instant::now();
        if due > self.nanos(now) {
            return None;
        }
        let mut bed = self.bed();
        let model = bed.take_due(now);
        self.note_due(&bed);
        model.map(Message::Look)
    }

    /// Whatever is held back is looked at now.
    fn release_held(&self) {
        let held = {
            let mut bed = self.bed();
            let held = bed.take_all();
            self.note_due(&bed);
            held
        };
        for model in held {
            if !self.call(&model) {
                self.alarm();
            }
        }
    }

    fn take(&self) -> Message {
        loop {
            if let Some(message) = self.due().or_else(|| self.receiver.try_recv().ok()) {
                self.pass_on();
                return message;
            }
            let bed = self.bed();
            self.sleeping.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.receiver.is_empty() {
                self.sleep(bed);
            } else {
                drop(bed);
            }
            self.sleeping.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Sleeps until the alarm; if nobody else does, until something is due.
    fn sleep(&self, mut bed: MutexGuard<'_, Bed>) {
        match bed.watch() {
            None => drop(self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner)),
            Some(at) => {
                let time = at.saturating_duration_since(Instant::now());
                let woken = self.alarm.wait_timeout(bed, time);
                woken.unwrap_or_else(PoisonError::into_inner).0.end_watch(at);
            }
        }
    }

    /// A thread that goes to work no longer sees when something is due: another has to.
    fn pass_on(&self) {
        if self.due.load(Ordering::Relaxed) == NEVER || self.sleeping.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.bed().is_unwatched() {
            self.alarm.notify_one();
        }
    }

    fn run(&self, mut job: Job) {
        // First: its caller has left because of that.
        if job.deadline.is_some() && job.is_late(Instant::now()) {
            return job.finish(Err(Failure::Late));
        }
        // Nobody waits any more: the caller went away while the job was in the channel.
        let _under_way = self.begin(&job);
        if job.is_left() || self.is_broken_off() {
            return;
        }
        job.begin();
        let begun = Instant::now();
        let limit = self.output_limit;
        let answer = telemetry::during(job.passage(), || {
            job::check(&job.model, &job.inputs, &job.outputs, limit)
                .and_then(|_| job::run(&job.model, job.asked(), job.run, limit))
        });
        let took = begun.elapsed();
        job.spent(Phase::Run, took);
        self.note(took);
        if let (Some(former), Ok(_)) = (&job.model.former, &answer) {
            former.ran_alone(&job, took);
        }
        job.finish(answer);
    }

    fn look(&self, model: &Arc<ModelInstance>) {
        let Some(former) = &model.former else { return };
        let hurried = self.stopping.load(Ordering::Acquire) || self.is_broken_off();
        match former.visit(Instant::now(), hurried) {
            Visit::Nothing => {}
            Visit::Later(at) => self.look_later(model, at),
            Visit::Run { members, more } => {
                if more && !self.call(model) {
                    // The thread that was relied on is this one, which is about to run.
                    self.alarm();
                }
                batch::run(model, former, members, self);
            }
        }
    }
}

impl batch::Around for Feed {
    fn is_broken_off(&self) -> bool {
        self.broken_off.load(Ordering::Acquire)
    }

    fn output_limit(&self) -> usize {
        self.output_limit
    }

    fn begin(&self, job: &Job) -> Option<UnderWay<'_>> {
        self.cancels.begin(job)
    }

    fn note(&self, took: Duration) {
        // A count, not a rule: a value lost between two threads does no harm.
        let runs = self.short_runs.load(Ordering::Relaxed);
        let runs = if took <= SHORT_TIME { runs.saturating_add(1) } else { 0 };
        self.short_runs.store(runs, Ordering::Relaxed);
    }
}

fn work(feed: &Feed) {
    loop {
        match feed.take() {
            // A panic is a bug of ours; it costs the calls at hand, not the thread.
            Message::Run(job) => {
                if catch_unwind(AssertUnwindSafe(|| feed.run(job))).is_err() {
                    tracing::error!("a device thread met a panic; its call is lost");
                }
            }
            Message::Look(model) => {
                if catch_unwind(AssertUnwindSafe(|| feed.look(&model))).is_err() {
                    tracing::error!(model = %model.name, "a device thread met a panic; the calls that waited are lost");
                    model.former.as_ref().inspect(|former| former.recover());
                }
            }
            Message::Stop => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_backend::Run;

    use super::*;
    use crate::config::BatchDelay;
    use crate::models::tests::{GATE, batching, inputs, until};

    /// Else a client that asks and leaves, again and again, would take every thread for as long as its runs last.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_run_whose_caller_leaves_is_cancelled_and_no_other() {
        let (model, fake) = batching(1, BatchDelay::AtMost(Duration::ZERO));
        let threads = Arc::new(Threads::start("fake", 2, 8, 1 << 20).unwrap());
        let call = |id: u64| {
            let (done, answer) = oneshot::channel();
            let run = Run { id: RunId::new(id) };
            let inputs = inputs(1, 4, 0.0, GATE);
            let job = Job {
                model: Arc::clone(&model),
                inputs,
                outputs: vec![0],
                stay: Vec::new(),
                slot: None,
                deadline: None,
                run,
                done,
                held: None,
            };
            let threads = Arc::clone(&threads);
            tokio::spawn(async move { threads.run(job, answer).await })
        };
        let (stays, leaves) = (call(7), call(8));
        until(|| fake.runs().len() == 2).await;
        leaves.abort();
        let next = call(9);
        until(|| fake.runs().len() == 3).await;
        assert_eq!(fake.cancelled.load(Ordering::Acquire), 8);
        fake.open.store(true, Ordering::Release);
        assert!(stays.await.unwrap().unwrap().is_ok() && next.await.unwrap().unwrap().is_ok());
        assert_eq!(fake.cancelled.load(Ordering::Acquire), 8, "who has heard cancels nothing");
        tokio::task::spawn_blocking(move || threads.stop()).await.unwrap();
    }
}
