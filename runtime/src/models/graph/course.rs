//! How far a call of an ensemble is: what is there, who waits for what, and what it takes.

use outrigger_backend::{Buffer, DataType, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};

use super::run::{Asked, Counters};
use super::wired::{Wired, WiredRun};
use crate::apart::apart;

/// A call on its way.
pub(super) struct Course<'a> {
    wired: &'a Wired,
    /// The numbers of the tensors that are wanted in the end.
    wanted: Vec<usize>,
    limit: usize,
    /// Bytes that the outputs of one run may take, whatever they are.
    most: usize,
    tensors: Vec<Option<Tensor>>,
    /// Of each tensor, how many have not taken it yet.
    takers: Vec<usize>,
    /// Of each tensor, how many are not through with it yet.
    holders: Vec<usize>,
    /// Of each run, how many tensors it waits for; nothing for those that are not needed.
    waits: Vec<Option<usize>>,
    /// Runs that have all that they take.
    ready: Vec<usize>,
    /// Bytes that go from run to run, and are expected to.
    held: usize,
    /// Of each run under way, the bytes that were expected.
    expected: Vec<usize>,
    /// Runs under way of which nobody knows beforehand how much they give.
    open: usize,
    /// Of each tensor that a run has given, its bytes.
    sizes: Vec<usize>,
}

fn internal(what: &'static str) -> CallError {
    CallError::new(ErrorCode::Internal, what)
}

impl<'a> Course<'a> {
    pub(super) fn new(
        wired: &'a Wired,
        inputs: Vec<Tensor>,
        outputs: &[usize],
        (limit, most): (usize, usize),
    ) -> Result<Self, CallError> {
        let wanted = outputs.iter().map(|output| wired.outputs.get(*output).copied());
        let wanted = wanted.collect::<Option<Vec<_>>>().ok_or_else(|| internal("there is no such output"))?;
        let (all, runs) = (wired.givers.len(), wired.runs.len());
        let mut course = Self {
            wired,
            wanted,
            limit,
            most,
            tensors: inputs.into_iter().map(Some).collect(),
            takers: vec![0; all],
            holders: Vec::new(),
            waits: vec![None; runs],
            ready: Vec::new(),
            held: 0,
            expected: vec![0; runs],
            open: 0,
            sizes: vec![0; all],
        };
        course.tensors.resize(all, None);
        course.need();
        course.holders.clone_from(&course.takers);
        // Those that callers send and nobody takes.
        course.forget_unneeded();
        let is_ready = |(_, waits): &(usize, &Option<usize>)| **waits == Some(0);
        course.ready = course.waits.iter().enumerate().filter(is_ready).map(|(run, _)| run).collect();
        Ok(course)
    }

    /// Who takes what, of what is needed for what is wanted.
    fn need(&mut self) {
        let needed = self.wired.needed(&self.wanted);
        let runs = self.wired.runs.iter().zip(&needed).filter(|(_, needed)| **needed);
        let taken = runs.flat_map(|(run, _)| &run.inputs).chain(&self.wanted);
        for tensor in taken {
            if let Some(takers) = self.takers.get_mut(*tensor) {
                *takers += 1;
            }
        }
        let comes = |tensor: &&usize| self.wired.givers.get(**tensor).is_some_and(Option::is_some);
        for ((run, needed), waits) in self.wired.runs.iter().zip(needed).zip(&mut self.waits) {
            *waits = needed.then(|| run.inputs.iter().filter(comes).count());
        }
    }

    fn forget_unneeded(&mut self) {
        for (tensor, takers) in self.tensors.iter_mut().zip(&self.takers) {
            if *takers == 0 {
                *tensor = None;
            }
        }
    }

