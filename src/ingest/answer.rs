//! What a callback is answered, in one place: status, headers, body, and the word the metrics count it under. Pure.

use std::time::Duration;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde::Serialize;

use super::{Failure, budget::Credential};
use crate::{
    store::{Appended, WriteError},
    trace::Span,
};

/// When to repeat a callback that the store could not take: RunBlob's own interval for most products, so that nothing is gained by less.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("30");
/// When to repeat a callback that met a restart.
const RETRY_DRAINING_SECONDS: HeaderValue = HeaderValue::from_static("5");
/// When somebody who was refused too often may try again: when the minute that is looked at has gone by.
const RETRY_RATE_LIMITED_SECONDS: HeaderValue = HeaderValue::from_static("60");

const HELP: &str = "RunBlob delivers callbacks here by POST. Give it this URL as callback_url when you start a task; \
                    /webhook/PRODUCT names the product, query parameters become labels.";

/// The answer's body; the order of the fields is the order they are written in.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Received {
        #[serde(flatten)]
        told: Option<Told>,
    },
    Quarantined {
        reason: &'static str,
    },
    Refused {
        reason: &'static str,
        message: &'static str,
    },
}

/// What tells whether the task has come before.
#[derive(Serialize)]
struct Told {
    event_id: String,
    duplicate: bool,
}

/// What became of one request.
#[derive(Debug)]
pub(super) enum Outcome {
    Received(Appended),
    Quarantined {
        reason: &'static str,
    },
    /// As one of the two above, for a signed URL. Its holder is not to learn what others have sent, so the answer is the same
    /// whatever is known of the task.
    Concealed(Box<Self>),
    NotKept(Failure),
    Overloaded,
    Draining,
    Unauthorized,
    UrlExpired,
    AddressDenied,
    ForeignOrigin,
    RateLimited,
    BudgetExceeded(Box<Exceeded>),
    MethodNotAllowed {
        wants_html: bool,
    },
    NotFound,
    UnsupportedEncoding,
    BodyTooLarge,
    BodyTimeout,
    BodyAborted,
}

/// Whose budget is used up, and for how long.
#[derive(Debug)]
pub(super) struct Exceeded {
    pub credential: Credential,
    pub product: String,
    pub wait: Duration,
}

impl Exceeded {
    /// In whole seconds, rounded up: never too early.
    fn retry_after(&self) -> u64 {
        self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0)
    }
}

pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

impl Outcome {
    /// Refused without having shown anything: counted against the address it came from.
    pub(super) fn is_unauthenticated(&self) -> bool {
        matches!(
            self,
            Self::Unauthorized
                | Self::UrlExpired
                | Self::AddressDenied
                | Self::ForeignOrigin
                | Self::MethodNotAllowed { .. }
                | Self::NotFound
        )
    }

