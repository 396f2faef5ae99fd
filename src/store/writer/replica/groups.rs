//! The groups that wait for a frame: their commands, what was decided about them last, and their answers.

use std::sync::Arc;

use bytes::Bytes;

use super::{HandoverError, Replica, handover};
use crate::{
    cluster::{Group, GroupId},
    store::{
        Draft,
        log::Found,
        writer::{
            command::{Command, Outcome, PendingReply},
            error::WriteError,
            overwriting::Overwriting,
            publish::Publish,
        },
    },
};

/// A group that is not answered yet.
pub(super) struct Kept {
    pub commands: Vec<Command>,
    /// About what they take in a frame.
    pub bytes: usize,
    /// Of each command; empty until it is decided.
    pub outcomes: Vec<Result<Outcome, WriteError>>,
}

impl<P: Publish> Replica<P> {
    /// Keeps a group under its number.
    pub(super) fn keep(&mut self, id: GroupId, commands: Vec<Command>) -> Group {
        self.keep_from(id, commands, false)
    }

    fn keep_from(&mut self, id: GroupId, commands: Vec<Command>, is_from_peer: bool) -> Group {
        for draft in commands.iter().flat_map(drafts_of) {
            if let Some(origin) = &draft.origin {
                self.origins.insert(draft.event_id, Arc::clone(origin));
            }
        }
        let tasks: usize = commands.iter().map(Command::tasks).sum();
        let erases = commands
            .iter()
            .any(|command| matches!(command, Command::Erase(..)));
        let bytes = commands.iter().map(Command::bytes).sum();
        let kept = Kept {
            commands,
            bytes,
            outcomes: Vec::new(),
        };
        self.groups.insert(id, kept);
        Group {
            id,
            // What is more than a frame may have gets one of its own.
            drafts: if erases {
                self.limits.drafts_max.saturating_add(1)
            } else {
                tasks
            },
            bytes,
            is_from_peer,
        }
    }

    /// Takes over a group that another node has handed over, by [`Self::hand_over`].
    pub fn add_from_peer(&mut self, id: GroupId, bytes: &Bytes) -> Result<Group, HandoverError> {
        let commands = handover::parse_commands(bytes)?;
        Ok(self.keep_from(id, commands, true))
    }

    /// The commands of a group, for the node that writes. They stay here until they are answered.
    pub fn hand_over(&self, id: GroupId) -> Bytes {
        let commands = self.groups.get(&id).map(|kept| &kept.commands[..]);
        handover::encode_commands(commands.unwrap_or_default())
    }

    /// Answers the callers of a group by what this node has decided about it last.
    pub fn answer(&mut self, id: GroupId) {
        if let Some(kept) = self.take(id) {
            self.send(kept);
        }
    }

    /// What this node has decided last about a group of another node, which forgets the group here.
    pub fn results(&mut self, id: GroupId) -> Bytes {
        let outcomes = self.take(id).map(|kept| kept.outcomes);
        handover::encode_results(&outcomes.unwrap_or_default())
    }

    /// Answers the callers of a group by what the node has decided that it was handed to. After an error the group stays.
    pub fn answer_by_writer(&mut self, id: GroupId, results: &Bytes) -> Result<(), HandoverError> {
        let outcomes = handover::parse_results(results)?;
        let Some(kept) = self.groups.get(&id) else {
            return Ok(()); // it is answered
        };
        let fits = kept.commands.len() == outcomes.len()
            && kept
                .commands
                .iter()
                .zip(&outcomes)
                .all(|(command, outcome)| {
                    outcome.as_ref().map_or(true, |it| it.is_of(command)) // an error is of any
                });
        if !fits {
            return Err(HandoverError("the results are those of other commands"));
        }
        if let Some(kept) = self.take(id) {
            self.send(Kept { outcomes, ..kept });
        }
        Ok(())
    }

    /// Tells the callers of a group that it was not done, or may not have been.
    pub fn refuse(&mut self, id: GroupId, error: &WriteError) {
        for command in self.take(id).into_iter().flat_map(|kept| kept.commands) {
            command.refuse(error.clone());
        }
    }

    fn take(&mut self, id: GroupId) -> Option<Kept> {
        let kept = self.groups.remove(&id)?;
        if !self.origins.is_empty() {
            for draft in kept.commands.iter().flat_map(drafts_of) {
                self.origins.remove(&draft.event_id);
            }
        }
        Some(kept)
    }

    fn send(&mut self, kept: Kept) {
        let mut outcomes = kept.outcomes.into_iter();
        let mut erasures = Vec::new();
        for command in kept.commands {
            match outcomes.next() {
                Some(Ok(outcome)) => match command.became(outcome) {
                    Some(reply) if reply.is_of_erasure() => erasures.push(reply),
                    reply => reply.into_iter().for_each(PendingReply::send),
                },
                Some(Err(error)) => command.refuse(error),
                // It was never decided.
                None => command.refuse(WriteError::Closed),
            }
        }
        self.send_when_overwritten(erasures);
    }

    /// Sends the replies of erasures once all is overwritten here that was announced so far.
    fn send_when_overwritten(&mut self, replies: Vec<PendingReply>) {
        let log = &self.writer.store.log;
        match &self.writer.maintenance {
            Some(maintenance) if !replies.is_empty() && log.announced() > 0 => {
                log.note_announced(Vec::new());
                maintenance.overwrite(Overwriting {
                    found: Found::default(),
                    has_events: false,
                    replies,
                });
            }
            _ => replies.into_iter().for_each(PendingReply::send),
        }
    }
}

fn drafts_of(command: &Command) -> &[Draft] {
    match command {
        Command::Append(draft, _) => std::slice::from_ref(&**draft),
        Command::Release(_, drafts, _) => drafts,
        Command::Overdue(late, _) => std::slice::from_ref(&late.draft),
        _ => &[],
    }
}
