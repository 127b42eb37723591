//! Who may do what: the one question that the request path asks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use outrigger_protocol::{CallError, ErrorCode, Operation, Priority};

use crate::caller::{BUILT_IN, Caller, CallerCounts, OfModel};
use crate::limiter::Denied;
use crate::{
    CallerId, CallerRules, CertificateName, KeyError, KeyRing, NamedCaller, PeerCertificate, ResolvedKeys,
};

/// Why a key is not taken. The texts go to the caller and never hold what the caller sent.
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
    /// There is no `Authorization` header, and the connection's certificate is nobody's.
    #[error(
        "the certificate of this connection is no caller's, so a key is needed: send the header `Authorization: Bearer <key>`"
    )]
    StrangeCertificate,
    /// The same, and the certificate is that of more than one.
    #[error("the certificate of this connection is that of more than one caller")]
    SeveralCallers,
}

/// Why a caller may not. The texts go to the caller; they say the same of a model that is there and one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Nobody knows who calls.
    #[error(transparent)]
    Unauthenticated(#[from] AuthError),
    /// The caller may not do this operation, or not on this model.
    #[error("this caller may not do this, or not with this model")]
    Forbidden,
    /// The caller has made as many calls as its rate allows; the next one may come after this time.
    #[error("this caller has made as many calls as its rate allows")]
    RateLimited(Duration),
    /// The caller has as many calls in the house as it may have.
    #[error("this caller has as many calls at once as it may have")]
    TooManyCalls,
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Rate(delay) => Self::RateLimited(delay),
            Denied::Concurrency => Self::TooManyCalls,
        }
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        let (code, retry_after) = match refusal {
            Refusal::Unauthenticated(_) => (ErrorCode::Unauthenticated, None),
            Refusal::Forbidden => (ErrorCode::Forbidden, None),
            Refusal::RateLimited(delay) => (ErrorCode::RateLimited, Some(delay)),
            // When one of its calls ends is not known here.
            Refusal::TooManyCalls => (ErrorCode::TooManyCalls, Some(Duration::from_secs(1))),
        };
        Self { code, message: refusal.to_string().into(), retry_after, devices: None }
    }
}

/// What the configuration says of callers.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Whether no key is asked for, but for management.
    pub open: bool,
    /// Rules for the holder of the primary key.
    pub primary: CallerRules,
    /// Rules for the holder of the secondary key.
    pub secondary: CallerRules,
    /// Rules for those without a key, where none is asked for.
    pub anonymous: CallerRules,
    /// Further callers, [`crate::MAX_CALLERS`] at most.
    pub named: Vec<NamedCaller>,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            open: false,
            primary: CallerRules::administrator(),
            secondary: CallerRules::administrator(),
            anonymous: CallerRules::default(),
            named: Vec::new(),
        }
    }
}

/// What says who calls.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The certificate of its connection, where one was shown and verified. A key in the headers goes before it.
    pub certificate: Option<&'a PeerCertificate>,
}

impl<'a> From<&'a HeaderMap> for Credentials<'a> {
    fn from(headers: &'a HeaderMap) -> Self {
        Self { headers, certificate: None }
    }
}

/// Decides who may do what.
pub struct Policy {
    open: bool,
    keys: Option<KeyRing>,
    certificates: HashMap<CertificateName, CallerId>,
    /// By number.
    callers: Vec<Arc<Caller>>,
    /// What times are counted from.
    since: Instant,
}

impl Policy {
    /// Takes the service's keys, where any are needed, and the rules. Time begins with `now`.
    ///
    /// # Errors
    /// [`KeyError`] if two callers have the same key, there are too many of them, or the operating system has no random numbers.
    pub fn new(keys: Option<&ResolvedKeys>, config: &PolicyConfig, now: Instant) -> Result<Self, KeyError> {
        let rules = [&config.primary, &config.secondary, &config.anonymous, &CallerRules::administrator()];
        let mut callers = Vec::new();
        let mut named_keys = Vec::new();
        let mut add = |name: &str, rules: &CallerRules| {
            let id = CallerId::new(callers.len()).ok_or(KeyError::TooManyCallers)?;
            callers.push(Arc::new(Caller::new(id, name, rules.clone())));
            Ok(id)
        };
        for (name, rules) in BUILT_IN.into_iter().zip(rules) {
            add(name, rules)?;
        }
        let mut certificates = HashMap::new();
        for named in &config.named {
            let id = add(&named.name, &named.rules)?;
            named_keys.extend(named.key.as_ref().map(|key| (id, key)));
            certificates.extend(named.certificate.clone().map(|name| (name, id)));
        }
        let keys = keys.map(|keys| KeyRing::new(keys, named_keys)).transpose().map_err(KeyError::Random)?;
        if let Some((first, other)) = keys.as_ref().and_then(KeyRing::double) {
            let name =
                |id: CallerId| callers.get(id.index()).map(|caller| caller.name.clone()).unwrap_or_default();
            return Err(KeyError::Double { first: name(first), other: name(other) });
        }
        Ok(Self { open: config.open, keys, certificates, callers, since: now })
    }

