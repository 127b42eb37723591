//! Deletions of what was collected: each goes on until nothing of it is left, or the replica ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrigger_collect::{Collections, Deleted, EraseError};
use outrigger_protocol::error::{CallError, ErrorCode};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Those that are known, the ended ones among them.
const KNOWN: usize = 64;
/// Those that may be under way.
const UNDER_WAY: usize = 8;
/// The pauses between attempts: the first, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];

/// How far a deletion is.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct Deletion {
    /// What it is asked for by.
    pub(crate) id: String,
    /// What is deleted.
    what: What,
    state: State,
    /// How often it was tried.
    attempts: u64,
    /// Records that are gone, from logs and from blob storage; of those that are too old, objects.
    deleted: u64,
    /// Why something may not be gone yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// The correlation id, until it is done.
    #[serde(skip)]
    wanted: Option<String>,
}

/// What a deletion deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
enum What {
    /// What has a correlation id.
    CorrelationId,
    /// What is older than it is kept.
    Expired,
}

/// Where a deletion stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It is on its way.
    Running,
    /// It could not be done, and is tried again.
    Waiting,
    /// Nothing of it is left that this replica knows of.
    Done,
}

/// All that are known, the newest first.
#[derive(Default)]
pub(crate) struct Deletions {
    all: Arc<Mutex<VecDeque<Deletion>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn lock(all: &Mutex<VecDeque<Deletion>>) -> MutexGuard<'_, VecDeque<Deletion>> {
    // Nothing is half done in it.
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deletions {
    /// All of them, the newest first.
    pub(crate) fn all(&self) -> Vec<Deletion> {
        lock(&self.all).iter().cloned().collect()
    }

    /// Begins one: of a correlation id, or of what is too old. What is under way already is not begun twice.
    ///
    /// # Errors
    /// `overloaded` where too many are under way.
    pub(super) fn begin(
        &self,
        collections: &Arc<Collections>,
        wanted: Option<String>,
    ) -> Result<Deletion, CallError> {
        let mut all = lock(&self.all);
        let is_going = |deletion: &&Deletion| deletion.state != State::Done;
        let what = if wanted.is_some() { What::CorrelationId } else { What::Expired };
        let same = |deletion: &&Deletion| deletion.what == what && deletion.wanted == wanted;
        if let Some(known) = all.iter().filter(is_going).find(same) {
            return Ok(known.clone());
        }
        if all.iter().filter(is_going).count() >= UNDER_WAY {
            let text = format!("{UNDER_WAY} deletions are under way, which is as many as there may be");
            return Err(CallError::new(ErrorCode::Overloaded, text));
        }
        let id = uuid::Uuid::new_v4().simple().to_string();
        let deletion = Deletion {
            id: id.clone(),
            what,
            state: State::Running,
            attempts: 0,
            deleted: 0,
            problem: None,
            wanted: wanted.clone(),
        };
        all.push_front(deletion.clone());
        if all.len() > KNOWN
            && let Some(oldest) = all.iter().rposition(|deletion| deletion.state == State::Done)
        {
            all.remove(oldest);
        }
        drop(all);
        let (all, stop, collections) = (Arc::clone(&self.all), self.stop.clone(), Arc::clone(collections));
        self.tasks.spawn(async move {
            stop.run_until_cancelled(goes_on(&collections, &all, &id, wanted)).await;
        });
        Ok(deletion)
    }

    /// Ends those that are under way.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Tries until it is done.
async fn goes_on(
    collections: &Collections,
    all: &Mutex<VecDeque<Deletion>>,
    id: &str,
    wanted: Option<String>,
) {
    let [mut pause, longest] = PAUSES;
    loop {
        change(all, id, |deletion| {
            deletion.state = State::Running;
            deletion.attempts += 1;
        });
        let done: Result<u64, EraseError> = match &wanted {
            Some(correlation) => collections.delete(correlation).await.map(|Deleted { records, .. }| records),
            None => collections.expire().await,
        };
        match done {
            Ok(deleted) => {
                tracing::info!(deletion = id, deleted, "collected data was deleted");
                return change(all, id, |deletion| {
                    deletion.state = State::Done;
                    deletion.deleted += deleted;
                    (deletion.problem, deletion.wanted) = (None, None);
                });
            }
            Err(error) => {
                tracing::warn!(deletion = id, %error, "collected data that is to be deleted may not be gone: it is tried again");
                change(all, id, |deletion| {
                    deletion.state = State::Waiting;
                    deletion.problem = Some(error.to_string());
                });
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

fn change(all: &Mutex<VecDeque<Deletion>>, id: &str, how: impl FnOnce(&mut Deletion)) {
    if let Some(deletion) = lock(all).iter_mut().find(|deletion| deletion.id == id) {
        how(deletion);
    }
}
