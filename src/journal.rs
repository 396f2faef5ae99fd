//! Who decides order and durability.
//!
//! A journal takes every operation that changes the log, and answers when the change is durable. This node's own is [`Local`]:
//! the store's commit itself. That of a node of a cluster is [`jetstream`]: the nodes write one stream of frames, and each follows it
//! into its own store. Readers only ever read the store, whatever the journal is.
//!
//! What every journal promises (`tests/it/journal_contract.rs` holds each to it):
//!
//! - An answer comes after the change is durable. Nothing that is unanswered is shown to readers and lost later.
//! - The places of events and the numbers of quarantined callbacks rise in the order of one caller's operations.
//! - A duplicate is answered with its original, and not before the original is durable.
//! - An operation takes effect as a whole or not at all.
//! - Operations take effect in the order in which one caller has started them.

pub mod jetstream;

use std::{fmt::Debug, pin::Pin};

use tokio::sync::oneshot;

use crate::{
    event::{Product, TaskId},
    store::{
        Appended, Appender, Backup, Draft, Erased, Erasure, Expected, NewExpectation,
        NewQuarantined, Retention, Whose, WriteError,
    },
};

/// Comes when the operation is durable. A dropped sender means that the journal has stopped.
pub type Answer<T = Appended> = oneshot::Receiver<Result<T, WriteError>>;

/// Comes to true when this node has caught up, and to false if that takes too long.
pub type CatchingUp<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// See the module's description. Its methods never block.
pub trait Journal: Debug + Send + Sync + 'static {
    /// Appends an event, or finds its original.
    fn append(&self, draft: Draft) -> Answer;

    /// Puts a callback into quarantine; answers its number.
    fn quarantine(&self, new: NewQuarantined) -> Answer<u64>;

    /// Takes the callback with this number out of quarantine, erases it there, and appends the events that it has become. The
    /// answer has one element for each draft, in order.
    fn release(&self, number: u64, drafts: Vec<Draft>) -> Answer<Vec<Appended>>;

    /// Takes the callbacks with these numbers out of quarantine and erases them; answers how many existed.
    fn discard(&self, numbers: Vec<u64>) -> Answer<u32>;

    /// Erases the content of a task's events. The answer comes when none of it is left on this node.
    fn erase(&self, erasure: Erasure) -> Answer<Erased>;

    /// Has tasks expected, all of them or none. The answer has one element for each, in order. A task that is expected already stays
    /// as it is, and one that is over is not expected. A terminal event ends the expectation of its task by the same commit.
    fn expect(&self, new: Vec<NewExpectation>) -> Answer<Vec<Expected>>;

    /// Ends those of these tasks' expectations that are open and may be ended; answers how many.
    fn end_expectations(&self, tasks: Vec<(Product, TaskId)>, whose: Whose) -> Answer<u32>;

    /// Appends the event that the task of an expectation is late; with `gives_up` the expectation ends by the same commit. Nothing is
    /// appended, and the answer is `None`, if that expectation is not open any more, if there is such an event of it already, or if
    /// its task has too many.
    fn overdue(&self, number: u64, draft: Draft, gives_up: bool) -> Answer<Option<Appended>>;

    /// Sets how long and how much is kept, from the next change of the log on. There is no answer: what it forgets is forgotten
    /// little by little.
    fn retain(&self, retention: Retention);

    /// Takes a backup that has every change that was answered before, and none that could still be lost.
    fn backup(&self) -> Answer<Backup>;

    /// Answers when the whole path to durability has worked once more. Changes nothing.
    fn probe(&self) -> Answer<()>;

    /// Whether this node decides what is written. Of the nodes of a cluster one does at a time, as far as each knows; that one does
    /// what should be done once, as asking the vendor.
    fn is_writer(&self) -> bool {
        true
    }

    /// Waits until this node has every change that any node had answered before; false if that cannot be known, or takes too long.
    /// `None` if there is no other node.
    fn catch_up(&self) -> Option<CatchingUp<'_>> {
        None
    }
}

/// The journal of a single node.
#[derive(Clone, Debug)]
pub struct Local(Appender);

impl Local {
    /// A journal that is the store's own commit.
    pub fn new(appender: Appender) -> Self {
        Self(appender)
    }
}

impl Journal for Local {
    fn append(&self, draft: Draft) -> Answer {
        self.0.append(draft)
    }

    fn quarantine(&self, new: NewQuarantined) -> Answer<u64> {
        self.0.quarantine(new)
    }

    fn release(&self, number: u64, drafts: Vec<Draft>) -> Answer<Vec<Appended>> {
        self.0.release(number, drafts)
    }

    fn discard(&self, numbers: Vec<u64>) -> Answer<u32> {
        self.0.discard(numbers)
    }

    fn erase(&self, erasure: Erasure) -> Answer<Erased> {
        self.0.erase(erasure)
    }

    fn expect(&self, new: Vec<NewExpectation>) -> Answer<Vec<Expected>> {
        self.0.expect(new)
    }

    fn end_expectations(&self, tasks: Vec<(Product, TaskId)>, whose: Whose) -> Answer<u32> {
        self.0.end_expectations(tasks, whose)
    }

    fn overdue(&self, number: u64, draft: Draft, gives_up: bool) -> Answer<Option<Appended>> {
        self.0.overdue(number, draft, gives_up)
    }

    fn retain(&self, retention: Retention) {
        self.0.retain(retention);
    }

    fn backup(&self) -> Answer<Backup> {
        self.0.backup()
    }

    fn probe(&self) -> Answer<()> {
        self.0.probe()
    }
}
