//! A chain of steps on a device: one submission for each run.
//!
//! For each set of shapes there is a *frame*: buffers, in which tensors that are not needed at the same time share memory, and what binds
//! shaders to them. A run takes a frame that is idle or makes one, so runs of any number of threads go on side by side; a few idle ones
//! are kept.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrigger_backend::{Buffer, DataType, Shape, Tensor, TensorInfo};
use outrigger_processing::{Chain, Plan, Problem, StepError};
use wgpu::{BindGroup, BindGroupDescriptor, BindGroupEntry, BufferUsages, CommandEncoder, MapMode, PollType};

use crate::GpuError;
use crate::gpu::{Gpu, Held, Pipeline};
use crate::passes::{Bounds, CHECK_WORDS, Check, Pass, Passes, Place, passes};

/// Idle frames that are kept, those that were used last.
const MAX_IDLE: usize = 8;
/// Bytes that idle frames of a program keep, unless it is said otherwise; the last one is kept however large it is.
pub(crate) const IDLE_BYTES: u64 = 256 << 20;
/// The most elements of a tensor: shaders count in 32 bits, and a little beyond the end.
const MAX_ELEMENTS: usize = 1 << 31;
/// How long a run waits for memory of the budget that other runs have.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a finished run waits for word of it before it asks once more.
const PASSED_ON: Duration = Duration::from_millis(1);

/// Steps, ready to run on a device with tensors of any shapes that they take.
#[derive(Debug)]
pub struct Program {
    gpu: Arc<Gpu>,
    chain: Chain,
    /// With what may be free left free.
    plan: Plan,
    idle: Arc<Idle>,
    idle_bytes: u64,
    /// Bytes of all frames, those under way too.
    held: Arc<AtomicU64>,
    bounds: Bounds,
    /// How long a run waits for memory that others have.
    patience: Duration,
}

/// Frames that wait for the next run.
#[derive(Debug, Default)]
pub(crate) struct Idle(Mutex<Vec<Frame>>);

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Vec<Frame>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives all of it back.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }
}

impl Program {
    /// Checks the steps against the tensors that they begin with; extents below 0 are free. `outputs` are the names of the tensors that
    /// are wanted. Shaders are compiled here, where that needs no shapes; where nothing is free, memory is taken too.
    ///
    /// # Errors
    /// [`GpuError::Step`], [`GpuError::Driver`]; and where nothing is free [`GpuError::TooLarge`], [`GpuError::OutOfMemory`],
    /// [`GpuError::OverBudget`].
    pub fn new<N: AsRef<str>>(
        gpu: Arc<Gpu>,
        chain: Chain,
        inputs: &[TensorInfo],
        outputs: &[N],
    ) -> Result<Self, GpuError> {
        let plan = chain.plan(inputs, outputs)?;
        let bounds = Bounds::USUAL;
        let probe = if is_fixed(&plan) { Some(plan.clone()) } else { small(&chain, &plan) };
        // It says which shaders there are, and nothing of how large a run is.
        for pass in
            probe.iter().filter_map(|probe| passes(probe, &Bounds::NONE).ok()).flat_map(|made| made.passes)
        {
            gpu.pipeline(&pass.shader)?;
        }
        let (idle, held) = (Arc::<Idle>::default(), Arc::default());
        gpu.keeps(&idle);
        let program =
            Self { gpu, chain, plan, idle, idle_bytes: IDLE_BYTES, held, bounds, patience: PATIENCE };
        if is_fixed(&program.plan) && has_work(&program.plan) {
            let frame = program.frame(program.plan.clone())?;
            program.idle.lock().push(frame);
        }
        Ok(program)
    }

    /// Bytes on the device that a chain takes for a run, beside what is kept of others: exactly where nothing is free; else those of a small run,
    /// whose free extents are 1 but for those that the steps want larger, which are 3 or 1024. 0 where that cannot be told.
    ///
    /// # Errors
    /// As [`Program::new`], without memory.
    pub fn needs<N: AsRef<str>>(
        gpu: &Gpu,
        chain: &Chain,
        inputs: &[TensorInfo],
        outputs: &[N],
    ) -> Result<u64, GpuError> {
        let plan = chain.plan(inputs, outputs)?;
        if is_fixed(&plan) {
            return bytes_of(gpu, &plan, &Bounds::USUAL);
        }
        // A probe that is too large says nothing of the runs that there will be.
        Ok(small(chain, &plan).and_then(|small| bytes_of(gpu, &small, &Bounds::USUAL).ok()).unwrap_or(0))
    }

