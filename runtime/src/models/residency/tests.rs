//! What each decision comes to.

use std::cell::Cell;
use std::time::Duration;

use super::accounts::{Account, Charges};
use super::core::{Core, Left, Options, Usage, Waits, Want};
use super::state::ModelState;
use super::thrash::Thrash;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const OPTIONS: Options =
    Options { loads: 2, loading_bytes: 60, half_life: secs(600), retry: secs(1), max_retry: secs(5) };

const IDLE: Usage = Usage { uses: 0, last: Duration::ZERO, idle: true };

/// One device of so many bytes.
fn core(budget: u64, models: usize) -> Core {
    Core::new(OPTIONS, core_accounts(budget), models)
}

fn core_accounts(budget: u64) -> Vec<Account> {
    vec![Account { budget: Some(budget), main: 0, held: 0 }]
}

fn on(bytes: u64) -> Charges {
    vec![(0, bytes)]
}

/// Begins a load that fits.
fn begin(core: &mut Core, model: usize, bytes: u64, now: Duration) {
    assert!(matches!(core.want(model, now), Want::Loading { .. }));
    assert_eq!(core.next(now), Some(model));
    assert!(core.reserve(model, on(bytes)));
}

/// Loads a model that fits, in the last second.
fn load(core: &mut Core, model: usize, bytes: u64, now: Duration) {
    begin(core, model, bytes, now - secs(1));
    assert_eq!(core.loaded(model, on(bytes), now), Charges::new());
}

fn evict(core: &mut Core, model: usize, now: Duration) {
    core.leaving(model, now);
    core.left(model, Left::Evicted, now);
}

fn victims(core: &mut Core, model: usize, bytes: u64, now: Duration) -> Option<Vec<usize>> {
    core.victims(model, &on(bytes), &|_| IDLE, now)
}

#[test]
fn a_load_that_fails_is_tried_again_after_longer_and_longer() {
    let mut core = core(100, 1);
    let mut now = secs(0);
    for wait in [1, 2, 4, 5, 5] {
        begin(&mut core, 0, 10, now);
        core.failed(0, "no such file".into(), now);
        assert_eq!(core.held(None), [0]);
        let failed = |retry_after| Want::Failed { reason: "no such file".into(), retry_after };
        assert_eq!(core.want(0, now), failed(secs(wait)));
        now += secs(wait);
        assert_eq!(core.want(0, now - Duration::from_millis(1)), failed(Duration::from_millis(1)));
        assert_eq!((core.phase(0), core.next(now)), (ModelState::Failed, None));
    }
    now += secs(1);
    load(&mut core, 0, 10, now);
    evict(&mut core, 0, now);
    begin(&mut core, 0, 10, now);
    core.failed(0, "again".into(), now);
    assert_eq!(core.want(0, now), Want::Failed { reason: "again".into(), retry_after: secs(1) });
    assert!(matches!(core.want(7, now), Want::Failed { .. }), "there is none");
}

#[test]
fn what_is_away_is_fetched_before_it_has_its_place_in_the_queue() {
    let mut core = core(100, 3);
    core.is_away(0, 50);
    core.is_away(1, 100);
    assert_eq!((core.phase(0), core.next(secs(0))), (ModelState::Registered, None));
    assert!(matches!(core.want(0, secs(1)), Want::Loading { .. }));
    core.want(2, secs(1));
    core.want(0, secs(2));
    assert_eq!(
        (core.phase(0), core.next(secs(2))),
        (ModelState::Fetching, Some(2)),
        "others are not held up"
    );
    core.fetched(0, secs(3));
    core.fetched(0, secs(3));
    assert_eq!([core.next(secs(3)), core.next(secs(3))], [Some(0), None], "once");
    assert!(core.reserve(0, on(10)));
    core.loaded(0, on(10), secs(4));
    evict(&mut core, 0, secs(5));
    assert_eq!(core.phase(0), ModelState::OnDisk, "its files stay");
    // What is known of fetching and of loading: two seconds of fifty bytes, one for each load.
    let Want::Loading { eta } = core.want(1, secs(10)) else { panic!("it is wanted") };
    assert_eq!((eta, core.eta(1, secs(11))), (secs(3), secs(2)));
    core.failed(1, "it is not there".into(), secs(11));
    assert_eq!(
        (core.want(1, secs(12)), core.phase(1)),
        (Want::Loading { eta: secs(3) }, ModelState::Fetching)
    );
}

