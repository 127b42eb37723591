//! Samples of a manifest: runs of each instance before it is ready, held against what they must give.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, Run, RunId, Tensor};
use outrigger_protocol::call::NoRegions;
use outrigger_protocol::oip;

use super::instance::ModelInstance;
use super::job::Failure;
use super::manifest::{self, Sample};
use super::wanted::Wanted;
use super::{golden, job};
use crate::config::LimitsConfig;

/// Why a sample is not as it must be.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The device has no memory for it, cannot do it, or is lost: elsewhere it may be right.
    Device(BackendError),
    /// What it is, or what it gives.
    Sample {
        /// Its file.
        sample: String,
        /// What is wrong.
        problem: String,
    },
}

/// Why one sample is not.
enum Problem {
    Device(BackendError),
    Text(String),
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::OutOfMemory(_) | BackendError::Unsupported(_) | BackendError::Lost(_) => {
                Self::Device(error)
            }
            error => Self::Text(error.to_string()),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Backend(error) => error.into(),
            failure => Self::Text(failure.to_string()),
        }
    }
}

/// Runs all samples of a model on an instance, and gives it back.
///
/// # Errors
/// [`Trouble`], for the first that cannot be run or does not give what it must.
pub(super) fn run(
    wanted: &Wanted,
    instance: ModelInstance,
    limits: &LimitsConfig,
) -> Result<ModelInstance, Trouble> {
    wanted.manifest.iter().flat_map(|manifest| &manifest.samples).try_fold(instance, |instance, sample| {
        let failed = |problem| match problem {
            Problem::Device(error) => Trouble::Device(error),
            Problem::Text(problem) => Trouble::Sample { sample: shown(&sample.request), problem },
        };
        let instance = Arc::new(instance);
        one(sample, &instance, limits).map_err(failed)?;
        // The thread of a sample that has ended holds it no longer.
        Arc::into_inner(instance).ok_or_else(|| failed(Problem::Text("it is still under way".into())))
    })
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn one(sample: &Sample, instance: &Arc<ModelInstance>, limits: &LimitsConfig) -> Result<(), Problem> {
    let body = manifest::read_file(&sample.request, limits.body as u64)?.into();
    let tensors = limits.of_calls();
    let call = oip::parse_infer(oip::Request::json(&body), &instance.info, &tensors, &NoRegions)
        .map_err(|error| error.message.to_string())?;
    drop(body);
    let (outputs, inputs) = (call.indices(), call.inputs);
    job::check(instance, &inputs, &outputs, limits.answer).map_err(|error| error.to_string())?;
    let got = bounded(instance, inputs, &outputs, limits)?;
    let Some(expect) = &sample.expect else { return Ok(()) };
    let within = |problem: String| format!("{}: {problem}", shown(expect));
    for (name, want) in golden::read(expect, &instance.info, limits, &tensors).map_err(within)? {
        let index = instance.info.outputs.iter().position(|output| output.name == name);
        let place = outputs.iter().position(|output| Some(*output) == index);
        let got = place.and_then(|place| got.get(place));
        let got =
            got.ok_or_else(|| within(format!("output `{name}` is not among those that are asked for")))?;
        let tolerances = (sample.rtol, sample.atol);
        golden::compare(&name, got, &want, tolerances)
            .map_err(|problem| format!("{problem} in {}", shown(expect)))?;
    }
    Ok(())
}

/// How long a run that is over its limit has to end after its cancel. Then the start fails with the run still under way.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is cancelled meanwhile: a backend does not know of a run yet that is only on its way to it.
const AGAIN: Duration = Duration::from_millis(10);

/// Runs for no longer than `limits.sample_timeout`: on a thread of its own, which is left alone where the run does not heed its cancel.
fn bounded(
    instance: &Arc<ModelInstance>,
    inputs: Vec<Tensor>,
    outputs: &[usize],
    limits: &LimitsConfig,
) -> Result<Vec<Tensor>, Problem> {
    // Nothing else runs on the instance yet.
    let id = RunId::MIN;
    let (done, ended) = sync_channel(1);
    let (running, outputs, most) = (Arc::clone(instance), outputs.to_vec(), limits.answer);
    let run = move || {
        let asked = job::Asked { inputs: &inputs, outputs: &outputs, stay: &[] };
        let result = job::execute(&running, asked, Run { id: Some(id) }, most);
        // Before it is heard of, so that nobody finds the instance held who has heard.
        drop((running, inputs));
        let _ = done.send(result);
    };
    let thread = std::thread::Builder::new().name("sample".into()).spawn(run);
    let thread = thread.map_err(|error| format!("no thread for it: {error}"))?;
    let result = match ended.recv_timeout(limits.sample_timeout) {
        Err(RecvTimeoutError::Timeout) => {
            let limit = limits.sample_timeout;
            let late = format!("it did not end within limits.sample_timeout, {limit:?}");
            let until = Instant::now() + GRACE;
            while instance.instance.can_cancel() && Instant::now() < until {
                instance.instance.cancel(id);
                if !matches!(ended.recv_timeout(AGAIN), Err(RecvTimeoutError::Timeout)) {
                    let _ = thread.join();
                    return Err(late.into());
                }
            }
            return Err(format!("{late}, and is still under way").into());
        }
        result => result,
    };
    let _ = thread.join();
    match result {
        Ok(Ok(tensors)) => Ok(tensors),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(String::from("its thread is gone").into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use outrigger_backend::{BackendError, Instance, Output};
    use prometheus::IntCounter;

    use super::*;
    use crate::config::BatchDelay;
    use crate::models::tests::{GATE, batching, inputs};

    /// Does not end before it is let go, whatever is asked of it.
    struct Stubborn(Mutex<Receiver<()>>);

    impl Instance for Stubborn {
        fn infer(&self, _: &[Tensor], _: &mut [Output], _: Run) -> Result<(), BackendError> {
            let _ = self.0.lock().unwrap().recv();
            Err(BackendError::Cancelled)
        }

        fn bytes_held(&self) -> u64 {
            0
        }
    }

    fn limits(sample_timeout: Duration) -> LimitsConfig {
        let sources = crate::config::Sources {
            environment: vec![("HOME".into(), "/home/u".into())],
            file: Some(("/o.toml".into(), "model_dir = '/m'".into())),
            ..Default::default()
        };
        let (config, _) = crate::config::load(&sources).unwrap();
        LimitsConfig { sample_timeout, ..config.limits }
    }

    fn text(problem: Problem) -> String {
        match problem {
            Problem::Text(text) => text,
            Problem::Device(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_run_that_is_too_long_is_cancelled() {
        let (instance, fake) = batching(1, BatchDelay::AtMost(Duration::ZERO));
        let short = limits(Duration::from_millis(1));
        let problem = bounded(&instance, inputs(1, 2, 0.0, GATE), &[0], &short).err().unwrap();
        assert_eq!(text(problem), "it did not end within limits.sample_timeout, 1ms");
        assert_eq!(fake.cancelled.load(std::sync::atomic::Ordering::Acquire), 1);
        assert_eq!(Arc::strong_count(&instance), 1, "its thread is gone");
        let long = limits(Duration::from_secs(60));
        assert_eq!(bounded(&instance, inputs(1, 2, 0.0, 1), &[0], &long).ok().unwrap().len(), 1);
    }

    #[test]
    fn one_that_does_not_heed_that_is_left_behind() {
        let (go, gate) = channel();
        let runs = IntCounter::new("runs", "runs").unwrap();
        let stubborn = Arc::new(Stubborn(Mutex::new(gate)));
        let instance = Arc::new(ModelInstance::new("m", Arc::default(), stubborn, None, runs));
        let problem = bounded(&instance, Vec::new(), &[], &limits(Duration::from_millis(1))).err().unwrap();
        assert_eq!(text(problem), "it did not end within limits.sample_timeout, 1ms, and is still under way");
        drop(go);
    }
}
