//! Where tensors are on their way from node to node, in which order nodes run, and what becomes of them when a call ends early.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrigger_backend::{DataType, ModelInfo, TensorInfo};

use super::{Copy, Rig, Seen, add, next, split, twice};
use crate::models::tests::until;

pub(super) const CHAIN: &str = "
    inputs = [{name = 'i'}]
    outputs = [{name = 'o', from = 'b.y'}]
    nodes = [{name = 'a', model = 'next', inputs = {x = 'i'}}, {name = 'b', model = 'twice', inputs = {x = 'a.y'}}]";

fn chain(first: &[Copy], second: &[Copy]) -> Rig {
    let mut rig = Rig::new(2);
    rig.model("next", &["x"], &["y"], next, first);
    rig.model("twice", &["x"], &["y"], twice, second);
    rig.ensemble("e", CHAIN);
    rig.ready()
}

/// What the only run of a copy has seen.
fn seen(rig: &Rig, model: &str, copy: usize) -> Vec<Seen> {
    let seen = rig.calcs[model][copy].seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    seen[0].clone()
}

#[tokio::test]
async fn a_tensor_of_the_host_s_memory_is_passed_on_where_it_is() {
    let rig = chain(&[(0, false)], &[(0, false)]);
    assert_eq!(rig.one("e", &[&[1.0, 2.0]]).await, [4.0, 6.0]);
    let gave = rig.calcs["next"][0].gave.lock().unwrap()[0];
    assert_eq!(seen(&rig, "twice", 0), [Seen::Host(gave)], "the same bytes");
    assert_eq!(rig.stayed("e"), (0, 1));
}

#[tokio::test]
async fn a_tensor_stays_on_the_device_where_both_nodes_are() {
    let rig = chain(&[(1, true)], &[(1, true)]);
    assert_eq!(rig.one("e", &[&[1.0, 2.0]]).await, [4.0, 6.0]);
    assert_eq!(seen(&rig, "twice", 0), [Seen::Device(1)]);
    assert_eq!(rig.stayed("e"), (1, 0));
    let lease = rig.stable("e").lease().unwrap();
    assert_eq!(lease.pick().header().unwrap(), "gpu:1");
}

#[tokio::test]
async fn who_takes_a_tensor_has_its_copy_there() {
    // The first copy of the second model is elsewhere, and as little at work.
    let rig = chain(&[(1, true)], &[(0, true), (1, true)]);
    assert_eq!(rig.one("e", &[&[1.0]]).await, [4.0]);
    assert_eq!(seen(&rig, "twice", 1), [Seen::Device(1)]);
    assert_eq!(rig.stayed("e"), (1, 0));
}

#[tokio::test]
async fn what_cannot_stay_comes_to_the_host() {
    for (first, second) in [((0, true), (1, true)), ((0, true), (0, false)), ((0, false), (0, true))] {
        let rig = chain(&[first], &[second]);
        assert_eq!(rig.one("e", &[&[1.0]]).await, [4.0]);
        assert!(matches!(seen(&rig, "twice", 0)[..], [Seen::Host(_)]), "{first:?} {second:?}");
        assert_eq!(rig.stayed("e"), (0, 1));
    }
}

/// Two go from one, each its own way, and meet again.
const DIAMOND: &str = "
    inputs = [{name = 'i'}]
    outputs = [{name = 'sum', from = 'sum.y'}, {name = 'half', from = 'split.half'}]
    nodes = [
        {model = 'split', inputs = {x = 'i'}},
        {name = 'left', model = 'next', inputs = {x = 'split.half'}},
        {name = 'right', model = 'twice', inputs = {x = 'split.square'}},
        {name = 'sum', model = 'add', inputs = {one = 'left.y', other = 'right.y'}},
    ]";

pub(super) fn diamond(devices: [Copy; 4]) -> Rig {
    let mut rig = Rig::new(2);
    rig.model("split", &["x"], &["half", "square"], split, &[devices[0]]);
    rig.model("next", &["x"], &["y"], next, &[devices[1]]);
    rig.model("twice", &["x"], &["y"], twice, &[devices[2]]);
    rig.model("add", &["one", "other"], &["y"], add, &[devices[3]]);
    rig.ensemble("e", DIAMOND);
    rig.ready()
}

