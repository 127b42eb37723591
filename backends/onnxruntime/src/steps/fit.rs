//! Steps as operators of a given model's graph, on a given device. What ONNX does not say as the steps do, or the device has no operator for, is
//! not made: the form on the CPU is the definition.

use std::collections::BTreeSet;

use outrigger_backend::{DataType, TensorInfo};
use outrigger_processing::{
    ImageLayout, Operation, Plan, ResizeMode, Step, nearest_taps, plan_after, plan_before, rename,
};

use super::Asked;
use super::operators::{Attribute, Data, Graph, number};
use super::symbols::{check_dropped, named};

/// Begins the names of what callers send, and
pub(crate) const INPUT: &str = "outrigger:in:";
/// of what they get.
pub(crate) const OUTPUT: &str = "outrigger:out:";

/// Those before have not all that is needed: `half_pixel` is new in it.
const FIRST_OPSET: u32 = 11;
/// The first in which a softmax runs along one axis, operators take BF16, and `Resize` does without what it is not given.
const OPSET_13: u32 = 13;

/// What is asked of a device.
pub(crate) struct Device<'a> {
    /// Whether it has an operator for elements of a type.
    pub(crate) has: &'a dyn Fn(&str, DataType) -> bool,
    /// Whether the CPU may calculate what depends on shapes.
    pub(crate) may_leave_shapes: bool,
}

/// A model as its file has it.
pub(super) struct Own {
    pub(super) opset: u32,
    pub(super) inputs: Vec<TensorInfo>,
    pub(super) outputs: Vec<TensorInfo>,
}

/// What is done to a graph.
pub(super) struct Fitted {
    pub(super) graphs: Vec<Graph>,
    /// The inputs and the outputs of the graph from then on, where they change.
    pub(super) inputs: Option<Vec<TensorInfo>>,
    pub(super) outputs: Option<Vec<TensorInfo>>,
}

/// Makes operators of steps.
///
/// # Errors
/// Why one of them cannot be one, by number and name, or what does not fit the model.
pub(super) fn fit(asked: &Asked, own: &Own, device: &Device<'_>) -> Result<Fitted, String> {
    if own.opset < FIRST_OPSET {
        return Err(format!(
            "the model is of opset {}, steps in its graph need {FIRST_OPSET} or later",
            own.opset
        ));
    }
    let mut fitted = Fitted { graphs: Vec::new(), inputs: None, outputs: None };
    let mut given = own.outputs.clone();
    if !asked.around.before.stages.is_empty() {
        let plan = plan_before(&asked.around.before, &named(asked, &own.inputs)?, &own.inputs)?;
        check_rows(&own.inputs, &plan)?;
        given = rename(&own.inputs, &plan, &own.outputs)?;
        let (graph, inputs) = before(&plan, &own.inputs, own.opset, device)?;
        fitted.graphs.push(graph);
        fitted.inputs = Some(inputs);
        // With the names that callers have for extents.
        fitted.outputs = Some(given.clone());
    }
    if !asked.around.after.stages.is_empty() {
        let plan = plan_after(&asked.around.after, &asked.outputs, &given)?;
        if let Some(index) = plan.mixes_rows() {
            return Err(said(
                "after",
                index,
                &plan.operations()[index],
                "it does not take each row for itself",
            ));
        }
        check_dropped(&plan, &own.inputs, &own.outputs)?;
        bounded(&plan, fitted.inputs.as_deref().unwrap_or(&own.inputs))?;
        // What the model says of its results it need not keep: the operators are for any extents.
        let open: Vec<_> = given
            .iter()
            .map(|output| TensorInfo { shape: vec![-1; output.shape.len()], ..output.clone() })
            .collect();
        let loose = plan_after(&asked.around.after, &asked.outputs, &open)?;
        let (graph, outputs) = after(&plan, &loose, own.opset, device)?;
        fitted.graphs.push(graph);
        fitted.outputs = Some(outputs);
    }
    Ok(fitted)
}

