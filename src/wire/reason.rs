//! The reasons of errors: the contract that clients program against. One row for each; `docs/errors.md` is made from them. Pure.

use tonic::Code;

/// The domain of every reason.
pub const DOMAIN: &str = "blobcast";

/// Whether an error with a reason carries a `RetryInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Never: the request, or what it asks for, has to change.
    Never,
    /// Always: the error passes by itself.
    Always,
    /// If the error passes by itself.
    Sometimes,
}

macro_rules! reasons {
    ($($name:ident $text:literal $code:ident $retry:ident [$($key:literal),*] $advice:literal)*) => {
        /// Why a call failed: the `reason` of its `google.rpc.ErrorInfo`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $advice] $name,)*
        }

        impl Reason {
            /// Every reason, in the order of `docs/errors.md`.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As clients see it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The code of every status with this reason.
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }

            /// Whether a status with this reason carries a `RetryInfo`.
            pub const fn retry(self) -> Retry {
                match self {
                    $(Self::$name => Retry::$retry,)*
                }
            }

            /// The keys that the metadata of a status with this reason may have.
            pub const fn metadata(self) -> &'static [&'static str] {
                match self {
                    $(Self::$name => &[$($key),*],)*
                }
            }

            /// What it means, and what its client can do. Markdown.
            pub const fn advice(self) -> &'static str {
                match self {
                    $(Self::$name => $advice,)*
                }
            }

            /// The reason that is written so; `None` if a newer broker has it, or no broker.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
            }
        }
    };
}

