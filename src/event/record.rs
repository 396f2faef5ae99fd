//! An event as it is stored, kept in the ring and delivered: one block of bytes, parsed by offset, never copied.
//!
//! ```text
//! 0       1       2      3            4         8            16        24        26          28
//! layout  status  flags  product len  revision  received_at  log_time  task len  labels len  event len
//! u8      u8      u8     u8           u32       i64, µs      i64, µs   u16       u16         u32
//! then: product, task id, labels (u16 length + text, key and value in turn), encoded event, raw body (the rest)
//! ```
//!
//! Integers are little-endian. Of the flags, 1 is a conflict, and 2 an event that was erased, which ends behind its task id. The
//! encoded event is opaque here: it lacks exactly what only the log knows (cursor, revision, conflict), so that the bytes stay valid
//! when a restored log gets a new epoch.

use std::{
    ops::{Deref, Range},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::{BufMut, Bytes};

use super::{Labels, Product, Selectable, Sequence, TaskId, TaskStatus};
use crate::{budget::Loan, trace::Origin, transit::Charge};

const LAYOUT: u8 = 1;
const HEADER_BYTES: usize = 32;
const LABELS_LENGTH: Range<usize> = 26..28;
const EVENT_LENGTH: Range<usize> = 28..32;
const FLAG_CONFLICT: u8 = 1;
/// Its labels, its event and its body were erased.
const FLAG_ERASED: u8 = 2;

/// What the layout cannot hold is prevented by the parsers of the domain; this is only the decoder's complaint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored event cannot be read: {0}")]
pub struct RecordError(&'static str);

/// The parts of a record, for writing one.
#[derive(Debug)]
pub struct RecordParts<'a> {
    /// The event's product.
    pub product: &'a Product,
    /// The event's task.
    pub task_id: &'a TaskId,
    /// The event's status.
    pub status: TaskStatus,
    /// Place among the events of its (product, task), from 1.
    pub revision: u32,
    /// Contradicts an earlier terminal event.
    pub conflict: bool,
    /// When the callback was received, in microseconds since 1970.
    pub received_at_micros: i64,
    /// When it was appended or received by the log's clock, and never before the record in front of it unless that clock was set
    /// back: what the log is searched and aged by.
    pub log_time_micros: i64,
    /// The event's labels.
    pub labels: &'a Labels,
    /// The event's encoding.
    pub event: &'a [u8],
    /// The callback's body.
    pub raw: &'a [u8],
}

/// One stored event. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Record {
    sequence: Sequence,
    bytes: Bytes,
    /// Not stored: what is read from the log has none. Behind a pointer, because nearly none has one.
    origin: Option<Arc<Origin>>,
}

/// Events that were published or read together, in the order of the log. They are shared as a whole: to count who holds each
/// single one would have all cores write to the same places in memory for every delivery.
#[derive(Clone, Debug)]
pub struct Records(Arc<Together>);

#[derive(Debug)]
struct Together {
    records: Box<[Record]>,
    event_bytes: usize,
    encoding: Mutex<Weak<Encoding>>,
    /// Of the memory they were read into; none of those that the ring has counted.
    loan: Option<Loan>,
}

/// Records that may be gone.
#[derive(Clone, Debug)]
pub struct WeakRecords(Weak<Together>);

impl WeakRecords {
    /// The records, if anybody else still has them.
    pub fn upgrade(&self) -> Option<Records> {
        self.0.upgrade().map(Records)
    }
}

/// Records as clients get them, one behind the other.
#[derive(Debug, Default)]
pub struct Encoding {
    /// All of them.
    pub bytes: Vec<u8>,
    /// Where each ends.
    pub ends: Vec<usize>,
    /// Held as long as anybody has some of it.
    pub charge: Option<Charge>,
}

impl Records {
    /// Records that were read into borrowed memory.
    pub fn lent(records: Vec<Record>, loan: Loan) -> Self {
        Self::new(records, Some(loan))
    }

    /// Whether their memory is borrowed.
    pub fn is_lent(&self) -> bool {
        self.0.loan.is_some()
    }

    /// Without keeping them in memory.
    pub fn downgrade(&self) -> WeakRecords {
        WeakRecords(Arc::downgrade(&self.0))
    }

    fn new(records: Vec<Record>, loan: Option<Loan>) -> Self {
        let event_bytes = records.iter().map(|record| record.event().len()).sum();
        Self(Arc::new(Together {
            records: records.into(),
            event_bytes,
            encoding: Mutex::default(),
            loan,
        }))
    }

