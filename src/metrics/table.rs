//! Every metric: one row says its field, its kind, its name, its labels and its help, which is its documentation, too.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

use super::process::Process;

/// Buckets for operations of the disk, in seconds.
const DISK_SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 4.0,
];
/// Buckets for what a client waits for, in seconds. 4 s is the longest that a callback waits for its answer.
const ANSWER_SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.0, 10.0,
];
/// Buckets for the number of events in a commit.
const BATCH_EVENTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// A metric as documents describe it.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($vis:vis $field:ident: $kind:ident $(($buckets:expr))? $name:literal $([$($label:literal),+])? $help:literal;)*) => {
        /// All metrics of one server.
        #[derive(Debug)]
        pub struct Metrics {
            pub(super) registry: Registry,
            /// The credentials that `credential_expiry` names.
            pub(super) expiring: Mutex<HashSet<(&'static str, Arc<str>)>>,
            /// The products that `completed_without_output` names.
            pub(super) named_products: Mutex<HashSet<String>>,
            $(#[doc = $help] $vis $field: metrics!(@type $kind),)*
        }

        impl Metrics {
            pub(super) fn registered() -> Self {
                let builder = Builder(Registry::new());
                builder
                    .0
                    .register(Box::new(Process::new()))
                    .expect("its names begin with process_");

                Self {
                    expiring: Mutex::default(),
                    named_products: Mutex::default(),
                    $($field: builder.$kind($name, $help $(, &[$($label),+])? $(, $buckets)?),)*
                    registry: builder.0,
                }
            }

            /// Every metric but the process's own, for the documents.
            pub const DESCRIBED: &[Described] = &[$(Described {
                name: $name,
                kind: metrics!(@kind $kind),
                labels: &[$($($label),+)?],
                help: $help,
            }),*];
        }
    };
    (@type counter) => { IntCounter };
    (@type counters) => { IntCounterVec };
    (@type gauge) => { IntGauge };
    (@type gauges) => { IntGaugeVec };
    (@type histogram) => { Histogram };
    (@kind counters) => { "counter" };
    (@kind gauges) => { "gauge" };
    (@kind $kind:ident) => { stringify!($kind) };
}

