//! Jobs that no lane has taken, and lanes that wait for one.

use std::collections::VecDeque;
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_protocol::error::CallError;
use tokio::time::Instant;

use super::bell::Bell;
use super::call::Job;

/// How a lane is reached.
#[derive(Default)]
pub(super) struct Door {
    pub(super) bell: Arc<Bell>,
    /// Its worker's process; 0 while there is none.
    pub(super) pid: AtomicI32,
}

/// What waits in front of the lanes. There are never more jobs than slots, those that come ahead counted in.
pub(super) struct Queue {
    pub(super) doors: Vec<Arc<Door>>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Numbers of lanes; the last one to come is the first to go, since its caches are warm.
    idle: Vec<usize>,
}

impl Queue {
    pub(super) fn new(lanes: usize) -> Self {
        Self { doors: (0..lanes).map(|_| Arc::default()).collect(), waiting: Mutex::default() }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, lanes: impl IntoIterator<Item = usize>) {
        for door in lanes.into_iter().filter_map(|lane| self.doors.get(lane)) {
            door.bell.ring();
        }
    }

    /// Has every lane look at what has changed.
    pub(super) fn ring_all(&self) {
        self.ring(0..self.doors.len());
    }

    /// Leaves a job for whichever lane is idle, or comes to it first.
    pub(super) fn put(&self, job: Job) {
        let mut waiting = self.waiting();
        waiting.jobs.push_back(job);
        let idle = waiting.idle.pop();
        drop(waiting);
        self.ring(idle);
    }

    /// Takes the job that has waited longest, if it is at most `most` bytes; a lane that is `idle` is rung for when there is none.
    pub(super) fn take(&self, lane: usize, idle: bool, most: usize) -> Option<Job> {
        let mut waiting = self.waiting();
        while let Some(job) = waiting.jobs.front() {
            // First: its caller has left because of that.
            if job.is_expired(Instant::now()) {
                let expired = waiting.jobs.pop_front();
                expired.into_iter().for_each(Job::expire);
            } else if job.is_abandoned() {
                // Dropping a job counts it as cancelled and frees its slot.
                waiting.jobs.pop_front();
            } else if most < usize::MAX && job.call.size() > most {
                return None;
            } else {
                waiting.idle.retain(|number| *number != lane);
                return waiting.jobs.pop_front();
            }
        }
        if idle && !waiting.idle.contains(&lane) {
            waiting.idle.push(lane);
        }
        None
    }

    /// Takes a lane off the list of those that wait for a job. One that it has been rung for, and does not come to take, is for the
    /// others.
    pub(super) fn not_idle(&self, lane: usize) {
        let mut waiting = self.waiting();
        waiting.idle.retain(|number| *number != lane);
        if !waiting.jobs.is_empty() {
            let idle = std::mem::take(&mut waiting.idle);
            drop(waiting);
            self.ring(idle);
        }
    }

    /// Gives back jobs that were taken and not begun, in their order, to the front.
    pub(super) fn put_back(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut waiting = self.waiting();
        for job in jobs.into_iter().rev() {
            waiting.jobs.push_front(job);
        }
        let idle = std::mem::take(&mut waiting.idle);
        drop(waiting);
        self.ring(idle);
    }

    /// Refuses all who wait.
    pub(super) fn refuse_all(&self, error: &CallError) {
        let jobs = std::mem::take(&mut self.waiting().jobs);
        for job in jobs {
            job.refuse(error);
        }
    }

    /// Takes out those who have waited for at least `wait`, and forgets those who have left.
    pub(super) fn take_expired(&self, wait: Duration) -> Vec<Job> {
        let mut expired = Vec::new();
        let mut waiting = self.waiting();
        let now = Instant::now();
        let jobs = std::mem::take(&mut waiting.jobs);
        for job in jobs {
            if job.is_expired(now) {
                job.expire();
            } else if !job.is_abandoned() {
                waiting.jobs.push_back(job);
            }
        }
        while waiting.jobs.front().is_some_and(|job| job.since.elapsed() >= wait) {
            expired.extend(waiting.jobs.pop_front());
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::busy::Busy;
    use crate::scheduler::{Admission, Limits, Scheduler, Terms};
    use crate::scripts::{Body, Method, ScriptCall, ScriptResult};
    use outrigger_protocol::priority::Priority;
    use tokio::sync::oneshot;

    const LIMITS: Limits = Limits { items: 0, bytes: 0, wait: Duration::ZERO, ageing: Duration::ZERO };

    async fn job(scheduler: &Arc<Scheduler>) -> (Job, oneshot::Receiver<ScriptResult>) {
        let (reply, answer) = oneshot::channel();
        let call = ScriptCall {
            request_id: http::HeaderValue::from_static("id"),
            trace: Vec::new(),
            method: Method::Post,
            query: String::new(),
            headers: None,
            body: Body::Bytes(bytes::Bytes::new()),
            memory: None,
        };
        let terms = Terms {
            caller: 0,
            priority: Priority::Normal,
            kind: 0,
            bytes: 0,
            admission: Admission::Now,
            deadline: None,
        };
        let slot = scheduler.admit(terms).await.ok().unwrap();
        (Job { call, slot, reply: Some(reply), since: Instant::now() }, answer)
    }

    async fn is_rung(queue: &Queue, lane: usize) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(queue.doors[lane].bell.poll_rung(context).is_ready())
        })
        .await
    }

    #[tokio::test]
    async fn a_job_that_a_lane_was_rung_for_and_cannot_take_is_another_s() {
        let queue = Queue::new(2);
        let slots = Scheduler::new(Busy::new(2), 2, LIMITS, None);
        assert!(queue.take(0, true, usize::MAX).is_none());
        assert!(queue.take(1, true, usize::MAX).is_none());
        let (first, _answer) = job(&slots).await;
        queue.put(first);
        assert!(is_rung(&queue, 1).await && !is_rung(&queue, 0).await);
        // Its worker dies before it comes to take the job.
        queue.not_idle(1);
        assert!(is_rung(&queue, 0).await, "the job would wait although there is an idle lane");
        assert!(queue.take(0, true, usize::MAX).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_too_long_is_taken_out_and_who_has_left_is_forgotten() {
        let queue = Queue::new(1);
        let busy = Busy::new(3);
        let slots = Scheduler::new(Arc::clone(&busy), 3, LIMITS, None);
        let (left, gone) = job(&slots).await;
        let (old, _answer) = job(&slots).await;
        queue.put(left);
        queue.put(old);
        drop(gone);
        tokio::time::advance(Duration::from_secs(2)).await;
        let (new, _other) = job(&slots).await;
        queue.put(new);
        assert_eq!(queue.take_expired(Duration::from_secs(1)).len(), 1);
        assert_eq!(busy.snapshot().cancelled, 2, "the one that left, and the one that nobody refused here");
        assert!(queue.take(0, true, usize::MAX).is_some());
        assert!(queue.take(0, true, usize::MAX).is_none());
    }
}
