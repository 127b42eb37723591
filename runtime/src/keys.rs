//! Keys while the replica runs: their files are looked at now and then, off the way of requests, and what has changed there holds from then on.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use outrigger_auth::{
    AuthMode, HeldKey, KeyError, Keys, LastUsed, Places, Policy, PolicyConfig, SERVICE, Stamps, Tokens,
    UsedFile, wall_clock,
};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::AuthConfig;
use crate::families::{Families, Row};
use crate::metrics::{counter, gauge};
use crate::with_causes;

/// Keeps the keys of a policy what their files say.
pub(crate) struct KeyKeeper {
    config: AuthConfig,
    callers: PolicyConfig,
    policy: Arc<Policy>,
    used: UsedFile,
    /// Why the files as they are do not hold.
    broken: Mutex<Option<String>>,
    reloaded: AtomicU64,
    failed: AtomicU64,
}

/// What it knows from the last time.
pub(crate) struct Seen {
    places: Places,
    stamps: Stamps,
    /// Whether keys were made at the start, so that a file which has changed since it was looked at is no news.
    made: bool,
    /// What has been written down of when keys were used, and when that was.
    noted: LastUsed,
    noted_at: Instant,
    /// Of which keys it has been said that their end is near.
    told: BTreeSet<String>,
    /// Whether it has been said that nothing can be written down.
    unwritable: bool,
}

