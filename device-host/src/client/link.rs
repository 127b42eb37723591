//! The way to one child while it lives: its control socket and its connections.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, RunId};
use rustix::net::SendFlags;

use super::connection::{Connection, Trouble};
use super::options::Options;
use crate::frame::{self, Kind};
use crate::socket::{self, Patience, within};
use crate::wire::{Reader, WireError};

/// Connections for what is not a run: loading, unloading, status.
const HOUSEKEEPING: usize = 16;
/// How long a caller whose connection was closed waits to hear why.
const REASON: Duration = Duration::from_secs(10);
/// A connection that was not used for so long is closed, but for one.
const IDLE: Duration = Duration::from_secs(60);

/// What wakes the thread that watches over a child.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> std::io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn ring(&self) {
        // It fails only where it has been rung 2⁶⁴ times and nobody came.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn answer(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One child's.
pub(super) struct Link {
    options: Arc<Options>,
    control: OwnedFd,
    bell: Arc<Bell>,
    runs: Pool,
    housekeeping: Pool,
    /// All sockets, to wake whoever waits for an answer when the child is gone and something that it started has a copy.
    sockets: Mutex<Vec<Weak<OwnedFd>>>,
    next_run: AtomicU64,
    under_way: Mutex<Vec<UnderWay>>,
    good: AtomicBool,
    since: Instant,
    end: Mutex<End>,
    ended: Condvar,
}

struct UnderWay {
    instance: u64,
    id: RunId,
    run: u64,
    cancelled: bool,
    /// The child has it, or is about to.
    sent: bool,
    /// Set once the child was asked to end it: when its time is up.
    deadline: Option<Instant>,
}

#[derive(Default)]
struct End {
    /// Why it is to be ended.
    condemned: Option<Verdict>,
    /// How it ended.
    reason: Option<String>,
}

/// Why a child is to be ended.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// It closed a connection; it is most likely ending by itself.
    Closed,
    /// It must be ended: why.
    Guilty(String),
}

