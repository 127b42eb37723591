//! Backends in a process of their own: `outrigger device-host`.
//!
//! [`open`] starts a child that opens a backend's library and serves it; what it returns implements the traits of
//! `outrigger_backend` like a backend in this process. One child serves one device, so that a fault is one device's. [`serve`] is
//! the child.
//!
//! # What crosses, and how
//! A *control* socket lasts as long as the child: over it go further sockets (*connections*) and the wish to end a run. Each
//! connection carries one request and its answer at a time, on a thread of its own in the child, so the caller's thread
//! talks to the thread that runs the model, and nobody stands between them. Frames are length-prefixed and bounded; `frame` and
//! `message` hold their form. Small tensors travel in the frame, larger ones in sealed shared memory: inputs in a region of the parent's, results in
//! regions of the child's, which the parent maps for reading and hands out as they are.
//!
//! Invariant: nothing is written to a region while somebody can still look at what was in it. The parent fills its region anew only if
//! the child has said that nothing of it was kept; the child fills one of its own anew only when the parent has said that the last view is gone.
//!
//! Invariant: the parent believes nothing that a child says: sizes, places, counts, types and text are checked, and a child that lies is ended.

mod client;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod message;
mod patience;
mod server;
mod socket;
#[expect(unsafe_code, reason = "reads and writes memory that is shared with another process")]
mod view;
mod wire;

pub use client::{DeviceHealth, Limits, OnChange, Options, Timing, open};
pub use server::serve;
