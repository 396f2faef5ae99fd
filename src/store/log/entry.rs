//! One entry of a commit as it lies in its frame. Pure. The frame's description has the layouts
//! ([`super::frame`]).

use std::ops::Range;

use bytes::{Buf, Bytes};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::event::{Fingerprint, Record, Sequence};

pub(super) const EVENT: u8 = 1;
pub(super) const QUARANTINED: u8 = 2;
pub(super) const EXPIRED: u8 = 3;
pub(super) const REMOVED: u8 = 4;
pub(super) const ERASED: u8 = 5;
pub(super) const CARRIED: u8 = 6;
pub(super) const EXPECTED: u8 = 7;
pub(super) const EXPECTATION_ENDED: u8 = 8;
/// Kinds from here on are about this log's own segments.
const LOCAL: u8 = 128;
pub(super) const CARRIED_HERE: u8 = LOCAL + QUARANTINED;
pub(super) const COPIES_ERASED: u8 = LOCAL + REMOVED;
pub(super) const EXPECTED_HERE: u8 = LOCAL + EXPECTED;
/// What an entry with an erased body is marked with, in place of zeros. No few flipped bits make
/// one of the other.
pub(super) const MARK: [u8; MARK_BYTES] = *b"\xb5erased\x4a";
pub(super) const MARK_BYTES: usize = 8;
/// Of an entry with a body before what is kept: kind, mark, two lengths, digest.
pub(super) const HEAD_BYTES: usize = 1 + MARK_BYTES + 4 + 4 + 8;
/// What is kept of an event before the keys of its record: id, fingerprint.
pub(super) const IDENTITY_BYTES: usize = 16 + Fingerprint::BYTES;
/// Of a number or a place.
pub(super) const NUMBER_BYTES: usize = 8;
/// Of the places of a callback's copies.
pub(super) const PLACES_BYTES: usize = COPIES * 16;
/// Copies of a quarantined callback that the log may have at a time: one, and one that was written
/// again before the segment of the first is removed.
pub(in crate::store) const COPIES: usize = 2;

/// Where an entry lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) struct Place {
    /// Its segment's number.
    pub segment: u64,
    /// Its first byte there.
    pub at: u64,
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
    /// Put into quarantine, or written again. Without a value if it was erased.
    Quarantined {
        number: u64,
        value: Option<Bytes>,
        /// The frame that has its newest copy in the stream; `None`: the one that the commit came from.
        frame: Option<u64>,
        /// Where the entry begins in its frame.
        at: usize,
    },
    /// Taken out of quarantine by retention.
    Expired { number: u64 },
    /// Released or discarded, and erased.
    Removed { number: u64 },
    /// Where the copies of one lie that was removed.
    CopiesErased { number: u64, copies: Vec<Place> },
    /// The event there is erased.
    Erased { place: Sequence },
    /// A task is expected, or its expectation is written again.
    Expected {
        number: u64,
        value: Bytes,
        /// As of a quarantined callback.
        frame: Option<u64>,
    },
    /// A task is not expected any more.
    ExpectationEnded { number: u64 },
    /// Of a kind that only a later version knows.
    Unknown { kind: u8 },
}

/// Where the parts of an entry lie in its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Laid {
    pub kind: u8,
    pub at: usize,
    /// If it has a body.
    pub mark: Option<Range<usize>>,
    /// What the checksum covers, besides the kind.
    pub proven: Range<usize>,
    digest: u64,
    /// To the end of the entry.
    pub body: Range<usize>,
}

/// Takes an entry apart that begins at `at`; `None` if none does.
pub(super) fn lay(bytes: &[u8], at: usize) -> Option<Laid> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let kind = *bytes.get(at)?;
    let without_body = |proven: usize| {
        let end = at + 1 + proven;
        let laid = Laid {
            kind,
            at,
            mark: None,
            proven: at + 1..end,
            digest: 0,
            body: end..end,
        };
        (end <= bytes.len()).then_some(laid)
    };
    match kind {
        0 => return None,
        EXPIRED | REMOVED | ERASED => return without_body(NUMBER_BYTES),
        _ => {}
    }

    let mark = at + 1..at + 1 + MARK_BYTES;
    let (kept, body) = (u32_at(mark.end)?, u32_at(mark.end + 4)?);
    let digest = u64_at(mark.end + 8)?;
    let start = (at + HEAD_BYTES).checked_add(kept)?;
    let end = start.checked_add(body)?;
    let laid = Laid {
        kind,
        at,
        proven: mark.end..start,
        mark: Some(mark),
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
    pub(super) fn is_whole(&self, bytes: &[u8]) -> bool {
        let Some(mark) = self.mark.as_ref().map(|mark| &bytes[mark.clone()]) else {
            return true;
        };
        *mark == MARK || may_be_torn(mark) && xxh3_64(&bytes[self.body.clone()]) == self.digest
    }
}

