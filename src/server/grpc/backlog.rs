//! Backpressure for calls that wait for admission, and for answers that wait for the socket.
//!
//! h2 reads as long as there is something to read, accepts any call, and keeps the head of any answer until it is written. A task
//! for each call decides whether the call is let in. If calls came faster than these tasks run, or than the client takes answers,
//! unauthenticated calls would pile up in memory, and clients' calls would wait behind them. So a connection is read on only while
//! few of both wait ([`Backlog`]), and little at a time ([`Turn`]): calls can be counted only when h2 hands them on, which it does
//! when there is nothing left to read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use atomic_waker::AtomicWaker;
use axum::http::HeaderValue;
use bytes::Bytes;

/// Calls and answers that wait at most, besides those that are read together with the last one. Two are the connection's own.
const WAITING_MAX: usize = 128;
/// Bytes that are read before all calls in them are handed on: 500 of the shortest calls.
const TURN_BYTES: usize = 8 * 1024;

/// The calls and answers of one connection that wait.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: AtomicUsize,
    /// Clones of [`Waiting`] ever made: one for each call that h2 has handed on.
    clones: AtomicUsize,
    reader: AtomicWaker,
}

impl Backlog {
    /// Ready while there is room for another call.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let is_full = || self.waiting.load(SeqCst) >= WAITING_MAX;
        if !is_full() {
            return Poll::Ready(());
        }
        self.reader.register(cx.waker());
        // Once more: the last one may have gone before there was a task to wake.
        if is_full() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// A call or an answer that waits, until this is dropped; each clone is another one. A call has one in its
/// [`Origin`](super::origin::Origin), of which tonic makes a clone when h2 hands the call on. [`admit`](super::layers::admit) drops it.
#[derive(Debug)]
pub(super) struct Waiting(Arc<Backlog>);

impl Waiting {
    pub(super) fn new(backlog: &Arc<Backlog>) -> Self {
        backlog.waiting.fetch_add(1, SeqCst);
        Self(Arc::clone(backlog))
    }

    pub(super) fn backlog(&self) -> &Arc<Backlog> {
        &self.0
    }
}

impl Clone for Waiting {
    fn clone(&self) -> Self {
        self.0.clones.fetch_add(1, SeqCst);
        Self::new(&self.0)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, SeqCst) == WAITING_MAX {
            self.0.reader.wake();
        }
    }
}

/// What was read of a connection since all calls in it were handed on.
#[derive(Debug, Default)]
pub(super) struct Turn {
    bytes: usize,
    /// The number of clones at the last look.
    clones: Option<usize>,
}

impl Turn {
    /// Ready when the connection may be read on.
    pub(super) fn poll_room(&mut self, backlog: &Backlog, cx: &Context<'_>) -> Poll<()> {
        ready!(backlog.poll_room(cx));
        if self.bytes < TURN_BYTES {
            return Poll::Ready(());
        }
        // h2 tries to read before it hands on each call. If none was handed on since the last look, none is left.
        let clones = backlog.clones.load(SeqCst);
        if self.clones.replace(clones) == Some(clones) {
            *self = Self::default();
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    pub(super) fn has_read(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

/// A header value that counts as waiting until the head that it is in is written, or is dropped. Marked as sensitive, because HPACK
/// would keep another one in its table.
pub(super) fn until_written<V: AsRef<[u8]> + Send + 'static>(
    value: V,
    backlog: &Arc<Backlog>,
) -> HeaderValue {
    let unwritten = Unwritten {
        value,
        _waiting: Waiting::new(backlog),
    };
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(unwritten))
        .expect("it is fit for a header");
    value.set_sensitive(true);
    value
}

struct Unwritten<V> {
    value: V,
    _waiting: Waiting,
}

impl<V: AsRef<[u8]>> AsRef<[u8]> for Unwritten<V> {
    fn as_ref(&self) -> &[u8] {
        self.value.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicBool,
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    impl Woken {
        fn take(&self) -> bool {
            self.0.swap(false, SeqCst)
        }
    }

    #[test]
    fn a_connection_is_read_on_when_there_is_room_for_another_call() {
        let (backlog, woken) = (Arc::new(Backlog::default()), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let may_read = || backlog.poll_room(&Context::from_waker(&waker)).is_ready();
        let mut waiting: Vec<_> = (1..WAITING_MAX).map(|_| Waiting::new(&backlog)).collect();
        assert!(may_read());
        waiting.extend([Waiting::new(&backlog), Waiting::new(&backlog)]);
        assert!(!may_read());
        waiting.pop();
        assert!(!may_read() && !woken.take());
        waiting.pop();
        assert!(woken.take() && may_read());
        let head = until_written(*b"1", &backlog);
        assert!(!may_read() && head == "1");
        drop(head);
        assert!(woken.take() && may_read());
    }

    #[test]
    fn no_more_is_read_before_all_calls_are_handed_on() {
        let (origin, woken) = (Waiting::new(&Arc::default()), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let mut turn = Turn::default();
        let mut may_read = |read| {
            turn.has_read(read);
            turn.poll_room(origin.backlog(), &Context::from_waker(&waker))
                .is_ready()
        };
        assert!(may_read(TURN_BYTES - 1) && !woken.take());
        assert!(!may_read(1) && woken.take(), "it looks again by itself");
        let mut calls = Vec::new();
        for _ in 0..10 {
            calls.push(origin.clone());
            assert!(!may_read(0) && woken.take());
        }
        assert!(may_read(0) && may_read(1) && !woken.take());
    }
}
