//! What is no gRPC, refused before anything else looks at it: web pages, grpc-web, JSON, and whatever else comes by HTTP/2.

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

use super::connection::Origin;
use crate::{sampler::Sampler, web};

/// Says why a request is refused that no client of gRPC sends. The same is the body, for people, who seldom look at headers.
const MESSAGE: HeaderName = HeaderName::from_static("x-blobcast-message");
/// Refusals with a body that are not taken yet, in all: such a body waits in memory for its client, who need not be known. Beyond
/// them only the header says why, which waits for nobody.
const BODIES_MAX: usize = 64;

/// What refusals need.
#[derive(Clone, Debug)]
pub(super) struct Refusals {
    counted: IntCounterVec,
    bodies: Arc<Semaphore>,
    log: Arc<Sampler>,
}

impl Refusals {
    pub(super) fn new(counted: IntCounterVec) -> Self {
        Self {
            counted,
            bodies: Arc::new(Semaphore::new(BODIES_MAX)),
            log: Arc::default(),
        }
    }

    fn refuse(
        &self,
        request: &Request,
        cause: &'static str,
        status: StatusCode,
        message: &'static str,
    ) -> Response {
        self.counted.with_label_values(&[cause]).inc();
        if let Some(unlogged) = self.log.due(cause) {
            let peer = request
                .extensions()
                .get::<Origin>()
                .map(|origin| display(origin.peer.address));
            tracing::warn!(peer, cause, unlogged, "call refused: {message}");
        }

        let headers = [
            (MESSAGE, message),
            (CONTENT_TYPE, "text/plain; charset=utf-8"),
        ];
        let Ok(permit) = Arc::clone(&self.bodies).try_acquire_owned() else {
            return (status, [(MESSAGE, message)]).into_response();
        };
        let line = Bytes::from(format!("{message}\n"));
        let body = Full::new(line).map_frame(move |frame| {
            let _held = &permit; // until the body is dropped
            frame
        });
        (status, headers, Body::new(body)).into_response()
    }
}

/// Refuses what no client of gRPC sends. A browser sends a certificate of its user's with whatever a page asks it to, and a page
/// can make it send any bytes, but not with gRPC's content type.
pub(super) async fn only_grpc(
    State(refusals): State<Refusals>,
    request: Request,
    next: Next,
) -> Response {
    if web::is_foreign(&request, None, &[]) {
        let message = "a web page has sent this: remove `Origin` in the proxy that speaks for it, if that is wanted";
        return refusals.refuse(&request, "foreign_origin", StatusCode::FORBIDDEN, message);
    }
    if !is_grpc(request.headers().get(CONTENT_TYPE)) {
        let message = "this is blobcast's gRPC listener: it takes application/grpc and application/grpc+proto, but no grpc-web \
                       and no JSON; use a gRPC client";
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
