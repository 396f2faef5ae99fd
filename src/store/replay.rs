//! Applies commits of the log to the index that may have lost them, or to an empty one: only the
//! log is synced with each commit.
//!
//! The index may have a commit already, or some that follow it. So events that retention has
//! forgotten since are not put in again: the index may have forgotten them, and keeps no trace of
//! that.
//!
//! A long replay, as that of a rebuild, makes checkpoints on its way: one that is killed goes on
//! there.

use std::{
    mem,
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    apply::{Change, Overlay, State},
    error::{IndexError, ReadError, StartFailure},
    expectation::Kept,
    index::{Checkpoint, Index},
    layout::{Damaged, QuarantineHeader, TaskEvent, parse_quarantined},
    lock,
    log::{Entry, Frame, Log, NewCopy, Next, Place, Replayed},
};
use crate::{
    cluster::Totals,
    event::{Fingerprint, Product, Record, Selectable, Sequence, TaskId},
};

/// How often a long replay says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Commits that this process has replayed.
static REPLAYED: AtomicU64 = AtomicU64::new(0);

/// How many commits this process has replayed. It rises while a long opening makes progress.
pub fn replayed_commits() -> u64 {
    REPLAYED.load(Ordering::Relaxed)
}

/// A replay makes a checkpoint when it has read so much since the last, at the end of a segment: as
/// often as a running broker does whose segments are full. Unit tests pass one at each segment.
const CHECKPOINT_BYTES: u64 = if cfg!(test) { 1 } else { 32 * 1024 * 1024 };
/// Changes that are held in memory until they are written, some hundred bytes each.
const CHANGES_MAX: usize = 10_000;

/// What the replayed commits have erased: a crash may have cut off the overwriting.
#[derive(Debug, Default)]
pub(super) struct ToErase {
    pub places: Vec<Sequence>,
    /// Copies of callbacks that were in quarantine.
    pub copies: Vec<(u64, Place)>,
}

/// From where on an index lacks the log.
pub(super) struct ReplayFrom {
    /// The segment to begin with.
    pub segment: u64,
    /// The index has forgotten all events before this one.
    pub forgotten_before: Sequence,
}

/// Where to begin to replay, or why a checkpoint cannot be believed.
pub(super) fn replay_from(
    checkpoint: Option<Checkpoint>,
    log: &Log,
    totals: &Totals,
) -> Result<ReplayFrom, String> {
    let (newest, first_available) = (log.applied(), Sequence(totals.first_available));
    let Some(checkpoint) = checkpoint else {
        return if newest == 0 {
            Ok(ReplayFrom {
                segment: 0,
                forgotten_before: first_available,
            })
        } else {
            Err("there is none, or it does not say up to where it has the log".into())
        };
    };
    let Checkpoint {
        epoch,
        commit,
        replay_from,
        forgotten_before,
        is_on_the_way: _,
    } = checkpoint;
    if epoch != log.epoch() {
        return Err(format!("it is that of log {epoch}"));
    }
    if commit > newest {
        return Err(format!(
            "it has {commit} commits, and the log ends behind {newest}"
        ));
    }
    if forgotten_before > first_available {
        let (forgotten, first) = (forgotten_before.0, first_available.0);
        return Err(format!(
            "it has forgotten all before event {forgotten}, and the log has event {first}"
        ));
    }
    // Files go behind the checkpoint of an index that has forgotten their events: this is none of
    // those that the log has had since.
    if forgotten_before < log.oldest() {
        let (forgotten, oldest) = (forgotten_before.0, log.oldest().0);
        return Err(format!(
            "it may name events from {forgotten} on, and the log begins with event {oldest}"
        ));
    }
    match log.first_commit_of(replay_from) {
        Some(first) if first <= commit + 1 => Ok(ReplayFrom {
            segment: replay_from,
            forgotten_before,
        }),
        // That segment was begun and not synced, and a power cut has taken it back.
        None if replay_from == log.newest() + 1 && commit == newest => Ok(ReplayFrom {
            segment: replay_from,
            forgotten_before,
        }),
        _ => Err(format!(
            "it ends behind commit {commit}, and the log begins later"
        )),
    }
}

/// Where a replay is on its way: all commits before are applied.
pub(super) struct Reached {
    /// The segment that is next.
    pub segment: u64,
    /// The newest commit before it.
    pub commit: u64,
    /// To be overwritten before a checkpoint passes it.
    pub to_erase: ToErase,
}

