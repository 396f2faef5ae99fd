//! The writer of a node in a cluster: the same commands, decisions and commits as [`Writer`]'s, but a stream outside of the
//! broker has the log. It follows what a driver tells it to do, and knows no network.
//!
//! A group of commands is taken off the queue ([`Replica::wait`]) and kept until its callers are answered. To decide about it
//! ([`Replica::propose`]) changes nothing here: another frame may come before, and then it is decided anew. What the stream has,
//! of this node or of another one, is applied ([`Replica::apply`]), which decides nothing.
//!
//! **A commit is shown before it is synced**, because the stream has it. It is synced within a second, before anything relies on
//! its being on this disk: a checkpoint of the index, the removal of a segment, the overwriting of what it erases, a backup. After
//! a crash the node goes on behind its last whole commit, which says from which frame it came.

mod apply;
mod entries;
mod groups;
mod handover;
mod older;

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use groups::Kept;
pub use handover::HandoverError;
use uuid::Uuid;

use super::{
    appender::{Appender, Waker},
    carry::CARRIED_BYTES_MAX,
    command::Command,
    counts::Counts,
    decide::{Proposed, Tick, propose},
    disk,
    error::WriteError,
    moment::Moment,
    publish::Publish,
    thread::{ANNOUNCED_MAX, Writer},
};
use crate::{
    cluster::{
        Author, Contents, Entries, Group, GroupId, Limits, Link, Position, StreamId, Totals,
    },
    event::Sequence,
    store::{
        Health, Store,
        clock::{Adoption, TOLERANCE},
        lock,
        log::Streamed,
    },
    trace::Origin,
};

/// How long a commit from the stream may wait for its sync.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// See the module's description.
pub struct Replica<P> {
    writer: Writer<P>,
    waker: Waker,
    author: Author,
    name: String,
    limits: Limits,
    /// By their numbers, until they are answered or refused.
    groups: HashMap<GroupId, Kept>,
    /// Taken off the queue for the next group, which must not be together with the one before.
    next: Vec<Command>,
    /// The same of a command for which the last group had no room.
    held_back: Option<Command>,
    is_stopping: bool,
    /// What this node has decided last, until it decides anew.
    proposal: Option<Proposal>,
    /// The totals that what the trimmer knows belongs to.
    trimmed: Option<Totals>,
    /// The newest frame that was applied since the start.
    newest: Option<Newest>,
    /// The traces of what waits, by the ids of their events.
    origins: HashMap<Uuid, Arc<Origin>>,
    behind: Option<Behind>,
    is_complete: bool,
}

/// A decision that may become a frame.
struct Proposal {
    after: Totals,
    counts: Counts,
    /// It notes that this node's clock was changed.
    has_adoption: bool,
}

/// The frame that was applied last.
#[derive(Clone, Copy)]
struct Newest {
    author: Author,
    /// When it was applied, in monotonic time.
    at_micros: i64,
}

/// The disk is behind what is shown.
#[derive(Clone, Copy)]
struct Behind {
    /// The oldest segment that the log needs by the newest commit.
    oldest: u64,
    since: Instant,
}

/// What [`Replica::wait`] has waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Commands have come.
    Group(Group),
    /// Something else has to be looked at.
    Woken,
    /// Nothing has come.
    TimedOut,
    /// No command will come any more.
    Stopped,
}

impl<P> fmt::Debug for Replica<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("writer", &self.writer)
            .field("author", &self.author)
            .finish_non_exhaustive()
    }
}

impl<P: Publish> Replica<P> {
    /// A node with this writer, whose commands come by `appender`. `author` was drawn at this start, and `limits` say how much
    /// goes into one frame.
    pub fn new(
        writer: Writer<P>,
        appender: &Appender,
        author: Author,
        name: String,
        limits: Limits,
    ) -> Self {
        let is_complete = writer.store.is_complete();
        Self {
            writer,
            waker: appender.waker(),
            author,
            name,
            limits,
            groups: HashMap::new(),
            next: Vec::new(),
            held_back: None,
            is_stopping: false,
            proposal: None,
            trimmed: None,
            newest: None,
            origins: HashMap::new(),
            behind: None,
            is_complete,
        }
    }

    /// The stream that the log is read from.
    pub fn stream(&self) -> StreamId {
        self.writer.store.stream()
    }

    /// Up to where this node has the stream: what it has seen beyond its last frame it will see again.
    pub fn position(&self) -> Position {
        let store = &self.writer.store;
        let streamed = store.log.streamed();
        let start = Link::start(store.epoch());
        Position {
            epoch: store.epoch(),
            seen: streamed.frame,
            frame: streamed.frame,
            chain: if streamed.frame == 0 {
                start.chain
            } else {
                streamed.chain
            },
            totals: *lock(&store.totals),
        }
    }

    /// What the machine's clock says, in microseconds since 1970.
    pub(crate) fn machine_micros(&self) -> i64 {
        let clock = self.writer.store.clock();
        clock.now_micros().saturating_add(clock.difference_micros())
    }

