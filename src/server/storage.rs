//! Opens the store and what shares its memory, and starts the writer's threads.

use std::{io, pin::pin, sync::Arc, thread, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Interval, interval};

use super::{error::StartError, numbers::usize_of, resources, systemd};
use crate::{
    cluster::Beginning,
    config::Config,
    event::Record,
    hub::Hub,
    journal::{Journal, Local},
    metrics::Metrics,
    store::{
        Appender, BackupResult, Publish, Retention, Started, Store, Summary, Writer,
        replayed_commits, writer,
    },
    subscription::{Awaited, Memory, Registry, RegistryLimits, Sources, WideReaders},
};

/// Time for a client's answer to a ping over a bad line. A client that takes longer has missed a keepalive, though its connection
/// may live on.
const PONG_TIME: Duration = Duration::from_secs(2);

/// How often a long opening is looked at. Less than a supervisor's watchdog waits.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Opens the store, and makes the hub, the registry and the memory that readers of it share. A new log begins where the stream
/// says, or is one of its own.
pub(super) async fn open(
    config: &Config,
    metrics: &Arc<Metrics>,
    beginning: Option<&Beginning>,
) -> Result<Arc<Sources>, StartError> {
    // Not kept: a reload compares the new configuration with the one that was set.
    let config = &resources::fitted_to_memory(config, metrics);
    let store = open_store(config, beginning).await?;
    log_opened(&store, metrics);
    resources::warn_of_disk(config, store.summary()).await;

    let hub = Hub::new(store.head(), usize_of(config.hub.ring_bytes_max));
    let registry = Registry::new(RegistryLimits {
        subscriptions_max: usize_of(config.grpc.subscriptions_max),
        subscriptions_per_client_max: usize_of(config.grpc.subscriptions_per_client_max),
        task_ids_max: usize_of(config.grpc.task_ids_in_all_max),
        silence_max: config.grpc.keepalive_interval + PONG_TIME.min(config.grpc.keepalive_timeout),
    });
    let memory = Memory::new(
        usize_of(config.grpc.reading_bytes_max),
        usize_of(config.ingest.body_bytes_max),
    );

    Ok(Arc::new(Sources {
        store,
        hub,
        registry,
        metrics: Arc::clone(metrics),
        wide_readers: WideReaders::default(),
        memory,
        awaited: if config.cluster.is_on() {
            Awaited::in_cluster(config.cluster.read_wait)
        } else {
            Awaited::default()
        },
    }))
}

async fn open_store(
    config: &Config,
    beginning: Option<&Beginning>,
) -> Result<Arc<Store>, StartError> {
    let (path, cache_bytes, is_expected) = (
        config.data_dir.clone(),
        config.store.cache_bytes,
        config.log.expect_existing,
    );
    let beginning = beginning.copied();
    let opening = tokio::task::spawn_blocking(move || {
        if let Some(beginning) = &beginning {
            Store::begin_behind(&path, is_expected, beginning)?;
        }
        Store::open_to_serve(&path, cache_bytes, is_expected)
    });
    // An index that is built again may take longer than a start has time.
    let ticks = interval(PROGRESS_INTERVAL);
    let opened = reporting(opening, ticks, replayed_commits, systemd::starts_on).await;
    let store = opened.map_err(|error| StartError::Thread(io::Error::other(error)))??;
    if store.follows_stream() && !config.cluster.is_on() {
        // Its places are given out by the cluster: what is written here alone would name other events.
        let directory = config.data_dir.display();
        return Err(StartError::Cluster(format!(
            "the log in {directory} is that of a node of a cluster: name the NATS servers by --cluster (cluster.servers), or choose \
             another --data-dir"
        )));
    }
    Ok(Arc::new(store))
}

/// Waits for a long work, and reports at each tick that it gets on, if its count has risen.
async fn reporting<T>(
    work: impl Future<Output = T>,
    mut ticks: Interval,
    count: impl Fn() -> u64,
    report: impl Fn(),
) -> T {
    let mut work = pin!(work);
    let mut seen = 0;
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                let now = count();
                if now > seen {
                    seen = now;
                    report();
                }
            }
        }
    }
}

