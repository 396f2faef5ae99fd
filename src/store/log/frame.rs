//! One commit as it lies in the log. Pure.
//!
//! ```text
//! checksum     XXH3 of what follows but bodies and marks, piece by piece, seeded with the log's epoch (u64)
//! length       of the whole frame (u32)
//! events       how many of its entries are events (u32)
//! commit       its number (u64)
//! oldest       the oldest segment that the log needed when this commit was written (u64)
//! streamed     the frame of the stream that it came from: its sequence and its chain (twice u64). Of a commit that came from none,
//!              those of the commit before; zeros on a single machine
//! totals       as the commit leaves them
//! entries      kind (u8), and
//!              1  event: kept is id (u128), fingerprint (32 bytes) and the keys of its record (see event::Record)
//!              2  into quarantine: kept is its number (u64)
//!              3  out of quarantine by retention: number (u64)
//!              4  out of quarantine by release or discard, and erased: number (u64)
//!              5  an earlier event is erased: its place (u64)
//!              6  a quarantined callback is written again: kept is its number (u64)
//!              7  a task is expected, or that is written again: kept is its number (u64)
//!              8  a task is not expected any more: kept is its number (u64)
//!            130  a quarantined callback is written again in this log: kept is its number, and the frame with its newest copy in the
//!                 stream (u64 each)
//!            132  where the copies of a callback lie that 4 has erased: kept is its number (u64), and the places of its two newest
//!                 copies (twice segment and offset, u64 each; zeros for a copy that is not there)
//!            135  an expectation is written again in this log: kept as in 130
//! ```
//!
//! Kinds below 128 are decisions: each node of a cluster has them alike. Those from 128 on are about this log's own segments.
//!
//! An entry of any kind but 3, 4 and 5 is laid out as mark (8 bytes), length of what is kept (u32),
//! length of the body (u32), digest of the body (u64), what is kept, body. So a kind that a later
//! version adds can be proven, and its name told, by a version that does not know it.
//!
//! The kind says what becomes of an entry before its segment is removed. Events are forgotten
//! oldest first, so none is left when its segment goes. A callback that is still in quarantine is
//! written again into the newest segment (6), and so is a task that is still expected (7). The other kinds speak of older entries only, and are
//! done when those are gone.
//!
//! Integers are little-endian. The checksum makes a commit whole or nothing; the seed keeps another
//! log's commits out.
//!
//! A body can be erased in place, and the commit stays provable: the checksum covers the digest of
//! each body (XXH3) instead of the body. First the entry is marked, and that is synced; then the
//! body is overwritten. A body with the mark is erased, whatever is left of it; one without, or
//! with a mark that a crash has torn, has to have its digest. So a crash at any moment leaves a
//! whole commit. If a crash interrupts the overwriting, the next start finishes it: the entry (5,
//! 132) that announced it is replayed.

mod decisions;

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::entry::{
    Body, CARRIED, CARRIED_HERE, COPIES, COPIES_ERASED, ERASED, EVENT, EXPECTATION_ENDED, EXPECTED,
    EXPECTED_HERE, EXPIRED, Entry, HEAD_BYTES, IDENTITY_BYTES, Laid, MARK_BYTES, NUMBER_BYTES,
    PLACES_BYTES, Place, QUARANTINED, REMOVED, entry, is_carried_on, keys_of, lay,
};
use super::summary::Gathered;
use crate::{
    cluster::Totals,
    event::{Epoch, Fingerprint, Record, Sequence},
    store::layout::Damaged,
};

const CHECKSUM_BYTES: usize = 8;
pub(super) const HEADER_BYTES: usize = CHECKSUM_BYTES + 4 + 4 + 8 + 8 + 16 + Totals::BYTES;

/// The frame of the stream that a commit came from. There is none on a single machine: zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Streamed {
    /// Its sequence.
    pub frame: u64,
    /// Its chain.
    pub chain: u64,
}

impl Streamed {
    pub(super) fn put(self, bytes: &mut impl BufMut) {
        bytes.put_u64_le(self.frame);
        bytes.put_u64_le(self.chain);
    }

    /// Of bytes that are long enough.
    pub(super) fn take(bytes: &mut impl Buf) -> Self {
        Self {
            frame: bytes.get_u64_le(),
            chain: bytes.get_u64_le(),
        }
    }
}

