//! A new version is watched: if calls do worse with it, they have the one before it again.

use std::pin::pin;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::named::{NamedModel, Rollout, Stage, Watched};
use super::outcomes::Counts;
use super::rollout::{Kept, Rollouts};
use super::verdict::{Rule, is_worse};
use crate::models::residency::Happening;
use crate::models::served::ServedModel;

/// A version that calls have since now, and which has to prove itself.
struct Watch {
    named: Arc<NamedModel>,
    new: Arc<ServedModel>,
    /// What calls have again if it does not.
    old: Arc<ServedModel>,
    /// How calls of that went at last.
    before: Counts,
    /// How calls of the new one had gone until now.
    start: Counts,
    /// Ends it.
    overtaken: CancellationToken,
    /// The old one stays loaded for as long.
    _kept: Kept,
}

impl Rollouts {
    /// Begins to watch a version that has just become the stable one.
    pub(super) fn begin_watch(
        self: &Arc<Self>,
        named: &Arc<NamedModel>,
        new: &Arc<ServedModel>,
        old: Arc<ServedModel>,
        start: Counts,
    ) {
        // What there was before one that has not proved itself either.
        let before = named.watched().map_or_else(|| old.outcomes.recent(), |watched| watched.before);
        let overtaken = CancellationToken::new();
        let kept = Kept::new(&self.models, &old);
        let shown = Rollout {
            label: super::named::STABLE.to_owned(),
            to: new.version.clone(),
            from: Some(old.version.clone()),
            stage: Stage::Watching,
            overtaken: overtaken.clone(),
        };
        named.set_watch(Some(Watched { shown, new: Arc::clone(new), before }));
        let (named, new) = (Arc::clone(named), Arc::clone(new));
        let watch = Watch { named, new, old, before, start, overtaken, _kept: kept };
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            if this.watch(&watch).await {
                let named = Arc::clone(&watch.named);
                named.end_watch(&watch.new);
                drop(watch);
                // Whoever changes versions now sees to the rest.
                let _turn = named.turn.lock().await;
                this.sweep(&named);
            }
        });
    }

    /// Says whether it came to an end by itself.
    async fn watch(&self, watch: &Watch) -> bool {
        let Watch { named, new, before, start, overtaken, .. } = watch;
        let said = &self.config.rollout;
        let rule = Rule { failures: said.failures as u64, margin: said.margin / 100.0 };
        let mut end = pin!(tokio::time::sleep(said.watch));
        loop {
            let mut failure = pin!(new.outcomes.failure());
            // From here on nothing is missed.
            failure.as_mut().enable();
            let after = new.outcomes.all().since(*start);
            if overtaken.is_cancelled() {
                return false;
            }
            if is_worse(*before, after, rule) {
                self.go_back(watch, after);
                return true;
            }
            tokio::select! {
                biased;
                () = overtaken.cancelled() => return false,
                () = self.stop.cancelled() => return false,
                () = failure => {}
                () = &mut end => {
                    if named.confirm(new) {
                        self.models.tell(new, Happening::Confirmed, shares(*before, after));
                    }
                    return true;
                }
            }
        }
    }

    fn go_back(&self, watch: &Watch, after: Counts) {
        let Watch { named, new, old, before, .. } = watch;
        if !named.go_back(new) {
            return;
        }
        self.models.have_moved(new, old);
        let why = shares(*before, after);
        tracing::error!(model = %named.name, from = %new.version, to = %old.version, why, "a version does worse and is given up");
        let text = format!("`stable` is version {} again: {why}", old.version);
        self.models.tell(new, Happening::Returned, text);
    }
}

/// How many calls failed.
fn shares(before: Counts, after: Counts) -> String {
    format!(
        "{} of {} calls failed; of the version before it, {} of the last {}",
        after.failures, after.calls, before.failures, before.calls
    )
}