/// What is left of a damaged event that is laid out so, if the lengths and keys of its commit are
/// proven: its keys, and how many bytes its record has at least.
pub(super) fn keys_of(bytes: &Bytes, laid: &Laid, place: Sequence) -> Option<(Record, u64)> {
    let keys = bytes[laid.proven.clone()].get(4 + 4 + 8 + IDENTITY_BYTES..)?;
    // With a damaged mark it may have been erased, and then only its keys count.
    let may_be_erased = bytes[laid.mark.clone()?].iter().any(|&byte| byte != 0);
    let body_bytes = if may_be_erased { 0 } else { laid.body.len() };
    let record = Record::from_kept(place, keys).ok()?;
    Some((record, (keys.len() + body_bytes) as u64))
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

/// Where the body of an entry lies in its frame, and its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub mark: usize,
    pub range: Range<usize>,
}

/// The entry that is laid out so; `sequence` is the place of the next event, and moves past it.
pub(super) fn entry(bytes: &Bytes, laid: &Laid, sequence: &mut Sequence) -> Option<Entry> {
    let mut proven = &bytes[laid.proven.clone()];
    if laid.mark.is_some() {
        proven.advance(4 + 4 + 8);
    }
    match laid.kind {
        EVENT => {
            let event_id = Uuid::from_u128(proven.try_get_u128_le().ok()?);
            let fingerprint = Fingerprint::take(&mut proven)?;
            let record = if laid.is_marked(bytes) {
                Record::from_kept(*sequence, proven)
            } else {
                let start = laid.body.start - proven.len();
                Record::from_stored(*sequence, bytes.slice(start..laid.body.end))
            };
            *sequence = sequence.next();
            Some(Entry::Event {
                event_id,
                fingerprint,
                record: record.ok()?,
            })
        }
        kind @ (QUARANTINED | CARRIED | CARRIED_HERE) => {
            let value = (!laid.is_marked(bytes)).then(|| bytes.slice(laid.body.clone()));
            Some(Entry::Quarantined {
                number: proven.try_get_u64_le().ok()?,
                value,
                frame: frame_of(kind, proven)?,
                at: laid.at,
            })
        }
        EXPIRED => Some(Entry::Expired {
            number: proven.try_get_u64_le().ok()?,
        }),
        REMOVED => Some(Entry::Removed {
            number: proven.try_get_u64_le().ok()?,
        }),
        COPIES_ERASED => {
            let number = proven.try_get_u64_le().ok()?;
            let mut copies = Vec::new();
            for _ in 0..COPIES {
                let (segment, at) = (proven.try_get_u64_le().ok()?, proven.try_get_u64_le().ok()?);
                if segment > 0 {
                    copies.push(Place { segment, at });
                }
            }
            Some(Entry::CopiesErased { number, copies })
        }
        ERASED => Some(Entry::Erased {
            place: Sequence(proven.try_get_u64_le().ok()?),
        }),
        kind @ (EXPECTED | EXPECTED_HERE) => Some(Entry::Expected {
            number: proven.try_get_u64_le().ok()?,
            frame: frame_of(kind, proven)?,
            value: bytes.slice(laid.body.clone()),
        }),
        EXPECTATION_ENDED => Some(Entry::ExpectationEnded {
            number: proven.try_get_u64_le().ok()?,
        }),
        kind => Some(Entry::Unknown { kind }),
    }
}

/// Whether what an entry brings has to be written again before its segment goes, or is an event.
pub(super) fn is_carried_on(kind: u8) -> bool {
    matches!(
        kind,
        QUARANTINED | CARRIED | CARRIED_HERE | EXPECTED | EXPECTED_HERE
    )
}

/// Behind the number of something that was written again in this log: the frame with its newest copy in the stream.
#[expect(clippy::option_option, reason = "damaged, or there is none")]
fn frame_of(kind: u8, mut behind_number: &[u8]) -> Option<Option<u64>> {
    if kind < LOCAL {
        return Some(None);
    }
    behind_number.try_get_u64_le().ok().map(Some)
}

/// The entry of a quarantined callback that these bytes begin with: its number, its value unless
/// that was erased, and where its body lies in them. `None` if it is not as it was written. It
/// proves itself: nothing else of its commit is needed.
pub(super) fn quarantined_at(bytes: &Bytes) -> Option<(u64, Option<Bytes>, Body)> {
    let laid = lay(bytes, 0).filter(|laid| laid.is_whole(bytes))?;
    let body = Body {
        mark: laid.mark.clone()?.start,
        range: laid.body.clone(),
    };
    match entry(bytes, &laid, &mut Sequence::default())? {
        Entry::Quarantined { number, value, .. } => Some((number, value, body)),
        _ => None,
    }
}

/// Bytes of the entry of a quarantined callback that begins so, as it says itself.
pub(super) fn quarantined_length(head: &[u8]) -> Option<u64> {
    let mut lengths = head.get(1 + MARK_BYTES..)?;
    let kept: u64 = lengths.try_get_u32_le().ok()?.into();
    let value: u64 = lengths.try_get_u32_le().ok()?.into();
    Some(HEAD_BYTES as u64 + kept + value)
}
