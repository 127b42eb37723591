//! A replica: everything that serves one service, put together, started and ended in order.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use outrigger_auth::{
    AuthError, AuthMode, Credentials, Grant, HeldKey, Issued, KeyError, Keys, OfModel, Policy, Refusal,
};
use outrigger_protocol::aml;
use outrigger_protocol::call;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::swagger::{Documents, Schemas, ServiceInfo};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::busy::{self, Busy, Outcome, Place, Ticket};
use crate::cache::{CacheError, ResponseCache};
use crate::collection::{CollectError, Collecting};
use crate::concerns::{Concern, Concerns, MOST, Part};
use crate::config::{Config, Endpoint, ScriptConfig, TlsListener};
use crate::fetching::{self, Extent, Fetched, FetchingError};
use crate::http::{self, BindError, Bound, Ends, Listener, Peers, Site};
use crate::keys::{KeyCollector, KeyKeeper, KeyReport};
use crate::metrics::Metrics;
use crate::models::{Lease, Models, ModelsError, NamedModel, Rollouts, ServedModel};
use crate::scheduler::{self, Admission, Limits, Scheduler, Slot, Terms};
use crate::scripts::{ScriptError, ScriptLimits, Scripts};
use crate::shared_memory::SharedMemory;
use crate::swagger::{self, SwaggerFileError};
use crate::telemetry::{self, Exporter, KeptLines, Phase, Telemetry};
use crate::tls::{Tls, TlsError};
use crate::tokens::{TokenCollector, TokenKeeper, TokensError};
use crate::upstream::{Upstream, UpstreamStatus};

/// How long answers to calls that are broken off have to reach their clients.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long workers have to end after the last call.
const WORKER_GRACE: Duration = Duration::from_secs(5);
/// When collection is tried again that a disk did not let begin, and what it is called then.
const COLLECT_AGAIN: Duration = Duration::from_secs(10);
const COLLECT: &str = "collect";

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
    /// Those that there were at the start.
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

/// What accepts connections, and how it is told to stop.
#[derive(Default)]
struct Door {
    connections: TaskTracker,
    stop: CancellationToken,
    /// Nobody waits for those any more that are open still.
    cut: CancellationToken,
}

impl Door {
    fn open(&self, listener: Listener, site: Site) {
        let ends = Ends { stop: self.stop.clone(), cut: self.cut.clone() };
        let serve = http::serve(listener, site, self.connections.clone(), ends);
        self.connections.spawn(serve);
    }

    /// Takes no new connections and waits for those that there are; `false` if they take too long.
    async fn close(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.connections.close();
        tokio::time::timeout(patience, self.connections.wait()).await.is_ok()
    }

    /// The same; those that take longer are closed.
    async fn close_at_last(&self) {
        if !self.close(LAST_ANSWERS).await {
            self.cut.cancel();
            // That takes a moment; nothing is lost where it does not.
            let _ = tokio::time::timeout(LAST_ANSWERS, self.connections.wait()).await;
        }
    }
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

