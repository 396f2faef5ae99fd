//! Memory that many share. Bytes are borrowed before they are used, in the order of asking, and what lies unused while others
//! wait is taken back. Knows nothing of what the bytes are.
//!
//! ```text
//! Budget ── Loan      borrowed: held beside the bytes, given back when dropped
//!        └─ Shelf     a loan's bytes while their owner cannot use them: may be taken back, and are then read again
//! Transit ─ Flow      one stream's bytes that the transport holds: they cannot be taken back, so each stream has few
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};

/// Most bytes that are handed to the transport at once; two frames of HTTP/2's default size.
pub const CHUNK_BYTES: usize = 32 * 1024;
/// What the transport may hold of a stream, whatever else it holds: with 100,000 streams 200 MB.
pub const FLOOR_BYTES: usize = 2 * 1024;
/// What it may hold of one stream at most: enough to keep a fast reader's connection busy.
const STREAM_BYTES_MAX: usize = 256 * 1024;
/// One stream gets no more than this part of what is free, so that there is always some for the next one.
const SHARE: usize = 256;

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
    /// In the order of asking.
    waiting: BTreeMap<u64, Waiter>,
    /// In the order of being shelved.
    shelves: BTreeMap<u64, (Instant, Weak<dyn Clear>)>,
}

struct Waiter {
    bytes: usize,
    grant: oneshot::Sender<Loan>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("bytes_max", &self.bytes_max).finish_non_exhaustive()
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
}

impl Budget {
    /// So much to borrow from.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared { bytes_max, state: Mutex::default(), wanted: Notify::new() }))
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

    /// Borrows when it is this caller's turn.
    pub async fn take(&self, bytes: usize) -> Loan {
        let mut waiting = {
            let mut state = self.0.lock();
            if state.waiting.is_empty() && state.fits(bytes, self.0.bytes_max) {
                return self.0.lend(&mut state, bytes);
            }
            let (number, (grant, granted)) = (state.number(), oneshot::channel());
            state.waiting.insert(number, Waiter { bytes, grant });
            Waiting { shared: Arc::clone(&self.0), number, granted }
        };
        self.0.wanted.notify_one();
        (&mut waiting.granted).await.expect("a waiter leaves the queue with its loan, or by being dropped")
    }