/// What a commit says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Header {
    /// Bytes of the whole frame.
    pub length: usize,
    /// How many of its entries are events.
    pub events: u32,
    /// Its number.
    pub commit: u64,
    /// The oldest segment that the log needed when it was written.
    pub oldest: u64,
    /// Where it came from.
    pub streamed: Streamed,
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
        let (commit, oldest) = (bytes.get_u64_le(), bytes.get_u64_le());
        let streamed = Streamed::take(&mut bytes);
        let totals = Totals::take(&mut bytes)?;
        let has_events = totals.event_count >= u64::from(events);
        (length >= HEADER_BYTES && has_events).then_some(Self {
            length,
            events,
            commit,
            oldest,
            streamed,
            totals,
        })
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
    /// Quarantined callbacks in it.
    quarantined: Vec<Put>,
    has_expectations: bool,
    /// What its events have, for the summary of its segment.
    pub(super) gathered: Gathered,
    /// `None` of a commit that comes from no frame.
    pub streamed: Option<Streamed>,
}

/// A quarantined callback in a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Put {
    pub number: u64,
    /// Where in the frame its entry begins.
    pub at: usize,
    /// The frame that has its newest copy in the stream; `None`: the one that the commit came from.
    pub frame: Option<u64>,
}

impl FrameBuilder {
    pub(in crate::store) fn new() -> Self {
        Self {
            bytes: vec![0; HEADER_BYTES],
            events: 0,
            quarantined: Vec::new(),
            has_expectations: false,
            gathered: Gathered::default(),
            streamed: None,
        }
    }

    pub(in crate::store) fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES
    }

    /// Adds the next event.
    pub(in crate::store) fn event(
        &mut self,
        event_id: Uuid,
        fingerprint: Fingerprint,
        record: &Record,
    ) {
        self.events += 1;
        self.gathered.add(record);
        let (kept, body) = record.bytes().split_at(record.kept_len());
        self.head(EVENT, IDENTITY_BYTES + kept.len(), body);
        self.bytes.put_u128_le(event_id.as_u128());
        fingerprint.put(&mut self.bytes);
        self.bytes.put_slice(record.bytes());
    }

    /// Puts a callback into quarantine.
    pub(in crate::store) fn quarantined(&mut self, number: u64, value: &[u8]) {
        self.put_quarantined(QUARANTINED, number, value);
    }

    /// Writes a quarantined callback again, before the segment of its first copy is removed.
    pub(in crate::store) fn carried(&mut self, number: u64, value: &[u8]) {
        self.put_quarantined(CARRIED, number, value);
    }

    /// The same in this log only, which no frame knows of. `frame` has its newest copy in the stream.
    pub(in crate::store) fn carried_here(&mut self, number: u64, frame: u64, value: &[u8]) {
        self.quarantined.push(Put {
            number,
            at: self.bytes.len(),
            frame: Some(frame),
        });
        self.head(CARRIED_HERE, 2 * NUMBER_BYTES, value);
        self.bytes.put_u64_le(number);
        self.bytes.put_u64_le(frame);
        self.bytes.put_slice(value);
    }

    fn put_quarantined(&mut self, kind: u8, number: u64, value: &[u8]) {
        self.quarantined.push(Put {
            number,
            at: self.bytes.len(),
            frame: None,
        });
        self.head(kind, NUMBER_BYTES, value);
        self.bytes.put_u64_le(number);
        self.bytes.put_slice(value);
    }

    /// Takes a callback out of quarantine because of its age or the quarantine's size. In the log
    /// it goes with its segment.
    pub(in crate::store) fn expired(&mut self, number: u64) {
        self.bytes.put_u8(EXPIRED);
        self.bytes.put_u64_le(number);
    }

    /// Takes a callback out of quarantine that was released or discarded, and announces that its
    /// copies are erased.
    pub(in crate::store) fn removed(&mut self, number: u64, copies: &[Place]) {
        self.bytes.put_u8(REMOVED);
        self.bytes.put_u64_le(number);
        if copies.is_empty() {
            return;
        }
        self.head(COPIES_ERASED, NUMBER_BYTES + PLACES_BYTES, &[]);
        self.bytes.put_u64_le(number);
        for copy in 0..COPIES {
            let place = copies.get(copy).map_or([0; 2], |it| [it.segment, it.at]);
            place.into_iter().for_each(|it| self.bytes.put_u64_le(it));
        }
    }

    /// Announces that an earlier event is erased.
    pub(in crate::store) fn erased(&mut self, place: Sequence) {
        self.bytes.put_u8(ERASED);
        self.bytes.put_u64_le(place.0);
    }

    /// Has a task expected, or writes that again.
    pub(in crate::store) fn expected(&mut self, number: u64, value: &[u8]) {
        self.has_expectations = true;
        self.head(EXPECTED, NUMBER_BYTES, value);
        self.bytes.put_u64_le(number);
        self.bytes.put_slice(value);
    }

    /// Writes an expectation again, in this log only, which no frame knows of. `frame` has its newest copy in the stream.
    pub(in crate::store) fn expected_here(&mut self, number: u64, frame: u64, value: &[u8]) {
        self.has_expectations = true;
        self.head(EXPECTED_HERE, 2 * NUMBER_BYTES, value);
        self.bytes.put_u64_le(number);
        self.bytes.put_u64_le(frame);
        self.bytes.put_slice(value);
    }

    /// Has a task not expected any more.
    pub(in crate::store) fn expectation_ended(&mut self, number: u64) {
        self.head(EXPECTATION_ENDED, NUMBER_BYTES, &[]);
        self.bytes.put_u64_le(number);
    }

    /// Whether it brings content that grows old: see [`Frame::brought_at`].
    pub(super) fn has_content(&self) -> bool {
        self.events > 0 || !self.quarantined.is_empty() || self.has_expectations
    }

    /// What an entry with a body begins with.
    fn head(&mut self, kind: u8, kept_bytes: usize, body: &[u8]) {
        self.bytes.reserve(HEAD_BYTES + kept_bytes + body.len());
        self.bytes.put_u8(kind);
        self.bytes.put_bytes(0, MARK_BYTES);
        self.bytes.put_u32_le(kept_bytes as u32); // keys
        self.bytes.put_u32_le(body.len() as u32); // bounded by the body limit
        self.bytes.put_u64_le(xxh3_64(body));
    }

    /// The frame's bytes, what its header says, and where the quarantined callbacks in it begin.
    pub(super) fn finish(
        mut self,
        epoch: Epoch,
        commit: u64,
        oldest: u64,
        totals: Totals,
    ) -> (Vec<u8>, Header, Vec<Put>) {
        let header = Header {
            length: self.bytes.len(),
            events: self.events,
            commit,
            oldest,
            streamed: self.streamed.unwrap_or_default(),
            totals,
        };
        let mut head = &mut self.bytes[CHECKSUM_BYTES..HEADER_BYTES];
        head.put_u32_le(header.length as u32); // a group's bytes are bounded, and so is the last command's body
        head.put_u32_le(header.events);
        head.put_u64_le(commit);
        head.put_u64_le(oldest);
        header.streamed.put(&mut head);
        totals.put(&mut head);
        let checksum =
            checksum_of(epoch, &self.bytes, |_| true).expect("the entries were laid out above");
        self.bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        (self.bytes, header, self.quarantined)
    }
}

