//! Medians and bootstrap intervals.

use crate::random::Random;

/// The middle value; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the part `q` of all values lies; 0 for none.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len().saturating_sub(1)) as f64 * q).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

/// The interval that holds the median with 95 % confidence, by 2000 resamplings. The generator is seeded: the same values give the
/// same interval.
pub fn interval(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut random = Random::new(0);
    let mut medians = Vec::with_capacity(2000);
    let mut sample = vec![0.0; values.len()];
    for _ in 0..2000 {
        sample.iter_mut().for_each(|value| *value = values[random.below(values.len())]);
        medians.push(median(&sample));
    }
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_few_numbers() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!((median(&values), quantile(&values, 0.0), quantile(&values, 1.0)), (3.0, 1.0, 5.0));
        let (low, high) = interval(&values);
        assert!(low <= 3.0 && 3.0 <= high);
        assert_eq!(interval(&[]), (0.0, 0.0));
    }
}
