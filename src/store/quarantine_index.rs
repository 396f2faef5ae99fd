//! Where the quarantined callbacks lie in the log. Pure.
//!
//! All of it is in memory, about a hundred bytes for each callback. Changes since the last
//! checkpoint are also kept in the form in which the index stores them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
};

use bytes::{Buf, BufMut};

use super::{
    by_segment::BySegment,
    layout::{Damaged, QuarantineHeader},
    log::{COPIES, NewCopy, Place},
};

/// Idempotency keys that are remembered. A node of a cluster asks again within seconds.
const KEYS_MAX: usize = 16 * 1024;

/// The new value of each number that has changed; `None` if the callback has left the quarantine.
pub(super) type Changes = BTreeMap<u64, Option<Vec<u8>>>;

/// Where a callback lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Of its value.
    pub bytes: u64,
    pub newest: Place,
    /// Its copy before that, which is there until its segment is removed.
    older: Option<Place>,
    /// The frame that has its newest copy in the stream; 0 on a single machine.
    pub frame: u64,
}

impl Held {
    /// All of its copies, as far as their segments are there.
    pub(super) fn copies(&self) -> impl Iterator<Item = Place> {
        [Some(self.newest), self.older].into_iter().flatten()
    }
}

/// What the index stores of a callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub held: Held,
    pub received_at_micros: i64,
    pub credential: String,
    pub product: String,
}

impl Stored {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.credential.len() + self.product.len());
        bytes.put_u64_le(self.held.bytes);
        bytes.put_i64_le(self.received_at_micros);
        let older = self.held.older.unwrap_or(Place { segment: 0, at: 0 });
        for place in [self.held.newest, older] {
            bytes.put_u64_le(place.segment);
            bytes.put_u64_le(place.at);
        }
        bytes.put_u64_le(self.held.frame);
        for text in [&self.credential, &self.product] {
            bytes.put_u32_le(text.len() as u32); // a name, and a segment of a path
            bytes.put_slice(text.as_bytes());
        }
        bytes
    }

    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Damaged> {
        const DAMAGED: Damaged = Damaged("place of a quarantined callback");
        fn number(bytes: &mut &[u8]) -> Result<u64, Damaged> {
            bytes.try_get_u64_le().map_err(|_| DAMAGED)
        }
        fn text(bytes: &mut &[u8]) -> Result<String, Damaged> {
            let length = bytes.try_get_u32_le().map_err(|_| DAMAGED)? as usize;
            let (text, rest) = bytes.split_at_checked(length).ok_or(DAMAGED)?;
            *bytes = rest;
            String::from_utf8(text.to_vec()).map_err(|_| DAMAGED)
        }
        let from = &mut bytes;
        let value_bytes = number(from)?;
        let received_at_micros = number(from)?.cast_signed();
        let mut place = || {
            Ok::<_, Damaged>(Place {
                segment: number(from)?,
                at: number(from)?,
            })
        };
        let (newest, older) = (place()?, place()?);
        let frame = number(from)?;
        let (credential, product) = (text(from)?, text(from)?);
        if !bytes.is_empty() {
            return Err(DAMAGED);
        }
        Ok(Self {
            held: Held {
                bytes: value_bytes,
                newest,
                older: Some(older).filter(|place| place.segment > 0),
                frame,
            },
            received_at_micros,
            credential,
            product,
        })
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct QuarantineIndex {
    held: BTreeMap<u64, Held>,
    /// Those with their newest copy in a segment, and the bytes of their values.
    segments: BySegment,
    /// The same by the frames that have their newest copies in the stream.
    frames: BySegment,
    changed: Changes,
    keys: Keys,
}

/// The numbers of the newest callbacks that have an idempotency key, also of those that have left the quarantine since.
#[derive(Debug, Default)]
struct Keys {
    numbers: HashMap<u64, u64>,
    oldest_first: VecDeque<u64>,
}

impl Keys {
    fn put(&mut self, key: u64, number: u64) {
        if self.numbers.insert(key, number).is_none() {
            self.oldest_first.push_back(key);
        }
        if self.oldest_first.len() > KEYS_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.numbers.remove(&oldest);
        }
    }
}

