//! Catching up by task: the index says where the tasks' events are, so nothing else is read. Blocking.

use std::collections::VecDeque;

use crate::{
    event::{Filter, Record, Sequence, TaskId},
    hub::Seat,
    store::{ReadError, Store},
};

/// Events of one fetch that the task index has named.
pub(super) const FETCH_RECORDS_MAX: usize = 64;
/// Bytes of one fetch after its first event.
pub(super) const FETCH_BYTES_MAX: usize = 128 * 1024;

/// Places that are held for one subscription, 128 KiB; behind the last of them the index is asked again.
const PLACES_MAX: usize = 16 * 1024;

/// A seat taken, and what the index had before it was.
pub(super) struct Lookup {
    pub seat: Seat,
    /// The head when the seat was taken; everything behind it comes by the seat.
    pub end: Sequence,
    /// Still to be fetched.
    pub places: VecDeque<Sequence>,
    /// Behind the last of them there may be more.
    pub is_cut: bool,
}

/// What the task index says: the first events, what else to fetch, and which tasks were over before.
pub(super) struct Found {
    pub records: Vec<Record>,
    pub places: VecDeque<Sequence>,
    /// Behind the last of them there may be more.
    pub is_cut: bool,
    pub over: Vec<TaskId>,
}

/// Asks the index for the filter's tasks: events behind `after` up to `end`, and which tasks were over at `after`.
pub(super) fn look_up(store: &Store, filter: &Filter, after: Sequence, end: Sequence) -> Result<Found, ReadError> {
    let (mut places, mut over) = (Vec::new(), Vec::new());
    store.each_task_event(&filter.task_ids, Sequence(1)..=end, |event| {
        // What nobody may see does not end anything either.
        if !filter.products.is_empty() && !filter.products.contains(&event.product) {
            return;
        }
        if event.sequence > after {
            places.push(event.sequence);
            // Now and then, so that it costs little.
            if places.len() > 2 * PLACES_MAX {
                keep_oldest(&mut places);
            }
        } else if event.status.is_terminal() && over.last() != Some(&event.task_id) {
            over.push(event.task_id);
        }
    })?;
    // Asked after the index was read: had anything behind `after` been forgotten by then, this would show it.
    if after.next() < store.first_available() {
        return Err(ReadError::Expired);
    }
    keep_oldest(&mut places);
    let is_cut = places.len() == PLACES_MAX;
    // With the same trip to the disk: most tasks have no more than these.
    let records = store.get_all(&places[..places.len().min(FETCH_RECORDS_MAX)], FETCH_BYTES_MAX)?;
    let mut places = VecDeque::from(places);
    places.drain(..records.len());
    Ok(Found { records, places, is_cut, over })
}

fn keep_oldest(places: &mut Vec<Sequence>) {
    places.sort_unstable();
    places.truncate(PLACES_MAX);
}
