//! Why a call to a broker has failed, in words for people: what is wrong, and the next step.
//!
//! Distinguishes errors of the connection, of a proxy and of the broker. Pure.

use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt};

use super::proxy::ForeignAnswer;
use crate::{
    causes::{innermost, untrusted},
    wire::{DOMAIN, Reason},
};

/// A broker that has not taken a call, and why.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) url: String,
    pub(super) status: Status,
}

/// What is wrong with each broker, and the next steps, each of which begins with a semicolon.
pub(super) fn problems(refusals: &[Refusal]) -> (String, String) {
    let of_each: Vec<_> = refusals
        .iter()
        .map(|refusal| Problem::of_one(&refusal.status, &refusal.url))
        .collect();
    let why: Vec<_> = of_each.iter().map(|problem| &*problem.text).collect();

    let mut steps = Vec::new();
    for step in of_each.iter().filter_map(|problem| problem.step.as_ref()) {
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    let steps = steps.iter().map(|step| format!("; {step}")).collect();
    (why.join("; "), steps)
}

/// Why a call has failed, and the next step, each on one line.
pub(super) struct Problem {
    text: String,
    step: Option<String>,
}

impl Problem {
    fn new(text: String, step: impl Into<String>) -> Self {
        let step = Some(step.into());
        Self { text, step }
    }

    /// The problem with the only broker, whose name a status of its own need not repeat.
    pub(super) fn of(status: &Status, url: &str) -> Self {
        if let Some(foreign) = ForeignAnswer::behind(status) {
            return foreign_answer(foreign, url);
        }
        let by_broker = reason(status).is_some();
        connection_problem(status, url)
            .filter(|_| !by_broker)
            .unwrap_or_else(|| Self {
                text: status_text(status),
                step: next_step(status.code(), Reason::of(status)).map(str::to_owned),
            })
    }

    /// The problem with one of several brokers, with its name.
    pub(super) fn of_one(status: &Status, url: &str) -> Self {
        let mut problem = Self::of(status, url);
        if !problem.text.contains(url) {
            problem.text = format!("{url}: {}", problem.text);
        }
        problem
    }

    pub(super) fn into_error(self) -> anyhow::Error {
        match self.step {
            Some(step) => anyhow::anyhow!("{}; {step}", self.text),
            None => anyhow::anyhow!(self.text),
        }
    }
}

/// `CODE REASON: message (details)`, on one line.
fn status_text(status: &Status) -> String {
    let mut text = code_name(status.code());
    let (reason, metadata) = reason(status)
        .map(|info| (info.reason, info.metadata))
        .unwrap_or_default();
    if !reason.is_empty() {
        text = format!("{text} {reason}");
    }

    let mut message = status.message().to_owned();
    let violations = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();

    let named = violations
        .iter()
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect::<Vec<_>>()
        .join(", ");

    if !named.is_empty() && !message.contains(&named) {
        message = if message.is_empty() {
            named
        } else {
            format!("{message} ({named})")
        };
    }

    let mut metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();

    metadata.sort();
    if !metadata.is_empty() {
        message = format!("{message} [{}]", metadata.join(" "));
    }

    if !message.is_empty() {
        text = format!("{text}: {message}");
    }

    text
}

fn next_step(code: Code, reason: Option<Reason>) -> Option<&'static str> {
    Some(match reason {
        Some(Reason::CursorExpired) => {
            "start with the oldest retained event with `--from earliest`, or pass `--on-expired \
             earliest` to continue and print the gap; a listing begins anew"
        }
        Some(Reason::CursorAhead) => {
            "the log ends before it; was it restored? start again with `--from earliest`"
        }
        Some(Reason::EpochMismatch) => {
            "the cursor belongs to another log: this one was recreated or restored; start again \
             with `--from earliest`"
        }
        Some(Reason::SubscriptionLimit) => {
            "close other subscriptions, ask for less, or have the server's limit raised"
        }
        Some(Reason::TokenInvalid) => {
            "show a token with --token-file or BLOBCAST_TOKEN; the broker's operator hands them out"
        }
        Some(Reason::AdminDenied) => "use the token of a client that has this right",
        Some(Reason::SigningKeyMissing) => {
            "`blobcast token new signing-key NAME` makes a line for the credentials file"
        }
        Some(Reason::ProductDenied) => "ask the broker's operator for this product",
        Some(Reason::LabelDenied) => "start it again, after the last cursor",
        Some(Reason::Draining | Reason::StoreBehind) => "try again in a moment",
        Some(Reason::StoreReadOnly) => {
            "try again later; the broker's operator has to look at its disk"
        }
        Some(Reason::LogCorrupt) => "the broker's operator has to look at its log",
        Some(Reason::TaskNotFound) => "`blobcast wait` waits for a task without events yet",
        Some(Reason::SubscriptionNotFound) => "`blobcast subscriptions` shows what is open",
        Some(Reason::QuarantineNotFound) => "`blobcast quarantine list` shows what there is",
        _ if code == Code::Unimplemented => {
            "is this a blobcast gRPC address, and as new as this client? see --grpc-url"
        }
        _ => return None,
    })
}

