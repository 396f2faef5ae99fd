//! What the entries of a frame do to a node. Decides nothing, and comes to the same on each node.
//!
//! What a frame says of its totals has to be what its entries make of those before. A node for which it is not has another state
//! than the one that decided, and must not go on. Only the bytes of events are taken at the word of the frame where this node
//! cannot read the events, or the writer could not.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    cluster::{Entry, Frame, Totals},
    event::{Product, Record, Selectable, Sequence, TaskId},
    store::{
        QuarantineHeader, ReadError, Store,
        apply::{Change, Overlay},
        error::IndexError,
        expectation::Kept,
        layout::{Damaged, TaskEvent, parse_quarantined},
        lock,
        log::{Found, FrameBuilder},
        totals::MISFIT,
        writer::carry::{CARRIED_BYTES_MAX, Due},
    },
    trace::Origin,
};

/// Why a frame cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// This node has another state than the one that decided.
    #[error("a frame does not fit what this node has: {0}")]
    Unfit(&'static str),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("a frame does not fit what this node has: {0}")]
    Damaged(#[from] Damaged),
}

impl From<IndexError> for Problem {
    fn from(error: IndexError) -> Self {
        Self::Read(error.into())
    }
}

/// A commit that is made of a frame.
pub(super) struct Applying<'a> {
    pub store: &'a Store,
    pub overlay: Overlay<'a>,
    pub builder: FrameBuilder,
    /// As the entries so far leave them.
    totals: Totals,
    /// The newest event before.
    head: Sequence,
    /// This node has everything that is retained.
    is_complete: bool,
    /// The bytes of events are known.
    is_exact: bool,
    pub records: Vec<Record>,
    /// The keys that are left of the events that it erases.
    pub erased: Vec<Record>,
    /// Where this log has the content to overwrite.
    pub found: Found,
    /// Quarantined callbacks and expectations that it writes.
    written: HashSet<(Kind, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Quarantined,
    Expected,
}

impl<'a> Applying<'a> {
    pub(super) fn new(store: &'a Store, is_complete: bool) -> Self {
        Self {
            store,
            overlay: Overlay::revocable(store.state(), 0),
            builder: FrameBuilder::new(),
            totals: *lock(&store.totals),
            head: store.head(),
            is_complete,
            is_exact: true,
            records: Vec::new(),
            erased: Vec::new(),
            found: Found::default(),
            written: HashSet::new(),
        }
    }

    pub(super) fn run(
        &mut self,
        frame: &Frame,
        origins: &HashMap<Uuid, Arc<Origin>>,
    ) -> Result<(), Problem> {
        let (before, after) = (&frame.contents.before, &frame.contents.after);
        if *before != self.totals {
            return Err(Problem::Unfit("it was decided on other totals"));
        }
        let erased: Vec<_> = frame
            .entries()
            .filter_map(|entry| match entry {
                Entry::Erased { place } => Some(place),
                _ => None,
            })
            .collect();
        let mut tombstones = self.find(&erased)?;
        for entry in frame.entries() {
            self.entry(entry, origins, &mut tombstones)?;
        }
        self.forget(before, after)?;
        self.check(after)
    }

    fn entry(
        &mut self,
        entry: Entry,
        origins: &HashMap<Uuid, Arc<Origin>>,
        tombstones: &mut HashMap<Sequence, Tombstone>,
    ) -> Result<(), Problem> {
        match entry {
            Entry::Event {
                event_id,
                fingerprint,
                record,
            } => {
                let task_id = &task_of(&record)?;
                let event = TaskEvent {
                    sequence: record.sequence(),
                    event_id,
                    fingerprint,
                    revision: record.revision(),
                    status: record.status(),
                    product: Product::parse(record.product())
                        .map_err(|_| Damaged("product of an event"))?,
                    is_erased: record.is_erased(),
                };
                self.check_index(task_id)?;
                self.overlay.apply(Change::Appended { task_id, event })?;
                self.builder.event(event_id, fingerprint, &record);
                self.totals.event_count += 1;
                self.totals.event_bytes += record.len() as u64;
                let origin = origins.get(&event_id).cloned();
                self.records.push(record.with_origin(origin));
                Ok(())
            }
            Entry::Quarantined { number, value } => {
                if number <= self.totals.quarantine_next {
                    return Err(Problem::Unfit("a number in quarantine is used"));
                }
                self.totals.quarantine_next = number;
                self.totals.quarantine_count += 1;
                self.totals.quarantine_bytes += value.len() as u64;
                self.builder.quarantined(number, &value);
                self.hold(number, &value)
            }
            Entry::Carried { number, value } => {
                self.builder.carried(number, &value);
                if self.is_complete && lock(&self.store.shares).get(number).is_none() {
                    return Err(Problem::Unfit("what it writes again is not in quarantine"));
                }
                self.hold(number, &value)
            }
            Entry::Left { number, is_erased } => self.leave(number, is_erased),
            Entry::Erased { place } => self.erase(place, tombstones.remove(&place)),
            Entry::Expected { number, value } => self.expect(number, &value),
            Entry::ExpectationEnded { number } => {
                if self.is_complete && self.overlay.numbered_expectation(number).is_none() {
                    return Err(Problem::Unfit("what ends is not expected"));
                }
                self.totals.end_expectation()?;
                self.overlay.apply(Change::ExpectationEnded { number })?;
                self.builder.expectation_ended(number);
                Ok(())
            }
            // It is for who writes the next frames.
            Entry::FormatRaised { .. } => Ok(()),
        }
    }

    /// An event of the task that the log has not would be taken for one that is known.
    fn check_index(&mut self, task_id: &TaskId) -> Result<(), Problem> {
        let head = Sequence(self.head.0 + self.records.len() as u64);
        let newest = self.overlay.events(task_id)?.last();
        match newest.map(|newest| newest.sequence) {
            Some(place) if place > head => {
                let (place, head) = (place.0, head.0);
                let problem = format!("it names event {place}, and the log ends behind {head}");
                Err(self.store.index.put_in_doubt(problem).into())
            }
            _ => Ok(()),
        }
    }

    fn hold(&mut self, number: u64, value: &Bytes) -> Result<(), Problem> {
        let unreadable = || QuarantineHeader::unreadable(self.totals.log_time_micros);
        let header = &parse_quarantined(value).map_or_else(|_| unreadable(), |(header, _)| header);
        let bytes = value.len() as u64;
        self.written.insert((Kind::Quarantined, number));
        Ok(self.overlay.apply(Change::Quarantined {
            number,
            header,
            bytes,
        })?)
    }

    fn leave(&mut self, number: u64, is_erased: bool) -> Result<(), Problem> {
        let held = lock(&self.store.shares).get(number);
        match held {
            Some(held) => self.totals.forget_quarantined(held.bytes)?,
            None if self.is_complete => {
                return Err(Problem::Unfit("what leaves is not in quarantine"));
            }
            None => {}
        }
        self.overlay.apply(Change::Left { number })?;
        self.written.remove(&(Kind::Quarantined, number));
        if !is_erased {
            self.builder.expired(number);
            return Ok(());
        }

        let copies = self.store.copies_of(number);
        let (found, not_found) = self.store.log.find_quarantined(&copies)?;
        self.found.add(found);
        for problem in not_found {
            tracing::error!(
                problem,
                "a discarded callback is damaged in the log and could not be overwritten: what is left of it goes with its segment"
            );
        }
        let places: Vec<_> = copies.into_iter().map(|(_, place)| place).collect();
        self.builder.removed(number, &places);
        Ok(())
    }

    /// Finds events that are erased.
    fn find(&mut self, places: &[Sequence]) -> Result<HashMap<Sequence, Tombstone>, Problem> {
        let mut tombstones = HashMap::new();
        if places.is_empty() {
            return Ok(tombstones); // almost always
        }
        if places.iter().any(|place| *place > self.head) {
            return Err(Problem::Unfit("it erases what is not there"));
        }
        let (announced, oldest) = (self.store.log.announced_places(), self.store.log.oldest());
        let mut places = places.to_vec();
        places.retain(|place| place.0 >= self.totals.first_available && *place >= oldest);
        places.sort_unstable();
        places.dedup();
        let found = self.store.log.find(&places, |record| {
            let is_to_erase = !record.is_erased() && !announced.contains(&record.sequence());
            let keys = record.erased();
            let bytes = (record.len() - keys.len()) as u64;
            let bytes = if is_to_erase { bytes } else { 0 };
            tombstones.insert(record.sequence(), Tombstone { keys, bytes });
            is_to_erase
        });
        match found.problem() {
            // It may be there, as it was written.
            Some(ReadError::Io(problem)) => {
                return Err(ReadError::Io(problem.clone()).into());
            }
            Some(problem) => {
                self.is_exact = false;
                tracing::error!(%problem, "what is erased is damaged in the log: it may be on the disk still");
            }
            None => {}
        }
        self.found.add(found.without_problem());
        Ok(tombstones)
    }

    fn erase(&mut self, place: Sequence, found: Option<Tombstone>) -> Result<(), Problem> {
        self.builder.erased(place);
        let Some(Tombstone { keys, bytes }) = found else {
            self.is_exact = false; // it is forgotten, or damaged
            return Ok(());
        };
        let rest = self.totals.event_bytes.checked_sub(bytes);
        self.totals.event_bytes = rest.ok_or(MISFIT)?;
        let task_id = &task_of(&keys)?;
        self.overlay.apply(Change::Erased { task_id, place })?;
        self.erased.push(keys);
        Ok(())
    }

    fn expect(&mut self, number: u64, value: &Bytes) -> Result<(), Problem> {
        let kept = Kept::parse(value)?;
        if number > self.totals.expectation_next {
            self.totals.expectation_next = number;
            self.totals.expectation_count += 1;
        } else if self.is_complete && self.overlay.numbered_expectation(number).is_none() {
            return Err(Problem::Unfit("what it writes again is not expected"));
        }
        self.written.insert((Kind::Expected, number));
        self.builder.expected(number, kept.bytes());
        Ok(self.overlay.apply(Change::Expected { number, kept })?)
    }

    /// Has the index forget what retention has forgotten.
    fn forget(&mut self, before: &Totals, after: &Totals) -> Result<(), Problem> {
        let behind = Sequence(after.first_available);
        let first = Sequence(before.first_available).max(self.store.log.oldest());
        if before.first_available == after.first_available {
            return Ok(());
        }
        self.is_exact = false;
        let mut forgotten = Vec::new();
        let note = |record: &Record| {
            // What is no task is not in the index.
            if let Ok(task_id) = task_of(record) {
                forgotten.push((task_id, record.sequence()));
            }
        };
        let last = behind.previous().min(self.head);
        if first <= last {
            self.store.log.scan_around_damage(first..=last, note)?;
        }
        // It may be among what it brings.
        let brought = self.records.iter();
        let brought = brought.filter(|record| record.sequence() < behind);
        for record in brought {
            forgotten.push((task_of(record)?, record.sequence()));
        }
        for (task_id, place) in &forgotten {
            let place = *place;
            self.overlay.apply(Change::Forgotten { task_id, place })?;
        }
        Ok(())
    }

    /// Takes over what the entries do not say, and compares the rest.
    fn check(&mut self, after: &Totals) -> Result<(), Problem> {
        let found = mem::replace(&mut self.totals, *after);
        let event_bytes = if self.is_exact {
            found.event_bytes
        } else {
            after.event_bytes
        };
        // A node that has just joined does not know the bytes of what it lacks.
        let (count, bytes) = if self.is_complete {
            (found.quarantine_count, found.quarantine_bytes)
        } else {
            (after.quarantine_count, after.quarantine_bytes)
        };
        let expected = Totals {
            event_bytes,
            quarantine_next: found.quarantine_next,
            quarantine_count: count,
            quarantine_bytes: bytes,
            expectation_next: found.expectation_next,
            expectation_count: found.expectation_count,
            ..*after
        };
        if expected == *after {
            Ok(())
        } else {
            Err(Problem::Unfit("its totals are not what comes of it"))
        }
    }

    /// Writes again what is due and still there; how many.
    pub(super) fn carry(&mut self, due: &Due) -> u64 {
        let (mut count, mut bytes) = (0, 0);
        for &number in &due.quarantined {
            if bytes >= CARRIED_BYTES_MAX {
                return count;
            }
            if !self.written.contains(&(Kind::Quarantined, number))
                && let Some(written) = self.carry_quarantined(number)
            {
                bytes += written;
                count += 1;
            }
        }
        for &number in &due.expected {
            if bytes >= CARRIED_BYTES_MAX {
                return count;
            }
            if !self.written.contains(&(Kind::Expected, number))
                && let Some(written) = self.carry_expected(number)
            {
                bytes += written;
                count += 1;
            }
        }
        count
    }

    /// A damaged one stays where it is, and keeps its segment until it leaves the quarantine: other nodes have it.
    fn carry_quarantined(&mut self, number: u64) -> Option<u64> {
        lock(&self.store.shares).get(number)?; // it may leave by this frame
        let held = lock(&self.store.quarantine).get(number)?;
        let value = match self.store.log.quarantined(number, held.newest) {
            Ok(value) => value?,
            Err(problem) => {
                tracing::debug!(
                    number,
                    ?problem,
                    "cannot write a quarantined callback again"
                );
                return None;
            }
        };
        let bytes = held.bytes;
        let header = &parse_quarantined(&value).map_or_else(
            |_| {
                lock(&self.store.shares)
                    .header_of(number)
                    .unwrap_or_default()
            },
            |(header, _)| header,
        );
        let change = Change::Quarantined {
            number,
            header,
            bytes,
        };
        self.overlay.apply(change).ok()?;
        self.builder.carried_here(number, held.frame, &value);
        Some(bytes)
    }

    fn carry_expected(&mut self, number: u64) -> Option<u64> {
        let kept = self.overlay.numbered_expectation(number)?;
        let frame = lock(&self.store.expectations).frame_of(number)?;
        let bytes = kept.bytes().len() as u64;
        self.builder.expected_here(number, frame, kept.bytes());
        let change = Change::ExpectedHere {
            number,
            kept,
            frame,
        };
        self.overlay.apply(change).ok()?;
        Some(bytes)
    }
}

/// What is left of an event that is erased, and how many bytes go.
struct Tombstone {
    keys: Record,
    bytes: u64,
}

fn task_of(record: &Record) -> Result<TaskId, Damaged> {
    TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))
}
