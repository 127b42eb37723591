//! Frames: a header of 16 bytes, then fields; and the frames that carry tensors.

use std::num::NonZeroU64;

use outrigger_backend::{DLDevice, DataType, RunId, Shape};

use crate::wire::{Put, Reader, WireError};

type Result<T> = std::result::Result<T, WireError>;

/// Bytes of a header: u32 length of what follows, u8 kind, u8 descriptors beside it, u16 0, u64 number.
pub(crate) const HEADER: usize = 16;
/// The most bytes that follow a header. Tensors beyond a few kilobytes lie elsewhere.
pub(crate) const LIMIT: usize = 4 << 20;
/// The most descriptors beside a frame.
pub(crate) const MOST_FILES: usize = 2;

/// The number of an answer by which a child refuses a connection, whatever was asked over it.
pub(crate) const REFUSED: u64 = u64::MAX;

macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident = $number:literal;)+) => {
        /// The kinds of frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Kind {
            $($(#[$doc])+ $kind = $number,)+
        }

        impl Kind {
            fn from_number(number: u8) -> Result<Self> {
                match number {
                    $($number => Ok(Self::$kind),)+
                    _ => Err(WireError::Unknown { what: "kind of frame", number: number.into() }),
                }
            }
        }
    };
}

kinds! {
    /// Control: which library to open.
    Hello = 1;
    /// Control: a connection, whose socket comes beside it.
    Connect = 2;
    /// Control: the run of that number is to end.
    Cancel = 3;
    /// Which device the child serves.
    OpenDevice = 16;
    /// Memory and health, and what each instance holds.
    Status = 17;
    /// What a model would take.
    Estimate = 18;
    /// Loads a model under the header's number.
    Load = 19;
    /// Makes an instance under the header's number.
    Instance = 20;
    /// Takes memory of the device's under the header's number.
    Allocate = 22;
    /// Fills it.
    Upload = 23;
    /// Reads it.
    Download = 24;
    /// Ends what has the header's number.
    Release = 25;
    /// Maps a region of the parent's under the header's number; its descriptor comes beside it.
    Pin = 27;
    /// Runs an instance; the header's number is the run's.
    Infer = 26;
    /// It worked; what was asked for follows.
    Done = 64;
    /// It did not; why follows.
    Failed = 65;
}

/// Begins a frame; [`finish`] completes its header.
pub(crate) fn begin(out: &mut Vec<u8>, kind: Kind, number: u64) {
    out.clear();
    out.put(&[0, 0, 0, 0, kind as u8, 0, 0, 0]);
    out.put_u64(number);
}

/// Writes the length of a frame into its header, and how many descriptors come beside it.
pub(crate) fn finish(out: &mut [u8], files: usize) -> Result<()> {
    let length = out.len().saturating_sub(HEADER);
    if length > LIMIT {
        return Err(WireError::Length { length, limit: LIMIT });
    }
    if let Some(field) = out.first_chunk_mut() {
        *field = (length as u32).to_le_bytes();
    }
    if let Some(field) = out.get_mut(5) {
        *field = u8::try_from(files).map_err(|_| WireError::Number)?;
    }
    Ok(())
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes that follow.
    pub(crate) length: usize,
    pub(crate) kind: Kind,
    /// Descriptors beside it.
    pub(crate) files: usize,
    pub(crate) number: u64,
}

/// Reads a header.
pub(crate) fn header(bytes: &[u8; HEADER]) -> Result<Header> {
    let mut fields = Reader(bytes);
    let length = fields.u32()? as usize;
    if length > LIMIT {
        return Err(WireError::Length { length, limit: LIMIT });
    }
    let kind = Kind::from_number(fields.u8()?)?;
    let files = usize::from(fields.u8()?);
    if files > MOST_FILES || fields.take(2)? != [0; 2] {
        return Err(WireError::Number);
    }
    Ok(Header { length, kind, files, number: fields.u64()? })
}

/// A tensor in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) data_type: DataType,
    pub(crate) shape: Shape,
    pub(crate) at: At,
}

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// At the end of the frame, after those of the tensors before it.
    Inline { len: usize },
    /// In a region. Inputs are in one of the parent's that has number 0, or in one that it had pinned.
    Region { number: u64, offset: u64, len: u64 },
    /// In the device's memory, under a number of the child's.
    Resident { number: u64, device: DLDevice, len: u64 },
}

