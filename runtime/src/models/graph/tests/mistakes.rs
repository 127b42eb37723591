//! What is said of a `graph.toml` that cannot be, and of one that does not go with its models.

use outrigger_backend::{DataType, ModelInfo, TensorInfo};

use super::super::types;
use super::graph;

const GOOD: &str = "
    inputs = [{name = 'image'}]
    outputs = [{name = 'label', from = 'b.y'}]
    nodes = [{name = 'a', model = 'm', inputs = {x = 'image'}}, {name = 'b', model = 'm', inputs = {x = 'a.y'}}]";

/// What is said of the good one with `before` exchanged for `after`.
fn said(before: &str, after: &str) -> String {
    let text = GOOD.replacen(before, after, 1);
    assert_ne!(text, GOOD, "{before}");
    graph(&text).map(|_| String::new()).unwrap_or_else(|problem| problem)
}

#[test]
fn mistakes_of_a_graph_are_named() {
    graph(GOOD).unwrap();
    let check = |before: &str, after: &str, expected: &str| {
        let said = said(before, after);
        assert!(said.contains(expected), "{before} -> {after}: {said}");
    };
    check("inputs", "input", "unknown key `input`, did you mean `inputs`?");
    check("{name = 'image'}", "{nam = 'image'}", "unknown key `inputs.nam`, did you mean `name`?");
    check("from = ", "form = ", "unknown key `outputs.form`, did you mean `from`?");
    check("model = 'm', ", "modell = 'm', ", "unknown key `nodes.modell`, did you mean `model`?");
    check("model = 'm', ", "", "missing field `model`");
    check("[{name = 'image'}]", "7", "invalid type");
    check(", from = 'b.y'", "", "output `label` does not say where it comes from: `from = \"NODE.OUTPUT\"`");
    check("b.y", "c.y", "output `label`: `c.y`: there is no input of that name, and no node `c`");
    check("'b.y'", "'b'", "output `label`: `b` is a node; say which of its outputs: `b.OUTPUT`");
    check("'b.y'", "'b.'", "output `label`: `b.` names no output");
    check(
        "x = 'image'",
        "x = 'imag'",
        "node `a`: input `x`: there is no input `imag`, did you mean `image`?",
    );
    check("'a.y'", "'b.y'", "node `b` takes what it gives itself");
    check("x = 'image'", "x = 'b.y'", "nodes wait for each other: `a` takes from `b` takes from `a`");
    check("from = 'b.y'", "from = 'a.y'", "node `b` is for nothing: no output is made of what it gives");
    check(
        "{name = 'image'}",
        "{name = 'image'}, {name = 'mask'}",
        "input `mask` is for nothing: no node takes it",
    );
    check(
        "{name = 'image'}",
        "{name = 'image'}, {name = 'image'}",
        "there are two inputs by the name of `image`",
    );
    check("name = 'b'", "name = 'a'", "there are two nodes by the name of `a`");
    check(
        "from = 'b.y'}",
        "from = 'b.y'}, {name = 'label', from = 'a.y'}",
        "there are two outputs by the name of `label`",
    );
    check("name = 'image'", "name = ''", "an input has no name");
    check("{name = 'image'}", "{name = 'a.y'}", "input `a.y` could be an output of node `a`, too");
    check("name = 'b'", "name = 'b.c'", "node `b.c` has a `.` in its name, which stands before an output");
    check("name = 'a', model = 'm'", "model = 'm.1'", "the node of model `m.1` needs a `name` without a `.`");
    check("model = 'm'", "model = '../m'", "model `../m` is not called by a letter or digit");
    check("model = 'm'", "model = 'm', version = 1.5", "node `a`: `version` is no text");
    check(
        "name = 'image'",
        "name = 'image', datatype = 'FP23'",
        "input `image` has the datatype `FP23`, did you mean",
    );
    check("name = 'image'", "name = 'image', shape = [true]", "expected a whole number, or a name");
    let deep = format!("name = 'image', shape = {:?}", vec![1; 33]);
    check("name = 'image'", &deep, "input `image` has 33 dimensions, 32 are the most");
    for (list, problem) in [("nodes", "there is no `[[nodes]]`"), ("outputs", "there is no `[[outputs]]`")] {
        let without: Vec<_> = GOOD.lines().filter(|line| !line.trim_start().starts_with(list)).collect();
        assert_eq!(graph(&without.join("\n")).unwrap_err(), problem);
    }
    assert!(graph("nodes = ").unwrap_err().starts_with("line 1: "));
}

#[test]
fn graphs_are_bounded() {
    let chain = |nodes: usize| {
        let node = |at: usize| match at {
            0 => "{name = 'n0', model = 'm', inputs = {x = 'i'}}".to_owned(),
            at => format!("{{name = 'n{at}', model = 'm', inputs = {{x = 'n{}.y'}}}}", at - 1),
        };
        let nodes: Vec<_> = (0..nodes).map(node).collect();
        let last = nodes.len() - 1;
        graph(&format!(
            "inputs = [{{name = 'i'}}]\noutputs = [{{name = 'o', from = 'n{last}.y'}}]\nnodes = [{}]",
            nodes.join(", ")
        ))
    };
    assert_eq!(chain(64).unwrap().nodes.len(), 64);
    assert_eq!(chain(65).unwrap_err(), "`nodes` has 65 entries, 64 are the most");
    let wide = |outputs: usize| {
        let outputs: Vec<_> = (0..outputs).map(|at| format!("{{name = 'o{at}', from = 'm.y'}}")).collect();
        graph(&format!(
            "inputs = [{{name = 'i'}}]\nnodes = [{{model = 'm', inputs = {{x = 'i'}}}}]\noutputs = [{}]",
            outputs.join(", ")
        ))
    };
    assert!(wide(1022).is_ok());
    let problem = wide(1023).unwrap_err();
    assert_eq!(problem, "inputs, outputs and what nodes take are 1025 tensors, 1024 are the most");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "#".repeat(256 * 1024 + 1)).unwrap();
    assert_eq!(super::super::read(file.path()).unwrap_err(), "is larger than 262144 bytes");
}

