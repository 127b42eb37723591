//! Scripts in the process of their caller.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_native::{
    Answer, CallError, Caller, Cancelled, Gone, Head, InProcess, Level, Method, Request, Settings,
};

use crate::support::{Compiled, Parts, built, compile, mean_in_c, running};

/// A caller that keeps what it is given.
struct Client {
    cancelled: Cancelled,
    lines: Mutex<Vec<(Level, String)>>,
    heads: Mutex<Vec<Head>>,
    received: Mutex<Vec<u8>>,
    /// Pieces that it takes before it goes.
    pieces: AtomicUsize,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            cancelled: Cancelled::No,
            lines: Mutex::default(),
            heads: Mutex::default(),
            received: Mutex::default(),
            pieces: AtomicUsize::new(usize::MAX),
        }
    }
}

impl Caller for Client {
    type Buffer = Vec<u8>;

    fn cancelled(&self) -> Cancelled {
        self.cancelled
    }

    fn log(&self, level: Level, line: &str) {
        self.lines.lock().unwrap().push((level, line.into()));
    }

    fn allocate(&self, len: usize) -> Option<Vec<u8>> {
        (len < 1 << 20).then(|| vec![0; len])
    }

    fn begin(&self, head: Head) -> Result<(), Gone> {
        self.heads.lock().unwrap().push(head);
        Ok(())
    }

    fn write(&self, piece: &[u8]) -> Result<(), Gone> {
        let left = |pieces: usize| pieces.checked_sub(1);
        self.pieces.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).map_err(|_| Gone)?;
        self.received.lock().unwrap().extend_from_slice(piece);
        Ok(())
    }
}

fn start(path: &Path) -> InProcess {
    InProcess::start(path, Settings::default(), |_, _| {}).unwrap()
}

fn post(body: &[u8]) -> Request<'_> {
    Request { method: Method::Post, id: b"the-id", query: b"", headers: &[], body, deadline: None }
}

