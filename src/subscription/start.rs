//! The start of a subscription in the log: its forms, and the check that the log still has the place.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    limits::LimitReached,
    reading::{joined, read_aside},
    sources::Sources,
};
use crate::{
    event::{Cursor, Filter, Sequence},
    store::ReadError,
};

/// The start that a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The client asks for none. A filter with tasks starts with their retained events; any other filter starts at the head.
    Default,
    /// After the place of this cursor.
    After(Cursor),
    /// With the first event received at or after this time.
    Since(Timestamp),
    /// With the oldest retained event.
    Earliest,
    /// At the head: only new events.
    Latest,
}

impl Start {
    /// The log time before which the client wants no event. A future time lies after every event of the log, so the place alone does
    /// not express it.
    pub(super) fn since(self, sources: &Sources) -> Option<i64> {
        match self {
            Self::Since(time) => Some(sources.store.log_time(time.as_microsecond())),
            _ => None,
        }
    }
}

/// The client's choice for a position that retention has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnExpired {
    /// End the stream with an error.
    Fail,
    /// Announce a gap and continue with the oldest retained event.
    Earliest,
    /// Announce a gap and continue at the head.
    Latest,
}

impl OnExpired {
    /// The place after which the stream continues; `None` if it has to fail.
    pub(super) fn continue_at(self, sources: &Sources) -> Option<Sequence> {
        match self {
            Self::Fail => None,
            Self::Earliest => Some(sources.store.first_available().previous()),
            Self::Latest => Some(sources.hub.head()),
        }
    }
}

/// A subscription cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubscribeError {
    /// A limit on open subscriptions, or on the task ids in their filters, is reached.
    #[error("{0}")]
    TooMany(LimitReached),
    /// The cursor belongs to another log.
    #[error(
        "the cursor belongs to another log: this one was restored or created anew since; start without it"
    )]
    EpochMismatch,
    /// The cursor is of this log, but its place does not exist yet.
    #[error("the cursor is ahead of the log's head")]
    CursorAhead,
    /// Another node of the cluster has given the cursor out, and this node does not have its place yet.
    #[error(
        "this node has not got as far as the cursor, which another node of the cluster has given out: try again"
    )]
    Behind,
    /// Retention has passed the cursor.
    #[error(
        "the events behind the cursor are no longer retained: set on_expired, or start at EARLIEST"
    )]
    CursorExpired,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// A read has met a damaged part of the log.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
}

impl Sources {
    /// The oldest retained event; `None` for an empty log.
    pub(crate) fn first_available(&self) -> Option<Sequence> {
        let first_available = self.store.first_available();
        (first_available <= self.store.head()).then_some(first_available)
    }

    /// The place of a client's cursor. Retention may have passed it, but it is of this log and not ahead of the head. A node of a
    /// cluster waits until it has the place.
    pub(crate) async fn place(&self, cursor: Cursor) -> Result<Sequence, SubscribeError> {
        if cursor.epoch != self.store.epoch() {
            return Err(SubscribeError::EpochMismatch);
        }
        let has_it = || cursor.sequence <= self.store.head();
        if self.awaited.reached(has_it).await {
            Ok(cursor.sequence)
        } else if self.awaited.is_in_cluster() {
            Err(SubscribeError::Behind)
        } else {
            Err(SubscribeError::CursorAhead)
        }
    }

    /// The place after which a subscription starts.
    pub(super) async fn start(
        self: &Arc<Self>,
        start: Start,
        filter: &Filter,
        on_expired: OnExpired,
    ) -> Result<Sequence, SubscribeError> {
        let earliest = || self.store.first_available().previous();
        match start {
            Start::Default if filter.task_ids.is_empty() => Ok(self.hub.head()),
            Start::Default | Start::Earliest => Ok(earliest()),
            Start::Latest => Ok(self.hub.head()),
            Start::After(cursor) => {
                let place = self.place(cursor).await?;
                let expired = place < earliest() && on_expired == OnExpired::Fail;
                if expired {
                    Err(SubscribeError::CursorExpired)
                } else {
                    Ok(place)
                }
            }
            Start::Since(time) => {
                let sources = Arc::clone(self);
                let found =
                    read_aside(move || sources.store.seek_time(time.as_microsecond())).await;
                match joined(found) {
                    Ok(Ok(place)) => Ok(place),
                    Ok(Err(
                        ReadError::Corrupt(problem)
                        | ReadError::Io(problem)
                        | ReadError::Index(problem),
                    )) => Err(SubscribeError::Corrupt(problem)),
                    Ok(Err(ReadError::Expired)) => Ok(earliest()),
                    Err(_) => Err(SubscribeError::Draining),
                }
            }
        }
    }
}
