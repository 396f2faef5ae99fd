//! What the domain's errors are to a client: a reason, a message that names the next step, and when to try again.

use std::time::Duration;

use tonic::{Code, Status};

use crate::{
    callback::{Rejection, Unreleasable},
    credentials::MintError,
    event::Sequence,
    store::{ReadError, WriteError},
    subscription::{LimitReached, Sources, StreamEnd, SubscribeError, Withdrawal},
    wire::{FilterRefusal, Reason},
};

/// Delay after which to reconnect to a broker that restarts: about what a restart takes.
pub(super) const RECONNECT_AFTER: Duration = Duration::from_secs(2);
/// Delay after a write that the store refused: a full disk takes at least that long to be cleared.
const RETRY_STORE: Duration = Duration::from_secs(30);
/// Delay where every place is taken: by then the place of a lost connection is free again.
const RETRY_PLACE: Duration = Duration::from_secs(10);
/// Delay after a refusal whose cause passes within milliseconds.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The status of a call that tonic has refused, with a reason and our words; `None` if the status is ours already.
pub(crate) fn explained(status: &Status, request_bytes_max: usize) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let message = status.message();
    Some(match status.code() {
        Code::Unimplemented if status.metadata().contains_key("grpc-accept-encoding") => {
            let message = "send the request without compression";
            let mut explained = Reason::UnsupportedEncoding.status(message);
            // The accepted encodings are for the client's library.
            *explained.metadata_mut() = status.metadata().clone();
            explained
        }
        Code::Unimplemented => {
            let message = "no such method here: the client is newer than this broker, or means another server";
            Reason::UnknownMethod.status(message)
        }
        // As other servers say it. OUT_OF_RANGE is about cursors here.
        Code::OutOfRange => request_too_large(request_bytes_max),
        // The client has also written the frames around its request.
        Code::Internal => Reason::InvalidRequest.status(message),
        _ => return None,
    })
}

/// Arriving requests hold all the memory that they may.
pub(crate) fn overloaded() -> Status {
    let message = "too many requests are on their way at once: send it again";
    Reason::Overloaded.passing_status(message, [], RETRY_SOON)
}

/// A client expects more tasks than its pace allows.
pub(super) fn expects_too_fast(wait: Duration) -> Status {
    let message = "this client expects tasks faster than the log can keep them: send it again after the delay";
    Reason::Overloaded.passing_status(message, [], wait)
}

/// Unread answers hold all the memory that they may.
pub(super) fn answers_limit(limit: usize, share: usize) -> Status {
    let message = format!(
        "answers that their clients have not taken hold all that they may, {limit} bytes together and {share} of one \
         client: read the answers to your calls, make fewer at once, or raise grpc.answers_bytes_max"
    );
    let limits = [("limit", limit.to_string()), ("share", share.to_string())];
    Reason::AnswersLimit.passing_status(message, limits, RETRY_SOON)
}

/// A client has as many unread answers as it may.
pub(super) fn unread_limit(share: usize) -> Status {
    let message = format!(
        "{share} answers to this client's calls were not taken: read them, or make fewer calls at once"
    );
    let limits = [("limit", share.to_string()), ("share", share.to_string())];
    Reason::AnswersLimit.passing_status(message, limits, RETRY_SOON)
}

/// As many backups are open as there may be.
pub(super) fn backup_limit(limit: usize, share: usize) -> Status {
    let message = format!(
        "{limit} backups are open, or {share} of this client, the most there may be: let one end first"
    );
    let limits = [("limit", limit.to_string()), ("share", share.to_string())];
    Reason::BackupLimit.passing_status(message, limits, RETRY_STORE)
}

/// The client has read nothing of an answer for too long.
pub(super) fn answer_stalled(after: Duration) -> Status {
    let message = format!(
        "nothing of the answer was taken for {} s: read it, or cancel the call",
        after.as_secs()
    );
    Reason::AnswerStalled.status(message)
}

