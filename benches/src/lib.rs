//! What the measuring programs share: a load generator, CPU time of whole processes, and statistics that bear noise.

pub mod cpu;
pub mod load;
pub mod stats;
