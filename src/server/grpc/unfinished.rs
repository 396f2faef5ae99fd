//! A pool of calls that are not finished, which ends its oldest call when it is full. Unauthenticated clients can fill any pool: one
//! that refuses new calls when it is full would refuse the probes.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::server::net::places::Standing;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Unfinished {
    max: usize,
    /// Whether a connection may be closed although a client was let in on it.
    closes_clients: bool,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    /// By age.
    open: BTreeMap<u64, (oneshot::Sender<()>, Arc<Standing>)>,
}

impl Unfinished {
    pub(super) fn new(max: usize, closes_clients: bool) -> Arc<Self> {
        Arc::new(Self {
            max,
            closes_clients,
            calls: Mutex::default(),
        })
    }

    /// A place for a call, and what completes when another call has taken that place while the request of this one still arrives.
    pub(super) fn begin(
        self: &Arc<Self>,
        standing: &Arc<Standing>,
    ) -> (UnfinishedCall, oneshot::Receiver<()>) {
        let (end, is_over) = oneshot::channel();
        let mut calls = self.lock();
        let oldest = if calls.open.len() >= self.max {
            calls.open.pop_first()
        } else {
            None
        };
        let number = calls.next;
        calls.next += 1;
        calls.open.insert(number, (end, Arc::clone(standing)));
        drop(calls);

        // A call whose request has arrived does not listen any more. Only closing its connection frees its answer.
        if let Some((_, (end, standing))) = oldest
            && end.send(()).is_err()
        {
            standing.close_unread(self.closes_clients);
        }
        let call = UnfinishedCall {
            pool: Arc::clone(self),
            number,
        };
        (call, is_over)
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock()
    }
}

/// The place of one call in the pool; given back when dropped.
#[derive(Debug)]
pub(super) struct UnfinishedCall {
    pool: Arc<Unfinished>,
    number: u64,
}

impl Drop for UnfinishedCall {
    fn drop(&mut self) {
        let removed = self.pool.lock().open.remove(&self.number);
        drop(removed); // not within the lock
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::{
        metrics::Metrics,
        server::net::places::{Counted, Patience, Places},
    };

    #[test]
    fn one_unread_answer_too_many_closes_the_connection_with_the_oldest_one() {
        const MAX: usize = 64;
        let patience = Patience {
            unauthenticated: None,
            authenticated: None,
        };
        let places = Places::new(3, patience, Counted::of("test", &Metrics::default()));
        let connections = [(); 3].map(|()| places.try_take().unwrap());
        let is_closed = || {
            let cx = &Context::from_waker(Waker::noop());
            connections
                .each_ref()
                .map(|place| place.standing().poll_shed(cx, &mut None).is_ready())
        };
        connections
            .iter()
            .for_each(|place| place.standing().mark_authenticated());
        let unread = Unfinished::new(MAX, true);
        // The request has arrived, so that nothing listens for the end.
        let begin = |connection: usize| unread.begin(connections[connection].standing()).0;

        let taken = begin(0);
        let mut answers: Vec<_> = (1..MAX)
            .map(|number| begin(1 + number / (MAX / 2)))
            .collect();
        drop(taken);
        answers.push(begin(2));
        assert_eq!((answers.len(), is_closed()), (MAX, [false; 3]));
        answers.push(begin(0));
        assert_eq!(is_closed(), [false, true, false]);
    }
}
