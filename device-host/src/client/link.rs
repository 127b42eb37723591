//! The way to one child while it lives: its control socket and its connections.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, RunId};

use super::bell::Bell;
use super::connection::Connection;
use super::control::Control;
use super::ending::{Ending, Verdict};
use super::options::Options;
use super::pool::{Full, Lent, Pool};
use super::runs::{Begun, Runs};
use super::trouble::Trouble;
use crate::frame::Kind;
use crate::patience::{Limit, within};
use crate::socket;
use crate::wire::{Reader, WireError};

/// Connections for what is not a run: loading, unloading, status.
const HOUSEKEEPING: usize = 16;
/// How long a caller whose connection was closed waits to hear why.
const REASON: Duration = Duration::from_secs(10);

/// One child's.
pub(super) struct Link {
    options: Arc<Options>,
    control: Control,
    bell: Arc<Bell>,
    runs: Pool,
    housekeeping: Pool,
    /// All sockets, to wake whoever waits for an answer when the child is gone and something that it started has a copy.
    sockets: Mutex<Vec<Weak<OwnedFd>>>,
    under_way: Runs,
    /// What it is to release and could not be asked to.
    owed: Mutex<Vec<u64>>,
    good: AtomicBool,
    since: Instant,
    ending: Ending,
}

impl Link {
    /// The way to a child that may be at so many calls at once.
    pub(super) fn new(options: &Arc<Options>, control: OwnedFd, bell: &Arc<Bell>, calls: usize) -> Self {
        Self {
            options: Arc::clone(options),
            control: Control(control),
            bell: Arc::clone(bell),
            runs: Pool::new(calls, "calls under way (max_calls)"),
            housekeeping: Pool::new(
                HOUSEKEEPING,
                "requests under way that are not calls, the most that there may be",
            ),
            sockets: Mutex::default(),
            under_way: Runs::new(),
            owed: Mutex::default(),
            good: AtomicBool::new(false),
            since: Instant::now(),
            ending: Ending::default(),
        }
    }

