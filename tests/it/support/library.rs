//! The store without a process around it, for what no client could bring about: clocks that lie, copies taken at a moment.

use std::{path::Path, sync::Arc, thread, time::Duration};

use blobcast::{
    callback::{Callback, Corrections},
    event::{Filter, Record, Verification},
    journal::{Journal, Local},
    metrics::Metrics,
    store::{Draft, ReadLimits, Retention, Store, writer},
};
use jiff::Timestamp;
use serde_json::Value;

/// A journal with the store that it fills.
pub struct Node {
    pub journal: Arc<dyn Journal>,
    pub store: Arc<Store>,
    /// Ends what runs; the directory is free when the rest is dropped, too.
    pub stop: Box<dyn FnOnce()>,
}

/// A node of its own, as the broker builds it: the store's own commit decides.
pub fn node(path: &Path) -> Node {
    let store = open(path);
    let retention = Retention {
        event_age_max: Duration::from_secs(7 * 24 * 3600),
        event_bytes_max: u64::MAX,
        segment_age_max: Duration::MAX,
        quarantine_age_max: Duration::from_secs(7 * 24 * 3600),
        quarantine_bytes_max: u64::MAX,
        quarantine_count_max: u64::MAX,
        disk_free_min_percent: 0,
    };
    let published = |_: &[Record]| {};
    let (appender, writer) = writer(
        Arc::clone(&store),
        retention,
        published,
        Arc::new(Metrics::default()),
    );
    let writing = thread::spawn(|| writer.run());
    let journal = Arc::new(Local::new(appender.clone()));
    let stop = move || {
        appender.stop();
        writing.join().unwrap();
    };
    Node {
        journal,
        store,
        stop: Box::new(stop),
    }
}

fn open(path: &Path) -> Arc<Store> {
    Arc::new(Store::open(path, 1024 * 1024).unwrap())
}

/// A callback for veo that was received at a time, ready to be appended.
pub fn draft(body: &Value, received_at: Timestamp) -> Draft {
    let callback = Callback {
        near_miss: None,
        product: Some("veo".into()),
        query: String::new(),
        body: body.to_string().into(),
        received_at,
        verification: Verification::Unverified,
        credential: String::new(),
        bound: None,
    };
    callback.draft(&Corrections::default()).unwrap()
}

/// Every record of the log, in its order.
pub fn stored(store: &Store) -> Vec<Record> {
    let limits = ReadLimits {
        records_max: usize::MAX,
        bytes_max: usize::MAX,
        scanned_max: usize::MAX,
        scanned_bytes_max: usize::MAX,
    };
    let after = store.first_available().previous();
    store
        .read_after(after, store.head(), &Filter::default(), limits)
        .unwrap()
        .records
}
