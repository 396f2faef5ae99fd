//! Reads of the log into borrowed memory.
//!
//! A read first waits for a loan of memory. Its result lies on a shelf until the stream is polled, and the memory can be taken back
//! from there. Both happen whether or not the stream is polled, so memory comes back from stalled streams too. Owns the budget of
//! streams ([`Memory`]). Never runs on the async threads.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::task::{JoinError, spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

use super::message::StreamEnd;
use crate::{
    budget::{Budget, Loan, Payer, Shelf},
    event::{Record, Records},
    store::{ReadError, ReadLimits, bytes_held},
    transit::Transit,
};

/// The memory that all streams together may hold.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    /// For events that were read from the log and are not yet in the transport.
    pub reading: Budget,
    /// For events that the transport holds.
    pub transit: Arc<Transit>,
    /// The largest stored size of one event under the current configuration.
    pub event_bytes_max: usize,
}

/// The transport may hold a quarter of the memory for readers.
const TRANSIT_PART: usize = 4;

impl Memory {
    /// Divides `bytes_max` between reads and the transport. Callbacks may have up to `body_bytes_max`.
    pub(crate) fn new(bytes_max: usize, body_bytes_max: usize) -> Self {
        /// Keys, labels, and the parts of an event that are not from its body.
        const REST_BYTES: usize = 64 * 1024;

        let transit = bytes_max / TRANSIT_PART;
        Self {
            reading: Budget::new(bytes_max - transit),
            transit: Transit::new(transit),
            // The body as received, and its content in the encoded event.
            event_bytes_max: body_bytes_max.saturating_mul(2).saturating_add(REST_BYTES),
        }
    }

    /// The loan that a read with these limits needs. After the read it shrinks to the size of the result.
    pub(super) fn estimate(&self, limits: ReadLimits) -> usize {
        limits.bytes_held_max(self.event_bytes_max)
    }
}

/// A read that has its loan, on a blocking thread.
type RunningRead<T> = AbortOnDropHandle<Result<Shelf<T>, ReadError>>;

/// A read of the log, from its queue for memory to its result.
pub(super) enum Reading<T: Send + 'static> {
    /// Waits for its loan, then runs. A task drives it, because a loan that was granted to a stream that is not polled could not be
    /// taken back: only a result on a shelf can.
    Queued(AbortOnDropHandle<Result<Result<Shelf<T>, ReadError>, JoinError>>),
    Running(RunningRead<T>),
}

impl<T: Send + 'static> Reading<T> {
    /// Reads at once, or as soon as there is memory.
    pub(super) fn new(
        budget: &Budget,
        payer: &Payer,
        bytes: usize,
        read: impl FnOnce(Loan) -> Result<T, ReadError> + Send + 'static,
    ) -> Self {
        let budget = budget.clone();
        if let Some(loan) = budget.try_take(bytes) {
            return Self::Running(begin(budget, loan, read));
        }

        let payer = payer.clone();
        Self::Queued(AbortOnDropHandle::new(tokio::spawn(async move {
            let loan = budget.take(&payer, bytes).await;
            begin(budget, loan, read).await
        })))
    }

    /// The result; `None` if its memory was taken back, so that it has to be read again.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<Option<T>, ReadError>, StreamEnd>> {
        let read = match self {
            Self::Queued(queued) => ready!(Pin::new(queued).poll(cx)).flatten(),
            Self::Running(running) => ready!(Pin::new(running).poll(cx)),
        };
        Poll::Ready(joined(read).map(|read| read.map(Shelf::take)))
    }
}

fn begin<T: Send + 'static>(
    budget: Budget,
    loan: Loan,
    read: impl FnOnce(Loan) -> Result<T, ReadError> + Send + 'static,
) -> RunningRead<T> {
    read_aside(move || Ok(budget.shelve(read(loan)?)))
}

/// Runs a read on a blocking thread. Dropping the handle before the read begins cancels it.
pub(crate) fn read_aside<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(spawn_blocking(read))
}

