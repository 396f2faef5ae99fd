//! What is left of a request's body when the request is answered without reading it, as most refusals are.
//!
//! A small remainder is read away, so that the connection can be used again. A large one is not: the answer says
//! `Connection: close`, and the connection lingers, so that no reset overtakes the answer. Either way what is read is dropped.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body, Frame, Incoming, SizeHint},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How much of a body is read away to keep its connection: the cost of a handful of new connections with TLS.
const BYTES_MAX: u64 = 256 * 1024;
/// How long that may take: as long as an unauthenticated connection may be silent before it gives way.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The body of a request. When it is dropped, the part that was not read goes to its [`Remainder`].
#[derive(Debug)]
pub(in crate::server) struct RequestBody {
    /// `None` once it has ended or failed.
    incoming: Option<Incoming>,
    /// The sender waits for `100 Continue`.
    is_awaited: bool,
    remainder: Remainder,
}

/// Where the bodies of one connection, or of one HTTP/2 stream, leave the part that was not read.
#[derive(Clone, Debug, Default)]
pub(super) struct Remainder(Arc<Mutex<Found>>);

/// What the last request's body has left.
#[derive(Debug, Default)]
enum Found {
    #[default]
    Nothing,
    /// The body broke off: there is no telling where another request would begin.
    Broken,
    Unread(Incoming),
    /// The body is not even on its way: the sender waits for `100 Continue`.
    Unsent,
}

impl Remainder {
    /// The request with a body that leaves its remainder here.
    pub(super) fn of(&self, request: Request<Incoming>) -> Request<RequestBody> {
        let expects = request.headers().get(header::EXPECT);
        let is_awaited =
            expects.is_some_and(|expects| expects.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let remainder = self.clone();
        request.map(|incoming| RequestBody {
            incoming: Some(incoming),
            is_awaited,
            remainder,
        })
    }

    /// Lets the answer go as soon as another request can follow it. If none can, the answer says so: `Connection: close`.
    pub(super) fn settle(
        &self,
        mut answer: Response,
        stop: &CancellationToken,
    ) -> Result<Response, Settling> {
        let found = std::mem::take(&mut *self.found());
        let is_last = stop.is_cancelled() || answer.headers().contains_key(header::CONNECTION);
        match found {
            Found::Nothing if !is_last => return Ok(answer),
            Found::Unread(incoming) if !is_last => {
                let stop = stop.clone();
                return Err(Box::pin(async move {
                    let can_follow = tokio::select! {
                        is_over = read_away(incoming) => is_over,
                        () = stop.cancelled() => false,
                    };
                    if !can_follow {
                        mark_as_last(&mut answer);
                    }
                    answer
                }));
            }
            _ => {}
        }

        mark_as_last(&mut answer);
        Ok(answer)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock()
    }
}

/// An answer that waits until the rest of the request has been read away.
pub(super) type Settling = Pin<Box<dyn Future<Output = Response> + Send>>;

fn mark_as_last(answer: &mut Response) {
    // An answer that says more has said `close`, too.
    let headers = answer.headers_mut();
    headers
        .entry(header::CONNECTION)
        .or_insert(HeaderValue::from_static("close"));
}

/// Reads the rest of a body. True if that was all of it, in time and in size.
async fn read_away(mut body: Incoming) -> bool {
    if body.size_hint().lower() > BYTES_MAX {
        return false;
    }

    let discard = async {
        let mut left = BYTES_MAX;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let length = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return false,
            }
        }
        true
    };
    timeout(TIMEOUT, discard).await.unwrap_or(false)
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        this.is_awaited = false; // hyper sends 100 Continue
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                this.incoming = None;
                *this.remainder.found() = Found::Broken;
            }
            None => this.incoming = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(incoming) = self
            .incoming
            .take()
            .filter(|incoming| !incoming.is_end_stream())
        else {
            return;
        };
        *self.remainder.found() = if self.is_awaited {
            Found::Unsent
        } else {
            Found::Unread(incoming)
        };
    }
}
