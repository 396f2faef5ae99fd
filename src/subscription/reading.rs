//! Reads of the log into borrowed memory. A read waits for its loan first, and its result waits on a shelf until the stream is
//! polled: so memory can be taken back from a stalled stream, too, which nobody polls.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio_util::task::AbortOnDropHandle;

use super::{End, joined, read_aside};
use crate::{
    budget::{Budget, Loan, Shelf, Transit},
    store::{ReadError, ReadLimits},
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

type Read<T> = Box<dyn FnOnce(Loan) -> Result<T, ReadError> + Send>;

/// A read that waits for its loan, or is under way, or lies on its shelf.
pub(super) struct Reading<T: Send + 'static> {
    budget: Budget,
    loan: Option<Pin<Box<dyn Future<Output = Loan> + Send>>>,
    read: Option<Read<T>>,
    under_way: Option<AbortOnDropHandle<Result<Shelf<T>, ReadError>>>,
}

impl<T: Send + 'static> Reading<T> {
    /// Reads at once, or as soon as it is polled and there is memory.
    pub(super) fn new(
        budget: &Budget,
        bytes: usize,
        read: impl FnOnce(Loan) -> Result<T, ReadError> + Send + 'static,
    ) -> Self {
        let mut reading = Self { budget: budget.clone(), loan: None, read: Some(Box::new(read)), under_way: None };
        match budget.try_take(bytes) {
            Some(loan) => reading.begin(loan),
            None => {
                let budget = budget.clone();
                reading.loan = Some(Box::pin(async move { budget.take(bytes).await }));
            }
        }
        reading
    }

    fn begin(&mut self, loan: Loan) {
        self.loan = None;
        let budget = self.budget.clone();
        self.under_way = self.read.take().map(|read| read_aside(move || Ok(budget.shelve(read(loan)?))));
    }

    /// What was read; `None` if it was taken back, and has to be read again.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Result<Option<T>, ReadError>, End>> {
        if let Some(loan) = &mut self.loan {
            let loan = ready!(loan.as_mut().poll(cx));
            self.begin(loan);
        }
        match &mut self.under_way {
            Some(under_way) => {
                let read = joined(ready!(Pin::new(under_way).poll(cx)))?;
                Poll::Ready(Ok(read.map(Shelf::take)))
            }
            None => Poll::Ready(Ok(Ok(None))),
        }
    }
}