impl Head {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_type(self.data_type);
        out.put_extents(self.shape.extents());
        match self.at {
            At::Inline { len } => {
                out.put_u8(0);
                out.put_size(len);
            }
            At::Region { number, offset, len } => {
                out.put_u8(1);
                [number, offset, len].iter().for_each(|field| out.put_u64(*field));
            }
            At::Resident { number, device, len } => {
                out.put_u8(2);
                out.put_u64(number);
                out.put(&device.device_type.to_le_bytes());
                out.put(&device.device_id.to_le_bytes());
                out.put_u64(len);
            }
        }
    }

    /// Reads one whose bytes are as many as type and shape ask for.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let (data_type, shape) = (reader.data_type()?, reader.shape()?);
        let at = match reader.u8()? {
            0 => At::Inline { len: reader.size()? },
            1 => At::Region { number: reader.u64()?, offset: reader.u64()?, len: reader.u64()? },
            2 => {
                let number = reader.u64()?;
                let signed = |field: u32| i32::from_le_bytes(field.to_le_bytes());
                let (device_type, device_id) = (signed(reader.u32()?), signed(reader.u32()?));
                At::Resident { number, device: DLDevice { device_type, device_id }, len: reader.u64()? }
            }
            number => return Err(WireError::Unknown { what: "place of a tensor", number: number.into() }),
        };
        let head = Self { data_type, shape, at };
        // Strings say themselves how long they are; whoever makes a tensor of them looks.
        if data_type != DataType::Bytes {
            let (expected, actual) = (head.shape.bytes(data_type)?, head.len());
            if expected as u64 != actual {
                return Err(WireError::Size { expected, actual });
            }
        }
        Ok(head)
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        match self.at {
            At::Inline { len } => len as u64,
            At::Region { len, .. } | At::Resident { len, .. } => len,
        }
    }
}

/// What a request says of memory, and the tensors that it carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Regions of the child's of which the last view is gone.
    pub(crate) freed: Vec<u64>,
    /// The size of a new region of the parent's, whose descriptor comes beside the frame. It replaces the one before.
    pub(crate) region: Option<u64>,
    /// The region is not used again after this request.
    pub(crate) forget: bool,
    /// The tensors.
    pub(crate) tensors: Vec<Head>,
}

impl Sent {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_count(self.freed.len());
        self.freed.iter().for_each(|number| out.put_u64(*number));
        out.put_u64(self.region.unwrap_or(0));
        out.put_u8(u8::from(self.forget));
        out.put_count(self.tensors.len());
        self.tensors.iter().for_each(|head| head.put(out));
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            freed: reader.list(Reader::u64)?,
            region: Some(reader.u64()?).filter(|size| *size != 0),
            forget: reader.flag()?,
            tensors: reader.list(Head::read)?,
        })
    }
}

/// An output asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) index: usize,
    pub(crate) form: Form,
}

/// In which form an output is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Wherever.
    Allocate,
    /// In the device's memory.
    Resident,
    /// The caller expects it of this type and shape.
    Place(DataType, Shape),
}

impl Asked {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_size(self.index);
        match &self.form {
            Form::Allocate => out.put_u8(0),
            Form::Resident => out.put_u8(1),
            Form::Place(data_type, shape) => {
                out.put_u8(2);
                out.put_type(*data_type);
                out.put_extents(shape.extents());
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let index = reader.size()?;
        let form = match reader.u8()? {
            0 => Form::Allocate,
            1 => Form::Resident,
            2 => Form::Place(reader.data_type()?, reader.shape()?),
            number => return Err(WireError::Unknown { what: "form of an output", number: number.into() }),
        };
        Ok(Self { index, form })
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Infer {
    pub(crate) instance: u64,
    /// The caller's number, if it may be cancelled.
    pub(crate) id: Option<RunId>,
    pub(crate) sent: Sent,
    pub(crate) asked: Vec<Asked>,
}

impl Infer {
    /// Writes one; the bytes of tensors in the frame are to follow.
    pub(crate) fn write(instance: u64, id: Option<RunId>, sent: &Sent, asked: &[Asked], out: &mut Vec<u8>) {
        out.put_u64(instance);
        out.put_u64(id.map_or(0, RunId::get));
        sent.put(out);
        out.put_count(asked.len());
        asked.iter().for_each(|asked| asked.put(out));
    }

    /// Reads one; the bytes of tensors in the frame are left in the reader.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            instance: reader.u64()?,
            id: NonZeroU64::new(reader.u64()?),
            sent: Sent::read(reader)?,
            asked: reader.list(Asked::read)?,
        })
    }
}

/// The answer to a request that carries tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// The backend has kept something of the parent's region, which must not be written to any more.
    pub(crate) kept: bool,
    /// Regions that are new here; their descriptors come beside the frame, in this order.
    pub(crate) regions: Vec<Announced>,
    /// Regions that the child has given up.
    pub(crate) gone: Vec<u64>,
    /// The tensors.
    pub(crate) tensors: Vec<Head>,
}

/// A region of the child's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) number: u64,
    pub(crate) size: u64,
    /// It will be used again; else this frame alone refers to it.
    pub(crate) stays: bool,
}

