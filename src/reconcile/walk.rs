//! A walk through a product's list of tasks, page by page, to those that were created since a given
//! time. Pure.
//!
//! The vendor does not document the list's order, so the first page tells. Newest first: forward,
//! until a page has only older tasks. Oldest first: the first page that has a newer one is looked
//! for by doubling the offset and then halving the gap, and from there forward. In no order:
//! forward to the end. Each walk has a limit of calls.
//!
//! The vendor may show fewer tasks than it is asked for, so a short page need not be the last: that
//! is one which shows nothing new. And tasks may be deleted while the list is walked through, which
//! moves the others forward, so each page shows the last tasks of the one before it again.

/// Most tasks that a page shows (VENDOR.md, "Status API").
pub(super) const PAGE: u64 = 100;
/// Tasks that a page shows again: so many may be deleted between two pages.
const OVERLAP: u64 = 5;
/// Most pages of a list whose tasks do not say when they were created: nothing tells where to end.
const TIMELESS_PAGES_MAX: u32 = 10;
/// Behind so many tasks no walk looks: no list is so long.
const OFFSET_MAX: u64 = 1_000_000;

/// See the module's description.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    since: i64,
    calls_left: u32,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The first page tells the order.
    First,
    /// From page to page.
    Forward {
        offset: u64,
        order: Order,
    },
    /// The page at `old` has older tasks only, and the next to look at is `old + step`.
    Doubling {
        old: Seen,
        step: u64,
    },
    /// The page at `new` has a newer task, or none at all.
    Halving {
        old: Seen,
        new: u64,
    },
    End,
}

/// A page that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    offset: u64,
    count: u64,
}

impl Seen {
    /// The offset of the page behind it.
    fn next(self) -> u64 {
        // Of a short page less is shown again: a walk has to come forward.
        self.offset + self.count - OVERLAP.min(self.count / 4)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    NewestFirst,
    OldestFirst,
    Unknown,
}

impl Walk {
    /// To the tasks created at `since` or later, in microseconds since 1970, with so many calls at most.
    pub(super) fn new(since: i64, calls_max: u32) -> Self {
        Self {
            since,
            calls_left: calls_max,
            at: At::First,
        }
    }

    /// The offset of the next page; `None` at the end.
    pub(super) fn offset(&self) -> Option<u64> {
        if self.calls_left == 0 {
            return None;
        }
        let offset = match self.at {
            At::First => 0,
            At::Forward { offset, .. } => offset,
            At::Doubling { old, step } => old.offset + step,
            At::Halving { old, new } => middle(old.offset, new),
            At::End => return None,
        };
        (offset <= OFFSET_MAX).then_some(offset)
    }

    /// Ends it: the list cannot be walked through.
    pub(super) fn end(&mut self) {
        self.at = At::End;
    }

