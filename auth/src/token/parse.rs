//! The parts of a token, before anything of it is believed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::object::Object;
use super::{Algorithm, TokenFault};

/// The longest name of a key, bytes.
pub(super) const MAX_KID: usize = 256;

/// Members of the header that say where a key comes from, or that change what the rest means. None of them is ever followed.
const REFUSED: [&str; 9] = ["crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc", "cty"];
/// What `typ` may be: nothing, or one of these, in any case, with or without `application/` before it.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// A token that has been taken apart.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) claims: Object,
    /// What the signature is of.
    pub(super) signed: &'a [u8],
    pub(super) signature: Vec<u8>,
}

/// Whether a text could be meant as a token: three parts.
pub(crate) fn looks_like_token(text: &[u8]) -> bool {
    text.iter().filter(|byte| **byte == b'.').count() == 2
}

/// Takes a token apart.
pub(super) fn parse(token: &[u8]) -> Result<Parts<'_>, TokenFault> {
    let mut dots = token.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at);
    let (first, second) = dots.next().zip(dots.next()).ok_or(TokenFault::Form)?;
    if dots.next().is_some() {
        return Err(TokenFault::Form);
    }
    let part = |range: std::ops::Range<usize>| {
        let bytes = token.get(range).ok_or(TokenFault::Form)?;
        URL_SAFE_NO_PAD.decode(bytes).map_err(|_| TokenFault::Form)
    };
    let object = |bytes: Vec<u8>| Object::parse(&bytes).ok_or(TokenFault::Form);
    let header = object(part(0..first)?)?;
    let (algorithm, kid) = read_header(&header)?;
    let claims = object(part(first + 1..second)?)?;
    let signature = part(second + 1..token.len())?;
    let signed = token.get(..second).ok_or(TokenFault::Form)?;
    Ok(Parts { algorithm, kid, claims, signed, signature })
}

fn read_header(header: &Object) -> Result<(Algorithm, Option<String>), TokenFault> {
    if REFUSED.iter().any(|name| header.get(name).is_some()) {
        return Err(TokenFault::Header);
    }
    let algorithm = header.text("alg").map_err(|()| TokenFault::Algorithm)?;
    let algorithm = algorithm.and_then(Algorithm::from_name).ok_or(TokenFault::Algorithm)?;
    if let Some(kind) = header.text("typ").map_err(|()| TokenFault::Header)? {
        let kind = kind.to_ascii_lowercase();
        let kind = kind.strip_prefix("application/").unwrap_or(&kind);
        if !TYPES.contains(&kind) {
            return Err(TokenFault::Header);
        }
    }
    let kid = header.text("kid").map_err(|()| TokenFault::Header)?;
    if kid.is_some_and(|kid| kid.len() > MAX_KID) {
        return Err(TokenFault::Header);
    }
    Ok((algorithm, kid.map(str::to_owned)))
}
