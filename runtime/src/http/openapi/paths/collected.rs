//! What was collected, and its deletion.

use outrigger_protocol::error::ErrorCode;

use super::super::operation::{get, json_of, post};
use super::super::place::Place;
use super::super::tags::Tag;
use crate::collection::Deletion;
use crate::http::collected::{Collected, Wanted};

/// Whether anything is collected; else there is nothing to describe.
fn collects(place: &Place<'_>) -> bool {
    place.facts.config.collect.is_some()
}

pub(in crate::http) fn collected(place: &mut Place<'_>) {
    if !collects(place) {
        return;
    }
    let answer = place.answer::<Collected>();
    place.add(
        get(Tag::Management, "What became of collected records, and of deletions")
            .ok("Each collection, and the last deletions.", [json_of(answer)])
            .errors(&[ErrorCode::NotFound]),
    );
}

pub(in crate::http) fn deletions(place: &mut Place<'_>) {
    if !collects(place) {
        return;
    }
    let (answer, request) = (place.answer::<Deletion>(), place.request::<Wanted>());
    place.add(
        post(Tag::Management, "Has all records of a correlation id deleted, wherever they are")
            .text(
                "It is tried until nothing of it is left, or the replica ends. Other replicas have records of their own, and are asked themselves.",
            )
            .body([json_of(request)])
            .answer(202, "It has begun, or had been.", [json_of(answer)])
            .errors(&[
                ErrorCode::BadRequest,
                ErrorCode::NotFound,
                ErrorCode::BodyTooLarge,
                ErrorCode::BodyTimeout,
                ErrorCode::Overloaded,
            ]),
    );
}

pub(in crate::http) fn expire(place: &mut Place<'_>) {
    if !collects(place) {
        return;
    }
    let answer = place.answer::<Deletion>();
    place.add(
        post(Tag::Management, "Has what is older than its collection keeps it deleted now")
            .text("It is done once an hour by itself.")
            .answer(202, "It has begun, or had been.", [json_of(answer)])
            .errors(&[ErrorCode::NotFound, ErrorCode::Overloaded]),
    );
}

pub(in crate::http) fn deletion(place: &mut Place<'_>) {
    if !collects(place) {
        return;
    }
    let answer = place.answer::<Deletion>();
    place.add(
        get(Tag::Management, "How far a deletion is")
            .ok("How far it is. The last 64 are known.", [json_of(answer)])
            .errors(&[ErrorCode::NotFound]),
    );
}