fn foreign_answer(foreign: &ForeignAnswer, url: &str) -> Problem {
    let text = format!("{url}: {foreign}");
    if foreign.is_the_brokers() {
        return Problem { text, step: None };
    }
    let step = if foreign.is_a_gateways() {
        "the broker behind it is not reachable, or it is not set up for gRPC"
    } else {
        "is it a blobcast gRPC address? use --grpc-url"
    };
    Problem::new(text, step)
}

/// The problem with the connection, if the status stands for one: a status from the broker has no
/// source.
fn connection_problem(status: &Status, url: &str) -> Option<Problem> {
    let cause = cause(status);
    if let Some(step) = untrusted(status) {
        return Some(Problem::new(format!("cannot reach {url}: {cause}"), step));
    }
    if status.code() == Code::Unavailable {
        return Some(Problem::new(
            format!("cannot reach {url}: {cause}"),
            "is `blobcast serve` running? use --grpc-url",
        ));
    }
    std::error::Error::source(status)?;
    Some(match status.message() {
        // Connected, but the other side does not speak HTTP/2.
        "transport error" => Problem::new(
            format!("cannot talk to {url}: {cause}"),
            "is it a blobcast gRPC address? use --grpc-url",
        ),
        _ => Problem {
            text: format!("the connection to {url} broke: {cause}"),
            step: None,
        },
    })
}

// The status of a failed connection only says "transport error"; its innermost source says why.
fn cause(status: &Status) -> String {
    if std::error::Error::source(status).is_some() {
        innermost(status)
    } else {
        status.message().to_owned()
    }
}

/// The code as the gRPC documentation spells it: `OUT_OF_RANGE`.
pub(super) fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// The broker's reason; `None` if the status is not from a broker.
pub(super) fn reason(status: &Status) -> Option<ErrorInfo> {
    status
        .get_details_error_info()
        .filter(|info| info.domain == DOMAIN)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn rendered(status: &Status) -> String {
        Problem::of(status, "http://localhost:1")
            .into_error()
            .to_string()
    }

    #[test]
    fn an_error_names_code_reason_message_details_and_the_next_step() {
        let metadata = HashMap::from([
            ("head".to_owned(), "ff".to_owned()),
            ("first_available".to_owned(), "0a".to_owned()),
        ]);
        let details = ErrorDetails::with_error_info("CURSOR_EXPIRED", "blobcast", metadata);
        let text = rendered(&Status::with_error_details(
            Code::OutOfRange,
            "too old",
            details,
        ));
        assert!(
            text.starts_with("OUT_OF_RANGE CURSOR_EXPIRED: too old [first_available=0a head=ff]; "),
            "{text}"
        );
        assert!(text.contains("--from earliest"), "{text}");
    }

    #[test]
    fn a_bad_request_names_its_fields() {
        let details = ErrorDetails::with_bad_request_violation("filter.task_ids[0]", "too long");
        let text = rendered(&Status::with_error_details(
            Code::InvalidArgument,
            "malformed",
            details,
        ));
        assert_eq!(
            text,
            "INVALID_ARGUMENT: malformed (filter.task_ids[0]: too long)"
        );
    }

    #[test]
    fn a_failed_connection_is_reported_without_a_grpc_code() {
        let text = rendered(&Status::unavailable("tcp connect error"));
        assert_eq!(
            text,
            "cannot reach http://localhost:1: tcp connect error; is `blobcast serve` running? use \
             --grpc-url"
        );
    }

    #[test]
    fn codes_are_spelt_as_in_the_documents() {
        let names = [
            Code::Ok,
            Code::OutOfRange,
            Code::DataLoss,
            Code::Unauthenticated,
        ]
        .map(code_name);
        assert_eq!(
            names,
            ["OK", "OUT_OF_RANGE", "DATA_LOSS", "UNAUTHENTICATED"]
        );
    }
}
