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
    segment::{self, Segment, Span},
    summary::Wanted,
};
use crate::{
    event::{Epoch, Filter, Fingerprint, Record, Sequence},
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

    /// Hands over the events at these places in order, each with whether the filter selects it, until told to stop. Passes over
    /// sealed segments whose summary says that they have nothing for the filter, damaged or not.
    pub(in crate::store) fn scan_for(
        &self,
        filter: &Filter,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        mut each: impl FnMut(Step) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut search = Search::new(self, filter);
        let (mut next, last) = places.into_inner();
        while next <= last {
            let (segment, behind) = self.around(next).ok_or_else(|| missing(next))?;
            let is_at_edge = next == segment.first_sequence();
            if let Some(bytes) = search.rules_out(&segment, behind.as_ref(), is_at_edge) {
                let end = behind.map_or(last, |behind| behind.first_sequence().previous());
                let to = end.min(last);
                if each(Step::Skipped { to, bytes }).is_break() {
                    break;
                }
                next = to.next();
                continue;
            }

            let Some(span) = segment.span(next, bytes)? else {
                return Err(missing(next));
            };
            let _turn = self.turns.take(&span);
            let mut each = |logged: Logged| Ok(each(search.look(logged.record)));
            match scan_span(&segment, &span, self.epoch, next..=last, &mut each)? {
                ControlFlow::Continue(behind) => next = behind,
                ControlFlow::Break(()) => break,
            }
        }
        Ok(())
    }

    /// The same backwards, from the end of `places`.
    pub(in crate::store) fn scan_back_for(
        &self,
        filter: &Filter,
        places: RangeInclusive<Sequence>,
        mut each: impl FnMut(Step) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut search = Search::new(self, filter);
        let (first, mut last) = places.into_inner();
        while last >= first {
            let (segment, behind) = self.around(last).ok_or_else(|| missing(last))?;
            let is_at_edge = behind.is_some_and(|behind| behind.first_sequence() == last.next());
            if let Some(bytes) = search.rules_out(&segment, behind.as_ref(), is_at_edge) {
                let to = segment.first_sequence().max(first);
                if each(Step::Skipped { to, bytes }).is_break() {
                    break;
                }
                last = to.previous();
                continue;
            }

            let Some(span) = segment.span(last, 0)? else {
                return Err(missing(last));
            };
            let _turn = self.turns.take(&span);
            let start = span.first.max(first);
            let mut records = Vec::new();
            let all = scan_span(&segment, &span, self.epoch, start..=last, &mut |logged| {
                records.push(logged.record);
                Ok(ControlFlow::Continue(()))
            })?;
            if all != ControlFlow::Continue(last.next()) {
                return Err(missing(last));
            }
            for record in records.into_iter().rev() {
                if each(search.look(record)).is_break() {
                    return Ok(());
                }
            }
            last = start.previous();
        }
        Ok(())
    }

    /// The segment that should have the event at `sequence`, and the header of the one behind it.
    fn around(&self, sequence: Sequence) -> Option<(Arc<Segment>, Option<segment::Header>)> {
        let segments = self.segments();
        let behind = segments.partition_point(|segment| segment.first_sequence() <= sequence);
        let segment = segments.get(behind.checked_sub(1)?)?;
        let behind = segments.get(behind).map(|behind| behind.header);
        Some((Arc::clone(segment), behind))
    }

    /// Hands over the events of one segment at these places, in no reader's turn.
    pub(super) fn scan_segment(
        &self,
        segment: &Segment,
        places: RangeInclusive<Sequence>,
        mut each: impl FnMut(Record),
    ) -> Result<(), ReadError> {
        let (mut next, last) = places.into_inner();
        while next <= last {
            let Some(span) = segment.span(next, READ_BYTES)? else {
                return Err(missing(next));
            };
            let flow = scan_span(segment, &span, self.epoch, next..=last, &mut |logged| {
                each(logged.record);
                Ok(ControlFlow::Continue(()))
            })?;
            let ControlFlow::Continue(behind) = flow else {
                break;
            };
            next = behind;
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

/// What a scan for a filter comes by.
#[derive(Debug)]
pub(in crate::store) enum Step {
    Event {
        record: Record,
        is_selected: bool,
    },
    /// The rest of a segment, in the direction of the scan, has nothing for the filter.
    Skipped {
        /// The last place of it.
        to: Sequence,
        /// What was read to know that.
        bytes: usize,
    },
}

/// A scan for a filter: asks each segment's summary once, and not while it finds enough.
struct Search<'a> {
    log: &'a Log,
    filter: &'a Filter,
    wanted: Option<Wanted>,
    /// The number of the segment whose summary was asked last.
    asked: Option<u64>,
    looked: usize,
    found: usize,
}

impl<'a> Search<'a> {
    /// To read a summary costs as much as to look at about so many events.
    const PATIENCE: usize = 64;

    fn new(log: &'a Log, filter: &'a Filter) -> Self {
        Self {
            log,
            filter,
            wanted: Wanted::of(filter),
            asked: None,
            looked: 0,
            found: 0,
        }
    }

    /// The bytes that it took to find that a segment has nothing for the filter; `None` if it may have something, or is not worth
    /// asking now.
    fn rules_out(
        &mut self,
        segment: &Segment,
        behind: Option<&segment::Header>,
        is_at_edge: bool,
    ) -> Option<usize> {
        let (wanted, behind) = (self.wanted.as_ref()?, behind?);
        let is_dry = self.found == 0 && self.looked >= Self::PATIENCE;
        let number = segment.header.number;
        if self.asked == Some(number) || !is_at_edge && !is_dry {
            return None;
        }
        self.asked = Some(number);
        self.log.rules_out(segment, behind, wanted)
    }

    fn look(&mut self, record: Record) -> Step {
        // What was erased is as if retention had forgotten it.
        let is_selected = self.filter.matches(&record) && !record.is_erased();
        self.looked += 1;
        self.found += usize::from(is_selected);
        Step::Event {
            record,
            is_selected,
        }
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
