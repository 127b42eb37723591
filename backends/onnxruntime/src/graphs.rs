//! Runs that a device has recorded: replaying all kernels of a run at once costs the host one call instead of one for each.
//!
//! What is recorded are addresses. So each set of shapes has buffers of its own for inputs and outputs, which inputs are copied to before a run, and
//! outputs from after it: the next replay writes over them. What runs take in between is at addresses of the session's, which therefore has an arena of
//! its own, and whose runs come one after the other. Nothing of that arena is ever handed out.
//!
//! ONNX Runtime records a set of shapes in its first run: it runs twice, once to take its memory, once to record. Source: ONNX Runtime's documentation of
//! its CUDA provider, "Using CUDA Graphs".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use outrigger_backend::{
    BackendError, Buffer, DataType, DeviceMemory, ModelInfo, Output, Shape, Tensor, TensorInfo,
};
use smallvec::SmallVec;

use crate::error;
use crate::model::{Home, Loaded};
use crate::raw::{self, Borrowed, Bound, FEW, RunOptions};
use crate::recordings::{Alone, Beside};

/// Which runs of a model are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graphs {
    /// Of which shapes.
    pub shapes: GraphShapes,
    /// The most sets of shapes; further ones run without.
    pub most: usize,
}

/// Shapes whose runs are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GraphShapes {
    /// Those that the model has: no extent of an input is free.
    Fixed,
    /// Those whose first extents are one of these, in all inputs.
    Batches(Vec<i64>),
}

/// The most sets of shapes of which it is remembered that they cannot be recorded.
const FAILED: usize = 1024;

/// What tells a run by which recording it is to be replayed; `-1` is by none.
const NUMBER: &std::ffi::CStr = c"gpu_graph_id";

impl Graphs {
    /// Why a model cannot have them, whatever its inputs are.
    pub(crate) fn refuses(&self, info: &ModelInfo) -> Option<String> {
        let free = info.inputs.iter().find(|input| input.shape.iter().any(|extent| *extent < 0));
        let free = free.filter(|_| self.shapes == GraphShapes::Fixed)?;
        Some(format!(
            "`graphs` is for fixed shapes, and an extent of input `{}` is free; name batch sizes, as in `graphs=1,8`",
            free.name
        ))
    }

    /// Why a model cannot have them whose inputs are first read there: on the device, or in the host's memory.
    ///
    /// Some kernels of a device's take an input's values on the host and put them into what they launch: bounds, axes, a number of results. A
    /// recording would have those of the run that was recorded, for ever. An input that is read both on the device and on the host goes through a
    /// copy of ONNX Runtime's between the two, with which that records nothing.
    pub(crate) fn refuses_places(inputs: &[TensorInfo], on_device: &[bool]) -> Option<String> {
        let read_on_host = inputs.iter().zip(on_device).find(|(_, is_there)| !**is_there);
        let (input, _) = read_on_host?;
        Some(format!(
            "`graphs` is for models whose inputs are all read on the device, and input `{}` is read on the CPU (or by no operator), so that a \
             recording would keep its first values; leave `graphs` off, or make that input a constant",
            input.name
        ))
    }

    /// Whether runs of inputs of these shapes are recorded.
    fn admits(&self, inputs: &[Tensor]) -> bool {
        let is_plain =
            |tensor: &Tensor| tensor.data_type() != DataType::Bytes && tensor.shape().elements() > 0;
        let is_of_size = |sizes: &[i64], tensor: &Tensor| {
            tensor.shape().extents().first().is_some_and(|first| sizes.contains(first))
        };
        inputs.iter().all(is_plain)
            && match &self.shapes {
                GraphShapes::Fixed => true,
                GraphShapes::Batches(sizes) => inputs.iter().all(|input| is_of_size(sizes, input)),
            }
    }
}

/// What a model has recorded.
pub(crate) struct Frames {
    graphs: Graphs,
    /// By the extents of the inputs.
    frames: BTreeMap<Vec<Vec<i64>>, Frame>,
    /// Those that could not be recorded; further runs of them are not.
    failed: BTreeSet<Vec<Vec<i64>>>,
    /// How many there have ever been, for their numbers.
    numbered: usize,
    /// For runs that are not to be recorded.
    without: RunOptions,
}

/// The buffers of one set of shapes.
struct Frame {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    options: RunOptions,
    /// Whether a run of it has succeeded, so that further ones replay that.
    is_recorded: bool,
}

/// A run by a recording that failed.
enum Failed {
    /// The run itself.
    Run(BackendError),
    /// What was copied before or after it.
    Around(BackendError),
}

impl From<BackendError> for Failed {
    fn from(error: BackendError) -> Self {
        Self::Around(error)
    }
}

impl Frames {
    pub(crate) fn new(graphs: Graphs) -> ort::Result<Self> {
        Ok(Self {
            graphs,
            frames: BTreeMap::new(),
            failed: BTreeSet::new(),
            numbered: 0,
            without: numbered(-1)?,
        })
    }

