//! Compiles scripts, and plays the runtime of a worker process.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use outrigger_regions::{Mapping, Region, receive_region, send_region, seqpacket_pair};
use tempfile::TempDir;

/// Far beyond what anything here takes; a test that waits for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of native scripts.
pub(crate) fn native() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What Cargo has built of this package's examples.
pub(crate) fn built(name: &str) -> PathBuf {
    // The tests are in target/PROFILE/deps.
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples").join(name)
}

/// A compiled script.
pub(crate) struct Compiled {
    pub(crate) path: PathBuf,
    _folder: TempDir,
}

/// Functions of a script in C; those that are not given do nothing and succeed.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Before everything else.
    pub(crate) before: &'a str,
    pub(crate) abi: &'a str,
    pub(crate) init: &'a str,
    pub(crate) run: &'a str,
    pub(crate) shutdown: &'a str,
}

impl Default for Parts<'_> {
    fn default() -> Self {
        Self {
            before: "",
            abi: "uint32_t outrigger_script_abi(void) { return OUTRIGGER_ABI; }",
            init: "INIT { return 0; }",
            run: "RUN { return 0; }",
            shutdown: "void outrigger_script_shutdown(void *state) {}",
        }
    }
}

const PRELUDE: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "outrigger_script.h"
#define TEXT(text) ((OutriggerBytes){(const uint8_t *)(text), sizeof(text) - 1})
#define INIT int32_t outrigger_script_init(const OutriggerHost *host, OutriggerScript *script, \
                                           OutriggerMessage *message)
#define RUN int32_t outrigger_script_run(void *state, const OutriggerRequest *request, \
                                         OutriggerResponse *response, OutriggerMessage *message)
static inline int32_t fail(OutriggerMessage *message, const char *text, int32_t code) {
  message->len = strlen(text);
  memcpy(message->data, text, message->len);
  return code;
}
"#;

/// Compiles a script.
pub(crate) fn compile(parts: Parts<'_>) -> Compiled {
    let Parts { before, abi, init, run, shutdown } = parts;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("script.c");
    std::fs::write(&source, [PRELUDE, before, abi, init, run, shutdown].join("\n")).unwrap();
    let path = folder.path().join("libscript.so");
    cc(&source, &path);
    Compiled { path, _folder: folder }
}

/// Compiles a script whose `run` has this body.
pub(crate) fn running(body: &str) -> Compiled {
    let run = format!("RUN {{ {body} }}");
    compile(Parts { run: &run, ..Parts::default() })
}

/// The example in C.
pub(crate) fn mean_in_c() -> Compiled {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libmean.so");
    cc(&native().join("examples/mean.c"), &path);
    Compiled { path, _folder: folder }
}

fn cc(source: &Path, out: &Path) {
    let mut command = Command::new("cc");
    command.args(["-O1", "-shared", "-fPIC", "-I"]).arg(native().join("include")).arg("-o");
    let output = command.arg(out).arg(source).arg("-lm").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Kinds of frame.
pub(crate) mod kind {
    pub(crate) const START: u8 = 1;
    pub(crate) const CALL: u8 = 2;
    pub(crate) const CANCEL: u8 = 6;
    pub(crate) const CREDIT: u8 = 7;
    pub(crate) const RELEASE: u8 = 8;
    pub(crate) const FORGET: u8 = 9;
    pub(crate) const READY: u8 = 16;
    pub(crate) const FAILED: u8 = 17;
    pub(crate) const REPLY: u8 = 18;
    pub(crate) const PHASE: u8 = 21;
    pub(crate) const LOG: u8 = 22;
    pub(crate) const CHUNK: u8 = 23;
    pub(crate) const END: u8 = 24;
    pub(crate) const LEAVE: u8 = 25;
}

/// A frame from the worker, its tail read out of the region.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) id: u64,
    pub(crate) payload: Vec<u8>,
    /// The region that the tail was in.
    pub(crate) region: Option<u32>,
}

