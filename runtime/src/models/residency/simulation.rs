//! What the choice of who leaves is worth, on a virtual clock: loads of it against those of the least recently used first, for the same
//! calls and the same memory.

use std::collections::BTreeSet;
use std::time::Duration;

use super::accounts::{Account, Charges};
use super::core::{Core, Left, Options, Usage, Want};
use super::state::ModelState;
use super::traces::{MODELS, Trace};

/// Between two calls.
const GAP: Duration = Duration::from_millis(10);

/// What takes time.
#[derive(Clone, Copy, Debug)]
struct Pace {
    call: Duration,
    load: Duration,
    load_mb: Duration,
}

const AT_ONCE: Pace = Pace { call: Duration::ZERO, load: Duration::ZERO, load_mb: Duration::ZERO };
/// Most of a load is what each of them takes...
const FIXED: Pace = Pace {
    call: Duration::from_millis(20),
    load: Duration::from_millis(15),
    load_mb: Duration::from_micros(100),
};
/// ...or what its bytes take.
const BY_BYTES: Pace = Pace {
    call: Duration::from_millis(20),
    load: Duration::from_millis(1),
    load_mb: Duration::from_millis(5),
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Ours,
    /// The least recently used first, until it fits.
    Lru,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    CallEnds(usize),
    Loaded(usize),
    Comes(usize),
}

struct World<'a> {
    trace: &'a Trace,
    pace: Pace,
    rule: Rule,
    core: Core,
    usage: Vec<Usage>,
    /// Calls that wait for a model, and those that have it.
    waiting: Vec<usize>,
    having: Vec<usize>,
    /// Loads that have no memory yet.
    starting: Vec<usize>,
    events: BTreeSet<(Duration, Event, u64)>,
    number: u64,
    loads: u64,
    busy: Duration,
}

impl<'a> World<'a> {
    fn run(trace: &'a Trace, pace: Pace, rule: Rule, half_life: Duration) -> Self {
        let budget = trace.sizes.iter().sum::<u64>() / 10;
        let options = Options {
            loads: 2,
            loading_bytes: u64::MAX,
            half_life,
            retry: Duration::from_secs(1),
            max_retry: Duration::from_secs(60),
        };
        let mut world = Self {
            trace,
            pace,
            rule,
            core: Core::new(options, vec![Account { budget: Some(budget), main: 0, held: 0 }], MODELS),
            usage: vec![Usage { uses: 0, last: Duration::ZERO, idle: true }; MODELS],
            waiting: vec![0; MODELS],
            having: vec![0; MODELS],
            starting: Vec::new(),
            events: BTreeSet::new(),
            number: 0,
            loads: 0,
            busy: Duration::ZERO,
        };
        world.at(Duration::ZERO, Event::Comes(0));
        while let Some((now, event, _)) = world.events.pop_first() {
            world.happens(event, now);
            world.begin(now);
        }
        assert!(world.waiting.iter().all(|waiting| *waiting == 0), "every call got its model");
        assert!(world.core.held(None)[0] <= budget);
        world
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.number += 1;
        self.events.insert((time, event, self.number));
    }

    fn happens(&mut self, event: Event, now: Duration) {
        match event {
            Event::Comes(call) => {
                if let Some(model) = self.trace.calls.get(call).copied() {
                    match self.core.want(model, now) {
                        Want::Ready => self.call(model, now),
                        Want::Loading { .. } => {
                            self.waiting[model] += 1;
                            self.note(model);
                        }
                        Want::Failed { .. } | Want::Assemble => unreachable!("none fails"),
                    }
                    self.at(now + GAP, Event::Comes(call + 1));
                }
            }
            Event::CallEnds(model) => {
                self.having[model] -= 1;
                self.note(model);
            }
            Event::Loaded(model) => {
                let size = self.trace.sizes[model];
                assert_eq!(self.core.loaded(model, vec![(0, size)], now), Charges::new());
                self.loads += 1;
                for _ in 0..std::mem::take(&mut self.waiting[model]) {
                    self.call(model, now);
                }
                self.note(model);
            }
        }
    }