    /// Says whether the caller may do `operation`, on `model` where it is asked of one, and if so, as whom. Public operations
    /// need no key, and none is looked at. Asked before the body is read and before the call waits for anything.
    ///
    /// # Errors
    /// [`Refusal`], in this order: who calls is not known, may not, comes too often, has too many calls at once.
    pub fn ask<'m, 'c>(
        &self,
        credentials: impl Into<Credentials<'c>>,
        operation: Operation,
        model: impl Into<OfModel<'m>>,
        now: Instant,
    ) -> Result<Grant, Refusal> {
        let caller = self.caller(self.who(credentials.into(), operation)?)?;
        if operation.public() {
            return Ok(Grant { caller, operation, permit: None });
        }
        let now = now.saturating_duration_since(self.since).as_nanos();
        let taken = caller.ask(operation, model.into(), u64::try_from(now).unwrap_or(u64::MAX))?;
        let permit = taken.then(|| Permit(Arc::new(Place(Arc::clone(&caller)))));
        Ok(Grant { caller, operation, permit })
    }

    /// Says whether the caller may do `operation` on any model at all, for those who have to read what it sends before they know of which
    /// it is asked. Nothing is taken and nothing granted: [`Policy::ask`] follows.
    ///
    /// # Errors
    /// [`Refusal`]: who calls is not known, or may not.
    pub fn check<'c>(
        &self,
        credentials: impl Into<Credentials<'c>>,
        operation: Operation,
    ) -> Result<(), Refusal> {
        self.caller(self.who(credentials.into(), operation)?)?.check(operation)
    }

    /// The grant of one who has come through the admin socket, who is the replica's own user.
    ///
    /// # Errors
    /// [`Refusal::Forbidden`] for work, which has listeners of its own.
    pub fn local(&self, operation: Operation) -> Result<Grant, Refusal> {
        if operation.work() {
            return Err(Refusal::Forbidden);
        }
        let caller = self.caller(CallerId::LOCAL)?;
        Ok(Grant { caller, operation, permit: None })
    }

    /// Every caller that can come, with what it was answered so far.
    pub fn callers(&self) -> impl Iterator<Item = (&str, CallerCounts)> {
        self.callers.iter().map(|caller| (caller.name.as_str(), caller.counts()))
    }

    fn who(&self, credentials: Credentials<'_>, operation: Operation) -> Result<CallerId, Refusal> {
        if operation.public() || (self.open && !operation.administrative()) {
            return Ok(CallerId::ANONYMOUS);
        }
        // Nobody has a key where none was asked for at start.
        let keys = self.keys.as_ref().ok_or(Refusal::Forbidden)?;
        let mut values = credentials.headers.get_all(AUTHORIZATION).iter();
        let first = values.next();
        if values.next().is_some() {
            return Err(AuthError::SeveralHeaders.into());
        }
        match (first, credentials.certificate) {
            (None, Some(certificate)) => Ok(self.by_certificate(certificate)?),
            _ => Ok(keys.authenticate(first)?),
        }
    }

    /// Whose certificate it is.
    fn by_certificate(&self, certificate: &PeerCertificate) -> Result<CallerId, AuthError> {
        let mut callers = certificate.names().iter().filter_map(|name| self.certificates.get(name));
        let first = *callers.next().ok_or(AuthError::StrangeCertificate)?;
        if callers.any(|other| *other != first) { Err(AuthError::SeveralCallers) } else { Ok(first) }
    }

    fn caller(&self, id: CallerId) -> Result<Arc<Caller>, Refusal> {
        self.callers.get(id.index()).cloned().ok_or(Refusal::Forbidden)
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy").field("open", &self.open).field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// That a caller may do an operation. Only [`Policy`] makes one, so whoever has it has asked.
pub struct Grant {
    caller: Arc<Caller>,
    operation: Operation,
    permit: Option<Permit>,
}

impl Grant {
    /// Who calls.
    pub fn caller(&self) -> CallerId {
        self.caller.id
    }

    /// Who calls, by name: one of the configuration's, or of those that are always there.
    pub fn name(&self) -> &str {
        &self.caller.name
    }

    /// What was asked for.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The priority of the call: what the caller asks for, but no more urgent than it may be; what it may be where it asks for nothing.
    pub fn priority(&self, asked: Option<Priority>) -> Priority {
        let most = self.caller.rules.priority;
        asked.map_or(most, |asked| asked.max(most))
    }

    /// Whether the caller may use a model, for those who find out late which one is meant.
    ///
    /// # Errors
    /// [`Refusal::Forbidden`].
    pub fn allow_model(&self, model: &str) -> Result<(), Refusal> {
        if self.caller.allows_model(model) { Ok(()) } else { Err(Refusal::Forbidden) }
    }

    /// What keeps the caller's place, where its places are counted: held until the answer is complete, and for as long as a
    /// lane is at the call.
    pub fn permit(&self) -> Option<Permit> {
        self.permit.clone()
    }
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant").field("caller", &self.name()).field("operation", &self.operation).finish()
    }
}

/// A place among a caller's calls; free again once the grant and all its permits are dropped.
#[derive(Clone)]
pub struct Permit(Arc<Place>);

struct Place(Arc<Caller>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Permit({})", self.0.0.name)
    }
}