    /// Whether both are the same, not only equal.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Size of their events' encodings, as [`Record::event`] gives them.
    pub fn event_bytes(&self) -> usize {
        self.0.event_bytes
    }

    /// How the records in `range` are encoded. That is done by the first who asks, for all records, and kept as long as
    /// anybody has some of it.
    pub fn encoded(
        &self,
        range: Range<usize>,
        encode: impl FnOnce(&[Record]) -> Encoding,
    ) -> Encoded {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        let mut known = self
            .0
            .encoding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let encoding = known.upgrade().unwrap_or_else(|| {
            let encoding = Arc::new(encode(self));
            *known = Arc::downgrade(&encoding);
            encoding
        });
        drop(known);
        let end = |count: usize| count.checked_sub(1).map_or(0, |last| encoding.ends[last]);
        let bytes = end(range.start)..end(range.end);
        Encoded { encoding, bytes }
    }
}

impl From<Vec<Record>> for Records {
    fn from(records: Vec<Record>) -> Self {
        Self::new(records, None)
    }
}

impl Deref for Records {
    type Target = [Record];

    fn deref(&self) -> &[Record] {
        &self.0.records
    }
}

/// A part of an encoding that is shared.
#[derive(Debug)]
pub struct Encoded {
    encoding: Arc<Encoding>,
    bytes: Range<usize>,
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.encoding.bytes[self.bytes.clone()]
    }
}

impl Record {
    /// Lays the parts out at `sequence`.
    pub fn new(sequence: Sequence, parts: &RecordParts<'_>) -> Self {
        let (product, task) = (parts.product.as_str(), parts.task_id.as_str());
        let labels_bytes: usize = parts
            .labels
            .iter()
            .map(|(key, value)| 4 + key.len() + value.len())
            .sum();
        let capacity = HEADER_BYTES
            + product.len()
            + task.len()
            + labels_bytes
            + parts.event.len()
            + parts.raw.len();
        let mut bytes = Vec::with_capacity(capacity);
        bytes.put_u8(LAYOUT);
        bytes.put_u8(parts.status as u8);
        bytes.put_u8(if parts.conflict { FLAG_CONFLICT } else { 0 });
        bytes.put_u8(product.len() as u8); // at most 63
        bytes.put_u32_le(parts.revision);
        bytes.put_i64_le(parts.received_at_micros);
        bytes.put_i64_le(parts.log_time_micros);
        bytes.put_u16_le(task.len() as u16); // at most 128 characters of 4 bytes
        bytes.put_u16_le(labels_bytes as u16); // at most 16 * (4 + (64 + 256) * 4)
        bytes.put_u32_le(parts.event.len() as u32); // bounded by the body limit
        bytes.put_slice(product.as_bytes());
        bytes.put_slice(task.as_bytes());
        for text in parts.labels.iter().flat_map(|(key, value)| [key, value]) {
            bytes.put_u16_le(text.len() as u16); // at most 256 characters of 4 bytes
            bytes.put_slice(text.as_bytes());
        }
        bytes.put_slice(parts.event);
        bytes.put_slice(parts.raw);
        Self {
            sequence,
            bytes: bytes.into(),
            origin: None,
        }
    }

    /// Takes stored bytes after checking that every offset lies within them and the keys are UTF-8.
    pub fn from_stored(sequence: Sequence, bytes: Bytes) -> Result<Self, RecordError> {
        if bytes.len() < HEADER_BYTES || bytes[0] != LAYOUT {
            return Err(RecordError("unknown layout"));
        }
        let record = Self {
            sequence,
            bytes,
            origin: None,
        };
        if record.raw_start() > record.bytes.len() {
            return Err(RecordError("shorter than its header says"));
        }
        let keys = &record.bytes[HEADER_BYTES..record.labels_start()];
        if TaskStatus::from_number(record.bytes[1]).is_none() || std::str::from_utf8(keys).is_err()
        {
            return Err(RecordError("its keys are damaged"));
        }
        Ok(record)
    }

    /// What is left of an event whose body was erased: `kept` are its first [`Self::kept_len`] bytes.
    pub fn from_kept(sequence: Sequence, kept: &[u8]) -> Result<Self, RecordError> {
        if kept.len() < HEADER_BYTES {
            return Err(RecordError("shorter than its header says"));
        }
        let mut bytes = kept.to_vec();
        bytes[2] |= FLAG_ERASED;
        bytes[LABELS_LENGTH].fill(0);
        bytes[EVENT_LENGTH].fill(0);
        Self::from_stored(sequence, bytes.into())
    }

