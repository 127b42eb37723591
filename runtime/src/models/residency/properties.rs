//! What always holds, whatever happens in whatever order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::accounts::{Account, Charges};
use super::core::{Core, Left, Options, Usage, Want};
use super::state::ModelState;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const OPTIONS: Options =
    Options { loads: 2, loading_bytes: 60, half_life: secs(600), retry: secs(1), max_retry: secs(5) };

const IDLE: Usage = Usage { uses: 0, last: Duration::ZERO, idle: true };

/// One with a budget, one without, and one that another library drives that is the first.
fn devices() -> Vec<Account> {
    vec![
        Account { budget: Some(100), main: 0, held: 10 },
        Account { budget: None, main: 1, held: 0 },
        Account { budget: Some(60), main: 0, held: 0 },
    ]
}

fn fits(held: &[u64], charges: &Charges) -> bool {
    let on = |device| charges.iter().any(|(on, bytes)| *on == device && *bytes > 0);
    (!(on(0) || on(2)) || held[0] + held[2] <= 100) && (!on(2) || held[2] <= 60)
}

#[derive(Clone, Debug)]
enum Step {
    Want(usize),
    /// A fetch ends, well or not.
    Fetched(usize, bool),
    /// A model is taken away, and another has its number.
    Replace(usize),
    Next,
    /// A load asks for its memory.
    Begin(usize),
    /// A load ends, well or not.
    End(usize, bool),
    Leave(usize),
    Left(usize),
    Pin(usize, bool),
    /// A call comes, and stays or not.
    Use(usize, bool),
    Wait(u64),
    /// Something is said of a model that is not true.
    Nonsense(usize, u8),
}

const MODELS: usize = 8;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let model = || 0..MODELS;
    let step = prop_oneof![
        4 => model().prop_map(Step::Want),
        2 => (model(), prop::bool::weighted(0.8)).prop_map(|(model, well)| Step::Fetched(model, well)),
        1 => model().prop_map(Step::Replace),
        3 => Just(Step::Next),
        4 => model().prop_map(Step::Begin),
        3 => (model(), prop::bool::weighted(0.8)).prop_map(|(model, well)| Step::End(model, well)),
        1 => model().prop_map(Step::Leave),
        2 => model().prop_map(Step::Left),
        1 => (model(), prop::bool::weighted(0.3)).prop_map(|(model, pinned)| Step::Pin(model, pinned)),
        3 => (model(), any::<bool>()).prop_map(|(model, stays)| Step::Use(model, stays)),
        1 => (0u64..3000).prop_map(Step::Wait),
        1 => (0..MODELS + 2, 0u8..9).prop_map(|(model, what)| Step::Nonsense(model, what)),
    ];
    prop::collection::vec(step, 1..200)
}

fn charges() -> impl Strategy<Value = Vec<Charges>> {
    let copies = prop::collection::vec((0usize..3, 0u64..50), 1..3);
    prop::collection::vec(copies, MODELS)
}

/// What the core should know.
struct World {
    core: Core,
    charges: Vec<Charges>,
    usage: Vec<Usage>,
    /// Those that wait for their turn, in order.
    queue: VecDeque<usize>,
    starting: BTreeSet<usize>,
    reserved: BTreeSet<usize>,
    /// Those that have asked others to leave.
    claims: BTreeSet<usize>,
    wanted: BTreeSet<usize>,
    /// Those whose files are not here.
    away: BTreeSet<usize>,
    now: Duration,
}

impl World {
    fn new(charges: Vec<Charges>) -> Self {
        let mut core = Core::new(OPTIONS, devices(), MODELS);
        let away: BTreeSet<_> = (0..MODELS).step_by(3).collect();
        away.iter().for_each(|model| core.is_away(*model, 5));
        Self {
            core,
            away,
            charges,
            usage: vec![IDLE; MODELS],
            queue: VecDeque::new(),
            starting: BTreeSet::new(),
            reserved: BTreeSet::new(),
            claims: BTreeSet::new(),
            wanted: BTreeSet::new(),
            now: Duration::ZERO,
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Want(model) => self.want(model),
            Step::Fetched(model, well) if self.core.phase(model) == ModelState::Fetching => {
                self.fetched(model, well);
            }
            Step::Replace(model) => self.replace(model),
            Step::Next => self.next(),
            Step::Begin(model) if self.starting.contains(&model) => drop(self.begin(model)),
            Step::End(model, well) if self.reserved.contains(&model) => self.end(model, well),
            Step::Leave(model) if self.core.phase(model) == ModelState::Ready && self.usage[model].idle => {
                self.core.leaving(model, now);
            }
            Step::Left(model) if self.core.phase(model) == ModelState::Draining => self.left(model),
            Step::Pin(model, pinned) => self.core.pin(model, pinned),
            Step::Use(model, stays) if self.core.phase(model) == ModelState::Ready => {
                let uses = self.usage[model].uses + 1;
                self.usage[model] = Usage { uses, last: now, idle: !stays };
            }
            Step::Wait(ms) => self.now += Duration::from_millis(ms),
            Step::Nonsense(model, what) => self.nonsense(model, what),
            _ => {}
        }
        self.check();
    }