/// The result of a read on another thread. Only a runtime that shuts down cancels a read; a panic has ended the process.
pub(super) fn joined<T>(
    joined: Result<Result<T, ReadError>, JoinError>,
) -> Result<Result<T, ReadError>, StreamEnd> {
    joined.map_err(|_| StreamEnd::Draining)
}

/// Records that hold their loan, resized to the memory that they take.
pub(super) fn lent(records: Vec<Record>, mut loan: Loan) -> Records {
    loan.resize(bytes_held(&records));
    Records::lent(records, loan)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::mpsc, task::Waker, time::Duration};

    use tokio::{
        task::yield_now,
        time::{Instant, timeout},
    };

    use super::*;

    const BYTES_MAX: usize = 10;
    const SOMEBODY: Payer = Payer::Connection(None);
    const IDLE: Duration = Duration::from_millis(20);
    const NEVER: Duration = Duration::from_secs(3_600);
    const LONG: Duration = Duration::from_secs(10);

    fn queued(budget: &Budget) -> Reading<Loan> {
        let mut reading = Reading::new(budget, &SOMEBODY, BYTES_MAX, Ok);
        assert!(
            reading
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
        reading
    }

    #[tokio::test]
    async fn a_queued_read_that_is_never_polled_again_gives_its_loan_to_the_next_reader() {
        let budget = Budget::new(BYTES_MAX);
        let tended = budget.clone();
        let _tending = AbortOnDropHandle::new(tokio::spawn(async move {
            tended.tend(IDLE, NEVER, || ()).await;
        }));
        let lent = budget.try_take(BYTES_MAX).unwrap();
        let mut stalled = queued(&budget);
        // The stalled stream has to be first in the queue.
        while budget.waiting() == 0 {
            yield_now().await;
        }
        drop(lent);

        let asked = Instant::now();
        let loan = timeout(LONG, budget.take(&SOMEBODY, BYTES_MAX))
            .await
            .expect("the loan to be taken back");
        assert!(
            asked.elapsed() >= IDLE / 2,
            "the queued read was passed over"
        );
        drop(loan);
        // The stalled stream has to read again.
        assert!(
            poll_fn(|cx| stalled.poll(cx))
                .await
                .unwrap()
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_queued_read_that_is_polled_returns_its_records() {
        let budget = Budget::new(BYTES_MAX);
        let lent = budget.try_take(BYTES_MAX).unwrap();
        let mut reading = queued(&budget);
        drop(lent);
        let read = timeout(LONG, poll_fn(|cx| reading.poll(cx)))
            .await
            .expect("the read to end");
        assert!(read.unwrap().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_queued_read_that_is_dropped_leaves_the_queue() {
        let budget = Budget::new(BYTES_MAX);
        let lent = budget.try_take(BYTES_MAX).unwrap();
        let reading = queued(&budget);
        while budget.waiting() == 0 {
            yield_now().await;
        }
        drop(reading);
        let left = async {
            while budget.waiting() > 0 {
                yield_now().await;
            }
        };
        timeout(LONG, left).await.expect("it to leave the queue");
        drop(lent);
        assert!(budget.is_idle());
    }

    #[test]
    fn a_read_that_is_dropped_before_it_begins_is_not_made() {
        // One blocking thread, so that the reads run one after the other.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let ((finish, finished), (made, reads)) = (mpsc::channel::<()>(), mpsc::channel());
            let under_way = read_aside(move || finished.recv());
            let read = |name: &'static str| {
                let made = made.clone();
                read_aside(move || made.send(name))
            };
            let (dropped, awaited) = (read("dropped"), read("awaited"));
            drop(dropped);
            finish.send(()).unwrap();
            under_way.await.unwrap().unwrap();
            awaited.await.unwrap().unwrap();
            assert_eq!(reads.try_iter().collect::<Vec<_>>(), ["awaited"]);
        });
    }
}