/// Status, headers as lines, body.
fn whole(answer: Answer<Vec<u8>>) -> (u16, String, Vec<u8>) {
    let Answer::Whole(head, body) = answer else { panic!("{answer:?}") };
    let line = |(name, value): (&[u8], &[u8])| {
        format!("{}: {}\n", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
    };
    (head.status, head.headers().map(line).collect(), body.as_ref().to_vec())
}

fn run(script: &Compiled, body: &[u8]) -> Result<(u16, String, Vec<u8>), CallError> {
    start(&script.path).call(&post(body), &Client::default()).map(whole)
}

fn broken(script_run: &str) -> String {
    match run(&running(script_run), b"body") {
        Err(CallError::Broken { what }) => what,
        other => panic!("{other:?}"),
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[test]
fn the_examples_tell_the_mean() {
    let in_c = mean_in_c();
    for path in [&in_c.path, &built("libmean.so")] {
        let script = start(path);
        assert!(script.thread_safe());
        let call = |body: &[u8]| script.call(&post(body), &Client::default());
        let (status, headers, body) = whole(call(&floats(&[1.0, 2.0, 4.5])).unwrap());
        assert_eq!((status, &*headers), (200, "content-type: application/json\n"));
        assert_eq!(body, b"{\"mean\": 2.5}");
        let message = "the body must be one or more float32 values".into();
        assert_eq!(call(b"abc").unwrap_err(), CallError::Input { message });
        assert!(matches!(call(&floats(&[f32::NAN])), Err(CallError::Input { .. })));
    }
}

#[test]
fn a_script_sees_all_of_a_request() {
    let script = running(
        r#"
        char *text = malloc(4096);
        int at = snprintf(text, 4096, "%u %.*s %.*s %d", request->method,
                          (int)request->id.len, request->id.data, (int)request->query.len, request->query.data,
                          request->size == sizeof *request);
        for (size_t i = 0; i < request->header_count; i++) {
          const OutriggerHeader *header = &request->headers[i];
          at += snprintf(text + at, 4096 - at, " %.*s=%.*s", (int)header->name.len, header->name.data,
                         (int)header->value.len, header->value.data);
        }
        response->status = 201;
        response->body = (OutriggerBytes){(uint8_t *)text, at};
        response->free = free;
        response->owner = text;
        OutriggerHeader headers[] = {{TEXT("X-One"), TEXT("1")}, {TEXT("content-type"), TEXT("text/plain")}};
        static OutriggerHeader kept[2];
        memcpy(kept, headers, sizeof headers);
        response->headers = kept;
        response->header_count = 2;
        return 0;"#,
    );
    let request = Request {
        method: Method::Head,
        query: b"q=%20",
        headers: &[(b"a", b"1"), (b"a", b"\xff")],
        ..post(b"")
    };
    let (status, headers, body) = whole(start(&script.path).call(&request, &Client::default()).unwrap());
    assert_eq!((status, &*headers), (201, "X-One: 1\ncontent-type: text/plain\n"));
    assert_eq!(body, b"3 the-id q=%20 1 a=1 a=\xff");
}

#[test]
fn a_script_is_told_where_it_is_and_logs() {
    let init = r#"INIT {
        char text[256];
        int len = snprintf(text, sizeof text, "%.*s %.*s %zu\n%.*s",
                           (int)host->app_root.len, host->app_root.data,
                           (int)host->model_dir.len, host->model_dir.data, host->arg_count,
                           (int)host->args[1].len, host->args[1].data);
        host->log(host->context, 35, (OutriggerBytes){(uint8_t *)text, len});
        script->methods = 1u << OUTRIGGER_METHOD_OPTIONS;
        return 0;
    }"#;
    let run = r#"RUN {
        request->log(request->context, OUTRIGGER_LEVEL_DEBUG, TEXT("from a call"));
        request->log(request->context, 1000, (OutriggerBytes){NULL, 5});
        return 0;
    }"#;
    let compiled = compile(Parts { init, run, ..Parts::default() });
    let lines = std::sync::Arc::new(Mutex::new(Vec::new()));
    let kept = std::sync::Arc::clone(&lines);
    let settings = Settings {
        app_root: "/root".into(),
        model_dir: Some("/models".into()),
        args: vec!["a".into(), "ü".into()],
    };
    let script = InProcess::start(&compiled.path, settings, move |level, line| {
        kept.lock().unwrap().push((level, line.to_owned()));
    })
    .unwrap();
    let expected = [(Level::Warning, "/root /models 2".to_owned()), (Level::Warning, "ü".to_owned())];
    assert_eq!(*lines.lock().unwrap(), expected);
    assert_eq!(script.methods().collect::<Vec<_>>(), [Method::Options]);
    let client = Client::default();
    script.call(&post(b""), &client).unwrap();
    assert_eq!(*client.lines.lock().unwrap(), [(Level::Debug, "from a call".to_owned())]);
}

#[test]
fn a_body_is_the_scripts_until_it_is_dropped_and_the_script_lives_as_long() {
    // Freeing and shutting down are seen in the environment, which is one for the process.
    let before = r#"static uint8_t bytes[] = "abc";
        static void set(const char *name) { setenv(name, "1", 1); }
        static void done(void *owner) {
            set(owner == bytes && !getenv("NATIVE_DOWN") ? "NATIVE_FREED" : "NATIVE_BAD");
        }"#;
    let run = r#"RUN {
        response->body = (OutriggerBytes){bytes, 3};
        response->free = done;
        response->owner = bytes;
        return 0;
    }"#;
    let shutdown = r#"void outrigger_script_shutdown(void *state) { set("NATIVE_DOWN"); }"#;
    let compiled = compile(Parts { before, run, shutdown, ..Parts::default() });
    let set = |name: &str| std::env::var_os(name).is_some();
    let script = start(&compiled.path);
    let Ok(Answer::Whole(_, body)) = script.call(&post(b""), &Client::default()) else { panic!() };
    drop(script);
    assert_eq!(body.as_ref(), b"abc");
    assert!(!set("NATIVE_FREED") && !set("NATIVE_DOWN"));
    // From any thread.
    std::thread::spawn(move || drop(body)).join().unwrap();
    assert!(set("NATIVE_FREED") && set("NATIVE_DOWN") && !set("NATIVE_BAD"));
}

#[test]
fn what_has_no_free_is_copied_before_the_next_call() {
    let script = running(
        "static uint8_t one; one = request->body.data[0]; \
         response->body = (OutriggerBytes){&one, 1}; return 0;",
    );
    let script = start(&script.path);
    let call = |body| script.call(&post(body), &Client::default()).unwrap();
    let (first, second) = (call(b"a"), call(b"b"));
    assert_eq!((whole(first).2, whole(second).2), (b"a".to_vec(), b"b".to_vec()));
}

