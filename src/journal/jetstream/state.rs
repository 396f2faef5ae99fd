//! What the rest of the broker sees of its part in the cluster: whether it is ready, who writes, which nodes there are.
//!
//! The driver keeps it up to date; probes, metrics and the banner read it. Nothing is decided by it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::presence::Presence;
use crate::cluster::Author;

/// Without a frame for so long, a node is not ready: the writer sends one every two seconds, and another node takes over after
/// seven.
const FRESH: Duration = Duration::from_secs(6);
/// A node that has said nothing for so long is taken to be gone. They speak every two seconds.
const GONE: Duration = Duration::from_secs(7);

/// See the module's description.
#[derive(Debug)]
pub struct ClusterState {
    node: String,
    me: Author,
    state: Mutex<State>,
    /// Wakes reads that wait for messages of the stream.
    sees: Notify,
}

#[derive(Debug)]
struct State {
    started_at: Instant,
    applied_at: Option<Instant>,
    seen: u64,
    /// The stream's last message, as it was last heard.
    last: u64,
    /// How many it has, and how many it may have.
    stream_bytes: (u64, u64),
    /// The stream's last message at the start.
    catches_up_to: u64,
    /// It has all that the log retains.
    is_complete: bool,
    is_connected: bool,
    in_doubt: bool,
    /// Why nobody has said what became of the frame that was in doubt last.
    doubt: String,
    writer: Option<(Author, String)>,
    others: BTreeMap<String, (Instant, Presence)>,
    stopped: Option<String>,
}

/// The cluster, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// The nodes that are there, this one first.
    pub nodes: Vec<String>,
    /// The node that wrote the last frame; `None` if this node has applied none since its start.
    pub writer: Option<String>,
    /// Messages of the stream that this node has not seen yet.
    pub behind: u64,
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// Bytes that it may have.
    pub stream_bytes_max: u64,
}

impl ClusterState {
    /// Of a node that has just started. It is not ready before it has the stream up to `last`, the stream's last message.
    pub(super) fn new(node: String, me: Author, seen: u64, last: u64) -> Self {
        let state = State {
            started_at: Instant::now(),
            applied_at: None,
            seen,
            last,
            stream_bytes: (0, 0),
            catches_up_to: last,
            is_complete: true,
            is_connected: true,
            in_doubt: false,
            doubt: String::new(),
            writer: None,
            others: BTreeMap::new(),
            stopped: None,
        };
        Self {
            node,
            me,
            state: Mutex::new(state),
            sees: Notify::new(),
        }
    }

    /// Why callbacks would be refused, if they would: this node follows no more, or no frame has come for too long, or it has not
    /// caught up with the stream yet.
    pub fn problem(&self) -> Option<String> {
        let state = self.state.lock();
        if let Some(stopped) = &state.stopped {
            return Some(stopped.clone());
        }
        if state.seen < state.catches_up_to {
            let (seen, to) = (state.seen, state.catches_up_to);
            return Some(format!(
                "it catches up with the stream: message {seen} of {to}"
            ));
        }
        if !state.is_complete {
            let why = "it has joined, and lacks what the other nodes are about to forget or to write again";
            return Some(why.to_owned());
        }
        let since = state.applied_at.unwrap_or(state.started_at).elapsed();
        if state.applied_at.is_some() && since < FRESH {
            return None;
        }

        let seconds = since.as_secs();
        Some(match (state.is_connected, state.in_doubt) {
            (false, _) => format!("NATS cannot be reached, and no frame has come for {seconds} s"),
            (true, true) => format!(
                "the stream takes no frame ({}), and none has come for {seconds} s",
                state.doubt
            ),
            (true, false) => format!("no frame of the stream has come for {seconds} s"),
        })
    }

    /// Whether this node has written the last frame. One that has seen no frame since its start does not know who writes.
    pub fn is_writer(&self) -> bool {
        let state = self.state.lock();
        state.stopped.is_none() && matches!(&state.writer, Some((author, _)) if *author == self.me)
    }

    /// Which nodes there are, and who writes.
    pub fn overview(&self) -> Overview {
        let state = self.state.lock();
        let others = state
            .others
            .iter()
            .filter(|(_, (heard_at, _))| heard_at.elapsed() < GONE)
            .map(|(node, _)| node.clone());
        Overview {
            nodes: [self.node.clone()].into_iter().chain(others).collect(),
            writer: state.writer.as_ref().map(|(_, name)| name.clone()),
            behind: state.last.saturating_sub(state.seen),
            stream_bytes: state.stream_bytes.0,
            stream_bytes_max: state.stream_bytes.1,
        }
    }