impl QuarantineIndex {
    /// Adds a callback that the index has stored.
    pub(super) fn load(&mut self, number: u64, held: Held) {
        self.held.insert(number, held);
        self.segments.put(held.newest.segment, number, held.bytes);
        if held.frame > 0 {
            self.frames.put(held.frame, number, held.bytes);
        }
    }

    /// Adds a copy of a callback; true if the callback is new. A copy that is older than a known
    /// one is ignored.
    pub(super) fn put(&mut self, copy: NewCopy, bytes: u64, header: &QuarantineHeader) -> bool {
        let NewCopy {
            number,
            place,
            frame,
        } = copy;
        let before = self.held.get(&number).copied();
        if before.is_some_and(|before| before.newest >= place) {
            return false;
        }
        if let Some(before) = before {
            self.leave_segment(number, before);
        }
        let held = Held {
            bytes,
            newest: place,
            older: before.map(|before| before.newest),
            frame,
        };
        self.load(number, held);
        let stored = Stored {
            held,
            received_at_micros: header.received_at_micros,
            credential: header.credential.clone(),
            product: header.product.clone(),
        };
        self.changed.insert(number, Some(stored.encode()));
        if let Some(key) = header.idempotency_key {
            self.keys.put(key, number);
        }
        before.is_none()
    }

    /// Removes a callback that has left the quarantine.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(held) = self.held.remove(&number) {
            self.leave_segment(number, held);
        }
        self.changed.insert(number, None);
    }

    fn leave_segment(&mut self, number: u64, held: Held) {
        self.segments
            .remove(held.newest.segment, number, held.bytes);
        self.frames.remove(held.frame, number, held.bytes);
    }

    pub(super) fn get(&self, number: u64) -> Option<Held> {
        self.held.get(&number).copied()
    }

    /// The number that a callback with this idempotency key was given, if that was not long ago.
    pub(super) fn number_of(&self, idempotency_key: u64) -> Option<u64> {
        self.keys.numbers.get(&idempotency_key).copied()
    }

    /// How many there are, and the bytes of their values.
    pub(super) fn count_and_bytes(&self) -> (u64, u64) {
        let bytes = self.held.values().map(|held| held.bytes).sum();
        (self.held.len() as u64, bytes)
    }

    /// All of them as they are now, in the order of their numbers.
    pub(super) fn all(&self) -> Vec<(u64, Held)> {
        self.held
            .iter()
            .map(|(&number, &held)| (number, held))
            .collect()
    }

    /// The oldest segment with the newest copy of one.
    pub(super) fn first_segment(&self) -> Option<u64> {
        self.segments.first()
    }

    /// Bytes of the newest copies in segments up to this one.
    pub(super) fn bytes_up_to(&self, segment: u64) -> u64 {
        self.segments.bytes_up_to(segment)
    }

    /// Those with their newest copy in a segment, in order.
    pub(super) fn in_segment(&self, segment: u64) -> Vec<u64> {
        self.segments.in_segment(segment)
    }

    /// By the frames that have their newest copies in the stream.
    pub(super) fn frames(&self) -> &BySegment {
        &self.frames
    }

    /// The changes since the last call.
    pub(super) fn take_changes(&mut self) -> Changes {
        mem::take(&mut self.changed)
    }
}

