//! Who is subscribed: what operators see, and the limit on how many there may be. Never in the way of a delivery.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{task::yield_now, time::Instant};
use uuid::Uuid;

use super::{
    Heard, StreamEnd, SubscribeError, Withdrawal,
    stream_log::{At, Ended, StreamLog, Who},
};
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
pub enum SubscriptionState {
    /// Reading the log.
    CatchingUp,
    /// Following the head.
    Live,
    /// Either of these, but its client takes nothing.
    Stalled,
}

impl SubscriptionState {
    fn as_str(self) -> &'static str {
        match self {
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Stalled => "stalled",
        }
    }
}

/// All open subscriptions, in the order they were opened.
#[derive(Debug)]
pub struct Registry {
    open: Arc<Mutex<Open>>,
    next: AtomicU64,
    limits: RegistryLimits,
    log: Arc<StreamLog>,
    began: Instant,
}

/// How many subscriptions there may be.
#[derive(Clone, Copy, Debug)]
pub struct RegistryLimits {
    /// In all.
    pub subscriptions_max: usize,
    /// Of one client, unless it has a limit of its own.
    pub subscriptions_per_client_max: usize,
    /// Task ids in the filters of all of them, see [`Filter::size_in_task_ids`]; one client may have half of it.
    pub task_ids_max: usize,
    /// A connection on which nothing came for so long has missed a keepalive.
    pub silence_max: Duration,
}

/// A limit that is reached: what of, of whom, and where it is set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{whose} {open} {what} open and may have {limit}, and this stream needs {needed}: {remedy}raise {setting}",
    remedy = if self.may_pass() { "end some, or " } else { "" })]
pub struct LimitReached {
    /// The limit.
    pub limit: usize,
    /// How many there are.
    pub open: usize,
    /// How many the new subscription needs.
    pub needed: usize,
    /// Subscriptions, or task ids that they name.
    pub what: &'static str,
    /// All clients together, or this one.
    pub whose: &'static str,
    /// The key of the configuration, or of the client's line in the credentials file.
    pub setting: String,
}

impl LimitReached {
    /// Whether there is room for the new one once enough others have ended.
    pub fn may_pass(&self) -> bool {
        self.needed <= self.limit
    }
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
    fn with(self, task_ids: usize, max: &Limits) -> Result<Self, LimitReached> {
        let more = self.and(task_ids);
        let whose = max.whose;
        if more.subscriptions > max.share.subscriptions {
            let (limit, open, setting) = (
                max.share.subscriptions,
                self.subscriptions,
                max.setting.clone(),
            );
            return Err(LimitReached {
                limit,
                open,
                needed: 1,
                what: "subscriptions",
                whose,
                setting,
            });
        }
        // A stream without any takes nothing of them.
        if task_ids > 0 && more.task_ids > max.share.task_ids {
            let (limit, open, setting) = (
                max.share.task_ids,
                self.task_ids,
                TASK_IDS_SETTING.to_owned(),
            );
            return Err(LimitReached {
                limit,
                open,
                needed: task_ids,
                what: "task ids in streams",
                whose,
                setting,
            });
        }
        Ok(more)
    }

    fn and(self, task_ids: usize) -> Self {
        Self {
            subscriptions: self.subscriptions + 1,
            task_ids: self.task_ids + task_ids,
        }
    }

    fn without(self, task_ids: usize) -> Self {
        Self {
            subscriptions: self.subscriptions - 1,
            task_ids: self.task_ids - task_ids,
        }
    }
}

/// Most of each, of one client or of all together.
#[derive(Debug)]
struct Limits {
    share: Share,
    whose: &'static str,
    /// Where that of subscriptions is set.
    setting: String,
}

/// What a `WaitTask` is listed as.
pub const WAIT_NAME: &str = "WaitTask";

/// A client that reads asks for more within milliseconds; on a bad line within seconds.
const STALLED_AFTER_MILLIS: u64 = 10_000;
/// Streams that are looked at before others have their turn.
const LOOKED_AT_ONCE: usize = 1_024;

/// Why streams end that are not polled until then.
const REPLACED: &str = "replaced";
const BY_ADMIN: &str = "ended_by_admin";

const TASK_IDS_SETTING: &str = "grpc.task_ids_in_all_max";