#[test]
fn an_ensemble_is_put_together_by_who_wants_it_and_waits_for_nobody() {
    let mut core = core(100, 3);
    core.is_assembled(0);
    core.is_away(0, 10);
    // Files come first, and then there is no queue.
    assert!(matches!(core.want(0, secs(0)), Want::Loading { .. }));
    core.fetched(0, secs(1));
    assert_eq!((core.phase(0), core.next(secs(1))), (ModelState::OnDisk, None));
    assert_eq!(core.want(0, secs(1)), Want::Assemble);
    assert!(matches!(core.want(0, secs(1)), Want::Loading { .. }), "one does it");
    begin(&mut core, 1, 10, secs(1));
    begin(&mut core, 2, 10, secs(1));
    core.warming(0);
    assert_eq!(
        core.loaded(0, Charges::new(), secs(2)),
        Charges::new(),
        "it has no part in what loads are bounded by"
    );
    assert_eq!(core.want(0, secs(2)), Want::Ready);
    // Nobody makes way in it, and it is nobody's to make way.
    assert_eq!(victims(&mut core, 1, 100, secs(2)), None);
    core.leaving(0, secs(3));
    assert!(matches!(core.want(0, secs(3)), Want::Loading { .. }));
    core.left(0, Left::Asked, secs(3));
    assert_eq!((core.phase(0), core.want(0, secs(3))), (ModelState::OnDisk, Want::Assemble));
    core.failed(0, "a sample".into(), secs(3));
    assert!(matches!(core.want(0, secs(3)), Want::Failed { .. }));
    assert_eq!(core.want(0, secs(9)), Want::Assemble);
}

#[test]
fn a_number_is_another_s_once_its_model_is_gone() {
    let mut core = core(100, 2);
    load(&mut core, 0, 10, secs(1));
    core.pin(0, true);
    core.keep(1, true);
    assert!(!core.remove(0), "it is loaded");
    core.leaving(0, secs(1));
    assert!(!core.remove(0), "it has not left");
    core.left(0, Left::Asked, secs(1));
    assert!(core.remove(0));
    assert_eq!([core.add(), core.add()], [0, 2]);
    assert!(!core.is_pinned(0) && core.phase(0) == ModelState::OnDisk);
    // What is kept for a while does not make way.
    load(&mut core, 1, 60, secs(2));
    assert_eq!(victims(&mut core, 2, 60, secs(3)), None);
    core.keep(1, false);
    assert_eq!(victims(&mut core, 2, 60, secs(3)), Some(vec![1]));
}

#[test]
fn what_is_wanted_while_it_leaves_comes_back_in_its_turn() {
    let mut core = core(100, 3);
    load(&mut core, 0, 10, secs(1));
    core.leaving(0, secs(1));
    core.want(0, secs(2));
    core.want(0, secs(2));
    core.want(1, secs(3));
    assert_eq!((core.phase(0), core.held(None)), (ModelState::Draining, vec![10]));
    assert_eq!(core.next(secs(3)), Some(1), "the first one cannot be loaded yet");
    core.want(2, secs(4));
    core.left(0, Left::Asked, secs(4));
    assert_eq!((core.phase(0), core.held(None)), (ModelState::Queued, vec![0]));
    assert_eq!([core.next(secs(4)), core.next(secs(4))], [Some(0), None]);
    core.failed(1, "no".into(), secs(4));
    assert_eq!([core.next(secs(4)), core.next(secs(4))], [Some(2), None]);
}

#[test]
fn who_leaves_is_used_little_for_its_size_and_is_needed() {
    let mut core = core(100, 9);
    // The last three are in use, pinned, and on their way out.
    for (model, bytes) in [10, 10, 10, 40, 10, 10, 10].into_iter().enumerate() {
        load(&mut core, model, bytes, secs(model as u64 + 1));
    }
    core.pin(5, true);
    core.leaving(6, secs(7));
    let uses = [0, 10, 20, 60, 0, 0, 0];
    let usage = |model: usize| Usage { uses: uses[model], last: secs(50), idle: model != 4 };
    let mut ask = |bytes| core.victims(7, &on(bytes), &usage, secs(60));
    assert_eq!(ask(10), Some(vec![]), "it gets the memory of what leaves");
    assert_eq!(ask(20), Some(vec![0]));
    assert_eq!(ask(30), Some(vec![0, 1]));
    assert_eq!(ask(50), Some(vec![3]), "what is too small to help stays");
    assert_eq!(ask(60), Some(vec![0, 3]));
    assert_eq!(ask(80), Some(vec![0, 1, 3, 2]));
    assert_eq!(ask(81), None);
    assert_eq!(core.held_at_least(Some(7), &usage), [20]);
    assert!(core.may_change(7, &usage));
    core.left(6, Left::Evicted, secs(60));
    assert!(core.may_change(7, &usage) && !core.may_change(7, &|_| IDLE), "one is in use");
}

