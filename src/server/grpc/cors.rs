//! Pages of other origins that may ask in JSON or gRPC-Web: those in `grpc.cors_origins`
//! (<https://fetch.spec.whatwg.org/#http-cors-protocol>).

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
            ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
        },
    },
    response::{IntoResponse, Response},
};

use crate::trace::{REQUEST_ID, RequestId};

/// How a browser says that a page asks across origins.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What clients in pages send. The last three are those of gRPC-Web's.
const ALLOWED: &str = "accept, authorization, content-type, last-event-id, traceparent, grpc-timeout, x-grpc-web, \
                       x-user-agent";
/// What they read. An error of gRPC-Web is all in headers.
const EXPOSED: &str = "x-request-id, retry-after, x-blobcast-message, grpc-status, grpc-message, grpc-status-details-bin";
/// How long a browser remembers what it may send, in seconds: an hour, so that a change is soon known.
const MAX_AGE_SECONDS: &str = "3600";

/// See the module's description.
#[derive(Debug)]
pub(super) struct Cors(Vec<HeaderValue>);

impl Cors {
    pub(super) fn new(origins: &[String]) -> Self {
        let values = origins.iter().map(|origin| HeaderValue::from_str(origin));
        Self(values.filter_map(Result::ok).collect())
    }

    /// The origin of a page that may ask. The request is then like one of the broker's own origin.
    pub(super) fn allow(&self, request: &mut Request) -> Option<HeaderValue> {
        let headers = request.headers();
        let origin = headers.get(ORIGIN).filter(|_| is_one(headers))?.clone();
        if !self.0.contains(&origin) {
            return None;
        }
        request.headers_mut().remove(ORIGIN);
        request.headers_mut().remove(FETCH_SITE);
        Some(origin)
    }

    /// Lets the page read the answer. What is answered depends on the origin, as soon as any may ask.
    pub(super) fn expose(&self, answer: &mut Response, origin: Option<HeaderValue>) {
        let headers = answer.headers_mut();
        if !self.0.is_empty() {
            headers.insert(VARY, HeaderValue::from_static("origin"));
        }
        if let Some(origin) = origin {
            let exposed = HeaderValue::from_static(EXPOSED);
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }
}

fn is_one(headers: &HeaderMap) -> bool {
    headers.get_all(ORIGIN).iter().count() == 1
}

/// Whether a browser asks beforehand what it may send.
pub(super) fn is_preflight<B>(request: &hyper::Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// What pages that may ask may send.
pub(super) fn preflight() -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED),
        (ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS),
    ];
    let id = [(REQUEST_ID, RequestId::new().to_string())];
    (StatusCode::NO_CONTENT, headers, id).into_response()
}