#[derive(Debug)]
struct Info {
    id: String,
    client: Option<Arc<Client>>,
    client_name: String,
    peer: String,
    heard: Heard,
    call: Option<Context>,
    filter: Arc<Filter>,
    opened_at: Timestamp,
    position: AtomicU64,
    delivered: AtomicU64,
    state: AtomicU8,
    seat: AtomicUsize,
    /// A [`Withdrawal`]; 0 while there is none.
    withdrawal: AtomicU8,
    turn: Turn,
    /// What that was when it was looked at last ([`Turn::get`]), and since when it is so, in milliseconds.
    turn_seen: AtomicU64,
    still_since: AtomicU64,
    is_stalled: AtomicBool,
}

/// How often something was handed to the transport, times two; and one, if that has not asked for more since. One number, so that a
/// frame costs one store.
#[derive(Debug, Default)]
struct Turn(AtomicU64);

impl Turn {
    fn handed_on(&self) {
        self.0.store((self.0.load(Relaxed) | 1) + 2, Relaxed); // nobody else writes it
    }

    fn handed_all(&self) {
        self.0.store(self.0.load(Relaxed) & !1, Relaxed);
    }

    /// What is other with each frame that is handed on; `None` while the transport has asked for more.
    fn get(&self) -> Option<u64> {
        let turn = self.0.load(Relaxed);
        (turn & 1 == 1).then_some(turn)
    }
}

const NO_SEAT: usize = usize::MAX;

/// One line of the list.
#[derive(Clone, Debug)]
pub struct ListedSubscription {
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
    pub state: SubscriptionState,
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
    pub heard: Heard,
    pub call: Option<Context>,
    pub filter: Arc<Filter>,
    pub position: Sequence,
}

impl Registry {
    /// An empty registry.
    pub fn new(limits: RegistryLimits) -> Self {
        let (log, began) = (Arc::default(), Instant::now());
        Self {
            open: Arc::default(),
            next: AtomicU64::new(1),
            limits,
            log,
            began,
        }
    }

    /// How many may be open for a client.
    pub fn limit(&self, client: Option<&Client>) -> usize {
        client.map_or(self.limits.subscriptions_max, |client| {
            self.limits.of_client(client).share.subscriptions
        })
    }

    /// Asks of each subscription whether it may go on, and ends those that may not.
    pub fn review(
        &self,
        hub: &Hub,
        verdict: impl Fn(Option<&Client>, &Filter) -> Option<Withdrawal>,
    ) {
        let open: Vec<_> = lock(&self.open)
            .subscriptions
            .values()
            .map(Arc::clone)
            .collect();
        for info in open {
            if let Some(withdrawal) = verdict(info.client.as_deref(), &info.filter) {
                info.withdraw(withdrawal, hub);
            }
        }
    }

    /// Ends the subscription of this id, as it was; `None` if there is none. Its client may take nothing, so that its stream is never
    /// polled again: its place is free already.
    pub fn end(&self, hub: &Hub, id: &str) -> Option<ListedSubscription> {
        let mut open = lock(&self.open);
        let number = open
            .subscriptions
            .iter()
            .find(|(_, info)| info.id == id)
            .map(|(&number, _)| number)?;
        let info = open.remove(number)?;
        drop(open);

        let listed = info.listed(number, hub);
        info.withdraw(Withdrawal::Stream, hub);
        Some(listed)
    }

    /// The clients that have subscriptions open, each once for what it was let in by.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        let open = lock(&self.open);
        let clients = open
            .subscriptions
            .values()
            .filter_map(|info| info.client.as_ref());
        let clients: HashMap<_, _> = clients
            .map(|client| (Arc::as_ptr(client), client))
            .collect();
        clients.into_values().map(Arc::clone).collect()
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
    pub fn list(&self, hub: &Hub, after: u64, count_max: usize) -> Vec<ListedSubscription> {
        // Collected first: the hub's lock is not taken while this one is held.
        let page: Vec<_> = lock(&self.open)
            .subscriptions
            .range((Bound::Excluded(after), Bound::Unbounded))
            .take(count_max)
            .map(|(&n, info)| (n, Arc::clone(info)))
            .collect();
        page.into_iter()
            .map(|(number, info)| info.listed(number, hub))
            .collect()
    }