#[test]
fn nodes_come_in_an_order_in_which_they_can_run() {
    let text = "
        inputs = [{name = 'i'}]
        outputs = [{name = 'o', from = 'c.y'}, {name = 'p', from = 'i'}]
        nodes = [
            {name = 'c', model = 'm', inputs = {x = 'b.y'}},
            {name = 'a', model = 'm', inputs = {x = 'i'}},
            {name = 'b', model = 'm', inputs = {x = 'a.y'}},
        ]";
    let graph = graph(text).unwrap();
    assert_eq!(graph.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
}

/// `x`: FP32 `[batch, 3]` and, with `k`, `k`: INT64 `[batch]` → `y`: FP32 `[batch, width]`, `s`: BYTES `[batch]`.
fn model(with_k: bool, width: i64) -> ModelInfo {
    let x = TensorInfo::new("x", DataType::Fp32, &[(-1, "batch"), (3, "")]);
    let k = TensorInfo::new("k", DataType::Int64, &[(-1, "batch")]);
    ModelInfo {
        inputs: [Some(x), with_k.then_some(k)].into_iter().flatten().collect(),
        outputs: vec![
            TensorInfo::new("y", DataType::Fp32, &[(-1, "batch"), (width, "")]),
            TensorInfo::new("s", DataType::Bytes, &[(-1, "batch")]),
        ],
    }
}

#[test]
fn what_does_not_go_with_the_models_is_named() {
    let check = |before: &str, after: &str, first: &ModelInfo, expected: &str| {
        let text = GOOD.replacen(before, after, 1);
        let second = model(false, 3);
        let checked = types::check(&graph(&text).unwrap(), &[Some(first), Some(&second)]);
        let said = checked.map(|_| "it fits".to_owned()).unwrap_or_else(|problem| problem);
        assert!(said.contains(expected), "{before} -> {after}: {said}");
    };
    let three = model(false, 3);
    check("", "", &three, "it fits");
    check("", "", &model(true, 3), "node `a`: input `k` of model `m` comes from nowhere");
    check("{x = 'image'}", "{X = 'image'}", &three, "node `a`: model `m` has no input `X`");
    check("'b.y'", "'b.why'", &three, "output `label`: `b.why`: model `m` has no output `why`");
    check("'a.y'", "'a.z'", &three, "node `b`: input `x`: `a.z`: model `m` has no output `z`");
    check("'a.y'", "'a.s'", &three, "node `b`: input `x` is FP32, and `a.s`, which goes there, is BYTES");
    let wide = "node `b`: input `x` has shape [batch, 3], and `a.y`, which goes there, has [batch, 4]";
    check("", "", &model(false, 4), wide);
    check(
        "name = 'image'",
        "name = 'image', datatype = 'INT64'",
        &three,
        "input `image` is INT64 for graph.toml, and FP32 for node `a`, as `x`",
    );
    check(
        "name = 'image'",
        "name = 'image', shape = [-1, 4]",
        &three,
        "input `image` has shape [-1, 4] for graph.toml, and [-1, 3] for node `a`, as `x`",
    );
    check(
        "name = 'label'",
        "name = 'label', datatype = 'INT64'",
        &three,
        "output `label`: it is INT64 here, and `b.y` is FP32",
    );
    check(
        "name = 'label'",
        "name = 'label', shape = ['n', 4]",
        &three,
        "output `label`: it has shape [-1, 4] here, and `b.y` has [batch, 3]",
    );
    check("name = 'label'", "name = 'label', datatype = 'FP32', shape = ['n', 3]", &three, "it fits");
    check(
        "inputs = [{name = 'image'}]\n    outputs = [",
        "inputs = [{name = 'image'}, {name = 'id'}]\n    outputs = [{name = 'id', from = 'id'}, ",
        &three,
        "input `id` needs `datatype` and `shape`: no node takes it, so nothing tells them",
    );
    // One input for two, which want something else.
    let two = "
        inputs = [{name = 'i'}]
        outputs = [{name = 'o', from = 'a.y'}, {name = 'p', from = 'b.y'}]
        nodes = [{name = 'a', model = 'm', inputs = {x = 'i'}}, {name = 'b', model = 'm', inputs = {x = 'i'}}]";
    let mut other = model(false, 3);
    other.inputs[0].shape[1] = 4;
    let said = types::check(&graph(two).unwrap(), &[Some(&three), Some(&other)]).unwrap_err();
    assert_eq!(said, "input `i` has shape [-1, 3] for node `a`, as `x`, and [-1, 4] for node `b`, as `x`");
}

#[test]
fn what_is_not_known_yet_is_not_held_against_anybody() {
    let (graph, three) = (graph(GOOD).unwrap(), model(false, 3));
    assert!(types::check(&graph, &[None, None]).unwrap().is_none());
    assert!(types::check(&graph, &[Some(&three), None]).unwrap().is_none());
    let said = types::check(&graph, &[Some(&model(true, 3)), None]).unwrap_err();
    assert_eq!(said, "node `a`: input `k` of model `m` comes from nowhere");
}
