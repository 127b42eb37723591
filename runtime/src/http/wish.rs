//! What a request asks of the scheduler.

use std::time::Duration;

use http::HeaderMap;
use outrigger_auth::Grant;
use outrigger_protocol::error::CallError;
use outrigger_protocol::urgency::Urgency;
use tokio::time::Instant;

use crate::cache::Reuse;
use crate::scheduler::{Admission, Terms};

/// When a request came, and what it says of when it wants its answer, and which.
pub(super) struct Wish {
    came: Instant,
    urgency: Urgency,
    reuse: Reuse,
}

impl Wish {
    /// Reads the headers of a request that has just come.
    ///
    /// # Errors
    /// `bad_request`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, CallError> {
        Ok(Self { came: Instant::now(), urgency: Urgency::from_headers(headers)?, reuse: Reuse::of(headers) })
    }

    /// Adds what the body says.
    pub(super) fn add(&mut self, said: Urgency) {
        self.urgency = self.urgency.beside(said);
    }

    /// When it is too late to go on waiting: the request's own deadline, or after as long as calls wait at most.
    pub(super) fn patience(&self, longest: Duration) -> Instant {
        self.came + self.urgency.deadline.map_or(longest, |deadline| deadline.min(longest))
    }

    /// What it says of answers that are kept.
    pub(super) fn reuse(&self) -> Reuse {
        self.reuse
    }

    /// The terms of a call.
    pub(super) fn terms(&self, grant: &Grant, kind: u16, bytes: usize, admission: Admission) -> Terms {
        Terms {
            // There are some hundred callers at most.
            caller: u16::try_from(grant.caller().index()).unwrap_or(u16::MAX),
            priority: grant.priority(self.urgency.priority),
            kind,
            bytes,
            admission,
            deadline: self.urgency.deadline.map(|deadline| self.came + deadline),
        }
    }
}