    fn call(&mut self, model: usize, now: Duration) {
        self.usage[model].uses += 1;
        self.usage[model].last = now;
        if !self.pace.call.is_zero() {
            self.having[model] += 1;
            self.at(now + self.pace.call, Event::CallEnds(model));
        }
        self.note(model);
    }

    fn note(&mut self, model: usize) {
        self.usage[model].idle = self.waiting[model] + self.having[model] == 0;
    }

    /// Begins what can be begun.
    fn begin(&mut self, now: Duration) {
        while let Some(model) = self.core.next(now) {
            self.starting.push(model);
        }
        let mut at = 0;
        while let Some(model) = self.starting.get(at).copied() {
            let size = self.trace.sizes[model];
            let charges = vec![(0, size)];
            for victim in self.victims(model, &charges, now).unwrap_or_default() {
                self.core.leaving(victim, now);
                self.core.left(victim, Left::Evicted, now);
            }
            if self.core.reserve(model, charges) {
                let takes = self.pace.load + self.pace.load_mb.mul_f64(size as f64 / 1e6);
                self.busy += takes;
                self.at(now + takes, Event::Loaded(model));
                self.starting.remove(at);
            } else {
                at += 1;
            }
        }
    }

    fn victims(&mut self, model: usize, charges: &Charges, now: Duration) -> Option<Vec<usize>> {
        let usage = &self.usage;
        if self.rule == Rule::Ours {
            return self.core.victims(model, charges, &|model| usage[model], now);
        }
        let budget = self.trace.sizes.iter().sum::<u64>() / 10;
        let mut held = self.core.held(Some(model))[0] + charges[0].1;
        let mut idle: Vec<usize> = (0..MODELS)
            .filter(|model| self.core.phase(*model) == ModelState::Ready && usage[*model].idle)
            .collect();
        idle.sort_by_key(|model| usage[*model].last);
        let mut idle = idle.into_iter();
        let mut victims = Vec::new();
        while held > budget {
            let victim = idle.next()?;
            held -= self.trace.sizes[victim];
            victims.push(victim);
        }
        Some(victims)
    }
}

/// Loads are at most this part of the other's, and take no more time together. A proof has more calls, paces and half-lives.
fn compare(name: &str, trace: impl Fn(usize) -> Trace, most: f64) {
    let (calls, half_lives, paces): (_, &[u64], &[Pace]) = match std::env::var_os("OUTRIGGER_PROVE") {
        Some(_) => (100_000, &[10, 600], &[AT_ONCE, FIXED, BY_BYTES]),
        None => (4000, &[600], &[BY_BYTES]),
    };
    let trace = trace(calls);
    for pace in paces {
        let lru = World::run(&trace, *pace, Rule::Lru, Duration::from_secs(1));
        for half_life in half_lives {
            let ours = World::run(&trace, *pace, Rule::Ours, Duration::from_secs(*half_life));
            let part = ours.loads as f64 / lru.loads as f64;
            let busy = ours.busy.as_secs_f64() / lru.busy.as_secs_f64().max(1e-9);
            let loads = format!("{} loads, {part:.3} of {}, {busy:.2} of the time", ours.loads, lru.loads);
            println!("{name}, {half_life} s: {loads}; {pace:?}");
            assert!(part <= most && busy <= 1.05, "{name}, {half_life} s: {loads}; {pace:?}");
        }
    }
}

#[test]
fn few_models_are_called_often() {
    [0.9, 1.0, 1.1]
        .into_iter()
        .for_each(|s| compare(&format!("zipf {s}"), |calls| Trace::zipf(s, calls), 0.85));
}

#[test]
fn all_models_are_called_alike() {
    compare("uniform", Trace::uniform, 0.9);
}

#[test]
fn models_are_called_one_after_the_other() {
    compare("cyclic", |calls| Trace::cyclic(MODELS, calls), 1.0);
    compare("cyclic, a few too many", |calls| Trace::cyclic(120, calls), 0.9);
    compare("scanned", Trace::scanned, 0.95);
}

#[test]
fn what_is_popular_changes() {
    compare("shifting", Trace::shifting, 0.85);
    compare("bursts", Trace::bursts, 1.0);
}

#[test]
fn models_are_of_one_size() {
    compare("equal", Trace::equal, 0.98);
}
