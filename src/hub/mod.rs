//! The live path: a ring of recent events that all subscriptions share, and an index from tasks and products to subscriptions.
//!
//! A subscription that has reached the ring takes a [`Seat`]. Publishing an event looks up its task and product in the index, and
//! for each seat whose filter matches it notes the first unread match and wakes the stream. Other seats are not touched, so a
//! waiting stream costs nothing per event. A seat has no queue: it reads the ring. When the ring has moved past a seat, the
//! subscription goes back to the log. Never awaits, never touches the disk.

mod index;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use parking_lot::{Mutex, MutexGuard};
use slab::Slab;

use crate::event::{Filter, Record, Records, Sequence};
use index::Index;

/// Most records in one shared batch, which is the unit that a reader keeps in memory.
const SHARED_RECORDS_MAX: usize = 64;
/// Most bytes in one shared batch, unless its first record is larger. A stalled reader keeps at most one batch alive.
const SHARED_BYTES_MAX: usize = 64 * 1024;
/// Most records that one read scans, so that no reader holds the lock for long.
const READ_SCANNED_MAX: usize = 1_024;

/// The ring, the index and the seats, behind one lock.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<HubState>,
    closing: AtomicBool,
}

#[derive(Debug)]
struct HubState {
    /// Batches in the order of the log, none of them empty.
    ring: VecDeque<Records>,
    ring_events: usize,
    ring_bytes: usize,
    ring_bytes_max: usize,
    head: Sequence,
    seats: Slab<Occupant>,
    index: Index,
}

#[derive(Debug)]
struct Occupant {
    filter: Arc<Filter>,
    /// No event between the occupant's position and this place matches; `None`: none up to the head matches.
    first_match: Option<Sequence>,
    /// Registered exactly while the occupant waits.
    waker: Option<Waker>,
}

/// The result of reading at a seat.
#[derive(Debug)]
pub(crate) enum Read {
    /// A batch, and the index in it from which to read on. No record before that index matches; the record there may not match either.
    Records(Records, usize),
    /// No match up to this place, the head. The waker is registered.
    Waiting(Sequence),
    /// The ring has moved past the seat. No match up to this place; the events after it are in the log.
    Behind(Sequence),
    /// The server is shutting down.
    Closing,
}

/// The fill of the ring, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingSize {
    /// The number of events in the ring.
    pub events: usize,
    /// The stored size of these events in bytes.
    pub bytes: usize,
}

impl Hub {
    /// An empty ring at `head`. When it is full, the oldest events are dropped from it, and slower readers read the log.
    pub(crate) fn new(head: Sequence, ring_bytes_max: usize) -> Arc<Self> {
        let state = HubState {
            ring: VecDeque::new(),
            ring_events: 0,
            ring_bytes: 0,
            ring_bytes_max,
            head,
            seats: Slab::new(),
            index: Index::default(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            closing: AtomicBool::new(false),
        })
    }

    /// The sequence of the newest published event.
    pub(crate) fn head(&self) -> Sequence {
        self.lock().head
    }

    /// The number and size of the events in the ring.
    pub(crate) fn ring_size(&self) -> RingSize {
        let state = self.lock();
        RingSize {
            events: state.ring_events,
            bytes: state.ring_bytes,
        }
    }

    /// Adds durable events, in log order, and wakes the subscriptions that match.
    pub(crate) fn publish(&self, records: &[Record]) {
        let mut woken = Vec::new();
        let shared: Vec<Records> = batches(records)
            .map(|records| Records::from(records.to_vec()))
            .collect();

        let mut state = self.lock();
        for records in shared {
            records
                .iter()
                .for_each(|record| state.notify(record, &mut woken));
            state.push(records);
        }
        drop(state);

        // Outside the lock: a woken task may read at once.
        woken.into_iter().for_each(Waker::wake);
    }

    /// Replaces events in the ring by their erased records. A stream that already holds the originals checks for erasures itself.
    pub(crate) fn erase(&self, erased: &[Record]) {
        let mut state = self.lock();
        erased.iter().for_each(|record| state.erase(record));
    }

    /// Wakes every seat. From now on every read answers that the server is shutting down.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        // Within the lock: a stream that registers a waker later also sees this flag.
        self.closing.store(true, Ordering::Release);
        let woken: Vec<_> = state
            .seats
            .iter_mut()
            .filter_map(|(_, occupant)| occupant.waker.take())
            .collect();
        drop(state);

        woken.into_iter().for_each(Waker::wake);
    }

    /// True after [`Hub::close`] was called.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// True if the ring has every event after `position`.
    pub(crate) fn reaches(&self, position: Sequence) -> bool {
        position.next() >= self.lock().ring_start()
    }

    /// Takes a seat for a subscription that has read everything up to `position`. `None` if the ring no longer has the events after it.
    pub(crate) fn attach(
        self: &Arc<Self>,
        filter: &Arc<Filter>,
        position: Sequence,
    ) -> Option<Seat> {
        let mut state = self.lock();
        if position.next() < state.ring_start() {
            return None;
        }

        let first_match = (position < state.head).then(|| position.next());
        let occupant = Occupant {
            filter: Arc::clone(filter),
            first_match,
            waker: None,
        };
        let number = state.seats.insert(occupant);
        state.index.insert(filter, number);

        Some(Seat {
            hub: Arc::clone(self),
            number,
        })
    }

    /// Like [`Seat::seen`], for a caller that does not hold the seat. If the seat was given back, the answer is `position`.
    pub(crate) fn seen(&self, number: usize, position: Sequence) -> Sequence {
        let state = self.lock();
        let seen = state
            .seats
            .get(number)
            .map(|occupant| occupant.first_match.map_or(state.head, Sequence::previous));
        seen.unwrap_or_default().max(position)
    }

    /// Wakes the stream that waits at a seat. The stream then checks for itself why.
    pub(crate) fn wake(&self, number: usize) {
        let waker = self
            .lock()
            .seats
            .get_mut(number)
            .and_then(|occupant| occupant.waker.take());
        waker.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, HubState> {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        self.state.lock()
    }
}

