//! Records: an event as it is stored in the log, kept in the ring and delivered. One block of bytes, read by offset, not copied.
//!
//! ```text
//! 0       1       2      3            4         8            16        24        26          28
//! layout  status  flags  product len  revision  received_at  log_time  task len  labels len  event len
//! u8      u8      u8     u8           u32       i64, µs      i64, µs   u16       u16         u32
//! then: product, task id, labels (u16 length + text, key and value in turn), encoded event, raw body (the rest)
//! ```
//!
//! Integers are little-endian. Flag 1 marks a conflict. Flag 2 marks an erased event, whose record ends after the task id. The
//! encoded event is opaque here. It has no cursor, revision or conflict flag, which come from the log: so the bytes stay valid when
//! a restored log gets a new epoch.
//!
//! Owns the layout, and the sharing of records and of their encoding between subscriptions. Never does I/O.

use std::{
    ops::{Deref, Range},
    sync::{Arc, Weak},
};

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;

use super::{Labels, Product, Selectable, Sequence, TaskId, TaskStatus};
use crate::{budget::Loan, trace::Origin, transit::Charge};

const LAYOUT: u8 = 1;
const HEADER_BYTES: usize = 32;
const LABELS_LENGTH: Range<usize> = 26..28;
const EVENT_LENGTH: Range<usize> = 28..32;
const FLAG_CONFLICT: u8 = 1;
/// An operator has erased the labels, the encoded event and the body.
const FLAG_ERASED: u8 = 2;

/// Stored bytes are not a record. There is no such error for writing: the parsers of the domain types keep within the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored event cannot be read: {0}")]
pub struct RecordError(&'static str);

/// The fields of a record that is about to be written.
#[derive(Debug)]
pub struct RecordParts<'a> {
    /// The product that the task belongs to.
    pub product: &'a Product,
    /// The task that the event is about.
    pub task_id: &'a TaskId,
    /// The state that the event reports.
    pub status: TaskStatus,
    /// The event's number among the events of its (product, task), from 1.
    pub revision: u32,
    /// True if the event contradicts an earlier terminal event of its task.
    pub conflict: bool,
    /// When the callback was received, in microseconds since 1970.
    pub received_at_micros: i64,
    /// When the event was received or appended, by the log's clock. Searching by time and retention use it. It never falls along the
    /// log unless that clock was set back.
    pub log_time_micros: i64,
    /// The labels that filters compare.
    pub labels: &'a Labels,
    /// The protobuf encoding, without cursor, revision and conflict.
    pub event: &'a [u8],
    /// The callback's body as received.
    pub raw: &'a [u8],
}

/// One stored event. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Record {
    sequence: Sequence,
    bytes: Bytes,
    /// The callback's trace. Not stored, so a record read from the log has none. Behind a pointer, because few records have one.
    origin: Option<Arc<Origin>>,
}

/// Events that were published or read together, in the order of the log. They share one reference count: a count for each record
/// would have all cores write to the same cache lines at every delivery.
#[derive(Clone, Debug)]
pub struct Records(Arc<SharedRecords>);

#[derive(Debug)]
struct SharedRecords {
    records: Box<[Record]>,
    event_bytes: usize,
    encoding: Mutex<Weak<SharedEncoding>>,
    /// The loan of the memory that the records were read into; `None` for records in the ring, which has a limit of its own.
    loan: Option<Loan>,
}

/// A weak reference to records: it does not keep them in memory.
#[derive(Clone, Debug)]
pub struct WeakRecords(Weak<SharedRecords>);

impl WeakRecords {
    /// The records, if something else still holds them.
    pub fn upgrade(&self) -> Option<Records> {
        self.0.upgrade().map(Records)
    }
}

/// The frames of consecutive records as clients receive them, encoded once and shared.
#[derive(Debug, Default)]
pub struct SharedEncoding {
    /// The frames of all records, one after the other.
    pub bytes: Vec<u8>,
    /// For each record, the offset in `bytes` where its frame ends.
    pub ends: Vec<usize>,
    /// The transport's memory that the encoding takes; given back when the last holder drops the encoding.
    pub charge: Option<Charge>,
}

impl Records {
    /// Records in memory that `loan` was taken for.
    pub fn lent(records: Vec<Record>, loan: Loan) -> Self {
        Self::new(records, Some(loan))
    }

    /// True if the records hold a loan, and so were read from the log.
    pub fn is_lent(&self) -> bool {
        self.0.loan.is_some()
    }

    /// A weak reference to the same records.
    pub fn downgrade(&self) -> WeakRecords {
        WeakRecords(Arc::downgrade(&self.0))
    }

    fn new(records: Vec<Record>, loan: Option<Loan>) -> Self {
        let event_bytes = records.iter().map(|record| record.event().len()).sum();
        Self(Arc::new(SharedRecords {
            records: records.into(),
            event_bytes,
            encoding: Mutex::default(),
            loan,
        }))
    }

    /// True if both are the same shared records, not only equal ones.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The sum of the lengths of [`Record::event`].
    pub fn event_bytes(&self) -> usize {
        self.0.event_bytes
    }

