//! Requests on their way in: bounded in memory, all together, and in time. What a call has sent counts from its first header
//! until its message is whole, so that many calls that are never finished cost no more than a few.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::Status;

use crate::rpc;

/// Time for a whole request; they are small, and only a connection that hardly works takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What a call takes beside its headers, with its stream and its task.
const CALL_BYTES: usize = 5 * 1024;
/// Reflection talks back and forth on one call, for as long as somebody looks around.
const UNHURRIED: &str = "/grpc.reflection.";

/// See the module's description.
#[derive(Debug)]
pub(super) struct Admission {
    /// One permit per byte.
    inflight: Arc<Semaphore>,
}

impl Admission {
    pub(super) fn new(inflight_bytes_max: usize) -> Self {
        Self { inflight: Arc::new(Semaphore::new(inflight_bytes_max.min(Semaphore::MAX_PERMITS))) }
    }

    /// Takes a call whose headers have arrived.
    pub(super) fn admit(&self, request: Request) -> Result<Request, Status> {
        let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let permit = take(&self.inflight, headers + CALL_BYTES).ok_or_else(rpc::overloaded)?;
        let is_hurried = !request.uri().path().starts_with(UNHURRIED);
        let deadline = is_hurried.then(|| Box::pin(sleep(REQUEST_TIMEOUT)));
        let inflight = Arc::clone(&self.inflight);
        Ok(request.map(|body| Body::new(Arriving { body, inflight, permit, deadline })))
    }
}

fn take(inflight: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(inflight).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}

/// A request's body; gives back what it has taken when it is read, or nobody reads it any more.
struct Arriving {
    body: Body,
    inflight: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(ended) => return Poll::Ready(ended.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                let is_late = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
                return if is_late { Poll::Ready(Some(Err(rpc::request_late().into()))) } else { Poll::Pending };
            }
        };
        if let Some(data) = frame.data_ref() {
            let Some(more) = take(&self.inflight, data.len()) else {
                return Poll::Ready(Some(Err(rpc::overloaded().into())));
            };
            self.permit.merge(more);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
