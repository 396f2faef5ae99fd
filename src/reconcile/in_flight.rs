//! Futures that are on their way, polled by the one task that owns them: so that asking the vendor
//! needs no tasks of its own, and stops with its owner.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

/// Futures with one kind of result. Each wake polls all of them, so the owner keeps them few.
pub(super) struct InFlight<T> {
    futures: Vec<Pin<Box<dyn Future<Output = T> + Send>>>,
}

impl<T> InFlight<T> {
    /// Without any.
    pub(super) fn new() -> Self {
        Self {
            futures: Vec::new(),
        }
    }

    /// Adds one.
    pub(super) fn push(&mut self, future: impl Future<Output = T> + Send + 'static) {
        self.futures.push(Box::pin(future));
    }

    /// The result of one that is done; never comes without any.
    pub(super) async fn next(&mut self) -> T {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        for index in 0..self.futures.len() {
            if let Poll::Ready(result) = self.futures[index].as_mut().poll(cx) {
                drop(self.futures.swap_remove(index));
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    #[tokio::test]
    async fn results_come_in_the_order_in_which_they_are_ready() {
        let mut in_flight = InFlight::new();
        let (first, first_done) = oneshot::channel();
        let (second, second_done) = oneshot::channel();
        in_flight.push(async { first_done.await.unwrap() });
        in_flight.push(async { second_done.await.unwrap() });

        second.send(2).unwrap();
        assert_eq!(in_flight.next().await, 2);
        first.send(1).unwrap();
        assert_eq!(in_flight.next().await, 1);

        let nothing = timeout(Duration::from_millis(1), in_flight.next()).await;
        assert!(nothing.is_err());
    }
}
