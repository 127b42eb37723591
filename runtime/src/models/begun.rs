//! A call of a version, which counts for that or against it by how it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_protocol::error::{CallError, ErrorCode};

use super::versions::Outcomes;

/// A call whose end nobody waited for has failed if it took so long; before, that says more of who waited.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// A call of a version that is counted by how it ends.
pub(crate) struct Begun {
    outcomes: Option<Arc<Outcomes>>,
    since: Instant,
    end: End,
}

/// How it ended.
enum End {
    /// Nobody waited for it.
    Unseen,
    /// In a way that says nothing of the version.
    Aside,
    Well,
    Badly,
}

impl Begun {
    pub(super) fn new(outcomes: Option<Arc<Outcomes>>) -> Self {
        Self { outcomes, since: Instant::now(), end: End::Unseen }
    }

    /// It has a result, or none for another reason than that nobody waited any more.
    pub(crate) fn ended(mut self, well: bool) {
        self.end = if well { End::Well } else { End::Badly };
    }

    /// It ended without a result because of what it asked for.
    pub(crate) fn aside(mut self) {
        self.end = End::Aside;
    }

    /// It ended like that.
    pub(crate) fn ended_as(self, error: &CallError) {
        match error.code {
            // Whether it was too late by much the time tells.
            ErrorCode::DeadlineExceeded => {}
            ErrorCode::InvalidTensor => self.aside(),
            _ => self.ended(false),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(outcomes) = &self.outcomes else { return };
        match self.end {
            End::Well => outcomes.note(false),
            End::Badly => outcomes.note(true),
            End::Unseen if self.since.elapsed() >= PATIENCE => outcomes.note(true),
            End::Unseen | End::Aside => {}
        }
    }
}
