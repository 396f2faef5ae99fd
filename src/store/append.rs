//! Appends another log behind a restored one: the events that a fresh broker took while the old log
//! was being restored.
//!
//! The other data directory is only read. At the end a file in it marks it as used up, and no
//! broker starts on it: a service manager might start one there again, and nobody would append the
//! callbacks that it takes. Opening a log writes, so a copy is opened, which lies in the new
//! directory until all of it is taken over. The events get places behind the head, in their order,
//! by the rules for callbacks: one that repeats an event is a duplicate, and the others get the
//! next revisions of their tasks. Everything else of them stays.
//!
//! Erased stays erased: a repetition of an event that was erased in the backup is a duplicate of
//! it, and where the other broker has erased a task, the task is erased in the restored log, too.
//!
//! What the other broker expects is expected in the restored log, too: its clients were answered
//! that it is durable. A task that the backup expects keeps the deadline and the labels it has there.

mod pending;
mod stopped;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    AppendError, Draft, ERASURE_PLACES_MAX, Erasure, NewQuarantined, ReadError, RestoreError,
    Retention, Store,
    layout::{Damaged, TaskEvent},
    lock,
    log::Logged,
    quarantine::Quarantined,
    same::Before,
    writer::{GROUP_BYTES_MAX, GROUP_MAX, Import, Imported, Writer, writer},
};
use crate::event::{Product, Record, Selectable, TaskId};
use pending::{Next, Pending};
pub(super) use stopped::{Stopped, check_apart, check_usable};

/// Tasks that a summary names.
const TASKS_NAMED_MAX: usize = 20;

/// What was added behind a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AppendSummary {
    /// Events that the backup has not.
    pub event_count: u64,
    /// Events that repeat one of the backup, or one that was added.
    pub duplicate_count: u64,
    /// Callbacks in quarantine that the backup has not.
    pub quarantine_count: u64,
    /// Callbacks in quarantine that the backup has.
    pub quarantine_duplicate_count: u64,
    /// Events of the backup whose tasks the other log has erased, and which are erased now.
    pub erased_count: u64,
    /// Tasks that the other log expects and the backup does not.
    pub expectation_count: u64,
    /// Tasks of which something is erased, and to which new content was appended.
    pub after_erasure_count: u64,
    /// Some of these tasks.
    pub after_erasure: Vec<(Product, TaskId)>,
}

impl AppendSummary {
    /// The log is what the backup has.
    pub(super) fn is_nothing(&self) -> bool {
        self.event_count + self.quarantine_count + self.erased_count + self.expectation_count == 0
    }
}

/// What to do while a broker runs on the other directory.
#[derive(Clone, Copy)]
pub(crate) enum WhenRunning<'a> {
    /// Refuse, before anything is restored.
    Refuse,
    /// Let it run until the backup is restored; then call this, and wait for its end.
    Wait(&'a dyn Fn()),
}

/// An open copy of another data directory.
pub(super) struct Other {
    store: Store,
    /// The original.
    path: PathBuf,
}

impl Other {
    /// Copies a data directory into the one at `to`, and opens the copy.
    pub(super) fn copy(stopped: &Stopped, to: &Path) -> Result<Self, AppendError> {
        Ok(Self {
            store: stopped.copy(to)?,
            path: stopped.path.clone(),
        })
    }

    /// Adds all of it to a store that nobody else writes to.
    pub(super) fn append_to(&self, store: &Arc<Store>) -> Result<AppendSummary, RestoreError> {
        // Nothing is forgotten here: the broker does that when it starts.
        let (_, mut writer) = writer(
            Arc::clone(store),
            Retention::KEEP_ALL,
            |_: &[Record]| {},
            Arc::default(),
        );
        let mut before = Before::new(store, &self.store);
        let correction = lock(&self.store.totals).correction;
        let (mut appending, mut pending) = (
            Appending::new(store, &mut writer),
            Pending::new(&self.store),
        );
        while let Some(next) = pending.next().map_err(|error| self.damaged(&error))? {
            match next {
                Next::Event(logged) => {
                    let (imported, known) = self
                        .imported(&logged)
                        .map_err(|error| self.damaged(&error))?;
                    appending.event(&logged.record, imported, &known, &mut before)?;
                }
                Next::Quarantined(callback) => {
                    if before
                        .has_quarantined(&callback)
                        .map_err(|error| not_written(&error))?
                    {
                        appending.summary.quarantine_duplicate_count += 1;
                        continue;
                    }
                    let Quarantined {
                        number,
                        mut header,
                        body,
                        ..
                    } = callback;
                    header.received_at_micros =
                        correction.of_quarantined(number, header.received_at_micros);
                    let bytes = body.len();
                    appending.add(
                        Import::Quarantined(Box::new(NewQuarantined { header, body })),
                        bytes,
                    )?;
                }
            }
        }
        appending.flush()?;
        // Behind the events: what is over by them is not expected.
        appending.expectations(&self.store)?;
        Ok(appending.into_summary())
    }

    fn damaged(&self, error: &ReadError) -> RestoreError {
        AppendError::Damaged {
            path: self.path.clone(),
            problem: error.to_string(),
        }
        .into()
    }

