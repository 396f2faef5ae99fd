//! What a callback is answered, in one place: status, headers, body, and the word the metrics count it under. Pure.

use std::{sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde::Serialize;

use super::{Failure, budget::Credential};
use crate::{
    credentials::Denial,
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

/// The answer to a health check of a load balancer. It says nothing about the state of the broker.
const TO_PROBE: &str = "blobcast takes RunBlob's callbacks here, by POST to /webhook/PRODUCT.\n";

/// Marks a success that says nothing about who asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToAnybody;

/// Whether it is what load balancers ask for by default: haproxy by OPTIONS, others by GET or HEAD.
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
    /// As one of the two above, for a signed URL, or a token that is bound to something. Its holder is not to learn what others have sent, so the answer is the same
    /// whatever is known of the task.
    Concealed(Box<Self>),
    NotKept(Failure),
    Overloaded,
    Draining,
    Unauthorized(Box<Denied>),
    UrlExpired(Box<Denied>),
    AddressDenied,
    ForeignOrigin,
    RateLimited,
    /// For so long there is no room for it.
    BudgetExceeded(Duration),
    MethodNotAllowed {
        wants_html: bool,
    },
    /// At a path that is nearly right, what it would be refused for if that were right.
    NotFound(Option<Box<Denied>>),
    UnsupportedEncoding,
    BodyTooLarge,
    BodyTimeout,
    BodyAborted,
}

/// Why a callback was not let in. For the operator only: its sender does not learn it.
#[derive(Debug)]
pub(super) struct Denied {
    why: Why,
    /// Whose the callback is, if that is proved.
    credential: Option<Credential>,
}

#[derive(Debug)]
enum Why {
    /// By what its URL shows.
    Url(Denial),
    /// The credential is bound to other products.
    OtherProduct,
    /// The credential is bound to another value of one of the URL's labels.
    OtherLabel,
    NoBodySignature,
    BadBodySignature,
}

impl Denied {
    pub(super) fn of(denial: Denial, kind: impl FnOnce(Arc<str>) -> Credential) -> Box<Self> {
        let credential = denial.name().cloned().map(kind);
        Box::new(Self {
            why: Why::Url(denial),
            credential,
        })
    }

    pub(super) fn other_product(credential: Credential) -> Box<Self> {
        Box::new(Self {
            why: Why::OtherProduct,
            credential: Some(credential),
        })
    }

    pub(super) fn other_label(credential: Credential) -> Box<Self> {
        Box::new(Self {
            why: Why::OtherLabel,
            credential: Some(credential),
        })
    }

    pub(super) fn without_body_signature() -> Box<Self> {
        Box::new(Self {
            why: Why::NoBodySignature,
            credential: None,
        })
    }

    pub(super) fn by_body_signature() -> Box<Self> {
        Box::new(Self {
            why: Why::BadBodySignature,
            credential: None,
        })
    }

    fn cause(&self) -> &'static str {
        match &self.why {
            Why::Url(denial) => denial.cause(),
            Why::OtherProduct => "product_denied",
            Why::OtherLabel => "label_denied",
            Why::NoBodySignature => "no_body_signature",
            Why::BadBodySignature => "bad_body_signature",
        }
    }

    /// The key that the URL names. Anybody can name any.
    fn key_id(&self) -> Option<String> {
        match &self.why {
            Why::Url(Denial::UnknownKey(key_id) | Denial::BadSignature(Some(key_id))) => {
                Some(key_id.to_string())
            }
            _ => None,
        }
    }

    fn explanation(&self) -> &'static str {
        match &self.why {
            Why::Url(denial) => of_url(denial),
            Why::OtherProduct => {
                "its credential is bound to other products: correct the callback URL, or `products` in the credential's line"
            }
            Why::OtherLabel => {
                "its URL has a label with another value than its credential is bound to: leave that label out of the URL"
            }
            Why::NoBodySignature => {
                "it has no X-RunBlob-Signature, which ingest.body_signature requires: ask the vendor, or set it to \"observe\""
            }
            Why::BadBodySignature => {
                "the signature over its body does not fit the secret in [body_signature]: compare it with the vendor's, or \
                 somebody makes up callbacks"
            }
        }
    }
}