/// The entries of a frame, in order; `None` for one that is none, and nothing behind it.
fn laid(bytes: &[u8]) -> impl Iterator<Item = Option<Laid>> {
    let mut at = HEADER_BYTES;
    std::iter::from_fn(move || {
        (at < bytes.len()).then(|| {
            let laid = lay(bytes, at);
            at = laid.as_ref().map_or(bytes.len(), |laid| laid.body.end);
            laid
        })
    })
}

/// The checksum of a frame, whatever its first bytes say; `None` if its entries cannot be
/// separated, or one of them is not good.
fn checksum_of(epoch: Epoch, bytes: &[u8], is_good: impl Fn(&Laid) -> bool) -> Option<u64> {
    let header = xxh3_64_with_seed(bytes.get(CHECKSUM_BYTES..HEADER_BYTES)?, epoch.0);
    laid(bytes).try_fold(header, |seed, laid| {
        let laid = laid.filter(&is_good)?;
        Some(xxh3_64_with_seed(
            &bytes[laid.proven],
            seed ^ u64::from(laid.kind),
        ))
    })
}

/// A commit that is proven.
#[derive(Clone, Debug)]
pub(in crate::store) struct Frame {
    pub header: Header,
    bytes: Bytes,
    /// Its bodies are proven, too.
    is_whole: bool,
}

/// What there is of an event.
pub(super) enum Remains {
    Whole(Record),
    /// Its keys, and how many bytes its record has at least.
    Keys(Record, u64),
    Nothing,
}

