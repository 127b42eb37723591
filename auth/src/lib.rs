//! Keys, and who may do what.
//!
//! [`KeySource`] finds the keys when a replica starts: in its configuration, in a file, or by making them.
//! [`KeyRing`] keeps hashes of them, never the keys, and says which of them a request came with.
//! [`Authenticator`] is what the request path asks: may this caller do this operation on this model? It is
//! never asked about a URL.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the data path never panics")]

mod authenticator;
mod file;
mod key;
mod ring;
mod secret;
mod source;
#[cfg(test)]
mod tests;

pub use authenticator::{AuthError, Authenticator, Principal};
pub use key::{KeyFault, MAX_KEY_CHARS, MIN_KEY_CHARS, check_key, generate_key};
pub use ring::KeyRing;
pub use secret::Secret;
pub use source::{KeyConfig, KeyError, KeyOrigin, KeySource, ResolvedKeys, Which};
