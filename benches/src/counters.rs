//! Counts of what has come, kept apart so that counting is no contest.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A counter with a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts so many.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One counter for each subscription.
pub type Counters = Arc<[Counter]>;

/// So many counters.
pub fn counters(count: usize) -> Counters {
    (0..count).map(|_| Counter::default()).collect()
}

/// The sum of all counters.
pub fn total(counters: &[Counter]) -> u64 {
    counters.iter().map(Counter::get).sum()
}

/// How far the slowest is.
pub fn slowest(counters: &[Counter]) -> u64 {
    counters.iter().map(Counter::get).min().unwrap_or_default()
}