    fn run(&self, number: usize) -> Result<&'a WiredRun, CallError> {
        self.wired.runs.get(number).ok_or_else(|| internal("there is no such run"))
    }

    /// The next run that may begin. One of which nobody knows how much it gives waits for those that are under way, unless there is room for all
    /// that it may: so no more is there at once than may be, but for what one run gives.
    pub(super) fn next(&mut self, is_alone: bool) -> Option<usize> {
        let open = self.most.saturating_mul(self.open.saturating_add(1));
        let has_room = self.held.saturating_add(open) <= self.limit;
        let may = |run: &usize| is_alone || has_room || !self.is_open(*run);
        let at = self.ready.iter().rposition(may)?;
        Some(self.ready.remove(at))
    }

    /// Whether nobody knows how much of a run's outputs are needed until they are there.
    fn is_open(&self, run: usize) -> bool {
        let is_needed = |tensor: usize| self.holders.get(tensor).is_some_and(|holders| *holders > 0);
        self.wired.runs.get(run).is_some_and(|run| {
            run.outputs().zip(&run.sized).any(|(tensor, sized)| !sized && is_needed(tensor))
        })
    }

    /// A run takes what it needs.
    pub(super) fn begin(
        &mut self,
        number: usize,
        home: &impl Fn(usize) -> Option<usize>,
    ) -> Result<Asked, CallError> {
        let run = self.run(number)?;
        let mut inputs = Vec::with_capacity(run.inputs.len());
        for tensor in &run.inputs {
            inputs.push(self.take(*tensor).ok_or_else(|| internal("a tensor is not there"))?);
        }
        let is_needed = |tensor: &usize| self.takers.get(*tensor).is_some_and(|takers| *takers > 0);
        let needed = run.outputs().enumerate().filter(|(_, tensor)| is_needed(tensor));
        let outputs: Vec<usize> = needed.map(|(index, _)| index).collect();
        let own = home(number);
        let stays = |index: &usize| {
            let of_a_size =
                run.info.outputs.get(*index).is_some_and(|info| info.data_type != DataType::Bytes);
            own.is_some() && of_a_size && self.stays(run.first + *index, own, home)
        };
        let stay = outputs.iter().copied().filter(stays).collect();
        let expected = run.info.output_bytes(&inputs, &outputs);
        self.held = self.held.saturating_add(expected);
        self.check(run)?;
        if let Some(entry) = self.expected.get_mut(number) {
            *entry = expected;
        }
        self.open += usize::from(self.is_open(number));
        Ok(Asked { run: number, inputs, outputs, stay })
    }

    /// Whether all who take a tensor are where it is made.
    fn stays(&self, tensor: usize, own: Option<usize>, home: &impl Fn(usize) -> Option<usize>) -> bool {
        let is_needed = |run: usize| self.waits.get(run).is_some_and(Option::is_some);
        let mut takers = self.wired.takers_of(tensor).filter(|(run, _)| is_needed(*run));
        !self.wanted.contains(&tensor) && takers.all(|(run, _)| home(run) == own)
    }

    fn take(&mut self, tensor: usize) -> Option<Tensor> {
        let takers = self.takers.get_mut(tensor)?;
        *takers = takers.checked_sub(1)?;
        let place = self.tensors.get_mut(tensor)?;
        // Who takes it last has it alone.
        if *takers == 0 { place.take() } else { place.clone() }
    }

    /// What a run has given is there for others, and what it took it holds no more.
    pub(super) fn end(
        &mut self,
        number: usize,
        wanted: &[usize],
        given: Vec<Tensor>,
        counters: Option<&Counters>,
    ) -> Result<(), CallError> {
        let run = self.run(number)?;
        if given.len() != wanted.len() {
            return Err(internal("a run has not given what was wanted"));
        }
        let expected = self.expected.get_mut(number).map(std::mem::take).unwrap_or_default();
        self.held = self.held.saturating_sub(expected);
        self.open = self.open.saturating_sub(usize::from(self.is_open(number)));
        for (index, tensor) in wanted.iter().zip(given) {
            let (number, tensor) = (run.first + *index, self.kept(tensor));
            self.held = self.held.saturating_add(tensor.memory());
            if let Some(counters) = counters.filter(|_| !self.wanted.contains(&number)) {
                let place = if tensor.resident().is_some() { &counters.on_device } else { &counters.on_host };
                place.inc();
            }
            if let (Some(place), Some(size)) = (self.tensors.get_mut(number), self.sizes.get_mut(number)) {
                *size = tensor.memory();
                *place = Some(tensor);
            }
            self.has_come(number);
        }
        self.check(run)?;
        for tensor in &run.inputs {
            self.is_through_with(*tensor);
        }
        Ok(())
    }

    /// A tensor as it is kept: one that keeps the memory of a whole batch with it has its own instead, where that would be too much.
    fn kept(&self, tensor: Tensor) -> Tensor {
        let is_part = tensor.resident().is_none() && tensor.memory() > tensor.data().len();
        if !is_part || self.held.saturating_add(tensor.memory()) <= self.limit {
            return tensor;
        }
        let own = apart(tensor.data().len(), || {
            let mut buffer = Buffer::zeroed(tensor.data().len()).ok()?;
            buffer.copy_from_slice(tensor.data());
            Tensor::new(tensor.data_type(), tensor.shape().clone(), buffer.freeze()).ok()
        });
        // Without memory for it, it counts as what it keeps.
        own.unwrap_or(tensor)
    }

    /// Those who wait for a tensor wait for one less, each as often as it takes it.
    fn has_come(&mut self, tensor: usize) {
        for (number, _) in self.wired.takers_of(tensor) {
            let Some(Some(waits)) = self.waits.get_mut(number) else { continue };
            *waits = waits.saturating_sub(1);
            if *waits == 0 {
                self.ready.push(number);
            }
        }
    }

    fn is_through_with(&mut self, tensor: usize) {
        let Some(holders) = self.holders.get_mut(tensor) else { return };
        *holders = holders.saturating_sub(1);
        if *holders == 0 {
            // What callers send has no size here: it is bounded where it comes in.
            self.held = self.held.saturating_sub(self.sizes.get(tensor).copied().unwrap_or_default());
        }
    }

    /// Holds what goes from run to run against the limit.
    fn check(&self, run: &WiredRun) -> Result<(), CallError> {
        let (held, limit, name) = (self.held, self.limit, &run.name);
        if held <= limit {
            return Ok(());
        }
        let text = format!(
            "with node `{name}` the tensors between nodes take {held} bytes, more than limits.ensemble, {limit} bytes"
        );
        Err(CallError::new(ErrorCode::InvalidTensor, text))
    }

    pub(super) fn results(mut self) -> Result<Vec<Tensor>, CallError> {
        let wanted = std::mem::take(&mut self.wanted);
        let results = wanted.into_iter().map(|tensor| self.take(tensor));
        results.collect::<Option<Vec<_>>>().ok_or_else(|| internal("an output has not come"))
    }
}
