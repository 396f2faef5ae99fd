//! The operators' listener: is it alive, is it ready, which version, and what it counts.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

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
use tokio::time::timeout;

use super::liveness::Liveness;
use crate::{
    journal::Journal,
    rpc::Answers,
    store::Health,
    subscription::{Listed, Sources},
    web,
};

/// How long the commit path may take to answer a probe before the broker counts as not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a refused name is logged.
const COMPLAINT: Duration = Duration::from_secs(60);

const INDEX: &str = "blobcast, for operators\n\n\
    /livez    200 while the threads that serve do so; never touches the store\n\
    /readyz   200 while callbacks become durable; commits a mark to find out\n\
    /metrics  Prometheus text format\n\
    /version  what runs here\n";

/// What the routes look at.
pub(super) struct Status {
    sources: Arc<Sources>,
    answers: Arc<Answers>,
    journal: Arc<dyn Journal>,
    liveness: Arc<Liveness>,
    draining: AtomicBool,
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status").field("draining", &self.draining).finish_non_exhaustive()
    }
}

impl Status {
    pub(super) fn new(
        sources: &Arc<Sources>,
        answers: &Arc<Answers>,
        journal: Arc<dyn Journal>,
        liveness: &Arc<Liveness>,
    ) -> Self {
        let (sources, answers, liveness) = (Arc::clone(sources), Arc::clone(answers), Arc::clone(liveness));
        Self { sources, answers, journal, liveness, draining: AtomicBool::new(false) }
    }

    /// Not ready from now on.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    async fn problem(&self) -> Option<String> {
        if self.draining.load(Ordering::Acquire) {
            return Some("draining".to_owned());
        }
        match timeout(PROBE_TIMEOUT, self.journal.probe()).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(_)) => Some("the store is closed".to_owned()),
            Err(_) => Some(format!("the commit path has not answered for {} s", PROBE_TIMEOUT.as_secs())),
        }
    }

    /// Sets the gauges that mirror a state.
    fn refresh(&self) {
        let Sources { store, hub, registry, metrics, .. } = &*self.sources;
        let summary = store.summary();
        metrics.log_events.set(signed(summary.event_count));
        metrics.log_bytes.set(signed(summary.event_bytes));
        metrics.quarantine_callbacks.set(signed(summary.quarantine_count));
        metrics.quarantine_bytes.set(signed(summary.quarantine_bytes));
        let oldest = (summary.event_count > 0).then(|| store.get(store.first_available()).ok().flatten()).flatten();
        metrics.log_oldest_timestamp_seconds.set(oldest.map_or(0, |record| record.received_at_micros() / 1_000_000));
        if let Ok((free_bytes, total_bytes)) = store.disk_bytes() {
            metrics.disk_free_bytes.set(signed(free_bytes));
            metrics.disk_total_bytes.set(signed(total_bytes));
        }
        metrics.clock_difference_seconds.set(store.clock().difference_micros() / 1_000_000);
        metrics.store_writable.set(i64::from(store.health() == Health::Writable));
        let ring = hub.ring_size();
        metrics.ring_events.set(signed(ring.events as u64));
        metrics.ring_bytes.set(signed(ring.bytes as u64));
        let memory = &self.sources.memory;
        metrics.reading_bytes.set(signed(memory.reading.lent() as u64));
        metrics.reads_waiting.set(signed(memory.reading.waiting() as u64));
        metrics.sending_bytes.set(signed(memory.transit.held() as u64));
        metrics.answer_bytes.set(signed(self.answers.bytes_held() as u64));
        metrics.backups.set(signed(self.answers.backups() as u64));
        let head = hub.head();
        let lag = |listed: &Listed| head.0.saturating_sub(listed.position.0);
        let lag_max = registry.list(hub, 0, usize::MAX).iter().map(lag).max().unwrap_or_default();
        metrics.lag_events_max.set(signed(lag_max));
    }
}

/// By which names the listener may be asked.
#[derive(Debug)]
pub(super) struct Door {
    /// Where it listens.
    pub port: u16,
    /// Names besides addresses and `localhost`.
    pub hosts: Vec<String>,
    pub refused: IntCounterVec,
    /// When a refused name was logged last.
    pub told: Mutex<Option<Instant>>,
}

impl Door {
    /// Names what was asked for in the log, now and then: Prometheus cannot count its own refusals.
    fn tell(&self, request: &Request) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= COMPLAINT) {
            *told = Some(Instant::now());
            let name = web::authorities(request).flatten().find(|name| !web::is_ours(name, self.port, &self.hosts));
            tracing::warn!(
                ?name,
                "refused a request to the admin listener by a name that is not known: add the name to admin.hosts and restart, \
                 or use an IP address"
            );
        }
    }
}

/// Refuses what a web page makes its visitor's browser ask: metrics and state are for operators, and `/readyz` writes.
async fn guarded(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let refuse = |cause, answer: (StatusCode, String)| {
        door.refused.with_label_values(&[cause]).inc();
        answer.into_response()
    };
    // Without any name it was no browser that asked.
    let is_ours = |name: Option<&str>| name.is_some_and(|name| web::is_ours(name, door.port, &door.hosts));
    if !web::authorities(&request).all(is_ours) {
        let message = format!(
            "this listener answers to IP addresses and to localhost:{}: add other names to admin.hosts and restart\n",
            door.port
        );
        door.tell(&request);
        return refuse("host", (StatusCode::MISDIRECTED_REQUEST, message));
    }
    if web::is_foreign(&request, None, &door.hosts) && !web::is_navigation(request.headers()) {
        return refuse(
            "foreign_origin",
            (StatusCode::FORBIDDEN, "a web page of another site has asked this\n".to_owned()),
        );
    }
    next.run(request).await
}

pub(super) fn router(status: &Arc<Status>, door: Door) -> Router {
    Router::new()
        .route("/", get(INDEX))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .fallback((StatusCode::NOT_FOUND, INDEX))
        .layer(from_fn_with_state(Arc::new(door), guarded))
        .with_state(Arc::clone(status))
}

async fn livez(State(status): State<Arc<Status>>) -> Response {
    match status.liveness.problem().await {
        None => "ok\n".into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("not alive: {problem}\n")).into_response(),
    }
}

async fn readyz(State(status): State<Arc<Status>>) -> Response {
    match status.problem().await {
        None => "ready\n".into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {problem}\n")).into_response(),
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    // Off the async threads: it reads the store, and looks at every subscription.
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
        "epoch": status.sources.store.epoch().to_string(),
        "head": status.sources.store.cursor(status.sources.store.head()).to_string(),
    });
    ([(header::CONTENT_TYPE, "application/json")], format!("{version}\n")).into_response()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
