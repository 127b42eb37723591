//! What a run of a model takes, learned from runs: `a·w + b` for `w` rows, a line for each bucket of shapes.
//!
//! The line is the least-squares fit of recent runs, each counting less the longer ago it was, and a run that took far longer than
//! expected (another process had the core) counts only as far longer. What is told is the line and twice the mean deviation from it.

use std::time::Duration;

use super::choice::Bucket;

/// What the runs before count for, once there is another.
const DECAY: f64 = 31.0 / 32.0;
/// Runs before which nothing is told: the first ones of a model are slow.
const LEAST: u32 = 4;
/// How many times what was expected a run may count for.
const MOST: f64 = 4.0;
/// Buckets that are remembered.
const BUCKETS: usize = 32;

/// What runs of one bucket take.
#[derive(Clone, Debug, Default)]
pub(super) struct Cost {
    runs: u32,
    /// Sums over runs, by their age: of 1, w, w², t, w·t. Times are in microseconds.
    weight: f64,
    w: f64,
    ww: f64,
    t: f64,
    wt: f64,
    /// Mean distance of runs from the line.
    spread: f64,
}

impl Cost {
    /// A run of `rows` rows took so long.
    pub(super) fn note(&mut self, rows: usize, took: Duration) {
        let (w, mut t) = (rows as f64, took.as_secs_f64() * 1e6);
        if self.runs >= LEAST {
            let expected = self.line(w);
            t = t.min(MOST * expected.max(1.0));
            self.spread = DECAY * self.spread + (1.0 - DECAY) * (t - expected).abs();
        }
        self.runs = self.runs.saturating_add(1);
        self.weight = DECAY * self.weight + 1.0;
        self.w = DECAY * self.w + w;
        self.ww = DECAY * self.ww + w * w;
        self.t = DECAY * self.t + t;
        self.wt = DECAY * self.wt + w * t;
    }

    /// How long a run of `rows` rows takes, on the safe side.
    pub(super) fn of(&self, rows: usize) -> Option<Duration> {
        let micros = self.line(rows as f64) + 2.0 * self.spread;
        (self.runs >= LEAST).then(|| duration(micros)).flatten()
    }

    /// What a run takes however few rows it has: what is saved when two runs become one.
    pub(super) fn fixed(&self) -> Option<Duration> {
        let (_, b) = self.coefficients()?;
        (self.runs >= LEAST).then(|| duration(b)).flatten()
    }

    fn line(&self, w: f64) -> f64 {
        match self.coefficients() {
            Some((a, b)) => a * w + b,
            // All had one width: fewer rows take no longer, and more take at most in proportion.
            None if self.weight > 0.0 => {
                (self.t / self.weight) * (w * self.weight / self.w.max(1.0)).max(1.0)
            }
            None => 0.0,
        }
    }

    /// `a` and `b`, neither below zero; `None` while runs had one width.
    fn coefficients(&self) -> Option<(f64, f64)> {
        let n = self.weight;
        let variance = n * self.ww - self.w * self.w;
        // Written so that nothing that is no number gets past: runs may have had no rows at all.
        if n < 1.0 || variance <= 0.0 || variance < 1e-3 * self.w * self.w {
            return None;
        }
        let a = (n * self.wt - self.w * self.t) / variance;
        let b = (self.t - a * self.w) / n;
        Some(match (a < 0.0, b < 0.0) {
            (true, _) => (0.0, self.t / n),
            (_, true) => (self.wt / self.ww, 0.0),
            _ => (a, b),
        })
    }
}

/// `None` for what is no number.
fn duration(micros: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(micros.clamp(0.0, 1e12) / 1e6).ok()
}

/// What runs of each bucket take, for as many buckets as are remembered: shapes come from outside.
#[derive(Debug, Default)]
pub(super) struct Costs {
    known: Vec<(Bucket, Cost, u64)>,
    clock: u64,
}

impl Costs {
    pub(super) fn get(&self, bucket: &Bucket) -> Option<&Cost> {
        self.known.iter().find(|(known, ..)| known == bucket).map(|(_, cost, _)| cost)
    }

