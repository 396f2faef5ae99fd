//! How much came in each minute of the last day, from counters that only rise. What counts pays nothing for it: the counters are
//! looked at once a second, so that a count may be put down a second late. In memory only, of a fixed size. Pure.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;

/// A day.
pub(crate) const MINUTES: usize = 1_440;
/// How often the counters are looked at.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What came in a minute, or since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Callbacks that were kept, duplicates and quarantined ones too.
    pub kept: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// The counts of each minute.
#[derive(Debug, Default)]
pub(crate) struct Minutes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What the counters said last.
    total: Counts,
    /// By minute since 1970, the oldest first. Minutes without a count may be missing.
    counted: VecDeque<(i64, Counts)>,
}

impl Minutes {
    /// Puts down what the counters have risen by since the last look. If the clock was set back, it belongs to the newest minute.
    pub(crate) fn look(&self, minute: i64, total: Counts) {
        let mut state = self.0.lock();
        let more = Counts {
            kept: total.kept.saturating_sub(state.total.kept),
            refused: total.refused.saturating_sub(state.total.refused),
        };
        state.total = total;
        if more == Counts::default() {
            return;
        }

        match state.counted.back_mut() {
            Some((newest, counts)) if *newest >= minute => {
                counts.kept += more.kept;
                counts.refused += more.refused;
            }
            _ => state.counted.push_back((minute, more)),
        }
        if state.counted.len() > MINUTES {
            state.counted.pop_front();
        }
    }

    /// The counts of the day that ends with `minute`, which is the last of them and may not be over.
    pub(crate) fn day(&self, minute: i64) -> Vec<Counts> {
        let mut day = vec![Counts::default(); MINUTES];
        let state = self.0.lock();
        for (at, counts) in &state.counted {
            // What lies in the future of a clock that was set back counts as of now.
            let age = usize::try_from(minute.saturating_sub(*at)).unwrap_or(0);
            if let Some(index) = (MINUTES - 1).checked_sub(age) {
                day[index].kept += counts.kept;
                day[index].refused += counts.refused;
            }
        }
        day
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(kept: u64, refused: u64) -> Counts {
        Counts { kept, refused }
    }

    #[test]
    fn each_minute_has_what_the_counters_rose_by() {
        let minutes = Minutes::default();
        minutes.look(100, counts(3, 1));
        minutes.look(100, counts(5, 1));
        minutes.look(102, counts(5, 4));
        let day = minutes.day(103);
        assert_eq!(day.len(), MINUTES);
        assert_eq!(
            day[MINUTES - 4..],
            [counts(5, 1), counts(0, 0), counts(0, 3), counts(0, 0)]
        );
        assert!(day[..MINUTES - 4].iter().all(|it| *it == counts(0, 0)));
        assert_eq!(
            minutes.day(100 + 1_440)[1],
            counts(0, 3),
            "the rest is older than a day"
        );
    }

    #[test]
    fn a_clock_that_is_set_back_loses_nothing() {
        let minutes = Minutes::default();
        minutes.look(100, counts(1, 0));
        minutes.look(50, counts(3, 0));
        assert_eq!(minutes.day(50)[MINUTES - 1], counts(3, 0));
        minutes.look(101, counts(4, 0));
        assert_eq!(
            minutes.day(101)[MINUTES - 2..],
            [counts(3, 0), counts(1, 0)]
        );
    }

    #[test]
    fn no_more_than_a_day_is_kept() {
        let minutes = Minutes::default();
        for minute in 0..3_000 {
            minutes.look(minute, counts(minute as u64 + 1, 0));
        }
        assert_eq!(minutes.0.lock().counted.len(), MINUTES);
        assert!(minutes.day(2_999).iter().all(|it| *it == counts(1, 0)));
    }
}
