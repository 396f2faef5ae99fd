//! The one writer: takes what has queued up while the last commit ran and commits it together, with one fsync.
//!
//! For each group: decide (dedupe, revision, conflict), write to the log, fsync, tell the database, move the head, publish,
//! answer. A reply is sent only after the fsync, for duplicates too. When a write fails the store takes no more until a
//! restart, because only recovery can tell what reached the disk. Runs on a thread of its own; [`Appender`] is its door. A
//! second thread does what a group should not wait for ([`keeper`]).

mod batch;
mod import;
mod keeper;
mod overdue;
mod overwriting;

use std::{
    fmt, io,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Appended, Backup, Draft, Health, NewQuarantined, Store, Totals, UNKNOWN_MICROS,
    acknowledged::Acknowledged,
    clock::{Adoption, FAR},
    lock,
    shares::Measure,
};
use crate::{
    event::{Product, Record, Sequence, TaskId},
    metrics::Metrics,
};
use batch::{Batch, Gone, Granted, Write};
pub(super) use import::{Import, Imported};
use keeper::Bell;
pub use keeper::Keeper;
use overwriting::Overwriting;

/// Most commands that wait for the writer. More than the connections that may be open, so only a flood from within fills it;
/// then a callback is refused with 503.
const QUEUE_MAX: usize = 4_096;
/// Most bytes that wait for the writer, should the disk stall; then callbacks are refused with 503, too. As much again as
/// the bodies in flight may have by default.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most commands in one commit: the trial saw little gain beyond.
const GROUP_MAX: usize = 512;
/// A commit takes no further command beyond this many bytes, so that a group of large bodies does not delay its first.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most commits whose announcements wait to be overwritten: each may be for many events. More are refused, as by a full queue.
const ANNOUNCED_MAX: usize = 64;
/// How often an idle writer looks at the clock, retention and free disk space.
const TICK: Duration = Duration::from_secs(1);
/// With less free disk nothing is forgotten either, because forgetting writes first, and a write that fails is final.
const TRIM_FREE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Events forgotten by one commit at least; under load, twice what it appends, so that trimming always gains on appending.
const TRIM_EVENTS: usize = 256;
/// Read at once to see what can be forgotten: mostly nothing, so little.
const TRIM_READ_BYTES: u64 = 16 * 1024;

/// How long and how much is kept, and how much disk is left alone.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events older than this are forgotten, by the log's clock.
    pub event_age_max: Duration,
    /// The oldest events are forgotten beyond this.
    pub event_bytes_max: u64,
    /// What is in one segment of the log spans no more than this; it is removed as a whole.
    pub segment_age_max: Duration,
    /// Quarantined callbacks older than this are forgotten.
    pub quarantine_age_max: Duration,
    /// The oldest quarantined callbacks are forgotten beyond this.
    pub quarantine_bytes_max: u64,
    /// The oldest quarantined callbacks are forgotten beyond so many.
    pub quarantine_count_max: u64,
    /// Below this share of free disk nothing is written.
    pub disk_free_min_percent: u64,
}

impl Retention {
    /// Nothing is forgotten, and the disk is never low.
    pub const KEEP_ALL: Self = Self {
        event_age_max: Duration::MAX,
        event_bytes_max: u64::MAX,
        segment_age_max: Duration::MAX,
        quarantine_age_max: Duration::MAX,
        quarantine_bytes_max: u64::MAX,
        quarantine_count_max: u64::MAX,
        disk_free_min_percent: 0,
    };

    /// What there is too much of in quarantine.
    fn quarantine_surplus(&self, totals: &Totals) -> Option<Measure> {
        if totals.quarantine_bytes > self.quarantine_bytes_max {
            Some(Measure::Bytes)
        } else {
            (totals.quarantine_count > self.quarantine_count_max).then_some(Measure::Count)
        }
    }
}

/// Most places that one erasure names, so that nobody waits long for the commit that announces them.
pub const ERASURE_PLACES_MAX: usize = 1_024;

/// What is to be erased.
#[derive(Clone, Debug)]
pub struct Erasure {
    /// Of this task,
    pub task_id: TaskId,
    /// as far as it is of this product: all events that the index names,
    pub product: Product,
    /// and those at these places, at most [`ERASURE_PLACES_MAX`].
    pub places: Vec<Sequence>,
}