    /// Keeps at most so many bytes on the device from one run to the next, instead of 256 MiB; those of the last run's shapes stay however
    /// many they are.
    #[must_use]
    pub fn keeping(mut self, idle_bytes: u64) -> Self {
        self.idle_bytes = idle_bytes;
        self
    }

    /// What it takes and gives, with what is free left free.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes on the device that it holds, runs under way counted in.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Bytes on the device that a run with tensors of these shapes takes.
    ///
    /// # Errors
    /// [`GpuError::Step`] for shapes that do not fit, [`GpuError::TooLarge`].
    pub fn estimate(&self, shapes: &[Shape]) -> Result<u64, GpuError> {
        bytes_of(&self.gpu, &self.resolve(shapes)?, &self.bounds)
    }

    /// Runs all steps and waits. Results are in the order in which they were asked for, in host memory; one that is an input shares its
    /// bytes.
    ///
    /// # Errors
    /// As [`Plan::run`]; and what the device has to say.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, GpuError> {
        let shapes: Vec<Shape> = inputs.iter().map(|input| input.shape().clone()).collect();
        // Before what it ends with: a frame is put back, or gone, before others hear that the run is over.
        let mut turn = self.gpu.turns.begin(self.patience);
        let mut frame = loop {
            if let Some(frame) = self.take(&shapes) {
                break frame;
            }
            let plan = self.resolve(&shapes)?;
            plan.check(inputs)?;
            if !has_work(&plan) {
                return Ok(plan.run(inputs)?);
            }
            match self.frame(plan) {
                // What others have for their runs comes back.
                Err(GpuError::OverBudget { .. }) if turn.wait() => {}
                made => break made?,
            }
        };
        frame.plan.check(inputs)?;
        // A frame whose run failed on the device is not used again.
        let results = frame.run(&self.gpu, inputs)?;
        let mut idle = self.idle.lock();
        idle.push(frame);
        let held = |idle: &[Frame]| idle.iter().map(|frame| frame.bytes).sum::<u64>();
        while idle.len() > 1 && (idle.len() > MAX_IDLE || held(&idle) > self.idle_bytes) {
            idle.remove(0);
        }
        Ok(results?)
    }

    fn frame(&self, plan: Plan) -> Result<Frame, GpuError> {
        Frame::new(&self.gpu, plan, &self.bounds, &self.held)
    }

    fn take(&self, shapes: &[Shape]) -> Option<Frame> {
        let mut idle = self.idle.lock();
        let fits = |frame: &Frame| {
            let planned = frame.plan.inputs().iter().map(|info| &info.shape[..]);
            planned.eq(shapes.iter().map(Shape::extents))
        };
        let found = idle.iter().rposition(fits)?;
        Some(idle.remove(found))
    }

    /// The plan for a run.
    fn resolve(&self, shapes: &[Shape]) -> Result<Plan, GpuError> {
        let expected = self.plan.inputs();
        if shapes.len() != expected.len() {
            return Err(StepError::Inputs { actual: shapes.len(), expected: expected.len() }.into());
        }
        let with = |(info, shape): (&TensorInfo, &Shape)| {
            let fits = |(declared, extent): (&i64, &i64)| *declared < 0 || declared == extent;
            let extents = shape.extents();
            if extents.len() != info.shape.len() || !info.shape.iter().zip(extents).all(fits) {
                return Err(StepError::Input {
                    name: info.name.clone(),
                    actual: format!("{} {shape}", info.data_type),
                    expected: format!("{} {:?}", info.data_type, info.shape),
                });
            }
            Ok(TensorInfo { shape: extents.into(), ..info.clone() })
        };
        let inputs = expected.iter().zip(shapes).map(with).collect::<Result<Vec<_>, _>>()?;
        Ok(again(&self.chain, &self.plan, &inputs)?)
    }
}

impl Drop for Program {
    /// The driver gives memory back only when it is spoken to.
    fn drop(&mut self) {
        self.idle.clear();
        let _ = self.gpu.device.poll(PollType::Poll);
    }
}

/// The same chain from other tensors.
fn again(chain: &Chain, plan: &Plan, inputs: &[TensorInfo]) -> Result<Plan, StepError> {
    let names: Vec<&str> = plan.outputs().map(|output| output.name.as_str()).collect();
    chain.plan(inputs, &names)
}

/// Whether no extent is free.
fn is_fixed(plan: &Plan) -> bool {
    plan.inputs().iter().all(|input| input.shape.iter().all(|extent| *extent >= 0))
}

