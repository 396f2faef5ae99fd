//! Catching up by task: the index says where the tasks' events are, so nothing else is read. Blocking.

use std::collections::VecDeque;

use crate::{
    event::{Filter, Record, Sequence, TaskId},
    hub::Seat,
    store::{Keep, ReadError, Store},
};

/// Events of one fetch that the task index has named.
pub(super) const FETCH_RECORDS_MAX: usize = 64;
/// Bytes of one fetch after its first event.
pub(super) const FETCH_BYTES_MAX: usize = 128 * 1024;

/// A seat taken, and what the index had before it was.
pub(super) struct Lookup {
    pub seat: Seat,
    /// The head when the seat was taken; everything behind it comes by the seat.
    pub end: Sequence,
    /// Still to be fetched.
    pub places: VecDeque<Sequence>,
}

/// What the task index says: the first events, what else to fetch, and which tasks were over before.
pub(super) struct Found {
    pub records: Vec<Record>,
    pub places: VecDeque<Sequence>,
    pub over: Vec<TaskId>,
}

/// Asks the index for the filter's tasks: events behind `after` up to `end`, and which tasks were over at `after`.
pub(super) fn look_up(store: &Store, filter: &Filter, after: Sequence, end: Sequence) -> Result<Found, ReadError> {
    let events = store.task_events(&filter.task_ids, Sequence(1)..=end, Keep::All)?;
    // Asked after the index was read: had anything behind `after` been forgotten by then, this would show it.
    if after.next() < store.first_available() {
        return Err(ReadError::Expired);
    }
    // What nobody may see does not end anything either.
    let events =
        events.into_iter().filter(|event| filter.products.is_empty() || filter.products.contains(&event.product));
    let (before, behind): (Vec<_>, Vec<_>) = events.partition(|event| event.sequence <= after);
    let over = before.into_iter().filter(|event| event.status.is_terminal()).map(|event| event.task_id).collect();
    let mut places: VecDeque<_> = behind.into_iter().map(|event| event.sequence).collect();
    let first: Vec<_> = places.iter().take(FETCH_RECORDS_MAX).copied().collect();
    // With the same trip to the disk: most tasks have no more than these.
    let records = store.get_all(&first, FETCH_BYTES_MAX)?;
    places.drain(..records.len());
    Ok(Found { records, places, over })
}
