//! Every error a client can see, with the reason that is part of the contract. The one place where statuses are made.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    callback::Unreleasable,
    credentials::MintError,
    event::Sequence,
    store::{ReadError, WriteError},
    subscription::{LimitReached, Sources, StreamEnd, SubscribeError, Withdrawal},
    wire::{FilterRefusal, Malformed},
};

const DOMAIN: &str = "blobcast";
/// When to try again after a restart began: about what one takes.
pub(super) const RECONNECT_AFTER: Duration = Duration::from_secs(2);
/// When to try again what the store cannot take: as long as a full disk takes at least.
const RETRY_STORE: Duration = Duration::from_secs(30);
/// The log is as it will stay.
const RETRY_ERASED: Duration = Duration::from_secs(1);

/// When to try again where every place is taken: after about that time the place of a connection that was lost is free, too.
const RETRY_PLACE: Duration = Duration::from_secs(10);

fn status<const N: usize>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: [(&str, String); N],
    retry_after: Option<Duration>,
) -> Status {
    let metadata: HashMap<_, _> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, message, details)
}

/// The reason that is part of the contract, of a status made here.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// What is refused before a service sees it, in our words instead of tonic's; `None` if they are ours already.
pub fn explained(status: &Status, request_bytes_max: usize) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let message = status.message();
    Some(match status.code() {
        Code::Unimplemented if status.metadata().contains_key("grpc-accept-encoding") => {
            let message = "send the request without compression";
            let mut explained = self::status(
                Code::Unimplemented,
                "UNSUPPORTED_ENCODING",
                message,
                [],
                None,
            );
            // What it would be is for the client's library, not only for people.
            *explained.metadata_mut() = status.metadata().clone();
            explained
        }
        Code::Unimplemented => {
            let message = "no such method here: the client is newer than this broker, or means another server";
            self::status(Code::Unimplemented, "UNKNOWN_METHOD", message, [], None)
        }
        // As other servers say it; OUT_OF_RANGE is about cursors here.
        Code::OutOfRange => request_too_large(request_bytes_max),
        // The frames around a request are the client's, too.
        Code::Internal => self::status(Code::InvalidArgument, "INVALID_REQUEST", message, [], None),
        _ => return None,
    })
}

/// More is on its way in than may be held; it passes.
pub fn overloaded() -> Status {
    let message = "too many requests are on their way at once: send it again";
    status(
        Code::ResourceExhausted,
        "OVERLOADED",
        message,
        [],
        Some(Duration::from_secs(1)),
    )
}

/// More answers are on their way out than may be held.
pub(super) fn answers_limit(limit: usize, share: usize) -> Status {
    let message = format!(
        "answers that their clients have not taken hold all that they may, {limit} bytes together and {share} of one \
         client: read the answers to your calls, make fewer at once, or raise grpc.answers_bytes_max"
    );
    let limits = [("limit", limit.to_string()), ("share", share.to_string())];
    status(
        Code::ResourceExhausted,
        "ANSWERS_LIMIT",
        message,
        limits,
        Some(Duration::from_secs(1)),
    )
}

/// More answers of a client are on their way out than there may be.
pub(super) fn unread_limit(share: usize) -> Status {
    let message = format!(
        "{share} answers to this client's calls were not taken: read them, or make fewer calls at once"
    );
    let limits = [("limit", share.to_string()), ("share", share.to_string())];
    status(
        Code::ResourceExhausted,
        "ANSWERS_LIMIT",
        message,
        limits,
        Some(Duration::from_secs(1)),
    )
}

/// As many backups are open as may be.
pub(super) fn backup_limit(limit: usize, share: usize) -> Status {
    let message = format!(
        "{limit} backups are open, or {share} of this client, the most there may be: let one end first"
    );
    let limits = [("limit", limit.to_string()), ("share", share.to_string())];
    status(
        Code::ResourceExhausted,
        "BACKUP_LIMIT",
        message,
        limits,
        Some(RETRY_STORE),
    )
}

/// The client has not read on.
pub(super) fn answer_stalled(after: Duration) -> Status {
    let message = format!(
        "nothing of the answer was taken for {} s: read it, or cancel the call",
        after.as_secs()
    );
    status(Code::ResourceExhausted, "ANSWER_STALLED", message, [], None)
}

/// The request has more bytes than it may have.
pub fn request_too_large(bytes_max: usize) -> Status {
    let message = format!("the request has more than {bytes_max} bytes: ask for less");
    status(
        Code::ResourceExhausted,
        "REQUEST_TOO_LARGE",
        message,
        [("limit", bytes_max.to_string())],
        None,
    )
}

/// As many calls of the health service are open as there may be.
pub fn health_limit(limit: usize) -> Status {
    let message = format!(
        "there may be {limit} such calls of the health service at once: end one of them first"
    );
    status(
        Code::ResourceExhausted,
        "HEALTH_LIMIT",
        message,
        [("limit", limit.to_string())],
        None,
    )
}

