//! The scheduler's properties, on a virtual clock: calls that come at given times, and slots that execute each for as long as it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outrigger_protocol::priority::Priority;
use proptest::prelude::*;

use super::Admission;
use super::core::{Arrival, Ask, Core, Ended, Limits, Next, Pass, Place};
use super::refusal::Refusal;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A call as it will come.
#[derive(Clone, Copy, Debug)]
struct Call {
    at: Duration,
    caller: u16,
    priority: Priority,
    takes: Duration,
    deadline: Option<Duration>,
    /// When its client hangs up.
    leaves: Option<Duration>,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered { began: Duration, ended: Duration },
    Refused(Refusal),
    Cancelled,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    // Slots become free before anything else at the same moment.
    Ends(usize),
    Leaves(usize),
    Comes(usize),
    /// It has waited for long enough.
    Over(usize),
}

struct World<'a> {
    calls: &'a [Call],
    core: Core<usize>,
    limits: Limits,
    events: BTreeSet<(Duration, Event)>,
    waiting: BTreeMap<usize, Place>,
    executing: BTreeMap<usize, (Pass, Duration)>,
    fates: Vec<Option<Fate>>,
    /// Calls whose deadline was not promised.
    probes: BTreeSet<usize>,
    /// Calls that were let in to wait.
    waited: BTreeSet<usize>,
    most_waiting: usize,
}

impl<'a> World<'a> {
    /// Runs until nothing happens any more; what became of each call.
    fn run(calls: &'a [Call], slots: usize, limits: Limits, known: Option<Duration>) -> Self {
        let mut core = Core::new(limits, slots);
        let mut now = Duration::ZERO;
        if let Some(takes) = known {
            let ask = Call { at: now, takes, ..CALL }.ask();
            let Arrival::Through(pass) = core.arrive(&ask, now, || 0) else { panic!("all slots are free") };
            core.begun(&pass);
            core.end(&pass, Ended::Whole(takes));
        }
        let events = calls.iter().enumerate().map(|(at, call)| (call.at, Event::Comes(at))).collect();
        let (waiting, executing) = (BTreeMap::new(), BTreeMap::new());
        let fates = vec![None; calls.len()];
        let mut world = Self {
            calls,
            core,
            limits,
            events,
            waiting,
            executing,
            fates,
            probes: BTreeSet::new(),
            waited: BTreeSet::new(),
            most_waiting: 0,
        };
        while let Some((time, event)) = world.events.pop_first() {
            assert!(time >= now);
            now = time;
            world.happens(event, now);
            world.fill(now);
            world.most_waiting = world.most_waiting.max(world.core.waiting());
            assert!(world.executing.len() <= slots, "never more than slots");
            assert_eq!(world.core.waiting(), world.waiting.len());
            // No slot is free while somebody waits.
            assert!(world.waiting.is_empty() || world.executing.len() == slots);
        }
        assert!(world.waiting.is_empty() && world.executing.is_empty() && world.core.waiting() == 0);
        world
    }

    fn happens(&mut self, event: Event, now: Duration) {
        match event {
            Event::Comes(at) => {
                let call = self.calls[at];
                match self.core.arrive(&call.ask(), now, || at) {
                    Arrival::Through(pass) => self.begin(at, pass, now),
                    Arrival::Refused(refusal) => self.fate(at, Fate::Refused(refusal)),
                    Arrival::Waits(place) => {
                        self.waited.insert(at);
                        self.probes.extend((!self.core.is_promised(&place)).then_some(at));
                        self.waiting.insert(at, place);
                        let until = (now + self.limits.wait).min(call.deadline.unwrap_or(Duration::MAX));
                        self.events.insert((until, Event::Over(at)));
                        if let Some(leaves) = call.leaves {
                            self.events.insert((leaves.max(now), Event::Leaves(at)));
                        }
                    }
                }
                for displaced in self.core.take_displaced() {
                    self.waiting.remove(&displaced).unwrap();
                    self.fate(displaced, Fate::Refused(Refusal::Displaced));
                }
            }
            Event::Ends(at) => {
                let (pass, began) = self.executing.remove(&at).unwrap();
                self.core.end(&pass, Ended::Whole(now - began));
                self.fate(at, Fate::Answered { began, ended: now });
            }
            Event::Leaves(at) => {
                if let Some(place) = self.waiting.remove(&at) {
                    assert_eq!(self.core.leave(&place), Some(at));
                    self.fate(at, Fate::Cancelled);
                }
            }
            Event::Over(at) => {
                if let Some(place) = self.waiting.remove(&at) {
                    assert_eq!(self.core.leave(&place), Some(at));
                    let expired = self.calls[at].deadline.is_some_and(|deadline| deadline <= now);
                    self.fate(at, Fate::Refused(if expired { Refusal::Expired } else { Refusal::Waited }));
                }
            }
        }
    }

