//! A proxy for HTTP/1.1 that fails as it is told: a connection that is reset within a body, an answer that is cut short, a byte that is
//! another one. It counts what is asked through it.
//!
//! ```no_run
//! # use outrigger_testkit::faults::{Fault, On, Proxy};
//! # let storage: std::net::SocketAddr = "127.0.0.1:1".parse().unwrap();
//! let proxy = Proxy::start(storage);
//! // The second GET of a path with `weights` in it is reset after 1000 bytes of its answer's body; all others are as they were.
//! proxy.inject(On::get().path("weights").after(1), Fault::Reset { after: 1000 });
//! // ... a client that is given `proxy.address()` ...
//! assert_eq!(proxy.counts(&On::get().path("weights")).requests, 3);
//! ```
//!
//! Each client's connection has a thread here, and each request a connection of its own to whom it is for. Heads go through unchanged, so that
//! signatures stay what they are: a client signs the proxy's address as its host. Where the end of a body is not told in advance, its chunks may be
//! others than they were, without trailers.

mod connection;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use rules::{Fault, On};
use rules::{Rule, due};

/// A proxy that runs. When dropped it ends all connections, then its threads.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// A request that has come, and what became of it so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// Its method, in upper case.
    pub method: String,
    /// Its path and query, as it was written.
    pub target: String,
    /// Its `range`, such as `bytes=0-99`.
    pub range: Option<String>,
    /// What it was answered with, as soon as that is known.
    pub status: Option<u16>,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body that were handed to the client's connection. They are counted before they are: nothing that a client has is missing.
    pub sent: u64,
    /// Whether a fault took effect on it.
    pub is_faulty: bool,
}

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many.
    pub requests: usize,
    /// On how many a fault took effect.
    pub faulty: usize,
    /// Bytes of their bodies.
    pub received: u64,
    /// Bytes of the answers' bodies.
    pub sent: u64,
}

impl Proxy {
    /// Starts one in front of an address.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("the address of a listener");
        let shared = Arc::new(Shared { upstream, state: Mutex::default(), stop: Condvar::new() });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a fault. The first one that a request is due for is the one that it gets; for those after it, that request has not been.
    pub fn inject(&self, on: On, fault: Fault) {
        self.shared.state().faults.push(Rule::new(on, fault));
    }

    /// Takes away all faults: from here on requests are as they were.
    pub fn heal(&self) {
        self.shared.state().faults.clear();
    }

    /// Has something done before a request is passed on. What it asks of the storage it must not ask through this proxy, and not for ever.
    ///
    /// Where it panics, dropping the proxy does.
    pub fn before(&self, on: On, act: impl Fn(&Exchange) + Send + Sync + 'static) {
        self.shared.state().acts.push(Rule::new(on, Arc::new(act)));
    }

    /// What has been asked so far, in the order in which it came.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared.state().exchanges.values().cloned().collect()
    }

    /// Sums over the requests of a kind: all of that kind, whatever `after` and `times` say.
    pub fn counts(&self, of: &On) -> Counts {
        let mut counts = Counts::default();
        for exchange in self.shared.state().exchanges.values().filter(|exchange| of.is_met_by(exchange)) {
            counts.requests += 1;
            counts.faulty += usize::from(exchange.is_faulty);
            counts.received += exchange.received;
            counts.sent += exchange.sent;
        }
        counts
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Forgets requests and connections that have been, and faults that have not.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.exchanges.clear();
        state.faults.clear();
        state.acts.clear();
        state.connections = 0;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop();
        // It waits for a connection: this one.
        let _ = TcpStream::connect(self.address);
        let ended = self.accepting.take().map(JoinHandle::join);
        if let (Some(Err(cause)), false) = (ended, thread::panicking()) {
            panic::resume_unwind(cause);
        }
    }
}

type Act = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// What the threads have in common.
struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    faults: Vec<Rule<Fault>>,
    acts: Vec<Rule<Act>>,
    connections: usize,
    /// By number; a number is never used again.
    exchanges: BTreeMap<usize, Exchange>,
    /// Sockets that a thread may be waiting for, by number.
    open: HashMap<usize, TcpStream>,
    numbers: usize,
}

impl State {
    fn number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut state = self.state();
        state.is_stopped = true;
        for socket in state.open.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.stop.notify_all();
    }

    /// Waits, unless everything ends before.
    fn wait(&self, time: Duration) -> io::Result<()> {
        let waited = self.stop.wait_timeout_while(self.state(), time, |state| !state.is_stopped);
        match waited.unwrap_or_else(PoisonError::into_inner).0.is_stopped {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }

    /// Sees to it that a socket ends with everything, for as long as what is returned lives.
    fn open(&self, socket: &TcpStream) -> io::Result<Open<'_>> {
        socket.set_nodelay(true)?;
        let mut state = self.state();
        if state.is_stopped {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let number = state.number();
        state.open.insert(number, socket.try_clone()?);
        Ok(Open { shared: self, number })
    }

    /// Writes down a request, and says what is to be done before it is passed on, and what it gets.
    fn begin(&self, exchange: Exchange) -> (usize, Vec<Act>, Option<Fault>) {
        let mut state = self.state();
        let acts = state.acts.iter_mut().filter_map(|rule| rule.due(&exchange)).collect();
        let fault = due(&mut state.faults, &exchange);
        let number = state.number();
        state.exchanges.insert(number, exchange);
        (number, acts, fault)
    }

    /// Writes down what became of a request, if that is still wanted.
    fn note(&self, number: usize, change: impl FnOnce(&mut Exchange)) {
        if let Some(exchange) = self.state().exchanges.get_mut(&number) {
            change(exchange);
        }
    }
}

/// A socket that ends with everything.
struct Open<'a> {
    shared: &'a Shared,
    number: usize,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.state().open.remove(&self.number);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while let Ok((client, _)) = listener.accept() {
        let mut state = shared.state();
        if state.is_stopped {
            break;
        }
        let connection = state.connections;
        state.connections += 1;
        drop(state);
        let shared = Arc::clone(shared);
        threads.push(thread::spawn(move || {
            // How a client or the storage leaves is none of our concern.
            let _ = connection::serve(&shared, client, connection);
        }));
    }
    let ended: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
    if let Some(Err(cause)) = ended.into_iter().find(Result::is_err) {
        panic::resume_unwind(cause);
    }
}