    /// The encoding of the records in `range`. The first call encodes all records; later calls share the result while any part of it
    /// is in use.
    pub fn encoded(
        &self,
        range: Range<usize>,
        encode: impl FnOnce(&[Record]) -> SharedEncoding,
    ) -> Encoded {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        let mut shared = self.0.encoding.lock();
        let encoding = shared.upgrade().unwrap_or_else(|| {
            let encoding = Arc::new(encode(self));
            *shared = Arc::downgrade(&encoding);
            encoding
        });
        drop(shared);

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

/// A range of a shared encoding, as bytes.
#[derive(Debug)]
pub struct Encoded {
    encoding: Arc<SharedEncoding>,
    bytes: Range<usize>,
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.encoding.bytes[self.bytes.clone()]
    }
}

impl Record {
    /// Writes a record for the event at `sequence`.
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

    /// Takes stored bytes, after checking that every offset lies within them and that product and task id are UTF-8.
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
        if std::str::from_utf8(keys).is_err() {
            return Err(RecordError("its keys are damaged"));
        }
        if TaskStatus::from_number(record.bytes[1]).is_none() {
            return Err(RecordError(
                "its status is not known: perhaps a newer version has written it",
            ));
        }
        Ok(record)
    }

    /// An erased record, from the first [`Self::kept_len`] bytes of the original.
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

    /// The record with labels, event and body erased. Product, task id, status and numbers stay.
    #[must_use]
    pub fn erased(&self) -> Self {
        Self::from_kept(self.sequence, &self.bytes[..self.kept_len()])
            .expect("a record has a header, and its keys were checked")
    }

    /// True if labels, event and body were erased.
    pub fn is_erased(&self) -> bool {
        self.bytes[2] & FLAG_ERASED != 0
    }

    /// The length of the prefix that erasure keeps: the header, the product and the task id.
    pub fn kept_len(&self) -> usize {
        self.labels_start()
    }

    /// A copy without the callback's body, which does not keep the original's memory alive.
    #[must_use]
    pub fn without_raw(&self) -> Self {
        let bytes = Bytes::copy_from_slice(&self.bytes[..self.raw_start()]);
        Self {
            sequence: self.sequence,
            bytes,
            origin: self.origin.clone(),
        }
    }

    /// A copy of the bytes, so that the record does not keep alive the larger buffer it was read into.
    #[must_use]
    pub fn compact(self) -> Self {
        Self {
            bytes: Bytes::copy_from_slice(&self.bytes),
            ..self
        }
    }

    /// The record with its callback's trace, which lasts as long as the record is in memory.
    #[must_use]
    pub fn with_origin(self, origin: Option<Arc<Origin>>) -> Self {
        Self { origin, ..self }
    }

    /// The callback's trace, if it is sampled and the record was not read from the log.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
    }

    /// The event's place in the log.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The stored form: header, keys, labels, event and body.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The length of the stored form in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never true: a record has a header.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The event's number among the events of its (product, task), from 1.
    pub fn revision(&self) -> u32 {
        u32::from_le_bytes(self.array(4))
    }

    /// True if the event contradicts an earlier terminal event of its task.
    pub fn conflict(&self) -> bool {
        self.bytes[2] & FLAG_CONFLICT != 0
    }

    /// When the callback was received, in microseconds since 1970.
    pub fn received_at_micros(&self) -> i64 {
        i64::from_le_bytes(self.array(8))
    }

    /// The time that retention and searches by time use; it falls along the log only where the log's clock was set back.
    pub fn log_time_micros(&self) -> i64 {
        i64::from_le_bytes(self.array(16))
    }

    /// The protobuf encoding, without cursor, revision and conflict.
    pub fn event(&self) -> &[u8] {
        &self.bytes[self.event_start()..self.raw_start()]
    }

    /// The callback's body as received; empty if it was erased or left out.
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
        // `from_stored` has checked product and task id. A damaged label reads as the empty text, which matches no filter.
        std::str::from_utf8(&self.bytes[range]).unwrap_or_default()
    }

    /// The event's labels; empty if they were erased.
    pub fn labels(&self) -> Labels {
        self.each_label()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    /// The labels, key and value, as they are stored.
    pub fn each_label(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.label_texts();
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }

    /// The texts of the labels: key, value, key, value, …
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
        self.each_label().any(|label| label == (key, value))
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
            status in 0u8..6,
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
        fn a_shared_encoding_can_be_read_in_parts(lengths in collection::vec(1..9_usize, 1..9), from: prop::sample::Index) {
            let bytes = |at: usize| [&[0; HEADER_BYTES][..], &vec![at as u8; lengths[at]]].concat();
            let record = |at: usize| Record { sequence: Sequence(at as u64), bytes: bytes(at).into(), origin: None };
            let records = Records::from((0..lengths.len()).map(record).collect::<Vec<_>>());
            let calls = std::cell::Cell::new(0);
            let encode = |records: &[Record]| {
                calls.set(calls.get() + 1);
                let mut encoding = SharedEncoding::default();
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
