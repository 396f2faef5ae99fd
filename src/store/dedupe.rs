//! Is this event news? Decided from what the task index knows of its task. Pure.
//!
//! The same (product, task id) with the same status, outputs and error is a duplicate for as long as the event is retained.
//! Anything else is a new event with the next revision; nothing the vendor says is thrown away.

use super::layout::{Fingerprint, TaskEvent};
use crate::event::{Product, TaskStatus};

/// Most retained events of one task. The vendor sends a handful; beyond this the index entry, which is rewritten by each
/// new event, would make every append slower.
pub(super) const TASK_EVENTS_MAX: usize = 1_000;

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
) -> Verdict<'a> {
    let of_product = || known.iter().filter(|event| event.product == *product);
    if let Some(original) = of_product().find(|event| event.fingerprint == fingerprint) {
        return Verdict::Duplicate(original);
    }
    if known.len() >= TASK_EVENTS_MAX {
        return Verdict::TooMany;
    }
    // A terminal event is the vendor's last word, so a different last word contradicts it.
    let conflict = status.is_terminal() && of_product().any(|event| event.status.is_terminal());
    let revision = of_product().map(|event| event.revision).max().unwrap_or(0) + 1;
    Verdict::New { revision, conflict }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};
    use uuid::Uuid;

    use super::*;
    use crate::event::Sequence;

    // Feeds (product, status, fingerprint) triples to the judge as the writer would.
    fn history(input: &[(u8, u8, u8)]) -> Vec<(TaskEvent, bool)> {
        let mut kept: Vec<(TaskEvent, bool)> = Vec::new();
        for &(product, status, content) in input {
            let known: Vec<_> = kept.iter().map(|(event, _)| event.clone()).collect();
            let product = Product::parse(["veo", "sora"][usize::from(product % 2)]).unwrap();
            let status = TaskStatus::from_number(status % 5).unwrap();
            let fingerprint = u128::from(content % 4) * 8 + status as u128;
            if let Verdict::New { revision, conflict } = judge(&known, &product, status, fingerprint) {
                let sequence = Sequence(kept.len() as u64 + 1);
                let event = TaskEvent { sequence, event_id: Uuid::nil(), fingerprint, revision, status, product };
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
        fn only_the_first_terminal_event_of_a_task_is_free_of_conflict(input in collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
            let kept = history(&input);
            for product in ["veo", "sora"] {
                let of_product = kept.iter().filter(|(e, _)| e.product.as_str() == product);
                let terminal: Vec<_> = of_product.clone().filter(|(e, _)| e.status.is_terminal()).collect();
                prop_assert!(terminal.iter().enumerate().all(|(at, (_, conflict))| *conflict == (at > 0)));
                prop_assert!(of_product.filter(|(e, _)| !e.status.is_terminal()).all(|(_, conflict)| !conflict));
            }
        }
    }

    #[test]
    fn a_task_keeps_its_limit_of_events_and_no_more() {
        let product = Product::parse("veo").unwrap();
        let event = |n: usize| TaskEvent {
            sequence: Sequence(n as u64),
            event_id: Uuid::nil(),
            fingerprint: n as u128,
            revision: n as u32,
            status: TaskStatus::Processing,
            product: product.clone(),
        };
        let known: Vec<_> = (1..=TASK_EVENTS_MAX).map(event).collect();
        let judged = |known| judge(known, &product, TaskStatus::Processing, u128::MAX);
        assert_eq!(judged(&known), Verdict::TooMany);
        assert!(matches!(judged(&known[1..]), Verdict::New { .. }));
        let duplicate = judge(&known, &product, TaskStatus::Processing, 7);
        assert!(matches!(duplicate, Verdict::Duplicate(_)), "a duplicate is one at the limit, too");
    }
}
