//! A device and its models over a child.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use bytes::Bytes;
use outrigger_backend::{
    BackendError, Buffer, DLDevice, DataType, Device, DeviceInfo, DeviceMemory, DeviceStatus, Health,
    Instance, LoadOptions, Model, ModelInfo, Shape, Tensor,
};

use super::connection::Laid;
use super::holder::Holder;
use super::host::{Host, Phase};
use super::instance::{HostedInstance, LiveInstance};
use super::link::Link;
use super::loaded::{Fault, InstanceEntry, Known, Loaded, ModelEntry};
use super::options::Options;
use super::pinned::{self, Pinned};
use super::remote::{number_of, remote};
use super::results::Came;
use crate::frame::Kind;
use crate::message;
use crate::patience::within;
use crate::wire::{Put, Reader, WireError};

/// A device that is open; ends its child when dropped.
pub(super) struct OpenDevice {
    holder: Holder,
    memory_total: u64,
    pub(super) pinned: Pinned,
    /// Dropped last: whoever waits for the child's end hears of it.
    _alive: SyncSender<()>,
}

impl OpenDevice {
    pub(super) fn open(
        holder: Holder,
        index: usize,
        info: &DeviceInfo,
        alive: SyncSender<()>,
    ) -> Result<Self, BackendError> {
        let link = holder.host.link()?;
        // Before the library opens it, so that what it prints meanwhile has the name already.
        let _ = holder.host.device.set(format!("{}:{index}", holder.host.options.name));
        let limit = holder.host.options.timing.to_answer();
        link.ask(Kind::OpenDevice, index as u64, |_| {}, |_| Ok(()), limit)?;
        let device = Some((index, info.name.clone()));
        holder.host.register(&link, |loaded| loaded.device = device)?;
        holder.host.tell_first();
        Ok(Self { holder, memory_total: info.memory_total, pinned: Pinned::default(), _alive: alive })
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.holder.host
    }

    /// Ends something in the child, if there is one that has it. Does not wait for ever.
    pub(super) fn release(&self, link: &Link, number: u64) {
        let grace = self.host().options.timing.to_end();
        match link.ask(Kind::Release, number, |_| {}, |_| Ok(()), grace) {
            // The child is ended, and with it what it was to release.
            Ok(()) | Err(BackendError::Lost(_)) => {}
            // It could not be asked.
            Err(_) => link.owe(number),
        }
    }
}

/// An open device.
pub(super) struct HostedDevice(pub(super) Arc<OpenDevice>);

impl HostedDevice {
    /// A device of which a child that is gone knows nothing more.
    fn without_child(&self, health: Health) -> DeviceStatus {
        DeviceStatus { memory_total: self.0.memory_total, memory_free: 0, memory_held: 0, health }
    }

    fn memory_of(&self, memory: &DeviceMemory) -> Result<(Arc<Link>, u64), BackendError> {
        let link = self.0.host().link()?;
        let number = number_of(memory, &self.0, &link)?;
        Ok((link, number))
    }
}

/// The device's status, and what its instances hold.
fn read_status(reader: &mut Reader<'_>) -> Result<(DeviceStatus, Vec<(u64, u64)>), WireError> {
    Ok((message::status(reader)?, reader.list(|reader| Ok((reader.u64()?, reader.u64()?)))?))
}

