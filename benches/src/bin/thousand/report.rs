//! How figures are shown: for people in tables, for programs as a line of JSON for each case.

use outrigger_benches::process::Sample;
use serde_json::{Value, json};

/// Most samples of a series that are shown.
const SHOWN: usize = 60;

/// The line of a case.
pub(crate) fn line(case: &str, figures: Value) {
    println!("\n{}", json!({ "case": case, "figures": figures }));
}

pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// With so many digits behind the point.
pub(crate) fn rounded(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

/// What a process held over time: the columns, and not too many rows.
pub(crate) fn series(samples: &[Sample]) -> Value {
    let rows: Vec<Value> = thinned(samples, SHOWN)
        .into_iter()
        .map(|sample| {
            let (at, resident) = (sample.at.as_secs_f64(), megabytes(sample.resident));
            json!([rounded(at, 2), rounded(resident, 1), sample.descriptors, sample.threads])
        })
        .collect();
    json!({ "columns": ["seconds", "resident_mb", "descriptors", "threads"], "rows": rows })
}

/// At most so many of them, evenly, the last among them.
pub(crate) fn thinned(samples: &[Sample], most: usize) -> Vec<Sample> {
    let step = samples.len().div_ceil(most.max(1)).max(1);
    let mut thinned: Vec<Sample> = samples.iter().rev().step_by(step).copied().collect();
    thinned.reverse();
    thinned
}

/// The most of each.
pub(crate) fn peak(samples: &[Sample]) -> (u64, usize, usize) {
    samples.iter().fold((0, 0, 0), |(resident, descriptors, threads), sample| {
        (resident.max(sample.resident), descriptors.max(sample.descriptors), threads.max(sample.threads))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_long_series_becomes_a_short_one_with_its_end() {
        let sample = |at| Sample { at: Duration::from_secs(at), resident: at, descriptors: 1, threads: 1 };
        let samples: Vec<Sample> = (0..100).map(sample).collect();
        let thinned = thinned(&samples, 10);
        assert_eq!((thinned.len(), thinned[9]), (10, samples[99]));
        assert_eq!(super::thinned(&samples, 1000), samples);
        assert_eq!(peak(&samples), (99, 1, 1));
        assert_eq!(peak(&[]), (0, 0, 0));
    }
}