    /// Takes a new subscription in. If it would be one too many, it takes the place of an older one of the same client and the same name
    /// whose connection has missed a keepalive: that is most likely the same reader, back before the broker has given the lost
    /// connection up.
    pub(super) fn enter(
        &self,
        new: NewEntry,
        hub: &Arc<Hub>,
        clock: &Arc<Clock>,
        metrics: &Arc<Metrics>,
    ) -> Result<Entry, SubscribeError> {
        let info = Arc::new(Info {
            id: new.id.to_string(),
            client: new.client,
            client_name: new.client_name,
            peer: new.peer,
            heard: new.heard,
            call: new.call,
            filter: new.filter,
            opened_at: clock.now(),
            position: AtomicU64::new(new.position.0),
            delivered: AtomicU64::new(0),
            state: AtomicU8::new(SubscriptionState::CatchingUp as u8),
            seat: AtomicUsize::new(NO_SEAT),
            withdrawal: AtomicU8::new(0),
            turn: Turn::default(),
            turn_seen: AtomicU64::new(0),
            still_since: AtomicU64::new(0),
            is_stalled: AtomicBool::new(false),
        });
        let number = self.next.fetch_add(1, Relaxed);
        let (mut open, mut replaced) = (lock(&self.open), Vec::new());
        while let Err(taken) = open.insert(number, &info, self.limits) {
            let Some(lost) = open.lost(&info, self.limits.silence_max) else {
                replaced
                    .into_iter()
                    .for_each(|(number, info)| open.put_back(number, info));
                return Err(SubscribeError::TooMany(taken));
            };
            replaced.extend(open.remove(lost).map(|info| (lost, info)));
        }
        drop(open);
        // Its stream may never be polled again: nobody takes anything of it. So its place is free already.
        for (_, lost) in replaced {
            lost.withdraw(Withdrawal::Place, hub);
        }
        metrics
            .subscriptions
            .with_label_values(&[SubscriptionState::CatchingUp.as_str()])
            .inc();
        if let Some(client) = &info.client {
            metrics.name_client(&client.name);
        }
        let (registry, clock, metrics) = (
            Arc::clone(&self.open),
            Arc::clone(clock),
            Arc::clone(metrics),
        );
        let (hub, log, cause) = (Arc::clone(hub), Arc::clone(&self.log), "client_gone");
        let (is_told, uncounted, is_first) = (false, 0, false);
        Ok(Entry {
            registry,
            number,
            info,
            hub,
            clock,
            metrics,
            log,
            cause,
            is_told,
            uncounted,
            is_first,
        })
    }

    /// Tells that a read has met a part of the log that is damaged.
    pub(crate) fn tell_damage(&self, problem: &str) {
        self.log.damaged(problem);
    }

    pub(super) fn log(&self) -> &StreamLog {
        &self.log
    }

    /// Notes which clients take nothing, though something was handed to the transport for them.
    pub(super) async fn look_for_stalled(&self, hub: &Hub) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut after = Bound::Unbounded;
        loop {
            let page: Vec<_> = lock(&self.open)
                .subscriptions
                .range((after, Bound::Unbounded))
                .take(LOOKED_AT_ONCE)
                .map(|(&number, info)| (number, Arc::clone(info)))
                .collect();
            let Some((last, _)) = page.last() else { return };
            after = Bound::Excluded(*last);
            page.iter()
                .for_each(|(_, info)| info.look(now, hub, &self.log));
            yield_now().await;
        }
    }
}

impl Open {
    /// Counts a subscription in, if there is room for it.
    fn insert(
        &mut self,
        number: u64,
        info: &Arc<Info>,
        limits: RegistryLimits,
    ) -> Result<(), LimitReached> {
        let RegistryLimits {
            subscriptions_max,
            task_ids_max,
            ..
        } = limits;
        let task_ids = info.filter.size_in_task_ids();
        let share = Share {
            subscriptions: subscriptions_max,
            task_ids: task_ids_max,
        };
        let setting = "grpc.subscriptions_max".to_owned();
        let all = self.all.with(
            task_ids,
            &Limits {
                share,
                whose: "all clients together have",
                setting,
            },
        )?;
        if let Some(client) = &info.client {
            let max = limits.of_client(client);
            let share = self
                .per_client
                .get(&client.name)
                .copied()
                .unwrap_or_default()
                .with(task_ids, &max)?;
            self.per_client.insert(Arc::clone(&client.name), share);
        }
        self.all = all;
        self.subscriptions.insert(number, Arc::clone(info));
        Ok(())
    }

