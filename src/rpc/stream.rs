//! A subscription as the body of an answer: messages become bytes, the end becomes a status. Pure but for the polling.
//!
//! tonic makes the body of a stream out of owned messages, encoding one after the other. An event goes to many streams, so to
//! own it costs every delivery a write to memory that other cores write to as well. Here whoever wants most of what was
//! published together hands on one encoding of it, which is shared by all; the rest is written into a buffer, straight from
//! where everybody reads it.

use std::{
    collections::VecDeque,
    mem,
    ops::Range,
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
    event::{Records, Sequence},
    subscription::{Control, Message, Sources, Subscription},
    wire::{
        Delivery, duration, encode_streamed, put_message, timestamp,
        v1::{self, subscribe_response::Content},
    },
};

/// A buffer is handed to HTTP/2 when it is this full; two frames of the protocol's default size.
const YIELD_BYTES: usize = 32 * 1024;

/// Less is copied rather than shared: each piece that is shared becomes a frame of HTTP/2 by itself.
const SHARED_BYTES_MIN: usize = 4 * 1024;

/// Events that were published together and follow each other, to be handed on.
#[derive(Debug)]
struct Run {
    records: Records,
    range: Range<usize>,
    bytes: usize,
}

impl Run {
    fn new(records: &Records, at: usize) -> Self {
        Self { records: records.clone(), range: at..at + 1, bytes: records[at].event().len() }
    }

    /// Takes the next one, if it is that.
    fn take(&mut self, records: &Records, at: usize) -> bool {
        let is_next = self.range.end == at && self.records.is(records);
        if is_next {
            self.range.end += 1;
            self.bytes += records[at].event().len();
        }
        is_next
    }

    /// Encoding all of the records for one who wants a few would be waste.
    fn is_shared(&self) -> bool {
        self.bytes >= SHARED_BYTES_MIN && self.bytes * 2 > self.records.event_bytes()
    }
}

/// The body of an answer to `Subscribe`.
#[derive(Debug)]
pub struct EventBody {
    sources: Arc<Sources>,
    subscription: Subscription,
    include_raw: bool,
    limits: v1::SubscriptionLimits,
    /// What is to be handed on: whole frames, then what was written behind them, then what is not written yet. A stream which
    /// waits holds none of it.
    frames: VecDeque<Bytes>,
    buffer: BytesMut,
    run: Option<Run>,
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
        let (frames, buffer, run) = (VecDeque::new(), BytesMut::new(), None);
        Self { sources, subscription, include_raw, limits, frames, buffer, run, status: None, has_ended: false }
    }

    /// Takes what is ready, as far as a frame goes.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while self.status.is_none() && self.frames.is_empty() && self.bytes() < YIELD_BYTES {
            match self.subscription.poll_message(cx) {
                Poll::Ready(Some(Ok(Message::Event { records, at, ahead }))) if self.include_raw => {
                    let delivery =
                        Delivery { epoch: self.sources.store.epoch(), record: &records[at], include_raw: true };
                    delivery.put_streamed(ahead, YIELD_BYTES, &mut self.buffer);
                }
                Poll::Ready(Some(Ok(Message::Event { records, at, .. }))) => {
                    if !self.run.as_mut().is_some_and(|run| run.take(records, at)) {
                        let ended = self.run.replace(Run::new(records, at));
                        ended.into_iter().for_each(|run| self.hand_on(&run));
                    }
                }
                Poll::Ready(Some(Ok(Message::Control(control)))) => {
                    self.end_run();
                    let content = Some(self.content(control));
                    put_message(&v1::SubscribeResponse { content }, &mut self.buffer);
                }
                Poll::Ready(Some(Err(end))) => self.status = Some(errors::end(&self.sources, &end)),
                Poll::Ready(None) => self.status = Some(Status::ok("")),
                Poll::Pending => break,
            }
        }
        if self.frames.is_empty() {
            self.end_run();
        }
    }

    fn bytes(&self) -> usize {
        self.buffer.len() + self.run.as_ref().map_or(0, |run| run.bytes)
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            self.hand_on(&run);
        }
    }

    fn hand_on(&mut self, run: &Run) {
        let epoch = self.sources.store.epoch();
        if run.is_shared() {
            let written = mem::take(&mut self.buffer).freeze();
            let shared = run.records.encoded(run.range.clone(), |records| encode_streamed(epoch, records));
            self.frames.extend([written, shared].into_iter().filter(|bytes| !bytes.is_empty()));
            return;
        }
        for at in run.range.clone() {
            let delivery = Delivery { epoch, record: &run.records[at], include_raw: false };
            delivery.put_streamed(run.range.end - at - 1, YIELD_BYTES, &mut self.buffer);
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
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
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
