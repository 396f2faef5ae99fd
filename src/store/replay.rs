//! Tells the index and the quarantine of what the log has and they may have lost: commits are synced in the log only.
//!
//! A commit may be told again. What is there already stays as it is, and what was removed later is removed again.

use std::ops::ControlFlow;

use fjall::{Database, Keyspace};

use super::{
    dedupe::give_up_one,
    layout::{Damaged, TaskEvent, Totals, sequence_key},
    log::{Entry, Frame, Log, READ_BYTES},
    open::Setup,
    tasks::Tasks,
};
use crate::event::{Product, Record, Selectable, Sequence, TaskId};

/// Brings them to where the log is; `totals` are those of the log's last commit.
pub(super) fn replay(
    log: &Log,
    tasks: &Tasks,
    quarantine: &Keyspace,
    database: &Database,
    totals: &Totals,
) -> Result<(), Setup> {
    let before = log.replay(|frame| tell(tasks, quarantine, database, &frame, totals))?;
    // Files that are gone were removed behind a checkpoint, which had the index forget their events.
    let first = before.first_available.max(log.oldest().0);
    if first < totals.first_available {
        let places = Sequence(first)..=Sequence(totals.first_available).previous();
        let mut failed = None;
        log.scan(places, READ_BYTES, |record| {
            failed = forget(tasks, &record).err();
            Ok(if failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        failed.map_or(Ok(()), Err)?;
    }
    Ok(())
}

fn tell(
    tasks: &Tasks,
    quarantine: &Keyspace,
    database: &Database,
    frame: &Frame,
    totals: &Totals,
) -> Result<(), Setup> {
    let mut batch = database.batch();
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
                add(tasks, event, &record)?;
            }
            Entry::Quarantined { number, value } => batch.insert(quarantine, sequence_key(Sequence(number)), value),
            Entry::Discarded { number } => batch.remove(quarantine, sequence_key(Sequence(number))),
        }
    }
    batch.commit()?;
    Ok(())
}

fn add(tasks: &Tasks, event: TaskEvent, record: &Record) -> Result<(), Setup> {
    let task_id = task_of(record)?;
    let mut events = tasks.get::<Setup>(&task_id)?;
    if let Err(place) = events.binary_search_by_key(&event.sequence, |known| known.sequence) {
        let (product, is_terminal) = (event.product.clone(), event.status.is_terminal());
        events.insert(place, event);
        if is_terminal {
            give_up_one(&mut events, &product);
        }
        tasks.change([(task_id, events)])?;
    }
    Ok(())
}

fn forget(tasks: &Tasks, record: &Record) -> Result<(), Setup> {
    let task_id = task_of(record)?;
    let mut events = tasks.get::<Setup>(&task_id)?;
    if let Ok(place) = events.binary_search_by_key(&record.sequence(), |known| known.sequence) {
        events.remove(place);
        tasks.change([(task_id, events)])?;
    }
    Ok(())
}

fn task_of(record: &Record) -> Result<TaskId, Damaged> {
    TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))
}
