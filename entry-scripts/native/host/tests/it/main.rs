//! Native scripts, written in C and in Rust and compiled here, in process and in a worker whose runtime is
//! played by the tests.
#![allow(unsafe_code, reason = "hands sockets to a child, and reads regions")]

mod header;
mod in_process;
mod load;
mod regions;
mod support;
mod worker;
