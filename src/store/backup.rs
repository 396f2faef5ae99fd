//! A copy of the whole store as one stream of bytes, taken while the broker runs.
//!
//! ```text
//! magic (16 bytes)   format (u64)   totals
//! entry:  part (u8)   key length (u32)   value length (u32)   key   value
//! end:    0 (u8)   number of entries (u64)   XXH3 of all before it (u64)
//! ```
//!
//! First come all events, then the quarantine, then the open expectations, each in the order of its keys. An event's key is its
//! place (u64, big-endian), its value its id (u128), its fingerprint and its record, which says so
//! itself if it was erased. A quarantined callback's key is its number (u64, big-endian), its value
//! that of its entry in the log; nothing if it was erased while the backup was taken, or is damaged
//! in the log. The same holds for an expectation, which has its value as it was when the backup
//! began. Integers are
//! little-endian. The epoch is not in it: what is restored is another log. The task index is made
//! from the events. Without its end a copy is worth nothing, so one that was cut short cannot be
//! taken for a whole one.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::{
    ReadError, Store,
    expectation::Kept,
    layout::{BACKUP_FORMAT, Damaged, parse_quarantined, parse_sequence_key, sequence_key},
    lock,
    log::{Events, Logged, QuarantineReader, Unread},
    quarantine_index::Held,
};
use crate::{
    cluster::Totals,
    event::{Fingerprint, Record, Sequence},
};

pub(super) const MAGIC: &[u8; 16] = b"blobcast backup\n";
pub(super) const END: u8 = 0;
/// One chunk at most: large enough to be quick, small enough that a slow reader holds next to
/// nothing.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a backup holds, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// Events.
    pub event_count: u64,
    /// Callbacks in quarantine.
    pub quarantine_count: u64,
    /// The newest event.
    pub head: Sequence,
    /// Size of the backup, as far as it has been read or written.
    pub backup_bytes: u64,
}

/// Quarantined callbacks that a backup lacks, as they are damaged in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuarantineDamage {
    /// How many.
    pub count: u64,
    /// What is wrong with the first.
    pub problem: String,
}

/// Where an entry belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Events = 1,
    Quarantine = 2,
    Expectations = 3,
}

impl Part {
    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Self::Events, Self::Quarantine, Self::Expectations]
            .into_iter()
            .find(|part| *part as u8 == number)
    }
}

/// Looks at every entry on its way out and on its way in: what could not be restored must not be
/// taken for a backup.
pub(super) struct Audit {
    /// What there must be.
    pub expected: Totals,
    /// What there was.
    pub found: Totals,
    pub entries: u64,
    /// The newest number of the quarantine so far,
    newest_number: u64,
    /// and of the expectations.
    newest_expectation: u64,
}

impl Audit {
    pub(super) fn new(expected: Totals) -> Self {
        let empty = Totals {
            event_count: 0,
            event_bytes: 0,
            quarantine_count: 0,
            quarantine_bytes: 0,
            expectation_count: 0,
            ..expected
        };
        Self {
            expected,
            found: empty,
            entries: 0,
            newest_number: 0,
            newest_expectation: 0,
        }
    }

    pub(super) fn entry(&mut self, part: Part, key: &[u8], value: &[u8]) -> Result<(), Damaged> {
        self.entries += 1;
        match part {
            Part::Events => {
                let sequence = parse_sequence_key(key)?;
                let Logged { record, .. } = parse_event(sequence, Bytes::copy_from_slice(value))?;
                if sequence != self.found.newest()?.next() {
                    return Err(Damaged("log: events are missing"));
                }
                self.found.event_count += 1;
                self.found.event_bytes += record.len() as u64;
            }
            Part::Quarantine => {
                let number = parse_sequence_key(key)?.0;
                if number > self.expected.quarantine_next {
                    return Err(Damaged("quarantine key"));
                }
                if number <= self.newest_number {
                    return Err(Damaged("quarantine: it is not in order"));
                }
                self.newest_number = number;
                if value.is_empty() {
                    self.expected.forget_quarantined(0)?; // it was erased meanwhile, or is damaged
                    return Ok(());
                }
                parse_quarantined(value)?;
                self.found.quarantine_count += 1;
                self.found.quarantine_bytes += value.len() as u64;
            }
            Part::Expectations => {
                let number = parse_sequence_key(key)?.0;
                let is_in_order = number > self.newest_expectation;
                if number > self.expected.expectation_next || !is_in_order {
                    return Err(Damaged("expectation key"));
                }
                self.newest_expectation = number;
                Kept::parse(value)?;
                self.found.expectation_count += 1;
            }
        }
        Ok(())
    }

    pub(super) fn end(&self) -> Result<(), Damaged> {
        let counts = |totals: &Totals| {
            let numbered = [totals.quarantine_count, totals.expectation_count];
            (totals.event_count, numbered)
        };
        if counts(&self.found) != counts(&self.expected) {
            return Err(Damaged("count: there is more or less than the totals say"));
        }
        Ok(())
    }

    pub(super) fn summary(&self, backup_bytes: u64) -> BackupSummary {
        let Totals {
            event_count,
            quarantine_count,
            ..
        } = self.found;
        BackupSummary {
            event_count,
            quarantine_count,
            head: self.found.head().unwrap_or_default(),
            backup_bytes,
        }
    }
}

