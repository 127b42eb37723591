//! What a script sees: the host and a request.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use outrigger_script_abi as abi;

use crate::{Gone, Response, path};

/// Views bytes that the host lends.
///
/// # Safety
/// They are valid for `'a`.
pub(crate) unsafe fn bytes<'a>(bytes: abi::Bytes) -> &'a [u8] {
    if bytes.len == 0 || bytes.data.is_null() {
        return &[];
    }
    // SAFETY: not null; valid for as long as the caller says.
    unsafe { std::slice::from_raw_parts(bytes.data, bytes.len) }
}

/// A log's level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Level {
    Debug = abi::LEVEL_DEBUG,
    Info = abi::LEVEL_INFO,
    Warning = abi::LEVEL_WARNING,
    Error = abi::LEVEL_ERROR,
    Critical = abi::LEVEL_CRITICAL,
}

/// What a script is told when it starts.
#[derive(Debug)]
pub struct Host<'a> {
    raw: &'a abi::Host,
}

impl<'a> Host<'a> {
    /// # Safety
    /// `raw` keeps to the ABI.
    pub(crate) unsafe fn new(raw: &'a abi::Host) -> Self {
        Self { raw }
    }

    /// The directory of the script's code.
    pub fn app_root(&self) -> &'a Path {
        // SAFETY: the host lends it for longer than `'a`, here and below.
        path(unsafe { bytes(self.raw.app_root) })
    }

    /// The directory of the models.
    pub fn model_dir(&self) -> Option<&'a Path> {
        // SAFETY: as above.
        let directory = unsafe { bytes(self.raw.model_dir) };
        (!directory.is_empty()).then(|| path(directory))
    }

    /// The script's arguments, as the operator gave them.
    pub fn args(&self) -> impl Iterator<Item = &'a str> {
        let args: &'a [abi::Bytes] = match self.raw.arg_count {
            0 => &[],
            // SAFETY: as above; `arg_count` of them.
            count => unsafe { std::slice::from_raw_parts(self.raw.args, count) },
        };
        // SAFETY: as above. Arguments come out of a configuration file, which is UTF-8.
        args.iter().map(|arg| std::str::from_utf8(unsafe { bytes(*arg) }).unwrap_or_default())
    }

    /// Writes to the replica's log.
    pub fn log(&self, level: Level, text: &str) {
        if let Some(log) = self.raw.log {
            // SAFETY: `context` is valid until shutdown; the text is copied.
            unsafe { log(self.raw.context, level as i32, abi::Bytes::of(text.as_bytes())) }
        }
    }
}

/// A method that reaches scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Method {
    Get = abi::METHOD_GET,
    Post = abi::METHOD_POST,
    Options = abi::METHOD_OPTIONS,
    Head = abi::METHOD_HEAD,
}

/// Why a call need not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The client has gone.
    ClientGone,
    /// The call is out of time.
    OutOfTime,
}

/// A request.
#[derive(Debug)]
pub struct Request<'a> {
    raw: &'a abi::Request,
}

// SAFETY: read only, and the callbacks that take `&self` may be called from any thread.
unsafe impl Send for Request<'_> {}
// SAFETY: as above; `stream`, which is for one thread, gives a `Stream`, which is not `Send`.
unsafe impl Sync for Request<'_> {}

impl<'a> Request<'a> {
    /// # Safety
    /// `raw` keeps to the ABI.
    pub(crate) unsafe fn new(raw: &'a abi::Request) -> Self {
        Self { raw }
    }

    /// The method.
    pub fn method(&self) -> Method {
        match self.raw.method {
            abi::METHOD_GET => Method::Get,
            abi::METHOD_OPTIONS => Method::Options,
            abi::METHOD_HEAD => Method::Head,
            _ => Method::Post,
        }
    }

