//! A simulator of the vendor: it sends callbacks the way the vendor does, and in worse ways.
//!
//! A [`Plan`] says how callbacks are mistreated: repeated, reordered, contradicted, cut off, retried. It turns them into
//! [`VendorDelivery`]s, purely and repeatably. A [`Vendor`] sends those over HTTP and returns the acknowledgements. `blobcast trigger` and
//! the tests use it. Never sends an acknowledged delivery again, and knows only the URL of the broker.
//!
//! [`server`] is the vendor's other side: it accepts tasks, ends them, sends their callbacks, and answers what has become of them.

mod bodies;
mod plan;
mod send;
pub mod server;
mod url;

#[cfg(test)]
mod tests;

pub use plan::{ATTEMPTS_MAX, Attempt, Plan, VendorCallback, VendorDelivery, retry_gaps};
pub use send::{Acknowledgement, Answer, Connector, DeliveryOutcome, Vendor, connector};
pub use url::{callback_url, labels_query, with_labels};
