//! How long a client waits before it tries again: exponential backoff with jitter. Pure, except for
//! the random number.

use std::time::Duration;

/// Shortest wait: a broker that restarts is back in about that time.
const DELAY_MIN: Duration = Duration::from_millis(200);
/// Longest wait: the delay that a person accepts between the broker's return and the next line on
/// the screen.
const DELAY_MAX: Duration = Duration::from_secs(10);

/// Counts consecutive failures.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure; at least `asked`, if the server asked for a delay.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let delay = delay(self.failures, asked, fastrand::f64());
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// After a success: the next failure counts as the first.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

// A random wait between the shortest one and a bound that doubles, so that clients that failed
// together do not return together. For the same reason a delay that the server asked for is
// extended by up to a fifth, and never shortened.
fn delay(failures: u32, asked: Option<Duration>, random: f64) -> Duration {
    let bound = DELAY_MIN
        .saturating_mul(2u32.saturating_pow(failures.saturating_add(1)))
        .min(DELAY_MAX);
    let own = DELAY_MIN + (bound - DELAY_MIN).mul_f64(random);
    let asked = asked.unwrap_or_default();
    own.max(asked.saturating_add((asked / 5).mul_f64(random)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds(failures: u32, random in 0.0..1.0f64) {
            let delay = delay(failures, None, random);
            prop_assert!((DELAY_MIN..=DELAY_MAX).contains(&delay));
        }

        #[test]
        fn a_delay_that_the_server_asked_for_is_never_shortened(failures: u32, asked_ms in 0u64..3_600_000, random in 0.0..1.0f64) {
            let asked = Duration::from_millis(asked_ms);
            let delay = delay(failures, Some(asked), random);
            prop_assert!(delay >= asked && delay <= DELAY_MAX.max(asked.mul_f64(1.2) + DELAY_MIN));
        }
    }

    #[test]
    fn waits_grow_with_failures_and_start_over_after_success() {
        assert!(delay(0, None, 0.99) < Duration::from_millis(400));
        assert!(delay(20, None, 0.99) > Duration::from_secs(9));
        let mut backoff = Backoff { failures: 20 };
        backoff.reset();
        assert!(backoff.next(None) <= Duration::from_millis(400));
    }
}
