//! Where pixels of a resized image come from. Tables, so that every device picks the same pixels by the same weights.

/// What one pixel along one side is made of: `low * (1 - weight) + high * weight`, calculated as [`between`](crate::number::between) says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    /// The pixel before.
    pub low: u32,
    /// The pixel after; the same where only one counts.
    pub high: u32,
    /// How much the one after counts: from 0, below 1.
    pub weight: f32,
}

/// For each of `to` pixels the one of `from` whose area has its centre: `floor((i + 0.5) * from / to)`, in whole numbers.
pub fn nearest_taps(from: u32, to: u32) -> Vec<Tap> {
    let pick = |index: u32| {
        let low = (2 * u64::from(index) + 1) * u64::from(from) / (2 * u64::from(to));
        Tap { low: low as u32, high: low as u32, weight: 0. }
    };
    (0..to).map(pick).collect()
}

/// For each of `to` pixels the two of `from` around its centre, `(i + 0.5) * from / to - 0.5`, clamped at the edges.
pub fn bilinear_taps(from: u32, to: u32) -> Vec<Tap> {
    let last = from.saturating_sub(1);
    let pick = |index: u32| {
        let centre = (f64::from(index) + 0.5) * f64::from(from) / f64::from(to) - 0.5;
        let centre = centre.clamp(0., f64::from(last));
        let low = centre.floor() as u32;
        let weight = (centre - f64::from(low)) as f32;
        // Rounded up to the next pixel altogether.
        let (low, weight) = if weight >= 1. { (low + 1, 0.) } else { (low, weight) };
        Tap { low, high: if weight == 0. { low } else { (low + 1).min(last) }, weight }
    };
    (0..to).map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_pixel_is_the_one_that_has_the_centre() {
        let picks = |from, to| nearest_taps(from, to).iter().map(|tap| tap.low).collect::<Vec<_>>();
        assert_eq!(picks(4, 4), [0, 1, 2, 3]);
        assert_eq!(picks(4, 2), [1, 3]);
        assert_eq!(picks(2, 4), [0, 0, 1, 1]);
        assert_eq!(picks(5, 3), [0, 2, 4]);
        assert_eq!(picks(3, 5), [0, 0, 1, 2, 2]);
        assert_eq!(picks(1, 3), [0, 0, 0]);
        assert!(picks(i32::MAX as u32, 16_384).iter().all(|pick| *pick < i32::MAX as u32));
    }

    #[test]
    fn two_pixels_are_weighed_and_edges_are_clamped() {
        let taps = |from, to| {
            bilinear_taps(from, to).iter().map(|tap| (tap.low, tap.high, tap.weight)).collect::<Vec<_>>()
        };
        assert_eq!(taps(3, 3), [(0, 0, 0.), (1, 1, 0.), (2, 2, 0.)]);
        assert_eq!(taps(2, 4), [(0, 0, 0.), (0, 1, 0.25), (0, 1, 0.75), (1, 1, 0.)]);
        assert_eq!(taps(4, 2), [(0, 1, 0.5), (2, 3, 0.5)]);
        assert_eq!(taps(1, 2), [(0, 0, 0.), (0, 0, 0.)]);
        for (from, to) in [(7, 16_384), (16_384, 7), (1_000_003, 999), (i32::MAX as u32, 3)] {
            for tap in bilinear_taps(from, to) {
                assert!(tap.low <= tap.high && tap.high < from && (0. ..1.).contains(&tap.weight), "{tap:?}");
            }
        }
    }
}
