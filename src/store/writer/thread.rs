//! The writer's thread: takes groups of commands off the queue, refuses them while the store takes none, and looks at the disk,
//! the clock and retention in between.

use std::{
    fmt,
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, TryRecvError},
    },
    time::Duration,
};

use super::{
    age_warning,
    appender::{Appender, Queue, queue},
    command::Command,
    disk::{self, DiskBytes},
    error::WriteError,
    maintenance::{Maintenance, MaintenanceHandle},
    publish::Publish,
    retention::{Retention, Trimmer},
};
use crate::{
    metrics::Metrics,
    store::{
        Health, Store,
        clock::{Adoption, FAR},
        lock,
    },
};

/// Most tasks whose commands are in one commit: more brought little in measurements. The last command may be about more, as
/// a call that expects a thousand tasks.
pub(in crate::store) const GROUP_MAX: usize = 512;
/// A commit takes no further command beyond this many bytes, so that a group of large bodies does not delay its first.
pub(in crate::store) const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most commits whose announcements wait to be overwritten: each may be for many events. More are refused, as by a full queue.
pub(super) const ANNOUNCED_MAX: usize = 64;
/// How often an idle writer looks at the clock, retention and free disk space.
const TICK: Duration = Duration::from_secs(1);

/// Makes everything written so far survive a power cut. A value, so that tests can delay it and let it fail.
pub(super) type Sync = Box<dyn FnMut(&Store) -> Result<(), String> + Send>;

/// The writer of one store; [`Writer::run`] is its thread.
pub struct Writer<P> {
    pub(super) store: Arc<Store>,
    pub(super) queue: Queue,
    pub(super) sync: Sync,
    pub(super) disk: DiskBytes,
    pub(super) retention: Retention,
    pub(super) trimmer: Trimmer,
    pub(super) publish: P,
    pub(super) metrics: Arc<Metrics>,
    /// The log's clock has been changed, and the next commit has to note it.
    pub(super) adoption: Option<Adoption>,
    /// The machine's clock was far from the log's when it was last looked at.
    clock_is_far: bool,
    pub(super) maintenance: Option<MaintenanceHandle>,
}

impl<P> fmt::Debug for Writer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Makes the writer of a store and its queue. A store must have one writer only.
pub fn writer<P: Publish>(
    store: Arc<Store>,
    retention: Retention,
    publish: P,
    metrics: Arc<Metrics>,
) -> (Appender, Writer<P>) {
    retention.note_in(&metrics);
    let (appender, queue) = queue();
    let writer = Writer {
        store,
        queue,
        sync: Box::new(|store| store.log.sync().map_err(|error| error.to_string())),
        disk: Box::new(Store::disk_bytes),
        retention,
        trimmer: Trimmer::default(),
        publish,
        metrics,
        adoption: None,
        clock_is_far: false,
        maintenance: None,
    };
    (appender, writer)
}

impl<P: Publish> Writer<P> {
    /// The second thread of this writer. It ends with the writer's own.
    pub(crate) fn maintenance(&mut self) -> Maintenance {
        let (handle, maintenance) =
            Maintenance::new(Arc::clone(&self.store), Arc::clone(&self.metrics));
        self.maintenance = Some(handle);
        maintenance
    }