    fn want(&mut self, model: usize) {
        let before = self.core.phase(model);
        let want = self.core.want(model, self.now);
        let after = self.core.phase(model);
        match want {
            Want::Ready => assert_eq!(before, ModelState::Ready),
            Want::Assemble => unreachable!("there are no ensembles"),
            Want::Failed { .. } => assert_eq!((before, after), (ModelState::Failed, ModelState::Failed)),
            Want::Loading { .. } => {
                let joins = before.is_under_way();
                let leaves = before == ModelState::Draining;
                let away = self.away.contains(&model);
                let first = if away { ModelState::Fetching } else { ModelState::Queued };
                assert_eq!(after, if joins || leaves { before } else { first });
                if !joins && !away && !self.queue.contains(&model) {
                    self.queue.push_back(model);
                }
                self.wanted.insert(model);
            }
        }
    }

    fn fetched(&mut self, model: usize, well: bool) {
        if well {
            self.core.fetched(model, self.now);
            assert_eq!(self.core.phase(model), ModelState::Queued);
            self.away.remove(&model);
            self.queue.push_back(model);
        } else {
            self.core.failed(model, "it is not there".into(), self.now);
            assert_eq!(self.core.phase(model), ModelState::Failed);
        }
    }

    fn replace(&mut self, model: usize) {
        let at_rest = self.core.phase(model).is_at_rest();
        assert_eq!(self.core.remove(model), at_rest, "not while anything is done about it");
        if at_rest {
            assert_eq!((self.core.add(), self.core.phase(model)), (model, ModelState::OnDisk));
            assert!(!self.core.is_pinned(model));
            self.away.remove(&model);
            self.wanted.remove(&model);
        }
    }

    fn next(&mut self) {
        let under_way = self.starting.len() + self.reserved.len();
        let queued = |model: &usize| self.core.phase(*model) == ModelState::Queued;
        let due = self.queue.iter().position(queued).filter(|_| under_way < OPTIONS.loads);
        let due = due.and_then(|at| self.queue.remove(at));
        assert_eq!(self.core.next(self.now), due, "in order of arrival");
        if let Some(model) = due {
            assert!(!self.reserved.contains(&model) && self.starting.insert(model), "one load of a model");
        }
    }

    /// Whether it has its memory, and if not whether it could have it later.
    fn begin(&mut self, model: usize) -> (bool, bool) {
        let charges = self.charges[model].clone();
        let usage = self.usage.clone();
        let chosen = self.core.victims(model, &charges, &|model| usage[model], self.now);
        self.claims.remove(&model);
        let with = |gone: &BTreeSet<usize>| {
            let mut held = self.settled(model, gone);
            charges.iter().for_each(|(device, bytes)| held[*device] += bytes);
            fits(&held, &charges)
        };
        let may_leave: BTreeSet<usize> = (0..MODELS).filter(|other| self.may_leave(*other)).collect();
        let least = self.core.held_at_least(Some(model), &|model| usage[model]);
        assert_eq!(least, self.settled(model, &may_leave));
        match &chosen {
            None => assert!(!with(&may_leave), "it could have been made to fit"),
            Some(victims) => {
                let gone: BTreeSet<usize> = victims.iter().copied().collect();
                assert!(gone.is_subset(&may_leave) && gone.len() == victims.len() && with(&gone));
                for kept in victims {
                    let mut fewer = gone.clone();
                    fewer.remove(kept);
                    assert!(!with(&fewer), "{kept} of {victims:?} need not have left");
                }
            }
        }
        let mut held = self.core.held(Some(model));
        charges.iter().for_each(|(device, bytes)| held[*device] += bytes);
        let claims = chosen.as_ref().is_some_and(|victims| !victims.is_empty() || !fits(&held, &charges));
        for victim in chosen.into_iter().flatten() {
            self.core.leaving(victim, self.now);
        }
        if self.core.reserve(model, charges) {
            self.starting.remove(&model);
            self.reserved.insert(model);
            return (true, false);
        }
        if claims {
            self.claims.insert(model);
        }
        (false, self.core.may_change(model, &|model| usage[model]))
    }

    fn end(&mut self, model: usize, well: bool) {
        self.reserved.remove(&model);
        if well {
            let measured = self.charges[model].clone();
            self.core.warming(model);
            assert_eq!(self.core.loaded(model, measured, self.now), Charges::new());
            assert_eq!(self.core.phase(model), ModelState::Ready);
        } else {
            self.core.failed(model, "out of luck".into(), self.now);
            assert_eq!(self.core.phase(model), ModelState::Failed);
        }
    }

    fn left(&mut self, model: usize) {
        self.core.left(model, Left::Evicted, self.now);
        let queued = self.queue.contains(&model);
        assert_eq!(self.core.phase(model), if queued { ModelState::Queued } else { ModelState::OnDisk });
    }

