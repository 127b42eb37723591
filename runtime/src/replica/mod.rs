//! A replica: everything that serves one service, put together, started and ended in order.

mod admission;
mod callers;
mod door;
mod health;
mod start;
mod stop;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use door::Door;
use outrigger_auth::{AuthMode, Grant, KeyError, Keys, Policy};
use outrigger_protocol::call;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::swagger::{Documents, Schemas, ServiceInfo};
use tokio_util::sync::CancellationToken;

use crate::busy::{self, Busy, Place};
use crate::cache::{CacheError, ResponseCache};
use crate::collection::{CollectError, Collecting};
use crate::concerns::Concerns;
use crate::config::{Config, Endpoint, TlsListener};
use crate::fetching::{Fetched, FetchingError};
use crate::http::{self, BindError, Bound, Listener, Peers, Site};
use crate::keys::{KeyCollector, KeyKeeper};
use crate::metrics::Metrics;
use crate::models::{Models, ModelsError, NamedModel, Rollouts};
use crate::scheduler::{Admission, Limits, Scheduler};
use crate::scripts::{ScriptError, Scripts};
use crate::shared_memory::SharedMemory;
use crate::swagger::SwaggerFileError;
use crate::telemetry::{Exporter, KeptLines, Telemetry};
use crate::tls::{Tls, TlsError};
use crate::tokens::{TokenCollector, TokenKeeper, TokensError};
use crate::upstream::Upstream;

/// Why a replica does not come up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The keys cannot be read or made.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// TLS cannot be spoken with the files that there are.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Tokens cannot be taken or given.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// A model cannot be fetched.
    #[error(transparent)]
    Fetching(#[from] FetchingError),
    /// A model does not load.
    #[error(transparent)]
    Models(#[from] ModelsError),
    /// The script does not come up.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// A description of the user's own cannot be sent.
    #[error(transparent)]
    Swagger(#[from] SwaggerFileError),
    /// Nothing can be collected.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The response cache cannot be.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The metrics contradict each other.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A task of ours ended by a panic.
    #[error("start was broken off")]
    Broken(#[from] tokio::task::JoinError),
}

/// Where a replica listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Scoring.
    pub score: Bound,
    /// Probes, busy signal, metrics.
    pub observe: Bound,
    /// Management.
    pub admin: Bound,
    /// Where scripts hand over what they collect.
    pub collect: Option<Bound>,
}

/// A replica.
pub struct Replica {
    pub(crate) config: Config,
    /// The effective configuration as text, secrets masked.
    pub(crate) effective: String,
    pub(crate) busy: Arc<Busy>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) metrics: Metrics,
    pub(crate) service: ServiceInfo,
    pub(crate) tensor_limits: call::Limits,
    pub(crate) shared_memory: SharedMemory,
    pub(crate) cache: ResponseCache,
    /// What the listeners serve, once somebody has asked.
    pub(crate) descriptions: http::Descriptions,
    policy: Arc<Policy>,
    /// Those of the start, until they have been announced.
    keys: Mutex<Option<Keys>>,
    keeper: Option<Arc<KeyKeeper>>,
    tokens: Option<Arc<TokenKeeper>>,
    addresses: Addresses,
    /// What is behind it, for who asks how that is.
    upstream: Option<Arc<Upstream>>,
    /// What is collected, once that has begun.
    collecting: OnceLock<Arc<Collecting>>,
    /// Bound from the start, and served from then on.
    collector: Mutex<Option<Listener>>,
    /// What parts say that is wrong with them.
    pub(crate) concerns: Concerns,
    /// The last lines of the log, where somebody keeps them.
    log: OnceLock<Arc<KeptLines>>,
    /// Set once everything is loaded.
    serving: OnceLock<Serving>,
    /// The score listener's connections, which a drain waits for.
    calls: Door,
    /// Those of scripts that hand over what they collect, which may do so until they end.
    handovers: Door,
    /// Those of the other listeners, which stay open to the end.
    others: Door,
}

/// What answers calls.
pub(crate) struct Serving {
    pub(crate) models: Arc<Models>,
    /// Changes which versions of them there are.
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) scripts: Option<Scripts>,
    /// The server behind the replica.
    pub(crate) upstream: Option<Arc<Upstream>>,
    /// The descriptions of the scoring route.
    pub(crate) swagger: Documents,
    /// What its script takes and gives.
    pub(crate) schemas: Schemas,
    /// What was laid out for it stays as long as it is there.
    _fetched: Option<Fetched>,
}

impl Serving {
    /// A model that the caller may use.
    ///
    /// # Errors
    /// `forbidden`, whether it is there or not, and `model_not_found`.
    pub(crate) fn model(&self, grant: &Grant, name: &str) -> Result<&Arc<NamedModel>, CallError> {
        grant.allow_model(name)?;
        self.models.get(name)
    }

    /// Whether runs of models may be handed to the device threads before a slot is free. Those take them in order, each as
    /// soon as it can. Beside a script, whose slots are its workers, or an upstream, they may not: they would take its turns.
    pub(crate) fn infer_admission(&self) -> Admission {
        if self.scripts.is_none() && self.upstream.is_none() { Admission::Ahead } else { Admission::Now }
    }
}