impl Link {
    /// The way to a child that may be at so many calls at once.
    pub(super) fn new(options: &Arc<Options>, control: OwnedFd, bell: &Arc<Bell>, calls: usize) -> Self {
        Self {
            options: Arc::clone(options),
            control,
            bell: Arc::clone(bell),
            runs: Pool::new(calls),
            housekeeping: Pool::new(HOUSEKEEPING),
            sockets: Mutex::default(),
            next_run: AtomicU64::new(1),
            under_way: Mutex::default(),
            good: AtomicBool::new(false),
            since: Instant::now(),
            end: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, Vec<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
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
                    "the device host of `{name}` has {} calls under way (max_calls), and none ended within {:?} (call_wait)",
                    pool.most, limits.connection_wait
                );
                return Err(BackendError::Run(text).into());
            }
        };
        Ok(Lent { pool, connection: Some(connection) })
    }

    fn connect(&self) -> Result<Box<Connection>, Trouble> {
        let failed = |error: std::io::Error| {
            BackendError::Run(format!(
                "no further connection to the device host of `{}`: {error}",
                self.options.name
            ))
        };
        let (ours, theirs) = socket::pair().map_err(failed)?;
        self.tell(Kind::Connect, 0, Some(&theirs))?;
        let ours = Arc::new(ours);
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(&ours));
        drop(sockets);
        if self.end().reason.is_some() {
            return Err(Trouble::Gone);
        }
        Ok(Box::new(Connection::new(ours, self.options.timing.spin)))
    }

    /// Sends a frame without payload and answer. Never waits: the child takes them off at once, or hangs.
    fn tell(&self, kind: Kind, number: u64, file: Option<&OwnedFd>) -> Result<(), Trouble> {
        let mut out = Vec::new();
        frame::begin(&mut out, kind, number);
        let file = file.map(AsFd::as_fd);
        frame::finish(&mut out, file.as_slice().len())?;
        // So short a frame goes out whole or not at all.
        match socket::send(&self.control, &out, file.as_slice(), SendFlags::DONTWAIT) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err(Trouble::Protocol("it takes nothing off its control socket".into()))
            }
            Err(error) => Err(Trouble::of_socket(&error)),
        }
    }

    /// Has the child ended, where the trouble is its fault.
    pub(super) fn accuse(&self, trouble: Trouble) {
        let verdict = match trouble {
            // It says that itself: nothing on it succeeds any more, until it is started anew.
            Trouble::Backend(BackendError::Lost(text)) => Verdict::Guilty(text),
            Trouble::Backend(_) | Trouble::Ours(_) => return,
            Trouble::Gone => Verdict::Closed,
            Trouble::Late => Verdict::Guilty("it did not answer in time".into()),
            Trouble::Protocol(why) => Verdict::Guilty(format!("it broke the protocol: {why}")),
        };
        let mut end = self.end();
        match (&end.condemned, &verdict) {
            (None, _) | (Some(Verdict::Closed), Verdict::Guilty(_)) => end.condemned = Some(verdict),
            _ => return,
        }
        drop(end);
        self.bell.ring();
    }

    /// What becomes of trouble: the error for the caller. Waits until it is known how the child ended, if it does.
    pub(super) fn fails(&self, trouble: Trouble) -> BackendError {
        match trouble {
            Trouble::Backend(error) if !matches!(error, BackendError::Lost(_)) => return error,
            Trouble::Ours(error) => return error,
            trouble => self.accuse(trouble),
        }
        let waited = self.ended.wait_timeout_while(self.end(), REASON, |end| end.reason.is_none());
        let (end, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let reason = end.reason.clone();
        let silent = || format!("the device host of `{}` does not answer any more", self.options.name);
        BackendError::Lost(reason.unwrap_or_else(silent))
    }

    /// What is to become of the child, if it is to be ended.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.end().condemned.clone()
    }

    /// The child has ended. Whoever waits for an answer hears of it.
    pub(super) fn ended(&self, reason: String) {
        self.end().reason = Some(reason);
        self.ended.notify_all();
        let sockets = std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
        }
    }

    /// Closes the control socket, upon which the child unloads everything and ends.
    pub(super) fn hang_up(&self) {
        self.runs.clear();
        self.housekeeping.clear();
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
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
        let run = self.next_run.fetch_add(1, Ordering::Relaxed);
        if let Some(id) = id {
            self.under_way().push(UnderWay {
                instance,
                id,
                run,
                cancelled: false,
                sent: false,
                deadline: None,
            });
        }
        Begun { link: self, run, id }
    }

    /// Asks for a run to end. If it has not within the grace, the child is ended; but not where its backend cannot end runs
    /// early, whose fault that is not.
    pub(super) fn cancel(&self, instance: u64, id: NonZeroU64, can_cancel: bool) {
        let run = {
            let mut under_way = self.under_way();
            let found = under_way.iter_mut().find(|run| run.id == id && run.instance == instance);
            let Some(found) = found else { return };
            found.cancelled = true;
            if !found.sent || !can_cancel {
                return;
            }
            let grace = self.options.timing.cancel_grace;
            found.deadline = found.deadline.or_else(|| Instant::now().checked_add(grace));
            found.run
        };
        self.bell.ring();
        if let Err(trouble) = self.tell(Kind::Cancel, run, None) {
            self.accuse(trouble);
        }
    }

    /// When the next cancelled run is out of time; ends the child if that is now.
    pub(super) fn tend(&self, now: Instant) -> Option<Instant> {
        let next = self.under_way().iter().filter_map(|run| run.deadline).min()?;
        if next > now {
            return Some(next);
        }
        let grace = self.options.timing.cancel_grace;
        self.end().condemned =
            Some(Verdict::Guilty(format!("a run did not end within {grace:?} of its cancel (cancel_grace)")));
        None
    }

    /// Closes connections that have not been used for long.
    pub(super) fn trim(&self, now: Instant) {
        self.runs.trim(now);
        self.housekeeping.trim(now);
    }

    /// A request without tensors. A child that does not answer within `limit` is ended.
    pub(super) fn ask<T>(
        &self,
        kind: Kind,
        number: u64,
        fill: impl FnOnce(&mut Vec<u8>),
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, WireError>,
        limit: Duration,
    ) -> Result<T, BackendError> {
        self.request(kind, number, fill, read, &within(limit)).map_err(|trouble| match trouble {
            Trouble::Late => self.fails(BackendError::Lost(late(kind, limit)).into()),
            trouble => self.fails(trouble),
        })
    }

    /// A request without tensors, of which no more is made than what became of it.
    pub(super) fn request<T>(
        &self,
        kind: Kind,
        number: u64,
        fill: impl FnOnce(&mut Vec<u8>),
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, WireError>,
        patience: &impl Patience,
    ) -> Result<T, Trouble> {
        self.for_housekeeping()?.with(|connection| {
            let mut reader = Reader(connection.ask(kind, number, fill, patience)?);
            let answer = read(&mut reader)?;
            reader.end()?;
            Ok(answer)
        })
    }
}

