//! Reading the open expectations. Writing them is the writer's.
//!
//! They are in memory: nothing here waits for the disk.

use tokio::sync::watch;

use super::{Expectation, ExpectationCounts, Store, expectation::key, lock};
use crate::event::{Product, TaskId};

impl Store {
    /// The expectation of a task, if one is open.
    pub fn expectation(&self, product: &Product, task_id: &TaskId) -> Option<Expectation> {
        let expectations = lock(&self.expectations);
        let (number, kept) = expectations.find(&key(product, task_id))?;
        Some(kept.expectation(number))
    }

    /// The open expectations behind a number, in the order in which the tasks were expected first;
    /// at most so many.
    pub fn expectations_after(&self, number: u64, most: usize) -> Vec<Expectation> {
        lock(&self.expectations).after(number, most)
    }

    /// How many are open.
    pub fn expectation_counts(&self) -> ExpectationCounts {
        lock(&self.expectations).counts()
    }

    /// The newest number that is durable, as it rises: then there is something new behind the last
    /// that was read.
    pub fn newest_expectation(&self) -> watch::Receiver<u64> {
        lock(&self.expectations).newest()
    }
}
