//! What a commit decides, as a frame of the stream says it to the other nodes. Pure.

use bytes::Bytes;

use super::{FrameBuilder, laid};
use crate::{
    cluster::Entry as Decision,
    event::Sequence,
    store::log::entry::{CARRIED, Entry, entry},
};

impl FrameBuilder {
    /// What it decides, as a frame of the stream says it; its first event is at `first`.
    pub(in crate::store) fn into_decisions(self, first: Sequence) -> Vec<Decision> {
        let (bytes, mut next) = (Bytes::from(self.bytes), first);
        let decisions = laid(&bytes).flatten().filter_map(|laid| {
            let is_again = laid.kind == CARRIED;
            decision(entry(&bytes, &laid, &mut next)?, is_again)
        });
        decisions.collect()
    }
}

/// What a frame says of an entry; `None` if it is about this log's own segments.
fn decision(entry: Entry, is_again: bool) -> Option<Decision> {
    Some(match entry {
        Entry::Event {
            event_id,
            fingerprint,
            record,
        } => Decision::Event {
            event_id,
            fingerprint,
            record,
        },
        Entry::Quarantined { number, value, .. } if is_again => Decision::Carried {
            number,
            value: value?,
        },
        Entry::Quarantined { number, value, .. } => Decision::Quarantined {
            number,
            value: value?,
        },
        Entry::Expired { number } => Decision::Left {
            number,
            is_erased: false,
        },
        Entry::Removed { number } => Decision::Left {
            number,
            is_erased: true,
        },
        Entry::Erased { place } => Decision::Erased { place },
        Entry::Expected { number, value, .. } => Decision::Expected { number, value },
        Entry::ExpectationEnded { number } => Decision::ExpectationEnded { number },
        Entry::CopiesErased { .. } | Entry::Unknown { .. } => return None,
    })
}
