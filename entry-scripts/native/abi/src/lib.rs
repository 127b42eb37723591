//! The C ABI of native entry scripts: a shared library that answers requests.
//!
//! `include/outrigger_script.h` is made from `abi/src/lib.rs` by `cargo xtask headers`, texts included.
//!
//! # Versions
//! The library says by `outrigger_script_abi` which version it was made with. The host takes the same major
//! version with the same minor version or an older one. Within a major version structs only grow at their
//! ends and minor counts that growth; `size` is what the struct has at the host. Each member says since when
//! it exists, if not since 1.0.
//!
//! # What holds for every function and callback
//! - Pointers are valid for the time of the call only, unless it says otherwise. None is null unless it says
//!   so; a `Bytes` of length 0 may have a null `data`.
//! - Functions return a code. On failure they write why into the `Message`, which is the host's.
//! - They neither unwind nor jump out of their frame.

use std::ffi::c_void;

/// Versions with another major number are another ABI.
pub const MAJOR: u32 = 1;
/// How far the structs have grown within the major version.
pub const MINOR: u32 = 0;
/// What `outrigger_script_abi` returns: major version in the upper 16 bits, minor version in the lower.
pub const ABI: u32 = (MAJOR << 16) | MINOR;

/// It worked.
pub const CODE_OK: i32 = 0;
/// The script failed; the message is for the log. The host reads every code that it does not know as this
/// one.
pub const CODE_FAILED: i32 = 1;
/// The request cannot be answered, which is the caller's fault; the message is for the caller, with status
/// 400.
pub const CODE_INPUT: i32 = 2;

/// A request's method.
pub const METHOD_GET: u32 = 0;
/// A request's method.
pub const METHOD_POST: u32 = 1;
/// A request's method.
pub const METHOD_OPTIONS: u32 = 2;
/// A request's method.
pub const METHOD_HEAD: u32 = 3;

/// What `cancelled` says: the call goes on.
pub const CANCELLED_NO: i32 = 0;
/// What `cancelled` says: the client has gone.
pub const CANCELLED_CLIENT_GONE: i32 = 1;
/// What `cancelled` says: the call is out of time.
pub const CANCELLED_OUT_OF_TIME: i32 = 2;

/// How important a line of the log is.
pub const LEVEL_DEBUG: i32 = 10;
/// How important a line of the log is.
pub const LEVEL_INFO: i32 = 20;
/// How important a line of the log is.
pub const LEVEL_WARNING: i32 = 30;
/// How important a line of the log is.
pub const LEVEL_ERROR: i32 = 40;
/// How important a line of the log is.
pub const LEVEL_CRITICAL: i32 = 50;

/// Flag of a script: `outrigger_script_run` may be called from several threads at once.
pub const SCRIPT_THREAD_SAFE: u32 = 1;

/// Bytes with a length and no terminator; text is UTF-8 unless said otherwise. Whoever made them owns them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// The first byte, of any alignment; may be null if `len` is 0.
    pub data: *const u8,
    /// Bytes.
    pub len: usize,
}

/// One header of a request or a response. Values are Latin-1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Name.
    pub name: Bytes,
    /// Value.
    pub value: Bytes,
}

/// Room for the reason of a failure. The host owns it; the library writes at most `capacity` bytes of UTF-8
/// to `data` and sets `len` to how many it wrote.
#[repr(C)]
#[derive(Debug)]
pub struct Message {
    /// The first byte of the room.
    pub data: *mut u8,
    /// Bytes of room: 16384 or more.
    pub capacity: usize,
    /// Bytes written; 0 at first.
    pub len: usize,
}

/// What a script is told when it starts. It and all that it points to is valid until
/// `outrigger_script_shutdown` returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Bytes of this struct at the host.
    pub size: usize,
    /// The host's `MAJOR`.
    pub major: u32,
    /// The host's `MINOR`.
    pub minor: u32,
    /// The directory of the script's code, as the bytes of a path.
    pub app_root: Bytes,
    /// The directory of the models, as the bytes of a path; of length 0 if there is none.
    pub model_dir: Bytes,
    /// The script's arguments, as the operator gave them.
    pub args: *const Bytes,
    /// How many.
    pub arg_count: usize,
    /// For `log`.
    pub context: *mut c_void,
    /// Writes to the replica's log: `level` is one of the `LEVEL` values, `text` is copied, each of its lines
    /// is a line of the log. From any thread, until `outrigger_script_shutdown` returns. Never null.
    pub log: Option<unsafe extern "C" fn(context: *mut c_void, level: i32, text: Bytes)>,
}

/// What a script says of itself. The host owns it and has set all members but `size` to zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Bytes of this struct at the host; not to be changed.
    pub size: usize,
    /// The script's own; handed to `outrigger_script_run` and `outrigger_script_shutdown`. May be null.
    pub state: *mut c_void,
    /// Any of the `SCRIPT` flags.
    pub flags: u32,
    /// The methods that it takes, a bit for each: `1 << METHOD_GET` and so on. 0 means GET and POST.
    pub methods: u32,
}

