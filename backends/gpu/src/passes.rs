//! A plan as passes: which shader runs over which tensors, with which parameters. Nothing here needs a device.

use outrigger_backend::{DataType, TensorInfo};
use outrigger_processing::{Images, Operation, Plan, Problem, ResizeMode, Step, StepError};

use crate::shader::{Shader, THREADS, bits, convert, index, index_words, int, order, single, words};

/// How long steps that look at a row again and again may keep a device busy, in looks at elements: one that is not heard of for long is reset
/// by its driver, which costs everybody their runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Of one submission, and so of one row: a workgroup has it, which gives a slow device about half a second. A pass that looks at each
    /// element of a tensor once, or twice for a softmax, may be a submission by itself however many there are: the whole device is at it.
    pub(crate) submission: usize,
    /// Of one step in all.
    pub(crate) step: usize,
}

impl Bounds {
    pub(crate) const USUAL: Self = Self { submission: 1 << 28, step: 1 << 34 };
    /// For passes that are not run.
    pub(crate) const NONE: Self = Self { submission: usize::MAX, step: usize::MAX };
}

/// Words of each check: the complement of where the first index is that is none, then the index itself.
pub(crate) const CHECK_WORDS: usize = 3;

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
    /// Looks at elements.
    pub(crate) looks: usize,
    /// The step that it belongs to, counted from 1.
    pub(crate) step: usize,
}

/// All passes of a plan, and the words of each scratch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passes {
    pub(crate) passes: Vec<Pass>,
    pub(crate) scratches: Vec<usize>,
    /// What is checked while it runs, in the order of the steps.
    pub(crate) checks: Vec<Check>,
}

/// Indices that a step takes.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// Which step, counted from 1.
    pub(crate) step: usize,
    /// The tensor that they are in.
    pub(crate) indices: usize,
    /// Rows that there are.
    pub(crate) rows: usize,
}

/// Puts a plan without free extents, and without empty tensors, into passes.
///
/// # Errors
/// What [`Plan`] says of the shapes; steps that are over their bounds.
pub(crate) fn passes(plan: &Plan, bounds: &Bounds) -> Result<Passes, StepError> {
    let mut made = Passes::default();
    for (number, operation) in (1..).zip(plan.operations()) {
        let mut step = Lowering { plan, operation, number, bounds, made: &mut made };
        step.lower()?;
    }
    Ok(made)
}

