//! The bodies of calls of models: those of any model, by reference, or of one, as it takes and gives.

use outrigger_backend::ModelInfo;
use outrigger_protocol::{oip, rows};
use serde_json::{Value, json};

use super::operation::{Content, json_of};

/// Which model is meant.
#[derive(Clone, Copy)]
pub(super) struct Meant<'a> {
    pub(super) name: &'a str,
    pub(super) info: &'a ModelInfo,
}

/// What is sent, and what comes back.
pub(super) type Bodies = [Content; 2];

/// Tensors, by the Open Inference Protocol.
pub(super) fn tensors(meant: Option<Meant<'_>>) -> Bodies {
    match meant {
        None => ["InferRequest", "InferAnswer"].map(|name| json_of(oip::schema::reference(name))),
        Some(Meant { name, info }) => {
            let example = oip::schema::example(info);
            [
                Content { example, ..json_of(oip::schema::request(info)) },
                json_of(oip::schema::answer(name, info)),
            ]
        }
    }
}

/// Instances, and predictions for them.
pub(super) fn rows(meant: Option<Meant<'_>>) -> Bodies {
    match meant {
        None => ["InstancesRequest", "PredictionsAnswer"].map(|name| json_of(oip::schema::reference(name))),
        Some(Meant { info, .. }) => {
            let example = rows::schema::example(info);
            [Content { example, ..json_of(rows::schema::request(info)) }, json_of(rows::schema::answer(info))]
        }
    }
}

/// Either, such as tensors.
pub(super) fn either(meant: Option<Meant<'_>>) -> Bodies {
    let ([request, answer], [instances, predictions]) = (tensors(meant), rows(meant));
    let any = |one: Value, other: Value| json!({ "anyOf": [one, other] });
    [
        Content { example: request.example, ..json_of(any(request.schema, instances.schema)) },
        json_of(any(answer.schema, predictions.schema)),
    ]
}
