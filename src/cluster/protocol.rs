//! One node's part in the cluster, as a state machine without I/O: inputs in, outputs out, no clock and no network. Pure.
//!
//! **The author of the last frame writes the next one.** Other nodes hand it their groups, and write themselves if it does not answer.
//! That is a hint for speed and no election: whatever a node believes, the apply rule alone decides which frame counts.
//!
//! **One frame at a time, and its fate is always learnt.** A frame is published behind what this node has seen, on condition that the
//! stream has nothing behind that. Until the message at the next sequence is known, the same bytes are published again on the same
//! condition, and nothing new is decided. If the message there is this frame, it is in; any other puts it out, and its groups are
//! decided anew, on what is applied by then.
//!
//! **A node that was away hears the others before it writes.** Behind a stream that has lost its end they have more than it has, and
//! what it wrote there would get places that are taken. On a stream that is whole such a frame would be refused anyway.
//!
//! **An answer comes after this node has applied the frame**, also if another node has written it. So a caller reads here what was
//! answered here.
//!
//! Inputs may come late, twice, in another order, or not at all, and timeouts may come at any time: that costs time only. Carry outputs out
//! in their order. Groups are named by numbers that the driver gives out; it keeps their drafts and results.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    apply_rule::{Position, Verdict, judge},
    frame::{Author, Contents, Encoded, Frame},
    hearing::Hearing,
    step::{Group, GroupId, Input, Limits, Output, Refusal, Reply, Stop, ToldBy},
};

/// Groups that are handed to the writer at a time. More would only wait in its queue.
const HANDED_MAX: usize = 4;

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protocol {
    me: Author,
    limits: Limits,
    rule: Rule,
    position: Position,
    /// The author of the last frame that was applied since the start.
    writer: Option<Author>,
    /// The writer does not answer, so this node writes next. Until a frame comes.
    takes_over: bool,
    /// A frame is due although there may be nothing to say.
    tick_due: bool,
    work: Work,
    /// In the order in which they came.
    waiting: VecDeque<Group>,
    /// Handed to this writer.
    handed: Vec<(Group, Author)>,
    /// Written by another node, and not applied here yet: through which message.
    awaited: Vec<(Group, u64)>,
    hearing: Hearing,
    stopped: Option<Stop>,
}

/// What this node writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Nothing,
    /// It is being decided.
    Deciding(Vec<Group>),
    /// It is published, behind what is seen. Nobody has said yet what is at the next sequence.
    InDoubt {
        groups: Vec<Group>,
        chain: u64,
        bytes: Bytes,
    },
}

/// The apply rule, which tests replace to see that a wrong one is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule(pub(super) fn(&Position, u64, &Bytes) -> Verdict);

impl PartialEq for Rule {
    fn eq(&self, _: &Self) -> bool {
        true // one run has one rule
    }
}

impl Eq for Rule {}

impl std::hash::Hash for Rule {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl Protocol {
    /// A node that has just started, and has the stream up to `position`.
    pub fn new(me: Author, position: Position, limits: Limits) -> Self {
        Self::with_rule(me, position, limits, Rule(judge))
    }

    pub(super) fn with_rule(me: Author, position: Position, limits: Limits, rule: Rule) -> Self {
        Self {
            me,
            limits,
            rule,
            position,
            writer: None,
            takes_over: false,
            tick_due: false,
            work: Work::Nothing,
            waiting: VecDeque::new(),
            handed: Vec::new(),
            awaited: Vec::new(),
            hearing: Hearing::FOLLOWING,
            stopped: None,
        }
    }

    /// The same node, which writes nothing before [`Input::Listened`] if it `listens`.
    #[must_use]
    pub fn listening(mut self, listens: bool) -> Self {
        if listens {
            self.hearing.listen();
        }
        self
    }

    /// Whether it waits for [`Input::Listened`].
    pub fn is_listening(&self) -> bool {
        self.hearing.is_listening()
    }

    /// The newest frame that another node has, by its word, as far as that counts; else 0.
    pub fn heard(&self) -> u64 {
        self.hearing.newest()
    }

    /// Up to where this node has the stream.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The author of the last frame that was applied since the start.
    pub fn writer(&self) -> Option<Author> {
        self.writer
    }

    /// The frame of which nobody has said yet what became of it, by its chain.
    pub fn in_doubt(&self) -> Option<u64> {
        match &self.work {
            Work::InDoubt { chain, .. } => Some(*chain),
            Work::Nothing | Work::Deciding(_) => None,
        }
    }

    /// The groups that are handed to the writer.
    pub fn handed_over(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.handed.iter().map(|(group, _)| group.id)
    }

    /// Why this node does not follow any more, if so.
    pub fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// Takes note of what has happened; returns what to do.
    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        let out = &mut outputs;
        if self.stopped.is_some() {
            if let Input::Group(group) = input {
                refuse(group, Refusal::Stopped, out);
            }
            return outputs;
        }

