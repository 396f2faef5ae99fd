//! The entries of a frame: what its commit did. Pure.
//!
//! ```text
//! kind (u8), length of what follows (u32), and
//!   1  event: id (u128), fingerprint (32 bytes), its record (see event::Record)
//!   2  into quarantine: number (u64), the callback as the local log has it
//!   3  out of quarantine: number (u64), and 0 for retention, 1 for release or discard (u8): then each node overwrites its copies
//!   4  the format is raised: to which (u16)
//!   5  an earlier event is erased: its place (u64). Each node overwrites its copy
//!   6  a quarantined callback is written again: as 2, with the same number
//!   7  a task is expected, or that is written again: number (u64), the expectation as the local log has it
//!   8  a task is not expected any more: number (u64)
//! ```
//!
//! Integers are little-endian. The kinds are those of the local log, and mean the same, but for two. The local log's 4, out of
//! quarantine by release or discard, names the segments and offsets of the copies, which are places of one node only. It must never
//! be in a frame: 3 says that the copies go, and each node looks up its own. And the local log has no formats to raise.
//!
//! No other kind may be in a frame of this format: [`Entries::parse`] refuses it. A new kind needs a new format, which nobody
//! writes before all nodes can read it. There are no marks for erasing in place, because a message of the stream is never changed: an
//! event that is erased already, as in an imported log, has a record that says so.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

use crate::event::{Fingerprint, Record, Sequence};

const EVENT: u8 = 1;
const QUARANTINED: u8 = 2;
const LEFT: u8 = 3;
const FORMAT_RAISED: u8 = 4;
const ERASED: u8 = 5;
const CARRIED: u8 = 6;
const EXPECTED: u8 = 7;
const EXPECTATION_ENDED: u8 = 8;

/// Why bytes are no frame of this format, or why contents cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("not a frame: {0}")]
pub struct FrameError(pub &'static str);

/// One thing that a commit did.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The next event is appended.
    Event {
        /// The id by which clients dedupe.
        event_id: Uuid,
        /// By which the broker recognises repeats.
        fingerprint: Fingerprint,
        /// The event at its place.
        record: Record,
    },
    /// A callback is put into quarantine.
    Quarantined {
        /// Its number.
        number: u64,
        /// Header and body, as the local log has them.
        value: Bytes,
    },
    /// A callback has left the quarantine.
    Left {
        /// Its number.
        number: u64,
        /// It was released or discarded, so each node overwrites its copies. Retention overwrites nothing.
        is_erased: bool,
    },
    /// From the next frame on, frames may have this format.
    FormatRaised {
        /// The format.
        format: u16,
    },
    /// An earlier event is erased.
    Erased {
        /// Its place.
        place: Sequence,
    },
    /// A callback that is still in quarantine is written again, because its frame is removed from the stream.
    Carried {
        /// The number that it has.
        number: u64,
        /// Header and body, as the local log has them.
        value: Bytes,
    },
    /// A task is expected, or its expectation is written again.
    Expected {
        /// The expectation's number.
        number: u64,
        /// All of it, as the local log has it.
        value: Bytes,
    },
    /// A task is not expected any more.
    ExpectationEnded {
        /// The expectation's number.
        number: u64,
    },
}

/// The entries of one frame, encoded. They are valid: each was made of an [`Entry`], or parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entries {
    bytes: Bytes,
    events: u64,
}

impl Entries {
    /// Encodes entries.
    pub fn of<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> Self {
        let (mut bytes, mut events) = (BytesMut::new(), 0);
        for entry in entries {
            entry.put(&mut bytes);
            events += u64::from(matches!(entry, Entry::Event { .. }));
        }
        Self {
            bytes: bytes.freeze(),
            events,
        }
    }

    /// Checks encoded entries. It takes no memory for them: what they say of their lengths is only compared with what is there.
    pub fn parse(bytes: Bytes) -> Result<Self, FrameError> {
        let (mut rest, mut events) = (bytes.clone(), 0);
        while rest.has_remaining() {
            let entry = take(&mut rest, Sequence(0))?;
            events += u64::from(matches!(entry, Entry::Event { .. }));
        }
        Ok(Self { bytes, events })
    }

    /// How many of them are events.
    pub fn event_count(&self) -> u64 {
        self.events
    }

