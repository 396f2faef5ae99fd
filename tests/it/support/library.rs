//! The store in the test's own process, for cases that no client can cause: wrong clocks, copies
//! taken at an exact moment.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use blobcast::{
    callback::{Callback, Corrections},
    cluster::{Author, Beginning, Limits},
    event::{Filter, Record, Verification},
    journal::{
        Journal, Local,
        jetstream::{Common, Driver, Parts, SayCommon, Times},
    },
    metrics::Metrics,
    nats::{Nats, Settings, Sync},
    store::{Draft, OpenError, ReadLimits, Replica, Retention, Store, writer},
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{PATIENCE, cluster::shared_nats, nats::nats_server};

/// A journal with its store.
pub struct Node {
    pub journal: Arc<dyn Journal>,
    pub store: Arc<Store>,
    /// Stops the writer. The directory is unlocked once the other fields are dropped.
    pub stop: Box<dyn FnOnce() + Send>,
}

const RETENTION: Retention = Retention {
    event_age_max: Duration::from_secs(7 * 24 * 3600),
    event_bytes_max: u64::MAX,
    segment_age_max: Duration::MAX,
    quarantine_age_max: Duration::from_secs(7 * 24 * 3600),
    quarantine_bytes_max: u64::MAX,
    quarantine_count_max: u64::MAX,
    disk_free_min_percent: 0,
};

/// A node with a local journal, as the broker builds it.
pub fn node(path: &Path) -> Node {
    let store = open(path);
    let published = |_: &[Record]| {};
    let (appender, writer) = writer(
        Arc::clone(&store),
        RETENTION,
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

/// How a node of a cluster is made, at a NATS server of this process; `None` if there is none. Each directory has a cluster of its own.
pub fn jetstream() -> Option<fn(&Path) -> Node> {
    nats_server()?;
    Some(jetstream_node)
}

/// A node with a replicated journal, as the broker builds it.
fn jetstream_node(path: &Path) -> Node {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Runtime::new().unwrap());
    let path = path.to_owned();
    // Not on the test's own runtime, which must not be blocked.
    thread::spawn(move || runtime.block_on(join(&path)))
        .join()
        .unwrap()
}

async fn join(path: &Path) -> Node {
    let (publish_timeout, forward_timeout) = (Duration::from_secs(2), Duration::from_secs(1));
    let name = path.file_name().unwrap().to_string_lossy();
    let message_bytes_max = 1024 * 1024;
    let settings = Settings {
        servers: vec![shared_nats()],
        name: name.chars().filter(char::is_ascii_alphanumeric).collect(),
        node: "a".into(),
        replicas: 1,
        create: true,
        user: String::new(),
        password_file: None,
        tls_ca_file: None,
        tls_certificate_file: None,
        tls_key_file: None,
        monitoring_urls: vec![],
        sync: Sync::Off,
        message_bytes_max,
        stream_bytes_max: 64 * 1024 * 1024,
        publish_timeout,
        forward_timeout,
    };
    let mut nats = Nats::connect(settings).await.unwrap();
    let stream = nats.stream().await.unwrap();

    Store::begin_behind(path, false, &Beginning::whole(stream.id, stream.epoch)).unwrap();
    let store = open(path);
    let published = |_: &[Record]| {};
    let metrics = Arc::new(Metrics::default());
    let (appender, writer) = writer(
        Arc::clone(&store),
        RETENTION,
        published,
        Arc::clone(&metrics),
    );
    let (me, limits) = (
        Author(uuid::Uuid::new_v4().as_u128()),
        Limits {
            drafts_max: 512,
            bytes_max: 768 * 1024,
        },
    );
    let parts = Parts {
        me,
        node: "a".into(),
        replica: Replica::new(writer, &appender, me, "a".into(), limits),
        limits,
        message_bytes_max,
        times: Times {
            publish_timeout,
            answer_timeout: PATIENCE,
            read_wait: PATIENCE,
        },
        metrics,
        common: SayCommon::new(|_| Common::default()),
    };
    let driver = Driver::start(parts, nats, stream).await.unwrap();

    let journal = driver.journal(appender.clone());
    let driving = thread::spawn(|| driver.run());
    let stop = move || {
        appender.stop();
        driving.join().unwrap();
    };
    Node {
        journal: Arc::new(journal),
        store,
        stop: Box::new(stop),
    }
}

/// Opens a store. A process that another test starts at this moment has the lock, too, until it is another program.
fn open(path: &Path) -> Arc<Store> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Store::open(path, 1024 * 1024) {
            Err(OpenError::Locked(_)) if Instant::now() < deadline => thread::yield_now(),
            opened => return Arc::new(opened.unwrap()),
        }
    }
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