    /// The value of the metric's `outcome`.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Concealed(outcome) => outcome.as_str(),
            Self::Received(appended) if appended.duplicate => "duplicate",
            Self::Received(_) => "accepted",
            Self::Quarantined { .. } => "quarantined",
            Self::NotKept(Failure::Late) => "late",
            Self::NotKept(Failure::Write(WriteError::Overloaded)) | Self::Overloaded => "overloaded",
            Self::NotKept(Failure::Write(WriteError::DiskLow { .. })) => "disk_low",
            Self::NotKept(Failure::Write(_)) => "store_failed",
            Self::Draining => "draining",
            Self::Unauthorized => "unauthorized",
            Self::UrlExpired => "url_expired",
            Self::AddressDenied => "address_denied",
            Self::ForeignOrigin => "foreign_origin",
            Self::RateLimited => "rate_limited",
            Self::BudgetExceeded(_) => "budget_exceeded",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::NotFound => "not_found",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::BodyAborted => "body_aborted",
        }
    }

    /// Neither kept, nor a fault of the broker's.
    pub(super) fn is_refused(&self) -> bool {
        self.status().is_client_error()
    }

    pub(super) fn response(&self) -> Response {
        let status = self.status();
        let mut response = match self {
            Self::MethodNotAllowed { wants_html: true } => {
                (status, Html(format!("<!doctype html><title>blobcast</title><p>{HELP}</p>\n"))).into_response()
            }
            _ => {
                let body = serde_json::to_string(&self.body()).expect("a struct of texts is always JSON");
                let mut response = Response::new(body.into());
                *response.status_mut() = status;
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
        };
        if let Some((name, value)) = self.extra_header() {
            response.headers_mut().insert(name, value);
        }
        if let Self::BudgetExceeded(exceeded) = self {
            response.headers_mut().insert(header::RETRY_AFTER, exceeded.retry_after().into());
        }
        response
    }

    /// Tells a trace what became of the request.
    pub(super) fn describe(&self, span: &mut Span) {
        let status = self.status();
        span.set("blobcast.outcome", self.as_str());
        span.set("http.response.status_code", i64::from(status.as_u16()));
        self.describe_kept(span);
        if status.is_server_error() {
            span.fail();
        }
    }

    fn describe_kept(&self, span: &mut Span) {
        match self {
            Self::Received(appended) if span.context().is_some() => {
                span.set("blobcast.event_id", &*appended.event_id.to_string());
            }
            Self::Quarantined { reason } => span.set("blobcast.quarantine_reason", *reason),
            Self::Concealed(outcome) => outcome.describe_kept(span),
            _ => {}
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Received(_) | Self::Concealed(_) => StatusCode::OK,
            Self::Quarantined { .. } => StatusCode::ACCEPTED,
            Self::NotKept(_) | Self::Overloaded | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::UrlExpired => StatusCode::GONE,
            Self::AddressDenied | Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::RateLimited | Self::BudgetExceeded(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyAborted => StatusCode::BAD_REQUEST,
        }
    }

    fn body(&self) -> Answer {
        let message = match self {
            Self::Received(Appended { event_id, duplicate, .. }) => {
                return Answer::Received { told: Some(Told { event_id: event_id.to_string(), duplicate: *duplicate }) };
            }
            Self::Concealed(_) => return Answer::Received { told: None },
            Self::Quarantined { reason } => return Answer::Quarantined { reason },
            Self::NotKept(Failure::Late) => "not durable in time: send it again",
            Self::NotKept(Failure::Write(_)) => "the store cannot take it now: send it again",
            Self::Overloaded => "too much at once: send it again",
            Self::Draining => "restarting: send it again",
            // Not what was wrong: whoever guesses is not to learn how near.
            Self::Unauthorized => "the callback URL's token or signature, or the body's signature, is missing or wrong",
            Self::UrlExpired => "the signed callback URL has expired: mint a new one",
            Self::AddressDenied => "callbacks are not taken from this address",
            Self::ForeignOrigin => "a web page has sent this: callbacks come from the vendor's servers",
            Self::RateLimited => "too many refused requests from this address: slow down",
            Self::BudgetExceeded(_) => "more bytes in a minute than this URL may bring: send it again later",
            Self::MethodNotAllowed { .. } => HELP,
            Self::NotFound => "callbacks go to /webhook or /webhook/PRODUCT",
            Self::UnsupportedEncoding => "send the body without Content-Encoding",
            Self::BodyTooLarge => "the body is larger than ingest.body_bytes_max",
            Self::BodyTimeout => "the body took longer than ingest.body_timeout",
            Self::BodyAborted => "the body broke off",
        };
        Answer::Refused { reason: self.as_str(), message }
    }

    fn extra_header(&self) -> Option<(header::HeaderName, HeaderValue)> {
        match self {
            Self::NotKept(_) | Self::Overloaded => Some((header::RETRY_AFTER, RETRY_SECONDS)),
            Self::Draining => Some((header::RETRY_AFTER, RETRY_DRAINING_SECONDS)),
            Self::RateLimited => Some((header::RETRY_AFTER, RETRY_RATE_LIMITED_SECONDS)),
            Self::MethodNotAllowed { .. } => Some((header::ALLOW, HeaderValue::from_static("POST"))),
            // What is left of the body is not read, so the connection is of no further use.
            Self::BodyTooLarge
            | Self::BodyTimeout
            | Self::Unauthorized
            | Self::UrlExpired
            | Self::AddressDenied
            | Self::ForeignOrigin
            | Self::BudgetExceeded(_) => Some((header::CONNECTION, HeaderValue::from_static("close"))),
            Self::UnsupportedEncoding => Some((header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))),
            _ => None,
        }
    }
}
