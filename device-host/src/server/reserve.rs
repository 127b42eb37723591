//! A descriptor in reserve.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

/// Held for nothing but to be let go of: so the socket of a further connection can still be taken where this process may have no more
/// descriptors, and whoever is at its other end hears that.
#[derive(Default)]
pub(super) struct Reserve(Cell<Option<OwnedFd>>);

impl Reserve {
    /// Makes room for one descriptor.
    pub(super) fn let_go(&self) {
        self.0.set(None);
    }

    /// Takes one again, if it has none.
    pub(super) fn hold(&self) -> io::Result<()> {
        let held = match self.0.take() {
            Some(held) => held,
            None => eventfd(0, EventfdFlags::CLOEXEC)?,
        };
        self.0.set(Some(held));
        Ok(())
    }
}
