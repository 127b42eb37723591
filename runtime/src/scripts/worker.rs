//! A worker that is ready, and the exchange of frames with it.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use outrigger_backend::Buffer;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ScriptCall;
use super::frame::{self, CallHead, FrameError, HEADER, Header, Kind, Reply};
use super::process::{Death, Launch, Process};
use super::tensors;
use crate::config::ScriptConfig;
use crate::models::Models;

/// Small replies are read into one buffer of this size.
const INBOX: usize = 16 * 1024;
/// How long a worker that closed its socket has to end by itself.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// What READY says.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// How `run()` takes its input.
    pub mode: String,
    /// Whether `run()` wants the request's headers.
    pub request_headers: bool,
    /// The interpreter's version.
    pub python: String,
}

#[derive(Serialize)]
struct Start<'a> {
    app_root: &'a Path,
    entry_script: Option<&'a Path>,
    source_directory: Option<&'a str>,
    args: &'a [String],
    strict: bool,
    /// The largest frame that we take.
    max_payload: usize,
}

/// What FAILED says.
#[derive(Clone, Debug, Deserialize)]
pub struct Failure {
    /// `import`, `signature` or `init`.
    pub phase: String,
    /// What went wrong.
    pub message: String,
    /// The Python stack.
    #[serde(default)]
    pub traceback: String,
}

/// Why a worker did not come up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The interpreter does not start.
    #[error("cannot start `{python}`; set script.python to a Python 3.11 or later")]
    Spawn {
        /// `script.python`.
        python: String,
        /// Why.
        source: std::io::Error,
    },
    /// The script does not load, or `init()` raised.
    #[error("entry script failed in {}: {}", .0.phase, .0.message)]
    Script(Failure),
    /// The process ended before it was ready.
    #[error("worker ended before it was ready: {0}")]
    Died(Death),
    /// Import and `init()` took too long.
    #[error("import and init() took longer than script.init_timeout ({0:?})")]
    Timeout(Duration),
}

/// Why an exchange broke off. The worker is of no use after it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("the worker closed its socket")]
    Closed,
    #[error("the worker broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the worker's socket failed: {0}")]
    Socket(#[from] std::io::Error),
}

/// A worker and our end of the conversation.
pub(super) struct Worker {
    process: Process,
    inbox: BytesMut,
    outbox: Vec<u8>,
    models: Arc<Models>,
    /// The largest frame that the worker may send.
    limit: usize,
    pub(super) ready: Ready,
}

enum Frame {
    Bytes(Header, Bytes),
    Infer(u64, Buffer),
}

