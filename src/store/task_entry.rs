//! The entry of a task in the index: which of the task's events it names. Pure.
//!
//! A signed URL is for one product, so everything is counted by product: the holder of a URL takes no room from another product's
//! events of the same task id. Each new event rewrites the entry, so its size is bounded.

use super::layout::TaskEvent;
use crate::event::{Product, Sequence};

/// Most retained events of one task of one product that are not terminal: a step for each percent,
/// and some. Each new event of a task rewrites all that the index names of it, some 70 bytes each,
/// so this is also what an append costs at most.
pub(super) const TASK_EVENTS_MAX: usize = 128;
/// Most terminal events of one task of one product that the index names. The vendor sends one.
pub(super) const TERMINAL_EVENTS_NAMED: usize = 64;
/// With so many events of one task id, of all products together, each product may have
/// [`CROWDED_EVENTS_MAX`] of either kind. A signed URL cannot bring this about alone.
pub(super) const CROWDED_AT: usize = 2 * (TASK_EVENTS_MAX + TERMINAL_EVENTS_NAMED);
/// Enough for a real task.
pub(super) const CROWDED_EVENTS_MAX: usize = 8;

/// Puts an event into the entry of its task, at its place; false if it is there already, and stays
/// as it is.
///
/// A terminal event is always taken, so the entry gives up the name of another one when there are
/// too many: of the terminal events of a product it names the first half and the newest half. Those
/// between are in the log, are not found by task, and a repetition of one is news.
pub(super) fn insert(known: &mut Vec<TaskEvent>, event: TaskEvent) -> bool {
    let Err(at) = known.binary_search_by_key(&event.sequence, |known| known.sequence) else {
        return false;
    };
    let terminal = event.status.is_terminal().then(|| event.product.clone());
    known.insert(at, event);
    if let Some(product) = terminal {
        name_at_most(TERMINAL_EVENTS_NAMED, known, &product);
        if is_crowded(known) {
            name_at_most(CROWDED_EVENTS_MAX, known, &product);
        }
    }
    true
}

fn name_at_most(most: usize, known: &mut Vec<TaskEvent>, product: &Product) {
    if known.len() <= most {
        return; // almost always
    }
    let is_terminal = |event: &TaskEvent| event.product == *product && event.status.is_terminal();
    let count = known.iter().filter(|event| is_terminal(event)).count();
    let surplus = most / 2..(count + most / 2).saturating_sub(most);
    let mut places = 0..;
    known.retain(|event| {
        !is_terminal(event)
            || places
                .next()
                .is_none_or(|place: usize| !surplus.contains(&place))
    });
}

/// Whether the index may have given up any of this task's terminal events.
pub(super) fn may_lack_some(known: &[TaskEvent]) -> bool {
    known
        .iter()
        .filter(|event| event.status.is_terminal())
        .count()
        >= CROWDED_EVENTS_MAX / 2
}

/// Whether a task has so many terminal events of a product behind `after` that the index may have
/// given one up there.
pub(super) fn may_lack(known: &[TaskEvent], product: &str, after: Sequence) -> bool {
    let is_newer = |event: &&TaskEvent| {
        event.product.as_str() == product && event.status.is_terminal() && event.sequence > after
    };
    known.iter().filter(is_newer).count() >= CROWDED_EVENTS_MAX / 2
}

pub(super) fn is_crowded(known: &[TaskEvent]) -> bool {
    known.len() >= CROWDED_AT
}
