//! Nodes of a cluster, driven through [`Replica`] and a stream that is a list of messages. Any of them writes, frames lose, and nodes
//! fail in between: all that have applied the same frames have the same log.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    same_state::{self, Answered, Caller, Sent, State, any_sent},
    *,
};
use crate::{
    cluster::{
        Author, Beginning, Contents, Encoded, Frame, GroupId, Join, Limits, Link, Position,
        StreamId, Verdict, join, judge,
    },
    event::Epoch,
    store::{Transfer, index_doubt::Doubt},
};

const LIMITS: Limits = Limits {
    drafts_max: 64,
    bytes_max: 64 * 1024,
};

/// A node and its store.
struct Node {
    number: u128,
    replica: Replica<fn(&[Record])>,
    store: Arc<Store>,
    appender: Appender,
    /// Up to where it has the stream.
    position: Position,
    machine: Machine,
    directory: tempfile::TempDir,
    sent: u128,
}

/// A group that is not answered.
struct Pending {
    ids: Vec<GroupId>,
    answers: Vec<Box<dyn FnOnce() -> Answered>>,
}

impl Node {
    fn on(number: u128, directory: tempfile::TempDir, machine: Machine) -> Self {
        let store = Arc::new(Store::open_by(machine.source(), directory.path(), 1 << 20).unwrap());
        let publish: fn(&[Record]) = |_| {};
        let (appender, mut writer) = writer(
            Arc::clone(&store),
            Retention::KEEP_ALL,
            publish,
            Arc::default(),
        );
        writer.disk = Box::new(|_| Ok((Stepped::DISK_BYTES, Stepped::DISK_BYTES)));
        let replica = Replica::new(
            writer,
            &appender,
            Author(number),
            format!("node-{number}"),
            LIMITS,
        );
        Self {
            number,
            position: replica.position(),
            replica,
            store,
            appender,
            machine,
            directory,
            sent: number << 64,
        }
    }

    /// A node that begins behind a position.
    fn behind(number: u128, position: &Position, machine: Machine) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let beginning = Beginning {
            position: *position,
            ..Beginning::whole(StreamId(1), position.epoch)
        };
        Store::begin_behind(directory.path(), false, &beginning).unwrap();
        Self::on(number, directory, machine)
    }

    /// Ends the process, does something to its directory, and starts it again.
    fn restarted(self, disturb: impl FnOnce(&Path)) -> Self {
        let Self {
            number,
            replica,
            store,
            appender,
            machine,
            directory,
            sent,
            ..
        } = self;
        let retention = replica.writer_for_tests().retention;
        drop((replica, appender, store));
        disturb(directory.path());
        let mut node = Self::on(number, directory, machine);
        node.replica.writer_for_tests_mut().retention = retention;
        node.sent = sent;
        node
    }

    /// Applies what the stream has.
    fn catch_up(&mut self, stream: &Stream) {
        while let Some(message) = stream.at(self.position.seen + 1) {
            let sequence = self.position.seen + 1;
            match judge(&self.position, sequence, message) {
                Verdict::Apply(frame) => {
                    self.replica.apply(sequence, &frame).unwrap();
                    self.position = self.position.behind(&frame);
                    assert_eq!(self.replica.position(), self.position);
                }
                Verdict::Void => self.position = self.position.past(),
                verdict => panic!("{verdict:?}"),
            }
        }
    }

    /// Sends commands, and takes them as groups.
    fn take(&mut self, sent: &[Sent], ids: &mut u64) -> Pending {
        self.machine.pass(Duration::from_secs(1));
        let mut caller = Caller {
            store: &self.store,
            appender: &self.appender,
            machine: &self.machine,
            sent: &mut self.sent,
        };
        let answers = sent.iter().map(|sent| caller.send(sent)).collect();
        let mut taken = Vec::new();
        let next = || {
            *ids += 1;
            GroupId(*ids)
        };
        let mut next = next;
        loop {
            match self.replica.wait(Duration::ZERO, &mut next) {
                Waited::Group(group) => taken.push(group.id),
                Waited::TimedOut => break,
                waited => panic!("{waited:?}"),
            }
        }
        Pending {
            ids: taken,
            answers,
        }
    }

    fn propose(&mut self, groups: &[GroupId], must_write: bool) -> Option<Box<Contents>> {
        self.replica.propose(groups, must_write).unwrap()
    }
}

