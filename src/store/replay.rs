//! Tells the database of what the log has and it may have lost: commits are synced in the log only.
//!
//! A commit may be told again. What is there already stays as it is, and what was removed later is removed again.

use std::{
    collections::{HashMap, hash_map},
    ops::ControlFlow,
};

use fjall::{Database, Keyspace};

use super::{
    layout::{Damaged, META_COMMIT, TaskEvent, Totals, encode_task, parse_task, sequence_key},
    log::{Entry, Frame, Log, READ_BYTES},
    open::Setup,
};
use crate::event::{Product, Selectable, Sequence};

/// Changed tasks that are held before they are written.
const TASKS_MAX: usize = 512;

/// Brings the database to where the log is; `totals` are those of the log's last commit. The keyspaces are in the order of
/// their names in [`super::open`].
pub(super) fn replay(
    log: &Log,
    database: &Database,
    [meta, tasks, quarantine]: [&Keyspace; 3],
    totals: &Totals,
) -> Result<(), Setup> {
    let mut index = Index::new(database, tasks);
    let before = log.replay(|frame| tell(&mut index, quarantine, &frame, totals))?;
    // Files that are gone were removed behind a checkpoint, which had the index forget their events.
    let first = before.first_available.max(log.oldest().0);
    if first < totals.first_available {
        let places = Sequence(first)..=Sequence(totals.first_available).previous();
        let mut failed = None;
        log.scan(places, READ_BYTES, |record| {
            failed = index.forget(record.sequence(), record.task_id()).err();
            Ok(if failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        failed.map_or(Ok(()), Err)?;
    }
    index.write()?;
    Ok(meta.insert(META_COMMIT, (log.next_commit() - 1).to_le_bytes())?)
}

fn tell(index: &mut Index<'_>, quarantine: &Keyspace, frame: &Frame, totals: &Totals) -> Result<(), Setup> {
    let mut batch = index.database.batch();
    for entry in frame.entries() {
        match entry? {
            Entry::Event { record, .. } if record.sequence().0 < totals.first_available => {}
            Entry::Event { event_id, fingerprint, record } => {
                let event = TaskEvent {
                    sequence: record.sequence(),
                    event_id,
                    fingerprint,
                    revision: record.revision(),
                    status: record.status(),
                    product: Product::parse(record.product()).map_err(|_| Damaged("product of an event"))?,
                };
                index.add(event, record.task_id())?;
            }
            Entry::Quarantined { number, value } => batch.insert(quarantine, sequence_key(Sequence(number)), value),
            Entry::Discarded { number } => batch.remove(quarantine, sequence_key(Sequence(number))),
        }
    }
    batch.commit()?;
    Ok(())
}

/// The task index while it is brought up to date.
struct Index<'a> {
    database: &'a Database,
    tasks: &'a Keyspace,
    /// Those that were looked at, and whether they differ from what is stored.
    entries: HashMap<String, (Vec<TaskEvent>, bool)>,
}

impl<'a> Index<'a> {
    fn new(database: &'a Database, tasks: &'a Keyspace) -> Self {
        Self { database, tasks, entries: HashMap::new() }
    }

    fn add(&mut self, event: TaskEvent, task_id: &str) -> Result<(), Setup> {
        let (events, is_changed) = self.entry(task_id)?;
        if let Err(place) = events.binary_search_by_key(&event.sequence, |known| known.sequence) {
            events.insert(place, event);
            *is_changed = true;
        }
        Ok(())
    }

    fn forget(&mut self, sequence: Sequence, task_id: &str) -> Result<(), Setup> {
        let (events, is_changed) = self.entry(task_id)?;
        let count = events.len();
        events.retain(|event| event.sequence != sequence);
        *is_changed |= events.len() < count;
        Ok(())
    }

    fn entry(&mut self, task_id: &str) -> Result<&mut (Vec<TaskEvent>, bool), Setup> {
        if self.entries.len() >= TASKS_MAX && !self.entries.contains_key(task_id) {
            self.write()?;
        }
        Ok(match self.entries.entry(task_id.to_owned()) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(place) => {
                let stored = self.tasks.get(task_id)?;
                let events = stored.map(|bytes| parse_task(&bytes)).transpose()?.unwrap_or_default();
                place.insert((events, false))
            }
        })
    }

    fn write(&mut self) -> Result<(), Setup> {
        let mut batch = self.database.batch();
        for (task_id, (events, _)) in self.entries.drain().filter(|(_, (_, is_changed))| *is_changed) {
            if events.is_empty() {
                batch.remove(self.tasks, task_id);
            } else {
                batch.insert(self.tasks, task_id, encode_task(&events));
            }
        }
        Ok(batch.commit()?)
    }
}
