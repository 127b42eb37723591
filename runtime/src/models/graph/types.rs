//! Holds a graph against the models that it names: each input of theirs fed, each tensor of the type and shape that it is taken for; and what
//! callers send and get, as it follows from that.

use outrigger_backend::{DataType, ModelInfo, TensorInfo};

use super::extents::Extents;
use super::read::{Declared, Given, Graph, Node, Source};
use crate::config::suggestion;

/// A graph of which the models are known.
#[derive(Debug)]
pub(super) struct Typed {
    /// What callers send and get.
    pub(super) info: ModelInfo,
    /// Of each node, where its model's inputs come from, in the model's order.
    pub(super) nodes: Vec<Vec<From>>,
    /// Where the outputs come from.
    pub(super) outputs: Vec<From>,
}

/// The type and extents of a tensor, if anything tells them.
type Plain = Option<(DataType, Vec<i64>)>;

/// Where a tensor comes from, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// An input of the graph.
    Input(usize),
    /// An output of a node's model.
    Node(usize, usize),
}

/// Holds a graph against its models, of each node one; what is not known of a model is not looked at, and then there is no result.
///
/// # Errors
/// The first thing that does not fit, by the names of nodes and tensors.
pub(super) fn check(graph: &Graph, models: &[Option<&ModelInfo>]) -> Result<Option<Typed>, String> {
    let known = Known { graph, models };
    let (mut nodes, mut is_whole) = (Vec::with_capacity(graph.nodes.len()), true);
    for (node, model) in graph.nodes.iter().zip(models) {
        match model {
            Some(model) => nodes.push(known.node(node, model)?),
            None => is_whole = false,
        }
    }
    let outputs = graph.outputs.iter().map(|output| known.output(output));
    let outputs = outputs.collect::<Result<Vec<_>, _>>()?.into_iter().collect::<Option<Vec<_>>>();
    // Where some models are not known, what the others want of one input is held against each other all the same.
    let inputs = known.inputs()?;
    let Some(outputs) = outputs.filter(|_| is_whole) else { return Ok(None) };
    let info = known.info(inputs, &nodes, &outputs)?;
    Ok(Some(Typed { info, nodes, outputs }))
}

/// A graph, and its models as far as they are known.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    graph: &'a Graph,
    models: &'a [Option<&'a ModelInfo>],
}

