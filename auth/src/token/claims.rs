//! What a token says once its signature has been held against a key, and what is asked of it.

use std::collections::BTreeMap;

use super::object::Object;
use super::{Algorithm, TokenFault};
use crate::BUILT_IN;

/// What is asked of the tokens of an issuer.
#[derive(Clone, Debug)]
pub struct IssuerRules {
    /// What the configuration calls it.
    pub name: String,
    /// What it calls itself, to the letter.
    pub issuer: String,
    /// For whom its tokens may be: one of these.
    pub audiences: Vec<String>,
    /// How they may be signed.
    pub algorithms: Vec<Algorithm>,
    /// The scopes that a token must have, all of them.
    pub scopes: Vec<String>,
    /// The roles, too.
    pub roles: Vec<String>,
    /// The member that says who calls.
    pub claim: String,
    /// Which caller that is.
    pub principals: Principals,
}

/// Which caller a principal is.
#[derive(Clone, Debug, Default)]
pub struct Principals {
    /// By what the claim says.
    pub by_value: BTreeMap<String, String>,
    /// All others; where there is neither, the caller of the name that the claim has.
    pub others: Option<String>,
    /// Whether a claim may be the name of a caller that is always there. Of an issuer elsewhere it may not: whoever is called `primary` there
    /// is no administrator here, unless somebody has said so.
    pub built_in: bool,
}

impl Principals {
    /// Whether some claim is this caller's.
    pub fn may_be(&self, caller: &str) -> bool {
        let by_name = self.by_value.is_empty() && self.others.is_none();
        self.by_value.values().chain(&self.others).any(|known| known == caller)
            || (by_name && (self.built_in || !BUILT_IN.contains(&caller)))
    }

    /// The caller's name; nothing where it is nobody who is known.
    fn caller<'a>(&'a self, value: &'a str) -> Option<&'a str> {
        match (self.by_value.get(value), &self.others) {
            (Some(caller), _) => Some(caller),
            (None, Some(others)) => Some(others),
            (None, None) if !self.built_in && BUILT_IN.contains(&value) => None,
            (None, None) => self.by_value.is_empty().then_some(value),
        }
    }
}

/// Holds the claims against the rules. Gives the caller's name, and until when the token holds, in seconds since 1970, clocks that differ
/// counted in.
pub(super) fn check<'a>(
    rules: &'a IssuerRules,
    claims: &'a Object,
    now: u64,
    skew: u64,
) -> Result<(&'a str, u64), TokenFault> {
    let malformed = |()| TokenFault::Claims;
    let audiences = match claims.get("aud") {
        // One is not split at its spaces.
        Some(serde_json::Value::String(one)) => vec![one.as_str()],
        _ => claims.words("aud").map_err(malformed)?,
    };
    if !audiences.iter().any(|audience| rules.audiences.iter().any(|known| known == audience)) {
        return Err(TokenFault::Audience);
    }
    let expires = claims.time("exp").map_err(malformed)?.ok_or(TokenFault::Claims)?;
    let until = expires.saturating_add(skew);
    if now >= until {
        return Err(TokenFault::Expired);
    }
    let begins = claims.time("nbf").map_err(malformed)?.max(claims.time("iat").map_err(malformed)?);
    if begins.is_some_and(|begins| begins > now.saturating_add(skew)) {
        return Err(TokenFault::NotYet);
    }
    let mut scopes = claims.words("scope").map_err(malformed)?;
    // As Microsoft's identity platform calls them.
    scopes.extend(claims.words("scp").map_err(malformed)?);
    let roles = claims.words("roles").map_err(malformed)?;
    let lacks = |wanted: &[String], has: &[&str]| !wanted.iter().all(|word| has.contains(&word.as_str()));
    if lacks(&rules.scopes, &scopes) || lacks(&rules.roles, &roles) {
        return Err(TokenFault::Scope);
    }
    let principal = claims.text(&rules.claim).map_err(malformed)?.ok_or(TokenFault::Claims)?;
    let caller = rules.principals.caller(principal).ok_or(TokenFault::Principal)?;
    Ok((caller, until))
}
