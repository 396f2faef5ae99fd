//! Applies commits of the log to the index that may have lost them, or to an empty one: only the
//! log is synced with each commit.
//!
//! The index may have a commit already, or some that follow it. So events that retention has
//! forgotten since are not put in again: the index may have forgotten them, and keeps no trace of
//! that.

use std::{
    ops::{ControlFlow, RangeInclusive},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{
    apply::{Change, Overlay, State},
    error::{IndexError, StartFailure},
    expectation::Kept,
    index::Index,
    layout::{Damaged, QuarantineHeader, TaskEvent, Totals, parse_quarantined},
    lock,
    log::{Entry, Frame, Log, Place, READ_BYTES, Replayed},
};
use crate::event::{Product, Record, Selectable, Sequence, TaskId};

/// How often a long replay says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Commits that this process has replayed.
static REPLAYED: AtomicU64 = AtomicU64::new(0);

/// How many commits this process has replayed. It rises while a long opening makes progress.
pub fn replayed_commits() -> u64 {
    REPLAYED.load(Ordering::Relaxed)
}

/// What the replayed commits have erased: a crash may have cut off the overwriting.
#[derive(Debug, Default)]
pub(super) struct ToErase {
    pub places: Vec<Sequence>,
    /// Copies of callbacks that were in quarantine.
    pub copies: Vec<(u64, Place)>,
}

/// Brings an index to where the log is, by the commits from a segment on; by all of them if it is
/// `None`. `totals` are those of the log's last commit.
pub(super) fn replay(
    log: &Log,
    state: State<'_>,
    totals: &Totals,
    from: Option<u64>,
) -> Result<ToErase, StartFailure> {
    let first_available = totals.first_available;
    let mut replay = Replay {
        state,
        first_available,
        to_erase: ToErase::default(),
        started: Instant::now(),
        told: Instant::now(),
    };
    let before = log.replay(from.unwrap_or(0), |replayed| replay.take(&replayed))?;
    let mut to_erase = replay.to_erase;

    let mut overlay = Overlay::new(state, 0);
    // Files that are gone were removed behind a checkpoint, and the index has forgotten their
    // events durably. One that was empty was given none of them.
    let first = before.first_available.max(log.oldest().0);
    if first < first_available && from.is_some() {
        let places = Sequence(first)..=Sequence(first_available).previous();
        forget(log, places, &mut overlay)?;
    }

    to_erase.places.sort_unstable();
    to_erase.places.dedup();
    to_erase.places.retain(|place| place.0 >= first_available);
    for &place in &to_erase.places {
        match log.get(place) {
            Ok(record) => {
                let task_id = &task_of(&record)?;
                overlay.apply(Change::Erased { task_id, place })?;
            }
            // It cannot be erased in the log either, which reports it.
            Err(error) => {
                tracing::error!(place = place.0, %error, "cannot note in the index what is erased");
            }
        }
    }
    overlay.into_changes().write(state, log.newest(), [])?;
    Ok(to_erase)
}

/// Takes up the quarantine as an index has stored it.
pub(super) fn load_quarantine(index: &Index, state: State<'_>) -> Result<(), IndexError> {
    let (mut quarantine, mut shares) = (lock(state.quarantine), lock(state.shares));
    for entry in index.quarantined() {
        let (number, stored) = entry?;
        quarantine.load(number, stored.held);
        shares.add(
            number,
            &stored.credential,
            &stored.product,
            stored.held.bytes,
            stored.received_at_micros,
        );
    }
    Ok(())
}

/// Takes up the expectations as an index has stored them.
pub(super) fn load_expectations(index: &Index, state: State<'_>) -> Result<(), IndexError> {
    let mut expectations = lock(state.expectations);
    for entry in index.expectations() {
        let (number, held) = entry?;
        expectations.load(number, held);
    }
    Ok(())
}

struct Replay<'a> {
    state: State<'a>,
    first_available: u64,
    to_erase: ToErase,
    started: Instant,
    told: Instant,
}

impl Replay<'_> {
    fn take(&mut self, replayed: &Replayed<'_>) -> Result<(), StartFailure> {
        match replayed {
            Replayed::Commit(place, frame) => {
                REPLAYED.fetch_add(1, Ordering::Relaxed);
                self.apply(*place, frame)
            }
            Replayed::Segment { done, of } => {
                if self.told.elapsed() >= PROGRESS_INTERVAL {
                    self.told = Instant::now();
                    let seconds = self.started.elapsed().as_secs();
                    tracing::info!(
                        segments = done,
                        of,
                        seconds,
                        "reading the log for its index"
                    );
                }
                Ok(())
            }
        }
    }

    /// Applies one commit as the writer did, but for events that are forgotten by now, and for
    /// erased content, whose tasks are not in the commit.
    fn apply(&mut self, commit: Place, frame: &Frame) -> Result<(), StartFailure> {
        let mut overlay = Overlay::new(self.state, frame.header.events as usize);
        let mut places = Vec::new();
        for entry in frame.entries() {
            match entry? {
                Entry::Event { record, .. } if record.sequence().0 < self.first_available => {}
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
                    overlay.apply(Change::Appended { task_id, event })?;
                }
                Entry::Quarantined {
                    number,
                    value: Some(value),
                    at,
                } => {
                    let header = &parse_quarantined(&value)
                        .map_or_else(|_| QuarantineHeader::unreadable(), |(header, _)| header);
                    let bytes = value.len() as u64;
                    overlay.apply(Change::Quarantined {
                        number,
                        header,
                        bytes,
                    })?;
                    let at = commit.at + at as u64;
                    places.push((number, Place { at, ..commit }));
                }
                // It is erased; the commit that has taken it out of quarantine follows.
                Entry::Quarantined { value: None, .. } => {}
                Entry::Expired { number } => overlay.apply(Change::Left { number })?,
                Entry::Removed { number, copies } => {
                    overlay.apply(Change::Left { number })?;
                    let copies = copies.into_iter().map(|place| (number, place));
                    self.to_erase.copies.extend(copies);
                }
                Entry::Erased { place } => self.to_erase.places.push(place),
                Entry::Expected { number, value } => {
                    let kept = Kept::parse(&value)?;
                    overlay.apply(Change::Expected { number, kept })?;
                }
                Entry::ExpectationEnded { number } => {
                    overlay.apply(Change::ExpectationEnded { number })?;
                }
                Entry::Unknown { kind } => return Err(StartFailure::NewerKind(kind)),
            }
        }
        Ok(overlay
            .into_changes()
            .write(self.state, commit.segment, places)?)
    }
}

/// Has the index forget the events at these places.
fn forget(
    log: &Log,
    places: RangeInclusive<Sequence>,
    overlay: &mut Overlay<'_>,
) -> Result<(), StartFailure> {
    let mut failed = None;
    log.scan(places, READ_BYTES, |record| {
        let forgotten = task_of(&record)
            .map_err(StartFailure::from)
            .and_then(|task_id| {
                let (task_id, place) = (&task_id, record.sequence());
                Ok(overlay.apply(Change::Forgotten { task_id, place })?)
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