    /// Nothing comes of what cannot be.
    fn nonsense(&mut self, model: usize, what: u8) {
        let (phase, held) = (self.core.phase(model), self.core.held(None));
        let is = |phases: &[ModelState]| phases.contains(&phase);
        let under_way = is(&[ModelState::Loading, ModelState::Warming]);
        match what {
            0 if !under_way => drop(self.core.loaded(model, vec![(0, 1), (9, 1)], self.now)),
            1 if !phase.is_under_way() => self.core.failed(model, "no".into(), self.now),
            2 if phase != ModelState::Draining => self.core.left(model, Left::Asked, self.now),
            3 if phase != ModelState::Ready => self.core.leaving(model, self.now),
            4 if phase != ModelState::Loading => self.core.warming(model),
            5 if phase != ModelState::Loading => assert!(!self.core.reserve(model, vec![(0, 1), (9, 1)])),
            6 if phase != ModelState::Fetching => self.core.fetched(model, self.now),
            7 => drop(self.core.eta(model, self.now)),
            _ => self.core.expect_bytes(model, 7),
        }
        assert_eq!((self.core.phase(model), self.core.held(None)), (phase, held));
    }

    fn may_leave(&self, model: usize) -> bool {
        self.core.phase(model) == ModelState::Ready && !self.core.is_pinned(model) && self.usage[model].idle
    }

    /// What devices will hold when these have gone, those have left that are leaving, and those have come for whom they leave.
    fn settled(&self, except: usize, gone: &BTreeSet<usize>) -> Vec<u64> {
        let mut held = vec![10, 0, 0];
        for other in (0..MODELS).filter(|other| *other != except && !gone.contains(other)) {
            let stays = self.core.phase(other) == ModelState::Ready;
            if stays || self.reserved.contains(&other) || self.claims.contains(&other) {
                self.charges[other].iter().for_each(|(device, bytes)| held[*device] += bytes);
            }
        }
        held
    }

    fn check(&self) {
        let held = self.core.held(None);
        assert!(held[0] + held[2] <= 100 && held[2] <= 60, "{held:?}");
        let loading =
            |model: &usize| matches!(self.core.phase(*model), ModelState::Loading | ModelState::Warming);
        let under_way: BTreeSet<usize> = (0..MODELS).filter(loading).collect();
        assert_eq!(under_way, self.starting.union(&self.reserved).copied().collect());
        assert!(under_way.len() <= OPTIONS.loads);
        let bytes = |model: &usize| self.charges[*model].iter().map(|(_, bytes)| bytes).sum::<u64>();
        let loading: Vec<u64> = self.reserved.iter().map(bytes).filter(|bytes| *bytes > 0).collect();
        assert!(loading.len() < 2 || loading.iter().sum::<u64>() <= OPTIONS.loading_bytes);
    }

    /// Everything that has begun ends.
    fn settle(&mut self) {
        for _ in 0..10 * MODELS {
            self.usage.iter_mut().for_each(|usage| usage.idle = true);
            (0..MODELS).for_each(|model| self.step(Step::Left(model)));
            (0..MODELS).for_each(|model| self.step(Step::Fetched(model, true)));
            self.step(Step::Next);
            for model in self.starting.clone() {
                if self.begin(model) == (false, false) {
                    self.starting.remove(&model);
                    self.claims.remove(&model);
                    self.core.failed(model, "there is no room".into(), self.now);
                }
            }
            self.reserved.clone().into_iter().for_each(|model| self.step(Step::End(model, true)));
            self.check();
        }
        assert!(self.starting.is_empty() && self.reserved.is_empty() && self.queue.is_empty());
        for model in &self.wanted {
            let phase = self.core.phase(*model);
            assert!(
                matches!(phase, ModelState::Ready | ModelState::Failed | ModelState::OnDisk),
                "{model} {phase:?}"
            );
        }
    }
}

/// So many cases in CI, a hundred times as many as a proof.
fn cases(few: u32) -> ProptestConfig {
    ProptestConfig::with_cases(if std::env::var_os("OUTRIGGER_PROVE").is_some() { few * 100 } else { few })
}

proptest! {
    #![proptest_config(cases(200))]

    /// Memory is within its budgets, one load of a model at a time and in order of arrival, and whoever has to leave may and must; see
    /// [`World::step`]. What has been wanted gets an answer, and when all have left nothing is held.
    #[test]
    fn whatever_happens(charges in charges(), steps in steps()) {
        let mut world = World::new(charges);
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
        let devices: BTreeMap<usize, u64> = world.core.held(None).into_iter().enumerate().collect();
        prop_assert!(devices[&0] >= 10);
        for model in 0..MODELS {
            world.core.leaving(model, world.now);
            world.core.left(model, Left::Asked, world.now);
        }
        prop_assert_eq!(world.core.held(None), vec![10, 0, 0]);
        prop_assert!(!world.core.may_change(MODELS, &|_| IDLE));
    }
}
