//! What a node tells the others of itself, and what it makes of what they tell: who is there, whose log differs, and whether the
//! stream has lost something that others have.

use std::time::{Duration, Instant};

use super::{
    driver::Driver,
    presence::{Mismatch, Presence},
    state::Found,
    upkeep::STALE_MAX,
};
use crate::{cluster::Input, store::Publish};

/// The stream's leader is asked every two seconds. What it said before that says nothing of now.
const LOOK_OLD: Duration = Duration::from_secs(5);

impl<P: Publish> Driver<P> {
    pub(super) fn presence(&self) -> Presence {
        let problem = self.state.problem_of_callbacks(&self.replica.health());
        let is_ready = !self.is_draining && problem.is_none();
        let position = self.protocol.position();
        let (clock, common) = (
            self.replica.machine_micros(),
            self.common.at(position.epoch),
        );
        Presence::of(self.me, self.stream_id, position, is_ready, clock, common)
    }

    /// Tells the others.
    pub(super) fn show(&self) {
        self.stream.presence(self.presence().encode());
    }

    /// Before anything is written: a process that was stopped, or a connection that was lost, may have missed what others wrote.
    pub(super) fn look_whether_deaf(&mut self) {
        if self.timing.goes_deaf(Instant::now()) {
            tracing::debug!(
                "no node was heard for some time: before this one writes, it listens to them"
            );
            self.heard.lacks_since = None;
            self.state.set_listened(false);
            self.feed(Input::Deaf);
        }
    }

    pub(super) fn has_listened(&mut self) {
        let found = self.stream.state().stream.map_or(0, |stream| stream.last);
        let last = found.max(self.protocol.position().seen);
        self.feed(Input::Listened { last });
        self.state.set_listened(true);
    }

    pub(super) fn heard(&mut self, node: &str, bytes: &[u8]) {
        self.timing.hears(Instant::now());
        let Some(presence) = Presence::parse(bytes) else {
            return; // of a version that says it otherwise
        };
        let mine = self.presence();
        if presence.author == mine.author {
            return;
        }
        let mismatch = mine.mismatch(&presence);
        let differs = self.metrics.cluster_mismatch.with_label_values(&["chain"]);
        if mismatch == Some(Mismatch::Chain) && differs.get() == 0 {
            differs.set(1);
            tracing::error!(
                node,
                frame = mine.frame,
                "another node has another log at the same frame: find out which is right before anything is written"
            );
        }
        if mismatch != Some(Mismatch::Stream) {
            self.heed(node, presence.frame);
        }
        let found = Found {
            mismatch,
            differences: mine.differences(&presence),
            clock_micros: mine.clock_micros.unwrap_or_default(),
        };
        let news = self.state.heard(node.to_owned(), presence, found);
        if let Some(differences) = news.differences {
            note_differences(node, &differences);
        }
        if !news.is_new {
            return;
        }
        if node == self.node {
            tracing::warn!(
                node,
                "another node has this node's name: give each its own (--node)"
            );
        } else if mismatch == Some(Mismatch::Stream) {
            tracing::warn!(
                node,
                "a node is there whose log was read from another stream: what it has does not count"
            );
        } else {
            tracing::info!(node, "a node of the cluster is there");
        }
    }

    /// Another node of this stream has this frame.
    fn heed(&mut self, node: &str, frame: u64) {
        let before = self.protocol.heard();
        self.feed(Input::Heard { frame });
        let newest = self.protocol.heard();
        if newest > before {
            node.clone_into(&mut self.heard.from);
            self.state.set_heard(newest);
        }
    }

    /// Finds a stream that has lost its end, where this node has no more than that: others have.
    pub(super) fn compare_heard(&mut self) {
        let (heard, stream) = (self.protocol.heard(), self.stream.state());
        let is_old = |at: Instant| at.elapsed() >= LOOK_OLD;
        let last = stream.stream.map_or(0, |stream| stream.last);
        self.state.set_heard(heard); // the log may have gone on
        let is_there = heard <= last.max(self.protocol.position().seen);
        if is_there || stream.looked_at.is_none_or(is_old) {
            self.heard.lacks_since = None;
            return;
        }
        let since = *self.heard.lacks_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= STALE_MAX {
            let from = &self.heard.from;
            let why = format!(
                "hole: the stream ends with message {last}, and node {from} has message {heard}"
            );
            self.halt(&why);
        }
    }
}

fn note_differences(node: &str, differences: &[String]) {
    if differences.is_empty() {
        tracing::info!(node, "another node differs from this one no more");
        return;
    }
    tracing::warn!(
        node,
        differs = differences.join(", "),
        "another node differs from this one in what should be the same on all: the node that writes decides by its own"
    );
}
