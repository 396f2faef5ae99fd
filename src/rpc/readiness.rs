//! Whether the broker is ready, and if not, why: what probes and administrators ask.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};

use crate::{
    journal::{Journal, jetstream::ClusterState},
    store::ReadError,
    subscription::{Sources, read_aside},
};

/// How long a commit or a read of the log may take for a probe before the broker counts as not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The answer of the readiness probes from SIGTERM on.
const DRAINING: &str = "draining";

/// Finds out by a commit and by a read.
pub(crate) struct Readiness {
    sources: Arc<Sources>,
    journal: Arc<dyn Journal>,
    /// Of a node of a cluster.
    cluster: Option<Arc<ClusterState>>,
    /// One read at a time: on a disk that hangs each read would keep a thread that subscriptions need.
    reading: Arc<Semaphore>,
    draining: AtomicBool,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("draining", &self.draining)
            .finish_non_exhaustive()
    }
}

/// Why something was not read.
enum Unread {
    /// The runtime shuts down.
    Stopped,
    Late,
}

impl Readiness {
    /// Of the broker with these parts.
    pub(crate) fn new(
        sources: &Arc<Sources>,
        journal: &Arc<dyn Journal>,
        cluster: Option<&Arc<ClusterState>>,
    ) -> Self {
        Self {
            sources: Arc::clone(sources),
            journal: Arc::clone(journal),
            cluster: cluster.map(Arc::clone),
            reading: Arc::new(Semaphore::new(1)),
            draining: AtomicBool::new(false),
        }
    }

    /// Not ready from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the broker is about to stop.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Why callbacks or readers would be refused, if they would.
    pub(crate) async fn problem(&self) -> Option<String> {
        let (ingest, grpc) = tokio::join!(self.problem_of_ingest(), self.problem_of_grpc());
        ingest.or(grpc)
    }

    /// Why callbacks would be refused, if they would.
    pub(crate) async fn problem_of_ingest(&self) -> Option<String> {
        if self.is_draining() {
            return Some(DRAINING.to_owned());
        }
        // A node of a cluster needs no probe: frames come every two seconds, from this node or another one.
        if let Some(cluster) = &self.cluster {
            return cluster.problem_of_callbacks(&self.sources.store.health());
        }
        match timeout(PROBE_TIMEOUT, self.journal.probe()).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(_)) => Some("the store is closed".to_owned()),
            Err(_) => Some(format!(
                "the commit path has not answered for {} s",
                PROBE_TIMEOUT.as_secs()
            )),
        }
    }

    /// Why readers would be refused, if they would. A full disk is no reason: the log can still be read.
    pub(crate) async fn problem_of_grpc(&self) -> Option<String> {
        if self.is_draining() {
            return Some(DRAINING.to_owned());
        }
        let read = |sources: &Sources| sources.store.get(sources.store.head());
        match self.read(read).await {
            // An empty log, or one whose newest event is forgotten, has nothing to read.
            Ok(Ok(_) | Err(ReadError::Expired)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(Unread::Stopped) => Some(DRAINING.to_owned()),
            Err(Unread::Late) => Some(format!(
                "a read of the log has not answered for {} s",
                PROBE_TIMEOUT.as_secs()
            )),
        }
    }

    /// The result of a read aside; `None` if the disk does not answer in time.
    pub(super) async fn read_in_time<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Sources) -> T + Send + 'static,
    ) -> Option<T> {
        self.read(read).await.ok()
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Sources) -> T + Send + 'static,
    ) -> Result<T, Unread> {
        let (sources, reading) = (Arc::clone(&self.sources), Arc::clone(&self.reading));
        let read = async move {
            let permit = reading.acquire_owned().await;
            read_aside(move || {
                let _permit = permit;
                read(&sources)
            })
            .await
        };
        match timeout(PROBE_TIMEOUT, read).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(_)) => Err(Unread::Stopped), // only a runtime that shuts down cancels it
            Err(_) => Err(Unread::Late),
        }
    }
}
