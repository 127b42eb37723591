//! Has files fetched of models that are wanted and whose files are not here: some models at once, in the order in which they are wanted.

use std::sync::Arc;

use outrigger_store::Manifest;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::super::served::ServedModel;
use super::Residency;
use super::core::{Core, Left};
use super::history::{Happening, Step};
use super::room::Failure;
use super::state::ModelState;
use crate::fetching::{Brought, FetchingError, Storage};

/// Where files come from, and who fetches them.
pub(super) struct Fetches {
    storage: Arc<Storage>,
    /// Where the tasks run.
    runtime: Handle,
    /// One for each model whose turn it is.
    turns: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Fetches {
    /// Of so many models at once.
    pub(super) fn new(storage: Arc<Storage>, runtime: Handle, models: usize) -> Self {
        let turns = Arc::new(Semaphore::new(models.clamp(1, Semaphore::MAX_PERMITS)));
        Self { storage, runtime, turns, stop: CancellationToken::new() }
    }

    /// Nothing is fetched any more.
    pub(super) fn break_off(&self) {
        self.stop.cancel();
    }

    async fn bring(&self, manifest: Arc<Manifest>) -> Result<Brought, FetchingError> {
        // Closed only with this.
        let _turn = self.turns.acquire().await;
        let storage = Arc::clone(&self.storage);
        // In a task of its own, so that a panic, which is a bug of ours, costs no more than the fetch.
        let bring = tokio::spawn(async move { storage.bring(&manifest).await });
        AbortOnDropHandle::new(bring).await?
    }
}

impl Residency {
    /// If a model's files have just been asked for, that begins its history, and they are fetched. Under the lock of who knows.
    pub(super) fn note_fetching(self: &Arc<Self>, core: &Core, model: &ServedModel) {
        if core.phase(model.number) != ModelState::Fetching {
            return;
        }
        self.history.asked(model.number);
        drop(self.tell(model, Happening::Fetching));
        let (residency, number) = (Arc::clone(self), model.number);
        if let Some(fetches) = &self.fetches {
            fetches.runtime.spawn(async move { residency.fetch(number).await });
        }
    }

    async fn fetch(self: Arc<Self>, number: usize) {
        let (Some(fetches), Some(model)) = (&self.fetches, self.at(number)) else { return };
        let Some(manifest) = model.later.clone() else { return };
        let bring = async {
            loop {
                match fetches.bring(Arc::clone(&manifest)).await {
                    Err(error) if error.wants_room() && self.put_one_away().await => {}
                    brought => return brought,
                }
            }
        };
        let brought = tokio::select! {
            brought = bring => brought,
            () = fetches.stop.cancelled() => return,
            () = model.gone() => Err(FetchingError::Unwanted),
        };
        match brought {
            Ok(brought) => self.fetched(&model, &brought),
            Err(error) => self.end(&model, Err(Failure::Fetching(error))),
        }
    }

    /// Has the files leave the disk of a model that is not loaded, so that the cache has room for others. Says whether there was one.
    async fn put_one_away(self: &Arc<Self>) -> bool {
        let this = Arc::clone(self);
        // In a task of its own: what has begun to leave has left in the end, whoever gives up the fetch that it is for.
        let put_away = tokio::spawn(async move {
            loop {
                match this.try_to_put_one_away().await {
                    // Others have just begun to use it.
                    Some(false) => {}
                    ended => return ended.is_some(),
                }
            }
        });
        put_away.await.unwrap_or(false)
    }

    /// Whether the files of the one that was chosen have left; nothing if none could be.
    async fn try_to_put_one_away(&self) -> Option<bool> {
        let storage = &self.fetches.as_ref()?.storage;
        let served = self.served();
        let chosen = {
            let mut core = self.residents.lock();
            let may = |number: usize| {
                served.get(number).is_some_and(|model| {
                    let alone = model.source.as_ref().is_some_and(|source| storage.has_one_user(&source.id));
                    alone && model.later.is_some() && !model.is_retired()
                })
            };
            core.putting_away(may).and_then(|number| served.get(number))
        };
        let model = chosen?;
        let manifest = model.later.as_ref()?;
        let gone = storage.put_away(manifest).await.unwrap_or_else(|error| {
            tracing::warn!(%error, model = %model.name, "the files of a model were not removed");
            // Some of them may have been.
            true
        });
        {
            let mut core = self.residents.lock();
            if gone {
                core.put_away(model.number, manifest.size());
            } else {
                core.left(model.number, Left::Asked, self.now());
                self.note_queued(&core, model);
            }
        }
        if gone {
            drop(self.tell(model, Happening::PutAway).with(|event| event.bytes = Some(manifest.size())));
        }
        model.changed.notify_waiters();
        self.residents.has_changed();
        Some(gone)
    }

    /// Its files are here: it is loaded as soon as it is its turn.
    fn fetched(&self, model: &ServedModel, brought: &Brought) {
        self.counters.models.fetched(brought.came);
        self.history.over(model.number, Step::Fetch);
        self.history.fetched(model.number, brought);
        drop(self.tell(model, Happening::Fetched).with(|event| {
            (event.bytes, event.seconds) = (Some(brought.bytes), Some(brought.took.as_secs_f64()));
        }));
        let mut core = self.residents.lock();
        core.fetched(model.number, self.now());
        if model.ensemble.is_some() {
            // Who waits for it puts it together; who wants it away finds that nothing goes on with it.
            self.residents.announce();
            drop(core);
            return model.changed.notify_waiters();
        }
        drop(self.tell(model, Happening::Queued));
        self.residents.announce();
    }
}
