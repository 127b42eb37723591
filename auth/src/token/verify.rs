//! Tokens of issuers that are trusted, as requests come with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use quick_cache::sync::Cache;

use super::claims::check;
use super::jwks::KeySet;
use super::parse::{Parts, parse};
use super::{IssuerRules, LocalIssuer, TokenFault};
use crate::CallerId;
use crate::ring::KeyPrint;

/// Limits on tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenLimits {
    /// The longest token, bytes.
    pub bytes: usize,
    /// By how many seconds clocks may differ.
    pub skew: u64,
    /// Tokens that are remembered once they have been verified.
    pub remembered: usize,
}

/// Verifies tokens.
pub struct Tokens {
    issuers: Vec<Issuer>,
    limits: TokenLimits,
    /// Under a key of this process, so that nobody can choose where a token is remembered. Only tokens that hold are, so whoever pushes out
    /// others' has as many of them; what was pushed out is verified again.
    hash_key: [u8; 32],
    remembered: Cache<[u8; 32], Remembered>,
}

struct Issuer {
    rules: IssuerRules,
    keys: ArcSwapOption<KeySet>,
    /// Goes up whenever what was verified by the keys from before may not hold any more.
    generation: AtomicU64,
    /// Whether a token came that was signed by a key that is not known.
    wants_keys: AtomicBool,
    /// Called then.
    wake: Box<dyn Fn() + Send + Sync>,
    /// Where its tokens name the key that they were given for, which has to hold: the secret under which they do.
    local: Option<[u8; 32]>,
}

#[derive(Clone, Copy)]
struct Remembered {
    issuer: usize,
    generation: u64,
    until: u64,
    caller: CallerId,
}

/// Who is to tell what a token does not: whether a caller is known, and whether a key holds.
pub(crate) trait House {
    fn caller(&self, name: &str) -> Option<CallerId>;
    fn holds(&self, caller: CallerId, now: u64, is_meant: impl Fn(&KeyPrint) -> bool) -> bool;
}

