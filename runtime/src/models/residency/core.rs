//! The phases that models go through, and the memory that they hold on the way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::accounts::{Account, Accounts, Charges, change, total};
use super::eta::LoadCost;
use super::state::ModelState;
use super::thrash::Window;
use super::value::Heat;

/// What bounds loads.
#[derive(Clone, Copy, Debug)]
pub(in crate::models) struct Options {
    /// Loads at once.
    pub(in crate::models) loads: usize,
    /// Bytes reserved by loads that are under way together; one alone always may.
    pub(in crate::models) loading_bytes: u64,
    /// After this time a use counts half.
    pub(in crate::models) half_life: Duration,
    /// How long a model is left alone after its first failed load; doubled with each one that follows...
    pub(in crate::models) retry: Duration,
    /// ...up to this.
    pub(in crate::models) max_retry: Duration,
}

/// What is known of a model's use at the moment of asking.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::models) struct Usage {
    /// Calls so far, ever.
    pub(in crate::models) uses: u64,
    /// When the last one was.
    pub(in crate::models) last: Duration,
    /// No call has it.
    pub(in crate::models) idle: bool,
}

/// What a call finds that wants a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::models) enum Want {
    Ready,
    Loading {
        eta: Duration,
    },
    /// Whoever asks has to put it together, at once: it is an ensemble, which takes nothing, and waits for nobody.
    Assemble,
    Failed {
        reason: Arc<str>,
        retry_after: Duration,
    },
}

/// What a load waits for that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) enum Waits {
    No,
    /// For models to make way.
    Room,
    /// For other loads.
    Turn,
}

/// Why a model has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) enum Left {
    /// Its memory was needed.
    Evicted,
    /// Somebody asked for it.
    Asked,
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) phase: ModelState,
    /// Bytes that are to be fetched before it can be loaded; nothing if its files are here.
    pub(super) away: Option<u64>,
    pub(super) pinned: bool,
    /// An ensemble that never has to leave is made of it.
    held: bool,
    /// How many need it to stay for a while.
    pub(super) kept: usize,
    /// It is made of others, and takes no memory.
    assembled: bool,
    /// There is no such model any more; its number is free.
    vacant: bool,
    /// What it holds, or has reserved.
    pub(super) charges: Charges,
    /// What it will reserve as soon as others have left for it; the earlier claim has the lower number.
    pub(super) claim: Option<(u64, Charges)>,
    /// What its last load came to, whether or not it is still there.
    pub(super) measured: Charges,
    /// Bytes that it takes, measured or expected.
    pub(super) bytes: Option<u64>,
    /// What its load waits for; it counts as none meanwhile.
    pub(super) waits: Waits,
    /// Since when it is being loaded.
    pub(super) since: Duration,
    /// How long its last load took.
    pub(super) took: Option<Duration>,
    pub(super) heat: Heat,
    /// When it was last known to be wanted.
    pub(super) used: Duration,
    /// When it left because its memory was needed.
    pub(super) evicted: Option<Duration>,
    /// Loads that have failed in a row.
    failures: u32,
    /// Why the last one did, and when the next may be.
    failure: Option<(Arc<str>, Duration)>,
}

/// Which models are on devices.
#[derive(Debug)]
pub(in crate::models) struct Core {
    pub(super) options: Options,
    pub(super) accounts: Accounts,
    pub(super) models: Vec<Model>,
    /// Those that wait for their turn, in order of arrival; also those that have to leave first.
    pub(super) queue: VecDeque<usize>,
    /// Those whose loads are under way.
    pub(super) under_way: Vec<usize>,
    pub(super) cost: LoadCost,
    /// What fetching costs.
    pub(super) fetch_cost: LoadCost,
    pub(super) window: Window,
    /// Number of the next claim.
    pub(super) claims: u64,
    /// The last time that was said.
    pub(super) clock: Duration,
}

