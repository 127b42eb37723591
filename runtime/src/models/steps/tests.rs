//! A model with steps around it, beside what it should give, calculated here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;
use outrigger_backend::{
    BackendError, Buffer, DataType, Device, DeviceKind, DeviceStatus, Health, Instance, LoadOptions, Model,
    ModelInfo, Output, Run, RunId, Shape, Tensor, TensorInfo,
};
use outrigger_processing::{Around, Chain, Step};

use super::side::Side;
use super::watch::Runs;
use super::{Processed, StepsPlace, signature};
use crate::config::StepsWish;
use crate::models::survey::OpenDevice;
use crate::models::tests::manifest as read;
use crate::models::wanted::Wanted;
use crate::placement::DeviceId;

/// `sums`: the sum of each channel, and `same`: `pixels` as it came, for `pixels`: FP32 `[batch, 3, height, width]`; `tag` is not
/// looked at.
#[derive(Default)]
struct Sums {
    runs: AtomicUsize,
    /// What came for `tag` last.
    tag: Mutex<Option<Tensor>>,
    /// Is cancelled in the middle of each run, where there is one.
    cancels: OnceLock<Weak<dyn Instance>>,
}

struct Fake {
    info: ModelInfo,
    instance: Arc<Sums>,
}

impl Model for Fake {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::clone(&self.instance) as _)
    }
}

impl Instance for Sums {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        if let (Some(id), Some(instance)) = (run.id, self.cancels.get().and_then(Weak::upgrade)) {
            instance.cancel(id);
        }
        *self.tag.lock().unwrap() = inputs.get(1).cloned();
        let [batch, channels, height, width] = inputs[0].shape().extents() else { panic!("four axes") };
        let sums: Vec<f32> =
            floats(&inputs[0]).chunks((height * width) as usize).map(|all| all.iter().sum()).collect();
        for output in outputs {
            match output.index() {
                0 => output.set(fp32(&[*batch, *channels], &sums)),
                _ => output.set(inputs[0].clone()),
            }
        }
        Ok(())
    }

    fn can_cancel(&self) -> bool {
        true
    }

    fn bytes_held(&self) -> u64 {
        7
    }
}

fn sums() -> (Arc<dyn Model>, Arc<Sums>) {
    let (batch, height, width) = ((-1, "batch"), (-1, "height"), (-1, "width"));
    let info = ModelInfo {
        inputs: vec![
            TensorInfo::new("pixels", DataType::Fp32, &[batch, (3, ""), height, width]),
            TensorInfo::new("tag", DataType::Int64, &[batch]),
        ],
        outputs: vec![
            TensorInfo::new("sums", DataType::Fp32, &[batch, (3, "")]),
            TensorInfo::new("same", DataType::Fp32, &[batch, (3, ""), height, width]),
        ],
    };
    let instance = Arc::<Sums>::default();
    (Arc::new(Fake { info, instance: Arc::clone(&instance) }), instance)
}

fn tensor(data_type: DataType, extents: &[i64], data: Vec<u8>) -> Tensor {
    Tensor::new(data_type, Shape::new(extents).unwrap(), Bytes::from(data)).unwrap()
}