/// What is said of a child that did not answer in time, with the key of that time.
fn late(kind: Kind, limit: Duration) -> String {
    let key = match kind {
        Kind::Status => "status_timeout",
        Kind::Load | Kind::Instance => "load_timeout",
        Kind::Release => "end_grace",
        _ => "request_timeout",
    };
    format!("it did not answer within {limit:?} ({key})")
}

/// A run under way.
pub(super) struct Begun<'a> {
    link: &'a Link,
    pub(super) run: u64,
    id: Option<RunId>,
}

impl Begun<'_> {
    /// The run goes to the child, if it has not been cancelled while it waited.
    pub(super) fn goes(&self) -> Result<(), BackendError> {
        if self.id.is_none() {
            return Ok(());
        }
        let mut under_way = self.link.under_way();
        match under_way.iter_mut().find(|run| run.run == self.run) {
            Some(run) if run.cancelled => Err(BackendError::Cancelled),
            Some(run) => {
                run.sent = true;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.id.is_some() {
            self.link.under_way().retain(|run| run.run != self.run);
        }
    }
}

/// A connection for one request.
pub(super) struct Lent<'a> {
    pool: &'a Pool,
    connection: Option<Box<Connection>>,
}

impl Lent<'_> {
    /// Uses it. After anything but an answer it is closed.
    pub(super) fn with<T>(
        &mut self,
        request: impl FnOnce(&mut Connection) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let connection = self.connection.as_mut().ok_or(Trouble::Gone)?;
        let answer = request(connection);
        if matches!(answer, Err(Trouble::Gone | Trouble::Late | Trouble::Protocol(_) | Trouble::Ours(_))) {
            self.connection = None;
        }
        answer
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        match self.connection.take() {
            Some(connection) => self.pool.give_back(connection),
            None => self.pool.forget(),
        }
    }
}

/// Connections that nobody uses, the last to come back on top.
struct Pool {
    most: usize,
    state: Mutex<Idle>,
    back: Condvar,
}

#[derive(Default)]
struct Idle {
    connections: Vec<(Box<Connection>, Instant)>,
    /// Those in use too.
    made: usize,
    waiting: usize,
}

struct Full;

impl Pool {
    fn new(most: usize) -> Self {
        Self { most, state: Mutex::default(), back: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, Idle> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is idle; `None` if one may be made.
    fn take(&self, wait: Duration) -> Result<Option<Box<Connection>>, Full> {
        let mut state = self.state();
        if state.connections.is_empty() && state.made >= self.most {
            state.waiting += 1;
            let full = |idle: &mut Idle| idle.connections.is_empty() && idle.made >= self.most;
            let waited = self.back.wait_timeout_while(state, wait, full);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        if let Some((connection, _)) = state.connections.pop() {
            return Ok(Some(connection));
        }
        if state.made >= self.most {
            return Err(Full);
        }
        state.made += 1;
        Ok(None)
    }

    fn give_back(&self, connection: Box<Connection>) {
        let mut state = self.state();
        state.connections.push((connection, Instant::now()));
        if state.waiting > 0 {
            self.back.notify_one();
        }
    }

    /// One is gone.
    fn forget(&self) {
        let mut state = self.state();
        state.made = state.made.saturating_sub(1);
        if state.waiting > 0 {
            self.back.notify_one();
        }
    }

    fn clear(&self) {
        let mut state = self.state();
        state.made -= state.connections.len();
        state.connections.clear();
    }

    fn trim(&self, now: Instant) {
        let mut state = self.state();
        // The oldest are at the bottom.
        let old = |(_, used): &&(Box<Connection>, Instant)| now.saturating_duration_since(*used) >= IDLE;
        let count = state.connections.iter().take_while(old).count();
        let count = count.min(state.made.saturating_sub(1));
        state.connections.drain(..count);
        state.made -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_counts_before_the_run_is_sent_and_condemns_only_where_it_can_be_heeded() {
        let (control, child) = socket::pair().unwrap();
        let options = Arc::new(Options::new("/x", "/x", "x", &[]));
        let link = Link::new(&options, control, &Arc::new(Bell::new().unwrap()), 1);
        let id = NonZeroU64::new(7).unwrap();
        let told = || socket::readable(child.as_fd(), Duration::ZERO).unwrap();
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
}
