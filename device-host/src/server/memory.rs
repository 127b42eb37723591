//! Tensors of one connection: from the parent's region or the frame to the backend, and from the backend to our regions or the frame.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_backend::{BackendError, Buffer, DataType, ModelInfo, Output, Shape, Tensor};
use outrigger_regions::Mapping;

use super::objects::{Objects, missing};
use super::outgoing::{Outgoing, Taken, too_much};
use crate::frame::{Announced, Asked, At, Form, Given, Head, Sent};
use crate::message::HostLimits;
use crate::view::{Place, View, copy};
use crate::wire::Reader;

/// What a connection has of shared memory.
pub(super) struct Memory {
    input: Option<Arc<Mapping>>,
    outgoing: Outgoing,
    /// Regions that were given up and of which the parent has not heard yet.
    gone: Vec<u64>,
    inline: usize,
    call_bytes: u64,
}

/// Why a request cannot be served.
pub(super) enum Fault {
    /// The parent broke the protocol.
    Protocol(String),
    /// The backend, or something else that the caller is to hear of.
    Backend(BackendError),
}

impl From<BackendError> for Fault {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<crate::wire::WireError> for Fault {
    fn from(error: crate::wire::WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// Results on their way: the answer, the bytes that go in its frame, and the descriptors beside it.
#[derive(Default)]
pub(super) struct Results {
    pub(super) given: Given,
    pub(super) inline: Vec<Bytes>,
    pub(super) files: Vec<OwnedFd>,
}

/// Where results are expected.
#[derive(Default)]
pub(super) struct Plan {
    region: Option<u64>,
    /// Address, offset and length of each place.
    places: Vec<(usize, usize, usize)>,
    /// What the parent is to be told of the region, if it is new.
    new: Option<(Announced, OwnedFd)>,
}

impl Memory {
    pub(super) fn new(limits: HostLimits) -> Self {
        let inline = usize::try_from(limits.inline_bytes).unwrap_or(usize::MAX).min(crate::frame::LIMIT / 2);
        let outgoing = Outgoing::new(limits);
        Self { input: None, outgoing, gone: Vec::new(), inline, call_bytes: limits.call_bytes }
    }

    /// Hears what a request says of memory, and makes tensors of what it carries.
    pub(super) fn accept(
        &mut self,
        sent: &Sent,
        files: Vec<OwnedFd>,
        inline: &mut Reader<'_>,
        objects: &Objects,
    ) -> Result<Vec<Tensor>, Fault> {
        sent.freed.iter().for_each(|number| self.outgoing.freed(*number));
        match (sent.region, <[OwnedFd; 1]>::try_from(files)) {
            (Some(size), Ok([file])) => {
                let mapping =
                    Mapping::open(file, size).map_err(|error| Fault::Protocol(error.to_string()))?;
                self.input = Some(Arc::new(mapping));
            }
            (None, Err(files)) if files.is_empty() => {}
            _ => return Err(Fault::Protocol("a region and its descriptor do not come together".into())),
        }
        sent.tensors.iter().map(|head| self.tensor(head, inline, objects)).collect()
    }

    fn tensor(&self, head: &Head, inline: &mut Reader<'_>, objects: &Objects) -> Result<Tensor, Fault> {
        let data = match head.at {
            At::Inline { len } => copy(inline.take(len)?, "an input")?,
            At::Region { number, offset, len } => {
                let mapping = if number == 0 { self.input.clone() } else { objects.pinned.get(number) };
                let view = mapping.and_then(|mapping| View::new(&mapping, offset, len));
                Bytes::from_owner(
                    view.ok_or_else(|| Fault::Protocol("a tensor is not inside its region".into()))?,
                )
            }
            At::Resident { number, .. } => {
                let memory = objects.memory.get(number).ok_or_else(|| missing("memory", number))?;
                let tensor = Tensor::on_device(head.data_type, head.shape.clone(), memory);
                return tensor.map_err(|error| BackendError::Input(error.to_string()).into());
            }
        };
        let tensor = Tensor::new(head.data_type, head.shape.clone(), data);
        tensor.map_err(|error| BackendError::Input(error.to_string()).into())
    }

    /// Finds places for the results whose shapes are known.
    pub(super) fn plan(
        &mut self,
        asked: &[Asked],
        model: &ModelInfo,
        inputs: &[Tensor],
    ) -> Result<(Vec<Output>, Plan), BackendError> {
        let resolved = if asked.iter().any(|asked| asked.form == Form::Allocate) {
            model.resolve_outputs(inputs)
        } else {
            Vec::new()
        };
        let known: Vec<_> = asked.iter().map(|asked| known(asked, model, &resolved)).collect();
        let lens: Vec<usize> = known.iter().flatten().map(|(.., len)| *len).collect();
        let (buffers, plan) = self.buffers(&lens)?;
        let mut buffers = buffers.into_iter();
        let outputs = asked.iter().zip(known).map(|(asked, known)| match (known, &asked.form) {
            (Some((data_type, shape, _)), _) => buffers
                .next()
                .and_then(|buffer| Output::place(asked.index, data_type, shape, buffer).ok())
                .unwrap_or_else(|| Output::allocate(asked.index)),
            (None, Form::Resident) => Output::resident(asked.index),
            (None, _) => Output::allocate(asked.index),
        });
        Ok((outputs.collect(), plan))
    }

    /// Memory for results of these lengths: in a region, unless they are small.
    pub(super) fn buffers(&mut self, lens: &[usize]) -> Result<(Vec<Buffer>, Plan), BackendError> {
        if self.is_small(lens) {
            let buffers: Result<Vec<_>, _> = lens.iter().map(|len| Buffer::zeroed(*len)).collect();
            let failed = |_| BackendError::OutOfMemory("a few kilobytes for results".into());
            return Ok((buffers.map_err(failed)?, Plan::default()));
        }
        let Taken { number, places, new } = self.outgoing.take(lens, &mut self.gone)?;
        let offsets: Vec<usize> = places.iter().map(Place::offset).collect();
        let buffers: Vec<Buffer> = places.into_iter().map(Buffer::over).collect();
        let place = |(buffer, offset): (&Buffer, usize)| (buffer.as_ptr() as usize, offset, buffer.len());
        let places = buffers.iter().zip(offsets).map(place).collect();
        Ok((buffers, Plan { region: Some(number), places, new }))
    }

    fn is_small(&self, lens: &[usize]) -> bool {
        lens.iter().fold(0usize, |sum, len| sum.saturating_add(*len)) <= self.inline
    }

    /// Nothing of what was planned came about.
    pub(super) fn abandon(&mut self, plan: Plan) {
        if let Some(number) = plan.region {
            match plan.new {
                Some(_) => self.outgoing.withdraw(number),
                None => self.outgoing.freed(number),
            }
        }
    }

    /// Brings results into the form in which they go to the parent. What the backend has allocated is copied here, once.
    pub(super) fn give(
        &mut self,
        results: Vec<Tensor>,
        plan: Plan,
        objects: &Objects,
    ) -> Result<Results, BackendError> {
        // The parent counts them all, wherever they lie on their way.
        let host = results.iter().filter(|tensor| tensor.resident().is_none());
        let bytes = host.fold(0u64, |sum, tensor| sum.saturating_add(tensor.data().len() as u64));
        if bytes > self.call_bytes {
            self.abandon(plan);
            return Err(too_much(bytes, self.call_bytes));
        }
        let in_place = |tensor: &Tensor| {
            let (address, len) = (tensor.data().as_ptr() as usize, tensor.data().len());
            plan.places
                .iter()
                .find(|place| len > 0 && (place.0, place.2) == (address, len))
                .map(|place| place.1)
        };
        let placed: Vec<Option<usize>> = results.iter().map(in_place).collect();
        let is_late =
            |(tensor, placed): &(&Tensor, &Option<usize>)| placed.is_none() && tensor.resident().is_none();
        let late: Vec<usize> =
            results.iter().zip(&placed).filter(is_late).map(|(tensor, _)| tensor.data().len()).collect();
        let mut out = Results::default();
        let mut late_places = Vec::new().into_iter();
        let mut late_region = 0;
        if !self.is_small(&late) {
            let taken = match self.outgoing.take(&late, &mut self.gone) {
                Ok(taken) => taken,
                Err(error) => {
                    self.abandon(plan);
                    return Err(error);
                }
            };
            (late_region, late_places) = (taken.number, taken.places.into_iter());
            out.announce(taken.new);
        }
        let region = plan.region.filter(|_| placed.iter().any(Option::is_some));
        match region {
            Some(_) => out.announce(plan.new),
            None => self.abandon(plan),
        }
        out.given.gone = std::mem::take(&mut self.gone);
        for (tensor, placed) in results.iter().zip(placed) {
            let len = tensor.data().len();
            let at = if let Some(memory) = tensor.resident() {
                let (device, len) = (memory.device(), memory.len() as u64);
                At::Resident { number: objects.keep(memory.clone()), device, len }
            } else if let (Some(offset), Some(number)) = (placed, region) {
                At::Region { number, offset: offset as u64, len: len as u64 }
            } else if let Some(mut place) = late_places.next() {
                place.as_mut().copy_from_slice(tensor.data());
                At::Region { number: late_region, offset: place.offset() as u64, len: len as u64 }
            } else {
                out.inline.push(tensor.data().clone());
                At::Inline { len }
            };
            out.given.tensors.push(Head { data_type: tensor.data_type(), shape: tensor.shape().clone(), at });
        }
        Ok(out)
    }

    /// The call is over and its inputs have been let go of, as far as we had them: whether the backend still has some.
    pub(super) fn was_kept(&mut self, forget: bool) -> bool {
        let kept = self.input.as_mut().is_some_and(|mapping| Arc::get_mut(mapping).is_none());
        if kept || forget {
            self.input = None;
        }
        kept
    }

    /// The parent's region is not used again.
    pub(super) fn forget(&mut self) {
        self.input = None;
    }

    /// Bytes of all results of one call.
    pub(super) fn limit(&self) -> u64 {
        self.call_bytes
    }
}

impl Results {
    fn announce(&mut self, new: Option<(Announced, OwnedFd)>) {
        if let Some((announced, file)) = new {
            self.given.regions.push(announced);
            self.files.push(file);
        }
    }
}

/// Type, shape and length of a result, if they are known before the run.
fn known(asked: &Asked, model: &ModelInfo, resolved: &[Option<Shape>]) -> Option<(DataType, Shape, usize)> {
    let (data_type, shape) = match &asked.form {
        Form::Resident => return None,
        Form::Place(data_type, shape) => (*data_type, shape.clone()),
        Form::Allocate => (model.outputs.get(asked.index)?.data_type, resolved.get(asked.index)?.clone()?),
    };
    let len = shape.bytes(data_type).ok()?;
    Some((data_type, shape, len))
}
