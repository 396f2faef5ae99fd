//! One commit as it lies in the log. Pure.
//!
//! ```text
//! checksum     XXH3 of what follows but bodies and marks, piece by piece, seeded with the log's epoch (u64)
//! length       of the whole frame (u32)
//! events       how many of its entries are events (u32)
//! commit       its number (u64)
//! checkpoint   the oldest segment that a start after this commit has to replay (u64)
//! totals       as the commit leaves them
//! entries      tag (u8), and
//!              1  event: mark (8 bytes), kept (u32), body (u32), digest (u64), event id (u128), fingerprint (32 bytes),
//!                 record (see event::Record; its first `kept` bytes stay, the others are the body)
//!              2  into quarantine: mark (8 bytes), body (u32), digest (u64), number (u64), value (all of it the body)
//!              3  out of quarantine by retention: number (u64)
//!              4  out of quarantine by release or discard, and erased: number (u64)
//!              5  an earlier event is erased: its place (u64)
//! ```
//!
//! Integers are little-endian. The checksum makes a commit whole or nothing; the seed keeps another log's commits out.
//!
//! A body can be erased in place, and the commit stays provable: the checksum covers the digest of each body (XXH3) instead of the
//! body. First the entry is marked, and that is synced; then the body is overwritten. A body with the mark is erased, whatever is
//! left of it; one without, or with a mark that a crash has torn, has to have its digest. So a crash at any moment leaves a whole
//! commit. That the overwriting is brought to its end is the next start's to see to, by the entry (4, 5) that has announced it.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    event::{Epoch, Fingerprint, Record, Sequence},
    store::layout::{Damaged, Totals},
};

const CHECKSUM_BYTES: usize = 8;
pub(super) const HEADER_BYTES: usize = CHECKSUM_BYTES + 4 + 4 + 8 + 8 + Totals::BYTES;
const EVENT: u8 = 1;
const QUARANTINED: u8 = 2;
const EXPIRED: u8 = 3;
const REMOVED: u8 = 4;
const ERASED: u8 = 5;
/// What an entry with an erased body is marked with, in place of zeros. No few flipped bits make one of the other.
pub(super) const MARK: [u8; MARK_BYTES] = *b"\xb5erased\x4a";
const MARK_BYTES: usize = 8;
/// Of an event between its mark and its record: kept, body, digest, event id, fingerprint.
const EVENT_BYTES: usize = 4 + 4 + 8 + 16 + Fingerprint::BYTES;
/// Of a quarantined callback between its mark and its value: body, digest, number.
const QUARANTINED_BYTES: usize = 4 + 8 + 8;
/// Of an entry that names a place or a number, behind its tag.
const NAMING_BYTES: usize = 8;

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
        (length >= HEADER_BYTES && has_events).then_some(Self {
            length,
            events,
            commit,
            checkpoint,
            totals,
        })
    }

    /// The newest event up to here, of this commit or an earlier one.
    pub(super) fn head(&self) -> Sequence {
        self.totals.head().unwrap_or_default() // checked when it was parsed
    }

    /// The log's time at this commit, in microseconds since 1970, if it brought content: an event, or a callback into quarantine.
    pub(super) fn brought_at(&self, before: &Totals) -> Option<i64> {
        let has_content = self.events > 0 || self.totals.quarantine_next > before.quarantine_next;
        has_content.then_some(self.totals.log_time_micros)
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
        Self {
            bytes: vec![0; HEADER_BYTES],
            events: 0,
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
        let (kept, body) = record.bytes().split_at(record.kept_len());
        self.bytes
            .reserve(1 + MARK_BYTES + EVENT_BYTES + record.len());
        self.bytes.put_u8(EVENT);
        self.bytes.put_bytes(0, MARK_BYTES);
        self.bytes.put_u32_le(kept.len() as u32); // keys
        self.bytes.put_u32_le(body.len() as u32); // as for its parts, the body limit bounds it
        self.bytes.put_u64_le(xxh3_64(body));
        self.bytes.put_u128_le(event_id.as_u128());
        fingerprint.put(&mut self.bytes);
        self.bytes.put_slice(record.bytes());
    }

    /// Puts a callback into quarantine.
    pub(in crate::store) fn quarantined(&mut self, number: u64, value: &[u8]) {
        self.bytes.put_u8(QUARANTINED);
        self.bytes.put_bytes(0, MARK_BYTES);
        self.bytes.put_u32_le(value.len() as u32); // bounded by the body limit
        self.bytes.put_u64_le(xxh3_64(value));
        self.bytes.put_u64_le(number);
        self.bytes.put_slice(value);
    }

    /// Takes a callback out of quarantine because of its age or the quarantine's size. In the log it goes with its segment.
    pub(in crate::store) fn expired(&mut self, number: u64) {
        self.naming(EXPIRED, number);
    }

    /// Takes a callback out of quarantine that was released or discarded, and announces that it is erased.
    pub(in crate::store) fn removed(&mut self, number: u64) {
        self.naming(REMOVED, number);
    }

    /// Announces that an earlier event is erased.
    pub(in crate::store) fn erased(&mut self, place: Sequence) {
        self.naming(ERASED, place.0);
    }

    fn naming(&mut self, tag: u8, number: u64) {
        self.bytes.put_u8(tag);
        self.bytes.put_u64_le(number);
    }

    /// The frame's bytes, and what its header says.
    pub(super) fn finish(
        mut self,
        epoch: Epoch,
        commit: u64,
        checkpoint: u64,
        totals: Totals,
    ) -> (Vec<u8>, Header) {
        let header = Header {
            length: self.bytes.len(),
            events: self.events,
            commit,
            checkpoint,
            totals,
        };
        let mut head = &mut self.bytes[CHECKSUM_BYTES..HEADER_BYTES];
        head.put_u32_le(header.length as u32); // a group's bytes are bounded, and so is the last command's body
        head.put_u32_le(header.events);
        head.put_u64_le(commit);
        head.put_u64_le(checkpoint);
        head.put_slice(&totals.encode());
        let checksum =
            checksum_of(epoch, &self.bytes, |_| true).expect("the entries were laid out above");
        self.bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        (self.bytes, header)
    }
}