impl Replica {
    /// Binds the listeners and serves them; probes are answered from here on. Calls are refused until [`Replica::load`] is through.
    ///
    /// # Errors
    /// [`ReplicaError::Bind`], [`ReplicaError::Keys`], [`ReplicaError::Tls`].
    pub fn listen(config: Config, effective: String) -> Result<Arc<Self>, ReplicaError> {
        let score = Listener::bind(&Endpoint::Tcp(config.listen.score), "score.listen")?;
        let observe = Listener::bind(&Endpoint::Tcp(config.listen.observe), "observe.listen")?;
        let admin = Listener::bind(&config.listen.admin, "admin.listen")?;
        // Who else is on the machine is offered nothing where nobody hands anything over.
        let hands_over = config.script.is_some() || config.upstream.is_some();
        let collect = config.collect.as_ref().filter(|_| hands_over);
        let collect = collect.map(|collect| Endpoint::Tcp(collect.listen));
        let collector = collect.as_ref().map(|at| Listener::bind(at, "collect.listen")).transpose()?;
        let bound = |listener: &Listener, asked: &Endpoint| listener.bound().unwrap_or_else(|| asked.clone());
        let addresses = Addresses {
            score: bound(&score, &Endpoint::Tcp(config.listen.score)),
            observe: bound(&observe, &Endpoint::Tcp(config.listen.observe)),
            admin: bound(&admin, &config.listen.admin),
            collect: collector.iter().zip(&collect).map(|(listener, asked)| bound(listener, asked)).next(),
        };

        // Management over TCP needs a key even where scoring needs none.
        let asked = config.auth.enabled || matches!(config.listen.admin, Endpoint::Tcp(_));
        // Where tokens alone are taken a key is good for getting one.
        let gives = config.tokens.as_ref().is_some_and(|tokens| tokens.local.is_some());
        let keyed = if config.callers.mode == AuthMode::Token { gives } else { asked };
        let now = Instant::now();
        let token_keeper = config.tokens.as_ref().map(TokenKeeper::start).transpose()?.map(Arc::new);
        let tokens = token_keeper.as_ref().map(|keeper| Arc::clone(keeper.tokens()));
        let start = || KeyKeeper::start(&config.auth, &config.callers, tokens.clone(), now);
        let (keeper, seen, keys) = match keyed.then(start).transpose()? {
            Some((keeper, seen, keys)) => (Some(keeper), Some(seen), Some(keys)),
            None => (None, None, None),
        };
        let policy = match &keeper {
            Some(keeper) => Arc::clone(keeper.policy()),
            None => Arc::new(Policy::new(None, &config.callers, now)?.with_tokens(tokens)),
        };

        let slots = match (&config.script, &config.upstream) {
            // Until the script has said how it takes its calls.
            (Some(script), _) => script.workers,
            (None, Some(upstream)) => upstream.slots,
            (None, None) => config.backends.cpu_threads,
        };
        let busy = Busy::new(slots.min(busy::MAX_CALLS));
        let metrics = Metrics::new(Arc::clone(&busy), Arc::clone(&policy), config.telemetry.models)?;
        let otlp = config.telemetry.otlp.as_ref();
        let otlp = otlp.map(|otlp| Exporter::new(otlp, metrics.registry())).transpose()?;
        let (spans, exporter) = otlp.unzip();
        let sampler =
            config.telemetry.otlp.as_ref().filter(|otlp| otlp.traces.is_some() || otlp.insights.is_some());
        let spans = spans.zip(sampler.map(|otlp| otlp.sampler));
        let telemetry = Telemetry::new(&config.log, spans, metrics.registry())?;
        let container = config.process.container;
        let tls = config.tls.as_ref().map(|tls| Tls::load(tls, container, metrics.registry())).transpose()?;
        let (tls, certificates) = tls.unzip();
        metrics.registry().register(Box::new(KeyCollector::new(Arc::clone(&policy), keeper.clone())?))?;
        if let Some(keeper) = &token_keeper {
            metrics.registry().register(Box::new(TokenCollector::new(Arc::clone(keeper))?))?;
        }
        let cache = ResponseCache::new(&config.cache, metrics.registry())?;
        let waits = Some(metrics.waits.clone());
        let upstream = config.upstream.as_ref();
        let upstream = upstream
            .map(|upstream| {
                Upstream::new(upstream, config.limits.header, Arc::clone(&busy), metrics.registry())
            })
            .transpose()?;
        let replica = Arc::new(Self {
            scheduler: Scheduler::new(Arc::clone(&busy), slots, queue_limits(&config), waits),
            metrics,
            service: ServiceInfo {
                title: config.service.name.clone(),
                version: config.service.version.clone(),
                path_prefix: config.service.path_prefix.clone(),
            },
            tensor_limits: config.limits.of_calls(),
            shared_memory: SharedMemory::new(
                config.score.contracts.shared_memory.clone(),
                config.score.contracts.regions,
            ),
            cache,
            descriptions: http::Descriptions::new(config.openapi.at_once),
            policy,
            keys: Mutex::new(keys),
            keeper,
            tokens: token_keeper,
            addresses,
            upstream,
            collecting: OnceLock::new(),
            collector: Mutex::new(collector),
            concerns: Concerns::default(),
            log: OnceLock::new(),
            serving: OnceLock::new(),
            calls: Door::default(),
            handovers: Door::default(),
            others: Door::default(),
            busy,
            effective,
            config,
        });
        replica.metrics.show_degraded(Arc::downgrade(&replica))?;
        let limits = &replica.config.limits;
        let peers = if replica.upstream.is_some() { Peers::Known } else { Peers::Unknown };
        let (calls, others) = (&replica.calls, &replica.others);
        let speaks = |listener| tls.as_ref().and_then(|tls| tls.acceptor(listener));
        let site = |router, listener| Site { tls: speaks(listener), ..Site::new(router, limits.clone()) };
        let of_calls = site(http::score_router(Arc::clone(&replica)), TlsListener::Score);
        calls.open(score, Site { peers, telemetry: Some(telemetry), ..of_calls });
        others.open(observe, site(http::observe_router(Arc::clone(&replica)), TlsListener::Observe));
        others.open(admin, site(http::admin_router(Arc::clone(&replica)), TlsListener::Admin));
        if let Some((tls, certificates)) = tls.zip(certificates) {
            replica.others.connections.spawn(tls.keep(certificates, replica.others.stop.clone()));
        }
        let windows = busy::keep_windows(Arc::clone(&replica.busy), replica.others.stop.clone());
        replica.others.connections.spawn(windows);
        if let Some((keeper, seen)) = replica.keeper.clone().zip(seen) {
            replica.others.connections.spawn(keeper.keep(seen, replica.others.stop.clone()));
        }
        for task in replica.tokens.iter().flat_map(|keeper| keeper.tasks(&replica.others.stop)) {
            replica.others.connections.spawn(task);
        }
        if let Some(exporter) = exporter {
            let (replica, stop) = (Arc::clone(&replica), replica.others.stop.clone());
            let ends = replica.others.connections.clone();
            ends.spawn(exporter.run(replica, stop));
        }
        Ok(replica)
    }

