//! The store in the test's own process, for cases that no client can cause: wrong clocks, copies
//! taken at an exact moment.

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

/// A journal with its store.
pub struct Node {
    pub journal: Arc<dyn Journal>,
    pub store: Arc<Store>,
    /// Stops the writer. The directory is unlocked once the other fields are dropped.
    pub stop: Box<dyn FnOnce()>,
}

/// A node with a local journal, as the broker builds it.
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

/// A callback for veo, received at a given time, ready to be appended.
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

/// All records of the log, in order.
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
