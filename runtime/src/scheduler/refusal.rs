//! Why a call is not let through, and how its caller hears of it.

use std::time::Duration;

use outrigger_protocol::error::{CallError, ErrorCode};

/// The longest time after which a caller is asked to come back.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Why a call is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// As many wait as may.
    Items,
    /// Those that wait hold as many bytes as they may.
    Bytes,
    /// It would wait for longer than calls may; so much longer than that.
    Wait(Duration),
    /// It would not have ended by its deadline; so much too late.
    Deadline(Duration),
    /// It would end in time, but calls that were accepted before would not.
    Promised,
    /// It made room for a caller who has fewer calls waiting.
    Displaced,
    /// It has waited for as long as calls may.
    Waited,
    /// Its deadline is over.
    Expired,
    /// The replica is ending.
    Draining,
}

impl Refusal {
    /// What the caller is told; `backlog` is how long those that wait will take.
    pub(super) fn error(self, backlog: Duration) -> CallError {
        let overloaded = |text: String| CallError::new(ErrorCode::Overloaded, text);
        let (error, retry) = match self {
            Self::Items => {
                (overloaded("all slots are taken and the queue is full (queue.items)".into()), backlog)
            }
            Self::Bytes => (
                overloaded("the calls that wait hold all the memory there is for them (queue.bytes)".into()),
                backlog,
            ),
            Self::Wait(by) => {
                let text = "no slot will be free in time (queue.wait), as far as can be told from how long calls take".into();
                (overloaded(text), by)
            }
            Self::Deadline(by) => {
                let text = format!(
                    "the deadline cannot be met: the call would end about {} ms too late",
                    by.as_millis().max(1)
                );
                (overloaded(text), by)
            }
            Self::Promised => (
                overloaded(
                    "the deadline cannot be met: calls that were accepted before need the slots".into(),
                ),
                backlog,
            ),
            Self::Displaced => {
                (overloaded("the queue is full, and other callers have fewer calls in it".into()), backlog)
            }
            Self::Waited => (overloaded("no slot became free in time (queue.wait)".into()), backlog),
            Self::Expired => return expired(),
            Self::Draining => return draining(),
        };
        error.with_retry_after(whole_seconds(retry))
    }
}

/// At least one, since the header knows no less.
fn whole_seconds(time: Duration) -> Duration {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(seconds).clamp(Duration::from_secs(1), LONGEST_RETRY)
}

/// The refusal while the replica ends.
pub(crate) fn draining() -> CallError {
    CallError::new(ErrorCode::Draining, "the replica is shutting down")
        .with_retry_after(Duration::from_secs(1))
}

/// The refusal of a call whose deadline is over.
pub(crate) fn expired() -> CallError {
    CallError::new(ErrorCode::DeadlineExceeded, "the deadline that the call came with is over")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_when_to_come_back_in_whole_seconds() {
        let retry = |refusal: Refusal, backlog| refusal.error(Duration::from_millis(backlog)).retry_after;
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(retry(Refusal::Items, 0), seconds(1));
        assert_eq!(retry(Refusal::Items, 1001), seconds(2));
        assert_eq!(retry(Refusal::Items, u64::MAX), seconds(60));
        assert_eq!(retry(Refusal::Deadline(Duration::from_millis(2500)), 0), seconds(3));
        assert_eq!(retry(Refusal::Expired, 0), None);
    }
}
