//! The totals that each commit carries, so that starting never scans: how they change. Pure.
//!
//! Every node of a cluster counts them alike, so what they are is the cluster's ([`Totals`]).

use bytes::BufMut;

use super::{clock::Adoption, layout::Damaged};
use crate::{
    cluster::{Correction, Totals},
    event::Sequence,
};

pub(super) const MISFIT: Damaged = Damaged("totals: they do not fit what there is");

/// Only the last change of the clock is noted. What it says of older ones errs on the safe side: nothing is taken for older than
/// it is.
impl Correction {
    /// When an event counts as received, in microseconds since 1970.
    pub(super) fn of_event(&self, sequence: Sequence, log_time_micros: i64) -> i64 {
        self.corrected(sequence.0 <= self.events, log_time_micros)
    }

    /// When a quarantined callback counts as received, in microseconds since 1970.
    pub(super) fn of_quarantined(&self, number: u64, received_at_micros: i64) -> i64 {
        self.corrected(number <= self.quarantined, received_at_micros)
    }

    fn corrected(&self, is_older: bool, micros: i64) -> i64 {
        if is_older {
            micros.saturating_add(self.by_micros).min(self.at_micros)
        } else {
            micros
        }
    }
}

impl Totals {
    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut rest = &mut bytes[..];
        self.put(&mut rest);
        debug_assert!(!rest.has_remaining_mut(), "they have a fixed length");
        bytes
    }

    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Damaged> {
        if bytes.len() != Self::BYTES {
            return Err(Damaged("totals"));
        }
        Self::take(&mut bytes).ok_or(Damaged("totals"))
    }

    /// The newest event.
    pub(super) fn newest(&self) -> Result<Sequence, Damaged> {
        self.head().ok_or(MISFIT)
    }

    /// Takes note that the log's clock was changed: everything up to the event at `head` was
    /// stamped before.
    pub(super) fn correct(&mut self, head: Sequence, adoption: &Adoption) {
        let Adoption {
            at_micros,
            by_micros,
            earlier_by_micros,
        } = *adoption;
        let before = self.correction;
        let is_in_use = self.first_available <= before.events.min(head.0)
            || (self.quarantine_count > 0 && before.quarantined > 0);
        // What was stamped before the last change has to be moved by both.
        let twice = if is_in_use {
            before.by_micros.saturating_add(earlier_by_micros)
        } else {
            earlier_by_micros
        };
        self.correction = Correction {
            events: head.0,
            quarantined: self.quarantine_next,
            by_micros: by_micros.max(earlier_by_micros).max(twice),
            at_micros,
        };
        self.log_time_micros = at_micros;
    }

    /// Takes the oldest events out, up to and including the one at `sequence`, which has so many
    /// bytes.
    ///
    /// Numbers that wrapped would have retention forget everything, so those that do not fit are
    /// damage.
    pub(super) fn forget_event(&mut self, sequence: Sequence, bytes: u64) -> Result<(), Damaged> {
        let next = sequence.next().0;
        let gone = next.checked_sub(self.first_available).ok_or(MISFIT)?;
        let count = self.event_count.checked_sub(gone).ok_or(MISFIT)?;
        let rest = self.event_bytes.checked_sub(bytes).ok_or(MISFIT)?;
        // The bytes of events that could not be read when they were forgotten are not taken out
        // before.
        self.event_bytes = if count == 0 { 0 } else { rest };
        (self.event_count, self.first_available) = (count, next);
        Ok(())
    }

    /// Takes one callback of so many bytes out of quarantine.
    pub(super) fn forget_quarantined(&mut self, bytes: u64) -> Result<(), Damaged> {
        let count = self.quarantine_count.checked_sub(1).ok_or(MISFIT)?;
        self.quarantine_bytes = self.quarantine_bytes.checked_sub(bytes).ok_or(MISFIT)?;
        self.quarantine_count = count;
        Ok(())
    }

    /// Takes one expectation out.
    pub(super) fn end_expectation(&mut self) -> Result<(), Damaged> {
        self.expectation_count = self.expectation_count.checked_sub(1).ok_or(MISFIT)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Trust;

    proptest! {
        #[test]
        fn any_bytes_are_totals_or_damaged(bytes: [u8; Totals::BYTES], cut in 0..Totals::BYTES) {
            if let Ok(totals) = Totals::parse(&bytes) {
                prop_assert_eq!(totals.encode(), bytes);
            }
            prop_assert!(Totals::parse(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn totals_give_back_every_number() {
        let totals = Totals {
            first_available: 1,
            event_count: 2,
            event_bytes: 3,
            quarantine_next: 4,
            quarantine_count: 5,
            quarantine_bytes: 6,
            expectation_next: 12,
            expectation_count: 13,
            log_time_micros: -7,
            trust: Trust::Doubted,
            correction: Correction {
                events: 8,
                quarantined: 9,
                by_micros: -10,
                at_micros: 11,
            },
        };
        assert_eq!(Totals::parse(&totals.encode()), Ok(totals));
    }
}