    /// What is collected, if anything is.
    pub(crate) fn collecting(&self) -> Option<&Arc<Collecting>> {
        self.collecting.get()
    }

    /// Shows the last lines of the log from now on.
    pub fn show_log(&self, lines: Arc<KeptLines>) {
        // There is one log.
        let _ = self.log.set(lines);
    }

    /// The last lines of the log.
    pub(crate) fn log(&self) -> Option<&Arc<KeptLines>> {
        self.log.get()
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// A place for a reader of the busy signal that stays connected; `None` where all are taken.
    pub(crate) fn watcher(&self) -> Option<Place> {
        self.busy.place(busy::Reason::Signal, self.config.observe.watchers)
    }

    /// The same for one who follows whether the replica is well, for which nobody needs a key: they take no places of the others.
    pub(crate) fn health_watcher(&self) -> Option<Place> {
        self.busy.place(busy::Reason::Health, self.config.observe.watchers)
    }

    /// Comes when such readers are to leave.
    pub(crate) fn observe_ends(&self) -> CancellationToken {
        self.others.stop.clone()
    }

    /// Comes when no more calls are taken.
    pub(crate) fn calls_end(&self) -> CancellationToken {
        self.calls.stop.clone()
    }

    /// What answers calls, for who has been allowed one.
    ///
    /// # Errors
    /// `not_ready` while it is being loaded.
    pub(crate) fn serving(&self, grant: &Grant) -> Result<&Serving, CallError> {
        if grant.operation().public() {
            // Whoever may do what anybody may has not been looked at.
            return Err(CallError::new(ErrorCode::Internal, "asked for more than was granted"));
        }
        self.serving.get().ok_or_else(still_loading)
    }

    /// The name of the only model, if there is exactly one.
    ///
    /// # Errors
    /// `not_ready` while it is being loaded.
    pub(crate) fn only_model(&self) -> Result<Option<String>, CallError> {
        let serving = self.serving.get().ok_or_else(still_loading)?;
        let mut models = serving.models.iter();
        Ok(models.next().filter(|_| models.next().is_none()).map(|model| model.name.clone()))
    }

    /// Whether there is a script, or a server behind, for calls that name no model.
    pub(crate) fn has_lane(&self) -> bool {
        self.config.script.is_some() || self.config.upstream.is_some()
    }

    /// Whether the script takes a method of HTTP; `None` where there is none, or it is being loaded. Who asks how `/score` is to be
    /// called has no key yet.
    pub(crate) fn script_takes(&self, method: &str) -> Option<bool> {
        let scripts = self.serving.get()?.scripts.as_ref()?;
        Some(scripts.ready().takes(method))
    }
}

fn still_loading() -> CallError {
    CallError::new(ErrorCode::NotReady, "the replica is still loading")
        .with_retry_after(Duration::from_secs(1))
}

fn queue_limits(config: &Config) -> Limits {
    let queue = &config.queue;
    Limits { items: queue.items, bytes: queue.bytes, wait: queue.wait, ageing: queue.ageing }
}