/// Logs and counts what was opened: a log that is new is never a surprise.
fn log_opened(store: &Store, metrics: &Metrics) {
    let Started {
        found,
        version_before,
        cut,
    } = store.started();
    let (found, epoch, version_before) = (
        found.as_str(),
        store.epoch().to_string(),
        version_before.as_deref(),
    );
    metrics.started(found, version_before.unwrap_or_default(), &epoch);

    let Summary {
        event_count: events,
        quarantine_count: quarantined,
        ..
    } = store.summary();
    let version_before = version_before.unwrap_or("none");
    tracing::info!(found, epoch, events, quarantined, version_before, %cut, "log opened");

    for result in store.backup_results().found() {
        metrics
            .backups_finished
            .with_label_values(&[result.as_str()])
            .inc();
        if *result == BackupResult::Interrupted {
            tracing::warn!(
                "a backup was cut off when the last broker ended: it has failed; take another one"
            );
        }
    }
}

/// How long the store keeps events and quarantined callbacks.
pub(super) fn retention(config: &Config) -> Retention {
    Retention {
        event_age_max: config.log.retention_age_max,
        event_bytes_max: config.log.retention_bytes_max,
        segment_age_max: config.log.segment_age(),
        quarantine_age_max: config.quarantine.retention_age_max,
        quarantine_bytes_max: config.quarantine.retention_bytes_max,
        quarantine_count_max: config.quarantine.retention_count_max,
        disk_free_min_percent: config.log.disk_free_min_percent,
    }
}

/// The same, to show it and to change it.
pub(super) fn shared_retention(config: &Config) -> Arc<Mutex<Retention>> {
    Arc::new(Mutex::new(retention(config)))
}

/// What takes the operations that change the log. The thread ends when the appender is stopped, after all that was sent before.
pub(super) struct Writing {
    pub appender: Appender,
    pub thread: thread::JoinHandle<()>,
    pub journal: Arc<dyn Journal>,
}

/// Starts the writer's threads, of a broker that is alone.
pub(super) fn start_writing(
    retention: Retention,
    sources: &Arc<Sources>,
) -> Result<Writing, StartError> {
    let (appender, writer, maintaining) = writer_of(retention, sources)?;
    Ok(Writing {
        thread: spawn_writer(maintaining, || writer.run())?,
        journal: Arc::new(Local::new(appender.clone())),
        appender,
    })
}

/// Makes the writer, and starts its second thread.
pub(super) fn writer_of(
    retention: Retention,
    sources: &Arc<Sources>,
) -> Result<(Appender, Writer<ToHub>, thread::JoinHandle<()>), StartError> {
    let (appender, mut writer) = writer(
        Arc::clone(&sources.store),
        retention,
        ToHub(Arc::clone(sources)),
        Arc::clone(&sources.metrics),
    );
    let maintenance = writer.maintenance();
    let maintaining = thread::Builder::new()
        .name("maintenance".into())
        .spawn(|| maintenance.run())
        .map_err(StartError::Thread)?;
    Ok((appender, writer, maintaining))
}

/// Starts the writer's thread, which ends after its second one.
pub(super) fn spawn_writer(
    maintaining: thread::JoinHandle<()>,
    run: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, StartError> {
    let write = || {
        run();
        let _ = maintaining.join().is_ok(); // a panic has ended the process
    };
    thread::Builder::new()
        .name("writer".into())
        .spawn(write)
        .map_err(StartError::Thread)
}

/// Publishes what the writer has committed to the hub.
pub(super) struct ToHub(Arc<Sources>);

impl Publish for ToHub {
    fn publish(&mut self, records: &[Record]) {
        self.0.hub.publish(records);
        self.0.awaited.rose();
    }

    fn erase(&mut self, erased: &[Record]) {
        self.0.hub.erase(erased);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_long_opening_is_reported_when_it_has_got_on_and_not_while_it_stands_still() {
        let [count, asked, reports] = [const { Cell::new(0) }; 3];
        let add = |cell: &Cell<u64>| cell.set(cell.get() + 1);
        let opening = async {
            for round in 1..=3 {
                add(&count);
                while reports.get() < round {
                    yield_now().await;
                }
            }
            let enough = asked.get() + 5;
            while asked.get() < enough {
                yield_now().await;
            }
        };
        let counted = || {
            add(&asked);
            count.get()
        };
        let ticks = interval(Duration::from_millis(1));
        reporting(opening, ticks, counted, || add(&reports)).await;
        assert_eq!(reports.get(), 3);
    }
}
