//! Decides what a group of commands becomes: duplicates, revisions, conflicts, refusals, and what retention forgets.
//!
//! The decisions depend on the store, the group, the time and the limits alone, and are recorded in a [`Commit`]; each sees what
//! the ones before it have changed. Nothing becomes visible before the commit is durable but the shares of the quarantine,
//! which only choose what retention forgets first.

mod duplicate;
mod expectations;
mod foresee;

use std::collections::BTreeSet;

use duplicate::{By, Verdict, judge};
pub use foresee::Foreseen;

use super::{
    carry::carry_in_stream,
    command::{Command, Erased, Erasure, Imported, Outcome, PendingReply},
    counts::Counts,
    error::WriteError,
    moment::Moment,
    recording::{Commit, Committed, Leave},
    retention::{Retention, Trimmer},
};
use crate::{
    event::{Record, RecordParts, Selectable},
    store::{Appended, Draft, NewQuarantined, ReadError, Store, layout::TaskEvent, log::Found},
};

/// Decides commands one by one.
struct Decisions<'a> {
    store: &'a Store,
    moment: Moment,
    commit: Commit<'a>,
    counts: Counts,
    /// The commit is written even if it has no entries.
    must_write: bool,
    /// Where the log has the content to overwrite.
    found: Found,
    replies: Vec<PendingReply>,
}

/// A group whose decisions are made.
pub(super) struct Decided {
    pub commit: Committed,
    /// Where the log has the content to overwrite once the commit is durable.
    pub found: Found,
    pub replies: Vec<PendingReply>,
    pub counts: Counts,
}

/// Where a draft comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Callback,
    Quarantine,
    /// The broker itself.
    Broker,
    /// Another log.
    Log {
        log_time_micros: i64,
        is_erased: bool,
    },
}

impl Source {
    /// Only the event's keys are left.
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

/// Decides what a group becomes, and what retention forgets with it.
pub(super) fn decide(
    store: &Store,
    group: Vec<Command>,
    moment: Moment,
    retention: &Retention,
    trimmer: &mut Trimmer,
) -> Decided {
    let may_trim = may_trim(&group);
    let commit = Commit::new(store, &moment, group.len());
    let mut decisions = Decisions {
        // The log may need a commit for itself, whatever is in it.
        must_write: store.log.needs_commit(),
        replies: Vec::with_capacity(group.len()),
        ..Decisions::new(store, moment, commit)
    };
    for command in group {
        decisions.add(command);
    }

    let Decisions {
        mut commit,
        mut counts,
        must_write,
        found,
        replies,
        ..
    } = decisions;
    if moment.adoption.is_some() {
        trimmer.forget_times();
    }
    if may_trim {
        trimmer.trim(&mut commit, &mut counts, retention, &moment);
    }
    Decided {
        commit: commit.finish(must_write),
        found,
        replies,
        counts,
    }
}

/// An erased event is not overwritten yet: retention would count all of its bytes.
fn may_trim<'c>(group: impl IntoIterator<Item = &'c Command>) -> bool {
    !group
        .into_iter()
        .any(|command| matches!(command, Command::Erase(..)))
}

/// A group whose decisions may have to be made anew.
pub(super) struct Proposed {
    pub commit: Committed,
    /// Of each command, in order.
    pub outcomes: Vec<Result<Outcome, WriteError>>,
    pub counts: Counts,
}

/// The same as [`decide`] for a frame of the stream, which another one may come before: nothing is answered. `carried_bytes_max` is
/// for what the stream has to have once more.
pub(super) fn propose<'c>(
    store: &Store,
    group: impl Iterator<Item = &'c Command> + Clone,
    moment: Moment,
    retention: &Retention,
    trimmer: &mut Trimmer,
    tick: Tick,
) -> Proposed {
    let mut decisions = Decisions {
        must_write: tick.must_write,
        ..Decisions::new(store, moment, Commit::revocable(store, &moment))
    };
    let outcomes = group
        .clone()
        .map(|command| decisions.outcome(command))
        .collect();

    let Decisions {
        mut commit,
        mut counts,
        must_write,
        ..
    } = decisions;
    if moment.adoption.is_some() {
        trimmer.forget_times();
    }
    if may_trim(group) {
        trimmer.forget(&mut commit, &mut counts, retention, &moment);
        carry_in_stream(&mut commit, &mut counts, &moment, tick.carried_bytes_max);
    }
    if tick.must_write {
        // It shows that the log's time goes on.
        commit.stamp(moment.now_micros, moment.now_micros);
    }
    Proposed {
        commit: commit.finish(must_write),
        outcomes,
        counts,
    }
}

/// What a commit has beside the commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick {
    /// A frame, also if there is nothing to say.
    pub must_write: bool,
    /// About so many bytes of what the stream has to have once more, at most.
    pub carried_bytes_max: u64,
}

