//! Opening a subscription: where it starts, and whether it may.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Buffer, Control, End, Phase, Sources, Subscription, read_aside, registry::NewEntry};
use crate::{
    credentials::Client,
    event::{Cursor, Filter, Sequence},
    store::ReadError,
    trace::Context,
};

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Filters with tasks: what is retained; others: the head.
    Default,
    /// Behind this cursor.
    After(Cursor),
    /// With the first event received at or after this time.
    Since(Timestamp),
    /// With the oldest retained event.
    Earliest,
    /// At the head.
    Latest,
}

/// What to do when retention has passed the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExpired {
    /// End with an error.
    Fail,
    /// Announce a gap, continue with the oldest retained event.
    Earliest,
    /// Announce a gap, continue at the head.
    Latest,
}

impl OnExpired {
    /// The place to continue behind; `None` is an error.
    pub(super) fn continue_at(self, sources: &Sources) -> Option<Sequence> {
        match self {
            Self::Fail => None,
            Self::Earliest => Some(sources.store.first_available().previous()),
            Self::Latest => Some(sources.hub.head()),
        }
    }
}

/// Everything a client may ask for.
#[derive(Debug)]
pub struct Opening {
    /// Which events.
    pub filter: Filter,
    /// From where.
    pub start: Start,
    /// What if that is forgotten.
    pub on_expired: OnExpired,
    /// End when every task of the filter is over.
    pub until_terminal: bool,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Whom the client was let in as; what it may not see the filter already leaves out.
    pub client: Option<Arc<Client>>,
    /// As the client names itself.
    pub client_name: String,
    /// The client's address.
    pub peer: String,
    /// The span of the client's call, if it is sampled.
    pub call: Option<Context>,
}

/// Why a subscription cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many are open as may be.
    #[error("{limit} subscriptions are open, the most there may be: end some, or raise grpc.subscriptions_max")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// As many task ids are waited for as may be.
    #[error("open streams may name {limit} task ids together: wait for some to end, or raise grpc.task_ids_in_all_max")]
    TooManyTaskIds {
        /// The limit.
        limit: usize,
    },
    /// Of another log.
    #[error("the cursor belongs to another log: this one was restored or created anew since; start without it")]
    EpochMismatch,
    /// Not given out yet.
    #[error("the cursor is ahead of the log's head")]
    CursorAhead,
    /// Retention has passed it.
    #[error("the events behind the cursor are no longer retained: set on_expired, or start at EARLIEST")]
    CursorExpired,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// The log is damaged.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
}

impl Sources {
    /// The oldest retained event; `None` if none is.
    pub fn first_available(&self) -> Option<Sequence> {
        let first_available = self.store.first_available();
        (first_available <= self.store.head()).then_some(first_available)
    }

    /// Checks a client's cursor against the log; the place may be forgotten, but never ahead or of another log.
    pub fn place(&self, cursor: Cursor) -> Result<Sequence, OpenError> {
        if cursor.epoch != self.store.epoch() {
            Err(OpenError::EpochMismatch)
        } else if cursor.sequence > self.store.head() {
            Err(OpenError::CursorAhead)
        } else {
            Ok(cursor.sequence)
        }
    }

    async fn start(self: &Arc<Self>, opening: &Opening) -> Result<Sequence, OpenError> {
        let earliest = || self.store.first_available().previous();
        match opening.start {
            Start::Default if opening.filter.task_ids.is_empty() => Ok(self.hub.head()),
            Start::Default | Start::Earliest => Ok(earliest()),
            Start::Latest => Ok(self.hub.head()),
            Start::After(cursor) => {
                let place = self.place(cursor)?;
                let expired = place < earliest() && opening.on_expired == OnExpired::Fail;
                if expired { Err(OpenError::CursorExpired) } else { Ok(place) }
            }
            Start::Since(time) => {
                let sources = Arc::clone(self);
                let found = read_aside(move || sources.store.seek_time(time.as_microsecond())).await;
                match super::joined(found) {
                    Ok(Ok(place)) => Ok(place),
                    Ok(Err(ReadError::Corrupt(problem))) => Err(OpenError::Corrupt(problem)),
                    Ok(Err(ReadError::Expired)) => Ok(earliest()),
                    Err(_) => Err(OpenError::Draining),
                }
            }
        }
    }
}

impl Subscription {
    /// Opens a subscription, and makes its first read unless it starts behind a cursor.
    pub async fn open(sources: Arc<Sources>, opening: Opening) -> Result<Self, OpenError> {
        if sources.hub.is_closing() {
            return Err(OpenError::Draining);
        }
        let position = sources.start(&opening).await?;
        let may_move = !matches!(opening.start, Start::After(_));
        let Opening {
            filter,
            on_expired,
            until_terminal,
            heartbeat_interval,
            deadline,
            client,
            client_name,
            peer,
            call,
            ..
        } = opening;
        let filter = Arc::new(filter);
        let id = Uuid::new_v4();
        let new = NewEntry { id, client, client_name, peer, call, filter: Arc::clone(&filter), position };
        let entry = sources.registry.enter(new, sources.store.clock(), &sources.metrics)?;
        // A task's end counts whatever its status and labels are, so tasks and products alone decide what is read. Another
        // product's event is another task's end; the filter's products are also those that the client may see.
        let scan_filter = if until_terminal {
            let (task_ids, products) = (filter.task_ids.clone(), filter.products.clone());
            Arc::new(Filter { task_ids, products, ..Filter::default() })
        } else {
            Arc::clone(&filter)
        };
        let pending = until_terminal.then(|| filter.task_ids.clone());
        let first_beat = Instant::now() + jittered(heartbeat_interval, id);
        let (head, first_available) = (sources.hub.head(), sources.store.first_available());
        let mut subscription = Self {
            entry,
            filter,
            scan_filter,
            on_expired,
            phase: Phase::Planning,
            position,
            buffer: Buffer::default(),
            again: None,
            wide: None,
            buffer_end: position,
            outbox: VecDeque::new(),
            end: None,
            pending,
            catch_up_to: Some(head),
            heartbeat: Box::pin(sleep_until(deadline.map_or(first_beat, |deadline| deadline.min(first_beat)))),
            heartbeat_interval,
            deadline,
            sources,
        };
        if may_move {
            subscription.settle().await.map_err(|end| match end {
                End::Corrupt(problem) => OpenError::Corrupt(problem),
                _ => OpenError::CursorExpired,
            })?;
        }
        subscription.announce();
        // An expired cursor that passed `start` continues behind a gap.
        if !may_move
            && position < first_available.previous()
            && let Some(to) = on_expired.continue_at(&subscription.sources)
        {
            subscription.skip_to(to);
        }
        Ok(subscription)
    }

    fn announce(&mut self) {
        let hub = &self.sources.hub;
        let first_available = self.sources.first_available();
        self.outbox.push_back(Control::Subscribed {
            position: self.position,
            first_available,
            head: hub.head().max(self.position),
        });
    }
}

// Spreads the first heartbeats of streams that were opened together over half an interval.
fn jittered(interval: Duration, id: Uuid) -> Duration {
    let fraction = f64::from(id.as_bytes()[0]) / 255.0;
    interval.mul_f64(0.5 + fraction / 2.0)
}
