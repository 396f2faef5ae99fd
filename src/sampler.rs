//! Samples log lines that unauthenticated clients can cause: often enough to be seen, too seldom to fill a disk.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// One line for each reason in this time by default; further ones are counted.
const INTERVAL: Duration = Duration::from_secs(10);

/// The last line of each reason, and how many were dropped since. Without `kept_max` there must be few reasons.
#[derive(Debug)]
pub(crate) struct Sampler<R = &'static str> {
    interval: Duration,
    /// With this many reasons, those whose interval is over are dropped.
    kept_max: usize,
    reasons: Mutex<HashMap<R, (Instant, u64)>>,
}

impl<R> Default for Sampler<R> {
    fn default() -> Self {
        Self::every(INTERVAL)
    }
}

impl<R> Sampler<R> {
    /// One line for each reason in `interval`.
    pub(crate) fn every(interval: Duration) -> Self {
        Self {
            interval,
            kept_max: usize::MAX,
            reasons: Mutex::default(),
        }
    }

    /// Drops reasons whose interval is over once there are `kept_max`.
    pub(crate) fn keeping(self, kept_max: usize) -> Self {
        Self { kept_max, ..self }
    }
}

impl<R: Eq + Hash> Sampler<R> {
    /// The number of lines dropped since the last one; `None` if this line is dropped, too.
    pub(crate) fn due(&self, reason: R) -> Option<u64> {
        self.due_at(reason, Instant::now())
    }

    /// The same at a given time, for tests.
    pub(crate) fn due_at(&self, reason: R, now: Instant) -> Option<u64> {
        let mut reasons = self.reasons.lock();
        if reasons.len() >= self.kept_max {
            reasons.retain(|_, (logged, _)| now.duration_since(*logged) < self.interval);
        }

        match reasons.get_mut(&reason) {
            Some((logged, unlogged)) if now.duration_since(*logged) < self.interval => {
                *unlogged += 1;
                None
            }
            _ => Some(
                reasons
                    .insert(reason, (now, 0))
                    .map_or(0, |(_, unlogged)| unlogged),
            ),
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
        assert_eq!(log.due_at("a", at(0)), Some(0));
        assert_eq!(
            (log.due_at("a", at(1)), log.due_at("a", at(9))),
            (None, None)
        );
        assert_eq!(log.due_at("b", at(9)), Some(0));
        assert_eq!(log.due_at("a", at(10)), Some(2));
        assert_eq!(log.due_at("a", at(30)), Some(0));
    }

    #[test]
    fn with_too_many_reasons_those_that_are_over_are_forgotten_and_no_others() {
        let log = Sampler::every(INTERVAL).keeping(3);
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        for (reason, seconds) in [("a", 0), ("a", 1), ("b", 8), ("b", 9)] {
            log.due_at(reason, at(seconds));
        }
        assert_eq!(log.due_at("a", at(10)), Some(1), "there is room for it");
        log.due_at("c", at(18));
        assert_eq!(
            log.due_at("b", at(19)),
            Some(0),
            "it was forgotten, with its count"
        );
        assert_eq!(log.due_at("a", at(19)), None, "its interval is not over");
    }
}
