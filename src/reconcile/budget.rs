//! How often one vendor key may be used: a token bucket that keeps its limit in every minute, not
//! only on average, as the vendor sees it.
//!
//! A plain bucket of `n` tokens that refills `n` a minute gives up to twice `n` within a minute: a
//! full bucket, and what flows in meanwhile. So this one holds few tokens, and refills so much more
//! slowly that both together are the limit. It is the generic cell rate algorithm (ITU-T I.371):
//! with `b` tokens at most and one new token each `t`, a half-open window `w` has at most
//! `w / t + b - 1` uses. So `t` is `w / (limit + 1 - b)`, rounded up.
//!
//! A use is charged when the call begins, and the vendor sees it up to [`TIMEOUT`] later. What it
//! sees in a minute began within that minute or that long before, so `w` is both together.
//!
//! It begins empty: a broker that restarts in a loop must not use the limit anew at each start.
//!
//! Services may use the same key for calls of their own. The vendor then says that there are too many
//! although the limit here is kept, so the key is used less often for a while.

use std::time::Duration;

use tokio::time::Instant;

use super::vendor_api::TIMEOUT;

/// The vendor's limit is for this long.
const MINUTE: Duration = Duration::from_secs(60);
/// In which calls begin that the vendor may see within a minute.
const WINDOW: Duration = MINUTE.saturating_add(TIMEOUT);
/// One in so many uses may come at once: enough for a few tasks that are late together, and little
/// enough that the refill is hardly slower than the limit.
const BURST_SHARE: u32 = 10;
/// So long a key is used half as often. Then the rate doubles, each time after as long again.
const SLOWED_FOR: Duration = Duration::from_secs(600);
/// The rate is halved so often at most.
const HALVINGS_MAX: u32 = 3;

/// What one key may still use. A use is a call of the vendor's API, whatever it asks and however it
/// is answered.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// From one token to the next.
    interval: Duration,
    /// Most tokens.
    burst: u32,
    /// When the bucket will be full.
    full_at: Instant,
    /// When the rate was halved last, and how often it was by then.
    slowed: Option<(Instant, u32)>,
}

impl Budget {
    /// An empty bucket for a limit of at least 1 use a minute.
    pub(super) fn new(per_minute_max: u32, now: Instant) -> Self {
        let limit = per_minute_max.max(1);
        let burst = (limit / BURST_SHARE).max(1);
        let per_window = limit + 1 - burst;
        let interval_nanos = WINDOW.as_nanos().div_ceil(u128::from(per_window));
        let interval = Duration::from_nanos(
            u64::try_from(interval_nanos).expect("70 s have fewer nanoseconds than 2^64"),
        );

        Self {
            interval,
            burst,
            full_at: now + interval * burst,
            slowed: None,
        }
    }

