//! Gets a message that the stream is known to have: a node that was refused must not wait for its follower.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    asker::Asker,
    backoff::Backoff,
    direct,
    event::{Event, Events},
    settings::Settings,
    slot::Slot,
};

/// Servers that lag have it by then; otherwise the follower will.
const TIME: Duration = Duration::from_secs(5);

pub(super) struct Fetcher {
    pub(super) asker: Asker,
    pub(super) settings: Arc<Settings>,
    pub(super) orders: Slot<u64>,
    pub(super) events: Events,
}

impl Fetcher {
    pub(super) async fn run(mut self) {
        let stream = self.settings.stream();
        loop {
            let sequence = self.orders.take().await;
            let (deadline, mut backoff) = (Instant::now() + TIME, Backoff::default());

            while !self.orders.is_filled() && Instant::now() < deadline {
                match direct::one(&mut self.asker, &stream, sequence).await {
                    Ok(Some(got)) => {
                        let bytes = got.bytes;
                        self.events.send(Event::Message { sequence, bytes }).await;
                        break;
                    }
                    Ok(None) | Err(_) => sleep(backoff.next()).await,
                }
            }
        }
    }
}