/// The request has more bytes than it may have.
pub(crate) fn request_too_large(bytes_max: usize) -> Status {
    let message = format!("the request has more than {bytes_max} bytes: ask for less");
    Reason::RequestTooLarge.status_with(message, [("limit", bytes_max.to_string())])
}

/// As many calls of the health service are open as there may be.
pub(crate) fn health_limit(limit: usize) -> Status {
    let message = format!(
        "there may be {limit} such calls of the health service at once: end one of them first"
    );
    Reason::HealthLimit.status_with(message, [("limit", limit.to_string())])
}

/// The request did not arrive in time.
pub(crate) fn request_late() -> Status {
    let message = "the request did not arrive in time: send it as a whole";
    Reason::InvalidRequest.status(message)
}

/// The call's own deadline has passed.
pub(crate) fn deadline_exceeded() -> Status {
    let message = StreamEnd::DeadlineExceeded.to_string();
    Reason::DeadlineExceeded.status(message)
}

/// The audit requires a record of the call, and cannot write one.
pub(super) fn audit_unavailable() -> Status {
    let message = "the call could not be recorded, and audit.required is set, so nothing was done: the broker's log says what is \
                   wrong with audit.file";
    Reason::AuditUnavailable.passing_status(message, [], RETRY_STORE)
}

/// A refusal in one word, for the audit and the log: its reason, or its code if it has none.
pub(crate) fn word(status: &Status) -> String {
    Reason::of(status).map_or_else(
        || format!("{:?}", status.code()),
        |reason| reason.as_str().to_owned(),
    )
}

pub(super) fn filter(refusal: FilterRefusal) -> Status {
    match refusal {
        FilterRefusal::Malformed(problem) => problem.into(),
        FilterRefusal::TooMany { field, limit } => {
            let metadata = [("limit", limit.to_string()), ("field", field.to_owned())];
            Reason::SubscriptionLimit.status_with(refusal.to_string(), metadata)
        }
    }
}

pub(super) fn draining() -> Status {
    Reason::Draining.passing_status(
        "the server is shutting down: reconnect",
        [],
        RECONNECT_AFTER,
    )
}

/// Counts and logs damage, since every read that meets damage passes here.
pub(super) fn damage_met(sources: &Sources, problem: &str) {
    sources.metrics.log_damage_met.inc();
    sources.registry.log_damage(problem);
}

fn corrupt(sources: &Sources, problem: &str) -> Status {
    damage_met(sources, problem);
    let message = format!("the log is damaged ({problem}): tell the operator");
    Reason::LogCorrupt.status(message)
}

fn expired(sources: &Sources, message: impl Into<String>) -> Status {
    let cursor = |sequence: Sequence| sources.store.cursor(sequence).to_string();
    // Empty if the log holds nothing, as everywhere in the API.
    let first_available = sources.first_available().map(cursor).unwrap_or_default();
    let ends = [
        ("first_available", first_available),
        ("head", cursor(sources.store.head())),
    ];
    Reason::CursorExpired.status_with(message, ends)
}

pub(super) fn open(sources: &Sources, error: &SubscribeError) -> Status {
    let message = error.to_string();

    match error {
        SubscribeError::TooMany(reached) => {
            let LimitReached {
                limit,
                open,
                setting,
                ..
            } = reached;
            let of_limit = [
                ("limit", limit.to_string()),
                ("open", open.to_string()),
                ("setting", setting.clone()),
            ];
            if reached.may_pass() {
                Reason::SubscriptionLimit.passing_status(message, of_limit, RETRY_PLACE)
            } else {
                Reason::SubscriptionLimit.status_with(message, of_limit)
            }
        }
        SubscribeError::EpochMismatch => Reason::EpochMismatch
            .status_with(message, [("epoch", sources.store.epoch().to_string())]),
        SubscribeError::CursorAhead => {
            let head = sources.store.cursor(sources.store.head()).to_string();
            Reason::CursorAhead.status_with(message, [("head", head)])
        }
        SubscribeError::Behind => behind_with(sources, message),
        SubscribeError::CursorExpired => expired(sources, message),
        SubscribeError::Draining => draining(),
        SubscribeError::Corrupt(problem) => corrupt(sources, problem),
    }
}

