//! A copy of the whole store as one stream of bytes, taken while the broker runs.
//!
//! ```text
//! magic (16 bytes)   format (u64)   totals
//! entry:  part (u8)   key length (u32)   value length (u32)   key   value
//! end:    0 (u8)   number of entries (u64)   XXH3 of all before it (u64)
//! ```
//!
//! First come all events, then the task index, then the quarantine, each in the order of its keys. An event's key is its
//! place (u64, big-endian), its value its record, which says so itself if it was erased; the others' are those of the store, of the
//! quarantine in plain. Integers are little-endian. The epoch is not in it: what is restored is another log. Without its end a
//! copy is worth nothing, so one that was cut short cannot be taken for a whole one.

use std::{cmp::Ordering, collections::VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use fjall::{Readable, Slice};
use xxhash_rust::xxh3::Xxh3;

use super::{
    ReadError, Store,
    dedupe::may_lack_some,
    layout::{
        BACKUP_FORMAT, Damaged, Totals, parse_quarantined, parse_sequence_key, parse_task,
        sequence_key,
    },
    lock,
    log::Events,
};
use crate::event::{Record, Sequence, TaskId};

pub(super) const MAGIC: &[u8; 16] = b"blobcast backup\n";
pub(super) const END: u8 = 0;
/// One chunk at most: large enough to be quick, small enough that a slow reader holds next to nothing.
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

/// Where an entry belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Events = 1,
    Tasks = 2,
    Quarantine = 3,
}

impl Part {
    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Self::Events, Self::Tasks, Self::Quarantine]
            .into_iter()
            .find(|part| *part as u8 == number)
    }
}

/// Looks at every entry on its way out and on its way in: what could not be restored must not be taken for a backup.
pub(super) struct Audit {
    /// What there must be.
    pub expected: Totals,
    /// What there was.
    pub found: Totals,
    pub entries: u64,
    indexed: u64,
    /// A task has so many terminal events that the index does not name all of them.
    is_crowded: bool,
    last_task: Vec<u8>,
}

impl Audit {
    pub(super) fn new(expected: Totals) -> Self {
        let empty = Totals {
            event_count: 0,
            event_bytes: 0,
            quarantine_count: 0,
            quarantine_bytes: 0,
            ..expected
        };
        Self {
            expected,
            found: empty,
            entries: 0,
            indexed: 0,
            is_crowded: false,
            last_task: Vec::new(),
        }
    }

    pub(super) fn entry(&mut self, part: Part, key: &[u8], value: &[u8]) -> Result<(), Damaged> {
        self.entries += 1;
        match part {
            Part::Events => {
                let sequence = parse_sequence_key(key)?;
                Record::from_stored(sequence, Bytes::copy_from_slice(value))
                    .map_err(|_| Damaged("event"))?;
                if sequence != self.found.head()?.next() {
                    return Err(Damaged("log: events are missing"));
                }
                self.found.event_count += 1;
                self.found.event_bytes += value.len() as u64;
            }
            Part::Tasks => {
                let is_task = std::str::from_utf8(key).is_ok_and(|key| TaskId::parse(key).is_ok());
                if !is_task {
                    return Err(Damaged("task index key"));
                }
                if key <= self.last_task.as_slice() {
                    return Err(Damaged("task index: it is not in order"));
                }
                self.last_task = key.to_vec();
                let retained = self.expected.first_available..=self.expected.head()?.0;
                let mut events = parse_task(value)?;
                events.retain(|event| retained.contains(&event.sequence.0));
                self.indexed += events.len() as u64;
                self.is_crowded |= may_lack_some(&events);
            }
            Part::Quarantine => {
                let number = parse_sequence_key(key)?.0;
                parse_quarantined(value)?;
                if number > self.expected.quarantine_next {
                    return Err(Damaged("quarantine key"));
                }
                self.found.quarantine_count += 1;
                self.found.quarantine_bytes += value.len() as u64;
            }
        }
        Ok(())
    }

    pub(super) fn end(&self) -> Result<(), Damaged> {
        let counts = |totals: &Totals| (totals.event_count, totals.quarantine_count);
        if counts(&self.found) != counts(&self.expected) {
            return Err(Damaged("count: there is more or less than the totals say"));
        }
        let is_whole = match self.indexed.cmp(&self.found.event_count) {
            Ordering::Equal => true,
            Ordering::Less => self.is_crowded,
            Ordering::Greater => false,
        };
        if !is_whole {
            return Err(Damaged("task index: it does not name every event once"));
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

/// Keys and values in the order of the keys.
type Entries = Box<dyn Iterator<Item = Result<(Slice, Slice), ReadError>> + Send>;

/// A backup in the making. Holds a snapshot: what retention forgets meanwhile still takes its disk space until this is gone.
pub struct Backup {
    events: Events,
    /// What follows the events.
    parts: VecDeque<(Part, Entries)>,
    audit: Audit,
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
    /// A backup of what is there now. The writer's alone, between two commits: then all that is there is durable, and the
    /// totals are those of it.
    pub(super) fn backup(&self) -> Result<Backup, ReadError> {
        let totals = *lock(&self.totals);
        let tasks: Entries = Box::new(self.tasks.entries());
        // By the keys as they are now: what is discarded meanwhile is still a part of it.
        let keys = self.quarantine_keys.copy()?;
        let quarantine = self
            .database
            .snapshot()
            .iter(&self.quarantine)
            .map(move |entry| {
                let (key, sealed) = entry.into_inner()?;
                let value = keys.unseal(parse_sequence_key(&key)?.0, &sealed)?;
                Ok((key, value.into()))
            });
        let quarantine: Entries = Box::new(quarantine);
        let mut backup = Backup {
            events: self
                .log
                .events(Sequence(totals.first_available)..=self.head()),
            parts: [(Part::Tasks, tasks), (Part::Quarantine, quarantine)].into(),
            audit: Audit::new(totals),
            checksum: Xxh3::new(),
            buffer: BytesMut::new(),
            backup_bytes: 0,
            has_ended: false,
        };
        backup.put(MAGIC);
        backup.put(&BACKUP_FORMAT.to_le_bytes());
        backup.put(&totals.encode());
        Ok(backup)
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
    pub fn summary(&self) -> BackupSummary {
        self.audit.summary(self.backup_bytes)
    }

    fn put_next_entry(&mut self) -> Result<(), ReadError> {
        if let Some(record) = self.events.next() {
            let record = record?;
            return self.put_entry(
                Part::Events,
                &sequence_key(record.sequence()),
                record.bytes(),
            );
        }
        let Some((part, entries)) = self.parts.front_mut() else {
            return self.put_end();
        };
        let part = *part;
        match entries.next() {
            Some(entry) => {
                let (key, value) = entry?;
                self.put_entry(part, &key, &value)
            }
            None => {
                self.parts.pop_front();
                Ok(())
            }
        }
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