/// Whether a model says of its rows what callers see of theirs: that all inputs have the same, and that nothing else is as long.
fn check_rows(model: &[TensorInfo], plan: &Plan) -> Result<(), String> {
    let symbol = |input: &TensorInfo| input.symbols.first().cloned().unwrap_or_default();
    let is_free = |planned: &TensorInfo| planned.shape.first().is_some_and(|extent| *extent < 0);
    let free = || model.iter().zip(plan.outputs()).filter(|(_, planned)| is_free(planned));
    let mut all = free().map(|(input, _)| symbol(input));
    let rows = all.find(|symbol| !symbol.is_empty()).unwrap_or_default();
    for (input, _) in free() {
        let own = symbol(input);
        let is_mixed = input.symbols.iter().skip(1).any(|further| *further == own);
        if !own.is_empty() && (is_mixed || own != rows) {
            return Err(format!(
                "the model calls the rows of `{}` `{own}`, which callers would not see",
                input.name
            ));
        }
    }
    Ok(())
}

/// Whether what steps after a model make is as large as what comes out of them, of which the size is known by what callers send.
fn bounded(plan: &Plan, sent: &[TensorInfo]) -> Result<(), String> {
    let is_sent = |symbol: &str| {
        !symbol.is_empty() && sent.iter().any(|input| input.symbols.iter().any(|known| known == symbol))
    };
    let mut kept: BTreeSet<usize> = plan.wanted().iter().copied().collect();
    for (index, operation) in plan.operations().iter().enumerate().rev() {
        let is_kept = operation.outputs.iter().any(|slot| kept.contains(slot));
        if !matches!(operation.step, Step::Resize { .. }) {
            if is_kept {
                kept.extend(&operation.inputs);
            }
            continue;
        }
        let refused = |why| Err(said("after", index, operation, why));
        if !is_kept {
            return refused("what it makes is not what comes out, so that nothing would bound it");
        }
        let made = &plan.tensors()[operation.outputs[0]];
        if made.dimensions().any(|(extent, symbol)| extent < 0 && !is_sent(symbol)) {
            return refused("how many images the model gives is known after its run alone");
        }
    }
    Ok(())
}

fn said(side: &str, index: usize, operation: &Operation, why: &str) -> String {
    format!("step {} of `[[{side}]]` (`{}`): {why}", index + 1, operation.step.name())
}

/// The operators of the steps before a model, and the inputs of its graph with them.
fn before(
    plan: &Plan,
    model: &[TensorInfo],
    opset: u32,
    device: &Device<'_>,
) -> Result<(Graph, Vec<TensorInfo>), String> {
    let takes = |slot: usize| plan.wanted().iter().position(|wanted| *wanted == slot);
    let inputs: Vec<TensorInfo> = plan
        .inputs()
        .iter()
        .enumerate()
        .map(|(slot, input)| {
            // What the model takes as it comes has the model's name, which is the caller's too.
            let name =
                takes(slot).map_or_else(|| format!("{INPUT}{}", input.name), |at| model[at].name.clone());
            TensorInfo { name, ..input.clone() }
        })
        .collect();
    let names = inputs.iter().map(|input| input.name.clone()).collect();
    let mut maker = Maker::new("before", plan, plan, names, opset, device);
    maker.all()?;
    for (slot, input) in plan.wanted().iter().zip(model) {
        if *slot >= inputs.len() {
            maker.hand_over(*slot, &input.name)?;
        }
    }
    Ok((maker.graph, inputs))
}

