//! What a device can do: bytes it moves, sums it does, and how long it takes to begin.
//!
//! Each figure is the best of several rounds, for whatever else a machine does makes a round slower and none faster; the worst is kept
//! beside it, to tell how far to trust it.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use wgpu::{BindGroupDescriptor, BindGroupEntry, BufferUsages, PollType, SubmissionIndex};

use crate::gpu::{Gpu, Held, Pipeline};
use crate::shader::{Shader, THREADS};
use crate::{AdapterInfo, GpuError, Hardware};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each figure, at least 1.
    pub rounds: usize,
    /// How long a round takes at least, so that its beginning and end do not count.
    pub round: Duration,
    /// Bytes that are copied from one place to another; less where a device cannot bind as many.
    pub bytes: u64,
    /// Empty launches of a round.
    pub launches: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Self { rounds: 7, round: Duration::from_millis(50), bytes: 64 << 20, launches: 200 }
    }
}

/// A figure, of several rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The best round.
    pub best: f64,
    /// The worst round.
    pub worst: f64,
}

/// What was measured of a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// Which.
    pub device: AdapterInfo,
    /// Bytes read and written a second, by a copy from one buffer to another.
    pub bandwidth: Figure,
    /// Floating-point operations of 32 bits a second, by fused multiplications and additions, each of which counts as two.
    pub flops: Figure,
    /// Seconds from submitting a shader that does nothing until its end is known: the median of a round.
    pub launch: Figure,
}

/// By how much figures in software must differ to mean anything: one processor was seen to differ from itself by 2.9.
const SOFTWARE_NOISE: f64 = 3.;
/// The same of hardware, where its rounds do not differ by more.
const NOISE: f64 = 1.1;

impl Figure {
    fn of(rounds: &[f64], better: fn(f64, f64) -> f64, worse: fn(f64, f64) -> f64) -> Self {
        let fold = |pick| rounds.iter().copied().reduce(pick).unwrap_or(f64::NAN);
        Self { best: fold(better), worst: fold(worse) }
    }

    /// How much its rounds differ: 1 not at all, 2 by half.
    pub fn spread(&self) -> f64 {
        (self.best / self.worst).max(self.worst / self.best)
    }
}

impl Measurement {
    /// How a figure of this device compares to that of another; `None` where the difference is no more than noise. In software
    /// that is everything below a factor of 3.
    pub fn compare(&self, other: &Self, figure: impl Fn(&Self) -> Figure) -> Option<Ordering> {
        let noise = |measurement: &Self| match measurement.device.hardware {
            Hardware::Software => SOFTWARE_NOISE.max(figure(measurement).spread()),
            _ => NOISE.max(figure(measurement).spread()),
        };
        let ratio = figure(self).best / figure(other).best;
        let is_clear = ratio.max(1. / ratio) > noise(self).max(noise(other));
        is_clear.then(|| ratio.total_cmp(&1.))
    }
}

const COPY: &str = "
@group(0) @binding(1) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> result: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 256u + lane;
    if i < arrayLength(&result) {
        result[i] = source[i];
    }
}
";

const SUMS: &str = "
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> result: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group.x * 256u + lane;
    let factor = source[0];
    var a = source[i];
    var b = a + factor;
    var c = b + factor;
    var d = c + factor;
    for (var turn = 0u; turn < 256u; turn += 1u) {
        a = fma(a, factor, b);
        b = fma(b, factor, c);
        c = fma(c, factor, d);
        d = fma(d, factor, a);
    }
    result[i] = a + b + c + d;
}
";
/// Four sums of four numbers, two operations each, in each turn.
const OPERATIONS: f64 = 4. * 4. * 2. * 256.;
/// Workgroups of it: enough for every device of today to be busy.
const GROUPS: usize = 1024;

const NOTHING: &str = "
@compute @workgroup_size(1)
fn main() {}
";

/// Measures a device. Takes about a second with the usual effort, and more where shaders are slow to compile.
///
/// # Errors
/// What the device has to say.
pub fn measure(gpu: &Gpu, effort: Effort) -> Result<Measurement, GpuError> {
    // A whole number of workgroups.
    let group = u64::from(THREADS) * 16;
    let bytes = (effort.bytes.min(gpu.max_binding()) / group).max(1) * group;
    let copy = Load::new(gpu, COPY, bytes, (bytes / group) as usize)?;
    let bandwidth = copy.rounds(effort)?.map(|seconds| 2. * bytes as f64 / seconds);
    drop(copy);
    let sums = Load::new(gpu, SUMS, GROUPS as u64 * group, GROUPS)?;
    let operations = OPERATIONS * f64::from(THREADS) * GROUPS as f64;
    let flops = sums.rounds(effort)?.map(|seconds| operations / seconds);
    drop(sums);
    let launch = Load::new(gpu, NOTHING, 16, 1)?.launches(effort)?;
    Ok(Measurement {
        device: gpu.info().clone(),
        bandwidth: Figure::of(&bandwidth.collect::<Vec<_>>(), f64::max, f64::min),
        flops: Figure::of(&flops.collect::<Vec<_>>(), f64::max, f64::min),
        launch: Figure::of(&launch, f64::min, f64::max),
    })
}