    /// A connection for a run.
    pub(super) fn for_run(&self) -> Result<Lent<'_>, Trouble> {
        self.take(&self.runs)
    }

    /// A connection for anything else.
    pub(super) fn for_housekeeping(&self) -> Result<Lent<'_>, Trouble> {
        self.take(&self.housekeeping)
    }

    fn take<'a>(&self, pool: &'a Pool) -> Result<Lent<'a>, Trouble> {
        let connection = match pool.take(self.options.limits.connection_wait) {
            Ok(Some(connection)) => connection,
            Ok(None) => match self.connect() {
                Ok(connection) => connection,
                Err(error) => {
                    pool.forget();
                    return Err(error);
                }
            },
            Err(Full) => {
                let Options { name, limits, .. } = &*self.options;
                let text = format!(
                    "the device host of `{name}` has {} {}, and none ended within {:?} (call_wait)",
                    pool.most, pool.of, limits.connection_wait
                );
                return Err(BackendError::Run(text).into());
            }
        };
        Ok(Lent::new(pool, connection))
    }

    fn connect(&self) -> Result<Box<Connection>, Trouble> {
        let failed = |error: std::io::Error| {
            BackendError::Run(format!(
                "no further connection to the device host of `{}`: {error}",
                self.options.name
            ))
        };
        let (ours, theirs) = socket::pair().map_err(failed)?;
        self.control.tell(Kind::Connect, 0, Some(&theirs))?;
        let ours = Arc::new(ours);
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(&ours));
        drop(sockets);
        if self.ending.is_over() {
            return Err(Trouble::Gone);
        }
        Ok(Box::new(Connection::new(ours, self.options.timing.spin)))
    }

    /// Tells a connection that the child could not take from one that it closed because it ends.
    fn look_into(&self, trouble: Trouble) -> Trouble {
        match trouble {
            Trouble::Untaken
                if self.verdict().is_none() && !self.ending.is_over() && self.control.stays_open() =>
            {
                Trouble::Ours(BackendError::Run(format!(
                    "the device host of `{}` could not take a further connection: it may have too many open files",
                    self.options.name
                )))
            }
            Trouble::Untaken => Trouble::Gone,
            trouble => trouble,
        }
    }

    /// Has the child ended, where the trouble is its fault.
    pub(super) fn accuse(&self, trouble: Trouble) {
        let verdict = match self.look_into(trouble) {
            // It says that itself: nothing on it succeeds any more, until it is started anew.
            Trouble::Backend(BackendError::Lost(text)) => Verdict::Guilty(text),
            Trouble::Backend(_) | Trouble::Ours(_) => return,
            Trouble::Gone | Trouble::Untaken => Verdict::Closed,
            Trouble::Late(limit) => Verdict::Guilty(format!("it did not answer within {limit}")),
            Trouble::Protocol(why) => Verdict::Guilty(format!("it broke the protocol: {why}")),
        };
        if self.ending.condemn(verdict) {
            self.bell.ring();
        }
    }

    /// What becomes of trouble: the error for the caller. Waits until it is known how the child ended, if it does.
    pub(super) fn fails(&self, trouble: Trouble) -> BackendError {
        match self.look_into(trouble) {
            Trouble::Backend(error) if !matches!(error, BackendError::Lost(_)) => return error,
            Trouble::Ours(error) => return error,
            trouble => self.accuse(trouble),
        }
        let reason = self.ending.wait(REASON);
        let silent = || format!("the device host of `{}` does not answer any more", self.options.name);
        BackendError::Lost(reason.unwrap_or_else(silent))
    }

    /// What is to become of the child, if it is to be ended.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.ending.verdict()
    }

    /// The child has ended. Whoever waits for an answer hears of it.
    pub(super) fn ended(&self, reason: String) {
        self.ending.is(reason);
        let sockets = std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
        }
    }

    /// Closes the control socket, upon which the child unloads everything and ends.
    pub(super) fn hang_up(&self) {
        self.runs.close();
        self.housekeeping.close();
        self.control.close();
    }

    fn owed(&self) -> MutexGuard<'_, Vec<u64>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The child is to be asked later to release something.
    pub(super) fn owe(&self, number: u64) {
        self.owed().push(number);
    }

    /// Whether there is something that it is to be asked to release.
    pub(super) fn owes(&self) -> bool {
        !self.owed().is_empty()
    }

    /// What it is to be asked to release, by whoever calls this.
    pub(super) fn take_owed(&self) -> Vec<u64> {
        std::mem::take(&mut self.owed())
    }

    /// A call has succeeded.
    pub(super) fn succeeded(&self) {
        self.good.store(true, Ordering::Relaxed);
    }

    /// How long the child has served, and whether a call has succeeded.
    pub(super) fn record(&self) -> (Duration, bool) {
        (self.since.elapsed(), self.good.load(Ordering::Relaxed))
    }

    /// A run begins; its number, under which it can be cancelled until what is returned is dropped.
    pub(super) fn begin(&self, instance: u64, id: Option<RunId>) -> Begun<'_> {
        self.under_way.begin(instance, id)
    }

    /// Asks for a run to end. If it has not within the grace, the child is ended; but not where its backend cannot end runs
    /// early, whose fault that is not.
    pub(super) fn cancel(&self, instance: u64, id: RunId, can_cancel: bool) {
        let grace = can_cancel.then_some(self.options.timing.cancel_grace);
        let Some(run) = self.under_way.cancel(instance, id, grace) else { return };
        self.bell.ring();
        if let Err(trouble) = self.control.tell(Kind::Cancel, run, None) {
            self.accuse(trouble);
        }
    }

    /// When the next cancelled run is out of time; ends the child if that is now.
    pub(super) fn tend(&self, now: Instant) -> Option<Instant> {
        let next = self.under_way.next_deadline()?;
        if next > now {
            return Some(next);
        }
        let grace = self.options.timing.cancel_grace;
        self.ending.condemn(Verdict::Guilty(format!(
            "a run did not end within {grace:?} of its cancel (cancel_grace)"
        )));
        None
    }

    /// Closes connections that have not been used for long.
    pub(super) fn trim(&self, now: Instant) {
        let idle = self.options.timing.idle;
        self.runs.trim(now, idle);
        self.housekeeping.trim(now, idle);
    }

    /// A request without tensors. A child that does not answer in time is ended.
    pub(super) fn ask<T>(
        &self,
        kind: Kind,
        number: u64,
        fill: impl FnOnce(&mut Vec<u8>),
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, WireError>,
        limit: Limit,
    ) -> Result<T, BackendError> {
        let asked = self.for_housekeeping().and_then(|mut lent| {
            lent.with(|connection| {
                let mut reader = Reader(connection.ask(kind, number, fill, &within(limit))?);
                let answer = read(&mut reader)?;
                reader.end()?;
                Ok(answer)
            })
        });
        asked.map_err(|trouble| self.fails(trouble))
    }

    /// Has the child map a region of ours.
    pub(super) fn pin(&self, number: u64, size: usize, file: BorrowedFd<'_>) -> Result<(), BackendError> {
        let asked = self.for_housekeeping().and_then(|mut lent| {
            lent.with(|connection| {
                let answer = connection.pin(number, size, file, &within(self.options.timing.to_answer()))?;
                Ok(Reader(answer).end()?)
            })
        });
        asked.map_err(|trouble| self.fails(trouble))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::os::fd::AsFd;

    use super::*;
    use crate::patience;

    #[test]
    fn a_cancel_counts_before_the_run_is_sent_and_condemns_only_where_it_can_be_heeded() {
        let (control, child) = socket::pair().unwrap();
        let options = Arc::new(Options::new("/x", "/x", "x", &[]));
        let link = Link::new(&options, control, &Arc::new(Bell::new().unwrap()), 1);
        let id = NonZeroU64::new(7).unwrap();
        let told = || patience::readable(child.as_fd(), Duration::ZERO).unwrap();
        let waiting = link.begin(1, Some(id));
        link.cancel(1, id, true);
        assert!(matches!(waiting.goes(), Err(BackendError::Cancelled)));
        drop(waiting);
        let sent = link.begin(1, Some(id));
        sent.goes().unwrap();
        link.cancel(1, id, false);
        assert!(link.tend(Instant::now()).is_none() && !told(), "neither is the child's business");
        link.cancel(1, id, true);
        assert!(link.tend(Instant::now()).is_some() && told());
        link.tend(Instant::now() + options.timing.cancel_grace);
        assert!(matches!(link.verdict(), Some(Verdict::Guilty(_))));
    }

    #[test]
    fn what_is_full_is_named() {
        let (control, _child) = socket::pair().unwrap();
        let mut options = Options::new("/x", "/x", "x", &[]);
        options.limits.connection_wait = Duration::ZERO;
        let link = Link::new(&Arc::new(options), control, &Arc::new(Bell::new().unwrap()), 1);
        let said = |lent: Result<Lent<'_>, Trouble>| match lent {
            Err(Trouble::Backend(BackendError::Run(text))) => text,
            Err(trouble) => panic!("{trouble:?}"),
            Ok(_) => panic!("there is one more"),
        };
        let _run = link.for_run().unwrap();
        let text = said(link.for_run());
        assert!(text.contains("has 1 calls under way (max_calls)"), "{text}");
        let _others: Vec<_> = (0..HOUSEKEEPING).map(|_| link.for_housekeeping().unwrap()).collect();
        let text = said(link.for_housekeeping());
        assert!(text.contains("has 16 requests under way that are not calls"), "{text}");
        assert!(!text.contains("max_calls") && text.contains("(call_wait)"), "{text}");
    }
}
