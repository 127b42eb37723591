//! Entry scripts in Rust. A script is a shared library (`crate-type = ["cdylib"]`) that exports one type:
//!
//! ```
//! use outrigger_script::{Error, Host, Request, Response, Script};
//!
//! struct Echo;
//!
//! impl Script for Echo {
//!     fn init(_: &Host<'_>) -> Result<Self, Error> {
//!         Ok(Self)
//!     }
//!
//!     fn run(&self, request: &Request<'_>) -> Result<Response, Error> {
//!         Ok(Response::new("application/octet-stream", request.body().to_vec()))
//!     }
//! }
//!
//! outrigger_script::export!(Echo);
//! ```
//!
//! `outrigger_script_abi` has the same in C, and says what the host promises. Panics stop at the boundary and
//! fail the call.

#[doc(hidden)]
#[expect(unsafe_code, reason = "is called through the C boundary")]
pub mod export;
#[expect(unsafe_code, reason = "reads what the host lends, and calls it")]
mod request;
mod response;

use std::fmt;
use std::path::Path;

pub use request::{Buffer, Cancelled, Host, Level, Method, Request, Stream};
pub use response::Response;

/// An entry script.
pub trait Script: Send + Sync + Sized + 'static {
    /// The methods that reach [`Script::run`].
    const METHODS: &'static [Method] = &[Method::Get, Method::Post];

    /// Starts the script: loads its models. Called once.
    ///
    /// # Errors
    /// Why it cannot start; the replica does not come up then.
    fn init(host: &Host<'_>) -> Result<Self, Error>;

    /// Answers a request. In a worker process from one thread; in the replica's own process from several at
    /// once.
    ///
    /// # Errors
    /// [`Error::failed`], which any `std::error::Error` becomes, or [`Error::input`].
    fn run(&self, request: &Request<'_>) -> Result<Response, Error>;

    /// Ends the script. Called once, when no call is under way.
    fn shutdown(self) {}
}

/// Why a script could not start, or not answer.
pub struct Error {
    pub(crate) input: bool,
    pub(crate) message: String,
}

impl Error {
    /// The script failed: the caller gets status 500, and `message` goes to the log.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { input: false, message: message.into() }
    }

    /// The request is at fault: the caller gets status 400 and `message`.
    pub fn input(message: impl Into<String>) -> Self {
        Self { input: true, message: message.into() }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// `?` on any error is [`Error::failed`], with the errors behind it.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(behind) = source {
            message.push_str(": ");
            message.push_str(&behind.to_string());
            source = behind.source();
        }
        Self::failed(message)
    }
}

/// The client has gone, or the call was cancelled: nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client has gone")
    }
}

impl std::error::Error for Gone {}

/// Exports a [`Script`] from a shared library. Once in a library.
#[macro_export]
macro_rules! export {
    ($script:ty) => {
        const _: () = {
            #[unsafe(no_mangle)]
            extern "C" fn outrigger_script_abi() -> u32 {
                $crate::export::abi::ABI
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn outrigger_script_init(
                host: *const $crate::export::abi::Host,
                script: *mut $crate::export::abi::Script,
                message: *mut $crate::export::abi::Message,
            ) -> i32 {
                // SAFETY: the host keeps to the ABI.
                unsafe { $crate::export::init::<$script>(host, script, message) }
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn outrigger_script_run(
                state: *mut ::std::ffi::c_void,
                request: *const $crate::export::abi::Request,
                response: *mut $crate::export::abi::Response,
                message: *mut $crate::export::abi::Message,
            ) -> i32 {
                // SAFETY: the host keeps to the ABI, and `state` is what `init` gave it.
                unsafe { $crate::export::run::<$script>(state, request, response, message) }
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn outrigger_script_shutdown(state: *mut ::std::ffi::c_void) {
                // SAFETY: `state` is what `init` gave the host, which does not use it again.
                unsafe { $crate::export::shutdown::<$script>(state) }
            }
        };
    };
}

/// The path that the host handed over as bytes.
pub(crate) fn path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
#[expect(unsafe_code, reason = "plays the host")]
mod tests;
