//! TLS for the listeners: certificate and key from files, taken anew when they change; handshakes that are bounded in time and counted.
//!
//! Everything here is beside the data path: a connection takes what is in force when it is accepted, and keeps it.

mod accept;
mod certificate;
mod clients;
mod error;
mod files;
mod metrics;
mod outcome;
mod reload;
mod server;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

pub(crate) use accept::{Accepted, Acceptor, Shown};
pub use error::TlsError;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::config::{TlsConfig, TlsListener};
use files::Files;
use metrics::Metrics;
use server::Ready;

/// Whether the files that a configuration names can be used together, without serving anything. What it gives back is to be said and
/// does not keep anybody from serving.
///
/// # Errors
/// [`TlsError`], the first there is.
pub fn check(config: &TlsConfig, container: bool) -> Result<Vec<String>, TlsError> {
    let (files, now) = (Files::read(config, container)?, SystemTime::now());
    let warnings = Ready::load(config, &files, now)?.warnings(config, now);
    Ok(files.warnings.into_iter().chain(warnings).collect())
}

/// What listeners speak TLS with.
pub(crate) struct Tls {
    config: TlsConfig,
    container: bool,
    current: RwLock<Arc<Ready>>,
    metrics: Metrics,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] if they cannot be used, and if the metrics contradict each other.
    pub(crate) fn load(
        config: &TlsConfig,
        container: bool,
        registry: &Registry,
    ) -> Result<(Arc<Self>, reload::Seen), TlsError> {
        let files = Files::read(config, container)?;
        let ready = Ready::load(config, &files, SystemTime::now())?;
        let metrics = Metrics::new(registry, &config.listeners)?;
        metrics.show(&ready.expiry);
        for warning in files.warnings.iter().cloned().chain(ready.warnings(config, SystemTime::now())) {
            tracing::warn!("{warning}");
        }
        let listeners: Vec<_> = config.listeners.iter().map(|listener| listener.as_str()).collect();
        tracing::info!(
            listeners = listeners.join(", "),
            certificate = %ready.subject,
            until = %ready.expiry.server,
            "TLS is spoken"
        );
        let tls = Self { config: config.clone(), container, current: RwLock::new(Arc::new(ready)), metrics };
        Ok((Arc::new(tls), reload::Seen::of(&files)))
    }

    /// What accepts connections of a listener, if it speaks TLS.
    pub(crate) fn acceptor(self: &Arc<Self>, listener: TlsListener) -> Option<Acceptor> {
        self.config.covers(listener).then(|| Acceptor::new(Arc::clone(self), listener))
    }

    /// Looks after the files until told to stop.
    pub(crate) async fn keep(self: Arc<Self>, seen: reload::Seen, stop: CancellationToken) {
        reload::keep(&self, seen, &stop).await;
    }

    fn current(&self) -> Arc<Ready> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, ready: Ready) {
        self.metrics.show(&ready.expiry);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(ready.after(&current));
    }
}
