//! What comes of a file is written where it belongs, by any thread, and hashed in its order.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cache::Writer;
use crate::digest::{Digest, Hasher};

/// Writes a file and hashes it. What comes in order is hashed by whoever writes it, while it is at hand; the rest is read again ([`Self::catch_up`]).
pub(super) struct Hashed {
    writer: Writer,
    so_far: Mutex<SoFar>,
    spent: Mutex<Spent>,
}

/// What hashing has taken: of the threads that hash, not of who waits for them, which they mostly do beside what else is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// Bytes that were hashed, some of them more than once where they were written anew.
    pub(super) bytes: u64,
    /// How long that took, with reading what had to be read again.
    pub(super) took: Duration,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.took = self.took.saturating_add(more.took);
    }
}

/// How much of a file is hashed.
struct SoFar {
    /// Has had all bytes before `at`. Whoever gives it more takes it along, so that nobody waits for that meanwhile.
    hasher: Option<Hasher>,
    at: u64,
}

impl SoFar {
    fn nothing() -> Self {
        Self { hasher: Some(Hasher::default()), at: 0 }
    }
}

impl Hashed {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer, so_far: Mutex::new(SoFar::nothing()), spent: Mutex::default() }
    }

    /// Writes bytes from `to.start` on, none of them beyond `to.end`, and says how far it came. Whoever cannot write gives up: then the hash may be lost.
    pub(super) fn write(&self, to: Range<u64>, gathered: &[Bytes]) -> io::Result<u64> {
        let mut hasher = self.turn(to.start);
        let (mut at, mut took) = (to.start, Duration::ZERO);
        for bytes in gathered {
            let fits = usize::try_from(to.end - at).map_or(bytes.len(), |left| left.min(bytes.len()));
            let bytes = &bytes[..fits];
            self.writer.write(at, bytes)?;
            if let Some(hasher) = &mut hasher {
                let started = Instant::now();
                hasher.update(bytes);
                took += started.elapsed();
            }
            at += fits as u64;
        }
        if let Some(hasher) = hasher {
            self.hashed(hasher, at);
            self.spend(Spent { bytes: at - to.start, took });
        }
        Ok(at)
    }

    /// Notes that all of a piece has been written.
    pub(super) fn mark(&self, piece: usize) -> io::Result<()> {
        self.writer.mark(piece)
    }

    /// Whether all before `end` is hashed.
    pub(super) fn has_reached(&self, end: u64) -> bool {
        self.lock().at >= end
    }

    /// Hashes what is written before `end` and not hashed yet. All of it must have been written, and nobody may be writing it.
    pub(super) fn catch_up(&self, end: u64) -> io::Result<()> {
        let (mut hasher, at) = {
            let mut so_far = self.lock();
            let at = so_far.at;
            // Whoever has the hasher writes where it stands, which is before `end`, and that has been excluded.
            let Some(hasher) = so_far.hasher.take_if(|_| at < end) else { return Ok(()) };
            (hasher, at)
        };
        let started = Instant::now();
        self.writer.hash(at..end, &mut hasher)?;
        self.spend(Spent { bytes: end - at, took: started.elapsed() });
        self.hashed(hasher, end);
        Ok(())
    }

    /// The digest of all of the file.
    pub(super) fn digest(&self) -> io::Result<Digest> {
        let so_far = std::mem::replace(&mut *self.lock(), SoFar::nothing());
        let hasher = so_far.hasher.filter(|_| so_far.at == self.writer.size());
        let lost = || io::Error::other(format!("the file is hashed up to byte {} only", so_far.at));
        Ok(hasher.ok_or_else(lost)?.finish())
    }

    /// What it has taken so far.
    pub(super) fn spent(&self) -> Spent {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self, more: Spent) {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner) += more;
    }

    /// The hasher, for whoever writes where it stands.
    fn turn(&self, start: u64) -> Option<Hasher> {
        let mut so_far = self.lock();
        // Written anew, in one and from its beginning: what was there before it says nothing of what will be.
        if start < so_far.at {
            *so_far = SoFar::nothing();
        }
        if start == so_far.at { so_far.hasher.take() } else { None }
    }

    fn hashed(&self, hasher: Hasher, at: u64) {
        *self.lock() = SoFar { hasher: Some(hasher), at };
    }

    fn lock(&self) -> MutexGuard<'_, SoFar> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Begun, Cache, Partial};

    const BYTES: &[u8] = b"0123456789";

    fn begin(folder: &tempfile::TempDir) -> Partial {
        let cache = Cache::open(folder.path(), None).expect("a cache");
        match cache.begin(&Digest::of(BYTES), 10, 4).expect("begun") {
            Begun::Ours(partial) => partial,
            other => panic!("{other:?}"),
        }
    }

    fn write(hashed: &Hashed, range: Range<usize>) {
        let bytes = [Bytes::from_static(&BYTES[range.start..range.end])];
        let to = range.start as u64..range.end as u64;
        assert_eq!(hashed.write(to.clone(), &bytes).expect("written"), to.end);
    }

    #[test]
    fn in_any_order_it_comes_to_the_digest_of_the_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let partial = begin(&folder);
        for (ranges, reached) in [
            ([0..3, 3..4, 4..9, 9..10], 10),
            ([0..3, 4..9, 3..4, 9..10], 4),
            ([9..10, 4..9, 3..4, 0..3], 3),
            ([4..9, 9..10, 0..3, 3..4], 4),
        ] {
            let hashed = Hashed::new(partial.writer());
            ranges.clone().into_iter().for_each(|range| write(&hashed, range));
            assert!(hashed.has_reached(reached) && !hashed.has_reached(reached + 1), "{ranges:?}");
            hashed.catch_up(10).expect("read");
            assert_eq!(hashed.spent().bytes, 10, "each byte once, whoever hashes it: {ranges:?}");
            assert_eq!(hashed.digest().expect("all of it"), Digest::of(BYTES), "{ranges:?}");
        }
    }

    #[test]
    fn what_is_written_anew_is_hashed_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let partial = begin(&folder);
        for start in [0, 2] {
            let hashed = Hashed::new(partial.writer());
            hashed.write(0..10, &[Bytes::from_static(b"01X345")]).expect("written");
            write(&hashed, start..10);
            assert_eq!(hashed.has_reached(10), start == 0);
            hashed.catch_up(10).expect("read");
            assert_eq!(hashed.digest().expect("all of it"), Digest::of(BYTES));
        }
    }

    #[test]
    fn what_is_too_much_is_neither_written_nor_hashed() {
        let folder = tempfile::tempdir().expect("a folder");
        let partial = begin(&folder);
        let hashed = Hashed::new(partial.writer());
        let bytes = [Bytes::from_static(b"0123"), Bytes::from_static(b"45XX"), Bytes::from_static(b"XX")];
        assert_eq!(hashed.write(0..6, &bytes).expect("written"), 6);
        write(&hashed, 6..10);
        assert_eq!(hashed.digest().expect("all of it"), Digest::of(BYTES));
    }

    #[test]
    fn a_part_has_no_digest() {
        let folder = tempfile::tempdir().expect("a folder");
        let partial = begin(&folder);
        let hashed = Hashed::new(partial.writer());
        write(&hashed, 0..9);
        assert!(hashed.digest().expect_err("a part").to_string().contains("up to byte 9 only"));
    }

    #[test]
    fn many_threads_write_and_one_follows() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path(), None).expect("a cache");
        let bytes = Bytes::from((0..1_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let (size, digest) = (bytes.len(), Digest::of(&bytes));
        let Begun::Ours(partial) = cache.begin(&digest, size as u64, 1 << 18).expect("begun") else {
            panic!("it is not there")
        };
        let hashed = Hashed::new(partial.writer());
        let (done, hear) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (hashed, partial, bytes, done) = (&hashed, &partial, &bytes, done.clone());
                scope.spawn(move || {
                    for piece in (worker..partial.pieces()).step_by(4) {
                        let mut range = partial.range(piece);
                        while range.start < range.end {
                            let end = (range.start + 10_000).min(range.end) as usize;
                            let part = bytes.slice(range.start as usize..end);
                            range.start = hashed.write(range.clone(), &[part]).expect("written");
                        }
                        done.send(piece).expect("somebody hears it");
                    }
                });
            }
            drop(done);
            let (mut here, mut next) = (vec![false; partial.pieces()], 0);
            for piece in hear {
                here[piece] = true;
                while here.get(next) == Some(&true) {
                    hashed.catch_up(partial.range(next).end).expect("read");
                    next += 1;
                }
            }
        });
        let spent = hashed.spent();
        assert_eq!(spent.bytes, size as u64);
        assert!(spent.took > Duration::ZERO, "4 MB in no time");
        assert_eq!(hashed.digest().expect("all of it"), digest);
    }
}