#[test]
fn what_is_used_is_remembered_while_it_is_away() {
    let mut core = core(100, 3);
    let uses = Cell::new([0; 3]);
    let last = Cell::new(secs(3));
    let usage = |model: usize| Usage { uses: uses.get()[model], last: last.get(), idle: true };
    load(&mut core, 0, 50, secs(1));
    load(&mut core, 1, 50, secs(2));
    uses.set([50, 3, 0]);
    assert_eq!(core.victims(2, &on(50), &usage, secs(4)), Some(vec![1]));
    evict(&mut core, 0, secs(5));
    load(&mut core, 0, 50, secs(9));
    last.set(secs(10));
    assert_eq!(core.victims(2, &on(50), &usage, secs(11)), Some(vec![1]));
    // Long after that it is worth no more than others.
    evict(&mut core, 0, secs(12));
    load(&mut core, 0, 50, secs(20_000));
    uses.set([50, 200, 0]);
    last.set(secs(20_001));
    assert_eq!(core.victims(2, &on(50), &usage, secs(20_002)), Some(vec![0]));
}

#[test]
fn what_leaves_for_one_is_not_taken_by_another() {
    let mut core = core(100, 4);
    load(&mut core, 0, 50, secs(1));
    load(&mut core, 1, 50, secs(2));
    [2, 3].into_iter().for_each(|model| drop(core.want(model, secs(2))));
    assert_eq!([core.next(secs(2)), core.next(secs(2))], [Some(2), Some(3)]);
    let first = victims(&mut core, 2, 40, secs(2)).unwrap();
    core.leaving(first[0], secs(2));
    assert_eq!(victims(&mut core, 2, 40, secs(3)), Some(vec![]), "it has asked already");
    let second = victims(&mut core, 3, 20, secs(3)).unwrap();
    assert_eq!([first[0], second[0]], [0, 1]);
    core.left(0, Left::Evicted, secs(4));
    assert!(!core.reserve(3, on(20)) && core.reserve(2, on(40)));
    // What it has is free again if it comes to nothing.
    core.failed(2, "no".into(), secs(4));
    assert_eq!(victims(&mut core, 3, 20, secs(4)), Some(vec![]));
    assert!(core.reserve(3, on(20)));
}

#[test]
fn loads_reserve_so_much_together_and_one_alone_more() {
    let mut core = core(200, 3);
    for model in [0, 1] {
        core.want(model, secs(0));
        assert_eq!(core.next(secs(0)), Some(model));
    }
    assert!(core.reserve(0, on(80)) && !core.reserve(1, on(1)));
    core.loaded(0, on(80), secs(1));
    assert!(core.reserve(1, on(30)));
    core.want(2, secs(1));
    assert_eq!(core.next(secs(1)), Some(2));
    assert!(!core.reserve(2, on(31)) && core.reserve(2, on(30)));
}

#[test]
fn a_load_that_waits_for_room_lets_others_go_first() {
    let mut core = Core::new(Options { loads: 1, ..OPTIONS }, core_accounts(100), 3);
    load(&mut core, 0, 50, secs(2));
    let in_use = |_| Usage { idle: false, ..IDLE };
    core.want(1, secs(3));
    core.want(2, secs(3));
    assert_eq!([core.next(secs(3)), core.next(secs(3))], [Some(1), None]);
    assert_eq!(core.victims(1, &on(60), &in_use, secs(3)), None);
    assert!(core.waits(1, Waits::Room) && !core.waits(1, Waits::Room), "it says once that it waits");
    assert_eq!(core.next(secs(3)), Some(2));
    assert!(core.reserve(2, on(10)));
    // It has room now, and another is at it.
    evict(&mut core, 0, secs(4));
    assert!(!core.has_turn(1, 60) && !core.reserve(1, on(60)));
    core.waits(1, Waits::Turn);
    core.want(0, secs(4));
    core.loaded(2, on(10), secs(4));
    assert!(core.next(secs(4)).is_none(), "who waits for its turn has it before who comes later");
    assert!(core.has_turn(1, 60) && core.reserve(1, on(60)));
    assert!(core.next(secs(4)).is_none());
}

