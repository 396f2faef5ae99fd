//! What a stream says, and how it ends.

use crate::event::{Records, Sequence};

/// One message of a stream.
#[derive(Debug)]
pub enum Message<'a> {
    /// An event that matches.
    Event {
        /// What it was published or read with.
        records: &'a Records,
        /// Where it is among them.
        at: usize,
        /// How many more may follow at once, for making room.
        ahead: usize,
    },
    /// Where the stream is.
    Control(Control),
}

/// A message without an event.
#[derive(Clone, Copy, Debug)]
pub enum Control {
    /// Always first.
    Subscribed {
        /// Everything that matches behind this place will come.
        position: Sequence,
        /// The oldest retained event; `None` of an empty log.
        first_available: Option<Sequence>,
        /// The newest event.
        head: Sequence,
    },
    /// Catching up is over.
    CaughtUp {
        /// Everything up to here has been sent.
        position: Sequence,
    },
    /// Back to the log.
    FellBehind {
        /// Everything up to here has been sent.
        position: Sequence,
        /// Events between there and the head.
        lag: u64,
    },
    /// Heartbeat and bookmark.
    Progress {
        /// Everything up to here has been sent.
        position: Sequence,
        /// The newest event.
        head: Sequence,
    },
    /// Events that retention took before they could be sent.
    Gap {
        /// Exclusive.
        after: Sequence,
        /// Inclusive.
        through: Sequence,
    },
    /// The server is going away.
    GoingAway {
        /// Everything up to here has been sent.
        position: Sequence,
    },
    /// Every task has had its terminal event.
    Completed {
        /// Everything up to here has been sent.
        position: Sequence,
    },
}

/// What a client has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// To be let in at all.
    Identity,
    /// Some of the products that the stream is about.
    Products,
    /// To see events without a label that it is bound to now.
    Labels,
    /// Its place, to a newer stream: this one's connection had fallen silent.
    Place,
    /// This stream: an administrator has ended it.
    Stream,
}

/// Why a stream ends otherwise than by `Completed`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// Retention has passed the stream's position.
    #[error("the events behind this place are no longer retained")]
    Expired,
    /// The server is going away.
    #[error("the server is shutting down")]
    Draining,
    /// The log is damaged.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
    /// The client has a part of an event that was erased.
    #[error("the event was erased while it was sent")]
    Erased,
    /// The client may not see this any more.
    #[error("the permission was withdrawn")]
    Withdrawn(Withdrawal),
    /// The client's deadline has passed.
    #[error("the deadline of the call has passed")]
    DeadlineExceeded,
}
