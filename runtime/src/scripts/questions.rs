//! What a worker asks the replica for: descriptions of models and runs of them, several at once.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderValue;
use outrigger_backend::{Buffer, DataType, Tensor};
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::task::JoinSet;

use super::connection::Connection;
use super::frame::{FrameError, Header, Kind, REFERENCE};
use super::tensors::{self, Infer};
use crate::models::Models;

/// The most runs that a worker may have asked for and has no answer to.
const MOST: usize = 1024;

/// The most bytes of inputs, in runs that are open, that came over the socket.
const MOST_BYTES: usize = 1 << 30;

/// The open questions of one worker. Runs that nobody waits for any more are not begun when this is dropped.
pub(super) struct Questions {
    models: Arc<Models>,
    runs: JoinSet<Answer>,
    /// Bytes of inputs of the open runs that we hold a copy of.
    bytes: usize,
}

/// What a question comes to.
pub(super) struct Answer {
    id: u64,
    content: Content,
    /// The device of a run of which that was not known when it was asked for.
    pub(super) device: Option<HeaderValue>,
    /// Bytes that were held for it.
    bytes: usize,
}

enum Content {
    Tensors(Vec<(String, Tensor)>),
    Info(Bytes),
    Error(CallError),
}

impl Questions {
    pub(super) fn new(models: Arc<Models>) -> Self {
        Self { models, runs: JoinSet::new(), bytes: 0 }
    }

    /// A model's inputs and outputs; it is loaded for that, if it is not.
    ///
    /// # Errors
    /// One too many.
    pub(super) fn describe(&mut self, id: u64, name: &[u8]) -> Result<(), FrameError> {
        if self.runs.len() >= MOST {
            return Err(FrameError::Malformed("MODEL"));
        }
        let (models, name) = (Arc::clone(&self.models), String::from_utf8_lossy(name).into_owned());
        self.runs.spawn(async move {
            let content = models.describe(&name).await.map_or_else(Content::Error, Content::Info);
            Answer { id, content, device: None, bytes: 0 }
        });
        Ok(())
    }

    /// Has a model run; says on which device, for the header of the answer. Of one that has to be loaded first its own answer says that.
    ///
    /// # Errors
    /// The frame is malformed, or one too many.
    pub(super) fn infer(
        &mut self,
        id: u64,
        payload: Bytes,
        tail: Option<Bytes>,
    ) -> Result<Option<HeaderValue>, FrameError> {
        if self.runs.len() >= MOST {
            return Err(FrameError::Malformed("INFER"));
        }
        // Inputs that came over the socket move to where a device can read them; those in a region are there already.
        let bytes = if tail.is_some() { 0 } else { payload.len() };
        if self.bytes + bytes > MOST_BYTES && !self.runs.is_empty() {
            return Err(FrameError::Malformed("INFER"));
        }
        let payload = if tail.is_some() { payload } else { aligned(&payload)? };
        let Infer { model, mut inputs } = tensors::decode_infer(&payload, tail.as_ref())?;
        if tail.is_some() {
            for (_, tensor) in &mut inputs {
                keep_still(tensor)?;
            }
        }
        self.bytes += bytes;
        let models = Arc::clone(&self.models);
        let there = self.models.get(&model).ok().and_then(|model| model.stable().lease());
        let there = there.map(|lease| (lease.pick(), lease));
        let device = there.as_ref().and_then(|(picked, _)| picked.header());
        self.runs.spawn(async move {
            let mut late = None;
            let found = match there {
                Some(there) => Ok(there),
                None => models.lease_named(&model).await.map(|lease| {
                    let picked = lease.pick();
                    late = picked.header();
                    (picked, lease)
                }),
            };
            let outputs = match found {
                Ok((picked, lease)) => models.infer_named(&lease, picked, inputs).await,
                Err(error) => Err(error),
            };
            let content = outputs.map_or_else(Content::Error, Content::Tensors);
            Answer { id, content, device: late, bytes }
        });
        Ok(device)
    }

    /// The next answer that is there.
    pub(super) fn poll_answered(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        loop {
            match self.runs.poll_join_next(context) {
                Poll::Ready(Some(Ok(answer))) => {
                    self.bytes -= answer.bytes;
                    return Poll::Ready(answer);
                }
                // A run that panicked is a bug of ours and has been reported; the worker is left without an answer, and its call
                // runs into its limit.
                Poll::Ready(Some(Err(_))) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Waits for an answer.
    pub(super) async fn answered(&mut self) -> Answer {
        std::future::poll_fn(|context| self.poll_answered(context)).await
    }
}

/// A worker can write to its region while a device reads from it. Numbers that are no more than values may change, and the result is
/// then nobody's fault but the script's. Whole numbers may be places, which a kernel checks first and goes to then: they must not
/// change in between, so these, which are seldom large, are copied.
fn keep_still(tensor: &mut Tensor) -> Result<(), FrameError> {
    use DataType::{Bf16, Fp16, Fp32, Fp64};
    if !matches!(tensor.data_type(), Bf16 | Fp16 | Fp32 | Fp64) {
        let copy = Tensor::new(tensor.data_type(), tensor.shape().clone(), aligned(tensor.data())?);
        *tensor = copy.map_err(|_| FrameError::Malformed("INFER"))?;
    }
    Ok(())
}

fn aligned(payload: &[u8]) -> Result<Bytes, FrameError> {
    let mut buffer = Buffer::zeroed(payload.len()).map_err(|_| FrameError::Malformed("INFER"))?;
    buffer.copy_from_slice(payload);
    Ok(buffer.freeze())
}

impl Answer {
    /// Adds the answer to what is sent to the worker.
    pub(super) fn put(self, connection: &mut Connection) {
        let id = self.id;
        match self.content {
            Content::Info(json) => connection.put_frame(Kind::ModelInfo, id, &json),
            Content::Error(error) => put_error(connection, id, &error),
            Content::Tensors(outputs) => put_tensors(connection, id, &outputs),
        }
    }
}

fn put_error(connection: &mut Connection, id: u64, error: &CallError) {
    let json = serde_json::json!({"code": error.code.as_str(), "message": error.message});
    connection.put_frame(Kind::ModelError, id, json.to_string().as_bytes());
}

fn put_tensors(connection: &mut Connection, id: u64, outputs: &[(String, Tensor)]) {
    if outputs.iter().any(|(_, tensor)| tensor.data_type().dlpack().is_none()) {
        let text = "an output has a type that has no place in a tensor block";
        return put_error(connection, id, &CallError::new(ErrorCode::UnsupportedDatatype, text));
    }
    let named: Vec<_> = outputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let block = tensors::lay_out(&named);
    let pieces: Vec<_> =
        block.starts.iter().copied().zip(outputs.iter().map(|(_, tensor)| tensor.data())).collect();
    if let Some(reference) = connection.regions.lend_copy(block.length, &pieces) {
        let length = REFERENCE + block.head.len();
        return connection.put(|out| {
            out.extend_from_slice(&Header { tail: true, ..Header::new(Kind::Tensors, id, length) }.encode());
            out.extend_from_slice(&reference.encode());
            out.extend_from_slice(&block.head);
        });
    }
    for piece in tensors::encode_tensors(id, &named) {
        connection.put_bytes(piece);
    }
}
