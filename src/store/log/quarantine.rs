//! Reading quarantined callbacks in the log, by their places. Each entry proves itself.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use super::{
    Log, Place,
    entry::{self, Body},
    gap::is_damage,
    segment::Segment,
};
use crate::store::{error::ReadError, layout::Damaged, lock};

/// Why a quarantined callback cannot be read.
#[derive(Debug)]
pub(in crate::store) enum Unread {
    /// It is not as it was written, and never will be.
    Damaged(String),
    /// The system cannot read it now.
    Failed(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        if is_damage(&error) {
            Self::Damaged(error.to_string())
        } else {
            Self::Failed(error)
        }
    }
}

impl From<Damaged> for Unread {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged.to_string())
    }
}

impl From<Unread> for ReadError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Damaged(problem) => Self::Corrupt(problem),
            Unread::Failed(error) => error.into(),
        }
    }
}

impl Log {
    /// The value of a quarantined callback; `None` if it was erased meanwhile, or its segment is
    /// gone.
    pub(in crate::store) fn quarantined(
        &self,
        number: u64,
        place: Place,
    ) -> Result<Option<Bytes>, Unread> {
        match self.segment(place.segment) {
            Some(segment) => Ok(read_quarantined(&segment, number, place.at)?.0),
            None => Ok(None),
        }
    }

    fn segment(&self, number: u64) -> Option<Arc<Segment>> {
        segment_of(&self.segments(), number)
    }

    /// A segment whose file is there, although perhaps only for a reader that still holds it.
    pub(super) fn segment_on_disk(&self, number: u64) -> Option<Arc<Segment>> {
        self.segment(number).or_else(|| {
            let removed = lock(&self.removed);
            let mut held = removed.iter().filter_map(Weak::upgrade);
            held.find(|segment| segment.header.number == number)
        })
    }

    /// Whether a segment is removed, and its file is still there for a reader.
    pub(in crate::store) fn is_held(&self, number: u64) -> bool {
        self.segment(number).is_none() && self.segment_on_disk(number).is_some()
    }

    /// Reads what is in quarantine now, also when its segments are removed meanwhile. Holds the
    /// files of all segments.
    pub(in crate::store) fn quarantine_reader(&self) -> QuarantineReader {
        QuarantineReader(self.segments().clone())
    }
}

/// See [`Log::quarantine_reader`].
pub(in crate::store) struct QuarantineReader(VecDeque<Arc<Segment>>);

impl QuarantineReader {
    /// The value of a quarantined callback; `None` if it was erased meanwhile.
    pub(in crate::store) fn read(
        &self,
        number: u64,
        place: Place,
    ) -> Result<Option<Bytes>, Unread> {
        let segment = segment_of(&self.0, place.segment)
            .ok_or_else(|| Unread::Damaged(format!("quarantined callback {number} is missing")))?;
        Ok(read_quarantined(&segment, number, place.at)?.0)
    }
}

/// Segments have numbers without a gap.
fn segment_of(segments: &VecDeque<Arc<Segment>>, number: u64) -> Option<Arc<Segment>> {
    let at = number.checked_sub(segments.front()?.header.number)?;
    segments.get(usize::try_from(at).ok()?).cloned()
}

/// The value of the quarantined callback whose entry begins at `at`, unless it was erased, and its
/// body there.
pub(super) fn read_quarantined(
    segment: &Segment,
    number: u64,
    at: u64,
) -> Result<(Option<Bytes>, Body), Unread> {
    let damaged = || {
        Unread::Damaged(format!(
            "quarantined callback {number} in {} is not as it was written",
            segment.path().display()
        ))
    };
    let head = segment.read_at(at, entry::HEAD_BYTES as u64)?;
    let bytes = entry::quarantined_length(&head).ok_or_else(damaged)?;
    // A damaged length is not read past the file's end.
    if at.saturating_add(bytes) > segment.bytes() {
        return Err(damaged());
    }
    let entry = segment.read_at(at, bytes)?;
    match entry::quarantined_at(&entry) {
        Some((found, value, body)) if found == number => Ok((value, body)),
        _ => Err(damaged()),
    }
}
