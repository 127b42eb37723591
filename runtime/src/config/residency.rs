//! `[residency]`: when models are loaded, and how they share the memory of devices.

use std::time::Duration;

use super::getter::Getter;
use super::key;
use super::{Mistake, Origin, Settings};

/// `[residency]`.
#[derive(Clone, Debug)]
pub struct ResidencyConfig {
    /// When models are loaded of which nothing else is said.
    pub load: LoadTime,
    /// Models at once of which files are fetched after the start.
    pub fetches: usize,
    /// Loads at once after the start.
    pub loads: usize,
    /// Bytes that models which are being loaded may take together.
    pub loading_memory: u64,
    /// Calls that may wait for loads.
    pub waiters: usize,
    /// Longest time a load waits for room.
    pub room_wait: Duration,
    /// Time after which use counts half.
    pub half_life: Duration,
    /// Time after a failed load before the next.
    pub retry: Duration,
    /// Longest such time.
    pub max_retry: Duration,
    /// How much less urgent than calls loads are to the processor.
    pub nice: u8,
    /// Events that are kept.
    pub events: usize,
}

/// When a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadTime {
    /// Before the replica is ready.
    #[default]
    Start,
    /// With the first call that needs it.
    Use,
    /// Before the replica is ready, and it never makes way.
    Pinned,
}

impl LoadTime {
    /// By their words.
    pub const WORDS: &'static [&'static str] = &["start", "use", "pinned"];

    /// What a word means.
    pub fn of(word: &str) -> Option<Self> {
        Some(match word {
            "start" => Self::Start,
            "use" => Self::Use,
            "pinned" => Self::Pinned,
            _ => return None,
        })
    }

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Use => "use",
            Self::Pinned => "pinned",
        }
    }
}

/// From settings, each valid by itself.
pub(super) fn residency(settings: &Settings, cores: usize) -> Result<ResidencyConfig, Vec<Mistake>> {
    let get = Getter { settings };
    let config = ResidencyConfig {
        load: LoadTime::of(&get.text(key::RESIDENCY_LOAD)).unwrap_or_default(),
        fetches: get.count(key::RESIDENCY_FETCHES),
        loads: get.optional_count(key::RESIDENCY_LOADS).unwrap_or((cores / 2).max(1)),
        loading_memory: get.size(key::RESIDENCY_LOADING_MEMORY) as u64,
        waiters: get.count(key::RESIDENCY_WAITERS),
        room_wait: get.duration(key::RESIDENCY_ROOM_WAIT),
        half_life: get.duration(key::RESIDENCY_HALF_LIFE),
        retry: get.duration(key::RESIDENCY_RETRY),
        max_retry: get.duration(key::RESIDENCY_MAX_RETRY),
        nice: u8::try_from(get.count(key::RESIDENCY_NICE)).unwrap_or(19),
        events: get.count(key::RESIDENCY_EVENTS),
    };
    if config.max_retry < config.retry {
        let origin = settings.keys.get(key::RESIDENCY_MAX_RETRY.name);
        let origin = origin.map_or(Origin::Default, |setting| setting.origin.clone()).to_string();
        let problem = "`residency.max_retry` is less than `residency.retry`".into();
        return Err(vec![Mistake { origin, problem }]);
    }
    Ok(config)
}
