//! The plan of deliveries: which callbacks are sent, how often, in which order, and which connections break. Pure.
//!
//! The same plan, seed and callbacks give the same deliveries on every machine.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use jiff::Timestamp;
use serde_json::Value;

use crate::vendor::sample::{Sample, SampleStatus, Shape};

/// The most attempts that the vendor makes for a callback (tests/data/vendor/VENDOR.md, "Delivery").
pub const ATTEMPTS_MAX: usize = 5;

/// A callback that the vendor has to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorCallback {
    /// The slug of the product, for the URL.
    pub product: String,
    /// The task that the body names.
    pub task_id: String,
    /// The body, sent byte for byte.
    pub body: Bytes,
    /// The status of a body made by [`Sample`]; `None` for any other body, which has no contradiction.
    pub status: Option<SampleStatus>,
}

impl VendorCallback {
    /// A callback with the product's documented body.
    pub fn sample(product: &str, task_id: &str, status: SampleStatus, at: Timestamp) -> Self {
        let body = Sample {
            product,
            shape: Shape::Documented,
            status,
            task_id,
            at,
        }
        .body();
        let body = Value::Object(body).to_string().into();
        Self {
            product: product.to_owned(),
            task_id: task_id.to_owned(),
            body,
            status: Some(status),
        }
    }

    /// The opposite end of the same task: failed after completed, or the reverse. `None` if the task has not ended.
    pub(super) fn contradiction(&self) -> Option<Self> {
        let opposite = match self.status? {
            SampleStatus::Completed => SampleStatus::Failed,
            SampleStatus::Failed | SampleStatus::Timeout | SampleStatus::ModerationBlocked => {
                SampleStatus::Completed
            }
            SampleStatus::Pending | SampleStatus::Processing => return None,
        };
        Some(Self::sample(
            &self.product,
            &self.task_id,
            opposite,
            Timestamp::UNIX_EPOCH,
        ))
    }
}

/// How callbacks are sent. The default sends each callback once, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The seed of all random choices.
    pub seed: u64,
    /// The time between the starts of two deliveries.
    pub spacing: Duration,
    /// The waits before the second and each later attempt. Only the first [`ATTEMPTS_MAX`]` - 1` count. Empty: one attempt.
    pub retry_gaps: Vec<Duration>,
    /// How many more times each callback is sent, even if it was acknowledged.
    pub duplicates: usize,
    /// The percentage of terminal callbacks that are followed by a contradiction.
    pub conflict_percent: u8,
    /// Most places by which a delivery may move forward or back.
    pub reorder_span: usize,
    /// The percentage of deliveries whose first attempt loses its connection in the middle of the body.
    pub cut_percent: u8,
}

/// One delivery of a callback, with all its attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorDelivery {
    /// The callback to send.
    pub callback: VendorCallback,
    /// When the first attempt begins, from the start of the first delivery.
    pub start: Duration,
    /// At least one attempt, in order. Those after a 2xx answer are not made.
    pub attempts: Vec<Attempt>,
}

/// One POST of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The wait after the failure of the attempt before.
    pub wait: Duration,
    /// The number of bytes of the body after which the connection breaks; `None`: it does not break.
    pub cut_after: Option<usize>,
}

impl Plan {
    /// The deliveries, in the order in which they start.
    pub fn deliveries(&self, callbacks: &[VendorCallback]) -> Vec<VendorDelivery> {
        let mut dice = Dice(Rng::with_seed(self.seed));
        let mut queue = Vec::new();
        for callback in callbacks {
            queue.extend(std::iter::repeat_n(callback.clone(), 1 + self.duplicates));
            let contradicted = dice.percent(self.conflict_percent);
            queue.extend(callback.contradiction().filter(|_| contradicted));
        }

        // Each delivery draws a place at most `reorder_span` after its own. Sorting by it then moves none further than that.
        let mut placed: Vec<_> = queue
            .into_iter()
            .enumerate()
            .map(|(place, callback)| (place + dice.below(self.reorder_span + 1), callback))
            .collect();
        placed.sort_by_key(|(place, _)| *place);

        let spacing = |place: usize| {
            self.spacing
                .saturating_mul(u32::try_from(place).unwrap_or(u32::MAX))
        };
        let delivery = |(place, (_, callback)): (usize, (usize, VendorCallback))| {
            let cut = dice.percent(self.cut_percent) && callback.body.len() > 1;
            let cut_after = cut.then(|| 1 + dice.below(callback.body.len() - 1));
            VendorDelivery {
                start: spacing(place),
                attempts: self.attempts(cut_after),
                callback,
            }
        };
        placed.into_iter().enumerate().map(delivery).collect()
    }

    fn attempts(&self, cut_after: Option<usize>) -> Vec<Attempt> {
        let first = Attempt {
            wait: Duration::ZERO,
            cut_after,
        };
        let later = self.retry_gaps.iter().map(|&wait| Attempt {
            wait,
            cut_after: None,
        });
        std::iter::once(first)
            .chain(later)
            .take(ATTEMPTS_MAX)
            .collect()
    }
}

/// The waits between the vendor's attempts, by product (tests/data/vendor/VENDOR.md, "Delivery").
pub fn retry_gaps(product: &str) -> Vec<Duration> {
    let seconds: &[u64] = match product {
        "gemini" => &[30, 30],
        "kling" | "sora" => &[30, 60, 120, 240],
        _ => &[30, 30, 30, 30],
    };
    seconds
        .iter()
        .map(|&seconds| Duration::from_secs(seconds))
        .collect()
}

/// Random decisions; the same seed makes the same ones.
struct Dice(Rng);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }

    fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < usize::from(percent)
    }
}