    /// Puts away what its owner cannot use now. It may be gone when the owner comes back.
    pub fn shelve<T: Send + 'static>(&self, item: T) -> Shelf<T> {
        let slot = Arc::new(Slot(Mutex::new(Some(item))));
        let cleared: Weak<dyn Clear> = Arc::downgrade(&slot) as Weak<dyn Clear>;
        let mut state = self.0.lock();
        let number = state.number();
        state.shelves.insert(number, (Instant::now(), cleared));
        Shelf { slot, number, shared: Arc::clone(&self.0) }
    }

    /// Takes back what has lain for `idle`, the oldest first, as long as somebody waits and gets nothing, and in any case what
    /// has lain for `idle_max`; never ends.
    pub async fn tend(&self, idle: Duration, idle_max: Duration, mut taken_back: impl FnMut()) {
        loop {
            // A new waiter wakes this at once.
            let _ = timeout(idle_max / 4, self.0.wanted.notified()).await.is_ok();
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
        Loan { shared: Arc::clone(self), bytes }
    }

    /// The first of those who wait gets nothing.
    fn is_short(&self) -> bool {
        let state = self.lock();
        state.waiting.first_key_value().is_some_and(|(_, first)| !state.fits(first.bytes, self.bytes_max))
    }

    /// Lends to those who wait, as far as it goes.
    fn grant(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let fits = |waiter: &Waiter| state.fits(waiter.bytes, self.bytes_max);
            if !state.waiting.first_key_value().is_some_and(|(_, first)| fits(first)) {
                return;
            }
            let Some((_, waiter)) = state.waiting.pop_first() else { return };
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
            let Some(oldest) = state.shelves.first_entry() else { return false };
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
    number: u64,
    granted: oneshot::Receiver<Loan>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiter = self.shared.lock().waiting.remove(&self.number);
        // Those behind a large one that gave up may fit.
        if waiter.is_some() {
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
        f.debug_struct("Shelf").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<T> Drop for Shelf<T> {
    fn drop(&mut self) {
        self.shared.lock().shelves.remove(&self.number);
    }
}

/// What the transport holds of all streams together.
#[derive(Debug)]
pub struct Transit {
    bytes_max: usize,
    held: AtomicUsize,
}

impl Transit {
    /// Room for so much, and for [`FLOOR_BYTES`] of each stream besides.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, held: AtomicUsize::new(0) })
    }

    /// How much it holds, but for the first [`FLOOR_BYTES`] of each stream.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Counts bytes that many streams share until the charge is dropped.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Charge { transit: Arc::clone(self), bytes }
    }

    /// What it may hold of one stream as things are.
    fn share(&self) -> usize {
        (self.bytes_max.saturating_sub(self.held()) / SHARE).clamp(FLOOR_BYTES, STREAM_BYTES_MAX)
    }
}

/// Bytes that are counted; no more when dropped.
#[derive(Debug)]
pub struct Charge {
    transit: Arc<Transit>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.transit.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the transport holds of one stream. No locks while it keeps up.
#[derive(Debug)]
pub struct Flow {
    transit: Arc<Transit>,
    held: Arc<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: AtomicUsize,
    is_waited_for: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Flow {
    /// Of a stream of which the transport holds nothing.
    pub fn new(transit: &Arc<Transit>) -> Self {
        Self { transit: Arc::clone(transit), held: Arc::default() }
    }

    /// What is counted here is counted in.
    pub fn transit(&self) -> &Arc<Transit> {
        &self.transit
    }

    /// How many bytes may be handed on at once: 1 to [`CHUNK_BYTES`]. Waits while the transport holds as much as it may.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let room = || {
            let (held, most) = (self.held.bytes.load(Ordering::SeqCst), self.transit.share());
            let has_room = held == 0 || held + FLOOR_BYTES <= most;
            has_room.then(|| most.saturating_sub(held).min(CHUNK_BYTES))
        };
        if let Some(room) = room() {
            return Poll::Ready(room);
        }
        *self.held.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        self.held.is_waited_for.store(true, Ordering::SeqCst);
        // What was given back before the waker could be seen.
        room().map_or(Poll::Pending, Poll::Ready)
    }

    /// Counts bytes until the transport lets go of them.
    pub fn hand<B: AsRef<[u8]> + Send + 'static>(&self, bytes: B) -> Bytes {
        self.count(bytes, true)
    }

    /// The same for bytes that are charged where they are shared.
    pub fn hand_shared<B: AsRef<[u8]> + Send + 'static>(&self, bytes: B) -> Bytes {
        self.count(bytes, false)
    }

    fn count<B: AsRef<[u8]> + Send + 'static>(&self, bytes: B, is_own: bool) -> Bytes {
        let length = bytes.as_ref().len();
        let before = self.held.bytes.fetch_add(length, Ordering::SeqCst);
        let charge = (is_own && before + length > FLOOR_BYTES).then(|| self.transit.charge(length));
        Bytes::from_owner(Handed { bytes, length, held: Arc::clone(&self.held), _charge: charge })
    }
}

/// Bytes in the transport.
struct Handed<B> {
    bytes: B,
    length: usize,
    held: Arc<Held>,
    _charge: Option<Charge>,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Handed<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B> Drop for Handed<B> {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.length, Ordering::SeqCst);
        if self.held.is_waited_for.load(Ordering::SeqCst) && self.held.is_waited_for.swap(false, Ordering::SeqCst) {
            let waker = self.held.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicU32, task::Wake};

    use super::*;