    /// Whether the servers can be reached.
    pub fn is_connected(&self) -> bool {
        self.state.lock().is_connected
    }

    /// Whether nobody has said yet what became of a frame of this node.
    pub fn is_in_doubt(&self) -> bool {
        self.state.lock().in_doubt
    }

    /// Whether this node follows the stream no more.
    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped.is_some()
    }

    /// The last message of the stream that this node has seen.
    pub(super) fn seen(&self) -> u64 {
        self.state.lock().seen
    }

    /// Waits until this node has seen a message of the stream.
    pub(super) async fn has_seen(&self, sequence: u64) {
        loop {
            // First, so that no message is missed between the look and the wait.
            let sees = self.sees.notified();
            if self.state.lock().seen >= sequence {
                return;
            }
            sees.await;
        }
    }

    /// A frame was applied. Returns the name of the writer before, if there was another.
    pub(super) fn applied(
        &self,
        sequence: u64,
        author: Author,
        name: &str,
    ) -> Option<Option<String>> {
        let mut state = self.state.lock();
        state.applied_at = Some(Instant::now());
        state.seen = sequence;
        state.last = state.last.max(sequence);
        self.sees.notify_waiters();
        if state
            .writer
            .as_ref()
            .is_some_and(|(writer, _)| *writer == author)
        {
            return None;
        }
        let before = state.writer.replace((author, name.to_owned()));
        Some(before.map(|(_, name)| name))
    }

    /// A message was passed over.
    pub(super) fn skipped(&self, sequence: u64) {
        let mut state = self.state.lock();
        state.seen = sequence;
        state.last = state.last.max(sequence);
        self.sees.notify_waiters();
    }

    /// The stream as it is now.
    pub(super) fn set_stream(&self, last: u64, bytes: u64, bytes_max: u64) {
        let mut state = self.state.lock();
        state.last = state.last.max(last);
        state.stream_bytes = (bytes, bytes_max);
    }

    pub(super) fn set_complete(&self, is_complete: bool) {
        self.state.lock().is_complete = is_complete;
    }

    pub(super) fn set_connected(&self, is_connected: bool) {
        self.state.lock().is_connected = is_connected;
    }

    pub(super) fn set_doubt(&self, why: &str) {
        let mut state = self.state.lock();
        if state.doubt != why {
            why.clone_into(&mut state.doubt);
        }
    }

    pub(super) fn set_in_doubt(&self, in_doubt: bool) {
        self.state.lock().in_doubt = in_doubt;
    }

    /// This node follows no more. The first reason stays.
    pub(super) fn stop(&self, why: String) {
        self.state.lock().stopped.get_or_insert(why);
    }

    /// Another node has spoken. Returns true if it was not there before.
    pub(super) fn heard(&self, node: String, presence: Presence) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        state
            .others
            .retain(|_, (heard_at, _)| heard_at.elapsed() < GONE);
        state.others.insert(node, (now, presence)).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Author = Author(1);
    const OTHER: Author = Author(2);

    #[test]
    fn a_node_is_ready_when_it_has_caught_up_and_frames_come() {
        let state = ClusterState::new("a".into(), ME, 3, 5);
        assert!(state.problem().unwrap().contains("message 3 of 5"));
        state.applied(4, OTHER, "b");
        assert!(state.problem().unwrap().contains("message 4 of 5"));
        state.skipped(5);
        assert_eq!(state.problem(), None);
        state.state.lock().applied_at = Instant::now().checked_sub(FRESH);
        assert!(state.problem().unwrap().contains("no frame"));
        state.set_connected(false);
        assert!(state.problem().unwrap().contains("NATS cannot be reached"));
        state.applied(6, OTHER, "b");
        assert_eq!(state.problem(), None);
        state.stop("a hole".into());
        state.stop("another".into());
        assert_eq!(state.problem().as_deref(), Some("a hole"));
    }

    #[test]
    fn the_author_of_the_last_frame_is_the_writer() {
        let state = ClusterState::new("a".into(), ME, 0, 0);
        assert!(!state.is_writer());
        assert_eq!(state.applied(1, ME, "a"), Some(None));
        assert!(state.is_writer());
        assert_eq!(state.applied(2, ME, "a"), None);
        assert_eq!(state.applied(3, OTHER, "b"), Some(Some("a".into())));
        assert!(!state.is_writer());
        assert_eq!(state.overview().writer.as_deref(), Some("b"));
    }
}
