//! One commit in the making: every decision sees what the batch itself has already changed. Nothing outside the batch changes
//! until the commit is durable, except `first_available`, which moves ahead of the trim so that no reader takes a forgotten
//! event for a hole, and the shares of the quarantine.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map},
    io,
};

use fjall::OwnedWriteBatch;

use super::{
    command::{Command, Erased, Erasure, Imported, PendingReply},
    counts::Counts,
    error::WriteError,
};
use crate::{
    event::{Record, RecordParts, Selectable, Sequence, TaskId},
    store::{
        Appended, Draft, NewQuarantined, QuarantineHeader, ReadError, Store,
        clock::Adoption,
        dedupe::{Verdict, judge, take_up},
        layout::{Damaged, TaskEvent, Totals, encode_quarantined, sequence_key},
        lock,
        log::{Found, FrameBuilder},
    },
};

pub(super) struct Batch<'a> {
    pub store: &'a Store,
    /// What the log's clock says, in microseconds since 1970.
    now_micros: i64,
    /// For the log.
    frame: FrameBuilder,
    /// For the database.
    index: OwnedWriteBatch,
    /// There is something to write, if only that nothing was.
    is_probed: bool,
    pub totals: Totals,
    head: Sequence,
    /// Places that were announced to be erased, by this batch or an earlier one, and may not be overwritten yet: what is read there
    /// still has its content, which the totals have not.
    announced: HashSet<Sequence>,
    /// Task entries that this batch has looked at.
    tasks: HashMap<TaskId, Entry>,
    /// How many callbacks this batch puts into quarantine.
    quarantined: usize,
    records: Vec<Record>,
    gone: Gone,
    replies: Vec<PendingReply>,
    pub counts: Counts,
}

/// What is to be made unreadable once the commit is durable.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// What is left of events that are erased.
    pub erased: Vec<Record>,
    /// Where the log has what is to be overwritten.
    pub found: Found,
    /// All that have left the quarantine: their keys go.
    pub unkept: Vec<u64>,
}

/// Where a draft comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Callback,
    Quarantine,
    /// Another log.
    Log {
        log_time_micros: i64,
        is_erased: bool,
    },
}

impl Source {
    /// Nothing but the event's keys is left.
    fn is_erased(self) -> bool {
        matches!(
            self,
            Self::Log {
                is_erased: true,
                ..
            }
        )
    }
}

/// How a callback leaves the quarantine.
#[derive(Clone, Copy)]
pub(super) enum Leave {
    /// By retention: in the log it goes with its segment.
    Expired,
    /// It was released or discarded: it is erased there, too.
    Removed,
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
    pub gone: Gone,
    pub replies: Vec<PendingReply>,
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
    pub(super) fn new(store: &'a Store, commands: usize, adoption: Option<Adoption>) -> Self {
        let (mut totals, head) = (*lock(&store.totals), store.head());
        totals.trust = store.clock.trust();
        if let Some(adoption) = adoption {
            totals.correct(head, &adoption);
        }
        Self {
            store,
            now_micros: store.clock.now_micros(),
            frame: FrameBuilder::new(),
            index: store.database.batch(),
            is_probed: false,
            totals,
            head,
            announced: store.log.announced_places(),
            tasks: HashMap::with_capacity(commands),
            quarantined: 0,
            records: Vec::with_capacity(commands),
            gone: Gone::default(),
            replies: Vec::with_capacity(commands),
            counts: Counts::default(),
        }
    }

