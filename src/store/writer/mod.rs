//! The one writer: takes what has queued up while the last commit ran and commits it together, with one fsync.
//!
//! For each group: decide (dedupe, revision, conflict), write, fsync, move the head, publish, answer. A reply is sent only
//! after the fsync, for duplicates too. When a write fails the store takes no more until a restart, because only recovery
//! can tell what reached the disk. Runs on a thread of its own; [`Appender`] is its door.

mod batch;

use std::{
    fmt,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fjall::PersistMode;
use tokio::sync::oneshot;

use super::{Appended, Draft, Health, NewQuarantined, Store, lock};
use crate::{event::Record, metrics::Metrics};
use batch::Batch;

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
/// How often an idle writer looks at retention and free disk space.
const TICK: Duration = Duration::from_secs(1);
/// With less free disk nothing is forgotten either, because forgetting writes first, and a write that fails is final.
const TRIM_FREE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Events forgotten by one commit at least; under load, twice what it appends, so that trimming always gains on appending.
const TRIM_EVENTS: usize = 256;

/// How long and how much is kept, and how much disk is left alone.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events older than this are forgotten.
    pub event_age_max: Duration,
    /// The oldest events are forgotten beyond this.
    pub event_bytes_max: u64,
    /// Quarantined callbacks older than this are forgotten.
    pub quarantine_age_max: Duration,
    /// The oldest quarantined callbacks are forgotten beyond this.
    pub quarantine_bytes_max: u64,
    /// Below this share of free disk nothing is written.
    pub disk_free_min_percent: u64,
}

/// Where committed events go, on the writer's thread, in log order, before their callbacks are answered.
pub trait Publish: Send {
    /// Takes the events of one commit; never blocks.
    fn publish(&mut self, records: &[Record]);
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
    #[error("writing to the store failed ({0}): restart to recover")]
    Failed(String),
    /// The writer has stopped.
    #[error("the store is closed")]
    Closed,
    /// The callback to release is not in quarantine.
    #[error("the callback is not in quarantine")]
    NotInQuarantine,
    /// The task has as many retained events as one may have.
    #[error("the task has {} events, the most one may have", super::dedupe::TASK_EVENTS_MAX)]
    TooManyEvents,
}

/// Makes everything written so far survive a power cut. A value, so that tests can hold it up and let it fail.
type Sync = Box<dyn FnMut(&Store) -> Result<(), String> + Send>;
type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

enum Command {
    Append(Box<Draft>, Reply<Appended>),
    Quarantine(NewQuarantined, Reply<u64>),
    Discard(Vec<u64>, Reply<u32>),
    /// Commits a mark, to show that the whole path answers.
    Probe(Reply<()>),
    /// Ends the writer behind what was sent before.
    Stop,
}

