//! A plan as passes: which shader runs over which tensors, with which parameters. Nothing here needs a device.

use outrigger_backend::{DataType, TensorInfo};
use outrigger_processing::{Images, Operation, Plan, Problem, ResizeMode, Split, Step, StepError};

use crate::shader::{Shader, THREADS, bits, convert, index, int, order, single, words};

/// Elements that `top_k` may look at in one row: it goes through the row once for each of the `k`, and a device that is not heard of for long
/// is reset by its driver.
const MAX_LOOKS: usize = 1 << 28;

/// What a shader reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A tensor of the plan.
    Tensor(usize),
    /// Words between two passes of one step.
    Scratch(usize),
}

/// One shader over whole tensors.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    pub(crate) shader: Shader,
    pub(crate) params: Vec<u32>,
    pub(crate) source: Place,
    pub(crate) second: Option<Place>,
    pub(crate) result: Place,
    /// Workgroups.
    pub(crate) groups: usize,
    /// The step that it belongs to, counted from 1.
    pub(crate) step: usize,
}

/// All passes of a plan, and the words of each scratch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passes {
    pub(crate) passes: Vec<Pass>,
    pub(crate) scratches: Vec<usize>,
}

/// Puts a plan without free extents, and without empty tensors, into passes.
///
/// # Errors
/// What [`Plan`] says of the shapes.
pub(crate) fn passes(plan: &Plan) -> Result<Passes, StepError> {
    let mut made = Passes::default();
    for (number, operation) in (1..).zip(plan.operations()) {
        let mut step = Lowering { plan, operation, number, made: &mut made };
        step.lower()?;
    }
    Ok(made)
}

struct Lowering<'a> {
    plan: &'a Plan,
    operation: &'a Operation,
    number: usize,
    made: &'a mut Passes,
}

