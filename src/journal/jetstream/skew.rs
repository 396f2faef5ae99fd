//! How far another node's clock is from this node's, by the times that it shows. Pure.
//!
//! A time that is long on its way makes the other clock look slow, and nothing makes it look fast. So of the last ones the one that
//! is furthest ahead is the best. It is right to about a second, and a clock that matters is wrong by more.

use std::collections::VecDeque;

/// A node shows itself each two seconds: a clock that was set right is seen to be after so many.
const SHOWN_MAX: usize = 8;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Skew {
    /// By how many microseconds the other clock was ahead.
    ahead: VecDeque<i64>,
}

impl Skew {
    /// The other clock has shown this time, in microseconds since 1970, and this node's says that one.
    pub(super) fn shown(&mut self, theirs: i64, mine: i64) {
        if self.ahead.len() == SHOWN_MAX {
            self.ahead.pop_front();
        }
        self.ahead.push_back(theirs.saturating_sub(mine));
    }

    /// By how many microseconds they differ; 0 if nothing was shown.
    pub(super) fn micros(&self) -> u64 {
        let ahead = self.ahead.iter().max();
        ahead.map_or(0, |ahead| ahead.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn times_that_come_late_do_not_count_beside_one_that_comes_in_time() {
        for ahead in [-3_600, 0, 3_600] {
            let mut skew = Skew::default();
            for (now, delay) in [(100, 5), (102, 0), (104, 30)] {
                skew.shown((now + ahead) * SECOND, (now + delay) * SECOND);
            }
            assert_eq!(skew.micros(), (ahead * SECOND).unsigned_abs());
        }
        assert_eq!(Skew::default().micros(), 0);
    }

    #[test]
    fn a_clock_that_was_set_right_is_seen_to_be() {
        let mut skew = Skew::default();
        skew.shown(60 * SECOND, 0);
        for _ in 0..SHOWN_MAX {
            assert_eq!(skew.micros(), 60_000_000);
            skew.shown(0, 0);
        }
        assert_eq!(skew.micros(), 0);
        skew.shown(i64::MIN, i64::MAX);
        assert_eq!(skew.micros(), 0);
    }
}
