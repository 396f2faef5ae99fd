//! The thread of a node's journal: waits for operations, for NATS and for what is due, and tells the protocol what has happened.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{runtime, sync::mpsc};

use super::{
    Jetstream, SayCommon, Times,
    open_groups::OpenGroups,
    presence::Heard,
    reply::HandoverReply,
    state::ClusterState,
    timing::{Due, Timing},
};
use crate::{
    cluster::{Author, Group, GroupId, Input, Limits, Protocol, Reply, StreamId},
    metrics::Metrics,
    nats::{Doubt, Event, Events, Handle, Nats, NatsError, NoReply, RequestId, StreamState},
    store::{Appender, Publish, Replica, Waited, Waker, WriteError},
};

/// Events of NATS that wait for the driver. Full: the connection's tasks wait, and NATS with them.
const EVENTS_MAX: usize = 256;
/// Events taken before the driver looks at what else is due.
const EVENTS_AT_ONCE: usize = 64;
/// How long the end waits for answers to other nodes to be sent.
const LAST_REPLIES: Duration = Duration::from_millis(500);

/// What a node is made of.
pub struct Parts<P> {
    /// This node since its start.
    pub me: Author,
    /// Its name.
    pub node: String,
    /// The store.
    pub replica: Replica<P>,
    /// How much goes into one frame.
    pub limits: Limits,
    /// Largest message that the servers take for sure.
    pub message_bytes_max: usize,
    /// How long things may take.
    pub times: Times,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What has to be the same on all nodes.
    pub common: SayCommon,
}

impl<P> fmt::Debug for Parts<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (node, me) = (&self.node, &self.me);
        f.debug_struct("Parts")
            .field("node", node)
            .field("me", me)
            .finish_non_exhaustive()
    }
}

/// What follows a stream for a driver.
pub(super) struct Following {
    stream: StreamState,
    handle: Handle,
    events: mpsc::Receiver<Event>,
    sleeper: Arc<Sleeper>,
    /// Other nodes may have something of the stream.
    listens: bool,
}

impl Following {
    /// Begins to follow the stream behind the message `seen`, on the runtime that this is called on.
    pub(super) async fn start(
        nats: Nats,
        stream: StreamState,
        me: Author,
        seen: u64,
        waker: Waker,
    ) -> Result<Self, NatsError> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let sleeper = Arc::<Sleeper>::default();
        let woken = Arc::clone(&sleeper);
        let wake = Arc::new(move || woken.wake(|| waker.wake()));
        let (events_to, from) = (Events::new(sender, wake), seen.saturating_add(1));
        let listens = !nats.has_made_stream();
        Ok(Self {
            listens,
            handle: nats.start(stream.clone(), me, from, events_to).await?,
            stream,
            events,
            sleeper,
        })
    }

    /// The stream's last message, as it was found.
    pub(super) fn last(&self) -> u64 {
        self.stream.last
    }
}

/// See the module's description.
pub struct Driver<P> {
    pub(super) me: Author,
    pub(super) node: String,
    pub(super) replica: Replica<P>,
    pub(super) protocol: Protocol,
    pub(super) stream: Handle,
    events: mpsc::Receiver<Event>,
    sleeper: Arc<Sleeper>,
    /// Where the connection lives.
    runtime: runtime::Handle,
    pub(super) message_bytes_max: usize,
    times: Times,
    pub(super) timing: Timing,
    pub(super) groups: OpenGroups,
    newest_group: u64,
    /// Since when the stream ends before what this node has.
    pub(super) ahead_since: Option<Instant>,
    /// The stream that this node's log is read from.
    pub(super) stream_id: StreamId,
    pub(super) heard: Heard,
    /// It was silent for too long at least once.
    pub(super) has_been_silent: bool,
    /// The start has not judged whether this node's log may be set aside, so a new start may help where the stream has left it behind.
    pub(super) may_start_anew: bool,
    /// The broker ends: nothing new is begun.
    pub(super) is_draining: bool,
    /// Why nothing can be written or followed any more.
    pub(super) halted: Option<String>,
    pub(super) state: Arc<ClusterState>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) common: SayCommon,
}

/// How the driver's thread sleeps: in the store's queue, or parked while it takes nothing from there.
#[derive(Debug, Default)]
struct Sleeper {
    waits_in_queue: AtomicBool,
    /// Once it runs.
    thread: OnceLock<Thread>,
}

