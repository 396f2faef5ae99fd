//! How a simulated vendor behaves: times, failures, lost callbacks, keys, limits. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::simulator::plan::retry_gaps;

/// Status checks that the documentation allows to one key, the requests of lists included.
pub const CHECKS_PER_MINUTE_MAX: usize = 60;
/// Tasks that are remembered. Beyond that the oldest ones that have ended and whose callbacks are settled are forgotten; if there are
/// none, no task is accepted.
pub const TASKS_MAX: usize = 10_000;
/// Bytes of prompts and callback URLs that are remembered, with the same consequence.
pub const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How a simulated vendor behaves. The default behaves well, and ends each task after five seconds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The seed of all random choices: ids, failures, lost callbacks. The same requests with the same seed have the same outcome.
    pub seed: u64,
    /// How long a task takes, if its product has no other time in `after_by_product`.
    pub after: Duration,
    /// How long a task of a product takes, by slug.
    pub after_by_product: BTreeMap<String, Duration>,
    /// The percentage of tasks that fail.
    pub fail_percent: u8,
    /// The percentage of tasks whose callback is never sent.
    pub lose_percent: u8,
    /// How long after the end of a task its callback is sent.
    pub callback_delay: Duration,
    /// The waits before the second and each later attempt of a callback; `None`: the vendor's own, by product.
    pub retry_gaps: Option<Vec<Duration>>,
    /// By how much these waits are shortened.
    pub retry_speed: u32,
    /// The only keys that are accepted; empty: any key.
    pub keys: Vec<String>,
    /// Status checks and lists that one key may ask for within 60 seconds.
    pub checks_per_minute_max: usize,
    /// Most tasks that are remembered; see [`TASKS_MAX`].
    pub tasks_max: usize,
    /// The order of lists, which the vendor does not document.
    pub list_order: ListOrder,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            after: Duration::from_secs(5),
            after_by_product: BTreeMap::new(),
            fail_percent: 0,
            lose_percent: 0,
            callback_delay: Duration::ZERO,
            retry_gaps: None,
            retry_speed: 1,
            keys: Vec::new(),
            checks_per_minute_max: CHECKS_PER_MINUTE_MAX,
            tasks_max: TASKS_MAX,
            list_order: ListOrder::NewestFirst,
        }
    }
}

impl Settings {
    /// How long a task of the product takes.
    pub(super) fn after(&self, product: &str) -> Duration {
        self.after_by_product
            .get(product)
            .copied()
            .unwrap_or(self.after)
    }

    /// The waits before the second and each later attempt of a callback.
    pub(super) fn retry_gaps(&self, product: &str) -> Vec<Duration> {
        let gaps = self.retry_gaps.clone();
        gaps.unwrap_or_else(|| retry_gaps(product))
            .into_iter()
            .map(|gap| gap / self.retry_speed.max(1))
            .collect()
    }
}

/// The order of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOrder {
    /// By the time of creation, the newest task first.
    NewestFirst,
    /// By the time of creation, the oldest task first.
    OldestFirst,
}
