//! Which numbered things have their newest copy in which segment of the log, or in which frame of the stream. Pure.
//!
//! They outlive the events beside them, so they have to be written again before their segment is
//! removed ([`super::writer`]'s `carry`).

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default, PartialEq, Eq)]
struct InSegment {
    numbers: BTreeSet<u64>,
    bytes: u64,
}

/// See the module's description.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BySegment(BTreeMap<u64, InSegment>);

impl BySegment {
    /// Adds one of so many bytes.
    pub(super) fn put(&mut self, segment: u64, number: u64, bytes: u64) {
        let segment = self.0.entry(segment).or_default();
        if segment.numbers.insert(number) {
            segment.bytes += bytes;
        }
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, segment: u64, number: u64, bytes: u64) {
        if let Some(there) = self.0.get_mut(&segment)
            && there.numbers.remove(&number)
        {
            there.bytes -= bytes;
            if there.numbers.is_empty() {
                self.0.remove(&segment);
            }
        }
    }

    /// The oldest segment with one.
    pub(super) fn first(&self) -> Option<u64> {
        self.0.first_key_value().map(|(&segment, _)| segment)
    }

    /// Bytes of those in segments up to this one.
    pub(super) fn bytes_up_to(&self, segment: u64) -> u64 {
        let segments = self.0.range(..=segment);
        segments.map(|(_, segment)| segment.bytes).sum()
    }

    /// Those in segments up to this one, oldest segment first, at most so many.
    pub(super) fn up_to(&self, segment: u64, most: usize) -> Vec<u64> {
        let segments = self.0.range(..=segment);
        let numbers = segments.flat_map(|(_, segment)| &segment.numbers);
        numbers.copied().take(most).collect()
    }

    /// Those in a segment, in order.
    pub(super) fn in_segment(&self, segment: u64) -> Vec<u64> {
        let segment = self.0.get(&segment);
        segment.map_or_else(Vec::new, |it| it.numbers.iter().copied().collect())
    }
}
