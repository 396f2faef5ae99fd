//! Applies commits of the log to the index that may have lost them: only the log is synced with each commit.
//!
//! The index may have a commit already, or some that follow it. So events that retention has forgotten since are not put in again:
//! the index may have forgotten them, and keeps no trace of that.

use std::ops::ControlFlow;

use super::{
    apply::{Change, Index, Overlay},
    error::StartFailure,
    layout::{Damaged, QuarantineHeader, TaskEvent, Totals, parse_quarantined},
    log::{Entry, Frame, Log, READ_BYTES},
};
use crate::event::{Product, Record, Selectable, Sequence, TaskId};

/// What the replayed commits have erased: a crash may have cut off the overwriting.
#[derive(Debug, Default)]
pub(super) struct ToErase {
    pub places: Vec<Sequence>,
    /// Of callbacks that were in quarantine.
    pub numbers: Vec<u64>,
}

/// Brings the index to where the log is; `totals` are those of the log's last commit.
pub(super) fn replay(
    log: &Log,
    index: Index<'_>,
    totals: &Totals,
) -> Result<ToErase, StartFailure> {
    let first_available = totals.first_available;
    let mut to_erase = ToErase::default();
    let before = log.replay(|frame| apply(&frame, index, first_available, &mut to_erase))?;

    let mut overlay = Overlay::new(index, 0);
    // Files that are gone were removed behind a checkpoint, and the index has forgotten their events durably.
    let first = before.first_available.max(log.oldest().0);
    if first < first_available {
        let places = Sequence(first)..=Sequence(first_available).previous();
        forget(log, places, &mut overlay)?;
    }

    to_erase.places.sort_unstable();
    to_erase.places.dedup();
    let retained = |place: &&Sequence| place.0 >= first_available;
    for &place in to_erase.places.iter().filter(retained) {
        match log.get(place) {
            Ok(record) => {
                let task_id = &task_of(&record)?;
                overlay.apply::<StartFailure>(Change::Erased { task_id, place })?;
            }
            // It cannot be erased in the log either, which reports it.
            Err(error) => {
                tracing::error!(place = place.0, %error, "cannot note in the index what is erased")
            }
        }
    }
    overlay.into_changes().write(index)?;
    Ok(to_erase)
}

/// Applies one commit as the writer did, but for events that are forgotten by now, and for erased content, whose tasks are not in
/// the commit.
fn apply(
    frame: &Frame,
    index: Index<'_>,
    first_available: u64,
    to_erase: &mut ToErase,
) -> Result<(), StartFailure> {
    let mut overlay = Overlay::new(index, frame.header.events as usize);
    for entry in frame.entries() {
        match entry? {
            Entry::Event { record, .. } if record.sequence().0 < first_available => {}
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
                let task_id = &task_of(&record)?;
                overlay.apply::<StartFailure>(Change::Appended { task_id, event })?;
            }
            Entry::Quarantined {
                number,
                value: Some(value),
            } => {
                let header = parse_quarantined(&value)
                    .map_or_else(|_| QuarantineHeader::unreadable(), |(header, _)| header);
                overlay.apply::<StartFailure>(Change::Quarantined {
                    number,
                    header: &header,
                    value: &value,
                })?;
            }
            // It is erased; the commit that has taken it out of quarantine follows.
            Entry::Quarantined { value: None, .. } => {}
            Entry::Expired { number } => overlay.apply::<StartFailure>(Change::Left { number })?,
            Entry::Removed { number } => {
                overlay.apply::<StartFailure>(Change::Left { number })?;
                to_erase.numbers.push(number);
            }
            Entry::Erased { place } => to_erase.places.push(place),
        }
    }
    Ok(overlay.into_changes().write(index)?)
}

/// Has the index forget the events at these places.
fn forget(
    log: &Log,
    places: std::ops::RangeInclusive<Sequence>,
    overlay: &mut Overlay<'_>,
) -> Result<(), StartFailure> {
    let mut failed = None;
    log.scan(places, READ_BYTES, |record| {
        let forgotten = task_of(&record)
            .map_err(StartFailure::from)
            .and_then(|task_id| {
                overlay.apply::<StartFailure>(Change::Forgotten {
                    task_id: &task_id,
                    place: record.sequence(),
                })
            });
        failed = forgotten.err();
        Ok(if failed.is_none() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    failed.map_or(Ok(()), Err)
}

fn task_of(record: &Record) -> Result<TaskId, Damaged> {
    TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))
}
