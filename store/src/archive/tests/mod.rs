//! Archives as users make them, and as they would have to be made to do harm.

mod gzip;
mod hostile;
mod stream;
mod tar;
mod zip;

use std::io::{Cursor, Read, Write};

use super::{ArchiveError, ArchiveKind, ArchiveLimits, Damage, MemberKind, Unpacked, unpack};

pub(super) const KINDS: [ArchiveKind; 3] = [ArchiveKind::Tar, ArchiveKind::TarGz, ArchiveKind::Zip];

/// What was handed over: paths and contents.
pub(super) type Files = Vec<(String, Vec<u8>)>;

/// Unpacks with the limits there are by default.
pub(super) fn open(kind: ArchiveKind, archive: &[u8]) -> Result<Files, ArchiveError> {
    open_within(kind, archive, &ArchiveLimits::default())
}

pub(super) fn open_within(
    kind: ArchiveKind,
    archive: &[u8],
    limits: &ArchiveLimits,
) -> Result<Files, ArchiveError> {
    let mut files = Files::new();
    let unpacked = unpack(kind, Cursor::new(archive), limits, &mut |path, data| {
        let mut contents = Vec::new();
        data.read_to_end(&mut contents)?;
        files.push((path.as_str().to_owned(), contents));
        Ok(())
    })?;
    let bytes = files.iter().map(|(_, contents)| contents.len() as u64).sum();
    assert_eq!(unpacked, Unpacked { files: files.len() as u64, bytes });
    Ok(files)
}

/// An archive of these files, as the crates `tar` and `zip` write one. A zip's are stored and deflated in turn.
pub(super) fn archive(kind: ArchiveKind, files: &[(&str, &[u8])]) -> Vec<u8> {
    match kind {
        ArchiveKind::Tar => {
            let mut builder = ::tar::Builder::new(Vec::new());
            for (name, contents) in files {
                let mut header = ::tar::Header::new_gnu();
                header.set_size(contents.len() as u64);
                header.set_mode(0o6755);
                builder.append_data(&mut header, name, *contents).expect("written");
            }
            builder.into_inner().expect("written")
        }
        ArchiveKind::TarGz => gz(&archive(ArchiveKind::Tar, files)),
        ArchiveKind::Zip => {
            use ::zip::{CompressionMethod, write::SimpleFileOptions};
            let mut writer = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
            let methods = [CompressionMethod::Stored, CompressionMethod::Deflated];
            for ((name, contents), method) in files.iter().zip(methods.into_iter().cycle()) {
                let options = SimpleFileOptions::default().compression_method(method);
                writer.start_file(*name, options).expect("a name");
                writer.write_all(contents).expect("written");
            }
            writer.finish().expect("written").into_inner()
        }
    }
}

pub(super) fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("written")
}

/// Deflates `unit`, `times` over, without compressing it more than once.
pub(super) fn deflated(unit: &[u8], times: usize) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(unit).expect("written");
    encoder.flush().expect("written");
    let once = encoder.get_ref().clone();
    // The last block, empty.
    [once.repeat(times), b"\x03\0".to_vec()].concat()
}

/// A tar.gz with a file of so many MiB of zeros, gzipped MiB by MiB.
pub(super) fn zeros_gz(mib: usize) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.set_path("zeros").expect("a path");
    header.set_size((mib << 20) as u64);
    header.set_cksum();
    [gz(header.as_bytes()), gz(&[0; 1 << 20]).repeat(mib), gz(&[0; 1024])].concat()
}

pub(super) fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Bytes that don't compress.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(super) fn owned(files: &[(&str, &[u8])]) -> Files {
    files.iter().map(|(name, contents)| ((*name).to_owned(), contents.to_vec())).collect()
}

#[test]
fn kinds_are_known_by_the_names_end() {
    for (name, kind) in [
        ("model.tar", Some(ArchiveKind::Tar)),
        ("a/b/MODEL.TAR.GZ", Some(ArchiveKind::TarGz)),
        ("model.tgz", Some(ArchiveKind::TarGz)),
        ("é.Zip", Some(ArchiveKind::Zip)),
        (".zip", Some(ArchiveKind::Zip)),
        ("model.gz", None),
        ("zip", None),
        ("", None),
        ("日本", None),
        ("model.zip/weights", None),
        ("model.tar.bz2", None),
    ] {
        assert_eq!(ArchiveKind::of(name), kind, "{name}");
    }
}