impl Device for HostedDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let host = self.0.host();
        if let Phase::Up(link, _) = host.phase() {
            let limit = host.options.timing.to_tell();
            let status = link.ask(Kind::Status, 0, |_| {}, read_status, limit);
            let status = status.map(|(status, held)| {
                host.hold(&held);
                status
            });
            match status {
                Ok(DeviceStatus { health: Health::Lost(why), .. }) => {
                    link.accuse(BackendError::Lost(why).into());
                    return Ok(
                        self.without_child(Health::Recovering("its device host is being ended".into()))
                    );
                }
                Err(BackendError::Lost(_)) => {}
                Ok(status) if status.health == Health::Healthy => {
                    let health = host.degraded().map_or(Health::Healthy, Health::Degraded);
                    return Ok(DeviceStatus { health, ..status });
                }
                status => return status,
            }
        }
        Ok(self.without_child(host.health().health))
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        let (host, link) = (self.0.host(), self.0.host().link()?);
        let fill = |out: &mut Vec<u8>| message::put_options(options, out);
        link.ask(Kind::Estimate, 0, fill, |reader| reader.u64(), host.options.timing.to_answer())
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        let host = self.0.host();
        let most = host.options.limits.models;
        if host.count(|loaded| loaded.models.len()) >= most {
            return Err(BackendError::Load(format!(
                "{}: the device host holds {most} models, which is its limit (max_models)",
                options.path.display()
            )));
        }
        let (link, number) = (host.link()?, host.number());
        let read = |reader: &mut Reader<'_>| {
            let signature: Arc<[u8]> = reader.0.into();
            Ok((message::model(reader)?, signature))
        };
        let fill = |out: &mut Vec<u8>| message::put_options(options, out);
        let (info, signature) = link.ask(Kind::Load, number, fill, read, host.options.timing.to_load())?;
        let fault = Arc::new(Fault::default());
        let entry = ModelEntry { options: options.clone(), signature, fault: Arc::clone(&fault) };
        host.register(&link, |loaded| drop(loaded.models.insert(number, entry)))?;
        Ok(Arc::new(HostedModel(Arc::new(LoadedModel { device: Arc::clone(&self.0), number, info, fault }))))
    }

    /// A region that the child reads in place, once it is an input. What would travel in the frame anyhow is plain memory.
    fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        if bytes > self.0.host().options.limits.inline_bytes {
            return pinned::buffer(&self.0, bytes);
        }
        Buffer::zeroed(bytes).map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes of host memory")))
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        let host = self.0.host();
        let (link, number) = (host.link()?, host.number());
        let read = |reader: &mut Reader<'_>| {
            let signed = |field: u32| i32::from_le_bytes(field.to_le_bytes());
            Ok(DLDevice { device_type: signed(reader.u32()?), device_id: signed(reader.u32()?) })
        };
        let limit = host.options.timing.to_answer();
        let device = link.ask(Kind::Allocate, number, |out| out.put_size(bytes), read, limit)?;
        Ok(remote(&self.0, &link, number, device, bytes))
    }

    fn upload(&self, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        let (link, number) = self.memory_of(to)?;
        let shape = i64::try_from(from.len()).ok().and_then(|len| Shape::new([len]).ok());
        // Only copied where it travels in the frame; the caller's bytes do not live long enough to be shared.
        let tensor =
            shape.and_then(|shape| Tensor::new(DataType::Uint8, shape, Bytes::copy_from_slice(from)).ok());
        let tensor =
            tensor.ok_or_else(|| BackendError::Input("there is no tensor of so many bytes".into()))?;
        let Options { limits, timing, .. } = &*self.0.host().options;
        let done = link.for_housekeeping().and_then(|mut lent| {
            lent.with(|connection| {
                let laid = connection.lay(std::slice::from_ref(&tensor), limits, &[])?;
                connection.send_tensors(
                    Kind::Upload,
                    number,
                    laid,
                    &within(timing.to_answer()),
                    |sent, out| sent.put(out),
                )?;
                connection.take_tensors(0, limits)
            })
        });
        done.map(drop).map_err(|trouble| link.fails(trouble))
    }

    fn download(&self, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        let (link, number) = self.memory_of(from)?;
        let Options { limits, timing, .. } = &*self.0.host().options;
        let came = link.for_housekeeping().and_then(|mut lent| {
            lent.with(|connection| {
                let write = |sent: &crate::frame::Sent, out: &mut Vec<u8>| {
                    sent.put(out);
                    out.put_size(to.len());
                };
                connection.send_tensors(
                    Kind::Download,
                    number,
                    Laid::default(),
                    &within(timing.to_answer()),
                    write,
                )?;
                let came = connection.take_tensors(1, limits)?.pop();
                match came {
                    Some(Came::Host(tensor)) if tensor.data().len() == to.len() => {
                        to.copy_from_slice(tensor.data());
                        Ok(())
                    }
                    _ => Err(WireError::Short.into()),
                }
            })
        });
        came.map_err(|trouble| link.fails(trouble))
    }
}

/// A model in the child.
pub(super) struct LoadedModel {
    pub(super) device: Arc<OpenDevice>,
    number: u64,
    pub(super) info: ModelInfo,
    fault: Arc<Fault>,
}

impl Drop for LoadedModel {
    fn drop(&mut self) {
        let forget = |loaded: &mut Loaded| drop(loaded.models.remove(&self.number));
        if let Some(link) = self.device.host().unregister(forget) {
            self.device.release(&link, self.number);
        }
    }
}

struct HostedModel(Arc<LoadedModel>);

impl Model for HostedModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        let (model, host) = (&self.0, self.0.device.host());
        let most = host.options.limits.instances;
        model.fault.check()?;
        if host.count(|loaded| loaded.instances.len()) >= most {
            return Err(BackendError::Run(format!(
                "the device host holds {most} instances, which is its limit (max_instances)"
            )));
        }
        let (link, number) = (host.link()?, host.number());
        let known = Arc::new(Known::default());
        let fill = |out: &mut Vec<u8>| out.put_u64(model.number);
        let limit = host.options.timing.to_load();
        link.ask(Kind::Instance, number, fill, |reader| known.read(reader), limit)?;
        let entry = InstanceEntry { model: model.number, known: Arc::clone(&known) };
        host.register(&link, |loaded| drop(loaded.instances.insert(number, entry)))?;
        Ok(Arc::new(HostedInstance(LiveInstance { model: Arc::clone(model), number, known })))
    }
}
