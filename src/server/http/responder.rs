//! What answers the requests of a listener.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body, response::Response};
use bytes::Bytes;
use hyper::{
    Request,
    body::{Body as HttpBody, Frame, SizeHint},
    header::{HeaderName, HeaderValue},
    service::Service as _,
};
use hyper_util::service::TowerToHyperService;

use super::{activity::Busy, unread_body::RequestBody};
use crate::server::net::places::Standing;

/// Answers a request of a connection from an address.
pub(in crate::server) trait Responder:
    Fn(IpAddr, Request<RequestBody>) -> Answer + Clone + Send + Sync + 'static
{
}

impl<F> Responder for F where
    F: Fn(IpAddr, Request<RequestBody>) -> Answer + Clone + Send + Sync + 'static
{
}

/// An answer to come. On the heap from the start: it would be copied from layer to layer on its way there.
pub(in crate::server) type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Answers by routes, every client alike.
pub(in crate::server) fn routed(router: Router) -> impl Responder {
    let service = TowerToHyperService::new(router);
    move |_, request| {
        let answer = service.call(request);
        Box::pin(async move {
            let Ok(answer) = answer.await;
            answer
        })
    }
}

/// The connection of a request: an extension of requests to listeners whose limits say so.
#[derive(Clone, Debug)]
pub(in crate::server) struct Connection {
    pub address: SocketAddr,
    pub standing: Arc<Standing>,
}

/// Tells nginx to pass on what it gets, instead of filling a buffer first.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Marks an answer whose body may be silent for as long as it likes: its connection is not idle before it has ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Lasting;

/// Marks an answer that comes piece by piece, as things happen: no proxy may hold it back either.
pub(in crate::server) fn mark_as_stream(answer: &mut Response) {
    let buffering = HeaderValue::from_static("no");
    answer.headers_mut().insert(BUFFERING, buffering);
    answer.extensions_mut().insert(Lasting);
}

/// The body of such an answer.
struct LastingBody {
    body: Body,
    _busy: Option<Busy>,
}

impl LastingBody {
    fn new(body: Body, busy: Option<Busy>) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for LastingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The answer, which keeps its connection busy until it is over.
pub(super) fn until_over(mut answer: Response, busy: Option<Busy>) -> Response {
    if answer.extensions_mut().remove::<Lasting>().is_none() {
        return answer;
    }
    answer.map(|body| Body::new(LastingBody::new(body, busy)))
}