#[test]
fn files_come_out_as_they_went_in() {
    let long = format!("{}/{}.bin", "d".repeat(200), "f".repeat(200));
    let large = noise(300_000);
    let files = [
        ("model.onnx", &b"weights"[..]),
        ("MODEL.onnx", b"other weights"),
        ("empty", b""),
        ("block", &[7; 512]),
        ("a/b/c.txt", &[b'x'; 100_000]),
        (long.as_str(), b"long"),
        ("a/é … 日本", &large),
    ];
    for kind in KINDS {
        assert_eq!(open(kind, &archive(kind, &files)).expect("unpacks"), owned(&files), "{kind:?}");
    }
}

#[test]
fn an_archive_of_nothing_has_no_files() {
    for kind in KINDS {
        assert_eq!(open(kind, &archive(kind, &[])).expect("unpacks"), Files::new(), "{kind:?}");
    }
}

#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let files = [("a/model.onnx", &b"some weights, and then more of them"[..]), ("b", &[b'b'; 2000])];
    for kind in KINDS {
        let whole = archive(kind, &files);
        assert!(open(kind, &whole).is_ok());
        for length in 0..whole.len() {
            assert!(open(kind, &whole[..length]).is_err(), "{kind:?} cut at {length} of {}", whole.len());
        }
    }
}

#[test]
fn another_kind_of_file_is_an_error() {
    for kind in KINDS {
        for other in KINDS.into_iter().filter(|&other| other != kind) {
            assert!(open(kind, &archive(other, &[("a", b"a")])).is_err(), "{other:?} as {kind:?}");
        }
    }
}

#[test]
fn names_that_lead_out_are_refused_by_name() {
    for name in ["/etc/passwd", "../a", "a/../../b", "a\\b", "a\nb", "a//b", "a/./b"] {
        for archive in [
            (ArchiveKind::Tar, tar::of(&[tar::file(name, b"x")])),
            (ArchiveKind::Zip, zip::of(&[zip::Member::stored(name, b"x")])),
        ] {
            let error = open(archive.0, &archive.1).expect_err("refused");
            assert!(matches!(error, ArchiveError::Path { .. }), "{error}");
            assert!(error.to_string().contains(&name.escape_debug().to_string()), "{error}");
        }
    }
}

#[test]
fn names_at_odds_are_refused() {
    for kind in [ArchiveKind::Tar, ArchiveKind::Zip] {
        let check = |names: &[&str]| match kind {
            ArchiveKind::Zip => open(
                kind,
                &zip::of(&names.iter().map(|name| zip::Member::stored(name, b"")).collect::<Vec<_>>()),
            ),
            _ => open(kind, &tar::of(&names.iter().map(|name| tar::file(name, b"")).collect::<Vec<_>>())),
        };
        assert!(matches!(check(&["a", "b", "./a"]), Err(ArchiveError::Twice { .. })), "{kind:?}");
        assert!(matches!(check(&["a", "a/b"]), Err(ArchiveError::FileAndFolder { .. })), "{kind:?}");
        assert!(matches!(check(&["a/b", "a"]), Err(ArchiveError::FileAndFolder { .. })), "{kind:?}");
        assert_eq!(check(&["a", "A", "./b"]).expect("unpacks"), owned(&[("a", b""), ("A", b""), ("b", b"")]));
    }
}

#[test]
fn each_limit_holds_to_the_member_and_the_byte() {
    let files = [("a", &[1; 1000][..]), ("b", &[2; 3000]), ("c/d", &[3; 2000])];
    let roomy = ArchiveLimits { entries: 3, file_bytes: 3000, bytes: 6000, ratio: 200 };
    for kind in KINDS {
        let archive = archive(kind, &files);
        assert!(open_within(kind, &archive, &roomy).is_ok(), "{kind:?}");
        let error = |limits| open_within(kind, &archive, &limits).expect_err("beyond a limit");
        let entries = error(ArchiveLimits { entries: 2, ..roomy });
        assert!(matches!(entries, ArchiveError::Entries { limit: 2 }), "{kind:?}: {entries}");
        let file_bytes = error(ArchiveLimits { file_bytes: 2999, ..roomy });
        assert_eq!(file_bytes.to_string(), "member `b` has more than 2999 bytes", "{kind:?}");
        let bytes = error(ArchiveLimits { bytes: 5999, ..roomy });
        assert!(matches!(bytes, ArchiveError::Bytes { limit: 5999 }), "{kind:?}: {bytes}");
    }
}
