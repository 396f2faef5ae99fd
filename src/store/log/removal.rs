//! Which segments are still needed, and the removal of the others, oldest first.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use super::{Log, segment::Segment};
use crate::{event::Sequence, store::lock};

/// A segment whose events are all forgotten.
#[derive(Debug)]
pub(in crate::store) struct WithoutEvents {
    pub number: u64,
    /// Of its file.
    pub bytes: u64,
    /// The log's time at its end, in microseconds since 1970: nothing in it is younger.
    pub ended_micros: i64,
}

impl Log {
    /// Whether a checkpoint would shorten the replay, or let a segment go.
    pub(in crate::store) fn needs_checkpoint(&self, first_available: Sequence) -> bool {
        let checkpoint_max = self.checkpoint_max();
        let segments = self.segments();
        let would_free = |before: u64| {
            segments
                .get(1)
                .is_some_and(|second| second.first_sequence().0 <= before)
        };
        checkpoint_max > self.replay_from.load(Ordering::Acquire)
            || would_free(first_available.0)
                && !would_free(self.forgotten_before.load(Ordering::Acquire))
    }

    /// The segment up to which a checkpoint may go: the one that is written to, or an older one
    /// that has announced what is not overwritten yet. All commits in older ones have been applied
    /// when the writer is between two commits or in the first of this segment.
    pub(in crate::store) fn checkpoint_max(&self) -> u64 {
        // In this order: what is announced later is not in an older segment.
        let newest = self.newest();
        lock(&self.announced)
            .front()
            .map_or(newest, |oldest| oldest.number.min(newest))
    }

    /// Takes note of what the index has durably: it replays from segment `number` on, and has
    /// forgotten all events before `first_available`.
    pub(in crate::store) fn note_checkpoint(&self, number: u64, first_available: Sequence) {
        self.replay_from.store(number, Ordering::Release);
        self.forgotten_before
            .store(first_available.0, Ordering::Release);
    }

    /// Takes note of the oldest segment with the newest copy of a callback that is in quarantine,
    /// or of an open expectation; `None` if there is neither.
    pub(in crate::store) fn note_kept_from(&self, number: Option<u64>) {
        self.kept_from
            .store(number.unwrap_or(u64::MAX), Ordering::Release);
    }

    /// The oldest segment that is needed. It never falls.
    pub(super) fn oldest_needed(&self, segments: &VecDeque<Arc<Segment>>) -> u64 {
        let forgotten_before = self.forgotten_before.load(Ordering::Acquire);
        let needed_from = self
            .replay_from
            .load(Ordering::Acquire)
            .min(self.kept_from.load(Ordering::Acquire));
        let is_needed = |at: &usize| {
            let is_forgotten = segments
                .get(at + 1)
                .is_some_and(|next| next.first_sequence().0 <= forgotten_before);
            segments[*at].header.number >= needed_from || !is_forgotten
        };
        let first = (0..segments.len()).find(is_needed);
        first.map_or(0, |at| segments[at].header.number)
    }

    /// The oldest segment that is needed, as the last durable commit says. Older ones are removed,
    /// or are about to be.
    pub(in crate::store) fn noted_oldest(&self) -> u64 {
        self.noted_oldest.load(Ordering::Acquire)
    }

    pub(super) fn has_forgotten(&self) -> bool {
        self.is_oldest_unneeded(&self.segments())
    }

    fn is_oldest_unneeded(&self, segments: &VecDeque<Arc<Segment>>) -> bool {
        let noted = self.noted_oldest.load(Ordering::Acquire);
        segments.len() > 1
            && segments
                .front()
                .is_some_and(|oldest| oldest.header.number < noted)
    }

    /// The newest frame of the stream before frame `needed` of which this log tells that neither it nor any before holds an event
    /// that is still available; 0 if it tells of none.
    pub(in crate::store) fn frame_before(&self, first_available: Sequence, needed: u64) -> u64 {
        let segments = self.segments();
        let before = segments
            .iter()
            .take_while(|segment| segment.first_sequence() <= first_available);
        before
            .map(|segment| segment.header.streamed.frame)
            .filter(|&frame| frame < needed)
            .max()
            .unwrap_or(0)
    }

    /// The segments whose events are all forgotten, oldest first, but for the one that is written
    /// to.
    pub(in crate::store) fn without_events(&self, first_available: Sequence) -> Vec<WithoutEvents> {
        let segments = self.segments();
        segments
            .iter()
            .zip(segments.iter().skip(1))
            .take_while(|(_, next)| next.first_sequence() <= first_available)
            .map(|(segment, next)| WithoutEvents {
                number: segment.header.number,
                bytes: segment.bytes(),
                ended_micros: next.header.totals.log_time_micros,
            })
            .collect()
    }

    /// Lets go of the segments that are forgotten. A last one may have to wait for the next commit.
    pub(in crate::store) fn remove_forgotten(&self) {
        let mut forgotten = Vec::new();
        {
            let mut segments = self.segments.write();
            while self.is_oldest_unneeded(&segments) {
                forgotten.extend(segments.pop_front());
            }
            if forgotten.is_empty() {
                return; // almost always
            }

            // Under the same lock: a discard must find each segment in one place or the other.
            let mut removed = lock(&self.removed);
            removed.retain(|segment| segment.strong_count() > 0);
            removed.extend(forgotten.iter().map(Arc::downgrade));
        }
        // A file may take a while to remove.
        forgotten.iter().for_each(|segment| segment.forget());
    }

    pub(super) fn awaits_note(&self) -> bool {
        self.noted_oldest.load(Ordering::Acquire) < self.oldest_needed(&self.segments())
    }
}
