//! The protocol's bodies as JSON Schema (2020-12): those of any model, those of one model, and a request that it takes.
//!
//! They stand beside the parser, which is written by hand and has no types to derive them from; tests hold the two together.

use outrigger_backend::{DataType, MAX_RANK, ModelInfo, TensorInfo};
use serde_json::{Map, Value, json};

/// Elements of all inputs together up to which a request is shown: with more it would be a page of zeros.
pub const EXAMPLE_ELEMENTS: usize = 1024;

/// Where the schemas of a description are.
pub const COMPONENTS: &str = "#/components/schemas/";

/// A reference to one of them.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("{COMPONENTS}{name}") })
}

/// What all models have in common, by name.
pub fn components() -> Map<String, Value> {
    let mut schemas = Map::new();
    let mut add = |name: &str, schema: Value| schemas.insert(name.to_owned(), schema);
    for data_type in DataType::ALL {
        let name = values_name(data_type);
        let values = reference(&name);
        let text = format!(
            "Elements of datatype {data_type}: flat in row-major order, or nested as the shape says."
        );
        let items = json!({ "anyOf": [element(data_type), values] });
        add(&name, json!({ "description": text, "type": "array", "items": items }));
    }
    let of_type = |data_type: DataType| {
        json!({ "properties": {
            "datatype": { "const": data_type.name() },
            "data": reference(&values_name(data_type)),
        } })
    };
    let by_type: Vec<_> = DataType::ALL.into_iter().map(of_type).collect();
    let tensor = |name: &str, parameters: &str, description: &str| {
        json!({
            "title": name,
            "description": description,
            "type": "object",
            "required": ["name", "shape", "datatype"],
            "properties": {
                "name": { "type": "string" },
                "shape": shape(None),
                "datatype": reference("Datatype"),
                "parameters": reference(parameters),
                "data": { "description": "The elements, where they are in the JSON." },
            },
            "oneOf": by_type,
        })
    };
    let datatypes: Vec<_> = DataType::ALL.iter().map(|data_type| data_type.name()).collect();
    add(
        "Datatype",
        json!({ "description": "The type of a tensor's elements.", "type": "string", "enum": datatypes }),
    );
    add(
        "InputTensor",
        tensor(
            "InputTensor",
            "InputParameters",
            "An input. Its elements are in `data`, behind the JSON (`binary_data_size`), or in shared memory.",
        ),
    );
    add(
        "OutputTensor",
        tensor("OutputTensor", "OutputParameters", "An output. Its elements are where they were asked for."),
    );
    add(
        "InputParameters",
        json!({
            "description": "Where the elements are, if not in `data`.",
            "type": "object",
            "properties": {
                "binary_data_size": { "type": "integer", "minimum": 0, "description": "How many of the bytes behind the JSON are this input's." },
                "shared_memory_region": { "type": "string", "description": "The registered region that they are in." },
                "shared_memory_offset": { "type": "integer", "minimum": 0, "default": 0, "description": "Bytes into the region." },
                "shared_memory_byte_size": { "type": "integer", "minimum": 0, "description": "How many bytes they are." },
            },
        }),
    );
    add(
        "RequestedOutput",
        json!({
            "description": "An output that is asked for.",
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string" },
                "parameters": {
                    "type": "object",
                    "properties": {
                        "binary_data": { "type": "boolean", "description": "Whether its elements are sent as bytes behind the JSON." },
                        "shared_memory_region": { "type": "string", "description": "The registered region that they are written to." },
                        "shared_memory_offset": { "type": "integer", "minimum": 0, "default": 0, "description": "Bytes into the region." },
                        "shared_memory_byte_size": { "type": "integer", "minimum": 0, "description": "How many bytes there are for them." },
                    },
                },
            },
        }),
    );
    add(
        "OutputParameters",
        json!({
            "description": "Where the elements are, if not in `data`.",
            "type": "object",
            "properties": {
                "binary_data_size": { "type": "integer", "minimum": 0, "description": "How many of the bytes behind the JSON are this output's." },
                "shared_memory_region": { "type": "string" },
                "shared_memory_offset": { "type": "integer", "minimum": 0 },
                "shared_memory_byte_size": { "type": "integer", "minimum": 0 },
            },
        }),
    );
    add(
        "CallParameters",
        json!({
            "description": "How the call is to be made. What is not known is skipped.",
            "type": "object",
            "properties": {
                "priority": {
                    "description": "How urgent it is: 1 is high, 2 normal, a higher number low; 0 says nothing.",
                    "anyOf": [{ "type": "integer", "minimum": 0 }, { "enum": ["high", "normal", "low"] }],
                },
                "timeout": { "type": "integer", "minimum": 0, "description": "Microseconds after which it has lost its worth; 0 says nothing." },
                "binary_data_output": { "type": "boolean", "default": false, "description": "Whether outputs of which nothing is said are sent as bytes behind the JSON." },
            },
        }),
    );
    add(
        "InferRequest",
        request_of(
            json!({ "type": "array", "items": reference("InputTensor") }),
            reference("RequestedOutput"),
        ),
    );
    add(
        "InferAnswer",
        answer_of(
            json!({ "type": "string" }),
            json!({ "type": "array", "items": reference("OutputTensor") }),
        ),
    );
    schemas
}

