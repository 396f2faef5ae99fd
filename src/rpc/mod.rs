//! The gRPC edge: requests in, domain calls, responses and errors out. Decides nothing that the domain can decide.

mod access;
mod admin;
mod answers;
mod backup;
mod configuration;
mod credentials;
mod deadline;
mod erasure;
mod errors;
mod events;
mod expectation_pace;
mod expectations;
mod fields;
mod listing;
mod log_info;
mod minting;
mod narrow_filter;
pub(crate) mod page;
mod permission_review;
mod overview;
mod quarantine;
mod raw_body;
mod readiness;
mod refusals;
mod stream;
mod subscribe;
mod subscriptions;
mod task;
mod test_callback;
mod wait;
mod waiting;

use std::sync::Arc;

use access::Caller;
pub(crate) use access::{ClientName, Gate, LetIn, Peer, client_of};
pub(crate) use admin::Admin;
pub(crate) use answers::{AnswerBody, Answers, UNREAD_PER_CLIENT_MAX, Unread, is_prepaid};
pub(crate) use deadline::{Deadline, note_deadline};
pub(crate) use errors::{
    deadline_exceeded, explained, health_limit, overloaded, request_late, request_too_large, word,
};
pub(crate) use events::Events;
pub(crate) use expectation_pace::ExpectationPace;
pub(crate) use log_info::Cluster;
pub(crate) use overview::look_at_counters;
use parking_lot::Mutex;
pub(crate) use readiness::Readiness;
pub(crate) use stream::HandedOver;
pub(crate) use test_callback::TakeCallback;
use tonic::{Request, Status};

use crate::{
    audit::Audit,
    config::Settings,
    event::Filter,
    journal::Journal,
    minutes::Minutes,
    reconcile::Reconciler,
    refused::RefusedCallbacks,
    repetitions::Repetitions,
    store::{ReadError, Retention, WriteError},
    subscription::{Heard, Sources, read_aside},
    trace,
    wire::{self, FilterLimits, v1},
};

/// What the services share.
#[derive(Clone)]
pub(crate) struct Context {
    /// The log, the hub, and the registry of subscriptions.
    pub sources: Arc<Sources>,
    /// Takes every change of the log.
    pub journal: Arc<dyn Journal>,
    /// Authenticates calls, and has the keys that sign callback URLs.
    pub gate: Gate,
    /// The beginning of callback URLs.
    pub callback_base: String,
    /// How many values a filter may have.
    pub filter_limits: FilterLimits,
    /// The memory of answers.
    pub answers: Arc<Answers>,
    /// Records calls of `AdminService`.
    pub audit: Arc<Audit>,
    /// For `SendTestCallback`.
    pub take_callback: TakeCallback,
    /// For `GetOverview`.
    pub readiness: Arc<Readiness>,
    /// For `GetOverview`: what came in each minute.
    pub minutes: Arc<Minutes>,
    /// For `ListRefusals`.
    pub refused: Arc<RefusedCallbacks>,
    /// For `GetTask`.
    pub repetitions: Arc<Repetitions>,
    /// What asks the vendor for tasks; `None` if nothing does.
    pub reconciler: Option<Arc<Reconciler>>,
    /// How fast each client may expect tasks.
    pub expectation_pace: Arc<ExpectationPace>,
    /// For `GetLogInfo`; a reload changes it.
    pub retention: Arc<Mutex<Retention>>,
    /// For `GetConfiguration`; a reload changes it.
    pub settings: Arc<Mutex<Settings>>,
    /// For `GetLogInfo`; `None` if this broker is alone.
    pub cluster: Option<Cluster>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// The filter of a request, narrowed to what the caller may see.
    fn filter(&self, filter: Option<v1::Filter>, caller: &Caller) -> Result<Filter, Status> {
        let filter =
            wire::filter_from_wire(filter, self.limits_of(caller)).map_err(errors::filter)?;
        caller.narrow_filter(filter)
    }

    fn limits_of(&self, caller: &Caller) -> FilterLimits {
        let task_ids_max = caller.0.as_ref().and_then(|client| client.task_ids_max);
        let task_ids_max = task_ids_max.map_or(self.filter_limits.task_ids_max, |max| {
            max.min(self.filter_limits.task_ids_max)
        });
        FilterLimits {
            task_ids_max,
            ..self.filter_limits
        }
    }

    fn page_bytes_max(&self) -> usize {
        page_bytes_max(self.sources.memory.event_bytes_max)
    }

    fn retention(&self) -> Retention {
        *self.retention.lock()
    }

    /// The writer's answer; no answer at all means that it has stopped.
    fn answered<T, E>(&self, answer: Result<Result<T, WriteError>, E>) -> Result<T, Status> {
        answer
            .map_err(|_| errors::draining())?
            .map_err(|error| errors::write(&self.sources, &error))
    }

    /// Runs a read of the store off the async threads. A call that is cancelled before its read begins does not read.
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

/// Memory that a page takes while it is made: once as stored, once as sent.
fn page_bytes_max(event_bytes_max: usize) -> usize {
    page::PAGE_BYTES_MAX
        .saturating_add(event_bytes_max)
        .saturating_mul(2)
}

/// Address of the client's connection, and when it last sent anything.
fn peer<T>(request: &Request<T>) -> (String, Heard) {
    let peer = request.extensions().get::<Peer>();
    peer.map(|peer| (peer.address.to_string(), peer.heard.clone()))
        .unwrap_or_default()
}

/// The span of a call, as the server noted it when the call began; `None` if it is not sampled.
fn call<T>(request: &Request<T>) -> Option<trace::Context> {
    request.extensions().get().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, subscription::Memory};

    #[test]
    fn the_least_memory_that_answers_may_have_is_four_times_what_the_largest_takes() {
        for body_bytes_max in [1 << 10, 1 << 20, 8 << 20, 64 << 20] {
            let event_bytes_max = Memory::new(0, body_bytes_max).event_bytes_max;
            let largest = [
                2 * event_bytes_max,
                2 * task::TASK_BYTES_MAX,
                page_bytes_max(event_bytes_max),
            ]
            .into_iter()
            .max();
            let least = config::answers_bytes_min(body_bytes_max as u64) as usize;
            assert!(
                answers::SHARE * largest.unwrap() <= least,
                "{body_bytes_max}: {least}"
            );
        }
    }
}
