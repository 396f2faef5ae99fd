//! One commit as it lies in the log. Pure.
//!
//! ```text
//! checksum     XXH3 of all that follows, seeded with the log's epoch (u64)
//! length       of the whole frame (u32)
//! events       how many of its entries are events (u32)
//! commit       its number (u64)
//! checkpoint   the oldest segment that a start after this commit has to replay (u64)
//! totals       as the commit leaves them
//! entries      tag (u8), and
//!              1  event: length (u32), event id (u128), fingerprint (u128), record (see event::Record)
//!              2  into quarantine: length (u32), number (u64), value
//!              3  out of quarantine: number (u64)
//! ```
//!
//! Integers are little-endian. The checksum makes a commit whole or nothing; the seed keeps another log's commits out.

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    event::{Epoch, Record, Sequence},
    store::layout::{Damaged, Fingerprint, Totals},
};

const CHECKSUM_BYTES: usize = 8;
pub(super) const HEADER_BYTES: usize = CHECKSUM_BYTES + 4 + 4 + 8 + 8 + Totals::BYTES;
const EVENT: u8 = 1;
const QUARANTINED: u8 = 2;
const DISCARDED: u8 = 3;

/// What a commit says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Header {
    /// Bytes of the whole frame.
    pub length: usize,
    /// How many of its entries are events.
    pub events: u32,
    /// Its number.
    pub commit: u64,
    /// The oldest segment that a start after it has to replay.
    pub checkpoint: u64,
    /// As it leaves them.
    pub totals: Totals,
}

impl Header {
    /// `None` if no frame begins with these bytes.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_BYTES {
            return None;
        }
        bytes.advance(CHECKSUM_BYTES);
        let length = bytes.get_u32_le() as usize;
        let events = bytes.get_u32_le();
        let (commit, checkpoint) = (bytes.get_u64_le(), bytes.get_u64_le());
        let totals = Totals::parse(&bytes[..Totals::BYTES]).ok()?;
        let has_events = totals.event_count >= u64::from(events) && totals.head().is_ok();
        (length >= HEADER_BYTES && has_events).then_some(Self { length, events, commit, checkpoint, totals })
    }

    /// The newest event up to here, of this commit or an earlier one.
    pub(super) fn head(&self) -> Sequence {
        self.totals.head().unwrap_or_default() // checked when it was parsed
    }

    /// The place of its first event, if it has any.
    pub(super) fn first_sequence(&self) -> Sequence {
        Sequence(self.head().0 + 1 - u64::from(self.events))
    }
}

/// A commit in the making.
#[derive(Debug)]
pub(in crate::store) struct FrameBuilder {
    bytes: Vec<u8>,
    events: u32,
}

impl FrameBuilder {
    pub(in crate::store) fn new() -> Self {
        Self { bytes: vec![0; HEADER_BYTES], events: 0 }
    }

    pub(in crate::store) fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES
    }

    /// Adds the next event.
    pub(in crate::store) fn event(&mut self, event_id: Uuid, fingerprint: Fingerprint, record: &Record) {
        self.events += 1;
        self.bytes.reserve(64 + record.len());
        self.bytes.put_u8(EVENT);
        self.bytes.put_u32_le(record.len() as u32); // as for its parts, the body limit bounds it
        self.bytes.put_u128_le(event_id.as_u128());
        self.bytes.put_u128_le(fingerprint);
        self.bytes.put_slice(record.bytes());
    }

    /// Puts a callback into quarantine.
    pub(in crate::store) fn quarantined(&mut self, number: u64, value: &[u8]) {
        self.bytes.put_u8(QUARANTINED);
        self.bytes.put_u32_le(value.len() as u32); // bounded by the body limit
        self.bytes.put_u64_le(number);
        self.bytes.put_slice(value);
    }

    /// Takes a callback out of quarantine.
    pub(in crate::store) fn discarded(&mut self, number: u64) {
        self.bytes.put_u8(DISCARDED);
        self.bytes.put_u64_le(number);
    }

    /// The frame's bytes, and what its header says.
    pub(super) fn finish(mut self, epoch: Epoch, commit: u64, checkpoint: u64, totals: Totals) -> (Vec<u8>, Header) {
        let header = Header { length: self.bytes.len(), events: self.events, commit, checkpoint, totals };
        let mut head = &mut self.bytes[CHECKSUM_BYTES..HEADER_BYTES];
        head.put_u32_le(header.length as u32); // a group's bytes are bounded, and so is the last command's body
        head.put_u32_le(header.events);
        head.put_u64_le(commit);
        head.put_u64_le(checkpoint);
        head.put_slice(&totals.encode());
        let checksum = xxh3_64_with_seed(&self.bytes[CHECKSUM_BYTES..], epoch.0);
        self.bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        (self.bytes, header)
    }
}

