//! Who may do what.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use outrigger_protocol::{CallError, ErrorCode, Operation};

use crate::KeyRing;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Principal {
    /// The holder of the primary key.
    Primary,
    /// The holder of the secondary key.
    Secondary,
    /// Anybody.
    Anonymous,
}

impl Principal {
    /// The name, for labels and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
            Self::Anonymous => "anonymous",
        }
    }
}

/// Why a caller may not. The texts go to the caller and never hold what the caller sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// There is no `Authorization` header.
    #[error("a key is needed: send the header `Authorization: Bearer <key>`")]
    NoHeader,
    /// There are several `Authorization` headers.
    #[error("the header `Authorization` is there more than once")]
    SeveralHeaders,
    /// The header has another scheme than `Bearer`.
    #[error("the header `Authorization` has another form than `Bearer <key>`")]
    Scheme,
    /// The scheme is there and no key.
    #[error("the header `Authorization` has no key after `Bearer`")]
    NoKey,
    /// The key is not valid.
    #[error("the key in the header `Authorization` is not valid")]
    WrongKey,
}

impl From<AuthError> for CallError {
    fn from(error: AuthError) -> Self {
        Self::new(ErrorCode::Unauthenticated, error.to_string())
    }
}

/// Decides whether a caller may do an operation.
#[derive(Debug)]
#[non_exhaustive]
pub enum Authenticator {
    /// Everybody may do everything.
    Off,
    /// A caller needs one of these keys.
    Keys(KeyRing),
}

impl Authenticator {
    /// Says who calls, if they may do `operation` on `model`. Public operations need no key, and none is
    /// looked at.
    ///
    /// Any valid key opens every operation and model; both are asked for here so that no caller of this
    /// function can be written that does not know them.
    ///
    /// # Errors
    /// [`AuthError`] if the operation needs a key and the headers have no valid one.
    pub fn check(
        &self,
        headers: &HeaderMap,
        operation: Operation,
        model: Option<&str>,
    ) -> Result<Principal, AuthError> {
        let _ = model;
        let keys = match self {
            Self::Off => return Ok(Principal::Anonymous),
            Self::Keys(_) if operation.public() => return Ok(Principal::Anonymous),
            Self::Keys(keys) => keys,
        };
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let first = values.next();
        if values.next().is_some() {
            return Err(AuthError::SeveralHeaders);
        }
        keys.authenticate(first)
    }
}
