//! Who decides order and durability.
//!
//! A journal takes drafts and answers each when its event is durable and has its place. This node's own is [`Local`]: the
//! store's commit itself. A replicated one publishes elsewhere and follows that stream into the same store; whatever it is,
//! readers only ever read the store.
//!
//! What every journal promises (`tests/it/journal_contract.rs` holds each to it): an answer comes after the event is durable;
//! places rise in the order of the answers of one caller; a duplicate is answered with its original, and not before the
//! original is durable; nothing unanswered is shown to readers and lost later.

use tokio::sync::oneshot;

use crate::store::{Appended, Appender, Draft, WriteError};

/// Comes when the event is durable. A dropped sender means that the journal has stopped.
pub type Answer = oneshot::Receiver<Result<Appended, WriteError>>;

/// Like [`Answer`], one of each event, in order.
pub type Released = oneshot::Receiver<Result<Vec<Appended>, WriteError>>;

/// See the module's description. Its methods never block.
pub trait Journal: Send + Sync + 'static {
    /// Appends an event, or finds its original.
    fn append(&self, draft: Draft) -> Answer;

    /// Appends the events that the quarantined callback with this number has become, and takes it out of quarantine: all of it
    /// or nothing.
    fn release(&self, number: u64, drafts: Vec<Draft>) -> Released;

    /// Answers when the whole path to durability has.
    fn probe(&self) -> oneshot::Receiver<Result<(), WriteError>>;
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

    fn release(&self, number: u64, drafts: Vec<Draft>) -> Released {
        self.0.release(number, drafts)
    }

    fn probe(&self) -> oneshot::Receiver<Result<(), WriteError>> {
        self.0.probe()
    }
}
