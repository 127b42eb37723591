//! A listener's connections: taken, and ended in order.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::{self, Ends, Listener, Site};

/// How long answers to calls that are broken off have to reach their clients.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What accepts connections, and how it is told to stop.
#[derive(Default)]
pub(super) struct Door {
    pub(super) connections: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Nobody waits for those any more that are open still.
    cut: CancellationToken,
}

impl Door {
    pub(super) fn open(&self, listener: Listener, site: Site) {
        let ends = Ends { stop: self.stop.clone(), cut: self.cut.clone() };
        let serve = http::serve(listener, site, self.connections.clone(), ends);
        self.connections.spawn(serve);
    }

    /// Takes no new connections and waits for those that there are; `false` if they take too long.
    pub(super) async fn close(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.connections.close();
        tokio::time::timeout(patience, self.connections.wait()).await.is_ok()
    }

    /// The same; those that take longer are closed.
    pub(super) async fn close_at_last(&self) {
        if !self.close(LAST_ANSWERS).await {
            self.cut.cancel();
            // That takes a moment; nothing is lost where it does not.
            let _ = tokio::time::timeout(LAST_ANSWERS, self.connections.wait()).await;
        }
    }
}
