//! The records that a stream has read and not yet handed out. Between two polls they can be put away, so that a stalled stream keeps
//! no memory that others need.

use super::lookup::Places;
use crate::{
    budget::Shelf,
    event::{Record, Records, WeakRecords},
};

/// One batch of records, and the index of the first that is not handed out.
#[derive(Default)]
pub(super) struct Buffer {
    pub records: Option<Records>,
    pub next: usize,
    /// In place of the records while the client reads nothing.
    pub rested: Option<Rested>,
}

/// Records that may be dropped while the stream is not polled.
pub(super) enum Rested {
    /// Records of the hub's ring, which may drop them.
    Ring(WeakRecords),
    /// Records in borrowed memory, which may be taken back.
    Log(Shelf<PutAway>),
}

/// The memory of a stream that reads the log.
pub(super) struct PutAway {
    pub records: Option<Records>,
    /// The places that a task lookup has still to fetch.
    pub places: Option<Places>,
}

impl Buffer {
    pub(super) fn new(records: Records, next: usize) -> Self {
        Self {
            records: Some(records),
            next,
            rested: None,
        }
    }

    pub(super) fn records(&self) -> &[Record] {
        self.records.as_deref().unwrap_or_default()
    }

    /// The number of records that are not handed out.
    pub(super) fn left(&self) -> usize {
        self.records().len() - self.next
    }

    /// The record that was handed out last.
    pub(super) fn last(&self) -> Option<&Record> {
        self.records().get(self.next.checked_sub(1)?)
    }
}
