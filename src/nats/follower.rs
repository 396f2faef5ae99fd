//! Follows the stream: every message from a sequence on, in order, without a gap.
//!
//! It reads from a consumer of its own, which it makes anew whenever that says nothing for two seconds, leaves something out, or
//! the connection was lost. Making one needs the leader of the whole system, which may be away for longer than the stream's; until
//! there is one, messages are got from any server that has a copy.
//!
//! It takes no notice of what messages say. A gap is passed on only if the stream itself has nothing there.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;

use super::{
    api::{self, Failure, NewConsumer},
    asker::{Asker, subscribe},
    backoff::Backoff,
    delivery::Delivery,
    direct,
    event::{Event, Events},
    link::Link,
    settings::Settings,
    slot::Slot,
    watch::Counters,
};
use crate::cluster::Author;

/// A consumer says something each second.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How often messages are got while there is no consumer.
const GET_EVERY: Duration = Duration::from_millis(50);
/// How often a consumer may leave out what the stream should have, before that counts as lost there. Consumers are made at different
/// servers, so one with a damaged copy does not decide it.
const GAPS_MAX: usize = 8;

pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) link: Arc<Link>,
    pub(super) settings: Arc<Settings>,
    pub(super) me: Author,
    pub(super) orders: Slot<u64>,
    pub(super) events: Events,
    pub(super) counters: Arc<Counters>,
    pub(super) getter: Asker,
    /// The sequence of the next message.
    pub(super) next: u64,
    pub(super) gaps: usize,
}

/// A consumer, and what it has sent.
struct Consumer {
    messages: Subscriber,
    count: u64,
}

impl Follower {
    /// `maker` asks for consumers, while the follower gets messages.
    pub(super) async fn run(mut self, mut maker: Asker) {
        let mut backoff = Backoff::default();
        loop {
            let before = self.next;
            let why = match self.open(&mut maker).await {
                Ok(mut consumer) => self.read(&mut consumer).await,
                Err(failure) => failure.into_error("make a consumer").to_string(),
            };
            tracing::debug!(next = self.next, why, "following the stream anew");
            if self.next != before {
                backoff.reset();
            }
            let pause = backoff.next();
            self.getting_meanwhile(sleep(pause)).await;
        }
    }

    async fn open(&mut self, maker: &mut Asker) -> Result<Consumer, Failure> {
        let number = self.counters.consumers.fetch_add(1, Ordering::Relaxed);
        let (stream, inbox) = (self.settings.stream(), self.client.new_inbox());
        let name = format!("{:032x}-{number}", self.me.0);
        let description = format!("node {}", self.settings.node);
        let subscribed = subscribe(&self.client, inbox.clone()).await;
        let messages = subscribed.map_err(|error| Failure::Odd(error.to_string()))?;

        let start = self.next;
        let new = NewConsumer {
            stream: &stream,
            name: &name,
            description: &description,
            deliver_to: &inbox,
            start,
        };
        let made = api::create_consumer(maker, &new);
        self.getting_meanwhile(made).await?;
        Ok(Consumer { messages, count: 0 })
    }

    /// Reads until the consumer is of no more use, and says why.
    async fn read(&mut self, consumer: &mut Consumer) -> String {
        let connection = self.link.connection();
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.orders.filled() => {
                    self.next = self.orders.take().await;
                    self.gaps = 0;
                    return "it is to go on elsewhere".to_owned();
                }
                () = self.link.lost(connection) => return "the connection was lost".to_owned(),
                delivery = timeout(SILENCE_MAX, consumer.messages.next()) => delivery,
            };
            let message = match delivery {
                Ok(Some(message)) => message,
                Ok(None) => return "its subscription has ended".to_owned(),
                Err(_) => return "the consumer is silent".to_owned(),
            };
            match Delivery::of(&message) {
                Delivery::Message { sequence, count } => {
                    consumer.count = consumer.count.saturating_add(1);
                    let is_whole = count == consumer.count;
                    if !is_whole || !self.take(sequence, message.payload).await {
                        return format!("message {sequence} comes before message {}", self.next);
                    }
                }
                Delivery::Heartbeat { count, stalled } => {
                    if count.is_some_and(|count| count != consumer.count) {
                        return "messages were lost on the way".to_owned();
                    }
                    if let Some(subject) = stalled {
                        let _ = self.client.publish(subject, Bytes::new()).await.is_ok();
                    }
                }
                // All before it has found its place among the events.
                Delivery::FlowControl { reply } => {
                    let _ = self.client.publish(reply, Bytes::new()).await.is_ok();
                }
                Delivery::Over(why) => return why,
            }
        }
    }

    /// Takes a message of a consumer; false at a gap that is not the stream's own.
    async fn take(&mut self, sequence: u64, bytes: Bytes) -> bool {
        if sequence < self.next {
            return true; // it was got meanwhile
        }
        if sequence > self.next && !self.is_gone(sequence).await {
            return false;
        }
        self.deliver(sequence, bytes).await;
        true
    }

    /// Whether the stream has nothing before this message any more, by its leader's word.
    async fn is_gone(&mut self, sequence: u64) -> bool {
        let info = api::stream_info(&mut self.getter, &self.settings.stream()).await;
        let Ok(info) = info else {
            return false;
        };
        let missing = self.next;
        if info.state.first_seq > missing {
            return true;
        }
        self.gaps += 1;
        if self.gaps < GAPS_MAX {
            return false;
        }
        tracing::error!(missing, found = sequence, "the stream has lost messages");
        true
    }

    async fn deliver(&mut self, sequence: u64, bytes: Bytes) {
        self.events.send(Event::Message { sequence, bytes }).await;
        self.next = sequence.saturating_add(1);
        self.gaps = 0;
    }

    /// Waits for `done`, and gets messages as long as that takes.
    async fn getting_meanwhile<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        let mut at = Instant::now() + GET_EVERY;
        loop {
            tokio::select! {
                biased;
                done = &mut done => return done,
                () = tokio::time::sleep_until(at) => {}
            }
            if self.orders.is_filled() {
                self.next = self.orders.take().await;
                self.gaps = 0;
            }
            let got = self.get().await;
            at = Instant::now() + if got { Duration::ZERO } else { GET_EVERY };
        }
    }

    /// Gets the next messages from any server. Returns whether there were some.
    async fn get(&mut self) -> bool {
        if !self.link.connection().is_up {
            return false;
        }
        let before = self.next;
        if direct::ask(&mut self.getter, &self.settings.stream(), before)
            .await
            .is_err()
        {
            return false;
        }
        // A server may have a later one and not this one: that is for a consumer to find.
        while let Ok(Some(got)) = direct::next(&mut self.getter).await
            && got.sequence == self.next
        {
            self.counters.gets.fetch_add(1, Ordering::Relaxed);
            self.deliver(got.sequence, got.bytes).await;
        }
        self.next != before
    }
}