impl Frame {
    /// The frame that begins at `at`; `None` if none does that is whole.
    pub(super) fn parse(epoch: Epoch, bytes: &Bytes, at: usize) -> Option<Self> {
        Self::proven(epoch, bytes, at, true)
    }

    /// The same, but each body proves itself when it is looked at: a damaged one costs no other
    /// entry.
    pub(super) fn parse_around_damage(epoch: Epoch, bytes: &Bytes, at: usize) -> Option<Self> {
        Self::proven(epoch, bytes, at, false)
    }

    fn proven(epoch: Epoch, bytes: &Bytes, at: usize, is_whole: bool) -> Option<Self> {
        let header = Header::parse(bytes.get(at..)?)?;
        let frame = bytes.get(at..at.checked_add(header.length)?)?;
        let checksum = u64::from_le_bytes(*frame.first_chunk()?);
        let is_good = |laid: &Laid| !is_whole || laid.is_whole(frame);
        let is_right = checksum_of(epoch, frame, is_good) == Some(checksum);
        is_right.then(|| Self {
            header,
            bytes: bytes.slice_ref(frame),
            is_whole,
        })
    }

    /// Whether an entry is as it was written.
    fn is_good(&self, laid: &Laid) -> bool {
        self.is_whole || laid.is_whole(&self.bytes)
    }

    /// The log's time at this commit, in microseconds since 1970, if it brings content: an event,
    /// or a quarantined callback or an expectation, for the first time or again.
    pub(super) fn brought_at(&self) -> Option<i64> {
        let has_content = self.header.events > 0
            || laid(&self.bytes)
                .flatten()
                .any(|laid| is_carried_on(laid.kind));
        has_content.then_some(self.header.totals.log_time_micros)
    }

    /// The bodies in it, with what they are of; damaged ones are passed over.
    pub(super) fn bodies(&self) -> impl Iterator<Item = (Entry, Body)> {
        let mut sequence = self.header.first_sequence();
        laid(&self.bytes).flatten().filter_map(move |laid| {
            let mark = laid.mark.clone()?.start;
            let entry = entry(&self.bytes, &laid, &mut sequence).filter(|_| self.is_good(&laid))?;
            Some((
                entry,
                Body {
                    mark,
                    range: laid.body,
                },
            ))
        })
    }

    /// The body of the entry that begins at `at` in it, damaged or not.
    pub(super) fn body_at(&self, at: usize) -> Option<Body> {
        let laid = laid(&self.bytes).flatten().find(|laid| laid.at == at)?;
        Some(Body {
            mark: laid.mark?.start,
            range: laid.body,
        })
    }

    /// Its events, in order, with what there is of each.
    pub(super) fn events(&self) -> impl Iterator<Item = (Sequence, Remains)> {
        let mut next = self.header.first_sequence();
        let events = laid(&self.bytes)
            .flatten()
            .filter(|laid| laid.kind == EVENT);
        events.map(move |laid| {
            let place = next;
            let read = entry(&self.bytes, &laid, &mut next).filter(|_| self.is_good(&laid));
            let remains = match read {
                Some(Entry::Event { record, .. }) => Remains::Whole(record),
                _ => keys_of(&self.bytes, &laid, place)
                    .map_or(Remains::Nothing, |(keys, bytes)| Remains::Keys(keys, bytes)),
            };
            (place, remains)
        })
    }

    /// What the commit did, in order; an error for an entry that is damaged. Shares the frame's
    /// bytes.
    pub(in crate::store) fn entries(&self) -> impl Iterator<Item = Result<Entry, Damaged>> {
        let (frame, mut at) = (self.clone(), HEADER_BYTES);
        let mut sequence = self.header.first_sequence();
        std::iter::from_fn(move || {
            let bytes = &frame.bytes;
            (at < bytes.len()).then(|| {
                let laid = lay(bytes, at);
                at = laid.as_ref().map_or(bytes.len(), |laid| laid.body.end);
                laid.and_then(|laid| {
                    // Also of a damaged one, which has a place.
                    let entry = entry(bytes, &laid, &mut sequence);
                    entry.filter(|_| frame.is_good(&laid))
                })
                .ok_or(Damaged("commit"))
            })
        })
    }
}

