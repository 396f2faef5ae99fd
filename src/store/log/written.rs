//! A commit that was appended, and where it is.

use std::sync::Arc;

use super::{
    Place,
    frame::{self, Put},
    segment::Segment,
};

/// A commit that was appended.
#[derive(Debug)]
pub(in crate::store) struct Written {
    pub(super) segment: Arc<Segment>,
    pub(super) at: u64,
    pub(super) header: frame::Header,
    /// Quarantined callbacks in it.
    pub(super) quarantined: Vec<Put>,
}

/// A copy of a quarantined callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct NewCopy {
    /// The callback's number.
    pub number: u64,
    /// Where it is.
    pub place: Place,
    /// The frame that has its newest copy in the stream; 0 on a single machine.
    pub frame: u64,
}

impl Written {
    /// The segment that it is in.
    pub(in crate::store) fn segment(&self) -> u64 {
        self.segment.header.number
    }

    /// The frame that it came from; 0 on a single machine.
    pub(in crate::store) fn frame(&self) -> u64 {
        self.header.streamed.frame
    }

    /// The oldest segment that the log needed when it was written.
    pub(in crate::store) fn oldest(&self) -> u64 {
        self.header.oldest
    }

    /// Where the quarantined callbacks are that it has written, for the first time or again.
    pub(in crate::store) fn quarantined(&self) -> impl Iterator<Item = NewCopy> {
        self.quarantined.iter().map(|put| NewCopy {
            number: put.number,
            place: Place {
                segment: self.segment(),
                at: self.at + put.at as u64,
            },
            frame: put.frame.unwrap_or(self.frame()),
        })
    }
}
