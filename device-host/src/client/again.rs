//! What clients hold, loaded into a child that does not have it: when the child is new, and by and by what did not load then; and what
//! they hold no more, where the child could not be told at once.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_backend::BackendError;

use super::connection::Connection;
use super::host::Host;
use super::link::Link;
use super::loaded::{InstanceEntry, Loaded, ModelEntry};
use super::trouble::Trouble;
use crate::frame::Kind;
use crate::message;
use crate::patience::{Patience, within};
use crate::wire::{Put, Reader};

/// A model; why it is of no use to whoever holds it, if it is not.
pub(super) fn model(
    connection: &mut Connection,
    number: u64,
    model: &ModelEntry,
    patience: &impl Patience,
) -> Result<Option<String>, Trouble> {
    let fill = |out: &mut Vec<u8>| message::put_options(&model.options, out);
    if connection.ask(Kind::Load, number, fill, patience)? == &*model.signature {
        return Ok(None);
    }
    connection.ask(Kind::Release, number, |_| {}, patience)?;
    Ok(Some(model.not_again(&"it has other inputs or outputs than before")))
}

/// An instance.
pub(super) fn instance(
    connection: &mut Connection,
    number: u64,
    instance: &InstanceEntry,
    patience: &impl Patience,
) -> Result<(), Trouble> {
    let fill = |out: &mut Vec<u8>| out.put_u64(instance.model);
    let mut reader = Reader(connection.ask(Kind::Instance, number, fill, patience)?);
    instance.known.read(&mut reader)?;
    Ok(reader.end()?)
}

/// Tries again what did not load or was not released, on a thread of its own, for loading takes its time.
pub(super) struct Again {
    tried: Instant,
    thread: Option<JoinHandle<()>>,
}

impl Again {
    /// For a child that has just begun to serve. What it is to release is not left to the next try.
    pub(super) fn new(host: &Arc<Host>, link: &Arc<Link>) -> Self {
        let mut again = Self { tried: Instant::now(), thread: None };
        if link.owes() {
            again.begin(host, link);
        }
        again
    }

    /// How long there is between two tries.
    pub(super) fn pause(host: &Host) -> Duration {
        host.options.timing.backoff_most.max(Duration::from_millis(10))
    }

    /// Tries, if it is time to.
    pub(super) fn tend(&mut self, host: &Arc<Host>, link: &Arc<Link>, now: Instant) {
        let busy = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if busy || now.saturating_duration_since(self.tried) < Self::pause(host) {
            return;
        }
        self.tried = now;
        if host.degraded().is_some() || link.owes() {
            self.begin(host, link);
        }
    }

    fn begin(&mut self, host: &Arc<Host>, link: &Arc<Link>) {
        let (host, link) = (Arc::clone(host), Arc::clone(link));
        let work = move || {
            if let Err(trouble) = attempt(&host, &link) {
                link.accuse(trouble);
            }
            host.tell_first();
        };
        self.thread = std::thread::Builder::new().name("device-again".into()).spawn(work).ok();
    }
}

fn attempt(host: &Host, link: &Arc<Link>) -> Result<(), Trouble> {
    let Loaded { models, instances, .. } = host.loaded();
    let (limit, grace) = (host.options.timing.to_load(), host.options.timing.to_end());
    let mut lent = link.for_housekeeping()?;
    lent.with(|connection| {
        let owed = link.take_owed();
        for (done, number) in owed.iter().enumerate() {
            if let Err(trouble) = connection.ask(Kind::Release, *number, |_| {}, &within(grace)) {
                owed.iter().skip(done).for_each(|number| link.owe(*number));
                return Err(trouble);
            }
        }
        for (number, entry) in models.iter().filter(|(_, entry)| entry.fault.check().is_err()) {
            let why = heard(entry, model(connection, *number, entry, &within(limit)))?;
            settle(host, link, connection, *number, |loaded| {
                loaded.models.get(number).map(|entry| entry.fault.set(why)).is_some()
            })?;
        }
        for (number, entry) in instances.iter().filter(|(_, entry)| entry.known.fault.check().is_err()) {
            let Some(of) = models.get(&entry.model).filter(|model| model.fault.check().is_ok()) else {
                continue;
            };
            let why = heard(of, instance(connection, *number, entry, &within(limit)).map(|()| None))?;
            settle(host, link, connection, *number, |loaded| {
                loaded.instances.get(number).map(|entry| entry.known.fault.set(why)).is_some()
            })?;
        }
        Ok(())
    })
}

/// A failure of the backend's is the reason why something of a model is not there.
pub(super) fn heard(
    model: &ModelEntry,
    result: Result<Option<String>, Trouble>,
) -> Result<Option<String>, Trouble> {
    match result {
        Err(Trouble::Backend(error)) if !matches!(error, BackendError::Lost(_)) => {
            Ok(Some(model.not_again(&error)))
        }
        result => result,
    }
}

/// Writes down what became of something, if the child still serves; ends it there if nobody holds it any more.
fn settle(
    host: &Host,
    link: &Arc<Link>,
    connection: &mut Connection,
    number: u64,
    set: impl FnOnce(&Loaded) -> bool,
) -> Result<(), Trouble> {
    let mut held = true;
    host.register(link, |loaded| held = set(loaded)).map_err(|_| Trouble::Gone)?;
    if !held {
        connection.ask(Kind::Release, number, |_| {}, &within(host.options.timing.to_end()))?;
    }
    Ok(())
}
