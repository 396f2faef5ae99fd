//! One commit in the making: every decision sees what the batch itself has already changed, and nothing outside the batch
//! changes until it is durable, except `first_available`, which moves ahead of the trim so that readers are never fooled.

use std::{
    collections::{HashMap, hash_map},
    ops::ControlFlow,
    sync::atomic::Ordering,
};

use fjall::OwnedWriteBatch;

use super::{Command, Reply, Retention, TRIM_EVENTS, TRIM_READ_BYTES, WriteError};
use crate::{
    event::{Record, RecordParts, Selectable, Sequence, TaskId},
    store::{
        Appended, Draft, NewQuarantined, QuarantineHeader, ReadError, Store, UNKNOWN_MICROS,
        clock::Adoption,
        dedupe::{Verdict, judge, take_up},
        layout::{TaskEvent, Totals, encode_quarantined, sequence_key},
        lock,
        log::FrameBuilder,
        shares::{Kept, Measure},
    },
};

/// What one commit did, for the metrics.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub duplicates: u64,
    pub conflicts: u64,
    pub events_trimmed: ByReason<Forgotten>,
    pub quarantine_trimmed: ByReason<u64>,
}

/// Why retention has forgotten something.
#[derive(Debug, Default)]
pub(super) struct ByReason<T> {
    /// It was too old.
    pub age: T,
    /// There were too many bytes.
    pub bytes: T,
    /// There were too many.
    pub count: T,
}

/// Events that retention has forgotten.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    pub events: u64,
    pub bytes: u64,
}

impl Counts {
    /// How much retention has forgotten, of events and of the quarantine.
    pub(super) fn trimmed(&self) -> u64 {
        let Self { events_trimmed, quarantine_trimmed, .. } = self;
        let events = events_trimmed.age.events + events_trimmed.bytes.events;
        events + quarantine_trimmed.age + quarantine_trimmed.bytes + quarantine_trimmed.count
    }
}

/// An answer that waits for the fsync.
pub(super) enum Granted {
    Append(Reply<Appended>, Appended),
    Quarantine(Reply<u64>, u64),
    Discard(Reply<u32>, u32),
    Probe(Reply<()>),
}

impl Granted {
    pub(super) fn grant(self) {
        // A receiver that is gone timed out; the repeated callback will find its event as a duplicate.
        let _ = match self {
            Self::Append(reply, appended) => reply.send(Ok(appended)).is_ok(),
            Self::Quarantine(reply, number) => reply.send(Ok(number)).is_ok(),
            Self::Discard(reply, count) => reply.send(Ok(count)).is_ok(),
            Self::Probe(reply) => reply.send(Ok(())).is_ok(),
        };
    }

