//! Reading events of the log: in order, backwards, one by one. Never more than a few large parts of
//! segments at once.

use std::{
    collections::VecDeque,
    ops::{ControlFlow, RangeInclusive},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use super::{
    Log,
    entry::Entry,
    frame::{self, Frame},
    segment::{Segment, Span},
};
use crate::{
    event::{Epoch, Fingerprint, Record, Sequence},
    store::{error::ReadError, lock},
};

/// Events share the memory that they were read into, unless it is more than this: then one would
/// hold too much of it.
pub(in crate::store) const LARGE_READ_BYTES: usize = 512 * 1024;
/// So many read more than that at once: a commit may have 8 MiB and another body, and is read as a
/// whole.
const LARGE_READS_MAX: usize = 4;
/// Read at once by who takes much: enough to be quick.
pub(in crate::store) const READ_BYTES: u64 = 256 * 1024;

/// Limits concurrent reads of large parts of segments. The holder of a turn waits for the disk
/// only.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Mutex<usize>,
    given_back: Condvar,
}

impl Turns {
    /// Waits for a turn, if it takes one to read so much. Blocking.
    fn take(&self, span: &Span) -> Option<Turn<'_>> {
        if span.end - span.start <= LARGE_READ_BYTES as u64 {
            return None;
        }
        let mut taken = lock(&self.taken);
        self.given_back
            .wait_while(&mut taken, |taken| *taken == LARGE_READS_MAX);
        *taken += 1;
        Some(Turn(self))
    }
}

/// Given back when dropped.
struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.given_back.notify_one();
    }
}

impl Log {
    /// The events at these places, one by one, also those that are forgotten meanwhile.
    pub(in crate::store) fn events(&self, places: RangeInclusive<Sequence>) -> Events {
        let turns = Arc::clone(&self.turns);
        Events {
            epoch: self.epoch,
            segments: self.segments().clone(),
            turns,
            places,
            read: VecDeque::new(),
        }
    }

    /// Hands over the events at these places in order, until told to stop, reading about so many
    /// bytes at a time.
    ///
    /// A place without its event is damage, or forgotten meanwhile: the caller has to look.
    pub(in crate::store) fn scan(
        &self,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        self.scan_in_turn(Some(&self.turns), places, bytes, each)
    }

    /// The same for the writer, which waits for no reader.
    pub(in crate::store) fn scan_at_once(
        &self,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        self.scan_in_turn(None, places, bytes, each)
    }

    fn scan_in_turn(
        &self,
        turns: Option<&Turns>,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        mut each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let mut next = *places.start();
        while next <= *places.end() {
            let Some(segment) = segment_of(&self.segments(), next) else {
                return Err(missing(next));
            };
            let up_to = *places.end();
            let Some(span) = segment.span(next, bytes)? else {
                return Err(missing(next));
            };
            let _turn = turns.and_then(|turns| turns.take(&span));
            let mut each = |logged: Logged| each(logged.record);
            match scan_span(&segment, &span, self.epoch, next..=up_to, &mut each)? {
                ControlFlow::Continue(behind) => next = behind,
                ControlFlow::Break(()) => break,
            }
        }
        Ok(())
    }

    /// The same backwards, from the end of `places`.
    pub(in crate::store) fn scan_back(
        &self,
        places: RangeInclusive<Sequence>,
        mut each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let mut last = *places.end();
        while last >= *places.start() {
            let Some(segment) = segment_of(&self.segments(), last) else {
                return Err(missing(last));
            };
            let Some(span) = segment.span(last, 0)? else {
                return Err(missing(last));
            };
            let _turn = self.turns.take(&span);
            let first = span.first.max(*places.start());
            let mut records = Vec::new();
            let all = scan_span(&segment, &span, self.epoch, first..=last, &mut |logged| {
                records.push(logged.record);
                Ok(ControlFlow::Continue(()))
            })?;
            if all != ControlFlow::Continue(last.next()) {
                return Err(missing(last));
            }
            for record in records.into_iter().rev() {
                if each(record)?.is_break() {
                    return Ok(());
                }
            }
            last = first.previous();
        }
        Ok(())
    }