/// What an event is in a backup.
fn event_value(logged: &Logged) -> Vec<u8> {
    let record = logged.record.bytes();
    let mut value = Vec::with_capacity(16 + Fingerprint::BYTES + record.len());
    value.put_u128_le(logged.event_id.as_u128());
    logged.fingerprint.put(&mut value);
    value.put_slice(record);
    value
}

/// The event with such a value.
pub(super) fn parse_event(sequence: Sequence, mut value: Bytes) -> Result<Logged, Damaged> {
    const DAMAGED: Damaged = Damaged("event");
    let event_id = Uuid::from_u128(value.try_get_u128_le().map_err(|_| DAMAGED)?);
    let fingerprint = Fingerprint::take(&mut value).ok_or(DAMAGED)?;
    Ok(Logged {
        event_id,
        fingerprint,
        record: Record::from_stored(sequence, value).map_err(|_| DAMAGED)?,
    })
}

/// A backup in the making. Holds files: what retention forgets meanwhile still takes its disk space
/// until this is gone.
pub struct Backup {
    events: Events,
    /// What follows the events: numbers, and where they lie.
    quarantined: std::vec::IntoIter<(u64, Held)>,
    quarantine: QuarantineReader,
    expectations: std::vec::IntoIter<(u64, Kept)>,
    audit: Audit,
    damage: Option<QuarantineDamage>,
    checksum: Xxh3,
    /// What the next chunks begin with.
    buffer: BytesMut,
    backup_bytes: u64,
    has_ended: bool,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup")
            .field("summary", &self.summary())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// A backup of what is there now. The writer's alone, between two commits: then all that is
    /// there is durable, and the totals are those of it.
    pub(super) fn backup(&self) -> Backup {
        let totals = *lock(&self.totals);
        let mut backup = Backup {
            events: self
                .log
                .events(Sequence(totals.first_available)..=self.head()),
            quarantined: lock(&self.quarantine).all().into_iter(),
            quarantine: self.log.quarantine_reader(),
            expectations: lock(&self.expectations).all().into_iter(),
            audit: Audit::new(totals),
            damage: None,
            checksum: Xxh3::new(),
            buffer: BytesMut::new(),
            backup_bytes: 0,
            has_ended: false,
        };
        backup.put(MAGIC);
        backup.put(&BACKUP_FORMAT.to_le_bytes());
        backup.put(&totals.encode());
        backup
    }
}

impl Backup {
    /// The next bytes of it, at most 256 KiB; `None` behind the last. Blocks on the disk.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        while self.buffer.len() < CHUNK_BYTES && !self.has_ended {
            self.put_next_entry()?;
        }
        let chunk = self
            .buffer
            .split_to(self.buffer.len().min(CHUNK_BYTES))
            .freeze();
        self.backup_bytes += chunk.len() as u64;
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    /// What has been given so far; behind the last chunk, all of it.
    pub(crate) fn summary(&self) -> BackupSummary {
        self.audit.summary(self.backup_bytes)
    }

    /// What of the quarantine could not be read so far.
    pub(crate) fn damage(&self) -> Option<&QuarantineDamage> {
        self.damage.as_ref()
    }

    fn put_next_entry(&mut self) -> Result<(), ReadError> {
        if let Some(event) = self.events.next() {
            let event = event?;
            let key = sequence_key(event.record.sequence());
            return self.put_entry(Part::Events, &key, &event_value(&event));
        }
        if let Some((number, held)) = self.quarantined.next() {
            let value = match self.read_quarantined(number, &held) {
                Err(Unread::Damaged(problem)) => {
                    let damage = self
                        .damage
                        .get_or_insert(QuarantineDamage { count: 0, problem });
                    damage.count += 1;
                    None
                }
                value => value?,
            };
            let key = sequence_key(Sequence(number));
            return self.put_entry(Part::Quarantine, &key, &value.unwrap_or_default());
        }
        let Some((number, kept)) = self.expectations.next() else {
            return self.put_end();
        };
        let key = sequence_key(Sequence(number));
        self.put_entry(Part::Expectations, &key, kept.bytes())
    }

    /// A value that can be restored.
    fn read_quarantined(&self, number: u64, held: &Held) -> Result<Option<Bytes>, Unread> {
        let value = self.quarantine.read(number, held.newest)?;
        if let Some(value) = &value {
            parse_quarantined(value)?;
        }
        Ok(value)
    }

    fn put_entry(&mut self, part: Part, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
        self.audit.entry(part, key, value)?;
        self.put(&[part as u8]);
        for length in [key.len(), value.len()] {
            self.put(&(length as u32).to_le_bytes()); // bounded by the limits of what is in them
        }
        self.put(key);
        self.put(value);
        Ok(())
    }

    fn put_end(&mut self) -> Result<(), ReadError> {
        self.audit.end()?;
        self.put(&[END]);
        self.put(&self.audit.entries.to_le_bytes());
        self.buffer.put_u64_le(self.checksum.digest());
        self.has_ended = true;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        self.buffer.put_slice(bytes);
    }
}
