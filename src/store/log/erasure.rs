//! Erasing bodies in the log: finding them, overwriting them, and keeping count of what is announced and not overwritten yet.

use std::{
    collections::{BTreeMap, HashSet},
    io, mem,
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Log,
    frame::{self, Body, Entry, Frame},
    segment::Segment,
};
use crate::{
    event::{Record, Sequence},
    store::{error::ReadError, lock},
};

/// What one commit has announced to be erased.
#[derive(Debug)]
pub(super) struct Announced {
    /// The segment that the commit is in: a start has to find it there until all is overwritten.
    pub number: u64,
    /// Of events.
    pub places: Vec<Sequence>,
}

impl Log {
    /// Finds the bodies of those events at these places that are meant, and of the quarantined callbacks with these numbers, as far
    /// as there are files that should have them. Both are in order, and none comes twice. Every commit is proven.
    pub(in crate::store) fn find(
        &self,
        places: &[Sequence],
        numbers: &[u64],
        mut is_meant: impl FnMut(&Record) -> bool,
    ) -> Found {
        let mut found = Found::default();
        let segments = self.segments().clone();
        for (at, segment) in segments.iter().enumerate() {
            let next = segments.get(at + 1);
            let behind = next.map_or(Sequence(u64::MAX), |next| next.first_sequence());
            let number_last = next.map_or(u64::MAX, |next| next.header.totals.quarantine_next);
            let places = slice(places, segment.first_sequence(), behind.previous());
            let numbers = slice(
                numbers,
                segment.header.totals.quarantine_next + 1,
                number_last,
            );
            if !places.is_empty() || !numbers.is_empty() {
                self.find_in(segment, places, numbers, &mut is_meant, &mut found);
            }
        }
        found
    }

    fn find_in(
        &self,
        segment: &Arc<Segment>,
        places: &[Sequence],
        numbers: &[u64],
        is_meant: &mut impl FnMut(&Record) -> bool,
        found: &mut Found,
    ) {
        let of_places = places.iter().map(|&place| segment.span(place, 0));
        let of_numbers = numbers.iter().map(|&number| segment.span_of_number(number));
        let mut blocks = BTreeMap::new();
        for span in of_places.chain(of_numbers) {
            match span {
                Ok(span) => blocks.extend(span.map(|span| (span.start, span))),
                Err(error) => found.problem = Some(error.to_string()),
            }
        }

        let (mut count, mut bodies) = (0, Vec::new());
        for span in blocks.values() {
            let read = segment
                .read(span)
                .map_err(|error| found.problem = Some(error.to_string()));
            let Ok(read) = read else { continue };
            self.each_body(&read, span.number, places, numbers, |entry, at, body| {
                count += 1;
                if !matches!(entry, Entry::Event { record, .. } if !is_meant(record)) {
                    let place = |in_frame: usize| span.start + (at + in_frame) as u64;
                    bodies.push((
                        place(body.mark),
                        place(body.range.start)..place(body.range.end),
                    ));
                }
            });
        }
        let lost = (places.len() + numbers.len()).saturating_sub(count);
        if lost > 0 {
            found.lost += lost;
            let path = segment.path().display();
            found.problem.get_or_insert_with(|| {
                format!("{lost} bodies in {path} are not as they were written")
            });
        }
        if !bodies.is_empty() {
            found
                .segments
                .entry(segment.header.number)
                .or_insert((Arc::clone(segment), Vec::new()))
                .1
                .extend(bodies);
        }
    }

