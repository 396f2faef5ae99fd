//! A memory budget that clients share fairly: a weighted semaphore with fair queueing and reclaim.
//!
//! Bytes are reserved before they are allocated. Clients that wait take turns, so a client with a
//! thousand requests delays its own requests and nobody else's. While clients wait, bytes whose
//! owner cannot use them now are reclaimed, the oldest first. Knows nothing about the bytes
//! themselves.
//!
//! ```text
//! Budget ── Loan      a reservation: kept beside the bytes, given back when dropped
//!        └─ Shelf     bytes with their loan while their owner cannot use them: may be reclaimed, and are then read again
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};

/// The client that a reservation counts for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// An authenticated client.
    Client(Arc<str>),
    /// A connection of an anonymous client.
    Connection(Option<SocketAddr>),
}

/// A number of bytes to reserve from. Clones share the same bytes.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Shared>);

struct Shared {
    bytes_max: usize,
    state: Mutex<State>,
    /// Notified when a request begins to wait.
    wanted: Notify,
}

#[derive(Default)]
struct State {
    lent: usize,
    /// The next number of a waiter or shelf.
    next: u64,
    /// In the order of their turns.
    waiting: BTreeMap<Turn, Waiter>,
    /// The virtual time: start tag of the last request that was granted from the queue.
    due: u64,
    /// Start tag of each client's next request, for clients that have waited since the queue was
    /// last empty.
    next_due: HashMap<Payer, u64>,
    /// In the order of being shelved.
    shelves: BTreeMap<u64, (Instant, Weak<dyn Clear>)>,
}

/// The start tag of a waiting request, in virtual time, and its number. Each request moves the tag
/// of its client's next one by its bytes (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM
/// 1996).
type Turn = (u64, u64);

struct Waiter {
    bytes: usize,
    grant: oneshot::Sender<Loan>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Whether a request can be granted. One larger than the whole budget is granted alone.
    fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.lent == 0 || self.lent.saturating_add(bytes) <= bytes_max
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn turn(&mut self, payer: &Payer, bytes: usize) -> Turn {
        // A client that has asked for nothing for a while cannot save up turns.
        let due = self
            .next_due
            .get(payer)
            .map_or(self.due, |&next| next.max(self.due));
        if self.next_due.len() > 2 * self.waiting.len() {
            self.next_due.retain(|_, next| *next > self.due);
        }
        self.next_due
            .insert(payer.clone(), due.saturating_add(bytes as u64));
        (due, self.number())
    }

    /// Removes a request from the queue, and does not charge its client for it. False if it was
    /// already granted.
    fn give_up(&mut self, payer: &Payer, turn: Turn) -> bool {
        let Some(waiter) = self.waiting.remove(&turn) else {
            return false;
        };
        if let Some(next) = self.next_due.get_mut(payer) {
            *next = next.saturating_sub(waiter.bytes as u64);
        }
        if self.waiting.is_empty() {
            self.next_due.clear();
        }
        true
    }

