//! When the vendor is left alone: a circuit breaker for its host, and one for each key.
//!
//! After some failures in a row, nothing is asked for a while, each time twice as long. Then one
//! call is let through; its answer decides for the others.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest pause that the vendor has not asked for.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// The longest pause that the vendor may ask for with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// A circuit breaker.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    /// So many failures in a row open it.
    failures_max: u32,
    failures: u32,
    /// Until when nothing is asked; `None` while it is closed.
    open_until: Option<Instant>,
    /// The call that was let through has no answer yet.
    is_tried: bool,
}

impl Breaker {
    /// A closed one, which so many failures in a row open.
    pub(super) fn new(failures_max: u32) -> Self {
        Self {
            failures_max,
            failures: 0,
            open_until: None,
            is_tried: false,
        }
    }

    /// Whether a call may begin now.
    pub(super) fn lets_through(&self, now: Instant) -> bool {
        self.open_until
            .is_none_or(|until| until <= now && !self.is_tried)
    }

    /// A call begins.
    pub(super) fn begin(&mut self) {
        self.is_tried = self.open_until.is_some();
    }

    /// A call was answered as it should be.
    pub(super) fn succeeded(&mut self) {
        *self = Self::new(self.failures_max);
    }

    /// A call has failed; perhaps the vendor has said for how long.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, now: Instant) {
        self.is_tried = false;
        self.failures = self.failures.saturating_add(1);
        let doublings = self.failures.checked_sub(self.failures_max);
        let backs_off = doublings.map(|n| (PAUSE_MIN * 2_u32.pow(n.min(10))).min(PAUSE_MAX));
        let asked = retry_after.map(|asked| asked.min(RETRY_AFTER_MAX));
        if let Some(pause) = asked.max(backs_off) {
            let until = now + pause;
            self.open_until = Some(self.open_until.map_or(until, |open| open.max(until)));
        }
    }

    /// When a call may begin at the earliest; `None` if the answer of one that is under way decides.
    pub(super) fn opens_at(&self, now: Instant) -> Option<Instant> {
        match self.open_until {
            Some(_) if self.is_tried => None,
            Some(until) => Some(until.max(now)),
            None => Some(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn failures_in_a_row_open_it_and_each_further_one_for_twice_as_long() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3);
        breaker.failed(None, start);
        breaker.failed(None, start);
        assert!(breaker.lets_through(start));
        breaker.failed(None, start);

        let mut now = start;
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(!breaker.lets_through(after(now, pause - 1)));
            assert_eq!(breaker.opens_at(now), Some(after(now, pause)));
            now = after(now, pause);
            assert!(breaker.lets_through(now));
            breaker.begin();
            assert!(!breaker.lets_through(now), "one call is let through");
            breaker.failed(None, now);
        }
    }

    #[test]
    fn a_success_closes_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1);
        breaker.failed(None, start);
        assert!(!breaker.lets_through(start));
        breaker.begin();
        breaker.succeeded();
        assert!(breaker.lets_through(start));
        breaker.failed(None, start);
        assert_eq!(breaker.opens_at(start), Some(after(start, 5)));
    }

    #[test]
    fn what_the_vendor_asks_for_counts_at_once_and_up_to_an_hour() {
        let start = Instant::now();
        for (asked, pause) in [(90, 90), (3_600, 3_600), (100_000, 3_600)] {
            let mut breaker = Breaker::new(3);
            breaker.failed(Some(Duration::from_secs(asked)), start);
            assert!(!breaker.lets_through(after(start, pause - 1)));
            assert!(breaker.lets_through(after(start, pause)));
        }
    }
}
