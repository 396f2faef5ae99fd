//! The entry of a task in the index: which of the task's events it names. Pure.
//!
//! A signed URL is for one product, so everything is counted by product: the holder of a URL takes no room from another product's
//! events of the same task id. Each new event rewrites the entry, so its size is bounded.
//!
//! Which events an entry names follows from the retained events alone ([`insert`]). So the writer, which has seen events that are
//! forgotten by now, and a rebuild of the index, which has not, name the same.

use super::layout::TaskEvent;
use crate::event::{Product, Sequence};

/// Most retained events of one task of one product that are not terminal: a step for each percent,
/// and some. Each new event of a task rewrites all that the index names of it, some 70 bytes each,
/// so this is also what an append costs at most.
pub(super) const TASK_EVENTS_MAX: usize = 128;
/// So many newest terminal events of one task of one product are named. The vendor sends one.
pub(super) const NEWEST_NAMED: usize = 32;
/// Terminal events up to this revision are named, too: the first ones that a task ever had, whatever
/// came before them that is not terminal.
pub(super) const FIRST_REVISIONS: u32 = TASK_EVENTS_MAX as u32 + 8;
/// Most terminal events of one task of one product that the index names.
pub(super) const TERMINAL_EVENTS_NAMED: usize = FIRST_REVISIONS as usize + NEWEST_NAMED;
/// Behind an event with terminal events of so many products behind it, a task id is crowded: of
/// each product, half of [`CROWDED_EVENTS_MAX`] newest terminal events and as many first revisions
/// are named. A signed URL cannot bring this about alone.
pub(super) const CROWDED_PRODUCTS: usize = 3;
/// With so many events of one task id, of all products together, each product may have
/// [`CROWDED_EVENTS_MAX`] that are not terminal. A signed URL cannot bring this about alone.
pub(super) const CROWDED_AT: usize = 2 * (TASK_EVENTS_MAX + TERMINAL_EVENTS_NAMED);
/// Enough for a real task.
pub(super) const CROWDED_EVENTS_MAX: usize = 8;

/// What the index names of one task, and whether that has changed.
pub(super) struct TaskEntry {
    /// Oldest first.
    pub events: Vec<TaskEvent>,
    /// It differs from the index. A commit of duplicates changes no entry, and then writes none.
    pub is_changed: bool,
}

impl TaskEntry {
    /// As the index has it.
    pub(super) fn new(events: Vec<TaskEvent>) -> Self {
        Self {
            events,
            is_changed: false,
        }
    }

    /// Adds an event.
    pub(super) fn append(&mut self, event: TaskEvent) {
        self.is_changed |= insert(&mut self.events, event);
    }

    /// Notes that the content of an event is erased.
    pub(super) fn erase(&mut self, place: Sequence) {
        let at = self
            .events
            .binary_search_by_key(&place, |event| event.sequence);
        // An entry need not name all terminal events.
        if let Ok(at) = at
            && !self.events[at].is_erased
        {
            self.events[at].is_erased = true;
            self.is_changed = true;
        }
    }

    /// Takes out an event that retention has forgotten.
    pub(super) fn forget(&mut self, place: Sequence) {
        let count = self.events.len();
        self.events.retain(|event| event.sequence != place);
        self.is_changed |= self.events.len() != count;
    }
}

/// Puts an event into the entry of its task, at its place; false if it is there already, and stays
/// as it is.
///
/// A terminal event is always taken, so the entry gives up the names of others when there are too
/// many. Those are in the log, are not found by task, and a repetition of one is news.
pub(super) fn insert(known: &mut Vec<TaskEvent>, event: TaskEvent) -> bool {
    let Err(at) = known.binary_search_by_key(&event.sequence, |known| known.sequence) else {
        return false;
    };
    let is_terminal = event.status.is_terminal();
    known.insert(at, event);
    if is_terminal && known.len() > CROWDED_EVENTS_MAX / 2 {
        give_up_names(known); // almost never
    }
    true
}

/// Takes out the terminal events that are not named any more.
///
/// Whether one is named depends on itself and on the events behind it, never on those before:
/// retention may have forgotten these. And whatever is given up here is never missed when others
/// are judged: the newest of each product always stay.
fn give_up_names(known: &mut Vec<TaskEvent>) {
    // How many terminal events of each product are behind: hardly ever of more than one product.
    let mut behind: Vec<(&Product, usize)> = Vec::new();
    let is_named: Vec<_> = known
        .iter()
        .rev()
        .map(|event| {
            if !event.status.is_terminal() {
                return true;
            }
            let (newest, first) = if behind.len() >= CROWDED_PRODUCTS {
                let half = CROWDED_EVENTS_MAX / 2;
                (half, half as u32)
            } else {
                (NEWEST_NAMED, FIRST_REVISIONS)
            };
            let known = behind
                .iter_mut()
                .find(|(product, _)| **product == event.product);
            let newer = match known {
                Some((_, count)) => {
                    *count += 1;
                    *count - 1
                }
                None => {
                    behind.push((&event.product, 1));
                    0
                }
            };
            newer < newest || event.revision <= first
        })
        .collect();
    let mut is_named = is_named.into_iter().rev();
    known.retain(|_| is_named.next().unwrap_or(true));
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
