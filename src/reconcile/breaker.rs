//! When the vendor is left alone: a circuit breaker for its host, and one for each key.
//!
//! Closed, it lets every call through. Some failures in a row open it: then nothing is asked for a
//! while, each time twice as long. After that it probes: one call is let through, and its answer
//! closes it or opens it again.
//!
//! Only a call that began since the last change from closed to open, or is the probe, counts: many
//! begin at once, and the answers of those that began before may come late. No order of answers can
//! lock it: it leaves each state but the closed one by the time alone.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest pause that the vendor has not asked for.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A probe without an answer for so long is lost, and another one begins: a call takes 10 s at most.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// A circuit breaker.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    /// So many failures in a row open it.
    failures_max: u32,
    /// The longest pause that the vendor may ask for with `Retry-After`.
    retry_after_max: Duration,
    failures: u32,
    state: State,
    /// Calls that began before the last probe do not count.
    probed_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// Nothing is asked before then.
    Open {
        until: Instant,
    },
    /// One call is under way, and another one is let through if its answer has not come by then.
    Probing {
        until: Instant,
    },
}

impl Breaker {
    /// A closed one, which so many failures in a row open.
    pub(super) fn new(failures_max: u32, retry_after_max: Duration) -> Self {
        Self {
            failures_max,
            retry_after_max,
            failures: 0,
            state: State::Closed,
            probed_at: None,
        }
    }

    /// Whether calls are held back, but for a probe.
    pub(super) fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// So many probes in a row have failed.
    pub(super) fn failed_probes(&self) -> u32 {
        self.failures.saturating_sub(self.failures_max)
    }

    /// When a call may begin at the earliest.
    pub(super) fn opens_at(&self, now: Instant) -> Instant {
        match self.state {
            State::Closed => now,
            State::Open { until } | State::Probing { until } => until.max(now),
        }
    }

    /// Whether a call may begin now.
    pub(super) fn lets_through(&self, now: Instant) -> bool {
        self.opens_at(now) <= now
    }

