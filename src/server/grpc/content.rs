//! Refuses requests that are not gRPC before anything else looks at them: of web pages, JSON outside of its door, and others.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, HeaderName},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use prometheus::IntCounterVec;
use tokio::sync::Semaphore;
use tracing::field::display;

use super::origin::Origin;
use crate::{sampler::Sampler, web};

/// Says why a request is refused. The same text is the body, for people, who seldom look at headers.
pub(super) const MESSAGE: HeaderName = HeaderName::from_static("x-blobcast-message");
/// ContentRefusals in all whose body the client has not taken yet: the body waits in memory, and the client need not be authenticated.
/// Beyond them only the header says why, which goes at once.
const BODIES_MAX: usize = 64;

/// Counts and logs the refusals.
#[derive(Clone, Debug)]
pub(super) struct ContentRefusals {
    counted: IntCounterVec,
    bodies: Arc<Semaphore>,
    log: Arc<Sampler>,
    /// Names of the listener: a page that is asked for by one is its own.
    hosts: Arc<[String]>,
}

impl ContentRefusals {
    pub(super) fn new(counted: IntCounterVec, hosts: &[String]) -> Self {
        Self {
            counted,
            bodies: Arc::new(Semaphore::new(BODIES_MAX)),
            log: Arc::default(),
            hosts: hosts.into(),
        }
    }

    /// Counts and logs a request that is refused.
    pub(super) fn note(&self, request: &Request, cause: &'static str, message: &'static str) {
        self.counted.with_label_values(&[cause]).inc();
        if let Some(unlogged) = self.log.due(cause) {
            let peer = request
                .extensions()
                .get::<Origin>()
                .map(|origin| display(origin.peer.address));
            tracing::warn!(peer, cause, unlogged, "call refused: {message}");
        }
    }

    /// Refuses what a foreign page has sent.
    pub(super) fn if_foreign(&self, request: &Request) -> Option<Response> {
        if !web::is_foreign(request, None, &self.hosts) {
            return None;
        }
        let message = "a web page has sent this: if that is wanted, name its origin in grpc.cors_origins and call by gRPC-Web or \
                       in JSON, or remove `Origin` in the proxy that speaks for it";
        Some(self.refuse(request, "foreign_origin", StatusCode::FORBIDDEN, message))
    }

    pub(super) fn refuse(
        &self,
        request: &Request,
        cause: &'static str,
        status: StatusCode,
        message: &'static str,
    ) -> Response {
        self.note(request, cause, message);
        let headers = [
            (MESSAGE, message),
            (CONTENT_TYPE, "text/plain; charset=utf-8"),
        ];
        let Ok(permit) = Arc::clone(&self.bodies).try_acquire_owned() else {
            return (status, [(MESSAGE, message)]).into_response();
        };
        let line = Bytes::from(format!("{message}\n"));
        let body = Full::new(line).map_frame(move |frame| {
            let _held = &permit; // released when the body is dropped
            frame
        });
        (status, headers, Body::new(body)).into_response()
    }
}

/// Refuses requests that no gRPC client sends. A browser sends its user's certificate with any request that a page makes. A page
/// can make it send any bytes, but not with gRPC's content type.
pub(super) async fn only_grpc(
    State(refusals): State<ContentRefusals>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(refused) = refusals.if_foreign(&request) {
        return refused;
    }
    if !is_grpc(request.headers().get(CONTENT_TYPE)) {
        let message = "this is blobcast's gRPC listener: it takes application/grpc, application/grpc-web and application/grpc-web-text, \
                       each also with +proto, and JSON below /v1/ only; use a gRPC client, or call /v1/RPC";
        return refusals.refuse(
            &request,
            "content_type",
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            message,
        );
    }
    next.run(request).await
}

fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    let essence =
        content_type.and_then(|value| value.as_bytes().split(|&byte| byte == b';').next());
    let essence = essence.map(<[u8]>::trim_ascii).unwrap_or_default();
    [&b"application/grpc"[..], b"application/grpc+proto"]
        .iter()
        .any(|ours| essence.eq_ignore_ascii_case(ours))
}