/// What a commit did.
#[derive(Clone, Debug)]
pub(in crate::store) enum Entry {
    /// If it was erased, the record says so.
    Event {
        event_id: Uuid,
        fingerprint: Fingerprint,
        record: Record,
    },
    /// Without a value if it was erased.
    Quarantined {
        number: u64,
        value: Option<Bytes>,
    },
    /// Taken out of quarantine by retention.
    Expired {
        number: u64,
    },
    /// Released or discarded, and erased.
    Removed {
        number: u64,
    },
    Erased {
        place: Sequence,
    },
}

/// Where the parts of an entry lie in its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Laid {
    tag: u8,
    /// If it has a body.
    mark: Option<Range<usize>>,
    /// What the checksum covers, besides the tag.
    proven: Range<usize>,
    digest: u64,
    /// To the end of it all.
    body: Range<usize>,
}

/// Takes an entry apart that begins at `at`; `None` if none does.
fn lay(bytes: &[u8], at: usize) -> Option<Laid> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (tag, mark) = (*bytes.get(at)?, at + 1..at + 1 + MARK_BYTES);
    let head = mark.end;
    let (proven, body, digest) = match tag {
        EVENT => (
            EVENT_BYTES.checked_add(u32_at(head)?)?,
            u32_at(head + 4)?,
            u64_at(head + 8)?,
        ),
        QUARANTINED => (QUARANTINED_BYTES, u32_at(head)?, u64_at(head + 4)?),
        EXPIRED | REMOVED | ERASED => {
            let end = at + 1 + NAMING_BYTES;
            let laid = Laid {
                tag,
                mark: None,
                proven: at + 1..end,
                digest: 0,
                body: end..end,
            };
            return (end <= bytes.len()).then_some(laid);
        }
        _ => return None,
    };
    let start = head.checked_add(proven)?;
    let end = start.checked_add(body)?;
    let laid = Laid {
        tag,
        mark: Some(mark),
        proven: head..start,
        digest,
        body: start..end,
    };
    (end <= bytes.len()).then_some(laid)
}

impl Laid {
    fn is_marked(&self, bytes: &[u8]) -> bool {
        self.mark
            .as_ref()
            .is_some_and(|mark| bytes[mark.clone()] == MARK)
    }

    /// Whether the body is as it was written, or erased.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        let Some(mark) = self.mark.as_ref().map(|mark| &bytes[mark.clone()]) else {
            return true;
        };
        *mark == MARK || may_be_torn(mark) && xxh3_64(&bytes[self.body.clone()]) == self.digest
    }
}

