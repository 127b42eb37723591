//! Bodies and answers in shared memory.

use std::os::fd::AsFd;

use outrigger_regions::{Region, send_region};

use crate::support::{Call, Options, Worker, built, kind, running};

const REGIONS: Options =
    Options { max_payload: 1 << 30, window: 1 << 30, region_threshold: 1000, regions: 2 };
const ECHO: &str = "response->body = request->body; return 0;";

#[test]
fn bodies_come_in_the_runtimes_regions() {
    let script = running(ECHO);
    let mut worker = Worker::ready(&script.path, Options { region_threshold: 0, ..REGIONS });
    let mut region = Region::create(8192).unwrap();
    region.bytes_mut()[100..105].copy_from_slice(b"hello");
    // Handed over before it is needed; one that is never referred to does not matter.
    let other = Region::create(4096).unwrap();
    worker.share(5, &other);
    worker.share(9, &region);
    let call = Call { query: "q", headers: &[("a", "b")], ..Call::default() };
    worker.call_in_region(1, call, 9, 100, 5);
    let reply = worker.reply(1);
    assert_eq!((&*reply.rest, reply.region), (&b"hello"[..], None));
    let release = worker.receive().unwrap();
    assert_eq!((release.kind, release.id, release.payload.len()), (kind::RELEASE, 9, 0));
    // Released, so it may be written and used again, and is known by its number.
    region.bytes_mut()[0..3].copy_from_slice(b"new");
    worker.call_in_region(2, call, 9, 0, 3);
    assert_eq!(worker.reply(2).rest, b"new");
    worker.next(kind::RELEASE);
    worker.call_in_region(3, call, 9, 8192, 0);
    assert_eq!(worker.reply(3).rest, b"");
    worker.next(kind::RELEASE);
    // Retired: the number means nothing any more.
    worker.send(kind::FORGET, 0, 9, &[]);
    worker.call_in_region(4, call, 9, 0, 3);
    let (code, err) = worker.exit_code();
    assert_eq!(code, 1);
    assert!(err.contains("region 9, which was not sent"), "{err}");
}

#[test]
fn each_call_that_waits_keeps_its_region() {
    let script = running(ECHO);
    let mut worker = Worker::ready(&script.path, Options { region_threshold: 0, ..REGIONS });
    let mut region = Region::create(4096).unwrap();
    region.bytes_mut()[..4].copy_from_slice(b"abcd");
    worker.share(1, &region);
    worker.call_in_region(1, Call::default(), 1, 0, 2);
    worker.call_in_region(2, Call::default(), 1, 2, 2);
    // Retired with views left: they are the reader's to use.
    worker.send(kind::FORGET, 0, 1, &[]);
    for (id, body) in [(1, b"ab"), (2, b"cd")] {
        assert_eq!(worker.reply(id).rest, body);
        assert_eq!(worker.next(kind::RELEASE).id, 1);
    }
}

#[test]
fn what_is_no_region_ends_the_worker() {
    let script = running(ECHO);
    let ends = |offset: u64, size: u64, announced: u64, part: &str| {
        let mut worker = Worker::ready(&script.path, REGIONS);
        let region = Region::create(4096).unwrap();
        send_region(worker.regions.as_fd(), 1, announced, region.fd()).unwrap();
        worker.call_in_region(1, Call::default(), 1, offset, size);
        let (code, err) = worker.exit_code();
        assert_eq!(code, 1);
        assert!(err.contains(part), "{err}");
    };
    ends(0, 4097, 4096, "not inside its region");
    ends(u64::MAX, 1, 4096, "not inside its region");
    ends(0, 1, 4097, "region 1 cannot be mapped");
}

