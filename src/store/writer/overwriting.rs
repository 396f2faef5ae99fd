//! Overwrites in the log what a durable commit has announced to be erased.
//!
//! Until that is done the log counts the commit as announced, and no checkpoint passes it: whenever a crash comes, the next start
//! finds the announcement and overwrites again. So it need not be part of the commit, and callbacks need not wait for it.

use std::sync::atomic::Ordering;

use super::{WriteError, batch::Granted};
use crate::store::{Health, Store, lock, log::Found};

/// What one commit has announced.
pub(super) struct Overwriting {
    /// Where it is in the log.
    pub found: Found,
    /// Events are among it.
    pub has_events: bool,
    /// Who waits for it.
    pub replies: Vec<Granted>,
}

impl Overwriting {
    /// Overwrites, segment by segment, and does `between` in between; then answers. False if one of them has failed: then the
    /// store takes nothing more until it is opened again.
    pub(super) fn run(self, store: &Store, between: impl FnMut() -> Result<(), String>) -> bool {
        let overwritten = self.overwrite(store, between);
        match overwritten {
            Ok(()) => {
                if self.has_events {
                    store.erasures.fetch_add(1, Ordering::Release);
                }
                store.log.note_overwritten();
                self.replies.into_iter().for_each(Granted::grant);
                true
            }
            Err(problem) => {
                tracing::error!(
                    problem,
                    "erasing in the log failed: refusing callbacks until a restart, which erases it"
                );
                *lock(&store.health) = Health::Failed(problem.clone());
                self.replies
                    .into_iter()
                    .for_each(|reply| reply.refuse(WriteError::Failed(problem.clone())));
                false
            }
        }
    }

    fn overwrite(
        &self,
        store: &Store,
        mut between: impl FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        for (segment, bodies) in self.found.segments() {
            segment.erase(bodies).map_err(|error| error.to_string())?;
            between()?;
        }
        // The keys of what has left the quarantine are overwritten already.
        store
            .quarantine_keys
            .sync()
            .map_err(|error| error.to_string())
    }
}
