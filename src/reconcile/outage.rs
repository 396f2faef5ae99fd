//! Whether this broker was away, and since when: then callbacks may be lost for good, because the
//! vendor repeats one for some minutes only.
//!
//! While it runs, it notes the time in the data directory once a minute, and at a clean stop. What a
//! start finds there is when it was last there.

use std::time::Duration;

use super::entry::micros;

/// How often the time is noted. A broker that was killed seems to have been away for up to so much longer.
pub(super) const NOTED_EVERY: Duration = Duration::from_secs(60);
/// An outage is taken to have begun at most so long ago: the vendor keeps results for a day or so, and a broker that did not ask the
/// vendor for a while did not note the time either.
const OUTAGE_MAX: i64 = 24 * 3_600 * 1_000_000;
/// The vendor's clock may differ from this one.
const CLOCKS_DIFFER: i64 = 60 * 1_000_000;

/// A time in which callbacks may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    /// By the log's clock, in microseconds since 1970.
    began: i64,
    /// How long it was.
    pub lasted: Duration,
}

impl Outage {
    /// The outage before a start, if it was long enough. `last_there` is the time that was noted last.
    pub(super) fn before_start(last_there: Option<i64>, now: i64, least: Duration) -> Option<Self> {
        let last_there = last_there?;
        let lasted = u64::try_from(now.saturating_sub(last_there)).ok()?;
        let lasted = Duration::from_micros(lasted);
        (lasted > least).then(|| Self {
            began: last_there.max(now.saturating_sub(OUTAGE_MAX)),
            lasted,
        })
    }

    /// Since when tasks may have been created whose callbacks came during the outage.
    pub(super) fn tasks_since(&self, expect_within: Duration) -> i64 {
        self.began
            .saturating_sub(micros(expect_within))
            .saturating_sub(CLOCKS_DIFFER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_secs(90);
    const SECOND: i64 = 1_000_000;

    fn since(last_there: i64, now: i64) -> Option<i64> {
        Outage::before_start(Some(last_there), now, LEAST)
            .map(|outage| outage.tasks_since(Duration::from_secs(720)))
    }

    #[test]
    fn an_outage_is_longer_than_the_least() {
        let now = 1_000_000 * SECOND;
        assert_eq!(Outage::before_start(None, now, LEAST), None, "a new log");
        assert_eq!(since(now - 90 * SECOND, now), None);
        assert_eq!(since(now + 90 * SECOND, now), None, "the clock went back");
        let began = now - 91 * SECOND;
        assert_eq!(since(began, now), Some(began - (720 + 60) * SECOND));
    }

    #[test]
    fn of_an_outage_the_last_day_counts() {
        let now = 1_000_000 * SECOND;
        let day = 86_400 * SECOND;
        assert_eq!(since(now - 5 * day, now), since(now - day, now));
    }
}