    pub(super) fn add(&mut self, command: Command) {
        match command {
            Command::Append(draft, reply) => match self.append(&draft) {
                Ok(appended) => self.replies.push(PendingReply::Append(reply, appended)),
                Err(error) => Command::Append(draft, reply).refuse(error),
            },
            Command::Import(imported, reply) => match self.import(&imported) {
                Ok(appended) => self.replies.push(PendingReply::Append(reply, appended)),
                Err(error) => Command::Import(imported, reply).refuse(error),
            },
            Command::Release(number, drafts, reply) => match self.release(number, &drafts) {
                Ok(appended) => self.replies.push(PendingReply::Release(reply, appended)),
                Err(error) => Command::Release(number, drafts, reply).refuse(error),
            },
            Command::Quarantine(new, reply) => match self.quarantine(&new) {
                Ok(number) => self.replies.push(PendingReply::Quarantine(reply, number)),
                Err(error) => {
                    Command::Quarantine(new, reply).refuse(WriteError::Failed(error.to_string()))
                }
            },
            Command::Discard(numbers, reply) => match self.discard_all(&numbers) {
                Ok(count) => self.replies.push(PendingReply::Discard(reply, count)),
                Err(error) => Command::Discard(numbers, reply).refuse(not_erased(error)),
            },
            Command::Erase(erasure, reply) => match self.erase(&erasure) {
                Ok(erased) => self.replies.push(PendingReply::Erase(reply, erased)),
                Err(error) => Command::Erase(erasure, reply).refuse(not_erased(error)),
            },
            Command::Probe(reply) => {
                self.is_probed = true;
                self.replies.push(PendingReply::Probe(reply));
            }
            Command::Backup(_) | Command::Retain | Command::Stop => {} // the writer's own
        }
    }

    fn append(&mut self, draft: &Draft) -> Result<Appended, WriteError> {
        let appended = self.append_as(draft, Source::Callback)?;
        if appended.duplicate {
            self.counts.duplicates += 1;
            // Without a sync of its own it would be answered sooner than what is new.
            self.is_probed |= draft.conceals_duplicates;
        }
        Ok(appended)
    }

    fn import(&mut self, imported: &Imported) -> Result<Appended, WriteError> {
        let Imported {
            draft,
            log_time_micros,
            is_erased,
        } = imported;
        self.append_as(
            draft,
            Source::Log {
                log_time_micros: *log_time_micros,
                is_erased: *is_erased,
            },
        )
    }

    fn release(&mut self, number: u64, drafts: &[Draft]) -> Result<Vec<Appended>, WriteError> {
        if self.quarantined_bytes(number).is_none() {
            return Err(WriteError::NotInQuarantine);
        }
        // Whatever can fail comes first: all of the events are appended, or none.
        for draft in drafts {
            entry(&mut self.tasks, self.store, &draft.task_id).map_err(failed)?;
        }
        self.discard_all(&[number]).map_err(not_erased)?;
        drafts
            .iter()
            .map(|draft| self.append_as(draft, Source::Quarantine))
            .collect()
    }

    fn append_as(&mut self, draft: &Draft, source: Source) -> Result<Appended, WriteError> {
        let entry = entry(&mut self.tasks, self.store, &draft.task_id).map_err(failed)?;
        // An operator who releases a callback has looked at it, and another log has taken what it has.
        let limited = source == Source::Callback;
        let verdict = judge(
            &entry.events,
            &draft.product,
            draft.status,
            draft.fingerprint,
            limited,
        );
        // Almost never.
        let was_erased = entry
            .events
            .iter()
            .any(|event| event.is_erased && event.product == draft.product);
        let (revision, conflict) = match verdict {
            Verdict::TooMany => return Err(WriteError::TooManyEvents),
            Verdict::Duplicate(original) => {
                if original.is_erased {
                    self.counts.after_erasure.duplicates += 1;
                    tracing::info!(event_id = %original.event_id, "a callback has repeated an erased event, which stays erased");
                }
                return Ok(Appended {
                    event_id: original.event_id,
                    sequence: original.sequence,
                    duplicate: true,
                });
            }
            Verdict::New { revision, conflict } => (revision, conflict),
        };
        self.counts.conflicts += u64::from(conflict);
        if was_erased && !source.is_erased() {
            self.counts.after_erasure.new += 1;
            let (event_id, product) = (draft.event_id, &draft.product);
            tracing::warn!(%event_id, %product, "a callback has brought new content of an erased task: erase it again if need be");
        }
        let sequence = self.head.next();
        self.insert_record(draft, sequence, revision, conflict, source);
        let entry = self
            .tasks
            .get_mut(&draft.task_id)
            .expect("it was looked at above");
        entry.is_changed = true;
        let event = TaskEvent {
            sequence,
            event_id: draft.event_id,
            fingerprint: draft.fingerprint,
            revision,
            status: draft.status,
            product: draft.product.clone(),
            is_erased: source.is_erased(),
        };
        take_up(&mut entry.events, event);
        Ok(Appended {
            event_id: draft.event_id,
            sequence,
            duplicate: false,
        })
    }

