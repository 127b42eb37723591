//! Tokens while the replica runs: issuers are asked for their keys off the way of requests, and what they said last holds for as long as
//! they cannot be asked, over a new start, too.

mod fetch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use outrigger_auth::{
    HeldKey, Issued, KeyError, KeySet, LocalIssuer, PrivateFile, Tokens, open_to_others, wall_clock,
};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::concerns::{Concern, Part};
use crate::config::{IssuerConfig, LocalConfig, TokensConfig};
use crate::families::{Families, Row};
use crate::keys::warn_of_others;
use crate::metrics::{counter, gauge};
use crate::with_causes;

/// Why tokens cannot be taken or given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// The key that tokens are signed with cannot be read or made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// That key has no public part that could be read again.
    #[error("the key that tokens are signed with")]
    Own(#[from] outrigger_auth::JwksError),
    /// The operating system has no random numbers.
    #[error("there are no random numbers for tokens")]
    Random(#[source] getrandom::Error),
    /// The client that issuers are asked with does not come up.
    #[error("issuers of tokens cannot be asked")]
    Client(#[source] reqwest::Error),
}

/// Keeps the keys of issuers, and gives tokens itself.
pub(crate) struct TokenKeeper {
    config: TokensConfig,
    tokens: Arc<Tokens>,
    local: Option<LocalIssuer>,
    followed: Vec<Arc<Followed>>,
    client: fetch::Client,
}

/// An issuer that is asked again and again.
struct Followed {
    /// Its number among those that are trusted.
    at: usize,
    issuer: IssuerConfig,
    /// Rung when a token names a key that is not known.
    bell: Arc<Notify>,
    file: PrivateFile,
    /// Once it has answered for the first time, or has not.
    tried: CancellationToken,
    /// When it was asked with success last, be it by the process before, seconds since 1970; 0 for never.
    asked: AtomicU64,
    /// The same as it is kept.
    kept: AtomicU64,
    /// Whether it has been said that nothing can be kept.
    unwritable: AtomicBool,
    good: AtomicU64,
    failed: AtomicU64,
    /// Why it could not be asked the last time; nothing where it could.
    problem: Mutex<Option<String>>,
}

impl Followed {
    fn say(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Into how many parts `tokens.max_age` is cut: by one of them keys may be younger than what is kept says.
const KEPT_PARTS: u32 = 100;

/// What is kept of an issuer's keys.
#[derive(Deserialize, Serialize)]
struct Kept<'a> {
    issuer: &'a str,
    /// When it said so last, seconds since 1970.
    asked: u64,
    #[serde(borrow)]
    keys: &'a RawValue,
}

impl TokenKeeper {
    /// Begins with what was kept of issuers' keys.
    ///
    /// # Errors
    /// [`TokensError`]. That an issuer cannot be asked is none.
    pub(crate) fn start(config: &TokensConfig) -> Result<Self, TokensError> {
        let mut tokens = Tokens::new(config.limits).map_err(TokensError::Random)?;
        let open = |local: &LocalConfig| {
            let LocalConfig { signing_key, surroundings, rules } = local;
            let opened = LocalIssuer::open(signing_key, *surroundings, rules.clone())?;
            if let Some(mode) = open_to_others(signing_key) {
                warn_of_others("tokens.signing_key", signing_key, mode);
            }
            Ok::<_, KeyError>(opened)
        };
        let local = config.local.as_ref().map(open).transpose()?;
        let own = local.as_ref().map(|local| tokens.trust_local(local));
        let followed: Vec<_> =
            config.issuers.iter().map(|issuer| follow(&mut tokens, issuer, config)).collect();
        if let Some((own, local)) = own.zip(local.as_ref()) {
            tokens.set_keys(own, local.key_set()?);
        }
        for followed in &followed {
            followed.read(&tokens, config);
        }
        let client = fetch::Client::new(config).map_err(TokensError::Client)?;
        Ok(Self { config: config.clone(), tokens: Arc::new(tokens), local, followed, client })
    }

    pub(crate) fn tokens(&self) -> &Arc<Tokens> {
        &self.tokens
    }

    /// The public key of its own tokens, where it gives any.
    pub(crate) fn jwks(&self) -> Option<String> {
        self.local.as_ref().map(LocalIssuer::jwks)
    }

    /// Gives a token for a key; nothing where it gives none.
    pub(crate) fn issue(&self, caller: &str, key: &HeldKey) -> Option<Result<Issued, getrandom::Error>> {
        self.local.as_ref().map(|local| local.issue(caller, key, wall_clock()))
    }

    /// A task for each issuer, which go on until they are told to stop.
    pub(crate) fn tasks(
        self: &Arc<Self>,
        stop: &CancellationToken,
    ) -> impl Iterator<Item = impl Future<Output = ()> + Send + use<>> {
        let tasks = self.followed.iter().map(|followed| {
            let (keeper, followed, stop) = (Arc::clone(self), Arc::clone(followed), stop.clone());
            async move {
                stop.run_until_cancelled(keeper.keep(&followed)).await;
            }
        });
        tasks.collect::<Vec<_>>().into_iter()
    }

    /// Which issuers cannot be asked, and why.
    pub(crate) fn concerns(&self) -> Vec<Concern> {
        let wrong = self.followed.iter().filter_map(|followed| {
            let name = followed.issuer.rules.name.clone();
            let reason = followed.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
            Some(Concern { part: Part::Issuer, name, reason })
        });
        wrong.collect()
    }

    /// Comes when each issuer of which nothing was kept has been asked once, which has a time limit: so that good tokens are not refused right
    /// after a start, and no issuer that is down holds one up for long.
    pub(crate) async fn tried(&self) {
        for followed in self.followed.iter().filter(|followed| self.tokens.keys_of(followed.at) == 0) {
            followed.tried.cancelled().await;
        }
    }

    async fn keep(&self, followed: &Followed) {
        let mut failures = 0u32;
        loop {
            let begun = Instant::now();
            // What comes from here on may name a key that the answer does not have yet.
            self.tokens.take_wish(followed.at);
            match self.asked(followed).await {
                Ok(keys) => {
                    failures = 0;
                    let none = "it publishes no key for RS256, ES256 or EdDSA: its tokens are refused";
                    followed.say((keys == 0).then(|| none.to_owned()));
                }
                Err(problem) => {
                    followed.failed.fetch_add(1, Ordering::Relaxed);
                    self.forget_old(followed);
                    followed.say(Some(problem.clone()));
                    let (issuer, known) = (&followed.issuer.rules.name, self.tokens.keys_of(followed.at));
                    // Once when it begins, and then ever more seldom.
                    if failures.is_power_of_two() || failures == 0 {
                        tracing::warn!(
                            issuer,
                            known,
                            problem,
                            "an issuer of tokens cannot be asked for its keys: those that are known hold on"
                        );
                    }
                    failures = failures.saturating_add(1);
                }
            }
            followed.tried.cancel();
            let next = if failures == 0 { self.config.refresh } else { self.config.retry };
            let _ = tokio::time::timeout(next, followed.bell.notified()).await;
            // Who sends names of keys that are not there has nobody asked more often.
            tokio::time::sleep_until(begun + self.config.retry.min(next)).await;
        }
    }

    /// How many keys it has now.
    async fn asked(&self, followed: &Followed) -> Result<usize, String> {
        let text = self.client.keys(&followed.issuer).await?;
        let keys = KeySet::parse(&text, self.config.keys).map_err(|error| error.to_string())?;
        let now = wall_clock();
        followed.good.fetch_add(1, Ordering::Relaxed);
        followed.asked.store(now, Ordering::Relaxed);
        let (count, issuer) = (keys.len(), &followed.issuer.rules.name);
        let has_changed = self.tokens.set_keys(followed.at, keys);
        match (has_changed, count) {
            (false, _) => {}
            (true, 0) => tracing::warn!(
                issuer,
                "an issuer of tokens has no key that anything could be verified by: its tokens are refused"
            ),
            (true, keys) => tracing::info!(issuer, keys, "an issuer of tokens has these keys"),
        }
        let part = (self.config.max_age / KEPT_PARTS).as_secs();
        if has_changed || now.saturating_sub(followed.kept.load(Ordering::Relaxed)) > part {
            self.note(followed, text, now).await;
        }
        Ok(count)
    }

    /// Keeps for the next start what an issuer has said.
    async fn note(&self, followed: &Followed, text: Bytes, now: u64) {
        let (file, name) = (followed.file.clone(), followed.issuer.rules.issuer.clone());
        // A disk that is full or slow keeps nobody from scoring.
        let written = tokio::task::spawn_blocking(move || write(&file, &name, now, &text)).await;
        let problem = match written {
            Ok(Ok(())) => {
                followed.kept.store(now, Ordering::Relaxed);
                followed.unwritable.store(false, Ordering::Relaxed);
                return;
            }
            Ok(Err(problem)) => problem,
            Err(error) => error.to_string(),
        };
        if !followed.unwritable.swap(true, Ordering::Relaxed) {
            let issuer = &followed.issuer.rules.name;
            tracing::warn!(issuer, problem, "the keys of an issuer are not kept for the next start");
        }
    }

    /// Has keys hold no longer that an issuer has not stood by for too long: it may have withdrawn them since.
    fn forget_old(&self, followed: &Followed) {
        let asked = followed.asked.load(Ordering::Relaxed);
        if is_old(asked, self.config.max_age) && self.tokens.forget_keys(followed.at) {
            let issuer = &followed.issuer.rules.name;
            tracing::error!(
                issuer,
                "an issuer of tokens could not be asked for longer than tokens.max_age: its tokens are refused until it can"
            );
        }
    }
}

/// Whether what was said then, in seconds since 1970, is older than that. A clock that was set back makes nothing old.
fn is_old(asked: u64, age: Duration) -> bool {
    wall_clock().saturating_sub(asked) >= age.as_secs()
}

fn follow(tokens: &mut Tokens, issuer: &IssuerConfig, config: &TokensConfig) -> Arc<Followed> {
    let bell = Arc::new(Notify::new());
    let ring = Arc::clone(&bell);
    Arc::new(Followed {
        at: tokens.trust(issuer.rules.clone(), move || ring.notify_one()),
        issuer: issuer.clone(),
        bell,
        file: PrivateFile::new(config.folder.join(format!("{}.json", issuer.rules.name))),
        tried: CancellationToken::new(),
        asked: AtomicU64::new(0),
        kept: AtomicU64::new(0),
        unwritable: AtomicBool::new(false),
        good: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        problem: Mutex::default(),
    })
}

fn write(file: &PrivateFile, issuer: &str, asked: u64, keys: &[u8]) -> Result<(), String> {
    let keys: &RawValue = serde_json::from_slice(keys).map_err(|error| error.to_string())?;
    let text = serde_json::to_string(&Kept { issuer, asked, keys }).map_err(|error| error.to_string())?;
    file.write(&text).map_err(|error| with_causes(&error))
}

impl Followed {
    /// Takes what was kept, if it is of this issuer and not too old.
    fn read(&self, tokens: &Tokens, config: &TokensConfig) {
        let name = &self.issuer.rules.name;
        let text = match self.file.read(config.document as u64 + 4096) {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(issuer = name, %error, "the kept keys of an issuer cannot be read");
                return;
            }
        };
        let kept = serde_json::from_str::<Kept<'_>>(text.expose()).ok();
        let kept = kept.filter(|kept| kept.issuer == self.issuer.rules.issuer);
        let keys = kept.and_then(|kept| {
            Some((KeySet::parse(kept.keys.get().as_bytes(), config.keys).ok()?, kept.asked.min(wall_clock())))
        });
        match keys {
            Some((_, asked)) if is_old(asked, config.max_age) => {
                tracing::warn!(issuer = name, "the kept keys of an issuer are older than tokens.max_age");
            }
            Some((keys, asked)) => {
                tracing::info!(issuer = name, keys = keys.len(), "an issuer of tokens had these keys");
                self.asked.store(asked, Ordering::Relaxed);
                self.kept.store(asked, Ordering::Relaxed);
                tokens.set_keys(self.at, keys);
            }
            None => tracing::warn!(issuer = name, "the kept keys of an issuer are of another one, or broken"),
        }
    }
}

/// Shows how issuers are.
pub(crate) struct TokenCollector {
    keeper: Arc<TokenKeeper>,
    families: Families<3>,
}

static METRICS: [Row; 3] = [
    Row {
        name: "outrigger_token_keys",
        help: "Keys of an issuer of tokens that are known",
        kind: MetricType::GAUGE,
        labels: &["issuer"],
    },
    Row {
        name: "outrigger_token_keys_timestamp_seconds",
        help: "When an issuer of tokens was last asked for its keys with success",
        kind: MetricType::GAUGE,
        labels: &["issuer"],
    },
    Row {
        name: "outrigger_token_key_fetches_total",
        help: "How often an issuer of tokens was asked for its keys",
        kind: MetricType::COUNTER,
        labels: &["issuer", "outcome"],
    },
];

impl TokenCollector {
    pub(crate) fn new(keeper: Arc<TokenKeeper>) -> Result<Self, prometheus::Error> {
        Ok(Self { keeper, families: Families::new(&METRICS)? })
    }
}

impl Collector for TokenCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.families.descriptions()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mut keys, mut asked, mut fetches) = (Vec::new(), Vec::new(), Vec::new());
        for followed in &self.keeper.followed {
            let issuer = ("issuer", followed.issuer.rules.name.as_str());
            keys.push(gauge(&[issuer], self.keeper.tokens.keys_of(followed.at) as f64));
            let when = followed.asked.load(Ordering::Relaxed);
            asked.extend((when > 0).then(|| gauge(&[issuer], when as f64)));
            for (outcome, count) in [("good", &followed.good), ("failed", &followed.failed)] {
                let labels = [issuer, ("outcome", outcome)];
                fetches.push(counter(&labels, count.load(Ordering::Relaxed) as f64));
            }
        }
        self.families.show([keys, asked, fetches])
    }
}