fn fp32(extents: &[i64], values: &[f32]) -> Tensor {
    tensor(DataType::Fp32, extents, values.iter().flat_map(|value| value.to_ne_bytes()).collect())
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

fn processed(text: &str) -> Result<(Processed, Arc<Sums>), String> {
    let (model, instance) = sums();
    let manifest = read(text)?;
    Ok((Processed::new(model, &manifest, &StepsPlace::on_cpu(&manifest), 1 << 20)?, instance))
}

const INPUTS: &str = r#"
[[inputs]]
name = "image"
datatype = "UINT8"
shape = ["n", "height", "width", 3]
[[inputs]]
name = "tag"
datatype = "INT64"
shape = ["n"]
"#;

/// Images as bytes of 2 × 2, doubled and one added; the larger two of the channels.
const AROUND: &str = r#"
[[before]]
step = "resize"
from = "image"
height = 2
width = 2
mode = "nearest"
[[before]]
step = "normalize"
scale = 2.0
mean = [-1.0]
[[before]]
step = "layout"
layout = "NCHW"
to = "pixels"
[[after]]
step = "top_k"
from = "sums"
k = 2
to = "best"
indices = "channels"
"#;

fn around() -> (Processed, Arc<Sums>) {
    processed(&format!("{INPUTS}{AROUND}")).unwrap()
}

/// Two images of one pixel each, which become 2 × 2 of the same.
fn images() -> Vec<Tensor> {
    let pixels = vec![1, 5, 3, 9, 0, 4];
    let tags = [1i64, 2].iter().flat_map(|tag| tag.to_ne_bytes()).collect();
    vec![tensor(DataType::Uint8, &[2, 1, 1, 3], pixels), tensor(DataType::Int64, &[2], tags)]
}

fn infer(
    instance: &dyn Instance,
    inputs: &[Tensor],
    mut outputs: Vec<Output>,
) -> Result<Vec<Tensor>, BackendError> {
    instance.infer(inputs, &mut outputs, Run::default())?;
    Ok(outputs.into_iter().map(|output| output.into_tensor().unwrap()).collect())
}

fn all(indices: &[usize]) -> Vec<Output> {
    indices.iter().map(|index| Output::allocate(*index)).collect()
}

#[test]
fn callers_see_their_side_alone() {
    let (model, _) = around();
    let batch = (-1, "n");
    assert_eq!(
        model.info().inputs,
        [
            TensorInfo::new("image", DataType::Uint8, &[batch, (-1, "height"), (-1, "width"), (3, "")]),
            TensorInfo::new("tag", DataType::Int64, &[batch])
        ]
    );
    // `height` of the model is 2 by the resize, whatever the caller's is, and what is called `batch` there is `n` here.
    assert_eq!(
        model.info().outputs,
        [
            TensorInfo::new("same", DataType::Fp32, &[batch, (3, ""), (2, ""), (2, "")]),
            TensorInfo::new("best", DataType::Fp32, &[batch, (2, "")]),
            TensorInfo::new("channels", DataType::Int64, &[batch, (2, "")])
        ]
    );
    assert_eq!((model.mixes_rows(), model.instance().unwrap().bytes_held()), (None, 7));
    // Others can be asked for, in another order.
    let outputs = "[[outputs]]\nname = 'channels'\ndatatype = 'INT64'\nshape = [-1, 2]\n[[outputs]]\nname = 'sums'\ndatatype = 'FP32'\nshape = [-1, 3]\n";
    let (model, _) = processed(&format!("{INPUTS}{outputs}{AROUND}")).unwrap();
    let names: Vec<_> = model.info().outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["channels", "sums"]);
    let got = infer(&*model.instance().unwrap(), &images(), all(&[1])).unwrap();
    assert_eq!(floats(&got[0]), [12.0, 44.0, 28.0, 76.0, 4.0, 36.0]);
}

#[test]
fn steps_run_around_the_model() {
    let (model, sums) = around();
    let (instance, inputs) = (model.instance().unwrap(), images());
    let got = infer(&*instance, &inputs, all(&[0, 1, 2])).unwrap();
    // Four pixels of 2x + 1 each.
    assert_eq!((floats(&got[1]), got[1].shape().extents()), (vec![44.0, 28.0, 76.0, 36.0], &[2, 2][..]));
    assert_eq!(
        got[2].data().as_chunks().0.iter().map(|bytes| i64::from_ne_bytes(*bytes)).collect::<Vec<_>>(),
        [1, 2, 0, 2]
    );
    let tag = sums.tag.lock().unwrap().take().unwrap();
    assert_eq!(tag.data().as_ptr(), inputs[1].data().as_ptr(), "what no step touches is not copied");
    // Only what is asked for, in the order asked for, and into the caller's place where it fits.
    let place = |extents: &[i64]| {
        let shape = Shape::new(extents).unwrap();
        let buffer = Buffer::zeroed(shape.bytes(DataType::Fp32).unwrap()).unwrap();
        Output::place(1, DataType::Fp32, shape, buffer).unwrap()
    };
    for extents in [[2, 2], [1, 2]] {
        let mut outputs = all(&[2]);
        outputs.push(place(&extents));
        let got = infer(&*instance, &inputs, outputs).unwrap();
        assert_eq!((got.len(), floats(&got[1])), (2, vec![44.0, 28.0, 76.0, 36.0]));
    }
    let same = infer(&*instance, &inputs, all(&[0])).unwrap();
    assert_eq!(floats(&same[0])[..4], [3.0; 4]);
    assert!(instance.allocates_best() && instance.can_cancel());
}