struct Lowering<'a> {
    plan: &'a Plan,
    operation: &'a Operation,
    number: usize,
    bounds: &'a Bounds,
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
                let mut params = vec![word(elements), word(split.inner), word(factors.len())];
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
            Step::Softmax { axis } => self.softmax(&read, *axis)?,
            Step::TopK { k, axis, .. } => self.top_k(&[&read, order(from)].concat(), *k, *axis)?,
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

    fn softmax(&mut self, read: &str, axis: i64) -> Result<(), StepError> {
        let split = self.plan.split(self.operation, axis);
        let rows = split.outer * split.inner;
        let looks = self.within("axis", axis, rows, 2 * split.extent)?;
        let scratch = self.scratch(rows.saturating_mul(2));
        let source = Place::Tensor(self.operation.inputs[0]);
        self.push(Pass {
            shader: Shader::rows(&[read, include_str!("shaders/softmax_rows.wgsl")]),
            params: vec![word(rows), word(split.extent), word(split.inner)],
            source,
            second: None,
            result: scratch,
            groups: rows,
            looks,
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
            looks: elements,
            step: self.number,
        });
        Ok(())
    }

    fn top_k(&mut self, read: &str, k: u32, axis: i64) -> Result<(), StepError> {
        let split = self.plan.split(self.operation, axis);
        let rows = split.outer * split.inner;
        let (wanted, padded) = (k as usize, (k as usize).next_power_of_two());
        let row = looks_of_top_k(split.extent, padded);
        self.within("k", i64::from(k), rows, row)?;
        let scratch = self.scratch(rows.saturating_mul(padded));
        let source = Place::Tensor(self.operation.inputs[0]);
        let size = size(self.info(self.operation.inputs[0]).data_type);
        let at_once = (self.bounds.submission / row).max(1);
        for first in (0..rows).step_by(at_once) {
            let rows = at_once.min(rows - first);
            self.push(Pass {
                shader: Shader::rows(&[read, include_str!("shaders/top_k_rows.wgsl")]),
                params: vec![word(rows), word(split.extent), word(split.inner), k, word(padded), word(first)],
                source,
                second: None,
                result: scratch,
                groups: rows,
                looks: rows.saturating_mul(row),
                step: self.number,
            });
        }
        let elements = rows * wanted;
        let params = vec![word(elements), word(split.extent), word(split.inner), k, word(padded)];
        let places = include_str!("shaders/top_k_places.wgsl");
        self.push(Pass {
            shader: Shader::elements(&[read, places, include_str!("shaders/top_k_values.wgsl")], size),
            params: params.clone(),
            source,
            second: Some(scratch),
            result: Place::Tensor(self.operation.outputs[0]),
            groups: groups(elements, size),
            looks: elements,
            step: self.number,
        });
        self.push(Pass {
            shader: Shader::elements(&[places, include_str!("shaders/top_k_indices.wgsl")], 8),
            params,
            source: scratch,
            second: None,
            result: Place::Tensor(self.operation.outputs[1]),
            groups: groups(elements, 8),
            looks: elements,
            step: self.number,
        });
        Ok(())
    }

    /// Looks at so many rows, if that is not too many; `name` is the parameter that is told, `value` what it is.
    fn within(&self, name: &'static str, value: i64, rows: usize, row: usize) -> Result<usize, StepError> {
        let all = rows.saturating_mul(row);
        if row <= self.bounds.submission && all <= self.bounds.step {
            return Ok(all);
        }
        let value = format!("{value}, for which the device looks {row} times at each of {rows} rows");
        let expected = "at most 2^28 times at a row, and 2^34 times in all";
        let problem = Problem::Parameter { name, value, expected };
        Err(StepError::Step { number: self.number, step: self.operation.step.name(), problem })
    }

    fn gather(&mut self, moved: &str, elements: usize) {
        let [from, indices] = self.operation.inputs[..] else { return };
        let data_type = self.info(indices).data_type;
        let size = size(self.info(from).data_type);
        let (rows, row) = self.rows(from);
        let check = self.check(indices, rows);
        self.push(Pass {
            shader: Shader::elements(
                &[moved, &index("second", data_type), include_str!("shaders/gather.wgsl")],
                size,
            ),
            params: vec![word(elements), word(row), word(rows), check],
            source: Place::Tensor(from),
            second: Some(Place::Tensor(indices)),
            result: Place::Tensor(self.operation.outputs[0]),
            groups: groups(elements, size),
            looks: elements,
            step: self.number,
        });
        self.keep_index(indices, check);
    }

    fn scatter(&mut self, moved: &str, rows: usize, elements: usize) {
        let [from, indices] = self.operation.inputs[..] else { return };
        let data_type = self.info(indices).data_type;
        let size = size(self.info(from).data_type);
        let (count, row) = self.rows(from);
        let check = self.check(indices, rows);
        let scratch = self.scratch(rows);
        self.push(Pass {
            shader: Shader::elements(&[include_str!("shaders/zero.wgsl")], 4),
            params: vec![word(rows)],
            source: Place::Tensor(indices),
            second: None,
            result: scratch,
            groups: groups(rows, 4),
            looks: rows,
            step: self.number,
        });
        self.push(Pass {
            shader: Shader::each(&[&index("source", data_type), include_str!("shaders/scatter_rows.wgsl")]),
            params: vec![word(count), word(rows), check],
            source: Place::Tensor(indices),
            second: None,
            result: scratch,
            groups: groups(count, 4),
            looks: count,
            step: self.number,
        });
        self.push(Pass {
            shader: Shader::elements(&[moved, include_str!("shaders/scatter.wgsl")], size),
            params: vec![word(elements), word(row)],
            source: Place::Tensor(from),
            second: Some(scratch),
            result: Place::Tensor(self.operation.outputs[0]),
            groups: groups(elements, size),
            looks: elements,
            step: self.number,
        });
        self.keep_index(indices, check);
    }

    /// Where the words of a new check begin.
    fn check(&mut self, indices: usize, rows: usize) -> u32 {
        self.made.checks.push(Check { step: self.number, indices, rows });
        word((self.made.checks.len() - 1) * CHECK_WORDS)
    }

    /// Keeps the first index that is none, of a tensor that is there only while it runs. Who asks has the inputs at hand.
    fn keep_index(&mut self, indices: usize, check: u32) {
        if indices < self.plan.inputs().len() {
            return;
        }
        let words = index_words(self.info(indices).data_type);
        let scratch = self.scratch(1);
        self.push(Pass {
            shader: Shader::each(&[words, include_str!("shaders/index_that_is_none.wgsl")]),
            params: vec![1, check],
            source: Place::Tensor(indices),
            second: None,
            result: scratch,
            groups: 1,
            looks: 1,
            step: self.number,
        });
    }

    /// A pass from the step's first input to its first output.
    fn one(&mut self, shader: Shader, params: Vec<u32>, elements: usize) {
        let (source, result) = (self.operation.inputs[0], self.operation.outputs[0]);
        let groups = groups(elements, size(self.info(result).data_type));
        let (source, result) = (Place::Tensor(source), Place::Tensor(result));
        let (looks, step) = (elements, self.number);
        self.push(Pass { shader, params, source, second: None, result, groups, looks, step });
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

/// Looks at a row: once for each byte and once to collect; and at two for each pair that is compared.
fn looks_of_top_k(extent: usize, padded: usize) -> usize {
    let stages = padded.ilog2() as usize;
    let pairs = (padded / 2).saturating_mul(stages * (stages + 1) / 2);
    extent.saturating_mul(9).saturating_add(pairs.saturating_mul(2))
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

#[cfg(test)]
mod tests {
    use outrigger_processing::Chain;

    use super::*;

    fn lowered(step: Step, data_type: DataType, shape: &[i64], bounds: &Bounds) -> Result<Passes, String> {
        let x = TensorInfo { name: "x".into(), data_type, shape: shape.into(), symbols: Vec::new() };
        let chain: Chain = [step].into_iter().collect();
        passes(&chain.plan(&[x], &["x"]).unwrap(), bounds).map_err(|error| error.to_string())
    }

    fn top_k(k: u32, axis: i64) -> Step {
        Step::TopK { k, axis, indices: "i".into() }
    }

    #[test]
    fn no_submission_is_longer_than_its_bound() {
        let row = |pass: &Pass| (pass.params[5], pass.params[0]);
        for (k, axis, shape, rows) in [
            (5, -1, [1 << 17, 1000], 1 << 17),
            (1000, 0, [1000, 1 << 17], 1 << 17),
            (1 << 14, -1, [1 << 10, 1 << 14], 1 << 10),
            (1, -1, [1, 1 << 24], 1),
        ] {
            let made = lowered(top_k(k, axis), DataType::Uint8, &shape, &Bounds::USUAL).unwrap();
            assert!(made.passes.iter().all(|pass| pass.looks <= 1 << 28), "{k} of {shape:?}");
            // Each row once.
            let parts: Vec<_> = made.passes.iter().filter(|pass| pass.params.len() == 6).map(row).collect();
            let ends: Vec<u32> = parts.iter().map(|(first, rows)| first + rows).collect();
            let begins = parts.iter().map(|(first, _)| *first);
            assert!(begins.eq([0].into_iter().chain(ends[..ends.len() - 1].iter().copied())));
            assert_eq!(ends.last(), Some(&rows));
        }
    }

    #[test]
    fn what_would_take_too_long_is_refused() {
        let refused = |step: Step, data_type, shape: &[i64]| {
            lowered(step, data_type, shape, &Bounds::USUAL).map(drop).unwrap_err()
        };
        assert_eq!(
            refused(top_k(1, -1), DataType::Uint8, &[2, 1 << 25]),
            "step 1 (`top_k`): `k` is 1, for which the device looks 301989888 times at each of 2 rows, it must be at most 2^28 times at a row, and 2^34 times in all"
        );
        let said = refused(top_k(1 << 20, -1), DataType::Uint8, &[1 << 7, 1 << 20]);
        assert!(said.contains("looks 229638144 times at each of 128 rows"), "{said}");
        let softmax = Step::Softmax { axis: -1 };
        let said = refused(softmax.clone(), DataType::Fp16, &[(1 << 27) + 1]);
        assert!(said.starts_with("step 1 (`softmax`): `axis` is -1, for which"), "{said}");
        assert!(lowered(softmax, DataType::Fp16, &[1 << 27], &Bounds::USUAL).is_ok());
    }
}