fn of_url(denial: &Denial) -> &'static str {
    match denial {
        Denial::Missing => {
            "its URL has neither a token nor a signature: use one from `blobcast url`, or one with a token"
        }
        Denial::UnknownToken => {
            "its URL's token is not in the credentials file: it was changed on the way, or removed before this start"
        }
        Denial::Expired(_) => {
            "what its URL shows has expired: renew `expires` in its line of the credentials file, or use a newer URL"
        }
        Denial::Removed(_) => {
            "what its URL shows was removed from the credentials file, or replaced: if that was because it leaked, leave it out, \
             for this is its finder, or the vendor with old URLs; else put it back beside the new one until all of its URLs are \
             out of use"
        }
        Denial::UnknownKey(_) => "its URL names a signing key that is not in the credentials file",
        Denial::BadSignature(_) => {
            "its URL's signature does not fit: the URL was changed on the way, made for another product, or signed with \
             another secret, perhaps by somebody who only knows the key's name"
        }
        Denial::Late(_) => {
            "its signed URL is past its `exp`: mint URLs for longer than the vendor takes (`blobcast url --ttl`)"
        }
        Denial::UnknownCertificate | Denial::Withdrawn(_) => "it is not let in by what it shows", // no URL shows a certificate
    }
}

/// What the log and the metrics say of a callback that was not kept.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The outcome, or what is behind it.
    pub cause: &'static str,
    /// What it was let in by, or would have been.
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

impl Outcome {
    /// Refused without having shown anything: counted against the address it came from.
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

    /// The value of the metric's `outcome`.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Concealed(outcome) => outcome.as_str(),
            Self::Received(appended) if appended.duplicate => "duplicate",
            Self::Received(_) => "accepted",
            Self::Quarantined { .. } => "quarantined",
            Self::NotKept(Failure::Late) => "late",
            Self::NotKept(Failure::Write(WriteError::Overloaded)) | Self::Overloaded => {
                "overloaded"
            }
            Self::NotKept(Failure::Write(WriteError::DiskLow { .. })) => "disk_low",
            Self::NotKept(Failure::Write(_)) => "store_failed",
            Self::Draining => "draining",
            Self::Unauthorized(_) => "unauthorized",
            Self::UrlExpired(_) => "url_expired",
            Self::AddressDenied => "address_denied",
            Self::ForeignOrigin => "foreign_origin",
            Self::RateLimited => "rate_limited",
            Self::BudgetExceeded(_) => "budget_exceeded",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::NotFound(_) => "not_found",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::BodyAborted => "body_aborted",
        }
    }

    /// Why it was not kept; `None` if it was. `let_in` is what it was let in by.
    pub(super) fn refusal(&self, let_in: Option<&Credential>) -> Option<Refusal> {
        let denied = match self {
            Self::Received(_) | Self::Quarantined { .. } | Self::Concealed(_) => return None,
            Self::Unauthorized(denied)
            | Self::UrlExpired(denied)
            | Self::NotFound(Some(denied)) => Some(denied),
            _ => None,
        };
        let credential = denied
            .and_then(|denied| denied.credential.clone())
            .or_else(|| let_in.cloned());
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
        let cause = denied.map_or_else(|| self.as_str(), |denied| denied.cause());
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
                    told: Some(Told {
                        event_id: event_id.to_string(),
                        duplicate: *duplicate,
                    }),
                };
            }
            Self::Concealed(_) => return Answer::Received { told: None },
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
            reason: self.as_str(),
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
            // The sender was too slow for its body, so the rest of it is not waited for either.
            Self::BodyTimeout => Some((header::CONNECTION, HeaderValue::from_static("close"))),
            Self::UnsupportedEncoding => Some((
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("gzip, deflate"),
            )),
            _ => None,
        }
    }
}
