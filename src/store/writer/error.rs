//! Why a command was not carried out.

use crate::store::task_entry::TASK_EVENTS_MAX;

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
    /// The stream of the cluster takes no writes, or this node does not follow it any more. It may be written yet.
    #[error("the cluster's stream could not be written ({0}): try again later")]
    Away(String),
    /// It is larger than a message of the cluster's stream may be.
    #[error(
        "it is more than one message of NATS may have: send less at once, or raise max_payload there"
    )]
    TooLarge,
    /// The content to erase is missing from the log, or is not as it was written. Nothing was erased.
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
        "the task has {TASK_EVENTS_MAX} events of this product that are not terminal, the most one may have"
    )]
    TooManyEvents,
    /// As many tasks are expected as may be, in all or of this client.
    #[error(
        "{open} tasks are expected, and {limit} may be: cancel some, or wait until some are over"
    )]
    TooManyExpectations {
        /// How many may be.
        limit: usize,
        /// How many are.
        open: usize,
    },
}