    fn fill(&mut self, now: Duration) {
        while let Some(next) = self.core.next(now) {
            match next {
                Next::Through(at, pass) => {
                    self.waiting.remove(&at).unwrap();
                    self.begin(at, pass, now);
                }
                Next::Refused(at, refusal) => {
                    self.waiting.remove(&at).unwrap();
                    self.fate(at, Fate::Refused(refusal));
                }
            }
        }
    }

    fn begin(&mut self, at: usize, pass: Pass, now: Duration) {
        self.core.begun(&pass);
        self.executing.insert(at, (pass, now));
        self.events.insert((now + self.calls[at].takes, Event::Ends(at)));
    }

    fn fate(&mut self, at: usize, fate: Fate) {
        assert_eq!(self.fates[at].replace(fate), None, "one end for each call");
    }

    /// Calls of a kind that were answered with a beginning in a stretch of time.
    fn served(&self, from: Duration, to: Duration, is: impl Fn(&Call) -> bool) -> usize {
        let begun = |fate: &Option<Fate>| matches!(fate, Some(Fate::Answered { began, .. }) if (from..to).contains(began));
        self.calls.iter().zip(&self.fates).filter(|(call, fate)| is(call) && begun(fate)).count()
    }
}

const CALL: Call = Call {
    at: Duration::ZERO,
    caller: 0,
    priority: Priority::Normal,
    takes: ms(20),
    deadline: None,
    leaves: None,
};

impl Call {
    fn ask(&self) -> Ask {
        Ask {
            caller: self.caller,
            priority: self.priority,
            kind: 0,
            bytes: 1,
            admission: Admission::Now,
            deadline: self.deadline,
        }
    }
}

const LIMITS: Limits = Limits { items: 40, bytes: 1 << 20, wait: ms(1000), ageing: ms(100) };

/// Calls that come over some two seconds, in bursts and lulls, and that take `takes`.
fn calls(takes: impl Strategy<Value = Duration> + Clone) -> impl Strategy<Value = Vec<Call>> {
    let call = (
        prop_oneof![3 => Just(0u64), 2 => 0u64..30],
        0u16..4,
        proptest::sample::select(Priority::ALL),
        takes,
        proptest::option::of(1u64..600),
        proptest::option::weighted(0.1, 0u64..300),
    );
    proptest::collection::vec(call, 1..400).prop_map(|calls| {
        let mut at = Duration::ZERO;
        let place = |(gap, caller, priority, takes, deadline, leaves): (
            u64,
            u16,
            Priority,
            Duration,
            Option<u64>,
            Option<u64>,
        )| {
            at += ms(gap);
            let after = |time: Option<u64>| time.map(|time| at + ms(time));
            Call { at, caller, priority, takes, deadline: after(deadline), leaves: after(leaves) }
        };
        calls.into_iter().map(place).collect()
    })
}

/// So many cases in CI, a hundred times as many as a proof.
fn cases(few: u32) -> ProptestConfig {
    ProptestConfig::with_cases(if std::env::var_os("OUTRIGGER_PROVE").is_some() { few * 100 } else { few })
}

