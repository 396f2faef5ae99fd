//! A ring of what has happened last, in the order in which it happened. In memory only, and bounded.
//!
//! Each item has an owner. An owner of which much happens displaces its own items, and no more than half of those of others. Noting
//! costs a bounded look at [`KEPT_MAX`] owners.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

/// Items that are kept: those of a day, if there is one in a minute and a half.
pub(crate) const KEPT_MAX: usize = 1_000;
/// One owner displaces items of others only until it has this many.
const OF_ONE_OWNER: usize = KEPT_MAX / 2;

/// The last items.
#[derive(Debug)]
pub(crate) struct Recent<O, T>(Mutex<Kept<O, T>>);

#[derive(Debug)]
struct Kept<O, T> {
    /// How many were noted so far.
    noted: u64,
    /// The oldest first. The owners lie side by side, so that counting those of one is cheap.
    rows: VecDeque<Row<O, T>>,
}

#[derive(Debug)]
struct Row<O, T> {
    owner: O,
    /// Its place in the order, from 1.
    number: u64,
    item: Arc<T>,
}

impl<O, T> Default for Recent<O, T> {
    fn default() -> Self {
        Self(Mutex::new(Kept {
            noted: 0,
            rows: VecDeque::new(),
        }))
    }
}

impl<O: PartialEq, T> Recent<O, T> {
    /// Keeps an item, in place of an older one if there is no room.
    pub(crate) fn note(&self, owner: O, item: T) {
        let item = Arc::new(item);
        let mut kept = self.0.lock();
        kept.noted += 1;
        let number = kept.noted;
        let displaced = kept.make_room(&owner);
        kept.rows.push_back(Row {
            owner,
            number,
            item,
        });
        drop(kept);
        drop(displaced); // outside the lock
    }

    /// The newest `count_max` of those before number `before` that are meant, the newest first, with their numbers.
    pub(crate) fn newest(
        &self,
        before: u64,
        count_max: usize,
        is_meant: impl Fn(&T) -> bool,
    ) -> Vec<(u64, Arc<T>)> {
        let kept = self.0.lock();
        kept.rows
            .iter()
            .rev()
            .filter(|row| row.number < before && is_meant(&row.item))
            .take(count_max)
            .map(|row| (row.number, Arc::clone(&row.item)))
            .collect()
    }
}

impl<O: PartialEq, T> Kept<O, T> {
    fn make_room(&mut self, owner: &O) -> Option<Row<O, T>> {
        if self.rows.len() < KEPT_MAX {
            return None;
        }
        let is_own = |row: &Row<O, T>| row.owner == *owner;
        if self.rows.iter().filter(|row| is_own(row)).count() < OF_ONE_OWNER {
            return self.rows.pop_front();
        }
        let oldest = self.rows.iter().position(is_own)?;
        self.rows.remove(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(recent: &Recent<u8, usize>) -> Vec<usize> {
        let all = recent.newest(u64::MAX, usize::MAX, |_| true);
        all.iter().map(|(_, item)| **item).collect()
    }

    #[test]
    fn the_last_thousand_are_kept_and_read_page_by_page() {
        let recent = Recent::default();
        for number in 0..KEPT_MAX + 3 {
            recent.note(0, number);
        }
        let expected: Vec<_> = (3..KEPT_MAX + 3).rev().collect();
        assert_eq!(all(&recent), expected);

        let first = recent.newest(u64::MAX, 2, |item| item % 2 == 0);
        let second = recent.newest(first[1].0, 2, |item| item % 2 == 0);
        let shown: Vec<_> = second.iter().map(|(_, item)| **item).collect();
        assert_eq!(shown, [998, 996]);
    }

    #[test]
    fn an_owner_of_which_much_happens_displaces_at_most_half_of_the_others() {
        let recent = Recent::default();
        for number in 0..KEPT_MAX {
            recent.note(0, number);
        }
        for number in 0..3 * KEPT_MAX {
            recent.note(1, KEPT_MAX + number);
        }
        let kept = all(&recent);
        let of_first: Vec<_> = kept.iter().filter(|item| **item < KEPT_MAX).collect();
        assert_eq!((kept.len(), of_first.len()), (KEPT_MAX, OF_ONE_OWNER));
        assert_eq!((kept[0], *of_first[0]), (4 * KEPT_MAX - 1, KEPT_MAX - 1));

        for number in 0..OF_ONE_OWNER {
            recent.note(2, number);
        }
        assert_eq!(all(&recent).len(), KEPT_MAX, "the oldest of all go first");
    }
}
