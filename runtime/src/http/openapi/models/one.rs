//! One model at its own path.

use outrigger_backend::TensorInfo;
use outrigger_protocol::operation::Operation;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::bodies::{self, Meant};
use super::super::document::is_upstreams;
use super::super::operation::post;
use super::super::paths;
use super::super::place::{Facts, Lane, Place};
use super::super::tags::Tag;
use super::super::written::Written;
use super::room::Room;
use super::{Fitting, One};
use crate::config::{Config, Contract};
use crate::http::routes::Route;

/// What a segment of a URL has as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const NOT_LOADED: &str = "It has not been loaded yet; what it takes is known once it has been, which asking for its description by name does too.";

/// What has become of a model.
pub(super) enum Outcome {
    Described(Fitting),
    /// It has no path of its own here.
    NotHere,
    /// There is no room for it among others.
    NoRoom,
}

/// The contract by which a model has a path of its own, and that.
fn spoken(config: &Config) -> Option<(Contract, &'static str)> {
    let spoken = &config.score.contracts.spoken;
    [(Contract::Oip, "/v2/models/{model}/infer"), (Contract::Sagemaker, "/models/{model}/invoke")]
        .into_iter()
        .find(|(contract, _)| spoken.contains(contract))
}

/// Whether models have paths of their own at all.
pub(super) fn is_spoken(config: &Config) -> bool {
    spoken(config).is_some()
}

impl One {
    /// Describes what this model can be asked at its own path. The first one in a description is there whatever its size: where that is too
    /// much, without its tensors.
    pub(super) fn describe(&self, config: &Config, room: &mut Room, first: bool) -> Outcome {
        let Some((contract, route)) = spoken(config) else { return Outcome::NotHere };
        let segment = utf8_percent_encode(&self.name, SEGMENT).to_string();
        let path = route.replace("{model}", &segment);
        if is_upstreams(config, "score", &path) {
            return Outcome::NotHere;
        }
        let route =
            Route { listener: "score", path: route, operation: Operation::Infer, contract: Some(contract) };
        let written = |text: String, meant: Option<Meant<'_>>| {
            let operation = post(Tag::Models, "Runs the model").text(text);
            let operation = match contract {
                Contract::Sagemaker => paths::instances_call(operation, bodies::either(meant)),
                _ => paths::call(operation, bodies::tensors(meant)),
            };
            let facts = Facts { config, lane: Lane::Nothing, meant: None };
            let mut written = Written::new();
            Place { facts: &facts, route, path: &path, one: Some(&self.name), written: &mut written }
                .add(operation);
            written
        };
        let fitting = match self.meant() {
            None => room.take(written(NOT_LOADED.to_owned(), None)),
            Some(meant) if room.may_have(meant.info) => {
                room.take(written(takes_and_gives(meant), Some(meant)))
            }
            Some(_) => None,
        };
        match fitting {
            Some(fitting) => Outcome::Described(fitting),
            None if first => {
                let metadata = match contract {
                    Contract::Oip => format!(" `GET /v2/models/{segment}` has it."),
                    _ => String::new(),
                };
                let text = format!(
                    "What it takes and gives is longer than a description may be (`openapi.bytes`, {} bytes).{metadata}",
                    config.openapi.bytes
                );
                room.take(written(text, None)).map_or(Outcome::NoRoom, Outcome::Described)
            }
            None => Outcome::NoRoom,
        }
    }
}

fn takes_and_gives(Meant { info, .. }: Meant<'_>) -> String {
    let tensors = |infos: &[TensorInfo]| {
        let one = |info: &TensorInfo| format!("`{}` {} {:?}", info.name, info.data_type, info.shape);
        infos.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    format!("Takes {}; gives {}. A free extent is −1.", tensors(&info.inputs), tensors(&info.outputs))
}
