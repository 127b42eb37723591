//! Threads that run models: fed by a bounded channel, joined at the end.
//!
//! A thread that finds the channel empty sleeps at once. The channel's own blocking receive would first yield the processor several
//! times, which cost 1.4 `sched_yield` calls and about 10 µs of CPU for each run of a small model.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use outrigger_backend::{BackendError, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;

use super::LoadedModel;
use crate::busy::Outcome;
use crate::scheduler::Slot;

/// Jobs that may wait for a thread. Calls are admitted by slots, and a worker asks for one run at a time in each of its
/// threads, so only a script with very many threads can come near it.
const WAITING: usize = 1024;

/// Runs are short when this many in a row...
const SHORT_RUNS: u32 = 32;
/// ...took at most this long each.
const SHORT_TIME: Duration = Duration::from_micros(100);
/// Messages that one thread is left with while others sleep.
const BACKLOG: usize = 16;
/// How long a run that was left to a thread which is awake may take before another is woken.
const SHORT_WAIT: Duration = Duration::from_millis(1);

type Answer = Result<Vec<Tensor>, BackendError>;

enum Message {
    Run(Job),
    Stop,
}

struct Job {
    model: Arc<LoadedModel>,
    inputs: Vec<Tensor>,
    outputs: Vec<usize>,
    /// The slot that the run is for; free again when the run is over, also when nobody waits for it any more.
    slot: Option<Slot>,
    done: oneshot::Sender<Answer>,
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
    bed: Mutex<()>,
    alarm: Condvar,
    /// Bytes that the outputs of one run may take.
    output_limit: usize,
    /// Jobs that have not begun are dropped, which answers them.
    broken_off: AtomicBool,
}

pub(super) struct Threads {
    feed: Arc<Feed>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts `count` threads, in front of which `ahead` admitted jobs may wait.
    pub(super) fn start(count: usize, ahead: usize, output_limit: usize) -> std::io::Result<Self> {
        let (sender, receiver) = crossbeam_channel::bounded(ahead + WAITING);
        let (bed, alarm) = (Mutex::new(()), Condvar::new());
        let (sleeping, broken_off) = (AtomicUsize::new(0), AtomicBool::new(false));
        let short_runs = AtomicU32::new(0);
        let feed = Arc::new(Feed {
            threads: count,
            short_runs,
            sender,
            receiver,
            sleeping,
            bed,
            alarm,
            output_limit,
            broken_off,
        });
        let mut handles = Vec::with_capacity(count);
        for number in 0..count {
            let feed = Arc::clone(&feed);
            let name = format!("cpu-{number}");
            handles.push(std::thread::Builder::new().name(name).spawn(move || work(&feed))?);
        }
        Ok(Self { feed, handles: Mutex::new(handles) })
    }

    /// Has a thread run the model; the outer error is for a job that did not reach one.
    pub(super) async fn run(
        &self,
        model: Arc<LoadedModel>,
        inputs: Vec<Tensor>,
        outputs: Vec<usize>,
        slot: Option<Slot>,
    ) -> Result<Answer, CallError> {
        let (done, mut answer) = oneshot::channel();
        let awake = match self.feed.sender.try_send(Message::Run(Job { model, inputs, outputs, slot, done }))
        {
            Ok(()) => self.feed.wake(),
            Err(TrySendError::Full(_)) => {
                return Err(CallError::new(ErrorCode::Overloaded, "too many runs wait for a device thread"));
            }
            Err(TrySendError::Disconnected(_)) => return Err(crate::scheduler::draining()),
        };
        if !awake {
            match tokio::time::timeout(SHORT_WAIT, &mut answer).await {
                Ok(answer) => return answer.map_err(|_| crate::scheduler::draining()),
                // The thread that was relied on is at a longer run after all.
                Err(_) => self.feed.alarm(),
            }
        }
        answer.await.map_err(|_| crate::scheduler::draining())
    }

    /// Jobs that have not begun are not begun any more; whoever waits for them is told.
    pub(super) fn break_off(&self) {
        self.feed.broken_off.store(true, Ordering::Release);
    }

    /// Ends the threads after the jobs that were there before.
    pub(super) fn stop(&self) {
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

    fn alarm(&self) {
        // Whoever counts as sleeping and holds the lock is not waiting yet and would miss the alarm.
        drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
        self.alarm.notify_one();
    }

    fn note(&self, took: Duration) {
        // A count, not a rule: a value lost between two threads does no harm.
        let runs = self.short_runs.load(Ordering::Relaxed);
        let runs = if took <= SHORT_TIME { runs.saturating_add(1) } else { 0 };
        self.short_runs.store(runs, Ordering::Relaxed);
    }

    fn take(&self) -> Message {
        loop {
            if let Ok(message) = self.receiver.try_recv() {
                return message;
            }
            let bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleeping.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.receiver.is_empty() {
                drop(self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner));
            }
            self.sleeping.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn work(feed: &Feed) {
    while let Message::Run(mut job) = feed.take() {
        // Nobody waits any more: the caller went away while the job was in the channel.
        if job.done.is_closed() || feed.broken_off.load(Ordering::Acquire) {
            continue;
        }
        if let Some(slot) = &mut job.slot {
            slot.begin();
        }
        let begun = Instant::now();
        // A panic is a bug of ours; it costs the run, not the thread.
        let answer = std::panic::catch_unwind(AssertUnwindSafe(|| run(&job, feed.output_limit)))
            .unwrap_or_else(|_| Err(BackendError::Internal("the run panicked".into())));
        feed.note(begun.elapsed());
        if let Some(slot) = job.slot {
            slot.finish(if answer.is_ok() { Outcome::Answered } else { Outcome::Failed });
        }
        let _ = job.done.send(answer);
    }
}

fn run(job: &Job, output_limit: usize) -> Answer {
    let info = &job.model.info;
    info.check_inputs(&job.inputs)?;
    let too_large = |bytes: usize| {
        BackendError::Input(format!(
            "the outputs take {bytes} bytes, more than limits.answer, {output_limit} bytes"
        ))
    };
    let expected = info.output_bytes(&job.inputs, &job.outputs);
    if expected > output_limit {
        return Err(too_large(expected));
    }
    let mut outputs = info.place_outputs(&job.inputs, &job.outputs)?;
    job.model.instance.infer(&job.inputs, &mut outputs)?;
    let tensors = outputs
        .into_iter()
        .map(|output| {
            let index = output.index();
            let missing = || BackendError::Internal(format!("output number {index} was not set"));
            output.into_tensor().ok_or_else(missing)
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Those whose shapes were not known before.
    let actual = tensors.iter().map(|tensor| tensor.data().len()).fold(0, usize::saturating_add);
    if actual > output_limit { Err(too_large(actual)) } else { Ok(tensors) }
}
