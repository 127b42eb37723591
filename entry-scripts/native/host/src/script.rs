//! A script that has started: the core of both ways to run one.

use std::ffi::c_void;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use outrigger_script_abi::{self as abi, Bytes};
use rustix::time::{ClockId, clock_gettime};

use crate::callbacks::{Logger, Running, log_outside};
use crate::response::{Handed, broken};
use crate::{Answer, Body, CallError, Caller, Head, Level, Library, LoadError, Method, Request};

/// Room for what a script says of a failure. The header promises as much.
const MESSAGE_BYTES: usize = 16 * 1024;

/// What a script is told when it starts.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The directory of the script's code.
    pub app_root: PathBuf,
    /// The directory of the models.
    pub model_dir: Option<PathBuf>,
    /// The script's arguments.
    pub args: Vec<String>,
}

/// A script that has started. Dropping the last reference shuts it down; bodies of its answers hold one.
pub(crate) struct Script {
    library: Library,
    state: *mut c_void,
    flags: u32,
    methods: u32,
    /// What `init` was given; the script may keep pointers into it.
    _told: Box<Told>,
}

// SAFETY: the ABI lets `run` be called from any thread; `call` is unsafe for scripts that are not to be
// called at once.
unsafe impl Send for Script {}
// SAFETY: as above.
unsafe impl Sync for Script {}

/// What `init` is given, and what that points into.
struct Told {
    host: abi::Host,
    /// For [`abi::Host::args`], which point into `settings`.
    args: Vec<Bytes>,
    settings: Settings,
    logger: Logger,
}

impl Told {
    fn new(settings: Settings, logger: Logger) -> Box<Self> {
        let host = abi::Host {
            size: size_of::<abi::Host>(),
            major: abi::MAJOR,
            minor: abi::MINOR,
            app_root: Bytes::NONE,
            model_dir: Bytes::NONE,
            args: std::ptr::null(),
            arg_count: 0,
            context: std::ptr::null_mut(),
            log: Some(log_outside),
        };
        let mut told = Box::new(Self { host, args: Vec::new(), settings, logger });
        // Only now that nothing moves any more.
        let Self { host, args, settings, logger } = &mut *told;
        args.extend(settings.args.iter().map(|arg| Bytes::of(arg.as_bytes())));
        (host.args, host.arg_count) = (args.as_ptr(), args.len());
        host.app_root = Bytes::of(settings.app_root.as_os_str().as_bytes());
        if let Some(model_dir) = &settings.model_dir {
            host.model_dir = Bytes::of(model_dir.as_os_str().as_bytes());
        }
        host.context = std::ptr::from_mut(logger).cast();
        told
    }
}

impl Script {
    /// Starts the script of `library`; `logger` takes the lines that it logs outside of calls.
    ///
    /// # Errors
    /// [`LoadError::Init`], [`LoadError::Broken`].
    pub(crate) fn start(
        library: Library,
        settings: Settings,
        logger: impl Fn(Level, &str) + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        let told = Told::new(settings, Box::new(logger));
        let mut script =
            abi::Script { size: size_of::<abi::Script>(), state: std::ptr::null_mut(), flags: 0, methods: 0 };
        let mut room = Room::new();
        // SAFETY: as the ABI has it: once, before all others; what `told` points into lives until after the
        // shutdown.
        let code = unsafe { (library.init)(&raw const told.host, &raw mut script, room.message()) };
        if code != abi::CODE_OK {
            let message = room.text(code);
            return Err(LoadError::Init { path: library.path, message });
        }
        let (state, flags, methods) = (script.state, script.flags, script.methods);
        let known = |bits: u32, known: u32| bits & !known == 0;
        let started = Self { library, state, flags, methods, _told: told };
        let what = if script.size != size_of::<abi::Script>() {
            "it changed the size of its answer"
        } else if !known(flags, abi::SCRIPT_THREAD_SAFE) {
            "it set flags that the ABI does not have"
        } else if !known(methods, (1 << Method::ALL.len()) - 1) {
            "it names methods that the ABI does not have"
        } else {
            return Ok(started);
        };
        // Dropping it shuts it down.
        Err(LoadError::Broken { path: started.library.path.clone(), what: what.into() })
    }

