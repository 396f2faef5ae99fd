//! Tells the index and the quarantine of what the log has and they may have lost: commits are synced in the log only.
//!
//! A commit may be told again. What is there already stays as it is, and what was removed later is removed again.

use std::ops::ControlFlow;

use fjall::{Database, Keyspace, OwnedWriteBatch};

use super::{
    dedupe::give_up_surplus,
    error::StartFailure,
    layout::{Damaged, TaskEvent, Totals, sequence_key},
    log::{Entry, Frame, Log, READ_BYTES},
    quarantine_keys::QuarantineKeys,
    tasks::Tasks,
};
use crate::event::{Product, Record, Selectable, Sequence, TaskId};

/// What is erased, as the commits say that were told: the overwriting may have been cut off.
#[derive(Debug, Default)]
pub(super) struct ToErase {
    pub places: Vec<Sequence>,
    /// Of callbacks that were in quarantine.
    pub numbers: Vec<u64>,
}

/// Where commits are told.
pub(super) struct Told<'a> {
    pub tasks: &'a Tasks,
    pub quarantine: &'a Keyspace,
    pub quarantine_keys: &'a QuarantineKeys,
    pub database: &'a Database,
    /// Of the log's last commit.
    pub totals: &'a Totals,
}

/// Brings the index and the quarantine to where the log is.
pub(super) fn replay(log: &Log, told: &Told<'_>) -> Result<ToErase, StartFailure> {
    let mut to_erase = ToErase::default();
    let before = log.replay(|frame| told.tell(&frame, &mut to_erase))?;
    // Files that are gone were removed behind a checkpoint, which had the index forget their events.
    let first = before.first_available.max(log.oldest().0);
    let first_available = told.totals.first_available;
    if first < first_available {
        let places = Sequence(first)..=Sequence(first_available).previous();
        let mut failed = None;
        log.scan(places, READ_BYTES, |record| {
            failed = forget(told.tasks, &record).err();
            Ok(if failed.is_none() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        failed.map_or(Ok(()), Err)?;
    }
    to_erase.places.sort_unstable();
    to_erase.places.dedup();
    for &place in to_erase
        .places
        .iter()
        .filter(|place| place.0 >= first_available)
    {
        match log.get(place) {
            Ok(record) => note_erased(told.tasks, &record)?,
            // It cannot be erased in the log either, which says so.
            Err(error) => {
                tracing::error!(place = place.0, %error, "cannot note in the index what is erased")
            }
        }
    }
    Ok(to_erase)
}

impl Told<'_> {
    fn tell(&self, frame: &Frame, to_erase: &mut ToErase) -> Result<(), StartFailure> {
        let mut batch = self.database.batch();
        for entry in frame.entries() {
            match entry? {
                Entry::Event { record, .. }
                    if record.sequence().0 < self.totals.first_available => {}
                Entry::Event {
                    event_id,
                    fingerprint,
                    record,
                } => {
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
                    add(self.tasks, event, &record)?;
                }
                Entry::Quarantined {
                    number,
                    value: Some(value),
                } => {
                    let sealed = self.quarantine_keys.seal(number, &value)?;
                    batch.insert(self.quarantine, sequence_key(Sequence(number)), sealed);
                }
                // The commit that has taken it out of quarantine is still to come.
                Entry::Quarantined { value: None, .. } => {}
                Entry::Expired { number } => self.take_out(number, &mut batch)?,
                Entry::Removed { number } => {
                    self.take_out(number, &mut batch)?;
                    to_erase.numbers.push(number);
                }
                Entry::Erased { place } => to_erase.places.push(place),
            }
        }
        batch.commit()?;
        Ok(())
    }

    fn take_out(&self, number: u64, batch: &mut OwnedWriteBatch) -> Result<(), StartFailure> {
        batch.remove(self.quarantine, sequence_key(Sequence(number)));
        Ok(self.quarantine_keys.forget(&[number])?)
    }
}

fn add(tasks: &Tasks, event: TaskEvent, record: &Record) -> Result<(), StartFailure> {
    let task_id = task_of(record)?;
    let mut events = tasks.get::<StartFailure>(&task_id)?;
    if let Err(place) = events.binary_search_by_key(&event.sequence, |known| known.sequence) {
        let (product, is_terminal) = (event.product.clone(), event.status.is_terminal());
        events.insert(place, event);
        if is_terminal {
            give_up_surplus(&mut events, &product);
        }
        tasks.change([(task_id, events)])?;
    }
    Ok(())
}

fn note_erased(tasks: &Tasks, record: &Record) -> Result<(), StartFailure> {
    let task_id = task_of(record)?;
    let mut events = tasks.get::<StartFailure>(&task_id)?;
    // It need not name all terminal ones.
    if let Ok(place) = events.binary_search_by_key(&record.sequence(), |known| known.sequence)
        && !events[place].is_erased
    {
        events[place].is_erased = true;
        tasks.change([(task_id, events)])?;
    }
    Ok(())
}

fn forget(tasks: &Tasks, record: &Record) -> Result<(), StartFailure> {
    let task_id = task_of(record)?;
    let mut events = tasks.get::<StartFailure>(&task_id)?;
    if let Ok(place) = events.binary_search_by_key(&record.sequence(), |known| known.sequence) {
        events.remove(place);
        tasks.change([(task_id, events)])?;
    }
    Ok(())
}

fn task_of(record: &Record) -> Result<TaskId, Damaged> {
    TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))
}
