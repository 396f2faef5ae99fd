//! What the broker counts. Every metric counts exactly what its name says, with the unit in the name.
//!
//! Counters and histograms are bumped where the thing happens; gauges that mirror a state (events kept, lag, …) are set by
//! the admin listener when it is scraped. Knows nothing of the rest of the crate.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::{Gauge, MetricFamily},
};

/// Buckets for what the disk does, in seconds.
const DISK_SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 4.0,
];
/// Buckets for what a client waits for, in seconds; 4 s is the longest answer to a callback.
const ANSWER_SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.0, 10.0,
];
/// Buckets for how many events one commit took.
const BATCH_EVENTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The commit that the binary was built from, as its builder said; empty if nobody did. Not asked of git: the binary would be
/// built anew for each commit.
pub const REVISION: &str = match option_env!("BLOBCAST_REVISION") {
    Some(revision) => revision,
    None => "",
};

/// Every value of `what` of what is read again while the broker runs.
pub(crate) const READ_AGAIN: [&str; 8] = [
    "audit_file",
    "configuration",
    "credentials",
    "certificates",
    "client_ca",
    "client_crl",
    "acme_ca",
    "traces",
];

/// Every value of `outcome`: kept, refused for what the request is, refused for what the broker cannot do now.
const OUTCOMES: [&str; 23] = [
    "accepted",
    "duplicate",
    "quarantined",
    "unauthorized",
    "url_expired",
    "address_denied",
    "foreign_origin",
    "rate_limited",
    "budget_exceeded",
    "method_not_allowed",
    "not_found",
    "unsupported_encoding",
    "body_too_large",
    "body_timeout",
    "body_aborted",
    "headers_too_large",
    "header_timeout",
    "malformed_request",
    "overloaded",
    "disk_low",
    "store_failed",
    "late",
    "draining",
];

/// Why a callback is refused that shows too little, the wrong thing, or what is good no more.
const REFUSALS: [&str; 11] = [
    "missing",
    "unknown_token",
    "expired",
    "removed",
    "unknown_key",
    "bad_signature",
    "url_expired",
    "product_denied",
    "label_denied",
    "no_body_signature",
    "bad_body_signature",
];

/// How backups end; see `store::BackupResult`.
pub(crate) const BACKUP_RESULTS: [&str; 10] = [
    "ok",
    "abandoned",
    "stalled",
    "damaged",
    "withdrawn",
    "stopped",
    "interrupted",
    "refused",
    "failed",
    "unknown",
];

/// How a client misses events.
const LOSSES: [&str; 3] = ["cursor_expired", "gap", "overtaken"];

/// Why a connection is not let in.
const TURNED_AWAY: [&str; 13] = [
    "full",
    "address_share",
    "timeout",
    "unused",
    "proxy_header_missing",
    "proxy_header_unexpected",
    "plain_text",
    "tls_unexpected",
    "not_http2",
    "client_certificate",
    "distrusted",
    "broken_off",
    "not_understood",
];

/// Most products that a counter of callbacks names, ten times what the vendor has; any further is `other`. Senders decide which
/// products there are.
const NAMED_PRODUCTS_MAX: usize = 64;

/// Why subscriptions end.
const END_CAUSES: [&str; 10] = [
    "client_gone",
    "completed",
    "corrupt",
    "deadline",
    "draining",
    "ended_by_admin",
    "erased",
    "expired",
    "replaced",
    "withdrawn",
];