    /// Writes until it is stopped, or every [`Appender`] is gone.
    pub fn run(mut self) {
        if !self.store.clock.is_settled() {
            age_warning::report(&self.store, &self.retention);
        }
        self.tick();

        loop {
            let first = match self.queue.commands.try_recv() {
                Ok(first) => Ok(first),
                Err(TryRecvError::Disconnected) => break,
                // Nothing waits, so there is time for retention; a trim that gets nowhere waits for the next tick.
                Err(TryRecvError::Empty) if self.trim() > 0 => continue,
                Err(TryRecvError::Empty) => self.queue.commands.recv_timeout(TICK),
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

    /// Forgets what is due, as much as one commit may; returns how much.
    fn trim(&mut self) -> u64 {
        if !self.trim_is_due() {
            return 0;
        }
        // One commit after the other may take minutes, and writes to the disk that it frees.
        self.check_disk();
        self.check_clock();
        if self.trim_is_due() {
            self.commit(Vec::new())
        } else {
            0
        }
    }

    pub(super) fn tick(&mut self) {
        self.check_disk();
        self.check_clock();
        self.look_at_age();

        let is_noted = lock(&self.store.totals).trust == self.store.clock.trust();
        if self.adoption.is_some()
            || (!is_noted || self.store.log.needs_commit())
                && disk::may_forget(&self.store.health())
        {
            self.commit(Vec::new());
        } else if let Some(maintenance) = &self.maintenance {
            maintenance.wake_if_needed(&self.store); // a commit wakes it anyway
        }
    }

    pub(super) fn check_disk(&self) {
        disk::check(
            &self.store,
            &self.disk,
            self.retention.disk_free_min_percent,
        );
    }

    pub(super) fn look_at_age(&self) {
        self.store.log.look_at_age(
            self.store.clock.now_micros(),
            self.retention.segment_age_max,
        );
    }

    pub(super) fn trim_is_due(&self) -> bool {
        self.trimmer.is_due(&self.store, &self.retention)
    }

    pub(super) fn commit_group(&mut self, first: Command) -> ControlFlow<()> {
        if matches!(first, Command::Stop) {
            return ControlFlow::Break(());
        }
        let (group, flow) = self.group(first);

        if let Some(retention) = self.queue.new_retention() {
            self.retention = retention;
            retention.note_in(&self.metrics);
        }
        self.check_disk();
        self.check_clock();
        self.look_at_age();

        let (backups, mut group): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|command| matches!(command, Command::Backup(_)));
        backups
            .into_iter()
            .for_each(|command| self.back_up(command));

        if self.store.log.announced() >= ANNOUNCED_MAX {
            let refused = group.extract_if(.., |command| command.erases());
            refused.for_each(|command| command.refuse(WriteError::Overloaded));
        }
        // An erasure looks its events up in the log, so it needs a commit of its own behind theirs.
        let (erasures, group): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|command| matches!(command, Command::Erase(..)));
        self.commit_or_refuse(group);
        self.commit_or_refuse(erasures);
        flow
    }

    /// Takes the commands that wait behind the first, as many as one commit may have.
    fn group(&self, first: Command) -> (Vec<Command>, ControlFlow<()>) {
        let (mut tasks, mut bytes) = (first.tasks(), self.queue.release(&first));
        let mut group = Vec::new();
        enlist(first, &mut group);
        while tasks < GROUP_MAX && bytes < GROUP_BYTES_MAX {
            match self.queue.commands.try_recv() {
                Ok(Command::Stop) => return (group, ControlFlow::Break(())),
                Ok(command) => {
                    tasks += command.tasks();
                    bytes += self.queue.release(&command);
                    enlist(command, &mut group);
                }
                Err(_) => break,
            }
        }
        (group, ControlFlow::Continue(()))
    }

    fn commit_or_refuse(&mut self, group: Vec<Command>) {
        match self.refusal() {
            _ if group.is_empty() => {}
            None => {
                self.commit(group);
            }
            // Deletions free some disk, and an erasure must not wait for space.
            Some(error) if disk::may_forget(&self.store.health()) => {
                let (deletions, others): (Vec<_>, Vec<_>) =
                    group.into_iter().partition(Command::only_removes);
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

    /// Between two commits everything in the store is durable, unless one has failed.
    pub(super) fn back_up(&self, command: Command) {
        let Command::Backup(reply) = command else {
            return;
        };
        let answer = match self.refusal() {
            Some(error @ WriteError::Failed(_)) => Err(error),
            _ => Ok(self.store.backup()),
        };
        let _ = reply.send(answer).is_ok(); // if the receiver is gone, its caller has timed out
    }

    pub(super) fn refusal(&self) -> Option<WriteError> {
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

    /// Follows the machine's clock, logs when it is far away, and adopts its time where it has proved right and the commit that
    /// notes it can be written.
    pub(super) fn check_clock(&mut self) {
        let clock = &self.store.clock;
        let may_adopt = self.adoption.is_none() && disk::may_forget(&self.store.health());
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
}

fn enlist(command: Command, group: &mut Vec<Command>) {
    match command {
        Command::Retain => {} // the new retention is taken up before the commit
        command => group.push(command),
    }
}