#[test]
fn what_does_not_fit_a_call_is_the_callers_mistake() {
    let (model, sums) = around();
    let instance = model.instance().unwrap();
    let refused = |extents: &[i64], said: &str| {
        let bytes = Shape::new(extents).unwrap().bytes(DataType::Uint8).unwrap();
        let image = tensor(DataType::Uint8, extents, vec![0; bytes]);
        let tag = tensor(DataType::Int64, &[extents[0]], vec![0; 8 * extents[0] as usize]);
        let error = infer(&*instance, &[image, tag], all(&[0])).unwrap_err();
        assert!(matches!(&error, BackendError::Input(text) if text.contains(said)), "{said}: {error:?}");
    };
    refused(&[1, 2, 2, 4], "input `image` has shape [1, 2, 2, 4], the model takes [-1, -1, -1, 3]");
    refused(&[1, 0, 2, 3], "before the model: step 1 (`resize`): tensor `image` has images of 0 x 2 pixels");
    // 2 × 2 × 3 bytes and twice as many FP32 of each, and what says where 2 + 2 pixels come from, before anything is taken.
    refused(
        &[20_000, 1, 1, 3],
        "the steps before the model take 2160048 bytes, more than limits.steps, 1048576 bytes",
    );
    assert_eq!(sums.runs.load(Ordering::Relaxed), 0);
}

#[test]
fn what_the_model_gives_to_steps_is_bounded_with_what_they_make() {
    let text = "[[after]]\nstep = 'top_k'\nfrom = 'sums'\nk = 1";
    let (model, sums) = sums();
    // Three sums of each row, of which one stays and where it is; and 8 bytes for each of three while they are put in order.
    let bytes = |rows: usize| 3 * 4 * rows + (4 + 8) * rows + 3 * 8;
    let manifest = read(text).unwrap();
    let model = Processed::new(model, &manifest, &StepsPlace::on_cpu(&manifest), bytes(8)).unwrap();
    let inputs = |rows: usize| {
        let pixels = fp32(&[rows as i64, 3, 1, 1], &vec![1.0; 3 * rows]);
        [pixels, tensor(DataType::Int64, &[rows as i64], vec![0; 8 * rows])]
    };
    let call = |rows| infer(&*model.instance().unwrap(), &inputs(rows), all(&[1]));
    assert_eq!(floats(&call(8).unwrap()[0]), [1.0; 8]);
    let error = call(9).unwrap_err().to_string();
    let (took, limit) = (bytes(9), bytes(8));
    let said = format!("the steps after the model take {took} bytes, more than limits.steps, {limit} bytes");
    assert_eq!(error, said);
    assert_eq!(sums.runs.load(Ordering::Relaxed), 1, "it is not run for that");
    // It is known beforehand: with what no step touches, which is held meanwhile, and without steps that are not asked for.
    let steps = model.step_bytes();
    assert_eq!(steps.limit(), limit);
    let takes = |rows, outputs: &[usize]| steps.of(&inputs(rows), outputs).map_err(|error| error.to_string());
    assert_eq!(takes(8, &[1]), Ok(limit));
    assert_eq!(takes(9, &[1]), Err(said));
    assert_eq!(takes(5, &[2, 0]), Ok(bytes(5) + 3 * 4 * 5));
    assert_eq!(takes(9, &[0]), Ok(3 * 4 * 9));
}