    /// Counts one in again that was counted out for another, which does not fit all the same.
    fn put_back(&mut self, number: u64, info: Arc<Info>) {
        let task_ids = info.filter.size_in_task_ids();
        self.all = self.all.and(task_ids);
        if let Some(client) = &info.client {
            let share = self.per_client.entry(Arc::clone(&client.name)).or_default();
            *share = share.and(task_ids);
        }
        self.subscriptions.insert(number, info);
    }

    /// Counts one out, if that was not done before.
    fn remove(&mut self, number: u64) -> Option<Arc<Info>> {
        let info = self.subscriptions.remove(&number)?;
        let task_ids = info.filter.size_in_task_ids();
        self.all = self.all.without(task_ids);
        if let Some(client) = &info.client
            && let Some(share) = self.per_client.get_mut(&client.name)
        {
            *share = share.without(task_ids);
            if share.subscriptions == 0 {
                self.per_client.remove(&client.name);
            }
        }
        Some(info)
    }

    /// The oldest subscription of the same client and name whose connection has missed a keepalive.
    fn lost(&self, new: &Info, silence_max: Duration) -> Option<u64> {
        let name = |info: &Info| info.client.as_ref().map(|client| Arc::clone(&client.name));
        let is_lost = |info: &Info| {
            info.client_name == new.client_name
                && name(info) == name(new)
                && info.heard.silent_for() > silence_max
        };
        // These are no names: they may be of different readers.
        if ["", WAIT_NAME].contains(&&*new.client_name) {
            return None;
        }
        self.subscriptions
            .iter()
            .find(|(_, info)| is_lost(info))
            .map(|(&number, _)| number)
    }
}

impl RegistryLimits {
    fn of_client(self, client: &Client) -> Limits {
        let Self {
            subscriptions_max,
            subscriptions_per_client_max,
            task_ids_max,
            ..
        } = self;
        let subscriptions = client
            .subscriptions_max
            .unwrap_or(subscriptions_per_client_max)
            .min(subscriptions_max);
        let setting = match client.subscriptions_max {
            Some(_) => format!(
                "subscriptions_max in the line of {} in the credentials file",
                client.name
            ),
            None => "grpc.subscriptions_per_client_max".to_owned(),
        };
        let share = Share {
            subscriptions,
            task_ids: task_ids_max.div_ceil(2),
        };
        Limits {
            share,
            whose: "this client has",
            setting,
        }
    }
}