proptest! {
    #![proptest_config(cases(200))]

    /// Arrived = answered + refused (expired ones among them) + cancelled, each exactly once, and nothing is left; see [`World::run`].
    #[test]
    fn every_call_has_one_end(
        calls in calls((1u64..60).prop_map(ms)),
        slots in 1usize..6,
        items in 0usize..40,
    ) {
        let world = World::run(&calls, slots, Limits { items, ..LIMITS }, None);
        prop_assert!(world.fates.iter().all(Option::is_some));
        prop_assert!(world.most_waiting <= items);
    }

    /// What is accepted with a deadline ends by it, whoever else comes later, as long as calls take what they are known to take.
    #[test]
    fn no_deadline_is_missed_by_queueing(calls in calls(Just(ms(20))), slots in 1usize..6) {
        let world = World::run(&calls, slots, LIMITS, Some(ms(20)));
        for (at, (call, fate)) in calls.iter().zip(&world.fates).enumerate() {
            let Some(deadline) = call.deadline.filter(|_| !world.probes.contains(&at)) else { continue };
            match fate.unwrap() {
                // One that finds a free slot is begun even if it is known to be late.
                Fate::Answered { began, ended } => prop_assert!(ended <= deadline || began == call.at, "{call:?} {fate:?}"),
                Fate::Refused(Refusal::Expired) => prop_assert!(deadline <= call.at, "{call:?} was accepted"),
                Fate::Refused(Refusal::Deadline(_)) => prop_assert!(!world.waited.contains(&at), "{call:?} was accepted"),
                _ => {}
            }
        }
    }

}

proptest! {
    #![proptest_config(cases(12))]

    /// Callers that always have calls waiting have the same part of the slots, within 10 %, however many calls they bring, however
    /// long those take and whatever deadlines they come with.
    #[test]
    fn callers_share_the_slots(
        weights in proptest::collection::vec(1usize..20, 2..5),
        takes in proptest::collection::vec(5u64..40, 5),
        hurried in 0u16..5,
        slots in 1usize..5,
    ) {
        let mut calls = Vec::new();
        for round in 0..2000u64 {
            for (caller, weight) in (0u16..).zip(&weights) {
                // Never less than twice what all slots can do in the time, so that each always has some waiting.
                let deadline = (caller == hurried).then(|| ms(round * 10 + 900));
                let takes = ms(takes[usize::from(caller)]);
                let call = Call { at: ms(round * 10), caller, takes, deadline, ..CALL };
                calls.extend(std::iter::repeat_n(call, weight + slots));
            }
        }
        let limits = Limits { items: 400, ..LIMITS };
        let world = World::run(&calls, slots, limits, None);
        let time = |caller: u16| {
            let served = world.served(ms(2000), ms(20_000), |call| call.caller == caller);
            served as f64 * takes[usize::from(caller)] as f64
        };
        let times: Vec<f64> = (0..weights.len() as u16).map(time).collect();
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        for time in &times {
            prop_assert!((time / mean - 1.0).abs() <= 0.1, "{times:?}");
        }
    }
}

/// Calls of one kind, evenly over ten seconds.
fn steady(each: Duration, call: Call) -> impl Iterator<Item = Call> {
    let count = ms(10_000).as_micros() / each.as_micros();
    (0..count as u32).map(move |number| Call { at: each * number, ..call })
}

fn in_order(mut calls: Vec<Call>) -> Vec<Call> {
    calls.sort_by_key(|call| call.at);
    calls
}

#[test]
fn what_is_urgent_goes_first_and_nothing_starves() {
    // One slot does 50 in a second; 100 urgent ones come, 10 of the least urgent, from one caller each.
    let urgent = steady(ms(10), Call { priority: Priority::High, ..CALL });
    let low = Call { priority: Priority::Low, caller: 1, at: ms(0), ..CALL };
    let calls = in_order(urgent.chain(steady(ms(100), low)).collect());
    let world = World::run(&calls, 1, LIMITS, Some(ms(20)));
    for (call, fate) in calls.iter().zip(&world.fates).filter(|(call, _)| call.priority == Priority::Low) {
        let Some(Fate::Answered { began, .. }) = fate else { panic!("{call:?} {fate:?}") };
        // It waits for `ageing`, and for the fourth slot after that.
        assert!(*began - call.at <= LIMITS.ageing + ms(20) * 6, "{call:?} {fate:?}");
    }
    let high = world.served(ms(1000), ms(10_000), |call| call.priority == Priority::High);
    assert!(high >= 9 * 50 * 3 / 4, "{high}");
}