/// This node cannot find out in time what others of its cluster have answered.
pub(super) fn behind(sources: &Sources) -> Status {
    let message = "this node of the cluster cannot tell whether another one has more: try again, or ask another node";
    behind_with(sources, message.to_owned())
}

fn behind_with(sources: &Sources, message: String) -> Status {
    let head = sources.store.cursor(sources.store.head()).to_string();
    Reason::StoreBehind.passing_status(message, [("head", head)], RETRY_SOON)
}

pub(super) fn end(sources: &Sources, end: &StreamEnd) -> Status {
    match end {
        StreamEnd::Expired => expired(
            sources,
            "retention has passed this stream: set on_expired, or read faster",
        ),
        StreamEnd::Draining => draining(),
        StreamEnd::Corrupt(problem) => corrupt(sources, problem),
        StreamEnd::Erased => {
            let message = "the event was erased while it was sent, and there is no rest of it: go on behind the last cursor";
            Reason::EventErased.passing_status(message, [], RETRY_SOON)
        }
        StreamEnd::Withdrawn(Withdrawal::Identity) => {
            token_invalid("the token was withdrawn, or has expired")
        }
        StreamEnd::Withdrawn(Withdrawal::Products) => {
            let message = "the permission to see some of this stream's products was withdrawn";
            Reason::ProductDenied.status(message)
        }
        StreamEnd::Withdrawn(Withdrawal::Labels) => {
            let message = "the client was bound to other labels, and this stream has events without them: open it again to see those \
                           that have them";
            Reason::LabelDenied.status(message)
        }
        StreamEnd::Withdrawn(Withdrawal::Place) => {
            let message = "a newer stream with this client_name took this one's place, whose connection had fallen silent: that is \
                           usually the same reader, which has reconnected; readers that run at once need names of their own";
            Reason::Replaced.status(message)
        }
        // No RetryInfo: the administrator does not want the stream back at once.
        StreamEnd::Withdrawn(Withdrawal::Stream) => {
            let message = "an administrator of the broker has ended this stream: ask why before you open it again, behind the last cursor";
            Reason::SubscriptionEnded.status(message)
        }
        StreamEnd::DeadlineExceeded => deadline_exceeded(),
    }
}

pub(super) fn read(sources: &Sources, error: &ReadError) -> Status {
    match error {
        ReadError::Expired => expired(sources, error.to_string()),
        ReadError::Corrupt(problem) | ReadError::Io(problem) => corrupt(sources, problem),
        ReadError::Index(_) => {
            Reason::StoreReadOnly.passing_status(error.to_string(), [], RETRY_STORE)
        }
    }
}

pub(super) fn write(sources: &Sources, error: &WriteError) -> Status {
    match error {
        WriteError::Closed => draining(),
        // The release, which knows the id, makes a better message of it.
        WriteError::NotInQuarantine => quarantine_not_found(""),
        WriteError::TooManyEvents => Reason::NotUnderstood.status_with(
            error.to_string(),
            [("reason", Rejection::TooManyEvents.reason().to_owned())],
        ),
        WriteError::TooManyExpectations { limit, open } => Reason::ExpectationLimit.status_with(
            error.to_string(),
            [("limit", limit.to_string()), ("open", open.to_string())],
        ),
        WriteError::Corrupt(problem) => corrupt(sources, problem),
        WriteError::Overloaded
        | WriteError::DiskLow { .. }
        | WriteError::Failed(_)
        | WriteError::Away(_)
        | WriteError::TooLarge => {
            Reason::StoreReadOnly.passing_status(error.to_string(), [], RETRY_STORE)
        }
    }
}

pub(super) fn task_not_found(task_id: &str, product: &str) -> Status {
    let of = if product.is_empty() {
        String::new()
    } else {
        format!(" of {product}")
    };
    let message = format!(
        "no event of task {task_id}{of} is here: one may come yet (WaitTask waits for it), or all were erased or forgotten"
    );
    Reason::TaskNotFound.status(message)
}

