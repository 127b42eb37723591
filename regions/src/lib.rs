//! Shared memory between the runtime and its workers: sealed, and handed over by descriptor. Linux only.
//!
//! A region is a memfd. One side makes and writes it ([`Region`]); the other maps it for reading ([`Mapping`]). Neither
//! can change its size, so a reader never runs off its end, and where it was made here nobody but its maker can write
//! to it: not even whoever has the descriptor. Descriptors travel over a seqpacket socket ([`send_region`],
//! [`receive_region`]) under a number that the owner chooses; frames elsewhere refer to that number.
//!
//! When the owner may write again, and when it gives a region up, is `entry-scripts/PROTOCOL.md`'s matter.

mod mapping;
#[expect(unsafe_code, reason = "maps shared memory")]
mod memory;
mod region;
mod socket;

pub use mapping::{Mapping, RegionError};
pub use region::Region;
pub use socket::{receive_region, send_region, seqpacket_pair};