/// Whether there is something for shaders to do.
fn has_work(plan: &Plan) -> bool {
    !plan.tensors().iter().any(|tensor| tensor.shape.contains(&0)) && !plan.operations().is_empty()
}

/// Bytes on the device that a run takes.
fn bytes_of(gpu: &Gpu, plan: &Plan, bounds: &Bounds) -> Result<u64, GpuError> {
    if !has_work(plan) {
        return Ok(0);
    }
    Ok(Sizes::of(plan, &passes(plan, bounds)?, gpu.max_binding(), gpu.max_buffer())?.total())
}

/// The plan with something for each free extent, to see which shaders it needs.
fn small(chain: &Chain, plan: &Plan) -> Option<Plan> {
    let names = free(plan.inputs());
    // Steps want as many channels as they have values, and as many elements as they pick: mostly of one extent. Where nothing of this does,
    // the shaders are compiled at the first run.
    let all = |extent| vec![extent; names.len()];
    let one = |extent| {
        let count = names.len();
        (0..count).map(move |at| (0..count).map(|other| if other == at { extent } else { 1 }).collect())
    };
    let tried = [all(1)].into_iter().chain(one(3)).chain([all(3)]).chain(one(1024)).chain([all(1024)]);
    tried.into_iter().find_map(|extents: Vec<i64>| {
        let mut inputs = plan.inputs().to_vec();
        for (places, extent) in names.iter().zip(extents) {
            places.iter().for_each(|(input, axis)| inputs[*input].shape[*axis] = extent);
        }
        let fixed = again(chain, plan, &inputs).ok()?;
        (0..fixed.tensors().len()).all(|slot| fixed.shape(slot).is_ok()).then_some(fixed)
    })
}

/// Where extents are free, input and axis; those of one name together.
fn free(inputs: &[TensorInfo]) -> Vec<Vec<(usize, usize)>> {
    let mut found: Vec<(&str, Vec<(usize, usize)>)> = Vec::new();
    for (input, info) in inputs.iter().enumerate() {
        for axis in (0..info.shape.len()).filter(|axis| info.shape[*axis] < 0) {
            let name = info.symbols.get(axis).map_or("", String::as_str);
            match found.iter_mut().find(|(known, _)| !name.is_empty() && *known == name) {
                Some((_, places)) => places.push((input, axis)),
                None => found.push((name, vec![(input, axis)])),
            }
        }
    }
    found.into_iter().map(|(_, places)| places).collect()
}

/// Which buffer each tensor lies in, and how large each is.
struct Sizes {
    /// For each place the number of its buffer.
    buffers: BTreeMap<Place, usize>,
    bytes: Vec<u64>,
    /// Where each wanted tensor lies among the results; none where it is an input.
    results: Vec<Option<(u64, usize)>>,
    /// Where what was checked lies behind them.
    checked: u64,
    status: u64,
    params: Vec<u64>,
}

impl Sizes {
    /// Gives each tensor a buffer: one that nothing needs any more, or a new one.
    fn of(plan: &Plan, passes: &Passes, limit: u64, buffer_limit: u64) -> Result<Self, GpuError> {
        let mut sizes = Self {
            buffers: BTreeMap::new(),
            bytes: Vec::new(),
            results: Vec::new(),
            checked: 0,
            status: 4 * (CHECK_WORDS * passes.checks.len()).max(1) as u64,
            params: Vec::new(),
        };
        for pass in &passes.passes {
            let what = format!("what step {} is told", pass.step);
            sizes.params.push(fits(&what, 4 * pass.params.len() as u64, limit)?);
        }
        let mut free: Vec<usize> = Vec::new();
        for slot in 0..plan.inputs().len() {
            let bytes = padded(plan, slot, limit)?;
            sizes.add(Place::Tensor(slot), bytes, &mut free);
        }
        for (index, operation) in plan.operations().iter().enumerate() {
            let scratches = passes.passes.iter().filter(|pass| pass.step == index + 1);
            let scratches = scratches.filter_map(|pass| match pass.result {
                Place::Scratch(number) => Some(number),
                Place::Tensor(_) => None,
            });
            let scratches: BTreeSet<usize> = scratches.collect();
            let mut over = Vec::new();
            for number in scratches {
                let bytes = fits("what a step keeps beside it", 4 * passes.scratches[number] as u64, limit)?;
                over.push(sizes.add(Place::Scratch(number), bytes, &mut free));
            }
            for &slot in &operation.outputs {
                let bytes = padded(plan, slot, limit)?;
                sizes.add(Place::Tensor(slot), bytes, &mut free);
            }
            // Only now, for a step must not write where it reads.
            let done = (0..plan.tensors().len()).filter(|&slot| is_over(plan, slot, index + 1));
            over.extend(done.filter_map(|slot| sizes.buffers.get(&Place::Tensor(slot)).copied()));
            free.extend(over);
        }
        for &slot in plan.wanted() {
            let bytes = plan.shape(slot)?.bytes(plan.tensors()[slot].data_type);
            let bytes = bytes.map_err(|_| StepError::Memory(usize::MAX))?;
            if slot < plan.inputs().len() {
                sizes.results.push(None);
                continue;
            }
            sizes.results.push(Some((sizes.checked, bytes)));
            sizes.checked += (bytes as u64).next_multiple_of(8);
        }
        fits("what a run gives", sizes.readback(), buffer_limit)?;
        Ok(sizes)
    }

