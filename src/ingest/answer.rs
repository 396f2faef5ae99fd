//! What a callback is answered, in one place: status, headers, body, and the outcome that the metrics count. Pure.

use std::time::Duration;

use axum::{
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde::Serialize;

use super::{budget::Credential, denied::Denied};
use crate::{
    metrics::Outcome,
    store::{Appended, WriteError},
    trace::Span,
};

/// Delay after which to repeat a callback that the store could not take: RunBlob's own interval for most products.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("30");
/// Delay after which to repeat a callback that met a restart.
const RETRY_DRAINING_SECONDS: HeaderValue = HeaderValue::from_static("5");
/// Delay for an address that was refused too often: the window over which refusals are counted.
const RETRY_RATE_LIMITED_SECONDS: HeaderValue = HeaderValue::from_static("60");

const HELP: &str = "RunBlob delivers callbacks here by POST. Give it this URL as callback_url when you start a task; \
                    /webhook/PRODUCT names the product, query parameters become labels.";

/// The answer to a health check of a load balancer. It says nothing about the state of the broker.
const TO_PROBE: &str = "blobcast takes RunBlob's callbacks here, by POST to /webhook/PRODUCT.\n";

/// Marks a success that does not authenticate the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToAnybody;

/// Whether it is the default health check of a load balancer: OPTIONS from haproxy, GET or HEAD from others.
pub(super) fn is_probe<B>(request: &Request<B>) -> bool {
    request.uri().path() == "/"
        && matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        )
}

pub(super) fn to_probe() -> Response {
    let mut response = TO_PROBE.into_response();
    response.extensions_mut().insert(ToAnybody);
    response
}

/// The answer's body. The order of the fields is the order in which they are written.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Received {
        #[serde(flatten)]
        receipt: Option<Receipt>,
    },
    Quarantined {
        reason: &'static str,
    },
    Refused {
        reason: &'static str,
        message: &'static str,
    },
}

/// What reveals whether the task has come before.
#[derive(Serialize)]
struct Receipt {
    event_id: String,
    duplicate: bool,
}

/// Why a callback is not known to be durable.
#[derive(Debug)]
pub(super) enum Failure {
    Write(WriteError),
    /// The time was up. It may become durable yet; its repetition is then a duplicate.
    Late,
}

/// What one request is answered.
#[derive(Debug)]
pub(super) enum Reply {
    Received(Appended),
    Quarantined {
        reason: &'static str,
    },
    /// One of the two above, where the credential conceals what others have sent: a signed URL, or a token that is bound. The answer
    /// is the same whatever is known of the task.
    Concealed(Box<Self>),
    NotKept(Failure),
    Overloaded,
    Draining,
    Unauthorized(Box<Denied>),
    UrlExpired(Box<Denied>),
    AddressDenied,
    ForeignOrigin,
    RateLimited,
    /// The time until there is room for it.
    BudgetExceeded(Duration),
    MethodNotAllowed {
        wants_html: bool,
    },
    /// At a near miss of the path: what a request to the right path would be refused for.
    NotFound(Option<Box<Denied>>),
    UnsupportedEncoding,
    BodyTooLarge,
    BodyTimeout,
    BodyAborted,
}

/// A refusal as the log and the metrics tell it.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The outcome, or why authentication failed.
    pub cause: &'static str,
    /// The credential it was sent with, if that is proved.
    pub credential: Option<Credential>,
    pub key_id: Option<String>,
    pub explanation: &'static str,
}

/// In whole seconds, rounded up: never too early.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

impl Reply {
    /// Refused without authentication: counted against the address it came from.
    pub(super) fn is_unauthenticated(&self) -> bool {
        matches!(
            self,
            Self::Unauthorized(_)
                | Self::UrlExpired(_)
                | Self::AddressDenied
                | Self::ForeignOrigin
                | Self::MethodNotAllowed { .. }
                | Self::NotFound(_)
        )
    }