#[test]
fn a_device_that_another_library_drives_has_what_is_left_of_it() {
    let account = |main, budget, held| Account { budget, main, held };
    let accounts = vec![account(0, Some(100), 10), account(1, Some(5), 9), account(0, Some(60), 0)];
    let mut core = Core::new(Options { loads: 9, loading_bytes: 900, ..OPTIONS }, accounts, 4);
    for model in 0..4 {
        core.want(model, secs(0));
        assert_eq!(core.next(secs(0)), Some(model));
    }
    assert!(core.reserve(0, vec![(0, 15), (0, 15)]) && !core.reserve(1, vec![(2, 61)]));
    assert!(core.reserve(1, vec![(2, 60)]) && !core.reserve(2, on(1)));
    assert!(core.reserve(2, vec![(0, 0), (1, 0), (7, 7)]), "nothing, where it is over already");
    // They are measured to hold more than was thought.
    assert_eq!(core.loaded(0, on(45), secs(1)), [(0, 15)]);
    assert_eq!(core.loaded(1, vec![(2, 70)], secs(1)), [(0, 25), (2, 10)]);
    assert_eq!(core.loaded(2, vec![(1, 1)], secs(1)), [(1, 5)]);
    assert_eq!(core.held(None), [55, 10, 70]);
    assert_eq!(core.held(Some(1)), [55, 10, 0]);
    assert_eq!(core.victims(3, &on(1), &|_| IDLE, secs(2)).map(|victims| victims.len()), Some(1));
    assert_eq!(core.victims(3, &vec![(1, 1)], &|_| IDLE, secs(2)), None);
}

#[test]
fn how_long_a_load_takes_is_learned() {
    let mut core = core(1 << 40, 9);
    assert_eq!(core.want(0, secs(0)), Want::Loading { eta: secs(5) });
    core.expect_bytes(1, 200);
    core.next(secs(0));
    assert_eq!([0, 3, 8, 20].map(|now| core.eta(0, secs(now))), [5, 2, 2, 5].map(secs), "it is late");
    core.loaded(0, on(100), secs(20));
    assert_eq!([core.eta(0, secs(20)), core.eta(1, secs(20))], [secs(0), secs(20)]);
    // Two seconds each, and one for each ten bytes.
    let mut now = secs(20);
    for (model, bytes, takes) in [(2, 300, 32), (3, 100, 12), (4, 500, 52), (0, 100, 12)].repeat(9) {
        evict(&mut core, model, now);
        begin(&mut core, model, bytes, now);
        now += secs(takes);
        core.loaded(model, on(bytes), now);
    }
    for (model, bytes, takes) in [(1, 200, 22.0), (5, 1000, 102.0)] {
        core.expect_bytes(model, bytes);
        let eta = core.eta(model, now).as_secs_f64();
        assert!((eta / takes - 1.0).abs() < 0.1, "{eta} s, not about {takes}");
    }
    evict(&mut core, 4, now);
    assert_eq!(core.want(4, now), Want::Loading { eta: secs(52) }, "as the last time");
    evict(&mut core, 3, now);
    assert_eq!(core.want(3, now), Want::Loading { eta: secs(26 + 12) }, "two at a time");
}

#[test]
fn models_that_come_back_again_and_again_are_spoken_of_once() {
    let mut core = core(100, 4);
    let mut now = secs(1);
    // Two of three fit, and all of them are used in turn; the fourth was used once, long ago.
    load(&mut core, 3, 60, now);
    evict(&mut core, 3, now);
    assert_eq!(core.thrash(secs(301)), None);
    for round in 0..60 {
        now = secs(302) + secs(2) * round;
        let model = round as usize % 3;
        if round > 1 {
            evict(&mut core, (model + 1) % 3, now - secs(1));
        }
        load(&mut core, model, 50, now);
    }
    assert_eq!(core.thrash(now), None, "not yet");
    let budgets = vec![(0, 165)];
    let thrash = Thrash { window: secs(300), loads: 60, reloads: 57, loading: secs(60), budgets };
    assert_eq!(core.thrash(secs(601)), Some(thrash));
    assert_eq!([core.thrash(secs(602)), core.thrash(secs(1000))], [None, None]);
}