#[test]
fn urgent_calls_hardly_wait_while_there_are_few() {
    let low = steady(ms(5), Call { priority: Priority::Low, caller: 1, ..CALL });
    let calls = in_order(low.chain(steady(ms(100), Call { priority: Priority::High, ..CALL })).collect());
    let world = World::run(&calls, 2, LIMITS, Some(ms(20)));
    for (call, fate) in calls.iter().zip(&world.fates).filter(|(call, _)| call.priority == Priority::High) {
        let Some(Fate::Answered { began, .. }) = fate else { panic!("{call:?} {fate:?}") };
        assert!(*began - call.at <= ms(40), "{call:?} {fate:?}");
    }
}

#[test]
fn overload_costs_no_capacity() {
    // Five times what the slots can do, each call to be answered within 200 ms.
    let calls: Vec<Call> =
        steady(ms(2), CALL).map(|call| Call { deadline: Some(call.at + ms(200)), ..call }).collect();
    let world = World::run(&calls, 2, Limits { items: 512, ..LIMITS }, None);
    let late = |fate: &Option<Fate>, call: &Call| matches!(fate, Some(Fate::Answered { ended, .. }) if *ended > call.at + ms(200));
    let served = world.served(ms(0), ms(10_000), |_| true);
    assert!(served >= 990, "{served} of 1000");
    for (call, fate) in calls.iter().zip(&world.fates) {
        // Until those are gone that came when nothing was known yet.
        assert!(!late(fate, call) || call.at <= ms(250), "{call:?} {fate:?}");
    }
}

/// Half of the times that calls waited which were answered.
fn median_wait(world: &World<'_>, is: impl Fn(&Call) -> bool) -> Duration {
    let waited = world.calls.iter().zip(&world.fates).filter(|(call, _)| is(call));
    let mut waited: Vec<Duration> = waited
        .filter_map(|(call, fate)| match fate {
            Some(Fate::Answered { began, .. }) => Some(*began - call.at),
            _ => None,
        })
        .collect();
    waited.sort();
    assert!(!waited.is_empty(), "nothing was answered");
    waited[waited.len() / 2]
}

const WIDE: Limits = Limits { items: 2000, bytes: 1 << 20, wait: ms(30_000), ageing: ms(1000) };

#[test]
fn a_burst_that_came_before_anything_was_known_is_charged_like_any_other() {
    let burst = std::iter::repeat_n(CALL, 400);
    let calls = in_order(burst.chain(steady(ms(200), Call { caller: 1, ..CALL })).collect());
    let world = World::run(&calls, 1, WIDE, None);
    assert!(median_wait(&world, |call| call.caller == 1) <= ms(40));
}

#[test]
fn lesser_priorities_are_let_in_though_the_urgent_could_fill_the_queue() {
    let takes = ms(100);
    let urgent = steady(ms(50), Call { priority: Priority::High, takes, ..CALL });
    let low = Call { priority: Priority::Low, caller: 1, takes, ..CALL };
    let calls = in_order(urgent.chain(steady(ms(1000), low)).collect());
    let world = World::run(&calls, 1, Limits { wait: ms(2000), ..WIDE }, Some(takes));
    for (call, fate) in calls.iter().zip(&world.fates).filter(|(call, _)| call.priority == Priority::Low) {
        assert!(matches!(fate, Some(Fate::Answered { .. })), "{call:?} {fate:?}");
    }
}

#[test]
fn an_estimate_that_was_too_high_heals() {
    // The first call takes five seconds, the others twenty milliseconds, beside one who leaves no slot free.
    let first = Call { caller: 1, takes: ms(5000), ..CALL };
    let flood = steady(ms(10), CALL);
    let later = steady(ms(100), Call { caller: 1, ..CALL });
    let later = later.map(|call| Call { at: call.at + ms(6000), deadline: Some(call.at + ms(6500)), ..call });
    let calls = in_order(std::iter::once(first).chain(flood).chain(later).collect());
    let world = World::run(&calls, 1, Limits { wait: ms(1000), ..WIDE }, None);
    let answered = world.served(ms(9000), ms(16_000), |call| call.deadline.is_some());
    assert!(answered >= 30, "{answered}");
}