#[test]
fn what_steps_on_both_sides_take_is_known_beforehand() {
    let (model, _) = around();
    // Before the model 2 × 2 × 3 bytes and FP32 twice, with where 2 + 2 pixels come from; after it as in the test before.
    let (before, after) = (2 * 12 * (1 + 4 + 4) + 12 * 4, 2 * (3 * 4 + 2 * (4 + 8)) + 3 * 8);
    assert!(before > after);
    assert_eq!(model.step_bytes().of(&images(), &[1]).unwrap(), before);
}

#[test]
fn what_does_not_fit_the_model_is_named() {
    let says = |text: &str, said: &str| {
        let error = processed(text).err().unwrap();
        assert!(error.contains(said), "{said} is not in {error}");
    };
    let with = |from: &str, to: &str| {
        let text = format!("{INPUTS}{AROUND}");
        assert!(text.contains(from));
        text.replace(from, to)
    };
    says(AROUND, "`[[before]]` needs `[[inputs]]`, which say what callers send");
    says(
        &with("scale = 2.0", "scael = 2.0"),
        "step 2 of `[[before]]` (`normalize`): unknown field `scael`, expected one of",
    );
    says(&with("\"resize\"", "\"resise\""), "step 1 of `[[before]]` (`resise`): unknown variant `resise`");
    says(&with("step = \"top_k\"", ""), "step 1 of `[[after]]`: missing field `step`");
    says(&with("k = 2", "k = 4"), "`[[after]]`: step 1 (`top_k`): `k` is 4, axis -1 of tensor `sums` has 3");
    says(
        &with("from = \"sums\"", ""),
        "`[[after]]`: step 1 (`top_k`): `from` must say which tensor it takes, there are `sums`, `same`",
    );
    says(
        &with("datatype = \"UINT8\"", "datatype = \"BOOL\""),
        "`[[before]]`: step 2 (`normalize`): tensor `image` is BOOL",
    );
    says(
        &with("to = \"pixels\"", ""),
        "the model takes `pixels` FP32 [-1, 3, -1, -1], and after `[[before]]` there are only `tag`, `image`",
    );
    says(
        &with("\"width\", 3]", "\"width\", 4]"),
        "`[[before]]` gives `pixels` FP32 [-1, 4, 2, 2], the model takes `pixels` FP32 [-1, 3, -1, -1]",
    );
    // A caller may send any number there, of which the model takes one.
    says(
        &with("\"width\", 3]", "\"width\", -1]"),
        "`[[before]]` gives `pixels` FP32 [-1, -1, 2, 2], the model takes",
    );
    says(
        &with(
            "[[before]]\nstep = \"resize\"",
            "[[inputs]]\nname = \"more\"\ndatatype = \"BOOL\"\nshape = []\n[[before]]\nstep = \"resize\"",
        ),
        "input `more` is taken neither by a step nor by the model",
    );
    let output = "[[outputs]]\nname = 'best'\ndatatype = 'FP32'\nshape = [-1, 2]\n";
    says(&format!("{INPUTS}{output}{output}{AROUND}"), "output `best` is described twice");
    says(
        &format!("{INPUTS}{}{AROUND}", output.replace("2]", "3]")),
        "output `best` has shape [-1, 2] in the model, not [-1, 3]",
    );
    says(
        &format!("{INPUTS}{}{AROUND}", output.replace("best", "bets")),
        "`[[after]]`: no tensor `bets` is there after the steps",
    );
    says(
        &format!("{INPUTS}{}", "[[before]]\nstep = 'layout'\nlayout = 'NCHW'\nfrom = 'image'\n".repeat(65)),
        "`before` has 65 entries, 64 are the most",
    );
}