/// What the nodes have published. The first messages may be removed.
#[derive(Default)]
struct Stream {
    removed: usize,
    messages: Vec<Bytes>,
}

impl Stream {
    fn at(&self, sequence: u64) -> Option<&Bytes> {
        let at = usize::try_from(sequence).unwrap().checked_sub(1)?;
        assert!(at >= self.removed, "message {sequence} is removed");
        self.messages.get(at)
    }

    fn publish(&mut self, position: &Position, contents: &Contents) {
        let frame = contents.encode(position.link()).unwrap();
        self.messages.push(frame.bytes);
    }
}

/// What happens to one node.
#[derive(Clone, Debug)]
enum Disturbance {
    Checkpoint,
    NewSegment,
    Sync,
    /// The process is killed.
    Crash,
    /// The power is cut: of what was not synced only a part is there.
    PowerCut {
        from: Index,
        length: Index,
    },
    Rebuild,
}

#[derive(Clone, Debug)]
enum Step {
    /// One node takes commands. Others may publish first, and it may hand them over.
    Commit {
        node: Index,
        sent: Vec<Sent>,
        rivals: u8,
        hands_over: bool,
    },
    Tick {
        node: Index,
    },
    Retain {
        event_bytes: u64,
        quarantined: u64,
    },
    /// The others apply what there is.
    CatchUp,
    /// What no node needs is removed from the stream.
    Purge,
    Disturb {
        node: Index,
        what: Disturbance,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let disturbance = prop_oneof![
        1 => Just(Disturbance::Checkpoint),
        2 => Just(Disturbance::NewSegment),
        1 => Just(Disturbance::Sync),
        2 => Just(Disturbance::Crash),
        3 => any::<(Index, Index)>().prop_map(|(from, length)| Disturbance::PowerCut { from, length }),
        1 => Just(Disturbance::Rebuild),
    ];
    let retention = (
        prop_oneof![Just(u64::MAX), 500..4_000u64],
        prop_oneof![Just(u64::MAX), 0..8u64],
    );
    prop_oneof![
        12 => (any::<Index>(), vec(any_sent(), 1..6), 0..3u8, any::<bool>()).prop_map(
            |(node, sent, rivals, hands_over)| Step::Commit { node, sent, rivals, hands_over }
        ),
        2 => any::<Index>().prop_map(|node| Step::Tick { node }),
        1 => retention.prop_map(|(event_bytes, quarantined)| Step::Retain { event_bytes, quarantined }),
        2 => Just(Step::CatchUp),
        1 => Just(Step::Purge),
        6 => (any::<Index>(), disturbance).prop_map(|(node, what)| Step::Disturb { node, what }),
    ]
}

/// Some nodes, and the stream between them.
struct Nodes {
    nodes: Vec<Node>,
    stream: Stream,
    ids: u64,
    machine: Machine,
}

impl Nodes {
    fn new(count: usize) -> Self {
        let machine = Machine::right();
        let position = Position::start(Epoch(7));
        let nodes = (1..=count as u128)
            .map(|number| Node::behind(number, &position, machine.clone()))
            .collect();
        Self {
            nodes,
            stream: Stream::default(),
            ids: 0,
            machine,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Commit {
                node,
                sent,
                rivals,
                hands_over,
            } => {
                let node = node.index(self.nodes.len());
                self.commit(node, sent, *rivals, *hands_over);
            }
            Step::Tick { node } => {
                let node = node.index(self.nodes.len());
                self.tick(node);
            }
            Step::Retain {
                event_bytes,
                quarantined,
            } => {
                for node in &mut self.nodes {
                    node.replica.writer_for_tests_mut().retention = Retention {
                        event_bytes_max: *event_bytes,
                        quarantine_count_max: *quarantined,
                        ..Retention::KEEP_ALL
                    };
                }
            }
            Step::CatchUp => self.catch_up(),
            Step::Purge => {
                self.catch_up();
                // A node that falls behind what is removed would have to join anew.
                for node in &mut self.nodes {
                    node.replica.sync().unwrap();
                }
                let unneeded = self
                    .nodes
                    .iter()
                    .map(|node| node.replica.unneeded_up_to() as usize);
                let unneeded = unneeded.min().unwrap();
                self.stream.removed = unneeded.max(self.stream.removed);
            }
            Step::Disturb { node, what } => {
                let node = node.index(self.nodes.len());
                self.disturb(node, what);
            }
        }
    }

