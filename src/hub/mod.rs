//! The live path: a ring of recent events, shared by all, and an index of who wants what.
//!
//! A subscription that has reached the ring takes a [`Seat`]. Publishing an event looks its task and product up in the index,
//! notes on each seat that wants it where its first unread match is, and wakes it; seats that do not want it are not
//! touched, so waiting costs nothing per event. A seat has no queue: it reads the ring, and when the ring has moved past it,
//! it is told to go back to the log. Never awaits, never touches the disk.

mod index;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use slab::Slab;

use crate::event::{Filter, Record, Records, Sequence};
use index::Index;

/// Most records that are shared as a whole.
const SHARED_RECORDS_MAX: usize = 64;
/// Most of their bytes, but for a first one that is larger: what a stalled reader can hold on to.
const SHARED_BYTES_MAX: usize = 64 * 1024;
/// Records after which a read looks at no further ones, so that nobody holds the lock for long.
const READ_SCANNED_MAX: usize = 1_024;

/// See the module's description.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    closing: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// In the order of the log, none of them empty.
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
    /// Nothing between the occupant's position and this place matches; `None`: nothing up to the head does.
    first_match: Option<Sequence>,
    /// Registered exactly while the occupant waits.
    waker: Option<Waker>,
}

/// What a seat has found.
#[derive(Debug)]
pub enum Read {
    /// What is next to be looked at, whether it matches or not. Nothing before it does.
    Records(Records, usize),
    /// Nothing up to this place, the head; the waker is registered.
    Waiting(Sequence),
    /// The ring has moved past: everything up to this place has been seen, the rest is in the log.
    Behind(Sequence),
    /// The server is going away.
    Closing,
}

/// How much the ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize {
    /// Events.
    pub events: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Hub {
    /// An empty ring at `head`, bounded by `ring_bytes_max`; when full, the oldest events go, and slower readers use the log.
    pub fn new(head: Sequence, ring_bytes_max: usize) -> Arc<Self> {
        let state = State {
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

    /// The newest published event.
    pub fn head(&self) -> Sequence {
        self.lock().head
    }

    /// How much the ring holds.
    pub fn ring_size(&self) -> RingSize {
        let state = self.lock();
        RingSize {
            events: state.ring_events,
            bytes: state.ring_bytes,
        }
    }

    /// Takes durable events, in log order, and wakes those who want them.
    pub fn publish(&self, records: &[Record]) {
        let mut woken = Vec::new();
        let shared: Vec<Records> = split(records)
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
        // Outside the lock: a woken task may start to read at once.
        woken.into_iter().for_each(Waker::wake);
    }

    /// Puts what is left of events that were erased in their place. A stream that has them from before looks again by itself.
    pub fn erase(&self, erased: &[Record]) {
        let mut state = self.lock();
        erased.iter().for_each(|record| state.erase(record));
    }

    /// Tells every seat, now and from now on, that the server is going away.
    pub fn close(&self) {
        let mut state = self.lock();
        // Within the lock: a stream that registers a waker after this has seen it.
        self.closing.store(true, Ordering::Release);
        let woken: Vec<_> = state
            .seats
            .iter_mut()
            .filter_map(|(_, occupant)| occupant.waker.take())
            .collect();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// True once [`Hub::close`] was called.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether the ring has what is behind `position`.
    pub fn reaches(&self, position: Sequence) -> bool {
        position.next() >= self.lock().ring_start()
    }

    /// Takes a seat for someone who has seen everything up to `position`; `None` if the ring has moved past that place.
    pub fn attach(self: &Arc<Self>, filter: &Arc<Filter>, position: Sequence) -> Option<Seat> {
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

    /// Like [`Seat::seen`], for onlookers: the number may have been given back, in which case `position` it is.
    pub fn seen(&self, number: usize, position: Sequence) -> Sequence {
        let state = self.lock();
        let seen = state
            .seats
            .get(number)
            .map(|occupant| occupant.first_match.map_or(state.head, Sequence::previous));
        seen.unwrap_or_default().max(position)
    }

    /// Wakes the stream that waits on a seat. It finds out itself what for.
    pub fn wake(&self, number: usize) {
        let waker = self
            .lock()
            .seats
            .get_mut(number)
            .and_then(|occupant| occupant.waker.take());
        waker.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ring_start(&self) -> Sequence {
        self.ring
            .front()
            .map_or(self.head.next(), |oldest| oldest[0].sequence())
    }

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

/// The first of the ring's records that have a match at or behind `from`, and where it is; or those at which to go on later.
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

/// In pieces that are shared as a whole.
fn split(mut records: &[Record]) -> impl Iterator<Item = &[Record]> {
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
        let (piece, rest) = records.split_at(count);
        records = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn last(records: &Records) -> Sequence {
    records[records.len() - 1].sequence()
}

fn bytes(records: &Records) -> usize {
    records.iter().map(Record::len).sum()
}

/// A place at the live path; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    hub: Arc<Hub>,
    number: usize,
}

impl Seat {
    /// Reads on from behind `position`; registers the waker if there is nothing to read.
    pub fn read(&self, position: Sequence, waker: &Waker) -> Read {
        let mut state = self.hub.lock();
        if self.hub.is_closing() {
            Read::Closing
        } else {
            state.read(self.number, position, waker)
        }
    }

    /// Up to where someone who has seen everything up to `position` has nothing to read.
    pub fn seen(&self, position: Sequence) -> Sequence {
        self.hub.seen(self.number, position)
    }

    /// Names the seat to [`Hub::seen`].
    pub fn number(&self) -> usize {
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
