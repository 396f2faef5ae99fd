//! The body of an answer to `Subscribe`: the subscription's messages as bytes, its end as a status.
//!
//! tonic encodes a stream's body out of owned messages, one after the other. An event goes to many streams; if each owned it, every
//! delivery would write to a reference count that other cores write to as well. Here a stream that wants most of the events of one
//! commit sends one encoding of them, which all such streams share. Other events are encoded into the stream's own buffer, straight
//! from the shared records.
//!
//! Bytes that the transport has cannot be taken back, so it gets little at once. A large event is copied in pieces, and the event
//! itself stays where its memory can be reclaimed when the client stalls. A slice would keep the whole event in memory, and every
//! byte is copied on its way to the socket anyway.

use std::{
    collections::VecDeque,
    mem,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tonic::Status;

use super::errors::{self, RECONNECT_AFTER};
use crate::{
    event::{Records, Sequence, SharedEncoding},
    reconcile::Wait,
    subscription::{Control, Sources, StreamEnd, StreamMessage, Subscription},
    transit::Flow,
    wire::{
        Delivery, Reason, duration, encode_streamed, put_message, timestamp,
        v1::{self, subscribe_response::Content},
    },
};

/// Fewer bytes are copied rather than shared: each shared piece is an HTTP/2 frame of its own.
const SHARED_BYTES_MIN: usize = 4 * 1024;

/// Consecutive events of one commit.
#[derive(Debug)]
struct Run {
    records: Records,
    range: Range<usize>,
    bytes: usize,
}

impl Run {
    fn new(records: &Records, at: usize) -> Self {
        Self {
            records: records.clone(),
            range: at..at + 1,
            bytes: records[at].event().len(),
        }
    }

    /// Takes an event in if it is the next one.
    fn take(&mut self, records: &Records, at: usize) -> bool {
        let is_next = self.range.end == at && self.records.is(records);
        if is_next {
            self.range.end += 1;
            self.bytes += records[at].event().len();
        }
        is_next
    }

    /// Whether a shared encoding pays: for a stream that wants only a few of the events it would not.
    fn is_shared(&self) -> bool {
        self.bytes >= SHARED_BYTES_MIN && self.bytes * 2 > self.records.event_bytes()
    }
}

/// An event that is too large for one piece.
#[derive(Debug)]
struct Large {
    sequence: Sequence,
    /// Bytes of its message that were sent, and all of them.
    done: usize,
    length: usize,
}

/// The body of an answer to `Subscribe`.
#[derive(Debug)]
pub(crate) struct EventBody {
    sources: Arc<Sources>,
    subscription: Subscription,
    include_raw: bool,
    limits: v1::SubscriptionLimits,
    /// Its tasks are expected while it is open.
    _waits: Option<Wait>,
    /// What is sent next, in this order: whole frames, the buffer, the run of events that is not encoded yet. A stream that waits holds
    /// none of them.
    frames: VecDeque<Bytes>,
    buffer: BytesMut,
    run: Option<Run>,
    /// The event of which a part was sent.
    large: Option<Large>,
    /// The bytes of the stream that HTTP/2 holds.
    flow: Flow,
    /// The status, once the stream has ended.
    status: Option<Status>,
    has_ended: bool,
}

impl EventBody {
    pub(super) fn new(
        sources: Arc<Sources>,
        subscription: Subscription,
        include_raw: bool,
        limits: v1::SubscriptionLimits,
        waits: Option<Wait>,
    ) -> Self {
        let (frames, buffer, flow) = (
            VecDeque::new(),
            BytesMut::new(),
            Flow::new(&sources.memory.transit),
        );

        Self {
            sources,
            subscription,
            include_raw,
            limits,
            _waits: waits,
            frames,
            buffer,
            run: None,
            large: None,
            flow,
            status: None,
            has_ended: false,
        }
    }

    /// Encodes the messages that are ready, as far as there is room.
    fn fill(&mut self, room: usize, cx: &mut Context<'_>) {
        while self.status.is_none() && self.frames.is_empty() && self.bytes() < room {
            if self.large.is_some() {
                match self.put_piece(room, cx) {
                    Poll::Ready(Ok(())) => continue,
                    // The client has a part of a message whose rest is gone.
                    Poll::Ready(Err(end)) => self.status = Some(errors::end(&self.sources, &end)),
                    Poll::Pending => break,
                }
            }
            match self.subscription.poll_message(cx) {
                Poll::Ready(Some(Ok(StreamMessage::Event { records, at, ahead }))) => {
                    let record = &records[at];
                    let delivery =
                        Delivery::new(self.sources.store.epoch(), record, self.include_raw);
                    // The first comparison is cheap, and settles most events.
                    if record.len() > room && delivery.streamed_len() > room {
                        let (sequence, length) = (record.sequence(), delivery.streamed_len());
                        self.large = Some(Large {
                            sequence,
                            done: 0,
                            length,
                        });
                        self.end_run(room);
                    } else if self.include_raw {
                        delivery.put_streamed(ahead, room, &mut self.buffer);
                    } else if !self.run.as_mut().is_some_and(|run| run.take(records, at)) {
                        let ended = self.run.replace(Run::new(records, at));
                        ended.into_iter().for_each(|run| self.hand_on(&run, room));
                    }
                }
                Poll::Ready(Some(Ok(StreamMessage::Control(control)))) => {
                    self.end_run(room);
                    let content = Some(self.content(control));
                    put_message(&v1::SubscribeResponse { content }, &mut self.buffer);
                }
                Poll::Ready(Some(Err(end))) => self.status = Some(errors::end(&self.sources, &end)),
                Poll::Ready(None) => self.status = Some(Status::ok("")),
                Poll::Pending => break,
            }
        }

        if self.frames.is_empty() {
            self.end_run(room);
        }
    }

    /// Encodes the next piece of the large event.
    fn put_piece(&mut self, room: usize, cx: &mut Context<'_>) -> Poll<Result<(), StreamEnd>> {
        let Some(large) = &mut self.large else {
            return Poll::Ready(Ok(()));
        };
        let record = ready!(self.subscription.poll_last(large.sequence, cx))?;
        let delivery = Delivery::new(self.sources.store.epoch(), record, self.include_raw);
        let end = large
            .length
            .min(large.done + room.saturating_sub(self.buffer.len()));
        delivery.put_streamed_part(large.done..end, &mut self.buffer);
        large.done = end;
        if large.done == large.length {
            self.large = None;
        }
        Poll::Ready(Ok(()))
    }

    fn bytes(&self) -> usize {
        self.buffer.len() + self.run.as_ref().map_or(0, |run| run.bytes)
    }

    fn end_run(&mut self, room: usize) {
        if let Some(run) = self.run.take() {
            self.hand_on(&run, room);
        }
    }

    fn hand_on(&mut self, run: &Run, room: usize) {
        let epoch = self.sources.store.epoch();

        if run.is_shared() {
            if !self.buffer.is_empty() {
                self.frames
                    .push_back(self.flow.hand(mem::take(&mut self.buffer)));
            }
            let transit = self.flow.transit();
            let shared = run.records.encoded(run.range.clone(), |records| {
                let encoding = encode_streamed(epoch, records);
                SharedEncoding {
                    charge: Some(transit.charge(encoding.bytes.len())),
                    ..encoding
                }
            });
            self.frames.push_back(self.flow.hand_shared(shared));
            return;
        }

        for at in run.range.clone() {
            let delivery = Delivery::new(epoch, &run.records[at], false);
            delivery.put_streamed(run.range.end - at - 1, room, &mut self.buffer);
        }
    }

    fn cursor(&self, place: Sequence) -> String {
        self.sources.store.cursor(place).to_string()
    }

    fn content(&self, control: Control) -> Content {
        // By the clock that stamps events, not the machine's.
        let now = || Some(timestamp(self.sources.store.clock().now()));

        match control {
            Control::Subscribed {
                position,
                first_available,
                head,
            } => Content::Subscribed(v1::Subscribed {
                subscription_id: self.subscription.id().to_owned(),
                cursor: self.cursor(position),
                first_available: first_available
                    .map(|place| self.cursor(place))
                    .unwrap_or_default(),
                head: self.cursor(head),
                epoch: self.sources.store.epoch().to_string(),
                limits: Some(self.limits),
            }),
            Control::CaughtUp { position } => Content::CaughtUp(v1::CaughtUp {
                cursor: self.cursor(position),
                time: now(),
            }),
            Control::FellBehind { position, lag } => Content::FellBehind(v1::FellBehind {
                cursor: self.cursor(position),
                time: now(),
                lag,
            }),
            Control::Progress { position, head } => Content::Progress(v1::Progress {
                cursor: self.cursor(position),
                head: self.cursor(head),
                time: now(),
            }),
            Control::Gap { after, through } => {
                let reason = Reason::CursorExpired.as_str().to_owned();
                Content::Gap(v1::Gap {
                    after: self.cursor(after),
                    through: self.cursor(through),
                    reason,
                })
            }
            Control::GoingAway { position } => Content::GoingAway(v1::GoingAway {
                cursor: self.cursor(position),
                reconnect_after: Some(duration(RECONNECT_AFTER)),
            }),
            Control::Completed { position } => Content::Completed(v1::Completed {
                cursor: self.cursor(position),
            }),
        }
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(frame) = self.frames.pop_front() {
            self.subscription.frame_sent();
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }

        if self.status.is_none() || !self.buffer.is_empty() {
            let room = ready!(self.flow.poll_room(cx));
            self.subscription.resume();
            self.fill(room, cx);
            let is_midway = self.large.is_some();
            self.subscription.rest(is_midway);
        }

        if let Some(frame) = self.frames.pop_front() {
            self.subscription.frame_sent();
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }

        if !self.buffer.is_empty() {
            self.subscription.frame_sent();
            let written = mem::take(&mut self.buffer);
            return Poll::Ready(Some(Ok(Frame::data(self.flow.hand(written)))));
        }

        match &self.status {
            Some(_) if self.has_ended => Poll::Ready(None),
            Some(status) => {
                let mut trailers = hyper::HeaderMap::new();
                status.add_header(&mut trailers)?;
                self.has_ended = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            None => {
                self.subscription.more_asked();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

/// A body in a response's extensions: it replaces the body that tonic has made.
#[derive(Clone, Debug)]
pub(crate) struct HandedOver(Arc<Mutex<Option<EventBody>>>);

impl HandedOver {
    pub(super) fn new(body: EventBody) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// The body; `None` if it was taken before.
    pub(crate) fn take(&self) -> Option<EventBody> {
        self.0.lock().take()
    }
}
