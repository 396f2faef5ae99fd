//! Catching up by task: the index says where the tasks' events are, so nothing else is read. Blocking.

use std::collections::VecDeque;

use super::lent;
use crate::{
    budget::Loan,
    event::{Filter, Records, Sequence, TaskId},
    hub::Seat,
    store::{ReadError, ReadLimits, Store},
};

/// Events of one fetch that the task index has named.
pub(super) const FETCH_RECORDS_MAX: usize = 64;
/// The same, with the bytes of one fetch after its first event.
pub(super) const FETCH: ReadLimits = ReadLimits {
    records_max: FETCH_RECORDS_MAX,
    bytes_max: 128 * 1024,
    scanned_max: FETCH_RECORDS_MAX,
    scanned_bytes_max: 128 * 1024,
};

/// Places that are held for one subscription, 32 KiB; behind the last of them the index is asked again.
const PLACES_MAX: usize = 4 * 1024;

/// A seat taken, and what the index had before it was.
pub(super) struct Lookup {
    pub seat: Seat,
    /// The head when the seat was taken; everything behind it comes by the seat.
    pub end: Sequence,
    /// Still to be fetched.
    pub places: Places,
}

/// Where events are.
#[derive(Default)]
pub(super) struct Places {
    pub ahead: VecDeque<Sequence>,
    /// Behind the last of them there may be more.
    pub is_cut: bool,
}

/// What the task index says: the first events, what else to fetch, and which tasks were over before.
pub(super) struct Found {
    pub records: Records,
    pub places: Places,
    pub over: Vec<TaskId>,
}

/// Asks the index for the filter's tasks: events behind `after` up to `end`, and which tasks were over at `after`.
pub(super) fn look_up(
    store: &Store,
    filter: &Filter,
    after: Sequence,
    end: Sequence,
    loan: Loan,
) -> Result<Found, ReadError> {
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
    let records = store.get_all(&places[..places.len().min(FETCH_RECORDS_MAX)], FETCH.bytes_max)?;
    let mut ahead = VecDeque::from(places);
    ahead.drain(..records.len());
    Ok(Found { records: lent(records, loan), places: Places { ahead, is_cut }, over })
}

fn keep_oldest(places: &mut Vec<Sequence>) {
    places.sort_unstable();
    places.truncate(PLACES_MAX);
}