    fn insert_record(
        &mut self,
        draft: &Draft,
        sequence: Sequence,
        revision: u32,
        conflict: bool,
        source: Source,
    ) {
        // What is released enters the log now: by the time it was received it might be forgotten at once.
        let received_at = match source {
            Source::Callback => draft.received_at_micros,
            Source::Quarantine => self.now_micros,
            Source::Log {
                log_time_micros, ..
            } => log_time_micros,
        };
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
        let record = if source.is_erased() {
            record.erased()
        } else {
            record
        };
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
        lock(&self.store.shares)
            .get(number)
            .filter(|_| is_older)
            .map(|kept| kept.bytes)
    }

    fn quarantine(&mut self, new: &NewQuarantined) -> io::Result<u64> {
        let number = self.totals.quarantine_next + 1;
        let received_at_micros = self.stamp(new.header.received_at_micros);
        let header = QuarantineHeader {
            received_at_micros,
            ..new.header.clone()
        };
        let bytes = encode_quarantined(&header, &new.body);
        let sealed = self.store.quarantine_keys.seal(number, &bytes)?;
        self.quarantined += 1;
        self.totals.quarantine_next = number;
        self.totals.quarantine_count += 1;
        self.totals.quarantine_bytes += bytes.len() as u64;
        self.frame.quarantined(number, &bytes);
        let QuarantineHeader {
            credential,
            product,
            received_at_micros,
            ..
        } = &header;
        lock(&self.store.shares).add(
            number,
            credential,
            product,
            bytes.len() as u64,
            *received_at_micros,
        );
        self.index.insert(
            &self.store.quarantine,
            sequence_key(Sequence(number)),
            sealed,
        );
        Ok(number)
    }

    fn discard_all(&mut self, numbers: &[u64]) -> Result<u32, ReadError> {
        let mut known: Vec<_> = numbers
            .iter()
            .copied()
            .filter(|&it| self.quarantined_bytes(it).is_some())
            .collect();
        known.sort_unstable();
        known.dedup();
        // Whatever can fail comes first: all are discarded, or none.
        let found = self.store.log.find(&[], &known, |_| true).whole()?;
        let mut totals = self.totals;
        for &number in &known {
            totals.forget_quarantined(self.quarantined_bytes(number).unwrap_or_default())?;
        }
        self.gone.found.add(found);
        let mut count = 0;
        for number in known {
            count += u32::from(self.discard(number, Leave::Removed)?);
        }
        Ok(count)
    }

    /// Takes a callback out of quarantine; false if it is not there, or only since this batch.
    pub(super) fn discard(&mut self, number: u64, leave: Leave) -> Result<bool, ReadError> {
        let Some(bytes) = self.quarantined_bytes(number) else {
            return Ok(false);
        };
        self.totals.forget_quarantined(bytes)?;
        lock(&self.store.shares).remove(number);
        match leave {
            Leave::Expired => self.frame.expired(number),
            Leave::Removed => self.frame.removed(number),
        }
        self.gone.unkept.push(number);
        self.index
            .remove(&self.store.quarantine, sequence_key(Sequence(number)));
        Ok(true)
    }

    /// How many events this batch appends.
    pub(super) fn appended(&self) -> usize {
        self.records.len()
    }

    /// How many callbacks this batch puts into quarantine.
    pub(super) fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// Whether the event at this place is to be erased, and may not be overwritten yet.
    pub(super) fn is_announced(&self, place: Sequence) -> bool {
        self.announced.contains(&place)
    }

