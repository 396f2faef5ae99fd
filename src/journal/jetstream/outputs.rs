//! Carries out what the protocol says, in order.

use std::{collections::VecDeque, time::Instant};

use super::{driver::Driver, reply::HandoverReply};
use crate::{
    cluster::{Author, Encoded, Frame, GroupId, Input, Output, Refusal, Reply, Stop, ToldBy},
    store::{Publish, WriteError},
};

/// Bytes of a frame beside its entries, and of a request beside its operations: far more than there are.
const ENVELOPE_BYTES: usize = 1_024;

impl<P: Publish> Driver<P> {
    /// Tells the protocol what has happened, and does what it says, and so on until there is nothing to do.
    pub(super) fn feed(&mut self, input: Input) {
        if self.halted.is_some() {
            return; // what is not applied must not count as seen
        }
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.protocol.handle(input) {
                if self.halted.is_some() {
                    return; // everything that waits is refused already
                }
                self.carry_out(output, &mut inputs);
            }
        }
        self.note_doubt();
    }

    fn carry_out(&mut self, output: Output, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Decide {
                on,
                groups,
                must_write,
            } => self.decide(on, &groups, must_write, inputs),
            Output::Publish { expected, frame } => self.publish(expected, frame),
            Output::Fetch { sequence } => self.stream.fetch(sequence),
            Output::Apply { sequence, frame } => self.apply(sequence, &frame),
            Output::Skipped { sequence, is_void } => self.skipped(sequence, is_void),
            Output::HandOver { group, to } => self.hand_over(group, to, inputs),
            Output::Answer { group, through, by } => self.answer(group, through, by),
            Output::Refuse { group, why } => self.refused(group, why),
            Output::Reconnect => self.reconnect(),
            Output::Stopped(stop) => self.stopped(stop),
        }
    }

    /// Has the store decide. What it cannot write is refused, and then there is nothing to write.
    fn decide(
        &mut self,
        on: u64,
        groups: &[GroupId],
        must_write: bool,
        inputs: &mut VecDeque<Input>,
    ) {
        let proposed = self.replica.propose(groups, must_write);
        let bytes_max = self.message_bytes_max.saturating_sub(ENVELOPE_BYTES);
        let error = match proposed {
            Ok(Some(contents)) if contents.entries.bytes().len() > bytes_max => {
                WriteError::TooLarge
            }
            Ok(contents) => {
                inputs.push_back(Input::Decided { on, contents });
                return;
            }
            Err(error) => error,
        };
        for id in groups {
            if let Some(open) = self.groups.get_mut(*id) {
                open.error = Some(error.clone());
            }
            inputs.push_back(Input::GiveUp(*id));
        }
        let contents = None;
        inputs.push_back(Input::Decided { on, contents });
    }

    fn publish(&mut self, expected: u64, frame: Encoded) {
        self.timing.published(frame.chain, Instant::now());
        self.stream.publish(expected, frame.chain, frame.bytes);
    }

    fn apply(&mut self, sequence: u64, frame: &Frame) {
        let author = frame.contents.author;
        if let Err(error) = self.replica.apply(sequence, frame) {
            return self.halt(&error.to_string());
        }
        let now = Instant::now();
        self.timing.applied(now);
        self.ahead_since = None;
        // One frame forgets only so much. One that could forget nothing is not repeated at once.
        if author == self.me && frame.contents.removes_something() && self.replica.needs_frame() {
            self.timing.write_soon(now);
        }

        let what = if author == self.me {
            "written"
        } else {
            "applied"
        };
        self.metrics.cluster_frames.with_label_values(&[what]).inc();
        if author == self.me
            && let Some(doubt) = self.timing.doubt()
            && doubt.chain == frame.header.chain
        {
            let seconds = now.duration_since(doubt.began).as_secs_f64();
            self.metrics.cluster_frame_seconds.observe(seconds);
        }
        self.note_writer(sequence, author, &frame.contents.name);
    }

    fn note_writer(&self, sequence: u64, author: Author, name: &str) {
        let Some(before) = self.state.applied(sequence, author, name) else {
            return;
        };
        if author != self.me {
            tracing::info!(node = name, before, "another node writes the cluster's log");
            return;
        }
        tracing::info!(before, "this node writes the cluster's log");
        if before.is_some() {
            self.metrics.cluster_takeovers.inc();
        }
    }

    fn skipped(&self, sequence: u64, is_void: bool) {
        self.state.skipped(sequence);
        let what = if is_void { "void" } else { "foreign" };
        self.metrics.cluster_frames.with_label_values(&[what]).inc();
        if is_void {
            tracing::warn!(
                sequence,
                "the stream has stored a frame that was too late, and nobody applies it: is it JetStream's own check that has failed?"
            );
        } else {
            tracing::error!(
                sequence,
                "somebody else has published to the cluster's subject: take the right to do so away"
            );
        }
    }

    fn hand_over(&mut self, group: GroupId, to: Author, inputs: &mut VecDeque<Input>) {
        let bytes = self.replica.hand_over(group);
        let fits = bytes.len() + ENVELOPE_BYTES <= self.message_bytes_max;
        if !fits || !self.stream.request(group, to, bytes) {
            let reply = Reply::Nothing;
            inputs.push_back(Input::Replied { group, reply });
        }
    }

    fn answer(&mut self, group: GroupId, through: u64, by: ToldBy) {
        let Some(open) = self.groups.remove(group) else {
            return;
        };
        match (open.request, by) {
            (Some(request), _) => {
                let results = self.replica.results(group);
                let reply = HandoverReply::Written { through, results };
                self.stream.reply(request, reply.encode());
            }
            (None, ToldBy::ThisNode) => self.replica.answer(group),
            (None, ToldBy::Writer) => {
                let results = open.results.unwrap_or_default();
                if let Err(problem) = self.replica.answer_by_writer(group, &results) {
                    tracing::error!(%problem, "the writer's answer cannot be read: it was done, and its callers are told that it may have been");
                    self.replica
                        .refuse(group, &WriteError::Away(problem.to_string()));
                }
            }
        }
    }

    fn refused(&mut self, group: GroupId, why: Refusal) {
        let error = self
            .groups
            .get_mut(group)
            .and_then(|open| open.error.take());
        let error = error.unwrap_or_else(|| {
            let why = match why {
                Refusal::NotWriter => "another node writes",
                Refusal::GaveUp => "it has not answered in time",
                Refusal::Stopped => "this node does not follow it any more",
            };
            WriteError::Away(why.to_owned())
        });
        self.refuse(group, &error);
    }

    /// Refuses a group. Its callers get the error; another node hears that this one does not write.
    pub(super) fn refuse(&mut self, group: GroupId, error: &WriteError) {
        let Some(open) = self.groups.remove(group) else {
            return;
        };
        if let Some(request) = open.request {
            self.stream
                .reply(request, HandoverReply::NotWriter.encode());
        }
        self.replica.refuse(group, error);
    }

    fn reconnect(&mut self) {
        // At a start it may be that nobody has written for long: that says nothing about the connection.
        if !std::mem::replace(&mut self.has_been_silent, true) && self.protocol.writer().is_none() {
            return;
        }
        tracing::warn!(
            "no frame of the cluster's stream has come for too long: connecting to the next server, and trying to write one"
        );
        self.metrics
            .cluster_reconnects
            .with_label_values(&["silent"])
            .inc();
        self.stream.reconnect();
    }

    fn stopped(&mut self, stop: Stop) {
        self.halt(&match stop {
            Stop::Hole(hole) => format!("hole: {hole}"),
            Stop::Upgrade { format } => format!(
                "the stream has a frame of format {format}, which a later version reads: upgrade this node"
            ),
            Stop::Unfit(problem) => format!("this node has decided what nobody may apply ({problem})"),
        });
    }

    /// Shows whether a frame is in doubt.
    fn note_doubt(&mut self) {
        let is_in_doubt = self.protocol.in_doubt().is_some();
        self.state.set_in_doubt(is_in_doubt);
        if !is_in_doubt && let Some(lasted) = self.timing.resolved(Instant::now()) {
            let seconds = lasted.as_secs_f64();
            tracing::info!(seconds, "it is known what became of the frame in doubt");
        }
    }
}
