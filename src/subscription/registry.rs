//! Who is subscribed: what operators see, and the limit on how many there may be. Never in the way of a delivery.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{End, OpenError, Withdrawal};
use crate::{
    credentials::Client,
    event::{Filter, Record, Sequence},
    hub::Hub,
    metrics::Metrics,
    store::Clock,
    trace::Context,
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
    open: Arc<Mutex<Open>>,
    next: AtomicU64,
    limits: RegistryLimits,
}

/// How many subscriptions there may be.
#[derive(Clone, Copy, Debug)]
pub struct RegistryLimits {
    /// In all.
    pub subscriptions_max: usize,
    /// Of one client, unless it has a limit of its own.
    pub subscriptions_per_client_max: usize,
    /// Task ids in the filters of all of them; one client may have half of it.
    pub task_ids_max: usize,
}

#[derive(Debug, Default)]
struct Open {
    subscriptions: BTreeMap<u64, Arc<Info>>,
    all: Share,
    /// What each client has; those without any are not in it.
    per_client: HashMap<Arc<str>, Share>,
}

/// What is taken of the limits.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    subscriptions: usize,
    task_ids: usize,
}

impl Share {
    /// With one more subscription to so many tasks, if both limits allow it.
    fn with(self, task_ids: usize, max: Self) -> Result<Self, OpenError> {
        let more = Self { subscriptions: self.subscriptions + 1, task_ids: self.task_ids + task_ids };
        if more.subscriptions > max.subscriptions {
            return Err(OpenError::TooMany { limit: max.subscriptions });
        }
        // A stream without any takes nothing of them.
        if task_ids > 0 && more.task_ids > max.task_ids {
            return Err(OpenError::TooManyTaskIds { limit: max.task_ids });
        }
        Ok(more)
    }

    fn without(self, task_ids: usize) -> Self {
        Self { subscriptions: self.subscriptions - 1, task_ids: self.task_ids - task_ids }
    }
}

#[derive(Debug)]
struct Info {
    id: String,
    client: Option<Arc<Client>>,
    client_name: String,
    peer: String,
    call: Option<Context>,
    filter: Arc<Filter>,
    opened_at: Timestamp,
    position: AtomicU64,
    delivered: AtomicU64,
    state: AtomicU8,
    seat: AtomicUsize,
    /// A [`Withdrawal`]; 0 while there is none.
    withdrawal: AtomicU8,
}

const NO_SEAT: usize = usize::MAX;

/// One line of the list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its place in the order of opening, for paging.
    pub number: u64,
    /// Names it to people.
    pub id: String,
    /// Whom the client was let in as; `None`: anonymous.
    pub client: Option<Arc<str>>,
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
    pub client: Option<Arc<Client>>,
    pub client_name: String,
    pub peer: String,
    pub call: Option<Context>,
    pub filter: Arc<Filter>,
    pub position: Sequence,
}

impl Registry {
    /// An empty registry.
    pub fn new(limits: RegistryLimits) -> Self {
        Self { open: Arc::default(), next: AtomicU64::new(1), limits }
    }

    /// How many may be open for a client.
    pub fn limit(&self, client: Option<&Client>) -> usize {
        let RegistryLimits { subscriptions_max, subscriptions_per_client_max, .. } = self.limits;
        client.map_or(subscriptions_max, |client| {
            client.subscriptions_max.unwrap_or(subscriptions_per_client_max).min(subscriptions_max)
        })
    }

