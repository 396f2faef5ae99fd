//! Removes what no node needs from the start of the stream.

use std::sync::Arc;

use super::{
    api,
    asker::Asker,
    event::{Event, Events},
    settings::Settings,
    slot::Slot,
};

pub(super) struct Purger {
    pub(super) asker: Asker,
    pub(super) settings: Arc<Settings>,
    pub(super) orders: Slot<u64>,
    pub(super) events: Events,
}

impl Purger {
    /// A purge that fails is not tried again: the writer sees that the stream still begins where it did.
    pub(super) async fn run(mut self) {
        let stream = self.settings.stream();
        loop {
            let through = self.orders.take().await;
            let first_kept = through.saturating_add(1);
            match api::purge(&mut self.asker, &stream, first_kept).await {
                Ok(()) => self.events.send(Event::Purged { through }).await,
                Err(failure) => {
                    let error = failure.into_error("purge the stream");
                    tracing::warn!(%error, "what is forgotten stays in the stream for now");
                }
            }
        }
    }
}