#[test]
fn a_backend_is_told_of_the_models_own_side() {
    let told = |text: &str| {
        let manifest = read(text).unwrap();
        signature(&manifest.described, &manifest.before, &manifest.after).unwrap()
    };
    let own = told(&format!("{INPUTS}{AROUND}"));
    let pixels = TensorInfo::new("pixels", DataType::Fp32, &[(-1, "n"), (3, ""), (2, ""), (2, "")]);
    assert_eq!(own.inputs, [TensorInfo::new("tag", DataType::Int64, &[(-1, "n")]), pixels]);
    assert!(own.outputs.is_empty());
    let plain = told(INPUTS);
    assert_eq!(plain.inputs[0].name, "image");
}

#[test]
fn steps_that_keep_calls_apart_are_told() {
    let after = |step: &str| {
        let text = format!("[[after]]\nfrom = 'sums'\n{step}");
        processed(&text).unwrap().0.mixes_rows().map(|reason| reason.to_string())
    };
    assert_eq!(after("step = 'softmax'"), None);
    let said = "step 1 of `[[after]]` (`softmax`) does not take each row, which the first dimension counts, for itself";
    assert_eq!(after("step = 'softmax'\naxis = 0").as_deref(), Some(said));
}

#[test]
fn plans_are_kept_for_the_shapes_that_came_last() {
    let chain: Chain = [Step::Convert { datatype: DataType::Fp32 }].into_iter().collect();
    let side = Side::new(
        "before",
        chain,
        vec![TensorInfo::new("x", DataType::Uint8, &[(-1, "")])],
        vec!["x".into()],
        1 << 20,
    );
    for extent in (0..100).chain(0..100) {
        let made =
            side.run(&[tensor(DataType::Uint8, &[extent], vec![3; extent as usize])], 0, || false).unwrap();
        assert_eq!(floats(&made[0]), vec![3.0; extent as usize]);
    }
    assert_eq!(side.plans_kept(), 32);
}

#[test]
fn a_run_can_be_cancelled_while_steps_have_it() {
    let runs = Runs::default();
    let (one, other) = (RunId::MIN, RunId::MAX);
    let first = runs.begin(Run { id: Some(one) });
    let second = runs.begin(Run { id: Some(other) });
    let nameless = runs.begin(Run::default());
    let idle: Arc<dyn Instance> = Arc::new(Sums::default());
    runs.cancel(one, &idle);
    assert!(matches!(first.check(), Err(BackendError::Cancelled)));
    assert!(second.check().is_ok() && nameless.check().is_ok());
    drop(first);
    assert!(
        runs.begin(Run { id: Some(one) }).check().is_ok(),
        "a number that is used again is another run's"
    );
    // In the middle of the model, which does not heed it: the steps after it do not begin.
    let (model, sums) = around();
    let instance = model.instance().unwrap();
    let _ = sums.cancels.set(Arc::downgrade(&instance));
    let result = instance.infer(&images(), &mut all(&[1]), Run { id: Some(one) });
    assert!(matches!(result, Err(BackendError::Cancelled)), "{result:?}");
    assert!(instance.infer(&images(), &mut all(&[1]), Run::default()).is_ok());
}

/// A device that takes the steps before a model, and of those after it none.
struct Half;

impl Device for Half {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        Err(BackendError::Internal("nobody asks".into()))
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        let text = options.settings.iter().find(|(key, _)| key == "steps").map_or("", |(_, text)| text);
        match text.contains("[[after]]") {
            true => Err(BackendError::Load("m.onnx: step 1 is not to be had".into())),
            false => Ok(0),
        }
    }

    fn load(&self, _options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Err(BackendError::Internal("nobody asks".into()))
    }
}

/// A device that takes the steps of either side, and not of both.
struct Either;

impl Device for Either {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        Half.status()
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        let text = options.settings.iter().find(|(key, _)| key == "steps").map_or("", |(_, text)| text);
        match text.contains("[[after]]") && text.contains("[[before]]") {
            true => Err(BackendError::Load("m.onnx: not both".into())),
            false => Ok(0),
        }
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Half.load(options)
    }
}