#[test]
fn a_body_can_be_built_in_the_hosts_memory() {
    let script = running(
        r#"
        uint8_t *room = request->allocate(request->context, 8);
        if (request->allocate(request->context, 1 << 20) || request->allocate(request->context, 0)) return 1;
        memcpy(room, "01234567", 8);
        response->body = (OutriggerBytes){room + 2, 3};
        for (int i = 1; i < 16; i++) if (!request->allocate(request->context, 1)) return 2;
        return request->allocate(request->context, 1) ? 3 : 0;"#,
    );
    assert_eq!(run(&script, b"").unwrap().2, b"234");
}

#[test]
fn failures_keep_apart_whose_fault_they_are() {
    let failing =
        |code: &str| run(&running(&format!("return fail(message, \"why\", {code});")), b"").unwrap_err();
    let message = || "why".to_owned();
    assert_eq!(failing("OUTRIGGER_CODE_FAILED"), CallError::Failed { message: message() });
    assert_eq!(failing("OUTRIGGER_CODE_INPUT"), CallError::Input { message: message() });
    assert_eq!(failing("99"), CallError::Failed { message: message() });
    let silent = run(&running("return 1;"), b"").unwrap_err();
    assert_eq!(silent, CallError::Failed { message: "code 1, and it does not say why".into() });
}

