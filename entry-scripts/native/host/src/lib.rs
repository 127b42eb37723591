//! Runs native entry scripts: shared libraries with the C ABI of `outrigger_script_abi`.
//!
//! [`Library`] opens and checks one. There are two ways to run it: [`serve_worker`], the main loop of a worker
//! process, which speaks the protocol of `entry-scripts/PROTOCOL.md`, and [`InProcess`], for a runtime that an
//! operator has told to trust the library: a crash of the script is then a crash of the replica.
//!
//! What comes back over the ABI is checked before it is used: codes, statuses, headers, lengths, nulls. That
//! pointers which are not null point to what the library says cannot be checked.

mod call;
#[expect(unsafe_code, reason = "is called through the C boundary")]
mod callbacks;
mod error;
#[cfg(fuzzing)]
#[expect(unsafe_code, reason = "stands in for a script")]
pub mod fuzzing;
mod in_process;
#[expect(unsafe_code, reason = "opens libraries")]
mod library;
#[expect(unsafe_code, reason = "views and frees what a script hands over")]
mod response;
#[expect(unsafe_code, reason = "calls through the C boundary")]
mod script;
mod worker;

pub use call::{Caller, Cancelled, Gone, Level, Method, Request};
pub use error::{CallError, LoadError};
pub use in_process::InProcess;
pub use library::Library;
pub use response::{Answer, Body, Head};
pub use script::Settings;
pub use worker::serve_worker;

pub(crate) use script::Script;
