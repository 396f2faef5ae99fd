//! The time since a connection last received anything. A live client answers pings, so the silence of its connection is a sign of
//! death; a single stream may be quiet for hours.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The last receipt on one connection. The connection writes it and its streams read it; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Heard(Arc<LastReceipt>);

#[derive(Debug)]
struct LastReceipt {
    began: Instant,
    /// Since `began`, in milliseconds.
    last_millis: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        Self(Arc::new(LastReceipt {
            began: Instant::now(),
            last_millis: AtomicU64::new(0),
        }))
    }
}

impl Heard {
    /// Notes that the connection has received something now.
    pub(crate) fn note(&self) {
        self.0.last_millis.store(self.millis(), Relaxed);
    }

    /// The time since the last receipt.
    pub(crate) fn silent_for(&self) -> Duration {
        Duration::from_millis(
            self.millis()
                .saturating_sub(self.0.last_millis.load(Relaxed)),
        )
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