impl<'a> Known<'a> {
    fn model(&self, node: usize) -> Option<&'a ModelInfo> {
        self.models.get(node).copied().flatten()
    }

    /// Where the inputs of a node's model come from.
    fn node(&self, node: &Node, model: &ModelInfo) -> Result<Vec<From>, String> {
        let (name, of) = (&node.name, &node.model);
        for (input, _) in &node.inputs {
            if model.inputs.iter().all(|info| info.name != *input) {
                let near = suggestion(input, model.inputs.iter().map(|info| info.name.as_str()));
                return Err(format!("node `{name}`: model `{of}` has no input `{input}`{near}"));
            }
        }
        let from = model.inputs.iter().map(|info| {
            let source = node.inputs.iter().find(|(input, _)| *input == info.name).map(|(_, source)| source);
            let source = source.ok_or_else(|| {
                format!("node `{name}`: input `{}` of model `{of}` comes from nowhere", info.name)
            })?;
            let who = || format!("node `{name}`: input `{}`", info.name);
            let Some((from, given)) = self.find(source).map_err(|why| format!("{}: {why}", who()))? else {
                // Of an input of the graph, or of a model that is not known.
                return Ok(match source {
                    Source::Input(at) => From::Input(*at),
                    Source::Node(at, _) => From::Node(*at, 0),
                });
            };
            let text = || self.text(source);
            if given.data_type != info.data_type {
                let (want, got) = (info.data_type, given.data_type);
                return Err(format!("{} is {want}, and {}, which goes there, is {got}", who(), text()));
            }
            if !goes_with(&given.shape, &info.shape) {
                let (want, got) = (shape(info), shape(given));
                return Err(format!(
                    "{} has shape {want}, and {}, which goes there, has {got}",
                    who(),
                    text()
                ));
            }
            Ok(from)
        });
        from.collect()
    }

    fn output(&self, output: &Given) -> Result<Option<From>, String> {
        let name = &output.declared.name;
        let who = |why: String| format!("output `{name}`: {why}");
        let Some((from, given)) = self.find(&output.from).map_err(who)? else {
            let from = match &output.from {
                Source::Input(at) => Some(From::Input(*at)),
                Source::Node(..) => None,
            };
            return Ok(from);
        };
        let text = self.text(&output.from);
        match output.declared.data_type {
            Some(said) if said != given.data_type => {
                return Err(who(format!("it is {said} here, and {text} is {}", given.data_type)));
            }
            _ => {}
        }
        let extents =
            |shape: &Vec<(i64, String)>| shape.iter().map(|(extent, _)| *extent).collect::<Vec<_>>();
        match output.declared.shape.as_ref().map(extents) {
            Some(said) if said != given.shape => {
                Err(who(format!("it has shape {said:?} here, and {text} has {}", shape(given))))
            }
            _ => Ok(Some(from)),
        }
    }

    /// A tensor that a node gives; nothing for an input of the graph, or where the node's model is not known.
    fn find(&self, source: &Source) -> Result<Option<(From, &'a TensorInfo)>, String> {
        let Source::Node(at, output) = source else { return Ok(None) };
        let Some(model) = self.model(*at) else { return Ok(None) };
        match model.outputs.iter().position(|info| info.name == *output) {
            Some(index) => Ok(model.outputs.get(index).map(|info| (From::Node(*at, index), info))),
            None => {
                let of = self.graph.nodes.get(*at).map_or("", |node| node.model.as_str());
                let near = suggestion(output, model.outputs.iter().map(|info| info.name.as_str()));
                Err(format!("{}: model `{of}` has no output `{output}`{near}", self.text(source)))
            }
        }
    }

    /// As the graph has it.
    fn text(&self, source: &Source) -> String {
        match source {
            Source::Input(at) => {
                format!("`{}`", self.graph.inputs.get(*at).map_or("", |input| input.name.as_str()))
            }
            Source::Node(at, output) => {
                format!("`{}.{output}`", self.graph.nodes.get(*at).map_or("", |node| node.name.as_str()))
            }
        }
    }

    /// Who takes an input of the graph: the node, and what it is there, as far as that is known.
    pub(super) fn takers(&self, input: usize) -> impl Iterator<Item = (usize, &'a Node, &'a TensorInfo)> {
        let nodes = self.graph.nodes.iter().enumerate().zip(self.models);
        nodes.flat_map(move |((at, node), model)| {
            let own = node.inputs.iter().filter(move |(_, source)| *source == Source::Input(input));
            own.filter_map(move |(name, _)| {
                let model: &'a ModelInfo = (*model)?;
                Some((at, node, model.inputs.iter().find(|info| info.name == *name)?))
            })
        })
    }

    /// What callers send, without the names of extents: as it is declared, and as it is taken.
    fn inputs(&self) -> Result<Vec<Plain>, String> {
        let inputs = self.graph.inputs.iter().enumerate();
        inputs.map(|(at, input)| self.input(at, input)).collect()
    }

    fn input(&self, at: usize, input: &Declared) -> Result<Plain, String> {
        let name = &input.name;
        let extents =
            |shape: &Vec<(i64, String)>| shape.iter().map(|(extent, _)| *extent).collect::<Vec<_>>();
        let mut data_type = input.data_type.map(|said| (said, "graph.toml".to_owned()));
        let mut shape = input.shape.as_ref().map(|said| (extents(said), "graph.toml".to_owned()));
        for (_, node, info) in self.takers(at) {
            let who = format!("node `{}`, as `{}`", node.name, info.name);
            match &data_type {
                Some((said, by)) if *said != info.data_type => {
                    return Err(format!(
                        "input `{name}` is {said} for {by}, and {} for {who}",
                        info.data_type
                    ));
                }
                Some(_) => {}
                None => data_type = Some((info.data_type, who.clone())),
            }
            shape = match shape {
                None => Some((info.shape.clone(), who)),
                Some((said, by)) if !goes_with(&said, &info.shape) => {
                    return Err(format!(
                        "input `{name}` has shape {said:?} for {by}, and {:?} for {who}",
                        info.shape
                    ));
                }
                Some((said, by)) => {
                    let narrow = said.iter().zip(&info.shape).map(|(one, other)| *one.max(other));
                    Some((narrow.collect(), by))
                }
            };
        }
        Ok(data_type.zip(shape).map(|((data_type, _), (shape, _))| (data_type, shape)))
    }

    /// What callers send and get.
    fn info(&self, inputs: Vec<Plain>, nodes: &[Vec<From>], outputs: &[From]) -> Result<ModelInfo, String> {
        let plain = inputs.into_iter().zip(&self.graph.inputs).map(|(known, input)| {
            let name = input.name.clone();
            let (data_type, shape) = known.ok_or_else(|| {
                format!(
                    "input `{name}` needs `datatype` and `shape`: no node takes it, so nothing tells them"
                )
            })?;
            Ok(TensorInfo { name, data_type, symbols: vec![String::new(); shape.len()], shape })
        });
        let mut inputs = plain.collect::<Result<Vec<_>, String>>()?;
        let mut extents = Extents::new(&inputs);
        for (at, (input, info)) in self.graph.inputs.iter().zip(&inputs).enumerate() {
            let declared = input.shape.iter().flatten().map(|(extent, symbol)| (*extent, symbol.as_str()));
            extents.are(at, None, declared);
            for (node, _, taken) in self.takers(at) {
                extents.are(at, Some(node), taken.dimensions());
            }
            extents.are(at, None, info.dimensions());
        }
        let node_name = |node: usize| self.graph.nodes.get(node).map_or("", |node| node.name.as_str());
        extents.name(&mut inputs, node_name)?;
        for (node, (from, model)) in nodes.iter().zip(self.models).enumerate() {
            for (from, info) in from.iter().zip(model.iter().flat_map(|model| &model.inputs)) {
                if let From::Node(giver, index) = from
                    && let Some(given) = self.model(*giver).and_then(|model| model.outputs.get(*index))
                {
                    extents.pass(*giver, given, node, info);
                }
            }
        }
        let outputs = self.graph.outputs.iter().zip(outputs).filter_map(|(output, from)| {
            let (mut info, giver) = match from {
                From::Input(at) => (inputs.get(*at)?.clone(), None),
                From::Node(at, index) => (self.model(*at)?.outputs.get(*index)?.clone(), Some(*at)),
            };
            info.name.clone_from(&output.declared.name);
            if let Some(giver) = giver {
                extents.name_output(&mut info, giver);
            }
            if let Some(said) = &output.declared.shape {
                info.symbols = said.iter().map(|(_, symbol)| symbol.clone()).collect();
            }
            Some(info)
        });
        let outputs = outputs.collect();
        Ok(ModelInfo { inputs, outputs })
    }
}

