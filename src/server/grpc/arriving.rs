//! The body of a request while it arrives: what it takes of memory, how long it may take, and when it has to end for another call.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus::IntCounter;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Sleep, sleep},
};
use tonic::Status;

use super::{inflight::BytesTaken, streams::OpenStream, unfinished::UnfinishedCall};
use crate::rpc;

/// Message bytes of an unauthenticated health call: the name of a service, with a wide margin.
pub(super) const HEALTH_BYTES_MAX: usize = 1024;
/// How long a reflection call that has to end for another one may go on: a call of a burst is there before its message is.
pub(super) const REFLECTION_GRACE: Duration = Duration::from_secs(1);

/// Where a request has room while it arrives.
#[derive(Debug)]
pub(super) enum Room {
    /// In its client's share of memory.
    Client(BytesTaken),
    /// In one of the few places for unauthenticated health calls.
    Unauthenticated {
        left: usize,
        is_over: oneshot::Receiver<()>,
        _held: Option<HealthCall>,
    },
    /// In a place of its own. Reflection's messages are small.
    Reflection { end: End, _open: Arc<OpenStream> },
}

/// The places that an unauthenticated health call holds.
#[derive(Debug)]
pub(super) struct HealthCall {
    pub _unfinished: UnfinishedCall,
    pub _permit: OwnedSemaphorePermit,
}

/// When a call ends for another one.
#[derive(Debug)]
pub(super) enum End {
    /// [`REFLECTION_GRACE`] after this completes.
    After(oneshot::Receiver<()>),
    At(Pin<Box<Sleep>>),
}

impl End {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                Self::After(is_over) => {
                    let _ = ready!(Pin::new(is_over).poll(cx)).is_ok(); // either way it is over
                    *self = Self::At(Box::pin(sleep(REFLECTION_GRACE)));
                }
                Self::At(end) => return end.as_mut().poll(cx),
            }
        }
    }
}

/// A request's body. What it has taken is given back when it is read, or when nothing reads it any more.
struct Arriving {
    body: Body,
    room: Room,
    deadline: Pin<Box<Sleep>>,
    overloaded: IntCounter,
}

/// Holds a request to its room, and to arriving within `patience`.
pub(super) fn bounded(
    request: Request,
    room: Room,
    patience: Duration,
    overloaded: &IntCounter,
) -> Request {
    let (deadline, overloaded) = (Box::pin(sleep(patience)), overloaded.clone());
    request.map(|body| {
        Body::new(Arriving {
            body,
            room,
            deadline,
            overloaded,
        })
    })
}

impl Arriving {
    /// Takes room for so many more bytes.
    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        match &mut self.room {
            Room::Client(taken) => taken.take(bytes).then_some(()).ok_or_else(|| {
                self.overloaded.inc();
                rpc::overloaded()
            }),
            Room::Unauthenticated { left, .. } => {
                *left = left
                    .checked_sub(bytes)
                    .ok_or_else(|| rpc::request_too_large(HEALTH_BYTES_MAX))?;
                Ok(())
            }
            Room::Reflection { .. } => Ok(()),
        }
    }

    /// Ready when the rest is not waited for any longer, with the reason.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(rpc::request_late());
        }

        match &mut self.room {
            Room::Client(_) => return Poll::Pending,
            Room::Unauthenticated { is_over, .. } => {
                let _ = ready!(Pin::new(is_over).poll(cx)).is_ok(); // either way it is over
            }
            Room::Reflection { end, .. } => ready!(end.poll(cx)),
        }
        self.overloaded.inc();
        Poll::Ready(rpc::overloaded())
    }
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
                return self
                    .poll_given_up(cx)
                    .map(|refused| Some(Err(refused.into())));
            }
        };
        if let Some(data) = frame.data_ref()
            && let Err(refused) = self.take(data.len())
        {
            return Poll::Ready(Some(Err(refused.into())));
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
