//! Looks from time to time whether what was asked for is another version in the registry now, which is then rolled out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use outrigger_store::{ModelId, Which};
use tokio::sync::Semaphore;

use super::named::STABLE;
use super::refusal::Refusal;
use super::rollout::Rollouts;

/// What is asked of the registry at once.
const ASKED_AT_ONCE: usize = 16;
/// Models at once whose versions change because of that.
const ROLLED_AT_ONCE: usize = 2;
/// Longest pause after which a version is tried again that did not serve.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// What is known of a model that is followed.
#[derive(Clone)]
struct Followed {
    /// The version that serves, or has been given up.
    seen: ModelId,
    /// One that did not serve: how often it was tried, and when it is tried next.
    tried: Option<(ModelId, u32, Instant)>,
    /// What is being rolled out.
    at_it: Option<ModelId>,
}

type All = Arc<Mutex<BTreeMap<String, Followed>>>;

impl Rollouts {
    /// Begins to look.
    pub(crate) fn follow(self: &Arc<Self>) {
        let every = self.config.store.refresh;
        let moves = self.registered.iter().filter(|(_, (_, wish))| !matches!(wish.which, Which::Version(_)));
        let followed = |(name, (id, _)): (&String, &(ModelId, _))| {
            (name.clone(), Followed { seen: id.clone(), tried: None, at_it: None })
        };
        let followed: BTreeMap<_, _> = moves.map(followed).collect();
        if every.is_zero() || followed.is_empty() {
            return;
        }
        let (this, followed) = (Arc::clone(self), Arc::new(Mutex::new(followed)));
        let turns = Arc::new(Semaphore::new(ROLLED_AT_ONCE));
        self.tasks.spawn(async move {
            let look = async {
                loop {
                    tokio::time::sleep(every).await;
                    this.look(&followed, &turns, every).await;
                }
            };
            tokio::select! {
                () = look => {}
                () = this.stop.cancelled() => {}
            }
        });
    }

    async fn look(self: &Arc<Self>, followed: &All, turns: &Arc<Semaphore>, every: Duration) {
        let Some(storage) = self.storage.clone() else { return };
        let names: Vec<_> = lock(followed).keys().cloned().collect();
        let wish = |name: String| Some((self.registered.get(&name)?.1.clone(), name));
        // Owned, so that it can be told that all this may move between threads.
        let asked: Vec<_> = names.into_iter().filter_map(wish).collect();
        let asked = asked.into_iter().map(|(wish, name)| {
            let storage = Arc::clone(&storage);
            async move { (name, storage.resolve(&wish).await) }
        });
        let found: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        for (name, now) in found {
            match now {
                Ok(now) => self.found(followed, turns, &name, now, every),
                Err(error) => {
                    tracing::warn!(model = %name, %error, "the registry does not say which version is meant now");
                }
            }
        }
    }

    /// That version is meant now.
    fn found(
        self: &Arc<Self>,
        followed: &All,
        turns: &Arc<Semaphore>,
        name: &str,
        now: ModelId,
        every: Duration,
    ) {
        let (Ok(named), Ok(label)) = (self.models.get(name), STABLE.parse()) else { return };
        {
            let mut all = lock(followed);
            let Some(one) = all.get_mut(name) else { return };
            if let Some(under_way) = &one.at_it {
                // What is not meant any more is given up; what is meant comes with the next look.
                if *under_way != now {
                    named.overtaken(&label);
                }
                return;
            }
            if named.stable().version == now.version.to_string() {
                // Somebody else has seen to it.
                (one.seen, one.tried) = (now, None);
                return;
            }
            let waits = |(tried, _, next): &(ModelId, u32, Instant)| *tried == now && Instant::now() < *next;
            if one.seen == now || one.tried.as_ref().is_some_and(waits) {
                return;
            }
            one.at_it = Some(now.clone());
            tracing::info!(model = %name, from = one.seen.version, to = now.version, "another version is meant now");
        }
        let (this, named, turns) = (Arc::clone(self), Arc::clone(named), Arc::clone(turns));
        let followed = Arc::clone(followed);
        self.tasks.spawn(async move {
            // Closed never.
            let _turn = turns.acquire().await;
            let rolled = this.roll(&named, label, &now.version.to_string()).await;
            let mut all = lock(&followed);
            let Some(one) = all.get_mut(&named.name) else { return };
            one.at_it = None;
            // If something else has been decided, that counts until the label moves again.
            if matches!(rolled, Ok(()) | Err(Refusal::Overtaken)) {
                (one.seen, one.tried) = (now, None);
                return;
            }
            // It may be the version, or the moment: it is tried again after longer and longer.
            let before =
                one.tried.take().filter(|(tried, ..)| *tried == now).map_or(0, |(_, times, _)| times);
            let pause = every.saturating_mul(2u32.saturating_pow(before + 1)).min(MAX_PAUSE);
            one.tried = Some((now, before + 1, Instant::now() + pause));
        });
    }
}

fn lock(followed: &All) -> std::sync::MutexGuard<'_, BTreeMap<String, Followed>> {
    followed.lock().unwrap_or_else(PoisonError::into_inner)
}