impl Model {
    /// One of which nothing is known.
    fn new() -> Self {
        Self {
            phase: ModelState::OnDisk,
            away: None,
            pinned: false,
            held: false,
            kept: 0,
            assembled: false,
            vacant: false,
            charges: Charges::new(),
            claim: None,
            measured: Charges::new(),
            bytes: None,
            waits: Waits::No,
            since: Duration::ZERO,
            took: None,
            heat: Heat::default(),
            used: Duration::ZERO,
            evicted: None,
            failures: 0,
            failure: None,
        }
    }

    /// Whether it never has to leave for others.
    pub(super) fn stays(&self) -> bool {
        self.pinned || self.held || self.kept > 0
    }
}

impl Core {
    pub(in crate::models) fn new(options: Options, accounts: Vec<Account>, models: usize) -> Self {
        Self {
            options,
            accounts: Accounts::new(&accounts),
            models: std::iter::repeat_with(Model::new).take(models).collect(),
            queue: VecDeque::new(),
            under_way: Vec::new(),
            cost: LoadCost::default(),
            fetch_cost: LoadCost::default(),
            window: Window::default(),
            claims: 0,
            clock: Duration::ZERO,
        }
    }

    /// One more model. Its number is that of one that is no more, if there is one, or else the next.
    pub(in crate::models) fn add(&mut self) -> usize {
        if let Some(free) = self.models.iter().position(|this| this.vacant) {
            self.models[free] = Model::new();
            return free;
        }
        self.models.push(Model::new());
        self.models.len() - 1
    }

    /// A model is made of others: it is put together by who wants it.
    pub(in crate::models) fn is_assembled(&mut self, model: usize) {
        if let Some(this) = self.models.get_mut(model) {
            this.assembled = true;
        }
    }

    /// A model is no more; says whether that can be, which it cannot while it is on its way or loaded.
    pub(in crate::models) fn remove(&mut self, model: usize) -> bool {
        match self.models.get_mut(model) {
            Some(this) if this.phase.is_at_rest() => {
                this.vacant = true;
                true
            }
            _ => false,
        }
    }

    /// The files of a model are not here yet: so many bytes.
    pub(in crate::models) fn is_away(&mut self, model: usize, bytes: u64) {
        if let Some(this) = self.in_state(model, &[ModelState::OnDisk], "being away") {
            this.away = Some(bytes);
            this.phase = ModelState::Registered;
        }
    }

    /// The files of a model are here: it can be loaded, and has its place in the queue.
    pub(in crate::models) fn fetched(&mut self, model: usize, now: Duration) {
        self.clock = self.clock.max(now);
        let Some(this) = self.in_state(model, &[ModelState::Fetching], "being fetched") else { return };
        let (bytes, took) = (this.away.take(), now.saturating_sub(this.since));
        if this.assembled {
            this.phase = ModelState::OnDisk;
        } else {
            this.phase = ModelState::Queued;
            self.queue.push_back(model);
        }
        self.fetch_cost.note(bytes.unwrap_or_default(), took);
    }

    /// Which model's files may go so that there is room for others', if any: of those that are on disk and not loaded, the one that was wanted
    /// longest ago. Until [`Core::put_away`] it is on its way out.
    pub(in crate::models) fn putting_away(&mut self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let rests = |this: &Model| this.phase == ModelState::OnDisk && !this.vacant && !this.stays();
        let resting = self.models.iter().enumerate().filter(|(model, this)| rests(this) && may(*model));
        let (model, _) = resting.min_by_key(|(_, this)| this.used)?;
        self.models.get_mut(model)?.phase = ModelState::Draining;
        Some(model)
    }

    /// The files of a model are not here any more: so many bytes. Who has wanted it meanwhile has to say so again.
    pub(in crate::models) fn put_away(&mut self, model: usize, bytes: u64) {
        if let Some(this) = self.in_state(model, &[ModelState::Draining], "being put away") {
            this.away = Some(bytes);
            this.phase = ModelState::Registered;
            self.queue.retain(|queued| *queued != model);
        }
    }