    /// Notes the page at that offset: how many tasks it has, and when they were created, of those that say so. A walk that has ended
    /// stays where it is.
    pub(super) fn note(&mut self, count: usize, created: &[i64]) {
        let Some(offset) = self.offset() else {
            return;
        };
        self.calls_left = self.calls_left.saturating_sub(1);
        let page = Seen {
            offset,
            count: (count as u64).min(PAGE),
        };
        let is_old = !created.is_empty() && created.iter().all(|at| *at < self.since);
        if self.at == At::First && created.is_empty() {
            self.calls_left = self.calls_left.min(TIMELESS_PAGES_MAX - 1);
        }

        self.at = match self.at {
            At::First => match order(created) {
                _ if page.count == 0 => At::End,
                Order::NewestFirst if is_old => At::End,
                Order::OldestFirst if is_old => At::Doubling {
                    old: page,
                    step: PAGE,
                },
                order => At::Forward {
                    offset: page.next(),
                    order,
                },
            },
            At::Forward { order, .. } => {
                let is_past = is_old && order == Order::NewestFirst;
                if page.count == 0 || is_past {
                    At::End
                } else {
                    At::Forward {
                        offset: page.next(),
                        order,
                    }
                }
            }
            At::Doubling { step, .. } if is_old => At::Doubling {
                old: page,
                step: 2 * step,
            },
            At::Halving { new, .. } if is_old => between(page, new),
            At::Doubling { old, .. } | At::Halving { old, .. } => between(old, offset),
            At::End => At::End,
        };
    }
}

/// Where to go on with a page that is old, and one at `new` that is not.
fn between(old: Seen, new: u64) -> At {
    if new - old.offset > PAGE {
        At::Halving { old, new }
    } else {
        At::Forward {
            offset: old.next(),
            order: Order::OldestFirst,
        }
    }
}

/// A multiple of a page between two that are more than a page apart.
fn middle(old: u64, new: u64) -> u64 {
    old + (new - old) / PAGE / 2 * PAGE
}

fn order(created: &[i64]) -> Order {
    let (rises, falls) = (
        created.is_sorted(),
        created.is_sorted_by(|before, after| before >= after),
    );
    match (rises, falls) {
        (true, false) => Order::OldestFirst,
        (false, true) => Order::NewestFirst,
        _ => Order::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn walked(list: &[i64], since: i64, calls_max: u32) -> (HashSet<usize>, u32) {
        walked_by(PAGE as usize, list, since, calls_max)
    }

    /// Walks through a list by pages of a size; returns what it has shown, and how many calls that took.
    fn walked_by(page: usize, list: &[i64], since: i64, calls_max: u32) -> (HashSet<usize>, u32) {
        let mut walk = Walk::new(since, calls_max);
        let (mut shown, mut calls) = (HashSet::new(), 0);
        let mut last = 0..0;
        while let Some(offset) = walk.offset() {
            let from = list.len().min(offset as usize);
            let until = list.len().min(from + page);
            shown.extend(from..until);
            walk.note(until - from, &list[from..until]);
            if from < until && last.start <= from && until <= last.end {
                walk.end(); // it shows nothing new
            }
            last = from..until;
            calls += 1;
            assert!(calls <= calls_max);
        }
        (shown, calls)
    }

    fn rising(count: usize) -> Vec<i64> {
        (0..count as i64).collect()
    }

    fn falling(count: usize) -> Vec<i64> {
        rising(count).into_iter().rev().collect()
    }

    #[test]
    fn a_thousand_new_tasks_are_eleven_pages_whatever_the_order() {
        let (shown, calls) = walked(&falling(100_000), 99_000, 1_000);
        assert!((0..1_000).all(|n| shown.contains(&n)));
        assert_eq!(calls, 12, "and one that has older tasks only");

        let (shown, calls) = walked(&rising(100_000), 99_000, 1_000);
        assert!((99_000..100_000).all(|n| shown.contains(&n)));
        assert!(calls <= 12 + 20, "{calls}");
    }

    #[test]
    fn a_list_ends_with_a_page_that_shows_nothing_new() {
        for list in [rising(100), rising(99), falling(99), rising(1)] {
            assert_eq!(walked(&list, 0, 100).1, 2);
        }
        assert_eq!(walked(&[], 0, 100).1, 1);
    }

    #[test]
    fn a_list_without_times_is_walked_for_ten_pages() {
        let (mut walk, mut calls) = (Walk::new(0, 1_000), 0);
        while walk.offset().is_some() {
            walk.note(100, &[]);
            calls += 1;
        }
        assert_eq!(calls, TIMELESS_PAGES_MAX);
    }

    #[test]
    fn a_list_without_end_is_left_after_a_million_tasks() {
        let page = rising(100);
        let (mut walk, mut calls) = (Walk::new(1_000, u32::MAX), 0);
        while let Some(offset) = walk.offset() {
            assert!(offset <= OFFSET_MAX);
            walk.note(page.len(), &page);
            calls += 1;
        }
        assert!((10..20).contains(&calls), "{calls}");
        walk.note(usize::MAX, &page);
        assert_eq!(walk.offset(), None);
    }

    #[test]
    fn a_walk_ends_at_its_limit_of_calls() {
        assert_eq!(walked(&falling(100_000), 0, 7).1, 7);
        assert_eq!(walked(&rising(100_000), 99_999, 3).1, 3);
    }

    proptest! {
        #[test]
        fn every_new_task_is_shown(
            count in 0..3_000_usize,
            new in 0..3_000_usize,
            kind in 0..3_u8,
            repeated in 1..40_i64,
            shown_max in 1..=100_usize,
            seed: u64,
        ) {
            // Several are created at the same time.
            let mut list: Vec<_> = rising(count)
                .into_iter()
                .map(|at| at / repeated)
                .collect();
            match kind {
                0 => {}
                1 => list.reverse(),
                _ => fastrand::Rng::with_seed(seed).shuffle(&mut list),
            }
            let since = (count.saturating_sub(new) as i64) / repeated;

            // A few tasks may seem to have an order by chance.
            let page = if kind < 2 { shown_max } else { PAGE as usize };
            let (shown, _) = walked_by(page, &list, since, 10_000);
            for (n, at) in list.iter().enumerate() {
                prop_assert!(*at < since || shown.contains(&n), "{}", n);
            }
        }
    }
}