    /// Hands over the bodies at these places and with these numbers in some commits, with where their commit begins. Those that are
    /// damaged are passed over.
    fn each_body(
        &self,
        read: &Bytes,
        mut number: u64,
        places: &[Sequence],
        numbers: &[u64],
        mut each: impl FnMut(&Entry, usize, Body),
    ) {
        let mut at = 0;
        while let Some(said) = read.get(at..).and_then(frame::Header::parse) {
            let start = at;
            at += said.length;
            let before = mem::replace(&mut number, said.totals.quarantine_next);
            let has_some = !slice(places, said.first_sequence(), said.head()).is_empty()
                || !slice(numbers, before + 1, number).is_empty();
            let Some(frame) = has_some
                .then(|| Frame::parse(self.epoch, read, start))
                .flatten()
            else {
                continue;
            };
            for (entry, body) in frame.bodies() {
                let is_sought = match &entry {
                    Entry::Event { record, .. } => places.binary_search(&record.sequence()).is_ok(),
                    Entry::Quarantined { number, .. } => numbers.binary_search(number).is_ok(),
                    _ => false,
                };
                if is_sought {
                    each(&entry, start, body);
                }
            }
        }
    }

    /// Erases again what was announced, durably, and says how much of it cannot be found. Also what seems to be erased: a kernel that
    /// has failed to write it shows it as written, until it reads it from the disk again.
    pub(in crate::store) fn erase(
        &self,
        places: &[Sequence],
        numbers: &[u64],
    ) -> io::Result<usize> {
        let (mut places, mut numbers) = (places.to_vec(), numbers.to_vec());
        places.sort_unstable();
        places.dedup();
        numbers.sort_unstable();
        numbers.dedup();
        let found = self.find(&places, &numbers, |_| true);
        if let Some(problem) = &found.problem {
            tracing::error!(count = found.lost, %problem, "cannot erase what is damaged in the log: it may be on the disk still");
        }
        for (segment, bodies) in found.segments() {
            segment.erase(bodies)?;
        }
        Ok(found.lost)
    }

    /// Takes note that the commit which was appended last has announced to erase what is at these places: no checkpoint passes it
    /// before [`Self::note_overwritten`].
    pub(in crate::store) fn note_announced(&self, places: Vec<Sequence>) {
        let number = self.newest();
        lock(&self.announced).push_back(Announced { number, places });
    }

    /// Takes note that everything which the oldest noted commit has announced is overwritten.
    pub(in crate::store) fn note_overwritten(&self) {
        lock(&self.announced).pop_front();
    }

    /// How many commits have announced what may not be overwritten yet.
    pub(in crate::store) fn announced(&self) -> usize {
        lock(&self.announced).len()
    }

    /// The places of events that are announced and may not be overwritten yet.
    pub(in crate::store) fn announced_places(&self) -> HashSet<Sequence> {
        lock(&self.announced)
            .iter()
            .flat_map(|announced| announced.places.iter().copied())
            .collect()
    }
}

/// Bodies in the files of the log.
#[derive(Debug, Default)]
pub(in crate::store) struct Found {
    /// By the number of the segment.
    segments: BTreeMap<u64, (Arc<Segment>, Bodies)>,
    /// How many of those that were looked for are not there, or not as they were written.
    lost: usize,
    /// Why, of one of them.
    problem: Option<String>,
}

/// Where bodies lie in a segment, each with where its mark goes.
type Bodies = Vec<(u64, Range<u64>)>;

impl Found {
    /// Itself, if nothing is lost.
    pub(in crate::store) fn whole(self) -> Result<Self, ReadError> {
        self.problem.map_or(
            Ok(Self {
                problem: None,
                ..self
            }),
            |problem| Err(ReadError::Corrupt(problem)),
        )
    }

    pub(in crate::store) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(in crate::store) fn add(&mut self, other: Self) {
        for (number, (segment, bodies)) in other.segments {
            self.segments
                .entry(number)
                .or_insert((segment, Vec::new()))
                .1
                .extend(bodies);
        }
    }

    pub(in crate::store) fn segments(
        &self,
    ) -> impl Iterator<Item = (&Segment, &[(u64, Range<u64>)])> {
        self.segments
            .values()
            .map(|(segment, bodies)| (&**segment, &bodies[..]))
    }
}

/// Those of some, which are in order, from the first to the last.
fn slice<T: Ord + Copy>(all: &[T], first: T, last: T) -> &[T] {
    let start = all.partition_point(|it| *it < first);
    let end = all.partition_point(|it| *it <= last);
    all.get(start..end).unwrap_or_default()
}
