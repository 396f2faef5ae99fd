//! When the vendor is left alone: a circuit breaker for its host, and one for each key.
//!
//! After some failures in a row, nothing is asked for a while, each time twice as long. Then one
//! call is let through; its answer decides for the others. Calls that were under way when it opened
//! do not: many begin at once, and the vendor may answer one of them before it is too much.

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
    /// When it opened last.
    opened_at: Option<Instant>,
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
            opened_at: None,
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

    /// A call that began then was answered as it should be.
    pub(super) fn succeeded(&mut self, began: Instant) {
        if self.decides(began) {
            *self = Self::new(self.failures_max);
        }
    }

    /// A call that began then has failed; perhaps the vendor has said for how long.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, began: Instant, now: Instant) {
        let mut pause = retry_after.map(|asked| asked.min(RETRY_AFTER_MAX));
        if self.decides(began) {
            self.is_tried = false;
            self.failures = self.failures.saturating_add(1);
            let doublings = self.failures.checked_sub(self.failures_max);
            let backs_off = doublings.map(|n| (PAUSE_MIN * 2_u32.pow(n.min(10))).min(PAUSE_MAX));
            pause = pause.max(backs_off);
        }
        if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
            let until = now + pause;
            self.open_until = Some(self.open_until.map_or(until, |open| open.max(until)));
            self.opened_at = Some(now);
        }
    }

    /// A call that began then has an answer that says nothing of what this stands for.
    pub(super) fn says_nothing(&mut self, began: Instant) {
        if self.decides(began) {
            self.is_tried = false;
        }
    }

    /// Whether a call that began then was let through since it opened.
    fn decides(&self, began: Instant) -> bool {
        self.opened_at.is_none_or(|opened| began > opened)
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
        breaker.failed(None, start, start);
        breaker.failed(None, start, start);
        assert!(breaker.lets_through(start));
        breaker.failed(None, start, start);

        let mut now = start;
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(!breaker.lets_through(after(now, pause - 1)));
            assert_eq!(breaker.opens_at(now), Some(after(now, pause)));
            now = after(now, pause);
            assert!(breaker.lets_through(now));
            breaker.begin();
            assert!(!breaker.lets_through(now), "one call is let through");
            breaker.failed(None, now, now);
        }
    }

    #[test]
    fn a_success_closes_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1);
        breaker.failed(None, start, start);
        assert!(!breaker.lets_through(start));
        let now = after(start, 5);
        breaker.begin();
        breaker.succeeded(now);
        assert!(breaker.lets_through(now));
        breaker.failed(None, now, now);
        assert_eq!(breaker.opens_at(now), Some(after(now, 5)));
    }

    #[test]
    fn what_the_vendor_asks_for_counts_at_once_and_up_to_an_hour() {
        let start = Instant::now();
        for (asked, pause) in [(90, 90), (3_600, 3_600), (100_000, 3_600)] {
            let mut breaker = Breaker::new(3);
            breaker.failed(Some(Duration::from_secs(asked)), start, start);
            assert!(!breaker.lets_through(after(start, pause - 1)));
            assert!(breaker.lets_through(after(start, pause)));
        }
    }

    #[test]
    fn a_call_that_was_under_way_when_it_opened_does_not_close_it() {
        let start = Instant::now();
        let asked = Some(Duration::from_secs(90));
        let mut breaker = Breaker::new(1);
        breaker.failed(asked, start, after(start, 1));
        breaker.succeeded(start);
        assert_eq!(breaker.opens_at(after(start, 1)), Some(after(start, 91)));
        // Nor does it double the pause; what the vendor asks for counts.
        breaker.failed(None, start, after(start, 2));
        breaker.failed(asked, start, after(start, 3));
        assert_eq!(breaker.opens_at(after(start, 3)), Some(after(start, 93)));

        // The one that tries it does, also if another is answered meanwhile.
        let tried = after(start, 93);
        breaker.begin();
        breaker.failed(None, start, tried);
        breaker.succeeded(start);
        assert_eq!(breaker.opens_at(tried), None);
        breaker.succeeded(tried);
        assert!(breaker.lets_through(tried));
    }

    #[test]
    fn an_answer_that_says_nothing_leaves_the_decision_to_the_next_call() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1);
        breaker.failed(None, start, start);
        let tried = after(start, 5);
        breaker.begin();
        breaker.says_nothing(tried);
        assert!(breaker.lets_through(tried));
        breaker.begin();
        assert!(!breaker.lets_through(tried), "it is open still");
    }
}
