//! Who has to leave.

use std::time::Duration;

use super::accounts::{Charges, Limit, change};
use super::core::{Core, Model, Usage};
use super::state::ModelState;
use super::value;

/// One that may leave.
struct Candidate<'a> {
    model: usize,
    charges: &'a Charges,
    /// What a byte of it is worth.
    density: f64,
    used: Duration,
}

impl Core {
    /// The bytes held by each device as if every model had left that may: it is ready, idle and not pinned; or that is leaving already.
    /// What others will hold for whom models are leaving counts.
    pub(in crate::models) fn held_at_least(
        &self,
        except: Option<usize>,
        usage: &dyn Fn(usize) -> Usage,
    ) -> Vec<u64> {
        self.settled(except, |_| true, |(model, this)| !may_leave(this) || !usage(model).idle)
    }

    /// The bytes held by each device as if every model had left that does not stay, but for these.
    pub(in crate::models) fn held_by_staying(&self, except: &[usize]) -> Vec<u64> {
        self.settled(None, |_| false, |(model, this)| this.stays() && !except.contains(&model))
    }

    /// Whether anything else that holds memory could leave later: it is in use, loading or draining.
    pub(in crate::models) fn may_change(&self, except: usize, usage: &dyn Fn(usize) -> Usage) -> bool {
        self.models.iter().enumerate().filter(|(model, _)| *model != except).any(|(model, this)| {
            match this.phase {
                ModelState::Draining => true,
                ModelState::Loading | ModelState::Warming => !this.charges.is_empty() || this.claim.is_some(),
                ModelState::Ready => !this.stays() && !this.charges.is_empty() && !usage(model).idle,
                ModelState::Registered
                | ModelState::Fetching
                | ModelState::OnDisk
                | ModelState::Queued
                | ModelState::Failed => false,
            }
        })
    }

    /// Which models have to leave so that a model's charges fit: all of them, and none that need not. Empty if they fit as it is, or as
    /// soon as those have left that are leaving; `None` if they cannot fit. What leaves for a model is kept for it until it has reserved
    /// its memory, has failed, or is asked about anew.
    pub(in crate::models) fn victims(
        &mut self,
        model: usize,
        charges: &Charges,
        usage: &dyn Fn(usize) -> Usage,
        now: Duration,
    ) -> Option<Vec<usize>> {
        self.clock = self.clock.max(now);
        let claim = self.models.get_mut(model).and_then(|this| this.claim.take());
        let (mut held, mut settled) = (self.held(Some(model)), self.settled(Some(model), |_| true, |_| true));
        change(&mut held, charges, u64::saturating_add);
        change(&mut settled, charges, u64::saturating_add);
        let chosen = self.choose(model, charges, settled, usage, now)?;
        if let Some(this) = self.models.get_mut(model)
            && this.phase == ModelState::Loading
            && this.charges.is_empty()
            && (!chosen.is_empty() || !self.accounts.fit(&held, charges))
        {
            // Whoever has asked keeps its place.
            let number = claim.map_or(self.claims, |(number, _)| number);
            this.claim = Some((number, charges.clone()));
            self.claims += 1;
        }
        Some(chosen)
    }

    /// What devices hold when those have left that are leaving, and those have come for whom they leave: of the claims those that `comes`
    /// says, of the models those that `stays` says.
    pub(super) fn settled(
        &self,
        except: Option<usize>,
        mut comes: impl FnMut(u64) -> bool,
        mut stays: impl FnMut((usize, &Model)) -> bool,
    ) -> Vec<u64> {
        let others = self.models.iter().enumerate().filter(|(model, _)| Some(*model) != except);
        self.accounts.with(others.filter_map(|(model, this)| match (&this.claim, this.phase) {
            (Some((number, claim)), _) => comes(*number).then_some(claim),
            (None, ModelState::Draining) => None,
            (None, _) => (!this.charges.is_empty() && stays((model, this))).then_some(&this.charges),
        }))
    }

    fn choose(
        &mut self,
        model: usize,
        charges: &Charges,
        mut held: Vec<u64>,
        usage: &dyn Fn(usize) -> Usage,
        now: Duration,
    ) -> Option<Vec<usize>> {
        let limits: Vec<&Limit> =
            self.accounts.touched(charges).filter(|limit| limit.excess(&held) > 0).collect();
        if limits.is_empty() {
            return Some(Vec::new());
        }
        let half_life = self.options.half_life;
        let mut candidates = Vec::new();
        for (other, this) in self.models.iter_mut().enumerate() {
            if other == model || !may_leave(this) {
                continue;
            }
            let bytes = limits.iter().map(|limit| limit.of(&this.charges)).max().unwrap_or(0);
            if bytes == 0 {
                continue;
            }
            let usage = usage(other);
            this.used = this.used.max(usage.last);
            if usage.idle {
                this.heat.update(&usage, now, half_life);
                let load = this.took.unwrap_or_else(|| self.cost.expected(this.bytes));
                let density = value::density(&this.heat, load, bytes, now.saturating_sub(this.used));
                candidates.push(Candidate { model: other, charges: &this.charges, density, used: this.used });
            }
        }
        candidates.sort_by(|a, b| {
            a.density.total_cmp(&b.density).then(a.used.cmp(&b.used)).then(a.model.cmp(&b.model))
        });
        let mut chosen: Vec<Candidate<'_>> = Vec::new();
        for candidate in candidates {
            // The last one may be the one that makes room for all: what came before it is seen to below.
            let open = |limit: &&&Limit| limit.excess(&held) > 0;
            if limits.iter().filter(open).any(|limit| limit.of(candidate.charges) > 0) {
                change(&mut held, candidate.charges, u64::saturating_sub);
                chosen.push(candidate);
            }
        }
        if limits.iter().any(|limit| limit.excess(&held) > 0) {
            return None;
        }
        // The dearest first: it stays if the others make room enough.
        let mut needed = Vec::new();
        for candidate in chosen.into_iter().rev() {
            change(&mut held, candidate.charges, u64::saturating_add);
            if limits.iter().any(|limit| limit.excess(&held) > 0) {
                change(&mut held, candidate.charges, u64::saturating_sub);
                needed.push(candidate.model);
            }
        }
        needed.reverse();
        Some(needed)
    }
}

/// Whether a model may leave while no call has it.
fn may_leave(this: &Model) -> bool {
    this.phase == ModelState::Ready && !this.stays()
}
