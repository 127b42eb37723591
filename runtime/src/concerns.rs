//! What is wrong with a replica that takes calls all the same: reasons, by the part of it that they are about.
//!
//! Parts that can be asked how they are (devices, models, the script, the upstream) are asked when somebody looks. Others say here
//! themselves that something is wrong, and that it is so no more.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// The most reasons that are kept and told.
pub(crate) const MOST: usize = 100;

/// A part of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// A device that models are on.
    Device,
    /// A model.
    Model,
    /// The entry script.
    Script,
    /// The server behind the replica.
    Upstream,
    /// Who issues the tokens of callers.
    Issuer,
    /// Where what is collected goes.
    Storage,
    /// The collector of traces and metrics.
    Telemetry,
}

impl Part {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Device,
        Self::Model,
        Self::Script,
        Self::Upstream,
        Self::Issuer,
        Self::Storage,
        Self::Telemetry,
    ];

    /// The name, for labels.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Model => "model",
            Self::Script => "script",
            Self::Upstream => "upstream",
            Self::Issuer => "issuer",
            Self::Storage => "storage",
            Self::Telemetry => "telemetry",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct Concern {
    /// With what kind of part.
    pub(crate) part: Part,
    /// Which of them.
    pub(crate) name: String,
    /// What.
    pub(crate) reason: String,
}

/// What parts have said of themselves.
#[derive(Default)]
pub(crate) struct Concerns(Mutex<BTreeMap<(Part, String), String>>);

impl Concerns {
    /// Something is wrong with a part, in place of what was before.
    pub(crate) fn raise(&self, part: Part, name: &str, reason: impl Into<String>) {
        let mut all = self.lock();
        let key = (part, name.to_owned());
        if all.len() < MOST || all.contains_key(&key) {
            all.insert(key, reason.into());
        }
    }

    /// Nothing is wrong with it any more.
    pub(crate) fn settle(&self, part: Part, name: &str) {
        self.lock().remove(&(part, name.to_owned()));
    }

    /// All that is wrong.
    pub(crate) fn all(&self) -> Vec<Concern> {
        let one = |((part, name), reason): (&(Part, String), &String)| Concern {
            part: *part,
            name: name.clone(),
            reason: reason.clone(),
        };
        self.lock().iter().map(one).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Part, String), String>> {
        // Nothing panics while the lock is held; a poisoned lock would still hold reasons.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_come_and_go_and_are_bounded() {
        let concerns = Concerns::default();
        concerns.raise(Part::Telemetry, "traces", "away");
        concerns.raise(Part::Telemetry, "traces", "refused");
        let told: Vec<_> = concerns.all().into_iter().map(|one| (one.part, one.name, one.reason)).collect();
        assert_eq!(told, [(Part::Telemetry, "traces".into(), "refused".into())]);
        (0..2 * MOST).for_each(|number| concerns.raise(Part::Issuer, &number.to_string(), "down"));
        assert_eq!(concerns.all().len(), MOST);
        concerns.settle(Part::Telemetry, "traces");
        assert!(concerns.all().iter().all(|one| one.part == Part::Issuer));
    }
}