    /// The same with nothing but its keys and numbers: what is left of it once it is erased.
    #[must_use]
    pub fn erased(&self) -> Self {
        Self::from_kept(self.sequence, &self.bytes[..self.kept_len()])
            .expect("a record has a header, and its keys were checked")
    }

    /// Whether its labels, its event and its body were erased.
    pub fn is_erased(&self) -> bool {
        self.bytes[2] & FLAG_ERASED != 0
    }

    /// Bytes at its beginning that stay when it is erased: the header, the product and the task id.
    pub fn kept_len(&self) -> usize {
        self.labels_start()
    }

    /// The same without the callback's body, in memory of its own size.
    #[must_use]
    pub fn without_raw(&self) -> Self {
        let bytes = Bytes::copy_from_slice(&self.bytes[..self.raw_start()]);
        Self {
            sequence: self.sequence,
            bytes,
            origin: self.origin.clone(),
        }
    }

    /// The same in memory of its own size, and not a part of what it was read with.
    #[must_use]
    pub fn compact(self) -> Self {
        Self {
            bytes: Bytes::copy_from_slice(&self.bytes),
            ..self
        }
    }

    /// The same, as part of its callback's trace while it is in memory.
    #[must_use]
    pub fn with_origin(self, origin: Option<Arc<Origin>>) -> Self {
        Self { origin, ..self }
    }

    /// Its callback's trace, if that is sampled and the record has not been read from the log.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
    }

    /// Where it stands.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The whole block, for storing.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never true: a record has a header.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Place among the events of its (product, task), from 1.
    pub fn revision(&self) -> u32 {
        u32::from_le_bytes(self.array(4))
    }

    /// Contradicts an earlier terminal event.
    pub fn conflict(&self) -> bool {
        self.bytes[2] & FLAG_CONFLICT != 0
    }

    /// When the callback was received, in microseconds since 1970.
    pub fn received_at_micros(&self) -> i64 {
        i64::from_le_bytes(self.array(8))
    }

    /// Like `received_at`, but falling along the log only where its clock was set back.
    pub fn log_time_micros(&self) -> i64 {
        i64::from_le_bytes(self.array(16))
    }

    /// The event's encoding, without cursor, revision and conflict.
    pub fn event(&self) -> &[u8] {
        &self.bytes[self.event_start()..self.raw_start()]
    }

    /// The callback's body as received.
    pub fn raw(&self) -> &[u8] {
        &self.bytes[self.raw_start()..]
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        array
    }

    fn u16_at(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes(self.array(at)))
    }

    fn task_start(&self) -> usize {
        HEADER_BYTES + usize::from(self.bytes[3])
    }

    fn labels_start(&self) -> usize {
        self.task_start() + self.u16_at(24)
    }

    fn event_start(&self) -> usize {
        self.labels_start() + self.u16_at(26)
    }

    fn raw_start(&self) -> usize {
        self.event_start() + u32::from_le_bytes(self.array(28)) as usize
    }

    fn text(&self, range: std::ops::Range<usize>) -> &str {
        // `from_stored` has checked the keys; a damaged label reads as a text that matches nothing.
        std::str::from_utf8(&self.bytes[range]).unwrap_or_default()
    }

    /// The event's labels; none of an event that was erased.
    pub fn labels(&self) -> Labels {
        let texts: Vec<_> = self.label_texts().map(str::to_owned).collect();
        let pair = |pair: &[String]| Some((pair.first()?.clone(), pair.get(1)?.clone()));
        texts.chunks(2).filter_map(pair).collect()
    }

    /// The labels, key and value in turn.
    fn label_texts(&self) -> impl Iterator<Item = &str> {
        let end = self.event_start();
        let mut at = self.labels_start();
        std::iter::from_fn(move || {
            let start = at + 2;
            let stop = (start <= end)
                .then(|| start + self.u16_at(at))
                .filter(|&stop| stop <= end)?;
            at = stop;
            Some(self.text(start..stop))
        })
    }
}

impl Selectable for Record {
    fn task_id(&self) -> &str {
        self.text(self.task_start()..self.labels_start())
    }

    fn product(&self) -> &str {
        self.text(HEADER_BYTES..self.task_start())
    }

    fn status(&self) -> TaskStatus {
        TaskStatus::from_number(self.bytes[1]).unwrap_or(TaskStatus::Unspecified)
    }

