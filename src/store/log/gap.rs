//! What of the log cannot be read: how far it goes, and what is known of the events in it.
//!
//! A damaged body costs its own event only, as the rest of its commit proves itself. Where a commit
//! does not, its events are known by their places alone, up to the next event that can be read.

use std::{io, ops::RangeInclusive};

use rustix::io::Errno;

use super::{
    Log,
    frame::{self, Frame, Remains},
    read::{READ_BYTES, segment_of},
    segment::Segment,
};
use crate::{
    cluster::Correction,
    event::{Record, Sequence},
    store::error::ReadError,
};

/// Events, one behind another, that cannot be read.
#[derive(Debug)]
pub(in crate::store) struct Gap {
    pub first: Sequence,
    /// The first event behind it that can be read; or else where the next segment begins.
    pub behind: Sequence,
    /// Those whose keys are proven, in order, each with how many bytes its record has at least.
    pub known: Vec<(Record, u64)>,
    /// None of its events is younger than what is here was at that log time, in microseconds since
    /// 1970. Unknown if nothing follows.
    not_after: Option<(Sequence, i64)>,
}

impl Gap {
    /// When its youngest event counts as received at the latest, in microseconds since 1970.
    pub(in crate::store) fn received_micros(&self, correction: &Correction) -> Option<i64> {
        let (sequence, micros) = self.not_after?;
        Some(correction.of_event(sequence, micros))
    }

    /// How many bytes its events have at least.
    pub(in crate::store) fn bytes_min(&self) -> u64 {
        self.known.iter().map(|(_, bytes)| bytes).sum()
    }

    /// How many events it has.
    pub(in crate::store) fn events(&self) -> u64 {
        self.behind.0 - self.first.0
    }
}

impl Log {
    /// What cannot be read from the event at `first` on, as far as that is in one segment and not
    /// beyond `head`; `None` if that event can be read. An error says that the system cannot read
    /// now, which is no damage.
    pub(in crate::store) fn gap(&self, first: Sequence, head: Sequence) -> io::Result<Option<Gap>> {
        let (segment, next) = {
            let segments = self.segments();
            let Some(segment) = segment_of(&segments, first) else {
                return Ok(None); // removed meanwhile
            };
            let number = segment.header.number;
            let next = segments.iter().find(|it| it.header.number == number + 1);
            (segment, next.map(|next| next.header.totals))
        };

        let mut known = Vec::new();
        if let Some(readable) = self.first_readable(&segment, first, &mut known)? {
            let behind = readable.sequence();
            let not_after = Some((behind, readable.log_time_micros()));
            let gap = Gap {
                first,
                behind,
                known,
                not_after,
            };
            return Ok((gap.events() > 0).then_some(gap));
        }

        let behind = next.and_then(|totals| totals.head()).unwrap_or(head).next();
        let last = behind.previous();
        let last_known = known.last().map(|(keys, _)| keys);
        let last_known = last_known
            .filter(|keys| keys.sequence() == last)
            .map(Record::log_time_micros);
        let not_after = next.map(|totals| totals.log_time_micros).or(last_known);
        let gap = Gap {
            first,
            behind,
            known,
            not_after: not_after.map(|micros| (last, micros)),
        };
        Ok((behind > first).then_some(gap))
    }

    /// The first event from a place on that can be read in a segment; what is known of those before
    /// it goes to `known`.
    fn first_readable(
        &self,
        segment: &Segment,
        first: Sequence,
        known: &mut Vec<(Record, u64)>,
    ) -> io::Result<Option<Record>> {
        for span in segment.spans_from(first)? {
            let read = match segment.read(&span) {
                Err(error) if is_damage(&error) => continue,
                read => read?,
            };
            let mut at = 0;
            while let Some(said) = read.get(at..).and_then(frame::Header::parse) {
                let start = at;
                at += said.length;
                if said.events == 0 || said.head() < first {
                    continue;
                }
                let frame = Frame::parse_around_damage(self.epoch, &read, start);
                let events = frame.iter().flat_map(Frame::events);
                for (_, remains) in events.filter(|(place, _)| *place >= first) {
                    match remains {
                        Remains::Whole(record) => return Ok(Some(record)),
                        Remains::Keys(keys, bytes) => known.push((keys, bytes)),
                        Remains::Nothing => {}
                    }
                }
            }
        }
        Ok(None)
    }

    /// Hands over the events at these places, in order: of damaged ones their keys, as far as these
    /// are proven. The others are passed over.
    pub(in crate::store) fn scan_around_damage(
        &self,
        places: RangeInclusive<Sequence>,
        mut each: impl FnMut(&Record),
    ) -> Result<(), ReadError> {
        let (mut next, last) = places.into_inner();
        while next <= last {
            let scanned = self.scan_at_once(next..=last, READ_BYTES, |record| {
                next = record.sequence().next();
                each(&record);
                Ok(std::ops::ControlFlow::Continue(()))
            });
            let Err(error) = scanned else { break };
            let gap = self.gap(next, last)?.ok_or(error)?;
            let known = gap.known.iter().map(|(keys, _)| keys);
            known
                .filter(|keys| keys.sequence() <= last)
                .for_each(&mut each);
            next = gap.behind;
        }
        Ok(())
    }
}

/// Whether an error says that a part of a file is lost, and not that the system cannot read now.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || Errno::from_io_error(error) == Some(Errno::IO)
}
