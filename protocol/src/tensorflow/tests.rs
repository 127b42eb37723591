//! The hand-written forms against the generated ones.

use bytes::Bytes;
use outrigger_backend::{DataType, ModelInfo, Shape, Tensor, TensorInfo};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::call::{Form, InferCall, InferReply, Limits, Wanted};
use crate::error::{CallError, ErrorCode};

#[expect(unreachable_pub, clippy::all, reason = "generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/tensorflow.rs"));
    pub(super) mod serving {
        include!(concat!(env!("OUT_DIR"), "/tensorflow.serving.rs"));
    }
}

use generated::serving::model_spec::VersionChoice;
use generated::serving::{ModelSpec, PredictRequest, PredictResponse};
use generated::tensor_shape_proto::Dim;
use generated::{TensorProto, TensorShapeProto};

fn model(data_type: DataType) -> ModelInfo {
    let any = |name: &str| TensorInfo { name: name.into(), data_type, shape: vec![-1], symbols: vec![] };
    ModelInfo { inputs: vec![any("a"), any("b")], outputs: vec![any("y"), any("z")] }
}

fn tensor(data_type: DataType, extent: i64) -> TensorProto {
    let dim = vec![Dim { size: extent, name: String::new() }];
    TensorProto {
        dtype: number_of(data_type).unwrap() as i32,
        tensor_shape: Some(TensorShapeProto { dim }),
        ..TensorProto::default()
    }
}

fn request(a: TensorProto, b: TensorProto) -> PredictRequest {
    PredictRequest { inputs: [("a".to_owned(), a), ("b".to_owned(), b)].into(), ..PredictRequest::default() }
}

fn parse(request: &PredictRequest, model: &ModelInfo) -> Result<InferCall, CallError> {
    parse_request(&Bytes::from(request.encode_to_vec()), model, &Limits::default())
}

#[test]
fn the_model_is_named_or_not() {
    let named = |spec: Option<ModelSpec>| {
        let message = PredictRequest { model_spec: spec, ..PredictRequest::default() }.encode_to_vec();
        let Target { model, version } = target(&message).unwrap();
        (model.to_owned(), version)
    };
    assert_eq!(named(None), (String::new(), None));
    let spec = |version_choice| {
        Some(ModelSpec { name: "m".into(), signature_name: "serving_default".into(), version_choice })
    };
    assert_eq!(named(spec(None)), ("m".into(), None));
    assert_eq!(named(spec(Some(VersionChoice::Version(3)))), ("m".into(), Some("3".into())));
    let label = VersionChoice::VersionLabel("blue".into());
    assert_eq!(named(spec(Some(label))), ("m".into(), Some("blue".into())));
}

/// What is done to a tensor.
type Change<'a> = &'a dyn Fn(&mut TensorProto);

