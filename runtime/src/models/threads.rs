//! Threads that run models: fed by a bounded channel, joined at the end.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use outrigger_backend::{BackendError, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::sync::oneshot;

use super::LoadedModel;
use crate::busy::Outcome;
use crate::slots::Slot;

/// Jobs that may wait for a thread. Calls are admitted by slots, and a worker asks for one run at a time in each of its
/// threads, so only a script with very many threads can come near it.
const WAITING: usize = 1024;

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

pub(super) struct Threads {
    sender: Sender<Message>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    pub(super) fn start(count: usize) -> std::io::Result<Self> {
        let (sender, messages) = crossbeam_channel::bounded(WAITING);
        let mut handles = Vec::with_capacity(count);
        for number in 0..count {
            let messages = messages.clone();
            let name = format!("cpu-{number}");
            handles.push(std::thread::Builder::new().name(name).spawn(move || work(&messages))?);
        }
        Ok(Self { sender, handles: Mutex::new(handles) })
    }

    /// Has a thread run the model; the outer error is for a job that did not reach one.
    pub(super) async fn run(
        &self,
        model: Arc<LoadedModel>,
        inputs: Vec<Tensor>,
        outputs: Vec<usize>,
        slot: Option<Slot>,
    ) -> Result<Answer, CallError> {
        let (done, answer) = oneshot::channel();
        match self.sender.try_send(Message::Run(Job { model, inputs, outputs, slot, done })) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(CallError::new(ErrorCode::Overloaded, "too many runs wait for a device thread"));
            }
            Err(TrySendError::Disconnected(_)) => return Err(crate::slots::draining()),
        }
        answer.await.map_err(|_| crate::slots::draining())
    }

    /// Ends the threads after the jobs that were there before.
    pub(super) fn stop(&self) {
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for _ in &handles {
            // An error means that all threads have ended already.
            let _ = self.sender.send(Message::Stop);
        }
        for handle in handles {
            if handle.join().is_err() {
                tracing::error!("a device thread ended by a panic");
            }
        }
    }
}

fn work(messages: &Receiver<Message>) {
    while let Ok(Message::Run(mut job)) = messages.recv() {
        // Nobody waits any more: the caller went away while the job was in the channel.
        if job.done.is_closed() {
            continue;
        }
        if let Some(slot) = &mut job.slot {
            slot.begin();
        }
        let answer = run(&job);
        if let Some(slot) = job.slot {
            slot.finish(if answer.is_ok() { Outcome::Answered } else { Outcome::Failed });
        }
        let _ = job.done.send(answer);
    }
}

fn run(job: &Job) -> Answer {
    let info = &job.model.info;
    info.check_inputs(&job.inputs)?;
    let mut outputs = info.place_outputs(&job.inputs, &job.outputs)?;
    job.model.instance.infer(&job.inputs, &mut outputs)?;
    outputs
        .into_iter()
        .map(|output| {
            let index = output.index();
            let missing = || BackendError::Internal(format!("output number {index} was not set"));
            output.into_tensor().ok_or_else(missing)
        })
        .collect()
}
