//! The places of a listener: how many connections there may be, and which one gives way to a new one when all are taken.
//!
//! A connection takes a place before it is authenticated, and is *unauthenticated* until a request on it was let in. Places are not
//! first come, first served, or silent connections could hold all of them. When there is no place left, the oldest unauthenticated
//! connection that has no request is closed (*shed*). Requests that were refused buy it no time: otherwise clients that keep sending
//! them could hold all places. An authenticated connection is shed only if every unauthenticated one has a request, only where
//! [`Patience`] allows it, and only while it has no request; the one that has been idle longest is the first.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use prometheus::{IntCounter, IntGauge};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::metrics::Metrics;

/// How often a place is looked for while every connection is busy.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The counters of a listener's places.
#[derive(Clone, Debug)]
pub(in crate::server) struct Counted {
    /// Connections that are open.
    open: IntGauge,
    /// Connections that found no place, and wait or are refused.
    full: IntCounter,
    /// Connections that were closed for another one.
    shed: IntCounter,
}

impl Counted {
    pub(in crate::server) fn of(listener: &str, metrics: &Metrics) -> Self {
        Self {
            open: metrics.connections.with_label_values(&[listener]),
            full: metrics
                .connections_refused
                .with_label_values(&[listener, "full"]),
            shed: metrics.connections_shed.with_label_values(&[listener]),
        }
    }
}

/// How long a connection may be quiet before it has to give way; `None`: for ever.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Patience {
    /// A connection on which no request was let in yet, from its beginning.
    pub unauthenticated: Option<Duration>,
    /// A connection on which a request was let in, from its last one.
    pub authenticated: Option<Duration>,
}

/// The places of one listener.
#[derive(Clone, Debug)]
pub(in crate::server) struct Places(Arc<Inner>);

struct Inner {
    max: usize,
    patience: Patience,
    clock: fn() -> Instant,
    began: Instant,
    taken: Mutex<Taken>,
    freed: Notify,
    counted: Counted,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places")
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

/// Connections in the order in which they came.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    unauthenticated: BTreeMap<u64, Arc<Standing>>,
    authenticated: BTreeMap<u64, Arc<Standing>>,
}

impl Places {
    pub(in crate::server) fn new(max: usize, patience: Patience, counted: Counted) -> Self {
        Self::by(Instant::now, max, patience, counted)
    }

    fn by(clock: fn() -> Instant, max: usize, patience: Patience, counted: Counted) -> Self {
        let (began, taken, freed) = (clock(), Mutex::default(), Notify::new());
        Self(Arc::new(Inner {
            max,
            patience,
            clock,
            began,
            taken,
            freed,
            counted,
        }))
    }

    /// Waits for a place.
    pub(in crate::server) async fn take(&self) -> Place {
        let mut has_waited = false;
        loop {
            let next_chance = match self.find() {
                Ok(place) => return place,
                Err(next_chance) => next_chance,
            };
            if !std::mem::replace(&mut has_waited, true) {
                self.0.counted.full.inc();
            }
            // A place is given back, or one may be found by looking: a busy connection does not signal when it is quiet.
            let next_look = next_chance.unwrap_or_else(|| Instant::now() + LOOK_AGAIN);
            let _ = timeout_at(next_look, self.0.freed.notified()).await.is_ok();
        }
    }

    /// A place, if there is one now.
    pub(in crate::server) fn try_take(&self) -> Option<Place> {
        self.find().inspect_err(|_| self.0.counted.full.inc()).ok()
    }

    /// A place that is free or is freed. Otherwise the time when another look may find one, even if none is given back.
    fn find(&self) -> Result<Place, Option<Instant>> {
        let mut taken = self.0.taken();
        if taken.unauthenticated.len() + taken.authenticated.len() >= self.0.max {
            let victim = self.0.victim(&taken)?;
            taken.remove(victim.number);
            self.0.counted.shed.inc();
            victim.shed();
        }
        let number = taken.next;
        taken.next += 1;
        let standing = Arc::new(Standing {
            places: Arc::clone(&self.0),
            number,
            quiet_since_millis: AtomicU64::new(self.0.now_millis()),
            is_authenticated: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            is_shed: AtomicBool::new(false),
            waker: Mutex::default(),
        });
        taken.unauthenticated.insert(number, Arc::clone(&standing));
        self.0.counted.open.inc();
        Ok(Place(standing))
    }
}

impl Taken {
    /// Does nothing if the connection had to give way before.
    fn remove(&mut self, number: u64) {
        self.unauthenticated.remove(&number);
        self.authenticated.remove(&number);
    }
}

