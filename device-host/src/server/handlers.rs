//! What each kind of request does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use outrigger_backend::{BackendError, DataType, Output, Run, Shape, Tensor};
use outrigger_regions::Mapping;

use super::Host;
use super::memory::{Fault, Memory, Results};
use super::objects::{Served, missing};
use crate::frame::{Infer, Kind, Sent};
use crate::message;
use crate::wire::{Put, Reader};

/// A request.
pub(super) struct Request<'a> {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) payload: &'a [u8],
    pub(super) files: Vec<OwnedFd>,
}

/// Serves a request and appends what there is to answer; the descriptors that go beside it.
pub(super) fn handle(
    host: &Host,
    memory: &mut Memory,
    request: Request<'_>,
    out: &mut Vec<u8>,
) -> Result<Vec<OwnedFd>, Fault> {
    let mut reader = Reader(request.payload);
    match request.kind {
        Kind::Infer => return infer(host, memory, request, out),
        Kind::Upload => return upload(host, memory, request, out),
        Kind::Download => return download(host, memory, request, out),
        Kind::Pin => return pin(host, request),
        _ => plain(host, request.kind, request.number, &mut reader, out)?,
    }
    reader.end()?;
    if request.files.is_empty() {
        Ok(Vec::new())
    } else {
        Err(Fault::Protocol("a descriptor too many".into()))
    }
}

/// Requests that carry no tensors.
fn plain(
    host: &Host,
    kind: Kind,
    number: u64,
    reader: &mut Reader<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let objects = &host.objects;
    match kind {
        Kind::OpenDevice => objects.open_device(usize::try_from(number).unwrap_or(usize::MAX))?,
        Kind::Status => {
            message::put_status(&objects.device()?.status()?, out);
            let instances = objects.instances.all();
            out.put_count(instances.len());
            for (number, served) in instances {
                out.put_u64(number);
                out.put_u64(served.instance.bytes_held());
            }
        }
        Kind::Estimate => out.put_u64(objects.device()?.estimate(&message::options(reader)?)?),
        Kind::Load => {
            let model = objects.device()?.load(&message::options(reader)?)?;
            message::put_model(model.info(), out);
            objects.models.insert(number, model);
        }
        Kind::Instance => {
            let of = reader.u64()?;
            let model = objects.models.get(of).ok_or_else(|| missing("model", of))?;
            let instance = model.instance()?;
            out.put_u8(u8::from(instance.can_cancel()));
            out.put_u64(instance.bytes_held());
            objects.instances.insert(number, Served { instance, model });
        }
        Kind::Allocate => {
            let memory = objects.device()?.allocate(reader.size()?)?;
            let device = memory.device();
            out.put(&device.device_type.to_le_bytes());
            out.put(&device.device_id.to_le_bytes());
            objects.memory.insert(number, memory);
        }
        Kind::Release => objects.release(number),
        other => return Err(Fault::Protocol(format!("a frame of kind {other:?} has no place here"))),
    }
    Ok(())
}

/// Maps a region of the parent's.
fn pin(host: &Host, request: Request<'_>) -> Result<Vec<OwnedFd>, Fault> {
    let mut reader = Reader(request.payload);
    let size = reader.size()?;
    reader.end()?;
    let [file] = <[OwnedFd; 1]>::try_from(request.files)
        .map_err(|_| Fault::Protocol("a region comes with its descriptor".into()))?;
    let mapping = Mapping::open(file, size as u64)
        .map_err(|error| BackendError::OutOfMemory(format!("a region of {size} bytes: {error}")))?;
    host.objects.pinned.insert(request.number, Arc::new(mapping));
    Ok(Vec::new())
}

fn infer(
    host: &Host,
    memory: &mut Memory,
    request: Request<'_>,
    out: &mut Vec<u8>,
) -> Result<Vec<OwnedFd>, Fault> {
    let mut reader = Reader(request.payload);
    let asked = Infer::read(&mut reader)?;
    let inputs = memory.accept(&asked.sent, request.files, &mut reader, &host.objects)?;
    reader.end()?;
    let number = asked.instance;
    let served = host.objects.instances.get(number).ok_or_else(|| missing("instance", number));
    let results = served
        .map_err(Fault::from)
        .and_then(|served| run(host, memory, &asked, request.number, &served, inputs));
    answer(memory, asked.sent.forget, results, out)
}

fn run(
    host: &Host,
    memory: &mut Memory,
    asked: &Infer,
    number: u64,
    served: &Served,
    inputs: Vec<Tensor>,
) -> Result<Results, Fault> {
    let (outputs, plan) = memory.plan(&asked.asked, served.model.info(), &inputs)?;
    match execute(host, asked, number, served, &inputs, outputs) {
        Ok(results) => Ok(memory.give(results, plan, &host.objects)?),
        Err(error) => {
            memory.abandon(plan);
            Err(error.into())
        }
    }
}

