//! Who may do what: the one question that the request path asks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use outrigger_protocol::{CallError, ErrorCode, Operation, Priority};

use crate::caller::{BUILT_IN, Caller, CallerCounts, OfModel};
use crate::limiter::Denied;
use crate::ring::{KeyPrint, bearer};
use crate::token::{House, looks_like_token};
use crate::{
    CallerId, CallerRules, CertificateName, HeldKey, KeyError, KeyRing, KeyStore, Keys, NamedCaller,
    PeerCertificate, ResolvedKeys, TokenFault, Tokens,
};

/// Why a key is not taken. The texts go to the caller and never hold what the caller sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// There is no `Authorization` header.
    #[error("a key or token is needed: send the header `Authorization: Bearer <key or token>`")]
    NoHeader,
    /// There are several `Authorization` headers.
    #[error("the header `Authorization` is there more than once")]
    SeveralHeaders,
    /// The header has another scheme than `Bearer`.
    #[error("the header `Authorization` has another form than `Bearer <key or token>`")]
    Scheme,
    /// The scheme is there and no key.
    #[error("the header `Authorization` has no key or token after `Bearer`")]
    NoKey,
    /// The key is not valid.
    #[error("the key in the header `Authorization` is not valid")]
    WrongKey,
    /// There is no `Authorization` header, and the connection's certificate is nobody's.
    #[error(
        "the certificate of this connection is no caller's, so a key or token is needed: send the header `Authorization: Bearer <key or token>`"
    )]
    StrangeCertificate,
    /// The same, and the certificate is that of more than one.
    #[error("the certificate of this connection is that of more than one caller")]
    SeveralCallers,
    /// There is no `Authorization` header, and the connection's certificate has ended since it was made, or its authority is another one now.
    #[error("the certificate of this connection does not hold any more: connect anew")]
    EndedCertificate,
    /// The key was valid once. Who calls is told no more than of one that never was.
    #[error("the key in the header `Authorization` is not valid")]
    ExpiredKey,
    /// The token is not valid. Who calls is not told why.
    #[error("the token in the header `Authorization` is not valid")]
    Token(TokenFault),
}

impl AuthError {
    /// Every reason that has nothing to do with tokens; [`TokenFault::ALL`] are the others.
    const OF_KEYS: [Self; 9] = [
        Self::NoHeader,
        Self::SeveralHeaders,
        Self::Scheme,
        Self::NoKey,
        Self::WrongKey,
        Self::StrangeCertificate,
        Self::SeveralCallers,
        Self::EndedCertificate,
        Self::ExpiredKey,
    ];

    /// The reason in a word, for the log and for metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoHeader => "no_header",
            Self::SeveralHeaders => "several_headers",
            Self::Scheme => "scheme",
            Self::NoKey => "no_key",
            Self::WrongKey => "wrong_key",
            Self::StrangeCertificate => "strange_certificate",
            Self::SeveralCallers => "several_callers",
            Self::EndedCertificate => "ended_certificate",
            Self::ExpiredKey => "expired_key",
            Self::Token(fault) => fault.reason(),
        }
    }
}

/// Why a caller may not. The texts go to the caller; they say the same of a model that is there and one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Nobody knows who calls.
    #[error(transparent)]
    Unauthenticated(AuthError),
    /// The token is a good one, and its holder has no business here.
    #[error("this caller may not do this, or not with this model")]
    NotEntitled(AuthError),
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

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Token(fault) if fault.is_of_a_known() => Self::NotEntitled(error),
            _ => Self::Unauthenticated(error),
        }
    }
}

