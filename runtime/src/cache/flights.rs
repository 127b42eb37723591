//! Questions that are being run at this moment, and who waits for what comes of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_protocol::error::CallError;
use tokio::sync::watch;

use super::question::Key;
use super::{Answer, First};

/// What has come of a run.
pub(super) type Landed = Result<Arc<Answer>, CallError>;

type Waited = HashMap<Key, watch::Receiver<Option<Landed>>, BuildHasherDefault<First>>;

/// All of them: no more than calls are let through to lanes.
#[derive(Default)]
pub(super) struct Flights(Mutex<Waited>);

impl Flights {
    fn lock(&self) -> MutexGuard<'_, Waited> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to wait for one, if it is under way.
    pub(super) fn landing(&self, key: &Key) -> Option<Landing> {
        self.lock().get(key).cloned().map(Landing)
    }

    /// Nobody joins what is under way any more.
    pub(super) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Begins one, if it is not under way.
    pub(super) fn lead(&self, key: Key) -> Option<Flight<'_>> {
        match self.lock().entry(key) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                let (sender, receiver) = watch::channel(None);
                place.insert(receiver);
                Some(Flight { flights: self, key, sender })
            }
        }
    }
}

/// Where a call waits for another's run.
pub(super) struct Landing(watch::Receiver<Option<Landed>>);

impl Landing {
    /// What comes of it; nothing if the other call went without a result.
    pub(super) async fn wait(mut self) -> Option<Landed> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone())
    }
}

/// A run that others may wait for. It is over when this is dropped.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    key: Key,
    sender: watch::Sender<Option<Landed>>,
}

impl Flight<'_> {
    /// It has come to this.
    pub(super) fn landed(&self, landed: Landed) {
        self.sender.send_replace(Some(landed));
    }

    /// Whether it is still the one that others join.
    pub(super) fn is_current(&self) -> bool {
        self.flights.lock().get(&self.key).is_some_and(|known| self.leads(known))
    }

    fn leads(&self, receiver: &watch::Receiver<Option<Landed>>) -> bool {
        receiver.same_channel(&self.sender.subscribe())
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // Before the channel closes: who looks for it from here on finds the answer where it is kept, or runs it.
        let mut all = self.flights.lock();
        if all.get(&self.key).is_some_and(|known| self.leads(known)) {
            all.remove(&self.key);
        }
    }
}
