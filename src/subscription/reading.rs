//! Reads of the log into borrowed memory. A read waits for its loan first, and its result waits on a shelf until the stream is
//! polled. Neither needs the stream: so memory can be taken back from a stalled one, too, which nobody polls.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::{StreamEnd, joined, read_aside};
use crate::{
    budget::{Budget, Loan, Payer, Shelf},
    store::{ReadError, ReadLimits},
    transit::Transit,
};

/// What streams may take of memory, all together.
#[derive(Clone, Debug)]
pub struct Memory {
    /// For what was read from the log and is not handed on.
    pub reading: Budget,
    /// For what was handed on, and the transport still holds.
    pub transit: Arc<Transit>,
    /// An event as stored has no more, as the configuration is now.
    pub event_bytes_max: usize,
}

/// Of the bytes for readers the transport may hold one part of so many.
const TRANSIT_PART: usize = 4;

impl Memory {
    /// `bytes_max` in all, for events whose callbacks have up to `body_bytes_max`.
    pub fn new(bytes_max: usize, body_bytes_max: usize) -> Self {
        /// Keys, labels, and what else is in an event beside what its body says.
        const REST_BYTES: usize = 64 * 1024;
        let transit = bytes_max / TRANSIT_PART;
        Self {
            reading: Budget::new(bytes_max - transit),
            transit: Transit::new(transit),
            // The body as received, and what the event has of it.
            event_bytes_max: body_bytes_max.saturating_mul(2).saturating_add(REST_BYTES),
        }
    }

    /// What a read with these limits has to borrow; afterwards it keeps what it needs.
    pub(super) fn estimate(&self, limits: ReadLimits) -> usize {
        limits.bytes_held_max(self.event_bytes_max)
    }
}

/// A read that has its loan, and what it read.
type Aside<T> = AbortOnDropHandle<Result<Shelf<T>, ReadError>>;

/// A read that waits for its loan, or is under way, or lies on its shelf.
pub(super) enum Reading<T: Send + 'static> {
    /// It goes on whether it is polled or not. A loan that is granted to a stalled stream would be lent for ever otherwise:
    /// only what is read, and lies on its shelf, can be taken back.
    Queued(AbortOnDropHandle<Result<Result<Shelf<T>, ReadError>, JoinError>>),
    UnderWay(Aside<T>),
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
            return Self::UnderWay(begin(budget, loan, read));
        }
        let payer = payer.clone();
        Self::Queued(AbortOnDropHandle::new(tokio::spawn(async move {
            let loan = budget.take(&payer, bytes).await;
            begin(budget, loan, read).await
        })))
    }

    /// What was read; `None` if it was taken back, and has to be read again.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<Option<T>, ReadError>, StreamEnd>> {
        let read = match self {
            Self::Queued(queued) => ready!(Pin::new(queued).poll(cx)).flatten(),
            Self::UnderWay(under_way) => ready!(Pin::new(under_way).poll(cx)),
        };
        Poll::Ready(joined(read).map(|read| read.map(Shelf::take)))
    }
}

fn begin<T: Send + 'static>(
    budget: Budget,
    loan: Loan,
    read: impl FnOnce(Loan) -> Result<T, ReadError> + Send + 'static,
) -> Aside<T> {
    read_aside(move || Ok(budget.shelve(read(loan)?)))
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker, time::Duration};

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
    async fn a_queued_read_that_is_never_polled_again_gives_its_loan_to_who_waits() {
        let budget = Budget::new(BYTES_MAX);
        let tended = budget.clone();
        let _tending = AbortOnDropHandle::new(tokio::spawn(async move {
            tended.tend(IDLE, NEVER, || ()).await
        }));
        let lent = budget.try_take(BYTES_MAX).unwrap();
        let mut stalled = queued(&budget);
        // It asks before the next one does.
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
        // Its owner has to read again.
        assert!(
            poll_fn(|cx| stalled.poll(cx))
                .await
                .unwrap()
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_queued_read_that_is_polled_has_what_it_read() {
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
}