    /// Takes the next request from the queue, if it fits.
    fn next_waiter(&mut self, bytes_max: usize) -> Option<Waiter> {
        let (_, first) = self.waiting.first_key_value()?;
        if !self.fits(first.bytes, bytes_max) {
            return None;
        }
        let ((due, _), waiter) = self.waiting.pop_first()?;
        self.due = due;
        if self.waiting.is_empty() {
            self.next_due.clear();
        }
        Some(waiter)
    }
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared {
            bytes_max,
            state: Mutex::default(),
            wanted: Notify::new(),
        }))
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// Reserved bytes.
    pub(crate) fn lent(&self) -> usize {
        self.0.lock().lent
    }

    /// Waiting requests.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Whether another clone exists, which may be about to reserve.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether nothing is reserved and no request waits.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.0.lock();
        state.lent == 0 && state.waiting.is_empty()
    }

    /// Reserves bytes, unless there are too few or other requests wait.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Loan> {
        let mut state = self.0.lock();
        let is_free = state.waiting.is_empty() && state.fits(bytes, self.0.bytes_max);
        is_free.then(|| self.0.lend(&mut state, bytes))
    }

    /// Reserves bytes, when it is this client's turn.
    pub(crate) async fn take(&self, payer: &Payer, bytes: usize) -> Loan {
        let mut waiting = {
            let mut state = self.0.lock();
            if state.waiting.is_empty() && state.fits(bytes, self.0.bytes_max) {
                return self.0.lend(&mut state, bytes);
            }
            let (turn, (grant, granted)) = (state.turn(payer, bytes), oneshot::channel());
            state.waiting.insert(turn, Waiter { bytes, grant });
            Waiting {
                shared: Arc::clone(&self.0),
                payer: payer.clone(),
                turn,
                granted,
            }
        };
        // This request may be the first in the queue, and smaller than the one that was.
        self.0.grant();
        self.0.wanted.notify_one();
        (&mut waiting.granted)
            .await
            .expect("a waiter leaves the queue with its loan, or by being dropped")
    }

    /// Keeps an item, with its loan, that its owner cannot use now. It may be dropped before the
    /// owner takes it again.
    pub(crate) fn shelve<T: Send + 'static>(&self, item: T) -> Shelf<T> {
        let slot = Arc::new(Slot(Mutex::new(Some(item))));
        let cleared: Weak<dyn Clear> = Arc::downgrade(&slot) as Weak<dyn Clear>;
        let mut state = self.0.lock();
        let number = state.number();
        state.shelves.insert(number, (Instant::now(), cleared));
        Shelf {
            slot,
            number,
            shared: Arc::clone(&self.0),
        }
    }

    /// Reclaims shelved items, the oldest first: after `idle` while the first request in the queue
    /// does not fit, after `idle_max` in any case. Calls `reclaimed` for each. Never ends.
    pub(crate) async fn tend(
        &self,
        idle: Duration,
        idle_max: Duration,
        mut reclaimed: impl FnMut(),
    ) {
        loop {
            // A new waiting request ends the pause at once.
            let _ = timeout(idle_max / 4, self.0.wanted.notified())
                .await
                .is_ok();
            while self.waiting() > 0 {
                while self.0.is_short() && self.0.clear_oldest(idle) {
                    reclaimed();
                }
                sleep(idle / 4).await;
            }
            while self.0.clear_oldest(idle_max) {
                reclaimed();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        self.state.lock()
    }

    fn lend(self: &Arc<Self>, state: &mut State, bytes: usize) -> Loan {
        state.lent += bytes;
        Loan {
            shared: Arc::clone(self),
            bytes,
        }
    }

    /// Whether the first request in the queue does not fit.
    fn is_short(&self) -> bool {
        let state = self.lock();
        state
            .waiting
            .first_key_value()
            .is_some_and(|(_, first)| !state.fits(first.bytes, self.bytes_max))
    }

    /// Grants waiting requests as long as they fit.
    fn grant(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some(waiter) = state.next_waiter(self.bytes_max) else {
                return;
            };
            let loan = self.lend(&mut state, waiter.bytes);
            drop(state);
            // The waiter may just have been dropped. Its loan is given back here: dropping it would
            // call `grant` again.
            if let Err(mut loan) = waiter.grant.send(loan) {
                self.lock().lent -= std::mem::take(&mut loan.bytes);
            }
        }
    }

    /// Drops the oldest shelved item, if it has been shelved for `idle`. Returns whether it did.
    fn clear_oldest(&self, idle: Duration) -> bool {
        loop {
            let mut state = self.lock();
            let Some(oldest) = state.shelves.first_entry() else {
                return false;
            };
            if oldest.get().0.elapsed() < idle {
                return false;
            }
            let (_, slot) = oldest.remove();
            drop(state);
            // Outside the lock: the item gives back its loan, which takes the lock.
            if slot.upgrade().is_some_and(|slot| slot.clear()) {
                return true;
            }
        }
    }
}

/// A request in the queue; leaves the queue when dropped.
struct Waiting {
    shared: Arc<Shared>,
    payer: Payer,
    turn: Turn,
    granted: oneshot::Receiver<Loan>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let has_given_up = self.shared.lock().give_up(&self.payer, self.turn);
        // Smaller requests after a large one may fit now.
        if has_given_up {
            self.shared.grant();
        }
    }
}

/// Reserved bytes, given back when dropped.
#[derive(Debug)]
pub struct Loan {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Loan {
    /// Corrects the reservation once the real size is known. Growing never fails: the bytes are
    /// allocated already.
    pub fn resize(&mut self, bytes: usize) {
        let mut state = self.shared.lock();
        state.lent = state.lent - self.bytes + bytes;
        let is_smaller = bytes < self.bytes;
        self.bytes = bytes;
        let is_wanted = is_smaller && !state.waiting.is_empty();
        drop(state);
        if is_wanted {
            self.shared.grant();
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.resize(0);
        }
    }
}

trait Clear: Send + Sync {
    /// Drops the item. Returns whether there was one.
    fn clear(&self) -> bool;
}

struct Slot<T>(Mutex<Option<T>>);

impl<T> Slot<T> {
    fn take(&self) -> Option<T> {
        self.0.lock().take()
    }
}

impl<T: Send> Clear for Slot<T> {
    fn clear(&self) -> bool {
        self.take().is_some()
    }
}

/// A shelved item; see [`Budget::shelve`].
pub(crate) struct Shelf<T> {
    slot: Arc<Slot<T>>,
    number: u64,
    shared: Arc<Shared>,
}

impl<T> Shelf<T> {
    /// The item; `None` if it was reclaimed.
    pub(crate) fn take(self) -> Option<T> {
        self.slot.take()
    }
}

impl<T> fmt::Debug for Shelf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<T> Drop for Shelf<T> {
    fn drop(&mut self) {
        self.shared.lock().shelves.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        sync::atomic::{AtomicU32, Ordering},
        task::{Context, Poll, Waker},
    };