impl KeyKeeper {
    /// Reads the keys, or makes them, and has a policy of them. The keys themselves are given back, and not kept.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn start(
        config: &AuthConfig,
        callers: &PolicyConfig,
        tokens: Option<Arc<Tokens>>,
        now: Instant,
    ) -> Result<(Arc<Self>, Seen, Keys), KeyError> {
        let stamps = config.keys.stamps();
        let keys = config.keys.start()?;
        let policy = Arc::new(Policy::with_keys(&keys, callers, now)?.with_tokens(tokens));
        for (file, mode) in config.keys.open_to_others() {
            warn_of_others("auth", &file, mode);
        }
        let used = UsedFile::beside(config.keys.store.path());
        let keeper = Self {
            config: config.clone(),
            callers: callers.clone(),
            policy,
            used,
            broken: Mutex::default(),
            reloaded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        keeper.say_strangers(&keys);
        let seen = Seen {
            places: Places::from(&keys),
            stamps,
            made: keys.is_made(),
            noted: LastUsed::new(),
            noted_at: now,
            told: BTreeSet::new(),
            unwritable: false,
        };
        Ok((Arc::new(keeper), seen, keys))
    }

    pub(crate) fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Goes on until it is told to stop.
    pub(crate) async fn keep(self: Arc<Self>, mut seen: Seen, stop: CancellationToken) {
        loop {
            let last = tokio::select! {
                () = tokio::time::sleep(self.config.poll) => false,
                () = stop.cancelled() => true,
            };
            let keeper = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                keeper.look(&mut seen);
                if last || seen.noted_at.elapsed() >= keeper.config.note {
                    keeper.note(&mut seen);
                }
                seen
            });
            match looked.await {
                Ok(back) if !last => seen = back,
                Ok(_) => return,
                Err(error) => {
                    tracing::error!(%error, "keys are not looked after any more: start the replica again");
                    self.set_broken(Some(error.to_string()));
                    return;
                }
            }
        }
    }

    fn look(&self, seen: &mut Seen) {
        let stamps = self.config.keys.stamps();
        if stamps != seen.stamps {
            match self.renewed(seen.places) {
                Ok(keys) => {
                    seen.stamps = stamps;
                    self.set_broken(None);
                    if !std::mem::take(&mut seen.made) {
                        self.reloaded.fetch_add(1, Ordering::Relaxed);
                        tracing::info!(keys = self.policy.keys().len(), "keys have changed");
                        self.say_strangers(&keys);
                    }
                    seen.places = Places::from(&keys);
                }
                Err(error) => {
                    // What a file says is looked at again when it has changed; that one could not be read, each time: a key that was revoked must not
                    // hold on because of a moment without descriptors.
                    let passes =
                        matches!(error, KeyError::Read { .. } | KeyError::Random(_) | KeyError::Gone { .. });
                    if !passes {
                        seen.stamps = stamps;
                    }
                    let problem = with_causes(&error);
                    if self.set_broken(Some(problem.clone())) {
                        self.failed.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(
                            problem,
                            "keys have changed and cannot be taken: those from before hold on"
                        );
                    }
                }
            }
        }
        self.say_ends(seen);
    }

    fn renewed(&self, before: Places) -> Result<Keys, KeyError> {
        let keys = self.config.keys.again(before)?;
        self.policy.renew(&keys, &self.callers)?;
        Ok(keys)
    }

    /// Whether that is another problem than before.
    fn set_broken(&self, problem: Option<String>) -> bool {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *broken != problem;
        *broken = problem;
        is_new
    }

    /// Whose keys are for callers that are not here, and which callers have no key.
    fn say_strangers(&self, keys: &Keys) {
        let stored = keys.store.iter().flat_map(|store| store.keys());
        let strangers: BTreeSet<_> = stored
            .map(|key| key.principal.as_str())
            .filter(|name| *name != SERVICE && !self.policy.knows(name))
            .collect();
        if !strangers.is_empty() {
            tracing::warn!(
                ?strangers,
                "the key store has keys of callers that the configuration does not name"
            );
        }
        let keyless = self.policy.keyless();
        // Where tokens are taken a caller may have none on purpose.
        if !keyless.is_empty() && self.callers.mode == AuthMode::Key {
            tracing::warn!(
                ?keyless,
                "callers have no key and cannot come: `outrigger keys add NAME` makes one"
            );
        }
    }

    fn say_ends(&self, seen: &mut Seen) {
        let now = wall_clock();
        let keys = self.policy.keys();
        for key in &keys {
            let Some(expires) = key.expires.filter(|_| self.state(key, now) != State::Valid) else {
                continue;
            };
            if seen.told.insert(key.id.clone()) {
                let left = expires.saturating_sub(now);
                tracing::warn!(key = key.id, principal = key.principal, which = %key.which, left_seconds = left, "a key ends");
            }
        }
        seen.told.retain(|id| keys.iter().any(|key| key.id == *id));
    }

    /// Writes down when keys were used, if they were.
    fn note(&self, seen: &mut Seen) {
        seen.noted_at = Instant::now();
        let used: LastUsed =
            self.policy.keys().into_iter().filter_map(|key| Some((key.id, key.used?))).collect();
        if used == seen.noted {
            return;
        }
        match self.used.merge(&used) {
            Ok(()) => seen.noted = used,
            Err(error) if !seen.unwritable => {
                seen.unwritable = true;
                let problem = with_causes(&error);
                tracing::warn!(
                    problem,
                    "when keys were last used is known only as long as this replica runs"
                );
            }
            Err(_) => {}
        }
    }

    fn state(&self, key: &HeldKey, now: u64) -> State {
        match key.expires.map(|expires| expires.saturating_sub(now)) {
            Some(0) => State::Expired,
            Some(left) if left <= self.config.notice.as_secs() => State::Ending,
            _ => State::Valid,
        }
    }

    /// The keys, and how their files are, for who manages them.
    pub(crate) fn report(&self) -> KeyReport {
        let earlier = self.used.read();
        let keys = self.policy.keys().into_iter().map(|key| KeyStatus {
            last_used: key.used.max(earlier.get(&key.id).copied()),
            id: key.id,
            principal: key.principal,
            which: key.which.as_str(),
            place: key.place.as_str(),
            made: key.made,
            expires: key.expires,
        });
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        KeyReport { keys: keys.collect(), broken }
    }
}

/// Says of a file of secrets that everybody in this container can have it.
pub(crate) fn warn_of_others(of: &str, file: &Path, mode: u32) {
    let (file, mode) = (file.display(), format!("{mode:04o}"));
    tracing::warn!(
        of,
        %file,
        mode,
        "every process in this container can read or change a file of secrets; `defaultMode: 0440` of the volume, with `fsGroup`, would keep it to the group"
    );
}

/// How a key is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Valid,
    Ending,
    Expired,
}

/// The keys that hold.
#[derive(Default, Serialize, schemars::JsonSchema)]
pub(crate) struct KeyReport {
    keys: Vec<KeyStatus>,
    /// Why the files as they are now do not hold, so that the keys from before do; nothing where they do.
    broken: Option<String>,
}

/// What may be told of a key.
#[derive(Serialize, schemars::JsonSchema)]
struct KeyStatus {
    /// What it is called where it is not shown.
    id: String,
    /// Whose it is: `service`, or a caller's name.
    principal: String,
    /// `primary` or `secondary`.
    which: &'static str,
    /// Where it is kept: `store`, `file` or `configuration`.
    place: &'static str,
    /// When it was made, in seconds since 1970; nothing where that is not known.
    made: Option<u64>,
    /// From when on it does not hold any more, in seconds since 1970; nothing for never.
    expires: Option<u64>,
    /// When a request last came with it, in seconds since 1970; nothing where that is not known.
    last_used: Option<u64>,
}