/// What a commit did.
#[derive(Clone, Debug)]
pub(in crate::store) enum Entry {
    Event { event_id: Uuid, fingerprint: Fingerprint, record: Record },
    Quarantined { number: u64, value: Bytes },
    Discarded { number: u64 },
}

/// A whole commit.
#[derive(Clone, Debug)]
pub(in crate::store) struct Frame {
    pub header: Header,
    bytes: Bytes,
}

impl Frame {
    /// The frame that begins at `at`; `None` if none does that is whole.
    pub(super) fn parse(epoch: Epoch, bytes: &Bytes, at: usize) -> Option<Self> {
        let header = Header::parse(bytes.get(at..)?)?;
        let whole = bytes.get(at..at.checked_add(header.length)?)?;
        let checksum = u64::from_le_bytes(*whole.first_chunk()?);
        let is_right = xxh3_64_with_seed(&whole[CHECKSUM_BYTES..], epoch.0) == checksum;
        is_right.then(|| Self { header, bytes: bytes.slice_ref(whole) })
    }

    /// What the commit did, in order. Shares the frame's bytes.
    pub(in crate::store) fn entries(&self) -> impl Iterator<Item = Result<Entry, Damaged>> {
        let mut rest = self.bytes.slice(HEADER_BYTES..);
        let mut sequence = self.header.first_sequence();
        std::iter::from_fn(move || {
            rest.has_remaining().then(|| take_entry(&mut rest, &mut sequence).ok_or(Damaged("commit")))
        })
    }
}

fn take_entry(rest: &mut Bytes, sequence: &mut Sequence) -> Option<Entry> {
    match rest.try_get_u8().ok()? {
        EVENT => {
            let length = rest.try_get_u32_le().ok()? as usize;
            let event_id = Uuid::from_u128(rest.try_get_u128_le().ok()?);
            let fingerprint = rest.try_get_u128_le().ok()?;
            let bytes = take(rest, length)?;
            let record = Record::from_stored(*sequence, bytes).ok()?;
            *sequence = sequence.next();
            Some(Entry::Event { event_id, fingerprint, record })
        }
        QUARANTINED => {
            let length = rest.try_get_u32_le().ok()? as usize;
            let number = rest.try_get_u64_le().ok()?;
            Some(Entry::Quarantined { number, value: take(rest, length)? })
        }
        DISCARDED => Some(Entry::Discarded { number: rest.try_get_u64_le().ok()? }),
        _ => None,
    }
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= rest.len()).then(|| rest.split_to(length))
}