    fn catch_up(&mut self) {
        for node in &mut self.nodes {
            node.catch_up(&self.stream);
        }
    }

    fn tick(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.catch_up(&self.stream);
        let contents = node.propose(&[], true).expect("it must be written");
        self.stream.publish(&node.position, &contents);
        node.catch_up(&self.stream);
    }

    fn commit(&mut self, at: usize, sent: &[Sent], rivals: u8, hands_over: bool) {
        self.nodes[at].catch_up(&self.stream);
        let pending = self.nodes[at].take(sent, &mut self.ids);
        let writer = if hands_over {
            (at + 1) % self.nodes.len()
        } else {
            at
        };
        for id in pending.ids {
            let asked = if hands_over {
                self.ids += 1;
                let asked = GroupId(self.ids);
                let commands = self.nodes[at].replica.hand_over(id);
                let group = self.nodes[writer].replica.add_from_peer(asked, &commands);
                assert!(group.unwrap().is_from_peer);
                asked
            } else {
                id
            };
            self.write(writer, asked, rivals);
            if hands_over {
                let results = self.nodes[writer].replica.results(asked);
                self.nodes[at].catch_up(&self.stream);
                let answered = self.nodes[at].replica.answer_by_writer(id, &results);
                answered.unwrap();
            } else {
                self.nodes[at].replica.answer(id);
            }
        }
        for answer in pending.answers {
            let answer = answer();
            assert!(
                !matches!(answer, Err(WriteError::Closed | WriteError::Failed(_))),
                "{answer:?}"
            );
        }
    }

    /// Has a node write a group, behind so many that come before.
    fn write(&mut self, writer: usize, group: GroupId, rivals: u8) {
        for _ in 0..rivals {
            self.nodes[writer].catch_up(&self.stream);
            let lost = self.nodes[writer].propose(&[group], false);
            let position = self.nodes[writer].position;
            self.tick((writer + 1) % self.nodes.len());
            if let Some(lost) = lost {
                self.stream.publish(&position, &lost); // void
            }
        }
        let node = &mut self.nodes[writer];
        node.catch_up(&self.stream);
        if let Some(contents) = node.propose(&[group], false) {
            self.stream.publish(&node.position, &contents);
        }
        node.catch_up(&self.stream);
    }

    fn disturb(&mut self, at: usize, what: &Disturbance) {
        let mut node = self.nodes.remove(at);
        match what {
            Disturbance::Checkpoint => {
                node.store.checkpoint().unwrap();
                node.store.log.remove_forgotten();
            }
            Disturbance::NewSegment => {
                node.store.log.look_at_age(i64::MAX, Duration::ZERO);
                node.store.log.make_ahead().unwrap();
            }
            Disturbance::Sync => node.replica.sync().unwrap(),
            Disturbance::Crash => node = node.restarted(|_| {}),
            Disturbance::PowerCut { from, length } => {
                let (path, unsynced) = node.store.log.unsynced();
                node = node.restarted(|_| {
                    let bytes = usize::try_from(unsynced.end - unsynced.start).unwrap();
                    if bytes > 0 {
                        let from = from.index(bytes);
                        let lost = vec![0; 1 + length.index(bytes - from)];
                        let file = File::options().write(true).open(path).unwrap();
                        file.write_all_at(&lost, unsynced.start + from as u64)
                            .unwrap();
                    }
                });
            }
            Disturbance::Rebuild => {
                node = node.restarted(|directory| Doubt::of(directory).write());
            }
        }
        assert!(
            node.position.seen >= self.stream.removed as u64,
            "what is needed was removed"
        );
        self.nodes.insert(at, node);
    }

    /// A node that begins with what is left of the stream.
    fn joined(&self) -> Node {
        let epoch = self.nodes[0].position.epoch;
        let mut sequence = self.stream.removed as u64 + 1;
        let position = loop {
            match self.stream.at(sequence).map(|it| join(epoch, sequence, it)) {
                Some(Join::At(position)) => break position,
                Some(Join::Next) => sequence += 1,
                None => break Position::start(epoch),
                Some(upgrade) => panic!("{upgrade:?}"),
            }
        };
        let mut node = Node::behind(9, &position, self.machine.clone());
        assert_eq!(node.position, position);
        node.catch_up(&self.stream);
        node.replica.tend().unwrap();
        assert!(node.replica.is_complete(), "{:?}", self.stream.removed);
        node
    }