/// What was erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Events that had something to erase.
    pub events: u32,
    /// The bytes of them that were overwritten.
    pub bytes: u64,
}

/// Where committed events go, on the writer's thread, in log order, before their callbacks are answered.
pub trait Publish: Send {
    /// Takes the events of one commit; never blocks.
    fn publish(&mut self, records: &[Record]);

    /// Takes what is left of events that were erased, in place of what it has of them. By default it keeps none.
    fn erase(&mut self, _erased: &[Record]) {}
}

impl<F: FnMut(&[Record]) + Send> Publish for F {
    fn publish(&mut self, records: &[Record]) {
        self(records);
    }
}

/// Why something was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The queue is full.
    #[error("more callbacks than the disk can take: try again later")]
    Overloaded,
    /// The disk is nearly full.
    #[error("{free_bytes} bytes of disk are free, {needed_bytes} must be: free some space")]
    DiskLow {
        /// Bytes free.
        free_bytes: u64,
        /// Bytes that must be free.
        needed_bytes: u64,
    },
    /// A write failed.
    #[error("writing to the store failed ({0}): it is opened again when the disk can be written")]
    Failed(String),
    /// What is to be erased cannot be found in the log, or not as it was written: nothing was erased.
    #[error("what is to be erased cannot be read in the log ({0})")]
    Corrupt(String),
    /// The writer has stopped.
    #[error("the store is closed")]
    Closed,
    /// The callback to release is not in quarantine.
    #[error("the callback is not in quarantine")]
    NotInQuarantine,
    /// The task has as many retained events of this product as one may have.
    #[error(
        "the task has {} events of this product that are not terminal, the most one may have",
        super::dedupe::TASK_EVENTS_MAX
    )]
    TooManyEvents,
}

/// Makes everything written so far survive a power cut. A value, so that tests can hold it up and let it fail.
type Sync = Box<dyn FnMut(&Store) -> Result<(), String> + Send>;
/// Free and total bytes of the store's disk. A value, too, so that tests can fill it.
type Disk = Box<dyn Fn(&Store) -> io::Result<(u64, u64)> + Send>;
type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

enum Command {
    Append(Box<Draft>, Reply<Appended>),
    /// Takes over an event of another log.
    Import(Box<Imported>, Reply<Appended>),
    /// Takes a callback out of quarantine, and appends what it has become.
    Release(u64, Vec<Draft>, Reply<Vec<Appended>>),
    Quarantine(NewQuarantined, Reply<u64>),
    Discard(Vec<u64>, Reply<u32>),
    Erase(Erasure, Reply<Erased>),
    /// Takes a backup of what is durable by then.
    Backup(Reply<Backup>),
    /// Commits a mark, to show that the whole path answers.
    Probe(Reply<()>),
    /// Looks what is to be kept from now on.
    Retain,
    /// Ends the writer behind what was sent before.
    Stop,
}

