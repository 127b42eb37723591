//! What the measuring programs share: a load generator, CPU time of whole processes, statistics that bear noise, and the contest
//! in which servers take turns.

pub mod answer;
pub mod client;
#[expect(unsafe_code, reason = "the standard library does not tell what its monotonic clock shows")]
pub mod clock;
pub mod contest;
pub mod cpu;
pub mod device;
pub mod load;
pub mod models;
pub mod options;
pub mod process;
pub mod random;
pub mod server;
pub mod stats;
pub mod streaming;
