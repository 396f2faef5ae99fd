//! What the rest of the broker sees of its part in the cluster: whether it is ready, who writes, which nodes there are.
//!
//! The driver keeps it up to date; probes, metrics and the banner read it. Nothing is decided by it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    common::kind_of,
    lag::Lag,
    presence::{Mismatch, Presence},
    skew::Skew,
};
use crate::{cluster::Author, store::Health};

/// Without a frame for so long, a node is not ready: the writer sends one every two seconds, and another node takes over after
/// seven.
const FRESH: Duration = Duration::from_secs(6);
/// A node that has said nothing for so long is taken to be gone. They speak every two seconds.
const GONE: Duration = Duration::from_secs(7);
/// So long a node is shown that is gone: somebody may look for it.
const AWAY: Duration = Duration::from_secs(60 * 60);
/// Other nodes that are remembered. Beyond, the one that was silent for longest is forgotten.
const OTHERS_MAX: usize = 64;

/// See the module's description.
#[derive(Debug)]
pub struct ClusterState {
    node: String,
    me: Author,
    state: Mutex<State>,
    /// Wakes reads that wait for messages of the stream, or for what other nodes say.
    sees: Notify,
    /// The process has to start anew.
    starts_anew: Notify,
}

#[derive(Debug)]
struct State {
    started_at: Instant,
    applied_at: Option<Instant>,
    seen: u64,
    /// The stream's last message, as it was last heard.
    last: u64,
    lag: Lag,
    /// How many it has, and how many it may have.
    stream_bytes: (u64, u64),
    /// The stream's last message at the start.
    catches_up_to: u64,
    /// It has all that the log retains.
    is_complete: bool,
    /// Why the stream is not found yet.
    awaited: Option<String>,
    is_connected: bool,
    /// Every node that is there has said what it has.
    has_listened: bool,
    /// The newest message that another node has, by its word, as far as that counts.
    heard: u64,
    in_doubt: bool,
    /// Why nobody has said what became of the frame that was in doubt last.
    doubt: String,
    writer: Option<(Author, String)>,
    others: BTreeMap<String, Other>,
    stopped: Option<String>,
}

/// What another node has last said of itself.
#[derive(Debug)]
struct Other {
    heard_at: Instant,
    presence: Presence,
    /// Messages of the stream that it had not seen then.
    behind: u64,
    /// What has differed at least once since its start, and must not.
    mismatch: Option<Mismatch>,
    /// What else differs from this node, as it has last said.
    differences: Vec<String>,
    skew: Skew,
}

/// What one node finds of another.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What differs and must not.
    pub mismatch: Option<Mismatch>,
    /// What should be the same on all, and is not.
    pub differences: Vec<String>,
    /// What this machine's clock says, in microseconds since 1970.
    pub clock_micros: i64,
}

/// What is new about another node that has spoken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// It was not there before.
    pub is_new: bool,
    /// What differs from this node, if that is something else than before.
    pub differences: Option<Vec<String>>,
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

/// Another node, for people: as it was when it last showed itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherNode {
    /// Its name.
    pub name: String,
    /// What runs there.
    pub version: String,
    /// The place of its newest event, if its version tells it.
    pub place: Option<u64>,
    /// Messages of the stream that it had not seen, as far as this node knew.
    pub behind: u64,
    /// Whether it took callbacks, if its version tells it.
    pub is_ready: Option<bool>,
    /// In what it differs from this node: `chain` or `stream`, if it was seen to, keys of the configuration, `credentials`.
    pub mismatches: Vec<String>,
    /// For how long it has not spoken, if it is taken to be gone.
    pub away: Option<Duration>,
}

impl ClusterState {
    /// Of a node that has just started. It is not ready before it has the stream up to `last`, the stream's last message.
    pub(super) fn new(node: String, me: Author, seen: u64, last: u64) -> Self {
        let started_at = Instant::now();
        let mut lag = Lag::default();
        lag.ends(started_at, last);
        lag.seen(seen);
        let state = State {
            started_at,
            applied_at: None,
            seen,
            last,
            lag,
            stream_bytes: (0, 0),
            catches_up_to: last,
            is_complete: true,
            awaited: None,
            is_connected: true,
            has_listened: false,
            heard: 0,
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
            starts_anew: Notify::new(),
        }
    }