    fn check_equal(&mut self) {
        self.catch_up();
        let states: Vec<_> = self
            .nodes
            .iter()
            .map(|node| State::of(&node.store))
            .collect();
        states[0].check();
        for (node, state) in self.nodes.iter().zip(&states) {
            assert_eq!(node.position, self.nodes[0].position);
            assert_eq!(state, &states[0]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_log_that_is_taken_over_is_the_same_at_a_node_and_goes_on(
        steps in vec(same_state::any_step(), 1..30),
        bytes_max in 100..4_000usize,
    ) {
        let (directory, machine, state) = same_state::taken(steps);
        let transfer = Transfer::open(directory.path(), "a stream").unwrap();
        let epoch = transfer.epoch();
        let (mut stream, mut link) = (Stream::default(), Link::start(epoch));
        for contents in transfer.frames(Author(5), "x", bytes_max) {
            let Encoded { bytes, chain } = contents.unwrap().encode(link).unwrap();
            stream.messages.push(bytes);
            let frame = stream.messages.len() as u64;
            link = Link { epoch, frame, chain };
        }

        let Join::At(position) = join(epoch, 1, &stream.messages[0]) else {
            panic!("the first frame says where the log begins")
        };
        let mut node = Node::behind(9, &position, machine.clone());
        node.catch_up(&stream);
        node.replica.tend().unwrap();
        prop_assert!(node.replica.is_complete());
        let taken = State::of(&node.store);
        taken.check();
        prop_assert_eq!(taken, state);

        let mut nodes = Nodes { nodes: vec![node], stream, ids: 0, machine };
        nodes.tick(0);
        nodes.joined();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nodes_that_apply_the_same_frames_are_equal_whatever_happens_to_them_in_between(
        steps in vec(any_step(), 1..40),
    ) {
        let mut nodes = Nodes::new(2);
        for step in &steps {
            nodes.step(step);
            if matches!(step, Step::Disturb { .. }) {
                nodes.check_equal();
            }
        }
        nodes.check_equal();
        let joined = nodes.joined();
        prop_assert_eq!(State::of(&joined.store), State::of(&nodes.nodes[0].store));
        nodes.nodes.push(joined);
        nodes.disturb(2, &Disturbance::Rebuild);
        nodes.check_equal();
    }
}

/// One event of a task, from the node that answers it.
fn say(nodes: &mut Nodes, at: usize, task: &str, raw: &str) -> Appended {
    let node = &mut nodes.nodes[at];
    let answer = node.appender.append(Draft {
        received_at_micros: node.machine.wall(),
        raw: raw.to_owned().into(),
        fingerprint: (raw.len() as u128 * 8).into(),
        ..draft(task, 0)
    });
    commit_all(nodes, at);
    answer.blocking_recv().unwrap().unwrap()
}

/// Writes what waits at a node, and answers it.
fn commit_all(nodes: &mut Nodes, at: usize) {
    let pending = nodes.nodes[at].take(&[], &mut nodes.ids);
    for id in pending.ids {
        nodes.write(at, id, 0);
        nodes.nodes[at].replica.answer(id);
    }
}

#[test]
fn a_group_that_loses_is_decided_anew_and_changes_nothing_before() {
    let mut nodes = Nodes::new(2);
    let header = QuarantineHeader::default();
    let body = Bytes::from_static(b"nonsense");
    let put = nodes.nodes[0]
        .appender
        .quarantine(NewQuarantined { header, body });
    let pending = nodes.nodes[0].take(&[], &mut nodes.ids);
    let group = pending.ids[0];

    let lost = nodes.nodes[0].propose(&[group], false).unwrap();
    assert_eq!(lost.after.quarantine_next, 1);
    let node = &nodes.nodes[0];
    assert_eq!(*lock(&node.store.totals), lost.before);
    assert_eq!(lock(&node.store.shares).oldest(), None);

    say(&mut nodes, 1, "t1", "first");
    nodes.catch_up();
    nodes.write(0, group, 0);
    nodes.nodes[0].replica.answer(group);
    assert_eq!(put.blocking_recv().unwrap(), Ok(1));
    nodes.check_equal();
}

#[test]
fn what_another_node_has_written_is_a_duplicate_here_and_writes_no_frame() {
    let mut nodes = Nodes::new(2);
    let original = say(&mut nodes, 0, "t1", "it");
    let messages = nodes.stream.messages.len();
    let again = say(&mut nodes, 1, "t1", "it");
    assert_eq!(
        again,
        Appended {
            duplicate: true,
            ..original
        }
    );
    assert_eq!(nodes.stream.messages.len(), messages);
}

#[test]
fn an_erasure_is_a_group_of_its_own_behind_what_it_erases_and_overwrites_on_each_node() {
    let mut nodes = Nodes::new(2);
    let node = &mut nodes.nodes[0];
    let appended = node.appender.append(Draft {
        raw: Bytes::from_static(b"secret-content"),
        ..draft("t1", 0)
    });
    let erased = node.appender.erase(erasure_of("t1"));
    let pending = node.take(&[], &mut nodes.ids);
    let [first, second] = pending.ids[..] else {
        panic!("{:?}", pending.ids)
    };
    for group in [first, second] {
        nodes.write(0, group, 1);
        nodes.nodes[0].replica.answer(group);
    }
    assert!(!appended.blocking_recv().unwrap().unwrap().duplicate);
    assert_eq!(erased.blocking_recv().unwrap().unwrap().events, 1);
    nodes.check_equal();
    for node in &nodes.nodes {
        let log = std::fs::read(node.directory.path().join("log/000000000001.log")).unwrap();
        let secret = b"secret-content";
        assert!(!log.windows(secret.len()).any(|bytes| bytes == secret));
    }
}

#[test]
fn a_frame_whose_totals_are_not_what_comes_of_it_stops_the_node_and_changes_nothing() {
    let mut nodes = Nodes::new(2);
    say(&mut nodes, 0, "t1", "it");
    nodes.catch_up();
    let header = QuarantineHeader::default();
    let body = Bytes::from_static(b"nonsense");
    let put = nodes.nodes[0]
        .appender
        .quarantine(NewQuarantined { header, body });
    let pending = nodes.nodes[0].take(&[], &mut nodes.ids);
    let mut contents = nodes.nodes[0].propose(&pending.ids, false).unwrap();
    contents.after.quarantine_bytes += 1;
    let node = &mut nodes.nodes[1];
    let frame = contents.encode(node.position.link()).unwrap();
    let frame = Frame::parse(&frame.bytes).unwrap();
    let before = State::of(&node.store);
    let applied = node.replica.apply(node.position.seen + 1, &frame);
    assert!(
        matches!(&applied, Err(WriteError::Failed(problem)) if problem.contains("totals")),
        "{applied:?}"
    );
    assert_eq!(State::of(&node.store), before);
    assert_eq!(lock(&node.store.shares).oldest(), None);
    drop(put);
}

#[test]
fn a_commit_is_acknowledged_when_it_is_synced_and_a_power_cut_takes_back_no_more() {
    let mut nodes = Nodes::new(2);
    say(&mut nodes, 0, "t1", "first");
    nodes.nodes[0].replica.sync().unwrap();
    let synced = nodes.nodes[0].position;
    say(&mut nodes, 0, "t1", "second");
    say(&mut nodes, 0, "t1", "third one");
    assert_eq!(nodes.nodes[0].store.head(), Sequence(3));

    let node = nodes.nodes.remove(0);
    let (path, unsynced) = node.store.log.unsynced();
    // The later commit is there as a whole, and the earlier one is not.
    let node = node.restarted(|_| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0; 20], unsynced.start + 30).unwrap();
    });
    assert_eq!(node.position, synced);
    nodes.nodes.insert(0, node);
    nodes.check_equal();
}

#[test]
fn a_takeover_by_a_clock_that_is_ahead_forgets_nothing() {
    let mut nodes = Nodes::new(2);
    say(&mut nodes, 0, "t1", "it");
    nodes.catch_up();
    // A year ahead, and believed: it was so when the node started.
    let machine = Machine::right();
    machine.set(nodes.machine.wall() + 365 * 86_400_000_000);
    let node = nodes.nodes.remove(1);
    let (directory, number) = (node.directory, node.number);
    drop((node.replica, node.store, node.appender));
    let mut node = Node::on(number, directory, machine.clone());
    machine.pass(Duration::from_secs(600));
    node.replica.tend().unwrap();
    node.replica.writer_for_tests_mut().retention = Retention {
        event_age_max: Duration::from_secs(3_600),
        ..Retention::KEEP_ALL
    };
    nodes.nodes.push(node);
    nodes.tick(0);
    nodes.tick(1);
    nodes.tick(1);
    assert_eq!(nodes.nodes[1].store.first_available(), Sequence(1));
    nodes.check_equal();
}

#[test]
fn a_callback_whose_group_is_handed_over_again_is_in_quarantine_once() {
    let mut nodes = Nodes::new(3);
    let header = QuarantineHeader {
        received_at_micros: nodes.machine.wall(),
        idempotency_key: Some(7),
        ..QuarantineHeader::default()
    };
    let put = nodes.nodes[0].appender.quarantine(NewQuarantined {
        header,
        body: Bytes::from_static(b"nonsense"),
    });
    let pending = nodes.nodes[0].take(&[], &mut nodes.ids);
    let group = pending.ids[0];
    let message = nodes.nodes[0].replica.hand_over(group);

    // Twice in one frame, since the first answer was late; then by another node, since the second was lost; then by itself.
    let [first, again, other] = [GroupId(1001), GroupId(1002), GroupId(1003)];
    for id in [first, again] {
        let replica = &mut nodes.nodes[1].replica;
        replica.add_from_peer(id, &message).unwrap();
    }
    let contents = nodes.nodes[1].propose(&[first, again], false).unwrap();
    let node = &nodes.nodes[1];
    nodes.stream.publish(&node.position, &contents);
    nodes.catch_up();
    let replica = &mut nodes.nodes[2].replica;
    replica.add_from_peer(other, &message).unwrap();
    assert!(nodes.nodes[2].propose(&[other], false).is_none());
    assert!(nodes.nodes[0].propose(&[group], false).is_none());
    nodes.nodes[0].replica.answer(group);

    assert_eq!(put.blocking_recv().unwrap(), Ok(1));
    assert_eq!(lock(&nodes.nodes[0].store.totals).quarantine_count, 1);
    nodes.check_equal();
}

#[test]
fn results_of_other_commands_are_refused_and_the_group_stays() {
    let mut nodes = Nodes::new(2);
    let put = nodes.nodes[0].appender.append(draft("t1", 0));
    let pending = nodes.nodes[0].take(&[], &mut nodes.ids);
    let probe = nodes.nodes[1].appender.probe();
    let other = nodes.nodes[1].take(&[], &mut nodes.ids);
    nodes.write(1, other.ids[0], 0);
    let results = nodes.nodes[1].replica.results(other.ids[0]);
    drop(probe);
    let replica = &mut nodes.nodes[0].replica;
    assert!(replica.answer_by_writer(pending.ids[0], &results).is_err());
    assert!(
        replica
            .answer_by_writer(pending.ids[0], &Bytes::new())
            .is_err()
    );
    nodes.write(0, pending.ids[0], 0);
    nodes.nodes[0].replica.answer(pending.ids[0]);
    assert!(put.blocking_recv().unwrap().is_ok());
}

#[test]
fn an_empty_queue_times_out_a_waker_wakes_and_a_stop_comes_behind_what_was_sent() {
    let mut nodes = Nodes::new(1);
    let node = &mut nodes.nodes[0];
    let mut wait = || node.replica.wait(Duration::ZERO, || GroupId(1));
    assert_eq!(wait(), Waited::TimedOut);
    node.appender.waker().wake();
    assert_eq!(
        node.replica.wait(Duration::ZERO, || GroupId(1)),
        Waited::Woken
    );
    let probe = node.appender.probe();
    node.appender.stop();
    assert!(matches!(
        node.replica.wait(Duration::ZERO, || GroupId(1)),
        Waited::Group(_)
    ));
    assert_eq!(
        node.replica.wait(Duration::ZERO, || GroupId(2)),
        Waited::Stopped
    );
    node.replica.refuse(GroupId(1), &WriteError::Closed);
    assert_eq!(probe.blocking_recv().unwrap(), Err(WriteError::Closed));
}

#[test]
fn a_group_has_no_more_bytes_than_a_frame_unless_it_is_one_command() {
    let mut nodes = Nodes::new(1);
    let sizes = [LIMITS.bytes_max - 10, 11, 1, LIMITS.bytes_max * 2, 1];
    let answers: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(n, bytes)| {
            nodes.nodes[0]
                .appender
                .append(draft(&format!("t{n}"), *bytes))
        })
        .collect();
    let pending = nodes.nodes[0].take(&[], &mut nodes.ids);
    assert_eq!(
        pending.ids.len(),
        4,
        "the second and the third are together"
    );
    for id in pending.ids {
        nodes.write(0, id, 0);
        nodes.nodes[0].replica.answer(id);
    }
    for answer in answers {
        assert!(answer.blocking_recv().unwrap().is_ok());
    }
}

#[test]
fn a_backup_has_what_is_shown_and_is_taken_while_nothing_else_waits() {
    let mut nodes = Nodes::new(1);
    say(&mut nodes, 0, "t1", "it");
    let node = &mut nodes.nodes[0];
    let backup = node.appender.backup();
    assert_eq!(
        node.replica.wait(Duration::ZERO, || GroupId(9)),
        Waited::Woken
    );
    assert!(backup.blocking_recv().unwrap().is_ok());
    let (_, unsynced) = node.store.log.unsynced();
    assert!(unsynced.is_empty(), "it must not have what could be lost");
}

#[test]
fn what_outlives_events_is_brought_again_so_that_old_frames_can_go_and_a_node_can_join_behind() {
    let mut nodes = Nodes::new(2);
    let sent = [
        Sent::Quarantine {
            credential: 1,
            bytes: 9,
        },
        Sent::Expect {
            tasks: vec![(1, 1)],
            client: 1,
        },
    ];
    nodes.commit(0, &sent, 0, false);
    say(&mut nodes, 0, "t1", "it");
    let whole = nodes.stream.messages.len();
    assert_eq!(nodes.nodes[0].replica.unneeded_up_to(), 0);

    nodes.disturb(0, &Disturbance::NewSegment);
    nodes.tick(0);
    nodes.step(&Step::Retain {
        event_bytes: 0,
        quarantined: u64::MAX,
    });
    assert!(nodes.nodes[0].replica.needs_frame());
    nodes.tick(0);
    assert!(!nodes.nodes[0].replica.needs_frame());
    let unneeded = nodes.nodes[0].replica.unneeded_up_to();
    assert_eq!(
        unneeded,
        whole as u64 - 1,
        "one stays before what is needed"
    );

    nodes.check_equal();
    nodes.stream.removed = unneeded as usize;
    let joined = nodes.joined();
    assert_eq!(State::of(&joined.store), State::of(&nodes.nodes[0].store));
    nodes.nodes.push(joined);
    for at in 0..3 {
        nodes.disturb(at, &Disturbance::Rebuild);
    }
    nodes.check_equal();
    say(&mut nodes, 2, "t1", "more");
    nodes.check_equal();
}

#[test]
fn a_node_writes_again_what_is_in_its_oldest_segment_and_others_do_not_hear_of_it() {
    let mut nodes = Nodes::new(2);
    let sent = [
        Sent::Quarantine {
            credential: 1,
            bytes: 9,
        },
        Sent::Expect {
            tasks: vec![(1, 1)],
            client: 1,
        },
    ];
    nodes.commit(0, &sent, 0, false);
    // Much more than what stays, so that its segment is worth it.
    for n in 0..8 {
        say(
            &mut nodes,
            0,
            &format!("t{n}"),
            &"x".repeat(LIMITS.bytes_max),
        );
    }
    nodes.catch_up();
    nodes.disturb(1, &Disturbance::NewSegment);
    nodes.tick(0);
    nodes.step(&Step::Retain {
        event_bytes: 0,
        quarantined: u64::MAX,
    });
    (0..3).for_each(|_| nodes.tick(0));
    nodes.catch_up();
    let in_first = |node: &Node| lock(&node.store.quarantine).in_segment(1);
    assert_eq!(in_first(&nodes.nodes[0]), [1]);
    assert!(in_first(&nodes.nodes[1]).is_empty());

    // Its file goes once that is durable.
    let node = &mut nodes.nodes[1];
    node.store.checkpoint().unwrap();
    nodes.tick(0);
    nodes.catch_up();
    let node = &mut nodes.nodes[1];
    let path = node.directory.path().join("log/000000000001.log");
    node.store.log.remove_forgotten();
    assert!(
        path.exists(),
        "a power cut could take back the commit that says so"
    );
    node.replica.sync().unwrap();
    node.store.log.remove_forgotten();
    assert!(!path.exists());
    nodes.disturb(1, &Disturbance::Rebuild);
    nodes.check_equal();
}