impl Sleeper {
    /// Wakes it. A wake takes a place in the queue, so there is one for each wait at most.
    fn wake(&self, in_queue: impl FnOnce()) {
        if self.waits_in_queue.swap(false, Ordering::SeqCst) {
            in_queue();
        }
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl<P> fmt::Debug for Driver<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("me", &self.me)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<P: Publish> Driver<P> {
    /// Begins to follow the stream, on the runtime that this is called on.
    pub async fn start(
        parts: Parts<P>,
        nats: Nats,
        stream: StreamState,
    ) -> Result<Self, NatsError> {
        let (me, position) = (parts.me, parts.replica.position());
        let state = ClusterState::new(parts.node.clone(), me, position.seen, stream.last);
        let waker = parts.replica.waker();
        let following = Following::start(nats, stream, me, position.seen, waker).await?;
        let (state, runtime) = (Arc::new(state), runtime::Handle::current());
        let mut driver = Self::with(parts, state, following, runtime);
        // This start has judged it.
        driver.may_start_anew &= driver.halted.is_none();
        Ok(driver)
    }

    /// A driver of a node that follows already, as `state` shows.
    pub(super) fn with(
        parts: Parts<P>,
        state: Arc<ClusterState>,
        following: Following,
        runtime: runtime::Handle,
    ) -> Self {
        let Parts {
            me,
            node,
            replica,
            limits,
            message_bytes_max,
            times,
            metrics,
            common,
        } = parts;
        let Following {
            stream,
            handle,
            events,
            sleeper,
            listens,
        } = following;
        state.set_listened(!listens);
        let mut driver = Self {
            protocol: Protocol::new(me, replica.position(), limits).listening(listens),
            stream_id: replica.stream(),
            heard: Heard::default(),
            stream: handle,
            me,
            node,
            replica,
            events,
            sleeper,
            runtime,
            message_bytes_max,
            times,
            timing: Timing::new(times.publish_timeout, listens, Instant::now()),
            groups: OpenGroups::default(),
            newest_group: 0,
            ahead_since: None,
            has_been_silent: false,
            may_start_anew: true,
            is_draining: false,
            halted: None,
            state,
            metrics,
            common,
        };
        driver.compare(&stream);
        driver
    }

    /// What the rest of the broker sees.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// The journal of which this takes the operations.
    pub fn journal(&self, appender: Appender) -> Jetstream {
        let (state, stream) = (Arc::clone(&self.state), Arc::<OnceLock<Handle>>::default());
        let _ = stream.set(self.stream.clone()).is_ok(); // it is new
        let epoch = self.protocol.position().epoch;
        Jetstream::new(appender, state, stream, epoch, self.times.read_wait)
    }

    /// What speaks to NATS.
    pub(super) fn handle(&self) -> &Handle {
        &self.stream
    }

    /// Works until the store's queue is stopped, and what was in it is answered.
    pub fn run(mut self) {
        let _ = self.sleeper.thread.set(thread::current()).is_ok(); // nobody else runs it
        // The stream is empty: the first frame says where the log begins.
        if self.halted.is_none() && self.is_stream_empty() {
            self.feed(Input::Silent);
        }

        loop {
            let waited = self.wait();
            self.look_whether_deaf();
            match waited {
                Waited::Group(group) => self.take(group, None),
                Waited::Stopped => break,
                Waited::Woken | Waited::TimedOut => {}
            }
            self.take_events();
            self.do_what_is_due();
        }
        self.drain();
    }

    fn is_stream_empty(&self) -> bool {
        let stream = self.stream.state().stream;
        stream.is_some_and(|stream| stream.last == 0) && self.protocol.position().seen == 0
    }

    /// Waits for a group if one is taken now, and in any case for what else there is.
    fn wait(&mut self) -> Waited {
        let now = Instant::now();
        let timeout = self.time_left(now);
        if self.takes_group(now) {
            self.sleeper.waits_in_queue.store(true, Ordering::SeqCst);
            // Behind that, so that no event comes unnoticed in between.
            let has_events = !self.events.is_empty();
            let timeout = if has_events { Duration::ZERO } else { timeout };
            let newest = &mut self.newest_group;
            let waited = self.replica.wait(timeout, || {
                *newest += 1;
                GroupId(*newest)
            });
            self.sleeper.waits_in_queue.store(false, Ordering::SeqCst);
            return waited;
        }
        if self.events.is_empty() {
            thread::park_timeout(timeout);
        }
        Waited::Woken
    }

    /// Until something is due.
    fn time_left(&self, now: Instant) -> Duration {
        let late = self.groups.next_late(self.times.answer_timeout);
        let next = self.timing.next(now);
        let next = late.map_or(next, |late| late.min(next));
        next.saturating_duration_since(now)
    }

    /// While a frame is out, the next group fills in the store's queue. If it is out for long, groups are taken all the same, so
    /// that they are refused in time.
    fn takes_group(&self, now: Instant) -> bool {
        let is_stuck = self.timing.is_stuck(now);
        let is_out = self.protocol.in_doubt().is_some();
        self.halted.is_some() || (is_stuck || !is_out) && self.groups.takes_own(is_stuck)
    }

    fn next_group(&mut self) -> GroupId {
        self.newest_group += 1;
        GroupId(self.newest_group)
    }

    fn take(&mut self, group: Group, request: Option<RequestId>) {
        if let Some(why) = &self.halted {
            return self
                .replica
                .refuse(group.id, &WriteError::Away(why.clone()));
        }
        self.groups.add(group, request, Instant::now());
        self.feed(Input::Group(group));
    }

    fn take_events(&mut self) {
        for _ in 0..EVENTS_AT_ONCE {
            match self.events.try_recv() {
                Ok(event) => self.happened(event),
                Err(_) => break,
            }
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Message { sequence, bytes } => self.feed(Input::Message { sequence, bytes }),
            Event::Acked { chain, sequence } => self.feed(Input::Acked { chain, sequence }),
            Event::Refused { chain, last } => {
                self.metrics.cluster_conflicts.inc();
                self.compare_end(last);
                self.feed(Input::Refused { chain });
            }
            Event::Unanswered { chain, why } => self.unanswered(chain, &why),
            Event::Request { id, bytes } => self.requested(id, &bytes),
            Event::Replied { group, reply } => self.replied(group, reply),
            Event::Connected(is_connected) => self.connected(is_connected),
            Event::Presence { node, bytes } => self.heard(&node, &bytes),
            Event::Purged { through } => {
                tracing::debug!(through, "the stream has forgotten what nobody needs");
            }
            Event::Fatal(problem) => self.halt(&problem),
        }
    }

    /// Another node hands a group over.
    fn requested(&mut self, id: RequestId, bytes: &Bytes) {
        if self.halted.is_some() || self.is_draining {
            return self.stream.reply(id, HandoverReply::NotWriter.encode());
        }
        if !self.groups.takes_of_peers() {
            return; // no answer: it writes itself
        }
        let group = self.next_group();
        match self.replica.add_from_peer(group, bytes) {
            Ok(group) => self.take(group, Some(id)),
            Err(problem) => {
                tracing::warn!(%problem, "another node has handed over operations that cannot be read: it writes them itself");
                self.stream.reply(id, HandoverReply::Unreadable.encode());
            }
        }
    }

    /// The writer has answered about a group of this node, or nobody has.
    fn replied(&mut self, group: GroupId, reply: Result<Bytes, NoReply>) {
        let reply = reply.ok().and_then(HandoverReply::parse);
        let (result, reply) = match reply {
            Some(HandoverReply::Written { through, results }) => {
                if let Some(open) = self.groups.get_mut(group) {
                    open.results = Some(results);
                }
                ("written", Reply::Written { through })
            }
            Some(HandoverReply::NotWriter) => ("not_writer", Reply::NotWriter),
            Some(HandoverReply::Unreadable) => ("unreadable", Reply::Nothing),
            None => ("nothing", Reply::Nothing),
        };
        self.metrics
            .cluster_forwards
            .with_label_values(&[result])
            .inc();
        self.feed(Input::Replied { group, reply });
    }

    /// Nobody has said what became of a frame.
    fn unanswered(&mut self, chain: u64, why: &Doubt) {
        let why = match why {
            Doubt::NoAnswer => "no answer in time",
            Doubt::NoLeader => "the stream has no leader",
            Doubt::Disconnected => "the connection is lost",
            Doubt::Full(problem) | Doubt::Other(problem) => problem,
        };
        if let Some(doubt) = self.timing.unanswered(chain)
            && !std::mem::replace(&mut doubt.is_logged, true)
        {
            tracing::warn!(
                why,
                "it is not known what became of a frame: it is published again until it is"
            );
        }
        self.state.set_doubt(why);
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        for id in self.groups.late(now, self.times.answer_timeout) {
            self.feed(Input::GiveUp(id));
        }
        for due in self.timing.due(now) {
            match due {
                Due::Tend => self.tend(),
                Due::Presence => self.show(),
                Due::Listened => self.has_listened(),
                Due::Quiet | Due::Silent if self.halted.is_some() || self.is_draining => {}
                Due::Quiet => self.feed(Input::Quiet),
                Due::Silent => self.feed(Input::Silent),
                Due::Unanswered(chain) => self.feed(Input::Unanswered { chain }),
            }
        }
    }

    /// Nothing is written or followed any more. What was applied is served.
    pub(super) fn halt(&mut self, why: &str) {
        if self.halted.is_some() {
            return;
        }
        tracing::error!(
            why,
            "this node follows the cluster's stream no more: it serves what it has"
        );
        self.halted = Some(why.to_owned());
        self.state.stop(why.to_owned());
        self.stream.stop_serving();
        for id in self.groups.ids() {
            self.refuse(id, &WriteError::Away(why.to_owned()));
        }
    }

    /// Finishes what was begun, as long as callers wait for it.
    fn drain(mut self) {
        self.is_draining = true;
        self.stream.stop_serving();
        while !self.groups.is_empty() {
            let timeout = self.time_left(Instant::now());
            if self.events.is_empty() {
                thread::park_timeout(timeout);
            }
            self.look_whether_deaf();
            self.take_events();
            self.do_what_is_due();
        }
        if let Err(problem) = self.replica.sync() {
            tracing::error!(%problem, "the log could not be synced at the end: the stream has what is missing");
        }
        self.runtime.block_on(self.stream.drain(LAST_REPLIES));
    }
}
