//! Memory for requests while they arrive. No client takes more than its share, by however many connections.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::Payer;

/// Clients whose shares are remembered before the idle ones are forgotten.
const SHARES_KEPT: usize = 1_024;

/// See the module's description. One permit per byte.
#[derive(Debug)]
pub(super) struct Inflight {
    all: Arc<Semaphore>,
    share_max: usize,
    shares: Mutex<HashMap<Payer, Arc<Semaphore>>>,
}

impl Inflight {
    /// A client's share is half of `bytes_max`, unless one request needs more.
    pub(super) fn new(bytes_max: usize, one_request: usize) -> Self {
        let bytes_max = bytes_max.min(Semaphore::MAX_PERMITS);
        let share_max = (bytes_max / 2).max(one_request).min(Semaphore::MAX_PERMITS);
        Self {
            all: Arc::new(Semaphore::new(bytes_max)),
            share_max,
            shares: Mutex::default(),
        }
    }

    /// A call of this payer, which has taken nothing yet.
    pub(super) fn of(&self, payer: &Payer) -> BytesTaken {
        BytesTaken {
            all: Arc::clone(&self.all),
            share: self.share(payer),
            permits: Vec::new(),
        }
    }

    fn share(&self, payer: &Payer) -> Arc<Semaphore> {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(payer) {
            return Arc::clone(share);
        }
        if shares.len() >= SHARES_KEPT {
            shares.retain(|_, share| Arc::strong_count(share) > 1); // a share that nothing is taken of is held here only
        }
        let share = Arc::new(Semaphore::new(self.share_max));
        shares.insert(payer.clone(), Arc::clone(&share));
        share
    }
}

/// Bytes of one call; given back when dropped.
#[derive(Debug)]
pub(super) struct BytesTaken {
    all: Arc<Semaphore>,
    share: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl BytesTaken {
    /// Takes more bytes. False, and nothing is taken, if there is no room for them.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else {
            return false;
        };
        let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_many_owned(bytes).ok();
        let (Some(of_share), Some(of_all)) = (take(&self.share), take(&self.all)) else {
            return false;
        };
        match &mut self.permits[..] {
            [share, all] => {
                share.merge(of_share);
                all.merge(of_all);
            }
            _ => self.permits = vec![of_share, of_all],
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> Payer {
        Payer::Client(format!("client-{number}").into())
    }

    #[test]
    fn a_client_has_half_by_however_many_calls_until_they_are_done() {
        let inflight = Inflight::new(100, 10);
        let take = |number, bytes| {
            let mut taken = inflight.of(&client(number));
            taken.take(bytes).then_some(taken)
        };
        let mut ours = [take(1, 20), take(1, 20)];
        assert!(ours[0].as_mut().unwrap().take(10));
        assert!(take(1, 1).is_none());
        let theirs = take(2, 50);
        assert!(theirs.is_some() && take(3, 1).is_none(), "there is no more");
        drop(ours);
        assert!(take(1, 51).is_none() && take(1, 50).is_some() && take(3, 50).is_some());
    }

    #[test]
    fn shares_are_forgotten_only_while_nothing_of_them_is_taken() {
        let inflight = Inflight::new(100, 10);
        let mut taken = inflight.of(&client(0));
        assert!(taken.take(50));
        for number in 1..=2 * SHARES_KEPT {
            assert!(inflight.of(&client(number)).take(1));
        }
        assert!(inflight.shares.lock().len() <= SHARES_KEPT);
        assert!(!inflight.of(&client(0)).take(1));
    }
}
