//! Methods of gRPC services. OpenAPI has no words for messages of protobuf; what they are is told by reflection.

use serde_json::json;

use super::super::operation::{bytes, post};
use super::super::place::Place;
use super::super::tags::Tag;

pub(in crate::http) fn grpc(place: &mut Place<'_>) {
    let Some(summary) = summary(place.path) else { return };
    let controls = place.facts.config.score.contracts.model_control;
    let shares = place.facts.config.score.contracts.shared_memory.is_some();
    if place.path.contains("/RepositoryModel") && !controls
        || place.path.contains("/SystemSharedMemory") && !shares
    {
        return;
    }
    let text = "Over HTTP/2, each message behind a prefix of five bytes. The status is in the trailer `grpc-status`; the errors of this \
                listener come as gRPC's, with their code in the trailer `outrigger-code`.";
    let mut operation = post(Tag::Grpc, summary).text(text).body([bytes("application/grpc")]);
    operation.parameters.push(json!({
        "name": "TE", "in": "header", "required": true, "description": "gRPC's trailers are taken.", "schema": { "const": "trailers" },
    }));
    place.add(operation.ok("Messages, and the status in the trailers.", [bytes("application/grpc")]));
}

fn summary(path: &str) -> Option<&'static str> {
    let (service, method) = path.trim_start_matches('/').split_once('/')?;
    Some(match (service, method) {
        ("grpc.health.v1.Health", "Check") => "Whether the server, or a model, takes calls",
        ("grpc.health.v1.Health", "Watch") => "The same now and whenever it changes",
        (_, "ServerReflectionInfo") => "Which services there are, and what their messages are",
        ("inference.GRPCInferenceService", method) => match method {
            "ServerLive" => "Whether the server is alive",
            "ServerReady" => "Whether the server takes calls",
            "ServerMetadata" => "Name, version and extensions of the server",
            "ModelReady" => "Whether calls of a model are taken",
            "ModelMetadata" => "What a model takes and gives",
            "ModelConfig" => "The same as a configuration",
            "ModelStatistics" => "How calls of models went",
            "ModelInfer" => "Runs a model on tensors",
            "ModelStreamInfer" => "Runs models on tensors, call after call on one stream",
            "RepositoryIndex" => "Which models there are, and how they are",
            "RepositoryModelLoad" => "Has a model loaded",
            "RepositoryModelUnload" => "Has a model leave",
            "SystemSharedMemoryStatus" => "The regions that this caller has registered",
            "SystemSharedMemoryRegister" => "Registers a file of score.shared_memory as a region",
            "SystemSharedMemoryUnregister" => "Forgets regions",
            _ => return None,
        },
        ("tensorflow.serving.PredictionService", "Predict") => "Runs a model on TensorFlow's tensors",
        ("externalscaler.ExternalScaler", method) => match method {
            "IsActive" => "Whether KEDA is to have at least one replica",
            "StreamIsActive" => "The same now and whenever it changes",
            "GetMetricSpec" => "Which metric KEDA scales by",
            "GetMetrics" => "How much of it there is",
            _ => return None,
        },
        ("xds.service.orca.v3.OpenRcaService", "StreamCoreMetrics") => {
            "How busy the replica is, again and again, for load balancers"
        }
        _ => return None,
    })
}
