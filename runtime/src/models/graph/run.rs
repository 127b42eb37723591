//! A call of an ensemble: each run begins as soon as all that it takes is there, and a tensor goes as soon as nobody takes it any more.
//!
//! It is one future, with those of its runs in it: dropped, it leaves all of them, which are then cancelled.

use std::future::Future;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use outrigger_backend::{DataType, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};
use prometheus::IntCounter;

use super::wired::{Wired, WiredRun};

/// What is counted of an ensemble's calls: tensors that went from one of its runs to others.
pub(in crate::models) struct Counters {
    /// Those that stayed on a device.
    pub(in crate::models) on_device: IntCounter,
    /// Those that came to the host.
    pub(in crate::models) on_host: IntCounter,
}

/// What is asked of a run of a model.
pub(super) struct Asked {
    /// Its number.
    pub(super) run: usize,
    /// What it takes, in its model's order.
    pub(super) inputs: Vec<Tensor>,
    /// The outputs that are wanted, by number.
    pub(super) outputs: Vec<usize>,
    /// Those of them that are to stay on its device.
    pub(super) stay: Vec<usize>,
}

/// Runs a graph, and gives the outputs with these numbers. `call` runs a model; `home` is the device on which what a run takes and gives can stay, if there
/// is one; what goes from run to run may take `limit` bytes at once.
///
/// # Errors
/// That of the first run which fails; the others are left. `invalid_tensor` for what would take more than may be.
pub(super) async fn run<F: Future<Output = Result<Vec<Tensor>, CallError>>>(
    wired: &Wired,
    inputs: Vec<Tensor>,
    outputs: &[usize],
    (home, limit): (impl Fn(usize) -> Option<usize>, usize),
    counters: Option<&Counters>,
    call: impl Fn(Asked) -> F,
) -> Result<Vec<Tensor>, CallError> {
    let mut course = Course::new(wired, inputs, outputs, limit)?;
    let mut under_way = FuturesUnordered::new();
    loop {
        while let Some(number) = course.ready.pop() {
            let asked = course.begin(number, &home)?;
            let (run, wanted, answer) = (asked.run, asked.outputs.clone(), call(asked));
            under_way.push(async move { (run, wanted, answer.await) });
        }
        let Some((run, wanted, answer)) = under_way.next().await else { break };
        course.end(run, &wanted, answer?, counters)?;
    }
    course.results()
}

/// A call on its way.
struct Course<'a> {
    wired: &'a Wired,
    /// The numbers of the tensors that are wanted in the end.
    wanted: Vec<usize>,
    limit: usize,
    tensors: Vec<Option<Tensor>>,
    /// Of each tensor, how many have not taken it yet.
    takers: Vec<usize>,
    /// Of each tensor, how many are not through with it yet.
    holders: Vec<usize>,
    /// Of each run, how many tensors it waits for; nothing for those that are not needed.
    waits: Vec<Option<usize>>,
    /// Runs that may begin.
    ready: Vec<usize>,
    /// Bytes that go from run to run, and are expected to.
    held: usize,
    /// Of each run under way, the bytes that were expected.
    expected: Vec<usize>,
    /// Of each tensor that a run has given, its bytes.
    sizes: Vec<usize>,
}

fn internal(what: &'static str) -> CallError {
    CallError::new(ErrorCode::Internal, what)
}

impl<'a> Course<'a> {
    fn new(
        wired: &'a Wired,
        inputs: Vec<Tensor>,
        outputs: &[usize],
        limit: usize,
    ) -> Result<Self, CallError> {
        let wanted = outputs.iter().map(|output| wired.outputs.get(*output).copied());
        let wanted = wanted.collect::<Option<Vec<_>>>().ok_or_else(|| internal("there is no such output"))?;
        let (all, runs) = (wired.givers.len(), wired.runs.len());
        let mut course = Self {
            wired,
            wanted,
            limit,
            tensors: inputs.into_iter().map(Some).collect(),
            takers: vec![0; all],
            holders: Vec::new(),
            waits: vec![None; runs],
            ready: Vec::new(),
            held: 0,
            expected: vec![0; runs],
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

    /// Finds what is needed for what is wanted.
    fn need(&mut self) {
        let mut open = self.wanted.clone();
        while let Some(tensor) = open.pop() {
            if let Some(takers) = self.takers.get_mut(tensor) {
                *takers += 1;
            }
            let Some(giver) = self.wired.givers.get(tensor).copied().flatten() else { continue };
            let (Some(run), Some(waits)) = (self.wired.runs.get(giver), self.waits.get_mut(giver)) else {
                continue;
            };
            if waits.is_none() {
                let comes = |tensor: &&usize| self.wired.givers.get(**tensor).is_some_and(Option::is_some);
                *waits = Some(run.inputs.iter().filter(comes).count());
                open.extend(&run.inputs);
            }
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

    /// A run takes what it needs.
    fn begin(&mut self, number: usize, home: &impl Fn(usize) -> Option<usize>) -> Result<Asked, CallError> {
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
        Ok(Asked { run: number, inputs, outputs, stay })
    }

    /// Whether all who take a tensor are where it is made.
    fn stays(&self, tensor: usize, own: Option<usize>, home: &impl Fn(usize) -> Option<usize>) -> bool {
        if self.wanted.contains(&tensor) {
            return false;
        }
        let needed = self.wired.runs.iter().enumerate().zip(&self.waits).filter(|(_, waits)| waits.is_some());
        let mut takers = needed.filter(|((_, run), _)| run.inputs.contains(&tensor));
        takers.all(|((number, _), _)| home(number) == own)
    }

    fn take(&mut self, tensor: usize) -> Option<Tensor> {
        let takers = self.takers.get_mut(tensor)?;
        *takers = takers.checked_sub(1)?;
        let place = self.tensors.get_mut(tensor)?;
        // Who takes it last has it alone.
        if *takers == 0 { place.take() } else { place.clone() }
    }

    /// What a run has given is there for others, and what it took it holds no more.
    fn end(
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
        let came = given.iter().map(bytes).fold(0, usize::saturating_add);
        self.held = self.held.saturating_sub(expected).saturating_add(came);
        for (index, tensor) in wanted.iter().zip(given) {
            let number = run.first + *index;
            if let Some(counters) = counters.filter(|_| !self.wanted.contains(&number)) {
                let place = if tensor.resident().is_some() { &counters.on_device } else { &counters.on_host };
                place.inc();
            }
            if let (Some(place), Some(size)) = (self.tensors.get_mut(number), self.sizes.get_mut(number)) {
                *size = bytes(&tensor);
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

    /// Those who wait for a tensor wait for one less.
    fn has_come(&mut self, tensor: usize) {
        for (number, (run, waits)) in self.wired.runs.iter().zip(&mut self.waits).enumerate() {
            let Some(waits) = waits else { continue };
            let times = run.inputs.iter().filter(|input| **input == tensor).count();
            if times > 0 {
                *waits = waits.saturating_sub(times);
                if *waits == 0 {
                    self.ready.push(number);
                }
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

    fn results(mut self) -> Result<Vec<Tensor>, CallError> {
        let wanted = std::mem::take(&mut self.wanted);
        let results = wanted.into_iter().map(|tensor| self.take(tensor));
        results.collect::<Option<Vec<_>>>().ok_or_else(|| internal("an output has not come"))
    }
}

/// The bytes of a tensor, wherever they are.
fn bytes(tensor: &Tensor) -> usize {
    tensor.resident().map_or(tensor.data().len(), outrigger_backend::DeviceMemory::len)
}