    /// Loads models, starts workers, waits for the server behind the replica, and says ready once each has come up.
    ///
    /// # Errors
    /// [`ReplicaError::Models`], [`ReplicaError::Script`].
    pub async fn load(self: &Arc<Self>) -> Result<(), ReplicaError> {
        let collecting = self.collect().await?;
        let fetching = self.busy.loading();
        let fetched = fetching::fetch(&self.config, Extent::Start).await?;
        drop(fetching);
        // From here on models are where they have been put.
        let config = Arc::new(
            fetched.as_ref().map_or_else(|| self.config.clone(), |fetched| fetched.config(&self.config)),
        );
        let (replica, placed) = (Arc::clone(self), Arc::clone(&config));
        let load = move || {
            let models = Models::load(&placed, fetched.as_ref(), &replica.busy, &replica.metrics);
            models.map(|models| (models, fetched))
        };
        let (models, fetched) = tokio::task::spawn_blocking(load).await??;
        let models = Arc::new(models);
        self.metrics.models.show(&models);
        let scripts = match &config.script {
            Some(script) => {
                let limits = ScriptLimits {
                    answer: self.config.limits.answer,
                    queue_wait: self.config.queue.wait,
                    compat: self.config.compat,
                };
                let script = self.told(script, collecting.as_deref());
                let (model_dir, busy) = (config.model_dir.as_deref(), Arc::clone(&self.busy));
                let scripts = Scripts::start(&script, model_dir, Arc::clone(&models), busy, limits).await?;
                self.scheduler.set_slots(scripts.slots());
                let alone = models.iter().next().is_none();
                self.scheduler.set_ahead(if alone { scripts.ahead() } else { 0 });
                Some(scripts)
            }
            None => {
                if self.upstream.is_none() {
                    self.scheduler.set_slots(models.slots());
                    self.scheduler.set_ahead(models.ahead());
                }
                None
            }
        };
        if let Some(upstream) = &self.upstream {
            let _waiting = self.busy.loading();
            // What it may need has been laid out by now.
            upstream.start().await;
        }
        if let Some(tokens) = &self.tokens {
            tokens.tried().await;
        }
        let ready = scripts.as_ref().map(Scripts::ready);
        let schemas = Schemas::from_ready(ready.and_then(|ready| ready.swagger.as_ref()));
        let files = self.config.script.as_ref().map(|script| swagger::user_files(&script.app_root));
        let swagger = Documents::new(&self.service, &schemas, &files.transpose()?.unwrap_or_default());
        let rollouts = Rollouts::new(Arc::clone(&models), config, fetched.as_ref());
        rollouts.follow();
        let upstream = self.upstream.clone();
        let serving = Serving { models, rollouts, scripts, upstream, swagger, schemas, _fetched: fetched };
        if self.serving.set(serving).is_err() {
            tracing::error!("the replica was loaded twice");
        }
        self.busy.set_ready(true);
        Ok(())
    }

    /// Begins to collect, where anything is to be collected. A disk that is full, or fails, keeps nobody from serving: it is tried again.
    async fn collect(self: &Arc<Self>) -> Result<Option<Arc<Collecting>>, CollectError> {
        match self.begin_to_collect().await {
            Err(CollectError::Open(error)) if error.may_pass() => {
                tracing::error!(%error, "nothing is collected as long as the disk does not let that begin");
                self.concerns.raise(Part::Storage, COLLECT, error.to_string());
                let (replica, stop) = (Arc::clone(self), self.others.stop.clone());
                self.others.connections.spawn(async move {
                    while let Some(()) = stop.run_until_cancelled(tokio::time::sleep(COLLECT_AGAIN)).await {
                        if replica.begin_to_collect().await.is_ok() {
                            return replica.concerns.settle(Part::Storage, COLLECT);
                        }
                    }
                });
                Ok(None)
            }
            begun => begun,
        }
    }