/// All metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Always 1, with the `version` and the `revision` that run.
    build_info: IntGaugeVec,
    /// Callbacks by `outcome`: what they were answered with.
    pub callbacks: IntCounterVec,
    /// Callbacks that were not kept, by `cause`, `kind` and `name` of the credential, and `product`.
    callbacks_refused: IntCounterVec,
    /// Callbacks from addresses that are not allowed, refused or not.
    pub callbacks_from_strangers: IntCounter,
    /// Signatures over bodies by `result`, where they are looked at.
    pub body_signatures: IntCounterVec,
    /// Files read again, by `what` they hold and `result`.
    pub reloads: IntCounterVec,
    /// By what was read last and could not be used.
    pub reload_refused: IntGaugeVec,
    /// Log lines that could not be written.
    pub log_lines_lost: IntCounter,
    /// Audit records for the file, by `result`.
    pub audit_records: IntCounterVec,
    /// Until when the certificate of each `listener` is good.
    pub certificate_expiry: IntGaugeVec,
    /// Certificates ordered from the ACME authority, by `result`.
    pub acme_orders: IntCounterVec,
    /// When a credential was last accepted, by `kind`, `name`, and which `secret` of it.
    credential_last_used: IntGaugeVec,
    /// When a credential expires, by `kind` and `name`.
    credential_expiry: IntGaugeVec,
    /// Those that it names.
    expiring: Mutex<HashSet<(&'static str, Arc<str>)>>,
    /// From the last byte of a callback to its answer.
    pub callback_seconds: Histogram,
    /// Open connections by `listener`.
    pub connections: IntGaugeVec,
    /// Connections that were not let in, by `listener` and `cause`.
    pub connections_refused: IntCounterVec,
    /// Connections that had to give way to another one, by `listener`.
    pub connections_shed: IntCounterVec,
    /// New events that are completed and have no output, by `product`.
    completed_without_output: IntCounterVec,
    /// The products it names.
    named_products: Mutex<HashSet<String>>,
    /// Connections that were ended because their client flooded, by `listener`.
    pub connections_flooded: IntCounterVec,
    /// Callbacks answered as duplicates.
    pub duplicates: IntCounter,
    /// Events that contradict an earlier terminal event.
    pub conflicts: IntCounter,
    /// Writing a batch to the store, without its fsync.
    pub commit_seconds: Histogram,
    /// The fsync behind each batch.
    pub fsync_seconds: Histogram,
    /// Events in each batch that held any.
    pub batch_events: Histogram,
    /// Events appended.
    pub events_appended: IntCounter,
    /// Events whose content was erased.
    pub events_erased: IntCounter,
    /// Callbacks of tasks of which something was erased, by `outcome`.
    after_erasure: IntCounterVec,
    /// Events forgotten by retention, by `reason`.
    pub events_trimmed: IntCounterVec,
    /// Their bytes.
    pub bytes_trimmed: IntCounterVec,
    /// Quarantined callbacks forgotten by retention, by `reason`.
    pub quarantine_trimmed: IntCounterVec,
    /// Bytes of callbacks that were let in, and of the events made of them, by `kind` and `name` of the credential, and `product`.
    pub callback_bytes: IntCounterVec,
    /// How this start found the log: by `found`, the `version` that runs, the one before it, and the log's `epoch`.
    start_info: IntGaugeVec,
    /// Retained events.
    pub log_events: IntGauge,
    /// Their bytes as stored, before compression.
    pub log_bytes: IntGauge,
    /// Up to how many bytes of events are kept.
    pub log_bytes_max: IntGauge,
    /// Up to which age.
    pub log_age_max_seconds: IntGauge,
    /// When the oldest retained event was received.
    pub log_oldest_timestamp_seconds: IntGauge,
    /// Callbacks in quarantine.
    pub quarantine_callbacks: IntGauge,
    /// Their bytes.
    pub quarantine_bytes: IntGauge,
    /// Free disk space under the data directory.
    pub disk_free_bytes: IntGauge,
    /// All disk space there.
    pub disk_total_bytes: IntGauge,
    /// What the cgroup allows the process of memory; 0 if there is no limit.
    pub memory_limit_bytes: IntGauge,
    /// What the process takes at most, by the limits in force.
    pub memory_bytes_max: IntGauge,
    /// How far the machine's clock is ahead of the log's.
    pub clock_difference_seconds: IntGauge,
    /// 1 while the store takes writes.
    pub store_writable: IntGauge,
    /// Calls refused because they showed no credential, or an unknown one.
    pub calls_unauthenticated: IntCounter,
    /// Calls refused for another reason before a service saw them, by `cause`.
    pub calls_refused: IntCounterVec,
    /// Requests to the admin listener that were refused, by `cause`.
    pub admin_refused: IntCounterVec,
    /// Open `Watch` streams of the health service.
    pub health_watches: IntGauge,
    /// When the list of revoked client certificates should be replaced.
    pub crl_next_update: IntGauge,
    /// Open subscriptions by `state`.
    pub subscriptions: IntGaugeVec,
    /// Ended subscriptions by `cause`.
    pub subscriptions_ended: IntCounterVec,
    /// Reads of the log that met damage.
    pub log_damage_met: IntCounter,
    /// Events handed to the transport.
    pub deliveries: IntCounter,
    /// Subscriptions that went from live to catching up.
    pub fell_behind: IntCounter,
    /// Times a client missed events that retention took, by `client` and `kind`.
    pub losses: IntCounterVec,
    /// Subscriptions whose client takes nothing.
    pub subscriptions_stalled: IntGauge,
    /// The largest distance between the head and a subscription.
    pub lag_events_max: IntGauge,
    /// From receiving a callback to handing its event to the transport, live deliveries only.
    pub delivery_seconds: Histogram,
    /// Bytes of events that streams have read and not handed on.
    pub reading_bytes: IntGauge,
    /// Reads that wait for memory.
    pub reads_waiting: IntGauge,
    /// Times a stream's memory was taken back because its client took nothing.
    pub reads_taken_back: IntCounter,
    /// Bytes that were handed to the transport, and that clients have not taken.
    pub sending_bytes: IntGauge,
    /// Bytes of answers that are being made or that clients have not taken.
    pub answer_bytes: IntGauge,
    /// Calls refused because answers had all the memory they may have, or as many backups were open as may be.
    pub answers_refused: IntCounter,
    /// Answers and backups that were ended because the client took nothing of them.
    pub answers_stalled: IntCounter,
    /// Open backups.
    pub backups: IntGauge,
    /// Backups that have ended, by `result`.
    pub backups_finished: IntCounterVec,
    /// When the newest whole backup ended.
    pub backup_last_success: IntGauge,
    /// How long it took.
    pub backup_last_seconds: IntGauge,
    /// Its size.
    pub backup_last_bytes: IntGauge,
    /// When the newest failed backup ended.
    pub backup_last_failure: IntGauge,
    /// Spans of traces by `outcome`: what became of them.
    pub trace_spans: IntCounterVec,
    /// Events in the ring.
    pub ring_events: IntGauge,
    /// Their bytes.
    pub ring_bytes: IntGauge,
}

