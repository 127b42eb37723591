//! A call of an ensemble: each run begins as soon as all that it takes is there, and a tensor goes as soon as nobody takes it any more.
//!
//! It is one future, with those of its runs in it: dropped, it leaves all of them, which are then cancelled.

use std::future::Future;
use std::sync::OnceLock;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use outrigger_backend::Tensor;
use outrigger_protocol::error::CallError;
use prometheus::IntCounter;

use super::course::Course;
use super::wired::Wired;

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

/// How a call is run.
pub(super) struct Terms<'a, H> {
    /// The device on which what a run takes and gives can stay, if there is one.
    pub(super) home: H,
    /// Bytes that what goes from run to run may take at once.
    pub(super) bytes: usize,
    /// Bytes that the outputs of one run may take.
    pub(super) most: usize,
    /// Runs that may be under way at once; one always may.
    pub(super) runs: usize,
    pub(super) counters: Option<&'a Counters>,
    pub(super) broken: &'a Broken,
}

/// That a call has failed while runs of it may be under way, which are left through no fault of theirs; and the run which has, if it was one.
#[derive(Default)]
pub(super) struct Broken(OnceLock<Option<usize>>);

impl Broken {
    /// Whether it has.
    pub(super) fn is_so(&self) -> bool {
        self.0.get().is_some()
    }

    /// The run that has failed.
    pub(super) fn by(&self) -> Option<usize> {
        self.0.get().copied().flatten()
    }
}

/// Runs a graph, and gives the outputs with these numbers. `call` runs a model.
///
/// # Errors
/// That of the first run which fails; the others are left. `invalid_tensor` for what would take more than may be.
pub(super) async fn run<E: From<CallError>, F: Future<Output = Result<Vec<Tensor>, E>>>(
    wired: &Wired,
    inputs: Vec<Tensor>,
    outputs: &[usize],
    terms: Terms<'_, impl Fn(usize) -> Option<usize>>,
    call: impl Fn(Asked) -> F,
) -> Result<Vec<Tensor>, E> {
    let Terms { home, bytes, most, runs, counters, broken } = terms;
    let break_off = |by: Option<usize>| {
        // Only the first one counts.
        let _ = broken.0.set(by);
    };
    let mut course = Course::new(wired, inputs, outputs, (bytes, most))?;
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < runs.max(1)
            && let Some(number) = course.next(under_way.is_empty())
        {
            let asked = course.begin(number, &home).inspect_err(|_| break_off(None))?;
            let (run, wanted, answer) = (asked.run, asked.outputs.clone(), call(asked));
            under_way.push(async move { (run, wanted, answer.await) });
        }
        let Some((run, wanted, answer)) = under_way.next().await else { break };
        let given = answer.inspect_err(|_| break_off(Some(run)))?;
        course.end(run, &wanted, given, counters).inspect_err(|_| break_off(None))?;
    }
    Ok(course.results()?)
}
