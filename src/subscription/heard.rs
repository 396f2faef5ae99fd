//! When something came last from the other end of a connection. A client that is alive answers pings, so its silence tells more
//! than any stream on it: a stream may be quiet for hours.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Shared by a connection, which notes what comes, and its streams. Clones are the same.
#[derive(Clone, Debug)]
pub struct Heard(Arc<Noted>);

#[derive(Debug)]
struct Noted {
    began: Instant,
    last_millis: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        Self(Arc::new(Noted {
            began: Instant::now(),
            last_millis: AtomicU64::new(0),
        }))
    }
}

impl Heard {
    /// Something has come.
    pub fn note(&self) {
        self.0.last_millis.store(self.millis(), Relaxed);
    }

    /// How long nothing has come.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(
            self.millis()
                .saturating_sub(self.0.last_millis.load(Relaxed)),
        )
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