    use proptest::{collection, prelude::*};

    use super::*;

    const IDLE: Duration = Duration::from_millis(10);
    const SOMEBODY: Payer = Payer::Connection(None);

    fn client(name: &str) -> Payer {
        Payer::Client(name.into())
    }

    fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_client_is_granted_loans_in_the_order_of_asking_and_never_beyond_the_budget() {
        let budget = Budget::new(10);
        let first = budget.try_take(8).unwrap();
        let (mut large, mut small) = (
            pin!(budget.take(&SOMEBODY, 10)),
            pin!(budget.take(&SOMEBODY, 1)),
        );
        assert!(poll(large.as_mut()).is_pending());
        assert!(
            poll(small.as_mut()).is_pending(),
            "it would fit, but others wait"
        );
        assert!(budget.try_take(1).is_none());
        drop(first);
        let Poll::Ready(large) = poll(large.as_mut()) else {
            panic!("all of it is free")
        };
        assert!(poll(small.as_mut()).is_pending());
        assert_eq!((budget.lent(), budget.waiting()), (10, 1));
        drop(large);
        assert!(poll(small.as_mut()).is_ready());
    }

    #[test]
    fn a_client_with_many_requests_delays_only_its_own() {
        let budget = Budget::new(10);
        let mut lent = budget.try_take(10);
        type Asked = Pin<Box<dyn Future<Output = Loan>>>;
        let mut waiting: Vec<(&str, Asked)> = Vec::new();
        let ask = |waiting: &mut Vec<_>, name| {
            let budget = budget.clone();
            let mut asked = Box::pin(async move { budget.take(&client(name), 10).await });
            assert!(poll(asked.as_mut()).is_pending());
            waiting.push((name, asked as Asked));
        };
        (0..100).for_each(|_| ask(&mut waiting, "many"));
        (0..2).for_each(|_| ask(&mut waiting, "few"));
        let mut served = Vec::new();
        while served.len() < 8 {
            if served.len() == 5 {
                ask(&mut waiting, "late");
            }
            drop(lent.take());
            let at = waiting
                .iter_mut()
                .position(|(_, asked)| match poll(asked.as_mut()) {
                    Poll::Ready(loan) => lent.replace(loan).is_none(),
                    Poll::Pending => false,
                });
            served.push(waiting.remove(at.unwrap()).0);
        }
        // A client that comes late cannot catch up on turns it did not use.
        assert_eq!(
            served,
            ["many", "few", "many", "few", "many", "late", "many", "many"]
        );
    }

    #[test]
    fn a_request_that_was_given_up_is_not_charged_to_its_client() {
        let budget = Budget::new(10);
        let lent = budget.try_take(10);
        let (one, other) = (client("one"), client("other"));
        let (mut first, mut second) = (
            Box::pin(budget.take(&other, 10)),
            Box::pin(budget.take(&other, 10)),
        );
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        for _ in 0..100 {
            let mut given_up = Box::pin(budget.take(&one, 10));
            assert!(poll(given_up.as_mut()).is_pending());
        }
        let mut again = Box::pin(budget.take(&one, 10));
        assert!(poll(again.as_mut()).is_pending());
        drop(lent);
        drop(poll(first.as_mut()));
        assert!(poll(second.as_mut()).is_pending() && poll(again.as_mut()).is_ready());
    }

    #[test]
    fn a_request_that_becomes_the_first_and_fits_is_granted_at_once() {
        let budget = Budget::new(10);
        let lent = budget.try_take(10);
        let (many, few) = (client("many"), client("few"));
        let [mut first, mut second] = [(); 2].map(|()| Box::pin(budget.take(&many, 6)));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        drop(lent);
        let Poll::Ready(_lent) = poll(first.as_mut()) else {
            panic!("all of it is free")
        };
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(pin!(budget.take(&few, 4))).is_ready());
    }

