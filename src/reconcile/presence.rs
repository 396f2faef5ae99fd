//! Whether the broker and the vendor are there: a broker that was suspended has checked nothing, and a
//! vendor that is silent for long is not waited for. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::vendor_api::{Answer, Problem};

/// A loop that has done nothing for so long was suspended, or its clock was set: it looks once a second.
const AWAY_MIN: i64 = 30_000_000;
/// A vendor that has not answered for so long is not waited for with giving up.
const SILENT_MAX: Duration = Duration::from_secs(600);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// The last step, by the log's clock.
    stepped_at: Option<i64>,
    /// Since when no call was answered.
    silent_since: Option<Instant>,
}

impl Presence {
    /// Notes a step of the loop. True if the broker was away before it.
    pub(super) fn note_step(&mut self, now: i64) -> bool {
        let before = self.stepped_at.replace(now);
        before.is_none_or(|before| now.saturating_sub(before) >= AWAY_MIN)
    }

    /// Notes what became of a call.
    pub(super) fn note(&mut self, answer: &Answer, now: Instant) {
        if matches!(
            answer,
            Answer::Failed(Problem::Broken(_) | Problem::TimedOut)
        ) {
            self.silent_since.get_or_insert(now);
        } else {
            self.silent_since = None;
        }
    }

    /// Whether the vendor has not answered for so long that tasks are given up without a check.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let since = self.silent_since;
        since.is_some_and(|since| now.saturating_duration_since(since) >= SILENT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_was_away_before_its_first_step_and_after_a_suspension() {
        let mut presence = Presence::default();
        assert!(presence.note_step(0));
        assert!(!presence.note_step(AWAY_MIN - 1));
        assert!(presence.note_step(2 * AWAY_MIN - 1));
        assert!(!presence.note_step(0), "the clock went back");
    }

    #[test]
    fn a_vendor_is_silent_after_ten_minutes_without_an_answer() {
        let (mut presence, start) = (Presence::default(), Instant::now());
        assert!(!presence.is_silent(start + SILENT_MAX));
        for _ in 0..2 {
            presence.note(&Answer::Failed(Problem::TimedOut), start);
        }
        presence.note(&Answer::Failed(Problem::TimedOut), start + SILENT_MAX);
        assert!(!presence.is_silent(start + SILENT_MAX - Duration::from_secs(1)));
        assert!(presence.is_silent(start + SILENT_MAX));
        presence.note(&Answer::NotFound, start);
        assert!(!presence.is_silent(start + SILENT_MAX));
    }
}
