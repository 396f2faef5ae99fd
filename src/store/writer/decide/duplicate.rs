//! Is this event new, or a duplicate? Decided from the events that the index names of its task. Pure.
//!
//! The same (product, task id) with the same status, outputs and error is a duplicate for as long
//! as the event is retained. Anything else is a new event with the next revision; nothing the
//! vendor says is thrown away.
//!
//! Two kinds of events are not the vendor's callbacks. An answer of its status API is new only if
//! no event has ended the task with the same status: whichever of callback and answer comes second
//! adds no event. And an overdue event is the broker's own: it follows no end, repeats only itself,
//! and takes no room from the vendor's.

use std::collections::HashSet;

use crate::{
    event::{Fingerprint, Product, TaskStatus},
    store::{
        layout::TaskEvent,
        task_entry::{CROWDED_EVENTS_MAX, TASK_EVENTS_MAX, is_crowded},
    },
};

/// Most overdue events of one task of one product: two for each time that it is expected, which is
/// mostly once.
const OVERDUE_EVENTS_MAX: usize = 16;
/// Most products with the same task id; the vendor has fewer, and a task is of one. Only a token
/// that is bound to no product gets there.
const TASK_PRODUCTS_MAX: usize = 32;

/// Who brings an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A callback, or the broker with an overdue event.
    Callback,
    /// The status API, which the broker has asked.
    Answer,
    /// An operator who has looked at it, or another log, which has applied the limits already.
    Trusted,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    Duplicate(&'a TaskEvent),
    New { revision: u32, conflict: bool },
    TooMany,
}

pub(super) fn judge<'a>(
    known: &'a [TaskEvent],
    product: &Product,
    status: TaskStatus,
    fingerprint: Fingerprint,
    by: By,
) -> Verdict<'a> {
    let of_product = || known.iter().filter(|event| event.product == *product);
    if let Some(original) = of_product().find(|event| fingerprint.repeats(event.fingerprint)) {
        return Verdict::Duplicate(original);
    }
    // Newest first: of several ends it is the present one.
    let settles = |end: &&TaskEvent| {
        end.status.is_terminal() && (end.status == status || !status.is_terminal())
    };
    if (by == By::Answer || status == TaskStatus::Overdue)
        && let Some(end) = of_product().rev().find(settles)
    {
        return Verdict::Duplicate(end);
    }
    if by == By::Callback && is_full(known, product, status) {
        return Verdict::TooMany;
    }
    // A terminal event is the vendor's last word, so a different last word contradicts it: unless
    // only URLs were signed anew, or a reason was added.
    let contradicts = |event: &TaskEvent| {
        event.status.is_terminal() && fingerprint.contradicts(event.fingerprint)
    };
    let conflict = status.is_terminal() && of_product().any(contradicts);
    let revision = of_product().map(|event| event.revision).max().unwrap_or(0) + 1;
    Verdict::New { revision, conflict }
}