    /// The event at `sequence`, in memory of its own.
    pub(in crate::store) fn get(&self, sequence: Sequence) -> Result<Record, ReadError> {
        let mut found = None;
        self.scan(sequence..=sequence, 0, |record| {
            found = Some(record.compact());
            Ok(ControlFlow::Break(()))
        })?;
        found.ok_or_else(|| missing(sequence))
    }
}

/// An event as its commit has it.
#[derive(Debug)]
pub(in crate::store) struct Logged {
    pub event_id: Uuid,
    pub fingerprint: Fingerprint,
    pub record: Record,
}

/// Events of the log. Holds the files of all its segments.
pub(in crate::store) struct Events {
    epoch: Epoch,
    segments: VecDeque<Arc<Segment>>,
    turns: Arc<Turns>,
    /// Those that have not been read.
    places: RangeInclusive<Sequence>,
    read: VecDeque<Logged>,
}

impl Events {
    fn read_more(&mut self) -> Result<(), ReadError> {
        let first = *self.places.start();
        let segment = segment_of(&self.segments, first).ok_or_else(|| missing(first))?;
        let Some(span) = segment.span(first, READ_BYTES)? else {
            return Err(missing(first));
        };
        let _turn = self.turns.take(&span);
        let flow = scan_span(
            &segment,
            &span,
            self.epoch,
            self.places.clone(),
            &mut |logged| {
                self.read.push_back(logged);
                Ok(ControlFlow::Continue(()))
            },
        )?;
        if let ControlFlow::Continue(next) = flow {
            self.places = next..=*self.places.end();
        }
        Ok(())
    }
}

impl Iterator for Events {
    type Item = Result<Logged, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.is_empty()
            && !self.places.is_empty()
            && let Err(error) = self.read_more()
        {
            return Some(Err(error));
        }
        self.read.pop_front().map(Ok)
    }
}

pub(super) fn segment_of(
    segments: &VecDeque<Arc<Segment>>,
    sequence: Sequence,
) -> Option<Arc<Segment>> {
    let behind = segments.partition_point(|segment| segment.first_sequence() <= sequence);
    segments.get(behind.checked_sub(1)?).cloned()
}

/// Hands over the events at these places that lie in one span of a segment; where to go on behind
/// them.
fn scan_span(
    segment: &Segment,
    span: &Span,
    epoch: Epoch,
    places: RangeInclusive<Sequence>,
    each: &mut impl FnMut(Logged) -> Result<ControlFlow<()>, ReadError>,
) -> Result<ControlFlow<(), Sequence>, ReadError> {
    let mut next = *places.start();
    let read = segment.read(span)?;
    let is_large = read.len() > LARGE_READ_BYTES;
    let mut at = 0;
    while at < read.len() && next <= *places.end() {
        let said = frame::Header::parse(&read[at..]).ok_or_else(|| missing(next))?;
        let start = at;
        at += said.length;
        // Those before are passed over, damaged or not.
        if said.events == 0 || said.head() < next {
            continue;
        }
        // What is damaged is missed where the event behind it comes, or at the end.
        let Some(frame) = Frame::parse_around_damage(epoch, &read, start) else {
            continue;
        };
        for entry in frame.entries().flatten() {
            let (event_id, fingerprint, record) = match entry {
                Entry::Event {
                    event_id,
                    fingerprint,
                    record,
                } => (event_id, fingerprint, record),
                Entry::Unknown { kind } => return Err(ReadError::Corrupt(newer_kind(kind))),
                _ => continue,
            };
            if record.sequence() < next {
                continue;
            }
            if record.sequence() > next {
                return Err(missing(next));
            }
            if next > *places.end() {
                break;
            }
            next = next.next();
            let record = if is_large { record.compact() } else { record };
            let logged = Logged {
                event_id,
                fingerprint,
                record,
            };
            if each(logged)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    if next == *places.start() {
        Err(missing(next))
    } else {
        Ok(ControlFlow::Continue(next))
    }
}

fn missing(sequence: Sequence) -> ReadError {
    ReadError::Corrupt(format!("event {} is missing", sequence.0))
}

/// What is said of an entry of a kind that this version does not know.
fn newer_kind(kind: u8) -> String {
    format!("an entry of kind {kind}, which a newer version has written")
}