impl Command {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(draft, _) => draft.event.len() + draft.raw.len(),
            Self::Quarantine(new, _) => new.body.len(),
            Self::Discard(..) | Self::Probe(_) | Self::Stop => 0,
        }
    }

    fn refuse(self, error: WriteError) {
        // A receiver that is gone has given up; its callback is not answered 200, so nothing is owed.
        let _ = match self {
            Self::Append(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Quarantine(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Discard(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Probe(reply) => reply.send(Err(error)).is_ok(),
            Self::Stop => false,
        };
    }
}

/// Hands commands to the writer.
#[derive(Clone)]
pub struct Appender {
    commands: SyncSender<Command>,
    queued_bytes: Arc<AtomicUsize>,
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

    /// Keeps a callback in quarantine; answers its number.
    pub fn quarantine(&self, new: NewQuarantined) -> oneshot::Receiver<Result<u64, WriteError>> {
        self.send(|reply| Command::Quarantine(new, reply))
    }

    /// Deletes from quarantine; answers how many existed.
    pub fn discard(&self, numbers: Vec<u64>) -> oneshot::Receiver<Result<u32, WriteError>> {
        self.send(|reply| Command::Discard(numbers, reply))
    }

    /// Commits a mark that nothing reads; answers when it is durable.
    pub fn probe(&self) -> oneshot::Receiver<Result<(), WriteError>> {
        self.send(Command::Probe)
    }

    /// Lets the writer finish what it was sent before, and end; what is sent later is answered [`WriteError::Closed`]. Blocks
    /// while the queue is full.
    pub fn stop(&self) {
        // An error means that it has ended already.
        let _ = self.commands.send(Command::Stop).is_ok();
    }

    fn send<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> oneshot::Receiver<Result<T, WriteError>> {
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
    retention: Retention,
    publish: P,
    metrics: Arc<Metrics>,
}

impl<P> fmt::Debug for Writer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Makes the writer of a store and the door to it. A store must have one writer only.
pub fn writer<P: Publish>(
    store: Arc<Store>,
    retention: Retention,
    publish: P,
    metrics: Arc<Metrics>,
) -> (Appender, Writer<P>) {
    let (sender, commands) = mpsc::sync_channel(QUEUE_MAX);
    let queued_bytes = Arc::<AtomicUsize>::default();
    let sync = |store: &Store| store.database.persist(PersistMode::SyncData).map_err(|error| format!("{error:?}"));
    let appender = Appender { commands: sender, queued_bytes: Arc::clone(&queued_bytes) };
    (appender, Writer { store, commands, queued_bytes, sync: Box::new(sync), retention, publish, metrics })
}

impl<P: Publish> Writer<P> {
    /// Writes until it is stopped, or every [`Appender`] is gone.
    pub fn run(mut self) {
        self.check_disk();
        loop {
            let first = match self.commands.try_recv() {
                Ok(first) => Ok(first),
                Err(TryRecvError::Disconnected) => break,
                // Nothing waits, so there is time for retention; a trim that gets nowhere waits for the next tick.
                Err(TryRecvError::Empty) if self.trim_is_due() && self.commit(Vec::new()) > 0 => continue,
                Err(TryRecvError::Empty) => self.commands.recv_timeout(TICK),
            };
            match first {
                Ok(first) => {
                    if self.commit_group(first).is_break() {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.check_disk(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn commit_group(&mut self, first: Command) -> ControlFlow<()> {
        let mut flow = ControlFlow::Continue(());
        if matches!(first, Command::Stop) {
            return ControlFlow::Break(());
        }
        let mut bytes = self.taken(&first);
        let mut group = vec![first];
        while group.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
            match self.commands.try_recv() {
                Ok(Command::Stop) => {
                    flow = ControlFlow::Break(());
                    break;
                }
                Ok(command) => {
                    bytes += self.taken(&command);
                    group.push(command);
                }
                Err(_) => break,
            }
        }
        self.check_disk();
        match self.refusal() {
            None => {
                self.commit(group);
            }
            // Deleting from quarantine is a way to free some disk.
            Some(error @ WriteError::DiskLow { free_bytes, .. }) if free_bytes >= TRIM_FREE_BYTES_MIN => {
                let (discards, others): (Vec<_>, Vec<_>) =
                    group.into_iter().partition(|command| matches!(command, Command::Discard(..)));
                others.into_iter().for_each(|command| command.refuse(error.clone()));
                self.commit(discards);
            }
            Some(error) => group.into_iter().for_each(|command| command.refuse(error.clone())),
        }
        flow
    }

    fn taken(&self, command: &Command) -> usize {
        let bytes = command.bytes();
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        bytes
    }

    fn refusal(&self) -> Option<WriteError> {
        match self.store.health() {
            Health::Writable => None,
            Health::DiskLow { free_bytes, needed_bytes } => Some(WriteError::DiskLow { free_bytes, needed_bytes }),
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
        let Ok((free_bytes, total_bytes)) = self.store.disk_bytes() else { return };
        let now = disk_health(free_bytes, total_bytes, self.retention.disk_free_min_percent);
        if std::mem::discriminant(&now) != std::mem::discriminant(&*health) {
            match &now {
                Health::DiskLow { needed_bytes, .. } => {
                    tracing::error!(free_bytes, needed_bytes, "too little disk is free: refusing callbacks");
                }
                _ => tracing::info!(free_bytes, "enough disk is free again: writing"),
            }
        }
        *health = now;
    }

    fn trim_is_due(&self) -> bool {
        match self.store.health() {
            Health::Failed(_) => return false,
            Health::DiskLow { free_bytes, .. } if free_bytes < TRIM_FREE_BYTES_MIN => return false,
            Health::DiskLow { .. } | Health::Writable => {}
        }
        let totals = *lock(&self.store.totals);
        let events = totals.event_bytes > self.retention.event_bytes_max
            || self.oldest_event_micros(&totals).is_some_and(|micros| micros < cutoff(self.retention.event_age_max));
        let quarantined = totals.quarantine_bytes > self.retention.quarantine_bytes_max
            || (totals.quarantine_count > 0
                && self.oldest_quarantined_micros().is_some_and(|at| at < cutoff(self.retention.quarantine_age_max)));
        events || quarantined
    }

    fn oldest_event_micros(&self, totals: &super::Totals) -> Option<i64> {
        if totals.event_count == 0 {
            return None;
        }
        self.store.get(self.store.first_available()).ok().flatten().map(|record| record.log_time_micros())
    }

    fn oldest_quarantined_micros(&self) -> Option<i64> {
        let oldest = self.store.quarantined_after(0, 1, 0).ok()?;
        oldest.first().map(|callback| callback.header.received_at_micros)
    }

    // Returns how much retention has forgotten along the way.
    fn commit(&mut self, group: Vec<Command>) -> u64 {
        let mut batch = Batch::new(&self.store, &self.retention);
        for command in group {
            batch.add(command);
        }
        batch.trim(cutoff(self.retention.event_age_max), cutoff(self.retention.quarantine_age_max));
        let batch = batch.seal();
        let trimmed = batch.counts.events_trimmed + batch.counts.quarantine_trimmed;
        match self.write(batch.write) {
            Ok(()) => {
                *lock(&self.store.totals) = batch.totals;
                if let Some(last) = batch.records.last() {
                    self.store.watermark.raise(last.sequence());
                    self.store.head.store(last.sequence().0, Ordering::Release);
                    self.publish.publish(&batch.records);
                }
                self.count(&batch.counts, batch.records.len());
                batch.replies.into_iter().for_each(|reply| reply.grant());
                trimmed
            }
            Err(problem) => {
                tracing::error!(problem, "writing to the store failed: refusing callbacks until a restart");
                *lock(&self.store.health) = Health::Failed(problem.clone());
                batch.replies.into_iter().for_each(|reply| reply.refuse(WriteError::Failed(problem.clone())));
                0
            }
        }
    }

    // Commit and fsync are two steps only so that each can be timed: no reader looks beyond the head, which moves after both.
    fn write(&mut self, write: fjall::OwnedWriteBatch) -> Result<(), String> {
        if write.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        write.commit().map_err(|error| format!("{error:?}"))?;
        let committed = Instant::now();
        (self.sync)(&self.store)?;
        self.metrics.commit_seconds.observe((committed - started).as_secs_f64());
        self.metrics.fsync_seconds.observe(committed.elapsed().as_secs_f64());
        Ok(())
    }

    fn count(&self, counts: &batch::Counts, appended: usize) {
        self.metrics.duplicates.inc_by(counts.duplicates);
        self.metrics.conflicts.inc_by(counts.conflicts);
        self.metrics.events_trimmed.inc_by(counts.events_trimmed);
        self.metrics.quarantine_trimmed.inc_by(counts.quarantine_trimmed);
        if appended > 0 {
            self.metrics.events_appended.inc_by(appended as u64);
            self.metrics.batch_events.observe(appended as f64);
        }
    }
}

fn disk_health(free_bytes: u64, total_bytes: u64, free_min_percent: u64) -> Health {
    // Divides first, so that no disk is too large; what that loses is less than a hundred bytes.
    let needed_bytes = total_bytes / 100 * free_min_percent;
    if free_bytes < needed_bytes { Health::DiskLow { free_bytes, needed_bytes } } else { Health::Writable }
}

// What was received before this, in microseconds since 1970, is too old.
fn cutoff(age_max: Duration) -> i64 {
    now_micros().saturating_sub(i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX))
}

fn now_micros() -> i64 {
    // A clock before 1970 keeps everything.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, thread};

    use bytes::Bytes;

    use super::*;
    use crate::event::{Labels, Product, TaskId, TaskStatus};

    #[test]
    fn the_disk_is_low_below_its_share_and_not_at_it() {
        let low = |free_bytes, needed_bytes| Health::DiskLow { free_bytes, needed_bytes };
        assert_eq!(disk_health(49, 1_000, 5), low(49, 50));
        assert_eq!(disk_health(50, 1_000, 5), Health::Writable);
        assert_eq!(disk_health(0, 1_000, 0), Health::Writable, "0 is off");
        assert_eq!(disk_health(999, 1_000, 100), low(999, 1_000), "100 takes nothing on a disk that holds anything");
        assert_eq!(disk_health(u64::MAX, u64::MAX, 100), Health::Writable, "no disk is too large");
    }

    /// A writer whose sync waits for the test's word, started when the test has queued what is to be one group.
    struct Held {
        store: Arc<Store>,
        appender: Appender,
        published: Arc<Mutex<usize>>,
        synced: mpsc::Sender<Result<(), String>>,
        syncing: mpsc::Receiver<()>,
        start: Option<Box<dyn FnOnce() -> thread::JoinHandle<()>>>,
        _directory: tempfile::TempDir,
    }

    impl Held {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::open(directory.path(), 1 << 20).unwrap());
            let published = Arc::<Mutex<usize>>::default();
            let count = Arc::clone(&published);
            let publish = move |records: &[Record]| *count.lock().unwrap() += records.len();
            let retention = Retention {
                event_age_max: Duration::MAX,
                event_bytes_max: u64::MAX,
                quarantine_age_max: Duration::MAX,
                quarantine_bytes_max: u64::MAX,
                disk_free_min_percent: 0,
            };
            let (appender, mut writer) = writer(Arc::clone(&store), retention, publish, Arc::default());
            let ((begun, syncing), (synced, verdict)) = (mpsc::channel(), mpsc::channel());
            writer.sync = Box::new(move |_| {
                let _ = begun.send(()).is_ok();
                verdict.recv().unwrap_or(Ok(())) // the test is over
            });
            let start: Box<dyn FnOnce() -> _> = Box::new(|| thread::spawn(|| writer.run()));
            Self { store, appender, published, synced, syncing, start: Some(start), _directory: directory }
        }

        fn append(&self, task: &str, raw_bytes: usize) -> oneshot::Receiver<Result<Appended, WriteError>> {
            self.appender.append(Draft {
                event_id: uuid::Uuid::new_v4(),
                product: Product::parse("veo").unwrap(),
                task_id: TaskId::parse(task).unwrap(),
                status: TaskStatus::Completed,
                fingerprint: 7,
                received_at_micros: 0,
                labels: Labels::new(),
                event: Bytes::new(),
                raw: vec![0; raw_bytes].into(),
                releases: None,
            })
        }

        /// Starts the writer and waits until it syncs its first group.
        fn run_to_the_sync(&mut self) {
            (self.start.take().unwrap())();
            self.syncing.recv().unwrap();
        }

        fn visible(&self) -> (u64, usize) {
            (self.store.head().0, *self.published.lock().unwrap())
        }
    }

    #[test]
    fn nothing_is_answered_or_shown_before_the_sync_and_duplicates_wait_too() {
        let mut held = Held::new();
        let mut original = held.append("t1", 0);
        let mut beside = held.append("t1", 0);
        held.run_to_the_sync();
        let mut behind = held.append("t1", 0);
        for answer in [&mut original, &mut beside, &mut behind] {
            assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        }
        assert_eq!(held.visible(), (0, 0));
        held.synced.send(Ok(())).unwrap();
        let answers = [original, beside, behind].map(|answer| answer.blocking_recv().unwrap().unwrap());
        assert_eq!(answers.map(|appended| appended.duplicate), [false, true, true]);
        assert_eq!(answers.map(|appended| appended.event_id), [answers[0].event_id; 3]);
        assert_eq!(held.visible(), (1, 1));
    }

    #[test]
    fn a_failed_sync_refuses_everyone_shows_nothing_and_stops_the_writing() {
        let mut held = Held::new();
        let (one, other) = (held.append("t1", 0), held.append("t2", 0));
        held.run_to_the_sync();
        held.synced.send(Err("no such luck".into())).unwrap();
        let failed = Err(WriteError::Failed("no such luck".into()));
        assert_eq!(one.blocking_recv().unwrap(), failed);
        assert_eq!(other.blocking_recv().unwrap(), failed);
        assert_eq!(held.append("t3", 0).blocking_recv().unwrap(), failed);
        assert_eq!((held.visible(), held.store.health()), ((0, 0), Health::Failed("no such luck".into())));
    }

    #[test]
    fn what_waits_for_a_stalled_disk_is_bounded_in_bytes() {
        const EACH: usize = 8 * 1024 * 1024;
        let mut held = Held::new();
        let first = held.append("t0", 0);
        held.run_to_the_sync();
        let mut waiting: Vec<_> = (0..=QUEUE_BYTES_MAX / EACH).map(|n| held.append(&format!("w{n}"), EACH)).collect();
        let refused = held.append("excess", EACH).blocking_recv().unwrap();
        assert_eq!(refused, Err(WriteError::Overloaded));
        assert!(waiting.iter_mut().all(|answer| answer.try_recv().is_err()), "up to the bound all wait");
        (0..=waiting.len()).for_each(|_| held.synced.send(Ok(())).unwrap());
        assert!(first.blocking_recv().unwrap().is_ok());
        assert!(waiting.into_iter().all(|answer| answer.blocking_recv().unwrap().is_ok()));
        assert!(held.append("again", EACH).try_recv().is_err(), "it waits; it is not refused");
    }
}