/// The operators of the steps after a model, and the outputs of its graph with them. `plan` has the extents that the model promises, `loose` none of
/// them.
fn after(
    plan: &Plan,
    loose: &Plan,
    opset: u32,
    device: &Device<'_>,
) -> Result<(Graph, Vec<TensorInfo>), String> {
    let names: Vec<String> = plan.inputs().iter().map(|output| output.name.clone()).collect();
    let mut maker = Maker::new("after", loose, plan, names.clone(), opset, device);
    maker.all()?;
    let mut outputs = Vec::new();
    for (slot, output) in plan.wanted().iter().zip(plan.outputs()) {
        let name = match names.get(*slot) {
            Some(name) => name.clone(),
            None => {
                let name = format!("{OUTPUT}{}", output.name);
                maker.hand_over(*slot, &name)?;
                name
            }
        };
        outputs.push(TensorInfo { name, ..output.clone() });
    }
    Ok((maker.graph, outputs))
}

/// A tensor of a plan, in the graph.
#[derive(Clone)]
struct Value {
    name: String,
    /// Its type there: FP32 for bytes that were made that, each the same number.
    data_type: DataType,
}

struct Maker<'a> {
    side: &'static str,
    /// With the extents that are so whatever comes.
    plan: &'a Plan,
    /// With those that somebody promises.
    promised: &'a Plan,
    opset: u32,
    device: &'a Device<'a>,
    graph: Graph,
    /// The tensors of the plan, by number.
    values: Vec<Option<Value>>,
}

impl<'a> Maker<'a> {
    fn new(
        side: &'static str,
        plan: &'a Plan,
        promised: &'a Plan,
        names: Vec<String>,
        opset: u32,
        device: &'a Device<'a>,
    ) -> Self {
        let begin = plan.inputs().iter().zip(names);
        let mut values: Vec<_> =
            begin.map(|(input, name)| Some(Value { name, data_type: input.data_type })).collect();
        values.resize(plan.tensors().len(), None);
        Self { side, plan, promised, opset, device, graph: Graph::new(side), values }
    }

    fn all(&mut self) -> Result<(), String> {
        for (index, operation) in self.plan.operations().iter().enumerate() {
            let made = self.one(operation).map_err(|why| said(self.side, index, operation, &why))?;
            self.values[operation.outputs[0]] = Some(made);
        }
        Ok(())
    }

    /// Gives a tensor of the plan its name in the graph.
    fn hand_over(&mut self, slot: usize, name: &str) -> Result<(), String> {
        let tensor = &self.plan.tensors()[slot];
        let Some(value) = self.values[slot].clone() else {
            return Err(format!("no step makes `{}`", tensor.name));
        };
        if value.data_type != tensor.data_type {
            return Err(format!(
                "`[[{}]]` makes `{}`, of {}, out of bytes, which the device has as {} alone",
                self.side, tensor.name, tensor.data_type, value.data_type
            ));
        }
        if self.graph.is_own(&value.name) {
            self.graph.rename(&value.name, name);
            let renamed = self.values.iter_mut().flatten().filter(|other| other.name == value.name);
            renamed.for_each(|other| name.clone_into(&mut other.name));
        } else {
            // It is what came, under another name, or has one already.
            let copy = self.operator("Identity", &value, Vec::new())?;
            self.graph.rename(&copy, name);
        }
        Ok(())
    }

    fn one(&mut self, operation: &Operation) -> Result<Value, String> {
        let first = operation.inputs[0];
        let plan = self.plan;
        let tensor = &plan.tensors()[first];
        let value = self.values[first].clone().ok_or("it takes what no operator makes")?;
        match &operation.step {
            Step::Convert { datatype } => self.convert(value, tensor.data_type, *datatype),
            Step::Normalize { axis, .. } => self.normalize(&operation.step, value, tensor, *axis),
            Step::Resize { height, width, mode, layout } => match mode {
                ResizeMode::Bilinear => self.bilinear(value, first, [*height, *width], *layout),
                ResizeMode::Nearest => self.nearest(value, first, [*height, *width], *layout),
            },
            Step::Layout { layout } => {
                let value = self.movable("Transpose", value)?;
                let permutation = permutation(tensor.shape.len(), *layout);
                let name =
                    self.operator("Transpose", &value, vec![("perm", Attribute::Integers(permutation))])?;
                Ok(Value { name, ..value })
            }
            Step::Softmax { axis } => self.softmax(value, tensor, *axis),
            Step::TopK { .. } => {
                Err("ONNX leaves open which of equal values come first, and where NaN comes".into())
            }
            Step::Gather { .. } | Step::Scatter { .. } => {
                Err("in a graph an index that is none would be no error of the call".into())
            }
            _ => Err("ONNX has nothing like it".into()),
        }
    }