    /// A call wants a model. Has it fetched where its files are not here, queues a load where there is none, and joins the one that there is.
    pub(in crate::models) fn want(&mut self, model: usize, now: Duration) -> Want {
        self.clock = self.clock.max(now);
        let max_retry = self.options.max_retry;
        let Some(this) = self.models.get_mut(model) else {
            tracing::debug!(model, "a model is wanted that there is not");
            return Want::Failed { reason: "there is no such model".into(), retry_after: max_retry };
        };
        this.used = this.used.max(now);
        match (this.phase, &this.failure) {
            (ModelState::Ready, _) => return Want::Ready,
            (ModelState::Failed, Some((reason, retry_at))) if now < *retry_at => {
                return Want::Failed { reason: Arc::clone(reason), retry_after: *retry_at - now };
            }
            (ModelState::Registered | ModelState::Failed, _) if this.away.is_some() => {
                this.phase = ModelState::Fetching;
                this.since = self.clock;
            }
            (ModelState::Registered | ModelState::OnDisk | ModelState::Failed, _) if this.assembled => {
                this.phase = ModelState::Loading;
                this.since = self.clock;
                return Want::Assemble;
            }
            (ModelState::Registered | ModelState::OnDisk | ModelState::Failed, _) => {
                this.phase = ModelState::Queued;
                self.queue.push_back(model);
            }
            // It has its place in the queue already, and its turn as soon as it has left.
            (ModelState::Draining, _) if !this.assembled && !self.queue.contains(&model) => {
                self.queue.push_back(model)
            }
            (
                ModelState::Draining
                | ModelState::Fetching
                | ModelState::Queued
                | ModelState::Loading
                | ModelState::Warming,
                _,
            ) => {}
        }
        Want::Loading { eta: self.eta(model, now) }
    }

    /// The next load to begin, if one may: in order of arrival.
    pub(in crate::models) fn next(&mut self, now: Duration) -> Option<usize> {
        self.clock = self.clock.max(now);
        // One that has room and only waits for its turn has come before those in the queue.
        if self.are_enough(None) || self.some_wait_for(Waits::Turn) {
            return None;
        }
        let queued =
            |model: &usize| self.models.get(*model).is_some_and(|this| this.phase == ModelState::Queued);
        let at = self.queue.iter().position(queued)?;
        let model = self.queue.remove(at)?;
        let this = self.models.get_mut(model)?;
        this.phase = ModelState::Loading;
        this.since = now;
        self.under_way.push(model);
        Some(model)
    }

    /// Where a model is on its way.
    pub(in crate::models) fn phase(&self, model: usize) -> ModelState {
        self.models.get(model).map_or(ModelState::OnDisk, |this| this.phase)
    }

    /// A model that was being loaded is being warmed up.
    pub(in crate::models) fn warming(&mut self, model: usize) {
        if let Some(this) = self.in_state(model, &[ModelState::Loading], "warming") {
            this.phase = ModelState::Warming;
        }
    }

    /// Bytes held by each device: what was there before, residents, reservations, and what is draining; without those of `except`.
    pub(in crate::models) fn held(&self, except: Option<usize>) -> Vec<u64> {
        let others = self.models.iter().enumerate().filter(|(model, _)| Some(*model) != except);
        self.accounts.with(others.map(|(_, this)| &this.charges))
    }

    /// The charges fit now and are counted from here on; false if they do not, because somebody else was faster or because loads that
    /// are under way have reserved as much as they may. A reservation that the model has is given up for it in any case: nobody holds
    /// memory while it waits for more.
    pub(in crate::models) fn reserve(&mut self, model: usize, charges: Charges) -> bool {
        let Some(this) = self.in_state(model, &[ModelState::Loading], "reserving") else { return false };
        this.charges.clear();
        let own = this.claim.as_ref().map_or(u64::MAX, |(number, _)| *number);
        if !self.has_turn(model, total(&charges)) {
            return false;
        }
        let others = self.models.iter().map(|this| &this.charges);
        let held = self.accounts.with(others.chain([&charges]));
        // Not what others have asked for before, for whom somebody leaves.
        let mut settled = self.settled(Some(model), |number| number < own, |_| true);
        change(&mut settled, &charges, u64::saturating_add);
        if !self.accounts.fit(&held, &charges) || !self.accounts.fit(&settled, &charges) {
            return false;
        }
        let clock = self.clock;
        let Some(this) = self.models.get_mut(model) else { return false };
        this.charges = charges;
        this.claim = None;
        this.waits = Waits::No;
        // What it waited for memory is no part of what its load takes.
        this.since = this.since.max(clock);
        true
    }