const _: () = assert!(COPIES == 2, "a callback has a newest copy and an older one");

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn place(segment: u64) -> Place {
        Place { segment, at: 256 }
    }

    /// Each second callback came from the stream.
    fn copy(number: u64, segment: u64) -> NewCopy {
        NewCopy {
            number,
            place: place(segment),
            frame: number % 2 * segment,
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_gives_back_what_was_known(
            numbers: [u32; 4], older: Option<u32>, received_at_micros: i64, credential: String, product: String, cut: prop::sample::Index,
        ) {
            let [bytes, segment, at, older_at] = numbers.map(u64::from);
            let held = Held {
                bytes,
                newest: Place { segment: segment + 1, at },
                older: older.map(|segment| Place { segment: u64::from(segment) + 1, at: older_at }),
                frame: bytes % 7,
            };
            let stored = Stored { held, received_at_micros, credential, product };
            let bytes = stored.encode();
            prop_assert_eq!(Stored::parse(&bytes), Ok(stored));
            prop_assert!(Stored::parse(&bytes[..cut.index(bytes.len())]).is_err());
        }

        /// Whatever is put, carried and removed, also after some of it is replayed: what is stored
        /// is what is known.
        #[test]
        fn changes_stored_and_loaded_again_are_the_same_index(
            steps in collection::vec((0..6u64, 0..3u8), 1..60), cut: prop::sample::Index,
        ) {
            let (mut index, mut stored, mut log) = (QuarantineIndex::default(), BTreeMap::new(), Vec::new());
            let header = QuarantineHeader::default();
            let apply = |index: &mut QuarantineIndex, (number, step, segment): (u64, u8, u64)| match step {
                0 => index.remove(number),
                _ => { index.put(copy(number, segment), 7, &header); }
            };
            for (segment, (number, step)) in (1..).zip(steps) {
                log.push((number, step, segment));
                apply(&mut index, (number, step, segment));
                for (number, change) in index.take_changes() {
                    match change {
                        Some(bytes) => stored.insert(number, Stored::parse(&bytes).unwrap().held),
                        None => stored.remove(&number),
                    };
                }
            }
            let mut loaded = QuarantineIndex::default();
            stored.iter().for_each(|(&number, &held)| loaded.load(number, held));
            prop_assert_eq!(&loaded.held, &index.held);
            prop_assert_eq!(&loaded.segments, &index.segments);
            prop_assert_eq!(&loaded.frames, &index.frames);
            prop_assert_eq!(index.count_and_bytes(), (stored.len() as u64, 7 * stored.len() as u64));

            // What was stored is replayed from some commit on, and ends where it was.
            log[cut.index(log.len())..].iter().for_each(|&step| apply(&mut loaded, step));
            let newest = |index: &QuarantineIndex| index.held.iter().map(|(&number, held)| (number, held.newest)).collect::<Vec<_>>();
            prop_assert_eq!(newest(&loaded), newest(&index));
            prop_assert_eq!(&loaded.segments, &index.segments);
        }
    }

    #[test]
    fn a_segment_is_free_when_all_of_its_callbacks_are_carried_on_or_gone() {
        let (mut index, header) = (QuarantineIndex::default(), QuarantineHeader::default());
        for number in 1..=3 {
            assert!(index.put(copy(number, 1), 10, &header));
        }
        assert!(index.put(copy(4, 2), 5, &header));
        assert_eq!((index.first_segment(), index.bytes_up_to(1)), (Some(1), 30));
        assert_eq!(index.bytes_up_to(2), 35);
        index.remove(2);
        assert!(!index.put(copy(1, 3), 10, &header), "it was known");
        assert_eq!(index.in_segment(1), [3]);
        assert_eq!(
            index.get(1).unwrap().copies().collect::<Vec<_>>(),
            [place(3), place(1)]
        );
        index.put(copy(3, 3), 10, &header);
        assert_eq!(
            (index.first_segment(), index.in_segment(3)),
            (Some(2), vec![1, 3])
        );
    }

    #[test]
    fn the_newest_idempotency_keys_are_remembered_also_of_callbacks_that_have_left() {
        let mut index = QuarantineIndex::default();
        let put = |index: &mut QuarantineIndex, number: u64, segment| {
            let header = QuarantineHeader {
                idempotency_key: Some(1_000_000 + number),
                ..QuarantineHeader::default()
            };
            index.put(copy(number, segment), 1, &header);
        };
        let most = KEYS_MAX as u64;
        for number in 1..=most {
            put(&mut index, number, 1);
        }
        assert_eq!(index.number_of(1_000_001), Some(1));
        // Written again it is the same callback, and pushes none out.
        put(&mut index, most, 2);
        index.remove(2);

        put(&mut index, most + 1, 2);
        assert_eq!(index.number_of(1_000_001), None);
        assert_eq!(index.number_of(1_000_002), Some(2));
        assert_eq!(index.number_of(1_000_000 + most + 1), Some(most + 1));
    }
}
