//! Overwrites the content in the log that a durable commit has announced as erased.
//!
//! Until that is done, the log counts the commit as announced, and no checkpoint passes it: after a crash the next start finds
//! the announcement and overwrites again. So the overwriting is not part of the commit, and callbacks do not wait for it.

use std::sync::atomic::Ordering;

use super::{command::PendingReply, error::WriteError};
use crate::store::{Health, Store, lock, log::Found};

/// The content that one commit has announced as erased.
pub(super) struct Overwriting {
    /// Where it lies in the log.
    pub found: Found,
    /// Whether some of it is of events.
    pub has_events: bool,
    /// The replies that wait for the overwriting.
    pub replies: Vec<PendingReply>,
}

impl Overwriting {
    /// Overwrites segment by segment, calls `between` after each, and then sends the replies. Returns false if any of it has
    /// failed: then the store takes no more commands until it is opened again.
    pub(super) fn run(self, store: &Store, between: impl FnMut() -> Result<(), String>) -> bool {
        let overwritten = self.overwrite(between);
        match overwritten {
            Ok(()) => {
                if self.has_events {
                    store.erasures.fetch_add(1, Ordering::Release);
                }
                store.log.note_overwritten();
                self.replies.into_iter().for_each(PendingReply::send);
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

    fn overwrite(&self, mut between: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        for (segment, bodies) in self.found.segments() {
            segment.erase(bodies).map_err(|error| error.to_string())?;
            between()?;
        }
        Ok(())
    }
}