    /// There are none: the frame is a tick, or retention has forgotten something.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The encoded form.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The entries in order, sharing the bytes. `first` is the place of the first event.
    pub fn iter(&self, first: Sequence) -> impl Iterator<Item = Entry> + use<> {
        let (mut rest, mut next) = (self.bytes.clone(), first);
        std::iter::from_fn(move || {
            let entry = rest.has_remaining().then(|| take(&mut rest, next).ok())??;
            if matches!(entry, Entry::Event { .. }) {
                next = next.next();
            }
            Some(entry)
        })
    }
}

impl Entry {
    fn put(&self, bytes: &mut BytesMut) {
        match self {
            Self::Event {
                event_id,
                fingerprint,
                record,
            } => {
                head(bytes, EVENT, 16 + Fingerprint::BYTES + record.len());
                bytes.put_u128_le(event_id.as_u128());
                fingerprint.put(bytes);
                bytes.put_slice(record.bytes());
            }
            Self::Quarantined { number, value } => numbered(bytes, QUARANTINED, *number, value),
            Self::Left { number, is_erased } => {
                numbered(bytes, LEFT, *number, &[u8::from(*is_erased)]);
            }
            Self::FormatRaised { format } => {
                head(bytes, FORMAT_RAISED, 2);
                bytes.put_u16_le(*format);
            }
            Self::Erased { place } => numbered(bytes, ERASED, place.0, &[]),
            Self::Carried { number, value } => numbered(bytes, CARRIED, *number, value),
            Self::Expected { number, value } => numbered(bytes, EXPECTED, *number, value),
            Self::ExpectationEnded { number } => numbered(bytes, EXPECTATION_ENDED, *number, &[]),
        }
    }
}

fn numbered(bytes: &mut BytesMut, kind: u8, number: u64, value: &[u8]) {
    head(bytes, kind, 8 + value.len());
    bytes.put_u64_le(number);
    bytes.put_slice(value);
}

fn head(bytes: &mut BytesMut, kind: u8, length: usize) {
    bytes.reserve(1 + 4 + length);
    bytes.put_u8(kind);
    bytes.put_u32_le(length as u32); // a body is bounded by the body limit
}

/// Takes the next entry off; `next` is the place of the next event.
fn take(rest: &mut Bytes, next: Sequence) -> Result<Entry, FrameError> {
    const SHORT: FrameError = FrameError("an entry is shorter than it says");
    let kind = rest.try_get_u8().map_err(|_| SHORT)?;
    let length = rest.try_get_u32_le().map_err(|_| SHORT)? as usize;
    if length > rest.len() {
        return Err(SHORT);
    }
    let mut value = rest.split_to(length);

    if kind == FORMAT_RAISED {
        let format = value.try_get_u16_le().map_err(|_| SHORT)?;
        return nothing_left(&value).map(|()| Entry::FormatRaised { format });
    }
    if kind == EVENT {
        return event(value, next);
    }

    let number = value.try_get_u64_le().map_err(|_| SHORT)?;
    match kind {
        QUARANTINED => Ok(Entry::Quarantined { number, value }),
        CARRIED => Ok(Entry::Carried { number, value }),
        EXPECTED => Ok(Entry::Expected { number, value }),
        LEFT => {
            let is_erased = match &value[..] {
                [0] => false,
                [1] => true,
                _ => return Err(FrameError("it does not say how a callback has left")),
            };
            Ok(Entry::Left { number, is_erased })
        }
        ERASED => nothing_left(&value).map(|()| Entry::Erased {
            place: Sequence(number),
        }),
        EXPECTATION_ENDED => nothing_left(&value).map(|()| Entry::ExpectationEnded { number }),
        _ => Err(FrameError("it has an entry of a kind that no frame has")),
    }
}

fn event(mut value: Bytes, place: Sequence) -> Result<Entry, FrameError> {
    const SHORT: FrameError = FrameError("an event is shorter than its keys");
    let event_id = Uuid::from_u128(value.try_get_u128_le().map_err(|_| SHORT)?);
    let fingerprint = Fingerprint::take(&mut value).ok_or(SHORT)?;
    let record = Record::from_stored(place, value)
        .map_err(|_| FrameError("the record of an event cannot be read"))?;
    Ok(Entry::Event {
        event_id,
        fingerprint,
        record,
    })
}

fn nothing_left(value: &Bytes) -> Result<(), FrameError> {
    if value.is_empty() {
        Ok(())
    } else {
        Err(FrameError("an entry is longer than its kind"))
    }
}
