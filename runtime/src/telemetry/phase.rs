//! The parts of a request's time, and their histograms.

use outrigger_protocol::operation::Operation;
use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};

use super::Passage;

/// What a request spends its time with. Documented for users in `docs/telemetry.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Until its body is here.
    Receive,
    /// Finding out who asks, and whether they may.
    Auth,
    /// Waiting for a model to be loaded, and for a slot.
    Queue,
    /// From the slot until a lane begins: waiting for others to run with, or for the lane to end what it is at.
    Batch,
    /// Making inputs of what was sent. For a script: the way to its worker and back.
    CopyIn,
    /// In the model, in `run()`, or at the upstream.
    Run,
    /// Making an answer of what came out.
    CopyOut,
    /// From the answer's head until the kernel has the last of it. An answer that is streamed is produced meanwhile.
    Send,
}

impl Phase {
    /// All of them, in the order in which they come.
    pub(crate) const ALL: [Self; 8] = [
        Self::Receive,
        Self::Auth,
        Self::Queue,
        Self::Batch,
        Self::CopyIn,
        Self::Run,
        Self::CopyOut,
        Self::Send,
    ];

    /// The name, for labels and headers.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Auth => "auth",
            Self::Queue => "queue",
            Self::Batch => "batch",
            Self::CopyIn => "copy_in",
            Self::Run => "run",
            Self::CopyOut => "copy_out",
            Self::Send => "send",
        }
    }
}

/// What a request has spent with each phase, and when that ended since it came, nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// Plus 1; 0 where it has not come to it.
    pub(super) spent: [u64; Phase::ALL.len()],
    pub(super) ends: [u64; Phase::ALL.len()],
}

impl Times {
    /// Each that it has come to, when it ended, and how long it was.
    pub(crate) fn phases(&self) -> impl Iterator<Item = (Phase, u64, u64)> {
        let all = Phase::ALL.into_iter().zip(self.ends).zip(self.spent);
        all.filter_map(|((phase, end), spent)| Some((phase, end, spent.checked_sub(1)?)))
    }
}

/// From 5 µs to 50 s, three to a decade.
const SECONDS: &[f64] = &[
    5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0,
    5.0, 10.0, 50.0,
];

/// The operations of which phases are counted: work for a lane. What only describes is cheap.
const OPERATIONS: [Operation; 2] = [Operation::Score, Operation::Infer];

/// The phases of all requests, by operation.
pub(super) struct PhaseMetrics([[Histogram; Phase::ALL.len()]; OPERATIONS.len()]);

impl PhaseMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = HistogramOpts::new(
            "outrigger_phase_seconds",
            "What calls spend their time with: receive, auth, queue, batch, copy_in, run, copy_out, send",
        );
        let seconds = HistogramVec::new(seconds.buckets(SECONDS.into()), &["operation", "phase"])?;
        registry.register(Box::new(seconds.clone()))?;
        let of = |operation: Operation| {
            Phase::ALL.map(|phase| seconds.with_label_values(&[operation.as_str(), phase.as_str()]))
        };
        Ok(Self(OPERATIONS.map(of)))
    }

    /// A request is over. What it did not come to is not counted.
    pub(super) fn observe(&self, operation: Operation, passage: &Passage) {
        let known = OPERATIONS.iter().position(|known| *known == operation);
        let Some(histograms) = known.and_then(|at| self.0.get(at)) else { return };
        for (histogram, phase) in histograms.iter().zip(Phase::ALL) {
            if let Some(spent) = passage.spent(phase) {
                histogram.observe(spent.as_secs_f64());
            }
        }
    }
}
