//! Waiting is expecting: a call that waits for tasks of one product has them checked when they are late, as long as it waits.

use super::{Context, access::Caller};
use crate::{event::Filter, reconcile};

impl Context {
    /// Notes that a client waits for the tasks of its filter, if that names tasks and exactly one product, and no labels: what the
    /// vendor says carries none that a client chose, so the event would not pass. It has ceased to wait when the result is dropped.
    pub(super) fn waits_for(&self, filter: &Filter, caller: &Caller) -> Option<reconcile::Wait> {
        let waiting = self.reconciler.as_deref()?.waiting();
        let mut products = filter.products.iter();
        let (Some(product), None) = (products.next(), products.next()) else {
            return None;
        };
        if filter.task_ids.is_empty() || !filter.labels.is_empty() {
            return None;
        }

        let client = caller.0.as_ref();
        let name = client.map(|client| &client.name);
        let labels = client.and_then(|client| client.labels.as_ref());
        Some(waiting.wait(product, &filter.task_ids, name, labels))
    }

    /// Whether the vendor is, or will be, asked for a task of the filter: because somebody waits for it, or because it is expected.
    pub(super) fn asks_for(&self, filter: &Filter, waits: Option<&reconcile::Wait>) -> bool {
        let Some(reconciler) = self.reconciler.as_deref() else {
            return false;
        };
        let is_waited_for = waits.is_some_and(reconcile::Wait::has_room);
        let asks = |product, key: Option<&str>| reconciler.key_of(product, key).is_some();
        filter.products.iter().any(|product| {
            let mut open = filter
                .task_ids
                .iter()
                .filter_map(|id| self.sources.store.expectation(product, id));
            (is_waited_for && asks(product, None))
                || open.any(|open| asks(product, open.vendor_key.as_deref()))
        })
    }
}