impl Lowering<'_> {
    fn lower(&mut self) -> Result<(), StepError> {
        let from = self.info(self.operation.inputs[0]).data_type;
        let to = self.info(self.operation.outputs[0]).data_type;
        let elements = self.plan.shape(self.operation.outputs[0])?.elements();
        // Whole elements, whatever is in them.
        let moved = bits(size(from));
        // Elements as numbers.
        let read = [moved, int(from), single(from)].concat();
        match &self.operation.step {
            Step::Convert { .. } if from == to => {
                let shader = Shader::elements(&[moved, include_str!("shaders/copy.wgsl")], size(to));
                self.one(shader, vec![word(elements)], elements);
            }
            Step::Convert { .. } => {
                let shader = Shader::elements(&[&read, convert(to)], size(to));
                self.one(shader, vec![word(elements)], elements);
            }
            Step::Normalize { axis, .. } => {
                let split = self.plan.split(self.operation, *axis);
                let factors = self.operation.step.factors(split.extent);
                let mut params = vec![word(elements), word(split.inner), word(split.extent)];
                params
                    .extend(factors.iter().flat_map(|(factor, offset)| [factor.to_bits(), offset.to_bits()]));
                let shader = Shader::elements(&[&read, include_str!("shaders/normalize.wgsl")], 4);
                self.one(shader, params, elements);
            }
            Step::Resize { mode, layout, .. } => {
                let images = self.plan.images(self.operation, *layout);
                let images = images.map_err(|problem| StepError::Step {
                    number: self.number,
                    step: "resize",
                    problem,
                })?;
                let shared = include_str!("shaders/images.wgsl");
                let shader = match mode {
                    ResizeMode::Nearest => {
                        Shader::elements(&[moved, shared, include_str!("shaders/nearest.wgsl")], size(to))
                    }
                    ResizeMode::Bilinear => {
                        Shader::elements(&[&read, shared, include_str!("shaders/bilinear.wgsl")], 4)
                    }
                };
                self.one(shader, image_params(elements, &images), elements);
            }
            Step::Layout { layout } => {
                let matrices = self.plan.matrices(self.operation, *layout);
                let shader = Shader::elements(&[moved, include_str!("shaders/transpose.wgsl")], size(to));
                self.one(shader, vec![word(elements), word(matrices.rows), word(matrices.columns)], elements);
            }
            Step::Softmax { axis } => self.softmax(&read, self.plan.split(self.operation, *axis)),
            Step::TopK { k, axis, .. } => {
                let extent = self.plan.split(self.operation, *axis).extent;
                if (*k as usize).saturating_mul(extent) > MAX_LOOKS {
                    let expected = "at most 2^28 over the extent on this device";
                    let problem = Problem::Parameter { name: "k", value: k.to_string(), expected };
                    return Err(StepError::Step { number: self.number, step: "top_k", problem });
                }
                self.top_k(&[&read, order(from)].concat(), *k, self.plan.split(self.operation, *axis));
            }
            Step::Gather { .. } => self.gather(moved, elements),
            Step::Scatter { rows, .. } => self.scatter(moved, *rows as usize, elements),
            // One that came to the list after this.
            step => {
                let expected = "one that this device has a form of";
                let problem = Problem::Parameter { name: "step", value: step.name().into(), expected };
                return Err(StepError::Step { number: self.number, step: step.name(), problem });
            }
        }
        Ok(())
    }

    fn softmax(&mut self, read: &str, split: Split) {
        let rows = split.outer * split.inner;
        let scratch = self.scratch(2 * rows);
        let source = Place::Tensor(self.operation.inputs[0]);
        self.push(Pass {
            shader: Shader::whole(&[read, include_str!("shaders/softmax_rows.wgsl")]),
            params: vec![word(rows), word(split.extent), word(split.inner)],
            source,
            second: None,
            result: scratch,
            groups: rows,
            step: self.number,
        });
        let elements = split.elements();
        self.push(Pass {
            shader: Shader::elements(&[read, include_str!("shaders/softmax.wgsl")], 4),
            params: vec![word(elements), word(split.extent), word(split.inner)],
            source,
            second: Some(scratch),
            result: Place::Tensor(self.operation.outputs[0]),
            groups: groups(elements, 4),
            step: self.number,
        });
    }

    fn top_k(&mut self, read: &str, k: u32, split: Split) {
        let rows = split.outer * split.inner;
        let elements = rows * k as usize;
        let scratch = self.scratch(elements);
        let source = Place::Tensor(self.operation.inputs[0]);
        let size = size(self.info(self.operation.inputs[0]).data_type);
        self.push(Pass {
            shader: Shader::whole(&[read, include_str!("shaders/top_k_rows.wgsl")]),
            params: vec![word(rows), word(split.extent), word(split.inner), k],
            source,
            second: None,
            result: scratch,
            groups: rows,
            step: self.number,
        });
        self.push(Pass {
            shader: Shader::elements(&[read, include_str!("shaders/top_k_values.wgsl")], size),
            params: vec![word(elements), word(split.extent), word(split.inner), k],
            source,
            second: Some(scratch),
            result: Place::Tensor(self.operation.outputs[0]),
            groups: groups(elements, size),
            step: self.number,
        });
        self.push(Pass {
            shader: Shader::elements(&[include_str!("shaders/top_k_indices.wgsl")], 8),
            params: vec![word(elements)],
            source: scratch,
            second: None,
            result: Place::Tensor(self.operation.outputs[1]),
            groups: groups(elements, 8),
            step: self.number,
        });
    }

    fn gather(&mut self, moved: &str, elements: usize) {
        let [from, indices] = self.operation.inputs[..] else { return };
        let data_type = self.info(indices).data_type;
        let size = size(self.info(from).data_type);
        let (rows, row) = self.rows(from);
        self.push(Pass {
            shader: Shader::elements(
                &[moved, &index("second", data_type), include_str!("shaders/gather.wgsl")],
                size,
            ),
            params: vec![word(elements), word(row), word(rows), word(self.number)],
            source: Place::Tensor(from),
            second: Some(Place::Tensor(indices)),
            result: Place::Tensor(self.operation.outputs[0]),
            groups: groups(elements, size),
            step: self.number,
        });
    }

    fn scatter(&mut self, moved: &str, rows: usize, elements: usize) {
        let [from, indices] = self.operation.inputs[..] else { return };
        let data_type = self.info(indices).data_type;
        let size = size(self.info(from).data_type);
        let (count, row) = self.rows(from);
        let scratch = self.scratch(rows);
        self.push(Pass {
            shader: Shader::elements(&[include_str!("shaders/zero.wgsl")], 4),
            params: vec![word(rows)],
            source: Place::Tensor(indices),
            second: None,
            result: scratch,
            groups: groups(rows, 4),
            step: self.number,
        });
        self.push(Pass {
            shader: Shader::whole(&[&index("source", data_type), include_str!("shaders/scatter_rows.wgsl")]),
            params: vec![word(count), word(rows), word(self.number)],
            source: Place::Tensor(indices),
            second: None,
            result: scratch,
            groups: groups(count, 4),
            step: self.number,
        });
        self.push(Pass {
            shader: Shader::elements(&[moved, include_str!("shaders/scatter.wgsl")], size),
            params: vec![word(elements), word(row)],
            source: Place::Tensor(from),
            second: Some(scratch),
            result: Place::Tensor(self.operation.outputs[0]),
            groups: groups(elements, size),
            step: self.number,
        });
    }

    /// A pass from the step's first input to its first output.
    fn one(&mut self, shader: Shader, params: Vec<u32>, elements: usize) {
        let (source, result) = (self.operation.inputs[0], self.operation.outputs[0]);
        let groups = groups(elements, size(self.info(result).data_type));
        let (source, result) = (Place::Tensor(source), Place::Tensor(result));
        self.push(Pass { shader, params, source, second: None, result, groups, step: self.number });
    }

    fn push(&mut self, pass: Pass) {
        self.made.passes.push(pass);
    }

    fn scratch(&mut self, words: usize) -> Place {
        self.made.scratches.push(words);
        Place::Scratch(self.made.scratches.len() - 1)
    }

    fn info(&self, slot: usize) -> &TensorInfo {
        &self.plan.tensors()[slot]
    }

    /// Rows of a tensor, and elements of each.
    fn rows(&self, slot: usize) -> (usize, usize) {
        let shape = &self.info(slot).shape;
        let product = |extents: &[i64]| extents.iter().map(|&extent| extent.max(0) as usize).product();
        (product(&shape[..1]), product(&shape[1..]))
    }
}

fn image_params(elements: usize, images: &Images) -> Vec<u32> {
    let [height, width] = images.from;
    let mut params = vec![word(elements), word(images.channels), word(height), word(width)];
    params.extend(images.to.map(word));
    let taps = images.taps.iter().flatten();
    params.extend(taps.flat_map(|tap| [tap.low, tap.high, tap.weight.to_bits()]));
    params
}

/// Workgroups that make so many elements.
fn groups(elements: usize, size: usize) -> usize {
    // Elements of eight bytes have a thread each, not one for each word.
    let threads = if size == 8 { elements } else { words(elements, size) };
    threads.div_ceil(THREADS as usize)
}

fn size(data_type: DataType) -> usize {
    // The plan has refused types without one.
    data_type.size().unwrap_or(1)
}

/// A count as a shader has it. The program has checked that it is below 2^31.
fn word(count: usize) -> u32 {
    count as u32
}