    /// Has a frame written even if there is nothing in it.
    pub(super) fn mark(&mut self) {
        self.is_probed = true;
    }

    /// Announces that all events of a task are erased, those that the index names and those at the places that are given.
    fn erase(&mut self, erasure: &Erasure) -> Result<Erased, ReadError> {
        let Erasure {
            task_id,
            product,
            places,
        } = erasure;
        let entry = entry(&mut self.tasks, self.store, task_id)?;
        let is_meant = |event: &TaskEvent| event.product == *product && !event.is_erased;
        let named = entry
            .events
            .iter()
            .filter(|event| is_meant(event))
            .map(|event| event.sequence);
        let all: BTreeSet<_> = places.iter().copied().chain(named).collect();
        let is_there = |place: &Sequence| {
            place.0 >= self.totals.first_available && !self.announced.contains(place)
        };
        let all: Vec<_> = all.into_iter().filter(is_there).collect();

        // Whatever can fail comes first: all of them are erased, or none.
        let (mut erased, mut bytes) = (Vec::new(), 0);
        let found = self.store.log.find(&all, &[], |record| {
            let is_of_task =
                record.task_id() == task_id.as_str() && record.product() == product.as_str();
            let is_to_erase = is_of_task && !record.is_erased();
            if is_to_erase {
                let left = record.erased();
                bytes += (record.len() - left.len()) as u64;
                erased.push(left);
            }
            is_to_erase
        });
        let found = found.whole()?;
        let rest = self.totals.event_bytes.checked_sub(bytes);
        self.totals.event_bytes = rest.ok_or(Damaged("totals: they do not fit what there is"))?;

        for event in entry.events.iter_mut().filter(|event| is_meant(event)) {
            event.is_erased = true;
            entry.is_changed = true;
        }
        let events = erased.len() as u32; // as many as a command may have
        for record in erased {
            self.frame.erased(record.sequence());
            self.announced.insert(record.sequence());
            self.gone.erased.push(record);
        }
        self.gone.found.add(found);
        Ok(Erased { events, bytes })
    }

    /// Forgets the oldest event.
    pub(super) fn forget(&mut self, record: &Record) -> Result<(), ReadError> {
        self.totals
            .forget_event(record.sequence(), record.len() as u64)?;
        if let Ok(task_id) = TaskId::parse(record.task_id()) {
            let entry = entry(&mut self.tasks, self.store, &task_id)?;
            entry
                .events
                .retain(|event| event.sequence != record.sequence());
            entry.is_changed = true;
        }
        Ok(())
    }

    pub(super) fn seal(self) -> Sealed {
        let has_news =
            !self.frame.is_empty() || self.is_probed || self.totals != *lock(&self.store.totals);
        let Self {
            frame,
            index,
            tasks,
            totals,
            records,
            gone,
            replies,
            counts,
            ..
        } = self;
        let write = has_news.then(|| Write {
            frame,
            index,
            tasks: changed(tasks),
        });
        Sealed {
            write,
            totals,
            records,
            gone,
            replies,
            counts,
        }
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
        hash_map::Entry::Vacant(place) => place.insert(Entry {
            events: store.tasks.get::<ReadError>(task_id)?,
            is_changed: false,
        }),
    })
}

fn changed(tasks: HashMap<TaskId, Entry>) -> Vec<(TaskId, Vec<TaskEvent>)> {
    tasks
        .into_iter()
        .filter(|(_, entry)| entry.is_changed)
        .map(|(task_id, entry)| (task_id, entry.events))
        .collect()
}

/// Why nothing is erased.
fn not_erased(error: ReadError) -> WriteError {
    match error {
        ReadError::Corrupt(problem) => WriteError::Corrupt(problem),
        ReadError::Expired => WriteError::Failed(error.to_string()),
    }
}

fn failed(error: ReadError) -> WriteError {
    match error {
        ReadError::Corrupt(problem) => WriteError::Failed(problem),
        ReadError::Expired => WriteError::Failed(error.to_string()),
    }
}