impl Info {
    fn who(&self) -> Who<'_> {
        Who {
            client: self.client.as_ref(),
            client_name: &self.client_name,
            peer: &self.peer,
        }
    }

    fn at(&self, position: Sequence, lag: u64) -> At<'_> {
        At {
            who: self.who(),
            subscription_id: &self.id,
            position,
            lag,
        }
    }

    fn position(&self, hub: &Hub) -> Sequence {
        hub.seen(
            self.seat.load(Relaxed),
            Sequence(self.position.load(Relaxed)),
        )
    }

    /// Only one looks, so the two halves of a look are never those of two.
    fn look(&self, now_millis: u64, hub: &Hub, log: &StreamLog) {
        let is_still = self
            .turn
            .get()
            .is_some_and(|turn| self.turn_seen.swap(turn, Relaxed) == turn);
        if !is_still {
            self.still_since.store(now_millis, Relaxed);
        }
        let is_stalled =
            is_still && now_millis - self.still_since.load(Relaxed) >= STALLED_AFTER_MILLIS;
        if self.is_stalled.load(Relaxed) == is_stalled {
            return;
        }
        let position = self.position(hub);
        let lag = hub.head().0.saturating_sub(position.0);
        if is_stalled && lag == 0 {
            return; // the transport has all there is for it, and may wait for another stream of its connection
        }

        self.is_stalled.store(is_stalled, Relaxed);
        let at = self.at(position, lag);
        if is_stalled {
            log.stands_still(&at);
        } else {
            log.reads_again(&at);
        }
    }

    fn withdraw(&self, withdrawal: Withdrawal, hub: &Hub) {
        self.withdrawal.store(withdrawal as u8 + 1, SeqCst);
        // A stream that waits is woken to find it; one that is about to wait looks once more when it has its seat.
        hub.wake(self.seat.load(SeqCst));
    }

    fn state(&self) -> SubscriptionState {
        if self.state.load(Relaxed) == SubscriptionState::Live as u8 {
            SubscriptionState::Live
        } else {
            SubscriptionState::CatchingUp
        }
    }

    fn listed(&self, number: u64, hub: &Hub) -> ListedSubscription {
        ListedSubscription {
            number,
            id: self.id.clone(),
            client: self.client.as_ref().map(|client| Arc::clone(&client.name)),
            client_name: self.client_name.clone(),
            peer: self.peer.clone(),
            filter: Arc::clone(&self.filter),
            opened_at: self.opened_at,
            state: if self.is_stalled.load(Relaxed) {
                SubscriptionState::Stalled
            } else {
                self.state()
            },
            position: self.position(hub),
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
    hub: Arc<Hub>,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    log: Arc<StreamLog>,
    cause: &'static str,
    /// Its begin was told, so its end is.
    is_told: bool,
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
            self.metrics
                .deliveries
                .inc_by(std::mem::take(&mut self.uncounted));
        }
    }

    pub(super) fn delivered(&mut self, record: &Record) {
        self.reached(record.sequence());
        // Nobody else writes it, so it need not be locked for that.
        self.info
            .delivered
            .store(self.info.delivered.load(Relaxed) + 1, Relaxed);
        self.uncounted += 1;
        if let Some(origin) = record.origin() {
            let client = self.info.client.as_ref().map(|client| &*client.name);
            origin.delivered(
                record.received_at_micros(),
                &self.info.id,
                client,
                self.info.call,
            );
        }
        // The first has waited longest; the others follow at once.
        if std::mem::take(&mut self.is_first) && self.info.state() == SubscriptionState::Live {
            let micros = self.clock.now_micros() - record.received_at_micros();
            self.metrics
                .delivery_seconds
                .observe(micros.max(0) as f64 / 1e6); // a clock set back reads as 0
        }
    }

    /// What `verdict` says of it.
    pub(super) fn review(
        &self,
        verdict: impl FnOnce(Option<&Client>, &Filter) -> Option<Withdrawal>,
    ) -> Option<Withdrawal> {
        verdict(self.info.client.as_deref(), &self.info.filter)
    }

    /// What the client has lost since it was let in.
    pub(super) fn withdrawal(&self) -> Option<Withdrawal> {
        match self.info.withdrawal.load(SeqCst) {
            0 => None,
            number if number == Withdrawal::Products as u8 + 1 => Some(Withdrawal::Products),
            number if number == Withdrawal::Labels as u8 + 1 => Some(Withdrawal::Labels),
            number if number == Withdrawal::Place as u8 + 1 => Some(Withdrawal::Place),
            number if number == Withdrawal::Stream as u8 + 1 => Some(Withdrawal::Stream),
            _ => Some(Withdrawal::Identity),
        }
    }

    pub(super) fn reached(&self, position: Sequence) {
        self.info.position.store(position.0, Relaxed);
    }

    pub(super) fn seated(&self, seat: Option<usize>) {
        self.info.seat.store(seat.unwrap_or(NO_SEAT), SeqCst);
    }

    pub(super) fn handed_on(&self) {
        self.info.turn.handed_on();
    }

    pub(super) fn handed_all(&self) {
        self.info.turn.handed_all();
    }

    pub(super) fn subscribed(&mut self, position: Sequence) {
        self.is_told = true;
        let lag = self.hub.head().0.saturating_sub(position.0);
        self.log.subscribed(&self.info.at(position, lag));
    }

    pub(super) fn fell_behind(&self, position: Sequence, lag: u64) {
        self.log.fell_behind(&self.info.at(position, lag));
    }

    pub(super) fn lost(&self, kind: &'static str, after: Sequence, through: Sequence) {
        self.log
            .lost(&self.info.who(), kind, after, through, &self.metrics);
    }

    pub(super) fn set_state(&self, state: SubscriptionState) {
        let gauge = |state: SubscriptionState| {
            self.metrics
                .subscriptions
                .with_label_values(&[state.as_str()])
        };
        gauge(self.info.state()).dec();
        gauge(state).inc();
        self.info.state.store(state as u8, Relaxed);
    }

    pub(super) fn ended(&mut self, end: Option<&StreamEnd>) {
        self.cause = match end {
            None => "completed",
            Some(StreamEnd::Expired) => "expired",
            Some(StreamEnd::Draining) => "draining",
            Some(StreamEnd::Erased) => "erased",
            Some(StreamEnd::Corrupt(_)) => "corrupt",
            Some(StreamEnd::Withdrawn(Withdrawal::Place)) => REPLACED,
            Some(StreamEnd::Withdrawn(Withdrawal::Stream)) => BY_ADMIN,
            Some(StreamEnd::Withdrawn(_)) => "withdrawn",
            Some(StreamEnd::DeadlineExceeded) => "deadline",
        };
    }
}

