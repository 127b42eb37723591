//! What callers send and get, as it follows from the models; and of which versions an ensemble can be made.

use outrigger_backend::{DataType, ModelInfo, TensorInfo};

use super::super::{Unfit, types};
use super::{Rig, graph, next, split, twice};

fn shown(info: &[TensorInfo]) -> Vec<String> {
    let one = |info: &TensorInfo| {
        let extents: Vec<_> = info
            .dimensions()
            .map(|(extent, symbol)| if symbol.is_empty() { extent.to_string() } else { symbol.to_owned() })
            .collect();
        format!("{}: {} [{}]", info.name, info.data_type, extents.join(", "))
    };
    info.iter().map(one).collect()
}

#[test]
fn extents_that_must_be_equal_have_one_name() {
    use DataType::{Fp32, Int64};
    let image = ModelInfo {
        inputs: vec![TensorInfo::new("x", Fp32, &[(-1, "batch"), (-1, "size"), (-1, "")])],
        outputs: vec![TensorInfo::new("y", Fp32, &[(-1, "batch"), (8, "")])],
    };
    let text = ModelInfo {
        inputs: vec![TensorInfo::new("ids", Int64, &[(-1, "batch"), (-1, "length")])],
        outputs: vec![TensorInfo::new("y", Fp32, &[(-1, "batch"), (-1, "length"), (8, "")])],
    };
    let join = ModelInfo {
        inputs: vec![
            TensorInfo::new("one", Fp32, &[(-1, "n"), (8, "")]),
            TensorInfo::new("other", Fp32, &[(-1, "n"), (-1, "m"), (8, "")]),
            TensorInfo::new("mask", Fp32, &[(-1, "n"), (16, "")]),
        ],
        outputs: vec![
            TensorInfo::new("score", Fp32, &[(-1, "n")]),
            TensorInfo::new("path", Fp32, &[(-1, "n"), (-1, "m"), (-1, "size")]),
        ],
    };
    let text_toml = "
        inputs = [{name = 'image'}, {name = 'text'}, {name = 'mask', shape = ['rows', 'w']}]
        outputs = [{name = 'score', from = 'join.score'}, {name = 'path', from = 'join.path'}]
        [[nodes]]
        model = 'image'
        inputs = {x = 'image'}
        [[nodes]]
        model = 'text'
        inputs = {ids = 'text'}
        [[nodes]]
        model = 'join'
        inputs = {one = 'image.y', other = 'text.y', mask = 'mask'}";
    let graph = graph(text_toml).unwrap();
    let typed = types::check(&graph, &[Some(&image), Some(&text), Some(&join)]).unwrap().unwrap();
    let inputs =
        ["image: FP32 [batch, size, -1]", "text: INT64 [text.batch, length]", "mask: FP32 [rows, 16]"];
    assert_eq!(
        shown(&typed.info.inputs),
        inputs,
        "each model's own names, told apart; what is fixed for one is fixed"
    );
    // What only goes from model to model makes no two inputs equal; but outputs are called what they are equal to.
    assert_eq!(shown(&typed.info.outputs)[0], "score: FP32 [rows]");
    assert!(
        shown(&typed.info.outputs)[1].starts_with("path: FP32 [rows, length, -1]"),
        "{:?}",
        typed.info.outputs
    );
}

const CHAIN: &str = "
    inputs = [{name = 'i'}]
    outputs = [{name = 'o', from = 'b.y'}]
    nodes = [{name = 'a', model = 'next', inputs = {x = 'i'}}, {name = 'b', model = 'twice', inputs = {x = 'a.y'}}]";

fn rig() -> Rig {
    let mut rig = Rig::new(1);
    rig.model("next", &["x"], &["y"], next, &[(0, false)]);
    rig.model("twice", &["x"], &["y"], twice, &[(0, false)]);
    rig.model("split", &["x"], &["half", "square"], split, &[(0, false)]);
    rig
}

#[tokio::test]
async fn ensembles_can_be_made_of_ensembles() {
    let mut rig = rig();
    rig.ensemble("inner", CHAIN);
    let outer = "
        inputs = [{name = 'i'}]
        outputs = [{name = 'o', from = 'last.o'}, {name = 'h', from = 'split.half'}]
        nodes = [
            {name = 'last', model = 'inner', inputs = {i = 'split.square'}},
            {model = 'split', inputs = {x = 'first.o'}},
            {name = 'first', model = 'inner', inputs = {i = 'i'}},
        ]";
    rig.ensemble("outer", outer);
    let rig = rig.ready();
    // ((1 + 1) · 2)² = 16, and (16 + 1) · 2.
    let given = rig.call("outer", &[&[1.0]], &[1, 0]).await.unwrap();
    assert_eq!((super::values(&given[0]), super::values(&given[1])), (vec![2.0], vec![34.0]));
    rig.calcs["next"][0].fails.store(true, std::sync::atomic::Ordering::Relaxed);
    let said = rig.call("outer", &[&[1.0]], &[0]).await.unwrap_err();
    assert_eq!(said, "model_failed: node `first.a` (model `next`): model `next` failed; the log says why");
}

