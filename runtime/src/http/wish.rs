//! What a request asks of the scheduler.

use http::HeaderMap;
use outrigger_protocol::error::CallError;
use outrigger_protocol::priority::Priority;
use outrigger_protocol::urgency::Urgency;
use tokio::time::Instant;

use crate::scheduler::{Admission, Terms};

/// When a request came, and what it says of when it wants its answer.
pub(super) struct Wish {
    came: Instant,
    urgency: Urgency,
}

impl Wish {
    /// Reads the headers of a request that has just come.
    ///
    /// # Errors
    /// `bad_request`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, CallError> {
        Ok(Self { came: Instant::now(), urgency: Urgency::from_headers(headers)? })
    }

    /// The terms of a call of `caller`, who may be as urgent as `most`.
    pub(super) fn terms(
        &self,
        caller: u16,
        most: Priority,
        kind: u16,
        bytes: usize,
        admission: Admission,
    ) -> Terms {
        Terms {
            caller,
            priority: self.urgency.priority.unwrap_or(most).max(most),
            kind,
            bytes,
            admission,
            deadline: self.urgency.deadline.map(|deadline| self.came + deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_more_urgent_than_they_may_be() {
        let priority = |wished, most| {
            let wish = Wish { came: Instant::now(), urgency: Urgency { deadline: None, priority: wished } };
            wish.terms(0, most, 0, 0, Admission::Now).priority
        };
        assert_eq!(priority(None, Priority::Normal), Priority::Normal);
        assert_eq!(priority(Some(Priority::High), Priority::Normal), Priority::Normal);
        assert_eq!(priority(Some(Priority::Low), Priority::Normal), Priority::Low);
        assert_eq!(priority(Some(Priority::High), Priority::High), Priority::High);
    }
}