/// A request to one model.
pub fn request(model: &ModelInfo) -> Value {
    let inputs: Vec<_> = model.inputs.iter().map(|info| tensor(info, "InputParameters")).collect();
    let names: Vec<_> = model.outputs.iter().map(|info| info.name.as_str()).collect();
    let output =
        json!({ "allOf": [reference("RequestedOutput")], "properties": { "name": { "enum": names } } });
    request_of(each(inputs), output)
}

/// Its answer.
pub fn answer(name: &str, model: &ModelInfo) -> Value {
    let outputs: Vec<_> = model.outputs.iter().map(|info| tensor(info, "OutputParameters")).collect();
    let outputs = json!({ "type": "array", "maxItems": outputs.len(), "items": any(outputs) });
    answer_of(json!({ "const": name }), outputs)
}

/// A request that the model takes: zeros, with 1 for each free extent. Nothing where that would be more than [`EXAMPLE_ELEMENTS`].
pub fn example(model: &ModelInfo) -> Option<Value> {
    let mut left = EXAMPLE_ELEMENTS;
    let mut inputs = Vec::with_capacity(model.inputs.len());
    for info in &model.inputs {
        let shape = example_shape(info);
        let elements = elements(&shape)?;
        left = left.checked_sub(elements)?;
        let data = vec![zero(info.data_type); elements];
        inputs.push(
            json!({ "name": info.name, "shape": shape, "datatype": info.data_type.name(), "data": data }),
        );
    }
    Some(json!({ "inputs": inputs }))
}

/// The shape that an example has.
pub(crate) fn example_shape(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|extent| if *extent < 0 { 1 } else { *extent }).collect()
}

pub(crate) fn elements(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, extent| count.checked_mul(usize::try_from(*extent).ok()?))
}

/// The plainest value that there is of a type.
pub(crate) fn zero(data_type: DataType) -> Value {
    match data_type {
        DataType::Bool => json!(false),
        DataType::Bytes => json!("text"),
        _ => json!(0),
    }
}

/// One element in JSON.
pub(crate) fn element(data_type: DataType) -> Value {
    let integer = |least: i64, most: u64| json!({ "type": "integer", "minimum": least, "maximum": most });
    match data_type {
        DataType::Bool => json!({ "type": "boolean" }),
        DataType::Uint8 => integer(0, u8::MAX.into()),
        DataType::Uint16 => integer(0, u16::MAX.into()),
        DataType::Uint32 => integer(0, u32::MAX.into()),
        DataType::Uint64 => integer(0, u64::MAX),
        DataType::Int8 => integer(i8::MIN.into(), i8::MAX as u64),
        DataType::Int16 => integer(i16::MIN.into(), i16::MAX as u64),
        DataType::Int32 => integer(i32::MIN.into(), i32::MAX as u64),
        DataType::Int64 => integer(i64::MIN, i64::MAX as u64),
        DataType::Bytes => json!({ "type": "string" }),
        _ => json!({ "type": "number" }),
    }
}