/// The request has not arrived in time.
pub fn request_late() -> Status {
    let message = "the request did not arrive in time: send it as a whole";
    status(Code::InvalidArgument, "INVALID_REQUEST", message, [], None)
}

/// The call's own deadline has passed.
pub fn deadline_exceeded() -> Status {
    let message = StreamEnd::DeadlineExceeded.to_string();
    status(
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        message,
        [],
        None,
    )
}

/// The call cannot be recorded, and has to be.
pub(super) fn audit_unavailable() -> Status {
    let message = "the call could not be recorded, and audit.required is set, so nothing was done: the broker's log says what is \
                   wrong with audit.file";
    status(
        Code::Unavailable,
        "AUDIT_UNAVAILABLE",
        message,
        [],
        Some(RETRY_STORE),
    )
}

/// How an audit record tells that a call was refused.
pub(super) fn result(status: &Status) -> String {
    reason(status).unwrap_or_else(|| format!("{:?}", status.code()))
}

pub(super) fn malformed(malformed: Malformed) -> Status {
    let message = malformed.to_string();
    let mut details = ErrorDetails::with_bad_request_violation(malformed.field, malformed.problem);
    details.set_error_info("INVALID_REQUEST", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

pub(super) fn filter(refusal: FilterRefusal) -> Status {
    match refusal {
        FilterRefusal::Malformed(problem) => malformed(problem),
        FilterRefusal::TooMany { field, limit } => {
            let metadata = [("limit", limit.to_string()), ("field", field.to_owned())];
            status(
                Code::ResourceExhausted,
                "SUBSCRIPTION_LIMIT",
                refusal.to_string(),
                metadata,
                None,
            )
        }
    }
}

pub(super) fn draining() -> Status {
    status(
        Code::Unavailable,
        "DRAINING",
        "the server is shutting down: reconnect",
        [],
        Some(RECONNECT_AFTER),
    )
}

/// Counted and logged here, where every read that meets damage passes: the operator has to know.
fn corrupt(sources: &Sources, problem: &str) -> Status {
    sources.metrics.log_damage_met.inc();
    sources.registry.log_damage(problem);
    let message = format!("the log is damaged ({problem}): tell the operator");
    status(Code::DataLoss, "LOG_CORRUPT", message, [], None)
}

fn expired(sources: &Sources, message: impl Into<String>) -> Status {
    let cursor = |sequence: Sequence| sources.store.cursor(sequence).to_string();
    // Empty if the log holds nothing, as everywhere in the API.
    let first_available = sources.first_available().map(cursor).unwrap_or_default();
    let ends = [
        ("first_available", first_available),
        ("head", cursor(sources.store.head())),
    ];
    status(Code::OutOfRange, "CURSOR_EXPIRED", message, ends, None)
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
            let retry = reached.may_pass().then_some(RETRY_PLACE);
            status(
                Code::ResourceExhausted,
                "SUBSCRIPTION_LIMIT",
                message,
                of_limit,
                retry,
            )
        }
        SubscribeError::EpochMismatch => status(
            Code::FailedPrecondition,
            "EPOCH_MISMATCH",
            message,
            [("epoch", sources.store.epoch().to_string())],
            None,
        ),
        SubscribeError::CursorAhead => {
            let head = sources.store.cursor(sources.store.head()).to_string();
            status(
                Code::OutOfRange,
                "CURSOR_AHEAD",
                message,
                [("head", head)],
                None,
            )
        }
        SubscribeError::CursorExpired => expired(sources, message),
        SubscribeError::Draining => draining(),
        SubscribeError::Corrupt(problem) => corrupt(sources, problem),
    }
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
            status(
                Code::Unavailable,
                "EVENT_ERASED",
                message,
                [],
                Some(RETRY_ERASED),
            )
        }
        StreamEnd::Withdrawn(Withdrawal::Identity) => {
            token_invalid("the token was withdrawn, or has expired")
        }
        StreamEnd::Withdrawn(Withdrawal::Products) => {
            let message = "the permission to see some of this stream's products was withdrawn";
            status(Code::PermissionDenied, "PRODUCT_DENIED", message, [], None)
        }
        StreamEnd::Withdrawn(Withdrawal::Labels) => {
            let message = "the client was bound to other labels, and this stream has events without them: open it again to see those \
                           that have them";
            status(Code::PermissionDenied, "LABEL_DENIED", message, [], None)
        }
        StreamEnd::Withdrawn(Withdrawal::Place) => {
            let message = "a newer stream with this client_name took this one's place, whose connection had fallen silent: that is \
                           usually the same reader, which has reconnected; readers that run at once need names of their own";
            status(Code::Aborted, "REPLACED", message, [], None)
        }
        // No RetryInfo: an administrator ended the stream, and does not want it back at once.
        StreamEnd::Withdrawn(Withdrawal::Stream) => {
            let message = "an administrator of the broker has ended this stream: ask why before you open it again, behind the last cursor";
            status(Code::Aborted, "SUBSCRIPTION_ENDED", message, [], None)
        }
        StreamEnd::DeadlineExceeded => deadline_exceeded(),
    }
}

