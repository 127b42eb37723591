//! What backends say and take, as it lies in frames.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use outrigger_backend::{
    BackendError, BackendInfo, DeviceInfo, DeviceKind, DeviceStatus, Health, LoadOptions, ModelInfo,
    TensorInfo,
};

use crate::wire::{Put, Reader, WireError};

type Result<T> = std::result::Result<T, WireError>;

/// The version of the frames; both ends are of one build, or the child is somebody else's executable.
pub(crate) const VERSION: u32 = 1;

/// The first frame to a child.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) library: Vec<u8>,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) limits: HostLimits,
}

/// What the child keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostLimits {
    /// Bytes of all results of one call.
    pub(crate) call_bytes: u64,
    /// Bytes of all results of one call that still go in the frame.
    pub(crate) inline_bytes: u64,
    /// Bytes of regions that a connection keeps.
    pub(crate) kept_bytes: u64,
    /// Regions that a connection keeps.
    pub(crate) kept_regions: u64,
    /// How long to look for the next request before sleeping.
    pub(crate) spin: Duration,
    /// How long calls that are under way are waited for when the parent has gone.
    pub(crate) end_grace: Duration,
}

impl Hello {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(VERSION);
        out.put_bytes(&self.library);
        put_settings(&self.settings, out);
        let HostLimits { call_bytes, inline_bytes, kept_bytes, kept_regions, spin, end_grace } = self.limits;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        [call_bytes, inline_bytes, kept_bytes, kept_regions, nanos(spin), nanos(end_grace)]
            .iter()
            .for_each(|limit| out.put_u64(*limit));
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let version = reader.u32()?;
        if version != VERSION {
            return Err(WireError::Unknown { what: "version of the frames", number: version.into() });
        }
        let library = reader.bytes()?.to_vec();
        let settings = settings(reader)?;
        let limits = HostLimits {
            call_bytes: reader.u64()?,
            inline_bytes: reader.u64()?,
            kept_bytes: reader.u64()?,
            kept_regions: reader.u64()?,
            spin: Duration::from_nanos(reader.u64()?),
            end_grace: Duration::from_nanos(reader.u64()?),
        };
        Ok(Self { library, settings, limits })
    }
}

fn put_settings(settings: &[(String, String)], out: &mut Vec<u8>) {
    out.put_count(settings.len());
    for (key, value) in settings {
        out.put_text(key);
        out.put_text(value);
    }
}

fn settings(reader: &mut Reader<'_>) -> Result<Vec<(String, String)>> {
    reader.list(|reader| Ok((reader.text()?, reader.text()?)))
}

pub(crate) fn put_error(error: &BackendError, out: &mut Vec<u8>) {
    let (number, texts): (u8, [&str; 3]) = match error {
        BackendError::Unavailable { backend, reason } => (1, [backend, reason, ""]),
        BackendError::Version { backend, expected, actual } => (2, [backend, expected, actual]),
        BackendError::Load(text) => (3, [text, "", ""]),
        BackendError::Input(text) => (4, [text, "", ""]),
        BackendError::OutOfMemory(text) => (5, [text, "", ""]),
        BackendError::Run(text) => (6, [text, "", ""]),
        BackendError::Cancelled => (7, [""; 3]),
        BackendError::Lost(text) => (8, [text, "", ""]),
        BackendError::Unsupported(text) => (9, [text, "", ""]),
        BackendError::Internal(text) => (10, [text, "", ""]),
        other => return put_error(&BackendError::Internal(other.to_string()), out),
    };
    out.put_u8(number);
    texts.iter().for_each(|text| out.put_text(cut(text)));
}

/// Longer texts of errors are cut, so that no error is over the limit of a frame.
const LONGEST_TEXT: usize = 64 << 10;

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST_TEXT)).unwrap_or_default()
}

/// The most of a text of a child's that goes to logs and callers.
const LONGEST_HEARD: usize = 4 << 10;

/// What a child says to people: short, and on one line, so that it does not look like several of ours.
fn heard(reader: &mut Reader<'_>) -> Result<String> {
    Ok(shown(&reader.text()?))
}

fn shown(text: &str) -> String {
    let text = text.get(..text.floor_char_boundary(LONGEST_HEARD)).unwrap_or_default();
    text.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect()
}

pub(crate) fn error(reader: &mut Reader<'_>) -> Result<BackendError> {
    let number = reader.u8()?;
    let (text, second, third) = (heard(reader)?, heard(reader)?, heard(reader)?);
    Ok(match number {
        1 => BackendError::Unavailable { backend: text, reason: second },
        2 => BackendError::Version { backend: text, expected: second, actual: third },
        3 => BackendError::Load(text),
        4 => BackendError::Input(text),
        5 => BackendError::OutOfMemory(text),
        6 => BackendError::Run(text),
        7 => BackendError::Cancelled,
        8 => BackendError::Lost(text),
        9 => BackendError::Unsupported(text),
        10 => BackendError::Internal(text),
        number => return Err(WireError::Unknown { what: "kind of error", number: number.into() }),
    })
}

