//! What is asked, as a hash: equal questions have equal ones, and others never.

use std::sync::atomic::{AtomicU64, Ordering};

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue};
use outrigger_protocol::call::InferCall;

use crate::apart::apart;

/// What an answer of a loaded model depends on beside its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity([u8; 32]);

impl Identity {
    /// Of a model whose files are known by their digest.
    pub(crate) fn of_files(name: &str, digest: &[u8; 32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("outrigger response cache: model by its files");
        text(&mut hasher, name);
        hasher.update(digest);
        Self(*hasher.finalize().as_bytes())
    }

    /// Of files for which nobody vouches: they may be others when the model is loaded the next time.
    pub(crate) fn of_this_load() -> Self {
        static LOADS: AtomicU64 = AtomicU64::new(0);
        let mut hasher = blake3::Hasher::new_derive_key("outrigger response cache: model by its load");
        hasher.update(&LOADS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// Of the same after its device was lost so many times, when files may have been read anew.
    pub(crate) fn after(self, losses: u64) -> Self {
        if losses == 0 {
            return self;
        }
        let mut hasher = blake3::Hasher::new_derive_key("outrigger response cache: model after losses");
        hasher.update(&self.0);
        hasher.update(&losses.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// Of a model that runs by others: these, run by run.
    pub(crate) fn with(self, others: impl Iterator<Item = Self>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("outrigger response cache: model with others");
        hasher.update(&self.0);
        others.for_each(|other| {
            hasher.update(&other.0);
        });
        Self(*hasher.finalize().as_bytes())
    }
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// That of a call. Every part is hashed with its length, so that no two calls are the same bytes.
    pub(super) fn of(
        secret: &[u8; 32],
        identity: &Identity,
        caller: Option<usize>,
        call: &InferCall,
    ) -> Self {
        let bytes = call.inputs.iter().map(|input| input.data().len()).fold(0, usize::saturating_add);
        apart(bytes, || Self::hashed(secret, identity, caller, call))
    }

    fn hashed(secret: &[u8; 32], identity: &Identity, caller: Option<usize>, call: &InferCall) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(&identity.0);
        number(&mut hasher, caller.map_or(0, |caller| caller + 1));
        number(&mut hasher, call.outputs.len());
        call.outputs.iter().for_each(|wanted| number(&mut hasher, wanted.index));
        number(&mut hasher, call.inputs.len());
        for input in &call.inputs {
            text(&mut hasher, input.data_type().name());
            let extents = input.shape().extents();
            number(&mut hasher, extents.len());
            extents.iter().for_each(|extent| {
                hasher.update(&extent.to_le_bytes());
            });
            number(&mut hasher, input.data().len());
            hasher.update(input.data());
        }
        Self(*hasher.finalize().as_bytes())
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn number(hasher: &mut blake3::Hasher, number: usize) {
    hasher.update(&(number as u64).to_le_bytes());
}

fn text(hasher: &mut blake3::Hasher, text: &str) {
    number(hasher, text.len());
    hasher.update(text.as_bytes());
}

/// What a request says of answers that are kept: its `Cache-Control`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Nothing: it is given one, and its own is kept.
    #[default]
    Both,
    /// `no-cache`: it is run, and its answer is kept in the place of what was.
    KeepOnly,
    /// `no-store`: it is run, and leaves no trace.
    Neither,
}

impl Reuse {
    /// What these headers ask for; directives that mean nothing here are passed over, as in HTTP.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(CACHE_CONTROL).iter().map(HeaderValue::as_bytes);
        let mut reuse = Self::Both;
        for directive in values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii) {
            if directive.eq_ignore_ascii_case(b"no-store") {
                return Self::Neither;
            }
            if directive.eq_ignore_ascii_case(b"no-cache") {
                reuse = Self::KeepOnly;
            }
        }
        reuse
    }
}