fn refused(rig: Rig, name: &str) -> String {
    let rig = rig.ready();
    rig.of(name).check(name, false).unwrap_err().to_string()
}

#[test]
fn what_is_not_there_and_what_reaches_itself_is_named() {
    let mut one = rig();
    one.ensemble("e", &CHAIN.replace("'next'", "'nexd'"));
    let said = refused(one, "e");
    assert_eq!(said, "graph.toml: node `a`: model `nexd` is not served here, did you mean `next`?");

    let mut one = rig();
    one.ensemble("e", &CHAIN.replace("'next',", "'next', version = '7',"));
    let rig = one.ready();
    let said = rig.of("e").check("e", false).unwrap_err().to_string();
    assert_eq!(said, "graph.toml: node `a`: this version of model `next` is not served here; there is 1");
    assert!(rig.of("e").check("e", true).is_ok(), "it may come");

    let round = |model: &str| CHAIN.replace("'next', inputs = {x", &format!("'{model}', inputs = {{i"));
    let round = |model: &str| round(model).replace("a.y", "a.o");
    let mut one = super::Rig::new(1);
    one.model("twice", &["x"], &["y"], twice, &[(0, false)]);
    one.ensemble("e", &round("f"));
    one.ensemble("f", &round("e"));
    let said = refused(one, "e");
    let way = "the ensemble reaches itself: `e` is made of `f` is made of `e`";
    assert_eq!(said, format!("graph.toml: node `a`: node `a`: {way}"));
}

#[test]
fn ensembles_are_bounded_together() {
    let mut deep = rig();
    deep.ensemble("e0", CHAIN);
    for at in 1..9 {
        let before = format!("'e{}', inputs = {{i", at - 1);
        deep.ensemble(
            &format!("e{at}"),
            &CHAIN.replace("'next', inputs = {x", &before).replace("a.y", "a.o"),
        );
    }
    let rig = deep.ready();
    assert!(rig.of("e7").check("e7", false).is_ok());
    let said = rig.of("e8").check("e8", false).unwrap_err().to_string();
    assert!(said.ends_with("ensembles are 8 deep in each other at most"), "{said}");

    let wide = of_many().ready();
    assert!(wide.of("four").check("four", false).is_ok());
    let said = wide.of("five").check("five", false).unwrap_err().to_string();
    assert!(said.ends_with("it has more than 256 runs of models"), "{said}");
}

/// `four` has as many runs as may be, and `five` more.
fn of_many() -> Rig {
    let node = |at: usize| match at {
        0 => "{name = 'n0', model = 'next', inputs = {x = 'i'}}".to_owned(),
        at => format!("{{name = 'n{at}', model = 'next', inputs = {{x = 'n{}.y'}}}}", at - 1),
    };
    let chain: Vec<_> = (0..64).map(node).collect();
    let end = |nodes: Vec<String>, last: &str| {
        format!(
            "inputs = [{{name = 'i'}}]\noutputs = [{{name = 'o', from = '{last}'}}]\nnodes = [{}]",
            nodes.join(", ")
        )
    };
    let mut rig = rig();
    rig.ensemble("chain", &end(chain, "n63.y"));
    for (name, count) in [("four", 4), ("five", 5)] {
        let node = |at: usize| match at {
            0 => "{name = 'n0', model = 'chain', inputs = {i = 'i'}}".to_owned(),
            at => format!("{{name = 'n{at}', model = 'chain', inputs = {{i = 'n{}.o'}}}}", at - 1),
        };
        rig.ensemble(name, &end((0..count).map(node).collect(), &format!("n{}.o", count - 1)));
    }
    rig
}

#[test]
fn another_version_has_to_be_for_callers_what_the_one_before_was() {
    let mut rig = rig();
    rig.ensemble("e", CHAIN);
    let rig = rig.ready();
    let before = rig.of("e").wire(&rig.stable("e")).unwrap();
    assert!(std::sync::Arc::ptr_eq(&before, &rig.of("e").wire(&rig.stable("e")).unwrap()), "made once");
    let other = ModelInfo {
        inputs: vec![super::row("x")],
        outputs: vec![TensorInfo::new("y", DataType::Fp32, &[(3, "")])],
    };
    assert_eq!(types::differ(&before.info, &before.info), None);
    let why =
        types::differ(&ModelInfo { outputs: other.outputs.clone(), ..(*before.info).clone() }, &before.info);
    assert_eq!(why.unwrap(), "output `o` would be FP32 [n], and was FP32 [3] before");
    assert_eq!(Unfit::Versions("x".into()).to_string(), "x");
}
