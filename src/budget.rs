//! Memory that many share. Bytes are borrowed before they are used, and what lies unused while others wait is taken back. Clients
//! that wait take turns: one that asks a thousand times waits for itself, and not others for it. Knows nothing of what the bytes
//! are.
//!
//! ```text
//! Budget ── Loan      borrowed: held beside the bytes, given back when dropped
//!        └─ Shelf     a loan's bytes while their owner cannot use them: may be taken back, and are then read again
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};

/// Whose share something is taken from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A client that is known.
    Client(Arc<str>),
    /// A connection, for those who did not have to show anything.
    Connection(Option<SocketAddr>),
}

/// Bytes to borrow from. Clones are the same budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

struct Shared {
    bytes_max: usize,
    state: Mutex<State>,
    /// Somebody has begun to wait.
    wanted: Notify,
}

#[derive(Default)]
struct State {
    lent: usize,
    /// Numbers waiters and shelves.
    next: u64,
    /// In the order of their turns.
    waiting: BTreeMap<Turn, Waiter>,
    /// When the last one that was granted was due.
    due: u64,
    /// When the next one of each client is due, of those that have asked since nobody waited.
    next_due: HashMap<Payer, u64>,
    /// In the order of being shelved.
    shelves: BTreeMap<u64, (Instant, Weak<dyn Clear>)>,
}

/// When one that waits is due, and its number. A client's next one is due so much later as this one has bytes (start-time fair
/// queueing: Goyal, Vin, Cheng, SIGCOMM 1996).
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
    /// One that is larger than everything has to be alone.
    fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.lent == 0 || self.lent.saturating_add(bytes) <= bytes_max
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn turn(&mut self, payer: &Payer, bytes: usize) -> Turn {
        // A client that has had nothing for a while does not save its turns up.
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

    /// Takes one out of the queue; its client's next one is not due later for what was never lent. False if it was granted.
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

    /// The next one that may be lent to, if there is enough.
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
    /// So much to borrow from.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared {
            bytes_max,
            state: Mutex::default(),
            wanted: Notify::new(),
        }))
    }

    /// How much there is in all.
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// How much is lent.
    pub fn lent(&self) -> usize {
        self.0.lock().lent
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Somebody else has it, too, and may be about to borrow.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Nothing is lent, and nobody waits.
    pub fn is_idle(&self) -> bool {
        let state = self.0.lock();
        state.lent == 0 && state.waiting.is_empty()
    }

    /// Borrows, unless there is too little or others wait.
    pub fn try_take(&self, bytes: usize) -> Option<Loan> {
        let mut state = self.0.lock();
        let is_free = state.waiting.is_empty() && state.fits(bytes, self.0.bytes_max);
        is_free.then(|| self.0.lend(&mut state, bytes))
    }

    /// Borrows when it is this client's turn.
    pub async fn take(&self, payer: &Payer, bytes: usize) -> Loan {
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
        // It may be the next one now, and need less than the one that was.
        self.0.grant();
        self.0.wanted.notify_one();
        (&mut waiting.granted)
            .await
            .expect("a waiter leaves the queue with its loan, or by being dropped")
    }

    /// Puts away what its owner cannot use now. It may be gone when the owner comes back.
    pub fn shelve<T: Send + 'static>(&self, item: T) -> Shelf<T> {
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

    /// Takes back what has lain for `idle`, the oldest first, as long as somebody waits and gets nothing, and in any case what
    /// has lain for `idle_max`; never ends.
    pub async fn tend(&self, idle: Duration, idle_max: Duration, mut taken_back: impl FnMut()) {
        loop {
            // A new waiter wakes this at once.
            let _ = timeout(idle_max / 4, self.0.wanted.notified())
                .await
                .is_ok();
            while self.waiting() > 0 {
                while self.0.is_short() && self.0.clear_oldest(idle) {
                    taken_back();
                }
                sleep(idle / 4).await;
            }
            while self.0.clear_oldest(idle_max) {
                taken_back();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lend(self: &Arc<Self>, state: &mut State, bytes: usize) -> Loan {
        state.lent += bytes;
        Loan {
            shared: Arc::clone(self),
            bytes,
        }
    }

    /// The first of those who wait gets nothing.
    fn is_short(&self) -> bool {
        let state = self.lock();
        state
            .waiting
            .first_key_value()
            .is_some_and(|(_, first)| !state.fits(first.bytes, self.bytes_max))
    }

    /// Lends to those who wait, as far as it goes.
    fn grant(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some(waiter) = state.next_waiter(self.bytes_max) else {
                return;
            };
            let loan = self.lend(&mut state, waiter.bytes);
            drop(state);
            // One who has just stopped waiting does not get it; not by dropping it, which would lead back here.
            if let Err(mut loan) = waiter.grant.send(loan) {
                self.lock().lent -= std::mem::take(&mut loan.bytes);
            }
        }
    }

    /// Clears the shelf that has been longest in use, if that is `idle` ago; whether one was.
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
            // Not within the lock: what is on it gives its loan back.
            if slot.upgrade().is_some_and(|slot| slot.clear()) {
                return true;
            }
        }
    }
}

