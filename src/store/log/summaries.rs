//! The summaries beside the segments: written once a segment is sealed, and again when one is lost, damaged or of another format.
//!
//! A summary is a cache of its segment. It is neither synced nor read when the log is opened: without a good one a segment is read.
//! Only the second thread writes them, which nothing waits for.

use std::{
    collections::VecDeque,
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    Log,
    segment::{self, Segment},
    summary::{Terms, Wanted},
    summary_file::{EXTENSION, State},
};
use crate::{
    event::Sequence,
    store::{error::ReadError, lock},
};

/// What has to be written.
#[derive(Debug)]
pub(super) struct Summaries {
    /// What the events of the newest sealed segment have, with its number, until its summary is written.
    sealed: Mutex<Option<(u64, Terms)>>,
    /// A sealed segment may be without its summary.
    are_due: AtomicBool,
}

impl Default for Summaries {
    /// Of a log that was opened: nobody has looked.
    fn default() -> Self {
        Self {
            sealed: Mutex::default(),
            are_due: true.into(),
        }
    }
}

impl Summaries {
    pub(super) fn are_due(&self) -> bool {
        self.are_due.load(Ordering::Acquire)
    }

    /// Takes note that a segment may have lost its summary.
    pub(super) fn note_due(&self) {
        self.are_due.store(true, Ordering::Release);
    }

    /// Takes note that a segment is sealed, and of what its events have. Of the one before it that is dropped, so what is in memory
    /// has a bound: that one is read instead.
    pub(super) fn note_sealed(&self, number: u64, terms: Option<Terms>) {
        *lock(&self.sealed) = terms.map(|terms| (number, terms));
        self.note_due();
    }
}

/// A summary that was written.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Summarized {
    /// In place of one that was lost.
    pub was_lost: bool,
    /// How long its segment was read for it.
    pub reading: Duration,
}

impl Log {
    /// The bytes that were read to find that a segment has no event that is wanted; `None` if it may have one.
    pub(super) fn rules_out(
        &self,
        segment: &Segment,
        behind: &segment::Header,
        wanted: &Wanted,
    ) -> Option<usize> {
        let (file, was) = (&segment.summary, segment.summary.state());
        let summary = file.read(bound(&segment.header, behind));
        if was != State::Lost && file.state() == State::Lost {
            self.summaries.note_due();
        }
        let summary = summary?;
        (!summary.may_have(wanted)).then(|| summary.bytes())
    }

    /// Writes the summary of one sealed segment that has none; `None` if all have one, or it failed.
    pub(in crate::store) fn write_summary(&self) -> Option<Summarized> {
        if !self.summaries.are_due.swap(false, Ordering::AcqRel) {
            return None;
        }
        loop {
            let (segment, behind) = self.without_summary()?;
            match self.summarize(&segment, &behind) {
                Ok(Some(written)) => {
                    self.summaries.note_due();
                    return Some(written);
                }
                // Its content has changed meanwhile.
                Ok(None) => {}
                Err(ReadError::Corrupt(problem)) => {
                    segment.summary.note_unreadable();
                    tracing::warn!(path = %segment.path().display(), problem, "a segment has no summary, as it is damaged: readers with a filter read it");
                }
                Err(error) => {
                    tracing::warn!(path = %segment.path().display(), %error, "cannot write the summary of a segment: readers with a filter read it until this succeeds");
                    return None;
                }
            }
        }
    }

    /// The newest sealed segment without a summary, and the header of the one behind it.
    fn without_summary(&self) -> Option<(Arc<Segment>, segment::Header)> {
        let segments = self.segments().clone();
        let sealed = segments.iter().zip(segments.iter().skip(1)).rev();
        sealed
            .filter(|(segment, behind)| segment.first_sequence() < behind.first_sequence())
            .find(|(segment, behind)| {
                let file = &segment.summary;
                if file.state() == State::Unknown {
                    file.read(bound(&segment.header, &behind.header));
                }
                matches!(file.state(), State::Due | State::Lost)
            })
            .map(|(segment, behind)| (Arc::clone(segment), behind.header))
    }

    fn summarize(
        &self,
        segment: &Segment,
        behind: &segment::Header,
    ) -> Result<Option<Summarized>, ReadError> {
        let file = &segment.summary;
        let erasures = file.erasures();
        let known = lock(&self.summaries.sealed)
            .take_if(|(number, _)| *number == segment.header.number)
            .map(|(_, terms)| terms);
        let started = Instant::now();
        // What was erased since is still among the known ones.
        let terms = match known.filter(|_| erasures == 0) {
            Some(terms) => terms,
            None => self.terms_of(segment, behind.first_sequence())?,
        };
        let reading = started.elapsed();
        let bytes = terms.encode(bound(&segment.header, behind));

        let was_lost = file.write(&bytes, erasures)?;
        Ok(was_lost.map(|was_lost| Summarized { was_lost, reading }))
    }

    /// What the events of a segment have, each of which has to be as it was written.
    fn terms_of(&self, segment: &Segment, behind: Sequence) -> Result<Terms, ReadError> {
        let mut terms = Terms::default();
        let places = segment.first_sequence()..=behind.previous();
        self.scan_segment(segment, places, |record| terms.add(&record))?;
        Ok(terms)
    }
}

/// What binds a summary to the events of a segment: what that began with, and what it has left to the one behind it. A crash may
/// take the segment behind back, and then more is appended to this one.
fn bound(segment: &segment::Header, behind: &segment::Header) -> u64 {
    xxh3_64_with_seed(&behind.encode(), xxh3_64(&segment.encode()))
}

/// Removes the summaries of segments that are gone, and that of the newest: more may be appended to it.
pub(super) fn remove_others(folder: &Path, segments: &VecDeque<Arc<Segment>>) -> io::Result<()> {
    let sealed = segments.iter().rev().skip(1);
    let known: Vec<_> = sealed.map(|segment| segment.summary.path()).collect();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_summary = path.extension().is_some_and(|it| it == EXTENSION);
        if is_summary && !known.contains(&path.as_path()) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