/// Brings an index to where the log is. `totals` are those of the log's last commit; `checkpoint` is
/// called on the way.
pub(super) fn replay(
    log: &Log,
    state: State<'_>,
    totals: &Totals,
    from: &ReplayFrom,
    checkpoint: impl FnMut(Reached) -> Result<(), StartFailure>,
) -> Result<ToErase, StartFailure> {
    let first_available = Sequence(totals.first_available);
    // Before any checkpoint, which says that they are forgotten.
    if from.forgotten_before < first_available {
        forget(
            log,
            state,
            from.forgotten_before..=first_available.previous(),
        )?;
    }

    let mut replay = Replay {
        log,
        state,
        first_available,
        checkpoint,
        unsaved_bytes: 0,
        to_erase: ToErase::default(),
        started: Instant::now(),
        told: Instant::now(),
    };
    log.replay(from.segment, first_available, |replayed| {
        replay.take(&replayed)
    })?;
    replay.take_erased()
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

struct Replay<'a, C> {
    log: &'a Log,
    state: State<'a>,
    first_available: Sequence,
    checkpoint: C,
    /// Of the segments since the last checkpoint.
    unsaved_bytes: u64,
    to_erase: ToErase,
    started: Instant,
    told: Instant,
}

impl<C: FnMut(Reached) -> Result<(), StartFailure>> Replay<'_, C> {
    fn take(&mut self, replayed: &Replayed<'_>) -> Result<(), StartFailure> {
        match replayed {
            Replayed::Commit(place, frame) => {
                REPLAYED.fetch_add(1, Ordering::Relaxed);
                self.apply(*place, frame)
            }
            Replayed::Segment(next) => {
                self.report(next);
                self.save(next)
            }
        }
    }

    fn report(&mut self, next: &Next) {
        if self.told.elapsed() >= PROGRESS_INTERVAL {
            self.told = Instant::now();
            let seconds = self.started.elapsed().as_secs();
            let Next { done, of, .. } = *next;
            tracing::info!(
                segments = done,
                of,
                seconds,
                "reading the log for its index"
            );
        }
    }

    /// Makes a checkpoint behind the segments that are done, if there is enough in them.
    fn save(&mut self, next: &Next) -> Result<(), StartFailure> {
        if next.done > 0 && self.unsaved_bytes >= CHECKPOINT_BYTES {
            let to_erase = self.take_erased()?;
            (self.checkpoint)(Reached {
                segment: next.number,
                commit: next.commit - 1,
                to_erase,
            })?;
            self.unsaved_bytes = 0;
        }
        self.unsaved_bytes += next.bytes;
        Ok(())
    }

    /// Notes in the index what the commits so far have erased, and hands it over.
    fn take_erased(&mut self) -> Result<ToErase, StartFailure> {
        let mut to_erase = mem::take(&mut self.to_erase);
        let ToErase { places, .. } = &mut to_erase;
        places.sort_unstable();
        places.dedup();
        places.retain(|&place| place >= self.first_available);
        let mut changes = Pieces::of(self.state);
        for &place in &*places {
            match self.log.get(place) {
                Ok(record) => {
                    let task_id = &task_of(&record)?;
                    changes.apply(Change::Erased { task_id, place })?;
                }
                // It may be there, as it was written: no checkpoint may pass its announcement.
                Err(error @ ReadError::Io(_)) => return Err(error.into()),
                // It cannot be erased in the log either, which reports it.
                Err(error) => {
                    tracing::error!(place = place.0, %error, "cannot note in the index what is erased");
                }
            }
        }
        changes.write()?;
        Ok(to_erase)
    }

    /// Applies one commit as the writer did, but for events that are forgotten by now, and for
    /// erased content, whose tasks are not in the commit.
    fn apply(&mut self, commit: Place, frame: &Frame) -> Result<(), StartFailure> {
        let mut overlay = Overlay::new(self.state, frame.header.events as usize);
        let streamed = frame.header.streamed;
        let mut places = Vec::new();
        for entry in frame.entries() {
            match entry? {
                Entry::Event { record, .. } if record.sequence() < self.first_available => {}
                Entry::Event {
                    event_id,
                    fingerprint,
                    record,
                } => {
                    let event = event_of(event_id, fingerprint, &record)?;
                    let task_id = &task_of(&record)?;
                    overlay.apply(Change::Appended { task_id, event })?;
                }
                Entry::Quarantined {
                    number,
                    value: Some(value),
                    frame: copied_from,
                    at,
                } => {
                    let log_time_micros = frame.header.totals.log_time_micros;
                    let header = &parse_quarantined(&value).map_or_else(
                        |_| QuarantineHeader::unreadable(log_time_micros),
                        |(header, _)| header,
                    );
                    let bytes = value.len() as u64;
                    overlay.apply(Change::Quarantined {
                        number,
                        header,
                        bytes,
                    })?;
                    let at = commit.at + at as u64;
                    places.push(NewCopy {
                        number,
                        place: Place { at, ..commit },
                        frame: copied_from.unwrap_or(streamed.frame),
                    });
                }
                // It is erased; the commit that has taken it out of quarantine follows.
                Entry::Quarantined { value: None, .. } => {}
                Entry::Expired { number } | Entry::Removed { number } => {
                    overlay.apply(Change::Left { number })?;
                }
                Entry::CopiesErased { number, copies } => {
                    let copies = copies.into_iter().map(|place| (number, place));
                    self.to_erase.copies.extend(copies);
                }
                Entry::Erased { place } => self.to_erase.places.push(place),
                Entry::Expected {
                    number,
                    value,
                    frame,
                } => {
                    overlay.apply(expected(number, Kept::parse(&value)?, frame))?;
                }
                Entry::ExpectationEnded { number } => {
                    overlay.apply(Change::ExpectationEnded { number })?;
                }
                Entry::Unknown { kind } => return Err(StartFailure::NewerKind(kind)),
            }
        }
        Ok(overlay
            .into_changes()
            .write(self.state, commit.segment, streamed.frame, places)?)
    }
}

