//! Why a model does not go to a device.

use std::fmt;

use serde::Serialize;

/// Where a copy could not go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// An entry of the model's list, or a device that it matches.
    pub device: String,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
    /// The same in words.
    pub text: String,
}

impl Tried {
    pub(super) fn new(device: String, reason: Reason) -> Self {
        Self { device, text: reason.to_string(), reason }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.reason)
    }
}

/// Why it could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// There is no such device.
    Absent {
        /// What its backend says, or why that is not there.
        why: String,
    },
    /// It would hold more than it may.
    NoRoom {
        /// What the copy takes.
        bytes: u64,
        /// What is taken.
        taken: u64,
        /// What may be.
        budget: u64,
    },
    /// Nothing on it succeeds.
    Unhealthy {
        /// What its backend says.
        why: String,
    },
    /// Its backend does not take the model's format.
    Format {
        /// The model's.
        format: String,
        /// What it takes.
        takes: Vec<String>,
    },
    /// What the model takes cannot be told.
    Unreadable {
        /// Why.
        why: String,
    },
    /// It was tried there and did not load.
    Failed {
        /// Why.
        why: String,
    },
    /// The model may not go elsewhere than where its list begins.
    Forbidden,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { why } => write!(f, "no such device: {why}"),
            Self::NoRoom { bytes, taken, budget } => {
                write!(f, "has no room: {bytes} bytes more than the {taken} taken are over its {budget}")
            }
            Self::Unhealthy { why } => write!(f, "is lost: {why}"),
            Self::Format { format, takes } => {
                write!(f, "does not take `{format}`, only {}", takes.join(", "))
            }
            Self::Unreadable { why } => f.write_str(why),
            Self::Failed { why } => write!(f, "did not load it: {why}"),
            Self::Forbidden => f.write_str("not allowed: fallback = false"),
        }
    }
}
