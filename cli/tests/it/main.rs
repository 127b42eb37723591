//! The real executable, through real sockets.

mod bad_input;
mod configuration;
mod contracts;
mod digits;
mod lifecycle;
mod listeners;
mod scripts;
mod support;
mod vectors;
