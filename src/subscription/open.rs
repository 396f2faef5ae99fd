//! Opening a subscription: where it starts, and whether it may.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{
    Buffer, Control, Heard, LimitReached, Phase, Sources, StreamEnd, Subscription, read_aside,
    registry::NewEntry, stream_log::Who,
};
use crate::{
    budget::Payer,
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

impl Start {
    /// The log time before which no event is wanted: a time that has not come yet lies behind every place there is.
    fn since(self, sources: &Sources) -> Option<i64> {
        match self {
            Self::Since(time) => Some(sources.store.log_time(time.as_microsecond())),
            _ => None,
        }
    }
}

/// What to do when retention has passed the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExpired {
    /// StreamEnd with an error.
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
    /// StreamEnd when every task of the filter is over.
    pub until_terminal: bool,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Whom the client was let in as; what it may not see the filter already leaves out.
    pub client: Option<Arc<Client>>,
    /// Whose share of the memory for reads it takes.
    pub payer: Payer,
    /// As the client names itself.
    pub client_name: String,
    /// The client's address.
    pub peer: String,
    /// The client's connection.
    pub heard: Heard,
    /// The span of the client's call, if it is sampled.
    pub call: Option<Context>,
}

/// Why a subscription cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// As many are open, or name as many task ids, as may be.
    #[error("{0}")]
    TooMany(LimitReached),
    /// Of another log.
    #[error(
        "the cursor belongs to another log: this one was restored or created anew since; start without it"
    )]
    EpochMismatch,
    /// Not given out yet.
    #[error("the cursor is ahead of the log's head")]
    CursorAhead,
    /// Retention has passed it.
    #[error(
        "the events behind the cursor are no longer retained: set on_expired, or start at EARLIEST"
    )]
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
    pub fn place(&self, cursor: Cursor) -> Result<Sequence, SubscribeError> {
        if cursor.epoch != self.store.epoch() {
            Err(SubscribeError::EpochMismatch)
        } else if cursor.sequence > self.store.head() {
            Err(SubscribeError::CursorAhead)
        } else {
            Ok(cursor.sequence)
        }
    }

    /// A client that comes back with a cursor which retention has passed has lost what was behind it.
    fn note_loss(&self, opening: &Opening, error: &SubscribeError) {
        if let (Start::After(cursor), SubscribeError::CursorExpired) = (opening.start, error) {
            let Opening {
                client,
                client_name,
                peer,
                ..
            } = opening;
            let who = Who {
                client: client.as_ref(),
                client_name,
                peer,
            };
            let through = self.store.first_available().previous();
            self.registry.log().lost(
                &who,
                "cursor_expired",
                cursor.sequence,
                through,
                &self.metrics,
            );
        }
    }

    async fn start(self: &Arc<Self>, opening: &Opening) -> Result<Sequence, SubscribeError> {
        let earliest = || self.store.first_available().previous();
        match opening.start {
            Start::Default if opening.filter.task_ids.is_empty() => Ok(self.hub.head()),
            Start::Default | Start::Earliest => Ok(earliest()),
            Start::Latest => Ok(self.hub.head()),
            Start::After(cursor) => {
                let place = self.place(cursor)?;
                let expired = place < earliest() && opening.on_expired == OnExpired::Fail;
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
                match super::joined(found) {
                    Ok(Ok(place)) => Ok(place),
                    Ok(Err(ReadError::Corrupt(problem))) => Err(SubscribeError::Corrupt(problem)),
                    Ok(Err(ReadError::Expired)) => Ok(earliest()),
                    Err(_) => Err(SubscribeError::Draining),
                }
            }
        }
    }
}

impl Subscription {
    /// Opens a subscription, and makes its first read unless it starts behind a cursor.
    pub async fn open(sources: Arc<Sources>, opening: Opening) -> Result<Self, SubscribeError> {
        if sources.hub.is_closing() {
            return Err(SubscribeError::Draining);
        }
        // Before anything is read.
        let erasures = sources.store.erasures();
        let position = sources
            .start(&opening)
            .await
            .inspect_err(|error| sources.note_loss(&opening, error))?;
        let may_move = !matches!(opening.start, Start::After(_));
        let since = opening.start.since(&sources);
        let Opening {
            filter,
            on_expired,
            until_terminal,
            heartbeat_interval,
            deadline,
            client,
            payer,
            client_name,
            peer,
            heard,
            call,
            ..
        } = opening;
        let filter = Arc::new(filter);
        let id = Uuid::new_v4();
        let new = NewEntry {
            id,
            client,
            client_name,
            peer,
            heard,
            call,
            filter: Arc::clone(&filter),
            position,
        };
        let entry =
            sources
                .registry
                .enter(new, &sources.hub, sources.store.clock(), &sources.metrics)?;
        let scan_filter = if until_terminal {
            scan_for_ends(&filter)
        } else {
            Arc::clone(&filter)
        };
        let pending = until_terminal.then(|| filter.task_ids.clone());
        let first_beat = Instant::now() + jittered(heartbeat_interval, id);
        let (head, first_available) = (sources.hub.head(), sources.store.first_available());
        let mut subscription = Self {
            entry,
            payer,
            filter,
            scan_filter,
            on_expired,
            since,
            phase: Phase::Planning,
            position,
            buffer: Buffer::default(),
            again: None,
            erasures,
            wide: None,
            buffer_end: position,
            outbox: VecDeque::new(),
            end: None,
            pending,
            over_through: Sequence::default(),
            catch_up_to: Some(head),
            heartbeat: Box::pin(sleep_until(
                deadline.map_or(first_beat, |deadline| deadline.min(first_beat)),
            )),
            heartbeat_interval,
            deadline,
            sources,
        };
        if may_move {
            subscription.settle().await.map_err(|end| match end {
                StreamEnd::Corrupt(problem) => SubscribeError::Corrupt(problem),
                _ => SubscribeError::CursorExpired,
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

/// A task's end counts whatever its status and labels are, so tasks and products alone decide what is read, and what the client may
/// see. Another product's event is another task's end; the filter's products are also those that the client may see.
fn scan_for_ends(filter: &Filter) -> Arc<Filter> {
    let (task_ids, products, bound) = (
        filter.task_ids.clone(),
        filter.products.clone(),
        filter.bound.clone(),
    );
    Arc::new(Filter {
        task_ids,
        products,
        bound,
        ..Filter::default()
    })
}

// Spreads the first heartbeats of streams that were opened together over half an interval.
fn jittered(interval: Duration, id: Uuid) -> Duration {
    let fraction = f64::from(id.as_bytes()[0]) / 255.0;
    interval.mul_f64(0.5 + fraction / 2.0)
}
