//! The commands that the writer takes, and the replies that wait for their commit.

use tokio::sync::oneshot;

use super::error::WriteError;
use crate::{
    event::{Product, Sequence, TaskId},
    store::{Appended, Backup, Draft, Expectation, Expected, NewQuarantined, Whose},
};

/// Most places that one erasure names. It bounds how long others wait for the commit that announces them.
pub(crate) const ERASURE_PLACES_MAX: usize = 1_024;

/// Which events to erase.
#[derive(Clone, Debug)]
pub struct Erasure {
    /// The task.
    pub task_id: TaskId,
    /// All events of the task that are of this product and that the index names are erased,
    pub product: Product,
    /// and also those at these places, at most `ERASURE_PLACES_MAX`.
    pub places: Vec<Sequence>,
}

/// What was erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Events that had something to erase.
    pub events: u32,
    /// The bytes of them that were overwritten.
    pub bytes: u64,
}

/// An event of another log.
#[derive(Debug)]
pub(in crate::store) struct Imported {
    /// The event. Of an erased one only the keys are left.
    pub draft: Draft,
    /// The time that it is aged by, in microseconds since 1970.
    pub log_time_micros: i64,
    /// Its content was erased in the other log.
    pub is_erased: bool,
}

/// Tasks to expect. Their numbers are given by the commit.
#[derive(Debug)]
pub(super) struct Expecting {
    pub expectations: Vec<Expectation>,
    /// Not those of another log, which has applied the limits.
    pub is_limited: bool,
}