        match input {
            Input::Group(group) => self.waiting.push_back(group),
            Input::Decided { on, contents } => self.decided(on, contents, out),
            Input::Message { sequence, bytes } => self.message(sequence, &bytes, out),
            Input::Acked { chain, sequence } => self.acked(chain, sequence, out),
            Input::Refused { chain } if self.in_doubt() == Some(chain) => {
                let sequence = self.next_sequence();
                out.push(Output::Fetch { sequence });
            }
            Input::Refused { .. } => {}
            Input::Unanswered { chain } if self.in_doubt() == Some(chain) => self.publish(out),
            Input::Unanswered { .. } => {}
            Input::Replied { group, reply } => self.replied(group, reply),
            Input::GiveUp(group) => self.give_up(group, out),
            Input::Quiet => self.tick_due = self.writer == Some(self.me),
            Input::Silent => self.silent(out),
            Input::Deaf => self.hearing.listen(),
            Input::Heard { frame } => self.hearing.hear(frame),
            Input::Listened { last } => {
                self.hearing.has_listened(last);
                self.publish(out);
            }
        }
        self.answer_awaited(out);
        self.proceed(out);
        outputs
    }

    fn next_sequence(&self) -> u64 {
        self.position.seen.saturating_add(1)
    }

    fn may_write(&self) -> bool {
        self.hearing.may_write(self.position.seen)
    }

    fn is_writer(&self) -> bool {
        self.takes_over || self.writer.is_none_or(|writer| writer == self.me)
    }

    /// Starts what can be started.
    fn proceed(&mut self, out: &mut Vec<Output>) {
        if self.stopped.is_some() || self.work != Work::Nothing {
            return;
        }
        match self.writer.filter(|_| !self.is_writer()) {
            Some(writer) => self.hand_over(writer, out),
            None if self.may_write() => self.decide(out),
            None => {}
        }
    }

    fn hand_over(&mut self, writer: Author, out: &mut Vec<Output>) {
        self.tick_due = false;
        let (of_peers, own): (VecDeque<_>, _) =
            self.waiting.drain(..).partition(|it| it.is_from_peer);
        self.waiting = own;
        of_peers
            .into_iter()
            .for_each(|group| refuse(group, Refusal::NotWriter, out));

        while self.handed.len() < HANDED_MAX
            && let Some(group) = self.waiting.pop_front()
        {
            self.handed.push((group, writer));
            out.push(Output::HandOver {
                group: group.id,
                to: writer,
            });
        }
    }

    fn decide(&mut self, out: &mut Vec<Output>) {
        let (mut groups, mut drafts, mut bytes) = (Vec::<Group>::new(), 0_usize, 0_usize);
        while let Some(next) = self.waiting.front() {
            drafts = drafts.saturating_add(next.drafts);
            bytes = bytes.saturating_add(next.bytes);
            let fits = drafts <= self.limits.drafts_max && bytes <= self.limits.bytes_max;
            if !fits && !groups.is_empty() {
                break;
            }
            groups.extend(self.waiting.pop_front());
        }
        if groups.is_empty() && !self.tick_due {
            return;
        }

        out.push(Output::Decide {
            on: self.position.frame,
            groups: groups.iter().map(|group| group.id).collect(),
            must_write: std::mem::take(&mut self.tick_due),
        });
        self.work = Work::Deciding(groups);
    }

    fn decided(&mut self, on: u64, contents: Option<Box<Contents>>, out: &mut Vec<Output>) {
        // A frame may have come since it was asked.
        let Work::Deciding(groups) = &mut self.work else {
            return;
        };
        if on != self.position.frame {
            return;
        }
        let groups = std::mem::take(groups);
        self.work = Work::Nothing;
        let Some(contents) = contents else {
            self.answer(&groups, ToldBy::ThisNode, out);
            return;
        };
        if !self.may_write() {
            return self.wait_again(groups);
        }
        match contents.encode(self.position.link()) {
            Ok(Encoded { bytes, chain }) => {
                self.work = Work::InDoubt {
                    groups,
                    chain,
                    bytes,
                };
                self.publish(out);
            }
            Err(problem) => {
                self.work = Work::Deciding(groups);
                self.stop(Stop::Unfit(problem), out);
            }
        }
    }

    /// Publishes the frame in doubt, for the first time or again. Where another node has a frame at its place, the stream has it, too,
    /// unless it has lost it.
    fn publish(&self, out: &mut Vec<Output>) {
        if let Work::InDoubt { chain, bytes, .. } = &self.work
            && !self.hearing.is_listening()
        {
            if !self.may_write() {
                let sequence = self.next_sequence();
                out.push(Output::Fetch { sequence });
                return;
            }
            let frame = Encoded {
                bytes: bytes.clone(),
                chain: *chain,
            };
            let expected = self.position.seen;
            out.push(Output::Publish { expected, frame });
        }
    }

    fn acked(&mut self, chain: u64, sequence: u64, out: &mut Vec<Output>) {
        let Work::InDoubt {
            chain: mine, bytes, ..
        } = &self.work
        else {
            return;
        };
        // Elsewhere than at the next sequence there is something between, which has to be seen first.
        if *mine == chain && sequence == self.next_sequence() {
            let bytes = bytes.clone();
            self.message(sequence, &bytes, out);
        }
    }

