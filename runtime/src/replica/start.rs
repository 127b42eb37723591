//! How a replica comes up.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use outrigger_protocol::swagger::{Documents, Schemas};

use super::{Replica, ReplicaError, Serving};
use crate::collection::{CollectError, Collecting};
use crate::concerns::Part;
use crate::config::{Endpoint, ScriptConfig};
use crate::fetching::{self, Extent};
use crate::http::{self, Site};
use crate::models::{Models, Rollouts};
use crate::scripts::{ScriptLimits, Scripts};
use crate::swagger;

/// When collection is tried again that a disk did not let begin, and what it is called then.
const COLLECT_AGAIN: Duration = Duration::from_secs(10);
const COLLECT: &str = "collect";

impl Replica {
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
}