/// A request. It and all that it points to is the host's, read only, and valid until `outrigger_script_run`
/// returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Bytes of this struct at the host.
    pub size: usize,
    /// One of the `METHOD` values.
    pub method: u32,
    /// Zero.
    pub reserved: u32,
    /// The request's id, ASCII.
    pub id: Bytes,
    /// The query string as it stands in the URL, without the question mark.
    pub query: Bytes,
    /// All headers but the caller's credentials. Names are in lower case, a name may repeat.
    pub headers: *const Header,
    /// How many.
    pub header_count: usize,
    /// The body, where it was received: it has not been copied for this call.
    pub body: Bytes,
    /// When the call is out of time, in nanoseconds of `CLOCK_MONOTONIC`; 0 if it never is.
    pub deadline: u64,
    /// For the callbacks. Valid until `outrigger_script_run` returns.
    pub context: *mut c_void,
    /// Whether a call goes on: one of the `CANCELLED` values. From any thread until `outrigger_script_run`
    /// returns. Costs about as much as a system call. Never null.
    pub cancelled: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
    /// As the host's `log`, with the request's id. From any thread until `outrigger_script_run` returns.
    /// Never null.
    pub log: Option<unsafe extern "C" fn(context: *mut c_void, level: i32, text: Bytes)>,
    /// Lends `len` bytes to build the response's body in, where the host can send them from without copying
    /// them. They are the host's, and the library's to write until `outrigger_script_run` returns. If the
    /// response's body lies inside them, the host sends it from there; the host ends them in any case. What
    /// they hold at first is not said: write all that you send. Null if there is no memory, if more than 16
    /// are lent to this call, or for a length of 0. From any thread. Never null.
    pub allocate: Option<unsafe extern "C" fn(context: *mut c_void, len: usize) -> *mut u8>,
    /// Begins a streamed response: `status`, `headers` and `content_type` of `response` are copied and sent,
    /// its body and `free` are not looked at. At most once in a call. Returns 0; else the head cannot be sent
    /// or the client has gone, and nothing will be sent. From the thread that runs the call. Never null.
    pub begin: Option<unsafe extern "C" fn(context: *mut c_void, response: *const Response) -> i32>,
    /// Sends a piece of a streamed response that `begin` has begun, and waits while the client takes in what
    /// it was sent. `bytes` are copied. Returns 0; anything else means that the client has gone or the call
    /// was cancelled: nothing more can be sent, the library had better return. From the thread that runs the
    /// call. Never null.
    pub write: Option<unsafe extern "C" fn(context: *mut c_void, bytes: Bytes) -> i32>,
}

/// A response. The host owns the struct and has set `size`, and `status` to 200, everything else to zero; all
/// that it points to is the library's.
///
/// After `CODE_OK` the host calls `free(owner)` exactly once, when it is done with all that the response
/// points to: from any thread, also while other calls run, before it calls `outrigger_script_shutdown`. If
/// `free` is null, all of it is valid until this thread calls `outrigger_script_run` or
/// `outrigger_script_shutdown` again, or is static. After any other code, and after `begin`, the host does
/// not look at it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Response {
    /// Bytes of this struct at the host; not to be changed.
    pub size: usize,
    /// The HTTP status, 200 to 599.
    pub status: u32,
    /// Zero.
    pub reserved: u32,
    /// Headers. Those of the connection (`content-length`, `transfer-encoding`, `connection`) are the host's
    /// business.
    pub headers: *const Header,
    /// How many, at most 256; their names and values together have at most 65536 bytes.
    pub header_count: usize,
    /// The body's type; of length 0 for `application/octet-stream`, or if `headers` name it.
    pub content_type: Bytes,
    /// The body.
    pub body: Bytes,
    /// Ends what the response points to. May be null.
    pub free: Option<unsafe extern "C" fn(owner: *mut c_void)>,
    /// For `free`. May be null.
    pub owner: *mut c_void,
}

// What a library exports. Declared here for the header; nothing calls them by these names.
#[expect(unsafe_code, reason = "declares functions of the other side")]
unsafe extern "C" {
    /// Returns `ABI`. Called before anything else, from any thread.
    pub fn outrigger_script_abi() -> u32;

    /// Starts the script: called once, before all others. On success the host calls
    /// `outrigger_script_shutdown` with `script->state` at the end; after a failure it calls nothing more.
    pub fn outrigger_script_init(host: *const Host, script: *mut Script, message: *mut Message) -> i32;

    /// Answers a request. In a worker process all calls come one after the other from the thread that called
    /// `outrigger_script_init`. In the replica's own process they come from any thread: at once if the script
    /// has the flag `SCRIPT_THREAD_SAFE`, else one after the other.
    pub fn outrigger_script_run(
        state: *mut c_void,
        request: *const Request,
        response: *mut Response,
        message: *mut Message,
    ) -> i32;

    /// Ends the script: called once, when no call is under way and all responses have been freed. The library
    /// stays loaded.
    pub fn outrigger_script_shutdown(state: *mut c_void);
}

/// The type of `outrigger_script_abi`.
pub type AbiFunction = unsafe extern "C" fn() -> u32;
/// The type of `outrigger_script_init`.
pub type InitFunction = unsafe extern "C" fn(*const Host, *mut Script, *mut Message) -> i32;
/// The type of `outrigger_script_run`.
pub type RunFunction = unsafe extern "C" fn(*mut c_void, *const Request, *mut Response, *mut Message) -> i32;
/// The type of `outrigger_script_shutdown`.
pub type ShutdownFunction = unsafe extern "C" fn(*mut c_void);

impl Bytes {
    /// No bytes.
    pub const NONE: Self = Self { data: std::ptr::null(), len: 0 };

    /// Borrows `bytes`; as valid as they are.
    pub const fn of(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), len: bytes.len() }
    }
}

impl Response {
    /// What the host hands to `outrigger_script_run`.
    pub const EMPTY: Self = Self {
        size: size_of::<Self>(),
        status: 200,
        reserved: 0,
        headers: std::ptr::null(),
        header_count: 0,
        content_type: Bytes::NONE,
        body: Bytes::NONE,
        free: None,
        owner: std::ptr::null_mut(),
    };
}