    /// As [`Cost::note`]; the bucket that was not used for longest is forgotten for a new one.
    pub(super) fn note(&mut self, bucket: &Bucket, rows: usize, took: Duration) {
        self.clock += 1;
        if let Some((_, cost, used)) = self.known.iter_mut().find(|(known, ..)| known == bucket) {
            *used = self.clock;
            return cost.note(rows, took);
        }
        if self.known.len() >= BUCKETS {
            let oldest = self.known.iter().enumerate().min_by_key(|(_, (.., used))| *used);
            if let Some(at) = oldest.map(|(at, _)| at) {
                self.known.swap_remove(at);
            }
        }
        let mut cost = Cost::default();
        cost.note(rows, took);
        self.known.push((bucket.clone(), cost, self.clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: f64) -> Duration {
        Duration::from_secs_f64(micros / 1e6)
    }

    fn learned(runs: impl IntoIterator<Item = (usize, f64)>) -> Cost {
        let mut cost = Cost::default();
        runs.into_iter().for_each(|(rows, took)| cost.note(rows, micros(took)));
        cost
    }

    fn near(cost: &Cost, rows: usize, expected: f64, tolerance: f64) {
        let told = cost.of(rows).unwrap().as_secs_f64() * 1e6;
        assert!((told / expected - 1.0).abs() < tolerance, "{rows} rows: {told}, not {expected}");
    }

    #[test]
    fn runs_without_rows_teach_nothing_that_is_no_number() {
        let mut cost = Cost::default();
        for _ in 0..20 {
            cost.note(0, Duration::from_micros(30));
        }
        let known = cost.of(1).unwrap();
        assert!(known < Duration::from_millis(1) && cost.fixed().is_none(), "{known:?}");
        for rows in 1..200 {
            cost.note(rows, Duration::from_micros(30 + rows as u64));
        }
        assert!(cost.of(8).unwrap() < Duration::from_secs(1) && cost.fixed().is_some());
    }

    #[test]
    fn a_line_is_found() {
        let cost = learned((0..100).map(|at| (at % 8 + 1, 80.0 * (at % 8 + 1) as f64 + 200.0)));
        near(&cost, 1, 280.0, 0.01);
        near(&cost, 32, 2760.0, 0.01);
        assert!((cost.fixed().unwrap().as_secs_f64() * 1e6 - 200.0).abs() < 1.0);
    }

    #[test]
    fn nothing_is_told_of_what_has_hardly_run() {
        assert_eq!(Cost::default().of(1), None);
        assert_eq!(learned([(1, 5.0); 3]).of(1), None);
    }

    #[test]
    fn of_one_width_the_others_are_guessed_on_the_safe_side() {
        let cost = learned([(4, 100.0); 20]);
        near(&cost, 1, 100.0, 0.01);
        near(&cost, 4, 100.0, 0.01);
        near(&cost, 8, 200.0, 0.01);
        assert_eq!(cost.fixed(), None);
    }

    #[test]
    fn a_run_that_was_disturbed_does_not_count_for_much() {
        let runs = (0..200).map(|at| {
            let rows = at % 4 + 1;
            (rows, if at == 150 { 1e6 } else { 10.0 * rows as f64 + 100.0 })
        });
        near(&learned(runs), 4, 140.0, 0.35);
    }

    #[test]
    fn a_model_that_became_slower_is_noticed() {
        let run = |at: usize, factor: f64| (at % 4 + 1, factor * (10.0 * (at % 4 + 1) as f64 + 100.0));
        let cost = learned((0..200).map(|at| run(at, 1.0)).chain((0..200).map(|at| run(at, 20.0))));
        near(&cost, 4, 2800.0, 0.1);
    }

    #[test]
    fn a_falling_line_is_level_and_one_from_below_zero_begins_there() {
        let cost = learned((0..50).map(|at| (at % 2 + 1, if at % 2 == 0 { 120.0 } else { 100.0 })));
        assert!(cost.of(100).unwrap() < micros(200.0));
        let cost = learned((0..50).map(|at| (at % 2 + 1, if at % 2 == 0 { 10.0 } else { 100.0 })));
        assert!(cost.of(1).unwrap() > Duration::ZERO);
        assert_eq!(cost.fixed(), Some(Duration::ZERO));
    }

    #[test]
    fn shapes_from_outside_do_not_fill_the_memory() {
        let bucket = |extent: i64| Bucket { extents: vec![extent], outputs: vec![0] };
        let mut costs = Costs::default();
        for extent in 0..1000 {
            costs.note(&bucket(extent), 1, micros(1.0));
            costs.note(&bucket(-7), 1, micros(5.0));
        }
        assert_eq!(costs.known.len(), BUCKETS);
        assert!(costs.get(&bucket(-7)).is_some() && costs.get(&bucket(0)).is_none());
    }
}
