//! Which requests, and what happens to them.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Exchange;

/// What happens to an answer. Numbers of bytes are of its body, and count from 0; nothing happens to a body that has no more than that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset in place of an answer.
    Hangup,
    /// The connection is reset when the client's machine has that many bytes.
    Reset {
        /// Bytes before it.
        after: u64,
    },
    /// The connection is closed in order, although more was announced.
    Truncate {
        /// Bytes before it.
        after: u64,
    },
    /// Nothing more comes, on a connection that stays until the client leaves.
    Stall {
        /// Bytes before it.
        after: u64,
    },
    /// Nothing comes for a while.
    Pause {
        /// Bytes before it.
        after: u64,
        /// How long.
        time: Duration,
    },
    /// All of it comes slowly.
    Slow {
        /// How much in a second.
        bytes_per_second: NonZeroU32,
    },
    /// The lowest bit of a byte is flipped.
    Corrupt {
        /// Which byte.
        at: u64,
    },
    /// The answer is there, and begins a while later.
    Delay(Duration),
    /// The proxy answers itself, without a body; who it is for never hears of it.
    Status {
        /// Such as 503.
        status: u16,
        /// `retry-after`, in seconds.
        retry_after: Option<u32>,
    },
}

impl Fault {
    /// Where in a body it happens, if that is at a place.
    pub(super) fn place(&self) -> Option<u64> {
        match self {
            Self::Reset { after: at }
            | Self::Truncate { after: at }
            | Self::Stall { after: at }
            | Self::Pause { after: at, .. }
            | Self::Corrupt { at } => Some(*at),
            Self::Hangup | Self::Slow { .. } | Self::Delay(_) | Self::Status { .. } => None,
        }
    }
}

/// Some requests: by what they are, and by how many of those there were before. The first one, if nothing else is said.
#[derive(Clone, Debug)]
pub struct On {
    method: Option<String>,
    path: Option<String>,
    range: Option<String>,
    after: usize,
    times: usize,
}

impl On {
    /// Any request.
    pub fn any() -> Self {
        Self { method: None, path: None, range: None, after: 0, times: 1 }
    }

    /// Those of a method.
    pub fn method(method: &str) -> Self {
        Self { method: Some(method.to_ascii_uppercase()), ..Self::any() }
    }

    /// `GET`.
    pub fn get() -> Self {
        Self::method("GET")
    }

    /// Those with this somewhere in their path or query, as it is written there.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.into());
        self
    }

    /// Those whose range begins like this: `bytes=100-`.
    #[must_use]
    pub fn range(mut self, start: &str) -> Self {
        self.range = Some(start.into());
        self
    }

    /// Not the first ones, so many.
    #[must_use]
    pub fn after(mut self, requests: usize) -> Self {
        self.after = requests;
        self
    }

    /// So many, one after the other.
    #[must_use]
    pub fn times(mut self, requests: usize) -> Self {
        self.times = requests;
        self
    }

    /// All from there on.
    #[must_use]
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }

    /// Whether it is one of the kind, whichever.
    pub(super) fn is_met_by(&self, exchange: &Exchange) -> bool {
        let range = exchange.range.as_deref().unwrap_or_default();
        self.method.as_ref().is_none_or(|method| *method == exchange.method)
            && self.path.as_ref().is_none_or(|part| exchange.target.contains(part.as_str()))
            && self.range.as_ref().is_none_or(|start| range.starts_with(start.as_str()))
    }
}

/// What is to happen, and how often still.
pub(super) struct Rule<T> {
    on: On,
    what: T,
}

impl<T: Clone> Rule<T> {
    pub(super) fn new(on: On, what: T) -> Self {
        Self { on, what }
    }

    /// Counts a request, and says what is to happen to it.
    pub(super) fn due(&mut self, exchange: &Exchange) -> Option<T> {
        if self.on.times == 0 || !self.on.is_met_by(exchange) {
            return None;
        }
        if self.on.after > 0 {
            self.on.after -= 1;
            return None;
        }
        if self.on.times < usize::MAX {
            self.on.times -= 1;
        }
        Some(self.what.clone())
    }
}

/// The first that is due.
pub(super) fn due<T: Clone>(rules: &mut [Rule<T>], exchange: &Exchange) -> Option<T> {
    rules.iter_mut().find_map(|rule| rule.due(exchange))
}
