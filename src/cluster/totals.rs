//! What every node counts alike: the totals of a log before and after a frame. Pure.
//!
//! They are the totals that each commit of a node's own log carries, all of them: places and numbers are given out from them,
//! retention is decided by them, and what is older than a step of the log's clock is aged by them. The next writer goes on
//! from them, so a node that has others would give out other places.
//!
//! What only one node counts is not among them: numbers of commits and segments, bytes on its disk, its checkpoints.

use bytes::{Buf, BufMut};

use crate::event::Sequence;

/// The counts of a log at one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Totals {
    /// The first place that may have an event; all before it are forgotten.
    pub first_available: u64,
    /// Retained events. They lie without gaps from the first place on.
    pub event_count: u64,
    /// Bytes of their records, as far as they are not erased.
    pub event_bytes: u64,
    /// The newest number that a quarantined callback was given.
    pub quarantine_next: u64,
    /// Callbacks in quarantine.
    pub quarantine_count: u64,
    /// Bytes of them.
    pub quarantine_bytes: u64,
    /// The newest number that an expectation was given.
    pub expectation_next: u64,
    /// Open expectations.
    pub expectation_count: u64,
    /// The newest time of the log's clock, in microseconds since 1970.
    pub log_time_micros: i64,
    /// How far the times in the log can be trusted.
    pub trust: Trust,
    /// How what is older than the last step of the log's clock is aged.
    pub correction: Correction,
}

/// How far the times in a log can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Trust {
    /// They are right.
    #[default]
    Known = 0,
    /// The writer did not know yet how long its machine had been off.
    Waiting = 1,
    /// Its clocks disagreed.
    Doubted = 2,
}

/// The log's clock was changed: how what was stamped before is aged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Correction {
    /// The newest event that it is about.
    pub events: u64,
    /// The newest number in quarantine that it is about.
    pub quarantined: u64,
    /// They count as received so many microseconds later than they were stamped,
    pub by_micros: i64,
    /// but not later than this, in microseconds since 1970.
    pub at_micros: i64,
}

impl Totals {
    /// Bytes of the encoded form.
    pub const BYTES: usize = 112;

    /// The totals of a log in which nothing ever was.
    pub const EMPTY: Self = Self {
        first_available: 1,
        event_count: 0,
        event_bytes: 0,
        quarantine_next: 0,
        quarantine_count: 0,
        quarantine_bytes: 0,
        expectation_next: 0,
        expectation_count: 0,
        log_time_micros: 0,
        trust: Trust::Known,
        correction: Correction {
            events: 0,
            quarantined: 0,
            by_micros: 0,
            at_micros: 0,
        },
    };

    /// Appends the encoded form, the same that the local log's commits have.
    pub fn put(&self, bytes: &mut impl BufMut) {
        let counts = [
            self.first_available,
            self.event_count,
            self.event_bytes,
            self.quarantine_next,
            self.quarantine_count,
            self.quarantine_bytes,
            self.expectation_next,
            self.expectation_count,
        ];
        counts
            .into_iter()
            .for_each(|number| bytes.put_u64_le(number));
        bytes.put_i64_le(self.log_time_micros);
        bytes.put_u64_le(self.trust as u64);

        bytes.put_u64_le(self.correction.events);
        bytes.put_u64_le(self.correction.quarantined);
        bytes.put_i64_le(self.correction.by_micros);
        bytes.put_i64_le(self.correction.at_micros);
    }

    /// Reads the encoded form; `None` if there are too few bytes, or if they are no totals.
    pub fn take(bytes: &mut impl Buf) -> Option<Self> {
        if bytes.remaining() < Self::BYTES {
            return None;
        }
        let totals = Self {
            first_available: bytes.get_u64_le(),
            event_count: bytes.get_u64_le(),
            event_bytes: bytes.get_u64_le(),
            quarantine_next: bytes.get_u64_le(),
            quarantine_count: bytes.get_u64_le(),
            quarantine_bytes: bytes.get_u64_le(),
            expectation_next: bytes.get_u64_le(),
            expectation_count: bytes.get_u64_le(),
            log_time_micros: bytes.get_i64_le(),
            trust: Trust::from_number(bytes.get_u64_le())?,
            correction: Correction {
                events: bytes.get_u64_le(),
                quarantined: bytes.get_u64_le(),
                by_micros: bytes.get_i64_le(),
                at_micros: bytes.get_i64_le(),
            },
        };
        totals.head().map(|_| totals)
    }

    /// The newest event; `None` if the numbers do not fit each other.
    pub fn head(&self) -> Option<Sequence> {
        let next = self.first_available.checked_add(self.event_count)?;
        // The next place must exist, too.
        next.checked_add(1)?;
        next.checked_sub(1).map(Sequence)
    }
}

impl Trust {
    fn from_number(number: u64) -> Option<Self> {
        [Self::Known, Self::Waiting, Self::Doubted]
            .into_iter()
            .find(|trust| *trust as u64 == number)
    }
}