    fn add(&mut self, place: Place, bytes: u64, free: &mut Vec<usize>) -> usize {
        // The smallest that is large enough, else the largest made larger.
        let fitting = free.iter().enumerate().filter(|(_, buffer)| self.bytes[**buffer] >= bytes);
        let fitting = fitting.min_by_key(|(_, buffer)| self.bytes[**buffer]);
        let found = fitting.or(free.iter().enumerate().max_by_key(|(_, buffer)| self.bytes[**buffer]));
        let buffer = match found.map(|(index, _)| index) {
            Some(index) => free.swap_remove(index),
            None => {
                self.bytes.push(0);
                self.bytes.len() - 1
            }
        };
        self.bytes[buffer] = self.bytes[buffer].max(bytes);
        self.buffers.insert(place, buffer);
        buffer
    }

    /// Bytes of what comes back.
    fn readback(&self) -> u64 {
        self.checked + self.status
    }

    /// Bytes of all buffers.
    fn total(&self) -> u64 {
        let tensors: u64 = self.bytes.iter().sum();
        tensors + self.readback() + self.status + self.params.iter().sum::<u64>()
    }
}

/// Whether a tensor was needed up to this step, counted from 1, and is no more: taken by it for the last time, or made by it for nobody.
fn is_over(plan: &Plan, slot: usize, step: usize) -> bool {
    let last = plan.last_use(slot);
    let is_made = plan.operations()[step - 1].outputs.contains(&slot);
    last == step || (last == 0 && is_made)
}

fn padded(plan: &Plan, slot: usize, limit: u64) -> Result<u64, GpuError> {
    let tensor = &plan.tensors()[slot];
    let shape = plan.shape(slot)?;
    let bytes = shape.bytes(tensor.data_type).map_err(|_| StepError::Memory(usize::MAX))? as u64;
    let what = format!("tensor `{}`", tensor.name);
    if shape.elements() >= MAX_ELEMENTS {
        return Err(GpuError::TooLarge { what, bytes, limit });
    }
    fits(&what, bytes, limit)
}

fn fits(what: &str, bytes: u64, limit: u64) -> Result<u64, GpuError> {
    let padded = bytes.next_multiple_of(4).max(4);
    if padded > limit { Err(GpuError::TooLarge { what: what.into(), bytes, limit }) } else { Ok(padded) }
}

/// What one run needs, for one set of shapes.
struct Frame {
    plan: Plan,
    buffers: Vec<Held>,
    /// Those of the submissions before the last, where one is not enough.
    earlier: Vec<Vec<Bound>>,
    passes: Vec<Bound>,
    checks: Vec<Check>,
    sizes: Sizes,
    /// What is checked while it runs.
    status: Held,
    readback: Held,
    bytes: u64,
    _params: Vec<Held>,
    _counted: Counted,
}

