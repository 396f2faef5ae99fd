//! Some nodes, a stream, and the network between them: what can happen next, and what follows from it. Deterministic.
//!
//! Each node runs the [`Protocol`] and keeps its log in memory. The stream holds messages, and checks the condition of each unless
//! it is one that does not. The network loses, delays and repeats what is sent. An auditor follows the stream by the rule: its log is
//! the one that all nodes must have.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    cluster::{
        Author, Contents, Entries, Entry, Frame, Group, GroupId, Input, Limits, Output, Position,
        Protocol, Reply, Stop, ToldBy, Verdict, judge, protocol::Rule,
    },
    event::{
        Epoch, Fingerprint, Labels, Product, Record, RecordParts, Selectable, Sequence, TaskId,
        TaskStatus,
    },
};

const EPOCH: Epoch = Epoch(0xb10b);
/// Two drafts in a frame, so that groups share some and wait for others.
const LIMITS: Limits = Limits {
    drafts_max: 2,
    bytes_max: 1_000,
};

/// What does not change in a run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub nodes: usize,
    /// Where each callback comes in, and of which task it is.
    pub posts: Vec<(usize, u8)>,
    /// The stream checks the conditions of what is published.
    pub stream_checks: bool,
    /// The stream may lose what it has acknowledged. Then nothing more is promised than that no event lands on another log than it
    /// was decided for.
    pub stream_lies: bool,
    pub rule: Rule,
    /// The mistake is that it does not: a node that was away listens before it writes.
    pub listens: bool,
    /// The driver's mistake: it answers as soon as the writer has replied.
    pub answers_before_applying: bool,
}

impl Settings {
    pub(super) fn new(nodes: usize, posts: &[(usize, u8)]) -> Self {
        Self {
            nodes,
            posts: posts.to_vec(),
            stream_checks: true,
            stream_lies: false,
            rule: Rule(judge),
            listens: true,
            answers_before_applying: false,
        }
    }
}

/// How often each fault may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    pub lost: u32,
    pub repeated: u32,
    pub timeouts: u32,
    pub crashes: u32,
    pub ticks: u32,
    pub given_up: u32,
    pub truncated: u32,
    pub heard: u32,
    pub restored: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Post(usize),
    Deliver(Packet),
    Repeat(Packet),
    Lose(Packet),
    Follow(usize),
    Unanswered(usize),
    NoReply(usize, GroupId),
    Quiet(usize),
    Silent(usize),
    GiveUp(usize, GroupId),
    Crash(usize),
    Truncate,
    /// A node that listens hears all others.
    Listen(usize),
    /// The same of one that may not listen.
    Hear(usize),
    /// The servers come back with a copy that has so many messages.
    Restore(usize),
}

/// Something on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Packet {
    Publish {
        from: Author,
        expected: u64,
        chain: u64,
        bytes: Bytes,
    },
    Stored {
        to: Author,
        chain: u64,
        sequence: u64,
    },
    Denied {
        to: Author,
        chain: u64,
    },
    Asked {
        to: Author,
        from: Author,
        group: GroupId,
        drafts: Vec<Draft>,
    },
    Told {
        to: Author,
        group: GroupId,
        reply: Reply,
        places: Vec<u64>,
    },
}

/// A callback on its way into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Draft {
    pub post: usize,
    pub task: u8,
}

/// What became of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Post {
    NotSent,
    Sent,
    /// At this place.
    Answered(u64),
    /// Refused, or its node has crashed.
    Unanswered,
}

/// A promise that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Broken {
    /// An acknowledged draft is not in the log, or not where its answer said.
    Missing,
    /// A task is in a log twice.
    Doubled,
    /// A node's log is no prefix of the log.
    Diverged,
    /// Two nodes have other events at the same place.
    Forked,
    /// An answer came, and the node that gave it cannot read the event.
    NotReadable,
    /// A node has applied a frame on another log than it was decided for.
    AnotherLog,
    /// A node has stopped although the stream did nothing wrong.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    drafts: Vec<Draft>,
    /// By this node's last decision, and by the writer's reply.
    decided: Vec<u64>,
    told: Vec<u64>,
    /// The node that has handed it over, and its number there.
    from: Option<(Author, GroupId)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    protocol: Protocol,
    log: Vec<Draft>,
    groups: BTreeMap<GroupId, Held>,
    next_group: u64,
    starts: u128,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    nodes: Vec<Node>,
    stream: Vec<Bytes>,
    auditor: (Position, Vec<Draft>),
    net: BTreeSet<Packet>,
    pub posts: Vec<Post>,
    pub faults: Faults,
    pub broken: BTreeSet<Broken>,
    /// The stream has lost nothing that it had acknowledged.
    promises_hold: bool,
    /// It has lost nothing under the nodes' hands.
    may_not_fork: bool,
}

