//! The child: opens a backend and serves it to whoever started it, until that closes the control socket.

mod connection;
mod handlers;
mod memory;
mod objects;
mod outgoing;
mod process;
mod reserve;
mod runs;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_backend::host;
use rustix::net::SendFlags;

use crate::frame::{self, Kind};
use crate::message::{self, Hello, HostLimits};
use crate::patience::{self, Patience};
use crate::socket::{self, Inbox, ReceiveError};
use crate::wire::Reader;
use connection::Connections;
use objects::Objects;
use reserve::Reserve;
use runs::Runs;

/// The parent has ended the conversation, and everything was unloaded.
const EXIT_OK: u8 = 0;
/// The parent broke the protocol, or calls did not end.
const EXIT_PROTOCOL: u8 = 1;
/// Standard input is no socket.
const EXIT_NO_SOCKET: u8 = 2;
/// The backend did not open; the parent was told why.
const EXIT_FAILED: u8 = 3;

/// How long calls that are under way are waited for at least when the parent has gone. It ends the process itself if it is still there.
const LEFT: Duration = Duration::from_secs(60);

/// Runs a device host from its first to its last line; returns the exit code. The control socket is standard input. To be called
/// first thing in `main`, while there is one thread.
pub fn serve() -> u8 {
    let control = match process::control() {
        Ok(control) => control,
        Err(error) => {
            eprintln!(
                "a device host is started by the replica, with a socket as its standard input: {error}"
            );
            return EXIT_NO_SOCKET;
        }
    };
    if !process::prepare(&control) {
        return EXIT_OK;
    }
    match converse(&control) {
        Ok(code) => code,
        Err(ReceiveError::Closed) => EXIT_OK,
        Err(error) => {
            eprintln!("the device host ends: {error}");
            EXIT_PROTOCOL
        }
    }
}

/// What every connection of a child shares.
struct Host {
    objects: Objects,
    runs: Runs,
    limits: HostLimits,
}

fn converse(control: &OwnedFd) -> Result<u8, ReceiveError> {
    let mut inbox = Inbox::default();
    let mut out = Vec::new();
    let (kind, _) = inbox.receive(control, &patience::Forever)?;
    let mut reader = Reader(inbox.payload());
    let hello = Hello::read(&mut reader)?;
    expect(kind == Kind::Hello)?;
    reader.end()?;
    let library = PathBuf::from(OsString::from_vec(hello.library));
    let backend = match host::load(&library, &hello.settings) {
        Ok(backend) => backend,
        Err(error) => {
            frame::begin(&mut out, Kind::Failed, 0);
            message::put_error(&error, &mut out);
            reply(control, &mut out)?;
            return Ok(EXIT_FAILED);
        }
    };
    frame::begin(&mut out, Kind::Done, 0);
    message::put_info(backend.info(), &mut out);
    reply(control, &mut out)?;
    let host = Arc::new(Host { objects: Objects::new(backend), runs: Runs::default(), limits: hello.limits });
    let left = LEFT.max(host.limits.end_grace);
    let connections = Connections::default();
    let ended = tend(control, &mut inbox, &host, &connections);
    if !connections.wait(left) {
        eprintln!("the device host ends with calls under way");
        return Ok(EXIT_PROTOCOL);
    }
    // The last that holds the backend: instances, models, the device and the backend end in this order.
    drop(host);
    ended
}

fn reply(control: &OwnedFd, out: &mut [u8]) -> Result<(), ReceiveError> {
    frame::finish(out, 0)?;
    Ok(socket::send(control, out, &[], SendFlags::empty())?)
}

fn expect(kind: bool) -> Result<(), ReceiveError> {
    if kind {
        Ok(())
    } else {
        Err(crate::wire::WireError::Unknown { what: "control frame", number: 0 }.into())
    }
}

/// Serves the control socket.
fn tend(
    control: &OwnedFd,
    inbox: &mut Inbox,
    host: &Arc<Host>,
    connections: &Connections,
) -> Result<u8, ReceiveError> {
    let reserve = Reserve::default();
    let _ = reserve.hold();
    loop {
        let received = inbox.receive(control, &Tending { runs: &host.runs, reserve: &reserve });
        let held = reserve.hold();
        let (kind, number) = match received {
            Err(ReceiveError::Closed) => return Ok(EXIT_OK),
            // Somebody else here was faster than this. Whoever is at the other end sees it closed, and the others are served on.
            Err(error @ ReceiveError::Lost) => {
                eprintln!("the device host could not take a further connection: {error}");
                continue;
            }
            received => received?,
        };
        Reader(inbox.payload()).end()?;
        match kind {
            Kind::Connect => {
                let [socket] = <[OwnedFd; 1]>::try_from(inbox.files()).map_err(|_| ReceiveError::Files)?;
                match held {
                    Ok(()) => connections.begin(host, socket),
                    Err(error) => {
                        connection::refuse(
                            &socket,
                            &format!("has no descriptor for a further call: {error}"),
                        );
                        drop(socket);
                        let _ = reserve.hold();
                    }
                }
            }
            Kind::Cancel => host.runs.cancel(number),
            _ => expect(false)?,
        }
    }
}

/// Waits on the control socket; meanwhile, runs that were asked to end and have not are asked again: a backend does not know of a run yet
/// that is only on its way to it.
struct Tending<'a> {
    runs: &'a Runs,
    reserve: &'a Reserve,
}

/// How often they are asked.
const AGAIN: Duration = Duration::from_millis(10);
/// How long there is to wait where there is nobody to ask.
const LONG: Duration = Duration::from_secs(3600);

impl Patience for Tending<'_> {
    fn wait(&self, socket: BorrowedFd<'_>) -> Result<(), ReceiveError> {
        loop {
            let limit = if self.runs.repeat() { AGAIN } else { LONG };
            if patience::readable(socket.as_fd(), limit)? {
                break;
            }
        }
        self.reserve.let_go();
        Ok(())
    }
}