/// A shader that is run again and again.
struct Load<'a> {
    gpu: &'a Gpu,
    pipeline: std::sync::Arc<Pipeline>,
    buffers: [Held; 2],
    groups: usize,
}

impl<'a> Load<'a> {
    fn new(gpu: &'a Gpu, text: &str, bytes: u64, groups: usize) -> Result<Self, GpuError> {
        let shader = Shader { text: text.into(), has_second: false, has_status: false };
        let pipeline = gpu.pipeline(&shader)?;
        let buffers = gpu.guarded(2 * bytes, || [0, 1].map(|_| gpu.buffer(bytes, BufferUsages::STORAGE)))?;
        Ok(Self { gpu, pipeline, buffers, groups })
    }

    /// Seconds that one dispatch takes, in each round.
    fn rounds(&self, effort: Effort) -> Result<impl Iterator<Item = f64> + use<>, GpuError> {
        // As many in one submission as fill a round; the first of them compile and take memory.
        let mut times = 1u32;
        while self.time(times)? < effort.round && times < 1 << 16 {
            times *= 2;
        }
        let rounds = (0..effort.rounds.max(1))
            .map(|_| Ok(self.time(times)?.as_secs_f64() / f64::from(times)))
            .collect::<Result<Vec<_>, GpuError>>()?;
        Ok(rounds.into_iter())
    }

    /// The median of each round, in seconds.
    fn launches(&self, effort: Effort) -> Result<Vec<f64>, GpuError> {
        let round = |_| {
            let launches = (0..effort.launches.max(1)).map(|_| self.time(1));
            let mut launches = launches.collect::<Result<Vec<_>, GpuError>>()?;
            launches.sort();
            Ok(launches[launches.len() / 2].as_secs_f64())
        };
        (0..effort.rounds.max(1)).map(round).collect()
    }

    /// From before the submission until its end is known.
    fn time(&self, times: u32) -> Result<Duration, GpuError> {
        let start = Instant::now();
        let submission = self.gpu.guarded(0, || self.submit(times))?;
        let waited =
            self.gpu.device.poll(PollType::Wait { submission_index: Some(submission), timeout: None });
        waited.map_err(|error| GpuError::Driver(error.to_string()))?;
        Ok(start.elapsed())
    }

    fn submit(&self, times: u32) -> SubmissionIndex {
        // What is bound first is there for the layout alone.
        let [source, result] = &self.buffers;
        let bound = [source, source, result].into_iter().enumerate();
        let entries: Vec<BindGroupEntry<'_>> = bound
            .map(|(binding, held)| BindGroupEntry {
                binding: binding as u32,
                resource: held.buffer.as_entire_binding(),
            })
            .collect();
        let layout = &self.pipeline.layout;
        let descriptor = BindGroupDescriptor { label: None, layout, entries: &entries };
        let bindings = self.gpu.device.create_bind_group(&descriptor);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        let (x, y) = self.gpu.dispatch(self.groups);
        for _ in 0..times {
            pass.dispatch_workgroups(x, y, 1);
        }
        drop(pass);
        self.gpu.queue.submit([encoder.finish()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(hardware: Hardware, best: f64, worst: f64) -> Measurement {
        let device =
            AdapterInfo { name: "x".into(), driver: "y".into(), hardware, memory: 0, max_binding: 0 };
        let figure = Figure { best, worst };
        Measurement { device, bandwidth: figure, flops: figure, launch: Figure { best: worst, worst: best } }
    }

    #[test]
    fn what_may_be_noise_is_not_ranked() {
        use Hardware::{Discrete, Software};
        let check = |one: Measurement, other: Measurement, expected| {
            assert_eq!(one.compare(&other, |measured| measured.bandwidth), expected);
            let back = other.compare(&one, |measured| measured.bandwidth);
            assert_eq!(back, expected.map(Ordering::reverse));
        };
        check(measured(Discrete, 120., 119.), measured(Discrete, 100., 99.), Some(Ordering::Greater));
        check(measured(Discrete, 105., 104.), measured(Discrete, 100., 99.), None);
        // Its own rounds differ by more than it differs from the other.
        check(measured(Discrete, 120., 90.), measured(Discrete, 100., 99.), None);
        check(measured(Software, 290., 280.), measured(Software, 100., 99.), None);
        check(measured(Software, 310., 300.), measured(Software, 100., 99.), Some(Ordering::Greater));
        check(measured(Software, 100., 100.), measured(Discrete, 250., 249.), None);
    }

    #[test]
    fn spread_is_the_same_for_what_should_be_large_and_what_should_be_small() {
        let one = measured(Hardware::Other, 200., 100.);
        assert_eq!((one.bandwidth.spread(), one.launch.spread()), (2., 2.));
    }
}