impl Packet {
    /// The node that it goes to; `None` for the stream.
    fn to(&self) -> Option<Author> {
        match self {
            Self::Publish { .. } => None,
            Self::Stored { to, .. }
            | Self::Denied { to, .. }
            | Self::Asked { to, .. }
            | Self::Told { to, .. } => Some(*to),
        }
    }
}

impl Node {
    fn start(node: usize, starts: u128, settings: &Settings) -> Self {
        let me = Author(((node as u128) << 64) + starts + 1);
        Self {
            // The first time there is nothing yet that another node could have.
            protocol: Protocol::with_rule(me, Position::start(EPOCH), LIMITS, settings.rule)
                .listening(settings.listens && starts > 0),
            log: Vec::new(),
            groups: BTreeMap::new(),
            next_group: 0,
            starts,
        }
    }

    fn add(&mut self, drafts: Vec<Draft>, from: Option<(Author, GroupId)>) -> Group {
        let id = GroupId(self.next_group);
        self.next_group += 1;
        let group = Group {
            id,
            drafts: drafts.len(),
            bytes: drafts.len(),
            is_from_peer: from.is_some(),
        };
        let held = Held {
            drafts,
            decided: Vec::new(),
            told: Vec::new(),
            from,
        };
        self.groups.insert(id, held);
        group
    }

    /// Decides as the store does: what is in the log, or earlier in the group, is a duplicate.
    fn decide(&mut self, me: Author, groups: &[GroupId], must_write: bool) -> Option<Contents> {
        let before = self.protocol.position().totals;
        let (mut log, mut after, mut entries) = (self.log.clone(), before, Vec::new());
        for id in groups {
            let Some(held) = self.groups.get_mut(id) else {
                continue; // given up
            };
            held.decided.clear();
            for draft in &held.drafts {
                let known = log.iter().position(|logged| logged.task == draft.task);
                let place = known.unwrap_or(log.len()) as u64 + 1;
                held.decided.push(place);
                if known.is_none() {
                    log.push(*draft);
                    let record = record(*draft, Sequence(place));
                    after.event_count += 1;
                    after.event_bytes += record.len() as u64;
                    entries.push(Entry::Event {
                        event_id: Uuid::from_u128(draft.post as u128),
                        fingerprint: Fingerprint::default(),
                        record,
                    });
                }
            }
        }
        (must_write || !entries.is_empty()).then(|| Contents {
            author: me,
            name: String::new(),
            // Nobody's clock: it says on which log this was decided.
            commit_time_micros: hash(&self.log),
            before,
            after,
            entries: Entries::of(&entries),
        })
    }
}

impl World {
    pub(super) fn new(settings: &Settings, faults: Faults) -> Self {
        let nodes = (0..settings.nodes).map(|node| Node::start(node, 0, settings));
        Self {
            nodes: nodes.collect(),
            stream: Vec::new(),
            auditor: (Position::start(EPOCH), Vec::new()),
            net: BTreeSet::new(),
            posts: vec![Post::NotSent; settings.posts.len()],
            faults,
            broken: BTreeSet::new(),
            promises_hold: true,
            may_not_fork: true,
        }
    }

    /// Everything that can happen next.
    pub(super) fn actions(&self) -> Vec<Action> {
        let faults = &self.faults;
        let mut actions = self.progress();
        for packet in &self.net {
            if faults.lost > 0 {
                actions.push(Action::Lose(packet.clone()));
            }
            if faults.repeated > 0 {
                actions.push(Action::Repeat(packet.clone()));
            }
        }
        for (at, node) in self.nodes.iter().enumerate() {
            if faults.timeouts > 0 {
                actions.extend(self.timeouts(at));
            }
            if faults.ticks > 0 {
                actions.extend([Action::Quiet(at), Action::Silent(at)]);
            }
            if faults.given_up > 0 {
                let own = node.groups.iter().filter(|(_, held)| held.from.is_none());
                actions.extend(own.map(|(id, _)| Action::GiveUp(at, *id)));
            }
            if faults.crashes > 0 {
                actions.push(Action::Crash(at));
            }
        }
        if faults.truncated > 0 && !self.stream.is_empty() {
            actions.push(Action::Truncate);
        }
        if faults.heard > 0 {
            actions.extend((0..self.nodes.len()).map(Action::Hear));
        }
        if faults.restored > 0 {
            actions.extend((0..self.stream.len()).map(Action::Restore));
        }
        actions
    }

