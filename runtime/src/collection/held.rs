//! Bytes of requests and answers that are held while their calls go on, bounded over all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Bytes that are held.
#[derive(Clone)]
pub(super) struct Held {
    bytes: Arc<AtomicUsize>,
    most: usize,
}

impl Held {
    pub(super) fn new(most: usize) -> Self {
        Self { bytes: Arc::default(), most }
    }

    /// Bytes that are held now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes so many more, if there is room for them.
    fn take(&self, more: usize) -> bool {
        let room = |held: usize| held.checked_add(more).filter(|all| *all <= self.most);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }
}

/// What has passed of a body: references, no copies.
pub(super) struct Passed {
    pieces: Pieces,
    /// Bytes that are kept.
    kept: usize,
    /// Bytes that have passed.
    length: u64,
    most: usize,
    held: Held,
}

/// Most bodies are one piece.
enum Pieces {
    None,
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Passed {
    /// Nothing yet; of what comes, so many bytes are kept.
    pub(super) fn new(held: &Held, most: usize) -> Self {
        Self { pieces: Pieces::None, kept: 0, length: 0, most, held: held.clone() }
    }

    /// A further piece. What does not fit any more is counted, and so is all that follows.
    pub(super) fn push(&mut self, piece: &Bytes) {
        let is_whole = self.is_whole();
        self.length = self.length.saturating_add(piece.len() as u64);
        if !is_whole || piece.is_empty() {
            return;
        }
        let fits = piece.len().min(self.most - self.kept);
        if fits == 0 || !self.held.take(fits) {
            return;
        }
        self.kept += fits;
        let piece = piece.slice(..fits);
        self.pieces = match std::mem::replace(&mut self.pieces, Pieces::None) {
            Pieces::None => Pieces::One(piece),
            Pieces::One(first) => Pieces::Many(vec![first, piece]),
            Pieces::Many(mut pieces) => {
                pieces.push(piece);
                Pieces::Many(pieces)
            }
        };
    }

    /// Whether all that has passed is kept.
    pub(super) fn is_whole(&self) -> bool {
        self.kept as u64 == self.length
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
            Pieces::Many(pieces) => pieces.concat().into(),
        }
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.kept, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_is_not_copied_and_several_are_joined() {
        let held = Held::new(100);
        let mut passed = Passed::new(&held, 50);
        let piece = Bytes::from(vec![1; 10]);
        passed.push(&piece);
        assert!(passed.is_whole());
        assert_eq!(passed.data().as_ptr(), piece.as_ptr());
        let mut passed = Passed::new(&held, 50);
        [&b"ab"[..], b"", b"cd"].into_iter().for_each(|piece| passed.push(&Bytes::from_static(piece)));
        assert_eq!((passed.data(), passed.length(), passed.is_whole()), ("abcd".into(), 4, true));
    }

    #[test]
    fn what_is_too_much_is_left_out_from_there_on() {
        let held = Held::new(100);
        let mut passed = Passed::new(&held, 5);
        ["abc", "def", "g"].into_iter().for_each(|piece| passed.push(&Bytes::from(piece)));
        assert_eq!((passed.data(), passed.length(), passed.is_whole()), ("abcde".into(), 7, false));
    }

    #[test]
    fn all_share_what_there_is() {
        let held = Held::new(10);
        let (mut first, mut second) = (Passed::new(&held, 8), Passed::new(&held, 8));
        let piece = Bytes::from_static(b"abcdef");
        first.push(&piece);
        second.push(&piece);
        assert_eq!((held.bytes(), second.data().len(), second.is_whole()), (6, 0, false));
        drop(first);
        second.push(&piece);
        assert_eq!((held.bytes(), second.data().len()), (0, 0), "a hole would not be seen");
        let mut third = Passed::new(&held, 8);
        third.push(&piece);
        assert_eq!(held.bytes(), 6);
        drop((second, third));
        assert_eq!(held.bytes(), 0);
    }
}
