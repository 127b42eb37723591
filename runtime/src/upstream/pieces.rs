//! The pieces of a body as they came. They are not put together: who sends them on can send them one after the other.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Smaller pieces are put together: a body that comes byte by byte must not take many times its size.
const SMALL: usize = 4096;

/// What has come so far.
#[derive(Default)]
pub(crate) struct Pieces {
    large: VecDeque<Bytes>,
    /// Small ones, after all of the others.
    small: BytesMut,
    length: usize,
}

impl Pieces {
    /// Adds one at the end.
    pub(crate) fn add(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.length += piece.len();
        // The first mostly is the only one.
        if piece.len() < SMALL && !self.large.is_empty() {
            self.small.extend_from_slice(&piece);
            return;
        }
        self.settle();
        self.large.push_back(piece);
    }

    fn settle(&mut self) {
        if !self.small.is_empty() {
            self.large.push_back(self.small.split().freeze());
        }
    }

    /// Bytes in them.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The pieces, none of which is empty.
    pub(crate) fn finish(mut self) -> VecDeque<Bytes> {
        self.settle();
        self.large
    }

    /// All of it in one piece: itself where there is only one.
    pub(crate) fn joined(self) -> Bytes {
        let length = self.length;
        let mut pieces = self.finish();
        if pieces.len() < 2 {
            return pieces.pop_front().unwrap_or_default();
        }
        let mut joined = BytesMut::with_capacity(length);
        pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        joined.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ones_stay_as_they_are_and_small_ones_come_together() {
        let check = |lengths: &[usize], expected: &[usize]| {
            let sent: Vec<Bytes> =
                (0..=255).cycle().zip(lengths).map(|(at, length)| vec![at; *length].into()).collect();
            let pieces = || {
                let mut pieces = Pieces::default();
                sent.iter().for_each(|piece| pieces.add(piece.clone()));
                pieces
            };
            assert_eq!(pieces().length(), lengths.iter().sum::<usize>());
            assert_eq!(pieces().joined(), sent.concat(), "{lengths:?}");
            let kept = pieces().finish();
            assert_eq!(kept.iter().map(Bytes::len).collect::<Vec<_>>(), expected, "{lengths:?}");
            assert_eq!(Vec::from(kept).concat(), sent.concat(), "{lengths:?}");
        };
        check(&[], &[]);
        check(&[0, 7, 0], &[7]);
        check(&[1, 1, 1, 1], &[1, 3]);
        check(&[5000, 6000, 1, 2, 7000, 3], &[5000, 6000, 3, 7000, 3]);
        check(&[1; 20_000], &[1, 19_999]);
        let whole = Bytes::from(vec![0; 10_000]);
        let mut pieces = Pieces::default();
        pieces.add(whole.clone());
        assert_eq!(pieces.joined().as_ptr(), whole.as_ptr(), "it is not copied");
    }
}