impl Inner {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock()
    }

    fn now_millis(&self) -> u64 {
        u64::try_from((self.clock)().duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// The connection that has to give way to a new one. If there is none, the time when there may be one.
    fn victim(&self, taken: &Taken) -> Result<Arc<Standing>, Option<Instant>> {
        let quiet_since = |standing: &&Arc<Standing>| standing.quiet_since_millis.load(Relaxed);
        let is_quiet = |standing: &&Arc<Standing>| standing.requests.load(SeqCst) == 0;
        // In the order of their age. Nearly always it is the first one.
        let unauthenticated = taken.unauthenticated.values().find(is_quiet);
        let (candidate, patience) = match unauthenticated {
            Some(standing) => (standing, self.patience.unauthenticated),
            None => {
                let client = taken
                    .authenticated
                    .values()
                    .filter(is_quiet)
                    .min_by_key(quiet_since);
                (client.ok_or(None)?, self.patience.authenticated)
            }
        };
        let quiet_since = self.began + Duration::from_millis(quiet_since(&candidate));
        match patience.and_then(|patience| quiet_since.checked_add(patience)) {
            Some(due) if due <= (self.clock)() => Ok(Arc::clone(candidate)),
            due => Err(due),
        }
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(in crate::server) struct Place(Arc<Standing>);

impl Place {
    /// What the connection's requests and its place share.
    pub(in crate::server) fn standing(&self) -> &Arc<Standing> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &self.0.places;
        places.taken().remove(self.0.number);
        places.counted.open.dec();
        places.freed.notify_one();
    }
}

/// Whether a connection gives way when places run out.
pub(in crate::server) struct Standing {
    places: Arc<Inner>,
    number: u64,
    /// When it was accepted or, for a client, when its last request ended; since the listener began.
    quiet_since_millis: AtomicU64,
    /// A request on it was let in.
    is_authenticated: AtomicBool,
    /// Requests that are being answered.
    requests: AtomicUsize,
    is_shed: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standing")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Standing {
    /// A request begins. The connection does not give way until the result is dropped.
    pub(in crate::server) fn begin(self: &Arc<Self>) -> Answering {
        self.requests.fetch_add(1, SeqCst);
        Answering(Arc::clone(self))
    }

    /// A request was let in: from now on this is a client's connection.
    pub(in crate::server) fn mark_authenticated(&self) {
        if self.is_authenticated.load(Relaxed) || self.is_authenticated.swap(true, Relaxed) {
            return;
        }
        let mut taken = self.places.taken();
        // A connection that has to give way is in neither map.
        if let Some(standing) = taken.unauthenticated.remove(&self.number) {
            taken.authenticated.insert(self.number, standing);
        }
    }

    /// Closes the connection because its answers are not read. A client's connection only if this `is_for_clients`, too.
    pub(in crate::server) fn close_unread(&self, is_for_clients: bool) {
        let may_close = is_for_clients
            || self
                .places
                .taken()
                .unauthenticated
                .contains_key(&self.number);
        if may_close && !self.is_shed.load(SeqCst) {
            self.places.counted.shed.inc();
            self.shed();
        }
    }

    fn shed(&self) {
        self.is_shed.store(true, SeqCst);
        if let Some(waker) = self.lock_waker().take() {
            waker.wake();
        }
    }

    /// Waits until the connection has to give way.
    pub(in crate::server) async fn until_shed(&self) {
        let mut registered = None;
        poll_fn(|cx| self.poll_shed(cx, &mut registered)).await;
    }

    /// Ready when the connection has to give way. The caller keeps `registered`, the waker that is registered already, between calls,
    /// so that a connection which is polled often takes no lock for it.
    pub(in crate::server) fn poll_shed(
        &self,
        cx: &Context<'_>,
        registered: &mut Option<Waker>,
    ) -> Poll<()> {
        if !registered
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *self.lock_waker() = Some(cx.waker().clone());
            *registered = Some(cx.waker().clone());
        }
        if self.is_shed.load(SeqCst) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn lock_waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock()
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(in crate::server) struct Answering(Arc<Standing>);

impl Drop for Answering {
    fn drop(&mut self) {
        let Standing {
            places,
            quiet_since_millis,
            requests,
            is_authenticated,
            ..
        } = &*self.0;
        if is_authenticated.load(Relaxed) {
            quiet_since_millis.store(places.now_millis(), Relaxed);
        }
        requests.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    thread_local! {
        static NOW: Cell<Instant> = Cell::new(Instant::now());
    }

    /// Places whose time goes by when a test says so.
    fn places(max: usize) -> Places {
        let patience = Patience {
            unauthenticated: Some(PATIENCE),
            authenticated: Some(PATIENCE),
        };
        Places::by(
            || NOW.get(),
            max,
            patience,
            Counted::of("test", &Metrics::default()),
        )
    }

    fn advance(time: Duration) {
        NOW.set(NOW.get() + time);
    }

    fn is_shed(place: &Place) -> bool {
        place
            .standing()
            .poll_shed(&Context::from_waker(Waker::noop()), &mut None)
            .is_ready()
    }

    #[test]
    fn the_oldest_quiet_unauthenticated_connection_gives_way_once_it_was_quiet_for_long_enough() {
        let places = places(2);
        let first = places.try_take().unwrap();
        advance(PATIENCE / 2);
        let second = places.try_take().unwrap();
        advance(PATIENCE / 2 - Duration::from_millis(1));
        assert!(places.try_take().is_none(), "it has a moment left");
        advance(Duration::from_millis(1));
        let third = places.try_take().unwrap();
        assert_eq!([&first, &second, &third].map(is_shed), [true, false, false]);
        // Its end gives nothing back that is not its own any more.
        drop(first);
        assert!(places.try_take().is_none());
        drop(third);
        assert!(places.try_take().is_some());
        let counted = &places.0.counted;
        assert_eq!((counted.shed.get(), counted.full.get()), (1, 2));
    }

    #[test]
    fn a_client_gives_way_last_and_never_while_it_is_answered() {
        let places = places(3);
        let [busy, idle, fresh] = [(); 3].map(|()| places.try_take().unwrap());
        let answering = busy.standing().begin();
        busy.standing().mark_authenticated();
        drop(idle.standing().begin());
        idle.standing().mark_authenticated();
        advance(PATIENCE);
        let another = places.try_take().unwrap();
        assert_eq!([&busy, &idle, &fresh].map(is_shed), [false, false, true]);
        // As long as there is an unauthenticated connection, that one is waited for.
        assert!(places.try_take().is_none() && !is_shed(&idle));
        another.standing().mark_authenticated();
        let last = places.try_take().unwrap();
        assert_eq!([&busy, &idle, &another].map(is_shed), [false, true, false]);
        last.standing().mark_authenticated();
        drop((
            answering,
            another.standing().begin(),
            last.standing().begin(),
        ));
        assert!(
            places.try_take().is_none(),
            "each was answered a moment ago"
        );
        advance(PATIENCE);
        assert!(places.try_take().is_some());
    }

    #[test]
    fn refused_requests_protect_neither_their_own_connection_nor_others() {
        let places = places(2);
        let [asking, silent] = [(); 2].map(|()| places.try_take().unwrap());
        for _ in 0..PATIENCE.as_secs() {
            assert!(places.try_take().is_none());
            advance(Duration::from_secs(1));
            drop(asking.standing().begin());
        }
        let third = places.try_take().expect("the oldest one has had its time");
        assert_eq!(
            [&asking, &silent, &third].map(is_shed),
            [true, false, false]
        );
        let _fourth = places.try_take().expect("so has the other one");
        assert_eq!([&silent, &third].map(is_shed), [true, false]);
    }

    #[test]
    fn where_all_unauthenticated_connections_are_busy_the_client_that_was_idle_longest_gives_way() {
        let places = places(3);
        let [older, newer, fresh] = [(); 3].map(|()| places.try_take().unwrap());
        let _busy = fresh.standing().begin();
        for client in [&newer, &older] {
            client.standing().mark_authenticated();
            drop(client.standing().begin());
            advance(PATIENCE / 2);
        }
        let _third = places
            .try_take()
            .expect("one has been idle for long enough");
        assert_eq!([&older, &newer, &fresh].map(is_shed), [false, true, false]);
        assert!(
            places.try_take().is_none(),
            "the other client has a moment left"
        );
    }

    #[test]
    fn an_unauthenticated_connection_with_a_request_is_not_interrupted() {
        let places = places(1);
        let only = places.try_take().unwrap();
        let answering = only.standing().begin();
        advance(2 * PATIENCE);
        assert!(places.try_take().is_none());
        drop(answering);
        assert!(
            places.try_take().is_some() && is_shed(&only),
            "nobody was let in"
        );
    }

    #[tokio::test]
    async fn a_waiting_connection_gets_a_place_when_busy_clients_have_been_quiet_for_long_enough() {
        let patience = Duration::from_millis(20);
        let of_both = Patience {
            unauthenticated: Some(patience),
            authenticated: Some(patience),
        };
        let places = Places::new(2, of_both, Counted::of("test", &Metrics::default()));
        let clients = [(); 2].map(|()| places.try_take().unwrap());
        let answering = clients.each_ref().map(|client| {
            client.standing().mark_authenticated();
            client.standing().begin()
        });
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take().await }
        });
        while places.0.counted.full.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished(), "both are busy");

        // No connection ends; each waits for its next call.
        drop(answering);
        let third = tokio::time::timeout(60 * LOOK_AGAIN, waiting)
            .await
            .expect("another look")
            .unwrap();
        assert_eq!(clients.iter().filter(|client| is_shed(client)).count(), 1);
        drop(third);
    }

    #[tokio::test]
    async fn a_waiting_connection_gets_a_place_that_is_given_back_or_that_a_quiet_connection_had() {
        let patience = Duration::from_millis(20);
        let of_both = Patience {
            unauthenticated: Some(patience),
            authenticated: None,
        };
        let places = Places::new(1, of_both, Counted::of("test", &Metrics::default()));
        let (begun, first) = (Instant::now(), places.try_take().unwrap());
        let second = places.take().await;
        assert!(is_shed(&first) && begun.elapsed() >= patience);

        let answering = second.standing().begin();
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take().await }
        });
        while places.0.counted.full.get() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        drop((second, answering));
        let third = waiting.await.unwrap();
        assert!(!is_shed(&third));
        drop(first);
        assert_eq!(places.0.counted.open.get(), 1);
        // Clients are waited for, here.
        third.standing().mark_authenticated();
        assert!(matches!(places.find(), Err(None)));
    }
}