impl<'a> Decisions<'a> {
    fn new(store: &'a Store, moment: Moment, commit: Commit<'a>) -> Self {
        Self {
            store,
            moment,
            commit,
            counts: Counts::default(),
            must_write: false,
            found: Found::default(),
            replies: Vec::new(),
        }
    }
}

impl Decisions<'_> {
    /// Decides a command. One that is refused is answered at once; it has changed nothing.
    fn add(&mut self, command: Command) {
        match self.outcome(&command) {
            Ok(outcome) => self.replies.extend(command.became(outcome)),
            Err(error) => command.refuse(error),
        }
    }

    /// What a command becomes. One that is refused has changed nothing.
    fn outcome(&mut self, command: &Command) -> Result<Outcome, WriteError> {
        match command {
            Command::Append(draft, _) => self.append(draft).map(Outcome::Append),
            Command::Import(imported, _) => self.import(imported).map(Outcome::Append),
            Command::Release(number, drafts, _) => {
                self.release(*number, drafts).map(Outcome::Release)
            }
            Command::Quarantine(new, _) => {
                let number = self.quarantine(new).map_err(failed)?;
                Ok(Outcome::Quarantine(number))
            }
            Command::Discard(numbers, _) => {
                let count = self.discard_all(numbers).map_err(not_erased)?;
                Ok(Outcome::Discard(count))
            }
            Command::Erase(erasure, _) => {
                let erased = self.erase(erasure).map_err(not_erased)?;
                Ok(Outcome::Erase(erased))
            }
            Command::Expect(expecting, _) => self.expect(expecting).map(Outcome::Expect),
            Command::EndExpectations(tasks, whose, _) => {
                let count = self.end_expectations(tasks, whose).map_err(failed)?;
                Ok(Outcome::EndExpectations(count))
            }
            Command::Overdue(late, _) => self.overdue(late).map(Outcome::Overdue),
            Command::Probe(_) => {
                self.must_write = true;
                Ok(Outcome::Probe)
            }
            // Handled by the writer's thread.
            Command::Backup(_) | Command::Retain | Command::Stop => Err(WriteError::Closed),
        }
    }

    fn append(&mut self, draft: &Draft) -> Result<Appended, WriteError> {
        let appended = self.append_as(draft, Source::Callback)?;
        if appended.duplicate && draft.is_callback() {
            self.counts.duplicates += 1;
            // Without a sync of its own it would be answered sooner than a new event.
            self.must_write |= draft.conceals_duplicates;
        }
        Ok(appended)
    }

    fn import(&mut self, imported: &Imported) -> Result<Appended, WriteError> {
        let Imported {
            draft,
            log_time_micros,
            is_erased,
        } = imported;
        let source = Source::Log {
            log_time_micros: *log_time_micros,
            is_erased: *is_erased,
        };
        self.append_as(draft, source)
    }

    fn release(&mut self, number: u64, drafts: &[Draft]) -> Result<Vec<Appended>, WriteError> {
        if self.commit.quarantined_bytes(number).is_none() {
            return Err(WriteError::NotInQuarantine);
        }

        // Everything that can fail comes first: all of the events are appended, or none.
        for draft in drafts {
            self.commit.events(&draft.task_id).map_err(failed)?;
        }
        self.discard_all(&[number]).map_err(not_erased)?;
        drafts
            .iter()
            .map(|draft| self.append_as(draft, Source::Quarantine))
            .collect()
    }

    fn append_as(&mut self, draft: &Draft, source: Source) -> Result<Appended, WriteError> {
        let known = self.commit.events(&draft.task_id).map_err(failed)?;
        let by = match source {
            Source::Callback if draft.is_answer => By::Answer,
            Source::Callback | Source::Broker => By::Callback,
            Source::Quarantine | Source::Log { .. } => By::Trusted,
        };
        let verdict = judge(known, &draft.product, draft.status, draft.fingerprint, by);
        let (revision, conflict) = match verdict {
            Verdict::TooMany => return Err(WriteError::TooManyEvents),
            Verdict::Duplicate(original) => {
                if original.is_erased && draft.is_callback() {
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

        let was_erased = known // almost never
            .iter()
            .any(|event| event.is_erased && event.product == draft.product);
        if was_erased && !source.is_erased() {
            self.counts.after_erasure.new += 1;
            let (event_id, product) = (draft.event_id, &draft.product);
            tracing::warn!(%event_id, %product, "a callback has brought new content of an erased task: erase it again if need be");
        }
        self.counts.conflicts += u64::from(conflict);

        let event = TaskEvent {
            sequence: self.commit.head().next(),
            event_id: draft.event_id,
            fingerprint: draft.fingerprint,
            revision,
            status: draft.status,
            product: draft.product.clone(),
            is_erased: source.is_erased(),
        };
        let record = self.record(draft, &event, conflict, source);
        let appended = Appended {
            event_id: event.event_id,
            sequence: event.sequence,
            duplicate: false,
        };
        self.commit
            .append(&draft.task_id, event, record)
            .map_err(failed)?;
        if draft.status.is_terminal() {
            self.end_expectation_of(&draft.product, &draft.task_id)
                .map_err(failed)?;
        }
        Ok(appended)
    }

    /// An event as the log will have it.
    fn record(
        &mut self,
        draft: &Draft,
        event: &TaskEvent,
        conflict: bool,
        source: Source,
    ) -> Record {
        // A released callback enters the log now: by the time it was received it might be forgotten at once.
        let received_at = match source {
            Source::Callback | Source::Broker => draft.received_at_micros,
            Source::Quarantine => self.moment.now_micros,
            Source::Log {
                log_time_micros, ..
            } => log_time_micros,
        };
        let log_time_micros = self.commit.stamp(received_at, self.moment.now_micros);
        let parts = RecordParts {
            product: &draft.product,
            task_id: &draft.task_id,
            status: draft.status,
            revision: event.revision,
            conflict,
            received_at_micros: draft.received_at_micros,
            log_time_micros,
            labels: &draft.labels,
            event: &draft.event,
            raw: &draft.raw,
        };
        let record = Record::new(event.sequence, &parts).with_origin(draft.origin.clone());
        if event.is_erased {
            record.erased()
        } else {
            record
        }
    }

    fn quarantine(&mut self, new: &NewQuarantined) -> Result<u64, ReadError> {
        if let Some(number) = self.commit.quarantined_before(new) {
            return Ok(number);
        }
        let received_at_micros = self
            .commit
            .stamp(new.header.received_at_micros, self.moment.now_micros);
        self.commit.quarantine(new, received_at_micros)
    }

    fn discard_all(&mut self, numbers: &[u64]) -> Result<u32, ReadError> {
        let mut known: Vec<_> = numbers
            .iter()
            .copied()
            .filter(|&it| self.commit.quarantined_bytes(it).is_some())
            .collect();
        known.sort_unstable();
        known.dedup();

        // Everything that can fail comes first: all are discarded, or none.
        let copies: Vec<_> = known
            .iter()
            .flat_map(|&number| self.store.copies_of(number))
            .collect();
        let (found, not_found) = self.store.log.find_quarantined(&copies)?;
        let mut totals = *self.commit.totals();
        for &number in &known {
            let bytes = self.commit.quarantined_bytes(number);
            totals.forget_quarantined(bytes.unwrap_or_default())?;
        }

        self.found.add(found);
        for problem in not_found {
            tracing::error!(
                problem,
                "a discarded callback is damaged in the log and could not be overwritten: what is left of it goes with its segment"
            );
        }
        let mut count = 0;
        for number in known {
            count += u32::from(self.commit.discard(number, Leave::Removed)?);
        }
        Ok(count)
    }

    /// Announces that all events of a task are erased: those that the index names, and those at the given places. The task is not
    /// expected any more: what the vendor says of it would bring its labels back.
    fn erase(&mut self, erasure: &Erasure) -> Result<Erased, ReadError> {
        let Erasure {
            task_id,
            product,
            places,
        } = erasure;
        let named = self.commit.events(task_id)?.iter();
        let named = named
            .filter(|event| event.product == *product && !event.is_erased)
            .map(|event| event.sequence);
        let mut all: BTreeSet<_> = places.iter().copied().chain(named).collect();
        let first_available = self.commit.totals().first_available;
        all.retain(|place| place.0 >= first_available && !self.commit.is_announced(*place));
        let all: Vec<_> = all.into_iter().collect();

        // Everything that can fail comes first: all of them are erased, or none.
        let (mut left, mut bytes) = (Vec::new(), 0);
        let found = self.store.log.find(&all, |record| {
            let is_of_task =
                record.task_id() == task_id.as_str() && record.product() == product.as_str();
            let is_to_erase = is_of_task && !record.is_erased();
            if is_to_erase {
                let keys = record.erased();
                bytes += (record.len() - keys.len()) as u64;
                left.push(keys);
            }
            is_to_erase
        });
        let found = found.whole()?;
        let events = left.len() as u32; // as many as a command may have
        self.commit.erase(task_id, left, bytes)?;
        self.end_expectation_of(product, task_id)?;
        self.found.add(found);
        Ok(Erased { events, bytes })
    }
}

/// Why nothing is erased.
fn not_erased(error: ReadError) -> WriteError {
    match error {
        ReadError::Corrupt(problem) | ReadError::Io(problem) => WriteError::Corrupt(problem),
        ReadError::Expired | ReadError::Index(_) => WriteError::Failed(error.to_string()),
    }
}

fn failed(error: ReadError) -> WriteError {
    match error {
        ReadError::Corrupt(problem) | ReadError::Io(problem) => WriteError::Failed(problem),
        ReadError::Expired | ReadError::Index(_) => WriteError::Failed(error.to_string()),
    }
}