impl Given {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.kept));
        out.put_count(self.regions.len());
        for region in &self.regions {
            out.put_u64(region.number);
            out.put_u64(region.size);
            out.put_u8(u8::from(region.stays));
        }
        out.put_count(self.gone.len());
        self.gone.iter().for_each(|number| out.put_u64(*number));
        out.put_count(self.tensors.len());
        self.tensors.iter().for_each(|head| head.put(out));
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let region = |reader: &mut Reader<'_>| {
            Ok(Announced { number: reader.u64()?, size: reader.u64()?, stays: reader.flag()? })
        };
        Ok(Self {
            kept: reader.flag()?,
            regions: reader.list(region)?,
            gone: reader.list(Reader::u64)?,
            tensors: reader.list(Head::read)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{self, Hello, HostLimits};

    fn head() -> impl Strategy<Value = Head> {
        let extents = proptest::collection::vec(0i64..5, 0..4);
        let device = (any::<i32>(), any::<i32>());
        (extents, 0..3u8, any::<u64>(), any::<u64>(), device).prop_map(
            |(extents, at, number, offset, device)| {
                let shape = Shape::new(extents).unwrap();
                let len = shape.bytes(DataType::Fp16).unwrap() as u64;
                let device = DLDevice { device_type: device.0, device_id: device.1 };
                let at = match at {
                    0 => At::Inline { len: len as usize },
                    1 => At::Region { number, offset, len },
                    _ => At::Resident { number, device, len },
                };
                Head { data_type: DataType::Fp16, shape, at }
            },
        )
    }

    fn whole<T>(bytes: &[u8], read: impl FnOnce(&mut Reader<'_>) -> Result<T>) -> T {
        let mut reader = Reader(bytes);
        let value = read(&mut reader).unwrap();
        reader.end().unwrap();
        value
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(heads in proptest::collection::vec(head(), 0..5), freed: Vec<u64>, forget: bool, size: u32) {
            let size = u64::from(size) + 1;
            let sent = Sent { freed: freed.clone(), region: Some(size), forget, tensors: heads.clone() };
            let asked = vec![
                Asked { index: 3, form: Form::Allocate },
                Asked { index: usize::MAX, form: Form::Resident },
                Asked { index: 0, form: Form::Place(DataType::Int64, Shape::new([2, 0]).unwrap()) },
            ];
            let mut out = Vec::new();
            Infer::write(7, NonZeroU64::new(9), &sent, &asked, &mut out);
            let infer = whole(&out, Infer::read);
            prop_assert_eq!((infer.instance, infer.id, infer.sent, infer.asked), (7, NonZeroU64::new(9), sent, asked));
            let regions = vec![Announced { number: 1, size, stays: forget }];
            let given = Given { kept: forget, regions, gone: freed, tensors: heads };
            out.clear();
            given.put(&mut out);
            prop_assert_eq!(whole(&out, Given::read), given);
        }

        #[test]
        fn no_bytes_make_a_reader_panic_or_take_much_memory(bytes: Vec<u8>) {
            let mut start = [0; HEADER];
            start.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
            let _ = header(&start);
            let reader = || Reader(&bytes);
            let _ = Hello::read(&mut reader());
            let _ = Infer::read(&mut reader());
            let _ = Given::read(&mut reader());
            let _ = message::error(&mut reader());
            let _ = message::info(&mut reader());
            let _ = message::status(&mut reader());
            let _ = message::options(&mut reader());
            let _ = message::model(&mut reader());
        }

        #[test]
        fn a_frame_that_is_cut_or_changed_is_refused_or_another(heads in proptest::collection::vec(head(), 1..4), at: prop::sample::Index, byte: u8) {
            let mut out = Vec::new();
            Given { tensors: heads, ..Given::default() }.put(&mut out);
            let at = at.index(out.len());
            prop_assert!(Given::read(&mut Reader(&out[..at])).is_err());
            out[at] = byte;
            if let Ok(given) = Given::read(&mut Reader(&out)) {
                for head in given.tensors {
                    prop_assert!(head.data_type == DataType::Bytes || head.shape.bytes(head.data_type).unwrap() as u64 == head.len());
                }
            }
        }
    }

    #[test]
    fn counts_that_lie_take_no_memory() {
        let mut out = Vec::new();
        out.put_u8(0);
        out.put_u32(u32::MAX);
        assert_eq!(Given::read(&mut Reader(&out)), Err(WireError::Short));
        let mut out = Vec::new();
        begin(&mut out, Kind::Infer, 1);
        out[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let limit = WireError::Length { length: u32::MAX as usize, limit: LIMIT };
        assert_eq!(header(out.first_chunk().unwrap()), Err(limit));
    }

    #[test]
    fn a_greeting_of_another_version_is_refused() {
        let limits = HostLimits {
            call_bytes: 1,
            inline_bytes: 2,
            kept_bytes: 3,
            kept_regions: 4,
            spin: std::time::Duration::from_micros(5),
            end_grace: std::time::Duration::from_secs(6),
        };
        let hello = Hello { library: b"/\xff".to_vec(), settings: vec![("a".into(), "b".into())], limits };
        let mut out = Vec::new();
        hello.put(&mut out);
        assert_eq!(whole(&out, Hello::read), hello);
        out[0] += 1;
        assert!(Hello::read(&mut Reader(&out)).is_err());
    }
}
