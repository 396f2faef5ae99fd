//! The messages of a stream, and the reasons for which it ends. Without wire types: `rpc` turns them into frames and statuses.

use crate::event::{Records, Sequence};

/// One message of a stream.
#[derive(Debug)]
pub(crate) enum StreamMessage<'a> {
    /// An event that the client asked for.
    Event {
        /// The batch that the event was published or read with.
        records: &'a Records,
        /// The event's index in the batch.
        at: usize,
        /// How many further events may follow at once, so that the receiver can reserve room.
        ahead: usize,
    },
    /// A statement about the stream itself.
    Control(Control),
}

/// A message without an event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Control {
    /// The subscription is open. Always the first message.
    Subscribed {
        /// Every matching event after this place will be sent.
        position: Sequence,
        /// The oldest retained event; `None` for an empty log.
        first_available: Option<Sequence>,
        /// The newest event when the subscription was opened.
        head: Sequence,
    },
    /// The subscription has reached the head and is live now.
    CaughtUp {
        /// Every matching event up to here was sent.
        position: Sequence,
    },
    /// The subscription was too slow for the live path and reads the log again.
    FellBehind {
        /// Every matching event up to here was sent.
        position: Sequence,
        /// Events between there and the head.
        lag: u64,
    },
    /// A heartbeat, whose position is a bookmark.
    Progress {
        /// Every matching event up to here was sent.
        position: Sequence,
        /// The newest event at this moment.
        head: Sequence,
    },
    /// Retention has removed events before they could be sent.
    Gap {
        /// The last place before the gap.
        after: Sequence,
        /// The last place within the gap.
        through: Sequence,
    },
    /// The server is shutting down; the client resumes elsewhere or later.
    GoingAway {
        /// Every matching event up to here was sent.
        position: Sequence,
    },
    /// Every task of the filter has had its terminal event.
    Completed {
        /// Every matching event up to here was sent.
        position: Sequence,
    },
}

/// The reason for which the broker ends a client's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Withdrawal {
    /// The client's token or certificate is no longer valid.
    Identity,
    /// The client may no longer see some of the products in the stream's filter.
    Products,
    /// The client is now bound to labels that the stream's filter does not require.
    Labels,
    /// A newer stream of the same reader replaces this one, whose connection had fallen silent.
    Place,
    /// An administrator has ended the stream.
    Stream,
}

/// The reason for which a stream ends, other than `Completed`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamEnd {
    /// Retention has passed the stream's position.
    #[error("the events behind this place are no longer retained")]
    Expired,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// A read has met a damaged part of the log.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
    /// An event was erased after a part of it had been sent.
    #[error("the event was erased while it was sent")]
    Erased,
    /// The client may no longer read the stream, or the stream was replaced or ended by an administrator.
    #[error("the permission was withdrawn")]
    Withdrawn(Withdrawal),
    /// The deadline of the client's call has passed.
    #[error("the deadline of the call has passed")]
    DeadlineExceeded,
}