metrics! {
    // What runs.
    pub(super) build_info: gauges "blobcast_build_info" ["version", "revision"]
        "Always 1, labelled with the version and the commit that run here.";
    pub(super) start_info: gauges "blobcast_start_info" ["found", "version", "version_before", "epoch"]
        "1; how this start found its log (new, clean, recovered, restored or upgraded), the version that runs and \
         the one that had the log before, and the log's epoch: a new one is another log.";
    pub store_writable: gauge "blobcast_store_writable"
        "1 while the store takes writes, else 0.";
    pub clock_difference_seconds: gauge "blobcast_clock_difference_seconds"
        "Seconds by which the machine's clock is ahead of the log's own, which trusts no sudden change of it.";
    pub memory_limit_bytes: gauge "blobcast_memory_limit_bytes"
        "Memory that the process may have by its cgroup or one above it, beyond which the kernel kills it; 0 \
         without one.";
    pub memory_bytes_max: gauge "blobcast_memory_bytes_max"
        "Memory that the process takes at most, when all limits in force are used up at once.";
    pub disk_free_bytes: gauge "blobcast_disk_free_bytes"
        "Free disk space under the data directory; or under the index, if that has a disk of its own of which a \
         smaller share is free.";
    pub disk_total_bytes: gauge "blobcast_disk_total_bytes"
        "Disk space on the disk of `blobcast_disk_free_bytes`, free or not.";
    pub log_lines_lost: counter "blobcast_log_lines_lost_total"
        "Log lines lost because standard error took none, or not fast enough, or could not be written.";

    // Callbacks.
    pub callbacks: counters "blobcast_callbacks_total" ["outcome"]
        "Callbacks by what they were answered with.";
    pub(super) callbacks_refused: counters "blobcast_callbacks_refused_total" ["cause", "kind", "name", "product"]
        "Requests to the public listener that were not kept, by cause, by kind and name of the credential if that \
         is proved, and by the URL's product if that is known.";
    pub callbacks_from_unlisted_addresses: counter "blobcast_callbacks_from_unlisted_addresses_total"
        "Callbacks from addresses outside ingest.allowed_networks, refused or not.";
    pub body_signatures: counters "blobcast_body_signatures_total" ["result"]
        "Signatures over bodies by what they were found to be, where they are looked at.";
    pub callback_bytes: counters "blobcast_callback_bytes_total" ["kind", "name", "product"]
        "Bytes of callbacks within the budget, and of the events made of them, by kind and name of the credential \
         that let them in, and by the URL's product, of which the first 64 of each credential are named.";
    pub callback_seconds: histogram(ANSWER_SECONDS) "blobcast_callback_seconds"
        "Seconds from the last byte of an authentic callback to its answer.";
    pub duplicates: counter "blobcast_duplicates_total"
        "Callbacks answered as duplicates of a retained event.";
    pub conflicts: counter "blobcast_conflicts_total"
        "Events that contradict an earlier terminal event of their task.";
    pub(super) completed_without_output: counters "blobcast_completed_without_output_total" ["product"]
        "Callbacks that became a new event, completed and without an output, by product, of which the first 64 \
         are named.";
    pub(super) after_erasure: counters "blobcast_callbacks_after_erasure_total" ["outcome"]
        "Callbacks of tasks of which something was erased, by whether they brought new content, or repeated what \
         was erased and brought none.";

    // Connections and calls.
    pub connections: gauges "blobcast_connections" ["listener"]
        "Open connections by listener.";
    pub connections_refused: counters "blobcast_connections_refused_total" ["listener", "cause"]
        "Connections that were not let in, by listener and cause: all in use (answered 503; of grpc: it waits), \
         the share of the address in use, not opened in time, a PROXY header missing or unexpected, plain text \
         where TLS is asked for or the reverse, HTTP/1.1 at gRPC, a client's certificate that is not good, ours \
         distrusted, not understood at all, or closed before anything was sent (probes of TCP).";
    pub connections_shed: counters "blobcast_connections_shed_total" ["listener"]
        "Connections closed for a new one when all places were taken, by listener: first those on which nobody is \
         known, and of grpc then one of a client that has no call open.";
    pub connections_flooded: counters "blobcast_connections_flooded_total" ["listener"]
        "Connections closed because the client sent too many resets or small frames of HTTP/2, by listener.";
    pub calls_unauthenticated: counter "blobcast_grpc_unauthenticated_total"
        "gRPC calls, and logins to the console, refused because they showed no token or certificate that is known.";
    pub calls_refused: counters "blobcast_grpc_calls_refused_total" ["cause"]
        "gRPC calls refused before a service saw them, by cause: too much on its way in, too many calls of the \
         health service, sent by a web page, not of gRPC's content type, or in JSON or \
         gRPC-Web to a name that is not in grpc.hosts.";
    pub admin_refused: counters "blobcast_admin_refused_total" ["cause"]
        "Requests to the admin listener refused by cause: sent to a name that is not in admin.hosts, or by a web \
         page.";
    pub health_watches: gauge "blobcast_grpc_health_watches"
        "Open Watch streams of the health service.";

    // The log.
    pub commit_seconds: histogram(DISK_SECONDS) "blobcast_commit_seconds"
        "Seconds to write one batch to the store, without its fsync.";
    pub fsync_seconds: histogram(DISK_SECONDS) "blobcast_fsync_seconds"
        "Seconds of the fsync behind one batch.";
    pub batch_events: histogram(BATCH_EVENTS) "blobcast_append_batch_events"
        "Events appended by one commit.";
    pub events_appended: counter "blobcast_events_appended_total"
        "Events appended to the log.";
    pub events_erased: counter "blobcast_events_erased_total"
        "Events whose content was erased on request.";
    pub events_trimmed: counters "blobcast_events_trimmed_total" ["reason"]
        "Events forgotten by retention, by whether they were too old or too many bytes.";
    pub bytes_trimmed: counters "blobcast_events_trimmed_bytes_total" ["reason"]
        "Bytes of the events forgotten by retention, by whether they were too old or too many bytes.";
    pub quarantine_trimmed: counters "blobcast_quarantine_trimmed_total" ["reason"]
        "Quarantined callbacks forgotten by retention, by whether they were too old, too many bytes, or too many.";
    pub log_events: gauge "blobcast_log_events"
        "Retained events.";
    pub log_bytes: gauge "blobcast_log_bytes"
        "Bytes of the retained events, before compression.";
    pub log_bytes_max: gauge "blobcast_log_bytes_max"
        "Bytes of events beyond which the oldest are forgotten.";
    pub log_age_max_seconds: gauge "blobcast_log_age_max_seconds"
        "Seconds after which events are forgotten.";
    pub log_oldest_timestamp_seconds: gauge "blobcast_log_oldest_timestamp_seconds"
        "Unix time at which the oldest retained event was received; 0 if there is none.";
    pub log_damage_met: counter "blobcast_log_damage_met_total"
        "Times that a damaged part of the log was met: by a call or stream that it refused or ended, by a list or a \
         backup that goes on without a quarantined callback, or by retention, which gave it up.";
    pub log_segments_skipped: counter "blobcast_log_segments_skipped_total"
        "Segments of the log that listings and subscriptions with a filter did not read, as the segment's summary says \
         that it has nothing for them.";
    pub log_summaries_rebuilt: counter "blobcast_log_summaries_rebuilt_total"
        "Summaries of segments that were made again from the log, as they were missing, damaged or of another version.";
    pub quarantine_callbacks: gauge "blobcast_quarantine_callbacks"
        "Callbacks in quarantine.";
    pub quarantine_bytes: gauge "blobcast_quarantine_bytes"
        "Bytes of the callbacks in quarantine.";

    // The cluster. On a broker that is alone all of these stay 0.
    pub cluster_connected: gauge "blobcast_cluster_connected"
        "1 while this node is connected to NATS, else 0.";
    pub cluster_ready: gauge "blobcast_cluster_ready"
        "1 while this node takes callbacks, as /readyz/ingest says, else 0.";
    pub cluster_is_writer: gauge "blobcast_cluster_is_writer"
        "1 while the last frame is this node's, so that it writes the next one, else 0.";
    pub cluster_applied_place: gauge "blobcast_cluster_applied_place"
        "Place of the newest event that this node has applied.";
    pub cluster_stream_lag_frames: gauge "blobcast_cluster_stream_lag_frames"
        "Messages of the stream that this node has not seen yet, as far as it knows.";
    pub cluster_stream_lag_seconds: gauge "blobcast_cluster_stream_lag_seconds"
        "Seconds since this node has heard of the oldest message of the stream that it has not seen; 0 if it has seen all.";
    pub cluster_sync_shown: gauge "blobcast_cluster_sync_shown"
        "1 if at this node's start the NATS servers have shown that they sync each write, else 0.";
    pub cluster_frame_seconds: histogram(ANSWER_SECONDS) "blobcast_cluster_frame_seconds"
        "Seconds from publishing a frame for the first time until it was applied here.";
    pub cluster_frames: counters "blobcast_cluster_frames_total" ["what"]
        "Messages of the stream: frames that this node has written, frames of others that it has applied, void (a frame that JetStream should have refused) and foreign (no frame of this log: somebody else publishes there).";
    pub cluster_conflicts: counter "blobcast_cluster_conflicts_total"
        "Frames of this node that the stream has refused, because another node's was faster.";
    pub cluster_in_doubt: gauge "blobcast_cluster_in_doubt"
        "1 while nobody has said what became of a frame of this node, else 0.";
    pub cluster_forwards: counters "blobcast_cluster_forwards_total" ["result"]
        "Groups that were handed to the writing node, by its answer: written, not_writer, unreadable (another version) or nothing (in time).";
    pub cluster_takeovers: counter "blobcast_cluster_takeovers_total"
        "Times that this node began to write after another one.";
    pub cluster_reconnects: counters "blobcast_cluster_reconnects_total" ["why"]
        "Times that this node has connected to NATS anew: the connection was lost, or it was silent for too long.";
    pub cluster_hole: gauge "blobcast_cluster_hole"
        "1 once this node follows the stream no more, because of a hole or a frame of a later version; else 0. /readyz and the log have the reason.";
    pub cluster_nodes: gauge "blobcast_cluster_nodes"
        "Nodes that are there, this one included; 0 on a broker that is alone.";
    pub cluster_clock_skew_seconds: gauge "blobcast_cluster_clock_skew_seconds"
        "Seconds by which the machine's clock of another node differs from this one's, of the node where it is most, to about a second.";
    pub cluster_mismatch: gauges "blobcast_cluster_mismatch" ["what"]
        "1 once another node was seen to have another log at the same frame (chain); 1 while one has another value of a key that has to be the same on all (configuration), or other credentials.";
    pub cluster_stream_bytes: gauge "blobcast_cluster_stream_bytes"
        "Bytes of the stream.";
    pub cluster_stream_bytes_max: gauge "blobcast_cluster_stream_bytes_max"
        "Bytes beyond which the stream takes no frame, so that callbacks are answered 503.";

    // Late tasks.
    pub vendor_key_usable: gauges "blobcast_vendor_key_usable" ["key"]
        "1 if the vendor takes the key for its API, 0 if it refuses it, by the name in the credentials file; no \
         series before the key was tried.";
    pub reconcile_checks: counters "blobcast_reconcile_checks_total" ["product", "outcome"]
        "Answers of the vendor's status API, by product and by what they say: ended, without_outputs, not_yet, \
         unknown (a word or a body that is not understood), not_found, later (408, 429 and 5xx), failed (no answer that \
         can be used), key_refused, over (a callback came meanwhile), or listed (a page of a list, whatever its tasks).";
    pub reconcile_recovered: counters "blobcast_reconcile_recovered_total" ["product"]
        "Events that the vendor's status API has brought and no callback: callbacks are being lost.";
    pub expectations: gauges "blobcast_expectations" ["state"]
        "Tasks that are expected: stored, without an overdue event (waiting) or with one (overdue), or waited for by a \
         client now (waited_for).";
    pub tasks_overdue: gauge "blobcast_tasks_overdue"
        "Tasks of which an event says that they are late, and which have not ended or been given up.";
    pub vendor_budget_left: gauges "blobcast_vendor_budget_left" ["key"]
        "How often the vendor may be asked at once, by key.";
    pub vendor_paused: gauges "blobcast_vendor_paused" ["key"]
        "1 while a key rests, because the vendor answers 429 to it, or 5xx or nothing at all to any; else 0.";

    // Subscriptions and answers.
    pub subscriptions: gauges "blobcast_subscriptions" ["state"]
        "Open subscriptions by state.";
    pub subscriptions_ended: counters "blobcast_subscriptions_ended_total" ["cause"]
        "Ended subscriptions by cause.";
    pub subscriptions_stalled: gauge "blobcast_subscriptions_stalled"
        "Subscriptions whose client is connected and has taken nothing for 10 s, though there is more for it than \
         HTTP/2 takes on its behalf.";
    pub lag_events_max: gauge "blobcast_subscription_lag_events_max"
        "Largest distance in events between the head and a subscription.";
    pub deliveries: counter "blobcast_deliveries_total"
        "Events handed to the transport, once per subscription.";
    pub delivery_seconds: histogram(ANSWER_SECONDS) "blobcast_webhook_to_delivery_seconds"
        "Seconds from receiving a callback to handing its event to the transport: live deliveries, and of those \
         that are handed over together the first.";
    pub fell_behind: counter "blobcast_subscriptions_fell_behind_total"
        "Times a subscription went from live back to catching up.";
    pub losses: counters "blobcast_losses_total" ["client", "kind"]
        "Times a client learned that retention has taken events which it had not read, by client and kind: \
         refused with CURSOR_EXPIRED, sent over a gap, or its open stream overtaken. One loss may count several \
         times, once for each try and kind: not to be added up.";
    pub reading_bytes: gauge "blobcast_reading_bytes"
        "Bytes of events that subscriptions have read from the log and not handed to the transport.";
    pub reads_waiting: gauge "blobcast_reads_waiting"
        "Reads of the log that wait for memory (grpc.reading_bytes_max).";
    pub reads_taken_back: counter "blobcast_reads_taken_back_total"
        "Times the memory of a subscription whose client took nothing was given to others; it reads again.";
    pub sending_bytes: gauge "blobcast_sending_bytes"
        "Bytes that the transport holds because clients have not taken them, but for the first 2 KiB of each \
         stream.";
    pub answer_bytes: gauge "blobcast_answer_bytes"
        "Bytes of answers other than streams that are being made or that clients have not taken.";
    pub answers_refused: counter "blobcast_answers_refused_total"
        "Calls refused because unread answers held grpc.answers_bytes_max or the client's share of it, or because \
         too many backups were open.";
    pub answers_stalled: counter "blobcast_answers_stalled_total"
        "Answers and backups ended because their client took nothing of them for grpc.stall_timeout.";
    pub ring_events: gauge "blobcast_ring_events"
        "Recent events kept in memory.";
    pub ring_bytes: gauge "blobcast_ring_bytes"
        "Bytes of the recent events kept in memory.";

    // Backups.
    pub backups: gauge "blobcast_backups"
        "Open backups.";
    pub backups_finished: counters "blobcast_backups_finished_total" ["result"]
        "Backups that have ended, by result: ok; abandoned by its client, stalled, damaged (the log is), \
         withdrawn (the right was), stopped with the broker, interrupted (the broker was killed; counted by the \
         next start), refused (it did not begin), failed, or unknown (the file with the earlier results could not \
         be read).";
    pub backup_last_success: gauge "blobcast_backup_last_success_timestamp_seconds"
        "Unix time at which the newest whole backup of this log ended, or at which the log was restored from one; \
         0 if there was none. A restart keeps it.";
    pub backup_last_seconds: gauge "blobcast_backup_last_duration_seconds"
        "Seconds that the newest whole backup took; 0 if there was none.";
    pub backup_last_bytes: gauge "blobcast_backup_last_bytes"
        "Bytes of the newest whole backup; 0 if there was none.";
    pub backup_last_failure: gauge "blobcast_backup_last_failure_timestamp_seconds"
        "Unix time at which the newest failed backup of this log ended, or at which a start found that it was \
         interrupted; 0 if there was none. A restart keeps it.";

    // Files, credentials, audit and traces.
    pub reloads: counters "blobcast_reloads_total" ["what", "result"]
        "Files read again, by what they hold and whether it could be used.";
    pub reload_refused: gauges "blobcast_reload_refused" ["what"]
        "1 while the newest version of a file cannot be used and the version before it stays in force; `what` \
         names the kind of file.";
    pub certificate_expiry: gauges "blobcast_certificate_expiry_timestamp_seconds" ["listener"]
        "Unix time until which the certificate is good, by listener.";
    pub acme_orders: counters "blobcast_acme_orders_total" ["result"]
        "Certificates ordered from the ACME authority, by whether one came.";
    pub crl_next_update: gauge "blobcast_crl_next_update_timestamp_seconds"
        "Unix time at which the first list of revoked client certificates should be replaced; 0 without any.";
    pub(super) credential_last_used: gauges "blobcast_credential_last_used_timestamp_seconds" ["kind", "name", "secret"]
        "Unix time at which a credential was last accepted, by its kind and name, and whether by its current or \
         its previous secret.";
    pub(super) credential_expiry: gauges "blobcast_credential_expiry_timestamp_seconds" ["kind", "name"]
        "Unix time from which a credential is refused, by its kind and name; of those that expire.";
    pub audit_records: counters "blobcast_audit_records_total" ["result"]
        "Audit records for audit.file: written and synced, lost, or late (not on the disk when the call was \
         answered).";
    pub trace_spans: counters "blobcast_trace_spans_total" ["outcome"]
        "Spans of traces by what became of them: taken by the collector, refused by it, lost because it could not \
         be reached, or dropped because too many were waiting for it.";
}

/// Registers metrics.
struct Builder(Registry);

impl Builder {
    fn register<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric =
            metric.expect("metric names and labels are constants of this file, checked by a test");
        self.0
            .register(Box::new(metric.clone()))
            .expect("each name is registered once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }
}