impl Tokens {
    /// Takes tokens of nobody yet.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub fn new(limits: TokenLimits) -> Result<Self, getrandom::Error> {
        let mut hash_key = [0; 32];
        getrandom::fill(&mut hash_key)?;
        let remembered = Cache::new(limits.remembered);
        Ok(Self { issuers: Vec::new(), limits, hash_key, remembered })
    }

    /// Trusts an issuer, whose keys are still to come; `wake` is called when a token is signed by a key that is not among them, and is
    /// to be quick. Returns its number.
    pub fn trust(&mut self, rules: IssuerRules, wake: impl Fn() + Send + Sync + 'static) -> usize {
        self.push(rules, Box::new(wake), None)
    }

    /// Trusts the issuer of this machine, whose tokens hold as long as the keys do that they were given for.
    pub fn trust_local(&mut self, local: &LocalIssuer) -> usize {
        self.push(local.rules(), Box::new(|| {}), Some(*local.seal()))
    }

    fn push(
        &mut self,
        rules: IssuerRules,
        wake: Box<dyn Fn() + Send + Sync>,
        local: Option<[u8; 32]>,
    ) -> usize {
        self.issuers.push(Issuer {
            rules,
            keys: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            wants_keys: AtomicBool::new(false),
            wake,
            local,
        });
        self.issuers.len() - 1
    }

    /// Has other keys of an issuer hold; `false` where they are the same. Tokens that were signed by one that is gone are refused from then on.
    pub fn set_keys(&self, issuer: usize, keys: KeySet) -> bool {
        let Some(issuer) = self.issuers.get(issuer) else { return false };
        if issuer.keys.load().as_ref().is_some_and(|known| known.same_as(&keys)) {
            return false;
        }
        issuer.keys.store(Some(Arc::new(keys)));
        issuer.forget();
        true
    }

    /// Has no keys of an issuer hold any more; `false` where none did.
    pub fn forget_keys(&self, issuer: usize) -> bool {
        let Some(issuer) = self.issuers.get(issuer) else { return false };
        let held = issuer.keys.swap(None).is_some();
        if held {
            issuer.forget();
        }
        held
    }

    /// How many keys of an issuer are known.
    pub fn keys_of(&self, issuer: usize) -> usize {
        let keys = self.issuers.get(issuer).and_then(|issuer| issuer.keys.load_full());
        keys.map_or(0, |keys| keys.len())
    }

    /// Whether a token has come that was signed by a key that is not known, and none is wanted any more from here on.
    pub fn take_wish(&self, issuer: usize) -> bool {
        self.issuers.get(issuer).is_some_and(|issuer| issuer.wants_keys.swap(false, Ordering::Relaxed))
    }

    /// Has tokens of this machine be looked at again, since keys have changed.
    pub(crate) fn keys_changed(&self) {
        self.issuers.iter().filter(|issuer| issuer.local.is_some()).for_each(Issuer::forget);
    }

    /// Says who calls.
    pub(crate) fn check(&self, token: &[u8], now: u64, house: &impl House) -> Result<CallerId, TokenFault> {
        if token.len() > self.limits.bytes {
            return Err(TokenFault::TooLong);
        }
        let hash = *blake3::keyed_hash(&self.hash_key, token).as_bytes();
        if let Some(known) = self.remembered.get(&hash)
            && let Some(issuer) = self.issuers.get(known.issuer)
            && issuer.generation.load(Ordering::Acquire) == known.generation
        {
            return if now < known.until { Ok(known.caller) } else { Err(TokenFault::Expired) };
        }
        let verified = self.verify(token, now, house)?;
        self.remembered.insert(hash, verified);
        Ok(verified.caller)
    }

    fn verify(&self, token: &[u8], now: u64, house: &impl House) -> Result<Remembered, TokenFault> {
        let Parts { algorithm, kid, claims, signed, signature } = parse(token)?;
        let named = claims.text("iss").map_err(|()| TokenFault::Claims)?.ok_or(TokenFault::Issuer)?;
        let mut issuers = self.issuers.iter().enumerate();
        let (at, issuer) =
            issuers.find(|(_, known)| known.rules.issuer == named).ok_or(TokenFault::Issuer)?;
        if !issuer.rules.algorithms.contains(&algorithm) {
            return Err(TokenFault::Algorithm);
        }
        // Asked before the keys, so that others that come meanwhile are not taken for these.
        let generation = issuer.generation.load(Ordering::Acquire);
        let keys = issuer.keys.load();
        let Some(keys) = keys.as_ref() else {
            issuer.want_keys();
            return Err(TokenFault::NoKeys);
        };
        if let Err(fault) = keys.verify(algorithm, kid.as_deref(), signed, &signature) {
            if fault == TokenFault::Key {
                issuer.want_keys();
            }
            return Err(fault);
        }
        let (name, mut until) = check(&issuer.rules, &claims, now, self.limits.skew)?;
        let caller = house.caller(name).ok_or(TokenFault::Principal)?;
        if let Some(secret) = &issuer.local {
            let key = claims.text("key").ok().flatten().ok_or(TokenFault::Claims)?;
            if !house.holds(caller, now, |print| print.sealed(secret) == key) {
                return Err(TokenFault::Revoked);
            }
            // This machine has one clock.
            until = until.saturating_sub(self.limits.skew);
            if now >= until {
                return Err(TokenFault::Expired);
            }
        }
        Ok(Remembered { issuer: at, generation, until, caller })
    }
}

impl Issuer {
    fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn want_keys(&self) {
        if !self.wants_keys.swap(true, Ordering::Relaxed) {
            (self.wake)();
        }
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.issuers.iter().map(|issuer| &issuer.rules.name).collect();
        f.debug_struct("Tokens").field("issuers", &names).finish_non_exhaustive()
    }
}
