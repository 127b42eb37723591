//! Instances and predictions as JSON Schema (2020-12), and instances that a model takes.

use outrigger_backend::{DataType, ModelInfo, TensorInfo};
use serde_json::{Map, Value, json};

use super::B64;
use crate::oip::schema::{EXAMPLE_ELEMENTS, element, elements, example_shape, reference, zero};

/// What all models have in common, by name.
pub fn components() -> Map<String, Value> {
    let mut schemas = Map::new();
    for data_type in DataType::ALL {
        let (name, mut element) = (row_name(data_type), element(data_type));
        if data_type == DataType::Bytes {
            let bytes = json!({
                "description": "Bytes that are no text, in base64.",
                "type": "object",
                "required": [B64],
                "properties": { B64: { "type": "string", "contentEncoding": "base64" } },
            });
            element = json!({ "anyOf": [element, bytes] });
        }
        let text = format!("One row of a tensor of datatype {data_type}, nested as its shape says.");
        let items = json!({ "type": "array", "items": reference(&name) });
        schemas.insert(name, json!({ "description": text, "anyOf": [element, items] }));
    }
    let each = "An object with each by its name, or, where there is only one, that itself.";
    let instances =
        json!({ "type": "array", "items": { "description": format!("One row of each input. {each}") } });
    let predictions =
        json!({ "type": "array", "items": { "description": format!("One row of each output. {each}") } });
    schemas.insert("InstancesRequest".into(), member("instances", instances));
    schemas.insert("PredictionsAnswer".into(), member("predictions", predictions));
    schemas
}

/// A request to one model.
pub fn request(model: &ModelInfo) -> Value {
    let mut forms = vec![named(&model.inputs)];
    if let [only] = model.inputs.as_slice() {
        forms.push(reference(&row_name(only.data_type)));
    }
    member("instances", json!({ "type": "array", "items": { "anyOf": forms } }))
}

/// Its answer.
pub fn answer(model: &ModelInfo) -> Value {
    let item = match model.outputs.as_slice() {
        [only] => reference(&row_name(only.data_type)),
        several => named(several),
    };
    member("predictions", json!({ "type": "array", "items": item }))
}

/// One instance that the model takes: zeros, with 1 for each free extent. Nothing where that would be more than [`EXAMPLE_ELEMENTS`], the
/// model does not take exactly one row, its inputs have none, or an extent is 0: there may be any number of empty lists then.
pub fn example(model: &ModelInfo) -> Option<Value> {
    let mut left = EXAMPLE_ELEMENTS;
    let mut row = Map::new();
    for info in &model.inputs {
        let shape = example_shape(info);
        left = left.checked_sub(elements(&shape)?)?;
        let (1, extents) = shape.split_first()? else { return None };
        if extents.contains(&0) {
            return None;
        }
        row.insert(info.name.clone(), nested(extents, &zero(info.data_type)));
    }
    Some(json!({ "instances": [row] }))
}

fn nested(extents: &[i64], value: &Value) -> Value {
    match extents.split_first() {
        None => value.clone(),
        Some((extent, rest)) => (0..*extent).map(|_| nested(rest, value)).collect(),
    }
}

fn named(infos: &[TensorInfo]) -> Value {
    let names: Vec<_> = infos.iter().map(|info| info.name.as_str()).collect();
    let row = |info: &TensorInfo| (info.name.clone(), reference(&row_name(info.data_type)));
    let rows: Map<_, _> = infos.iter().map(row).collect();
    json!({ "type": "object", "required": names, "properties": rows, "additionalProperties": false })
}

fn member(name: &str, value: Value) -> Value {
    json!({ "type": "object", "required": [name], "properties": { name: value } })
}

fn row_name(data_type: DataType) -> String {
    format!("Row{}", data_type.name())
}

#[cfg(test)]
mod tests {
    use super::super::parse_instances;
    use super::*;
    use crate::call::Limits;

    fn info(data_type: DataType, shape: &[i64]) -> TensorInfo {
        let symbols = vec![String::new(); shape.len()];
        TensorInfo { name: format!("x{data_type}"), data_type, shape: shape.to_vec(), symbols }
    }

    #[test]
    fn the_parser_takes_examples_of_every_datatype() {
        let all = DataType::ALL.map(|data_type| info(data_type, &[-1, 2])).to_vec();
        let single = DataType::ALL.map(|data_type| vec![info(data_type, &[-1])]);
        for inputs in single.into_iter().chain([all]) {
            let model = ModelInfo { inputs, outputs: Vec::new() };
            let body = example(&model).unwrap().to_string();
            let call = parse_instances(body.as_bytes(), &model, &Limits::default()).unwrap();
            assert_eq!(call.inputs.len(), model.inputs.len(), "{body}");
        }
    }

    #[test]
    fn there_is_no_example_for_models_that_take_no_single_row() {
        for shape in [&[][..], &[2, 3], &[1, 2000], &[1, 1 << 40, 0], &[-1, 0, 1 << 40]] {
            let model = ModelInfo { inputs: vec![info(DataType::Fp32, shape)], outputs: Vec::new() };
            assert_eq!(example(&model), None, "{shape:?}");
        }
    }
}
