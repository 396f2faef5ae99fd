//! Takes over what another log has, on the caller's own thread: decided and committed as callbacks are, but for their limits, which
//! the other log has applied already.

use tokio::sync::oneshot;

use super::{Command, Draft, Erased, Erasure, NewQuarantined, Publish, WriteError, Writer};

/// Something of another log.
pub(in crate::store) enum Import {
    /// An event.
    Event(Box<Imported>),
    /// A callback in quarantine.
    Quarantined(Box<NewQuarantined>),
}

/// An event of another log.
pub(in crate::store) struct Imported {
    /// What it says; nothing but keys if it was erased.
    pub draft: Draft,
    /// What it is aged by, in microseconds since 1970.
    pub log_time_micros: i64,
    /// Its content was erased in the other log.
    pub is_erased: bool,
}

/// How much of it was new.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Taken {
    /// Of each event, whether it repeats none that was there.
    pub are_new: Vec<bool>,
    /// Callbacks in quarantine.
    pub quarantined: u64,
}

impl<P: Publish> Writer<P> {
    /// Commits a group, in its order; durable when this returns.
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
                Import::Quarantined(new) => {
                    let (reply, answer) = oneshot::channel();
                    quarantined.push(answer);
                    Command::Quarantine(*new, reply)
                }
            });
        }
        self.commit(commands);

        let mut taken = Taken::default();
        for answer in events {
            taken.are_new.push(!given(answer)?.duplicate);
        }
        for answer in quarantined {
            given(answer)?;
            taken.quarantined += 1;
        }
        Ok(taken)
    }

    /// Erases events; nothing of them is left when this returns.
    pub(in crate::store) fn erase(&mut self, erasure: Erasure) -> Result<Erased, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.commit(vec![Command::Erase(erasure, reply)]);
        given(answer)
    }
}

/// What a commit has answered, which is over.
fn given<T>(mut answer: oneshot::Receiver<Result<T, WriteError>>) -> Result<T, WriteError> {
    answer.try_recv().unwrap_or(Err(WriteError::Closed))
}
