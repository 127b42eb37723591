//! A call as the host sees it: the request, and what the host does for it while it runs.

use std::time::Instant;

use outrigger_script_abi as abi;

/// A method that reaches scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Method {
    Get = 0,
    Post = 1,
    Options = 2,
    Head = 3,
}

impl Method {
    pub(crate) const ALL: [Self; 4] = [Self::Get, Self::Post, Self::Options, Self::Head];

    /// As it stands in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Options => "OPTIONS",
            Self::Head => "HEAD",
        }
    }
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// The request's id, ASCII.
    pub id: &'a [u8],
    /// The query string as it stands in the URL.
    pub query: &'a [u8],
    /// Names in lower case, and values.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// The body. Nobody writes to it while the call runs.
    pub body: &'a [u8],
    /// When the call is out of time.
    pub deadline: Option<Instant>,
}

/// Whether a call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cancelled {
    /// It does.
    No = 0,
    /// The client has gone.
    ClientGone = 1,
    /// It is out of time.
    OutOfTime = 2,
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Level {
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
    Critical = 50,
}

impl Level {
    /// The level at or below `level`; scripts may make up numbers.
    pub(crate) fn at(level: i32) -> Self {
        match level {
            ..abi::LEVEL_INFO => Self::Debug,
            abi::LEVEL_INFO..abi::LEVEL_WARNING => Self::Info,
            abi::LEVEL_WARNING..abi::LEVEL_ERROR => Self::Warning,
            abi::LEVEL_ERROR..abi::LEVEL_CRITICAL => Self::Error,
            _ => Self::Critical,
        }
    }
}

/// The client has gone, or the call was cancelled: nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

/// What the host does for a call while it runs.
pub trait Caller: Sync {
    /// Memory for the body of an answer. Its bytes keep their address when the value is moved, until it is
    /// dropped.
    type Buffer: AsRef<[u8]> + AsMut<[u8]> + Send;

    /// Whether the call goes on. From any thread.
    fn cancelled(&self) -> Cancelled;

    /// Writes one line of the log, without its end. From any thread.
    fn log(&self, level: Level, line: &str);

    /// Memory of `len` bytes, more than 0; `None` if there is none. From any thread.
    fn allocate(&self, len: usize) -> Option<Self::Buffer>;

    /// Begins a streamed answer. At most once.
    ///
    /// # Errors
    /// Nobody is there to take it.
    fn begin(&self, head: crate::Head) -> Result<(), Gone>;

    /// Sends a piece of it, waiting while the client is slower.
    ///
    /// # Errors
    /// Nobody is there to take it.
    fn write(&self, piece: &[u8]) -> Result<(), Gone>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_levels_are_rounded_down() {
        let levels = [-1, 0, 10, 19, 20, 35, 49, 50, i32::MAX].map(|level| Level::at(level) as u8);
        assert_eq!(levels, [10, 10, 10, 10, 20, 30, 40, 50, 50]);
    }
}
