//! What no group of callbacks should wait for: making segments of the log ahead, syncing the database, overwriting what is
//! erased, removing files. (While
//! the database takes in and syncs what has changed, the writer may have to wait for it.)

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread,
    time::Duration,
};

use super::Overwriting;
use crate::store::{Health, Store, lock};

/// How long it rests after the disk has refused something.
const RETRY: Duration = Duration::from_secs(1);

/// The writer's end: rings when there is something to do.
pub(super) struct Bell {
    ring: SyncSender<()>,
    /// Bounded by the writer, which announces no more than [`super::ANNOUNCED_MAX`] ahead of what is overwritten.
    announced: Sender<Overwriting>,
}

impl Bell {
    /// What is not done now is found to be needed behind the next commit, too.
    pub(super) fn ring_if_needed(&self, store: &Store) {
        if store.log.needs_care(store.first_available()) {
            self.ring();
        }
    }

    /// Has it overwritten what a commit has announced. If the keeper has failed, a caller that waits for it is answered that the store is
    /// closed.
    pub(super) fn overwrite(&self, announced: Overwriting) {
        let _ = self.announced.send(announced).is_ok();
        self.ring();
    }

    fn ring(&self) {
        let _ = self.ring.try_send(()).is_ok(); // it has been rung already
    }
}

/// The writer's helper; [`Keeper::run`] is its thread. Without it a writer works, but stops for each segment that it makes and for
/// all that it erases, and nothing that is forgotten gives its room back before the next start.
pub struct Keeper {
    store: Arc<Store>,
    rung: Receiver<()>,
    announced: Receiver<Overwriting>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    pub(super) fn new(store: Arc<Store>) -> (Bell, Self) {
        let (ring, rung) = mpsc::sync_channel(1);
        let (sender, announced) = mpsc::channel();
        (
            Bell {
                ring,
                announced: sender,
            },
            Self {
                store,
                rung,
                announced,
            },
        )
    }

    /// Works until the writer has ended, and all that it has announced is overwritten.
    pub fn run(self) {
        while self.rung.recv().is_ok() {
            if self.care().is_err() || !self.overwrite_all() {
                return;
            }
        }
        self.overwrite_all();
    }

    fn overwrite_all(&self) -> bool {
        // Commits go on meanwhile, and need their segments.
        self.announced
            .try_iter()
            .all(|announced| announced.run(&self.store, || self.care()))
    }

    fn care(&self) -> Result<(), String> {
        if let Err(error) = self.store.log.make_ahead() {
            // The writer will make it, or say what is wrong.
            tracing::warn!(%error, "cannot make a segment of the log ahead");
            thread::sleep(RETRY);
        }
        if self
            .store
            .log
            .needs_checkpoint(self.store.first_available())
            && let Err(error) = self.store.checkpoint()
        {
            let problem = format!("{error:?}");
            tracing::error!(
                problem,
                "syncing the index failed: refusing callbacks until a restart"
            );
            *lock(&self.store.health) = Health::Failed(problem.clone());
            return Err(problem);
        }
        self.store.log.remove_forgotten();
        Ok(())
    }
}
