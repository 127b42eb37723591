//! `[cache]`: answers of models that are kept for who asks the same again.

use super::Settings;
use super::getter::Getter;
use super::key;

/// `[cache]`.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Whether answers are kept of models that do not say.
    pub models: bool,
    /// Bytes of all answers that are kept, with what keeping them takes.
    pub bytes: u64,
    /// Bytes of the largest answer that is kept.
    pub answer: usize,
    /// Calls that may wait for others' runs.
    pub waiting: usize,
    /// Whether callers have their own answers alone.
    pub per_caller: bool,
}

/// From settings, each valid by itself.
pub(super) fn cache(settings: &Settings) -> CacheConfig {
    let get = Getter { settings };
    CacheConfig {
        models: get.flag(key::CACHE_MODELS),
        bytes: get.size(key::CACHE_BYTES) as u64,
        answer: get.size(key::CACHE_ANSWER),
        waiting: get.count(key::CACHE_WAITING),
        per_caller: get.flag(key::CACHE_PER_CALLER),
    }
}