pub(super) fn read(sources: &Sources, error: &ReadError) -> Status {
    match error {
        ReadError::Expired => expired(sources, error.to_string()),
        ReadError::Corrupt(problem) => corrupt(sources, problem),
    }
}

pub(super) fn write(sources: &Sources, error: &WriteError) -> Status {
    match error {
        WriteError::Closed => draining(),
        // The caller, who knows the id, has a better word for it.
        WriteError::NotInQuarantine => quarantine_not_found(""),
        WriteError::TooManyEvents => status(
            Code::FailedPrecondition,
            "NOT_UNDERSTOOD",
            error.to_string(),
            [("reason", "too_many_events".into())],
            None,
        ),
        WriteError::Corrupt(problem) => corrupt(sources, problem),
        WriteError::Overloaded | WriteError::DiskLow { .. } | WriteError::Failed(_) => status(
            Code::Unavailable,
            "STORE_READ_ONLY",
            error.to_string(),
            [],
            Some(RETRY_STORE),
        ),
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
    status(Code::NotFound, "TASK_NOT_FOUND", message, [], None)
}

/// The events of a task are more than one answer holds. Only what would make the answer smaller is advised.
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
    status(
        Code::ResourceExhausted,
        "RESPONSE_TOO_LARGE",
        message,
        [("limit", limit.to_string())],
        None,
    )
}

pub(super) fn event_not_found() -> Status {
    let message = "no event of this cursor that the client may see is retained: take the cursor of an event, not of a heartbeat";
    status(Code::NotFound, "EVENT_NOT_FOUND", message, [], None)
}

pub(super) fn quarantine_not_found(id: &str) -> Status {
    let message =
        format!("no callback {id} is in quarantine: it was released, discarded or forgotten");
    status(Code::NotFound, "QUARANTINE_NOT_FOUND", message, [], None)
}

pub(super) fn subscription_not_found() -> Status {
    let message = "no subscription of this id is open: it has ended, or ListSubscriptions shows what its id is";
    status(Code::NotFound, "SUBSCRIPTION_NOT_FOUND", message, [], None)
}

pub(super) fn token_invalid(message: &str) -> Status {
    status(Code::Unauthenticated, "TOKEN_INVALID", message, [], None)
}

pub(super) fn product_denied(product: &str) -> Status {
    let message = format!(
        "this client may not see {product}: leave it out, or have it added to the client's products"
    );
    status(
        Code::PermissionDenied,
        "PRODUCT_DENIED",
        message,
        [("product", product.to_owned())],
        None,
    )
}

pub(super) fn product_denied_by_key(product: &str, denied: &MintError) -> Status {
    let metadata = [("product", product.to_owned())];
    status(
        Code::PermissionDenied,
        "PRODUCT_DENIED",
        denied.to_string(),
        metadata,
        None,
    )
}

pub(super) fn no_products() -> Status {
    let message = "this client may take backups, and see no events: its line in the credentials file needs `products`";
    status(Code::PermissionDenied, "PRODUCT_DENIED", message, [], None)
}

/// Of an administrator of some products.
pub(super) fn backup_of_all_denied() -> Status {
    let message = "a backup holds every product: the client's line in the credentials file needs `backup = true`, or \
                   `products = [\"*\"]` and no `labels` besides `admin = true`";
    status(Code::PermissionDenied, "PRODUCT_DENIED", message, [], None)
}

pub(super) fn backup_denied(client: &str) -> Status {
    let message = format!(
        "{client} may not take backups: its line in the credentials file needs `backup = true`"
    );
    status(Code::PermissionDenied, "ADMIN_DENIED", message, [], None)
}

pub(super) fn admin_denied(client: &str) -> Status {
    let message = format!(
        "{client} is no administrator: its line in the credentials file needs `admin = true`"
    );
    status(Code::PermissionDenied, "ADMIN_DENIED", message, [], None)
}

pub(super) fn signing_key_missing(message: String) -> Status {
    status(
        Code::FailedPrecondition,
        "SIGNING_KEY_MISSING",
        message,
        [],
        None,
    )
}

pub(super) fn not_understood(refusal: &Unreleasable) -> Status {
    let message = format!("still not understood: {refusal}");
    status(
        Code::FailedPrecondition,
        "NOT_UNDERSTOOD",
        message,
        [("reason", refusal.reason().to_owned())],
        None,
    )
}