    proptest! {
        #[test]
        fn while_two_clients_wait_neither_gets_much_more_than_the_other(
            sizes in [collection::vec(1..=10_usize, 40), collection::vec(1..=10_usize, 40)],
        ) {
            let budget = Budget::new(10);
            let mut lent = vec![budget.try_take(10).unwrap()];
            let clients = [client("a"), client("b")];
            let mut waiting: Vec<_> = (0..2)
                .flat_map(|who| sizes[who].iter().map(move |&bytes| (who, bytes)))
                .map(|(who, bytes)| (who, bytes, Box::pin(budget.take(&clients[who], bytes))))
                .collect();
            for (.., asked) in &mut waiting {
                prop_assert!(poll(asked.as_mut()).is_pending());
            }
            let mut had = [0_usize; 2];
            while (0..2).all(|who| waiting.iter().any(|(of, ..)| *of == who)) {
                prop_assert!(had[0].abs_diff(had[1]) <= 30, "{had:?}");
                lent.remove(0);
                waiting.retain_mut(|(who, bytes, asked)| match poll(asked.as_mut()) {
                    Poll::Ready(loan) => {
                        had[*who] += *bytes;
                        lent.push(loan);
                        false
                    }
                    Poll::Pending => true,
                });
            }
        }
    }

    #[test]
    fn a_request_larger_than_the_budget_is_granted_alone() {
        let budget = Budget::new(10);
        let small = budget.try_take(1).unwrap();
        assert!(budget.try_take(11).is_none());
        drop(small);
        let large = budget.try_take(11).unwrap();
        assert!(budget.try_take(1).is_none());
        drop(large);
        assert!(budget.is_idle());
    }

    #[test]
    fn a_waiter_that_gives_up_lets_those_behind_it_pass() {
        let budget = Budget::new(10);
        let first = budget.try_take(5).unwrap();
        let mut small = pin!(budget.take(&SOMEBODY, 5));
        {
            let mut large = pin!(budget.take(&SOMEBODY, 10));
            assert!(poll(large.as_mut()).is_pending());
            assert!(poll(small.as_mut()).is_pending());
        }
        let Poll::Ready(small) = poll(small.as_mut()) else {
            panic!("nobody is before it")
        };
        // A waiter that is dropped after its grant gives the loan back.
        let mut granted = Box::pin(budget.take(&SOMEBODY, 1));
        assert!(poll(granted.as_mut()).is_pending());
        drop(first);
        assert_eq!((budget.lent(), budget.waiting()), (6, 0));
        drop(granted);
        drop(small);
        assert!(budget.is_idle());
    }

    #[test]
    fn a_loan_that_shrinks_lets_a_waiter_pass() {
        let budget = Budget::new(10);
        let mut loan = budget.try_take(10).unwrap();
        let mut waiting = pin!(budget.take(&SOMEBODY, 4));
        assert!(poll(waiting.as_mut()).is_pending());
        loan.resize(7);
        assert!(poll(waiting.as_mut()).is_pending());
        loan.resize(6);
        assert!(poll(waiting.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn shelved_items_are_reclaimed_while_requests_wait_and_only_as_many_as_needed() {
        let budget = Budget::new(10);
        let taken_back = Arc::new(AtomicU32::new(0));
        let (tended, count) = (budget.clone(), Arc::clone(&taken_back));
        let never = Duration::from_secs(3_600);
        let counted = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let tending = tokio::spawn(async move { tended.tend(IDLE, never, counted).await });
        let older = budget.shelve(budget.try_take(5).unwrap());
        let newer = budget.shelve(budget.try_take(5).unwrap());
        let loan = budget.take(&SOMEBODY, 5).await;
        assert_eq!(taken_back.load(Ordering::Relaxed), 1);
        assert!(older.take().is_none());
        // An item that its owner has taken is not reclaimed.
        let used = newer.take().unwrap();
        let mut waiting = pin!(budget.take(&SOMEBODY, 5));
        assert!(timeout(10 * IDLE, waiting.as_mut()).await.is_err());
        drop(used);
        waiting.await;
        drop(loan);
        tending.abort();
    }

    #[test]
    fn no_item_is_reclaimed_before_its_time_or_after_its_owner_is_gone() {
        let budget = Budget::new(10);
        let gone = budget.shelve(budget.try_take(5).unwrap());
        let idle = budget.shelve(budget.try_take(5).unwrap());
        assert!(!budget.0.clear_oldest(Duration::from_secs(3_600)));
        drop(gone);
        assert_eq!(budget.lent(), 5);
        assert!(budget.0.clear_oldest(Duration::ZERO) && !budget.0.clear_oldest(Duration::ZERO));
        assert!(budget.is_idle() && idle.take().is_none());
    }
}