    /// What happens without any fault.
    pub(super) fn progress(&self) -> Vec<Action> {
        let posts = self.posts.iter().enumerate();
        let unsent = posts.filter(|(_, post)| **post == Post::NotSent);
        let mut actions: Vec<_> = unsent.map(|(at, _)| Action::Post(at)).collect();
        actions.extend(self.net.iter().cloned().map(Action::Deliver));
        for (at, node) in self.nodes.iter().enumerate() {
            let has_next = (self.stream.len() as u64) > node.protocol.position().seen;
            if node.protocol.stopped().is_some() {
                continue;
            }
            if has_next {
                actions.push(Action::Follow(at));
            }
            if node.protocol.is_listening() {
                actions.push(Action::Listen(at));
            }
        }
        actions
    }

    /// The timeouts that may come.
    pub(super) fn timeouts(&self, at: usize) -> Vec<Action> {
        let protocol = &self.nodes[at].protocol;
        let doubt = protocol.in_doubt().map(|_| Action::Unanswered(at));
        let handed = protocol.handed_over().map(|id| Action::NoReply(at, id));
        doubt.into_iter().chain(handed).collect()
    }

    pub(super) fn act(&mut self, settings: &Settings, action: Action) {
        match action {
            Action::Post(post) => {
                self.posts[post] = Post::Sent;
                let (node, task) = settings.posts[post];
                let group = self.nodes[node].add(vec![Draft { post, task }], None);
                self.input(settings, node, Input::Group(group));
            }
            Action::Deliver(packet) => {
                self.net.remove(&packet);
                self.deliver(settings, packet);
            }
            Action::Repeat(packet) => {
                self.faults.repeated -= 1;
                self.deliver(settings, packet);
            }
            Action::Lose(packet) => {
                self.faults.lost -= 1;
                self.net.remove(&packet);
            }
            Action::Follow(node) => {
                let seen = self.nodes[node].protocol.position().seen;
                let bytes = self.stream[seen as usize].clone();
                let sequence = seen + 1;
                self.input(settings, node, Input::Message { sequence, bytes });
            }
            Action::Unanswered(node) => {
                self.faults.timeouts = self.faults.timeouts.saturating_sub(1);
                let chain = self.nodes[node].protocol.in_doubt();
                if let Some(chain) = chain {
                    self.input(settings, node, Input::Unanswered { chain });
                }
            }
            Action::NoReply(node, group) => {
                self.faults.timeouts = self.faults.timeouts.saturating_sub(1);
                let reply = Reply::Nothing;
                self.input(settings, node, Input::Replied { group, reply });
            }
            Action::Quiet(node) => self.tick(settings, node, Input::Quiet),
            Action::Silent(node) => self.tick(settings, node, Input::Silent),
            Action::GiveUp(node, group) => {
                self.faults.given_up -= 1;
                self.input(settings, node, Input::GiveUp(group));
            }
            Action::Crash(node) => self.crash(settings, node),
            Action::Truncate => self.truncate(),
            Action::Listen(node) => {
                self.hear(settings, node);
                let last = self.stream.len() as u64;
                self.input(settings, node, Input::Listened { last });
            }
            Action::Hear(node) => {
                self.faults.heard -= 1;
                self.hear(settings, node);
            }
            Action::Restore(count) => self.restore(settings, count),
        }
        self.check(settings);
    }

    fn tick(&mut self, settings: &Settings, node: usize, input: Input) {
        self.faults.ticks = self.faults.ticks.saturating_sub(1);
        self.input(settings, node, input);
    }

    fn me(&self, node: usize) -> Author {
        Author(((node as u128) << 64) + self.nodes[node].starts + 1)
    }

    fn deliver(&mut self, settings: &Settings, packet: Packet) {
        let node = packet.to().map(|to| (to.0 >> 64) as usize);
        if node.is_some_and(|node| Some(self.me(node)) != packet.to()) {
            return; // it was for that node before it crashed
        }
        let node = node.unwrap_or_default();
        match packet {
            Packet::Publish {
                from,
                expected,
                chain,
                bytes,
            } => self.publish(settings, from, expected, chain, &bytes),
            Packet::Stored {
                chain, sequence, ..
            } => self.input(settings, node, Input::Acked { chain, sequence }),
            Packet::Denied { chain, .. } => self.input(settings, node, Input::Refused { chain }),
            Packet::Asked {
                from,
                group,
                drafts,
                ..
            } => {
                let group = self.nodes[node].add(drafts, Some((from, group)));
                self.input(settings, node, Input::Group(group));
            }
            Packet::Told {
                group,
                reply,
                places,
                ..
            } => {
                if let (Reply::Written { .. }, Some(held)) =
                    (reply, self.nodes[node].groups.get_mut(&group))
                {
                    held.told = places;
                    if settings.answers_before_applying {
                        let held = held.clone();
                        self.answered(node, &held, ToldBy::Writer);
                    }
                }
                self.input(settings, node, Input::Replied { group, reply });
            }
        }
    }

