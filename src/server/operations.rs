//! The admin listener, for operators: liveness, readiness, version and metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::IntCounterVec;
use serde_json::json;

use super::{liveness::Liveness, numbers::signed};
use crate::{
    journal::jetstream::ClusterState,
    metrics::REVISION,
    printable::printable_beginning,
    rpc::{Answers, Readiness},
    sampler::Sampler,
    store::Health,
    subscription::{ListedSubscription, Sources, SubscriptionState},
    web,
};

/// How often a refusal is logged, for each cause.
pub(super) const COMPLAINT: Duration = Duration::from_secs(60);

const INDEX: &str = "blobcast, for operators\n\n\
    /livez          200 while the threads that serve do so; never touches the store\n\
    /readyz         200 while both of these are\n\
    /readyz/ingest  200 while callbacks become durable; commits a mark to find out\n\
    /readyz/grpc    200 while events can be read; reads the newest to find out\n\
    /metrics        Prometheus text format\n\
    /version        what runs here\n\
    /ui/            the console\n";

/// The state that the routes show.
pub(super) struct Status {
    sources: Arc<Sources>,
    answers: Arc<Answers>,
    readiness: Arc<Readiness>,
    /// Of a node of a cluster.
    cluster: Option<Arc<ClusterState>>,
    liveness: Arc<Liveness>,
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status")
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}

impl Status {
    pub(super) fn new(
        sources: &Arc<Sources>,
        answers: &Arc<Answers>,
        readiness: Arc<Readiness>,
        cluster: Option<Arc<ClusterState>>,
        liveness: &Arc<Liveness>,
    ) -> Self {
        Self {
            sources: Arc::clone(sources),
            answers: Arc::clone(answers),
            readiness,
            cluster,
            liveness: Arc::clone(liveness),
        }
    }

    /// Not ready from now on.
    pub(super) fn drain(&self) {
        self.readiness.drain();
    }

    /// Sets the gauges that mirror a state.
    fn refresh(&self) {
        self.refresh_store();
        self.refresh_memory();
        self.refresh_subscriptions();
        if let Some(cluster) = &self.cluster {
            self.refresh_cluster(cluster);
        }
    }

    fn refresh_cluster(&self, cluster: &ClusterState) {
        let Sources { store, metrics, .. } = &*self.sources;
        let overview = cluster.overview();
        let problem = cluster.problem_of_callbacks(&store.health());
        for (gauge, is_so) in [
            (
                &metrics.cluster_ready,
                !self.readiness.is_draining() && problem.is_none(),
            ),
            (&metrics.cluster_connected, cluster.is_connected()),
            (&metrics.cluster_is_writer, cluster.is_writer()),
            (&metrics.cluster_in_doubt, cluster.is_in_doubt()),
            (&metrics.cluster_hole, cluster.is_stopped()),
        ] {
            gauge.set(i64::from(is_so));
        }
        for (what, is_so) in cluster.mismatches() {
            let mismatch = metrics.cluster_mismatch.with_label_values(&[what]);
            mismatch.set(i64::from(is_so));
        }
        for (gauge, value) in [
            (&metrics.cluster_applied_place, store.head().0),
            (&metrics.cluster_stream_lag_frames, overview.behind),
            (
                &metrics.cluster_stream_lag_seconds,
                cluster.lag_time().as_secs(),
            ),
            (&metrics.cluster_nodes, overview.nodes.len() as u64),
            (
                &metrics.cluster_clock_skew_seconds,
                cluster.clock_skew().as_secs(),
            ),
            (&metrics.cluster_stream_bytes, overview.stream_bytes),
            (&metrics.cluster_stream_bytes_max, overview.stream_bytes_max),
        ] {
            gauge.set(signed(value));
        }
    }

    fn refresh_store(&self) {
        let Sources { store, metrics, .. } = &*self.sources;
        let summary = store.summary();
        metrics.log_events.set(signed(summary.event_count));
        metrics.log_bytes.set(signed(summary.event_bytes));
        metrics
            .quarantine_callbacks
            .set(signed(summary.quarantine_count));
        metrics
            .quarantine_bytes
            .set(signed(summary.quarantine_bytes));

        let oldest = (summary.event_count > 0)
            .then(|| store.get(store.first_available()).ok().flatten())
            .flatten();
        metrics
            .log_oldest_timestamp_seconds
            .set(oldest.map_or(0, |record| record.received_at_micros() / 1_000_000));

        if let Ok((free_bytes, total_bytes)) = store.disk_bytes() {
            metrics.disk_free_bytes.set(signed(free_bytes));
            metrics.disk_total_bytes.set(signed(total_bytes));
        }
        metrics
            .clock_difference_seconds
            .set(store.clock().difference_micros() / 1_000_000);
        metrics
            .store_writable
            .set(i64::from(store.health() == Health::Writable));

        metrics.backups.set(signed(self.answers.backups() as u64));
        let (taken, failed_at) = store.backup_results().last();
        metrics.backup_last_success.set(taken.at);
        metrics.backup_last_seconds.set(signed(taken.seconds));
        metrics.backup_last_bytes.set(signed(taken.bytes));
        metrics.backup_last_failure.set(failed_at);
    }