/// Has the index forget the events at these places; retention has passed damaged ones, too.
fn forget(
    log: &Log,
    state: State<'_>,
    places: RangeInclusive<Sequence>,
) -> Result<(), StartFailure> {
    let mut changes = Pieces::of(state);
    let mut failed = None;
    log.scan_around_damage(places, |record| {
        let forgotten = task_of(record)
            .map_err(StartFailure::from)
            .and_then(|task_id| {
                let (task_id, place) = (&task_id, record.sequence());
                Ok(changes.apply(Change::Forgotten { task_id, place })?)
            });
        failed = failed.take().or(forgotten.err());
    })?;
    failed.map_or(Ok(()), Err)?;
    Ok(changes.write()?)
}

/// Changes that are written whenever there are [`CHANGES_MAX`].
struct Pieces<'a> {
    state: State<'a>,
    overlay: Overlay<'a>,
    count: usize,
}

impl<'a> Pieces<'a> {
    fn of(state: State<'a>) -> Self {
        Self {
            state,
            overlay: Overlay::new(state, 0),
            count: 0,
        }
    }

    fn apply(&mut self, change: Change<'_>) -> Result<(), IndexError> {
        self.overlay.apply(change)?;
        self.count += 1;
        if self.count == CHANGES_MAX {
            mem::replace(self, Self::of(self.state)).write()?;
        }
        Ok(())
    }

    fn write(self) -> Result<(), IndexError> {
        let (segment, frame) = (0, 0); // of expectations, of which there are none here
        let changes = self.overlay.into_changes();
        changes.write(self.state, segment, frame, [])
    }
}

/// What the index has of an event.
fn event_of(
    event_id: Uuid,
    fingerprint: Fingerprint,
    record: &Record,
) -> Result<TaskEvent, Damaged> {
    Ok(TaskEvent {
        sequence: record.sequence(),
        event_id,
        fingerprint,
        revision: record.revision(),
        status: record.status(),
        product: Product::parse(record.product()).map_err(|_| Damaged("product of an event"))?,
        is_erased: record.is_erased(),
    })
}

/// An expectation; with `frame` it was written again in this log only.
fn expected<'a>(number: u64, kept: Kept, frame: Option<u64>) -> Change<'a> {
    match frame {
        None => Change::Expected { number, kept },
        Some(frame) => Change::ExpectedHere {
            number,
            kept,
            frame,
        },
    }
}

fn task_of(record: &Record) -> Result<TaskId, Damaged> {
    TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::TaskStatus, store::Store};

    #[test]
    fn changes_of_a_replay_are_written_when_there_are_many() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 1 << 20).unwrap();
        let id = |number: usize| TaskId::parse(&format!("t{number}")).unwrap();
        let event = |number: usize| TaskEvent {
            sequence: Sequence(number as u64),
            event_id: Uuid::nil(),
            fingerprint: 7.into(),
            revision: 1,
            status: TaskStatus::Completed,
            product: Product::parse("veo").unwrap(),
            is_erased: false,
        };
        let tasks = (1..=CHANGES_MAX + 1).map(|number| (id(number), vec![event(number)]));
        store.index.tasks.change(tasks).unwrap();
        let named = |number: usize| store.index.tasks.get(&id(number)).unwrap().len();

        let mut changes = Pieces::of(store.state());
        for number in 1..=CHANGES_MAX + 1 {
            assert_eq!(named(1), usize::from(number <= CHANGES_MAX), "{number}");
            let (task_id, place) = (&id(number), Sequence(number as u64));
            changes.apply(Change::Forgotten { task_id, place }).unwrap();
        }
        assert_eq!([named(CHANGES_MAX), named(CHANGES_MAX + 1)], [0, 1]);
        changes.write().unwrap();
        assert_eq!(named(CHANGES_MAX + 1), 0);
    }
}
