//! Bytes of requests and answers that are held while their calls go on, bounded over all of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

/// Pieces below this are copied, bytes: each is part of a buffer that may be much larger, and would keep all of it.
const SMALL: usize = 4096;

/// Bytes that are held.
pub(super) struct Held {
    bytes: AtomicUsize,
    /// Most of a body.
    each: usize,
    /// Most of all together.
    all: usize,
    /// Bodies of which not all was kept: as each is bounded, and as all are.
    cut_body: AtomicU64,
    cut_bodies: AtomicU64,
}

impl Held {
    pub(super) fn new(each: usize, all: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            each,
            all,
            cut_body: AtomicU64::new(0),
            cut_bodies: AtomicU64::new(0),
        }
    }

    /// Bytes that are held now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bodies of which not all was kept, by the key that was in the way.
    pub(super) fn cut(&self) -> [(&'static str, u64); 2] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("body", read(&self.cut_body)), ("bodies", read(&self.cut_bodies))]
    }

    /// Takes so many more, if there is room for them.
    fn take(&self, more: usize) -> bool {
        let room = |held: usize| held.checked_add(more).filter(|all| *all <= self.all);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    /// So many are held no more.
    pub(super) fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// What has passed of a body. One that comes in a piece, and is kept whole, is referred to and not copied.
///
/// Whoever has it releases what it keeps: it does not refer to [`Held`] itself, as that would be counted for each body, by all threads at once.
#[derive(Default)]
pub(super) struct Passed {
    pieces: Pieces,
    /// Whether its end has been seen.
    ended: bool,
    /// Bytes that are kept.
    kept: usize,
    /// Bytes that have passed.
    length: u64,
}

/// Most bodies are one piece.
#[derive(Default)]
enum Pieces {
    #[default]
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Passed {
    /// A further piece. What does not fit any more is counted, and so is all that follows.
    pub(super) fn push(&mut self, piece: &Bytes, held: &Held) {
        let is_whole = self.is_whole();
        self.length = self.length.saturating_add(piece.len() as u64);
        if !is_whole || piece.is_empty() {
            return;
        }
        let fits = piece.len().min(held.each.saturating_sub(self.kept));
        let is_room = fits == 0 || held.take(fits);
        if !is_room {
            held.cut_bodies.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if fits < piece.len() {
            held.cut_body.fetch_add(1, Ordering::Relaxed);
        }
        if fits == 0 {
            return;
        }
        self.kept += fits;
        let part = piece.get(..fits).unwrap_or_default();
        self.pieces = match std::mem::replace(&mut self.pieces, Pieces::None) {
            // A part would keep all of the answer's memory, and count for it (`limits.answers`).
            Pieces::None if fits < SMALL || fits < piece.len() => Pieces::One(Bytes::copy_from_slice(part)),
            Pieces::None => Pieces::One(piece.clone()),
            Pieces::One(first) => {
                let mut joined = BytesMut::with_capacity(first.len() + fits);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(part);
                Pieces::Many(joined)
            }
            Pieces::Many(mut joined) => {
                joined.extend_from_slice(part);
                Pieces::Many(joined)
            }
        };
    }

    /// Its end has passed.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether its end has.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether all that has passed is kept.
    pub(super) fn is_whole(&self) -> bool {
        self.kept as u64 == self.length
    }

    /// Bytes that are kept.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Bytes that have passed.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What is kept, in one piece.
    pub(super) fn data(&mut self) -> Bytes {
        match std::mem::replace(&mut self.pieces, Pieces::None) {
            Pieces::None => Bytes::new(),
            Pieces::One(piece) => piece,
            Pieces::Many(joined) => joined.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_is_not_copied_and_several_are_joined() {
        let held = Held::new(SMALL, 10 * SMALL);
        let mut passed = Passed::default();
        let piece = Bytes::from(vec![1; SMALL]);
        passed.push(&piece, &held);
        assert!(passed.is_whole());
        assert_eq!(passed.data().as_ptr(), piece.as_ptr());
        let mut passed = Passed::default();
        let piece = Bytes::from(vec![1; SMALL + 1]);
        passed.push(&piece, &held);
        assert_ne!(passed.data().as_ptr(), piece.as_ptr(), "a part keeps nothing of the rest");
        let mut passed = Passed::default();
        let small = Bytes::from(vec![1; 100]).slice(..1);
        passed.push(&small, &held);
        assert_ne!(passed.data().as_ptr(), small.as_ptr(), "a small one keeps no large buffer");
        let mut passed = Passed::default();
        [&b"ab"[..], b"", b"cd"].into_iter().for_each(|piece| passed.push(&Bytes::from_static(piece), &held));
        assert_eq!((passed.data(), passed.length(), passed.is_whole()), ("abcd".into(), 4, true));
    }

    #[test]
    fn what_is_too_much_is_left_out_from_there_on() {
        let held = Held::new(5, 100);
        let mut passed = Passed::default();
        ["abc", "def", "g"].into_iter().for_each(|piece| passed.push(&Bytes::from(piece), &held));
        assert_eq!((passed.data(), passed.length(), passed.is_whole()), ("abcde".into(), 7, false));
        assert_eq!(held.cut(), [("body", 1), ("bodies", 0)], "once for each body");
    }

    #[test]
    fn all_share_what_there_is() {
        let held = Held::new(8, 10);
        let (mut first, mut second) = (Passed::default(), Passed::default());
        let piece = Bytes::from_static(b"abcdef");
        first.push(&piece, &held);
        second.push(&piece, &held);
        assert_eq!((held.bytes(), second.data().len(), second.is_whole()), (6, 0, false));
        assert_eq!(held.cut(), [("body", 0), ("bodies", 1)]);
        held.release(first.kept());
        second.push(&piece, &held);
        assert_eq!((held.bytes(), second.data().len()), (0, 0), "a hole would not be seen");
        let mut third = Passed::default();
        third.push(&piece, &held);
        assert_eq!(held.bytes(), 6);
        [second, third].into_iter().for_each(|passed| held.release(passed.kept()));
        assert_eq!(held.bytes(), 0);
    }
}