pub(crate) fn put_info(info: &BackendInfo, out: &mut Vec<u8>) {
    out.put_text(&info.name);
    out.put_text(&info.version);
    out.put_count(info.formats.len());
    info.formats.iter().for_each(|format| out.put_text(format));
    out.put_count(info.devices.len());
    for device in &info.devices {
        out.put_text(&device.name);
        out.put_u8(match device.kind {
            DeviceKind::Cpu => 0,
            DeviceKind::Cuda => 1,
            DeviceKind::Gpu => 2,
            DeviceKind::Fpga => 3,
            _ => u8::MAX,
        });
        out.put_u64(device.memory_total);
        out.put_u32(device.lanes);
        out.put_u8(u8::from(device.resident));
    }
    out.put_optional(info.reason.as_deref());
}

pub(crate) fn info(reader: &mut Reader<'_>) -> Result<BackendInfo> {
    Ok(BackendInfo {
        name: reader.text()?,
        version: reader.text()?,
        formats: reader.list(Reader::text)?,
        devices: reader.list(device)?,
        reason: reader.optional()?.map(|reason| shown(&reason)),
    })
}

fn device(reader: &mut Reader<'_>) -> Result<DeviceInfo> {
    let name = reader.text()?;
    let kind = match reader.u8()? {
        0 => DeviceKind::Cpu,
        1 => DeviceKind::Cuda,
        2 => DeviceKind::Gpu,
        3 => DeviceKind::Fpga,
        number => return Err(WireError::Unknown { what: "kind of device", number: number.into() }),
    };
    let (memory_total, lanes, resident) = (reader.u64()?, reader.u32()?, reader.flag()?);
    Ok(DeviceInfo { name, kind, memory_total, lanes, resident })
}

pub(crate) fn put_status(status: &DeviceStatus, out: &mut Vec<u8>) {
    [status.memory_total, status.memory_free, status.memory_held]
        .iter()
        .for_each(|bytes| out.put_u64(*bytes));
    let (number, text) = match &status.health {
        Health::Healthy => (0, ""),
        Health::Degraded(text) => (1, text.as_str()),
        Health::Recovering(text) => (3, text.as_str()),
        Health::Lost(text) => (2, text.as_str()),
        _ => (2, "of a kind of health that is not known"),
    };
    out.put_u8(number);
    out.put_text(cut(text));
}

pub(crate) fn status(reader: &mut Reader<'_>) -> Result<DeviceStatus> {
    let (memory_total, memory_free, memory_held) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let (number, text) = (reader.u8()?, heard(reader)?);
    let health = match number {
        0 => Health::Healthy,
        1 => Health::Degraded(text),
        3 => Health::Recovering(text),
        2 => Health::Lost(text),
        number => return Err(WireError::Unknown { what: "kind of health", number: number.into() }),
    };
    Ok(DeviceStatus { memory_total, memory_free, memory_held, health })
}

pub(crate) fn put_options(options: &LoadOptions, out: &mut Vec<u8>) {
    out.put_bytes(options.path.as_os_str().as_bytes());
    out.put_optional(options.format.as_deref());
    out.put_u8(u8::from(options.intra_threads.is_some()));
    out.put_size(options.intra_threads.unwrap_or(0));
    put_settings(&options.settings, out);
    put_model(&options.signature, out);
}

pub(crate) fn options(reader: &mut Reader<'_>) -> Result<LoadOptions> {
    let path = std::ffi::OsString::from_vec(reader.bytes()?.to_vec()).into();
    let format = reader.optional()?;
    let (there, threads) = (reader.flag()?, reader.size()?);
    let settings = settings(reader)?;
    let signature = model(reader)?;
    Ok(LoadOptions { path, format, intra_threads: there.then_some(threads), settings, signature })
}

pub(crate) fn put_model(info: &ModelInfo, out: &mut Vec<u8>) {
    for tensors in [&info.inputs, &info.outputs] {
        out.put_count(tensors.len());
        for tensor in tensors {
            out.put_text(&tensor.name);
            out.put_type(tensor.data_type);
            out.put_extents(&tensor.shape);
            out.put_count(tensor.symbols.len());
            tensor.symbols.iter().for_each(|symbol| out.put_text(symbol));
        }
    }
}

pub(crate) fn model(reader: &mut Reader<'_>) -> Result<ModelInfo> {
    let tensor = |reader: &mut Reader<'_>| {
        Ok(TensorInfo {
            name: reader.text()?,
            data_type: reader.data_type()?,
            shape: reader.extents()?,
            symbols: reader.list(Reader::text)?,
        })
    };
    Ok(ModelInfo { inputs: reader.list(tensor)?, outputs: reader.list(tensor)? })
}
