//! The writer's queue: bounded in number and in bytes. A full queue refuses; nothing here waits but [`Appender::stop`].

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    command::{Command, Erased, Erasure, Expecting, Late, Reply},
    error::WriteError,
    retention::Retention,
};
use crate::{
    event::{Product, TaskId},
    store::{Appended, Backup, Draft, Expected, NewExpectation, NewQuarantined, Whose, lock},
};

/// Most commands that wait for the writer. More than the connections that may be open, so only a flood from within fills it;
/// then a callback is refused with 503.
pub(super) const QUEUE_MAX: usize = 4_096;
/// Most bytes that wait for the writer, should the disk stall; then callbacks are refused with 503, too. As much again as
/// the bodies in flight may have by default.
pub(super) const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Hands commands to the writer.
#[derive(Clone)]
pub struct Appender {
    commands: SyncSender<Command>,
    queued_bytes: Arc<AtomicUsize>,
    new_retention: Arc<Mutex<Option<Retention>>>,
}

/// The writer's end of the queue.
pub(super) struct Queue {
    pub commands: Receiver<Command>,
    queued_bytes: Arc<AtomicUsize>,
    /// What the writer has not taken up yet.
    new_retention: Arc<Mutex<Option<Retention>>>,
}

/// Wakes who waits for commands.
#[derive(Clone)]
pub struct Waker(SyncSender<Command>);

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

impl Waker {
    /// Never waits.
    pub fn wake(&self) {
        // If the queue is full, nobody waits for a command; if the writer has ended, nobody waits at all.
        let _ = self.0.try_send(Command::Retain).is_ok();
    }
}

/// Makes a queue.
pub(super) fn queue() -> (Appender, Queue) {
    let (sender, commands) = mpsc::sync_channel(QUEUE_MAX);
    let queued_bytes = Arc::<AtomicUsize>::default();
    let new_retention = Arc::<Mutex<_>>::default();

    let appender = Appender {
        commands: sender,
        queued_bytes: Arc::clone(&queued_bytes),
        new_retention: Arc::clone(&new_retention),
    };
    let queue = Queue {
        commands,
        queued_bytes,
        new_retention,
    };
    (appender, queue)
}

impl Queue {
    /// Gives back the room of a command that was taken; returns its bytes.
    pub(super) fn release(&self, command: &Command) -> usize {
        let bytes = command.bytes();
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        bytes
    }

    pub(super) fn new_retention(&self) -> Option<Retention> {
        lock(&self.new_retention).take()
    }
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

    /// Erases the content of a task's events. The answer comes when none of it is left in the log, nor in the copies that
    /// `Publish` keeps.
    pub fn erase(&self, erasure: Erasure) -> oneshot::Receiver<Result<Erased, WriteError>> {
        self.send(|reply| Command::Erase(erasure, reply))
    }

    /// Deletes callbacks from quarantine, and erases them; answers how many existed.
    pub fn discard(&self, numbers: Vec<u64>) -> oneshot::Receiver<Result<u32, WriteError>> {
        self.send(|reply| Command::Discard(numbers, reply))
    }

    /// Has tasks expected, all or none; answers what became of each, in order. A task that is expected already stays as it is.
    pub fn expect(
        &self,
        new: Vec<NewExpectation>,
    ) -> oneshot::Receiver<Result<Vec<Expected>, WriteError>> {
        let expecting = Expecting {
            expectations: new.into_iter().map(|new| new.numbered(0)).collect(),
            is_limited: true,
        };
        self.send(|reply| Command::Expect(expecting, reply))
    }

    /// Ends expectations; answers how many there were.
    pub fn end_expectations(
        &self,
        tasks: Vec<(Product, TaskId)>,
        whose: Whose,
    ) -> oneshot::Receiver<Result<u32, WriteError>> {
        self.send(|reply| Command::EndExpectations(tasks, whose, reply))
    }

    /// Appends the event that the task of an expectation is late. With `gives_up` the expectation ends by the same commit. Nothing
    /// is appended, and the answer is `None`, if that expectation is not open any more, if there is such an event of it already,
    /// or if its task has too many.
    pub fn overdue(
        &self,
        number: u64,
        draft: Draft,
        gives_up: bool,
    ) -> oneshot::Receiver<Result<Option<Appended>, WriteError>> {
        let late = Late {
            number,
            draft,
            gives_up,
        };
        self.send(|reply| Command::Overdue(Box::new(late), reply))
    }

    /// Takes a backup: everything that was answered by now, and nothing that a crash could take back. It needs no room on the
    /// disk, so a low one is no hindrance.
    pub fn backup(&self) -> oneshot::Receiver<Result<Backup, WriteError>> {
        self.send(Command::Backup)
    }

    /// Commits a frame without entries; answers when it is durable.
    pub fn probe(&self) -> oneshot::Receiver<Result<(), WriteError>> {
        self.send(Command::Probe)
    }

    /// Sets how long and how much is kept from now on. Never waits.
    pub fn retain(&self, retention: Retention) {
        *lock(&self.new_retention) = Some(retention);
        // Wakes an idle writer. If the queue is full, the writer is not idle; if the writer has ended, nothing is left to do.
        let _ = self.commands.try_send(Command::Retain).is_ok();
    }

    /// Wakes the writer.
    pub(super) fn waker(&self) -> Waker {
        Waker(self.commands.clone())
    }

    /// Lets the writer finish the commands that were sent before, and end. Later ones are answered [`WriteError::Closed`].
    /// Blocks while the queue is full.
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

        // Counted before it is sent, so that the writer never takes a command that is not counted.
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
