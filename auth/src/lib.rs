//! Keys, and who may do what.
//!
//! [`KeySource`] finds the service's keys when a replica starts: in its configuration, in a file, or by making them.
//! [`StoreFile`] is the file of hashes that `outrigger keys` manages; [`KeyFiles`] reads both, again and again.
//! [`KeyRing`] keeps hashes of them, never the keys, and says which of them a request came with.
//! [`Policy`] is what the request path asks: may this caller do this operation on this model, now? It is
//! never asked about a URL. Its answer is a [`Grant`], without which nothing else is to be had.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the data path never panics")]

mod caller;
mod certificate;
mod disk;
mod file;
mod files;
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
mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;
mod token;
mod used;

pub use caller::{
    BUILT_IN, CallerCounts, CallerId, CallerRules, MAX_CALLERS, ModelRules, NamedCaller, OfModel,
};
pub use certificate::{CertificateName, CertificateNameFault, MAX_NAME_CHARS, MAX_NAMES, PeerCertificate};
pub use disk::{FileStamp, PrivateFile, Surroundings, open_to_others};
pub use files::{KeyFiles, Keys, Places, Stamps};
pub use key::{KeyFault, MAX_KEY_CHARS, MIN_KEY_CHARS, check_key, generate_key};
pub use limiter::{MAX_BURST, MAX_RATE, MIN_RATE, Rate};
pub use policy::{
    AuthError, AuthMode, Credentials, Grant, Permit, Policy, PolicyConfig, Refusal, wall_clock,
};
pub use ring::{HeldKey, KeyPlace, KeyRing, doubles};
pub use secret::Secret;
pub use source::{KeyConfig, KeyError, KeyOrigin, KeySource, ResolvedKeys, Which};
pub use store::{
    EditError, KeyStore, Lifetime, MAX_STORED_KEYS, SERVICE, StoreFile, StoredKey, check_principal,
    is_caller_name,
};
pub use token::{
    Algorithm, Issued, IssuerRules, JwksError, KeySet, LocalIssuer, LocalRules, Principals, TokenFault,
    TokenLimits, Tokens, jwks_uri,
};
pub use used::{LastUsed, UsedFile};