/// The event that a task is late.
#[derive(Debug)]
pub(super) struct Late {
    /// The number of its expectation.
    pub number: u64,
    pub draft: Draft,
    /// It is the last one: the task is not expected any more.
    pub gives_up: bool,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

#[derive(Debug)]
pub(super) enum Command {
    Append(Box<Draft>, Reply<Appended>),
    /// Takes over an event of another log.
    Import(Box<Imported>, Reply<Appended>),
    /// Takes a callback out of quarantine, and appends the events that it has become.
    Release(u64, Vec<Draft>, Reply<Vec<Appended>>),
    Quarantine(NewQuarantined, Reply<u64>),
    Discard(Vec<u64>, Reply<u32>),
    Erase(Erasure, Reply<Erased>),
    Expect(Expecting, Reply<Vec<Expected>>),
    EndExpectations(Vec<(Product, TaskId)>, Whose, Reply<u32>),
    Overdue(Box<Late>, Reply<Option<Appended>>),
    /// Takes a backup of everything that is durable by then.
    Backup(Reply<Backup>),
    /// Commits an empty frame, to show that the whole write path works.
    Probe(Reply<()>),
    /// Wakes the writer, which takes up the new retention.
    Retain,
    /// Ends the writer behind the commands that were sent before.
    Stop,
}

impl Command {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append(draft, _) => draft.bytes(),
            Self::Import(imported, _) => imported.draft.bytes(),
            Self::Release(_, drafts, _) => drafts.iter().map(Draft::bytes).sum(),
            Self::Quarantine(new, _) => new.body.len(),
            Self::Discard(numbers, _) => size_of_val(&numbers[..]),
            Self::Erase(erasure, _) => size_of_val(&erasure.places[..]),
            Self::Expect(expecting, _) => {
                let expectations = expecting.expectations.iter();
                expectations.map(Expectation::bytes).sum()
            }
            Self::EndExpectations(tasks, ..) => tasks
                .iter()
                .map(|(product, task_id)| product.as_str().len() + task_id.as_str().len())
                .sum(),
            Self::Overdue(late, _) => late.draft.bytes(),
            Self::Backup(_) | Self::Probe(_) | Self::Retain | Self::Stop => 0,
        }
    }

    /// About how many tasks it has to look up in the index.
    pub(super) fn tasks(&self) -> usize {
        match self {
            Self::Expect(expecting, _) => expecting.expectations.len(),
            Self::EndExpectations(tasks, ..) => tasks.len(),
            Self::Release(_, drafts, _) => drafts.len(),
            _ => 1,
        }
    }

    /// Whether it has content overwritten in the log.
    pub(super) fn erases(&self) -> bool {
        matches!(
            self,
            Self::Release(..) | Self::Discard(..) | Self::Erase(..)
        )
    }

    /// Whether it only removes content. Such a command is taken although the disk is low.
    pub(super) fn only_removes(&self) -> bool {
        matches!(self, Self::Discard(..) | Self::Erase(..))
    }

    pub(super) fn refuse(self, error: WriteError) {
        // If the receiver is gone, its caller has timed out: the callback was not answered 200, so nothing is lost.
        let _ = match self {
            Self::Append(_, reply) | Self::Import(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Release(_, _, reply) => reply.send(Err(error)).is_ok(),
            Self::Quarantine(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Discard(_, reply) | Self::EndExpectations(_, _, reply) => {
                reply.send(Err(error)).is_ok()
            }
            Self::Erase(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Expect(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Overdue(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Backup(reply) => reply.send(Err(error)).is_ok(),
            Self::Probe(reply) => reply.send(Err(error)).is_ok(),
            Self::Retain | Self::Stop => false,
        };
    }
}

/// What a command became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Append(Appended),
    Release(Vec<Appended>),
    Quarantine(u64),
    Discard(u32),
    Erase(Erased),
    Expect(Vec<Expected>),
    EndExpectations(u32),
    Overdue(Option<Appended>),
    Probe,
}

impl Outcome {
    /// Whether this command can become that.
    pub(super) fn is_of(&self, command: &Command) -> bool {
        matches!(
            (self, command),
            (Self::Append(_), Command::Append(..) | Command::Import(..))
                | (Self::Release(_), Command::Release(..))
                | (Self::Quarantine(_), Command::Quarantine(..))
                | (Self::Discard(_), Command::Discard(..))
                | (Self::Erase(_), Command::Erase(..))
                | (Self::Expect(_), Command::Expect(..))
                | (Self::EndExpectations(_), Command::EndExpectations(..))
                | (Self::Overdue(_), Command::Overdue(..))
                | (Self::Probe, Command::Probe(_))
        )
    }
}

impl Command {
    /// The reply with what it became; `None` if that is none of its kind.
    pub(super) fn became(self, outcome: Outcome) -> Option<PendingReply> {
        Some(match (self, outcome) {
            (Self::Append(_, reply) | Self::Import(_, reply), Outcome::Append(appended)) => {
                PendingReply::Append(reply, appended)
            }
            (Self::Release(.., reply), Outcome::Release(appended)) => {
                PendingReply::Release(reply, appended)
            }
            (Self::Quarantine(_, reply), Outcome::Quarantine(number)) => {
                PendingReply::Quarantine(reply, number)
            }
            (Self::Discard(_, reply), Outcome::Discard(count)) => {
                PendingReply::Discard(reply, count)
            }
            (Self::Erase(_, reply), Outcome::Erase(erased)) => PendingReply::Erase(reply, erased),
            (Self::Expect(_, reply), Outcome::Expect(became)) => {
                PendingReply::Expect(reply, became)
            }
            (Self::EndExpectations(.., reply), Outcome::EndExpectations(count)) => {
                PendingReply::EndExpectations(reply, count)
            }
            (Self::Overdue(_, reply), Outcome::Overdue(appended)) => {
                PendingReply::Overdue(reply, appended)
            }
            (Self::Probe(reply), Outcome::Probe) => PendingReply::Probe(reply),
            _ => return None,
        })
    }
}

/// A reply that waits until its commit is durable.
pub(super) enum PendingReply {
    Append(Reply<Appended>, Appended),
    Release(Reply<Vec<Appended>>, Vec<Appended>),
    Quarantine(Reply<u64>, u64),
    Discard(Reply<u32>, u32),
    Erase(Reply<Erased>, Erased),
    Expect(Reply<Vec<Expected>>, Vec<Expected>),
    EndExpectations(Reply<u32>, u32),
    Overdue(Reply<Option<Appended>>, Option<Appended>),
    Probe(Reply<()>),
}

impl PendingReply {
    pub(super) fn send(self) {
        // If the receiver is gone, its caller has timed out; the repeated callback will find its event as a duplicate.
        let _ = match self {
            Self::Append(reply, appended) => reply.send(Ok(appended)).is_ok(),
            Self::Release(reply, appended) => reply.send(Ok(appended)).is_ok(),
            Self::Quarantine(reply, number) => reply.send(Ok(number)).is_ok(),
            Self::Discard(reply, count) | Self::EndExpectations(reply, count) => {
                reply.send(Ok(count)).is_ok()
            }
            Self::Erase(reply, erased) => reply.send(Ok(erased)).is_ok(),
            Self::Expect(reply, became) => reply.send(Ok(became)).is_ok(),
            Self::Overdue(reply, appended) => reply.send(Ok(appended)).is_ok(),
            Self::Probe(reply) => reply.send(Ok(())).is_ok(),
        };
    }

    /// Whether it says that content is erased, so that it has to wait for the overwriting, too.
    pub(super) fn is_of_erasure(&self) -> bool {
        matches!(
            self,
            Self::Release(..) | Self::Discard(..) | Self::Erase(..)
        )
    }

    pub(super) fn refuse(self, error: WriteError) {
        let _ = match self {
            Self::Append(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Release(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Quarantine(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Discard(reply, _) | Self::EndExpectations(reply, _) => {
                reply.send(Err(error)).is_ok()
            }
            Self::Erase(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Expect(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Overdue(reply, _) => reply.send(Err(error)).is_ok(),
            Self::Probe(reply) => reply.send(Err(error)).is_ok(),
        };
    }
}