/// A REPLY or END.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: u8,
    pub(crate) flags: u8,
    pub(crate) status: u16,
    /// The message, or the header block.
    pub(crate) message: String,
    pub(crate) rest: Vec<u8>,
    pub(crate) region: Option<u32>,
}

impl Frame {
    pub(crate) fn reply(self, id: u64) -> Reply {
        assert!(matches!(self.kind, kind::REPLY | kind::END), "{self:?}");
        assert_eq!(self.id, id);
        let payload = self.payload;
        let length = u32::from_le_bytes(payload[4..8].try_into().unwrap()) as usize;
        Reply {
            outcome: payload[0],
            flags: payload[1],
            status: u16::from_le_bytes([payload[2], payload[3]]),
            message: String::from_utf8_lossy(&payload[16..16 + length]).into_owned(),
            rest: payload[16 + length..].to_vec(),
            region: self.region,
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

/// What START says besides the script.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) max_payload: u64,
    pub(crate) window: u64,
    pub(crate) region_threshold: u64,
    pub(crate) regions: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_payload: 1 << 30, window: 1 << 20, region_threshold: 0, regions: 4 }
    }
}

/// A call.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) method: u8,
    pub(crate) query: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) limit: Duration,
    pub(crate) body: &'a [u8],
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self { method: 1, query: "", headers: &[], limit: Duration::ZERO, body: b"" }
    }
}

impl Call<'_> {
    /// The payload up to the body.
    fn head(&self) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in self.headers {
            block.extend_from_slice(&(name.len() as u16).to_le_bytes());
            block.extend_from_slice(&(value.len() as u16).to_le_bytes());
            block.extend_from_slice(name.as_bytes());
            block.extend_from_slice(value.as_bytes());
        }
        let id = "the-id";
        let mut out = vec![self.method, 0];
        out.extend_from_slice(&(id.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.query.len() as u32).to_le_bytes());
        out.extend_from_slice(&(block.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.limit.as_nanos() as u64).to_le_bytes());
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(self.query.as_bytes());
        out.extend_from_slice(&block);
        out
    }
}