    /// Options of a run that is not recorded.
    pub(crate) fn without(&self) -> *const ort::sys::OrtRunOptions {
        self.without.as_ptr()
    }

    /// Runs by a recording, or makes one; `false` where these inputs are to run without.
    pub(crate) fn run(
        &mut self,
        loaded: &Loaded,
        inputs: &[Tensor],
        outputs: &mut [Output],
    ) -> Result<bool, BackendError> {
        let Some(home) = &loaded.device.home else { return Ok(false) };
        if !self.graphs.admits(inputs) || loaded.promises_wrong_shapes.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let key: Vec<_> = inputs.iter().map(|input| input.shape().extents().to_vec()).collect();
        if self.failed.contains(&key) {
            return Ok(false);
        }
        if !self.frames.contains_key(&key) {
            if self.frames.len() >= self.graphs.most {
                return Ok(false);
            }
            match self.frame(loaded, inputs) {
                Ok(Some(frame)) => drop(self.frames.insert(key.clone(), frame)),
                Ok(None) => return Ok(false),
                // There may be enough for a run without, and later for the buffers too.
                Err(BackendError::OutOfMemory(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let Some(frame) = self.frames.get_mut(&key) else { return Ok(false) };
        match frame.run(loaded, home, inputs, outputs) {
            Ok(()) => Ok(true),
            Err(Failed::Around(error)) => Err(error),
            Err(Failed::Run(error)) => {
                // Whatever was recorded of it is not asked for again.
                let was_recorded = frame.is_recorded;
                self.frames.remove(&key);
                if loaded.promises_wrong_shapes.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                if was_recorded || matches!(error, BackendError::Lost(_)) {
                    return Err(error);
                }
                // What cannot be recorded can run all the same; what cannot either fails there, for its own reason.
                if self.failed.len() < FAILED {
                    self.failed.insert(key);
                }
                Ok(false)
            }
        }
    }

    /// Takes buffers for these shapes; `None` where an output's shape is not known before the run.
    fn frame(&mut self, loaded: &Loaded, inputs: &[Tensor]) -> Result<Option<Frame>, BackendError> {
        let info = &loaded.info;
        let shapes: Option<Vec<Shape>> = info.resolve_outputs(inputs).into_iter().collect();
        let Some(shapes) = shapes.filter(|_| !loaded.passed_on.contains(&true)) else { return Ok(None) };
        if info.outputs.iter().any(|output| output.data_type == DataType::Bytes) {
            return Ok(None);
        }
        let buffer = |data_type, shape: &Shape| {
            let bytes = shape.bytes(data_type).map_err(|error| BackendError::Internal(error.to_string()))?;
            resident(data_type, shape, loaded.device.allocate(bytes)?)
        };
        let number = i64::try_from(self.numbered).unwrap_or(i64::MAX);
        let frame = Frame {
            inputs: inputs
                .iter()
                .map(|input| buffer(input.data_type(), input.shape()))
                .collect::<Result<_, _>>()?,
            outputs: info
                .outputs
                .iter()
                .zip(&shapes)
                .map(|(output, shape)| buffer(output.data_type, shape))
                .collect::<Result<_, _>>()?,
            // 0 is what runs have that say nothing.
            options: numbered(number + 1).map_err(|error| loaded.failed(&error))?,
            is_recorded: false,
        };
        self.numbered += 1;
        Ok(Some(frame))
    }
}

impl Frame {
    fn run(
        &mut self,
        loaded: &Loaded,
        home: &Home,
        inputs: &[Tensor],
        outputs: &mut [Output],
    ) -> Result<(), Failed> {
        let device = &loaded.device;
        let internal = |text: &str| BackendError::Internal(text.to_owned());
        for (input, place) in inputs.iter().zip(&self.inputs) {
            let place = place.resident().ok_or_else(|| internal("a buffer that is not on the device"))?;
            device.heard(match input.resident() {
                Some(from) => device.told.provider.copy(device.index, from, place),
                None => device.told.provider.upload(device.index, input.data(), place),
            })?;
        }
        let bound = |tensor| Borrowed::on_device(&home.memory, tensor);
        let values = self.inputs.iter().map(bound).collect::<ort::Result<SmallVec<[_; FEW]>>>();
        let wanted = self.outputs.iter().enumerate();
        let wanted = wanted.map(|(index, tensor)| Ok((index, Bound::Place(bound(tensor)?))));
        let wanted = wanted.collect::<ort::Result<SmallVec<[_; FEW]>>>();
        let recordings = device.told.provider.recordings();
        let ran = values.and_then(|values| {
            // The first run of these shapes is the one that is recorded.
            let _alone = (!self.is_recorded).then(|| Alone::enter(recordings));
            let _beside = self.is_recorded.then(|| Beside::enter(recordings));
            raw::run_bound(&loaded.session, &loaded.names, &values, &wanted?, self.options.as_ptr())
        });
        ran.map_err(|error| {
            if error::is_misplaced(&error) {
                loaded.promises_wrong_shapes.store(true, Ordering::Relaxed);
            }
            Failed::Run(loaded.failed(&error))
        })?;
        self.is_recorded = true;
        for output in outputs {
            let made = self.outputs.get(output.index()).ok_or_else(|| internal("no such output"))?;
            deliver(loaded, output, made)?;
        }
        Ok(())
    }
}

/// Copies a result out of memory that is not its own: into the output's place if it has one of that shape, else into memory of the output's own.
pub(crate) fn deliver(loaded: &Loaded, output: &mut Output, made: &Tensor) -> Result<(), BackendError> {
    let device = &loaded.device;
    let Some(from) = made.resident() else {
        return Err(BackendError::Internal("a result that is not on the device".into()));
    };
    let provider = &device.told.provider;
    if output.wants_resident() {
        let memory = device.allocate(from.len())?;
        device.heard(provider.copy(device.index, from, &memory))?;
        output.set(resident(made.data_type(), made.shape(), memory)?);
        return Ok(());
    }
    if let Some((data_type, shape, place)) = output.place_mut()
        && data_type == made.data_type()
        && shape == made.shape()
    {
        return device.heard(provider.download(device.index, from, place));
    }
    let bytes = from.len();
    let mut buffer = Buffer::zeroed(bytes)
        .map_err(|error| BackendError::OutOfMemory(format!("{bytes} bytes for an output: {error}")))?;
    device.heard(provider.download(device.index, from, &mut buffer))?;
    let tensor = Tensor::new(made.data_type(), made.shape().clone(), buffer.freeze());
    output.set(tensor.map_err(|error| BackendError::Internal(error.to_string()))?);
    Ok(())
}

fn resident(data_type: DataType, shape: &Shape, memory: DeviceMemory) -> Result<Tensor, BackendError> {
    Tensor::on_device(data_type, shape.clone(), memory)
        .map_err(|error| BackendError::Internal(error.to_string()))
}

fn numbered(number: i64) -> ort::Result<RunOptions> {
    let options = RunOptions::new()?;
    options.add(NUMBER, &number.to_string())?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(extents: &[i64]) -> Tensor {
        let shape = Shape::new(extents.to_vec()).unwrap();
        let bytes = vec![0; shape.bytes(DataType::Fp32).unwrap()];
        Tensor::new(DataType::Fp32, shape, bytes.into()).unwrap()
    }

    #[test]
    fn shapes_are_those_that_were_named() {
        let check = |shapes: GraphShapes, inputs: &[&[i64]], expected| {
            let inputs: Vec<_> = inputs.iter().map(|extents| tensor(extents)).collect();
            assert_eq!(Graphs { shapes, most: 4 }.admits(&inputs), expected);
        };
        let sizes = || GraphShapes::Batches(vec![1, 8]);
        check(GraphShapes::Fixed, &[&[3, 4], &[]], true);
        check(GraphShapes::Fixed, &[&[3, 0]], false);
        check(sizes(), &[&[8, 4], &[8]], true);
        check(sizes(), &[&[8, 4], &[3]], false);
        check(sizes(), &[&[2, 8]], false);
        check(sizes(), &[&[]], false);
        let strings = Tensor::strings(Shape::new([1]).unwrap(), &["a"]).unwrap();
        assert!(!Graphs { shapes: sizes(), most: 4 }.admits(&[strings]));
    }

    #[test]
    fn fixed_shapes_are_no_free_ones() {
        let info = |shape: &[i64]| {
            let symbols = vec![String::new(); shape.len()];
            let input =
                TensorInfo { name: "x".into(), data_type: DataType::Fp32, shape: shape.into(), symbols };
            ModelInfo { inputs: vec![input], outputs: Vec::new() }
        };
        let fixed = Graphs { shapes: GraphShapes::Fixed, most: 1 };
        assert_eq!(fixed.refuses(&info(&[1, 3])), None);
        let text = fixed.refuses(&info(&[-1, 3])).unwrap();
        assert!(text.contains("input `x` is free") && text.contains("graphs=1,8"), "{text}");
        let sizes = Graphs { shapes: GraphShapes::Batches(vec![1]), most: 1 };
        assert_eq!(sizes.refuses(&info(&[-1, 3])), None);
    }

    #[test]
    fn inputs_that_are_read_on_the_host_are_no_recorded_ones() {
        let input = |name: &str| TensorInfo {
            name: name.into(),
            data_type: DataType::Fp32,
            shape: vec![1],
            symbols: vec![String::new()],
        };
        let inputs = [input("x"), input("most")];
        assert_eq!(Graphs::refuses_places(&inputs, &[true, true]), None);
        let text = Graphs::refuses_places(&inputs, &[true, false]).unwrap();
        assert!(text.contains("`graphs`") && text.contains("input `most` is read on the CPU"), "{text}");
    }
}
