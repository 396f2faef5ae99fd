//! What becomes of samples: medians with their extremes, and percentiles of latency. Pure.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Several samples in three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Self { median, min, max })
    }
}

/// Latencies of many deliveries, counted from several threads.
#[derive(Clone, Debug)]
pub struct Latencies(Arc<[Mutex<Histogram<u64>>]>);

/// So many threads hardly ever meet at one histogram.
const SHARDS: usize = 16;

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        // Three digits: a tenth of a percent, far below the noise.
        Self(
            (0..SHARDS)
                .map(|_| Mutex::new(Histogram::new(3).expect("three digits are allowed")))
                .collect(),
        )
    }

    /// Counts one; `by` is the subscriber that saw it.
    pub fn record(&self, by: usize, latency: Duration) {
        let micros = latency.as_micros() as u64;
        let mut shard = self.0[by % SHARDS].lock().expect("nobody panics with it");
        shard.record(micros).expect("it grows as needed");
    }

    /// All of them.
    pub fn total(&self) -> Histogram<u64> {
        let mut total = Histogram::new(3).expect("three digits are allowed");
        for shard in self.0.iter() {
            total
                .add(&*shard.lock().expect("nobody panics with it"))
                .expect("the total grows as needed");
        }
        total
    }
}

/// The value that so many percent do not exceed, in milliseconds.
pub fn percentile_millis(latencies: &Histogram<u64>, percent: f64) -> f64 {
    latencies.value_at_percentile(percent) as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_none_has_none() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(
            spread(&[3.0, 1.0, 2.0]),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn percentiles_are_of_all_threads_together() {
        let latencies = Latencies::new();
        for millis in 1..=100 {
            latencies.record(millis as usize, Duration::from_millis(millis));
        }
        let total = latencies.total();
        assert!((percentile_millis(&total, 50.0) - 50.0).abs() < 0.1);
        assert!((percentile_millis(&total, 99.0) - 99.0).abs() < 0.1);
    }
}