#[test]
fn a_device_is_asked_for_each_side() {
    let open = |kind, formats: &[&str]| {
        let id = DeviceId { backend: "gpu".into(), index: 0 };
        let status =
            DeviceStatus { memory_total: 0, memory_free: 0, memory_held: 0, health: Health::Healthy };
        let formats = formats.iter().map(ToString::to_string).collect();
        let device = Arc::new(Half);
        OpenDevice {
            main: id.clone(),
            id,
            device,
            kind,
            formats,
            status,
            budget: None,
            threads: 1,
            resident: false,
        }
    };
    let wanted = |steps| Wanted {
        path: "m.onnx".into(),
        format: Some("onnx".into()),
        manifest: Some(read(&format!("{INPUTS}{AROUND}")).unwrap()),
        settings: vec![("a".into(), "b".into())],
        steps,
        ..Wanted::default()
    };
    let gpu = open(DeviceKind::Gpu, &["onnx", "onnx+steps"]);
    let said = |wanted: &Wanted, open: &OpenDevice| StepsPlace::ask(wanted, open).said();
    let auto = wanted(StepsWish::Auto);
    let either = OpenDevice { device: Arc::new(Either), ..open(DeviceKind::Gpu, &["onnx+steps"]) };
    let before = "steps before the model run on the device, in its graph";
    assert_eq!(said(&auto, &either), [before, "steps after the model run on the CPU: not both"]);
    let there = "steps before the model run on the device, in its graph";
    let not = "steps after the model run on the CPU: step 1 is not to be had";
    assert_eq!(said(&auto, &gpu), [there, not]);
    assert_eq!(said(&wanted(StepsWish::Device), &open(DeviceKind::Cpu, &["onnx+steps"])), [there, not]);
    let ends = |wanted: &Wanted, open: &OpenDevice, why: &str| {
        assert!(said(wanted, open).iter().all(|said| said.ends_with(why)), "{:?}", said(wanted, open));
    };
    ends(&auto, &open(DeviceKind::Gpu, &["onnx"]), ": gpu takes none with its models");
    let mut cuda = open(DeviceKind::Gpu, &["onnx+steps"]);
    cuda.id.backend = "cuda".into();
    ends(&auto, &cuda, ": not yet tried on CUDA; `steps = \"device\"` has them there");
    assert_eq!(said(&wanted(StepsWish::Device), &cuda), [there, not]);
    ends(&auto, &open(DeviceKind::Cpu, &["onnx+steps"]), ": the device's memory is the host's");
    ends(&wanted(StepsWish::Host), &gpu, ": `steps` is \"host\"");
    // What the backend is told: what callers send, and the steps of that side alone.
    let mut place = StepsPlace::ask(&auto, &gpu);
    let options = place.options(&auto);
    assert_eq!(options.format.as_deref(), Some("onnx+steps"));
    assert_eq!(options.signature.inputs[0].name, "image");
    assert!(options.signature.outputs.is_empty());
    assert_eq!(options.settings.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a", "steps"]);
    let told = Around::of_text(&options.settings[1].1).unwrap();
    let manifest = auto.manifest.as_ref().unwrap();
    assert_eq!((&told.before, told.after.stages.len()), (&manifest.before, 0));
    // What does not load with them loads without; where they must be there it does not.
    place.given_up(&auto, BackendError::Load("m.onnx: no room".into()));
    assert_eq!(place.said()[0], "steps before the model run on the CPU: no room");
    assert_eq!(place.options(&auto).format.as_deref(), Some("onnx"));
    assert!(place.check(&auto).is_ok());
    let device = wanted(StepsWish::Device);
    let error = StepsPlace::ask(&device, &gpu).check(&device).unwrap_err();
    let why =
        "m.onnx: `steps` is \"device\", and those after the model cannot be there: step 1 is not to be had";
    assert!(matches!(&error, BackendError::Load(text) if text == why), "{error}");
}