/// Shows keys by how they are, and who was not let in.
pub(crate) struct KeyCollector {
    policy: Arc<Policy>,
    keeper: Option<Arc<KeyKeeper>>,
    families: Families<5>,
}

static METRICS: [Row; 5] = [
    Row {
        name: "outrigger_auth_refusals_total",
        help: "Requests that were refused as nobody knows who calls",
        kind: MetricType::COUNTER,
        labels: &["reason"],
    },
    Row {
        name: "outrigger_keys",
        help: "Keys by whether they hold; ending: their end is nearer than auth.key_notice",
        kind: MetricType::GAUGE,
        labels: &["state"],
    },
    Row {
        name: "outrigger_key_end_timestamp_seconds",
        help: "When the first of the keys that hold ends",
        kind: MetricType::GAUGE,
        labels: &[],
    },
    Row {
        name: "outrigger_keys_broken",
        help: "1 while the files of keys cannot be taken and the keys from before hold on",
        kind: MetricType::GAUGE,
        labels: &[],
    },
    Row {
        name: "outrigger_key_reloads_total",
        help: "How often files of keys had changed, by whether they could be taken",
        kind: MetricType::COUNTER,
        labels: &["outcome"],
    },
];

impl KeyCollector {
    pub(crate) fn new(
        policy: Arc<Policy>,
        keeper: Option<Arc<KeyKeeper>>,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self { policy, keeper, families: Families::new(&METRICS)? })
    }
}

impl Collector for KeyCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.families.descriptions()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let refused = self.policy.refused().filter(|(_, count)| *count > 0);
        let refused = refused.map(|(reason, count)| counter(&[("reason", reason)], count as f64)).collect();
        let (mut states, mut end, mut broken, mut reloads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        if let Some(keeper) = &self.keeper {
            let (keys, now) = (self.policy.keys(), wall_clock());
            for (name, state) in
                [("valid", State::Valid), ("ending", State::Ending), ("expired", State::Expired)]
            {
                let count = keys.iter().filter(|key| keeper.state(key, now) == state).count();
                states.push(gauge(&[("state", name)], count as f64));
            }
            let ends = keys.iter().filter_map(|key| key.expires).filter(|expires| *expires > now);
            end.extend(ends.min().map(|first| gauge(&[], first as f64)));
            let is_broken = keeper.broken.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            broken.push(gauge(&[], f64::from(u8::from(is_broken))));
            for (outcome, count) in [("taken", &keeper.reloaded), ("broken", &keeper.failed)] {
                reloads.push(counter(&[("outcome", outcome)], count.load(Ordering::Relaxed) as f64));
            }
        }
        self.families.show([refused, states, end, broken, reloads])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_auth::{KeyConfig, KeyFiles, StoreFile, Surroundings};

    use super::*;

    #[test]
    fn keys_that_were_made_at_the_start_are_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let second = Duration::from_secs(1);
        let service = KeyConfig {
            primary: None,
            secondary: None,
            file: folder.path().join("keys.toml"),
            surroundings: Surroundings::Machine,
        };
        let store = StoreFile::new(folder.path().join("store.toml"));
        let keys = KeyFiles { service, store };
        let config = AuthConfig { enabled: true, keys, poll: second, note: second, notice: second };
        let start = || KeyKeeper::start(&config, &PolicyConfig::default(), None, Instant::now()).unwrap();
        let (keeper, mut seen, keys) = start();
        assert!(keys.is_made());
        let reloads = |keeper: &KeyKeeper| keeper.reloaded.load(Ordering::Relaxed);
        for _ in 0..2 {
            keeper.look(&mut seen);
            assert_eq!(reloads(&keeper), 0);
        }
        let change = |text: &str| std::fs::write(folder.path().join("keys.toml"), text).unwrap();
        change("primary = 'a-key-of-ones-own-0123456789'");
        keeper.look(&mut seen);
        assert_eq!(reloads(&keeper), 1);
        // Where they were there, the first change is one.
        let (keeper, mut seen, keys) = start();
        assert!(!keys.is_made());
        keeper.look(&mut seen);
        change("primary = 'another-of-ones-own-0123456789'");
        keeper.look(&mut seen);
        assert_eq!(reloads(&keeper), 1);
        // What cannot be taken is told, and the keys from before hold.
        change("no keys");
        keeper.look(&mut seen);
        assert!(keeper.report().broken.is_some() && keeper.policy.keys().len() == 1);
    }
}
