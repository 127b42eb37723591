//! Runs a batch, and finds those that make it fail.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, Run, Tensor};

use super::super::ModelInstance;
use super::super::cancels::UnderWay;
use super::super::job::{self, Failure, Job};
use super::{Former, Member, rows};
use crate::telemetry::{self, MAX_LINKS, Phase, Together};

/// What a batch has to know of the threads that run it.
pub(in super::super) trait Around {
    /// Jobs that have not begun are not begun any more.
    fn is_broken_off(&self) -> bool;
    /// Bytes that the outputs of one run may take.
    fn output_limit(&self) -> usize;
    /// A run that can be cancelled begins, unless its caller has left, which is to be asked after this.
    fn begin(&self, job: &Job) -> Option<UnderWay<'_>>;
    /// A run took so long.
    fn note(&self, took: Duration);
}

/// Why a batch gave nothing to hand out.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Run(#[from] Failure),
    /// An output has not as many rows as the inputs had.
    #[error("output `{output}` has shape {shape:?} for {rows} rows")]
    Unsplit { output: String, shape: Vec<i64>, rows: usize },
}

/// Runs calls of one model together and gives each its own rows. If that fails they are run again in two halves, and so on, so that a
/// call which makes the model fail fails alone; the others of its half are run up to once more per level. Callers that have left
/// meanwhile, and those whose deadline is over, are left out.
pub(in super::super) fn run(
    model: &ModelInstance,
    former: &Former,
    mut members: Vec<Member>,
    around: &impl Around,
) {
    members.iter_mut().for_each(|member| member.job.begin());
    let mut groups = vec![members];
    while let Some(group) = groups.pop() {
        let mut group = still_wanted(former, group, around);
        if group.len() == 1 {
            group.into_iter().for_each(|member| alone(model, former, member, around));
            continue;
        }
        if group.is_empty() {
            continue;
        }
        match together(model, former, &group, around) {
            Ok(parts) => {
                for (member, part) in group.into_iter().zip(parts) {
                    member.job.finish(job::within(part, around.output_limit()));
                }
            }
            Err(trouble @ Trouble::Unsplit { .. }) => {
                former.metrics.unsplit.inc();
                if !former.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(model = %model.name, %trouble, "a batch cannot be taken apart and is run again one by one, as will be others like it; set max_batch = 1 for this model");
                }
                groups.extend(group.into_iter().rev().map(|member| vec![member]));
            }
            Err(trouble) => {
                former.metrics.bisections.inc();
                tracing::debug!(model = %model.name, %trouble, calls = group.len(), "a batch failed and is run again in two halves");
                let half = group.split_off(group.len() / 2);
                groups.extend([half, group]);
            }
        }
    }
}

/// Leaves out those that nobody waits for and those that come too late.
fn still_wanted(former: &Former, group: Vec<Member>, around: &impl Around) -> Vec<Member> {
    if around.is_broken_off() {
        // Dropping a job answers it.
        return Vec::new();
    }
    let now = group.iter().any(|member| member.job.deadline.is_some()).then(Instant::now);
    let mut wanted = Vec::with_capacity(group.len());
    for member in group {
        if member.job.is_left() || now.is_some_and(|now| member.job.is_late(now)) {
            former.skip(member.job);
        } else {
            wanted.push(member);
        }
    }
    wanted
}

fn alone(model: &ModelInstance, former: &Former, member: Member, around: &impl Around) {
    let Member { job, about } = member;
    let _under_way = around.begin(&job);
    if job.is_left() {
        return former.skip(job);
    }
    let begun = Instant::now();
    let run = || job::run(model, job.asked(), job.run, around.output_limit());
    let answer = telemetry::during(job.passage(), run);
    let took = begun.elapsed();
    job.spent(Phase::Run, took);
    around.note(took);
    if answer.is_ok() {
        former.note(&about.bucket, about.rows, took);
    }
    job.finish(answer);
}

/// Each of the calls has spent that time.
fn note(group: &[Member], begun: Instant, joined: Duration, took: Duration) {
    let passages = || group.iter().filter_map(|member| member.job.passage());
    let recorded = passages().filter_map(|passage| Some(passage.trace()?.id));
    let recorded: Arc<[_]> = recorded.take(MAX_LINKS + 1).collect();
    for passage in passages() {
        passage.add_until(Phase::CopyIn, joined, begun + joined);
        passage.add_until(Phase::Run, took.saturating_sub(joined), begun + took);
        if passage.trace().is_some() {
            passage.ran_with(Together { calls: group.len(), recorded: Arc::clone(&recorded) });
        }
    }
}

/// The outputs of each call, in their order.
fn together(
    model: &ModelInstance,
    former: &Former,
    group: &[Member],
    around: &impl Around,
) -> Result<Vec<Vec<Tensor>>, Trouble> {
    let Some(first) = group.first() else { return Ok(Vec::new()) };
    let own: Vec<usize> = group.iter().map(|member| member.about.rows).collect();
    let all: usize = own.iter().sum();
    let begun = Instant::now();
    let inputs = (0..model.info.inputs.len())
        .map(|at| rows::join(group.iter().filter_map(|member| member.job.inputs.get(at)), &former.pool))
        .collect::<Result<Vec<_>, _>>()?;
    let joined = begun.elapsed();
    let limit = around.output_limit().saturating_mul(group.len());
    let asked = job::Asked { inputs: &inputs, outputs: &first.job.outputs, stay: &[] };
    let outputs = job::run(model, asked, Run::default(), limit);
    let took = begun.elapsed();
    around.note(took);
    note(group, begun, joined, took);
    let outputs = outputs?;
    former.note(&first.about.bucket, all, took);
    let mut parts: Vec<Vec<Tensor>> = group.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for (output, index) in outputs.iter().zip(&first.job.outputs) {
        let pieces = rows::split(output, &own).ok_or_else(|| Trouble::Unsplit {
            output: model.info.outputs.get(*index).map_or_else(String::new, |info| info.name.clone()),
            shape: output.shape().extents().to_vec(),
            rows: all,
        })?;
        parts.iter_mut().zip(pieces).for_each(|(part, piece)| part.push(piece));
    }
    Ok(parts)
}