fn execute(
    host: &Host,
    asked: &Infer,
    number: u64,
    served: &Served,
    inputs: &[Tensor],
    mut outputs: Vec<Output>,
) -> Result<Vec<Tensor>, BackendError> {
    let begun =
        asked.id.map(|id| host.runs.begin(number, &served.instance, id).ok_or(BackendError::Cancelled));
    let begun = begun.transpose()?;
    served.instance.infer(inputs, &mut outputs, Run { id: asked.id })?;
    drop(begun);
    let tensor = |output: Output| {
        let unset = BackendError::Internal(format!("output number {} was not set", output.index()));
        output.into_tensor().ok_or(unset)
    };
    outputs.into_iter().map(tensor).collect()
}

/// Appends results, after which nothing of the call is held any more.
fn answer(
    memory: &mut Memory,
    forget: bool,
    results: Result<Results, Fault>,
    out: &mut Vec<u8>,
) -> Result<Vec<OwnedFd>, Fault> {
    let mut results = match results {
        Ok(results) => results,
        Err(Fault::Backend(error)) => {
            // A failure has no room to say that inputs were kept, so the parent takes it that they were.
            memory.forget();
            return Err(error.into());
        }
        Err(fault) => return Err(fault),
    };
    let inline: usize = results.inline.iter().map(|bytes| bytes.len()).sum();
    out.reserve(inline + 256);
    let at = out.len();
    results.given.put(out);
    results.inline.drain(..).for_each(|bytes| out.put(&bytes));
    // Results may be inputs that were passed on, so this can only be told now. It is the answer's first byte.
    if let (true, Some(kept)) = (memory.was_kept(forget), out.get_mut(at)) {
        *kept = 1;
    }
    Ok(results.files)
}

fn upload(
    host: &Host,
    memory: &mut Memory,
    request: Request<'_>,
    out: &mut Vec<u8>,
) -> Result<Vec<OwnedFd>, Fault> {
    let mut reader = Reader(request.payload);
    let sent = Sent::read(&mut reader)?;
    let tensors = memory.accept(&sent, request.files, &mut reader, &host.objects)?;
    reader.end()?;
    let [from] = &tensors[..] else { return Err(Fault::Protocol("an upload is of one tensor".into())) };
    let to = host.objects.memory.get(request.number).ok_or_else(|| missing("memory", request.number))?;
    let done = host.objects.device().and_then(|device| device.upload(from.data(), &to));
    drop(tensors);
    answer(memory, sent.forget, done.map(|()| Results::default()).map_err(Fault::from), out)
}

fn download(
    host: &Host,
    memory: &mut Memory,
    request: Request<'_>,
    out: &mut Vec<u8>,
) -> Result<Vec<OwnedFd>, Fault> {
    let mut reader = Reader(request.payload);
    let sent = Sent::read(&mut reader)?;
    let size = reader.size()?;
    memory.accept(&sent, request.files, &mut reader, &host.objects)?;
    reader.end()?;
    let results = read_memory(host, memory, request.number, size);
    answer(memory, sent.forget, results.map_err(Fault::from), out)
}

fn read_memory(host: &Host, memory: &mut Memory, number: u64, size: usize) -> Result<Results, BackendError> {
    let from = host.objects.memory.get(number).ok_or_else(|| missing("memory", number))?;
    if size as u64 > memory.limit() {
        let text =
            format!("{size} bytes are over max_call_bytes of the device host, {} bytes", memory.limit());
        return Err(BackendError::Unsupported(text));
    }
    let extent =
        i64::try_from(size).map_err(|_| BackendError::Input("there is no memory of that size".into()))?;
    let shape = Shape::new([extent]).map_err(|error| BackendError::Input(error.to_string()))?;
    let (mut buffers, plan) = memory.buffers(&[size])?;
    let filled = buffers.pop().ok_or_else(|| BackendError::Internal("no memory for what is read".into()));
    let filled = filled.and_then(|mut buffer| {
        host.objects.device()?.download(&from, &mut buffer)?;
        let tensor = Output::place(0, DataType::Uint8, shape, buffer).ok().and_then(Output::into_tensor);
        tensor.ok_or_else(|| BackendError::Internal("as many bytes as were asked for".into()))
    });
    match filled {
        Ok(tensor) => memory.give(vec![tensor], plan, &host.objects),
        Err(error) => {
            memory.abandon(plan);
            Err(error)
        }
    }
}