    /// What the metrics count it as.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Concealed(reply) => reply.outcome(),
            Self::Received(appended) if appended.duplicate => Outcome::Duplicate,
            Self::Received(_) => Outcome::Accepted,
            Self::Quarantined { .. } => Outcome::Quarantined,
            Self::NotKept(Failure::Late) => Outcome::Late,
            Self::NotKept(Failure::Write(WriteError::Overloaded)) | Self::Overloaded => {
                Outcome::Overloaded
            }
            Self::NotKept(Failure::Write(WriteError::DiskLow { .. })) => Outcome::DiskLow,
            Self::NotKept(Failure::Write(WriteError::Away(_))) => Outcome::StreamAway,
            Self::NotKept(Failure::Write(_)) => Outcome::StoreFailed,
            Self::Draining => Outcome::Draining,
            Self::Unauthorized(_) => Outcome::Unauthorized,
            Self::UrlExpired(_) => Outcome::UrlExpired,
            Self::AddressDenied => Outcome::AddressDenied,
            Self::ForeignOrigin => Outcome::ForeignOrigin,
            Self::RateLimited => Outcome::RateLimited,
            Self::BudgetExceeded(_) => Outcome::BudgetExceeded,
            Self::MethodNotAllowed { .. } => Outcome::MethodNotAllowed,
            Self::NotFound(_) => Outcome::NotFound,
            Self::UnsupportedEncoding => Outcome::UnsupportedEncoding,
            Self::BodyTooLarge => Outcome::BodyTooLarge,
            Self::BodyTimeout => Outcome::BodyTimeout,
            Self::BodyAborted => Outcome::BodyAborted,
        }
    }

    /// Why it was not kept; `None` if it was. `admitted` is the credential that admitted it.
    pub(super) fn refusal(&self, admitted: Option<&Credential>) -> Option<Refusal> {
        let denied = match self {
            Self::Received(_) | Self::Quarantined { .. } | Self::Concealed(_) => return None,
            Self::Unauthorized(denied)
            | Self::UrlExpired(denied)
            | Self::NotFound(Some(denied)) => Some(denied),
            _ => None,
        };

        let credential = denied
            .and_then(|denied| denied.credential.clone())
            .or_else(|| admitted.cloned());

        let explanation = match (denied, self) {
            (Some(denied), _) => denied.explanation(),
            (None, Self::BudgetExceeded(_)) => {
                "more bytes in a minute than the credential may bring for this product; remove it if it has leaked, else \
                 raise its bytes_per_minute_max, or ingest.bytes_per_minute_max"
            }
            (None, Self::AddressDenied) => {
                "its address is not in ingest.allowed_networks: add it if it is the vendor's"
            }
            (None, Self::NotKept(Failure::Write(WriteError::DiskLow { .. }))) => {
                "the disk has less free than log.disk_free_min_percent: make room"
            }
            (None, Self::NotKept(Failure::Write(WriteError::Failed(_)))) => {
                "the store takes no writes: /readyz says why"
            }
            (None, Self::NotKept(Failure::Write(WriteError::Away(_)))) => {
                "the cluster's stream takes no writes: /readyz says why"
            }
            (None, Self::NotKept(Failure::Late)) => {
                "the disk took longer than ingest.answer_timeout"
            }
            (None, Self::MethodNotAllowed { .. }) => "callbacks come by POST",
            (None, refused) => match refused.body() {
                Answer::Refused { message, .. } => message,
                Answer::Received { .. } | Answer::Quarantined { .. } => "",
            },
        };

        let key_id = denied.and_then(|denied| denied.key_id());
        let cause = denied.map_or_else(|| self.outcome().as_str(), |denied| denied.cause());
        Some(Refusal {
            cause,
            credential,
            key_id,
            explanation,
        })
    }

    pub(super) fn response(&self) -> Response {
        let status = self.status();
        let mut response = match self {
            Self::MethodNotAllowed { wants_html: true } => (
                status,
                Html(format!(
                    "<!doctype html><title>blobcast</title><p>{HELP}</p>\n"
                )),
            )
                .into_response(),
            _ => {
                let body =
                    serde_json::to_string(&self.body()).expect("a struct of texts is always JSON");
                let mut response = Response::new(body.into());
                *response.status_mut() = status;
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/json"),
                );
                response
            }
        };

        if let Some((name, value)) = self.extra_header() {
            response.headers_mut().insert(name, value);
        }

        if let Self::BudgetExceeded(wait) = self {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds(*wait).into());
        }

        response
    }

    /// Notes in a trace what became of the request.
    pub(super) fn describe(&self, span: &mut Span) {
        let status = self.status();
        span.set("blobcast.outcome", self.outcome().as_str());
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
            Self::Concealed(reply) => reply.describe_kept(span),
            _ => {}
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Received(_) | Self::Concealed(_) => StatusCode::OK,
            Self::Quarantined { .. } => StatusCode::ACCEPTED,
            Self::NotKept(_) | Self::Overloaded | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::UrlExpired(_) => StatusCode::GONE,
            Self::AddressDenied | Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::RateLimited | Self::BudgetExceeded(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyAborted => StatusCode::BAD_REQUEST,
        }
    }

    fn body(&self) -> Answer {
        let message = match self {
            Self::Received(Appended {
                event_id,
                duplicate,
                ..
            }) => {
                return Answer::Received {
                    receipt: Some(Receipt {
                        event_id: event_id.to_string(),
                        duplicate: *duplicate,
                    }),
                };
            }
            Self::Concealed(_) => return Answer::Received { receipt: None },
            Self::Quarantined { reason } => return Answer::Quarantined { reason },
            Self::NotKept(Failure::Late) => "not durable in time: send it again",
            Self::NotKept(Failure::Write(_)) => "the store cannot take it now: send it again",
            Self::Overloaded => "too much at once: send it again",
            Self::Draining => "restarting: send it again",
            // Not what was wrong: a guesser must not learn how near the guess was.
            Self::Unauthorized(_) => {
                "the callback URL's token or signature, or the body's signature, is missing or wrong"
            }
            Self::UrlExpired(_) => "the signed callback URL has expired: mint a new one",
            Self::AddressDenied => "callbacks are not taken from this address",
            Self::ForeignOrigin => {
                "a web page has sent this: callbacks come from the vendor's servers"
            }
            Self::RateLimited => "too many refused requests from this address: slow down",
            Self::BudgetExceeded(_) => {
                "more bytes in a minute than this URL may bring: send it again later"
            }
            Self::MethodNotAllowed { .. } => HELP,
            Self::NotFound(_) => "callbacks go to /webhook or /webhook/PRODUCT",
            Self::UnsupportedEncoding => {
                "send the body as it is, or with Content-Encoding gzip or deflate"
            }
            Self::BodyTooLarge => {
                "the body is larger than ingest.body_bytes_max, perhaps once decompressed"
            }
            Self::BodyTimeout => "the body took longer than ingest.body_timeout",
            Self::BodyAborted => "the body broke off",
        };

        Answer::Refused {
            reason: self.outcome().as_str(),
            message,
        }
    }

    fn extra_header(&self) -> Option<(header::HeaderName, HeaderValue)> {
        match self {
            Self::NotKept(_) | Self::Overloaded => Some((header::RETRY_AFTER, RETRY_SECONDS)),
            Self::Draining => Some((header::RETRY_AFTER, RETRY_DRAINING_SECONDS)),
            Self::RateLimited => Some((header::RETRY_AFTER, RETRY_RATE_LIMITED_SECONDS)),
            Self::MethodNotAllowed { .. } => {
                Some((header::ALLOW, HeaderValue::from_static("POST")))
            }
            // The sender was too slow, so the rest of the body is not awaited either.
            Self::BodyTimeout => Some((header::CONNECTION, HeaderValue::from_static("close"))),
            Self::UnsupportedEncoding => Some((
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("gzip, deflate"),
            )),
            _ => None,
        }
    }
}
