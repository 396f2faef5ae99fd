//! Takes over the events and the quarantine of another log, on the caller's own thread. They are decided and committed like
//! callbacks, but without limits, which the other log has applied already.

use tokio::sync::oneshot;

use super::{
    command::{Command, Erased, Erasure, Expecting, Imported},
    error::WriteError,
    publish::Publish,
    thread::Writer,
};
use crate::store::{Expectation, Expected, NewQuarantined};

/// Something of another log.
pub(in crate::store) enum Import {
    /// An event.
    Event(Box<Imported>),
    /// A callback in quarantine.
    Quarantined(Box<NewQuarantined>),
}

/// How much of a group was new.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Taken {
    /// Of each event, whether it was new.
    pub are_new: Vec<bool>,
    /// Callbacks in quarantine.
    pub quarantined: u64,
}

impl<P: Publish> Writer<P> {
    /// Commits a group in its order. It is durable when this returns.
    pub(in crate::store) fn import(&mut self, group: Vec<Import>) -> Result<Taken, WriteError> {
        let (mut events, mut quarantined, mut commands) =
            (Vec::new(), Vec::new(), Vec::with_capacity(group.len()));
        for import in group {
            commands.push(match import {
                Import::Event(imported) => {
                    let (reply, answer) = oneshot::channel();
                    events.push(answer);
                    Command::Import(imported, reply)
                }
                Import::Quarantined(mut new) => {
                    // It was for the tries of nodes to write it to that log.
                    new.header.idempotency_key = None;
                    let (reply, answer) = oneshot::channel();
                    quarantined.push(answer);
                    Command::Quarantine(*new, reply)
                }
            });
        }
        self.commit(commands);

        let mut taken = Taken::default();
        for answer in events {
            taken.are_new.push(!answer_of(answer)?.duplicate);
        }
        for answer in quarantined {
            answer_of(answer)?;
            taken.quarantined += 1;
        }
        Ok(taken)
    }

    /// Has tasks expected that another log expects. Those that are over are not; answers what became of each.
    pub(in crate::store) fn expect(
        &mut self,
        expectations: Vec<Expectation>,
    ) -> Result<Vec<Expected>, WriteError> {
        let (reply, answer) = oneshot::channel();
        let expecting = Expecting {
            expectations,
            is_limited: false,
        };
        self.commit(vec![Command::Expect(expecting, reply)]);
        answer_of(answer)
    }

    /// Erases events. Nothing of their content is left when this returns.
    pub(in crate::store) fn erase(&mut self, erasure: Erasure) -> Result<Erased, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.commit(vec![Command::Erase(erasure, reply)]);
        answer_of(answer)
    }
}

/// The answer of a commit that has ended.
fn answer_of<T>(mut answer: oneshot::Receiver<Result<T, WriteError>>) -> Result<T, WriteError> {
    answer.try_recv().unwrap_or(Err(WriteError::Closed))
}
