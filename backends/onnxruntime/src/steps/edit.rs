//! Operators put into the graph of a model, by ONNX Runtime's Model Editor API: the file stays as it is, and so does its data in other files.

use std::path::Path;

use ort::editor::{Graph as OrtGraph, Model, Node, ONNX_DOMAIN, Opset};
use ort::memory::Allocator;
use ort::operator::Attribute as OrtAttribute;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, Shape, SymbolicDimensions, Tensor, TensorElementType, ValueType};
use outrigger_backend::TensorInfo;

use super::Asked;
use super::fit::{Device, Fitted, Own, fit};
use super::operators::{Attribute, Constant, Data, Operator};
use crate::editor::{Editable, Edited};
use crate::raw;
use crate::runtime::Runtime;
use crate::session::FORM;

/// The inputs and the outputs of a graph.
pub(crate) type Sides = [Vec<TensorInfo>; 2];

/// Makes a session of the model at `path` with steps in its graph; beside it what that takes and gives.
pub(crate) fn edit(
    runtime: &Runtime,
    builder: &SessionBuilder,
    path: &Path,
    asked: &Asked,
    device: &Device<'_>,
) -> ort::Result<(Edited, Sides)> {
    let mut editable = Editable::open(runtime, builder, path)?;
    let own = own(&editable)?;
    let fitted = fit(asked, &own, device).map_err(ort::Error::new)?;
    editable.apply(&model(&own, &fitted)?)?;
    Ok((editable.finish()?, sides(own, fitted)))
}

/// What the graph of the model at `path` would take and give with steps in it, without a session.
pub(crate) fn inspect(
    runtime: &Runtime,
    path: &Path,
    asked: &Asked,
    device: &Device<'_>,
) -> ort::Result<Sides> {
    // The form that has been looked through, as where the session is made.
    let builder = Session::builder(&runtime.environment)?.with_config_entry(FORM.0, FORM.1)?;
    let mut editable = Editable::open(runtime, &builder, path)?;
    let own = own(&editable)?;
    let fitted = fit(asked, &own, device).map_err(ort::Error::new)?;
    // What ONNX Runtime does not take it refuses here.
    editable.apply(&model(&own, &fitted)?)?;
    Ok(sides(own, fitted))
}

fn sides(own: Own, fitted: Fitted) -> Sides {
    [fitted.inputs.unwrap_or(own.inputs), fitted.outputs.unwrap_or(own.outputs)]
}

fn own(editable: &Editable<'_>) -> ort::Result<Own> {
    Ok(Own { opset: editable.opset()?, inputs: editable.inputs()?, outputs: editable.outputs()? })
}

fn model(own: &Own, fitted: &Fitted) -> ort::Result<Model> {
    let mut graph = OrtGraph::new()?;
    if let Some(inputs) = &fitted.inputs {
        graph.set_inputs(inputs.iter().map(outlet))?;
    }
    if let Some(outputs) = &fitted.outputs {
        graph.set_outputs(outputs.iter().map(outlet))?;
    }
    for made in &fitted.graphs {
        for constant in &made.constants {
            add_constant(&mut graph, constant)?;
        }
        for operator in &made.operators {
            graph.add_node(node(operator)?)?;
        }
    }
    let mut model = Model::new([Opset::new(ONNX_DOMAIN, own.opset)?])?;
    model.set_graph(graph)?;
    Ok(model)
}

/// Without names for extents: ONNX Runtime gives all free ones of a tensor the first name (1.32).
fn outlet(info: &TensorInfo) -> Outlet {
    let ty = TensorElementType::from(raw::element_type(info.data_type));
    let (shape, rank) = (Shape::new(info.shape.iter().copied()), info.shape.len());
    let dimension_symbols = SymbolicDimensions::empty(rank);
    Outlet::new(info.name.clone(), ValueType::Tensor { ty, shape, dimension_symbols })
}

fn node(operator: &Operator) -> ort::Result<Node> {
    let attributes = operator.attributes.iter().map(|(name, value)| match value {
        Attribute::Integer(value) => OrtAttribute::new(name, *value),
        Attribute::Integers(values) => OrtAttribute::new(name, values.clone()),
        Attribute::Text(text) => OrtAttribute::new(name, (*text).to_owned()),
    });
    let attributes = attributes.collect::<ort::Result<Vec<_>>>()?;
    // Without a name, for one could be that of another.
    Node::new(operator.kind, ONNX_DOMAIN, "", &operator.inputs, [&operator.output], attributes)
}

fn add_constant(graph: &mut OrtGraph, constant: &Constant) -> ort::Result<()> {
    let (name, shape) = (&constant.name, Shape::new(constant.shape.iter().copied()));
    match &constant.data {
        Data::Fp32(values) => {
            let mut tensor = Tensor::<f32>::new(&Allocator::default(), shape)?;
            tensor.extract_tensor_mut().1.copy_from_slice(values);
            graph.add_initializer(name, tensor, false)
        }
        Data::Int64(values) => {
            let mut tensor = Tensor::<i64>::new(&Allocator::default(), shape)?;
            tensor.extract_tensor_mut().1.copy_from_slice(values);
            graph.add_initializer(name, tensor, false)
        }
    }
}