/// Whether a tensor of one shape may go where the other is wanted, as far as that is known: −1 is anything.
fn goes_with(one: &[i64], other: &[i64]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| *one < 0 || *other < 0 || one == other)
}

/// A shape with the names of its extents.
fn shape(info: &TensorInfo) -> String {
    let extents = info.dimensions().map(|(extent, symbol)| match (extent, symbol) {
        (0.., _) => extent.to_string(),
        (_, "") => "-1".to_owned(),
        (_, symbol) => symbol.to_owned(),
    });
    format!("[{}]", extents.collect::<Vec<_>>().join(", "))
}

/// Whether calls that fit one fit the other: names, types and shapes, without the names of extents.
pub(super) fn differ(before: &ModelInfo, now: &ModelInfo) -> Option<String> {
    let sides = [("input", &before.inputs, &now.inputs), ("output", &before.outputs, &now.outputs)];
    sides.into_iter().find_map(|(side, before, now)| {
        before.iter().zip(now).find_map(|(before, now)| {
            let is_same = before.data_type == now.data_type && before.shape == now.shape;
            (!is_same).then(|| {
                let one = |info: &TensorInfo| format!("{} {}", info.data_type, shape(info));
                format!("{side} `{}` would be {}, and was {} before", now.name, one(now), one(before))
            })
        })
    })
}