    /// The request's id.
    pub fn id(&self) -> &'a str {
        // SAFETY: the host lends it for `'a`, here and below.
        std::str::from_utf8(unsafe { bytes(self.raw.id) }).unwrap_or_default()
    }

    /// The query string as it stands in the URL.
    pub fn query(&self) -> &'a [u8] {
        // SAFETY: as above.
        unsafe { bytes(self.raw.query) }
    }

    /// All headers: names in lower case, values as they came.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let headers: &'a [abi::Header] = match self.raw.header_count {
            0 => &[],
            // SAFETY: as above; `header_count` of them.
            count => unsafe { std::slice::from_raw_parts(self.raw.headers, count) },
        };
        headers.iter().map(|header| {
            // SAFETY: as above. Names of headers are ASCII.
            unsafe { (std::str::from_utf8(bytes(header.name)).unwrap_or_default(), bytes(header.value)) }
        })
    }

    /// The first header of that name, which is in lower case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The body, where it was received.
    pub fn body(&self) -> &'a [u8] {
        // SAFETY: as above.
        unsafe { bytes(self.raw.body) }
    }

    /// When the call is out of time, as `CLOCK_MONOTONIC` counts.
    pub fn deadline(&self) -> Option<Duration> {
        (self.raw.deadline > 0).then(|| Duration::from_nanos(self.raw.deadline))
    }

    /// Whether the call need not go on, and why. Costs about as much as a system call.
    pub fn cancelled(&self) -> Option<Cancelled> {
        // SAFETY: from any thread, while the call runs.
        match self.raw.cancelled.map(|cancelled| unsafe { cancelled(self.raw.context) }) {
            Some(abi::CANCELLED_CLIENT_GONE) => Some(Cancelled::ClientGone),
            Some(abi::CANCELLED_OUT_OF_TIME) => Some(Cancelled::OutOfTime),
            _ => None,
        }
    }

    /// Writes to the replica's log, with the request's id.
    pub fn log(&self, level: Level, text: &str) {
        if let Some(log) = self.raw.log {
            // SAFETY: `context` is valid while the call runs; the text is copied.
            unsafe { log(self.raw.context, level as i32, abi::Bytes::of(text.as_bytes())) }
        }
    }

    /// Memory of the host's to build the body of the response in, which is then sent without a copy
    /// ([`Response::in_place`]). What it holds at first is not said: write all that you send. `None` where
    /// the host has none; at most 16 in a call.
    pub fn buffer(&self, len: usize) -> Option<Buffer<'a>> {
        let allocate = self.raw.allocate?;
        // SAFETY: from any thread, while the call runs.
        let data = NonNull::new(unsafe { allocate(self.raw.context, len) })?;
        Some(Buffer { data, len, call: PhantomData })
    }

    /// Begins a streamed response with the head of `response`, whose body is dropped.
    ///
    /// # Errors
    /// The client has gone, the head cannot be sent, or there is a stream already.
    pub fn stream(&self, response: Response) -> Result<Stream<'a>, Gone> {
        let (head, owned) = response.into_raw();
        let begun = match self.raw.begin {
            // SAFETY: what `head` points to lives in `owned`; it is copied.
            Some(begin) => unsafe { begin(self.raw.context, &raw const head) },
            None => 1,
        };
        drop(owned);
        if begun != 0 {
            return Err(Gone);
        }
        Ok(Stream { raw: self.raw, thread: PhantomData })
    }
}

/// Memory that the host lends for the body of a response.
#[derive(Debug)]
pub struct Buffer<'a> {
    pub(crate) data: NonNull<u8>,
    len: usize,
    call: PhantomData<&'a mut [u8]>,
}

// SAFETY: plain bytes that nobody else touches while they are lent.
unsafe impl Send for Buffer<'_> {}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: lent to this value alone until the call ends, which `'a` does not outlive.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

/// A streamed response that has begun. For the thread that runs the call.
#[derive(Debug)]
pub struct Stream<'a> {
    raw: &'a abi::Request,
    thread: PhantomData<*mut c_void>,
}

impl Stream<'_> {
    /// Sends a piece; waits while the client takes in what it was sent.
    ///
    /// # Errors
    /// The client has gone or the call was cancelled.
    pub fn send(&mut self, piece: &[u8]) -> Result<(), Gone> {
        let sent = match self.raw.write {
            // SAFETY: the piece is copied; a stream has begun, and this is the call's thread.
            Some(write) => unsafe { write(self.raw.context, abi::Bytes::of(piece)) },
            None => 1,
        };
        if sent == 0 { Ok(()) } else { Err(Gone) }
    }

    /// What [`Script::run`](crate::Script::run) returns when all has been sent.
    pub fn end(self) -> Response {
        Response::streamed()
    }
}

impl io::Write for Stream<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.send(piece).map_err(|gone| io::Error::new(io::ErrorKind::BrokenPipe, gone))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