#[test]
fn heads_that_http_does_not_have() {
    for status in ["0", "100", "199", "600", "9999", "4294967295"] {
        let what = broken(&format!("response->status = {status}; return 0;"));
        assert_eq!(what, format!("status {status} is none of 200 to 599"));
    }
    let header = |name: &str, value: &str| {
        broken(&format!(
            "static OutriggerHeader header; header = (OutriggerHeader){{TEXT({name}), TEXT({value})}}; \
             response->headers = &header; response->header_count = 1; return 0;"
        ))
    };
    assert_eq!(header(r#""""#, r#""a""#), "`` is no name of a header");
    assert_eq!(header(r#""a b""#, r#""a""#), "`a b` is no name of a header");
    assert_eq!(header(r#""a\r\nb""#, r#""a""#), r"`a\r\nb` is no name of a header");
    for value in [r#""1\r\nx: y""#, r#""1\n""#, r#""\x00""#, r#""\x7f""#] {
        assert_eq!(header(r#""a""#, value), "the value of header `a` has control characters");
    }
    assert_eq!(
        broken(r#"response->content_type = TEXT("a\nb"); return 0;"#),
        "the value of header `content-type` has control characters"
    );
    let twice = r#"static OutriggerHeader header;
        header = (OutriggerHeader){TEXT("Content-Type"), TEXT("a/b")};
        response->headers = &header;
        response->header_count = 1;
        response->content_type = TEXT("c/d");
        return 0;"#;
    assert_eq!(broken(twice), "it has two content types");
}

#[test]
fn heads_that_are_too_long() {
    assert_eq!(broken("response->header_count = 257; return 0;"), "257 headers are more than 256");
    let long = |name: usize, value: usize| {
        running(&format!(
            "static uint8_t a[70000]; memset(a, 'a', sizeof a); static OutriggerHeader header; header = \
             (OutriggerHeader){{{{a, {name}}}, {{a, {value}}}}}; response->headers = &header; \
             response->header_count = 1; return 0;"
        ))
    };
    let what = CallError::Broken { what: "its headers have more than 65536 bytes".into() };
    assert_eq!(run(&long(1, 65536), b"").unwrap_err(), what);
    assert_eq!(run(&long(66000, 1), b"").unwrap_err(), what);
    assert_eq!(run(&long(33000, 33000), b"").unwrap_err(), what);
    // With the content type that is added it has exactly as much as it may.
    let exactly = 65536 - "content-typeapplication/octet-stream".len() - 1;
    assert!(run(&long(1, exactly), b"").is_ok());
    assert_eq!(run(&long(1, exactly + 1), b"").unwrap_err(), what);
}

#[test]
fn nulls_and_lengths_that_cannot_be() {
    assert_eq!(broken("response->header_count = 2; return 0;"), "the headers of length 2 has no address");
    assert_eq!(broken("response->body.len = 5; return 0;"), "the body of length 5 has no address");
    assert_eq!(
        broken("response->content_type.len = 5; return 0;"),
        "the content type of length 5 has no address"
    );
    let huge = "response->body = (OutriggerBytes){request->body.data, SIZE_MAX}; return 0;";
    assert_eq!(broken(huge), format!("the body cannot have a length of {}", usize::MAX));
    assert_eq!(broken("response->size = 4; return 0;"), "it changed the size of its response");
    let name = "static OutriggerHeader header; header.name.len = 3; response->headers = &header; \
                response->header_count = 1; return 0;";
    assert_eq!(broken(name), "a name of length 3 has no address");
}

#[test]
fn streams() {
    let script = start(&built("libmean.so"));
    let request = Request { method: Method::Get, query: b"count=3", ..post(b"") };
    let client = Client::default();
    assert!(matches!(script.call(&request, &client).unwrap(), Answer::Streamed));
    assert_eq!(*client.received.lock().unwrap(), b"1\n2\n3\n");
    let heads = client.heads.lock().unwrap();
    let headers: Vec<_> = heads[0].headers().collect();
    assert_eq!((heads.len(), heads[0].status), (1, 200));
    assert_eq!(headers, [(&b"content-type"[..], &b"text/plain"[..])]);
    // A client that goes is an error in the script, which it hands on.
    let going = Client { pieces: AtomicUsize::new(3), ..Client::default() };
    let error = script.call(&request, &going).unwrap_err().to_string();
    assert!(error.contains("the client has gone"), "{error}");
}

#[test]
fn streams_that_break_the_rules() {
    let client = Client::default();
    let call = |body: &str| start(&running(body).path).call(&post(b""), &client);
    // Writing before it begins, beginning twice.
    let order = r#"if (!request->write(request->context, TEXT("a"))) return 1;
        if (request->begin(request->context, response)) return 2;
        if (!request->begin(request->context, response)) return 3;
        return request->write(request->context, TEXT("b"));"#;
    assert!(matches!(call(order).unwrap(), Answer::Streamed));
    assert_eq!(*client.received.lock().unwrap(), b"b");
    // What the head is refused for becomes the call's error, whatever the script says.
    let head =
        "response->status = 1; request->begin(request->context, response); response->status = 200; return 0;";
    let what = "status 1 is none of 200 to 599".into();
    assert_eq!(call(head).unwrap_err(), CallError::Broken { what });
    let null = "request->begin(request->context, NULL); return 0;";
    let what = "a stream begins with no response".into();
    assert_eq!(call(null).unwrap_err(), CallError::Broken { what });
    assert_eq!(client.heads.lock().unwrap().len(), 1);
}

#[test]
fn cancelling_and_deadlines() {
    let script = running(
        "static uint64_t out[2]; out[0] = request->cancelled(request->context); out[1] = request->deadline; \
         response->body = (OutriggerBytes){(uint8_t *)out, 16}; return 0;",
    );
    let script = start(&script.path);
    let call = |cancelled, deadline| {
        let client = Client { cancelled, ..Client::default() };
        let body = whole(script.call(&Request { deadline, ..post(b"") }, &client).unwrap()).2;
        let word = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        (word(0), word(8))
    };
    assert_eq!(call(Cancelled::No, None), (0, 0));
    assert_eq!(call(Cancelled::ClientGone, None).0, 1);
    let now = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    };
    let hour = Duration::from_secs(3600);
    let before = now();
    let (cancelled, deadline) = call(Cancelled::OutOfTime, Some(Instant::now() + hour));
    assert_eq!(cancelled, 2);
    let hour = hour.as_nanos() as u64;
    assert!((before + hour..=now() + hour).contains(&deadline), "{deadline}");
}

#[test]
fn calls_overlap_only_if_the_script_says_so() {
    // Two calls that wait for each other would not end if they did not overlap.
    let before = "static int inside; static int most;";
    let run = r#"RUN {
        int now = __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);
        if (now > 1) __atomic_store_n(&most, now, __ATOMIC_SEQ_CST);
        if (request->body.len) while (__atomic_load_n(&most, __ATOMIC_SEQ_CST) < 2) usleep(100);
        else usleep(2000);
        __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
        response->status = 200 + __atomic_load_n(&most, __ATOMIC_SEQ_CST);
        return 0;
    }"#;
    let safe = r#"INIT {
        script->flags = OUTRIGGER_SCRIPT_THREAD_SAFE;
        return 0;
    }"#;
    let statuses = |compiled: &Compiled, body: &'static [u8]| {
        let script = start(&compiled.path);
        let call = || whole(script.call(&post(body), &Client::default()).unwrap()).0;
        std::thread::scope(|scope| {
            [scope.spawn(call), scope.spawn(call)].map(|thread| thread.join().unwrap())
        })
    };
    let one_by_one = compile(Parts { before, run, ..Parts::default() });
    assert_eq!(statuses(&one_by_one, b""), [200, 200]);
    let at_once = compile(Parts { before, run, init: safe, ..Parts::default() });
    assert_eq!(statuses(&at_once, b"wait"), [202, 202]);
}
