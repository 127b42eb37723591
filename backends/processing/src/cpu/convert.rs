//! Another element type.

use outrigger_backend::DataType;

use super::element::{Element, Wide, with_element};

pub(super) fn run(from_type: DataType, from: &[u8], to_type: DataType, to: &mut [u8]) {
    if from_type == to_type {
        to.copy_from_slice(from);
        return;
    }
    with_element!(from_type, From => with_element!(to_type, To => each::<From, To>(from, to)));
}

fn each<From: Element, To: Element>(from: &[u8], to: &mut [u8]) {
    for (from, to) in from.chunks_exact(From::SIZE).zip(to.chunks_exact_mut(To::SIZE)) {
        From::read(from).write::<To>(to);
    }
}