    fn refresh_memory(&self) {
        let Sources {
            hub,
            metrics,
            memory,
            ..
        } = &*self.sources;
        let ring = hub.ring_size();
        metrics.ring_events.set(signed(ring.events as u64));
        metrics.ring_bytes.set(signed(ring.bytes as u64));

        metrics
            .reading_bytes
            .set(signed(memory.reading.lent() as u64));
        metrics
            .reads_waiting
            .set(signed(memory.reading.waiting() as u64));
        metrics
            .sending_bytes
            .set(signed(memory.transit.held() as u64));
        metrics
            .answer_bytes
            .set(signed(self.answers.bytes_held() as u64));
    }

    fn refresh_subscriptions(&self) {
        let Sources {
            hub,
            registry,
            metrics,
            ..
        } = &*self.sources;
        let head = hub.head();
        let lag = |listed: &ListedSubscription| head.0.saturating_sub(listed.position.0);
        let listed = registry.list(hub, 0, usize::MAX);
        metrics
            .lag_events_max
            .set(signed(listed.iter().map(lag).max().unwrap_or_default()));

        let stalled = listed
            .iter()
            .filter(|listed| listed.state == SubscriptionState::Stalled)
            .count();
        metrics.subscriptions_stalled.set(signed(stalled as u64));
    }
}

/// The names by which the listener may be asked, and the count of requests that are refused for another one.
#[derive(Debug)]
pub(super) struct Door {
    /// Where it listens.
    pub port: u16,
    /// Names besides IP addresses and `localhost`.
    pub hosts: Vec<String>,
    pub refused: IntCounterVec,
    /// Limits the log's lines about them.
    pub log: Sampler,
}

impl Door {
    /// Refuses a request. Some are logged, because Prometheus cannot scrape a count of its own refusals.
    fn refuse(
        &self,
        cause: &'static str,
        name: Option<&str>,
        why: &str,
        answer: (StatusCode, String),
    ) -> Response {
        self.refused.with_label_values(&[cause]).inc();
        if let Some(unlogged) = self.log.due(cause) {
            let name = name.map(printable_beginning);
            tracing::warn!(
                cause,
                name,
                unlogged,
                "refused a request to the admin listener {why}"
            );
        }

        answer.into_response()
    }
}

/// Refuses requests that a web page makes its visitor's browser send: metrics and state are for operators, and `/readyz` writes.
async fn guarded(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    // A request without any name is not a browser's.
    let is_ours =
        |name: Option<&str>| name.is_some_and(|name| web::is_ours(name, door.port, &door.hosts));
    if !web::authorities(&request).all(is_ours) {
        let message = format!(
            "this listener answers to IP addresses and to localhost:{}: add other names to admin.hosts and restart\n",
            door.port
        );
        let name = web::authorities(&request)
            .flatten()
            .find(|name| !is_ours(Some(name)));
        let why = "by a name that is not known: add the name to admin.hosts and restart, or use an IP address";
        return door.refuse(
            "host",
            name,
            why,
            (StatusCode::MISDIRECTED_REQUEST, message),
        );
    }

    if web::is_foreign(&request, None, &door.hosts) && !web::is_navigation(request.headers()) {
        let message = "a web page of another site has asked this\n".to_owned();
        let origin = request
            .headers()
            .get(header::ORIGIN)
            .and_then(|origin| origin.to_str().ok());
        let why = "that a web page of another site has made: look at who can reach the listener";
        return door.refuse(
            "foreign_origin",
            origin,
            why,
            (StatusCode::FORBIDDEN, message),
        );
    }
    next.run(request).await
}

pub(super) fn router(status: &Arc<Status>, door: Door, console: Router) -> Router {
    Router::new()
        .route("/", get(INDEX))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/readyz/ingest", get(readyz_ingest))
        .route("/readyz/grpc", get(readyz_grpc))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .fallback((StatusCode::NOT_FOUND, INDEX))
        .with_state(Arc::clone(status))
        .merge(console)
        .layer(from_fn_with_state(Arc::new(door), guarded))
}

async fn livez(State(status): State<Arc<Status>>) -> Response {
    match status.liveness.problem().await {
        None => "ok\n".into_response(),
        Some(problem) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not alive: {problem}\n"),
        )
            .into_response(),
    }
}

async fn readyz(State(status): State<Arc<Status>>) -> Response {
    readiness(status.readiness.problem().await)
}

async fn readyz_ingest(State(status): State<Arc<Status>>) -> Response {
    readiness(status.readiness.problem_of_ingest().await)
}

async fn readyz_grpc(State(status): State<Arc<Status>>) -> Response {
    readiness(status.readiness.problem_of_grpc().await)
}

fn readiness(problem: Option<String>) -> Response {
    match problem {
        None => "ready\n".into_response(),
        Some(problem) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {problem}\n"),
        )
            .into_response(),
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    // Not on the async threads: it reads the store, and visits every subscription.
    let rendered = tokio::task::spawn_blocking(move || {
        status.refresh();
        status.sources.metrics.render()
    });
    match rendered.await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(), // only a runtime that shuts down cancels it
    }
}

async fn version(State(status): State<Arc<Status>>) -> Response {
    let version = json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "epoch": status.sources.store.epoch().to_string(),
        "head": status.sources.store.cursor(status.sources.store.head()).to_string(),
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        format!("{version}\n"),
    )
        .into_response()
}