reasons! {
    CursorExpired "CURSOR_EXPIRED" OutOfRange Never ["first_available", "head"]
        "Retention has passed the cursor. Set `on_expired`, or start at EARLIEST; `first_available` is the cursor of the oldest event, and `after_cursor` with it starts behind that event. Of `ListEvents`: retention has passed the page token; begin the listing anew."
    CursorAhead "CURSOR_AHEAD" OutOfRange Never ["head"]
        "This log never gave the cursor out."
    EpochMismatch "EPOCH_MISMATCH" FailedPrecondition Never ["epoch"]
        "The cursor is of another log: this one was created anew or restored. Start without the cursor."
    InvalidRequest "INVALID_REQUEST" InvalidArgument Never []
        "Correct the field that the `BadRequest` names. Without a `BadRequest`, the request as a whole could not be decoded."
    RequestTooLarge "REQUEST_TOO_LARGE" ResourceExhausted Never ["limit"]
        "The request has more bytes than `grpc.request_bytes_max` (4 MiB), or that of a ticket more than 16 KiB. Ask for less at once."
    ResponseTooLarge "RESPONSE_TOO_LARGE" ResourceExhausted Never ["limit"]
        "The task's events have more than 4 MiB together. Call `ListEvents` with the task id, which answers in pages that any client accepts; `blobcast get` does so by itself."
    UnknownMethod "UNKNOWN_METHOD" Unimplemented Never []
        "The client is newer than the broker, or the address is another server's."
    UnsupportedEncoding "UNSUPPORTED_ENCODING" Unimplemented Never []
        "Send requests without compression."
    SubscriptionLimit "SUBSCRIPTION_LIMIT" ResourceExhausted Sometimes ["limit", "field", "open", "setting"]
        "With `field`: send fewer values in that field of the filter. With `open` and `setting`: that many streams or task ids are open; end some, or have the limit that `setting` names raised. With a `RetryInfo`, try again; without one, the stream alone needs more than `limit`."
    ReconcileOff "RECONCILE_OFF" FailedPrecondition Never []
        "The broker asks no vendor, so it could not keep the promise: have `reconcile.enabled` set, and a vendor key added to the credentials file."
    ExpectationLimit "EXPECTATION_LIMIT" ResourceExhausted Never ["limit", "open"]
        "That many tasks are expected already, in all or of this client. Cancel those that are no longer of interest, or call again when some are over."
    Replaced "REPLACED" Aborted Never []
        "A newer stream of the same client and `client_name` took this one's place, because the connection of this one had fallen silent. Nothing to do, unless two readers share one name."
    SubscriptionEnded "SUBSCRIPTION_ENDED" Aborted Never []
        "An administrator has ended the stream or the wait (`blobcast subscriptions --end`). Ask why before you open it again behind the last cursor."
    TokenInvalid "TOKEN_INVALID" Unauthenticated Never []
        "Send a token or a certificate that is in force."
    ProductDenied "PRODUCT_DENIED" PermissionDenied Never ["product"]
        "Ask for products that the client may see, or have its line in the credentials file changed."
    LabelDenied "LABEL_DENIED" PermissionDenied Never []
        "Of an open stream: the client was bound to other `labels` meanwhile. Open the stream again behind the last cursor, to get the events that have them."
    AdminDenied "ADMIN_DENIED" PermissionDenied Never []
        "Use the token of a client that is an administrator, or that may take backups, or have the client's line in the credentials file changed."
    SigningKeyMissing "SIGNING_KEY_MISSING" FailedPrecondition Never []
        "Add a signing key to the credentials file."
    TaskNotFound "TASK_NOT_FOUND" NotFound Never []
        "No event of the task is retained. One may still come: `WaitTask` waits for it."
    EventNotFound "EVENT_NOT_FOUND" NotFound Never []
        "No event with this cursor is retained, or the client may not see it."
    QuarantineNotFound "QUARANTINE_NOT_FOUND" NotFound Never []
        "The callback was released, discarded or forgotten."
    SubscriptionNotFound "SUBSCRIPTION_NOT_FOUND" NotFound Never []
        "Of `EndSubscription` only: no such stream is open."
    NotUnderstood "NOT_UNDERSTOOD" FailedPrecondition Never ["reason"]
        "The callback cannot be released as it is. Correct it with `product`, `task_id`, `status`, `body` or `drop_labels`."
    HealthLimit "HEALTH_LIMIT" ResourceExhausted Never ["limit"]
        "Too many calls of the health service are open. End a `Watch` first (one connection may have 8, one client 256), or send a token, since clients have more places together. If a `Watch` ended to make room for another client's, open it again."
    AnswersLimit "ANSWERS_LIMIT" ResourceExhausted Always ["limit", "share"]
        "Read the answers to your calls, or make fewer calls at once."
    BackupLimit "BACKUP_LIMIT" ResourceExhausted Always ["limit", "share"]
        "As many backups are open as there may be. Let one end first."
    AnswerStalled "ANSWER_STALLED" ResourceExhausted Never []
        "The client read nothing of this answer for `grpc.stall_timeout`. Read answers, or cancel their calls."
    Overloaded "OVERLOADED" ResourceExhausted Always []
        "Too many requests are arriving at once. Try again."
    Draining "DRAINING" Unavailable Always []
        "The broker is shutting down. Reconnect."
    StoreReadOnly "STORE_READ_ONLY" Unavailable Always []
        "The store takes no writes: its disk is full, or failed, or the stream of the cluster cannot be reached. Try again."
    StoreBehind "STORE_BEHIND" Unavailable Always ["head"]
        "This node of a cluster does not have yet what another one has given out or answered. Try again, or ask the other node."
    EventErased "EVENT_ERASED" Unavailable Always []
        "An event was erased while it was being sent. Resume behind the last cursor."
    AuditUnavailable "AUDIT_UNAVAILABLE" Unavailable Always []
        "Of `AdminService` only: nothing was done, because the call has to be recorded in `audit.file` and could not be. Try again when the operator has repaired that."
    DeadlineExceeded "DEADLINE_EXCEEDED" DeadlineExceeded Never []
        "The call's own deadline has passed."
    LogCorrupt "LOG_CORRUPT" DataLoss Never []
        "The log is damaged. Tell the operator."
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_reason_has_a_name_of_its_own_and_is_found_by_it() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());

        for &reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(Reason::parse("Draining"), None);
    }
}
