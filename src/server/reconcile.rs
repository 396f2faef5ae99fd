//! Builds what asks the vendor for late tasks, if the configuration wants it, and spawns its loop.

use std::{sync::Arc, time::Duration};

use super::{
    tasks::{Stops, Tasks},
    vendor_api::unused_proxy,
};
use crate::{
    config::{Config, UnknownTasks},
    credentials::SharedCredentials,
    journal::Journal,
    reconcile::{Parts, Reconciler, Settings, keys::Keys, vendor_api::VendorApi},
    sampler::Sampler,
    subscription::Sources,
};

/// The log has one line in this time for each cause why the vendor does not answer.
const UNANSWERED_INTERVAL: Duration = Duration::from_secs(60);

/// The reconciler of this broker, if it has an API to ask; without the loop that asks.
pub(super) fn reconciler(
    api: Option<Arc<VendorApi>>,
    config: &Config,
    sources: &Sources,
    journal: &Arc<dyn Journal>,
    credentials: &Arc<SharedCredentials>,
) -> Option<Arc<Reconciler>> {
    let config = &config.reconcile;
    if let Some(unused) = unused_proxy(config) {
        tracing::warn!("{unused}");
    }
    let metrics = &sources.metrics;
    let parts = Parts {
        store: Arc::clone(&sources.store),
        journal: Arc::clone(journal),
        api: api?,
        keys: Keys::new(Arc::clone(metrics)),
        credentials: Arc::clone(credentials),
        waiting: Arc::default(),
        metrics: Arc::clone(metrics),
        log: Sampler::default(),
        unanswered: Sampler::every(UNANSWERED_INTERVAL),
    };
    let settings = Settings {
        checks_per_minute_max: u32::try_from(config.checks_per_minute_max).unwrap_or(u32::MAX),
        give_up_after: config.give_up_after,
        expect_within: config.expect_within.clone(),
        publishes_unknown_tasks: config.unknown_tasks == UnknownTasks::Publish,
        outage_min: config.outage_min,
    };
    Some(Arc::new(Reconciler::new(parts, settings)))
}

/// Spawns the loop that asks. It asks until callbacks are refused, and its task ends with everything that runs beside the listeners.
pub(super) fn spawn(tasks: &mut Tasks, reconciler: Arc<Reconciler>, stops: &Stops) {
    let (drains, stop) = (stops.ingest.clone(), stops.admin.clone());
    tasks.spawn("the reconciler", async move {
        reconciler.run(drains).await;
        stop.cancelled().await;
    });
}