fn values_name(data_type: DataType) -> String {
    format!("Values{}", data_type.name())
}

fn request_of(inputs: Value, output: Value) -> Value {
    json!({
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": { "type": "string", "description": "Comes back with the answer." },
            "parameters": reference("CallParameters"),
            "inputs": inputs,
            "outputs": {
                "description": "The outputs that are asked for; all, if none is named.",
                "type": "array",
                "items": output,
            },
        },
    })
}

fn answer_of(name: Value, outputs: Value) -> Value {
    json!({
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": name,
            "model_version": { "type": "string" },
            "id": { "type": "string", "description": "That of the request." },
            "outputs": outputs,
        },
    })
}

/// Each of these once, in any order.
fn each(schemas: Vec<Value>) -> Value {
    let count = schemas.len();
    json!({ "type": "array", "minItems": count, "maxItems": count, "items": any(schemas) })
}

/// One of these.
fn any(mut schemas: Vec<Value>) -> Value {
    match (schemas.len(), schemas.pop()) {
        (_, None) => json!(true),
        (1, Some(only)) => only,
        (_, Some(last)) => {
            schemas.push(last);
            json!({ "anyOf": schemas })
        }
    }
}

fn tensor(info: &TensorInfo, parameters: &str) -> Value {
    json!({
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": { "const": info.name },
            "shape": shape(Some(info)),
            "datatype": { "const": info.data_type.name() },
            "parameters": reference(parameters),
            "data": reference(&values_name(info.data_type)),
        },
    })
}

/// A shape; that of a model's tensor has its extents, a free one being any.
fn shape(info: Option<&TensorInfo>) -> Value {
    let Some(info) = info else {
        let extent = json!({ "type": "integer", "minimum": 0 });
        return json!({ "type": "array", "maxItems": MAX_RANK, "items": extent });
    };
    let count = info.shape.len();
    if count == 0 {
        return json!({ "type": "array", "maxItems": 0 });
    }
    let symbols = info.symbols.iter().map(String::as_str).chain(std::iter::repeat(""));
    let extent = |(extent, symbol): (&i64, &str)| match (*extent, symbol) {
        (fixed @ 0.., _) => json!({ "const": fixed }),
        (_, "") => json!({ "type": "integer", "minimum": 0 }),
        (_, symbol) => json!({ "type": "integer", "minimum": 0, "title": symbol }),
    };
    let extents: Vec<_> = info.shape.iter().zip(symbols).map(extent).collect();
    json!({ "type": "array", "minItems": count, "maxItems": count, "prefixItems": extents })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::call::{Limits, NoRegions};
    use crate::oip::{Request, parse_infer};

    fn info(data_type: DataType, shape: &[i64]) -> TensorInfo {
        let symbols = vec![String::new(); shape.len()];
        TensorInfo { name: format!("x{data_type}"), data_type, shape: shape.to_vec(), symbols }
    }

    #[test]
    fn the_parser_takes_examples_of_every_datatype() {
        let inputs = DataType::ALL.map(|data_type| info(data_type, &[-1, 2, 3])).to_vec();
        let model = ModelInfo { inputs, outputs: vec![info(DataType::Fp32, &[])] };
        let body = Bytes::from(example(&model).unwrap().to_string());
        let call = parse_infer(Request::json(&body), &model, &Limits::default(), &NoRegions).unwrap();
        assert_eq!(call.inputs.len(), DataType::ALL.len());
    }

    #[test]
    fn an_example_that_would_be_too_long_is_none() {
        let of = |shape: &[i64]| {
            let model = ModelInfo { inputs: vec![info(DataType::Fp32, shape)], outputs: Vec::new() };
            example(&model).is_some()
        };
        assert!(of(&[]) && of(&[0]) && of(&[-1, 1024]));
        assert!(!of(&[1025]) && !of(&[i64::MAX, i64::MAX]));
    }
}
