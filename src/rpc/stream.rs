//! A subscription as a gRPC stream: messages become frames, the end becomes a status. Pure but for the polling.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use jiff::Timestamp;
use tokio_stream::Stream;
use tonic::Status;

use super::errors::{self, RECONNECT_AFTER};
use crate::{
    event::Sequence,
    subscription::{Message, Sources, Subscription},
    wire::{
        Delivery, Frame, duration, timestamp,
        v1::{self, subscribe_response::Content},
    },
};

/// The body of a `Subscribe` call.
#[derive(Debug)]
pub struct EventStream {
    sources: Arc<Sources>,
    subscription: Subscription,
    include_raw: bool,
    limits: v1::SubscriptionLimits,
}

impl EventStream {
    pub(super) fn new(
        sources: Arc<Sources>,
        subscription: Subscription,
        include_raw: bool,
        limits: v1::SubscriptionLimits,
    ) -> Self {
        Self { sources, subscription, include_raw, limits }
    }

    fn cursor(&self, place: Sequence) -> String {
        self.sources.store.cursor(place).to_string()
    }

    fn frame(&self, message: Message) -> Frame {
        let now = || Some(timestamp(Timestamp::now()));
        let content = match message {
            Message::Event(record) => {
                let epoch = self.sources.store.epoch();
                return Frame::Streamed(Delivery { epoch, record, include_raw: self.include_raw });
            }
            Message::Subscribed { position, first_available, head } => Content::Subscribed(v1::Subscribed {
                subscription_id: self.subscription.id().to_owned(),
                cursor: self.cursor(position),
                first_available: first_available.map(|place| self.cursor(place)).unwrap_or_default(),
                head: self.cursor(head),
                epoch: self.sources.store.epoch().to_string(),
                limits: Some(self.limits),
            }),
            Message::CaughtUp { position } => {
                Content::CaughtUp(v1::CaughtUp { cursor: self.cursor(position), time: now() })
            }
            Message::FellBehind { position, lag } => {
                Content::FellBehind(v1::FellBehind { cursor: self.cursor(position), time: now(), lag })
            }
            Message::Progress { position, head } => {
                Content::Progress(v1::Progress { cursor: self.cursor(position), head: self.cursor(head), time: now() })
            }
            Message::Gap { from, to } => {
                let reason = "CURSOR_EXPIRED".to_owned();
                Content::Gap(v1::Gap { from: self.cursor(from), to: self.cursor(to), reason })
            }
            Message::GoingAway { position } => Content::GoingAway(v1::GoingAway {
                cursor: self.cursor(position),
                reconnect_after: Some(duration(RECONNECT_AFTER)),
            }),
            Message::Completed { position } => Content::Completed(v1::Completed { cursor: self.cursor(position) }),
        };
        Frame::Control(Box::new(v1::SubscribeResponse { content: Some(content) }))
    }
}

impl Stream for EventStream {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.subscription).poll_next(cx));
        Poll::Ready(next.map(|message| match message {
            Ok(message) => Ok(self.frame(message)),
            Err(end) => Err(errors::end(&self.sources, &end)),
        }))
    }
}
