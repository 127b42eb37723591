//! The worker process, its runtime played by the test.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Call, Options, Parts, Worker, built, compile, kind, mean_in_c, running};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[test]
fn it_starts_answers_and_ends_in_order() {
    let script = mean_in_c();
    let mut worker = Worker::start(&script.path, Options::default());
    let phase = worker.receive().unwrap();
    assert_eq!((phase.kind, phase.id, phase.text()), (kind::PHASE, 0, "init"));
    let log = worker.receive().unwrap();
    assert_eq!((log.kind, log.id), (kind::LOG, 0));
    assert_eq!(log.payload[..8], [20, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&log.payload[8..], b"ready for float32 values");
    let ready = worker.receive().unwrap();
    assert_eq!((ready.kind, ready.id), (kind::READY, 0));
    let expected = serde_json::json!({
        "mode": "native", "kind": "sync", "headers": "all", "methods": ["GET", "POST"], "python": "",
        "script": script.path, "swagger": null, "sample": null,
    });
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&ready.payload).unwrap(), expected);
    // Several calls may lie in the socket; they are answered in order.
    for id in [7, 8] {
        worker.call(id, Call { body: &floats(&[id as f32, 1.0]), ..Call::default() });
    }
    worker.call(9, Call::default());
    for (id, mean) in [(7, "4"), (8, "4.5")] {
        let reply = worker.reply(id);
        assert_eq!((reply.outcome, reply.flags, reply.status), (4, 0, 200));
        assert_eq!(reply.message, "\u{c}\0\u{10}\0content-typeapplication/json");
        assert_eq!(String::from_utf8(reply.rest).unwrap(), format!("{{\"mean\": {mean}}}"));
    }
    let reply = worker.reply(9);
    assert_eq!((reply.outcome, reply.status), (2, 400));
    assert_eq!(reply.message, "the body must be one or more float32 values");
    worker.close();
    assert_eq!(worker.exit_code(), (0, String::new()));
}

#[test]
fn shutdown_and_exit_handlers_run_and_output_comes_by_the_line() {
    let before = "static void at_exit(void) { fputs(\"exit handler\\n\", stderr); }";
    let run = r#"RUN {
        atexit(at_exit);
        puts("a line");
        /* A worker that is killed has written it all the same. */
        if (request->body.len) raise(SIGKILL);
        return 0;
    }"#;
    let shutdown = "void outrigger_script_shutdown(void *state) { fputs(\"shutdown\\n\", stderr); }";
    let script = compile(Parts { before, run, shutdown, ..Parts::default() });
    let mut worker = Worker::ready(&script.path, Options::default());
    worker.call(1, Call::default());
    worker.reply(1);
    worker.close();
    let (status, out, err) = worker.wait();
    assert_eq!((status.code(), &*out, &*err), (Some(0), "a line\n", "shutdown\nexit handler\n"));
    let mut worker = Worker::ready(&script.path, Options::default());
    worker.call(1, Call { body: b"x", ..Call::default() });
    let (status, out, _) = worker.wait();
    assert_eq!((status.signal(), &*out), (Some(libc::SIGKILL), "a line\n"));
}

#[test]
fn what_does_not_load_is_failed_and_exit_code_3() {
    let failed = |path: &Path, phase: &str, part: &str| {
        let mut worker = Worker::start(path, Options::default());
        let failed = worker.next(kind::FAILED);
        let failed: serde_json::Value = serde_json::from_slice(&failed.payload).unwrap();
        assert_eq!((&failed["phase"], &failed["traceback"]), (&phase.into(), &"".into()));
        assert!(failed["message"].as_str().unwrap().contains(part), "{failed}");
        assert_eq!(worker.exit_code().0, 3);
    };
    failed(Path::new("/nowhere/at/all.so"), "import", "/nowhere/at/all.so");
    let without = compile(Parts { run: "", ..Parts::default() });
    failed(&without.path, "import", "outrigger_script_run");
    let init = "INIT { return fail(message, \"no model\", 1); }";
    failed(&compile(Parts { init, ..Parts::default() }).path, "init", "failed: no model");
}