/// The events of a task are more than one answer holds. The message advises only what would make the answer smaller.
pub(super) fn task_too_large(limit: usize, product: &str, include_raw: bool) -> Status {
    let (of_product, raw) = (
        if product.is_empty() {
            "name the product, "
        } else {
            ""
        },
        if include_raw {
            "leave out include_raw, "
        } else {
            ""
        },
    );

    let or = if of_product.is_empty() && raw.is_empty() {
        ""
    } else {
        "or "
    };

    let products = if product.is_empty() {
        String::new()
    } else {
        format!(" and {product} in filter.products")
    };

    let message = format!(
        "the task's events have more than {limit} bytes together: {of_product}{raw}{or}ask ListEvents with the task id in \
         filter.task_ids{products}, which answers in pages that any client takes"
    );

    Reason::ResponseTooLarge.status_with(message, [("limit", limit.to_string())])
}

pub(super) fn event_not_found() -> Status {
    let message = "no event of this cursor that the client may see is retained: take the cursor of an event, not of a heartbeat";
    Reason::EventNotFound.status(message)
}

pub(super) fn quarantine_not_found(id: &str) -> Status {
    let message =
        format!("no callback {id} is in quarantine: it was released, discarded or forgotten");
    Reason::QuarantineNotFound.status(message)
}

/// A quarantined callback cannot be released, as it cannot be read.
pub(super) fn quarantine_damaged(sources: &Sources, id: &str, problem: &str) -> Status {
    damage_met(sources, problem);
    let message = format!(
        "callback {id} in quarantine is damaged in the log ({problem}), and can only be discarded: tell the operator"
    );
    Reason::LogCorrupt.status(message)
}

pub(super) fn subscription_not_found() -> Status {
    let message = "no subscription of this id is open: it has ended, or ListSubscriptions shows what its id is";
    Reason::SubscriptionNotFound.status(message)
}

pub(super) fn reconcile_off() -> Status {
    let message = "this broker asks no vendor for tasks: have reconcile.enabled set, and a vendor key added to its credentials file";
    Reason::ReconcileOff.status(message)
}

pub(super) fn label_denied(key: &str) -> Status {
    let message = format!(
        "this client is bound to another value of the label {key}: leave it out, it is added"
    );
    Reason::LabelDenied.status(message)
}

pub(super) fn token_invalid(message: &str) -> Status {
    Reason::TokenInvalid.status(message)
}

pub(super) fn product_denied(product: &str) -> Status {
    let message = format!(
        "this client may not see {product}: leave it out, or have it added to the client's products"
    );
    Reason::ProductDenied.status_with(message, [("product", product.to_owned())])
}

pub(super) fn product_denied_by_key(product: &str, denied: &MintError) -> Status {
    let metadata = [("product", product.to_owned())];
    Reason::ProductDenied.status_with(denied.to_string(), metadata)
}

pub(super) fn no_products() -> Status {
    let message = "this client may take backups, and see no events: its line in the credentials file needs `products`";
    Reason::ProductDenied.status(message)
}

/// The caller is an administrator of some products only.
pub(super) fn backup_of_all_denied() -> Status {
    let message = "a backup holds every product: the client's line in the credentials file needs `backup = true`, or \
                   `products = [\"*\"]` and no `labels` besides `admin = true`";
    Reason::ProductDenied.status(message)
}

pub(super) fn backup_denied(client: &str) -> Status {
    let message = format!(
        "{client} may not take backups: its line in the credentials file needs `backup = true`"
    );
    Reason::AdminDenied.status(message)
}

pub(super) fn admin_denied(client: &str) -> Status {
    let message = format!(
        "{client} is no administrator: its line in the credentials file needs `admin = true`"
    );
    Reason::AdminDenied.status(message)
}

pub(super) fn signing_key_missing(message: String) -> Status {
    Reason::SigningKeyMissing.status(message)
}

pub(super) fn not_understood(refusal: &Unreleasable) -> Status {
    let message = format!("still not understood: {refusal}");
    Reason::NotUnderstood.status_with(message, [("reason", refusal.reason().to_owned())])
}