/// Whether a whole commit with a number above `commit` begins anywhere behind the first of these bytes.
pub(super) fn is_followed(epoch: Epoch, bytes: &Bytes, commit: u64) -> bool {
    const LATER: u64 = 1 << 20;
    const NUMBER: usize = CHECKSUM_BYTES + 4 + 4;
    let number = |at: usize| bytes[at + NUMBER..].first_chunk().map_or(0, |number| u64::from_le_bytes(*number));
    (1..(bytes.len() + 1).saturating_sub(HEADER_BYTES))
        .any(|at| number(at).wrapping_sub(commit).wrapping_sub(1) < LATER && Frame::parse(epoch, bytes, at).is_some())
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;
    use crate::store::log::tests::record;

    /// A commit with a number, of events with these bodies and quarantined callbacks with these values.
    fn frame(commit: u64, events: &[Vec<u8>], quarantined: &[Vec<u8>]) -> Bytes {
        let mut builder = FrameBuilder::new();
        for (sequence, raw) in (11..).zip(events) {
            builder.event(Uuid::from_u128(sequence.into()), 7, &record(Sequence(sequence), raw));
        }
        for (number, value) in (1..).zip(quarantined) {
            builder.quarantined(number, value);
            builder.discarded(number);
        }
        let totals = Totals { first_available: 1, event_count: 10 + events.len() as u64, ..Totals::default() };
        builder.finish(Epoch(5), commit, 3, totals).0.into()
    }

    proptest! {
        #[test]
        fn a_commit_gives_back_what_it_did(
            commit: u64, events: Vec<Vec<u8>>, quarantined: Vec<Vec<u8>>, before: Vec<u8>, behind: Vec<u8>,
        ) {
            let bytes: Bytes = [&before[..], &frame(commit, &events, &quarantined), &behind].concat().into();
            let frame = Frame::parse(Epoch(5), &bytes, before.len()).unwrap();
            prop_assert_eq!((frame.header.commit, frame.header.checkpoint), (commit, 3));
            prop_assert_eq!(frame.header.length, bytes.len() - before.len() - behind.len());
            let (mut raws, mut values, mut discarded) = (Vec::new(), Vec::new(), 0);
            for entry in frame.entries() {
                match entry.unwrap() {
                    Entry::Event { event_id, fingerprint, record } => {
                        let place = 11 + raws.len() as u64;
                        prop_assert_eq!((record.sequence().0, event_id.as_u128(), fingerprint), (place, place.into(), 7));
                        raws.push(record.raw().to_vec());
                    }
                    Entry::Quarantined { number, value } => {
                        values.push(value.to_vec());
                        prop_assert_eq!(number, values.len() as u64);
                    }
                    Entry::Discarded { number } => {
                        discarded += 1;
                        prop_assert_eq!(number, discarded);
                    }
                }
            }
            prop_assert_eq!(discarded, quarantined.len() as u64);
            prop_assert_eq!((raws, values), (events, quarantined));
            prop_assert!(Frame::parse(Epoch(6), &bytes, before.len()).is_none(), "it is another log's");
        }

        #[test]
        fn no_flipped_bit_passes(events in collection::vec(any::<Vec<u8>>(), 1..3), at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = frame(1, &events, &[]).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::parse(Epoch(5), &bytes.into(), 0).is_none());
        }

        #[test]
        fn any_bytes_are_entries_or_damaged(body: Vec<u8>, tag in 0..5u8) {
            let frame = Frame {
                header: Header { length: 0, events: 0, commit: 0, checkpoint: 0, totals: Totals { first_available: 1, ..Totals::default() } },
                bytes: [&[0; HEADER_BYTES][..], &[tag], &body].concat().into(),
            };
            let _ = frame.entries().take_while(Result::is_ok).count();
            prop_assert!(Header::parse(&body).is_none_or(|header| header.length >= HEADER_BYTES));
        }

        #[test]
        fn a_later_commit_is_found_wherever_it_is(before in collection::vec(any::<u8>(), 1..300), behind: Vec<u8>, later in 1..9u64) {
            let with = |frame: &[u8]| -> Bytes { [&before[..], frame, &behind].concat().into() };
            prop_assert!(is_followed(Epoch(5), &with(&frame(8 + later, &[vec![1]], &[])), 8));
            prop_assert!(!is_followed(Epoch(5), &with(&frame(8, &[vec![1]], &[])), 8));
            prop_assert!(!is_followed(Epoch(6), &with(&frame(8 + later, &[vec![1]], &[])), 8));
        }
    }
}