impl Refusal {
    /// Why it is not known who calls, or not as anybody who is.
    pub fn unknown(self) -> Option<AuthError> {
        match self {
            Self::Unauthenticated(error) | Self::NotEntitled(error) => Some(error),
            _ => None,
        }
    }
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
            Refusal::Forbidden | Refusal::NotEntitled(_) => (ErrorCode::Forbidden, None),
            Refusal::RateLimited(delay) => (ErrorCode::RateLimited, Some(delay)),
            // When one of its calls ends is not known here.
            Refusal::TooManyCalls => (ErrorCode::TooManyCalls, Some(Duration::from_secs(1))),
        };
        Self { code, message: refusal.to_string().into(), retry_after, devices: None }
    }
}

/// What says who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthMode {
    /// Keys.
    #[default]
    Key,
    /// Tokens. A key is good for getting one, and nothing else.
    Token,
    /// Either.
    Both,
}

/// What the configuration says of callers.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Whether no key is asked for, but for management.
    pub open: bool,
    /// What says who calls.
    pub mode: AuthMode,
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
            mode: AuthMode::Key,
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
    /// Nothing where nobody has a key. Swapped whole, so that whoever is asking has the keys from before or those after.
    keys: Option<ArcSwap<KeyRing>>,
    mode: AuthMode,
    /// Nothing where none are taken.
    tokens: Option<Arc<Tokens>>,
    certificates: HashMap<CertificateName, CallerId>,
    /// By number. They stay as they are when keys change, and with them what they were granted.
    callers: Vec<Arc<Caller>>,
    /// What times are counted from.
    since: Instant,
    /// By reason: those of keys, then those of tokens.
    refused: [AtomicU64; AuthError::OF_KEYS.len() + TokenFault::ALL.len()],
}

impl Policy {
    /// Takes the service's keys, where any are needed, and the rules. Time begins with `now`.
    ///
    /// # Errors
    /// [`KeyError`] if two callers have the same key, there are too many of them, or the operating system has no random numbers.
    pub fn new(keys: Option<&ResolvedKeys>, config: &PolicyConfig, now: Instant) -> Result<Self, KeyError> {
        let policy = Self::without_keys(config, now)?;
        match keys {
            Some(keys) => policy.keyed(Some(keys), None, config),
            None => Ok(policy),
        }
    }

    /// The same with all keys that there are.
    ///
    /// # Errors
    /// As [`Policy::new`].
    pub fn with_keys(keys: &Keys, config: &PolicyConfig, now: Instant) -> Result<Self, KeyError> {
        Self::without_keys(config, now)?.keyed(keys.service.as_ref(), keys.store.as_ref(), config)
    }

