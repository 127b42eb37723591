//! Archives with changes at random: whatever they are, nothing panics, and no limit is passed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::path::FilePath;

/// A change to an archive.
#[derive(Clone, Debug)]
enum Change {
    Byte(Index, u8),
    Cut(Index),
    /// So many bytes from one place also at another.
    Copy(Index, Index, usize),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    // Lengths that are round for a tar, and others.
    let length = || prop_oneof![Just(512_usize), 1..600_usize];
    prop_oneof![
        8 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        4 => (any::<Index>(), prop_oneof![Just(0), Just(0xff), Just(1)]).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => any::<Index>().prop_map(Change::Cut),
        2 => (any::<Index>(), any::<Index>(), length()).prop_map(|(from, to, count)| Change::Copy(from, to, count)),
        1 => (any::<Index>(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (any::<Index>(), length()).prop_map(|(at, count)| Change::Remove(at, count)),
    ]
}

fn apply(change: &Change, archive: &mut Vec<u8>) {
    if archive.is_empty() {
        return;
    }
    let length = archive.len();
    let end = |at: usize, count: usize| (at + count).min(length);
    match change {
        Change::Byte(at, byte) => archive[at.index(length)] = *byte,
        Change::Cut(at) => archive.truncate(at.index(length)),
        Change::Copy(from, to, count) => {
            let from = from.index(length);
            let bytes = archive[from..end(from, *count)].to_vec();
            let to = to.index(length);
            let to_end = end(to, bytes.len());
            archive[to..to_end].copy_from_slice(&bytes[..to_end - to]);
        }
        Change::Insert(at, bytes) => {
            let at = at.index(length);
            archive.splice(at..at, bytes.iter().copied());
        }
        Change::Remove(at, count) => {
            let at = at.index(length);
            archive.drain(at..end(at, *count));
        }
    }
}

/// Gives each header of a tar the checksum that it should have, so that what is behind that is reached.
fn mend(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// With all that a valid one can have: folders, long names, records, entries of both methods.
fn whole(kind: ArchiveKind) -> Vec<u8> {
    let long = "l".repeat(150);
    let files = [("a/b", &[b'x'; 700][..]), (&long, b"long"), ("c", b""), ("d", &[b'd'; 3000])];
    match kind {
        ArchiveKind::Tar => {
            let global = tar::member(b"g", b'g', b"15 comment=abc\n");
            let pax = tar::member(b"x", b'x', b"9 path=p\n10 size=3\n");
            let folder = tar::member(b"./a/", b'5', b"");
            let members = archive(kind, &files);
            [global, folder, pax, tar::file("short", b"abc"), members].concat()
        }
        ArchiveKind::TarGz => gz(&whole(ArchiveKind::Tar)),
        ArchiveKind::Zip => archive(kind, &files),
    }
}

/// Unpacks within narrow limits, and holds what came against them.
fn check(kind: ArchiveKind, archive: &[u8]) -> Result<(), TestCaseError> {
    let limits = ArchiveLimits { entries: 8, file_bytes: 3500, bytes: 5000, ratio: 200 };
    let mut given: Vec<(FilePath, u64)> = Vec::new();
    let result = unpack(kind, Cursor::new(archive), &limits, &mut |path, data| {
        given.push((path.clone(), 0));
        let mut part = [0; 100];
        loop {
            let count = data.read(&mut part)?;
            if count == 0 {
                return Ok(());
            }
            given.last_mut().expect("pushed").1 += count as u64;
        }
    });
    let bytes: u64 = given.iter().map(|(_, bytes)| bytes).sum();
    prop_assert!(given.len() as u64 <= limits.entries && bytes <= limits.bytes);
    prop_assert!(given.iter().all(|(_, bytes)| *bytes <= limits.file_bytes));
    let paths: std::collections::BTreeSet<_> = given.iter().map(|(path, _)| path).collect();
    prop_assert_eq!(paths.len(), given.len(), "each path once");
    match result {
        Ok(unpacked) => prop_assert_eq!(unpacked, Unpacked { files: given.len() as u64, bytes }),
        Err(error) => prop_assert!(!error.to_string().is_empty()),
    }
    Ok(())
}

#[test]
fn without_changes_it_unpacks() {
    for kind in KINDS {
        let limits = ArchiveLimits { entries: 8, file_bytes: 3500, bytes: 5000, ratio: 200 };
        assert!(open_within(kind, &whole(kind), &limits).is_ok_and(|files| files.len() >= 4), "{kind:?}");
    }
}

proptest! {
    #[test]
    fn no_change_of_an_archive_panics_or_passes_a_limit(changes in vec(change(), 1..6)) {
        for kind in KINDS {
            let mut archive = whole(kind);
            changes.iter().for_each(|change| apply(change, &mut archive));
            check(kind, &archive)?;
        }
    }

    #[test]
    fn nor_does_one_behind_checksums(changes in vec(change(), 1..6)) {
        let mut tar = whole(ArchiveKind::Tar);
        changes.iter().for_each(|change| apply(change, &mut tar));
        mend(&mut tar);
        check(ArchiveKind::Tar, &tar)?;
        check(ArchiveKind::TarGz, &gz(&tar))?;
    }

    /// The directory and the end of a zip, where all is that is believed at first.
    #[test]
    fn nor_one_of_a_zips_directory(changes in vec(change(), 1..6)) {
        let mut archive = whole(ArchiveKind::Zip);
        let start = archive.windows(4).position(|window| window == b"PK\x01\x02").expect("a directory");
        let mut directory = archive.split_off(start);
        changes.iter().for_each(|change| apply(change, &mut directory));
        archive.extend(directory);
        check(ArchiveKind::Zip, &archive)?;
    }

    #[test]
    fn nothing_at_all_panics(bytes in vec(any::<u8>(), 0..2000)) {
        for kind in KINDS {
            check(kind, &bytes)?;
        }
    }
}
