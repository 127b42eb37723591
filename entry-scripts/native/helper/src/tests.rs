//! The macro's functions, called as a host does.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::export::{abi, init, run, shutdown};
use crate::{Error, Host, Method, Request, Response, Script};

static ENDED: AtomicUsize = AtomicUsize::new(0);

struct Tested;

impl Script for Tested {
    const METHODS: &'static [Method] = &[Method::Post, Method::Head];

    fn init(host: &Host<'_>) -> Result<Self, Error> {
        match host.args().next() {
            Some("panic") => panic!("at the start"),
            Some(other) => Err(Error::failed(format!("no `{other}`"))),
            None => Ok(Self),
        }
    }

    fn run(&self, request: &Request<'_>) -> Result<Response, Error> {
        match request.body() {
            b"panic" => panic!("in the middle"),
            b"error" => {
                "x".parse::<u32>()?;
                unreachable!()
            }
            b"input" => Err(Error::input("yours")),
            b"long" => Err(Error::failed("ü".repeat(10_000))),
            body => Ok(Response::new("text/plain", Counted(body.to_vec())).header("a", "b")),
        }
    }

    fn shutdown(self) {
        ENDED.fetch_add(1, Ordering::SeqCst);
        panic!("at the end");
    }
}

/// A body that notices its end.
struct Counted(Vec<u8>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        FREED.fetch_add(1, Ordering::SeqCst);
    }
}

static FREED: AtomicUsize = AtomicUsize::new(0);

struct Room(Vec<u8>, abi::Message);

impl Room {
    fn new() -> Self {
        let mut data = vec![0; 16_384];
        let message = abi::Message { data: data.as_mut_ptr(), capacity: data.len(), len: 0 };
        Self(data, message)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.0[..self.1.len]).unwrap()
    }
}

fn start(args: &[&str]) -> Result<abi::Script, (i32, String)> {
    let args: Vec<abi::Bytes> = args.iter().map(|arg| abi::Bytes::of(arg.as_bytes())).collect();
    let host = abi::Host {
        size: size_of::<abi::Host>(),
        major: abi::MAJOR,
        minor: abi::MINOR,
        app_root: abi::Bytes::NONE,
        model_dir: abi::Bytes::NONE,
        args: args.as_ptr(),
        arg_count: args.len(),
        context: null_mut(),
        log: None,
    };
    let mut script = abi::Script { size: size_of::<abi::Script>(), state: null_mut(), flags: 0, methods: 0 };
    let mut room = Room::new();
    // SAFETY: as the ABI has it.
    match unsafe { init::<Tested>(&raw const host, &raw mut script, &raw mut room.1) } {
        abi::CODE_OK => Ok(script),
        code => Err((code, room.text().into())),
    }
}

fn call(state: *mut c_void, body: &[u8]) -> Result<abi::Response, (i32, String)> {
    let request = abi::Request {
        size: size_of::<abi::Request>(),
        method: abi::METHOD_POST,
        reserved: 0,
        id: abi::Bytes::NONE,
        query: abi::Bytes::NONE,
        headers: std::ptr::null(),
        header_count: 0,
        body: abi::Bytes::of(body),
        deadline: 0,
        context: null_mut(),
        cancelled: None,
        log: None,
        allocate: None,
        begin: None,
        write: None,
    };
    let mut response = abi::Response::EMPTY;
    let mut room = Room::new();
    // SAFETY: as the ABI has it.
    match unsafe { run::<Tested>(state, &raw const request, &raw mut response, &raw mut room.1) } {
        abi::CODE_OK => Ok(response),
        code => Err((code, room.text().into())),
    }
}

#[test]
fn errors_and_panics_stop_at_the_boundary() {
    assert_eq!(start(&["x"]).unwrap_err(), (abi::CODE_FAILED, "no `x`".into()));
    assert_eq!(start(&["panic"]).unwrap_err(), (abi::CODE_FAILED, "panicked: at the start".into()));
    let script = start(&[]).unwrap();
    assert_eq!(script.flags, abi::SCRIPT_THREAD_SAFE);
    assert_eq!(script.methods, 1 << abi::METHOD_POST | 1 << abi::METHOD_HEAD);
    let failed = |body| call(script.state, body).unwrap_err();
    assert_eq!(failed(b"panic"), (abi::CODE_FAILED, "panicked: in the middle".into()));
    assert_eq!(failed(b"error"), (abi::CODE_FAILED, "invalid digit found in string".into()));
    assert_eq!(failed(b"input"), (abi::CODE_INPUT, "yours".into()));
    // Cut between characters where the room ends.
    assert_eq!(failed(b"long"), (abi::CODE_FAILED, "ü".repeat(8192)));
    let response = call(script.state, b"body").unwrap();
    // SAFETY: the response's own, not freed yet.
    let (body, header) =
        unsafe { (std::slice::from_raw_parts(response.body.data, response.body.len), *response.headers) };
    assert_eq!((body, response.status, response.header_count, header.value.len), (&b"body"[..], 200, 1, 1));
    assert_eq!(FREED.load(Ordering::SeqCst), 0);
    // SAFETY: once, and the script is shut down once, after that.
    unsafe {
        response.free.unwrap()(response.owner);
        shutdown::<Tested>(script.state);
    }
    assert_eq!((FREED.load(Ordering::SeqCst), ENDED.load(Ordering::SeqCst)), (1, 1));
}
