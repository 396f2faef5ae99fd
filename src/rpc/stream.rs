//! A subscription as the body of an answer: messages become bytes, the end becomes a status. Pure but for the polling.
//!
//! tonic makes the body of a stream out of owned messages, encoding one after the other. An event goes to many streams, so to
//! own it costs every delivery a write to memory that other cores write to as well. Here all that is ready is written into one
//! buffer, straight from where everybody reads it.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use jiff::Timestamp;
use tonic::Status;

use super::errors::{self, RECONNECT_AFTER};
use crate::{
    event::Sequence,
    subscription::{Control, Message, Sources, Subscription},
    wire::{
        Delivery, duration, put_message, timestamp,
        v1::{self, subscribe_response::Content},
    },
};

/// A buffer is handed to HTTP/2 when it is this full; two frames of the protocol's default size.
const YIELD_BYTES: usize = 32 * 1024;

/// The body of an answer to `Subscribe`.
#[derive(Debug)]
pub struct EventBody {
    sources: Arc<Sources>,
    subscription: Subscription,
    include_raw: bool,
    limits: v1::SubscriptionLimits,
    /// What is to be handed on. Nothing between two frames, so that a stream which waits holds none.
    buffer: BytesMut,
    /// How the stream has ended.
    status: Option<Status>,
    has_ended: bool,
}

impl EventBody {
    pub(super) fn new(
        sources: Arc<Sources>,
        subscription: Subscription,
        include_raw: bool,
        limits: v1::SubscriptionLimits,
    ) -> Self {
        let (buffer, status, has_ended) = (BytesMut::new(), None, false);
        Self { sources, subscription, include_raw, limits, buffer, status, has_ended }
    }

    /// Writes what is ready, as far as the buffer goes.
    fn fill(&mut self, cx: &mut Context<'_>) {
        let (epoch, include_raw) = (self.sources.store.epoch(), self.include_raw);
        while self.status.is_none() && self.buffer.len() < YIELD_BYTES {
            match self.subscription.poll_message(cx) {
                Poll::Ready(Some(Ok(Message::Event { record, ahead }))) => {
                    let delivery = Delivery { epoch, record, include_raw };
                    delivery.put_streamed(ahead, YIELD_BYTES, &mut self.buffer);
                }
                Poll::Ready(Some(Ok(Message::Control(control)))) => {
                    let content = Some(self.content(control));
                    put_message(&v1::SubscribeResponse { content }, &mut self.buffer);
                }
                Poll::Ready(Some(Err(end))) => self.status = Some(errors::end(&self.sources, &end)),
                Poll::Ready(None) => self.status = Some(Status::ok("")),
                Poll::Pending => break,
            }
        }
    }

    fn cursor(&self, place: Sequence) -> String {
        self.sources.store.cursor(place).to_string()
    }

    fn content(&self, control: Control) -> Content {
        let now = || Some(timestamp(Timestamp::now()));
        match control {
            Control::Subscribed { position, first_available, head } => Content::Subscribed(v1::Subscribed {
                subscription_id: self.subscription.id().to_owned(),
                cursor: self.cursor(position),
                first_available: first_available.map(|place| self.cursor(place)).unwrap_or_default(),
                head: self.cursor(head),
                epoch: self.sources.store.epoch().to_string(),
                limits: Some(self.limits),
            }),
            Control::CaughtUp { position } => {
                Content::CaughtUp(v1::CaughtUp { cursor: self.cursor(position), time: now() })
            }
            Control::FellBehind { position, lag } => {
                Content::FellBehind(v1::FellBehind { cursor: self.cursor(position), time: now(), lag })
            }
            Control::Progress { position, head } => {
                Content::Progress(v1::Progress { cursor: self.cursor(position), head: self.cursor(head), time: now() })
            }
            Control::Gap { from, to } => {
                let reason = "CURSOR_EXPIRED".to_owned();
                Content::Gap(v1::Gap { from: self.cursor(from), to: self.cursor(to), reason })
            }
            Control::GoingAway { position } => Content::GoingAway(v1::GoingAway {
                cursor: self.cursor(position),
                reconnect_after: Some(duration(RECONNECT_AFTER)),
            }),
            Control::Completed { position } => Content::Completed(v1::Completed { cursor: self.cursor(position) }),
        }
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.fill(cx);
        if !self.buffer.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.buffer).freeze()))));
        }
        match &self.status {
            Some(_) if self.has_ended => Poll::Ready(None),
            Some(status) => {
                let mut trailers = hyper::HeaderMap::new();
                status.add_header(&mut trailers)?;
                self.has_ended = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

/// A body on its way past tonic, in an answer's extensions: the one that tonic has made is to be replaced by it.
#[derive(Clone, Debug)]
pub struct HandedOver(Arc<Mutex<Option<EventBody>>>);

impl HandedOver {
    pub(super) fn new(body: EventBody) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// The body, for the first who asks.
    pub fn take(&self) -> Option<EventBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