#[test]
fn values_are_raw_or_in_the_field_of_their_type() {
    let read = |data_type, a: TensorProto| {
        parse(&request(a, tensor(data_type, 0)), &model(data_type)).map(|call| call.inputs[0].data().to_vec())
    };
    let with = |data_type, count, change: &dyn Fn(&mut TensorProto)| {
        let mut proto = tensor(data_type, count);
        change(&mut proto);
        read(data_type, proto)
    };
    use DataType::*;
    let table: [(DataType, Change<'_>, Vec<u8>); 9] = [
        (Fp32, &|t| t.float_val = vec![1.5, -1.0], [1.5f32.to_le_bytes(), (-1f32).to_le_bytes()].concat()),
        (Fp32, &|t| t.tensor_content = vec![1, 2, 3, 4, 5, 6, 7, 8], vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (Uint8, &|t| t.int_val = vec![255, 0], vec![255, 0]),
        (Int8, &|t| t.int_val = vec![-1, 5], vec![255, 5]),
        (Uint16, &|t| t.int_val = vec![65535, 1], vec![255, 255, 1, 0]),
        (Fp16, &|t| t.half_val = vec![0x3c00, 0xc000], vec![0, 0x3c, 0, 0xc0]),
        (Bool, &|t| t.bool_val = vec![true, false], vec![1, 0]),
        (
            Uint64,
            &|t| t.uint64_val = vec![u64::MAX, 1],
            [u64::MAX.to_le_bytes(), 1u64.to_le_bytes()].concat(),
        ),
        (Bytes, &|t| t.string_val = vec![vec![0xff], vec![]], vec![1, 0, 0, 0, 0xff, 0, 0, 0, 0]),
    ];
    for (data_type, change, expected) in table {
        assert_eq!(with(data_type, 2, change).unwrap(), expected, "{data_type}");
        for count in [1, 3] {
            let error = with(data_type, count, change).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidTensor, "{data_type}: {error}");
        }
    }
    assert!(with(Uint8, 1, &|t| t.int_val = vec![256]).unwrap_err().message.contains("out of the range"));
    assert!(with(Uint8, 1, &|t| t.float_val = vec![1.0]).is_err());
    assert!(with(Fp32, 1_000_000, &|t| t.float_val = vec![0.0]).is_err(), "one value is not repeated");
    let error = with(Fp32, 1, &|t| t.dtype = 99).unwrap_err();
    assert!(error.message.contains("dtype 99"), "{error}");
    assert!(with(Fp32, -1, &|_| {}).is_err());
    let deep =
        |t: &mut TensorProto| t.tensor_shape = Some(TensorShapeProto { dim: vec![Dim::default(); 40] });
    assert!(with(Fp32, 1, &deep).unwrap_err().message.contains("more than 32 dimensions"));
}

#[test]
fn raw_contents_are_shared_and_outputs_filtered() {
    let a = TensorProto { tensor_content: vec![1, 2], ..tensor(DataType::Uint8, 2) };
    let mut asked = request(a, tensor(DataType::Uint8, 0));
    asked.output_filter = vec!["z".into()];
    let message = Bytes::from(asked.encode_to_vec());
    let call = parse_request(&message, &model(DataType::Uint8), &Limits::default()).unwrap();
    assert!(message.as_ptr_range().contains(&call.inputs[0].data().as_ptr()));
    assert_eq!(call.outputs, [Wanted { index: 1, form: Form::Raw }]);
    asked.output_filter = vec!["q".into()];
    assert!(parse(&asked, &model(DataType::Uint8)).unwrap_err().message.contains("no output `q`"));
    asked.output_filter.clear();
    asked.inputs.remove("b");
    assert!(parse(&asked, &model(DataType::Uint8)).unwrap_err().message.contains("`b`: it is missing"));
}

/// What a result is for others.
fn read_back(tensors: &[Tensor; 2]) -> (PredictResponse, bool) {
    let model = model(tensors[0].data_type());
    let outputs = [1, 0].map(|index| Wanted { index, form: Form::Raw });
    let (model_version, id) = (Some("7"), None);
    let reply = InferReply { model_name: "m", model_version, id, model: &model, outputs: &outputs, tensors };
    let pieces = encode_reply(&reply).unwrap();
    let shared = pieces.iter().any(|piece| piece.as_ptr() == tensors[0].data().as_ptr());
    (PredictResponse::decode(&*pieces.concat()).unwrap(), shared)
}

#[test]
fn results_are_read_by_others() {
    let shape = |extent: i64| Shape::new([extent, 1]).unwrap();
    let none = |data_type| Tensor::new(data_type, shape(0), Bytes::new()).unwrap();
    let of = |data_type: DataType, data: &[u8]| {
        let count = data.len() / data_type.size().unwrap();
        let tensor = Tensor::new(data_type, shape(count as i64), Bytes::copy_from_slice(data)).unwrap();
        let (read, shared) = read_back(&[tensor, none(data_type)]);
        let spec = read.model_spec.unwrap();
        assert_eq!((&*spec.name, spec.version_choice), ("m", Some(VersionChoice::Version(7))));
        assert_eq!(read.outputs["y"].tensor_shape.as_ref().unwrap().dim[0].size, 0);
        let value = read.outputs["z"].clone();
        assert_eq!(value.dtype as u64, number_of(data_type).unwrap());
        assert_eq!(value.tensor_shape.as_ref().unwrap().dim.len(), 2);
        (value, shared)
    };
    let floats = [1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat();
    let (value, shared) = of(DataType::Fp32, &floats);
    assert_eq!((value.float_val, shared), (vec![1.5, -2.0], true));
    let (value, shared) = of(DataType::Fp64, &0.1f64.to_le_bytes());
    assert_eq!((value.double_val, shared), (vec![0.1], true));
    let (value, shared) = of(DataType::Bool, &[1, 0]);
    assert_eq!((value.bool_val, shared), (vec![true, false], true));
    assert_eq!(of(DataType::Int8, &[0x80, 0x7f]).0.int_val, [-128, 127]);
    assert_eq!(of(DataType::Int16, &[0, 0x80]).0.int_val, [-32768]);
    assert_eq!(of(DataType::Int32, &[0xff; 4]).0.int_val, [-1]);
    assert_eq!(of(DataType::Uint8, &[255, 1]).0.int_val, [255, 1]);
    assert_eq!(of(DataType::Uint16, &[255, 255]).0.int_val, [65535]);
    assert_eq!(of(DataType::Uint32, &[0xff; 4]).0.uint32_val, [u32::MAX]);
    assert_eq!(of(DataType::Uint64, &[0xff; 8]).0.uint64_val, [u64::MAX]);
    assert_eq!(of(DataType::Int64, &i64::MIN.to_le_bytes()).0.int64_val, [i64::MIN]);
    assert_eq!(of(DataType::Fp16, &[0, 0xc0]).0.half_val, [0xc000]);
    let strings = Tensor::strings(shape(2), &[&b"a"[..], b"\xff"]).unwrap();
    let (read, _) = read_back(&[strings, none(DataType::Bytes)]);
    assert_eq!(read.outputs["z"].string_val, [b"a".to_vec(), vec![0xff]]);
}

proptest! {
    #[test]
    fn no_damage_makes_it_panic(at in 0usize..90, insert in prop::collection::vec(any::<u8>(), 0..6)) {
        let a = TensorProto { tensor_content: vec![1, 2], ..tensor(DataType::Uint8, 2) };
        let b = TensorProto { int_val: vec![1, 2], ..tensor(DataType::Uint8, 2) };
        let mut bytes = request(a, b).encode_to_vec();
        let at = at.min(bytes.len());
        bytes.splice(at..at, insert);
        let _ = target(&bytes);
        let _ = parse_request(&Bytes::from(bytes), &model(DataType::Uint8), &Limits::default());
    }
}
