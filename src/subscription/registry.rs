//! Who is subscribed: what operators see, and the limit on how many there may be. Never in the way of a delivery.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{End, OpenError};
use crate::{
    event::{Filter, Record, Sequence},
    hub::Hub,
    metrics::Metrics,
};

/// Where a subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Reading the log.
    CatchingUp,
    /// Following the head.
    Live,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
        }
    }
}

/// All open subscriptions, in the order they were opened.
#[derive(Debug)]
pub struct Registry {
    open: Arc<Mutex<BTreeMap<u64, Arc<Info>>>>,
    next: AtomicU64,
    limit: usize,
}

#[derive(Debug)]
struct Info {
    id: String,
    client_name: String,
    peer: String,
    filter: Arc<Filter>,
    opened_at: Timestamp,
    position: AtomicU64,
    delivered: AtomicU64,
    state: AtomicU8,
    seat: AtomicUsize,
}

const NO_SEAT: usize = usize::MAX;

/// One line of the list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its place in the order of opening, for paging.
    pub number: u64,
    /// Names it to people.
    pub id: String,
    /// As the client named itself.
    pub client_name: String,
    /// The client's address.
    pub peer: String,
    /// What it wants.
    pub filter: Arc<Filter>,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// Where it is.
    pub state: State,
    /// Everything up to here has been handed to the transport.
    pub position: Sequence,
    /// Events so far.
    pub delivered: u64,
}

pub(super) struct NewEntry {
    pub id: Uuid,
    pub client_name: String,
    pub peer: String,
    pub filter: Arc<Filter>,
    pub position: Sequence,
}

impl Registry {
    /// An empty registry with room for `limit` subscriptions.
    pub fn new(limit: usize) -> Self {
        Self { open: Arc::default(), next: AtomicU64::new(1), limit }
    }

    /// How many may be open.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// True if none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Up to `count_max` subscriptions opened after number `after`, with positions as of now.
    pub fn list(&self, hub: &Hub, after: u64, count_max: usize) -> Vec<Listed> {
        // Collected first: the hub's lock is not taken while this one is held.
        let page: Vec<_> = lock(&self.open)
            .range((Bound::Excluded(after), Bound::Unbounded))
            .take(count_max)
            .map(|(&n, info)| (n, Arc::clone(info)))
            .collect();
        page.into_iter().map(|(number, info)| info.listed(number, hub)).collect()
    }

    pub(super) fn enter(&self, new: NewEntry, metrics: &Arc<Metrics>) -> Result<Entry, OpenError> {
        let info = Arc::new(Info {
            id: new.id.to_string(),
            client_name: new.client_name,
            peer: new.peer,
            filter: new.filter,
            opened_at: Timestamp::now(),
            position: AtomicU64::new(new.position.0),
            delivered: AtomicU64::new(0),
            state: AtomicU8::new(State::CatchingUp as u8),
            seat: AtomicUsize::new(NO_SEAT),
        });
        let number = self.next.fetch_add(1, Relaxed);
        let mut open = lock(&self.open);
        if open.len() >= self.limit {
            return Err(OpenError::TooMany { limit: self.limit });
        }
        open.insert(number, Arc::clone(&info));
        drop(open);
        metrics.subscriptions.with_label_values(&[State::CatchingUp.as_str()]).inc();
        Ok(Entry { registry: Arc::clone(&self.open), number, info, metrics: Arc::clone(metrics), cause: "client_gone" })
    }
}

impl Info {
    fn state(&self) -> State {
        if self.state.load(Relaxed) == State::Live as u8 { State::Live } else { State::CatchingUp }
    }

    fn listed(&self, number: u64, hub: &Hub) -> Listed {
        let position = Sequence(self.position.load(Relaxed));
        Listed {
            number,
            id: self.id.clone(),
            client_name: self.client_name.clone(),
            peer: self.peer.clone(),
            filter: Arc::clone(&self.filter),
            opened_at: self.opened_at,
            state: self.state(),
            position: hub.seen(self.seat.load(Relaxed), position),
            delivered: self.delivered.load(Relaxed),
        }
    }
}

/// A subscription's own line; gone when dropped.
#[derive(Debug)]
pub(super) struct Entry {
    registry: Arc<Mutex<BTreeMap<u64, Arc<Info>>>>,
    number: u64,
    info: Arc<Info>,
    metrics: Arc<Metrics>,
    cause: &'static str,
}

impl Entry {
    pub(super) fn id(&self) -> &str {
        &self.info.id
    }

    pub(super) fn delivered(&self, record: &Record) {
        self.reached(record.sequence());
        self.info.delivered.fetch_add(1, Relaxed);
        self.metrics.deliveries.inc();
        if self.info.state() == State::Live {
            let micros = Timestamp::now().as_microsecond() - record.received_at_micros();
            self.metrics.delivery_seconds.observe(micros.max(0) as f64 / 1e6); // a clock set back reads as 0
        }
    }

    pub(super) fn reached(&self, position: Sequence) {
        self.info.position.store(position.0, Relaxed);
    }

    pub(super) fn seated(&self, seat: Option<usize>) {
        self.info.seat.store(seat.unwrap_or(NO_SEAT), Relaxed);
    }

    pub(super) fn set_state(&self, state: State) {
        let gauge = |state: State| self.metrics.subscriptions.with_label_values(&[state.as_str()]);
        gauge(self.info.state()).dec();
        gauge(state).inc();
        self.info.state.store(state as u8, Relaxed);
    }

    pub(super) fn ended(&mut self, end: Option<&End>) {
        self.cause = match end {
            None => "completed",
            Some(End::Expired) => "expired",
            Some(End::Draining) => "draining",
            Some(End::Corrupt(_)) => "corrupt",
            Some(End::DeadlineExceeded) => "deadline",
        };
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.registry).remove(&self.number);
        self.metrics.subscriptions.with_label_values(&[self.info.state().as_str()]).dec();
        self.metrics.subscriptions_ended.with_label_values(&[self.cause]).inc();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock is held ends the process, so a poisoned lock is never seen.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
