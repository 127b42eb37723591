//! Handshakes: each in its connection's own task, in a bounded time, and counted by how it ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_auth::PeerCertificate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::outcome::Outcome;
use super::{Tls, certificate};
use crate::config::TlsListener;

/// What accepts connections of a listener.
pub(crate) struct Acceptor {
    tls: Arc<Tls>,
    listener: TlsListener,
}

/// A connection whose handshake is over, and who is at its other end, if that was shown.
pub(crate) struct Accepted<S> {
    pub(crate) stream: TlsStream<S>,
    pub(crate) certificate: Option<Shown>,
}

/// A certificate that a client has shown and that was verified.
pub(crate) struct Shown {
    pub(crate) certificate: Arc<PeerCertificate>,
    /// How long it still holds, where that can be told.
    left: Option<Duration>,
    /// Cancelled once other authorities are trusted.
    changed: CancellationToken,
}

impl Shown {
    /// Comes when it does not hold any more: it has expired, or is to be held against other authorities. It names nobody from then on.
    pub(crate) async fn over(&self) {
        let expired = async {
            match self.left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expired => {}
            () = self.changed.cancelled() => {}
        }
        self.certificate.withdraw();
    }
}

impl Acceptor {
    pub(super) fn new(tls: Arc<Tls>, listener: TlsListener) -> Self {
        Self { tls, listener }
    }

    /// Shakes hands, unless `end` comes first; nothing if that fails, which is no event of ours: it is counted, and told to who looks closely.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        end: impl Future<Output = ()>,
    ) -> Option<Accepted<S>> {
        let ready = self.tls.current();
        let handshake = TlsAcceptor::from(ready.of(self.listener)).accept(stream);
        let limit = self.tls.config.handshake_timeout;
        let listener = self.listener.as_str();
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(limit, handshake) => shaken,
            () = end => {
                self.count(Outcome::Draining);
                return None;
            }
        };
        match shaken {
            Ok(Ok(stream)) => {
                self.count(Outcome::Ok);
                let (_, session) = stream.get_ref();
                let shown = session.peer_certificates().and_then(<[_]>::first);
                let certificate = shown.map(|shown| {
                    let certificate = certificate::peer(shown);
                    let until = certificate.until().map(|until| UNIX_EPOCH + Duration::from_secs(until));
                    let left = until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
                    let changed = ready.clients.clone();
                    Shown { certificate: Arc::new(certificate), left, changed }
                });
                Some(Accepted { stream, certificate })
            }
            Ok(Err(error)) => {
                let outcome = Outcome::of(&error);
                self.count(outcome);
                tracing::debug!(listener, outcome = outcome.as_str(), %error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                self.count(Outcome::Timeout);
                tracing::debug!(listener, outcome = "timeout", "a TLS handshake took too long");
                None
            }
        }
    }

    fn count(&self, outcome: Outcome) {
        self.tls.metrics.handshake(self.listener, outcome);
    }
}