#[test]
fn long_deadlines_do_not_put_others_off() {
    // One floods with deadlines of ten seconds; eight others send ten calls a second each.
    let flood = steady(ms(4), CALL).map(|call| Call { deadline: Some(call.at + ms(10_000)), ..call });
    let others = (1..9).flat_map(|caller| {
        steady(ms(100), Call { caller, ..CALL })
            .map(move |call| Call { at: call.at + ms(u64::from(caller) * 12), ..call })
    });
    let calls = in_order(flood.chain(others).collect());
    let world = World::run(&calls, 2, WIDE, Some(ms(20)));
    let late = median_wait(&world, |call| call.caller > 0 && call.at > ms(2000));
    assert!(late <= ms(200), "{late:?}");

    // The same of a lesser priority, beside urgent calls that take nearly all there is.
    let low = Call { priority: Priority::Low, caller: 1, ..CALL };
    let flood = steady(ms(4), low).map(|call| Call { deadline: Some(call.at + ms(10_000)), ..call });
    let urgent = steady(ms(25), Call { priority: Priority::High, ..CALL });
    let urgent = urgent.map(|call| Call { deadline: Some(call.at + ms(200)), ..call });
    let calls = in_order(flood.chain(urgent).collect());
    let world = World::run(&calls, 1, WIDE, Some(ms(20)));
    let high = world.served(ms(2000), ms(10_000), |call| call.priority == Priority::High);
    assert!(high >= 8 * 40 * 3 / 4 - 20, "{high} of {}", 8 * 40);
}

#[test]
fn bytes_are_made_room_for_by_who_holds_them_and_never_in_vain() {
    let limits = Limits { items: 100, bytes: 100, ..WIDE };
    let mut core = Core::new(limits, 1);
    let mut come = |caller, bytes| {
        let arrival = core.arrive(&Ask { bytes, ..Call { caller, ..CALL }.ask() }, ms(0), || (caller, bytes));
        (arrival, core.take_displaced())
    };
    assert!(matches!(come(0, 0).0, Arrival::Through(_)));
    for _ in 0..20 {
        assert!(matches!(come(1, 1).0, Arrival::Waits(_)));
    }
    for _ in 0..2 {
        assert!(matches!(come(2, 40).0, Arrival::Waits(_)));
    }
    let (arrival, displaced) = come(3, 101);
    assert!(matches!(arrival, Arrival::Refused(Refusal::Bytes)) && displaced.is_empty(), "{displaced:?}");
    let (arrival, displaced) = come(3, 60);
    assert!(matches!(arrival, Arrival::Refused(Refusal::Bytes)) && displaced.is_empty(), "it has not less");
    let (arrival, displaced) = come(3, 30);
    assert!(matches!(arrival, Arrival::Waits(_)), "{arrival:?}");
    assert_eq!(displaced, [(2, 40)], "one call of whoever holds the most");
}

#[test]
fn who_comes_after_a_caller_with_long_calls_has_no_more_than_others() {
    let takes = [8, 25, 5, 32];
    let mut calls = Vec::new();
    for round in 0..2000u64 {
        for (caller, takes) in (0u16..).zip(takes) {
            let call = Call { at: ms(round * 10), caller, takes: ms(takes), ..CALL };
            calls.extend(std::iter::repeat_n(call, 8));
        }
    }
    let world = World::run(&calls, 1, Limits { items: 400, ..LIMITS }, None);
    for (caller, takes) in (0u16..).zip(takes) {
        let served = world.served(ms(2000), ms(20_000), |call| call.caller == caller);
        let time = served as f64 * takes as f64;
        assert!((time / 4500.0 - 1.0).abs() < 0.03, "{caller}: {time} of 4500 ms");
    }
}