/// Whether a mark is none, or what a crash may have left of one that lies in two sectors.
fn may_be_torn(mark: &[u8]) -> bool {
    let is_none = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let is_torn = |at: usize| {
        let ((first, second), (marked_first, marked_second)) =
            (mark.split_at(at), MARK.split_at(at));
        first == marked_first && is_none(second) || is_none(first) && second == marked_second
    };
    is_none(mark) || (1..MARK_BYTES).any(is_torn)
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

/// The checksum of a frame, whatever its first bytes say; `None` if its entries cannot be told apart, or one of them is not good.
fn checksum_of(epoch: Epoch, bytes: &[u8], is_good: impl Fn(&Laid) -> bool) -> Option<u64> {
    let header = xxh3_64_with_seed(bytes.get(CHECKSUM_BYTES..HEADER_BYTES)?, epoch.0);
    laid(bytes).try_fold(header, |seed, laid| {
        let laid = laid.filter(&is_good)?;
        Some(xxh3_64_with_seed(
            &bytes[laid.proven],
            seed ^ u64::from(laid.tag),
        ))
    })
}

/// Where the body of an entry lies in its frame, and its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub mark: usize,
    pub range: Range<usize>,
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
        let is_right = checksum_of(epoch, whole, |laid| laid.is_whole(whole)) == Some(checksum);
        is_right.then(|| Self {
            header,
            bytes: bytes.slice_ref(whole),
        })
    }

    /// The bodies in it, with what they are of.
    pub(super) fn bodies(&self) -> impl Iterator<Item = (Entry, Body)> {
        let mut sequence = self.header.first_sequence();
        laid(&self.bytes).flatten().filter_map(move |laid| {
            let mark = laid.mark.clone()?.start;
            let entry = entry(&self.bytes, &laid, &mut sequence)?;
            Some((
                entry,
                Body {
                    mark,
                    range: laid.body,
                },
            ))
        })
    }

    /// What the commit did, in order. Shares the frame's bytes.
    pub(in crate::store) fn entries(&self) -> impl Iterator<Item = Result<Entry, Damaged>> {
        let (bytes, mut at) = (self.bytes.clone(), HEADER_BYTES);
        let mut sequence = self.header.first_sequence();
        std::iter::from_fn(move || {
            (at < bytes.len()).then(|| {
                let laid = lay(&bytes, at);
                at = laid.as_ref().map_or(bytes.len(), |laid| laid.body.end);
                laid.and_then(|laid| entry(&bytes, &laid, &mut sequence))
                    .ok_or(Damaged("commit"))
            })
        })
    }
}

fn entry(bytes: &Bytes, laid: &Laid, sequence: &mut Sequence) -> Option<Entry> {
    let mut head = &bytes[laid.proven.clone()];
    let is_erased = laid.is_marked(bytes);
    match laid.tag {
        EVENT => {
            let kept = head.try_get_u32_le().ok()? as usize;
            head.advance(4 + 8);
            let event_id = Uuid::from_u128(head.try_get_u128_le().ok()?);
            let fingerprint = Fingerprint::take(&mut head)?;
            let record = if is_erased {
                Record::from_kept(*sequence, head)
            } else {
                Record::from_stored(
                    *sequence,
                    bytes.slice(laid.body.start - kept..laid.body.end),
                )
            };
            *sequence = sequence.next();
            Some(Entry::Event {
                event_id,
                fingerprint,
                record: record.ok()?,
            })
        }
        QUARANTINED => {
            head.advance(4 + 8);
            let value = (!is_erased).then(|| bytes.slice(laid.body.clone()));
            Some(Entry::Quarantined {
                number: head.try_get_u64_le().ok()?,
                value,
            })
        }
        EXPIRED => Some(Entry::Expired {
            number: head.try_get_u64_le().ok()?,
        }),
        REMOVED => Some(Entry::Removed {
            number: head.try_get_u64_le().ok()?,
        }),
        ERASED => Some(Entry::Erased {
            place: Sequence(head.try_get_u64_le().ok()?),
        }),
        _ => None,
    }
}

/// Whether a whole commit with a number above `commit` begins anywhere behind the first of these bytes.
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

    use super::*;
    use crate::{event::Selectable, store::log::tests::record};

    /// A commit with a number, of events with these bodies and quarantined callbacks with these values.
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
            builder.removed(number);
            builder.erased(Sequence(number));
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
            prop_assert_eq!((frame.header.commit, frame.header.checkpoint), (commit, 3));
            prop_assert_eq!(frame.header.length, bytes.len() - before.len() - behind.len());
            let (mut raws, mut values, mut expired) = (Vec::new(), Vec::new(), 0);
            for entry in frame.entries() {
                match entry.unwrap() {
                    Entry::Event { event_id, fingerprint, record } => {
                        let place = 11 + raws.len() as u64;
                        prop_assert_eq!((record.sequence().0, event_id.as_u128(), fingerprint), (place, place.into(), 7.into()));
                        raws.push(record.raw().to_vec());
                    }
                    Entry::Quarantined { number, value } => {
                        values.push(value.unwrap().to_vec());
                        prop_assert_eq!(number, values.len() as u64);
                    }
                    Entry::Expired { number } => {
                        expired += 1;
                        prop_assert_eq!(number, expired);
                    }
                    Entry::Removed { number } => prop_assert_eq!(number, expired),
                    Entry::Erased { place } => prop_assert_eq!(place.0, expired),
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
            let (_, body) = whole.bodies().nth(first + which).expect("each has one");
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
                    Entry::Quarantined { number, value } => {
                        let at = number as usize - 1;
                        let is_meant = is_erased && of_quarantine && at == which;
                        prop_assert_eq!(value.as_deref(), (!is_meant).then_some(&*quarantined[at]));
                    }
                    _ => {}
                }
            }
        }

        #[test]
        fn any_bytes_are_entries_or_damaged(body: Vec<u8>, tag in 0..7u8) {
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
