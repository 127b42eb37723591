//! Whose fault it is that a call fails, and what is counted of its runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrigger_backend::{DataType, ModelInfo, TensorInfo};

use super::residence::{CHAIN, diamond};
use super::{Rig, next, twice};
use crate::models::begun::PATIENCE;
use crate::models::tests::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_ends_the_others_and_is_named_and_blamed_alone() {
    let rig = Arc::new(diamond([(0, false), (0, false), (1, false), (0, false)]));
    let (left, right) = (Arc::clone(&rig.calcs["next"][0]), Arc::clone(&rig.calcs["twice"][0]));
    left.waits.store(true, Ordering::Relaxed);
    right.waits.store(true, Ordering::Relaxed);
    right.fails.store(true, Ordering::Relaxed);
    let calls = Arc::clone(&rig);
    let call = tokio::spawn(async move { calls.call("e", &[&[4.0]], &[0]).await });
    until(|| [&left, &right].iter().all(|calc| !calc.seen.lock().unwrap().is_empty())).await;
    // One that nobody waits for after that long counts as failed.
    tokio::time::sleep(PATIENCE).await;
    right.waits.store(false, Ordering::Relaxed);
    let said = call.await.unwrap().unwrap_err();
    assert_eq!(said, "model_failed: node `right` (model `twice`): model `twice` failed; the log says why");
    until(|| left.cancelled.load(Ordering::Relaxed)).await;
    assert_eq!(rig.counts("twice"), (1, 1));
    assert_eq!(rig.counts("next"), (0, 0), "it was at it, and left through no fault of its own");
    assert_eq!(rig.counts("split"), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_take_too_much_is_nobody_s_fault() {
    let mut rig = diamond([(0, false), (0, false), (1, false), (0, false)]);
    rig.models.ensemble_bytes = 16 * 2;
    let said = rig.call("e", &[&[1.0; 4]], &[0]).await.unwrap_err();
    assert!(said.starts_with("invalid_tensor: with node `"), "{said}");
    assert!(["next", "twice", "add"].iter().all(|name| rig.counts(name).1 == 0));
}

#[tokio::test]
async fn a_tensor_that_does_not_fit_is_the_giver_s_fault() {
    let vector = |name: &str, extent: (i64, &str)| TensorInfo::new(name, DataType::Fp32, &[extent]);
    let mut rig = Rig::new(1);
    let wide = ModelInfo { inputs: vec![vector("x", (-1, "n"))], outputs: vec![vector("y", (-1, "m"))] };
    rig.model_of("next", wide, next, &[(0, false)]);
    let pair = ModelInfo { inputs: vec![vector("x", (2, ""))], outputs: vec![vector("y", (2, ""))] };
    rig.model_of("twice", pair, twice, &[(0, false)]);
    rig.ensemble("e", CHAIN);
    let rig = rig.ready();
    assert_eq!(rig.one("e", &[&[1.0, 2.0]]).await, [4.0, 6.0]);
    let said = rig.call("e", &[&[1.0; 3]], &[0]).await.unwrap_err();
    let text = "model_failed: node `a` (model `next`): output `y` is FP32 [3], and node `b`, to which it goes, takes FP32 [2]";
    assert_eq!(said, text);
    assert_eq!((rig.counts("next"), rig.counts("twice")), ((2, 1), (1, 0)));
}

#[tokio::test]
async fn what_nodes_give_is_not_the_caller_s_fault() {
    let vector = |name: &str, extent: (i64, &str)| TensorInfo::new(name, DataType::Fp32, &[extent]);
    // Two that are not equally long, each as its model may give it: neither the caller's fault, nor that of who does not take them.
    let mut rig = Rig::new(1);
    let info = ModelInfo { inputs: vec![vector("x", (-1, "n"))], outputs: vec![vector("y", (-1, "m"))] };
    rig.model_of("longer", info, |rows| vec![[rows.concat(), vec![0.0]].concat()], &[(0, false)]);
    rig.model("next", &["x"], &["y"], next, &[(0, false)]);
    rig.model("add", &["one", "other"], &["y"], super::add, &[(0, false)]);
    rig.ensemble(
        "e",
        "inputs = [{name = 'i'}]
        outputs = [{name = 'o', from = 'add.y'}]
        nodes = [{model = 'longer', inputs = {x = 'i'}}, {model = 'next', inputs = {x = 'i'}}, {model = 'add', inputs = {one = 'longer.y', other = 'next.y'}}]",
    );
    let rig = rig.ready();
    let said = rig.call("e", &[&[1.0]], &[0]).await.unwrap_err();
    assert!(said.starts_with("model_failed: node `add` (model `add`): `n` is 2 in input `one`"), "{said}");
    assert!(said.ends_with("all that it takes comes from other nodes"), "{said}");
    assert_eq!(rig.counts("add"), (0, 0));
}

#[tokio::test]
async fn a_run_is_a_call_of_its_model_in_statistics_too() {
    let mut rig = Rig::new(1);
    rig.model("next", &["x"], &["y"], next, &[(0, false)]);
    rig.model("twice", &["x"], &["y"], twice, &[(0, false)]);
    rig.ensemble("e", CHAIN);
    let within = "inputs = [{name = 'i'}]
        outputs = [{name = 'o', from = 'e.o'}, {name = 'p', from = 'next.y'}]
        nodes = [{model = 'e', inputs = {i = 'i'}}, {model = 'next', inputs = {x = 'i'}}]";
    rig.ensemble("f", within);
    let rig = rig.ready();
    assert_eq!(rig.one("f", &[&[1.0]]).await, [4.0]);
    assert_eq!((rig.runs("next"), rig.runs("twice"), rig.runs("e")), ((1, 1), (1, 1), (1, 1)));
    assert_eq!(rig.counts("e"), (1, 0));
    assert_eq!(rig.runs("f"), (0, 1), "that its answer was written is counted by whoever does that");
    // What is not needed is not called.
    rig.call("f", &[&[1.0]], &[1]).await.unwrap();
    assert_eq!((rig.runs("next"), rig.runs("e"), rig.counts("e")), ((2, 2), (1, 1), (1, 0)));
    rig.calcs["twice"][0].fails.store(true, Ordering::Relaxed);
    rig.call("f", &[&[1.0]], &[0]).await.unwrap_err();
    assert_eq!((rig.counts("e"), rig.counts("twice"), rig.counts("next")), ((2, 1), (2, 1), (3, 0)));
}