    /// Why callbacks would be refused, if they would: this node follows no more, or no frame has come for too long, or it has not
    /// caught up with the stream yet.
    pub fn problem(&self) -> Option<String> {
        let state = self.state.lock();
        if let Some(stopped) = &state.stopped {
            return Some(stopped.clone());
        }
        if let Some(why) = &state.awaited {
            return Some(format!(
                "it has started without the cluster's stream: {why}"
            ));
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
            (true, _) if !state.has_listened => format!(
                "it listens to what other nodes have, and no frame has come for {seconds} s"
            ),
            (false, _) => format!("NATS cannot be reached, and no frame has come for {seconds} s"),
            (true, true) => format!(
                "the stream takes no frame ({}), and none has come for {seconds} s",
                state.doubt
            ),
            (true, false) => format!("no frame of the stream has come for {seconds} s"),
        })
    }

    /// Why callbacks would be refused, if they would: because of this node's own disk, or as [`Self::problem`] says.
    pub(crate) fn problem_of_callbacks(&self, health: &Health) -> Option<String> {
        match health {
            Health::Writable => self.problem(),
            Health::DiskLow {
                free_bytes,
                needed_bytes,
            } => Some(format!(
                "{free_bytes} bytes of disk are free, {needed_bytes} must be: free some space"
            )),
            Health::Failed(problem) => Some(format!("writing to the store failed ({problem})")),
        }
    }

    /// Whether this node has written the last frame. One that has seen no frame since its start does not know who writes.
    pub fn is_writer(&self) -> bool {
        let state = self.state.lock();
        state.stopped.is_none() && matches!(&state.writer, Some((author, _)) if *author == self.me)
    }

    /// Which nodes there are, and who writes.
    pub fn overview(&self) -> Overview {
        let state = self.state.lock();
        let others = state.there().map(|(node, _)| node.clone());
        Overview {
            nodes: [self.node.clone()].into_iter().chain(others).collect(),
            writer: state.writer.as_ref().map(|(_, name)| name.clone()),
            behind: state.last.saturating_sub(state.seen),
            stream_bytes: state.stream_bytes.0,
            stream_bytes_max: state.stream_bytes.1,
        }
    }

    /// The other nodes that are there, or were there lately.
    pub fn others(&self) -> Vec<OtherNode> {
        let node = |(name, other): (&String, &Other)| OtherNode {
            name: name.clone(),
            version: other.presence.version.clone(),
            place: other.presence.place,
            behind: other.behind,
            is_ready: other.presence.ready,
            mismatches: (other.mismatch.map(|it| it.name().to_owned()).into_iter())
                .chain(other.differences.iter().cloned())
                .collect(),
            away: other.away(),
        };
        let state = self.state.lock();
        let known = state.others.iter();
        let lately = known.filter(|(_, other)| other.heard_at.elapsed() < AWAY);
        lately.map(node).collect()
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How long ago the stream had the oldest message that this node has not seen, as far as it has heard.
    pub fn lag_time(&self) -> Duration {
        self.state.lock().lag.time(Instant::now())
    }

    /// Whether another node differs in what should be the same on all, as it has last said; by the word for it.
    pub fn mismatches(&self) -> [(&'static str, bool); 2] {
        let state = self.state.lock();
        ["configuration", "credentials"].map(|what| {
            let is_so = |difference: &String| kind_of(difference) == what;
            let mut there = state.there();
            let is_there = there.any(|(_, other)| other.differences.iter().any(is_so));
            (what, is_there)
        })
    }

    /// How far the clock of another node is from this one's, at most.
    pub fn clock_skew(&self) -> Duration {
        let state = self.state.lock();
        let micros = state.there().map(|(_, other)| other.skew.micros());
        Duration::from_micros(micros.max().unwrap_or_default())
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

    /// The last message that the stream is known to have had.
    pub(super) fn last(&self) -> u64 {
        let state = self.state.lock();
        state.last.max(state.seen).max(state.heard)
    }

    /// The stream has had this message, by another node's word.
    pub(super) fn set_heard(&self, sequence: u64) {
        self.state.lock().heard = sequence;
    }

    /// Whether every node that is there has said what it has.
    pub(super) fn set_listened(&self, has_listened: bool) {
        self.state.lock().has_listened = has_listened;
        self.sees.notify_waiters();
    }

    /// Waits until this node knows what other nodes have.
    pub(super) async fn has_listened(&self) {
        self.comes_to(|state| state.has_listened).await;
    }

    /// Waits until the stream has left this node behind, so that only a new start can go on. One may wait.
    pub async fn has_to_start_anew(&self) {
        self.starts_anew.notified().await;
    }

    pub(super) fn start_anew(&self) {
        self.starts_anew.notify_one();
    }

    /// Waits until this node has seen a message of the stream.
    pub(super) async fn has_seen(&self, sequence: u64) {
        self.comes_to(|state| state.seen >= sequence).await;
    }

    async fn comes_to(&self, is_there: impl Fn(&State) -> bool) {
        loop {
            // First, so that nothing is missed between the look and the wait.
            let sees = self.sees.notified();
            if is_there(&self.state.lock()) {
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
        state.see(sequence);
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
        self.state.lock().see(sequence);
        self.sees.notify_waiters();
    }

    /// The stream as it is now.
    pub(super) fn set_stream(&self, last: u64, bytes: u64, bytes_max: u64) {
        let mut state = self.state.lock();
        state.last = state.last.max(last);
        if last > state.seen {
            state.lag.ends(Instant::now(), last);
        }
        state.stream_bytes = (bytes, bytes_max);
    }

    pub(super) fn set_complete(&self, is_complete: bool) {
        self.state.lock().is_complete = is_complete;
    }

    pub(super) fn set_connected(&self, is_connected: bool) {
        self.state.lock().is_connected = is_connected;
    }

    /// The stream is not found, for this reason. Returns whether it is another one than before.
    pub(super) fn awaits_stream(&self, why: String) -> bool {
        let mut state = self.state.lock();
        state.is_connected = false;
        let is_new = state.awaited.as_ref() != Some(&why);
        state.awaited = Some(why);
        is_new
    }

    /// It is found, and this is its last message.
    pub(super) fn found_stream(&self, last: u64) {
        let mut state = self.state.lock();
        state.awaited = None;
        state.is_connected = true;
        (state.last, state.catches_up_to) = (last, last);
        state.started_at = Instant::now();
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

    /// Another node has spoken.
    pub(super) fn heard(&self, node: String, presence: Presence, found: Found) -> News {
        let mut state = self.state.lock();
        let before = state.others.remove(&node);
        let differed = before.as_ref().map(|it| &it.differences[..]);
        let news = News {
            is_new: before.as_ref().is_none_or(|it| it.away().is_some()),
            differences: (differed.unwrap_or_default() != found.differences)
                .then(|| found.differences.clone()),
        };

        let same = before.filter(|it| it.presence.author == presence.author);
        let (mismatch, mut skew) = same.map(|it| (it.mismatch, it.skew)).unwrap_or_default();
        if let Some(theirs) = presence.clock_micros {
            skew.shown(theirs, found.clock_micros);
        }
        let other = Other {
            heard_at: Instant::now(),
            behind: state.last.saturating_sub(presence.seen),
            mismatch: found.mismatch.or(mismatch),
            differences: found.differences,
            skew,
            presence,
        };
        state.others.insert(node, other);
        if state.others.len() > OTHERS_MAX {
            state.forget_the_oldest();
        }
        news
    }
}

impl Other {
    /// For how long it has said nothing, if it is taken to be gone.
    fn away(&self) -> Option<Duration> {
        let silent = self.heard_at.elapsed();
        (silent >= GONE).then_some(silent)
    }
}

impl State {
    /// This node has seen the stream up to this message.
    fn see(&mut self, sequence: u64) {
        self.seen = sequence;
        self.last = self.last.max(sequence);
        self.lag.seen(sequence);
    }

    /// The other nodes that have spoken lately.
    fn there(&self) -> impl Iterator<Item = (&String, &Other)> {
        let others = self.others.iter();
        others.filter(|(_, other)| other.away().is_none())
    }

    /// Forgets the other node that has been silent for longest.
    fn forget_the_oldest(&mut self) {
        let others = self.others.iter();
        let oldest = others.min_by_key(|(_, other)| other.heard_at);
        if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
            self.others.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Position, StreamId},
        event::Epoch,
        journal::jetstream::Common,
    };

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
    fn a_node_that_has_not_found_the_stream_is_not_ready_and_catches_up_once_it_has() {
        let state = ClusterState::new("a".into(), ME, 3, 3);
        assert!(state.awaits_stream("nobody answers".into()));
        assert!(!state.awaits_stream("nobody answers".into()));
        assert!(state.problem().unwrap().contains("nobody answers"));
        assert!(!state.is_connected());
        state.found_stream(5);
        assert!(state.is_connected());
        assert!(state.problem().unwrap().contains("message 3 of 5"));
        state.applied(4, OTHER, "b");
        state.applied(5, OTHER, "b");
        assert_eq!(state.problem(), None);
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

    fn said(author: Author, seen: u64) -> Presence {
        let (position, common) = (Position::start(Epoch(7)), Common::default());
        Presence {
            seen,
            ..Presence::of(author, StreamId(3), &position, true, 0, common)
        }
    }

    #[test]
    fn another_node_is_shown_as_it_last_spoke_and_differs_until_it_starts_again() {
        let found = |mismatch, seconds: i64| Found {
            mismatch,
            clock_micros: seconds * 1_000_000,
            ..Found::default()
        };
        let state = ClusterState::new("a".into(), ME, 5, 5);
        let chain = Some(Mismatch::Chain);
        assert!(
            state
                .heard("b".into(), said(OTHER, 3), found(chain, 0))
                .is_new
        );
        let others = state.others();
        assert_eq!((others[0].name.as_str(), others[0].behind), ("b", 2));
        assert_eq!(others[0].is_ready, Some(true));
        assert_eq!(others[0].mismatches, ["chain"]);

        let news = state.heard("b".into(), said(OTHER, 5), found(None, 7));
        assert_eq!(news, News::default());
        assert_eq!(state.others()[0].behind, 0);
        assert_eq!(state.others()[0].mismatches, ["chain"]);
        assert_eq!(state.clock_skew(), Duration::ZERO, "it was late");
        state.heard("b".into(), said(Author(3), 5), found(None, 9));
        assert!(state.others()[0].mismatches.is_empty());
        assert_eq!(state.clock_skew(), Duration::from_secs(9));
    }

    #[test]
    fn each_change_of_what_differs_is_noted_once() {
        let state = ClusterState::new("a".into(), ME, 5, 5);
        let hear = |node: &str, differences: &[&str]| {
            let differences = differences.iter().map(|it| (*it).to_owned()).collect();
            let found = Found {
                differences,
                ..Found::default()
            };
            state.heard(node.into(), said(OTHER, 5), found).differences
        };
        assert_eq!(hear("b", &[]), None);
        assert_eq!(hear("b", &["log.x"]), Some(vec!["log.x".to_owned()]));
        assert_eq!(hear("b", &["log.x"]), None);
        assert_eq!(
            state.mismatches(),
            [("configuration", true), ("credentials", false)]
        );
        assert_eq!(hear("c", &["credentials"]).unwrap(), ["credentials"]);
        assert_eq!(state.others()[1].mismatches, ["credentials"]);
        assert!(state.mismatches().iter().all(|(_, is_so)| *is_so));
        assert_eq!(hear("b", &[]), Some(vec![]));
        assert_eq!(
            state.mismatches(),
            [("configuration", false), ("credentials", true)]
        );
    }

    #[test]
    fn a_node_that_is_gone_is_shown_for_an_hour_and_counts_no_more() {
        let state = ClusterState::new("a".into(), ME, 5, 5);
        let hear = |node: &str| {
            let found = Found::default();
            state.heard(node.into(), said(OTHER, 5), found).is_new
        };
        assert!(hear("b"));
        assert!(!hear("b"));
        assert_eq!(
            (state.overview().nodes.len(), state.others()[0].away),
            (2, None)
        );

        let ago = |silent: Duration| {
            let mut state = state.state.lock();
            let other = state.others.get_mut("b").unwrap();
            other.heard_at = Instant::now().checked_sub(silent).unwrap();
        };
        ago(GONE);
        assert!(state.others()[0].away.unwrap() >= GONE);
        assert_eq!(state.overview().nodes, ["a"]);
        ago(AWAY);
        assert!(state.others().is_empty());
        assert!(hear("b"), "it is there again");

        ago(GONE);
        for number in 0..OTHERS_MAX {
            hear(&format!("n{number}"));
        }
        let others = state.others();
        assert_eq!(others.len(), OTHERS_MAX);
        assert!(others.iter().all(|other| other.name != "b"));
    }

    #[test]
    fn a_full_disk_comes_before_what_the_stream_says() {
        let state = ClusterState::new("a".into(), ME, 3, 5);
        let problem = state.problem_of_callbacks(&Health::Failed("EIO".into()));
        assert!(problem.unwrap().contains("EIO"));
        assert_eq!(
            state.problem_of_callbacks(&Health::Writable),
            state.problem()
        );
    }
}