    pub(super) fn refuse(self, error: WriteError) {
        let _ = match self {
            Self::Append(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Quarantine(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Discard(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Probe(reply) => reply.send(Err(error)).is_ok(),
        };
    }
}

pub(super) struct Batch<'a> {
    store: &'a Store,
    retention: &'a Retention,
    /// What the log's clock says, in microseconds since 1970.
    now_micros: i64,
    /// For the log.
    frame: FrameBuilder,
    /// For the database.
    index: OwnedWriteBatch,
    is_probed: bool,
    totals: Totals,
    head: Sequence,
    /// Task entries that this batch has looked at.
    tasks: HashMap<TaskId, Entry>,
    /// How many callbacks this batch puts into quarantine.
    quarantined: usize,
    records: Vec<Record>,
    replies: Vec<Granted>,
    counts: Counts,
}

/// What the index has of one task, as the batch will leave it.
struct Entry {
    events: Vec<TaskEvent>,
    /// It differs from the store; a batch of duplicates changes none, and then writes nothing.
    is_changed: bool,
}

/// A batch whose decisions are made.
pub(super) struct Sealed {
    /// Unless there is nothing to write.
    pub write: Option<Write>,
    pub totals: Totals,
    pub records: Vec<Record>,
    pub replies: Vec<Granted>,
    pub counts: Counts,
}

/// What the log is told; and then the database and the task index.
pub(super) struct Write {
    pub frame: FrameBuilder,
    pub index: OwnedWriteBatch,
    pub tasks: Vec<(TaskId, Vec<TaskEvent>)>,
}

impl<'a> Batch<'a> {
    /// A batch for so many commands; the first behind an `adoption` has to note it.
    pub(super) fn new(store: &'a Store, retention: &'a Retention, commands: usize, adoption: Option<Adoption>) -> Self {
        let (mut totals, head) = (*lock(&store.totals), store.head());
        totals.trust = store.clock.trust();
        if let Some(adoption) = adoption {
            totals.correct(head, &adoption);
            store.oldest_micros.store(UNKNOWN_MICROS, Ordering::Relaxed);
        }
        Self {
            store,
            retention,
            now_micros: store.clock.now_micros(),
            frame: FrameBuilder::new(),
            index: store.database.batch(),
            is_probed: false,
            totals,
            head,
            tasks: HashMap::with_capacity(commands),
            quarantined: 0,
            records: Vec::with_capacity(commands),
            replies: Vec::with_capacity(commands),
            counts: Counts::default(),
        }
    }

    pub(super) fn add(&mut self, command: Command) {
        match command {
            Command::Append(draft, reply) => match self.append(&draft) {
                Ok(appended) => self.replies.push(Granted::Append(reply, appended)),
                Err(error) => Command::Append(draft, reply).refuse(error),
            },
            Command::Quarantine(new, reply) => {
                let number = self.quarantine(&new);
                self.replies.push(Granted::Quarantine(reply, number));
            }
            Command::Discard(numbers, reply) => match self.discard_all(&numbers) {
                Ok(count) => self.replies.push(Granted::Discard(reply, count)),
                Err(error) => Command::Discard(numbers, reply).refuse(failed(error)),
            },
            Command::Probe(reply) => {
                self.is_probed = true;
                self.replies.push(Granted::Probe(reply));
            }
            Command::Backup(_) | Command::Retain | Command::Stop => {} // the writer's own
        }
    }

    fn append(&mut self, draft: &Draft) -> Result<Appended, WriteError> {
        if let Some(number) = draft.releases
            && self.quarantined_bytes(number).is_none()
        {
            return Err(WriteError::NotInQuarantine);
        }
        let entry = entry(&mut self.tasks, self.store, &draft.task_id).map_err(failed)?;
        // An operator who releases a callback has looked at it.
        let limited = draft.releases.is_none();
        let verdict = judge(&entry.events, &draft.product, draft.status, draft.fingerprint, limited);
        let (revision, conflict) = match verdict {
            Verdict::TooMany => return Err(WriteError::TooManyEvents),
            Verdict::Duplicate(original) => {
                let appended = Appended { event_id: original.event_id, sequence: original.sequence, duplicate: true };
                self.release(draft)?;
                // A release is no callback, and what counts duplicates counts callbacks.
                self.counts.duplicates += u64::from(draft.releases.is_none());
                // Without a sync of its own it would be answered sooner than what is new.
                self.is_probed |= draft.conceals_duplicates;
                return Ok(appended);
            }
            Verdict::New { revision, conflict } => (revision, conflict),
        };
        self.release(draft)?;
        self.counts.conflicts += u64::from(conflict);
        let sequence = self.head.next();
        self.insert_record(draft, sequence, revision, conflict);
        let entry = self.tasks.get_mut(&draft.task_id).expect("it was looked at above");
        entry.is_changed = true;
        let event = TaskEvent {
            sequence,
            event_id: draft.event_id,
            fingerprint: draft.fingerprint,
            revision,
            status: draft.status,
            product: draft.product.clone(),
        };
        take_up(&mut entry.events, event);
        Ok(Appended { event_id: draft.event_id, sequence, duplicate: false })
    }

    fn insert_record(&mut self, draft: &Draft, sequence: Sequence, revision: u32, conflict: bool) {
        // What is released enters the log now: by the time it was received it might be forgotten at once.
        let received_at = if draft.releases.is_some() { self.now_micros } else { draft.received_at_micros };
        let log_time_micros = self.stamp(received_at);
        let parts = RecordParts {
            product: &draft.product,
            task_id: &draft.task_id,
            status: draft.status,
            revision,
            conflict,
            received_at_micros: draft.received_at_micros,
            log_time_micros,
            labels: &draft.labels,
            event: &draft.event,
            raw: &draft.raw,
        };
        let record = Record::new(sequence, &parts).with_origin(draft.origin.clone());
        self.frame.event(draft.event_id, draft.fingerprint, &record);
        self.totals.event_count += 1;
        self.totals.event_bytes += record.len() as u64;
        self.head = sequence;
        self.records.push(record);
    }

    /// The time by which something is aged and found: when it was received, but never before what is in the log already, and not
    /// after now. It may have waited while the log's clock was changed.
    fn stamp(&mut self, received_at_micros: i64) -> i64 {
        let newest = self.totals.log_time_micros;
        self.totals.log_time_micros = received_at_micros.clamp(newest, self.now_micros.max(newest));
        self.totals.log_time_micros
    }

    /// The size of a quarantined callback; `None` if it is not there, or only since this batch.
    fn quarantined_bytes(&self, number: u64) -> Option<u64> {
        let is_older = number <= lock(&self.store.totals).quarantine_next;
        lock(&self.store.shares).get(number).filter(|_| is_older).map(|kept| kept.bytes)
    }

    fn release(&mut self, draft: &Draft) -> Result<(), WriteError> {
        match draft.releases {
            Some(number) => self.discard(number).map(drop).map_err(failed),
            None => Ok(()),
        }
    }

    fn quarantine(&mut self, new: &NewQuarantined) -> u64 {
        self.quarantined += 1;
        self.totals.quarantine_next += 1;
        let number = self.totals.quarantine_next;
        let received_at_micros = self.stamp(new.header.received_at_micros);
        let header = QuarantineHeader { received_at_micros, ..new.header.clone() };
        let bytes = encode_quarantined(&header, &new.body);
        self.totals.quarantine_count += 1;
        self.totals.quarantine_bytes += bytes.len() as u64;
        self.frame.quarantined(number, &bytes);
        let QuarantineHeader { credential, product, received_at_micros, .. } = &header;
        lock(&self.store.shares).add(number, credential, product, bytes.len() as u64, *received_at_micros);
        self.index.insert(&self.store.quarantine, sequence_key(Sequence(number)), bytes);
        number
    }

    fn discard_all(&mut self, numbers: &[u64]) -> Result<u32, ReadError> {
        let mut count = 0;
        for &number in numbers {
            count += u32::from(self.discard(number)?);
        }
        Ok(count)
    }

    fn discard(&mut self, number: u64) -> Result<bool, ReadError> {
        let Some(bytes) = self.quarantined_bytes(number) else { return Ok(false) };
        self.totals.forget_quarantined(bytes)?;
        lock(&self.store.shares).remove(number);
        self.frame.discarded(number);
        self.index.remove(&self.store.quarantine, sequence_key(Sequence(number)));
        Ok(true)
    }

    /// Forgets some of what is too old (counts as received before the cutoffs, microseconds since 1970) or too much.
    pub(super) fn trim(&mut self, event_cutoff: i64, quarantine_cutoff: i64) {
        // Retention that cannot be carried out is no reason to refuse callbacks; readers will report the damage.
        if let Err(error) = self.trim_events(event_cutoff) {
            tracing::error!(%error, "cannot forget old events");
        }
        if let Err(error) = self.trim_quarantine(quarantine_cutoff) {
            tracing::error!(%error, "cannot forget old quarantined callbacks");
        }
    }

    fn trim_events(&mut self, cutoff: i64) -> Result<(), ReadError> {
        let trimmed = self.forget_oldest(cutoff);
        // Also when a damaged record has stopped it: what is forgotten so far is forgotten.
        self.store.first_available.store(self.totals.first_available, Ordering::Release);
        trimmed
    }

    fn forget_oldest(&mut self, cutoff: i64) -> Result<(), ReadError> {
        let store = self.store;
        let is_full = self.totals.event_bytes > self.retention.event_bytes_max;
        if !is_full && store.oldest_micros.load(Ordering::Relaxed) >= cutoff {
            return Ok(());
        }
        let (oldest, newest) = (Sequence(self.totals.first_available), store.head());
        let mut budget = TRIM_EVENTS.max(2 * self.records.len());
        store.oldest_micros.store(UNKNOWN_MICROS, Ordering::Relaxed);
        store.log.scan_at_once(oldest..=newest, TRIM_READ_BYTES, |record| {
            let received = self.totals.correction.of_event(record.sequence(), record.log_time_micros());
            let too_old = received < cutoff;
            if budget == 0 || !too_old && self.totals.event_bytes <= self.retention.event_bytes_max {
                store.oldest_micros.store(received, Ordering::Relaxed);
                return Ok(ControlFlow::Break(()));
            }
            budget -= 1;
            self.forget(&record)?;
            let reasons = &mut self.counts.events_trimmed;
            let forgotten = if too_old { &mut reasons.age } else { &mut reasons.bytes };
            forgotten.events += 1;
            forgotten.bytes += record.len() as u64;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn forget(&mut self, record: &Record) -> Result<(), ReadError> {
        self.totals.forget_event(record.sequence(), record.len() as u64)?;
        if let Ok(task_id) = TaskId::parse(record.task_id()) {
            let entry = entry(&mut self.tasks, self.store, &task_id)?;
            entry.events.retain(|event| event.sequence != record.sequence());
            entry.is_changed = true;
        }
        Ok(())
    }

    fn trim_quarantine(&mut self, cutoff: i64) -> Result<(), ReadError> {
        if self.totals.quarantine_count == 0 {
            return Ok(()); // almost always
        }
        let mut budget = TRIM_EVENTS.max(2 * self.quarantined);
        while budget > 0
            && let Some((number, kept)) = self.oldest_quarantined()
            && self.totals.correction.of_quarantined(number, kept.received_at_micros) < cutoff
            && self.discard(number)?
        {
            self.counts.quarantine_trimmed.age += 1;
            budget -= 1;
        }
        while budget > 0
            && let Some(measure) = self.retention.quarantine_surplus(&self.totals)
            && let Some(number) = self.first_to_go(measure)
            // What this very batch brings is for the next one to forget.
            && self.discard(number)?
        {
            match measure {
                Measure::Bytes => self.counts.quarantine_trimmed.bytes += 1,
                Measure::Count => self.counts.quarantine_trimmed.count += 1,
            }
            budget -= 1;
        }
        Ok(())
    }

    fn oldest_quarantined(&self) -> Option<(u64, Kept)> {
        lock(&self.store.shares).oldest()
    }

    fn first_to_go(&self, measure: Measure) -> Option<u64> {
        lock(&self.store.shares).first_to_go(measure)
    }

    pub(super) fn seal(self) -> Sealed {
        let has_news = !self.frame.is_empty() || self.is_probed || self.totals != *lock(&self.store.totals);
        let Self { frame, index, tasks, totals, records, replies, counts, .. } = self;
        let write = has_news.then(|| Write { frame, index, tasks: changed(tasks) });
        Sealed { write, totals, records, replies, counts }
    }
}

/// The entry of a task, read when it is looked at first.
fn entry<'t>(
    tasks: &'t mut HashMap<TaskId, Entry>,
    store: &Store,
    task_id: &TaskId,
) -> Result<&'t mut Entry, ReadError> {
    Ok(match tasks.entry(task_id.clone()) {
        hash_map::Entry::Occupied(known) => known.into_mut(),
        hash_map::Entry::Vacant(place) => {
            place.insert(Entry { events: store.tasks.get::<ReadError>(task_id)?, is_changed: false })
        }
    })
}

fn changed(tasks: HashMap<TaskId, Entry>) -> Vec<(TaskId, Vec<TaskEvent>)> {
    tasks.into_iter().filter(|(_, entry)| entry.is_changed).map(|(task_id, entry)| (task_id, entry.events)).collect()
}

fn failed(error: ReadError) -> WriteError {
    match error {
        ReadError::Corrupt(problem) => WriteError::Failed(problem),
        ReadError::Expired => WriteError::Failed(error.to_string()),
    }
}
