//! Sinks of all sorts, and that a member passes by without being held.

use std::cell::Cell;
use std::io::{self, Seek, SeekFrom};
use std::rc::Rc;

use super::*;

const FILES: [(&str, &[u8]); 3] = [("a", &[b'a'; 2000]), ("b", b"second"), ("c", &[b'c'; 1500])];

fn run(
    kind: ArchiveKind,
    archive: impl Read + Seek,
    sink: &mut crate::archive::Sink<'_>,
) -> Result<Unpacked, ArchiveError> {
    let limits = ArchiveLimits { ratio: 2000, ..ArchiveLimits::default() };
    unpack(kind, archive, &limits, sink)
}

#[test]
fn a_sink_may_leave_a_member_unread() {
    for kind in KINDS {
        for most in [0, 1, 700, 2000] {
            let mut seen = Vec::new();
            let unpacked = run(kind, Cursor::new(archive(kind, &FILES)), &mut |path, data| {
                let mut contents = Vec::new();
                data.take(most).read_to_end(&mut contents)?;
                seen.push((path.to_string(), contents));
                Ok(())
            });
            assert_eq!(unpacked.expect("unpacks"), Unpacked { files: 3, bytes: 3506 }, "{kind:?}");
            let expected = FILES.map(|(name, contents)| {
                (name.to_owned(), contents[..contents.len().min(most as usize)].to_vec())
            });
            assert_eq!(seen, expected, "{kind:?}");
        }
    }
}

#[test]
fn a_sink_that_leaves_a_member_unread_does_not_hide_what_is_wrong_with_it() {
    let wrong = zip::Member { checksum: 1, ..zip::Member::stored("a", &[b'a'; 2000]) };
    let result = run(ArchiveKind::Zip, Cursor::new(zip::of(&[wrong])), &mut |_, _| Ok(()));
    assert!(matches!(result, Err(ArchiveError::Checksum { .. })), "{result:?}");
}

#[test]
fn a_sink_that_loses_an_error_does_not_hide_it() {
    let wrong = zip::of(&[zip::Member { checksum: 1, ..zip::Member::stored("a", b"contents") }]);
    let lose = run(ArchiveKind::Zip, Cursor::new(&wrong), &mut |_, data| {
        assert!(io::copy(data, &mut io::sink()).is_err());
        assert!(data.read(&mut [0; 8]).is_err(), "it stays one");
        Ok(())
    });
    assert!(matches!(lose, Err(ArchiveError::Checksum { .. })), "{lose:?}");
    let wrap = run(ArchiveKind::Zip, Cursor::new(&wrong), &mut |_, data| {
        io::copy(data, &mut io::sink()).map(drop).map_err(|_| io::Error::other("something else"))
    });
    assert!(matches!(wrap, Err(ArchiveError::Checksum { .. })), "{wrap:?}");
}

#[test]
fn a_sink_that_fails_ends_it() {
    for kind in KINDS {
        let mut calls = 0;
        let result = run(kind, Cursor::new(archive(kind, &FILES)), &mut |path, _| {
            calls += 1;
            if path.as_str() == "b" { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        match result {
            Err(ArchiveError::Sink { member, source }) => {
                assert_eq!((member.to_string().as_str(), source.kind()), ("b", io::ErrorKind::StorageFull));
            }
            other => panic!("{kind:?}: {other:?}"),
        }
        assert_eq!(calls, 2, "{kind:?}");
    }
}

#[test]
fn the_end_of_a_member_stays_its_end() {
    for kind in KINDS {
        let result = run(kind, Cursor::new(archive(kind, &FILES)), &mut |_, data| {
            assert_eq!(data.read(&mut [])?, 0, "nothing asked for is not the end");
            io::copy(data, &mut io::sink())?;
            assert_eq!((data.read(&mut [0; 8])?, data.read(&mut [0; 8])?), (0, 0));
            Ok(())
        });
        assert!(result.is_ok(), "{kind:?}: {result:?}");
    }
}

/// Says how much of it has been read, fails at a place, and is interrupted all the time.
struct Watched {
    inner: Cursor<Vec<u8>>,
    read: Rc<Cell<u64>>,
    fails_at: u64,
    interrupted: bool,
}

impl Watched {
    fn new(bytes: Vec<u8>) -> Self {
        Self { inner: Cursor::new(bytes), read: Rc::default(), fails_at: u64::MAX, interrupted: false }
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.inner.position() >= self.fails_at {
            return Err(io::Error::other("the disk is gone"));
        }
        let most = buffer.len().min(10_000);
        let read = self.inner.read(&mut buffer[..most])?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

impl Seek for Watched {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// That memory does not grow with a member, told by how far the archive is read when so much of the member has come: no further than the
/// buffers reach.
#[test]
fn a_member_is_not_read_ahead() {
    let weights = noise(2 << 20);
    for kind in KINDS {
        for files in [[("first", &b""[..]), ("w", &weights)], [("w", &weights[..]), ("last", b"")]] {
            let archive = Watched::new(archive(kind, &files));
            let read = archive.read.clone();
            let result = run(kind, archive, &mut |path, data| {
                let (mut part, mut given) = ([0; 64 * 1024], 0);
                while path.as_str() == "w" {
                    given += match data.read(&mut part)? {
                        0 => break,
                        count => count as u64,
                    };
                    assert!(read.get() < given + 512 * 1024, "{kind:?}: {} read for {given}", read.get());
                }
                Ok(())
            });
            assert_eq!(result.expect("unpacks").bytes, weights.len() as u64, "{kind:?}");
        }
    }
}

#[test]
fn a_large_member_of_zeros_passes() {
    for (kind, archive) in [
        (ArchiveKind::Tar, archive(ArchiveKind::Tar, &[("zeros", &vec![0; 64 << 20])])),
        (ArchiveKind::TarGz, zeros_gz(64)),
        (ArchiveKind::Zip, zip::of(&[zip::Member::zeros("zeros", 64)])),
    ] {
        let result =
            run(kind, Cursor::new(archive), &mut |_, data| io::copy(data, &mut io::sink()).map(drop));
        assert_eq!(result.expect("unpacks"), Unpacked { files: 1, bytes: 64 << 20 }, "{kind:?}");
    }
}

#[test]
fn failures_of_the_file_are_told_from_those_of_the_archive() {
    let files = [("a", &noise(400_000)[..]), ("b", b"second")];
    for kind in KINDS {
        for fails_at in [0, 200_000] {
            let archive = Watched { fails_at, ..Watched::new(archive(kind, &files)) };
            let result = run(kind, archive, &mut |_, data| io::copy(data, &mut io::sink()).map(drop));
            match result {
                Err(ArchiveError::Io { source }) => assert_eq!(source.to_string(), "the disk is gone"),
                other => panic!("{kind:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_file_is_read_from_its_start_wherever_it_stands() {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&archive(ArchiveKind::Tar, &FILES)).expect("written");
    let result = run(ArchiveKind::Tar, &file, &mut |_, _| Ok(()));
    assert_eq!(result.expect("unpacks").files, 3);
}