/// The process's own metrics. When it started is noted here: the library would read it from a file that a service sees only with
/// more of `/proc` than it needs, and a process that starts itself anew counts from zero again.
struct Process {
    collector: ProcessCollector,
    started: Timestamp,
}

impl Process {
    fn new() -> Self {
        Self {
            collector: ProcessCollector::for_self(),
            started: Timestamp::now(),
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.collector.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.collector.collect();
        for family in families
            .iter_mut()
            .filter(|family| family.name() == "process_start_time_seconds")
        {
            let mut gauge = Gauge::default();
            gauge.set_value(self.started.as_second() as f64);
            family
                .mut_metric()
                .iter_mut()
                .for_each(|metric| metric.set_gauge(gauge.clone()));
        }
        families
    }
}

struct Builder(Registry);

impl Builder {
    fn register<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric
            .expect("metric names and labels are constants of this file, checked by its test");
        self.0
            .register(Box::new(metric.clone()))
            .expect("each name is registered once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self::registered();
        metrics
            .build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION])
            .set(1);
        // There from the first scrape on: nothing can be told of a series that appears with its first count.
        for outcome in OUTCOMES {
            metrics.callbacks.with_label_values(&[outcome]);
        }
        for cause in REFUSALS {
            metrics
                .callbacks_refused
                .with_label_values(&[cause, "", "", ""]);
        }
        for listener in ["ingest", "grpc", "admin"] {
            for cause in TURNED_AWAY {
                metrics
                    .connections_refused
                    .with_label_values(&[listener, cause]);
            }
        }
        for listener in ["ingest", "grpc", "admin"] {
            metrics.connections_shed.with_label_values(&[listener]);
            metrics.connections_flooded.with_label_values(&[listener]);
        }
        for cause in [
            "overloaded",
            "health_limit",
            "foreign_origin",
            "content_type",
        ] {
            metrics.calls_refused.with_label_values(&[cause]);
        }
        for cause in ["host", "foreign_origin"] {
            metrics.admin_refused.with_label_values(&[cause]);
        }
        for result in ["valid", "invalid", "missing"] {
            metrics.body_signatures.with_label_values(&[result]);
        }
        for result in ["done", "failed"] {
            metrics.acme_orders.with_label_values(&[result]);
        }
        for result in ["written", "lost", "late"] {
            metrics.audit_records.with_label_values(&[result]);
        }
        for what in READ_AGAIN {
            metrics.reload_refused.with_label_values(&[what]);
            for result in ["done", "refused"] {
                metrics.reloads.with_label_values(&[what, result]);
            }
        }
        for outcome in ["new", "duplicate"] {
            metrics.after_erasure.with_label_values(&[outcome]);
        }
        for reason in ["age", "bytes"] {
            metrics.events_trimmed.with_label_values(&[reason]);
            metrics.bytes_trimmed.with_label_values(&[reason]);
        }
        for reason in ["age", "bytes", "count"] {
            metrics.quarantine_trimmed.with_label_values(&[reason]);
        }
        metrics
            .callback_bytes
            .with_label_values(&["unverified", "", ""]);
        for outcome in ["taken", "refused", "lost", "dropped"] {
            metrics.trace_spans.with_label_values(&[outcome]);
        }
        for state in ["catching_up", "live"] {
            metrics.subscriptions.with_label_values(&[state]);
        }
        for result in BACKUP_RESULTS {
            metrics.backups_finished.with_label_values(&[result]);
        }
        for kind in LOSSES {
            metrics.losses.with_label_values(&["", kind]);
        }
        for cause in END_CAUSES {
            metrics.subscriptions_ended.with_label_values(&[cause]);
        }
        metrics
    }
}

