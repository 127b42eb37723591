//! How a replica ends.

use std::sync::Arc;
use std::time::Duration;

use super::Replica;

/// How long workers have to end after the last call.
const WORKER_GRACE: Duration = Duration::from_secs(5);

impl Replica {
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
}
