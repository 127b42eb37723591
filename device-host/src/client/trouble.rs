//! What can go wrong between a request and its answer, and whose fault it is.

use outrigger_backend::BackendError;

use crate::patience::Limit;
use crate::socket::{self, ReceiveError};
use crate::wire::WireError;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The backend's own word.
    Backend(BackendError),
    /// The child is gone, or has closed this connection.
    Gone,
    /// This connection was closed before the first answer came over it: the child is gone, or could not take it.
    Untaken,
    /// There was none in time.
    Late(Limit),
    /// The child broke the protocol.
    Protocol(String),
    /// This connection is of no use, for which the child is not to blame.
    Ours(BackendError),
}

impl Trouble {
    /// A socket failed.
    pub(super) fn of_socket(error: &std::io::Error) -> Self {
        if socket::is_want(error) {
            return Self::Ours(BackendError::Run(format!("a socket to the device host failed: {error}")));
        }
        Self::Gone
    }
}

impl From<BackendError> for Trouble {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<ReceiveError> for Trouble {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Closed => Self::Gone,
            ReceiveError::Socket(error) => Self::of_socket(&error),
            ReceiveError::Late(limit) => Self::Late(limit),
            ReceiveError::Lost => Self::Ours(BackendError::Run(format!("results were lost: {error}"))),
            error => Self::Protocol(error.to_string()),
        }
    }
}