    async fn begin_to_collect(&self) -> Result<Option<Arc<Collecting>>, CollectError> {
        let Some(config) = &self.config.collect else { return Ok(None) };
        let collecting = Collecting::open(config, self.metrics.registry()).await?;
        let listener = self.collector.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            let limits = &self.config.limits;
            let router = http::collect_router(Arc::clone(&collecting), limits.clone());
            self.handovers.open(listener, Site::new(router, limits.clone()));
        }
        Ok(Some(Arc::clone(self.collecting.get_or_init(|| collecting))))
    }

    /// A script as it is started: with what it needs to hand over what it collects.
    fn told<'a>(&self, script: &'a ScriptConfig, collecting: Option<&Collecting>) -> Cow<'a, ScriptConfig> {
        let (Some(collecting), Some(Endpoint::Tcp(at))) = (collecting, &self.addresses.collect) else {
            return Cow::Borrowed(script);
        };
        let mut script = script.clone();
        collecting.tell(&mut script, *at, &self.config.state_dir);
        Cow::Owned(script)
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

    /// The keys that there were at the start, once, for showing on a terminal those that were made then; `None` where none are needed. Nobody
    /// else keeps them.
    pub fn take_keys(&self) -> Option<Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it gives tokens itself.
    pub(crate) fn gives_tokens(&self) -> bool {
        self.config.tokens.as_ref().is_some_and(|tokens| tokens.local.is_some())
    }

    /// The public keys of the tokens that it gives; nothing where it gives none.
    pub(crate) fn token_keys(&self) -> Option<String> {
        self.tokens.as_ref()?.jwks()
    }

    /// The key that a request came with.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`] where there is none that holds, be it that a certificate says who calls.
    pub(crate) fn held(&self, headers: &::http::HeaderMap) -> Result<HeldKey, Refusal> {
        self.policy.held(headers)
    }

    /// Gives a token for a key.
    ///
    /// # Errors
    /// `not_found` where none are given, `internal` without random numbers.
    pub(crate) fn issue_token(&self, grant: &Grant, key: &HeldKey) -> Result<Issued, CallError> {
        let issued = self.tokens.as_ref().and_then(|keeper| keeper.issue(grant.name(), key));
        issued.ok_or_else(aml::not_found)?.map_err(|_| {
            CallError::new(ErrorCode::Internal, "there are no random numbers to make a token of")
        })
    }

    /// What may be told of the keys that hold now; `None` where none are needed.
    pub(crate) fn key_report(&self) -> Option<KeyReport> {
        self.keeper.as_ref().map(|keeper| keeper.report())
    }

    /// Ends in order: not ready, a quiet period, no new connections or calls, the accepted ones finish, workers and threads end,
    /// and last the probes. Returns whether all calls finished within `shutdown.drain`.
    pub async fn stop(&self) -> bool {
        self.busy.set_ready(false);
        if let Some(serving) = self.serving.get() {
            serving.rollouts.stop();
            tokio::time::sleep(self.config.shutdown.quiet).await;
        }
        self.busy.set_draining();
        tracing::info!(executing = self.busy.snapshot().executing, "draining");
        let drained = self.calls.close(self.config.shutdown.drain).await;
        if !drained {
            tracing::warn!("calls were still running after shutdown.drain and are broken off");
            self.break_off();
            // Their answers still go out.
            self.calls.close_at_last().await;
        }
        if let Some(serving) = self.serving.get() {
            if let Some(scripts) = &serving.scripts {
                scripts.stop(WORKER_GRACE).await;
            }
            let models = Arc::clone(&serving.models);
            let ended = tokio::task::spawn_blocking(move || models.stop());
            // A model that does not come back cannot be called back; it ends with the process.
            if tokio::time::timeout(WORKER_GRACE, ended).await.is_err() {
                tracing::warn!("a model is still running");
            }
        }
        if let Some(upstream) = &self.upstream {
            upstream.stop(WORKER_GRACE).await;
        }
        if let Some(collecting) = self.collecting() {
            self.handovers.close_at_last().await;
            collecting.stop().await;
        }
        self.others.close_at_last().await;
        drained
    }

    fn break_off(&self) {
        self.scheduler.close();
        if let Some(upstream) = &self.upstream {
            upstream.break_off();
        }
        let Some(serving) = self.serving.get() else { return };
        serving.models.break_off();
        if let Some(scripts) = &serving.scripts {
            scripts.break_off();
        }
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

    /// How the server behind the replica is, if there is one.
    pub(crate) fn upstream_status(&self) -> Option<UpstreamStatus> {
        self.upstream.as_ref().map(|upstream| upstream.status())
    }

    /// Whether calls can be taken.
    pub(crate) fn is_ready(&self) -> bool {
        self.busy.is_ready()
    }

    /// Whether calls of a model can be taken: also where another model's device is away.
    pub(crate) fn is_ready_for(&self, serving: &Serving, model: &ServedModel) -> bool {
        self.busy.is_ready_but_for_devices() && serving.models.can_be_had(model)
    }

    /// Why calls cannot be taken.
    pub(crate) fn not_ready_because(&self) -> Option<Cow<'static, str>> {
        if self.busy.is_ready() {
            return None;
        }
        let upstream = || self.upstream.as_ref()?.trouble();
        let Some(serving) = self.serving.get() else {
            return Some(upstream().map_or("models and workers are being loaded".into(), Cow::Owned));
        };
        if !self.busy.are_devices_able() {
            let trouble = serving.models.trouble();
            return Some(trouble.map_or("a device is just coming back".into(), Cow::Owned));
        }
        if self.busy.is_able() {
            return Some("the replica is shutting down".into());
        }
        if self.upstream.is_some() {
            return Some(upstream().map_or("the upstream is just coming back".into(), Cow::Owned));
        }
        let text = "no worker or thread of the entry script can take calls";
        let trouble = serving.scripts.as_ref().and_then(Scripts::trouble);
        Some(trouble.map_or(text.into(), |trouble| format!("{text}: {trouble}").into()))
    }

    /// Whether everything has been loaded once.
    pub(crate) fn is_started(&self) -> bool {
        self.serving.get().is_some()
    }

    /// What is wrong while calls are taken all the same, or why they are not.
    pub(crate) fn degraded(&self) -> Vec<Concern> {
        let serving = self.serving.get();
        let script = serving.and_then(|serving| serving.scripts.as_ref()?.trouble());
        let script = script.map(|reason| Concern { part: Part::Script, name: "script".into(), reason });
        let upstream = self.upstream.as_ref().and_then(|upstream| {
            let (name, reason) = (upstream.config().address.to_string(), upstream.trouble()?);
            Some(Concern { part: Part::Upstream, name, reason })
        });
        let models = serving.map(|serving| serving.models.concerns()).unwrap_or_default();
        let collected = self.collecting().map(|collecting| collecting.concerns()).unwrap_or_default();
        let issuers = self.tokens.as_ref().map(|keeper| keeper.concerns()).unwrap_or_default();
        let said = script.into_iter().chain(upstream).chain(models).chain(collected).chain(issuers);
        said.chain(self.concerns.all()).take(MOST).collect()
    }

    /// A version that is to run. A call that waits for one to be loaded is counted as one that waits.
    ///
    /// # Errors
    /// As [`Models::lease`].
    pub(crate) async fn lease(
        &self,
        serving: &Serving,
        model: &NamedModel,
        which: Option<&str>,
        until: Instant,
    ) -> Result<(Lease, Option<Ticket>), CallError> {
        if let Some(lease) = model.version(which)?.lease() {
            return Ok((lease, None));
        }
        let since = Instant::now();
        let counted = self.busy.arrive().ok_or_else(|| {
            CallError::new(ErrorCode::Overloaded, "more calls wait than can be counted")
                .with_retry_after(Duration::from_secs(1))
        })?;
        let leased = serving.models.lease_version(model, which, until).await;
        telemetry::spent(Phase::Queue, since);
        match leased {
            Ok(lease) => Ok((lease, Some(counted))),
            Err(error) => {
                counted.finish(Outcome::Refused);
                Err(error)
            }
        }
    }

    /// Waits for a slot, which keeps the caller's place with it. A call that has waited for a model is counted already.
    ///
    /// # Errors
    /// As [`Scheduler::admit`], and `overloaded` while answers that clients do not take hold all the memory that there is for them.
    pub(crate) async fn admit(
        &self,
        grant: &Grant,
        terms: Terms,
        counted: Option<Ticket>,
    ) -> Result<Slot, CallError> {
        let mut slot = self.scheduler.admit_counted(terms, counted).await?;
        slot.keep(grant.permit());
        // After the wait, so that a queue of calls does not come on top.
        match self.may_answer() {
            Ok(()) => Ok(slot),
            Err(error) => {
                slot.finish(Outcome::Refused);
                Err(error)
            }
        }
    }

    /// Whether there is memory for one more answer.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn may_answer(&self) -> Result<(), CallError> {
        if self.busy.unsent() < self.config.limits.answers as u64 {
            return Ok(());
        }
        let text =
            "answers that their clients do not take hold all the memory there is for them (limits.answers)";
        Err(CallError::new(ErrorCode::Overloaded, text).with_retry_after(Duration::from_secs(1)))
    }

    /// Whether a call may begin that may need no slot; one that is counted has begun.
    ///
    /// # Errors
    /// `draining`.
    pub(crate) fn may_begin(&self, is_counted: bool) -> Result<(), CallError> {
        if is_counted || !self.busy.is_draining() {
            return Ok(());
        }
        self.busy.refuse();
        Err(scheduler::draining())
    }

    /// [`Replica::admit`] of a call that needs no slot: its answer has to have room, too.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn admit_without_slot(&self, counted: Option<Ticket>) -> Result<(), CallError> {
        let may = self.may_answer();
        match &may {
            Ok(()) => counted.into_iter().for_each(|counted| counted.finish(Outcome::Answered)),
            Err(_) => self.busy.refuse_call(counted),
        }
        may
    }

    /// Whether the caller may do this; asked of the operation and the model, never of a URL.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn ask<'m>(
        &self,
        credentials: Credentials<'_>,
        operation: Operation,
        model: impl Into<OfModel<'m>>,
    ) -> Result<Grant, Refusal> {
        let since = Instant::now();
        let asked = self.policy.ask_telling(credentials, operation, model, since, is_of);
        telemetry::spent(Phase::Auth, since);
        asked
    }

    /// Whether the caller may do this on any model at all, for those who do not know yet of which it is asked.
    ///
    /// # Errors
    /// [`Refusal`]: who calls is not known, or may not.
    pub(crate) fn check(&self, credentials: Credentials<'_>, operation: Operation) -> Result<(), Refusal> {
        let since = Instant::now();
        let checked = self.policy.check(credentials, operation, is_of);
        telemetry::spent(Phase::Auth, since);
        checked
    }

    /// The same on the admin listener. On a Unix socket the system has said who is there; over TCP a key is needed, also where scoring
    /// needs none.
    ///
    /// # Errors
    /// `unauthenticated`, `forbidden`.
    pub(crate) fn ask_admin(
        &self,
        credentials: Credentials<'_>,
        operation: Operation,
    ) -> Result<Grant, CallError> {
        let asked = match self.config.listen.admin {
            Endpoint::Unix(_) => self.policy.local(operation),
            Endpoint::Tcp(_) => self.ask(credentials, operation, None),
        };
        asked.map_err(|refusal| {
            if let Some(error) = refusal.unknown() {
                self.refuses(error, operation);
            }
            refusal.into()
        })
    }

    /// Nobody knows who calls. That is told in the log, and who calls is told in part at most.
    pub(crate) fn refuses(&self, error: AuthError, operation: Operation) {
        // The request's own line says why; where it has none, or does not, this one does.
        let told = telemetry::with(|passage| {
            passage.is_refused(error);
            passage.asked().is_some() && passage.telemetry().tells_why()
        });
        if told != Some(true) {
            let (reason, operation) = (error.reason(), operation.as_str());
            tracing::info!(reason, operation, "refused, as nobody knows who calls");
        }
    }
}

/// The request that is being worked on is this caller's.
fn is_of(caller: &str) {
    telemetry::with(|passage| passage.is_of(caller));
}

fn still_loading() -> CallError {
    CallError::new(ErrorCode::NotReady, "the replica is still loading")
        .with_retry_after(Duration::from_secs(1))
}

fn queue_limits(config: &Config) -> Limits {
    let queue = &config.queue;
    Limits { items: queue.items, bytes: queue.bytes, wait: queue.wait, ageing: queue.ageing }
}
