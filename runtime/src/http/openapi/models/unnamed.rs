//! Calls that name no model: what they take is what the model takes that is meant then.

use super::super::bodies::Meant;
use super::super::document::shown;
use super::super::place::{Facts, Lane};
use super::super::shown::Added;
use super::super::written::Written;
use super::add;
use super::room::Room;
use crate::config::Config;
use crate::http::routes::Described;

/// Routes of such calls.
const UNNAMED: [&str; 2] = ["/invocations", "/vertex/predict"];

/// Describes them once more, with that model's bodies, where these take no more than half of the room; what is left of that goes to the others.
pub(super) fn describe(
    config: &Config,
    listed: &[Described],
    meant: Meant<'_>,
    room: &mut Room,
    added: &mut Added,
) {
    let mut half = room.half();
    if half.may_have(meant.info) {
        half.take(described(config, listed, meant)).into_iter().for_each(|fitting| add(added, fitting));
    }
    room.put(half);
}

fn described(config: &Config, listed: &[Described], meant: Meant<'_>) -> Written {
    let facts = Facts { config, lane: Lane::Nothing, meant: Some(meant) };
    let mut written = Written::new();
    for shown in shown(config, listed) {
        if UNNAMED.contains(&shown.route().path) {
            shown.describe(&facts, &mut written);
        }
    }
    written
}