fn is_full(known: &[TaskEvent], product: &Product, status: TaskStatus) -> bool {
    if known.len() < CROWDED_EVENTS_MAX {
        return false; // almost always
    }
    let is_overdue = |event: &TaskEvent| event.status == TaskStatus::Overdue;
    if status == TaskStatus::Overdue {
        let of_product = known.iter().filter(|event| event.product == *product);
        return of_product.filter(|event| is_overdue(event)).count() >= OVERDUE_EVENTS_MAX;
    }
    if known.len() >= TASK_PRODUCTS_MAX && known.iter().all(|event| event.product != *product) {
        let products: HashSet<_> = known.iter().map(|event| &event.product).collect();
        if products.len() >= TASK_PRODUCTS_MAX {
            return true;
        }
    }
    let is_like_it = |event: &&TaskEvent| {
        event.product == *product && !event.status.is_terminal() && !is_overdue(event)
    };
    let most = if is_crowded(known) {
        CROWDED_EVENTS_MAX
    } else {
        TASK_EVENTS_MAX
    };
    !status.is_terminal() && known.iter().filter(is_like_it).count() >= most
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};
    use uuid::Uuid;

    use super::*;
    use crate::{
        event::Sequence,
        store::{
            layout::encode_task,
            task_entry::{
                CROWDED_AT, CROWDED_PRODUCTS, FIRST_REVISIONS, NEWEST_NAMED, TERMINAL_EVENTS_NAMED,
                insert, may_lack, may_lack_some,
            },
        },
    };

    fn product(number: usize) -> Product {
        Product::parse(&format!("p{number}")).unwrap()
    }

    fn event(place: usize, product: &Product, status: TaskStatus) -> TaskEvent {
        TaskEvent {
            sequence: Sequence(place as u64),
            event_id: Uuid::nil(),
            fingerprint: (place as u128).into(),
            revision: place as u32,
            status,
            product: product.clone(),
            is_erased: false,
        }
    }

    /// A task's index entry, and how many events the log has.
    #[derive(Default)]
    struct Task {
        known: Vec<TaskEvent>,
        logged: usize,
    }

    impl Task {
        /// Appends what is new as the writer would; false if it is one too many.
        fn send(&mut self, product: &Product, status: TaskStatus) -> bool {
            let next = event(self.logged + 1, product, status);
            match judge(&self.known, product, status, next.fingerprint, By::Callback) {
                Verdict::TooMany => false,
                Verdict::Duplicate(_) => panic!("each has a fingerprint of its own"),
                Verdict::New { revision, .. } => {
                    self.logged += 1;
                    insert(&mut self.known, TaskEvent { revision, ..next });
                    true
                }
            }
        }

        /// Has retention forget everything before a place.
        fn forget_before(&mut self, place: usize) {
            self.known.retain(|event| event.sequence.0 >= place as u64);
        }

        fn has(&self, place: usize) -> bool {
            self.known
                .iter()
                .any(|event| event.sequence.0 == place as u64)
        }
    }

    // Feeds (product, status, fingerprint) triples to the judge as the writer would.
    fn history(input: &[(u8, u8, u8)]) -> Vec<(TaskEvent, bool)> {
        let mut kept: Vec<(TaskEvent, bool)> = Vec::new();
        for &(product, status, content) in input {
            let known: Vec<_> = kept.iter().map(|(event, _)| event.clone()).collect();
            let product = Product::parse(["veo", "sora"][usize::from(product % 2)]).unwrap();
            let status = TaskStatus::from_number(status % 6).unwrap();
            let fingerprint = Fingerprint::from(u128::from(content % 4) * 8 + status as u128);
            if let Verdict::New { revision, conflict } =
                judge(&known, &product, status, fingerprint, By::Callback)
            {
                let sequence = Sequence(kept.len() as u64 + 1);
                let event_id = Uuid::nil();
                let event = TaskEvent {
                    sequence,
                    event_id,
                    fingerprint,
                    revision,
                    status,
                    product,
                    is_erased: false,
                };
                kept.push((event, conflict));
            }
        }
        kept
    }

    proptest! {
        #[test]
        fn what_was_kept_once_is_a_duplicate_forever(input in collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let twice: Vec<_> = input.iter().chain(&input).copied().collect();
            prop_assert_eq!(history(&input).len(), history(&twice).len());
        }

        #[test]
        fn revisions_count_up_from_one_in_each_product(input in collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let kept = history(&input);
            for product in ["veo", "sora"] {
                let revisions: Vec<_> =
                    kept.iter().filter(|(e, _)| e.product.as_str() == product).map(|(e, _)| e.revision).collect();
                prop_assert_eq!(&revisions, &(1..=revisions.len() as u32).collect::<Vec<_>>());
            }
        }

        #[test]
        fn an_overdue_event_changes_nothing_for_what_the_vendor_says_but_the_revision(input in collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let of_vendor = |kept: Vec<(TaskEvent, bool)>| -> Vec<_> {
                let of_vendor = kept.into_iter().filter(|(event, _)| event.status != TaskStatus::Overdue);
                of_vendor.map(|(event, conflict)| (event.product, event.fingerprint, conflict)).collect()
            };
            let without: Vec<_> = input.iter().copied().filter(|(_, status, _)| status % 6 != TaskStatus::Overdue as u8).collect();
            prop_assert_eq!(of_vendor(history(&input)), of_vendor(history(&without)));
        }

        #[test]
        fn no_overdue_event_comes_behind_the_end_of_its_task(input in collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let kept = history(&input);
            for product in ["veo", "sora"] {
                let of_product = kept.iter().map(|(event, _)| event).filter(|event| event.product.as_str() == product);
                let behind_end: Vec<_> = of_product.skip_while(|event| !event.status.is_terminal()).collect();
                prop_assert!(behind_end.iter().all(|event| event.status != TaskStatus::Overdue));
            }
        }

        #[test]
        fn an_answer_is_news_only_where_no_event_has_ended_the_task_in_the_same_way(
            input in collection::vec(any::<(u8, u8, u8)>(), 0..20), is_completed: bool, content: u8,
        ) {
            let known: Vec<_> = history(&input).into_iter().map(|(event, _)| event).collect();
            let veo = Product::parse("veo").unwrap();
            let status = if is_completed { TaskStatus::Completed } else { TaskStatus::Failed };
            let ends: Vec<_> = known.iter().filter(|event| event.product == veo && event.status.is_terminal()).collect();
            let answered = judge(&known, &veo, status, (1_000 + u128::from(content)).into(), By::Answer);
            match ends.iter().rev().find(|end| end.status == status) {
                Some(end) => prop_assert_eq!(answered, Verdict::Duplicate(end)),
                None => {
                    let is_new = matches!(answered, Verdict::New { conflict, .. } if conflict != ends.is_empty());
                    prop_assert!(is_new, "{:?}", answered);
                }
            }
        }

        #[test]
        fn only_the_first_terminal_event_of_a_task_is_free_of_conflict(input in collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let kept = history(&input);
            for product in ["veo", "sora"] {
                let of_product = kept.iter().filter(|(e, _)| e.product.as_str() == product);
                let terminal: Vec<_> = of_product.clone().filter(|(e, _)| e.status.is_terminal()).collect();
                prop_assert!(terminal.iter().enumerate().all(|(at, (_, conflict))| *conflict == (at > 0)));
                prop_assert!(of_product.filter(|(e, _)| !e.status.is_terminal()).all(|(_, conflict)| !conflict));
            }
        }

        #[test]
        fn of_each_product_what_is_not_terminal_and_the_first_and_newest_terminal_events_are_named(
            input in collection::vec((prop_oneof![9 => Just(0_usize), 1 => Just(1)], any::<bool>()), 0..700),
        ) {
            let (mut task, mut taken) = (Task::default(), Vec::new());
            for (number, is_terminal) in input {
                let status = if is_terminal { TaskStatus::Completed } else { TaskStatus::Processing };
                let is_taken = task.send(&product(number), status);
                prop_assert!(is_taken || !is_terminal);
                if is_taken {
                    taken.push((task.logged, product(number), is_terminal));
                }
            }
            for number in 0..2 {
                let of_product = || (1..).zip(taken.iter().filter(move |(_, of, _)| *of == product(number)));
                let places = |terminal| {
                    let of_kind = of_product().filter(move |(_, (.., kind))| *kind == terminal);
                    of_kind.map(|(revision, (place, ..))| (revision, *place)).collect::<Vec<_>>()
                };
                let (steps, ends) = (places(false), places(true));
                prop_assert!(steps.len() <= TASK_EVENTS_MAX && steps.iter().all(|&(_, place)| task.has(place)));
                for (at, &(revision, place)) in ends.iter().enumerate() {
                    let is_named = revision <= FIRST_REVISIONS || at + NEWEST_NAMED >= ends.len();
                    prop_assert_eq!(task.has(place), is_named, "{} of {}", at, ends.len());
                }
            }
            prop_assert!(task.known.is_sorted_by_key(|event| event.sequence));
        }

        /// As a rebuild of the index, which has not seen what is forgotten.
        #[test]
        fn which_events_are_named_follows_from_those_that_are_retained(
            rounds in collection::vec((0..5_usize, any::<bool>(), 1..200_usize, 0..150_usize), 1..20),
        ) {
            let (mut task, mut logged, mut first) = (Task::default(), Vec::new(), 1);
            for (number, is_terminal, count, forgotten) in rounds {
                let status = if is_terminal { TaskStatus::Completed } else { TaskStatus::Processing };
                for _ in 0..count {
                    if task.send(&product(number), status) {
                        let place = task.logged;
                        logged.extend(task.known.iter().filter(|event| event.sequence.0 == place as u64).cloned());
                    }
                }
                first = (first + forgotten).min(task.logged + 1);
                task.forget_before(first);

                let mut rebuilt = Vec::new();
                for event in logged.iter().filter(|event| event.sequence.0 >= first as u64) {
                    insert(&mut rebuilt, event.clone());
                }
                prop_assert_eq!(&rebuilt, &task.known);
            }
        }
    }

    #[test]
    fn a_task_of_one_product_keeps_its_limit_of_events_that_are_not_terminal_and_no_more() {
        let (veo, sora) = (product(1), product(2));
        let known: Vec<_> = (1..=TASK_EVENTS_MAX)
            .map(|n| event(n, &veo, TaskStatus::Processing))
            .collect();
        let judged =
            |known, product, status| judge(known, product, status, u128::MAX.into(), By::Callback);
        assert_eq!(
            judged(&known, &veo, TaskStatus::Processing),
            Verdict::TooMany
        );
        assert!(matches!(
            judged(&known[1..], &veo, TaskStatus::Processing),
            Verdict::New { .. }
        ));
        let new = |revision| Verdict::New {
            revision,
            conflict: false,
        };
        let next = TASK_EVENTS_MAX as u32 + 1;
        assert_eq!(
            judged(&known, &veo, TaskStatus::Completed),
            new(next),
            "a terminal one is always taken"
        );
        assert_eq!(
            judged(&known, &sora, TaskStatus::Processing),
            new(1),
            "another product has room of its own"
        );
        assert_eq!(
            judge(
                &known,
                &veo,
                TaskStatus::Processing,
                u128::MAX.into(),
                By::Trusted
            ),
            new(next),
            "an operator may"
        );
        let duplicate = judge(&known, &veo, TaskStatus::Processing, 7.into(), By::Callback);
        assert!(
            matches!(duplicate, Verdict::Duplicate(_)),
            "a duplicate is one at the limit, too"
        );
    }

    #[test]
    fn a_task_is_overdue_up_to_a_limit_of_its_own() {
        let (veo, mut task) = (product(1), Task::default());
        for _ in 0..TASK_EVENTS_MAX {
            assert!(task.send(&veo, TaskStatus::Processing));
        }
        assert!(!task.send(&veo, TaskStatus::Processing));
        for _ in 0..OVERDUE_EVENTS_MAX {
            assert!(
                task.send(&veo, TaskStatus::Overdue),
                "it has room of its own"
            );
        }
        assert!(!task.send(&veo, TaskStatus::Overdue));

        let mut task = Task::default();
        for _ in 0..OVERDUE_EVENTS_MAX {
            assert!(task.send(&veo, TaskStatus::Overdue));
        }
        for _ in 0..TASK_EVENTS_MAX {
            assert!(
                task.send(&veo, TaskStatus::Processing),
                "it takes none of theirs"
            );
        }
        assert!(!task.send(&veo, TaskStatus::Processing));
        assert!(task.send(&veo, TaskStatus::Completed));
    }

    #[test]
    fn of_too_many_terminal_events_the_index_names_the_first_and_the_newest() {
        let (veo, mut task) = (product(1), Task::default());
        for _ in 0..1_000 {
            assert!(task.send(&veo, TaskStatus::Completed));
        }
        assert!(task.known.is_sorted_by_key(|event| event.sequence));
        for (place, is_there) in [
            (1, true),
            (136, true),
            (137, false),
            (968, false),
            (969, true),
            (1_000, true),
        ] {
            assert_eq!(task.has(place), is_there, "{place}");
            assert!(is_there || may_lack(&task.known, veo.as_str(), Sequence(place as u64)));
            let again = judge(
                &task.known,
                &veo,
                TaskStatus::Completed,
                (place as u128).into(),
                By::Callback,
            );
            assert_eq!(
                matches!(again, Verdict::Duplicate(_)),
                is_there,
                "a repetition of {place}"
            );
        }
        assert!(
            !may_lack(&task.known, veo.as_str(), Sequence(998))
                && !may_lack(&task.known, "sora", Sequence(33))
        );
        assert!(may_lack_some(&task.known) && !may_lack_some(&task.known[..3]));
    }

    #[test]
    fn the_first_terminal_events_are_named_whatever_came_before_and_comes_behind_them() {
        let (veo, mut task) = (product(1), Task::default());
        for _ in 0..TASK_EVENTS_MAX {
            assert!(task.send(&veo, TaskStatus::Processing));
        }
        for _ in 0..1_000 {
            assert!(task.send(&veo, TaskStatus::Completed));
        }
        let first = TASK_EVENTS_MAX + 1;
        assert!((first..first + 8).all(|place| task.has(place)));
        assert!(!task.has(first + 8));
    }

    #[test]
    fn an_event_is_crowded_when_three_products_have_ended_behind_it_and_not_by_two_its_own_included()
     {
        let veo = product(0);
        let named_behind = |products: usize| {
            let mut task = Task::default();
            for _ in 0..TASK_EVENTS_MAX {
                assert!(task.send(&veo, TaskStatus::Completed));
            }
            for number in 1..=products {
                assert!(task.send(&product(number), TaskStatus::Completed));
            }
            let of_veo = task.known.iter().filter(|event| event.product == veo);
            of_veo.map(|event| event.revision).collect::<Vec<_>>()
        };
        let all = 1..=TASK_EVENTS_MAX as u32;
        assert_eq!(named_behind(1), all.collect::<Vec<_>>());
        assert_eq!(named_behind(2), [1, 2, 3, 4, 125, 126, 127, 128]);
    }

    #[test]
    fn an_event_that_is_put_in_again_leaves_again() {
        let (veo, mut task) = (product(1), Task::default());
        (0..1_000).for_each(|_| assert!(task.send(&veo, TaskStatus::Failed)));
        let mut replayed = task.known.clone();
        for place in [137, 170, 900] {
            insert(&mut replayed, event(place, &veo, TaskStatus::Failed));
        }
        assert_eq!(replayed, task.known);
    }

    #[test]
    fn an_entry_that_names_more_than_it_may_shrinks_with_its_next_terminal_event() {
        let veo = product(1);
        let known: Vec<_> = (1..=1_000)
            .map(|place| event(place, &veo, TaskStatus::Completed))
            .collect();
        let mut task = Task {
            known,
            logged: 1_000,
        };
        assert!(task.send(&veo, TaskStatus::Completed));
        assert_eq!(task.known.len(), TERMINAL_EVENTS_NAMED);
        assert!(
            task.has(1)
                && task.has(136)
                && !task.has(137)
                && !task.has(969)
                && task.has(970)
                && task.has(1_001)
        );
    }

    /// Each new event of a task rewrites its entry.
    #[test]
    fn what_a_signed_url_makes_of_an_entry_costs_an_append_20_kilobytes_at_most() {
        let (veo, mut task) = (Product::parse("veo").unwrap(), Task::default());
        for status in [TaskStatus::Completed, TaskStatus::Processing] {
            for _ in 0..1_000 {
                task.send(&veo, status);
            }
        }
        assert_eq!(task.known.len(), TASK_EVENTS_MAX + TERMINAL_EVENTS_NAMED);
        assert!(
            encode_task(&task.known).len() < 20_500,
            "{}",
            encode_task(&task.known).len()
        );
    }

    #[test]
    fn an_entry_is_bounded_whatever_a_token_is_used_for_and_each_product_keeps_some_room() {
        let mut task = Task::default();
        for number in 0..2 {
            for status in [TaskStatus::Completed, TaskStatus::Processing] {
                for _ in 0..1_000 {
                    task.send(&product(number), status);
                }
            }
        }
        assert_eq!(task.known.len(), CROWDED_AT);
        for number in 2..TASK_PRODUCTS_MAX {
            assert!(task.send(&product(number), TaskStatus::Completed));
            assert!(task.send(&product(number), TaskStatus::Processing));
        }
        assert!(
            !task.send(&product(TASK_PRODUCTS_MAX), TaskStatus::Completed),
            "one product more"
        );
        let most = CROWDED_PRODUCTS * TERMINAL_EVENTS_NAMED
            + CROWDED_AT
            + TASK_PRODUCTS_MAX * 2 * CROWDED_EVENTS_MAX;
        for _ in 0..200 {
            for number in 2..TASK_PRODUCTS_MAX {
                assert!(
                    task.send(&product(number), TaskStatus::Completed),
                    "a terminal one is always taken"
                );
                task.send(&product(number), TaskStatus::Processing);
            }
            assert!(task.known.len() <= most, "{}", task.known.len());
        }
        let of = |number| {
            let of_product = task
                .known
                .iter()
                .filter(|event| event.product == product(number));
            let (ends, steps): (Vec<_>, Vec<_>) =
                of_product.partition(|event| event.status.is_terminal());
            [ends.len(), steps.len()]
        };
        assert_eq!(
            of(2),
            [6, CROWDED_EVENTS_MAX],
            "of the first four, two are terminal"
        );
        assert_eq!(of(0), [CROWDED_EVENTS_MAX, TASK_EVENTS_MAX]);
        assert!(
            task.send(&product(0), TaskStatus::Completed)
                && !task.send(&product(0), TaskStatus::Processing)
        );
    }
}