    fn without_keys(config: &PolicyConfig, now: Instant) -> Result<Self, KeyError> {
        let rules = [&config.primary, &config.secondary, &config.anonymous, &CallerRules::administrator()];
        let mut callers = Vec::new();
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
            certificates.extend(named.certificate.clone().map(|name| (name, id)));
        }
        let refused = std::array::from_fn(|_| AtomicU64::new(0));
        Ok(Self {
            open: config.open,
            keys: None,
            mode: config.mode,
            tokens: None,
            certificates,
            callers,
            since: now,
            refused,
        })
    }

    fn keyed(
        self,
        service: Option<&ResolvedKeys>,
        store: Option<&KeyStore>,
        config: &PolicyConfig,
    ) -> Result<Self, KeyError> {
        let ring = self.ring(service, store, config)?;
        Ok(Self { keys: Some(ArcSwap::from_pointee(ring)), ..self })
    }

    fn ring(
        &self,
        service: Option<&ResolvedKeys>,
        store: Option<&KeyStore>,
        config: &PolicyConfig,
    ) -> Result<KeyRing, KeyError> {
        let find = |name: &str| {
            let named = self.callers.iter().skip(BUILT_IN.len());
            named.clone().find(|caller| caller.name == name).map(|caller| caller.id)
        };
        let named = config
            .named
            .iter()
            .filter_map(|named| Some((find(&named.name)?, named.name.as_str(), named.key.as_ref()?)));
        let ring = KeyRing::of(service, store, named, find).map_err(KeyError::Random)?;
        if let Some((first, other)) = ring.double() {
            return Err(KeyError::Double { first: self.name(first), other: self.name(other) });
        }
        Ok(ring)
    }

    /// Takes other keys, of the same callers: calls that have been let in go on, and what callers have used of their rates and
    /// places stays used.
    ///
    /// # Errors
    /// As [`Policy::new`]; the keys from before stay then.
    pub fn renew(&self, keys: &Keys, config: &PolicyConfig) -> Result<(), KeyError> {
        let Some(held) = &self.keys else { return Ok(()) };
        let mut ring = self.ring(keys.service.as_ref(), keys.store.as_ref(), config)?;
        ring.inherit(&held.load());
        held.store(Arc::new(ring));
        if let Some(tokens) = &self.tokens {
            tokens.keys_changed();
        }
        Ok(())
    }

    /// The same that takes tokens, too, where its mode says so.
    #[must_use]
    pub fn with_tokens(self, tokens: Option<Arc<Tokens>>) -> Self {
        Self { tokens, ..self }
    }

    /// The key that a request comes with, whatever else is taken.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`] if there is none that holds.
    pub fn held(&self, headers: &HeaderMap) -> Result<HeldKey, Refusal> {
        let keys = self.keys.as_ref().ok_or(Refusal::Forbidden)?.load();
        let held = only(headers).and_then(bearer).and_then(|key| keys.find(key, wall_clock()));
        Ok(held.inspect_err(|error| self.count(*error))?)
    }

    /// What may be told of the keys that hold.
    pub fn keys(&self) -> Vec<HeldKey> {
        self.keys.as_ref().map(|keys| keys.load().keys().collect()).unwrap_or_default()
    }

    /// Named callers that have neither a key nor a certificate, so that they cannot come.
    pub fn keyless(&self) -> Vec<&str> {
        let Some(keys) = &self.keys else { return Vec::new() };
        let keys = keys.load();
        let named = self.callers.iter().skip(BUILT_IN.len());
        let comes = |id: CallerId| keys.has(id) || self.certificates.values().any(|other| *other == id);
        named.filter(|caller| !comes(caller.id)).map(|caller| caller.name.as_str()).collect()
    }

    /// Whether a caller is known by this name.
    pub fn knows(&self, name: &str) -> bool {
        self.callers.iter().any(|caller| caller.name == name)
    }

    /// How many requests were refused because nobody knows who calls, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.refused.iter().map(|count| count.load(Ordering::Relaxed));
        let of_keys = AuthError::OF_KEYS.iter().map(|error| error.reason());
        of_keys.chain(TokenFault::ALL.iter().map(|fault| fault.reason())).zip(counts)
    }

    fn name(&self, id: CallerId) -> String {
        self.callers.get(id.index()).map(|caller| caller.name.clone()).unwrap_or_default()
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
        self.ask_telling(credentials, operation, model, now, |_| {})
    }

    /// The same, and tells who it is as soon as that is known, also where the answer is no.
    ///
    /// # Errors
    /// As [`Policy::ask`].
    pub fn ask_telling<'m, 'c>(
        &self,
        credentials: impl Into<Credentials<'c>>,
        operation: Operation,
        model: impl Into<OfModel<'m>>,
        now: Instant,
        tell: impl FnOnce(&str),
    ) -> Result<Grant, Refusal> {
        let caller = self.caller(self.who(credentials.into(), operation)?)?;
        tell(&caller.name);
        if operation.public() {
            return Ok(Grant { caller, operation, permit: None });
        }
        let now = now.saturating_duration_since(self.since).as_nanos();
        let taken = caller.ask(operation, model.into(), u64::try_from(now).unwrap_or(u64::MAX))?;
        let permit = taken.then(|| Permit(Arc::new(Place(Arc::clone(&caller)))));
        Ok(Grant { caller, operation, permit })
    }

    /// Says whether the caller may do `operation` on any model at all, for those who have to read what it sends before they know of which
    /// it is asked. Nothing is taken and nothing granted: [`Policy::ask`] follows. Tells who it is as [`Policy::ask_telling`] does.
    ///
    /// # Errors
    /// [`Refusal`]: who calls is not known, or may not.
    pub fn check<'c>(
        &self,
        credentials: impl Into<Credentials<'c>>,
        operation: Operation,
        tell: impl FnOnce(&str),
    ) -> Result<(), Refusal> {
        let caller = self.caller(self.who(credentials.into(), operation)?)?;
        tell(&caller.name);
        caller.check(operation)
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
        if self.keys.is_none() && self.tokens.is_none() {
            // Nobody has a key where none was asked for at start.
            return Err(Refusal::Forbidden);
        }
        let caller = match (only(credentials.headers), credentials.certificate) {
            (Ok(None), Some(certificate)) => self.by_certificate(certificate),
            (value, _) => value.and_then(bearer).and_then(|sent| self.sent_by(sent, operation)),
        };
        Ok(caller.inspect_err(|error| self.count(*error))?)
    }

    /// Whose certificate it is.
    fn by_certificate(&self, certificate: &PeerCertificate) -> Result<CallerId, AuthError> {
        if !certificate.holds(wall_clock()) {
            return Err(AuthError::EndedCertificate);
        }
        let mut callers = certificate.names().iter().filter_map(|name| self.certificates.get(name));
        let first = *callers.next().ok_or(AuthError::StrangeCertificate)?;
        if callers.any(|other| *other != first) { Err(AuthError::SeveralCallers) } else { Ok(first) }
    }

    /// Who has sent a key or token.
    fn sent_by(&self, sent: &[u8], operation: Operation) -> Result<CallerId, AuthError> {
        let now = wall_clock();
        let tokens =
            self.tokens.as_ref().filter(|_| self.mode != AuthMode::Key && operation != Operation::Token);
        let keys =
            self.keys.as_ref().filter(|_| self.mode != AuthMode::Token || operation == Operation::Token);
        // One that is short enough may be a key with two points in it.
        let as_key = keys.map(|keys| keys.load().check(sent, now)).unwrap_or(Err(AuthError::WrongKey));
        match (as_key, tokens) {
            (Err(AuthError::WrongKey), Some(tokens)) if keys.is_none() || looks_like_token(sent) => {
                tokens.check(sent, now, self).map_err(AuthError::Token)
            }
            (as_key, _) => as_key,
        }
    }

    fn count(&self, error: AuthError) {
        let of_keys = AuthError::OF_KEYS.len();
        let at = match error {
            AuthError::Token(fault) => {
                TokenFault::ALL.iter().position(|known| *known == fault).map(|at| of_keys + at)
            }
            _ => AuthError::OF_KEYS.iter().position(|known| *known == error),
        };
        if let Some(count) = at.and_then(|at| self.refused.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn caller(&self, id: CallerId) -> Result<Arc<Caller>, Refusal> {
        self.callers.get(id.index()).cloned().ok_or(Refusal::Forbidden)
    }
}

impl House for Policy {
    fn caller(&self, name: &str) -> Option<CallerId> {
        // Nobody is anonymous or local by a token.
        let is_one = |caller: &&Arc<Caller>| {
            caller.name == name && caller.id != CallerId::ANONYMOUS && caller.id != CallerId::LOCAL
        };
        self.callers.iter().find(is_one).map(|caller| caller.id)
    }

    fn holds(&self, caller: CallerId, now: u64, is_meant: impl Fn(&KeyPrint) -> bool) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.load().holds(caller, now, is_meant))
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy").field("open", &self.open).field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// The only header that says who calls.
fn only(headers: &HeaderMap) -> Result<Option<&HeaderValue>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let first = values.next();
    if values.next().is_some() { Err(AuthError::SeveralHeaders) } else { Ok(first) }
}

/// Seconds since 1970. Keys end at a date, so what the clock says now is what counts, be it that it has been set.
pub fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