/// A place in the queue, left when dropped.
struct Waiting {
    shared: Arc<Shared>,
    payer: Payer,
    turn: Turn,
    granted: oneshot::Receiver<Loan>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let has_given_up = self.shared.lock().give_up(&self.payer, self.turn);
        // Those behind a large one that gave up may fit.
        if has_given_up {
            self.shared.grant();
        }
    }
}

/// Borrowed bytes, given back when dropped.
#[derive(Debug)]
pub struct Loan {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Loan {
    /// Makes it as large as what it turned out to be for. A larger one is not refused: the bytes are there already.
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
    /// Whether there was something.
    fn clear(&self) -> bool;
}

struct Slot<T>(Mutex<Option<T>>);

impl<T> Slot<T> {
    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<T: Send> Clear for Slot<T> {
    fn clear(&self) -> bool {
        self.take().is_some()
    }
}

/// Something put away; see [`Budget::shelve`].
pub struct Shelf<T> {
    slot: Arc<Slot<T>>,
    number: u64,
    shared: Arc<Shared>,
}

impl<T> Shelf<T> {
    /// What was put away; `None` if it was taken back.
    pub fn take(self) -> Option<T> {
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
    fn a_client_that_asks_often_waits_for_itself_and_others_do_not_wait_for_it() {
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
        // One that comes late does not get what it could have had before.
        assert_eq!(
            served,
            ["many", "few", "many", "few", "many", "late", "many", "many"]
        );
    }

    #[test]
    fn what_a_client_gave_up_waiting_for_is_not_held_against_it() {
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
    fn one_that_is_next_and_fits_waits_for_nobody() {
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
    fn one_larger_than_the_budget_is_granted_alone() {
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
        // One that was granted its loan and never looked gives it back.
        let mut granted = Box::pin(budget.take(&SOMEBODY, 1));
        assert!(poll(granted.as_mut()).is_pending());
        drop(first);
        assert_eq!((budget.lent(), budget.waiting()), (6, 0));
        drop(granted);
        drop(small);
        assert!(budget.is_idle());
    }

    #[test]
    fn a_loan_that_is_made_smaller_serves_who_waits() {
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
    async fn what_lies_unused_is_taken_back_while_others_wait_and_no_more_than_they_need() {
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
        // What is in use is not taken.
        let used = newer.take().unwrap();
        let mut waiting = pin!(budget.take(&SOMEBODY, 5));
        assert!(timeout(10 * IDLE, waiting.as_mut()).await.is_err());
        drop(used);
        waiting.await;
        drop(loan);
        tending.abort();
    }

    #[test]
    fn nothing_is_taken_back_before_its_time_or_from_who_is_gone() {
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
