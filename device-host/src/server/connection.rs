//! One connection: a thread that takes a request, serves it and answers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use outrigger_backend::BackendError;
use rustix::net::SendFlags;

use super::Host;
use super::handlers;
use super::memory::{Fault, Memory};
use crate::frame::{self, Kind};
use crate::message;
use crate::patience::Forever;
use crate::socket::{self, Inbox, ReceiveError};

/// Counts the connections that are there.
#[derive(Default)]
pub(super) struct Connections(Arc<(Mutex<usize>, Condvar)>);

/// Models run on these threads, some with deep stacks; what is not used costs nothing.
const STACK: usize = 8 << 20;

impl Connections {
    /// Serves a socket on a thread of its own. Where there is no thread to be had, whoever asks over it is told.
    pub(super) fn begin(&self, host: &Arc<Host>, socket: OwnedFd) {
        let socket = Arc::new(socket);
        let counted = Counted::new(&self.0);
        let (host, served) = (Arc::clone(host), Arc::clone(&socket));
        let serve = move || {
            let ended = Connection::new(&host, served).serve();
            // Before it is counted off: whoever waits for that is to hold the last of what there is.
            drop(host);
            drop(counted);
            if let Err(error) = ended {
                eprintln!("the device host closes a connection: {error}");
            }
        };
        let spawned = std::thread::Builder::new().name("connection".into()).stack_size(STACK).spawn(serve);
        if let Err(error) = spawned {
            refuse(&socket, &format!("has no thread for a further call: {error}"));
        }
    }

    /// Waits until there is none, at most so long; whether that came.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let (count, changed) = &*self.0;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(count, limit, |count| *count > 0);
        let (count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *count == 0
    }
}

/// Says that nothing more comes over a connection, and that this process goes on all the same. `why` is what the device host does.
pub(super) fn refuse(socket: &OwnedFd, why: &str) {
    let text = format!("the device host {why}");
    eprintln!("{text}");
    let mut out = Vec::new();
    frame::begin(&mut out, Kind::Failed, frame::REFUSED);
    message::put_error(&BackendError::Run(text), &mut out);
    if frame::finish(&mut out, 0).is_ok() {
        let _ = socket::send(socket, &out, &[], SendFlags::DONTWAIT);
    }
}

struct Counted(Arc<(Mutex<usize>, Condvar)>);

impl Counted {
    fn new(count: &Arc<(Mutex<usize>, Condvar)>) -> Self {
        *count.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (count, changed) = &*self.0;
        *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_all();
    }
}

struct Connection<'a> {
    host: &'a Host,
    socket: Arc<OwnedFd>,
    inbox: Inbox,
    out: Vec<u8>,
    memory: Memory,
}

impl<'a> Connection<'a> {
    fn new(host: &'a Host, socket: Arc<OwnedFd>) -> Self {
        let memory = Memory::new(host.limits);
        Self { host, socket, inbox: Inbox::spinning(host.limits.spin), out: Vec::new(), memory }
    }

    fn serve(mut self) -> Result<(), String> {
        loop {
            let (kind, number) = match self.inbox.receive(&*self.socket, &Forever) {
                Ok(received) => received,
                Err(ReceiveError::Closed) => return Ok(()),
                Err(error @ ReceiveError::Lost) => {
                    refuse(&self.socket, &format!("could not take what came beside a call: {error}"));
                    return Ok(());
                }
                Err(error) => return Err(error.to_string()),
            };
            let files = self.inbox.files();
            frame::begin(&mut self.out, Kind::Done, number);
            let request = handlers::Request { kind, number, payload: self.inbox.payload(), files };
            let mut files = match handlers::handle(self.host, &mut self.memory, request, &mut self.out) {
                Ok(files) => files,
                Err(Fault::Backend(error)) => {
                    self.fail(number, &error);
                    Vec::new()
                }
                Err(Fault::Protocol(why)) => return Err(why),
            };
            if let Err(error) = frame::finish(&mut self.out, files.len()) {
                self.fail(number, &BackendError::Internal(format!("the answer cannot be sent: {error}")));
                files.clear();
                frame::finish(&mut self.out, 0).map_err(|error| error.to_string())?;
            }
            let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
            if socket::send(&*self.socket, &self.out, &files, SendFlags::empty()).is_err() {
                return Ok(()); // the parent is gone, or has given this connection up
            }
        }
    }

    fn fail(&mut self, number: u64, error: &BackendError) {
        frame::begin(&mut self.out, Kind::Failed, number);
        message::put_error(error, &mut self.out);
    }
}
