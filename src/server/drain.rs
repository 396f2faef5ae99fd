//! Takes the broker down: it is not ready, takes no new callbacks, finishes commits, ends every stream, closes the store, in this
//! order. All of it ends before a deadline, because a dead peer can hold up a graceful shutdown for ever.

use std::{sync::Arc, thread, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    grpc,
    listeners::Listeners,
    operations,
    tasks::{Stops, Tasks},
};
use crate::{
    audit::Audit,
    ingest::Ingest,
    store::Appender,
    subscription::{Registry, Sources},
};

/// How long connections may take to close once their streams have ended.
const CLOSING: Duration = Duration::from_secs(1);
/// Shares of the drain time, in quarters from its beginning, after which a step gives up. A request that never arrives whole must
/// not cost the streams their last message, nor a stream that is never read the last commits.
const REQUESTS_QUARTERS: u32 = 2;
const STREAMS_QUARTERS: u32 = 3;
/// When no stream has ended for so long, the streams that are left are not being read, and would not end at all.
const STALLED: Duration = Duration::from_secs(3);
/// How often the number of open streams is looked at.
const POLL: Duration = Duration::from_millis(10);

/// The parts of the broker that a drain takes down.
#[derive(Debug)]
pub(super) struct Drain {
    pub listeners: Listeners,
    pub sources: Arc<Sources>,
    pub ingest: Arc<Ingest>,
    pub appender: Appender,
    pub status: Arc<operations::Status>,
    pub health: HealthReporter,
    pub writer: thread::JoinHandle<()>,
    pub audit: Arc<Audit>,
    pub stops: Stops,
}

/// When each step of a drain gives up.
struct Deadlines {
    started: Instant,
    drain_timeout: Duration,
}

impl Deadlines {
    fn quarter(&self, quarters: u32) -> Instant {
        self.started + self.drain_timeout / 4 * quarters
    }

    fn last(&self) -> Instant {
        self.started + self.drain_timeout
    }

    /// For connections that have nothing left to do.
    fn closing(&self) -> Instant {
        self.last().min(Instant::now() + CLOSING)
    }
}

/// Takes everything down. New connections are refused meanwhile; if this is `to_start_anew`, they wait in the kernel's queue of
/// the listeners that are given back.
pub(super) async fn drain(
    mut parts: Drain,
    mut tasks: Tasks,
    drain_timeout: Duration,
    to_start_anew: bool,
) -> Option<Listeners> {
    let deadlines = Deadlines {
        started: Instant::now(),
        drain_timeout,
    };
    tracing::info!(
        subscriptions = parts.sources.registry.len(),
        drain_timeout_seconds = drain_timeout.as_secs_f64(),
        "draining"
    );

    // Sockets are closed with the listeners' tasks, unless they are handed on.
    let listeners = to_start_anew.then_some(parts.listeners);

    // Not ready, and no new callbacks. The ingest listener ends when its last request is answered, which is when that is committed.
    parts.status.drain();
    grpc::set_health(&parts.health, ServingStatus::NotServing).await;
    parts.ingest.drain();
    parts.stops.ingest.cancel();
    let ingest_done = tasks
        .one_ends_before(deadlines.quarter(REQUESTS_QUARTERS))
        .await;

    // Streams: each ends with the cursor to resume from.
    parts.sources.hub.close();
    let cut_off = end_streams(&parts.sources.registry, deadlines.quarter(STREAMS_QUARTERS)).await;
    parts.stops.grpc.cancel();
    grpc::end_health_watches(&mut parts.health).await;
    tasks.one_ends_before(deadlines.closing()).await; // a connection that is still open then is cut off

    let committed = close_store(
        parts.appender,
        parts.writer,
        &parts.sources,
        deadlines.last(),
    )
    .await;

    parts.stops.admin.cancel();
    tasks.all_end_before(deadlines.closing()).await;

    // Last: calls that were cut off have records, too.
    let flushed_before = deadlines.last().max(Instant::now() + CLOSING);
    let _ = timeout_at(flushed_before, parts.audit.flush())
        .await
        .is_ok();

    log_drained(deadlines.started, ingest_done, committed, cut_off);
    listeners
}

/// Waits until all streams have ended, or until those that are left are not being read. Returns how many are left.
async fn end_streams(registry: &Registry, deadline: Instant) -> usize {
    let mut left = registry.len();
    tracing::info!(subscriptions = left, "ending streams");

    let mut give_up = Instant::now() + STALLED;
    while left > 0 && Instant::now() < give_up.min(deadline) {
        sleep(POLL).await;
        let now_left = registry.len();
        if now_left < left {
            (left, give_up) = (now_left, Instant::now() + STALLED);
        }
    }
    registry.len()
}

/// Lets the writer commit what was sent to it, and closes the store. Returns whether that was done before the deadline.
async fn close_store(
    appender: Appender,
    writer: thread::JoinHandle<()>,
    sources: &Sources,
    deadline: Instant,
) -> bool {
    let store = Arc::clone(&sources.store);
    let stopped = tokio::task::spawn_blocking(move || {
        // The stop is queued behind everything that was sent before, and nothing is sent any more.
        appender.stop();
        let _ = writer.join().is_ok(); // a panic has ended the process
        store.close();
    });
    timeout_at(deadline, stopped).await.is_ok()
}

fn log_drained(started: Instant, ingest_done: bool, committed: bool, cut_off: usize) {
    let seconds = started.elapsed().as_secs_f64();
    if ingest_done && committed && cut_off == 0 {
        tracing::info!(seconds, "drained");
    } else {
        tracing::warn!(
            seconds,
            cut_off,
            ingest_done,
            committed,
            "the deadline has cut the drain short; clients resume by cursor"
        );
    }
}
