//! What a child may say that is not so: each is found out, and nothing of it reaches a caller.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use outrigger_backend::conformance::fp32;
use outrigger_backend::{DataType, Shape};
use outrigger_regions::Region;
use rustix::net::SendFlags;

use super::connection::Connection;
use super::options::Limits;
use super::results::Came;
use super::trouble::Trouble;
use crate::frame::{self, Announced, At, Given, Head, Infer, Kind};
use crate::patience::Forever;
use crate::socket::{self, Inbox};
use crate::wire::Put;

/// What becomes of a run to which a child answers with these bytes and descriptors.
fn answered(
    answer: impl FnOnce(u64) -> Vec<u8> + Send,
    files: &[BorrowedFd<'_>],
) -> Result<Vec<Came>, Trouble> {
    let (ours, theirs) = socket::pair().unwrap();
    let mut connection = Connection::new(Arc::new(ours), Duration::ZERO);
    let limits = Limits { call_bytes: 1 << 20, ..Limits::default() };
    let input = [fp32(&[2], &[1., 2.])];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut inbox = Inbox::default();
            let (_, number) = inbox.receive(&theirs, &Forever).unwrap();
            let bytes = answer(number);
            socket::send(&theirs, &bytes, files, SendFlags::empty()).unwrap();
        });
        let laid = connection.lay(&input, &limits, &[]).unwrap();
        connection.send_tensors(Kind::Infer, 5, laid, &Forever, |sent, out| {
            Infer::write(1, None, sent, &[], out);
        })?;
        connection.take_tensors(1, &limits)
    })
}

fn done(number: u64, given: &Given, inline: &[u8]) -> Vec<u8> {
    with_files(number, given, inline, given.regions.len())
}

fn with_files(number: u64, given: &Given, inline: &[u8], files: usize) -> Vec<u8> {
    let mut out = Vec::new();
    frame::begin(&mut out, Kind::Done, number);
    given.put(&mut out);
    out.put(inline);
    frame::finish(&mut out, files).unwrap();
    out
}

fn head(extents: &[i64], at: At) -> Head {
    Head { data_type: DataType::Fp32, shape: Shape::new(extents).unwrap(), at }
}

fn of(tensors: Vec<Head>, regions: Vec<Announced>) -> Given {
    Given { tensors, regions, ..Given::default() }
}

fn found_out(result: Result<Vec<Came>, Trouble>, why: &str) {
    match result {
        Err(Trouble::Protocol(text)) => assert!(text.contains(why), "{text}"),
        Err(trouble) => panic!("{why}: {trouble:?}"),
        Ok(_) => panic!("{why}: it was believed"),
    }
}

#[test]
fn the_truth_is_believed() {
    let region = Region::create(4096).unwrap();
    let at = At::Region { number: 3, offset: 64, len: 8 };
    let given = of(vec![head(&[2], at)], vec![Announced { number: 3, size: 4096, stays: true }]);
    let came = answered(|number| done(number, &given, &[]), &[region.fd()]).unwrap();
    assert!(matches!(&came[..], [Came::Host(tensor)] if tensor.data().len() == 8));
    let given = of(vec![head(&[2], At::Inline { len: 8 })], vec![]);
    assert!(answered(|number| done(number, &given, &[0; 8]), &[]).is_ok());
}

#[test]
fn places_outside_of_their_region() {
    let region = Region::create(4096).unwrap();
    for (offset, number) in [(4089, 3), (u64::MAX - 3, 3), (4096, 3), (0, 4)] {
        let at = At::Region { number, offset, len: 8 };
        let given = of(vec![head(&[2], at)], vec![Announced { number: 3, size: 4096, stays: true }]);
        found_out(answered(|number| done(number, &given, &[]), &[region.fd()]), "are not inside region");
    }
}

#[test]
fn regions_that_are_none() {
    let region = Region::create(4096).unwrap();
    let given = |size| {
        let at = At::Region { number: 3, offset: 0, len: 8 };
        of(vec![head(&[2], at)], vec![Announced { number: 3, size, stays: true }])
    };
    let (wrong, huge) = (given(8192), given(1 << 40));
    found_out(
        answered(|number| done(number, &wrong, &[]), &[region.fd()]),
        "announced with 8192 bytes and has 4096",
    );
    found_out(answered(|number| done(number, &huge, &[]), &[region.fd()]), "is over the limit");
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let good = given(4096);
    found_out(answered(|number| done(number, &good, &[]), &[null.as_fd()]), "not a memfd");
    found_out(answered(|number| done(number, &good, &[]), &[]), "are not as many as it says");
    found_out(
        answered(|number| with_files(number, &good, &[], 0), &[]),
        "regions and descriptors are not as many",
    );
    let twice = of(vec![], vec![Announced { number: 3, size: 4096, stays: true }; 2]);
    let mut twice = twice;
    twice.tensors = good.tensors.clone();
    found_out(answered(|number| done(number, &twice, &[]), &[region.fd(), region.fd()]), "a region too many");
}

#[test]
fn tensors_of_another_size_or_count() {
    let claim = |extents: &[i64], len| of(vec![head(extents, At::Inline { len })], vec![]);
    let huge = claim(&[1_000_000_000], 4_000_000_000);
    found_out(
        answered(|number| done(number, &huge, &[]), &[]),
        "results of 4000000000 bytes are over the limit",
    );
    let short = claim(&[2], 4);
    found_out(answered(|number| done(number, &short, &[0; 4]), &[]), "was announced, its shape takes 8");
    let absent = claim(&[2], 8);
    found_out(answered(|number| done(number, &absent, &[0; 7]), &[]), "ends early");
    found_out(answered(|number| done(number, &absent, &[0; 9]), &[]), "goes on after its end");
    found_out(answered(|number| done(number, &Given::default(), &[]), &[]), "0 results for 1 outputs");
}

#[test]
fn frames_that_are_none() {
    let good = of(vec![head(&[2], At::Inline { len: 8 })], vec![]);
    found_out(answered(|number| done(number + 1, &good, &[0; 8]), &[]), "what was not asked");
    let with = |at: usize, byte: u8| {
        move |number| {
            let mut out = done(number, &of(vec![head(&[2], At::Inline { len: 8 })], vec![]), &[0; 8]);
            out[at] = byte;
            out
        }
    };
    found_out(answered(with(3, 0xff), &[]), "over the limit");
    found_out(answered(with(4, 99), &[]), "kind of frame 99");
    found_out(answered(with(4, Kind::Infer as u8), &[]), "an answer of kind Infer");
    found_out(answered(with(5, 1), &[]), "are not as many as it says");
    found_out(answered(with(5, 9), &[]), "too large");
}
