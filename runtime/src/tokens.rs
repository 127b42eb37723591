//! Tokens while the replica runs: issuers are asked for their keys off the way of requests, and what they said last holds for as long as
//! they cannot be asked, over a new start, too.

mod fetch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_auth::{HeldKey, Issued, KeyError, KeySet, LocalIssuer, PrivateFile, Tokens, wall_clock};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::concerns::{Concern, Part};
use crate::config::{IssuerConfig, TokensConfig};
use crate::metrics::{counter, family, gauge};

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
    /// When it was asked with success last, seconds since 1970; 0 for never.
    asked: AtomicU64,
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

/// What is kept of an issuer's keys.
#[derive(Deserialize, Serialize)]
struct Kept<'a> {
    issuer: &'a str,
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
        let local = config.local.as_ref();
        let local =
            local.map(|local| LocalIssuer::open(&local.signing_key, local.rules.clone())).transpose()?;
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
                Ok(()) => {
                    failures = 0;
                    followed.say(None);
                }
                Err(problem) => {
                    followed.say(Some(problem.clone()));
                    followed.failed.fetch_add(1, Ordering::Relaxed);
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

    async fn asked(&self, followed: &Followed) -> Result<(), String> {
        let text = self.client.keys(&followed.issuer).await?;
        let keys = KeySet::parse(&text, self.config.keys).map_err(|error| error.to_string())?;
        followed.good.fetch_add(1, Ordering::Relaxed);
        followed.asked.store(wall_clock(), Ordering::Relaxed);
        let (count, issuer) = (keys.len(), &followed.issuer.rules.name);
        if self.tokens.set_keys(followed.at, keys) {
            tracing::info!(issuer, keys = count, "an issuer of tokens has these keys");
            let (file, name) = (followed.file.clone(), followed.issuer.rules.issuer.clone());
            // A disk that is full or slow keeps nobody from scoring.
            let written = tokio::task::spawn_blocking(move || write(&file, &name, &text)).await;
            if let Ok(Err(problem)) = written {
                tracing::warn!(issuer, problem, "the keys of an issuer are not kept for the next start");
            }
        }
        Ok(())
    }
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
        good: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        problem: Mutex::default(),
    })
}

fn write(file: &PrivateFile, issuer: &str, keys: &[u8]) -> Result<(), String> {
    let keys: &RawValue = serde_json::from_slice(keys).map_err(|error| error.to_string())?;
    let text = serde_json::to_string(&Kept { issuer, keys }).map_err(|error| error.to_string())?;
    file.write(&text).map_err(|error| error.to_string())
}

impl Followed {
    /// Takes what was kept, if it is of this issuer.
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
        let keys = kept.and_then(|kept| KeySet::parse(kept.keys.get().as_bytes(), config.keys).ok());
        match keys {
            Some(keys) => {
                tracing::info!(issuer = name, keys = keys.len(), "an issuer of tokens had these keys");
                tokens.set_keys(self.at, keys);
            }
            None => tracing::warn!(issuer = name, "the kept keys of an issuer are of another one, or broken"),
        }
    }
}

/// Shows how issuers are.
pub(crate) struct TokenCollector {
    keeper: Arc<TokenKeeper>,
    descriptions: Vec<Desc>,
}

/// Name, help, labels.
const METRICS: [(&str, &str, &[&str]); 3] = [
    ("outrigger_token_keys", "Keys of an issuer of tokens that are known", &["issuer"]),
    (
        "outrigger_token_keys_timestamp_seconds",
        "When an issuer of tokens was last asked for its keys with success",
        &["issuer"],
    ),
    (
        "outrigger_token_key_fetches_total",
        "How often an issuer of tokens was asked for its keys",
        &["issuer", "outcome"],
    ),
];

impl TokenCollector {
    pub(crate) fn new(keeper: Arc<TokenKeeper>) -> Result<Self, prometheus::Error> {
        let describe = |(name, help, labels): &(&str, &str, &[&str])| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new((*name).into(), (*help).into(), labels, std::collections::HashMap::new())
        };
        Ok(Self { keeper, descriptions: METRICS.iter().map(describe).collect::<Result<_, _>>()? })
    }
}

impl Collector for TokenCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
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
        let kinds = [MetricType::GAUGE, MetricType::GAUGE, MetricType::COUNTER];
        let families = METRICS.iter().zip(kinds).zip([keys, asked, fetches]);
        families.map(|(((name, help, _), kind), metrics)| family(name, help, kind, metrics)).collect()
    }
}