    /// Whether it may be called from several threads at once.
    pub(crate) fn thread_safe(&self) -> bool {
        self.flags & abi::SCRIPT_THREAD_SAFE != 0
    }

    /// The methods that it takes.
    pub(crate) fn methods(&self) -> impl Iterator<Item = Method> {
        let bits =
            if self.methods == 0 { 1 << abi::METHOD_GET | 1 << abi::METHOD_POST } else { self.methods };
        Method::ALL.into_iter().filter(move |method| bits & 1 << *method as u32 != 0)
    }

    /// Calls the script; returns when it has.
    ///
    /// # Errors
    /// [`CallError`]. A stream may have begun before.
    ///
    /// # Safety
    /// Not while another call is under way, unless [`Script::thread_safe`]. A body without a `free` is not
    /// used beyond the next call from this thread ([`Body::keep`]).
    pub(crate) unsafe fn call<C: Caller>(
        self: &Arc<Self>,
        request: &Request<'_>,
        caller: &C,
    ) -> Result<Answer<C::Buffer>, CallError> {
        let header =
            |(name, value): &(&[u8], &[u8])| abi::Header { name: Bytes::of(name), value: Bytes::of(value) };
        let headers: Vec<abi::Header> = request.headers.iter().map(header).collect();
        let mut given = abi::Request {
            size: size_of::<abi::Request>(),
            method: request.method as u32,
            reserved: 0,
            id: Bytes::of(request.id),
            query: Bytes::of(request.query),
            headers: headers.as_ptr(),
            header_count: headers.len(),
            body: Bytes::of(request.body),
            deadline: request.deadline.map_or(0, monotonic),
            context: std::ptr::null_mut(),
            cancelled: None,
            log: None,
            allocate: None,
            begin: None,
            write: None,
        };
        let running = Running::new(caller);
        running.offer(&mut given);
        let mut response = abi::Response::EMPTY;
        let mut room = Room::new();
        // SAFETY: as the ABI has it: started, not shut down, at once only where the caller may; all pointers
        // are to values that live until it returns.
        let code =
            unsafe { (self.library.run)(self.state, &raw const given, &raw mut response, room.message()) };
        let streamed = running.streamed();
        let (fault, lent) = running.end();
        match code {
            abi::CODE_OK => {}
            abi::CODE_INPUT => return Err(CallError::Input { message: room.text(code) }),
            _ => return Err(CallError::Failed { message: room.text(code) }),
        }
        match fault {
            Some(fault) => return Err(fault),
            None if streamed => return Ok(Answer::Streamed),
            None => {}
        }
        if response.size != size_of::<abi::Response>() {
            // Not even its `free` can be believed.
            return Err(broken("it changed the size of its response".into()));
        }
        let handed = Handed { response, _script: Arc::clone(self) };
        // SAFETY: it succeeded, so what the response points to is there.
        let head = unsafe { Head::read(&handed.response) }?;
        // SAFETY: as above, until `handed` is dropped; without a `free` see this function's own condition.
        Ok(Answer::Whole(head, unsafe { Body::read(handed, lent) }?))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // SAFETY: as the ABI has it: once, when no call is under way and no body is left, for those hold
        // references.
        unsafe { (self.library.shutdown)(self.state) };
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("path", &self.library.path).finish_non_exhaustive()
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, never 0. `Instant` counts the same but does not say from where.
fn monotonic(deadline: Instant) -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    let left = deadline.saturating_duration_since(Instant::now()).as_nanos();
    u64::try_from(nanos.saturating_add_unsigned(left)).unwrap_or(u64::MAX).max(1)
}

/// Room for a message.
struct Room {
    data: Vec<u8>,
    message: abi::Message,
}

impl Room {
    fn new() -> Self {
        let mut data = vec![0; MESSAGE_BYTES];
        let message = abi::Message { data: data.as_mut_ptr(), capacity: data.len(), len: 0 };
        Self { data, message }
    }

    fn message(&mut self) -> *mut abi::Message {
        &raw mut self.message
    }

    /// What was written; bytes that are no UTF-8 are replaced.
    fn text(&self, code: i32) -> String {
        match self.data.get(..self.message.len.min(self.data.len())) {
            Some(text @ [_, ..]) => String::from_utf8_lossy(text).into_owned(),
            _ => format!("code {code}, and it does not say why"),
        }
    }
}