/// Whether a whole commit with a number above `commit` begins anywhere behind the first of these
/// bytes.
pub(super) fn is_followed(epoch: Epoch, bytes: &Bytes, commit: u64) -> bool {
    const LATER: u64 = 1 << 20;
    const NUMBER: usize = CHECKSUM_BYTES + 4 + 4;
    let number = |at: usize| {
        bytes[at + NUMBER..]
            .first_chunk()
            .map_or(0, |number| u64::from_le_bytes(*number))
    };
    (1..(bytes.len() + 1).saturating_sub(HEADER_BYTES)).any(|at| {
        number(at).wrapping_sub(commit).wrapping_sub(1) < LATER
            && Frame::parse(epoch, bytes, at).is_some()
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::{
        super::entry::{MARK, quarantined_at, quarantined_length},
        *,
    };
    use crate::{event::Selectable, store::log::tests::record};

    /// A commit with a number, of events with these bodies and quarantined callbacks with these
    /// values.
    fn frame(commit: u64, events: &[Vec<u8>], quarantined: &[Vec<u8>]) -> Bytes {
        let mut builder = FrameBuilder::new();
        for (sequence, raw) in (11..).zip(events) {
            builder.event(
                Uuid::from_u128(sequence.into()),
                7.into(),
                &record(Sequence(sequence), raw),
            );
        }
        for (number, value) in (1..).zip(quarantined) {
            builder.quarantined(number, value);
            builder.expired(number);
            builder.removed(
                number,
                &[Place {
                    segment: number,
                    at: 7,
                }],
            );
            builder.erased(Sequence(number));
            builder.expected(number, value);
            builder.expectation_ended(number);
        }
        let totals = Totals {
            first_available: 1,
            event_count: 10 + events.len() as u64,
            ..Totals::default()
        };
        builder.finish(Epoch(5), commit, 3, totals).0.into()
    }

    proptest! {
        #[test]
        fn a_commit_gives_back_what_it_did(
            commit: u64, events: Vec<Vec<u8>>, quarantined: Vec<Vec<u8>>, before: Vec<u8>, behind: Vec<u8>,
        ) {
            let bytes: Bytes = [&before[..], &frame(commit, &events, &quarantined), &behind].concat().into();
            let frame = Frame::parse(Epoch(5), &bytes, before.len()).unwrap();
            prop_assert_eq!((frame.header.commit, frame.header.oldest), (commit, 3));
            prop_assert_eq!(frame.header.length, bytes.len() - before.len() - behind.len());
            let (mut raws, mut values, mut expired) = (Vec::new(), Vec::new(), 0);
            for entry in frame.entries() {
                match entry.unwrap() {
                    Entry::Event { event_id, fingerprint, record } => {
                        let place = 11 + raws.len() as u64;
                        prop_assert_eq!((record.sequence().0, event_id.as_u128(), fingerprint), (place, place.into(), 7.into()));
                        raws.push(record.raw().to_vec());
                    }
                    Entry::Quarantined { number, value, .. } => {
                        values.push(value.unwrap().to_vec());
                        prop_assert_eq!(number, values.len() as u64);
                    }
                    Entry::Expired { number } => {
                        expired += 1;
                        prop_assert_eq!(number, expired);
                    }
                    Entry::Removed { number } => prop_assert_eq!(number, expired),
                    Entry::CopiesErased { number, copies } => {
                        prop_assert_eq!(number, expired);
                        prop_assert_eq!(copies, [Place { segment: number, at: 7 }]);
                    }
                    Entry::Erased { place } => prop_assert_eq!(place.0, expired),
                    Entry::Expected { number, value, .. } => {
                        prop_assert_eq!(number, expired);
                        prop_assert_eq!(&value, values.last().unwrap());
                    }
                    Entry::ExpectationEnded { number } => prop_assert_eq!(number, expired),
                    Entry::Unknown { kind } => prop_assert!(false, "kind {kind}"),
                }
            }
            prop_assert_eq!(expired, quarantined.len() as u64);
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
        fn what_a_crash_leaves_of_an_erasure_is_whole_and_what_is_marked_has_no_body(
            events in collection::vec(any::<Vec<u8>>(), 1..4), quarantined in collection::vec(any::<Vec<u8>>(), 0..3),
            which: prop::sample::Index, of_quarantine: bool, marked in 0..=8usize, from_behind: bool,
            overwritten: prop::sample::Index,
        ) {
            let bytes = frame(1, &events, &quarantined);
            let whole = Frame::parse(Epoch(5), &bytes, 0).unwrap();
            let of_quarantine = of_quarantine && !quarantined.is_empty();
            let count = if of_quarantine { quarantined.len() } else { events.len() };
            let which = which.index(count);
            let first = if of_quarantine { events.len() } else { 0 };
            let is_erasable = |(entry, _): &(Entry, Body)| matches!(entry, Entry::Event { .. } | Entry::Quarantined { .. });
            let (_, body) = whole.bodies().filter(is_erasable).nth(first + which).expect("each has one");
            let mut after = bytes.to_vec();
            let written = if from_behind { MARK.len() - marked..MARK.len() } else { 0..marked };
            let place = body.mark + written.start..body.mark + written.end;
            after[place].copy_from_slice(&MARK[written]);
            let is_erased = marked == MARK.len();
            if is_erased {
                let end = body.range.start + overwritten.index(body.range.len() + 1);
                after[body.range.start..end].fill(0);
            }
            let frame = Frame::parse(Epoch(5), &after.into(), 0).expect("a crash has damaged it");
            for (at, entry) in frame.entries().enumerate() {
                match entry.unwrap() {
                    Entry::Event { record, .. } => {
                        let is_meant = is_erased && !of_quarantine && at == which;
                        prop_assert_eq!(record.is_erased(), is_meant);
                        prop_assert_eq!(record.raw(), if is_meant { &[] } else { &*events[at] });
                        prop_assert_eq!(record.task_id(), "t1");
                    }
                    Entry::Quarantined { number, value, .. } => {
                        let at = number as usize - 1;
                        let is_meant = is_erased && of_quarantine && at == which;
                        prop_assert_eq!(value.as_deref(), (!is_meant).then_some(&*quarantined[at]));
                    }
                    _ => {}
                }
            }
        }

        #[test]
        fn any_bytes_are_entries_or_damaged(body: Vec<u8>, kind: u8) {
            let frame = Frame {
                is_whole: true,
                header: Header { length: 0, events: 0, commit: 0, oldest: 0, streamed: Streamed::default(), totals: Totals { first_available: 1, ..Totals::default() } },
                bytes: [&[0; HEADER_BYTES][..], &[kind], &body].concat().into(),
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

    #[test]
    fn an_entry_of_a_kind_that_a_later_version_adds_is_proven_and_named() {
        let mut builder = FrameBuilder::new();
        builder.quarantined(1, b"value");
        builder.head(9, 3, b"body");
        builder.bytes.put_slice(b"keybody");
        builder.expired(1);
        let bytes: Bytes = builder.finish(Epoch(5), 1, 1, one()).0.into();
        let frame = Frame::parse(Epoch(5), &bytes, 0).expect("it can be proven");
        let entries: Vec<_> = frame.entries().map(Result::unwrap).collect();
        assert!(
            matches!(
                entries[..],
                [
                    Entry::Quarantined { .. },
                    Entry::Unknown { kind: 9 },
                    Entry::Expired { number: 1 }
                ]
            ),
            "{entries:?}"
        );
        for at in CHECKSUM_BYTES..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert!(Frame::parse(Epoch(5), &damaged.into(), 0).is_none(), "{at}");
        }
    }

    #[test]
    fn the_entry_of_a_quarantined_callback_proves_itself() {
        let mut builder = FrameBuilder::new();
        builder.event(Uuid::nil(), 7.into(), &record(Sequence(1), b"raw"));
        builder.carried(3, b"value");
        builder.expired(2);
        let totals = Totals {
            event_count: 1,
            ..one()
        };
        let (bytes, _, quarantined) = builder.finish(Epoch(5), 1, 1, totals);
        let [Put { number: 3, at, .. }] = quarantined[..] else {
            panic!("{quarantined:?}")
        };
        let length = quarantined_length(&bytes[at..]).unwrap() as usize;
        let bytes = Bytes::from(bytes).slice(at..at + length);
        let (number, value, body) = quarantined_at(&bytes).unwrap();
        assert_eq!((number, value.as_deref()), (3, Some(&b"value"[..])));
        assert_eq!(&bytes[body.range.clone()], b"value");
        for at in 0..length {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            let read = quarantined_at(&damaged.into());
            // A kind that is the other one, or another number, is for the reader to see: it knows
            // what it looks for.
            assert!(read.is_none_or(|(number, ..)| number != 3), "{at}");
        }
        let mut erased = bytes.to_vec();
        erased[body.mark..][..MARK_BYTES].copy_from_slice(&MARK);
        assert_eq!(quarantined_at(&erased.into()).unwrap().1, None);
    }

    fn one() -> Totals {
        Totals {
            first_available: 1,
            ..Totals::default()
        }
    }
}