    /// An event as a draft, with the decisions of the other log; and the events that the other
    /// index names of its task.
    fn imported(&self, logged: &Logged) -> Result<(Imported, Vec<TaskEvent>), ReadError> {
        let Logged {
            event_id,
            fingerprint,
            record,
        } = logged;
        let task_id =
            TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))?;
        let product =
            Product::parse(record.product()).map_err(|_| Damaged("product of an event"))?;
        let known = self.store.index.tasks.get(&task_id)?;
        let correction = lock(&self.store.totals).correction;
        let imported = Imported {
            log_time_micros: correction.of_event(record.sequence(), record.log_time_micros()),
            is_erased: record.is_erased(),
            draft: Draft {
                event_id: *event_id,
                product,
                task_id,
                status: record.status(),
                fingerprint: *fingerprint,
                received_at_micros: record.received_at_micros(),
                labels: record.labels(),
                event: Bytes::copy_from_slice(record.event()),
                raw: Bytes::copy_from_slice(record.raw()),
                is_answer: false, // what the other log has decided stays
                lacks_output: false,
                conceals_duplicates: false,
                origin: None,
            },
        };
        Ok((imported, known))
    }
}

/// Adds to a store, in groups.
struct Appending<'a, P> {
    store: &'a Store,
    writer: &'a mut Writer<P>,
    group: Vec<Import>,
    group_bytes: usize,
    /// For each event of the group: its task, if that has an erased event and this one is not
    /// erased.
    group_after_erasure: Vec<Option<(Product, TaskId)>>,
    /// Tasks whose events in the backup are all erased by now.
    erased: HashSet<(Product, TaskId)>,
    after_erasure: HashSet<(Product, TaskId)>,
    summary: AppendSummary,
}

impl<'a, P: super::Publish> Appending<'a, P> {
    fn new(store: &'a Store, writer: &'a mut Writer<P>) -> Self {
        Self {
            store,
            writer,
            group: Vec::new(),
            group_bytes: 0,
            group_after_erasure: Vec::new(),
            erased: HashSet::new(),
            after_erasure: HashSet::new(),
            summary: AppendSummary::default(),
        }
    }

    /// `known`: the events that the index of the other log names of the event's task.
    fn event(
        &mut self,
        record: &Record,
        imported: Imported,
        known: &[TaskEvent],
        before: &mut Before<'_>,
    ) -> Result<(), RestoreError> {
        let Draft {
            product,
            task_id,
            event,
            raw,
            fingerprint,
            ..
        } = &imported.draft;
        let task = (product.clone(), task_id.clone());
        if imported.is_erased && self.erased.insert(task.clone()) {
            self.erase(product, task_id)?;
        }
        let restored = self
            .store
            .index
            .tasks
            .get(task_id)
            .map_err(|error| not_written(&error))?;
        if before
            .has_event(record, *fingerprint, [known, &restored])
            .map_err(|error| not_written(&error))?
        {
            self.summary.duplicate_count += 1;
            return Ok(());
        }

        let was_erased = self.erased.contains(&task)
            || restored
                .iter()
                .any(|event| event.is_erased && event.product == *product);
        self.group_after_erasure
            .push((was_erased && !imported.is_erased).then_some(task));
        let bytes = event.len() + raw.len();
        self.add(Import::Event(Box::new(imported)), bytes)
    }

    /// Has those tasks expected that another store expects.
    fn expectations(&mut self, other: &Store) -> Result<(), RestoreError> {
        let mut after = 0;
        loop {
            let expectations = other.expectations_after(after, GROUP_MAX);
            let Some(last) = expectations.last() else {
                return Ok(());
            };
            after = last.number;
            let before = self.store.expectation_counts().open;
            self.writer
                .expect(expectations)
                .map_err(|error| not_written(&error))?;
            let added = self.store.expectation_counts().open - before;
            self.summary.expectation_count += added as u64;
        }
    }

    fn into_summary(self) -> AppendSummary {
        let after_erasure_count = self.after_erasure.len() as u64;
        let after_erasure = self
            .after_erasure
            .into_iter()
            .take(TASKS_NAMED_MAX)
            .collect();
        AppendSummary {
            after_erasure_count,
            after_erasure,
            ..self.summary
        }
    }

    fn add(&mut self, import: Import, bytes: usize) -> Result<(), RestoreError> {
        self.group.push(import);
        self.group_bytes += bytes;
        if self.group.len() >= GROUP_MAX || self.group_bytes >= GROUP_BYTES_MAX {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), RestoreError> {
        if self.group.is_empty() {
            return Ok(());
        }
        self.group_bytes = 0;
        let taken = self
            .writer
            .import(std::mem::take(&mut self.group))
            .map_err(|error| not_written(&error))?;
        for (is_new, after_erasure) in taken
            .are_new
            .into_iter()
            .zip(std::mem::take(&mut self.group_after_erasure))
        {
            let count = if is_new {
                &mut self.summary.event_count
            } else {
                &mut self.summary.duplicate_count
            };
            *count += 1;
            self.after_erasure.extend(after_erasure.filter(|_| is_new));
        }
        self.summary.quarantine_count += taken.quarantined;
        // Otherwise a start would have to replay all of it.
        if self
            .store
            .log
            .needs_checkpoint(self.store.first_available())
        {
            self.store
                .checkpoint()
                .map_err(|error| not_written(&format!("{error:?}")))?;
        }
        Ok(())
    }

    /// Erases all that is there of a task which the other log has erased.
    fn erase(&mut self, product: &Product, task_id: &TaskId) -> Result<(), RestoreError> {
        self.flush()?;
        let places = self
            .store
            .places_of_task(task_id, product)
            .map_err(|error| not_written(&error))?;
        for places in places.chunks(ERASURE_PLACES_MAX) {
            let erasure = Erasure {
                task_id: task_id.clone(),
                product: product.clone(),
                places: places.to_vec(),
            };
            let erased = self
                .writer
                .erase(erasure)
                .map_err(|error| not_written(&error))?;
            self.summary.erased_count += u64::from(erased.events);
        }
        Ok(())
    }
}

fn not_written(problem: &impl ToString) -> RestoreError {
    AppendError::Write(problem.to_string()).into()
}
