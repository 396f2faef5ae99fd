//! When a log that a start has set aside may go.

use super::Replica;
use crate::store::{Health, writer::publish::Publish};

impl<P: Publish> Replica<P> {
    /// Lets go of a log that was set aside at a start, if this one `has_all` that the stream retains. On a full disk it goes sooner:
    /// by the stream's word retention has forgotten what is in it.
    pub fn tend_older(&self, has_all: bool) {
        let store = &self.writer.store;
        if !store.log.has_older() {
            return; // almost always
        }
        let is_low = matches!(store.health(), Health::DiskLow { .. });
        if is_low && !has_all {
            tracing::warn!(
                "the disk is full: the log that was set aside goes before the new one has all of the stream"
            );
        }
        if is_low || has_all {
            store.log.let_go_of_older();
        }
    }
}
