//! Catching up by task: the index says where the tasks' events are, so nothing else is read. Blocking.

use std::{collections::VecDeque, sync::Arc};

use super::lent;
use crate::{
    budget::Loan,
    event::{Filter, Records, Sequence, TaskId},
    hub::Seat,
    store::{ReadError, ReadLimits, Store, TaskPlace},
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

/// Bytes of last words that one lookup reads, as one read of the log does; then it is asked again from there on.
const LAST_WORDS_BYTES_MAX: usize = 8 * 1024 * 1024;

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
    /// Which were over is known by last words up to this place; if it is before the one that was asked for, nothing else is.
    pub over_through: Sequence,
}

/// What is asked of the index.
pub(super) struct Question {
    pub filter: Arc<Filter>,
    /// Events behind this place,
    pub after: Sequence,
    /// and up to this one.
    pub end: Sequence,
    /// Also which tasks were over at `after`, by their last words behind this place.
    pub over_behind: Option<Sequence>,
}

/// Asks the index for the filter's tasks.
pub(super) fn look_up(store: &Store, question: &Question, loan: Loan) -> Result<Found, ReadError> {
    let Question {
        filter,
        after,
        end,
        over_behind,
    } = question;
    let (after, end) = (*after, *end);
    let (mut places, mut over) = (Vec::new(), Over::new(filter, *over_behind));
    store.each_task_event(&filter.task_ids, Sequence(1)..=end, |event| {
        // What nobody may see does not end anything either.
        if !filter.products.is_empty() && !filter.products.contains(&event.product) {
            return;
        }
        // What was erased will not come, but it has ended its task.
        if event.sequence > after && !event.is_erased {
            places.push(event.sequence);
            // Now and then, so that it costs little.
            if places.len() > 2 * PLACES_MAX {
                keep_oldest(&mut places);
            }
        } else if event.status.is_terminal() {
            over.take(event);
        }
    })?;
    let (over, over_through) = over.found(store, after)?;
    if over_through < after {
        let places = Places {
            ahead: VecDeque::new(),
            is_cut: true,
        };
        return Ok(Found {
            records: lent(Vec::new(), loan),
            places,
            over,
            over_through,
        });
    }
    // Asked after the index was read: had anything behind `after` been forgotten by then, this would show it.
    if after.next() < store.first_available() {
        return Err(ReadError::Expired);
    }
    keep_oldest(&mut places);
    let is_cut = places.len() == PLACES_MAX;
    // With the same trip to the disk: most tasks have no more than these.
    let records = store.get_all(
        &places[..places.len().min(FETCH_RECORDS_MAX)],
        FETCH.bytes_max,
    )?;
    let mut ahead = VecDeque::from(places);
    ahead.drain(..records.len());
    Ok(Found {
        records: lent(records, loan),
        places: Places { ahead, is_cut },
        over,
        over_through,
    })
}

/// Which tasks were over, as they are found.
enum Over<'a> {
    /// Nobody asks.
    Unasked,
    /// By the index alone.
    Known(Vec<TaskId>),
    /// For a client that is bound to labels, which the index does not know: terminal events that are still to be looked at.
    Unread {
        filter: &'a Filter,
        behind: Sequence,
        words: Vec<(Sequence, TaskId)>,
    },
}

impl<'a> Over<'a> {
    fn new(filter: &'a Filter, over_behind: Option<Sequence>) -> Self {
        match (over_behind, &filter.bound) {
            (None, _) => Self::Unasked,
            (Some(_), None) => Self::Known(Vec::new()),
            (Some(behind), Some(_)) => Self::Unread {
                filter,
                behind,
                words: Vec::new(),
            },
        }
    }

    /// Takes a terminal event; those of one task come together.
    fn take(&mut self, word: TaskPlace) {
        match self {
            Self::Unasked => {}
            Self::Known(over) if over.last() == Some(&word.task_id) => {}
            Self::Known(over) => over.push(word.task_id),
            // Without labels it is nobody's.
            Self::Unread { behind, .. } if word.is_erased || word.sequence <= *behind => {}
            Self::Unread { words, .. } => {
                words.push((word.sequence, word.task_id));
                // Now and then, so that it costs little.
                if words.len() > 2 * PLACES_MAX {
                    keep_oldest(words);
                }
            }
        }
    }

    /// The tasks that were over at `after`, by their last words up to the place that comes with them.
    fn found(self, store: &Store, after: Sequence) -> Result<(Vec<TaskId>, Sequence), ReadError> {
        let (filter, mut words) = match self {
            Self::Unasked => return Ok((Vec::new(), after)),
            Self::Known(over) => return Ok((over, after)),
            Self::Unread { filter, words, .. } => (filter, words),
        };
        keep_oldest(&mut words);
        let is_cut = words.len() == PLACES_MAX;
        let (mut over, mut bytes, mut through) = (Vec::new(), 0, None);
        for (place, task_id) in words {
            if bytes >= LAST_WORDS_BYTES_MAX {
                return Ok((over, through.unwrap_or(after)));
            }
            through = Some(place);
            let Some(record) = store.get(place)? else {
                continue;
            }; // forgotten meanwhile
            bytes += record.len();
            if filter.matches(&record) {
                over.push(task_id);
            }
        }
        Ok((over, through.filter(|_| is_cut).unwrap_or(after)))
    }
}

fn keep_oldest<T: Ord>(places: &mut Vec<T>) {
    places.sort_unstable();
    places.truncate(PLACES_MAX);
}
