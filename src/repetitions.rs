//! How often callbacks have repeated an event that the log has, of the events that were repeated last. In memory only, and bounded: a
//! repetition writes nothing, and it must not begin to.

use std::{collections::HashMap, mem};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::event::Sequence;

/// Events of which one generation knows. Two of them take less than 1 MiB.
const EVENTS_MAX: usize = 8_192;

/// The repetitions of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Repetition {
    /// How many there were since the start.
    pub count: u32,
    /// When the last one was received.
    pub last_at: Timestamp,
}

/// The events that were repeated last.
#[derive(Debug, Default)]
pub(crate) struct Repetitions(Mutex<Generations>);

/// When the newer one is full, the older one is forgotten: at least [`EVENTS_MAX`] events are known.
#[derive(Debug, Default)]
struct Generations {
    newer: HashMap<Sequence, Repetition>,
    older: HashMap<Sequence, Repetition>,
}

impl Repetitions {
    /// Counts a callback that has repeated the event at this place.
    pub(crate) fn note(&self, place: Sequence, at: Timestamp) {
        let mut generations = self.0.lock();
        let Generations { newer, older } = &mut *generations;
        if let Some(known) = newer.get_mut(&place) {
            known.count = known.count.saturating_add(1);
            known.last_at = at;
            return;
        }

        let before = older.remove(&place).map_or(0, |known| known.count);
        if newer.len() >= EVENTS_MAX {
            *older = mem::take(newer);
        }
        let repetition = Repetition {
            count: before.saturating_add(1),
            last_at: at,
        };
        newer.insert(place, repetition);
    }

    /// The repetitions of the event at this place; `None` if there were none, or not lately.
    pub(crate) fn of(&self, place: Sequence) -> Option<Repetition> {
        let generations = self.0.lock();
        let known = generations.newer.get(&place);
        known.or_else(|| generations.older.get(&place)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_that_were_repeated_last_are_known_and_no_more_than_fit() {
        let repetitions = Repetitions::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let count = |place| repetitions.of(Sequence(place)).map(|of| of.count);
        repetitions.note(Sequence(1), at(1));
        repetitions.note(Sequence(1), at(2));
        let twice = Repetition {
            count: 2,
            last_at: at(2),
        };
        assert_eq!(repetitions.of(Sequence(1)), Some(twice));
        assert_eq!(count(2), None);

        let many = EVENTS_MAX as u64;
        (2..=many + 1).for_each(|place| repetitions.note(Sequence(place), at(3)));
        assert_eq!((count(1), count(many + 1)), (Some(2), Some(1)));
        repetitions.note(Sequence(1), at(4));
        assert_eq!(count(1), Some(3), "it goes on where it was");

        (many + 2..4 * many).for_each(|place| repetitions.note(Sequence(place), at(5)));
        assert_eq!(
            (count(1), count(2), count(4 * many - 1)),
            (None, None, Some(1))
        );
        let generations = repetitions.0.lock();
        assert!(generations.newer.len() + generations.older.len() <= 2 * EVENTS_MAX);
    }
}
