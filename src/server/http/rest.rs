//! What is left of a request's body when the request is answered, as most refusals are, without reading it.
//!
//! A small rest is read away, so that the connection can be used again. A large one is not: the answer says `Connection: close`, and
//! the connection lingers, so that no reset overtakes the answer. Either way what is read is dropped, not kept.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How much of a body is read away so that its connection lives on: the cost of a handful of new connections with TLS.
const REST_BYTES_MAX: u64 = 256 * 1024;
/// How long it may take. As long as a stranger's connection may be silent before it gives way.
const REST_TIMEOUT: Duration = Duration::from_secs(1);
/// How much a connection that closes reads on: most senders look for an answer only when they have sent all.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The body of a request; what was not read of it comes back when it is dropped.
#[derive(Debug)]
pub(in crate::server) struct RequestBody {
    /// `None` once it has ended or failed.
    incoming: Option<Incoming>,
    is_awaited: bool,
    rest: Rest,
}

/// Where the bodies of one connection, or of one stream, leave what was not read of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rest(Arc<Mutex<Found>>);

/// What the last request's body has left.
#[derive(Debug, Default)]
enum Found {
    #[default]
    Nothing,
    /// It broke off: there is no telling where another request would begin.
    Broken,
    Unread(Incoming),
    /// Nor is it on its way: the sender waits for 100 Continue.
    Unsent,
}

impl Rest {
    /// The request with a body that leaves its rest here.
    pub(super) fn of(&self, request: Request<Incoming>) -> Request<RequestBody> {
        let expects = request.headers().get(header::EXPECT);
        let is_awaited =
            expects.is_some_and(|expects| expects.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let rest = self.clone();
        request.map(|incoming| RequestBody {
            incoming: Some(incoming),
            is_awaited,
            rest,
        })
    }

    /// Makes an end of the request's body, behind the answer; if that cannot be, the answer says that it is the last one.
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
                        is_last_now(&mut answer);
                    }
                    answer
                }));
            }
            _ => {}
        }
        is_last_now(&mut answer);
        Ok(answer)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that waits for the rest of the request.
pub(super) type Settling = Pin<Box<dyn Future<Output = Response> + Send>>;

fn is_last_now(answer: &mut Response) {
    answer
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// True if it was all.
async fn read_away(mut body: Incoming) -> bool {
    if body.size_hint().lower() > REST_BYTES_MAX {
        return false;
    }
    let discard = async {
        let mut left = REST_BYTES_MAX;
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
    timeout(REST_TIMEOUT, discard).await.unwrap_or(false)
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
        this.is_awaited = false; // hyper tells the sender to go on
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                this.incoming = None;
                *this.rest.found() = Found::Broken;
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
        *self.rest.found() = if self.is_awaited {
            Found::Unsent
        } else {
            Found::Unread(incoming)
        };
    }
}

/// Closes so that what was written arrives: a socket closed with unread data resets the connection, answer and all.
pub(super) async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, patience: Duration) {
    let mut discard = async || -> io::Result<()> {
        stream.shutdown().await?;
        let mut buffer = [0; 4096];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok(())
    };
    // Either way the connection is over.
    let _ = timeout(patience, discard()).await.is_ok();
}
