//! The order in which nodes can run: a graph without one, or with nodes that nobody needs, is refused.

use super::read::{Graph, Node, Source};

/// The same with each node after those that it takes tensors from.
///
/// # Errors
/// Nodes that wait for each other, a node or an input that nothing is made of.
pub(super) fn in_order(mut graph: Graph) -> Result<Graph, String> {
    let mut order: Vec<usize> = Vec::with_capacity(graph.nodes.len());
    while order.len() < graph.nodes.len() {
        let waits = |node: &Node| from(node).any(|before| !order.contains(&before));
        let mut rest = graph.nodes.iter().enumerate().filter(|(at, _)| !order.contains(at));
        match rest.find(|(_, node)| !waits(node)) {
            Some((at, _)) => order.push(at),
            None => return Err(circle(&graph, &order)),
        }
    }
    all_are_needed(&graph)?;
    let mut places = vec![0; order.len()];
    for (place, at) in order.iter().enumerate() {
        if let Some(entry) = places.get_mut(*at) {
            *entry = place;
        }
    }
    let moved = |source: &mut Source| {
        if let Source::Node(node, _) = source
            && let Some(place) = places.get(*node)
        {
            *node = *place;
        }
    };
    for node in &mut graph.nodes {
        node.inputs.iter_mut().for_each(|(_, source)| moved(source));
    }
    graph.outputs.iter_mut().for_each(|output| moved(&mut output.from));
    graph.nodes = order.iter().filter_map(|at| graph.nodes.get(*at).cloned()).collect();
    Ok(graph)
}

/// The nodes that a node takes tensors from.
fn from(node: &Node) -> impl Iterator<Item = usize> + '_ {
    node.inputs.iter().filter_map(|(_, source)| match source {
        Source::Node(node, _) => Some(*node),
        Source::Input(_) => None,
    })
}

/// Nodes that wait for each other, of those that are not in order.
fn circle(graph: &Graph, order: &[usize]) -> String {
    let name = |at: usize| graph.nodes.get(at).map_or("", |node| node.name.as_str());
    // Each of them takes from another one of them: whoever goes back comes round.
    let mut way: Vec<usize> = (0..graph.nodes.len()).filter(|at| !order.contains(at)).take(1).collect();
    while let Some(node) = way.last().and_then(|at| graph.nodes.get(*at)) {
        let Some(before) = from(node).find(|before| !order.contains(before)) else { break };
        if let Some(at) = way.iter().position(|known| *known == before) {
            way.drain(..at);
            break;
        }
        way.push(before);
    }
    let names: Vec<_> = way.iter().chain(way.first()).map(|at| format!("`{}`", name(*at))).collect();
    match way.as_slice() {
        [one] => format!("node `{}` takes what it gives itself", name(*one)),
        _ => format!("nodes wait for each other: {}", names.join(" takes from ")),
    }
}

fn all_are_needed(graph: &Graph) -> Result<(), String> {
    let mut needed = vec![false; graph.nodes.len()];
    let mut inputs = vec![false; graph.inputs.len()];
    let mut open: Vec<&Source> = graph.outputs.iter().map(|output| &output.from).collect();
    while let Some(source) = open.pop() {
        match source {
            Source::Input(at) => inputs.get_mut(*at).into_iter().for_each(|is_needed| *is_needed = true),
            Source::Node(at, _) => {
                let (Some(is_needed), Some(node)) = (needed.get_mut(*at), graph.nodes.get(*at)) else {
                    continue;
                };
                if !std::mem::replace(is_needed, true) {
                    open.extend(node.inputs.iter().map(|(_, source)| source));
                }
            }
        }
    }
    let unused = graph.nodes.iter().zip(&needed).find(|(_, is_needed)| !**is_needed);
    if let Some((node, _)) = unused {
        return Err(format!("node `{}` is for nothing: no output is made of what it gives", node.name));
    }
    match graph.inputs.iter().zip(&inputs).find(|(_, is_needed)| !**is_needed) {
        Some((input, _)) => Err(format!("input `{}` is for nothing: no node takes it", input.name)),
        None => Ok(()),
    }
}