    fn publish(
        &mut self,
        settings: &Settings,
        from: Author,
        expected: u64,
        chain: u64,
        bytes: &Bytes,
    ) {
        let is_last = expected == self.stream.len() as u64;
        if !is_last && settings.stream_checks {
            self.net.insert(Packet::Denied { to: from, chain });
            return;
        }
        self.stream.push(bytes.clone());
        let sequence = self.stream.len() as u64;
        self.net.insert(Packet::Stored {
            to: from,
            chain,
            sequence,
        });
        self.audit(sequence, bytes);
    }

    fn audit(&mut self, sequence: u64, bytes: &Bytes) {
        let (position, log) = &mut self.auditor;
        match judge(position, sequence, bytes) {
            Verdict::Apply(frame) => {
                log.extend(drafts_of(&frame));
                *position = position.behind(&frame);
            }
            _ => *position = position.past(),
        }
    }

    fn input(&mut self, settings: &Settings, node: usize, input: Input) {
        for output in self.nodes[node].protocol.handle(input) {
            self.carry_out(settings, node, output);
        }
    }

    fn carry_out(&mut self, settings: &Settings, node: usize, output: Output) {
        let me = self.me(node);
        match output {
            Output::Decide {
                on,
                groups,
                must_write,
            } => {
                let contents = self.nodes[node].decide(me, &groups, must_write);
                let contents = contents.map(Box::new);
                self.input(settings, node, Input::Decided { on, contents });
            }
            Output::Publish { expected, frame } => {
                self.net.insert(Packet::Publish {
                    from: me,
                    expected,
                    chain: frame.chain,
                    bytes: frame.bytes,
                });
            }
            Output::Apply { frame, .. } => {
                let log = &mut self.nodes[node].log;
                if frame.contents.commit_time_micros != hash(log) {
                    self.broken.insert(Broken::AnotherLog);
                }
                log.extend(drafts_of(&frame));
            }
            Output::HandOver { group, to } => {
                let drafts = self.nodes[node].groups[&group].drafts.clone();
                self.net.insert(Packet::Asked {
                    to,
                    from: me,
                    group,
                    drafts,
                });
            }
            Output::Answer { group, through, by } => {
                let held = self.nodes[node].groups.remove(&group).expect("it is held");
                match held.from {
                    None => self.answered(node, &held, by),
                    Some(from) => self.tell(from, Reply::Written { through }, held.decided),
                }
            }
            Output::Refuse { group, .. } => {
                let held = self.nodes[node].groups.remove(&group).expect("it is held");
                match held.from {
                    None => self.unanswered(&held),
                    Some(from) => self.tell(from, Reply::NotWriter, Vec::new()),
                }
            }
            Output::Stopped(stop) => {
                let may = !self.promises_hold && matches!(stop, Stop::Hole(_));
                self.broken.extend((!may).then_some(Broken::Stopped));
            }
            Output::Fetch { .. } | Output::Skipped { .. } | Output::Reconnect => {}
        }
    }

    fn tell(&mut self, (to, group): (Author, GroupId), reply: Reply, places: Vec<u64>) {
        self.net.insert(Packet::Told {
            to,
            group,
            reply,
            places,
        });
    }

    fn answered(&mut self, node: usize, held: &Held, by: ToldBy) {
        let places = match by {
            ToldBy::ThisNode => &held.decided,
            ToldBy::Writer => &held.told,
        };
        for (draft, place) in held.drafts.iter().zip(places) {
            self.posts[draft.post] = Post::Answered(*place);
            let logged = self.nodes[node].log.get(*place as usize - 1);
            let is_readable = logged.is_some_and(|logged| logged.task == draft.task);
            if !is_readable && self.promises_hold {
                self.broken.insert(Broken::NotReadable);
            }
        }
    }

    fn unanswered(&mut self, held: &Held) {
        for draft in &held.drafts {
            if self.posts[draft.post] == Post::Sent {
                self.posts[draft.post] = Post::Unanswered;
            }
        }
    }