/// Bytes that a program holds, until this is dropped.
struct Counted {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl Counted {
    fn new(held: &Arc<AtomicU64>, bytes: u64) -> Self {
        held.fetch_add(bytes, Ordering::Relaxed);
        Self { held: Arc::clone(held), bytes }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A pass, bound to buffers.
struct Bound {
    pipeline: Arc<Pipeline>,
    bindings: BindGroup,
    groups: (u32, u32),
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Frame {
    fn new(gpu: &Gpu, plan: Plan, bounds: &Bounds, held: &Arc<AtomicU64>) -> Result<Self, GpuError> {
        let made = passes(&plan, bounds)?;
        let sizes = Sizes::of(&plan, &made, gpu.max_binding(), gpu.max_buffer())?;
        let pipelines = made.passes.iter().map(|pass| gpu.pipeline(&pass.shader));
        let pipelines = pipelines.collect::<Result<Vec<_>, _>>()?;
        let bytes = sizes.total();
        let _room = gpu.room(bytes)?;
        gpu.guarded(bytes, move || {
            let storage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
            let buffers: Vec<Held> = sizes.bytes.iter().map(|bytes| gpu.buffer(*bytes, storage)).collect();
            let status = gpu.buffer(sizes.status, storage);
            let readback = gpu.buffer(sizes.readback(), BufferUsages::COPY_DST | BufferUsages::MAP_READ);
            let mut params = Vec::new();
            let (mut earlier, mut passes, mut looks) = (Vec::new(), Vec::new(), 0usize);
            for ((pass, pipeline), bytes) in made.passes.iter().zip(pipelines).zip(&sizes.params) {
                let words: Vec<u8> = pass.params.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let held = gpu.buffer(*bytes, storage);
                gpu.queue.write_buffer(&held.buffer, 0, &words);
                let bindings = bind(gpu, &pipeline, pass, &held, &sizes, &buffers, &status);
                // A driver resets a device for a submission that takes too long, whatever it is made of.
                looks = looks.saturating_add(pass.looks);
                if looks > bounds.submission && !passes.is_empty() {
                    earlier.push(std::mem::take(&mut passes));
                    looks = pass.looks;
                }
                passes.push(Bound { pipeline, bindings, groups: gpu.dispatch(pass.groups) });
                params.push(held);
            }
            let (checks, counted) = (made.checks, Counted::new(held, bytes));
            Self {
                plan,
                buffers,
                earlier,
                passes,
                checks,
                sizes,
                status,
                readback,
                bytes,
                _params: params,
                _counted: counted,
            }
        })
    }

    /// Runs. What is wrong with an index is said beside what the device says.
    fn run(&mut self, gpu: &Gpu, inputs: &[Tensor]) -> Result<Result<Vec<Tensor>, StepError>, GpuError> {
        let whole = ..;
        let (sender, mapped) = channel();
        let submission = gpu.guarded(self.bytes, || {
            for (slot, input) in inputs.iter().enumerate() {
                self.upload(gpu, slot, input.data());
            }
            gpu.queue.write_buffer(&self.status.buffer, 0, &vec![0; self.sizes.status as usize]);
            for part in &self.earlier {
                let mut encoder = gpu.device.create_command_encoder(&Default::default());
                encode(&mut encoder, part);
                gpu.queue.submit([encoder.finish()]);
            }
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            encode(&mut encoder, &self.passes);
            let readback = &self.readback.buffer;
            for (slot, place) in self.plan.wanted().iter().zip(&self.sizes.results) {
                let (Some((at, bytes)), Some(from)) = (place, self.sizes.buffers.get(&Place::Tensor(*slot)))
                else {
                    continue;
                };
                let bytes = (*bytes as u64).next_multiple_of(4);
                encoder.copy_buffer_to_buffer(&self.buffers[*from].buffer, 0, readback, *at, bytes);
            }
            let (at, bytes) = (self.sizes.checked, self.sizes.status);
            encoder.copy_buffer_to_buffer(&self.status.buffer, 0, readback, at, bytes);
            let submission = gpu.queue.submit([encoder.finish()]);
            // Whoever does not wait any more does not mind.
            readback.map_async(MapMode::Read, whole, move |result| drop(sender.send(result)));
            submission
        })?;
        let waited = gpu.device.poll(PollType::Wait { submission_index: Some(submission), timeout: None });
        let lost = |what: String| match gpu.lost() {
            Some(text) => GpuError::Lost(text.into()),
            None => GpuError::Driver(what),
        };
        waited.map_err(|error| lost(error.to_string()))?;
        // Another thread that waits may be the one that has been told, and is about to pass it on.
        loop {
            match mapped.recv_timeout(PASSED_ON) {
                Ok(Ok(())) => break,
                Ok(Err(error)) => return Err(lost(error.to_string())),
                Err(RecvTimeoutError::Disconnected) => return Err(lost("it forgot a result".into())),
                Err(RecvTimeoutError::Timeout) => {
                    gpu.device.poll(PollType::Poll).map_err(|error| lost(error.to_string()))?;
                }
            }
        }
        let results = self.collect(inputs);
        self.readback.buffer.unmap();
        results
    }

    fn upload(&self, gpu: &Gpu, slot: usize, bytes: &[u8]) {
        let Some(buffer) = self.sizes.buffers.get(&Place::Tensor(slot)) else { return };
        let buffer = &self.buffers[*buffer].buffer;
        let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
        if !words.is_empty() {
            gpu.queue.write_buffer(buffer, 0, words);
        }
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            gpu.queue.write_buffer(buffer, words.len() as u64, &last);
        }
    }

    /// Copies the results out of what the device has written.
    fn collect(&self, inputs: &[Tensor]) -> Result<Result<Vec<Tensor>, StepError>, GpuError> {
        let view = self.readback.buffer.get_mapped_range(..);
        let view = view.map_err(|error| GpuError::Driver(error.to_string()))?;
        let checked: Vec<u32> = view[self.sizes.checked as usize..]
            .as_chunks()
            .0
            .iter()
            .map(|word| u32::from_ne_bytes(*word))
            .collect();
        if let Some(error) = self.bad_index(&checked, inputs) {
            return Ok(Err(error));
        }
        let results = self.plan.wanted().iter().zip(&self.sizes.results).map(|(&slot, place)| {
            let Some((at, bytes)) = *place else { return Ok(inputs[slot].clone()) };
            let mut buffer = Buffer::zeroed(bytes).map_err(|_| StepError::Memory(bytes))?;
            buffer.copy_from_slice(&view[at as usize..][..bytes]);
            let data_type = self.plan.tensors()[slot].data_type;
            let tensor = Tensor::new(data_type, self.plan.shape(slot)?, buffer.freeze());
            tensor.map_err(|error| GpuError::Driver(error.to_string()))
        });
        results.collect::<Result<Vec<_>, GpuError>>().map(Ok)
    }

    /// The first index that is none, as the form on the CPU says it.
    fn bad_index(&self, checked: &[u32], inputs: &[Tensor]) -> Option<StepError> {
        let mut words = self.checks.iter().zip(checked.as_chunks::<CHECK_WORDS>().0);
        let (check, [at, low, high]) = words.find(|(_, [at, ..])| *at != 0)?;
        let index = match inputs.get(check.indices) {
            Some(input) => index_at(input, !*at as usize)?,
            None => (u64::from(*high) << 32 | u64::from(*low)) as i64,
        };
        let tensor = self.plan.tensors()[check.indices].name.clone();
        let step = self.plan.operations()[check.step - 1].step.name();
        let problem = Problem::Index { index, tensor, rows: check.rows as i64 };
        Some(StepError::Step { number: check.step, step, problem })
    }
}

fn encode(encoder: &mut CommandEncoder, passes: &[Bound]) {
    let mut pass = encoder.begin_compute_pass(&Default::default());
    for bound in passes {
        pass.set_pipeline(&bound.pipeline.pipeline);
        pass.set_bind_group(0, &bound.bindings, &[]);
        pass.dispatch_workgroups(bound.groups.0, bound.groups.1, 1);
    }
}

/// An element of a tensor of indices.
fn index_at(tensor: &Tensor, at: usize) -> Option<i64> {
    let data = tensor.data();
    match tensor.data_type() {
        DataType::Int32 => data.as_chunks().0.get(at).map(|bytes| i32::from_ne_bytes(*bytes).into()),
        _ => data.as_chunks().0.get(at).map(|bytes| i64::from_ne_bytes(*bytes)),
    }
}

fn bind(
    gpu: &Gpu,
    pipeline: &Pipeline,
    pass: &Pass,
    params: &Held,
    sizes: &Sizes,
    buffers: &[Held],
    status: &Held,
) -> BindGroup {
    // Each place of a pass was given a buffer together with the pass.
    let at = |place: Place| &buffers[sizes.buffers.get(&place).copied().unwrap_or_default()];
    let entry = |binding, held: &'_ Held| (binding, held.buffer.clone());
    let mut held = vec![entry(0, params), entry(1, at(pass.source)), entry(2, at(pass.result))];
    held.extend(pass.second.map(|second| entry(3, at(second))));
    held.extend(pass.shader.has_status.then(|| entry(4, status)));
    let entries: Vec<BindGroupEntry<'_>> = held
        .iter()
        .map(|(binding, buffer)| BindGroupEntry { binding: *binding, resource: buffer.as_entire_binding() })
        .collect();
    gpu.device.create_bind_group(&BindGroupDescriptor {
        label: None,
        layout: &pipeline.layout,
        entries: &entries,
    })
}