    /// A load has to wait: for room, and another may begin meanwhile, or for its turn, which is the next. Says whether that is new.
    pub(in crate::models) fn waits(&mut self, model: usize, waits: Waits) -> bool {
        let this = self.in_state(model, &[ModelState::Loading], "waiting");
        this.is_some_and(|this| std::mem::replace(&mut this.waits, waits) != waits)
    }

    /// Whether loads that are under way leave one of so many bytes its turn.
    pub(in crate::models) fn has_turn(&self, model: usize, bytes: u64) -> bool {
        let others = self.under_way.iter().filter(|loading| **loading != model);
        let others = others.filter_map(|loading| self.models.get(*loading));
        let loading = others.map(|this| total(&this.charges)).fold(0, u64::saturating_add);
        let fits = loading == 0 || loading.saturating_add(bytes) <= self.options.loading_bytes;
        fits && !self.are_enough(Some(model))
    }

    /// What a load that has failed will be allowed again, if that is not now.
    pub(in crate::models) fn is_barred(&self, model: usize, now: Duration) -> bool {
        let this = self.models.get(model);
        this.and_then(|this| this.failure.as_ref()).is_some_and(|(_, retry_at)| now < *retry_at)
    }

    fn some_wait_for(&self, waits: Waits) -> bool {
        let mut under_way = self.under_way.iter().filter_map(|model| self.models.get(*model));
        under_way.any(|this| this.waits == waits)
    }

    /// Whether as many loads are at it, without one of them, as may.
    fn are_enough(&self, except: Option<usize>) -> bool {
        let waits = |model: usize| self.models.get(model).is_some_and(|this| this.waits != Waits::No);
        let at_it = self.under_way.iter().filter(|model| Some(**model) != except && !waits(**model));
        at_it.count() >= self.options.loads.max(1)
    }

    /// A model takes no calls any more.
    pub(in crate::models) fn leaving(&mut self, model: usize, now: Duration) {
        self.clock = self.clock.max(now);
        if let Some(this) = self.in_state(model, &[ModelState::Ready], "leaving") {
            this.phase = ModelState::Draining;
        }
    }

    /// A model's memory is free. If it has been wanted in the meantime it is queued.
    pub(in crate::models) fn left(&mut self, model: usize, why: Left, now: Duration) {
        self.clock = self.clock.max(now);
        let wanted = self.queue.contains(&model);
        let Some(this) = self.in_state(model, &[ModelState::Draining], "having left") else { return };
        this.phase = if wanted { ModelState::Queued } else { ModelState::OnDisk };
        this.charges.clear();
        this.evicted = (why == Left::Evicted).then_some(now);
    }

    /// A model is loaded and measured: what it holds counts instead of what it has reserved. Says by how many bytes which devices that
    /// it is on are over their budgets with it.
    pub(in crate::models) fn loaded(&mut self, model: usize, measured: Charges, now: Duration) -> Charges {
        self.clock = self.clock.max(now);
        let half_life = self.options.half_life;
        let Some(this) = self.in_state(model, &[ModelState::Loading, ModelState::Warming], "loaded") else {
            return Charges::new();
        };
        let took = now.saturating_sub(this.since);
        let (bytes, assembled) = (total(&measured), this.assembled);
        this.phase = ModelState::Ready;
        this.charges.clone_from(&measured);
        this.claim = None;
        this.bytes = Some(bytes);
        this.took = Some(took);
        this.used = this.used.max(now);
        this.failures = 0;
        this.failure = None;
        this.heat.loaded(now, half_life);
        let evicted = this.evicted.take();
        this.measured.clone_from(&measured);
        self.under_way.retain(|loading| *loading != model);
        if !assembled {
            // That of others says nothing of what a load takes.
            self.cost.note(bytes, took);
            self.window.note(evicted, took);
        }
        let held = self.held(None);
        let mut over = Charges::new();
        for limit in self.accounts.touched(&measured) {
            match (limit.excess(&held), over.iter_mut().find(|(device, _)| *device == limit.device)) {
                (0, _) => {}
                (excess, Some((_, known))) => *known = excess.max(*known),
                (excess, None) => over.push((limit.device, excess)),
            }
        }
        over
    }