    /// The node loses everything, and begins anew from the stream.
    fn crash(&mut self, settings: &Settings, node: usize) {
        self.faults.crashes = self.faults.crashes.saturating_sub(1);
        let starts = self.nodes[node].starts + 1;
        let before = std::mem::replace(&mut self.nodes[node], Node::start(node, starts, settings));
        for held in before.groups.values().filter(|held| held.from.is_none()) {
            self.unanswered(held);
        }
        let nodes: Vec<_> = (0..settings.nodes).map(|node| self.me(node)).collect();
        self.net
            .retain(|packet| packet.to().is_none_or(|to| nodes.contains(&to)));
    }

    /// What every other node says of itself.
    fn hear(&mut self, settings: &Settings, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let frame = self.nodes[other].protocol.position().frame;
            self.input(settings, node, Input::Heard { frame });
        }
    }

    /// The stream loses its last message, which it has acknowledged.
    fn truncate(&mut self) {
        self.faults.truncated -= 1;
        self.may_not_fork = false;
        self.shorten(self.stream.len() - 1);
    }

    /// Nothing that was on its way arrives, and every node has been without a connection.
    fn restore(&mut self, settings: &Settings, count: usize) {
        self.faults.restored -= 1;
        self.net.clear();
        self.shorten(count);
        if settings.listens {
            (0..settings.nodes).for_each(|node| self.input(settings, node, Input::Deaf));
        }
    }

    fn shorten(&mut self, count: usize) {
        self.promises_hold = false;
        self.stream.truncate(count);
        self.auditor = (Position::start(EPOCH), Vec::new());
        for (sequence, bytes) in (1..).zip(self.stream.clone()) {
            self.audit(sequence, &bytes);
        }
    }

    fn check(&mut self, settings: &Settings) {
        let mut broken = BTreeSet::new();
        let log = &self.auditor.1;
        for node in &self.nodes {
            let is_doubled = (1..node.log.len())
                .any(|at| node.log[..at].iter().any(|it| it.task == node.log[at].task));
            broken.extend(is_doubled.then_some(Broken::Doubled));
            let is_prefix = log.starts_with(&node.log);
            broken.extend((!is_prefix && self.promises_hold).then_some(Broken::Diverged));
        }
        let pairs = self
            .nodes
            .iter()
            .flat_map(|one| self.nodes.iter().map(move |other| (one, other)));
        let has_forked = pairs
            .filter(|(one, other)| one.log.len() <= other.log.len())
            .any(|(one, other)| !other.log.starts_with(&one.log));
        broken.extend((has_forked && self.may_not_fork).then_some(Broken::Forked));
        for (post, (_, task)) in self.posts.iter().zip(&settings.posts) {
            if let Post::Answered(place) = post {
                let is_there = log
                    .get(*place as usize - 1)
                    .is_some_and(|logged| logged.task == *task);
                broken.extend((!is_there && self.promises_hold).then_some(Broken::Missing));
            }
        }
        self.broken.extend(broken);
    }

    /// Every callback was answered, and every node has everything.
    pub(super) fn is_settled(&self) -> bool {
        let is_answered = |post: &Post| matches!(post, Post::Answered(_));
        let has_all = |node: &Node| node.log == self.auditor.1;
        self.posts.iter().all(is_answered) && self.nodes.iter().all(has_all)
    }

    /// Nothing is on its way.
    pub(super) fn is_still(&self) -> bool {
        self.net.is_empty()
    }

    pub(super) fn log_len(&self) -> usize {
        self.auditor.1.len()
    }

    /// What the run comes to, for a comparison with other runs.
    pub(super) fn messages(&self) -> &[Bytes] {
        &self.stream
    }
}

fn drafts_of(frame: &Frame) -> impl Iterator<Item = Draft> + use<> {
    frame.entries().filter_map(|entry| match entry {
        Entry::Event {
            event_id, record, ..
        } => Some(Draft {
            post: event_id.as_u128() as usize,
            task: record.task_id()[1..].parse().expect("as it was written"),
        }),
        _ => None,
    })
}

/// Records of all tasks have the same length, so totals alone cannot tell two logs apart.
fn record(draft: Draft, place: Sequence) -> Record {
    let task_id = TaskId::parse(&format!("t{:03}", draft.task)).unwrap();
    let parts = RecordParts {
        product: &Product::parse("veo").unwrap(),
        task_id: &task_id,
        status: TaskStatus::Completed,
        revision: 1,
        conflict: false,
        received_at_micros: 0,
        log_time_micros: 0,
        labels: &Labels::new(),
        event: &[],
        raw: &[],
    };
    Record::new(place, &parts)
}

fn hash(log: &[Draft]) -> i64 {
    let bytes: Vec<u8> = log
        .iter()
        .flat_map(|draft| [draft.post as u8, draft.task])
        .collect();
    xxh3_64(&bytes) as i64
}