impl Command {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(draft, _) => draft.bytes(),
            Self::Import(imported, _) => imported.draft.bytes(),
            Self::Release(_, drafts, _) => drafts.iter().map(Draft::bytes).sum(),
            Self::Quarantine(new, _) => new.body.len(),
            Self::Discard(numbers, _) => size_of_val(&numbers[..]),
            Self::Erase(erasure, _) => size_of_val(&erasure.places[..]),
            Self::Backup(_) | Self::Probe(_) | Self::Retain | Self::Stop => 0,
        }
    }

    fn is_erasure(&self) -> bool {
        matches!(
            self,
            Self::Release(..) | Self::Discard(..) | Self::Erase(..)
        )
    }

    fn refuse(self, error: WriteError) {
        // A receiver that is gone has given up; its callback is not answered 200, so nothing is owed.
        let _ = match self {
            Self::Append(_, reply) | Self::Import(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Release(_, _, reply) => reply.send(Err(error)).is_ok(),
            Self::Quarantine(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Discard(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Erase(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Backup(reply) => reply.send(Err(error)).is_ok(),
            Self::Probe(reply) => reply.send(Err(error)).is_ok(),
            Self::Retain | Self::Stop => false,
        };
    }
}

/// Hands commands to the writer.
#[derive(Clone)]
pub struct Appender {
    commands: SyncSender<Command>,
    queued_bytes: Arc<AtomicUsize>,
    /// What the writer has not taken up yet.
    new_retention: Arc<Mutex<Option<Retention>>>,
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Appender")
    }
}

impl Appender {
    /// Appends an event, or finds its original.
    pub fn append(&self, draft: Draft) -> oneshot::Receiver<Result<Appended, WriteError>> {
        self.send(|reply| Command::Append(Box::new(draft), reply))
    }

    /// Takes the callback with this number out of quarantine and appends the events it has become, all by one commit. Each is
    /// answered like [`Self::append`], but is taken however many events its task has.
    pub fn release(
        &self,
        number: u64,
        drafts: Vec<Draft>,
    ) -> oneshot::Receiver<Result<Vec<Appended>, WriteError>> {
        self.send(|reply| Command::Release(number, drafts, reply))
    }

    /// Keeps a callback in quarantine; answers its number.
    pub fn quarantine(&self, new: NewQuarantined) -> oneshot::Receiver<Result<u64, WriteError>> {
        self.send(|reply| Command::Quarantine(new, reply))
    }

    /// Erases the content of a task's events: answers when nothing of it is left in the log, nor in what [`Publish`] has.
    pub fn erase(&self, erasure: Erasure) -> oneshot::Receiver<Result<Erased, WriteError>> {
        self.send(|reply| Command::Erase(erasure, reply))
    }

    /// Deletes from quarantine, and erases what is deleted; answers how many existed.
    pub fn discard(&self, numbers: Vec<u64>) -> oneshot::Receiver<Result<u32, WriteError>> {
        self.send(|reply| Command::Discard(numbers, reply))
    }

    /// Takes a backup: everything that was answered by now, and nothing that a crash could take back. It needs no room on the
    /// disk, so a low one is no hindrance.
    pub fn backup(&self) -> oneshot::Receiver<Result<Backup, WriteError>> {
        self.send(Command::Backup)
    }

    /// Commits a mark that nothing reads; answers when it is durable.
    pub fn probe(&self) -> oneshot::Receiver<Result<(), WriteError>> {
        self.send(Command::Probe)
    }

    /// How long and how much is kept from now on. Never waits.
    pub fn retain(&self, retention: Retention) {
        *lock(&self.new_retention) = Some(retention);
        // To wake a writer that is idle. If the queue is full it is not, and if it has ended, nothing is kept or forgotten.
        let _ = self.commands.try_send(Command::Retain).is_ok();
    }

    /// Lets the writer finish what it was sent before, and end; what is sent later is answered [`WriteError::Closed`]. Blocks
    /// while the queue is full.
    pub fn stop(&self) {
        // An error means that it has ended already.
        let _ = self.commands.send(Command::Stop).is_ok();
    }

    fn send<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> oneshot::Receiver<Result<T, WriteError>> {
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        let bytes = command.bytes();
        // Counted before it is sent, so that the writer never takes what is not counted.
        let queued_bytes = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = if queued_bytes > QUEUE_BYTES_MAX {
            Err(TrySendError::Full(command))
        } else {
            self.commands.try_send(command)
        };
        if let Err(error) = sent {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                TrySendError::Full(command) => command.refuse(WriteError::Overloaded),
                TrySendError::Disconnected(command) => command.refuse(WriteError::Closed),
            }
        }
        answer
    }
}

/// The writer of one store; [`Writer::run`] is its thread.
pub struct Writer<P> {
    store: Arc<Store>,
    commands: Receiver<Command>,
    queued_bytes: Arc<AtomicUsize>,
    sync: Sync,
    disk: Disk,
    retention: Retention,
    new_retention: Arc<Mutex<Option<Retention>>>,
    publish: P,
    metrics: Arc<Metrics>,
    /// The log's clock has been changed, and the next commit has to note it.
    adoption: Option<Adoption>,
    /// The machine's clock was far from the log's when it was last looked at.
    clock_is_far: bool,
    /// Of the keeper, if there is one.
    bell: Option<Bell>,
}

impl<P> fmt::Debug for Writer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Makes the writer of a store and the door to it. A store must have one writer only.
pub fn writer<P: Publish>(
    store: Arc<Store>,
    retention: Retention,
    publish: P,
    metrics: Arc<Metrics>,
) -> (Appender, Writer<P>) {
    note_limits(&retention, &metrics);
    let (sender, commands) = mpsc::sync_channel(QUEUE_MAX);
    let queued_bytes = Arc::<AtomicUsize>::default();
    let sync = |store: &Store| store.log.sync().map_err(|error| error.to_string());
    let new_retention = Arc::<Mutex<_>>::default();
    let appender = Appender {
        commands: sender,
        queued_bytes: Arc::clone(&queued_bytes),
        new_retention: Arc::clone(&new_retention),
    };
    let (sync, disk): (Sync, Disk) = (Box::new(sync), Box::new(Store::disk_bytes));
    let writer = Writer {
        store,
        commands,
        queued_bytes,
        sync,
        disk,
        retention,
        new_retention,
        publish,
        metrics,
        adoption: None,
        clock_is_far: false,
        bell: None,
    };
    (appender, writer)
}

impl<P: Publish> Writer<P> {
    /// The helper of this writer, for a thread of its own, which ends with the writer's.
    pub fn keeper(&mut self) -> Keeper {
        let (bell, keeper) = Keeper::new(Arc::clone(&self.store));
        self.bell = Some(bell);
        keeper
    }

    /// Writes until it is stopped, or every [`Appender`] is gone.
    pub fn run(mut self) {
        if !self.store.clock.is_settled() {
            overdue::tell(&self.store, &self.retention);
        }
        self.tick();
        loop {
            let first = match self.commands.try_recv() {
                Ok(first) => Ok(first),
                Err(TryRecvError::Disconnected) => break,
                // Nothing waits, so there is time for retention; a trim that gets nowhere waits for the next tick.
                Err(TryRecvError::Empty) if self.trim_is_due() && self.commit(Vec::new()) > 0 => {
                    continue;
                }
                Err(TryRecvError::Empty) => self.commands.recv_timeout(TICK),
            };
            match first {
                Ok(first) => {
                    if self.commit_group(first).is_break() {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn tick(&mut self) {
        self.check_disk();
        self.check_clock();
        let is_noted = lock(&self.store.totals).trust == self.store.clock.trust();
        self.look_at_age();
        if self.adoption.is_some()
            || (!is_noted || self.store.log.needs_commit()) && may_forget(&self.store.health())
        {
            self.commit(Vec::new());
        } else if let Some(bell) = &self.bell {
            bell.ring_if_needed(&self.store); // behind a commit it is rung anyway
        }
    }

    fn look_at_age(&self) {
        self.store.log.look_at_age(
            self.store.clock.now_micros(),
            self.retention.segment_age_max,
        );
    }

    fn commit_group(&mut self, first: Command) -> ControlFlow<()> {
        let mut flow = ControlFlow::Continue(());
        if matches!(first, Command::Stop) {
            return ControlFlow::Break(());
        }
        let mut bytes = self.taken(&first);
        let mut group = Vec::new();
        self.enlist(first, &mut group);
        while group.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
            match self.commands.try_recv() {
                Ok(Command::Stop) => {
                    flow = ControlFlow::Break(());
                    break;
                }
                Ok(command) => {
                    bytes += self.taken(&command);
                    self.enlist(command, &mut group);
                }
                Err(_) => break,
            }
        }
        if let Some(retention) = lock(&self.new_retention).take() {
            self.retention = retention;
            note_limits(&retention, &self.metrics);
        }
        self.check_disk();
        self.check_clock();
        self.look_at_age();
        let (backups, group): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|command| matches!(command, Command::Backup(_)));
        backups
            .into_iter()
            .for_each(|command| self.back_up(command));
        let mut group = group;
        if self.store.log.announced() >= ANNOUNCED_MAX {
            let refused = group.extract_if(.., |command| command.is_erasure());
            refused.for_each(|command| command.refuse(WriteError::Overloaded));
        }
        // What is erased has to lie in the log, so it is by a commit of its own.
        let (erasures, group): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|command| matches!(command, Command::Erase(..)));
        self.commit_or_refuse(group);
        self.commit_or_refuse(erasures);
        flow
    }

    fn commit_or_refuse(&mut self, group: Vec<Command>) {
        match self.refusal() {
            _ if group.is_empty() => {}
            None => {
                self.commit(group);
            }
            // Deleting from quarantine is a way to free some disk, and what is to be erased must not wait for space.
            Some(error) if may_forget(&self.store.health()) => {
                let is_deletion = |command: &Command| {
                    matches!(command, Command::Discard(..) | Command::Erase(..))
                };
                let (deletions, others): (Vec<_>, Vec<_>) =
                    group.into_iter().partition(is_deletion);
                others
                    .into_iter()
                    .for_each(|command| command.refuse(error.clone()));
                self.commit(deletions);
            }
            Some(error) => group
                .into_iter()
                .for_each(|command| command.refuse(error.clone())),
        }
    }

    fn enlist(&mut self, command: Command, group: &mut Vec<Command>) {
        match command {
            Command::Retain => {} // the group begins with it
            command => group.push(command),
        }
    }

    /// Between two commits everything that is there is durable, unless one has failed.
    fn back_up(&self, command: Command) {
        let Command::Backup(reply) = command else {
            return;
        };
        let answer = match self.refusal() {
            Some(error @ WriteError::Failed(_)) => Err(error),
            _ => self
                .store
                .backup()
                .map_err(|error| WriteError::Failed(error.to_string())),
        };
        let _ = reply.send(answer).is_ok(); // a receiver that is gone has given up
    }

    fn taken(&self, command: &Command) -> usize {
        let bytes = command.bytes();
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        bytes
    }

    fn refusal(&self) -> Option<WriteError> {
        match self.store.health() {
            Health::Writable => None,
            Health::DiskLow {
                free_bytes,
                needed_bytes,
            } => Some(WriteError::DiskLow {
                free_bytes,
                needed_bytes,
            }),
            Health::Failed(problem) => Some(WriteError::Failed(problem)),
        }
    }

    fn check_disk(&self) {
        let mut health = lock(&self.store.health);
        if matches!(*health, Health::Failed(_)) {
            return;
        }
        if !self.store.is_in_place() {
            let problem = "the data directory was removed or replaced".to_owned();
            tracing::error!(problem, "refusing callbacks until a restart");
            *health = Health::Failed(problem);
            return;
        }
        // A file system that cannot be asked is left to the write itself, which will say what is wrong.
        let Ok((free_bytes, total_bytes)) = (self.disk)(&self.store) else {
            return;
        };
        let now = disk_health(
            free_bytes,
            total_bytes,
            self.retention.disk_free_min_percent,
        );
        if std::mem::discriminant(&now) != std::mem::discriminant(&*health) {
            match &now {
                Health::DiskLow { needed_bytes, .. } => {
                    tracing::error!(
                        free_bytes,
                        needed_bytes,
                        "too little disk is free: refusing callbacks"
                    );
                }
                _ => tracing::info!(free_bytes, "enough disk is free again: writing"),
            }
        }
        *health = now;
    }

    /// Follows the machine's clock, says when it is far away, and adopts its time where it has proved right and that can be noted.
    fn check_clock(&mut self) {
        let clock = &self.store.clock;
        let may_adopt = self.adoption.is_none() && may_forget(&self.store.health());
        let adoption = clock.look(may_adopt);
        if let Some(Adoption { by_micros, .. }) = adoption {
            let by_seconds = by_micros / 1_000_000;
            tracing::warn!(
                by_seconds,
                "the machine's clock has proved right: the log's clock was changed to its time"
            );
            self.adoption = adoption;
        }
        let difference = clock.difference_micros();
        let is_far = difference.saturating_abs() > FAR;
        if is_far != self.clock_is_far {
            let ahead_seconds = difference / 1_000_000;
            if is_far {
                tracing::error!(
                    ahead_seconds,
                    "the machine's clock was changed by minutes: the log goes by monotonic time; set the clock right"
                );
            } else {
                tracing::info!(
                    ahead_seconds,
                    "the machine's clock and the log's agree again"
                );
            }
        }
        self.clock_is_far = is_far;
    }

    fn trim_is_due(&self) -> bool {
        if !may_forget(&self.store.health()) {
            return false;
        }
        let totals = *lock(&self.store.totals);
        let events = totals.event_bytes > self.retention.event_bytes_max
            || self
                .oldest_event_micros(&totals)
                .is_some_and(|at| at < self.cutoff(self.retention.event_age_max));
        let oldest_quarantined = lock(&self.store.shares).oldest();
        let quarantined = self.retention.quarantine_surplus(&totals).is_some()
            || oldest_quarantined.is_some_and(|(number, kept)| {
                totals
                    .correction
                    .of_quarantined(number, kept.received_at_micros)
                    < self.cutoff(self.retention.quarantine_age_max)
            });
        events || quarantined
    }

    /// What counts as received before this is too old, in microseconds since 1970.
    fn cutoff(&self, age_max: Duration) -> i64 {
        let clock = &self.store.clock;
        if !clock.is_settled() {
            return i64::MIN; // nobody knows yet how old anything is
        }
        clock
            .now_micros()
            .saturating_sub(i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX))
    }

    fn oldest_event_micros(&self, totals: &Totals) -> Option<i64> {
        if totals.event_count == 0 {
            return None;
        }
        match self.store.oldest_micros.load(Ordering::Relaxed) {
            UNKNOWN_MICROS => {
                let oldest = self
                    .store
                    .get(self.store.first_available())
                    .ok()
                    .flatten()?;
                Some(
                    totals
                        .correction
                        .of_event(oldest.sequence(), oldest.log_time_micros()),
                )
            }
            known => Some(known),
        }
    }

    // Returns how much retention has forgotten along the way.
    fn commit(&mut self, group: Vec<Command>) -> u64 {
        let adoption = self.adoption.take();
        let cutoffs = (
            self.cutoff(self.retention.event_age_max),
            self.cutoff(self.retention.quarantine_age_max),
        );
        let mut batch = Batch::new(&self.store, &self.retention, group.len(), adoption);
        // What it erases is not overwritten yet: it would be forgotten with all of its bytes.
        let may_trim = !group
            .iter()
            .any(|command| matches!(command, Command::Erase(..)));
        for command in group {
            batch.add(command);
        }
        if may_trim {
            batch.trim(cutoffs.0, cutoffs.1);
        }
        if self.store.log.needs_commit() {
            batch.mark();
        }
        let batch = batch.seal();
        let trimmed = batch.counts.trimmed();
        let has_news = batch.write.is_some();
        let written = batch
            .write
            .map_or(Ok(()), |write| self.write(write, &batch.totals));
        match written.and_then(|()| self.forget_keys(&batch.gone.unkept)) {
            Ok(()) => {
                let head = batch
                    .records
                    .last()
                    .map_or(self.store.head().0, |last| last.sequence().0);
                *lock(&self.store.totals) = batch.totals;
                if has_news {
                    self.store.acknowledged_files.raise(Acknowledged {
                        head,
                        ..self.store.acknowledged()
                    });
                }
                if !batch.records.is_empty() {
                    self.store.head.store(head, Ordering::Release);
                    self.publish.publish(&batch.records);
                }
                self.count(&batch.counts, batch.records.len());
                self.metrics
                    .events_erased
                    .inc_by(batch.gone.erased.len() as u64);
                self.grant(batch.gone, batch.replies);
                if let Some(bell) = &self.bell {
                    bell.ring_if_needed(&self.store);
                }
                trimmed
            }
            Err(problem) => {
                tracing::error!(
                    problem,
                    "writing to the store failed: refusing callbacks until a restart"
                );
                *lock(&self.store.health) = Health::Failed(problem.clone());
                batch
                    .replies
                    .into_iter()
                    .for_each(|reply| reply.refuse(WriteError::Failed(problem.clone())));
                0
            }
        }
    }

    // The database hears of it only when it is durable: of anything else it could not be rid again.
    fn write(&mut self, write: Write, totals: &Totals) -> Result<(), String> {
        let Write {
            frame,
            index,
            tasks,
        } = write;
        let before = *lock(&self.store.totals);
        let started = Instant::now();
        let written = self
            .store
            .log
            .append(frame, &before, totals)
            .map_err(|error| error.to_string())?;
        let appended = Instant::now();
        (self.sync)(&self.store)?;
        let synced = Instant::now();
        self.store.log.show(&written);
        index
            .commit()
            .and_then(|()| self.store.tasks.change(tasks))
            .map_err(|error| format!("{error:?}"))?;
        self.store.log.note_applied(&written);
        self.metrics
            .commit_seconds
            .observe((appended - started + synced.elapsed()).as_secs_f64());
        self.metrics
            .fsync_seconds
            .observe((synced - appended).as_secs_f64());
        Ok(())
    }

    fn forget_keys(&self, numbers: &[u64]) -> Result<(), String> {
        if numbers.is_empty() {
            return Ok(()); // almost always
        }
        self.store
            .quarantine_keys
            .forget(numbers)
            .map_err(|error| error.to_string())
    }

    /// Answers what the commit that is durable now was for; what it has announced to be erased is overwritten first, without
    /// holding up other commits. If that fails or a crash comes before, the next start does it.
    fn grant(&mut self, gone: Gone, mut replies: Vec<Granted>) {
        let Gone { erased, found, .. } = gone;
        // What an earlier commit has announced is not erased either until that is overwritten.
        let is_announced = !found.is_empty() || self.store.log.announced() > 0;
        let waiting: Vec<_> = if is_announced {
            replies
                .extract_if(.., |reply| reply.is_of_erasure())
                .collect()
        } else {
            Vec::new()
        };
        replies.into_iter().for_each(Granted::grant);
        if found.is_empty() && waiting.is_empty() {
            return; // almost always
        }

        self.store
            .log
            .note_announced(erased.iter().map(Record::sequence).collect());
        if !erased.is_empty() {
            self.publish.erase(&erased);
        }
        let overwriting = Overwriting {
            found,
            has_events: !erased.is_empty(),
            replies: waiting,
        };
        match &self.bell {
            Some(bell) => bell.overwrite(overwriting),
            None => {
                overwriting.run(&self.store, || Ok(()));
            }
        }
    }

    fn count(&self, counts: &batch::Counts, appended: usize) {
        self.metrics.duplicates.inc_by(counts.duplicates);
        self.metrics.conflicts.inc_by(counts.conflicts);
        self.metrics
            .callbacks_after_erasure(counts.after_erasure.new, counts.after_erasure.duplicates);
        if counts.trimmed() > 0 {
            self.count_trimmed(counts);
        }
        if appended > 0 {
            self.metrics.events_appended.inc_by(appended as u64);
            self.metrics.batch_events.observe(appended as f64);
        }
    }

    fn count_trimmed(&self, counts: &batch::Counts) {
        let Metrics {
            events_trimmed,
            bytes_trimmed,
            quarantine_trimmed,
            ..
        } = &*self.metrics;
        let batch::ByReason { age, bytes, .. } = &counts.events_trimmed;
        for (reason, forgotten) in [("age", age), ("bytes", bytes)] {
            events_trimmed
                .with_label_values(&[reason])
                .inc_by(forgotten.events);
            bytes_trimmed
                .with_label_values(&[reason])
                .inc_by(forgotten.bytes);
        }
        let batch::ByReason { age, bytes, count } = counts.quarantine_trimmed;
        for (reason, forgotten) in [("age", age), ("bytes", bytes), ("count", count)] {
            quarantine_trimmed
                .with_label_values(&[reason])
                .inc_by(forgotten);
        }
    }
}

/// What an alert compares with.
fn note_limits(retention: &Retention, metrics: &Metrics) {
    metrics
        .log_bytes_max
        .set(i64::try_from(retention.event_bytes_max).unwrap_or(i64::MAX));
    metrics
        .log_age_max_seconds
        .set(i64::try_from(retention.event_age_max.as_secs()).unwrap_or(i64::MAX));
}

fn disk_health(free_bytes: u64, total_bytes: u64, free_min_percent: u64) -> Health {
    // Divides first, so that no disk is too large; what that loses is less than a hundred bytes.
    let needed_bytes = total_bytes / 100 * free_min_percent;
    if free_bytes < needed_bytes {
        Health::DiskLow {
            free_bytes,
            needed_bytes,
        }
    } else {
        Health::Writable
    }
}

fn may_forget(health: &Health) -> bool {
    match health {
        Health::Writable => true,
        Health::DiskLow { free_bytes, .. } => *free_bytes >= TRIM_FREE_BYTES_MIN,
        Health::Failed(_) => false,
    }
}

#[cfg(test)]
mod tests;