impl Worker {
    /// Starts a process, has it load the script, and waits until `init()` has returned.
    pub(super) async fn start(
        launch: &Launch<'_>,
        models: Arc<Models>,
        limit: usize,
    ) -> Result<Self, StartError> {
        let config = launch.config;
        let process = Process::spawn(launch)
            .map_err(|source| StartError::Spawn { python: config.python.clone(), source })?;
        let ready = Ready { mode: String::new(), request_headers: false, python: String::new() };
        let (inbox, outbox) = (BytesMut::with_capacity(INBOX), Vec::with_capacity(1024));
        let mut worker = Self { process, inbox, outbox, models, limit, ready };
        let begun = tokio::time::timeout(config.init_timeout, worker.begin(config)).await;
        match begun {
            Ok(Ok(Ok(ready))) => {
                worker.ready = ready;
                Ok(worker)
            }
            Ok(Ok(Err(failure))) => {
                worker.process.reap(EXIT_GRACE).await;
                Err(StartError::Script(failure))
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "worker did not come up");
                Err(StartError::Died(worker.process.reap(EXIT_GRACE).await))
            }
            Err(_) => {
                worker.process.terminate().await;
                Err(StartError::Timeout(config.init_timeout))
            }
        }
    }

    async fn begin(&mut self, config: &ScriptConfig) -> Result<Result<Ready, Failure>, ExchangeError> {
        let start = Start {
            app_root: &config.app_root,
            entry_script: Some(&config.entry),
            source_directory: config.source_directory.as_deref(),
            args: &config.args,
            strict: true,
            max_payload: self.limit,
        };
        let json = serde_json::to_vec(&start).map_err(|_| FrameError::Malformed("START"))?;
        let header = Header { length: json.len(), kind: Kind::Start, id: 0 };
        self.process.stream.write_all(&[&header.encode()[..], &json].concat()).await?;
        loop {
            match self.next_frame().await? {
                Frame::Bytes(Header { kind: Kind::Ready, .. }, payload) => {
                    return serde_json::from_slice(&payload)
                        .map(Ok)
                        .map_err(|_| FrameError::Malformed("READY").into());
                }
                Frame::Bytes(Header { kind: Kind::Failed, .. }, payload) => {
                    return serde_json::from_slice(&payload)
                        .map(Err)
                        .map_err(|_| FrameError::Malformed("FAILED").into());
                }
                frame => self.serve_model(frame).await?,
            }
        }
    }

    /// The process's number.
    pub(super) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends calls, one after the other, in one write where the system allows it.
    pub(super) async fn send(&mut self, calls: &[(u64, &ScriptCall)]) -> Result<(), ExchangeError> {
        self.outbox.clear();
        let mut ends = Vec::with_capacity(calls.len());
        for (id, call) in calls {
            let head = CallHead {
                id: *id,
                get: call.get,
                request_id: call.request_id.as_bytes(),
                query: call.query.as_bytes(),
                headers: call.headers.as_ref().filter(|_| self.ready.request_headers),
                body: call.body.len(),
            };
            frame::encode_call(&head, &mut self.outbox);
            ends.push(self.outbox.len());
        }
        let mut pieces = Vec::with_capacity(2 * calls.len());
        let mut start = 0;
        for ((_, call), end) in calls.iter().zip(ends) {
            pieces.push(IoSlice::new(&self.outbox[start..end]));
            pieces.push(IoSlice::new(&call.body));
            start = end;
        }
        write_pieces(&mut self.process.stream, &mut pieces).await?;
        Ok(())
    }

    /// Waits for the reply to call `id`, the first that was sent and not yet answered; models that it asks for meanwhile are
    /// served. Not to be dropped before it is through, unless the worker is ended.
    pub(super) async fn reply(&mut self, id: u64) -> Result<(Reply, Duration), ExchangeError> {
        loop {
            match self.next_frame().await? {
                Frame::Bytes(Header { kind: Kind::Reply, id: answered, .. }, payload) if answered == id => {
                    return Ok(frame::decode_reply(payload)?);
                }
                frame => self.serve_model(frame).await?,
            }
        }
    }

    async fn serve_model(&mut self, frame: Frame) -> Result<(), ExchangeError> {
        let (id, answer) = match frame {
            Frame::Infer(id, payload) => {
                let infer = tensors::decode_infer(payload)?;
                match self.models.infer_named(&infer.model, infer.inputs).await {
                    Ok(outputs) => {
                        let named: Vec<_> =
                            outputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
                        let pieces = tensors::encode_tensors(id, &named);
                        let mut pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                        write_pieces(&mut self.process.stream, &mut pieces).await?;
                        return Ok(());
                    }
                    Err(error) => (id, Err(error)),
                }
            }
            Frame::Bytes(Header { kind: Kind::Model, id, .. }, name) => {
                (id, self.models.describe(&String::from_utf8_lossy(&name)))
            }
            Frame::Bytes(..) => return Err(FrameError::Malformed("unexpected").into()),
        };
        let (kind, json) = match answer {
            Ok(json) => (Kind::ModelInfo, json),
            Err(error) => {
                let json = serde_json::json!({"code": error.code.as_str(), "message": error.message});
                (Kind::ModelError, json.to_string().into())
            }
        };
        let header = Header { length: json.len(), kind, id }.encode();
        write_pieces(&mut self.process.stream, &mut [IoSlice::new(&header), IoSlice::new(&json)]).await?;
        Ok(())
    }

    /// Waits until the worker closes its socket, or says something although nobody asked.
    pub(super) async fn closed(&mut self) -> ExchangeError {
        // A header is enough: what would follow is not read, so this may be dropped at any time.
        while self.inbox.len() < HEADER {
            if let Err(error) = self.fill(INBOX / 4).await {
                return error;
            }
        }
        FrameError::Malformed("unasked").into()
    }

    /// The worker has failed by itself: waits for its end.
    pub(super) async fn bury(self) -> Death {
        self.process.reap(EXIT_GRACE).await
    }

    /// The worker hangs: ends it.
    pub(super) async fn terminate(self) -> Death {
        self.process.terminate().await
    }

    /// Has the worker end in order; its exit handlers run.
    pub(super) async fn stop(mut self, grace: Duration) -> Death {
        // Closing our half is how the worker is told.
        let _ = self.process.stream.shutdown().await;
        self.process.reap(grace).await
    }

    /// Reads one frame. May be dropped before it is through: what has been read stays in the inbox.
    async fn next_frame(&mut self) -> Result<Frame, ExchangeError> {
        let mut bytes = [0; HEADER];
        while self.inbox.len() < HEADER {
            self.fill(INBOX / 4).await?;
        }
        bytes.copy_from_slice(&self.inbox[..HEADER]);
        let header = Header::decode(&bytes, self.limit)?;
        if header.kind == Kind::Infer {
            return self.infer_frame(header).await;
        }
        while self.inbox.len() < HEADER + header.length {
            self.fill(HEADER + header.length - self.inbox.len()).await?;
        }
        let mut frame = self.inbox.split_to(HEADER + header.length);
        Ok(Frame::Bytes(header, frame.split_off(HEADER).freeze()))
    }

    /// Reads tensors into aligned memory of their own. Not to be dropped in the middle, and never is: it is only reached
    /// inside `reply` and `begin`, whose end in between ends the worker.
    async fn infer_frame(&mut self, header: Header) -> Result<Frame, ExchangeError> {
        let mut payload = Buffer::zeroed(header.length)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        let _ = self.inbox.split_to(HEADER);
        let here = self.inbox.len().min(header.length);
        payload[..here].copy_from_slice(&self.inbox.split_to(here));
        self.process.stream.read_exact(&mut payload[here..]).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ExchangeError::Closed,
            _ => error.into(),
        })?;
        Ok(Frame::Infer(header.id, payload))
    }

    async fn fill(&mut self, wanted: usize) -> Result<(), ExchangeError> {
        if self.inbox.capacity() - self.inbox.len() < wanted {
            self.inbox.reserve(wanted.max(INBOX));
        }
        match self.process.stream.read_buf(&mut self.inbox).await? {
            0 => Err(ExchangeError::Closed),
            _ => Ok(()),
        }
    }
}

/// Writes all pieces, in as few calls to the system as it allows.
async fn write_pieces(
    stream: &mut tokio::net::UnixStream,
    mut pieces: &mut [IoSlice<'_>],
) -> std::io::Result<()> {
    // Skips empty pieces at the front: a write of nothing would look like a closed socket.
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        let written = stream.write_vectored(pieces).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut pieces, written);
    }
    Ok(())
}