    const IDLE: Duration = Duration::from_millis(10);

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn loans_are_granted_in_the_order_of_asking_and_never_beyond_the_budget() {
        let budget = Budget::new(10);
        let first = budget.try_take(8).unwrap();
        let (mut large, mut small) = (pin!(budget.take(10)), pin!(budget.take(1)));
        assert!(poll(large.as_mut()).is_pending());
        assert!(poll(small.as_mut()).is_pending(), "it would fit, but others wait");
        assert!(budget.try_take(1).is_none());
        drop(first);
        let Poll::Ready(large) = poll(large.as_mut()) else { panic!("all of it is free") };
        assert!(poll(small.as_mut()).is_pending());
        assert_eq!((budget.lent(), budget.waiting()), (10, 1));
        drop(large);
        assert!(poll(small.as_mut()).is_ready());
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
        let mut small = pin!(budget.take(5));
        {
            let mut large = pin!(budget.take(10));
            assert!(poll(large.as_mut()).is_pending());
            assert!(poll(small.as_mut()).is_pending());
        }
        let Poll::Ready(small) = poll(small.as_mut()) else { panic!("nobody is before it") };
        // One that was granted its loan and never looked gives it back.
        let mut granted = Box::pin(budget.take(1));
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
        let mut waiting = pin!(budget.take(4));
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
        let loan = budget.take(5).await;
        assert_eq!(taken_back.load(Ordering::Relaxed), 1);
        assert!(older.take().is_none());
        // What is in use is not taken.
        let used = newer.take().unwrap();
        let mut waiting = pin!(budget.take(5));
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

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_stream_of_which_the_transport_holds_enough_waits_until_it_lets_go() {
        let (transit, wakes) = (Transit::new(1024 * 1024 * 1024), Arc::new(Wakes::default()));
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = &mut Context::from_waker(&waker);
        let flow = Flow::new(&transit);
        let mut held = Vec::new();
        while let Poll::Ready(room) = flow.poll_room(cx) {
            assert!((FLOOR_BYTES..=CHUNK_BYTES).contains(&room), "{room}");
            held.push(flow.hand(vec![0; room]));
        }
        assert_eq!(held.iter().map(Bytes::len).sum::<usize>(), STREAM_BYTES_MAX);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        held.pop();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(flow.poll_room(cx), Poll::Ready(CHUNK_BYTES));
        held.clear();
        assert_eq!(transit.held(), 0);
    }

    #[test]
    fn however_many_streams_stall_the_transport_holds_little_more_than_it_may_and_each_gets_on() {
        const BYTES_MAX: usize = 16 * 1024 * 1024;
        let (transit, cx) = (Transit::new(BYTES_MAX), &mut Context::from_waker(Waker::noop()));
        let streams: Vec<_> = (0..5_000)
            .map(|_| {
                let (flow, mut held) = (Flow::new(&transit), Vec::new());
                while let Poll::Ready(room) = flow.poll_room(cx) {
                    held.push(flow.hand(vec![0; room]));
                }
                assert!(!held.is_empty());
                (flow, held)
            })
            .collect();
        let held: usize = streams.iter().flat_map(|(_, held)| held).map(Bytes::len).sum();
        assert!(transit.held() <= BYTES_MAX, "{}", transit.held());
        assert!(held <= BYTES_MAX + streams.len() * FLOOR_BYTES, "{held}");
    }

    #[test]
    fn small_pieces_are_counted_like_large_ones() {
        let (transit, cx) = (Transit::new(1024 * 1024 * 1024), &mut Context::from_waker(Waker::noop()));
        let flow = Flow::new(&transit);
        let mut held = Vec::new();
        while flow.poll_room(cx).is_ready() {
            held.push(flow.hand([0; 700]));
        }
        let bytes = held.len() * 700;
        assert!(bytes <= STREAM_BYTES_MAX && transit.held() + FLOOR_BYTES >= bytes, "{bytes} {}", transit.held());
    }
}
