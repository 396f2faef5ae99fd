//! A word in the log for what strangers can cause, often enough to be seen and too seldom to fill a disk.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// One line for each reason in this time; the rest is counted.
const INTERVAL: Duration = Duration::from_secs(10);

/// Remembers by reason when a line was written, and how many were not since.
#[derive(Debug, Default)]
pub(super) struct Sampler(Mutex<HashMap<&'static str, (Instant, u64)>>);

impl Sampler {
    /// How many were not logged since the last line; `None` if this one is not to be logged either.
    pub(super) fn is_due(&self, reason: &'static str) -> Option<u64> {
        self.is_due_at(reason, Instant::now())
    }

    fn is_due_at(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reasons.get_mut(reason) {
            Some((logged, unlogged)) if now.duration_since(*logged) < INTERVAL => {
                *unlogged += 1;
                None
            }
            _ => Some(reasons.insert(reason, (now, 0)).map_or(0, |(_, unlogged)| unlogged)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_line_in_ten_seconds_and_says_how_many_had_none() {
        let log = Sampler::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(log.is_due_at("a", at(0)), Some(0));
        assert_eq!((log.is_due_at("a", at(1)), log.is_due_at("a", at(9))), (None, None));
        assert_eq!(log.is_due_at("b", at(9)), Some(0));
        assert_eq!(log.is_due_at("a", at(10)), Some(2));
        assert_eq!(log.is_due_at("a", at(30)), Some(0));
    }
}