    /// A call begins that is let through.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.is_open() {
            self.probed_at = Some(now);
            self.state = State::Probing {
                until: now + PROBE_MAX,
            };
        }
    }

    /// A call that began then was answered as it should be.
    pub(super) fn succeeded(&mut self, began: Instant) {
        if self.counts(began) {
            self.failures = 0;
            self.state = State::Closed;
        }
    }

    /// A call that began then has failed; perhaps the vendor has said for how long.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, began: Instant, now: Instant) {
        let asked = retry_after.map_or(Duration::ZERO, |asked| asked.min(self.retry_after_max));
        if let State::Open { until } = &mut self.state {
            *until = (now + asked).max(*until); // it began before
        } else if self.counts(began) {
            self.failures = self.failures.saturating_add(1);
            if let Some(doublings) = self.failures.checked_sub(self.failures_max) {
                let backs_off = (PAUSE_MIN * 2_u32.pow(doublings.min(10))).min(PAUSE_MAX);
                self.state = State::Open {
                    until: now + backs_off.max(asked),
                };
            }
        }
    }

    /// A call that began then has an answer that says nothing of what this stands for: the next one
    /// decides.
    pub(super) fn says_nothing(&mut self, began: Instant, now: Instant) {
        if self.is_open() && self.counts(began) {
            self.state = State::Open { until: now };
        }
    }

    /// Whether the answer to a call that began then changes anything. While it is open, nothing
    /// begins; so the call began before.
    fn counts(&self, began: Instant) -> bool {
        let is_new = self.probed_at.is_none_or(|probed| began >= probed);
        is_new && !matches!(self.state, State::Open { .. })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ASKED_MAX: Duration = Duration::from_secs(900);

    fn breaker(failures_max: u32) -> Breaker {
        Breaker::new(failures_max, ASKED_MAX)
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn failures_in_a_row_open_it_and_each_further_one_for_twice_as_long() {
        let start = Instant::now();
        let mut breaker = breaker(3);
        breaker.failed(None, start, start);
        breaker.failed(None, start, start);
        assert!(breaker.lets_through(start));
        breaker.failed(None, start, start);

        let mut now = start;
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(!breaker.lets_through(after(now, pause - 1)));
            assert_eq!(breaker.opens_at(now), after(now, pause));
            now = after(now, pause);
            assert!(breaker.lets_through(now));
            breaker.begin(now);
            assert!(!breaker.lets_through(now), "one call is let through");
            breaker.failed(None, now, now);
        }
        assert_eq!(breaker.failed_probes(), 8);
    }

    #[test]
    fn a_success_closes_it() {
        let start = Instant::now();
        let mut breaker = breaker(1);
        breaker.failed(None, start, start);
        assert!(!breaker.lets_through(start) && breaker.is_open());
        let now = after(start, 5);
        breaker.begin(now);
        breaker.succeeded(now);
        assert!(breaker.lets_through(now) && !breaker.is_open());
        breaker.failed(None, now, now);
        assert_eq!(breaker.opens_at(now), after(now, 5));
    }

    #[test]
    fn what_the_vendor_asks_for_counts_once_it_is_open_and_up_to_a_limit() {
        let start = Instant::now();
        for (asked, pause) in [(90, 90), (900, 900), (3_600, 900)] {
            let asked = Some(Duration::from_secs(asked));
            let mut breaker = breaker(3);
            breaker.failed(asked, start, start);
            breaker.failed(asked, start, start);
            assert!(breaker.lets_through(start), "a failure may be by chance");
            breaker.failed(asked, start, start);
            assert_eq!(breaker.opens_at(start), after(start, pause));
        }
    }

    #[test]
    fn a_call_that_was_under_way_when_it_opened_does_not_close_it() {
        let start = Instant::now();
        let asked = Some(Duration::from_secs(90));
        let mut breaker = breaker(1);
        breaker.failed(asked, start, after(start, 1));
        breaker.succeeded(start);
        assert_eq!(breaker.opens_at(start), after(start, 91));
        // Nor does it double the pause; what the vendor asks for counts.
        breaker.failed(None, start, after(start, 2));
        breaker.failed(asked, start, after(start, 3));
        assert_eq!(breaker.opens_at(start), after(start, 93));

        // The probe closes it, also if another is answered meanwhile.
        let probed = after(start, 93);
        breaker.begin(probed);
        breaker.failed(None, start, probed);
        breaker.succeeded(start);
        assert!(!breaker.lets_through(probed));
        breaker.succeeded(probed);
        assert!(breaker.lets_through(probed));
        breaker.failed(None, start, probed);
        assert!(breaker.lets_through(probed), "it began before the probe");
    }

    #[test]
    fn a_late_answer_does_not_take_the_decision_from_the_probe() {
        let (start, asked) = (Instant::now(), Some(Duration::from_secs(1)));
        let at = |ms| start + Duration::from_millis(ms);
        let mut breaker = breaker(1);
        breaker.failed(asked, start, at(300));
        let probed = at(5_300);
        breaker.begin(probed);
        for _ in 0..3 {
            breaker.failed(asked, start, at(5_700));
        }
        breaker.succeeded(probed);
        assert!(breaker.lets_through(at(6_200)));
    }

    #[test]
    fn an_answer_that_says_nothing_leaves_the_decision_to_the_next_call() {
        let start = Instant::now();
        let mut breaker = breaker(1);
        breaker.failed(None, start, start);
        let probed = after(start, 5);
        breaker.begin(probed);
        breaker.says_nothing(probed, probed);
        assert!(breaker.lets_through(probed));
        breaker.begin(probed);
        assert!(!breaker.lets_through(probed), "it is open still");
    }

    #[test]
    fn a_probe_that_is_never_answered_is_followed_by_another() {
        let start = Instant::now();
        let mut breaker = breaker(1);
        breaker.failed(None, start, start);
        breaker.begin(after(start, 5));
        assert!(!breaker.lets_through(after(start, 34)));
        assert!(breaker.lets_through(after(start, 35)));
    }

    /// What may happen next.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Begin,
        Passes { ms: u64 },
        Succeeds(usize),
        Fails(usize, Option<u64>),
        SaysNothing(usize),
        IsCancelled(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let call = 0..8_usize;
        prop_oneof![
            4 => Just(Step::Begin),
            3 => prop_oneof![Just(0), 0..2_000_u64, 0..400_000_u64]
                .prop_map(|ms| Step::Passes { ms }),
            1 => call.clone().prop_map(Step::Succeeds),
            3 => (call.clone(), prop::option::of(0..100_000_u64))
                .prop_map(|(call, asked)| Step::Fails(call, asked)),
            1 => call.clone().prop_map(Step::SaysNothing),
            1 => call.prop_map(Step::IsCancelled),
        ]
    }

    proptest! {
        #[test]
        fn no_order_of_answers_keeps_it_from_letting_a_call_through(
            failures_max in 1..4_u32,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = breaker(failures_max);
            let mut calls = Vec::new();
            for step in steps {
                let of = |calls: &mut Vec<Instant>, call: usize| {
                    (!calls.is_empty()).then(|| calls.remove(call % calls.len()))
                };
                match step {
                    Step::Passes { ms } => now += Duration::from_millis(ms),
                    Step::Begin if breaker.lets_through(now) => {
                        breaker.begin(now);
                        calls.push(now);
                        let is_probe = breaker.is_open();
                        prop_assert!(!is_probe || !breaker.lets_through(now), "one at a time");
                    }
                    Step::Begin => {}
                    Step::Succeeds(call) => {
                        of(&mut calls, call).iter().for_each(|began| breaker.succeeded(*began));
                    }
                    Step::Fails(call, asked) => {
                        let asked = asked.map(Duration::from_secs);
                        of(&mut calls, call)
                            .iter()
                            .for_each(|began| breaker.failed(asked, *began, now));
                    }
                    Step::SaysNothing(call) => {
                        of(&mut calls, call)
                            .iter()
                            .for_each(|began| breaker.says_nothing(*began, now));
                    }
                    Step::IsCancelled(call) => drop(of(&mut calls, call)),
                }
                prop_assert!(breaker.lets_through(now + ASKED_MAX));
            }

            // What is answered as it should be closes it, whatever was before.
            now += ASKED_MAX;
            breaker.begin(now);
            breaker.succeeded(now);
            prop_assert!(!breaker.is_open());
        }
    }
}