#[test]
fn a_worker_that_nobody_started_says_so() {
    let run = |variables: &[(&str, &str)]| {
        let mut command = Command::new(built("native_worker"));
        command.env_remove("OUTRIGGER_WORKER_FD").env_remove("OUTRIGGER_REGIONS_FD");
        let output = command.envs(variables.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (value, part) in [("x", "`x`, not a number"), ("1", "no socket"), ("777", "not open")] {
        let (code, err) = run(&[("OUTRIGGER_WORKER_FD", value), ("OUTRIGGER_REGIONS_FD", value)]);
        assert_eq!(code, Some(2));
        assert!(err.contains("started by the runtime") && err.contains(part), "{err}");
    }
    assert_eq!(run(&[]).0, Some(2));
}

#[test]
fn a_runtime_that_breaks_the_protocol_is_exit_code_1() {
    let script = mean_in_c();
    let broken = |kind: u8, flags: u8, payload: &[u8], part: &str| {
        let mut worker = Worker::ready(&script.path, Options::default());
        worker.send(kind, flags, 1, payload);
        let (code, err) = worker.exit_code();
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(part), "{err}");
    };
    broken(99, 0, b"", "unknown kind");
    broken(kind::START, 0, b"{}", "a Start frame");
    broken(kind::READY, 0, b"", "a Ready frame");
    broken(kind::CALL, 0, &[0; 23], "ends early");
    broken(kind::CALL, 0, &[4; 24], "unknown method");
    let mut parts = [0; 24];
    parts[2] = 1;
    broken(kind::CALL, 0, &parts, "do not add up");
    // A header block of three bytes.
    let mut block = [0; 27];
    block[8] = 3;
    broken(kind::CALL, 0, &block, "ends early");
    broken(kind::CALL, 1, &[0; 23], "ends early");
    broken(kind::CALL, 1, &[0; 48], "region 0, which was not sent");
    broken(kind::CANCEL, 0, &[], "ends early");
    broken(kind::CANCEL, 0, &[3], "unknown reason");
    broken(kind::CREDIT, 0, &[0; 7], "ends early");
    let mut worker = Worker::spawn();
    worker.send(kind::CALL, 0, 1, &[0; 24]);
    assert_eq!(worker.exit_code().0, 1);
    let mut worker = Worker::spawn();
    worker.send(kind::START, 0, 0, b"{");
    assert_eq!(worker.exit_code().0, 1);
}

#[test]
fn a_crash_and_an_endless_loop_leave_a_native_stack() {
    let crash = running("*(volatile int *)8 = 1; return 0;");
    let mut worker = Worker::ready(&crash.path, Options::default());
    worker.call(1, Call::default());
    let (status, _, err) = worker.wait();
    assert_eq!(status.signal(), Some(libc::SIGSEGV));
    assert!(
        err.starts_with("native worker: signal 11 in outrigger_script_run; the native stack:\n"),
        "{err}"
    );
    let endless = running(
        "request->log(request->context, 20, TEXT(\"begun\")); volatile int on = 1; while (on) {} return 0;",
    );
    let mut worker = Worker::ready(&endless.path, Options::default());
    worker.call(1, Call::default());
    worker.next(kind::LOG);
    worker.signal(libc::SIGTERM);
    let (status, _, err) = worker.wait();
    assert_eq!(status.signal(), Some(libc::SIGTERM));
    assert!(err.starts_with("native worker: signal 15 in outrigger_script_run"), "{err}");
    if cfg!(target_env = "gnu") {
        assert!(err.contains("libscript.so(outrigger_script_run+"), "{err}");
    }
    let worker = Worker::ready(&endless.path, Options::default());
    // Ctrl-C on a terminal reaches the whole group.
    worker.signal(libc::SIGINT);
    worker.signal(libc::SIGTERM);
    let (status, _, err) = worker.wait();
    assert_eq!(status.signal(), Some(libc::SIGTERM));
    assert!(err.starts_with("native worker: signal 15 between calls"), "{err}");
}

#[test]
fn failures_and_logs_belong_to_their_call() {
    let script = running(
        r#"
        request->log(request->context, 41, TEXT("one\ntwo"));
        if (request->body.len == 1) return fail(message, "it broke", 1);
        response->status = 0;
        return 0;"#,
    );
    let mut worker = Worker::ready(&script.path, Options::default());
    worker.call(5, Call { body: b"x", ..Call::default() });
    for line in ["one", "two"] {
        let log = worker.receive().unwrap();
        assert_eq!(
            (log.kind, log.id, log.payload[0], &log.payload[8..]),
            (kind::LOG, 5, 40, line.as_bytes())
        );
    }
    let reply = worker.reply(5);
    assert_eq!((reply.outcome, reply.flags, &*reply.message), (1, 1, "it broke"));
    worker.call(6, Call::default());
    let reply = worker.reply(6);
    assert_eq!(reply.outcome, 1);
    assert_eq!(reply.message, "the script broke the ABI: status 0 is none of 200 to 599");
}

#[test]
fn long_lines_of_the_log_are_cut() {
    let script = running(
        "static uint8_t a[10000]; memset(a, 'a', sizeof a); request->log(request->context, 20, \
         (OutriggerBytes){a, sizeof a}); return 0;",
    );
    let mut worker = Worker::ready(&script.path, Options::default());
    worker.call(1, Call::default());
    assert_eq!(worker.next(kind::LOG).payload.len(), 8 + 8192);
}

#[test]
fn a_longer_answer_than_the_runtime_takes_is_not_sent() {
    let script = running("response->body = request->body; return 0;");
    let options = Options { max_payload: 1000, ..Options::default() };
    let mut worker = Worker::ready(&script.path, options);
    // 16 bytes, and the default content type.
    let most = 1000 - 16 - (4 + "content-typeapplication/octet-stream".len());
    worker.call(1, Call { body: &vec![b'a'; most], ..Call::default() });
    assert_eq!(worker.reply(1).rest.len(), most);
    worker.call(2, Call { body: &vec![b'a'; most + 1], ..Call::default() });
    let reply = worker.reply(2);
    assert_eq!(reply.outcome, 3);
    assert_eq!(reply.message, "the answer has 1001 bytes with its headers, the limit is 1000");
}

#[test]
fn bodies_of_all_sizes_cross() {
    let script = running("response->body = request->body; return 0;");
    let mut worker = Worker::ready(&script.path, Options::default());
    for (id, size) in [0, 1, 65_000, 65_536, 70_000, 5_000_000].into_iter().enumerate() {
        let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let id = id as u64;
        let headers = &[("a", "1"), ("b", "2")];
        // The worker reads it all before it answers.
        worker.call(id, Call { body: &body, query: "q", headers, ..Call::default() });
        assert!(worker.reply(id).rest == body, "{size}");
    }
}

#[test]
fn streams_wait_for_credit() {
    let script = built("libmean.so");
    let mut worker = Worker::ready(&script, Options { window: 5, ..Options::default() });
    worker.call(3, Call { method: 0, query: "count=9", ..Call::default() });
    let head = worker.reply(3);
    assert_eq!((head.outcome, head.status, head.rest.len()), (5, 200, 0));
    assert_eq!(head.message, "\u{c}\0\u{a}\0content-typetext/plain");
    let chunk = |worker: &mut Worker| {
        let chunk = worker.next(kind::CHUNK);
        assert_eq!(chunk.id, 3);
        String::from_utf8(chunk.payload).unwrap()
    };
    let all = |worker: &mut Worker, mut bytes: usize| {
        let mut text = String::new();
        while bytes > 0 {
            let piece = chunk(worker);
            bytes = bytes.checked_sub(piece.len()).expect("no more than there is credit for");
            text += &piece;
        }
        text
    };
    // Five bytes, and then none: what comes next is the answer to a frame that is sent now.
    assert_eq!(all(&mut worker, 5), "1\n2\n3");
    // Credit for another call is none.
    worker.send(kind::CREDIT, 0, 4, &100u64.to_le_bytes());
    worker.send(kind::CREDIT, 0, 3, &1u64.to_le_bytes());
    assert_eq!(all(&mut worker, 1), "\n");
    worker.send(kind::CREDIT, 0, 3, &100u64.to_le_bytes());
    assert_eq!(all(&mut worker, 12), "4\n5\n6\n7\n8\n9\n");
    let end = worker.next(kind::END).reply(3);
    assert_eq!((end.outcome, &*end.message), (0, ""));
    // The next call begins with a window of its own.
    worker.call(4, Call { method: 0, query: "count=2", ..Call::default() });
    worker.reply(4);
    assert_eq!(worker.next(kind::CHUNK).payload, b"1");
}

#[test]
fn a_stream_that_is_cancelled_or_fails_ends_with_end() {
    let mut worker = Worker::ready(&built("libmean.so"), Options { window: 4, ..Options::default() });
    worker.call(3, Call { method: 0, query: "count=9", ..Call::default() });
    worker.reply(3);
    worker.send(kind::CANCEL, 0, 3, &[1]);
    let end = loop {
        let frame = worker.receive().unwrap();
        if frame.kind != kind::CHUNK {
            break frame;
        }
    };
    let end = end.reply(3);
    assert_eq!(end.outcome, 1);
    assert_eq!(&*end.message, "cancelled");
    worker.call(4, Call { body: &floats(&[3.0]), ..Call::default() });
    assert_eq!(worker.reply(4).rest, b"{\"mean\": 3}");
    let failing =
        running("request->begin(request->context, response); return fail(message, \"half way\", 1);");
    let mut worker = Worker::ready(&failing.path, Options::default());
    worker.call(1, Call::default());
    worker.reply(1);
    let end = worker.next(kind::END).reply(1);
    assert_eq!((end.outcome, end.flags, &*end.message), (1, 1, "half way"));
}

#[test]
fn a_cancelled_call_knows_and_one_that_waits_is_not_begun() {
    let script = running(
        "request->log(request->context, 20, TEXT(\"begun\")); \
         while (!request->cancelled(request->context)) usleep(100); \
         return request->cancelled(request->context) == OUTRIGGER_CANCELLED_OUT_OF_TIME ? 0 : 1;",
    );
    let mut worker = Worker::ready(&script.path, Options::default());
    worker.call(1, Call::default());
    worker.call(2, Call::default());
    assert_eq!(worker.next(kind::LOG).id, 1);
    // Of a call that is not there it means nothing.
    worker.send(kind::CANCEL, 0, 77, &[1]);
    worker.send(kind::CANCEL, 0, 2, &[1]);
    worker.send(kind::CANCEL, 0, 1, &[2]);
    for id in [1, 2] {
        // Nothing is logged, so the second was not begun.
        let frame = worker.receive().unwrap();
        assert_eq!(frame.kind, kind::REPLY, "{frame:?}");
        assert_eq!(frame.reply(id).outcome, 6);
    }
}

#[test]
fn more_calls_than_a_worker_can_hold() {
    let script = running("while (!request->cancelled(request->context)) usleep(100); return 0;");
    // One that runs, and as many as may wait.
    let holding = || {
        let mut worker = Worker::ready(&script.path, Options::default());
        (0..=1024).for_each(|id| worker.call(id, Call::default()));
        worker
    };
    let mut worker = holding();
    // The one that runs comes last: until then nothing is answered, which nobody would read.
    (0..=1024).rev().for_each(|id| worker.send(kind::CANCEL, 0, id, &[1]));
    (0..=1024).for_each(|id| assert_eq!(worker.reply(id).outcome, 6));
    let mut worker = holding();
    worker.call(1025, Call::default());
    let (code, err) = worker.exit_code();
    assert_eq!(code, 1);
    assert!(err.contains("more calls than a worker can hold"), "{err}");
}

#[test]
fn a_runtime_that_goes_ends_a_call_that_asks() {
    let script = running(
        "request->log(request->context, 20, TEXT(\"begun\")); \
         while (!request->cancelled(request->context)) usleep(100); \
         return 0;",
    );
    let mut worker = Worker::ready(&script.path, Options::default());
    worker.call(1, Call::default());
    worker.next(kind::LOG);
    worker.close();
    assert_eq!(worker.exit_code().0, 0);
}

#[test]
fn the_deadline_counts_from_the_begin_of_the_call() {
    let script = running(
        r#"
        static uint64_t left; struct timespec { long s, n; } now; extern int clock_gettime(int, void *);
        clock_gettime(1, &now);
        left = request->deadline ? request->deadline - (now.s * 1000000000ull + now.n) : 0;
        response->body = (OutriggerBytes){(uint8_t *)&left, 8};
        return 0;"#,
    );
    let mut worker = Worker::ready(&script.path, Options::default());
    let hour = Duration::from_secs(3600);
    for (id, limit) in [(1, Duration::ZERO), (2, hour)] {
        worker.call(id, Call { limit, ..Call::default() });
        let left = u64::from_ne_bytes(worker.reply(id).rest.try_into().unwrap());
        assert!(left <= limit.as_nanos() as u64);
        assert_eq!(left > 0, id == 2);
    }
}

#[test]
fn a_fork_is_noticed_by_both_sides() {
    let script = running(
        r#"
        uint8_t *room = request->allocate(request->context, 100000);
        response->body = (OutriggerBytes){room, 100000};
        if (request->body.len && fork() == 0) {
          /* The child has the parent's sockets and must not use them. */
          request->log(request->context, 20, TEXT("from the child"));
          if (!request->cancelled(request->context)) abort();
          return 0;
        }
        return 0;"#,
    );
    let options = Options { region_threshold: 65536, ..Options::default() };
    let mut worker = Worker::ready(&script.path, options);
    worker.call(1, Call::default());
    let first = worker.reply(1).region.unwrap();
    worker.send(kind::RELEASE, 0, first.into(), &[]);
    worker.call(2, Call { body: b"fork", ..Call::default() });
    let leave = worker.receive().unwrap();
    assert_eq!((leave.kind, leave.id), (kind::LEAVE, 0), "{leave:?}");
    // What the child has too is sent and then forgotten.
    assert_eq!(worker.reply(2).region, Some(first));
    let forget = worker.receive().unwrap();
    assert_eq!((forget.kind, forget.id), (kind::FORGET, first.into()));
    worker.call(3, Call::default());
    assert_ne!(worker.reply(3).region, Some(first));
    worker.close();
    let (code, err) = worker.exit_code();
    assert_eq!(code, 0);
    assert_eq!(err, "a process forked by the script returned from outrigger_script_run; it ends here\n");
}
