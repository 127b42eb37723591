//! SageMaker's routes.

use outrigger_protocol::error::ErrorCode;
use outrigger_protocol::operation::Operation as Asked;
use outrigger_protocol::sagemaker::{Model, ModelList};
use serde_json::json;

use super::super::bodies::{self, Bodies, Meant};
use super::super::errors::{BODY, INFER, LOADED, NAMED, SCRIPT, SMALL, UPSTREAM, WAITS, WORK};
use super::super::operation::{Operation, bytes, get, json_of, post, text};
use super::super::place::{Lane, Place};
use super::super::tags::Tag;
use super::score::{SCRIPTS_OWN, SERVERS_OWN, script_bodies};
use crate::http::sagemaker::Load;

pub(in crate::http) fn ping(place: &mut Place<'_>) {
    place.add(
        get(Tag::SageMaker, "Whether calls are taken")
            .ok("They are.", [text("text/plain")])
            .errors(&[ErrorCode::NotReady]),
    );
}

/// A call of a model: of that one, or any.
fn call_of(operation: Operation, meant: Option<Meant<'_>>) -> Operation {
    let operation = operation.text(
        "Tensors by the Open Inference Protocol, in JSON or with bytes behind it, where the content type's parameter \
         `json-header-size` says how many bytes are JSON; or `instances`, which are answered with `predictions`.",
    );
    call(operation, bodies::either(meant))
}

/// A call of a model by tensors or instances: with these bodies in JSON.
pub(in crate::http::openapi) fn call(operation: Operation, [request, answer]: Bodies) -> Operation {
    let binary = || bytes("application/vnd.sagemaker-triton.binary+json");
    operation
        .body([request, binary()])
        .ok("The outputs, as the call was made.", [answer, binary()])
        .takes(&["Encoding", "CacheControl"])
        .headers(&["Cache", "Device"])
        .errors(BODY)
        .errors(WORK)
        .errors(INFER)
}

pub(in crate::http) fn invocations(place: &mut Place<'_>) {
    let facts = place.facts;
    let operation = post(Tag::SageMaker, "Calls the service");
    place.add(match &facts.lane {
        Lane::Nothing => call_of(operation, facts.meant),
        // Of all methods POST comes this far.
        Lane::Script { input, output, .. } => {
            let (body, answer) = script_bodies(input, output);
            let operation = operation.text("What is taken and given is the script's.").body(body);
            let headers = ["RunFailed", "RunTime", "Device"];
            operation
                .ok("What `run()` returned.", [answer, bytes("*/*")])
                .others(SCRIPTS_OWN)
                .headers(&headers)
                .errors(BODY)
                .errors(WORK)
                .errors(SCRIPT)
        }
        Lane::Upstream => {
            let operation =
                operation.text("Passed on as it is; the answer is the server's behind.").body([bytes("*/*")]);
            let operation = operation.ok("What it answered.", [bytes("*/*")]).others(SERVERS_OWN);
            operation.errors(BODY).errors(WORK).errors(UPSTREAM)
        }
    });
}

pub(in crate::http) fn invoke(place: &mut Place<'_>) {
    place.add(call_of(post(Tag::SageMaker, "Calls a model"), None));
}

pub(in crate::http) fn loaded(place: &mut Place<'_>) {
    let (list, load) = (place.answer::<ModelList>(), place.request::<Load>());
    place.add(
        get(Tag::SageMaker, "The models that are loaded")
            .query("next_page_token", "What the page before said.", json!({ "type": "string" }))
            .ok("A page of them.", [json_of(list)])
            .errors(LOADED),
    );
    if place.facts.config.score.contracts.model_control {
        place.add(
            post(Tag::SageMaker, "Has one more model loaded")
                .text("Where its files are stands in the configuration: a URL that is sent along is not looked at. It needs the operation `model_control`.")
                .takes(&["Deadline"])
                .asks(Asked::ModelControl)
                .body([json_of(load)])
                .ok("It is loaded.", [])
                .errors(SMALL)
                .errors(&[ErrorCode::Conflict])
                .errors(WAITS),
        );
    }
}

pub(in crate::http) fn loaded_one(place: &mut Place<'_>) {
    let one = place.answer::<Model>();
    place.add(get(Tag::SageMaker, "A model, if it is loaded").ok("It is.", [json_of(one)]).errors(NAMED));
    if place.facts.config.score.contracts.model_control {
        place.add(
            Operation::new(
                "delete",
                Tag::SageMaker,
                "Has a model leave once the calls are through that have it",
            )
            .text("It needs the operation `model_control`.")
            .asks(Asked::ModelControl)
            .ok("It has left.", [])
            .errors(NAMED),
        );
    }
}
