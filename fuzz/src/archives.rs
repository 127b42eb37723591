//! What holds of any archive that is taken.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};
use std::path::{Component, Path};

use outrigger_store::archive::{ArchiveKind, ArchiveLimits, unpack};

use crate::memory;

/// Files by their names.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Much less than by default, so that limits are met with.
const LIMITS: ArchiveLimits =
    ArchiveLimits { entries: 64, file_bytes: 64 << 10, bytes: 128 << 10, ratio: 200 };
/// What reading may take besides, whatever the archive says: buffers, names, and the tables of deflate.
const MEMORY: usize = 4 << 20;

const BLOCK: usize = 512;

/// Unpacks an archive into memory; `None` if it is refused.
///
/// # Panics
/// If something is handed over that must not be.
pub fn unpacked(kind: ArchiveKind, archive: &[u8]) -> Option<Files> {
    let mut files = Files::new();
    let mut all = 0;
    let result = memory::within(MEMORY, || {
        unpack(kind, Cursor::new(archive), &LIMITS, &mut |path, reader| {
            let beneath = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
            assert!(beneath(path.as_path()), "{path} leads elsewhere");
            let mut contents = Vec::new();
            let read = reader.read_to_end(&mut contents);
            all += contents.len() as u64;
            assert!(contents.len() as u64 <= LIMITS.file_bytes && all <= LIMITS.bytes);
            assert!(files.insert(path.as_str().to_owned(), contents).is_none(), "{path} came twice");
            read.map(drop)
        })
    });
    let said = result.ok()?;
    assert_eq!((said.files, said.bytes), (files.len() as u64, all));
    for (name, path) in files.keys().map(|name| (name, Path::new(name))) {
        let above = path.ancestors().skip(1).filter_map(Path::to_str);
        assert!(
            above.filter(|folder| !folder.is_empty()).all(|folder| !files.contains_key(folder)),
            "{name}"
        );
    }
    Some(files)
}

/// Looks at a tar by the crate of that name.
///
/// # Panics
/// If it finds other files in it.
pub fn check_tar(archive: &[u8], found: &Files) {
    let mut others = Files::new();
    for entry in tar::Archive::new(archive).entries().expect("it is at its start") {
        let mut entry = entry.expect("what is taken can be read");
        if entry.header().entry_type().is_dir() || entry.header().entry_type().is_pax_global_extensions() {
            continue;
        }
        let name = entry.path_bytes().into_owned();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).expect("what is taken can be read");
        others.insert(trimmed(&name), contents);
    }
    assert_eq!(&others, found);
}

/// Looks at a zip by the crate of that name.
///
/// # Panics
/// If it finds other files in it.
pub fn check_zip(archive: &[u8], found: &Files) {
    let mut zip = zip::ZipArchive::new(Cursor::new(archive)).expect("what is taken can be read");
    let mut others = Files::new();
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).expect("what is taken can be read");
        if entry.is_dir() {
            continue;
        }
        let name = entry.name_raw().to_vec();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).expect("what is taken can be read");
        others.insert(trimmed(&name), contents);
    }
    assert_eq!(&others, found);
}

fn trimmed(name: &[u8]) -> String {
    let name = std::str::from_utf8(name).expect("names that are taken are text");
    name.trim_start_matches("./").to_owned()
}

/// A tar whose headers have the sums that they should have, and an end, as far as there are headers where their sizes say.
pub fn summed(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK).filter(|header| header.iter().any(|byte| *byte != 0))
    {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..136]).unwrap_or_default();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(BLOCK).saturating_add(size.saturating_add(BLOCK - 1) / BLOCK * BLOCK);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}
