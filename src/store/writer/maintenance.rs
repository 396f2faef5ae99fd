//! The slow work that commits do not wait for: making segments of the log ahead, checkpoints of the database, overwriting
//! erased content, removing files. (While the database takes in and syncs what has changed, the writer may have to wait for it.)

use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use super::overwriting::Overwriting;
use crate::{
    metrics::Metrics,
    store::{Health, Store, lock},
};

/// The pause after the disk has refused something.
const RETRY: Duration = Duration::from_secs(1);

/// The writer's side: wakes the maintenance when there is something to do.
pub(super) struct MaintenanceHandle {
    wake: SyncSender<()>,
    /// Bounded by the writer, which announces no more than [`super::thread::ANNOUNCED_MAX`] ahead of the overwriting.
    announced: Sender<Overwriting>,
}

impl MaintenanceHandle {
    /// Called behind each commit: what is not done now is found to be needed behind the next one, too.
    pub(super) fn wake_if_needed(&self, store: &Store) {
        if store.log.needs_care(store.first_available()) {
            self.wake();
        }
    }

    /// Has the content overwritten that a commit has announced. If the maintenance has failed, a caller that waits for it is
    /// answered that the store is closed.
    pub(super) fn overwrite(&self, announced: Overwriting) {
        let _ = self.announced.send(announced).is_ok();
        self.wake();
    }

    fn wake(&self) {
        let _ = self.wake.try_send(()).is_ok(); // full: it is awake already
    }
}

/// The writer's second thread; [`Maintenance::run`] is its body. Without it a writer works, but stops for each segment that it
/// makes and for everything that it erases, and forgotten segments are not removed before the next start.
pub(crate) struct Maintenance {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    woken: Receiver<()>,
    announced: Receiver<Overwriting>,
}

impl fmt::Debug for Maintenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maintenance")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Maintenance {
    pub(super) fn new(store: Arc<Store>, metrics: Arc<Metrics>) -> (MaintenanceHandle, Self) {
        let (wake, woken) = mpsc::sync_channel(1);
        let (sender, announced) = mpsc::channel();
        let handle = MaintenanceHandle {
            wake,
            announced: sender,
        };
        let maintenance = Self {
            store,
            metrics,
            woken,
            announced,
        };
        (handle, maintenance)
    }

    /// Works until the writer has ended, and everything that it has announced is overwritten.
    pub(crate) fn run(self) {
        // Until when no summary is written, if there may be more to write.
        let mut paused = None;
        loop {
            if paused.is_none_or(|until| until <= Instant::now()) {
                paused = self.write_summary();
            }
            let woken = match paused {
                Some(until) => {
                    let pause = until.saturating_duration_since(Instant::now());
                    self.woken.recv_timeout(pause)
                }
                None => self
                    .woken
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            match woken {
                Ok(()) if self.maintain().is_err() || !self.overwrite_all() => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.overwrite_all();
    }

    /// Writes one summary, and says until when to pause: for as long as its segment was read, so that old segments take half of the
    /// disk and of a core at most. `None` if there is none to write.
    fn write_summary(&self) -> Option<Instant> {
        let written = self.store.log.write_summary()?;
        let rebuilt = &self.metrics.log_summaries_rebuilt;
        rebuilt.inc_by(written.was_lost.into());
        Some(Instant::now() + written.reading)
    }

    fn overwrite_all(&self) -> bool {
        // Commits go on meanwhile, and need their segments.
        self.announced
            .try_iter()
            .all(|announced| announced.run(&self.store, || self.maintain()))
    }

    fn maintain(&self) -> Result<(), String> {
        if let Err(error) = self.store.log.make_ahead() {
            // The writer will make the segment itself, or report the error.
            tracing::warn!(%error, "cannot make a segment of the log ahead");
            thread::sleep(RETRY);
        }

        if self
            .store
            .log
            .needs_checkpoint(self.store.first_available())
            && let Err(error) = self.store.checkpoint()
        {
            let problem = error.to_string();
            tracing::error!(
                problem,
                "syncing the index failed: refusing callbacks until a restart"
            );
            *lock(&self.store.health) = Health::Failed(problem.clone());
            return Err(problem);
        }

        self.store.log.remove_forgotten();
        self.store.log.remove_older();
        Ok(())
    }
}
