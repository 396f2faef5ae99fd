//! A task that the vendor is asked for, as far as an event made of the answer needs it. Pure.

use jiff::Timestamp;

use crate::event::{Labels, Product, TaskId};

/// What an event about an expected task has of the expectation, not of the vendor.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The product of the expectation.
    pub product: &'a Product,
    /// The task.
    pub task_id: &'a TaskId,
    /// The labels of the expectation: the vendor knows none.
    pub labels: &'a Labels,
    /// The labels that the client that expects it is bound to: tenants do not share repeats.
    pub tenant: Option<&'a Labels>,
    /// Name of the key with which the vendor is asked; `None` if there is none for the product.
    pub vendor_key: Option<&'a str>,
    /// When the answer came or the lateness was noticed, by the log's clock.
    pub at: Timestamp,
}

impl Asked<'_> {
    /// The event's credential.
    pub(super) fn credential(&self) -> String {
        self.vendor_key
            .map(|name| format!("vendor_key {name}"))
            .unwrap_or_default()
    }
}
