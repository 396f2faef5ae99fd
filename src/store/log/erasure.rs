//! Erasing bodies in the log: finding them, overwriting them, and keeping count of what is
//! announced and not overwritten yet.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Log, Place,
    entry::{Body, Entry},
    frame::{self, Frame},
    gap::is_damage,
    quarantine::{Unread, read_quarantined},
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
    /// Finds the bodies of those events at these places that are meant, as far as there are files
    /// that should have them. The places are in order, and none comes twice. Every commit is
    /// proven.
    pub(in crate::store) fn find(
        &self,
        places: &[Sequence],
        mut is_meant: impl FnMut(&Record) -> bool,
    ) -> Found {
        let mut found = Found::default();
        let segments = self.segments().clone();
        for (at, segment) in segments.iter().enumerate() {
            let next = segments.get(at + 1);
            let behind = next.map_or(Sequence(u64::MAX), |next| next.first_sequence());
            let places = slice(places, segment.first_sequence(), behind.previous());
            if !places.is_empty() {
                self.find_in(segment, places, &mut is_meant, &mut found);
            }
        }
        found
    }

    fn find_in(
        &self,
        segment: &Arc<Segment>,
        places: &[Sequence],
        is_meant: &mut impl FnMut(&Record) -> bool,
        found: &mut Found,
    ) {
        let mut blocks = BTreeMap::new();
        for &place in places {
            match segment.span(place, 0) {
                Ok(span) => blocks.extend(span.map(|span| (span.start, span))),
                Err(error) => found.fail(error.into()),
            }
        }

        let (mut count, mut bodies) = (0, Vec::new());
        for span in blocks.values() {
            let read = match segment.read(span) {
                Ok(read) => read,
                Err(error) => {
                    found.fail(error.into());
                    continue;
                }
            };
            self.each_body(&read, places, |record, at, body| {
                count += 1;
                if is_meant(record) {
                    bodies.push(body_in_segment(span.start + at as u64, &body));
                }
            });
        }
        found.lose(places.len().saturating_sub(count), segment);
        found.add_bodies(segment, bodies);
    }

    /// Hands over the events at these places in some commits, with where their commit begins and
    /// their bodies. Those that are damaged are passed over.
    fn each_body(
        &self,
        read: &Bytes,
        places: &[Sequence],
        mut each: impl FnMut(&Record, usize, Body),
    ) {
        let mut at = 0;
        while let Some(said) = read.get(at..).and_then(frame::Header::parse) {
            let start = at;
            at += said.length;
            let has_some = !slice(places, said.first_sequence(), said.head()).is_empty();
            let Some(frame) = has_some
                .then(|| Frame::parse_around_damage(self.epoch, read, start))
                .flatten()
            else {
                continue;
            };
            for (entry, body) in frame.bodies() {
                if let Entry::Event { record, .. } = &entry
                    && places.binary_search(&record.sequence()).is_ok()
                {
                    each(record, start, body);
                }
            }
        }
    }

    /// Finds the bodies of quarantined callbacks at these places, as far as their files are there,
    /// and what of them cannot be found. Each is proven by itself, or its place by its commit: then
    /// a damaged one is found, too.
    pub(in crate::store) fn find_quarantined(
        &self,
        copies: &[(u64, Place)],
    ) -> Result<(Found, Vec<String>), ReadError> {
        let (mut found, mut not_found) = (Found::default(), Vec::new());
        for &(number, place) in copies {
            let Some(segment) = self.segment_on_disk(place.segment) else {
                continue; // it is gone, and the copy with it
            };
            let body = match read_quarantined(&segment, number, place.at) {
                Ok((_, body)) => body_in_segment(place.at, &body),
                Err(Unread::Damaged(problem)) => match self.body_at(&segment, place.at)? {
                    Some(body) => body,
                    None => {
                        not_found.push(problem);
                        continue;
                    }
                },
                Err(Unread::Failed(error)) => return Err(error.into()),
            };
            found.add_bodies(&segment, vec![body]);
        }
        Ok((found, not_found))
    }

    /// Where the body of the entry that begins at `at` lies, as its commit proves it.
    fn body_at(&self, segment: &Segment, at: u64) -> io::Result<Option<(u64, Range<u64>)>> {
        let Some(span) = segment.span_at(at)? else {
            return Ok(None);
        };
        let read = match segment.read(&span) {
            Err(error) if is_damage(&error) => return Ok(None),
            read => read?,
        };
        let mut next = 0;
        while let Some(said) = read.get(next..).and_then(frame::Header::parse) {
            let (start, begin) = (next, span.start + next as u64);
            next += said.length;
            if at < span.start + next as u64 {
                let frame = Frame::parse_around_damage(self.epoch, &read, start);
                let body = frame.and_then(|frame| frame.body_at((at - begin) as usize));
                return Ok(body.map(|body| body_in_segment(begin, &body)));
            }
        }
        Ok(None)
    }

    /// Erases again what was announced, durably, and says how much of it cannot be found. Also what
    /// seems to be erased: a kernel that has failed to write it shows it as written, until it reads
    /// it from the disk again.
    ///
    /// Fails if the disk refuses to read any of it: that may be there, as it was written.
    pub(in crate::store) fn erase(
        &self,
        places: &[Sequence],
        copies: &[(u64, Place)],
    ) -> io::Result<usize> {
        let mut places = places.to_vec();
        places.sort_unstable();
        places.dedup();
        let mut found = self.find(&places, |_| true);
        let (quarantined, not_found) = match self.find_quarantined(copies) {
            Ok(found) => found,
            Err(ReadError::Io(problem)) => return Err(not_looked_for(&problem)),
            Err(error) => (Found::default(), vec![error.to_string()]),
        };
        found.add(quarantined);
        found.lost += not_found.len();
        not_found
            .into_iter()
            .for_each(|problem| found.fail(ReadError::Corrupt(problem)));
        if let Some(ReadError::Io(problem)) = &found.problem {
            return Err(not_looked_for(problem));
        }
        if let Some(problem) = &found.problem {
            tracing::error!(count = found.lost, %problem, "cannot erase what is damaged in the log: it may be on the disk still");
        }
        for (segment, bodies) in found.segments() {
            segment.erase(bodies)?;
        }
        Ok(found.lost)
    }

    /// Takes note that the commit which was appended last has announced to erase what is at these
    /// places: no checkpoint passes it before [`Self::note_overwritten`].
    pub(in crate::store) fn note_announced(&self, places: Vec<Sequence>) {
        let number = self.newest();
        lock(&self.announced).push_back(Announced { number, places });
    }

    /// Takes note that everything which the oldest noted commit has announced is overwritten, and summaries with it.
    pub(in crate::store) fn note_overwritten(&self) {
        lock(&self.announced).pop_front();
        self.summaries.note_due();
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
    problem: Option<ReadError>,
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
            Err,
        )
    }

    /// Why something is lost, if anything is.
    pub(in crate::store) fn problem(&self) -> Option<&ReadError> {
        self.problem.as_ref()
    }

    /// What is found, whatever is lost.
    pub(in crate::store) fn without_problem(self) -> Self {
        Self {
            problem: None,
            ..self
        }
    }

    /// Takes note that some bodies in a segment are not there, or not as they were written.
    fn lose(&mut self, count: usize, segment: &Segment) {
        if count > 0 {
            self.lost += count;
            let path = segment.path().display();
            self.problem.get_or_insert_with(|| {
                ReadError::Corrupt(format!(
                    "{count} bodies in {path} are not as they were written"
                ))
            });
        }
    }

    /// Takes note of why some cannot be found. One that the disk refuses to read may still be there,
    /// so that counts for more than damage.
    fn fail(&mut self, problem: ReadError) {
        if !matches!(self.problem, Some(ReadError::Io(_))) {
            self.problem = Some(problem);
        }
    }

    fn add_bodies(&mut self, segment: &Arc<Segment>, bodies: Bodies) {
        if !bodies.is_empty() {
            self.segments
                .entry(segment.header.number)
                .or_insert((Arc::clone(segment), Vec::new()))
                .1
                .extend(bodies);
        }
    }

    pub(in crate::store) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(in crate::store) fn add(&mut self, other: Self) {
        for (segment, bodies) in other.segments.into_values() {
            self.add_bodies(&segment, bodies);
        }
        self.lost += other.lost;
        if let Some(problem) = other.problem {
            self.fail(problem);
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

/// Why a start cannot erase again.
fn not_looked_for(problem: &str) -> io::Error {
    io::Error::other(format!("what is to be erased cannot be read: {problem}"))
}

/// Where an entry's body lies in its segment, with where its mark goes; `start` is where the
/// entry's frame, or the entry, begins.
fn body_in_segment(start: u64, body: &Body) -> (u64, Range<u64>) {
    let place = |at: usize| start + at as u64;
    (
        place(body.mark),
        place(body.range.start)..place(body.range.end),
    )
}

/// Those of some, which are in order, from the first to the last.
fn slice<T: Ord + Copy>(all: &[T], first: T, last: T) -> &[T] {
    let start = all.partition_point(|it| *it < first);
    let end = all.partition_point(|it| *it <= last);
    all.get(start..end).unwrap_or_default()
}