impl Entry {
    fn tell_end(&self) {
        let (info, position) = (&self.info, self.info.position(&self.hub));
        self.log.ended(
            &info.who(),
            Ended {
                subscription_id: &info.id,
                cause: self.cause,
                position,
                lag: self.hub.head().0.saturating_sub(position.0),
                delivered: info.delivered.load(Relaxed),
                open_seconds: self.clock.now().as_second() - info.opened_at.as_second(),
            },
        );
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end_batch();
        let removed = lock(&self.registry).remove(self.number);
        drop(removed); // not within the lock
        // Also if nobody polled it any more.
        match self.withdrawal() {
            Some(Withdrawal::Place) => self.cause = REPLACED,
            Some(Withdrawal::Stream) => self.cause = BY_ADMIN,
            _ => {}
        }
        self.metrics
            .subscriptions
            .with_label_values(&[self.info.state().as_str()])
            .dec();
        self.metrics
            .subscriptions_ended
            .with_label_values(&[self.cause])
            .inc();
        if self.is_told {
            self.tell_end();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock is held ends the process, so a poisoned lock is never seen.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> Info {
        Info {
            id: String::new(),
            client: None,
            client_name: String::new(),
            peer: String::new(),
            heard: Heard::default(),
            call: None,
            filter: Arc::default(),
            opened_at: Timestamp::UNIX_EPOCH,
            position: AtomicU64::new(1),
            delivered: AtomicU64::new(0),
            state: AtomicU8::new(SubscriptionState::Live as u8),
            seat: AtomicUsize::new(NO_SEAT),
            withdrawal: AtomicU8::new(0),
            turn: Turn::default(),
            turn_seen: AtomicU64::new(0),
            still_since: AtomicU64::new(0),
            is_stalled: AtomicBool::new(false),
        }
    }

    /// Whether it is stalled, as somebody finds who looks when it is so late, with the log's head at that place.
    fn look(info: &Info, seconds: u64, head: u64) -> bool {
        info.look(
            seconds * 1_000,
            &Hub::new(Sequence(head), 1_024),
            &StreamLog::default(),
        );
        info.is_stalled.load(Relaxed)
    }

    #[test]
    fn a_client_is_stalled_ten_seconds_after_what_it_does_not_take_and_no_more_when_it_takes_it() {
        let info = info();
        assert!(!look(&info, 100, 9), "nothing was handed to it");
        info.turn.handed_on();
        assert!([101, 110].iter().all(|&seconds| !look(&info, seconds, 9)));
        info.turn.handed_on();
        assert!(
            [111, 113, 120]
                .iter()
                .all(|&seconds| !look(&info, seconds, 9)),
            "it has taken something"
        );
        assert!(look(&info, 121, 9) && look(&info, 200, 9));
        info.turn.handed_on();
        assert!(!look(&info, 201, 9));
        assert!(look(&info, 211, 9));
        info.turn.handed_all();
        assert!(!look(&info, 212, 9));
    }

    #[test]
    fn a_client_that_lacks_nothing_is_not_stalled() {
        let info = info();
        info.turn.handed_on();
        assert!(
            [100, 110, 1_000]
                .iter()
                .all(|&seconds| !look(&info, seconds, 1))
        );
        assert!(
            look(&info, 1_002, 2),
            "now there is something that it does not take"
        );
    }
}
