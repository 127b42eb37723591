//! `[rollout]`: how one version takes the place of another.

use std::time::Duration;

use super::getter::Getter;
use super::{Settings, key};

/// `[rollout]`.
#[derive(Clone, Debug)]
pub struct RolloutConfig {
    /// How long the version before is kept in case that the new one does worse; nothing is watched for no time.
    pub watch: Duration,
    /// Calls that must have failed before a version is given up.
    pub failures: usize,
    /// By so much the share of calls that fail must be larger than before, percent.
    pub margin: f64,
    /// Versions of one model at once.
    pub versions: usize,
}

/// From settings, each valid by itself.
pub(super) fn rollout(settings: &Settings) -> RolloutConfig {
    let get = Getter { settings };
    RolloutConfig {
        watch: get.duration(key::ROLLOUT_WATCH),
        failures: get.count(key::ROLLOUT_FAILURES),
        margin: get.number(key::ROLLOUT_MARGIN),
        versions: get.count(key::ROLLOUT_VERSIONS),
    }
}