    fn has_label(&self, key: &str, value: &str) -> bool {
        let mut texts = self.label_texts();
        while let (Some(k), Some(v)) = (texts.next(), texts.next()) {
            if k == key && v == value {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_record_gives_back_every_part(
            product in "[a-z0-9][a-z0-9-]{0,62}",
            task in "[!-~é]{1,128}",
            status in 0u8..5,
            revision: u32,
            conflict: bool,
            times: (i64, i64),
            labels in collection::btree_map("\\PC{1,64}", "\\PC{0,256}", 0..16),
            event: Vec<u8>,
            raw: Vec<u8>,
        ) {
            let parts = RecordParts {
                product: &Product::parse(&product).unwrap(),
                task_id: &TaskId::parse(&task).unwrap(),
                status: TaskStatus::from_number(status).unwrap(),
                revision,
                conflict,
                received_at_micros: times.0,
                log_time_micros: times.1,
                labels: &labels,
                event: &event,
                raw: &raw,
            };
            let record = Record::new(Sequence(9), &parts);
            let record = Record::from_stored(Sequence(9), record.bytes().clone()).unwrap();
            prop_assert_eq!(record.product(), &*product);
            prop_assert_eq!(record.task_id(), &*task);
            prop_assert_eq!(record.status() as u8, status);
            prop_assert_eq!((record.revision(), record.conflict()), (revision, conflict));
            prop_assert_eq!((record.received_at_micros(), record.log_time_micros()), times);
            prop_assert_eq!(record.event(), event);
            let raw_len = raw.len();
            prop_assert_eq!(record.raw(), raw);
            prop_assert!(labels.iter().all(|(key, value)| record.has_label(key, value)));
            prop_assert_eq!(&record.labels(), &labels);
            prop_assert!(record.erased().labels().is_empty());
            prop_assert!(!record.has_label("no such key", ""));
            let erased = record.erased();
            prop_assert!(erased.is_erased() && !record.is_erased());
            prop_assert_eq!(erased.bytes().len(), record.kept_len());
            prop_assert_eq!((erased.product(), erased.task_id(), erased.status() as u8), (&*product, &*task, status));
            prop_assert_eq!((erased.revision(), erased.conflict()), (revision, conflict));
            prop_assert_eq!((erased.received_at_micros(), erased.log_time_micros()), times);
            prop_assert_eq!((erased.event(), erased.raw(), erased.label_texts().count()), (&[][..], &[][..], 0));
            let again = Record::from_stored(Sequence(9), erased.bytes().clone()).unwrap();
            prop_assert!(again.is_erased() && again.erased().bytes() == erased.bytes());
            let without_raw = record.without_raw();
            prop_assert_eq!(without_raw.len(), record.len() - raw_len);
            prop_assert_eq!((without_raw.event(), without_raw.raw()), (record.event(), &[][..]));
        }

        #[test]
        fn what_is_encoded_together_can_be_had_in_part(lengths in collection::vec(1..9_usize, 1..9), from: prop::sample::Index) {
            let bytes = |at: usize| [&[0; HEADER_BYTES][..], &vec![at as u8; lengths[at]]].concat();
            let record = |at: usize| Record { sequence: Sequence(at as u64), bytes: bytes(at).into(), origin: None };
            let records = Records::from((0..lengths.len()).map(record).collect::<Vec<_>>());
            let calls = std::cell::Cell::new(0);
            let encode = |records: &[Record]| {
                calls.set(calls.get() + 1);
                let mut encoding = Encoding::default();
                for record in records {
                    encoding.bytes.extend_from_slice(record.bytes());
                    encoding.ends.push(encoding.bytes.len());
                }
                encoding
            };
            let from = from.index(lengths.len());
            for to in from..=lengths.len() {
                let all = records.encoded(0..lengths.len(), encode);
                let expected: Vec<u8> = (from..to).flat_map(bytes).collect();
                let part = records.encoded(from..to, encode);
                prop_assert_eq!(part.as_ref(), expected);
                prop_assert_eq!(all.as_ref().len(), lengths.iter().map(|length| HEADER_BYTES + length).sum::<usize>());
            }
            prop_assert!(calls.get() <= lengths.len() + 1 - from, "once for all who have it at the same time");
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(mut bytes: Vec<u8>, layout: bool) {
            if let (true, Some(first)) = (layout, bytes.first_mut()) {
                *first = LAYOUT;
            }
            if let Ok(record) = Record::from_stored(Sequence(1), bytes.into()) {
                let _ = (record.task_id(), record.product(), record.status(), record.has_label("a", "b"));
                let _ = (record.event(), record.raw());
            }
        }
    }
}
