//! How a replica is: whether it takes calls, and what is wrong with it.

use std::borrow::Cow;

use super::{Replica, Serving};
use crate::concerns::{Concern, MOST, Part};
use crate::models::ServedModel;
use crate::scripts::Scripts;
use crate::upstream::UpstreamStatus;

impl Replica {
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
}
