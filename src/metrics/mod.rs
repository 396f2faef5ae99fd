//! Metrics. Every metric counts exactly what its name says, with the unit in the name.
//!
//! Counters and histograms are bumped where the thing happens. Gauges that mirror a state (events kept, lag, …) are set by
//! the admin listener when it is scraped. Knows nothing of the rest of the crate.

mod labels;
mod process;
mod table;

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use jiff::Timestamp;
use parking_lot::MutexGuard;
use prometheus::{
    Encoder, IntCounter, IntGaugeVec, TextEncoder, core::Collector, proto::MetricFamily,
};

#[cfg(test)]
pub(crate) use labels::{BACKUP_RESULTS, READ_AGAIN, REFUSALS};
pub use labels::{CheckOutcome, NAMED_PRODUCTS, OTHER_PRODUCT, Outcome, SpanOutcome};
pub use table::{Described, Metrics};

/// The commit that the binary was built from, as its builder said; empty if nobody did. Not asked of git: the binary would be
/// built anew for each commit.
pub const REVISION: &str = match option_env!("BLOBCAST_REVISION") {
    Some(revision) => revision,
    None => "",
};

/// Most products that a counter of callbacks names, ten times what the vendor has; any further one is `other`. Senders decide which
/// products there are.
const NAMED_PRODUCTS_MAX: usize = 64;

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self::registered();
        metrics
            .build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION])
            .set(1);
        metrics.make_series();
        metrics
    }
}

impl Metrics {
    /// Has a product's counters there before anything of it is counted.
    pub fn name_product(&self, product: &str) {
        self.completed_without_output_of(product);
    }

    /// Counts a new event that says its task is completed and has no output.
    pub fn count_completed_without_output(&self, product: &str) {
        self.completed_without_output_of(product).inc();
    }

    /// Counts a callback that was not kept. Anybody may bring any product, so only those that are named already are named here.
    pub fn count_refused(&self, cause: &str, kind: &str, name: &str, product: &str) {
        let product = self.label_of(product);
        self.callbacks_refused
            .with_label_values(&[cause, kind, name, product])
            .inc();
    }

    /// A product as metrics name it: there are only so many, whatever strangers name.
    pub fn label_of<'a>(&self, product: &'a str) -> &'a str {
        let is_named = product.is_empty() || self.named_products().contains(product);
        if is_named { product } else { "other" }
    }

    fn named_products(&self) -> MutexGuard<'_, HashSet<String>> {
        self.named_products.lock()
    }

    fn completed_without_output_of(&self, product: &str) -> IntCounter {
        let mut named = self.named_products();
        let is_named = named.contains(product)
            || named.len() < NAMED_PRODUCTS_MAX && named.insert(product.to_owned());
        self.completed_without_output
            .with_label_values(&[if is_named { product } else { "other" }])
    }

    /// Counts callbacks of tasks of which something was erased.
    pub fn callbacks_after_erasure(&self, new: u64, duplicates: u64) {
        // Almost always none, and a label costs a look-up.
        for (outcome, count) in [("new", new), ("duplicate", duplicates)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
        {
            self.after_erasure
                .with_label_values(&[outcome])
                .inc_by(count);
        }
    }

    /// Notes how the start found its log.
    pub fn started(&self, found: &str, version_before: &str, epoch: &str) {
        self.start_info
            .with_label_values(&[found, env!("CARGO_PKG_VERSION"), version_before, epoch])
            .set(1);
    }

    /// Notes that a credential was accepted, by which of its secrets.
    pub fn credential_used(&self, kind: &str, name: &str, secret: &str, now: Timestamp) {
        self.credential_last_used
            .with_label_values(&[kind, name, secret])
            .set(now.as_second());
    }

    /// Requests to the public listener since the start: those that were kept, and those that were refused.
    pub(crate) fn callback_totals(&self) -> (u64, u64) {
        let count = |outcome: &Outcome| {
            let counter = self.callbacks.with_label_values(&[outcome.as_str()]);
            counter.get()
        };
        let is_kept = |outcome: &&Outcome| {
            let kept = [Outcome::Accepted, Outcome::Duplicate, Outcome::Quarantined];
            kept.contains(outcome)
        };
        let (kept, refused): (Vec<_>, Vec<_>) = Outcome::ALL.iter().partition(is_kept);
        let sum = |outcomes: Vec<&Outcome>| outcomes.into_iter().map(count).sum::<u64>();
        (sum(kept), sum(refused))
    }

    /// Until when the certificates are good, by listener, in seconds since 1970.
    pub(crate) fn certificate_expiries(&self) -> Vec<(String, i64)> {
        let mut expiries: Vec<_> = values(&self.certificate_expiry)
            .into_iter()
            .filter(|(_, expires)| *expires > 0)
            .map(|(mut labels, expires)| (labels.remove("listener").unwrap_or_default(), expires))
            .collect();
        expiries.sort();
        expiries
    }

    /// When credentials were last accepted since the start, by kind, name and secret, in seconds since 1970.
    pub(crate) fn credential_uses(&self) -> HashMap<[String; 3], i64> {
        let uses = values(&self.credential_last_used);
        let of = |(labels, value): (HashMap<String, String>, i64)| {
            let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
            ([label("kind"), label("name"), label("secret")], value)
        };
        uses.into_iter().map(of).collect()
    }

    /// Tells of exactly these credentials, by kind and name, when they expire.
    pub fn set_credential_expiries(&self, expiries: Vec<(&'static str, Arc<str>, Timestamp)>) {
        let mut expiring = self.expiring.lock();
        let gone = mem::take(&mut *expiring);

        for (kind, name, expires) in expiries {
            self.credential_expiry
                .with_label_values(&[kind, &*name])
                .set(expires.as_second());
            expiring.insert((kind, name));
        }

        for (kind, name) in gone.difference(&expiring) {
            let _ = self
                .credential_expiry
                .remove_label_values(&[*kind, &**name])
                .is_ok(); // it was there
        }
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory cannot fail");
        text
    }
}

/// The values of a gauge by their labels. Looking a label up would make it a series.
fn values(gauges: &IntGaugeVec) -> Vec<(HashMap<String, String>, i64)> {
    let families = gauges.collect();
    let metrics = families.iter().flat_map(MetricFamily::get_metric);
    metrics
        .map(|metric| {
            let labels = metric.get_label().iter();
            let labels = labels.map(|label| (label.name().to_owned(), label.value().to_owned()));
            (labels.collect(), metric.get_gauge().get_value() as i64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_can_be_registered_and_rendered() {
        let metrics = Metrics::default();
        metrics.callbacks.with_label_values(&["accepted"]).inc();
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains("blobcast_callbacks_total{outcome=\"accepted\"} 1"));
    }
}
