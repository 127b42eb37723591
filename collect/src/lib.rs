//! Data collection: what was asked and answered, on its way to blob storage, without a call that fails or waits for it.
//!
//! ```text
//! settings     what is collected, how, and every limit
//! record       what is offered: bytes by reference, and what is known of the call
//! collection   where it is offered: sampling, and a bounded ring
//! counts       offered = sampled out + dropped + persisted + pending
//! redact       what never reaches the disk
//! layout       which object a record belongs to, and how it looks there
//! log          segments on disk, checksummed, one log for each collection
//! writer       the one thread from the rings to the logs
//! upload       from the logs to blob: each object is a function of the log, written whole under a name of its own
//! erase        retention, and deletion by correlation id
//! ```
//!
//! `docs/collection.md` says what is guaranteed.

mod collection;
mod collections;
mod counts;
mod erase;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod gauges;
mod lane;
mod layout;
mod log;
mod record;
mod redact;
mod ring;
mod sampling;
mod settings;
mod spool;
mod status;
mod upload;
mod writer;

pub use collection::{Collection, Kept, Offered, Waiting};
pub use collections::{Collections, OpenError, Stopped, Target};
pub use counts::{Counts, Reason};
pub use erase::{Deleted, EraseError};
pub use record::{Designation, Outcome, Record, Table};
pub use settings::{
    CollectionSettings, Format, Full, MAX_COLLECTIONS, MAX_NAME, MAX_RULES, Pattern, Redaction, Replacement,
    Rolling, Settings, SettingsError, Sync,
};
pub use status::Status;