    /// A load has failed: nothing is held for it, and the next one has to wait.
    /// Why a model did not load, if it is so now.
    pub(in crate::models) fn failure(&self, model: usize) -> Option<&str> {
        let this = self.models.get(model).filter(|this| this.phase == ModelState::Failed)?;
        this.failure.as_ref().map(|(reason, _)| &**reason)
    }

    pub(in crate::models) fn failed(&mut self, model: usize, reason: Arc<str>, now: Duration) {
        self.clock = self.clock.max(now);
        let Options { retry, max_retry, .. } = self.options;
        let phases = [ModelState::Fetching, ModelState::Queued, ModelState::Loading, ModelState::Warming];
        let Some(this) = self.in_state(model, &phases, "having failed") else { return };
        let doubled = 2u32.saturating_pow(this.failures);
        this.failures = this.failures.saturating_add(1);
        let retry_at = now.saturating_add(retry.saturating_mul(doubled).min(max_retry));
        this.failure = Some((reason, retry_at));
        this.phase = ModelState::Failed;
        this.waits = Waits::No;
        this.charges.clear();
        this.claim = None;
        self.queue.retain(|queued| *queued != model);
        self.under_way.retain(|loading| *loading != model);
    }

    /// Somebody asks for a model who knows that it has failed: its next load need not wait.
    pub(in crate::models) fn forgive(&mut self, model: usize) {
        if let Some(this) = self.models.get_mut(model) {
            this.failure = None;
        }
    }

    /// Whether a model may have to leave for others.
    pub(in crate::models) fn pin(&mut self, model: usize, pinned: bool) {
        if let Some(this) = self.models.get_mut(model) {
            this.pinned = pinned;
        }
    }

    /// Whether an ensemble that never has to leave is made of it.
    pub(in crate::models) fn hold(&mut self, model: usize, held: bool) {
        if let Some(this) = self.models.get_mut(model) {
            this.held = held;
        }
    }

    /// Somebody needs a model to stay for a while, or does not any more.
    pub(in crate::models) fn keep(&mut self, model: usize, kept: bool) {
        if let Some(this) = self.models.get_mut(model) {
            this.kept = if kept { this.kept + 1 } else { this.kept.saturating_sub(1) };
        }
    }

    /// Whether the files of a model are here.
    pub(in crate::models) fn is_here(&self, model: usize) -> bool {
        self.models.get(model).is_some_and(|this| this.away.is_none())
    }

    /// Whether somebody has said that a model never has to leave for others, or an ensemble that is made of it.
    pub(in crate::models) fn is_pinned(&self, model: usize) -> bool {
        self.models.get(model).is_some_and(|this| this.pinned || this.held)
    }

    /// Whether somebody has said so of it itself.
    pub(in crate::models) fn is_pinned_itself(&self, model: usize) -> bool {
        self.models.get(model).is_some_and(|this| this.pinned)
    }

    /// Whether it does not have to leave for others now.
    pub(in crate::models) fn stays(&self, model: usize) -> bool {
        self.models.get(model).is_some_and(Model::stays)
    }

    /// A model, if it is in one of these phases.
    fn in_state(&mut self, model: usize, phases: &[ModelState], what: &'static str) -> Option<&mut Model> {
        let phase = self.phase(model);
        let found = self.models.get_mut(model).filter(|this| phases.contains(&this.phase));
        if found.is_none() {
            tracing::debug!(model, ?phase, what, "ignored what is said of a model out of turn");
        }
        found
    }
}