#[test]
fn more_regions_than_a_worker_can_hold() {
    let script = running("return 0;");
    let mut worker = Worker::ready(&script.path, REGIONS);
    for number in 0..4096 {
        worker.share(number, &Region::create(1).unwrap());
        worker.call_in_region(number.into(), Call::default(), number, 0, 1);
        worker.reply(number.into());
        worker.next(kind::RELEASE);
    }
    // One that is forgotten makes place for another.
    worker.send(kind::FORGET, 0, 7, &[]);
    for number in [4096, 4097] {
        worker.share(number, &Region::create(1).unwrap());
        worker.call_in_region(number.into(), Call::default(), number, 0, 1);
        if number == 4096 {
            worker.reply(number.into());
            worker.next(kind::RELEASE);
        }
    }
    let (code, err) = worker.exit_code();
    assert_eq!(code, 1);
    assert!(err.contains("more regions than a worker can hold"), "{err}");
}

#[test]
fn large_answers_go_into_regions_which_are_used_again() {
    let script = running(ECHO);
    let mut worker = Worker::ready(&script.path, REGIONS);
    let call = |worker: &mut Worker, id: u64, size: usize| {
        let body = vec![id as u8; size];
        worker.call(id, Call { body: &body, ..Call::default() });
        let reply = worker.reply(id);
        assert!(reply.rest == body);
        reply.region
    };
    assert_eq!(call(&mut worker, 1, 999), None, "below the threshold");
    let first = call(&mut worker, 2, 1000).unwrap();
    let second = call(&mut worker, 3, 70_000).unwrap();
    assert_ne!(first, second);
    // Both are out, and there may be no more.
    assert_eq!(call(&mut worker, 4, 70_000), None);
    worker.send(kind::RELEASE, 0, second.into(), &[]);
    assert_eq!(call(&mut worker, 5, 70_000), Some(second));
    assert_eq!(worker.mapped.len(), 2);
    // One that is too small makes place for a larger one.
    worker.send(kind::RELEASE, 0, first.into(), &[]);
    let third = call(&mut worker, 6, 1_000_000).unwrap();
    assert!(![first, second].contains(&third));
    let forget = worker.receive().unwrap();
    assert_eq!((forget.kind, forget.id), (kind::FORGET, first.into()));
}

#[test]
fn an_answer_that_is_built_in_place_is_sent_from_there() {
    let script = running(
        r#"
        uint8_t *room = request->allocate(request->context, 5000);
        memcpy(room + 1000, "in place", 8);
        response->body = (OutriggerBytes){room + 1000, 8};
        /* One that is not sent goes back. */
        request->allocate(request->context, 5000);
        return 0;"#,
    );
    let mut worker = Worker::ready(&script.path, REGIONS);
    for id in 0..10 {
        worker.call(id, Call::default());
        let reply = worker.reply(id);
        assert_eq!(reply.rest, b"in place");
        // Below the threshold, and yet in a region: it is there already.
        worker.send(kind::RELEASE, 0, reply.region.unwrap().into(), &[]);
    }
    assert!(worker.mapped.len() <= 2);
}

#[test]
fn a_script_in_rust_builds_its_answer_in_place_too() {
    let mut worker = Worker::ready(&built("libmean.so"), REGIONS);
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>();
    let values = floats(&[1.0, 2.0, 6.0].repeat(100));
    worker.call(1, Call { query: "running", body: &values, ..Call::default() });
    let reply = worker.reply(1);
    assert!(reply.region.is_some() && reply.rest.len() == 1200);
    assert_eq!(reply.rest[..12], floats(&[1.0, 1.5, 3.0]));
    assert!(reply.message.contains("x-values300"), "{}", reply.message);
    // Below the threshold it is the worker's own memory.
    worker.call(2, Call { query: "running", body: &values[..8], ..Call::default() });
    let reply = worker.reply(2);
    assert_eq!((reply.region, reply.rest), (None, floats(&[1.0, 1.5])));
}

#[test]
fn pieces_of_a_stream_go_into_regions_too() {
    let script = running(
        "request->begin(request->context, response); return request->write(request->context, request->body);",
    );
    let mut worker = Worker::ready(&script.path, REGIONS);
    let body = vec![7; 100_000];
    worker.call(1, Call { body: &body, ..Call::default() });
    worker.reply(1);
    let chunk = worker.next(kind::CHUNK);
    assert!(chunk.payload == body && chunk.region.is_some());
    worker.next(kind::END).reply(1);
}
