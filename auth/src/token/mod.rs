//! Tokens: who calls, as an issuer says that is trusted.
//!
//! [`Tokens`] verifies them against keys that somebody fetches for it ([`Tokens::set_keys`]); it never asks anybody itself, so that a
//! request depends on no issuer being up. [`LocalIssuer`] makes tokens for one machine.
//!
//! They are verified here, by `aws-lc-rs`, and not by a crate for JWT: what is needed is three algorithms and a header of three members,
//! and every member that says where a key comes from (`jku`, `jwk`, `x5u`, `x5c`) or that more has to be understood (`crit`) is a reason to refuse. What
//! reads them can then be read in one sitting, and fuzzed.

mod claims;
mod issue;
mod jwks;
mod object;
mod parse;
#[cfg(test)]
mod tests;
mod verify;

pub use claims::{IssuerRules, Principals};
pub use issue::{Issued, LocalIssuer, LocalRules};
pub use jwks::{JwksError, KeySet, jwks_uri};
pub(crate) use parse::looks_like_token;
pub(crate) use verify::House;
pub use verify::{TokenLimits, Tokens};

/// How a token is signed. There are no others: none with a shared secret, and none without a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA, PKCS #1 v1.5, SHA-256.
    Rs256,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// By its name in tokens.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    /// Its name in tokens.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $fault:ident = $reason:literal;)+) => {
        /// Why a token does not say who calls. Who calls is told none of this.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum TokenFault {
            $($(#[doc = $doc])+ $fault,)+
        }

        impl TokenFault {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$fault,)+];

            /// The reason in a word, for the log and for metrics.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$fault => $reason,)+ }
            }
        }
    };
}

faults! {
    /// It is no token: three parts in base64url, of which two are JSON objects that name nothing twice.
    Form = "token_form";
    /// It is longer than any that is taken.
    TooLong = "token_too_long";
    /// It is signed in a way that is not taken, or not at all.
    Algorithm = "token_algorithm";
    /// Its header says where the key is that it is to be verified by, or asks for more to be understood.
    Header = "token_header";
    /// It is of an issuer that is not known.
    Issuer = "token_issuer";
    /// The issuer's keys are not known yet.
    NoKeys = "token_no_keys";
    /// It is signed by a key that the issuer does not have, as far as is known.
    Key = "token_key";
    /// The signature is not that of the key.
    Signature = "token_signature";
    /// It is for somebody else.
    Audience = "token_audience";
    /// It has ended.
    Expired = "token_expired";
    /// It does not hold yet.
    NotYet = "token_not_yet";
    /// A member that is looked at has another form, or is missing.
    Claims = "token_claims";
    /// It was given for a key that does not hold any more.
    Revoked = "token_revoked";
    /// It has not all of the scopes and roles that are asked for.
    Scope = "token_scope";
    /// It says who calls, and that is nobody who is known.
    Principal = "token_principal";
}

impl TokenFault {
    /// Whether the token is a good one, and its holder has no business here.
    pub const fn is_of_a_known(self) -> bool {
        matches!(self, Self::Scope | Self::Principal)
    }
}