    /// Asks of each subscription whether it may go on, and ends those that may not.
    pub fn review(&self, hub: &Hub, verdict: impl Fn(Option<&Client>, &Filter) -> Option<Withdrawal>) {
        let open: Vec<_> = lock(&self.open).subscriptions.values().map(Arc::clone).collect();
        for info in open {
            if let Some(withdrawal) = verdict(info.client.as_deref(), &info.filter) {
                info.withdrawal.store(withdrawal as u8 + 1, SeqCst);
                // Whoever waits is woken to find it; whoever is about to wait looks once more when it has its seat.
                hub.wake(info.seat.load(SeqCst));
            }
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        lock(&self.open).subscriptions.len()
    }

    /// True if none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Up to `count_max` subscriptions opened after number `after`, with positions as of now.
    pub fn list(&self, hub: &Hub, after: u64, count_max: usize) -> Vec<Listed> {
        // Collected first: the hub's lock is not taken while this one is held.
        let page: Vec<_> = lock(&self.open)
            .subscriptions
            .range((Bound::Excluded(after), Bound::Unbounded))
            .take(count_max)
            .map(|(&n, info)| (n, Arc::clone(info)))
            .collect();
        page.into_iter().map(|(number, info)| info.listed(number, hub)).collect()
    }

    pub(super) fn enter(&self, new: NewEntry, clock: &Arc<Clock>, metrics: &Arc<Metrics>) -> Result<Entry, OpenError> {
        let info = Arc::new(Info {
            id: new.id.to_string(),
            client: new.client,
            client_name: new.client_name,
            peer: new.peer,
            call: new.call,
            filter: new.filter,
            opened_at: clock.now(),
            position: AtomicU64::new(new.position.0),
            delivered: AtomicU64::new(0),
            state: AtomicU8::new(State::CatchingUp as u8),
            seat: AtomicUsize::new(NO_SEAT),
            withdrawal: AtomicU8::new(0),
        });
        let number = self.next.fetch_add(1, Relaxed);
        let mut open = lock(&self.open);
        let (task_ids, task_ids_max) = (info.filter.task_ids.len(), self.limits.task_ids_max);
        let max = Share { subscriptions: self.limits.subscriptions_max, task_ids: task_ids_max };
        let all = open.all.with(task_ids, max)?;
        if let Some(client) = &info.client {
            let max = Share { subscriptions: self.limit(Some(client)), task_ids: task_ids_max.div_ceil(2) };
            let share = open.per_client.get(&client.name).copied().unwrap_or_default().with(task_ids, max)?;
            open.per_client.insert(Arc::clone(&client.name), share);
        }
        open.all = all;
        open.subscriptions.insert(number, Arc::clone(&info));
        drop(open);
        metrics.subscriptions.with_label_values(&[State::CatchingUp.as_str()]).inc();
        let (registry, clock, metrics) = (Arc::clone(&self.open), Arc::clone(clock), Arc::clone(metrics));
        Ok(Entry { registry, number, info, clock, metrics, cause: "client_gone", uncounted: 0, is_first: false })
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
            client: self.client.as_ref().map(|client| Arc::clone(&client.name)),
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
    registry: Arc<Mutex<Open>>,
    number: u64,
    info: Arc<Info>,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    cause: &'static str,
    /// Deliveries that the metric, which all streams share, has not been told of.
    uncounted: u64,
    /// The next delivery is the first of what was read together on the live path.
    is_first: bool,
}

impl Entry {
    pub(super) fn id(&self) -> &str {
        &self.info.id
    }

    /// What is delivered next was read together on the live path.
    pub(super) fn begin_batch(&mut self) {
        self.is_first = true;
    }

    /// Everything that was read is delivered.
    pub(super) fn end_batch(&mut self) {
        if self.uncounted > 0 {
            self.metrics.deliveries.inc_by(std::mem::take(&mut self.uncounted));
        }
    }

    pub(super) fn delivered(&mut self, record: &Record) {
        self.reached(record.sequence());
        // Nobody else writes it, so it need not be locked for that.
        self.info.delivered.store(self.info.delivered.load(Relaxed) + 1, Relaxed);
        self.uncounted += 1;
        if let Some(origin) = record.origin() {
            let client = self.info.client.as_ref().map(|client| &*client.name);
            origin.delivered(record.received_at_micros(), &self.info.id, client, self.info.call);
        }
        // The first has waited longest; the others follow at once.
        if std::mem::take(&mut self.is_first) && self.info.state() == State::Live {
            let micros = self.clock.now_micros() - record.received_at_micros();
            self.metrics.delivery_seconds.observe(micros.max(0) as f64 / 1e6); // a clock set back reads as 0
        }
    }

    /// What the client has lost since it was let in.
    pub(super) fn withdrawal(&self) -> Option<Withdrawal> {
        match self.info.withdrawal.load(SeqCst) {
            0 => None,
            number if number == Withdrawal::Products as u8 + 1 => Some(Withdrawal::Products),
            _ => Some(Withdrawal::Identity),
        }
    }

    pub(super) fn reached(&self, position: Sequence) {
        self.info.position.store(position.0, Relaxed);
    }

    pub(super) fn seated(&self, seat: Option<usize>) {
        self.info.seat.store(seat.unwrap_or(NO_SEAT), SeqCst);
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
            Some(End::Withdrawn(_)) => "withdrawn",
            Some(End::DeadlineExceeded) => "deadline",
        };
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end_batch();
        let mut open = lock(&self.registry);
        let task_ids = self.info.filter.task_ids.len();
        open.subscriptions.remove(&self.number);
        open.all = open.all.without(task_ids);
        if let Some(client) = &self.info.client
            && let Some(share) = open.per_client.get_mut(&client.name)
        {
            *share = share.without(task_ids);
            if share.subscriptions == 0 {
                open.per_client.remove(&client.name);
            }
        }
        drop(open);
        self.metrics.subscriptions.with_label_values(&[self.info.state().as_str()]).dec();
        self.metrics.subscriptions_ended.with_label_values(&[self.cause]).inc();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock is held ends the process, so a poisoned lock is never seen.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
