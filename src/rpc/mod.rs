//! The gRPC edge: requests in, domain calls, responses and errors out. Decides nothing that the domain can decide.

mod access;
mod admin;
mod answers;
mod backup;
mod deadline;
mod errors;
mod events;
pub(crate) mod page;
mod stream;

use std::sync::{Arc, Mutex, PoisonError};

use access::Caller;
pub use access::{Gate, LetIn, Peer};
pub use admin::Admin;
pub use answers::{AnswerBody, Answers, Payer, UNREAD_PER_CLIENT_MAX, Unread, is_prepaid};
pub use backup::BackupStream;
pub use deadline::{Deadline, note_deadline};
pub use errors::{deadline_exceeded, explained, health_limit, overloaded, request_late, request_too_large};
pub use events::Events;
pub use stream::HandedOver;
use tonic::{Request, Status};

use crate::{
    event::Filter,
    journal::Journal,
    store::{Appender, ReadError, Retention},
    subscription::{Sources, read_aside},
    trace,
    wire::{self, FilterLimits, v1},
};

/// What the services work on.
#[derive(Clone)]
pub struct Context {
    /// What subscriptions read from.
    pub sources: Arc<Sources>,
    /// Where released callbacks go.
    pub journal: Arc<dyn Journal>,
    /// Where discarding goes.
    pub appender: Appender,
    /// Who may call, and what signs callback URLs.
    pub gate: Gate,
    /// What callback URLs begin with.
    pub callback_base: String,
    /// How many values a filter may have.
    pub filter_limits: FilterLimits,
    /// What answers may take of memory.
    pub answers: Arc<Answers>,
    /// Told by `GetLogInfo`; changed by a reload.
    pub retention: Arc<Mutex<Retention>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl Context {
    /// What a request asks for, as far as the caller may.
    fn filter(&self, filter: Option<v1::Filter>, caller: &Caller) -> Result<Filter, Status> {
        let filter = wire::filter_from_wire(filter, self.limits_of(caller)).map_err(errors::filter)?;
        caller.restrict(filter)
    }

    fn limits_of(&self, caller: &Caller) -> FilterLimits {
        let task_ids_max = caller.0.as_ref().and_then(|client| client.task_ids_max);
        let task_ids_max =
            task_ids_max.map_or(self.filter_limits.task_ids_max, |max| max.min(self.filter_limits.task_ids_max));
        FilterLimits { task_ids_max, ..self.filter_limits }
    }

    /// What a page takes while it is made: as it is stored, and as it is sent.
    fn page_bytes_max(&self) -> usize {
        page::PAGE_BYTES_MAX.saturating_add(self.sources.memory.event_bytes_max).saturating_mul(2)
    }

    fn retention(&self) -> Retention {
        *self.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a read of the store off the async threads; not at all if the call is cancelled before it begins.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Sources) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Status> {
        let sources = Arc::clone(&self.sources);
        let joined = read_aside(move || read(&sources)).await;
        // Only a runtime that shuts down cancels a read; a panic has ended the process.
        let read = joined.map_err(|_| errors::draining())?;
        read.map_err(|error| errors::read(&self.sources, &error))
    }
}

fn peer<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default()
}

/// The span of a call, as whoever began it has noted; `None` if it is not sampled.
fn call<T>(request: &Request<T>) -> Option<trace::Context> {
    request.extensions().get().copied()
}
