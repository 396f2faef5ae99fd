//! Backpressure for calls that have arrived and wait for admission. HTTP/2 reads as long as there is something to read, and
//! accepts any call; a task for each call decides whether it is let in. If calls came faster than these tasks run, strangers'
//! calls would pile up in memory, and clients' would wait behind them. So a connection is read on only while few of its calls
//! wait.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use tonic::Request;

use super::connection::Origin;

/// So many wait at most, and what was read together with the last one, 16 KiB.
const UNSEEN_MAX: usize = 128;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    unseen: AtomicUsize,
    reader: Mutex<Option<Waker>>,
}

impl Backlog {
    /// Ready when the connection may be read on.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let is_full = || self.unseen.load(SeqCst) >= UNSEEN_MAX;
        if !is_full() {
            return Poll::Ready(());
        }
        *self.reader() = Some(cx.waker().clone());
        // Once more: the last one may have been looked at before there was anybody to wake.
        if is_full() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn reader(&self) -> MutexGuard<'_, Option<Waker>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits, in its extensions until it is looked at.
#[derive(Clone, Debug)]
pub(super) struct Unseen(#[allow(dead_code, reason = "it is there to be dropped")] Arc<Waiting>);

#[derive(Debug)]
struct Waiting(Arc<Backlog>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0.unseen.fetch_sub(1, SeqCst) == UNSEEN_MAX
            && let Some(reader) = self.0.reader().take()
        {
            reader.wake();
        }
    }
}

/// Notes that a call has arrived; to be asked where calls are taken from the connection.
pub(super) fn noted(mut request: Request<()>) -> Request<()> {
    if let Some(origin) = request.extensions().get::<Origin>() {
        let backlog = Arc::clone(&origin.limits.backlog);
        backlog.unseen.fetch_add(1, SeqCst);
        request.extensions_mut().insert(Unseen(Arc::new(Waiting(backlog))));
    }
    request
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

    #[test]
    fn a_connection_is_read_on_when_there_is_room_for_another_call() {
        let (backlog, woken) = (Arc::new(Backlog::default()), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let may_read = || backlog.poll_room(&Context::from_waker(&waker)).is_ready();
        let arrived = || {
            backlog.unseen.fetch_add(1, SeqCst);
            Waiting(Arc::clone(&backlog))
        };
        let mut waiting: Vec<_> = (1..UNSEEN_MAX).map(|_| arrived()).collect();
        assert!(may_read());
        waiting.extend([arrived(), arrived()]);
        assert!(!may_read());
        waiting.pop();
        assert!(!may_read() && !woken.0.load(SeqCst));
        waiting.pop();
        assert!(woken.0.load(SeqCst) && may_read());
    }
}
