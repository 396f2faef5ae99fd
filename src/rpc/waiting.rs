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
}
