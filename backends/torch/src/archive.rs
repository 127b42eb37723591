//! What a TorchScript archive says before libtorch sees it: whether it is one, how large its tensors are, and what `forward` takes.
//!
//! libtorch's C interface tells neither the names of arguments nor their types; they stand in the archive's code.
//! Source: PyTorch's `torch/csrc/jit/docs/serialization.md`.

use std::path::Path;

use crate::file::Opened;
use crate::forward::{Forward, ForwardError};
use crate::habits::Habits;
use crate::limits::{CODE_DEPTH, NAME_BYTES};
use crate::nesting::nesting;
use crate::pickle::{self, Limits, PickleError};
use crate::zip::{Zip, ZipError};

/// What is in an archive.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The file that was looked at.
    pub(crate) file: Opened,
    /// Bytes of tensors: attributes and constants.
    pub(crate) tensor_bytes: u64,
    /// The method that runs the model.
    pub(crate) forward: Forward,
    /// What the code does beside computing.
    pub(crate) habits: Habits,
}

/// Why a file is no TorchScript model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error(transparent)]
    Zip(#[from] ZipError),
    #[error("is no TorchScript but a pickle, as `torch.save` wrote it before PyTorch 1.6; {SAVE}")]
    Old,
    #[error("is no TorchScript but what `torch.save` writes: weights, or a pickled module; {SAVE}")]
    Saved,
    #[error("is no TorchScript but a program of `torch.export`; {SAVE}")]
    Exported,
    #[error("is no TorchScript: {0}; {SAVE}")]
    Nothing(&'static str),
    #[error("its code is nested more than {CODE_DEPTH} deep")]
    Deep,
    #[error("its module is broken: {0}")]
    Module(&'static str),
    #[error(transparent)]
    Pickle(#[from] PickleError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// What to do instead.
const SAVE: &str =
    "save the module with `torch.jit.save(torch.jit.script(module), path)` or `torch.jit.trace`";

/// Looks at an archive. What is compressed in it may have `inflated_bytes` together, each of its pickles and sources as many.
pub(crate) fn inspect(path: &Path, inflated_bytes: u64) -> Result<Contents, ArchiveError> {
    let zip = match Zip::open(path, inflated_bytes) {
        // A pickle of protocol 2.
        Err(ZipError::Start([0x80, 2, ..])) => return Err(ArchiveError::Old),
        zip => zip?,
    };
    let Some(root) = zip.entries().first().and_then(|entry| Some(entry.name.split_once('/')?.0.to_owned()))
    else {
        return Err(ArchiveError::Nothing("its files are in no folder"));
    };
    let has = |name: &str| zip.find(&format!("{root}/{name}")).is_some();
    if !has("constants.pkl") || !has("data.pkl") {
        let exported =
            |name: &str| name.contains("serialized_exported_program") || name.ends_with("/archive_format");
        return Err(if has("data.pkl") {
            ArchiveError::Saved
        } else if zip.entries().iter().any(|entry| exported(&entry.name)) {
            ArchiveError::Exported
        } else {
            ArchiveError::Nothing("the archive has neither `data.pkl` nor `constants.pkl`")
        });
    }
    let folders = [format!("{root}/data/"), format!("{root}/constants/")];
    let tensors =
        zip.entries().iter().filter(|entry| folders.iter().any(|folder| starts_with(&entry.name, folder)));
    let tensor_bytes = tensors.map(|entry| entry.size).fold(0, u64::saturating_add);
    for (pickle, folder) in [("data.pkl", "data"), ("constants.pkl", "constants")] {
        let size = |key: &str| zip.find(&format!("{root}/{folder}/{key}")).map(|entry| entry.size);
        pickle::check(
            &read(&zip, &format!("{root}/{pickle}"), inflated_bytes)?,
            Limits::module(inflated_bytes),
            size,
        )?;
    }
    // Where the code's lines came from: read when something fails.
    for entry in zip.entries().iter().filter(|entry| ends_with(&entry.name, ".debug_pkl")) {
        pickle::check(&zip.read(entry, inflated_bytes)?, Limits::debug(inflated_bytes), |_| None)?;
    }
    let class = class(&read(&zip, &format!("{root}/data.pkl"), inflated_bytes)?)?;
    let code = Code { zip: &zip, folder: format!("{root}/code/"), inflated_bytes };
    let (module, name) = class.rsplit_once('.').ok_or(ArchiveError::Module("its class has no module"))?;
    let forward = Forward::find(&code.of(module)?, name)?;
    let habits = code.habits()?;
    Ok(Contents { file: zip.into_file(), tensor_bytes, forward, habits })
}

/// Whether a name in the archive begins so, in whatever case: libtorch finds it in any.
fn starts_with(name: &str, start: &str) -> bool {
    name.to_lowercase().starts_with(&start.to_lowercase())
}

/// Whether it ends so.
fn ends_with(name: &str, end: &str) -> bool {
    name.to_lowercase().ends_with(end)
}

fn read(zip: &Zip, name: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
    let entry = zip.find(name).ok_or(ArchiveError::Module("it has no pickle"))?;
    Ok(zip.read(entry, limit)?)
}

/// The class of the module, `__torch__.package.Name`: what the pickle names first.
fn class(pickle: &[u8]) -> Result<String, ArchiveError> {
    let strange = ArchiveError::Module("its pickle begins with no class");
    // Protocol 2, then GLOBAL with two lines: a module and a name in it.
    let Some(rest) = pickle.strip_prefix(b"\x80\x02c") else { return Err(strange) };
    let rest = rest.get(..NAME_BYTES).unwrap_or(rest);
    let mut lines = rest.split(|byte| *byte == b'\n').map(std::str::from_utf8);
    match (lines.next(), lines.next(), lines.next()) {
        (Some(Ok(module)), Some(Ok(name)), Some(_)) => Ok(format!("{module}.{name}")),
        _ => Err(strange),
    }
}

/// The archive's source files.
struct Code<'a> {
    zip: &'a Zip,
    folder: String,
    inflated_bytes: u64,
}

impl Code<'_> {
    /// The source of a module: `__torch__.a.b` is in `code/__torch__/a/b.py`.
    fn of(&self, module: &str) -> Result<String, ArchiveError> {
        let name = format!("{}{}.py", self.folder, module.replace('.', "/"));
        let entry = self.zip.find(&name).ok_or(ArchiveError::Module("its code is missing"))?;
        let bytes = self.zip.read(entry, self.inflated_bytes)?;
        String::from_utf8(bytes).map_err(|_| ArchiveError::Module("its code is no UTF-8"))
    }

    fn habits(&self) -> Result<Habits, ArchiveError> {
        let is_source = |name: &str| starts_with(name, &self.folder) && ends_with(name, ".py");
        let mut habits = Habits::default();
        for entry in self.zip.entries().iter().filter(|entry| is_source(&entry.name)) {
            let source = self.zip.read(entry, self.inflated_bytes)?;
            let source = String::from_utf8_lossy(&source);
            if nesting(&source, CODE_DEPTH) > CODE_DEPTH {
                return Err(ArchiveError::Deep);
            }
            habits.add(&source);
        }
        Ok(habits)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use outrigger_testkit::torchscript::{self, Module, Zip};

    use super::*;

    /// More than any model here has.
    const LIMIT: u64 = 1 << 20;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, bytes: &[u8]) -> PathBuf {
            let path = self.0.path().join("model.pt");
            std::fs::write(&path, bytes).unwrap();
            path
        }

        fn inspect(&self, bytes: &[u8]) -> Result<Contents, String> {
            inspect(&self.write(bytes), LIMIT).map_err(|error| error.to_string())
        }

        fn refuses(&self, bytes: &[u8], words: &str) {
            let error = self.inspect(bytes).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn a_module_says_what_it_takes_and_how_large_it_is() {
        let folder = Folder::new();
        let contents = folder.inspect(&torchscript::mlp(&[8, 16, 4]).archive()).unwrap();
        assert_eq!((contents.tensor_bytes, contents.habits), ((8 * 16 + 16 * 4) * 4, Habits::default()));
        let names: Vec<&str> = contents.forward.inputs.iter().map(String::as_str).collect();
        assert_eq!(names, ["x"]);
        contents.file.is_as_it_was().unwrap();
    }

    #[test]
    fn code_that_is_nested_without_end_is_refused() {
        let folder = Folder::new();
        let nested = |count: usize| {
            let (open, close) = ("torch.neg(".repeat(count), ")".repeat(count));
            let module = Module::forward("x: Tensor", "Tensor", &[&format!("return {open}x{close}")]);
            folder.inspect(&module.archive()).map(|_| ())
        };
        assert_eq!(nested(256), Ok(()));
        assert_eq!(nested(257), Err("its code is nested more than 256 deep".into()));
        let blocks = |count: usize| {
            let lines: Vec<String> = (0..count).map(|at| format!("{}if True:", "  ".repeat(at))).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            folder.inspect(&Module::forward("x: Tensor", "Tensor", &lines).archive()).map(|_| ())
        };
        assert_eq!(blocks(200), Ok(()));
        assert_eq!(blocks(300), Err("its code is nested more than 256 deep".into()));
    }

    #[test]
    fn what_is_no_torchscript_is_named() {
        let folder = Folder::new();
        let with = |files: &[&str]| {
            let mut zip = Zip::default();
            files.iter().for_each(|file| zip.stored(file, b"\x80\x02}."));
            zip.finish()
        };
        folder.refuses(&with(&["m/data.pkl", "m/data/0", "m/version"]), "what `torch.save` writes");
        folder.refuses(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before PyTorch 1.6");
        folder.refuses(&with(&["m/models/m.json", "m/archive_format"]), "a program of `torch.export`");
        folder.refuses(&with(&["word/document.xml"]), "neither `data.pkl` nor");
        folder.refuses(&with(&["flat"]), "its files are in no folder");
        folder.refuses(&with(&["m/data.pkl", "m/constants.pkl"]), "its pickle begins with no class");
        folder.refuses(b"", "has no directory");
        folder.refuses(b"\xff\x00 what is this", "begins with [ff, 00, 20, 77], not with [50, 4b, 03, 04]");
        let whole = torchscript::add().archive();
        for len in [whole.len() - 1, whole.len() / 2, 10] {
            folder.refuses(&whole[..len], "has no directory");
        }
        folder.refuses(&whole[40..], "is no ZIP file");
        folder.refuses(&[b"#!/bin/sh\n".as_slice(), &whole].concat(), "begins with [23, 21, 2f, 62]");
        assert!(inspect(Path::new("/dev/zero"), LIMIT).unwrap_err().to_string().contains("is no plain file"));
    }

    #[test]
    fn claims_of_gigabytes_are_refused() {
        let folder = Folder::new();
        let with = |method, size| {
            let mut zip = Zip::default();
            zip.claiming("m/data.pkl", b"\x80\x02}.", method, size);
            zip.stored("m/constants.pkl", b"\x80\x02).");
            zip.finish()
        };
        folder.refuses(&with(0, 1 << 31), "claims another size than it has");
        folder.refuses(&with(8, 1 << 31), "claims 2147483648 bytes, over the limit of 1048576");
        folder.refuses(&with(12, 4), "is compressed in a way that is not known");
        folder.refuses(&with(8, 1000), "does not decompress to the size that it claims");
        let mut twice = Zip::default();
        ["m/data.pkl", "m/data/0", "m/DATA/0"].iter().for_each(|name| twice.stored(name, b"x"));
        folder.refuses(&twice.finish(), "`m/DATA/0` in it is there twice");
        // Many names for one piece of the archive.
        let mut zip = torchscript::Zip::default();
        zip.stored("m/data/0", &[0; 4096]);
        let mut bytes = zip.finish();
        let at = bytes.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
        let entry = bytes[at..bytes.len() - 22].to_vec();
        let end = bytes.split_off(bytes.len() - 22);
        let count = 40u16;
        (1..count).for_each(|_| bytes.extend(&entry));
        bytes.extend(&end);
        let len = bytes.len();
        bytes[len - 14..len - 12].copy_from_slice(&count.to_le_bytes());
        bytes[len - 12..len - 10].copy_from_slice(&count.to_le_bytes());
        bytes[len - 10..len - 6].copy_from_slice(&(entry.len() as u32 * u32::from(count)).to_le_bytes());
        folder.refuses(&bytes, "`m/data/0` in it lies where another file does");
    }

    /// Archives with bytes changed at random.
    #[test]
    fn whatever_is_in_an_archive_it_is_read_in_bounds() {
        let folder = Folder::new();
        let statements = ["y = torch.relu_(x)", "self.w = y", "return {\"y\": torch.add(y, self.w)}"];
        let stateful = Module::forward("x: Tensor", "Dict[str, Tensor]", &statements);
        let seeds =
            [torchscript::mlp(&[2, 4, 2]).archive(), stateful.weight("w", &[2], vec![0.; 2]).archive()];
        let mut random = crate::random::Random::seeded(11);
        for round in 0..3000 {
            let archive = random.mutation(&seeds);
            let path = folder.write(&archive);
            let (_, most) = crate::counting::peak(|| inspect(&path, LIMIT).map(|_| ()));
            assert!(most < 4 * LIMIT as usize, "round {round} takes {most} bytes: {archive:?}");
        }
    }

    #[test]
    fn a_directory_is_held_against_its_limits() {
        let folder = Folder::new();
        let mut long = Zip::default();
        long.stored(&format!("m/{}", "x".repeat(4095)), b"");
        folder.refuses(&long.finish(), "its directory has a name of more than 4096 bytes");
        // The last 22 bytes are the end of the directory; with what is said there of it.
        let with = |at: usize, number: &[u8]| {
            let mut bytes = torchscript::add().archive();
            let start = bytes.len() - 22 + at;
            bytes[start..start + number.len()].copy_from_slice(number);
            bytes
        };
        folder.refuses(&with(10, &[5]), "its directory is shorter than it says");
        folder.refuses(&with(12, &[0xff; 4]), "its directory is not where its end says");
        folder.refuses(&with(16, &[0; 4]), "its directory has something else among its entries");
        // As ZIP64 says it: how many files, bytes of the directory, and where it begins.
        let large = |count: u64, size: u64, offset: u64| {
            let mut bytes = torchscript::add().archive();
            let end = bytes.split_off(bytes.len() - 22);
            bytes.resize(bytes.len() + (17 << 20), 0);
            let at = bytes.len() as u64;
            bytes.extend([&b"PK\x06\x06"[..], &[0; 28]].concat());
            [count, size, offset].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
            bytes.extend([&b"PK\x06\x07\0\0\0\0"[..], &at.to_le_bytes(), &[0; 4]].concat());
            bytes.extend(end);
            bytes
        };
        folder.refuses(&large(1, (16 << 20) + 1, 4), "its directory has more than 16 MiB");
        folder.refuses(&large(65_537, 46 * 65_537, 4), "its directory has more than 65536 files");
        folder.refuses(&large(u64::MAX, 46, 4), "its directory has more than 65536 files");
        folder.refuses(&large(1, u64::MAX, u64::MAX), "its directory is not where its end says");
    }
}
