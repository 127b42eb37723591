//! One child's control socket: what it is told beside its calls.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{SendFlags, Shutdown, shutdown};

use super::trouble::Trouble;
use crate::frame::{self, Kind};
use crate::{patience, socket};

/// How long a child that ends takes at most to close it, once it has closed a connection.
const CLOSING: Duration = Duration::from_secs(2);

/// The parent's end of it, once the child has described its backend. Nothing comes over it any more but its end.
pub(super) struct Control(pub(super) OwnedFd);

impl Control {
    /// Sends a frame without payload and answer. Never waits: the child takes them off at once, or hangs.
    pub(super) fn tell(&self, kind: Kind, number: u64, file: Option<&OwnedFd>) -> Result<(), Trouble> {
        let mut out = Vec::new();
        frame::begin(&mut out, kind, number);
        let file = file.map(AsFd::as_fd);
        frame::finish(&mut out, file.as_slice().len())?;
        // So short a frame goes out whole or not at all.
        match socket::send(&self.0, &out, file.as_slice(), SendFlags::DONTWAIT) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err(Trouble::Protocol("it takes nothing off its control socket".into()))
            }
            Err(error) => Err(Trouble::of_socket(&error)),
        }
    }

    /// Whether the child keeps it open, for as long as that takes to be known.
    pub(super) fn stays_open(&self) -> bool {
        patience::readable(self.0.as_fd(), CLOSING).is_ok_and(|closed| !closed)
    }

    /// Closes it, upon which the child unloads everything and ends.
    pub(super) fn close(&self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}
