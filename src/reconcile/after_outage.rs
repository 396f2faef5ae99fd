//! After an outage the loop reads the vendor's lists for callbacks that were lost. The outage is not over
//! for the broker until each list was read, and what it showed is in the log: until then it does not note
//! the time, so that the next start begins with it again.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    outage::{NOTED_EVERY, Outage},
    run::{Loop, open_task},
    walks::Page,
};
use crate::{event::Product, vendor::sample::PRODUCTS};

/// How often lists to read are looked for while nothing has changed: that goes through all tasks.
const LISTS_SEEN_EVERY: Duration = Duration::from_secs(60);

impl Loop {
    /// Finds out whether the broker was away.
    pub(super) async fn find_outage(&mut self) {
        let parts = &self.shared.parts;
        let (last_there, now) = (parts.last_there().await, parts.store.clock().now_micros());
        self.outage = Outage::before_start(last_there, now, self.shared.settings.outage_min);
        if let Some(outage) = &self.outage {
            tracing::info!(
                seconds = outage.lasted.as_secs(),
                "the broker was away: the vendor's lists are read for callbacks that were lost"
            );
        }
    }

    /// Begins a walk through each list that may have lost callbacks and was not read yet. The outage ends when there is none left,
    /// and none that waits for a key.
    pub(super) fn read_lists(&mut self) {
        let Some(outage) = self.outage else { return };
        let now = Instant::now();
        let is_seen = self
            .lists_seen_at
            .is_some_and(|at| now < at + LISTS_SEEN_EVERY);
        if is_seen || self.walks.has_outage() {
            return;
        }
        self.lists_seen_at = Some(now);

        let shared = &self.shared;
        let mut lists = shared.schedule.lock().products();
        let mut is_left = false;
        if shared.settings.publishes_unknown_tasks {
            let keys = shared.parts.keys.good();
            is_left = keys.is_empty();
            let known = PRODUCTS.iter().filter_map(|name| Product::parse(name).ok());
            for product in known {
                let fit = keys
                    .iter()
                    .filter(|key| key.products.allow(product.as_str()));
                lists.extend(fit.map(|key| (Some(Arc::clone(&key.name)), product.clone())));
            }
        }

        for (key, product) in lists {
            if !shared.parts.api.has_list(&product) {
                continue;
            }
            let Some(key) = key else {
                is_left = true;
                continue;
            };
            // A refusal may be about the key, and the next one may be good.
            is_left |=
                self.walks.is_refused(&key, &product) && shared.parts.keys.is_undecided(&key);
            let since = outage.tasks_since(shared.default_within(&product));
            is_left |= self.walks.begin_outage(key, product, since, now);
        }
        if !is_left {
            self.outage = None;
        }
    }

    /// Whether the walk of a page looks for something still. One that does not ends.
    pub(super) fn still_wants(&mut self, page: &Page) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut schedule = shared.schedule.lock();
        if !self.walks.is_outage(page.walk) {
            let is_open = |id| open_task(&mut schedule, &shared, id).is_some();
            return self.walks.still_wants(page.walk, is_open);
        }
        if shared.settings.publishes_unknown_tasks {
            return true;
        }

        let expected = schedule.of_list(&page.key, &page.product);
        let is_open = |id| open_task(&mut schedule, &shared, id).is_some();
        let is_wanted = expected.into_iter().any(is_open);
        if !is_wanted {
            self.walks.lose(page.walk);
            self.lists_seen_at = None;
        }
        is_wanted
    }

    /// Notes once a minute that the broker is there, unless the next start has to begin with the same outage.
    pub(super) fn note_time(&mut self) {
        if self.outage.is_some() {
            return;
        }

        let now = Instant::now();
        if self.time_noted_at.is_none_or(|at| now >= at + NOTED_EVERY) {
            self.time_noted_at = Some(now);
            self.in_flight
                .push(Arc::clone(&self.shared.parts).note_time());
        }
    }
}
