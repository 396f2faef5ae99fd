//! The parts of the broker that every subscription reads from: the log, the hub, and the memory and permits for reads.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::sleep};

use super::{
    awaited::Awaited,
    reading::{Memory, Reading, lent},
    registry::Registry,
};
use crate::{
    budget::{Loan, Payer},
    event::{Records, Sequence},
    hub::Hub,
    metrics::Metrics,
    store::{ReadError, ReadLimits, Store},
};

/// One read of the log: large enough to make the thread hop cheap, small enough to bound the memory of a stalled reader and the work
/// for a rare filter.
pub(super) const SCAN: ReadLimits = ReadLimits {
    records_max: 512,
    bytes_max: 128 * 1024,
    scanned_max: 8_192,
    scanned_bytes_max: 8 * 1024 * 1024,
};
/// One read of the few streams with a permit for wide reads. They read several times as fast, and one batch ahead.
pub(super) const WIDE_SCAN: ReadLimits = ReadLimits {
    records_max: 2_048,
    bytes_max: 1024 * 1024,
    scanned_max: 8_192,
    scanned_bytes_max: 2 * 1024 * 1024,
};
/// Most streams with wide reads. More of them would wait for each other's memory and gain nothing.
const WIDE_READERS_MAX: usize = 32;

/// A stream that was not polled for this long gives its memory to a waiting one. Short, because reading again costs only milliseconds,
/// and a crowd of stalled streams should delay the others for a moment only. Not shorter, because streams that share a slow line are
/// polled in turn: at 200 ms, a thousand streams at 250 MB/s read every second event again.
const IDLE: Duration = Duration::from_millis(500);
/// After this time the memory goes back even if no stream waits for it.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// Time between two searches for stalled clients. A search over a million streams takes some milliseconds.
const STALLED_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Everything that subscriptions share.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The log and its indexes.
    pub store: Arc<Store>,
    /// The live path.
    pub hub: Arc<Hub>,
    /// The open subscriptions and their limits.
    pub registry: Registry,
    /// The metrics of deliveries, losses and streams.
    pub metrics: Arc<Metrics>,
    /// The permits for wide reads of the log.
    pub wide_readers: WideReaders,
    /// The memory for events on their way to clients.
    pub memory: Memory,
    /// How reads wait for places that other nodes have given out.
    pub awaited: Awaited,
}

/// Permits for wide reads of the log.
#[derive(Clone, Debug)]
pub(crate) struct WideReaders(pub(super) Arc<Semaphore>);

impl Default for WideReaders {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WIDE_READERS_MAX)))
    }
}

impl Sources {
    /// Searches for stalled clients at intervals. Never returns.
    pub(crate) async fn look_for_stalled(&self) {
        loop {
            sleep(STALLED_CHECK_INTERVAL).await;
            self.registry.look_for_stalled(&self.hub).await;
        }
    }

    /// Takes memory back from streams that are not polled. Never returns.
    pub(crate) async fn tend_memory(&self) {
        let taken_back = || self.metrics.reads_taken_back.inc();
        self.memory.reading.tend(IDLE, IDLE_MAX, taken_back).await;
    }

    /// Starts a read that first borrows the memory for its result.
    pub(super) fn read<T: Send + 'static>(
        &self,
        payer: &Payer,
        limits: ReadLimits,
        read: impl FnOnce(Loan) -> Result<T, ReadError> + Send + 'static,
    ) -> Reading<T> {
        Reading::new(
            &self.memory.reading,
            payer,
            self.memory.estimate(limits),
            read,
        )
    }

    /// Reads one event.
    pub(super) fn read_one(
        &self,
        payer: &Payer,
        limits: ReadLimits,
        sequence: Sequence,
    ) -> Reading<Records> {
        let store = Arc::clone(&self.store);
        self.read(payer, limits, move |loan| {
            let record = store.get(sequence)?.ok_or(ReadError::Expired)?;
            Ok(lent(vec![record], loan))
        })
    }
}