#[tokio::test]
async fn what_a_caller_wants_comes_to_the_host_and_the_rest_stays() {
    let rig = diamond([(0, true); 4]);
    // 4 / 2 + 1 + 2 · 4²
    assert_eq!(rig.one("e", &[&[4.0]]).await, [35.0]);
    assert_eq!(rig.stayed("e"), (4, 0), "half is wanted by nobody outside");
    let both = rig.call("e", &[&[4.0]], &[1, 0]).await.unwrap();
    assert!(both.iter().all(|tensor| tensor.resident().is_none()));
    assert_eq!((super::values(&both[0]), super::values(&both[1])), (vec![2.0], vec![35.0]));
    assert_eq!(
        rig.stayed("e"),
        (7, 0),
        "an output that goes to a node, too, is no more between nodes than for the caller"
    );
    // One of those who take it is elsewhere.
    let rig = diamond([(0, true), (0, true), (1, true), (0, true)]);
    assert_eq!(rig.one("e", &[&[4.0]]).await, [35.0]);
    assert_eq!(rig.stayed("e"), (2, 2), "what `right` takes, and what it gives");
}

#[tokio::test]
async fn only_what_is_needed_runs() {
    let rig = diamond([(0, false); 4]);
    let half = rig.call("e", &[&[4.0]], &[1]).await.unwrap();
    assert_eq!(super::values(&half[0]), [2.0]);
    for idle in ["next", "twice", "add"] {
        assert!(rig.calcs[idle][0].seen.lock().unwrap().is_empty(), "{idle}");
    }
    // Nor has anything of it a place anywhere.
    let rig = diamond([(0, false), (1, false), (1, false), (1, false)]);
    let lease = rig.stable("e").lease().unwrap();
    assert_eq!(lease.pick_for(Some(&[1])).header().unwrap(), "gpu:0");
    assert_eq!(lease.pick().header().unwrap(), "gpu:0, gpu:1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_runs_are_under_way_than_may_be() {
    let mut rig = diamond([(0, false), (0, false), (1, false), (0, false)]);
    rig.models.ensemble_runs = 1;
    let rig = Arc::new(rig);
    let both = ["next", "twice"].map(|name| Arc::clone(&rig.calcs[name][0]));
    both.iter().for_each(|calc| calc.waits.store(true, Ordering::Relaxed));
    let begun = || both.iter().filter(|calc| !calc.seen.lock().unwrap().is_empty()).count();
    let calls = Arc::clone(&rig);
    let call = tokio::spawn(async move { calls.one("e", &[&[4.0]]).await });
    until(|| begun() == 1).await;
    let first = both.iter().position(|calc| !calc.seen.lock().unwrap().is_empty()).unwrap();
    both[first].waits.store(false, Ordering::Relaxed);
    until(|| begun() == 2).await;
    both[1 - first].waits.store(false, Ordering::Relaxed);
    assert_eq!(call.await.unwrap(), [35.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_wait_for_each_other_run_at_once() {
    let rig = Arc::new(diamond([(0, false), (0, false), (1, false), (0, false)]));
    let (left, right) = (Arc::clone(&rig.calcs["next"][0]), Arc::clone(&rig.calcs["twice"][0]));
    left.waits.store(true, Ordering::Relaxed);
    right.waits.store(true, Ordering::Relaxed);
    let calls = Arc::clone(&rig);
    let call = tokio::spawn(async move { calls.one("e", &[&[4.0]]).await });
    until(|| [&left, &right].iter().all(|calc| !calc.seen.lock().unwrap().is_empty())).await;
    left.waits.store(false, Ordering::Relaxed);
    right.waits.store(false, Ordering::Relaxed);
    assert_eq!(call.await.unwrap(), [35.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_leaves_all_runs_and_what_it_had() {
    let rig = Arc::new(diamond([(0, false), (0, false), (1, false), (0, false)]));
    let (left, right) = (Arc::clone(&rig.calcs["next"][0]), Arc::clone(&rig.calcs["twice"][0]));
    left.waits.store(true, Ordering::Relaxed);
    right.waits.store(true, Ordering::Relaxed);
    let calls = Arc::clone(&rig);
    let call = tokio::spawn(async move { calls.one("e", &[&[4.0]]).await });
    until(|| [&left, &right].iter().all(|calc| !calc.seen.lock().unwrap().is_empty())).await;
    call.abort();
    until(|| [&left, &right].iter().all(|calc| calc.cancelled.load(Ordering::Relaxed))).await;
    assert!(rig.calcs["add"][0].seen.lock().unwrap().is_empty());
    until(|| rig.named.values().all(|named| named.stable().usage().idle)).await;
}

#[tokio::test]
async fn what_goes_between_nodes_is_bounded() {
    let mut rig = diamond([(0, false); 4]);
    // The most at once: half and square, what was made of them, and the sum.
    let (four, most) = ([1.0; 4], 16 * 5);
    rig.models.ensemble_bytes = most;
    assert!(rig.call("e", &[&four], &[0, 1]).await.is_ok());
    rig.models.ensemble_bytes = 16 * 2;
    let said = rig.call("e", &[&four], &[0, 1]).await.unwrap_err();
    let text = "the tensors between nodes take 48 bytes, more than limits.ensemble, 32 bytes";
    assert!(said.starts_with("invalid_tensor: with node `") && said.ends_with(text), "{said}");
}

#[tokio::test]
async fn a_part_of_a_batch_counts_as_the_batch_that_it_keeps() {
    // How large its result is nobody knows beforehand, so that the model gives memory of its own.
    let free = |name: &str, symbol: &str| TensorInfo::new(name, DataType::Fp32, &[(-1, symbol)]);
    let info = ModelInfo { inputs: vec![free("x", "n")], outputs: vec![free("y", "m")] };
    let mut rig = Rig::new(1);
    rig.model_of("next", info, next, &[(0, false)]);
    rig.model("twice", &["x"], &["y"], twice, &[(0, false)]);
    rig.ensemble("e", CHAIN);
    let mut rig = rig.ready();
    rig.calcs["next"][0].keeps.store(1 << 16, Ordering::Relaxed);
    for (limit, is_same) in [(1 << 17, true), (1 << 10, false)] {
        rig.models.ensemble_bytes = limit;
        rig.calcs["twice"][0].seen.lock().unwrap().clear();
        assert_eq!(rig.one("e", &[&[1.0, 2.0]]).await, [4.0, 6.0]);
        let gave = *rig.calcs["next"][0].gave.lock().unwrap().last().unwrap();
        assert_eq!(seen(&rig, "twice", 0) == [Seen::Host(gave)], is_same, "{limit}");
    }
    rig.models.ensemble_bytes = 4;
    let said = rig.call("e", &[&[1.0, 2.0]], &[0]).await.unwrap_err();
    assert!(said.contains("the tensors between nodes take 8 bytes"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_runs_that_may_give_anything_no_more_are_under_way_than_there_is_room_for() {
    let free = |name: &str, symbol: &str| TensorInfo::new(name, DataType::Fp32, &[(-1, symbol)]);
    let info = || ModelInfo { inputs: vec![free("x", "n")], outputs: vec![free("y", "m")] };
    for (limit, at_once) in [(1 << 17, 2), ((1 << 17) - 1, 1)] {
        let mut rig = Rig::new(2);
        rig.model_of("next", info(), next, &[(0, false)]);
        rig.model_of("twice", info(), twice, &[(1, false)]);
        rig.ensemble(
            "e",
            "inputs = [{name = 'i'}]
            outputs = [{name = 'o', from = 'next.y'}, {name = 'p', from = 'twice.y'}]
            nodes = [{model = 'next', inputs = {x = 'i'}}, {model = 'twice', inputs = {x = 'i'}}]",
        );
        let mut rig = rig.ready();
        (rig.models.ensemble_bytes, rig.models.run_bytes) = (limit, 1 << 16);
        let rig = Arc::new(rig);
        let both = ["next", "twice"].map(|name| Arc::clone(&rig.calcs[name][0]));
        both.iter().for_each(|calc| calc.waits.store(true, Ordering::Relaxed));
        let has_begun = |at: usize| !both[at].seen.lock().unwrap().is_empty();
        let calls = Arc::clone(&rig);
        let call = tokio::spawn(async move { calls.call("e", &[&[4.0]], &[0, 1]).await.unwrap() });
        until(|| (0..2).filter(|at| has_begun(*at)).count() == at_once).await;
        let first = (0..2).find(|at| has_begun(*at)).unwrap();
        both[first].waits.store(false, Ordering::Relaxed);
        until(|| has_begun(1 - first)).await;
        both[1 - first].waits.store(false, Ordering::Relaxed);
        let given = call.await.unwrap();
        assert_eq!((super::values(&given[0]), super::values(&given[1])), (vec![5.0], vec![8.0]));
    }
}