    /// Uses the key once if it may be used now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.left(now) == 0 {
            return false;
        }
        self.full_at = self.full_at.max(now) + self.interval * self.cost(now);
        true
    }

    /// How often the key may be used at once.
    pub(super) fn left(&self, now: Instant) -> u32 {
        let until_full = self.full_at.saturating_duration_since(now);
        let missing = until_full.as_nanos().div_ceil(self.interval.as_nanos());
        let tokens = self
            .burst
            .saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX));
        tokens.div_ceil(self.cost(now))
    }

    /// The vendor says that the key is used too often: from now on it is used half as often.
    pub(super) fn slow_down(&mut self, now: Instant) {
        let halvings = (self.halvings(now) + 1).min(HALVINGS_MAX);
        self.slowed = Some((now, halvings));
    }

    /// The tokens that a use takes. It may take more than there are: then the next one waits for as
    /// much longer.
    fn cost(&self, now: Instant) -> u32 {
        1 << self.halvings(now)
    }

    /// How often the rate is halved now.
    fn halvings(&self, now: Instant) -> u32 {
        let Some((since, halvings)) = self.slowed else {
            return 0;
        };
        let ended = now.saturating_duration_since(since).as_secs() / SLOWED_FOR.as_secs();
        halvings.saturating_sub(u32::try_from(ended).unwrap_or(u32::MAX))
    }

    /// When the key may be used next; `now` if it may be at once.
    pub(super) fn next_at(&self, now: Instant) -> Instant {
        (self.full_at - self.interval * (self.burst - 1)).max(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The uses that succeed when one is tried at each of these moments.
    fn uses(budget: &mut Budget, moments: &[Instant]) -> Vec<Instant> {
        let mut used = moments.to_vec();
        used.retain(|moment| budget.take(*moment));
        used
    }

    /// The most of them in any half-open window of a minute.
    fn most_in_a_minute(used: &[Instant]) -> usize {
        let of = |from: &Instant| {
            used.iter()
                .filter(|at| (*from..*from + MINUTE).contains(at))
                .count()
        };
        used.iter().map(of).max().unwrap_or_default()
    }

    /// Tries a use at each millisecond for some minutes.
    fn all_the_time(limit: u32, minutes: u64) -> (Instant, Vec<Instant>) {
        let start = Instant::now();
        let moments: Vec<_> = (0..minutes * 60_000)
            .map(|ms| start + Duration::from_millis(ms))
            .collect();
        (start, uses(&mut Budget::new(limit, start), &moments))
    }

    proptest! {
        #[test]
        fn the_vendor_never_sees_more_uses_in_a_minute_than_the_limit(
            limit in 1..120_u32,
            tries in prop::collection::vec(
                (
                    prop_oneof![Just(0), 0..50_u64, 0..5_000_u64, 0..200_000_u64],
                    prop_oneof![Just(0), 0..10_000_u64, Just(10_000)], // held on its way
                    prop::bool::weighted(0.02),
                ),
                1..600,
            ),
        ) {
            let start = Instant::now();
            let mut budget = Budget::new(limit, start);
            let mut at = start;
            let mut seen = Vec::new();
            for (gap, held, is_too_many) in tries {
                at += Duration::from_millis(gap);
                if is_too_many {
                    budget.slow_down(at);
                }
                if budget.take(at) {
                    seen.push(at + Duration::from_millis(held));
                }
            }
            prop_assert!(most_in_a_minute(&seen) <= limit as usize);
        }

        #[test]
        fn what_is_left_can_be_taken_and_no_more(limit in 1..120_u32, waited_ms in 0..200_000_u64) {
            let start = Instant::now();
            let mut budget = Budget::new(limit, start);
            let now = start + Duration::from_millis(waited_ms);
            let left = budget.left(now);
            let taken = (0..200).filter(|_| budget.take(now)).count();
            prop_assert_eq!(taken, left as usize);

            let next = budget.next_at(now);
            prop_assert!(next > now);
            prop_assert!(!budget.take(next - Duration::from_nanos(1)));
            prop_assert!(budget.take(next));
        }
    }

    #[test]
    fn the_limit_is_used_up_when_there_is_always_something_to_ask() {
        for limit in [1, 2, 9, 10, 50, 60] {
            let (_, used) = all_the_time(limit, 3);
            let most = most_in_a_minute(&used);
            assert!(most <= limit as usize, "{limit}: {most}");
            // After the first minute, which begins with nothing. A call may be held for a seventh of the window.
            let least = 2 * (limit + 1 - (limit / BURST_SHARE).max(1)) * 6 / 7;
            assert!(used.len() >= least as usize, "{limit}: {}", used.len());
        }
    }

    #[test]
    fn held_calls_that_arrive_together_with_later_ones_are_within_the_limit() {
        for limit in [1, 2, 9, 50] {
            let (_, used) = all_the_time(limit, 3);
            for first in 0..used.len() {
                let mut seen = used.clone();
                for at in seen.iter_mut().skip(first).take(4) {
                    *at += TIMEOUT;
                }
                let most = most_in_a_minute(&seen);
                assert!(most <= limit as usize, "{limit}: {most}");
            }
        }
    }

    #[test]
    fn a_start_has_nothing_to_spend() {
        let (start, used) = all_the_time(50, 1);
        let first = used[0] - start;
        assert!(first >= Duration::from_millis(1_521), "{first:?}");
        assert!(first <= Duration::from_millis(1_523), "{first:?}");
    }

    #[test]
    fn a_quiet_key_gives_its_burst_and_no_more_at_once() {
        let start = Instant::now();
        let mut budget = Budget::new(50, start);
        let later = start + Duration::from_secs(3_600);
        assert_eq!(budget.left(later), 5);
        assert_eq!(uses(&mut budget, &[later; 20]).len(), 5);
    }

    #[test]
    fn a_key_that_is_used_too_often_is_used_half_as_often_and_recovers_step_by_step() {
        let start = Instant::now();
        let at = |minute: u64| start + Duration::from_secs(60 * minute);
        let mut budget = Budget::new(50, start);
        budget.slow_down(at(10));
        budget.slow_down(at(11));
        let mut used_in = |minutes: std::ops::Range<u64>| {
            let ms = minutes.start * 60_000..minutes.end * 60_000;
            let moments: Vec<_> = ms.map(|ms| start + Duration::from_millis(ms)).collect();
            uses(&mut budget, &moments).len()
        };

        used_in(11..12); // what had been left
        let per_minute = [(12..17), (21..26), (31..36)].map(|minutes| used_in(minutes) / 5);
        assert_eq!(per_minute, [10, 20, 40]);
    }

    #[test]
    fn a_key_is_used_an_eighth_as_often_at_least() {
        let start = Instant::now();
        let mut budget = Budget::new(50, start);
        for _ in 0..50 {
            budget.slow_down(start);
        }
        let later = start + Duration::from_secs(300);
        assert_eq!(budget.left(later), 1);
        assert!(budget.take(later) && !budget.take(later));
        let next = budget.next_at(later);
        assert!(!budget.take(next - Duration::from_nanos(1)));
        assert!(budget.take(next));
    }
}