impl HubState {
    /// The oldest event in the ring; the next event to come if the ring is empty.
    fn ring_start(&self) -> Sequence {
        self.ring
            .front()
            .map_or(self.head.next(), |oldest| oldest[0].sequence())
    }

    /// Notes the first unread match on every seat whose filter matches, and collects the wakers of those that wait.
    fn notify(&mut self, record: &Record, woken: &mut Vec<Waker>) {
        let Self { index, seats, .. } = self;
        index.for_each_candidate(record, |number| {
            let occupant = &mut seats[number];
            if occupant.first_match.is_none() && occupant.filter.matches(record) {
                occupant.first_match = Some(record.sequence());
                woken.extend(occupant.waker.take());
            }
        });
    }

    fn push(&mut self, records: Records) {
        self.head = last(&records);
        self.ring_events += records.len();
        self.ring_bytes += bytes(&records);
        self.ring.push_back(records);
        while self.ring_bytes > self.ring_bytes_max
            && self.ring.len() > 1
            && let Some(oldest) = self.ring.pop_front()
        {
            self.ring_events -= oldest.len();
            self.ring_bytes -= bytes(&oldest);
        }
    }

    fn erase(&mut self, erased: &Record) {
        let place = erased.sequence();
        let at = self.ring.partition_point(|records| last(records) < place);
        let Some(records) = self
            .ring
            .get_mut(at)
            .filter(|records| records[0].sequence() <= place)
        else {
            return;
        };

        let put = |record: &Record| {
            if record.sequence() == place {
                erased.clone()
            } else {
                record.clone()
            }
        };
        let replaced = Records::from(records.iter().map(put).collect::<Vec<_>>());

        self.ring_bytes = self.ring_bytes - bytes(records) + bytes(&replaced);
        *records = replaced;
    }

    fn read(&mut self, number: usize, position: Sequence, waker: &Waker) -> Read {
        let (head, start) = (self.head, self.ring_start());
        let occupant = &mut self.seats[number];
        if let Some(from) = occupant.first_match.map(|first| first.max(position.next())) {
            if from < start {
                return Read::Behind(from.previous());
            }
            if let Some((records, at)) = find(&self.ring, &occupant.filter, from) {
                occupant.first_match = (last(&records) < head).then(|| last(&records).next());
                return Read::Records(records, at);
            }
        }

        occupant.first_match = None;
        occupant.waker = Some(waker.clone());
        Read::Waiting(head.max(position))
    }
}

/// The first batch with a match at or after `from`, and the index of the match. After [`READ_SCANNED_MAX`] records without a match:
/// the batch scanned last, and its end.
fn find(ring: &VecDeque<Records>, filter: &Filter, from: Sequence) -> Option<(Records, usize)> {
    let (mut scanned, mut candidates) = (
        0,
        ring.range(ring.partition_point(|records| last(records) < from)..),
    );
    candidates.find_map(|records| {
        let start = records.partition_point(|record| record.sequence() < from);
        let found = records[start..]
            .iter()
            .position(|record| filter.matches(record));
        scanned += records.len() - start;
        let at = found
            .map(|place| start + place)
            .or((scanned >= READ_SCANNED_MAX).then_some(records.len()))?;
        Some((records.clone(), at))
    })
}

/// Cuts records into the batches that are shared.
fn batches(mut records: &[Record]) -> impl Iterator<Item = &[Record]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |record: &&Record| {
            let is_first = bytes == 0;
            bytes += record.len();
            is_first || bytes <= SHARED_BYTES_MAX
        };
        let count = records
            .iter()
            .take(SHARED_RECORDS_MAX)
            .take_while(fits)
            .count();

        let (batch, rest) = records.split_at(count);
        records = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

fn last(records: &Records) -> Sequence {
    records[records.len() - 1].sequence()
}

fn bytes(records: &Records) -> usize {
    records.iter().map(Record::len).sum()
}

/// A subscription's registration with the hub. Dropping it removes the subscription from the index.
#[derive(Debug)]
pub(crate) struct Seat {
    hub: Arc<Hub>,
    number: usize,
}

impl Seat {
    /// Reads on after `position`. Registers the waker if there is nothing to read.
    pub(crate) fn read(&self, position: Sequence, waker: &Waker) -> Read {
        let mut state = self.hub.lock();
        if self.hub.is_closing() {
            Read::Closing
        } else {
            state.read(self.number, position, waker)
        }
    }

    /// The place up to which the seat has no unread match, if its occupant has read everything up to `position`.
    pub(crate) fn seen(&self, position: Sequence) -> Sequence {
        self.hub.seen(self.number, position)
    }

    /// The seat's number, for [`Hub::seen`] and [`Hub::wake`].
    pub(crate) fn number(&self) -> usize {
        self.number
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        let occupant = state.seats.remove(self.number);
        state.index.remove(&occupant.filter, self.number);
    }
}

#[cfg(test)]
mod tests;
