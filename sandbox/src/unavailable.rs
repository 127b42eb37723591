//! In the place of everything that only Linux has: nothing is confined, and the report says so.

use std::io;
use std::os::fd::BorrowedFd;
use std::process::Command;

use crate::{Part, Policy, Report, State, setting};

/// A policy made ready: on this system, no more than a report.
#[derive(Clone, Debug)]
pub struct Prepared {
    report: Report,
}

impl Policy {
    /// Says of every part that is wanted that this system lacks it.
    pub fn prepare(&self) -> Prepared {
        let mut report = Report::default();
        for part in Part::ALL {
            let state = match part {
                Part::Environment if self.wants(part) => {
                    State::Active("credentials and the replica's settings are taken out".into())
                }
                _ if self.wants(part) => State::Unavailable("only Linux has it".into()),
                _ => State::Off { setting: setting::OFF },
            };
            report.set(part, state);
        }
        Prepared { report }
    }
}

impl Prepared {
    /// What holds: the environment at most.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// `None`: there are no control groups.
    ///
    /// # Errors
    /// None.
    pub fn cgroup(&self) -> io::Result<Option<Cgroup>> {
        Ok(None)
    }

    /// Changes nothing.
    ///
    /// # Errors
    /// None.
    pub fn confine(&self, _command: &mut Command, _group: Option<&Cgroup>) -> io::Result<()> {
        Ok(())
    }

    /// Changes nothing.
    ///
    /// # Errors
    /// None.
    pub fn enter(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A control group; there are none here.
#[derive(Debug)]
pub enum Cgroup {}

impl Cgroup {
    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn add(&self, _pid: u32) -> io::Result<()> {
        match *self {}
    }

    /// Cannot be called.
    pub fn oom_kills(&self) -> u64 {
        match *self {}
    }

    /// Cannot be called.
    pub fn fork_refusals(&self) -> u64 {
        match *self {}
    }

    /// Cannot be called.
    pub fn processes(&self) -> Vec<u32> {
        match *self {}
    }

    /// Cannot be called.
    pub fn kill_all(&self) {
        match *self {}
    }
}

/// `false`: nothing is confined here.
///
/// # Errors
/// None.
pub fn is_confined(_socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(false)
}