    /// Adds an operator, if the device has it for what it is to take.
    fn operator(
        &mut self,
        kind: &'static str,
        value: &Value,
        attributes: Vec<(&'static str, Attribute)>,
    ) -> Result<String, String> {
        self.operator_of(kind, value, &[], attributes)
    }

    fn operator_of(
        &mut self,
        kind: &'static str,
        value: &Value,
        further: &[String],
        attributes: Vec<(&'static str, Attribute)>,
    ) -> Result<String, String> {
        let data_type = value.data_type;
        if !(self.device.has)(kind, data_type) {
            return Err(format!("the device has no operator `{kind}` for {data_type}"));
        }
        if data_type == DataType::Bf16 && self.opset < OPSET_13 {
            return Err(format!("the model is of opset {}, BF16 needs {OPSET_13} or later", self.opset));
        }
        Ok(self.graph.add(kind, [&value.name].into_iter().chain(further), attributes))
    }

    fn cast(&mut self, value: &Value, to: DataType) -> Result<Value, String> {
        if to == value.data_type {
            return Ok(value.clone());
        }
        if to == DataType::Bf16 && self.opset < OPSET_13 {
            return Err(format!("the model is of opset {}, BF16 needs {OPSET_13} or later", self.opset));
        }
        let name = self.operator("Cast", value, vec![("to", number(to))])?;
        Ok(Value { name, data_type: to })
    }

    /// As FP32, which holds what is in it exactly.
    fn float(&mut self, value: &Value) -> Result<Value, String> {
        if self.has_cast(value) {
            return self.cast(value, DataType::Fp32);
        }
        // Halves are doubled. Without that ONNX Runtime would move what comes next in front, where it is for bytes, which the device has not.
        let halves = self.dequantized(value, 0.5)?;
        let two = self.graph.constant(&[], Data::Fp32(vec![2.]));
        let name = self.operator_of("Mul", &halves, &[two], Vec::new())?;
        Ok(Value { name, ..halves })
    }

    /// The same where what comes next is `Mul`.
    fn factor(&mut self, value: &Value) -> Result<Value, String> {
        if self.has_cast(value) { self.cast(value, DataType::Fp32) } else { self.dequantized(value, 1.) }
    }

    /// WebGPU has bytes in `DequantizeLinear` and not in `Cast`. Elsewhere it is `Cast`: of the other ONNX Runtime takes what comes next to be of
    /// a quantised model, and does it in bytes.
    fn has_cast(&self, value: &Value) -> bool {
        !is_byte(value.data_type) || (self.device.has)("Cast", value.data_type)
    }

    fn dequantized(&mut self, value: &Value, scale: f32) -> Result<Value, String> {
        let scale = self.graph.constant(&[], Data::Fp32(vec![scale]));
        let name = self.operator_of("DequantizeLinear", value, &[scale], Vec::new())?;
        Ok(Value { name, data_type: DataType::Fp32 })
    }

    /// What an operator can take that only moves elements: bytes as FP32 where the device has it not for bytes.
    fn movable(&mut self, kind: &str, value: Value) -> Result<Value, String> {
        if is_byte(value.data_type) && !(self.device.has)(kind, value.data_type) {
            return self.float(&value);
        }
        Ok(value)
    }

    fn convert(&mut self, value: Value, from: DataType, to: DataType) -> Result<Value, String> {
        use DataType::{Bf16, Fp16, Fp32, Int32, Int64};
        if from == to {
            return Ok(value);
        }
        match (from, to) {
            (_, Fp32) => self.float(&value),
            (Fp32, Fp16 | Bf16) => self.cast(&value, to),
            // Bytes, exactly; the others by way of FP32, as on the CPU.
            (_, Fp16 | Bf16) => {
                let float = self.float(&value)?;
                self.cast(&float, to)
            }
            (Int32, Int64) => self.cast(&value, to),
            (from, Int32 | Int64) if is_byte(from) => self.cast(&value, to),
            _ => Err("ONNX leaves open what becomes of a number that does not fit an integer".into()),
        }
    }

    fn normalize(
        &mut self,
        step: &Step,
        value: Value,
        tensor: &TensorInfo,
        at: i64,
    ) -> Result<Value, String> {
        let Step::Normalize { mean, std, .. } = step else { return Ok(value) };
        let rank = tensor.shape.len();
        let axis = if at < 0 { rank.saturating_sub(at.unsigned_abs() as usize) } else { at as usize };
        let channels = mean.len().max(std.len());
        if channels > 1 && tensor.shape.get(axis).is_none_or(|extent| *extent < 0) {
            return Err("how many channels there are is known at the call alone".into());
        }
        let (factors, offsets): (Vec<f32>, Vec<f32>) = step.factors(channels).into_iter().unzip();
        let mut shape = Vec::new();
        if channels > 1 {
            shape.push(channels as i64);
            shape.resize(rank - axis, 1);
        }
        let float = self.factor(&value)?;
        let factors = self.graph.constant(&shape, Data::Fp32(factors));
        let name = self.operator_of("Mul", &float, &[factors], Vec::new())?;
        let scaled = Value { name, ..float };
        let offsets = self.graph.constant(&shape, Data::Fp32(offsets));
        let name = self.operator_of("Add", &scaled, &[offsets], Vec::new())?;
        Ok(Value { name, ..scaled })
    }

    fn softmax(&mut self, value: Value, tensor: &TensorInfo, axis: i64) -> Result<Value, String> {
        let rank = tensor.shape.len() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        if self.opset < OPSET_13 && axis != rank - 1 {
            return Err(format!(
                "the model is of opset {}, along another axis than the last it needs {OPSET_13} or later",
                self.opset
            ));
        }
        let float = self.float(&value)?;
        let name = self.operator("Softmax", &float, vec![("axis", Attribute::Integer(axis))])?;
        Ok(Value { name, ..float })
    }

    /// By channels first, for that is where all devices have it.
    fn bilinear(
        &mut self,
        value: Value,
        slot: usize,
        [height, width]: [u32; 2],
        layout: ImageLayout,
    ) -> Result<Value, String> {
        let tensor = &self.plan.tensors()[slot];
        let rank = tensor.shape.len();
        if rank != 4 {
            return Err(format!("tensor `{}` has {rank} axes, in a graph it takes 4", tensor.name));
        }
        let mut extents = tensor.shape.clone();
        let mut value = self.float(&value)?;
        if layout == ImageLayout::Nhwc {
            extents[1..].rotate_right(1);
            let perm = permutation(rank, ImageLayout::Nchw);
            value.name = self.operator("Transpose", &value, vec![("perm", Attribute::Integers(perm))])?;
        }
        let to = [i64::from(height), i64::from(width)];
        let attributes = vec![
            ("mode", Attribute::Text("linear")),
            ("coordinate_transformation_mode", Attribute::Text("half_pixel")),
        ];
        let sizes = if extents[..2].iter().all(|extent| *extent >= 0) {
            self.graph.constant(&[4], Data::Int64(vec![extents[0], extents[1], to[0], to[1]]))
        // Of all axes: with `axes`, where ONNX Runtime moves a transposition past it, it takes the extents to be those of all.
        } else {
            let shape = self.shape(&value, slot)?;
            let [begin, end] = [0, 2].map(|at| self.graph.constant(&[1], Data::Int64(vec![at])));
            let outer = self.graph.add("Slice", [&shape, &begin, &end], Vec::new());
            let to = self.graph.constant(&[2], Data::Int64(to.to_vec()));
            self.graph.add("Concat", [&outer, &to], vec![("axis", Attribute::Integer(0))])
        };
        // A region and scales, of which there are none.
        let none = match self.opset {
            ..OPSET_13 => self.graph.constant(&[0], Data::Fp32(Vec::new())),
            _ => String::new(),
        };
        value.name = self.operator_of("Resize", &value, &[none.clone(), none, sizes], attributes)?;
        if layout == ImageLayout::Nhwc {
            let perm = permutation(rank, ImageLayout::Nhwc);
            value.name = self.operator("Transpose", &value, vec![("perm", Attribute::Integers(perm))])?;
        }
        Ok(value)
    }

    /// By picking rows, then columns, so that it is the pixels of [`nearest_taps`]: `Resize` calculates which in floats.
    fn nearest(
        &mut self,
        value: Value,
        slot: usize,
        to: [u32; 2],
        layout: ImageLayout,
    ) -> Result<Value, String> {
        let tensor = &self.plan.tensors()[slot];
        let first = tensor.shape.len().saturating_sub(if layout == ImageLayout::Nhwc { 3 } else { 2 });
        let mut value = self.movable("Gather", value)?;
        let shape = match tensor.shape[first..first + 2].iter().all(|extent| *extent >= 0) {
            true => String::new(),
            false => self.shape(&value, slot)?,
        };
        for (axis, to) in (first..).zip(to) {
            let picks = match u32::try_from(tensor.shape[axis]) {
                Ok(from) => {
                    let picks = nearest_taps(from, to).iter().map(|tap| i64::from(tap.low)).collect();
                    self.graph.constant(&[i64::from(to)], Data::Int64(picks))
                }
                // (2 i + 1) from / (2 to), in whole numbers.
                Err(_) => {
                    let at = self.graph.constant(&[], Data::Int64(vec![axis as i64]));
                    let from = self.graph.add("Gather", [&shape, &at], Vec::new());
                    let odd = (0..i64::from(to)).map(|index| 2 * index + 1).collect();
                    let odd = self.graph.constant(&[i64::from(to)], Data::Int64(odd));
                    let product = self.graph.add("Mul", [&odd, &from], Vec::new());
                    let twice = self.graph.constant(&[], Data::Int64(vec![2 * i64::from(to)]));
                    self.graph.add("Div", [&product, &twice], Vec::new())
                }
            };
            let axis = vec![("axis", Attribute::Integer(axis as i64))];
            value.name = self.operator_of("Gather", &value, &[picks], axis)?;
        }
        Ok(value)
    }

    /// The extents of a call, out of which the CPU calculates others.
    fn shape(&mut self, value: &Value, slot: usize) -> Result<String, String> {
        let [known, promised] = [self.plan, self.promised].map(|plan| &plan.tensors()[slot].shape);
        if known.iter().any(|extent| *extent < 0) && promised.iter().all(|extent| *extent >= 0) {
            // ONNX Runtime makes a constant of what is promised.
            return Err("it takes extents which the model only promises".into());
        }
        if !self.device.may_leave_shapes {
            return Err(
                "what it takes of extents that are free would run on the CPU, which is refused".into()
            );
        }
        self.operator("Shape", value, Vec::new())
    }
}

fn is_byte(data_type: DataType) -> bool {
    matches!(data_type, DataType::Uint8 | DataType::Int8)
}

/// Which axis each one of the result is, where channels become first or last of the last three.
fn permutation(rank: usize, to: ImageLayout) -> Vec<i64> {
    let mut axes: Vec<i64> = (0..rank as i64).collect();
    let begin = rank.saturating_sub(3);
    match to {
        ImageLayout::Nchw => axes[begin..].rotate_right(1),
        ImageLayout::Nhwc => axes[begin..].rotate_left(1),
    }
    axes
}
