//! Opening a subscription: finds its start, enters it into the registry, and makes its first read.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{
    buffer::Buffer,
    heard::Heard,
    info::NewSubscription,
    message::{Control, StreamEnd},
    sources::Sources,
    start::{OnExpired, Start, SubscribeError},
    stream::{Phase, Subscription},
    stream_log::StreamReader,
};
use crate::{
    budget::Payer,
    credentials::Client,
    event::{Filter, Sequence},
    trace::Context,
};

/// A request for a subscription, with what the broker knows about its caller.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The events that the client wants and may see.
    pub filter: Filter,
    /// The place in the log to start at.
    pub start: Start,
    /// The client's choice if retention has passed that place.
    pub on_expired: OnExpired,
    /// The stream ends when every task of the filter has ended.
    pub until_terminal: bool,
    /// The time between two heartbeats.
    pub heartbeat_interval: Duration,
    /// The deadline of the client's call.
    pub deadline: Option<Instant>,
    /// The authenticated client; `None`: anonymous.
    pub client: Option<Arc<Client>>,
    /// The connection or client that takes turns with others at the memory for reads.
    pub payer: Payer,
    /// The name that the client gave itself in the request.
    pub client_name: String,
    /// The network address of the client.
    pub peer: String,
    /// The last receipt on the client's connection.
    pub heard: Heard,
    /// The span of the client's call, if it is sampled.
    pub call: Option<Context>,
}

impl Sources {
    /// Logs the loss of a client whose cursor has expired: it misses the events after the cursor.
    fn log_loss(&self, opening: &Opening, error: &SubscribeError) {
        if let (Start::After(cursor), SubscribeError::CursorExpired) = (opening.start, error) {
            let reader = StreamReader {
                client: opening.client.as_ref(),
                client_name: &opening.client_name,
                peer: &opening.peer,
            };
            let through = self.store.first_available().previous();
            self.registry.log().lost(
                &reader,
                "cursor_expired",
                cursor.sequence,
                through,
                &self.metrics,
            );
        }
    }
}

impl Subscription {
    /// Opens a subscription, and makes its first read unless it starts after a cursor.
    pub(crate) async fn open(
        sources: Arc<Sources>,
        opening: Opening,
    ) -> Result<Self, SubscribeError> {
        if sources.hub.is_closing() {
            return Err(SubscribeError::Draining);
        }

        // Before the first read, so that no erasure after it goes unnoticed.
        let erasures = sources.store.erasures();
        let position = sources
            .start(opening.start, &opening.filter, opening.on_expired)
            .await
            .inspect_err(|error| sources.log_loss(&opening, error))?;

        let has_cursor = matches!(opening.start, Start::After(_));
        let mut subscription = Self::enter(sources, opening, position, erasures)?;
        if !has_cursor {
            subscription.first_read().await.map_err(|end| match end {
                StreamEnd::Corrupt(problem) => SubscribeError::Corrupt(problem),
                _ => SubscribeError::CursorExpired,
            })?;
        }
        subscription.announce();
        if has_cursor {
            subscription.skip_expired();
        }
        Ok(subscription)
    }

    /// Enters the subscription into the registry, at the start of its reading.
    fn enter(
        sources: Arc<Sources>,
        opening: Opening,
        position: Sequence,
        erasures: u64,
    ) -> Result<Self, SubscribeError> {
        let since = opening.start.since(&sources);
        let filter = Arc::new(opening.filter);
        let id = Uuid::new_v4();
        let new = NewSubscription {
            id,
            client: opening.client,
            client_name: opening.client_name,
            peer: opening.peer,
            heard: opening.heard,
            call: opening.call,
            filter: Arc::clone(&filter),
            position,
        };
        let entry = sources
            .registry
            .enter(new, &sources.hub, sources.store.clock(), &sources.metrics)
            .map_err(SubscribeError::TooMany)?;

        let scan_filter = if opening.until_terminal {
            scan_for_ends(&filter)
        } else {
            Arc::clone(&filter)
        };
        let pending = opening.until_terminal.then(|| filter.task_ids.clone());
        let (heartbeat_interval, deadline) = (opening.heartbeat_interval, opening.deadline);
        let first_beat = Instant::now() + jittered(heartbeat_interval, id);
        let first_beat = deadline.map_or(first_beat, |deadline| deadline.min(first_beat));

        Ok(Self {
            entry,
            payer: opening.payer,
            filter,
            scan_filter,
            on_expired: opening.on_expired,
            since,
            phase: Phase::Planning,
            position,
            buffer: Buffer::default(),
            reread: None,
            erasures,
            wide_permit: None,
            buffer_end: position,
            controls: VecDeque::new(),
            end: None,
            pending,
            ended_through: Sequence::default(),
            catch_up_to: Some(sources.hub.head()),
            heartbeat: Box::pin(sleep_until(first_beat)),
            heartbeat_interval,
            deadline,
            sources,
        })
    }

    fn announce(&mut self) {
        let hub = &self.sources.hub;
        let first_available = self.sources.first_available();
        self.controls.push_back(Control::Subscribed {
            position: self.position,
            first_available,
            head: hub.head().max(self.position),
        });
    }

    /// Continues after a gap if the cursor had expired and the client accepts that.
    fn skip_expired(&mut self) {
        let first_available = self.sources.store.first_available();
        if self.position < first_available.previous()
            && let Some(to) = self.on_expired.continue_at(&self.sources)
        {
            self.skip_with_gap(to);
        }
    }
}

/// The filter for a stream that ends with its tasks. A terminal event counts whatever its status and labels are, so only tasks,
/// products and the binding restrict it: an event of another product is about another task, and the client may not see the events
/// that its products or binding exclude.
fn scan_for_ends(filter: &Filter) -> Arc<Filter> {
    Arc::new(Filter {
        task_ids: filter.task_ids.clone(),
        products: filter.products.clone(),
        bound: filter.bound.clone(),
        ..Filter::default()
    })
}

// Spreads the first heartbeats of streams that were opened together over half an interval.
fn jittered(interval: Duration, id: Uuid) -> Duration {
    let fraction = f64::from(id.as_bytes()[0]) / 255.0;
    interval.mul_f64(0.5 + fraction / 2.0)
}
