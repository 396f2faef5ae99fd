//! Catching up by task: the task index names the places of the tasks' events, so that no other event is read. Blocking.
//!
//! Also finds the tasks that have ended before the stream's position, for streams that end with their tasks.

use std::{collections::VecDeque, sync::Arc};

use super::reading::lent;
use crate::{
    budget::Loan,
    event::{Filter, Records, Sequence, TaskId},
    hub::Seat,
    store::{ReadError, ReadLimits, Store, TaskPlace},
};

/// Most events of one fetch.
pub(super) const FETCH_RECORDS_MAX: usize = 64;
/// One fetch of events that the task index has named. The limits on bytes apply after the first event.
pub(super) const FETCH: ReadLimits = ReadLimits {
    records_max: FETCH_RECORDS_MAX,
    bytes_max: 128 * 1024,
    scanned_max: FETCH_RECORDS_MAX,
    scanned_bytes_max: 128 * 1024,
};

/// Most places that one subscription keeps, 32 KiB. After the last of them it asks the index again.
const PLACES_MAX: usize = 4 * 1024;

/// Most bytes of terminal events that one lookup reads, like one read of the log. A further lookup continues from there.
const TERMINAL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A lookup in progress. The seat was taken first, so that no event falls between the index and the live path.
pub(super) struct Lookup {
    pub seat: Seat,
    /// The head when the seat was taken. Later events come through the seat.
    pub end: Sequence,
    /// The places that are still to be fetched.
    pub places: Places,
}

/// Places of events, in the order of the log.
#[derive(Default)]
pub(super) struct Places {
    pub ahead: VecDeque<Sequence>,
    /// True if the index may have more places after the last of these.
    pub is_cut: bool,
}

/// The answer to a [`TaskQuery`].
pub(super) struct TaskEvents {
    /// The first events.
    pub records: Records,
    /// The places of the others.
    pub places: Places,
    /// The tasks that have ended.
    pub ended: Vec<TaskId>,
    /// The place up to which terminal events were read to find `ended`. If it is before the query's `after`, nothing else was looked up.
    pub ended_through: Sequence,
}

/// A question to the task index.
pub(super) struct TaskQuery {
    pub filter: Arc<Filter>,
    /// Asks for events after this place,
    pub after: Sequence,
    /// up to and including this place.
    pub end: Sequence,
    /// Also asks which tasks had ended at `after`, by their terminal events after this place.
    pub ended_after: Option<Sequence>,
}

/// Answers a query from the index, and fetches the first events.
pub(super) fn look_up(
    store: &Store,
    query: &TaskQuery,
    loan: Loan,
) -> Result<TaskEvents, ReadError> {
    let TaskQuery {
        filter,
        after,
        end,
        ended_after,
    } = query;
    let (after, end) = (*after, *end);

    let (mut places, mut ended) = (Vec::new(), EndedTasks::new(filter, *ended_after));
    store.each_task_event(&filter.task_ids, Sequence(1)..=end, |event| {
        // An event that the client may not see does not end its task either.
        if !filter.products.is_empty() && !filter.products.contains(&event.product) {
            return;
        }
        // An erased event is not sent, but it has ended its task.
        if event.sequence > after && !event.is_erased {
            places.push(event.sequence);
            // Only at twice the limit, so that sorting is rare.
            if places.len() > 2 * PLACES_MAX {
                keep_oldest(&mut places);
            }
        } else if event.status.is_terminal() {
            ended.take(event);
        }
    })?;

    let (ended, ended_through) = ended.found(store, after)?;
    if ended_through < after {
        let places = Places {
            ahead: VecDeque::new(),
            is_cut: true,
        };
        return Ok(TaskEvents {
            records: lent(Vec::new(), loan),
            places,
            ended,
            ended_through,
        });
    }

    // After the index was read: if retention has removed an event after `after` by then, this notices it.
    if after.next() < store.first_available() {
        return Err(ReadError::Expired);
    }

    keep_oldest(&mut places);
    let is_cut = places.len() == PLACES_MAX;
    // Fetched on the same thread hop, because most tasks have no more events than these.
    let records = store.get_all(
        &places[..places.len().min(FETCH_RECORDS_MAX)],
        FETCH.bytes_max,
    )?;
    let mut ahead = VecDeque::from(places);
    ahead.drain(..records.len());

    Ok(TaskEvents {
        records: lent(records, loan),
        places: Places { ahead, is_cut },
        ended,
        ended_through,
    })
}

/// Collects the tasks that have ended.
enum EndedTasks<'a> {
    /// The query does not ask for them.
    Unasked,
    /// The index alone tells which tasks have ended.
    Indexed(Vec<TaskId>),
    /// The client is bound to labels, which the index does not have. The terminal events still have to be read.
    Unread {
        filter: &'a Filter,
        after: Sequence,
        terminal: Vec<(Sequence, TaskId)>,
    },
}

impl<'a> EndedTasks<'a> {
    fn new(filter: &'a Filter, ended_after: Option<Sequence>) -> Self {
        match (ended_after, &filter.bound) {
            (None, _) => Self::Unasked,
            (Some(_), None) => Self::Indexed(Vec::new()),
            (Some(after), Some(_)) => Self::Unread {
                filter,
                after,
                terminal: Vec::new(),
            },
        }
    }

    /// Takes a terminal event. The events of one task come one after the other.
    fn take(&mut self, event: TaskPlace) {
        match self {
            Self::Unasked => {}
            Self::Indexed(ended) if ended.last() == Some(&event.task_id) => {}
            Self::Indexed(ended) => ended.push(event.task_id),
            // An erased event has no labels, so no bound client may see it.
            Self::Unread { after, .. } if event.is_erased || event.sequence <= *after => {}
            Self::Unread { terminal, .. } => {
                terminal.push((event.sequence, event.task_id));
                // Only at twice the limit, so that sorting is rare.
                if terminal.len() > 2 * PLACES_MAX {
                    keep_oldest(terminal);
                }
            }
        }
    }

    /// The tasks that had ended at `after`, and the place up to which terminal events were read for that.
    fn found(self, store: &Store, after: Sequence) -> Result<(Vec<TaskId>, Sequence), ReadError> {
        let (filter, mut terminal) = match self {
            Self::Unasked => return Ok((Vec::new(), after)),
            Self::Indexed(ended) => return Ok((ended, after)),
            Self::Unread {
                filter, terminal, ..
            } => (filter, terminal),
        };
        keep_oldest(&mut terminal);
        let is_cut = terminal.len() == PLACES_MAX;

        let (mut ended, mut bytes, mut through) = (Vec::new(), 0, None);
        for (place, task_id) in terminal {
            if bytes >= TERMINAL_BYTES_MAX {
                return Ok((ended, through.unwrap_or(after)));
            }
            through = Some(place);
            let Some(record) = store.get(place)? else {
                continue; // retention has removed it meanwhile
            };
            bytes += record.len();
            if filter.matches(&record) {
                ended.push(task_id);
            }
        }
        Ok((ended, through.filter(|_| is_cut).unwrap_or(after)))
    }
}

fn keep_oldest<T: Ord>(places: &mut Vec<T>) {
    places.sort_unstable();
    places.truncate(PLACES_MAX);
}