    fn message(&mut self, sequence: u64, bytes: &Bytes, out: &mut Vec<Output>) {
        if sequence <= self.position.seen {
            return;
        }
        match self.rule.0(&self.position, sequence, bytes) {
            Verdict::Apply(frame) => self.apply(sequence, frame, out),
            Verdict::Void => self.skip(sequence, true, out),
            Verdict::Foreign => self.skip(sequence, false, out),
            Verdict::Hole(hole) => self.stop(Stop::Hole(hole), out),
            Verdict::Upgrade { format } => self.stop(Stop::Upgrade { format }, out),
        }
    }

    fn apply(&mut self, sequence: u64, frame: Box<Frame>, out: &mut Vec<Output>) {
        let chain = frame.header.chain;
        self.position = self.position.behind(&frame);
        self.hearing.applied(sequence);
        self.writer = Some(frame.contents.author);
        self.takes_over = false;
        out.push(Output::Apply { sequence, frame });

        match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::InDoubt {
                groups,
                chain: mine,
                ..
            } if mine == chain => self.answer(&groups, ToldBy::ThisNode, out),
            Work::InDoubt { groups, .. } | Work::Deciding(groups) => self.wait_again(groups),
            Work::Nothing => {}
        }
    }

    fn skip(&mut self, sequence: u64, is_void: bool, out: &mut Vec<Output>) {
        self.position = self.position.past();
        out.push(Output::Skipped { sequence, is_void });
        // Something else is where the frame in doubt was to be. What is being decided stays right.
        if let Work::InDoubt { groups, .. } = &mut self.work {
            let groups = std::mem::take(groups);
            self.work = Work::Nothing;
            self.wait_again(groups);
        }
    }

    /// Before everything that came later.
    fn wait_again(&mut self, groups: impl IntoIterator<Item = Group>) {
        for group in groups {
            let later = self.waiting.iter().position(|other| other.id > group.id);
            self.waiting
                .insert(later.unwrap_or(self.waiting.len()), group);
        }
    }

    fn answer(&self, groups: &[Group], by: ToldBy, out: &mut Vec<Output>) {
        let through = self.position.frame;
        out.extend(groups.iter().map(|group| Output::Answer {
            group: group.id,
            through,
            by,
        }));
    }

    fn replied(&mut self, group: GroupId, reply: Reply) {
        // Any writer's word is good, and a late one about a group that is not handed over is not needed.
        let Some(at) = self
            .handed
            .iter()
            .position(|(handed, _)| handed.id == group)
        else {
            return;
        };
        let (group, asked) = self.handed.remove(at);
        match reply {
            Reply::Written { through } => self.awaited.push((group, through)),
            Reply::NotWriter | Reply::Nothing => {
                self.takes_over |= self.writer == Some(asked);
                self.wait_again([group]);
            }
        }
    }

    fn answer_awaited(&mut self, out: &mut Vec<Output>) {
        let seen = self.position.seen;
        let reached = self
            .awaited
            .extract_if(.., |(_, through)| *through <= seen)
            .map(|(group, through)| Output::Answer {
                group: group.id,
                through,
                by: ToldBy::Writer,
            });
        out.extend(reached);
    }

    fn give_up(&mut self, id: GroupId, out: &mut Vec<Output>) {
        let is_it = |group: &Group| group.id == id;
        let given_up: Vec<Group> = match &mut self.work {
            Work::InDoubt { groups, .. } | Work::Deciding(groups) => {
                groups.extract_if(.., |group| is_it(group)).collect()
            }
            Work::Nothing => Vec::new(),
        };
        let waiting: Vec<_> = self.waiting.iter().copied().filter(is_it).collect();
        self.waiting.retain(|group| !is_it(group));
        let handed = self.handed.extract_if(.., |(group, _)| is_it(group));
        let awaited = self.awaited.extract_if(.., |(group, _)| is_it(group));

        let all = given_up
            .into_iter()
            .chain(waiting)
            .chain(handed.map(|(group, _)| group))
            .chain(awaited.map(|(group, _)| group));
        all.for_each(|group| refuse(group, Refusal::GaveUp, out));
    }

    /// Somebody has to write, or this node does not hear of it.
    fn silent(&mut self, out: &mut Vec<Output>) {
        out.push(Output::Reconnect);
        self.takes_over = true;
        self.tick_due = true;
        self.publish(out);
    }

    fn stop(&mut self, stop: Stop, out: &mut Vec<Output>) {
        self.stopped = Some(stop);
        out.push(Output::Stopped(stop));

        let work = match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::InDoubt { groups, .. } | Work::Deciding(groups) => groups,
            Work::Nothing => Vec::new(),
        };
        let handed = self.handed.drain(..).map(|(group, _)| group);
        let awaited = self.awaited.drain(..).map(|(group, _)| group);
        let all = work
            .into_iter()
            .chain(self.waiting.drain(..))
            .chain(handed)
            .chain(awaited);
        all.for_each(|group| refuse(group, Refusal::Stopped, out));
    }
}

fn refuse(group: Group, why: Refusal, out: &mut Vec<Output>) {
    let group = group.id;
    out.push(Output::Refuse { group, why });
}