/// A worker process, and the runtime's ends of its sockets.
pub(crate) struct Worker {
    child: Child,
    pub(crate) stream: UnixStream,
    pub(crate) regions: OwnedFd,
    pub(crate) mapped: HashMap<u32, Mapping>,
    reaped: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Worker {
    /// Starts a process and sends nothing.
    pub(crate) fn spawn() -> Self {
        let (stream, their_stream) = UnixStream::pair().unwrap();
        let (regions, their_regions) = seqpacket_pair().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(built("native_worker"));
        command
            .env("OUTRIGGER_WORKER_FD", their_stream.as_raw_fd().to_string())
            .env("OUTRIGGER_REGIONS_FD", their_regions.as_raw_fd().to_string())
            .env("AZUREML_MODEL_DIR", "/models")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let kept = [their_stream.as_raw_fd(), their_regions.as_raw_fd()];
        // SAFETY: between fork and exec only `fcntl` and `setrlimit` are called.
        unsafe {
            command.pre_exec(move || {
                kept.iter().for_each(|number| _ = libc::fcntl(*number, libc::F_SETFD, 0));
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Self { child, stream, regions, mapped: HashMap::new(), reaped: false }
    }

    /// Starts a process that loads the library at `path`.
    pub(crate) fn start(path: &Path, options: Options) -> Self {
        let mut worker = Self::spawn();
        let Options { max_payload, window, region_threshold, regions } = options;
        let start = serde_json::json!({
            "app_root": "/", "entry_script": null, "source_directory": null, "args": ["one", "two"],
            "compat": false, "max_payload": max_payload, "window": window, "region_threshold": region_threshold,
            "regions": regions, "concurrency": 1, "max_batch": 1, "native": path,
        });
        worker.send(kind::START, 0, 0, start.to_string().as_bytes());
        worker
    }

    /// Starts a process and waits until it is ready; what it logs meanwhile is dropped.
    pub(crate) fn ready(path: &Path, options: Options) -> Self {
        let mut worker = Self::start(path, options);
        worker.next(kind::READY);
        worker
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, id: u64, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0]);
        frame.extend_from_slice(&id.to_le_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).unwrap();
    }

    pub(crate) fn call(&mut self, id: u64, call: Call<'_>) {
        self.send(kind::CALL, 0, id, &[&call.head(), call.body].concat());
    }

    /// A call whose body is `size` bytes at `offset` of a region.
    pub(crate) fn call_in_region(&mut self, id: u64, call: Call<'_>, region: u32, offset: u64, size: u64) {
        let mut payload = region.to_le_bytes().to_vec();
        payload.extend_from_slice(&[0; 4]);
        payload.extend_from_slice(&offset.to_le_bytes());
        payload.extend_from_slice(&size.to_le_bytes());
        payload.extend_from_slice(&call.head());
        self.send(kind::CALL, 1, id, &payload);
    }

    /// Hands a region over.
    pub(crate) fn share(&mut self, number: u32, region: &Region) {
        send_region(self.regions.as_fd(), number, region.len() as u64, region.fd()).unwrap();
    }

    /// The next frame; `None` when the worker has closed.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        let mut header = [0; 16];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("no frame in {PATIENCE:?}")
            }
            Err(_) => return None,
        }
        let length = u32::from_le_bytes(header[..4].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).unwrap();
        let (kind, flags) = (header[4], header[5]);
        let id = u64::from_le_bytes(header[8..].try_into().unwrap());
        let region = (flags & 1 != 0).then(|| self.read_tail(&mut payload));
        Some(Frame { kind, id, payload, region })
    }

    fn read_tail(&mut self, payload: &mut Vec<u8>) -> u32 {
        let number = u32::from_le_bytes(payload[..4].try_into().unwrap());
        let offset = u64::from_le_bytes(payload[8..16].try_into().unwrap());
        let size = u64::from_le_bytes(payload[16..24].try_into().unwrap());
        while !self.mapped.contains_key(&number) {
            let (sent, size, file) =
                receive_region(self.regions.as_fd()).unwrap().expect("it was sent before");
            assert!(self.mapped.insert(sent, Mapping::open(file, size).unwrap()).is_none());
        }
        payload.drain(..24);
        // SAFETY: the worker does not write there before it gets a RELEASE.
        payload.extend_from_slice(unsafe { self.mapped[&number].bytes(offset, size) }.unwrap());
        number
    }

    /// The next frame of that kind; lines of the log before it are dropped.
    pub(crate) fn next(&mut self, kind: u8) -> Frame {
        loop {
            let frame =
                self.receive().unwrap_or_else(|| panic!("the worker closed before a frame of kind {kind}"));
            if frame.kind == kind {
                return frame;
            }
            assert!(matches!(frame.kind, kind::LOG | kind::PHASE), "{frame:?}");
        }
    }

    pub(crate) fn reply(&mut self, id: u64) -> Reply {
        self.next(kind::REPLY).reply(id)
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: signals a child that was not waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Closes the runtime's half, as a runtime that stops does.
    pub(crate) fn close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Waits for the end: how, and what went to stdout and stderr.
    pub(crate) fn wait(mut self) -> (ExitStatus, String, String) {
        while self.receive().is_some() {}
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let status = self.child.wait().unwrap();
        self.reaped = true;
        (status, out, err)
    }

    /// As [`Worker::wait`], for an exit code.
    pub(crate) fn exit_code(self) -> (i32, String) {
        let (status, _, err) = self.wait();
        (status.code().unwrap_or_else(|| panic!("signal {:?}: {err}", status.signal())), err)
    }
}
