//! Keys, and who may do what.
//!
//! [`KeySource`] finds the keys when a replica starts: in its configuration, in a file, or by making them.
//! [`KeyRing`] keeps hashes of them, never the keys, and says which of them a request came with.
//! [`Policy`] is what the request path asks: may this caller do this operation on this model, now? It is
//! never asked about a URL. Its answer is a [`Grant`], without which nothing else is to be had.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the data path never panics")]

mod caller;
mod certificate;
mod file;
#[cfg(fuzzing)]
pub mod fuzzing;
mod key;
mod limiter;
mod policy;
#[cfg(test)]
mod policy_tests;
mod ring;
mod secret;
mod source;
#[cfg(test)]
mod tests;

pub use caller::{
    BUILT_IN, CallerCounts, CallerId, CallerRules, MAX_CALLERS, ModelRules, NamedCaller, OfModel,
};
pub use certificate::{CertificateName, CertificateNameFault, MAX_NAME_CHARS, MAX_NAMES, PeerCertificate};
pub use key::{KeyFault, MAX_KEY_CHARS, MIN_KEY_CHARS, check_key, generate_key};
pub use limiter::{MAX_BURST, MAX_RATE, MIN_RATE, Rate};
pub use policy::{AuthError, Credentials, Grant, Permit, Policy, PolicyConfig, Refusal};
pub use ring::{KeyRing, doubles};
pub use secret::Secret;
pub use source::{KeyConfig, KeyError, KeyOrigin, KeySource, ResolvedKeys, Which};
