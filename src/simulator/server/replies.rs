//! Answers of the simulated vendor: JSON, errors with the next step, and broken ones. Pure.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Response, StatusCode,
    body::Frame,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};

use crate::simulator::bodies::{self, Body};

/// Bytes in each piece of a huge answer.
const PIECE: usize = 64 * 1024;

/// An HTTP status and a JSON body.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Value,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Reply {
    pub(super) fn new(status: StatusCode, body: Value) -> Self {
        Self {
            status,
            body,
            header: None,
        }
    }

    /// An error: the vendor's words in `detail`, and the next step in `hint`, which the vendor does not have.
    pub(super) fn error(status: StatusCode, detail: &str, hint: &str) -> Self {
        Self::new(status, json!({"detail": detail, "hint": hint}))
    }

    /// An error with the vendor's words for its status.
    pub(super) fn of_status(status: StatusCode) -> Self {
        let detail = match status.as_u16() {
            401 => "Invalid API key",
            402 => "INSUFFICIENT_CREDITS",
            404 => "Generation not found",
            429 => "Rate limit exceeded",
            _ => status.canonical_reason().unwrap_or("Unknown"),
        };
        Self::new(status, json!({ "detail": detail }))
    }

    /// Adds a header; a value that cannot be one is left out.
    pub(super) fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.header = HeaderValue::from_str(value).ok().map(|value| (name, value));
        self
    }

    pub(super) fn retry_after(self, seconds: u64) -> Self {
        self.with(RETRY_AFTER, &seconds.to_string())
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let Self {
            status,
            body,
            header,
        } = self;
        let mut response = response(status, bodies::whole(body.to_string().into()));
        response.headers_mut().extend(header);
        response
    }

    /// The first half of the body under the length of all of it; then the connection breaks.
    pub(super) fn into_truncated(self) -> Response<Body> {
        let body = Bytes::from(self.body.to_string());
        let mut response = response(self.status, bodies::cut(body.slice(..body.len() / 2)));
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        response
    }
}

/// Any bytes with any status.
pub(super) fn raw(status: StatusCode, body: Bytes) -> Response<Body> {
    response(status, bodies::whole(body))
}

/// A JSON object of about `bytes`, at least a few dozen, that is never in memory as a whole.
pub(super) fn huge(bytes: usize) -> Response<Body> {
    const HEAD: &str = r#"{"status":"completed","padding":""#;
    const TAIL: &str = r#""}"#;
    let padding = bytes.saturating_sub(HEAD.len() + TAIL.len());
    let filled = Bytes::from(vec![b'x'; PIECE]);
    let pieces = (0..padding.div_ceil(PIECE))
        .map(move |place| filled.slice(..PIECE.min(padding - place * PIECE)));
    let pieces = std::iter::once(Bytes::from_static(HEAD.as_bytes()))
        .chain(pieces)
        .chain([Bytes::from_static(TAIL.as_bytes())])
        .map(|piece| Ok::<_, io::Error>(Frame::data(piece)));
    let body = StreamBody::new(tokio_stream::iter(pieces)).boxed_unsync();
    response(StatusCode::OK, body)
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
