//! Runs whose callers have left: they are told to end until they do, for a backend does not know of a run yet that is only on its way
//! to it, and nobody else tells when it does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use outrigger_backend::{Instance, RunId};

use super::job::Job;

/// How often a run that goes on is told.
const AGAIN: Duration = Duration::from_millis(10);

/// The runs of one device that can be cancelled.
#[derive(Default)]
pub(super) struct Cancels {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// As many as there are device threads, at most.
    under_way: Vec<RunId>,
    /// Those of them that nobody waits for.
    left: Vec<(RunId, Arc<dyn Instance>)>,
    /// Tells them; there from the first one on.
    thread: Option<JoinHandle<()>>,
    is_over: bool,
}

/// A run under way.
pub(super) struct UnderWay<'a> {
    cancels: &'a Cancels,
    id: RunId,
}

impl Cancels {
    /// A job is run from now on, unless it is left: who asks that only now misses nobody who has left, since whoever leaves later finds
    /// the run here.
    pub(super) fn begin(&self, job: &Job) -> Option<UnderWay<'_>> {
        let id = job.run.id.filter(|_| job.model.instance.can_cancel())?;
        self.lock().under_way.push(id);
        Some(UnderWay { cancels: self, id })
    }

    /// Has a run end that nobody waits for any more. Comes after the word that it is left.
    pub(super) fn cancel(self: &Arc<Self>, id: RunId, instance: &Arc<dyn Instance>) {
        instance.cancel(id);
        let mut state = self.lock();
        if state.is_over || !state.under_way.contains(&id) {
            return;
        }
        state.left.push((id, Arc::clone(instance)));
        if state.thread.is_none() {
            let cancels = Arc::clone(self);
            let thread = std::thread::Builder::new().name("cancels".into()).spawn(move || cancels.repeat());
            // Without one it has been told once.
            state.thread = thread.inspect_err(|error| tracing::warn!(%error, "no thread for cancels")).ok();
        }
        self.changed.notify_one();
    }

    fn repeat(&self) {
        let mut state = self.lock();
        loop {
            let State { under_way, left, .. } = &mut *state;
            left.retain(|(id, _)| under_way.contains(id));
            if state.is_over {
                return;
            }
            if state.left.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let left = state.left.clone();
            drop(state);
            std::thread::sleep(AGAIN);
            for (id, instance) in left {
                let goes_on = self.lock().under_way.contains(&id);
                if goes_on && catch_unwind(AssertUnwindSafe(|| instance.cancel(id))).is_err() {
                    tracing::error!("a cancel met a panic");
                }
            }
            state = self.lock();
        }
    }

    /// Ends the thread. No run begins after that.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = self.lock();
            state.is_over = true;
            state.thread.take()
        };
        self.changed.notify_one();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of cancels ended by a panic");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let under_way = &mut self.cancels.lock().under_way;
        if let Some(at) = under_way.iter().position(|id| *id == self.id) {
            under_way.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use outrigger_backend::{BackendError, Output, Run, Tensor};
    use prometheus::IntCounter;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use crate::models::ModelInstance;
    use crate::models::job::Job;
    use crate::models::threads::Threads;

    use super::*;

    /// Says where a run is, and goes on when it is let: a model that comes to know of a run late, and runs until it is cancelled.
    struct Slow {
        is_at: Mutex<Sender<&'static str>>,
        goes_on: Mutex<Receiver<()>>,
        knows: Mutex<Option<RunId>>,
        is_cancelled: Condvar,
    }

    impl Slow {
        fn at(&self, place: &'static str) {
            let _ = self.is_at.lock().unwrap().send(place);
            let _ = self.goes_on.lock().unwrap().recv();
        }
    }

    impl Instance for Slow {
        fn infer(&self, _: &[Tensor], _: &mut [Output], run: Run) -> Result<(), BackendError> {
            self.at("model");
            let mut knows = self.knows.lock().unwrap();
            *knows = run.id;
            let patience = Duration::from_secs(60);
            let waited = self.is_cancelled.wait_timeout_while(knows, patience, |id| id.is_some());
            let how = if waited.unwrap().1.timed_out() { "left alone" } else { "cancelled" };
            let _ = self.is_at.lock().unwrap().send(how);
            Err(BackendError::Cancelled)
        }

        fn cancel(&self, id: RunId) {
            self.knows.lock().unwrap().take_if(|known| *known == id);
            self.is_cancelled.notify_all();
        }

        /// Is asked on the way to the model.
        fn can_cancel(&self) -> bool {
            self.at("way");
            true
        }

        fn bytes_held(&self) -> u64 {
            0
        }
    }

    struct Rig {
        threads: Arc<Threads>,
        caller: JoinHandle<()>,
        is_at: Receiver<&'static str>,
        go_on: Sender<()>,
    }

    impl Rig {
        fn new() -> Self {
            let ((go_on, goes_on), (sender, is_at)) = (channel(), channel());
            let slow = Slow {
                is_at: Mutex::new(sender),
                goes_on: Mutex::new(goes_on),
                knows: Mutex::default(),
                is_cancelled: Condvar::new(),
            };
            let runs = IntCounter::new("runs", "runs").unwrap();
            let model = Arc::new(ModelInstance::new("m", Arc::default(), Arc::new(slow), None, runs));
            let threads = Arc::new(Threads::start("fake", 1, 8, 1 << 20).unwrap());
            let (done, answer) = oneshot::channel();
            let run = Run { id: Some(RunId::MIN) };
            let (inputs, outputs, stay) = (Vec::new(), Vec::new(), Vec::new());
            let (slot, deadline, held) = (None, None, None);
            let job = Job { model, inputs, outputs, stay, slot, deadline, run, done, held };
            let calls = Arc::clone(&threads);
            let caller = tokio::spawn(async move { drop(calls.run(job, answer).await) });
            Self { threads, caller, is_at, go_on }
        }

        fn at(&self, place: &str) {
            assert_eq!(self.is_at.recv_timeout(Duration::from_secs(60)), Ok(place));
        }

        async fn leave(&mut self) {
            self.caller.abort();
            let _ = (&mut self.caller).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cancel_reaches_a_model_that_did_not_know_of_the_run_yet() {
        let mut rig = Rig::new();
        rig.at("way");
        rig.go_on.send(()).unwrap();
        rig.at("model");
        rig.leave().await;
        rig.go_on.send(()).unwrap();
        rig.at("cancelled");
        // Its threads end, that which tells of cancels too.
        let cancels = rig.threads.cancels();
        let threads = Arc::clone(&rig.threads);
        tokio::task::spawn_blocking(move || threads.stop()).await.unwrap();
        drop(rig);
        assert_eq!(Arc::strong_count(&cancels), 1);
        assert!(cancels.lock().under_way.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_leaves_when_a_run_is_about_to_begin_has_none() {
        let mut rig = Rig::new();
        rig.at("way");
        rig.leave().await;
        rig.go_on.send(()).unwrap();
        let threads = Arc::clone(&rig.threads);
        tokio::task::spawn_blocking(move || threads.stop()).await.unwrap();
        assert!(rig.is_at.try_recv().is_err(), "the model has it");
    }
}
