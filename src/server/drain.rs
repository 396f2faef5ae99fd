//! Taking the broker down: not ready, no new callbacks, finish commits, tell every stream, close the store, in that order, and
//! all of it before a deadline, because a dead peer can hold a graceful shutdown up for ever.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{Listeners, Server, grpc};

/// How long connections may take to close once their streams have ended.
const CLOSING: Duration = Duration::from_secs(1);
/// Shares of the drain time, in quarters from its beginning, after which a step gives up: a request that is never sent to its
/// end must not take the streams' goodbye, nor a stream that is never read the last commits.
const REQUESTS_QUARTERS: u32 = 2;
const STREAMS_QUARTERS: u32 = 3;
/// When no stream has ended for so long, those that are left are not being read, and would not end at all.
const STALLED: Duration = Duration::from_secs(3);
/// How often the number of open streams is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Takes everything down. Who connects meanwhile is refused, or, if this is `to_start_anew`, waits for the listeners
/// that are given back.
pub(super) async fn drain(
    server: Server,
    drain_timeout: Duration,
    to_start_anew: bool,
) -> Option<Listeners> {
    let Server {
        listeners,
        sources,
        ingest,
        appender,
        status,
        mut health,
        writer,
        mut tasks,
        ..
    } = server;
    let listeners = to_start_anew.then_some(listeners);
    let started = Instant::now();
    let deadline = started + drain_timeout;
    let by_quarter = |quarters| started + drain_timeout / 4 * quarters;
    let subscriptions = sources.registry.len();
    tracing::info!(
        subscriptions,
        drain_timeout_seconds = drain_timeout.as_secs_f64(),
        "draining"
    );

    status.drain();
    grpc::set_health(&health, tonic_health::ServingStatus::NotServing).await;
    ingest.drain();
    server.stop_ingest.cancel();
    // The ingest listener ends when its last request is answered, which is when its commit is.
    let ingest_done = timeout_at(by_quarter(REQUESTS_QUARTERS), tasks.join_next())
        .await
        .is_ok();

    sources.hub.close();
    tracing::info!(subscriptions = sources.registry.len(), "ending streams");
    let mut left = sources.registry.len();
    let mut give_up = Instant::now() + STALLED;
    while left > 0 && Instant::now() < give_up.min(by_quarter(STREAMS_QUARTERS)) {
        sleep(POLL).await;
        let now_left = sources.registry.len();
        if now_left < left {
            (left, give_up) = (now_left, Instant::now() + STALLED);
        }
    }
    let cut_off = sources.registry.len();
    server.stop_grpc.cancel();
    grpc::end_health_watches(&mut health).await;
    let closing = deadline.min(Instant::now() + CLOSING);
    let _ = timeout_at(closing, tasks.join_next()).await.is_ok(); // what has not closed by then is cut off

    // Behind everything that was sent before; nothing is sent any more.
    let store = Arc::clone(&sources.store);
    let stopped = tokio::task::spawn_blocking(move || {
        appender.stop();
        let _ = writer.join().is_ok(); // a panic has ended the process
        store.close();
    });
    let committed = timeout_at(deadline, stopped).await.is_ok();
    server.stop_admin.cancel();
    let others = async { while tasks.join_next().await.is_some() {} };
    let _ = timeout_at(deadline.min(Instant::now() + CLOSING), others)
        .await
        .is_ok();
    // Behind the calls that were cut off, which have records, too.
    let _ = timeout_at(deadline.max(Instant::now() + CLOSING), server.audit.flush())
        .await
        .is_ok();
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
    listeners
}