    /// Whether this node's own disk takes writes.
    pub(crate) fn health(&self) -> Health {
        self.writer.store.health()
    }

    /// Whether it has all that the log retains. A node that has just joined lacks what the others are about to forget or to
    /// write again, until it has caught up.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether there is something to forget, so that the node that writes should not wait for commands, but [`Self::propose`]
    /// with `must_write`.
    pub fn needs_frame(&self) -> bool {
        let Writer {
            store,
            trimmer,
            retention,
            ..
        } = &self.writer;
        trimmer.is_forgetting_due(store, retention)
    }

    /// Up to which message the stream holds nothing any more that a node would need; 0 if it needs all of it. One frame stays
    /// before those that are needed.
    pub fn unneeded_up_to(&self) -> u64 {
        self.writer.store.unneeded_up_to().saturating_sub(1)
    }

    #[cfg(test)]
    pub(super) fn writer_for_tests(&self) -> &Writer<P> {
        &self.writer
    }

    #[cfg(test)]
    pub(super) fn writer_for_tests_mut(&mut self) -> &mut Writer<P> {
        &mut self.writer
    }

    /// Ends a [`Self::wait`].
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Takes what waits as one group, which `next` names. Takes up new limits of retention, and takes backups.
    pub fn wait(&mut self, timeout: Duration, mut next: impl FnMut() -> GroupId) -> Waited {
        if !self.next.is_empty() {
            let group = mem::take(&mut self.next);
            return Waited::Group(self.keep(next(), group));
        }
        let first = match self.held_back.take() {
            Some(first) => first,
            None if self.is_stopping => return Waited::Stopped,
            None => match self.writer.queue.commands.recv_timeout(timeout) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.is_stopping = true;
                    return Waited::Stopped;
                }
                Ok(first) => self.released(first),
                Err(RecvTimeoutError::Timeout) => return Waited::TimedOut,
            },
        };
        let group = self.gather(first);

        if let Some(retention) = self.writer.queue.new_retention() {
            self.writer.retention = retention;
            retention.note_in(&self.writer.metrics);
        }
        self.writer.check_disk();
        let group = self.serve_here(group);
        // An erasure looks its events up in the log, so it needs a frame of its own behind theirs.
        let (erasures, group): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|command| matches!(command, Command::Erase(..)));
        let group = if group.is_empty() {
            erasures
        } else {
            self.next = erasures;
            group
        };
        if group.is_empty() {
            Waited::Woken
        } else {
            Waited::Group(self.keep(next(), group))
        }
    }

    /// A command that was taken off the queue.
    fn released(&self, command: Command) -> Command {
        self.writer.queue.release(&command);
        command
    }

    /// The commands that wait behind the first, as many as one group may have.
    fn gather(&mut self, first: Command) -> Vec<Command> {
        let (mut group, mut tasks, mut bytes) = (Vec::new(), 0, 0);
        let mut next = Some(first);
        while let Some(command) = next.take() {
            bytes += command.bytes();
            if bytes > self.limits.bytes_max && !group.is_empty() {
                self.held_back = Some(command);
                break;
            }
            tasks += command.tasks();
            if !matches!(command, Command::Retain) {
                group.push(command);
            }
            if tasks >= self.limits.drafts_max {
                break;
            }
            next = match self.writer.queue.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.is_stopping = true;
                    None
                }
                Ok(command) => Some(self.released(command)),
                Err(TryRecvError::Empty) => None,
            };
        }
        group
    }

    /// Takes backups, and refuses what this node cannot take now; returns the rest.
    fn serve_here(&mut self, group: Vec<Command>) -> Vec<Command> {
        let refusal = self.writer.refusal();
        let may_forget = disk::may_forget(&self.writer.store.health());
        let is_crowded = self.writer.store.log.announced() >= ANNOUNCED_MAX;
        let mut rest = Vec::with_capacity(group.len());
        for command in group {
            match &refusal {
                _ if matches!(command, Command::Backup(_)) => match self.sync() {
                    Ok(()) => self.writer.back_up(command),
                    Err(error) => command.refuse(error),
                },
                // Deletions free some disk, and an erasure must not wait for space.
                Some(error) if !may_forget || !command.only_removes() => {
                    command.refuse(error.clone());
                }
                _ if is_crowded && command.erases() => command.refuse(WriteError::Overloaded),
                _ => rest.push(command),
            }
        }
        rest
    }

    /// Decides about groups on what is applied, in this order; with `must_write` there is something to write in any case. `None`
    /// says that there is not: everything in the groups is in the log. Nothing is changed but what the groups would be answered.
    pub fn propose(
        &mut self,
        groups: &[GroupId],
        must_write: bool,
    ) -> Result<Option<Box<Contents>>, WriteError> {
        if let Some(error @ WriteError::Failed(_)) = self.writer.refusal() {
            return Err(error);
        }
        let before = *lock(&self.writer.store.totals);
        if self.trimmed != Some(before) {
            self.writer.trimmer.forget_times();
        }
        let moment = self.moment(&before);

        let Self {
            writer,
            groups: kept,
            ..
        } = self;
        let proposed = groups.iter().filter_map(|id| kept.get(id));
        let bytes: usize = proposed.clone().map(|kept| kept.bytes).sum();
        let free = self.limits.bytes_max.saturating_sub(bytes) as u64;
        let tick = Tick {
            must_write,
            carried_bytes_max: free.min(CARRIED_BYTES_MAX),
        };
        let commands = proposed.flat_map(|kept| &kept.commands);
        let Proposed {
            commit,
            outcomes,
            counts,
        } = propose(
            &writer.store,
            commands,
            moment,
            &writer.retention,
            &mut writer.trimmer,
            tick,
        );
        let mut outcomes = outcomes.into_iter();
        for id in groups {
            if let Some(kept) = kept.get_mut(id) {
                kept.outcomes = outcomes.by_ref().take(kept.commands.len()).collect();
            }
        }

        let Some((entries, after)) = commit.take_back(&writer.store) else {
            counts.add_to(&writer.metrics, 0, 0);
            self.proposal = None;
            self.trimmed = Some(before);
            return Ok(None);
        };
        self.trimmed = Some(after);
        self.proposal = Some(Proposal {
            after,
            counts,
            has_adoption: moment.adoption.is_some(),
        });
        Ok(Some(Box::new(Contents {
            author: self.author,
            name: self.name.clone(),
            commit_time_micros: moment.now_micros,
            before,
            after,
            entries: Entries::of(&entries),
        })))
    }

    /// The time of a decision. If another node has written last, its clock is not this one's: what is far ahead of what that one
    /// would say now counts as a change of the log's clock, so that nothing is forgotten by it.
    fn moment(&self, before: &Totals) -> Moment {
        let clock = &self.writer.store.clock;
        let mut adoption = self.writer.adoption;
        if let Some(newest) = self.newest.filter(|newest| newest.author != self.author) {
            let passed = clock.monotonic_micros().saturating_sub(newest.at_micros);
            let (at_micros, theirs) = (
                clock.now_micros(),
                before.log_time_micros.saturating_add(passed),
            );
            let ahead = at_micros.saturating_sub(theirs);
            adoption = (ahead > TOLERANCE).then_some(Adoption {
                at_micros,
                by_micros: ahead,
                earlier_by_micros: ahead,
            });
        }
        Moment::now(clock, adoption)
    }

    /// What has to be done from time to time, each second at least: looks at the disk, the clock and the age of the log's segment,
    /// and makes durable what is shown.
    pub fn tend(&mut self) -> Result<(), WriteError> {
        self.writer.check_disk();
        self.writer.check_clock();
        self.writer.look_at_age();
        if !self.is_complete {
            self.is_complete = self.writer.store.is_complete();
        }
        let is_due = self
            .behind
            .is_some_and(|behind| behind.since.elapsed() >= SYNC_INTERVAL);
        if is_due {
            self.sync()?;
        }
        if let Some(maintenance) = &self.writer.maintenance {
            maintenance.wake_if_needed(&self.writer.store);
        }
        match self.writer.refusal() {
            Some(error @ WriteError::Failed(_)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes durable what is shown.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        let Some(Behind { oldest, .. }) = self.behind.take() else {
            return Ok(());
        };
        let started = Instant::now();
        let store = Arc::clone(&self.writer.store);
        if let Err(problem) = (self.writer.sync)(&store) {
            self.writer.fail(&problem, Vec::new());
            return Err(WriteError::Failed(problem));
        }
        store.log.note_oldest(oldest);
        store.acknowledged_files.raise(store.acknowledged());
        self.writer
            .metrics
            .fsync_seconds
            .observe(started.elapsed().as_secs_f64());
        Ok(())
    }
}

impl Store {
    /// Whether the log follows a stream. Then nothing but a [`Replica`] may write to it.
    pub fn follows_stream(&self) -> bool {
        self.log.streamed() != Streamed::default()
    }

    /// Whether everything that the log retains is here.
    pub(in crate::store) fn is_complete(&self) -> bool {
        let totals = *lock(&self.totals);
        let quarantined = lock(&self.quarantine).count_and_bytes();
        let expected = lock(&self.expectations).counts().open as u64;
        quarantined == (totals.quarantine_count, totals.quarantine_bytes)
            && expected == totals.expectation_count
            && self.log.oldest() <= Sequence(totals.first_available)
    }

    /// The newest frame that holds nothing retained, nor does any before it; 0 if there is none.
    fn unneeded_up_to(&self) -> u64 {
        let first_available = Sequence(lock(&self.totals).first_available);
        let quarantined = lock(&self.quarantine).frames().first();
        let expected = lock(&self.expectations).frames().first();
        let needed = [quarantined, expected].into_iter().flatten().min();
        self.log
            .frame_before(first_available, needed.unwrap_or(u64::MAX))
    }
}