impl Metrics {
    /// Has a client's counters there before anything of it is counted.
    pub fn name_client(&self, client: &str) {
        for kind in LOSSES {
            self.losses.with_label_values(&[client, kind]);
        }
    }

    /// Has a product's counters there before anything of it is counted.
    pub fn name_product(&self, product: &str) {
        self.completed_without_output_of(product);
    }

    /// Counts a new event that says its task is completed and has no output.
    pub fn count_completed_without_output(&self, product: &str) {
        self.completed_without_output_of(product).inc();
    }

    /// Counts a callback that was not kept. Anybody may bring any product, so only those that are named already are named here.
    pub fn count_refused(&self, cause: &str, kind: &str, name: &str, product: &str) {
        let product = self.label_of(product);
        self.callbacks_refused
            .with_label_values(&[cause, kind, name, product])
            .inc();
    }

    /// A product as metrics name it: there are only so many, whatever strangers name.
    pub fn label_of<'a>(&self, product: &'a str) -> &'a str {
        let is_named = product.is_empty() || self.named_products().contains(product);
        if is_named { product } else { "other" }
    }

    fn named_products(&self) -> MutexGuard<'_, HashSet<String>> {
        self.named_products
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn completed_without_output_of(&self, product: &str) -> IntCounter {
        let mut named = self.named_products();
        let is_named = named.contains(product)
            || named.len() < NAMED_PRODUCTS_MAX && named.insert(product.to_owned());
        self.completed_without_output
            .with_label_values(&[if is_named { product } else { "other" }])
    }

    #[allow(clippy::too_many_lines, reason = "a table of names and what they mean")]
    fn registered() -> Self {
        let b = Builder(Registry::new());
        // Memory, processor time, open files and start of the process, by the names that every exporter gives them.
        b.0.register(Box::new(Process::new()))
            .expect("its names begin with process_");
        Self {
            build_info: b.register(IntGaugeVec::new(
                Opts::new("blobcast_build_info", "Always 1, labelled with the version and the commit that run here."),
                &["version", "revision"],
            )),
            callbacks: b.counters("blobcast_callbacks_total", "Callbacks by what they were answered with.", "outcome"),
            callbacks_refused: b.register(IntCounterVec::new(
                Opts::new(
                    "blobcast_callbacks_refused_total",
                    "Requests to the public listener that were not kept, by cause, by kind and name of the credential if that is \
                     proved, and by the URL's product if that is known.",
                ),
                &["cause", "kind", "name", "product"],
            )),
            callbacks_from_strangers: b.counter(
                "blobcast_callbacks_from_unlisted_addresses_total",
                "Callbacks from addresses outside ingest.allowed_networks, refused or not.",
            ),
            body_signatures: b.counters(
                "blobcast_body_signatures_total",
                "Signatures over bodies by what they were found to be, where they are looked at.",
                "result",
            ),
            reloads: b.register(IntCounterVec::new(
                Opts::new(
                    "blobcast_reloads_total",
                    "Files read again, by what they hold and whether it could be used.",
                ),
                &["what", "result"],
            )),
            reload_refused: b.gauges(
                "blobcast_reload_refused",
                "1 while the newest version of a file cannot be used and the version before it stays in force; `what` names the kind of file.",
                "what",
            ),
            log_lines_lost: b.counter(
                "blobcast_log_lines_lost_total",
                "Log lines lost because standard error took none, or not fast enough, or could not be written.",
            ),
            audit_records: b.counters(
                "blobcast_audit_records_total",
                "Audit records for audit.file: written and synced, lost, or late (not on the disk when the call was answered).",
                "result",
            ),
            certificate_expiry: b.gauges(
                "blobcast_certificate_expiry_timestamp_seconds",
                "Unix time until which the certificate is good, by listener.",
                "listener",
            ),
            acme_orders: b.counters(
                "blobcast_acme_orders_total",
                "Certificates ordered from the ACME authority, by whether one came.",
                "result",
            ),
            credential_last_used: b.register(IntGaugeVec::new(
                Opts::new(
                    "blobcast_credential_last_used_timestamp_seconds",
                    "Unix time at which a credential was last accepted, by its kind and name, and whether by its current or \
                     its previous secret.",
                ),
                &["kind", "name", "secret"],
            )),
            credential_expiry: b.register(IntGaugeVec::new(
                Opts::new(
                    "blobcast_credential_expiry_timestamp_seconds",
                    "Unix time from which a credential is refused, by its kind and name; of those that expire.",
                ),
                &["kind", "name"],
            )),
            expiring: Mutex::default(),
            callback_seconds: b.histogram(
                "blobcast_callback_seconds",
                "Seconds from the last byte of an authentic callback to its answer.",
                ANSWER_SECONDS,
            ),
            connections: b.gauges("blobcast_connections", "Open connections by listener.", "listener"),
            connections_refused: b.register(IntCounterVec::new(
                Opts::new(
                    "blobcast_connections_refused_total",
                    "Connections that were not let in, by listener and cause: all in use (answered 503; of grpc: it waits), \
                     the share of the address in use, not opened in time, a PROXY header missing or \
                     unexpected, plain text where TLS is asked for or the reverse, HTTP/1.1 at gRPC, a client's certificate that \
                     is not good, ours distrusted, not understood at all, or closed before anything was sent (probes of TCP).",
                ),
                &["listener", "cause"],
            )),
            connections_shed: b.counters(
                "blobcast_connections_shed_total",
                "Connections closed for a new one when all places were taken, by listener: first those on which nobody is \
                 known, and of grpc then one of a client that has no call open.",
                "listener",
            ),
            completed_without_output: b.counters(
                "blobcast_completed_without_output_total",
                "Callbacks that became a new event, completed and without an output, by product, of which the first 64 are \
                 named.",
                "product",
            ),
            named_products: Mutex::default(),
            connections_flooded: b.counters(
                "blobcast_connections_flooded_total",
                "Connections closed because the client sent too many resets or small frames of HTTP/2, by listener.",
                "listener",
            ),
            duplicates: b.counter("blobcast_duplicates_total", "Callbacks answered as duplicates of a retained event."),
            conflicts: b
                .counter("blobcast_conflicts_total", "Events that contradict an earlier terminal event of their task."),
            commit_seconds: b.histogram(
                "blobcast_commit_seconds",
                "Seconds to write one batch to the store, without its fsync.",
                DISK_SECONDS,
            ),
            fsync_seconds: b.histogram(
                "blobcast_fsync_seconds",
                "Seconds of the fsync behind one batch.",
                DISK_SECONDS,
            ),
            batch_events: b.histogram("blobcast_append_batch_events", "Events appended by one commit.", BATCH_EVENTS),
            events_appended: b.counter("blobcast_events_appended_total", "Events appended to the log."),
            events_erased: b.counter("blobcast_events_erased_total", "Events whose content was erased on request."),
            after_erasure: b.counters(
                "blobcast_callbacks_after_erasure_total",
                "Callbacks of tasks of which something was erased, by whether they brought new content, or repeated what was \
                 erased and brought none.",
                "outcome",
            ),
            events_trimmed: b.counters(
                "blobcast_events_trimmed_total",
                "Events forgotten by retention, by whether they were too old or too many bytes.",
                "reason",
            ),
            bytes_trimmed: b.counters(
                "blobcast_events_trimmed_bytes_total",
                "Bytes of the events forgotten by retention, by whether they were too old or too many bytes.",
                "reason",
            ),
            quarantine_trimmed: b.counters(
                "blobcast_quarantine_trimmed_total",
                "Quarantined callbacks forgotten by retention, by whether they were too old, too many bytes, or too many.",
                "reason",
            ),
            callback_bytes: b.register(IntCounterVec::new(
                Opts::new(
                    "blobcast_callback_bytes_total",
                    "Bytes of callbacks within the budget, and of the events made of them, by kind and name of the \
                     credential that let them in, and by the URL's product, of which the first 64 of each credential \
                     are named.",
                ),
                &["kind", "name", "product"],
            )),
            start_info: b.register(IntGaugeVec::new(
                Opts::new(
                    "blobcast_start_info",
                    "1; how this start found its log (new, clean, recovered, restored or upgraded), the version that runs and \
                     the one that had the log before, and the log's epoch: a new one is another log.",
                ),
                &["found", "version", "version_before", "epoch"],
            )),
            log_events: b.gauge("blobcast_log_events", "Retained events."),
            log_bytes: b.gauge("blobcast_log_bytes", "Bytes of the retained events, before compression."),
            log_bytes_max: b.gauge("blobcast_log_bytes_max", "Bytes of events beyond which the oldest are forgotten."),
            log_age_max_seconds: b
                .gauge("blobcast_log_age_max_seconds", "Seconds after which events are forgotten."),
            log_oldest_timestamp_seconds: b.gauge(
                "blobcast_log_oldest_timestamp_seconds",
                "Unix time at which the oldest retained event was received; 0 if there is none.",
            ),
            quarantine_callbacks: b.gauge("blobcast_quarantine_callbacks", "Callbacks in quarantine."),
            quarantine_bytes: b.gauge("blobcast_quarantine_bytes", "Bytes of the callbacks in quarantine."),
            disk_free_bytes: b.gauge("blobcast_disk_free_bytes", "Free disk space under the data directory."),
            disk_total_bytes: b
                .gauge("blobcast_disk_total_bytes", "Disk space on the data directory's disk, free or not."),
            memory_limit_bytes: b.gauge(
                "blobcast_memory_limit_bytes",
                "Memory that the process may have by its cgroup or one above it, beyond which the kernel kills it; 0 without one.",
            ),
            memory_bytes_max: b.gauge(
                "blobcast_memory_bytes_max",
                "Memory that the process takes at most, when all limits in force are used up at once.",
            ),
            clock_difference_seconds: b.gauge(
                "blobcast_clock_difference_seconds",
                "Seconds by which the machine's clock is ahead of the log's own, which trusts no sudden change of it.",
            ),
            store_writable: b.gauge("blobcast_store_writable", "1 while the store takes writes, else 0."),
            calls_unauthenticated: b.counter(
                "blobcast_grpc_unauthenticated_total",
                "gRPC calls refused because they showed no token or certificate that is known.",
            ),
            calls_refused: b.counters(
                "blobcast_grpc_calls_refused_total",
                "gRPC calls refused before a service saw them, by cause: too much on its way in, too many calls of the health \
                 service, sent by a web page, or not of gRPC's content type.",
                "cause",
            ),
            admin_refused: b.counters(
                "blobcast_admin_refused_total",
                "Requests to the admin listener refused by cause: sent to a name that is not in admin.hosts, or by a web page.",
                "cause",
            ),
            health_watches: b.gauge("blobcast_grpc_health_watches", "Open Watch streams of the health service."),
            crl_next_update: b.gauge(
                "blobcast_crl_next_update_timestamp_seconds",
                "Unix time at which the first list of revoked client certificates should be replaced; 0 without any.",
            ),
            subscriptions: b.gauges("blobcast_subscriptions", "Open subscriptions by state.", "state"),
            subscriptions_ended: b.counters(
                "blobcast_subscriptions_ended_total",
                "Ended subscriptions by cause.",
                "cause",
            ),
            log_damage_met: b.counter(
                "blobcast_log_damage_met_total",
                "Calls and streams that were refused or ended because they met a part of the log that is damaged.",
            ),
            deliveries: b
                .counter("blobcast_deliveries_total", "Events handed to the transport, once per subscription."),
            fell_behind: b.counter(
                "blobcast_subscriptions_fell_behind_total",
                "Times a subscription went from live back to catching up.",
            ),
            losses: b.register(IntCounterVec::new(
                Opts::new(
                    "blobcast_losses_total",
                    "Times a client was told that retention has taken events which it had not read, by client and kind: refused \
                     with CURSOR_EXPIRED, sent over a gap, or its open stream overtaken. One loss may count several times, \
                     once for each try and kind: not to be added up.",
                ),
                &["client", "kind"],
            )),
            subscriptions_stalled: b.gauge(
                "blobcast_subscriptions_stalled",
                "Subscriptions whose client is connected and has taken nothing for 10 s, though there is more for it than \
                 HTTP/2 takes on its behalf.",
            ),
            lag_events_max: b.gauge(
                "blobcast_subscription_lag_events_max",
                "Largest distance in events between the head and a subscription.",
            ),
            delivery_seconds: b.histogram(
                "blobcast_webhook_to_delivery_seconds",
                "Seconds from receiving a callback to handing its event to the transport: live deliveries, and of those \
                 that are handed over together the first.",
                ANSWER_SECONDS,
            ),
            reading_bytes: b.gauge(
                "blobcast_reading_bytes",
                "Bytes of events that subscriptions have read from the log and not handed to the transport.",
            ),
            reads_waiting: b
                .gauge("blobcast_reads_waiting", "Reads of the log that wait for memory (grpc.reading_bytes_max)."),
            reads_taken_back: b.counter(
                "blobcast_reads_taken_back_total",
                "Times the memory of a subscription whose client took nothing was given to others; it reads again.",
            ),
            sending_bytes: b.gauge(
                "blobcast_sending_bytes",
                "Bytes that the transport holds because clients have not taken them, but for the first 2 KiB of each \
                 stream.",
            ),
            answer_bytes: b.gauge(
                "blobcast_answer_bytes",
                "Bytes of answers other than streams that are being made or that clients have not taken.",
            ),
            answers_refused: b.counter(
                "blobcast_answers_refused_total",
                "Calls refused because unread answers held grpc.answers_bytes_max or the client's share of it, or because \
                 too many backups were open.",
            ),
            answers_stalled: b.counter(
                "blobcast_answers_stalled_total",
                "Answers and backups ended because their client took nothing of them for grpc.stall_timeout.",
            ),
            backups: b.gauge("blobcast_backups", "Open backups."),
            backups_finished: b.counters(
                "blobcast_backups_finished_total",
                "Backups that have ended, by result: ok; abandoned by its client, stalled, damaged (the log is), withdrawn (the \
                 right was), stopped with the broker, interrupted (the broker was killed; counted by the next start), refused (it \
                 did not begin), failed, or unknown (the file with the earlier results could not be read).",
                "result",
            ),
            backup_last_success: b.gauge(
                "blobcast_backup_last_success_timestamp_seconds",
                "Unix time at which the newest whole backup of this log ended, or at which the log was restored from one; 0 if \
                 there was none. A restart keeps it.",
            ),
            backup_last_seconds: b.gauge(
                "blobcast_backup_last_duration_seconds",
                "Seconds that the newest whole backup took; 0 if there was none.",
            ),
            backup_last_bytes: b
                .gauge("blobcast_backup_last_bytes", "Bytes of the newest whole backup; 0 if there was none."),
            backup_last_failure: b.gauge(
                "blobcast_backup_last_failure_timestamp_seconds",
                "Unix time at which the newest failed backup of this log ended, or at which a start found that it was \
                 interrupted; 0 if there was none. A restart keeps it.",
            ),
            trace_spans: b.counters(
                "blobcast_trace_spans_total",
                "Spans of traces by what became of them: taken by the collector, refused by it, lost because it could not \
                 be reached, or dropped because too many were waiting for it.",
                "outcome",
            ),
            ring_events: b.gauge("blobcast_ring_events", "Recent events kept in memory."),
            ring_bytes: b.gauge("blobcast_ring_bytes", "Bytes of the recent events kept in memory."),
            registry: b.0,
        }
    }

    /// Counts callbacks of tasks of which something was erased.
    pub fn callbacks_after_erasure(&self, new: u64, duplicates: u64) {
        // Almost always none, and a label costs a look-up.
        for (outcome, count) in [("new", new), ("duplicate", duplicates)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
        {
            self.after_erasure
                .with_label_values(&[outcome])
                .inc_by(count);
        }
    }

    /// Notes how the start found its log.
    pub fn started(&self, found: &str, version_before: &str, epoch: &str) {
        self.start_info
            .with_label_values(&[found, env!("CARGO_PKG_VERSION"), version_before, epoch])
            .set(1);
    }

    /// Notes that a credential was accepted, by which of its secrets.
    pub fn credential_used(&self, kind: &str, name: &str, secret: &str, now: Timestamp) {
        self.credential_last_used
            .with_label_values(&[kind, name, secret])
            .set(now.as_second());
    }

    /// Tells of exactly these credentials, by kind and name, when they expire.
    pub fn set_credential_expiries(&self, expiries: Vec<(&'static str, Arc<str>, Timestamp)>) {
        let mut expiring = self.expiring.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = mem::take(&mut *expiring);
        for (kind, name, expires) in expiries {
            self.credential_expiry
                .with_label_values(&[kind, &*name])
                .set(expires.as_second());
            expiring.insert((kind, name));
        }
        for (kind, name) in gone.difference(&expiring) {
            let _ = self
                .credential_expiry
                .remove_label_values(&[*kind, &**name])
                .is_ok(); // it was there
        }
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_can_be_registered_and_rendered() {
        let metrics = Metrics::default();
        metrics.callbacks.with_label_values(&["accepted"]).inc();
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains("blobcast_callbacks_total{outcome=\"accepted\"} 1"));
    }
}
