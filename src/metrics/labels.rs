//! The values of labels. Each series is there from the first scrape on: of a series that appears with its first count, nobody can
//! tell how much it has grown.

use super::table::Metrics;

macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($name:ident $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $(#[doc = $word] $name,)*
        }

        impl $type {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The value of the label.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

words! {
    /// What became of a request to the public listener: kept, refused because of the request, or refused because of the broker's state.
    Outcome {
        Accepted "accepted",
        Duplicate "duplicate",
        Quarantined "quarantined",
        Unauthorized "unauthorized",
        UrlExpired "url_expired",
        AddressDenied "address_denied",
        ForeignOrigin "foreign_origin",
        RateLimited "rate_limited",
        BudgetExceeded "budget_exceeded",
        MethodNotAllowed "method_not_allowed",
        NotFound "not_found",
        UnsupportedEncoding "unsupported_encoding",
        BodyTooLarge "body_too_large",
        BodyTimeout "body_timeout",
        BodyAborted "body_aborted",
        HeadersTooLarge "headers_too_large",
        HeaderTimeout "header_timeout",
        MalformedRequest "malformed_request",
        Overloaded "overloaded",
        DiskLow "disk_low",
        StoreFailed "store_failed",
        StreamAway "stream_away",
        Late "late",
        Draining "draining",
    }
}

words! {
    /// What became of a span: the collector took it, the collector refused it, the collector was out of reach, or the queue was full.
    SpanOutcome {
        Taken "taken",
        Refused "refused",
        Lost "lost",
        Dropped "dropped",
    }
}

words! {
    /// What an answer of the vendor's status API says.
    CheckOutcome {
        Ended "ended",
        WithoutOutputs "without_outputs",
        NotYet "not_yet",
        Unknown "unknown",
        NotFound "not_found",
        Later "later",
        Failed "failed",
        KeyRefused "key_refused",
        Over "over",
        Listed "listed",
    }
}

/// The products that the vendor documents, as far as metrics name them: clients could make up any number of others.
pub const NAMED_PRODUCTS: [&str; 10] = [
    "veo",
    "kling",
    "kling-o1-video",
    "kling-o3-video",
    "kling-o1-photo",
    "kling-o3-photo",
    "gemini",
    "chatgpt-images",
    "sora",
    "seedance",
];

/// What metrics call all other products.
pub const OTHER_PRODUCT: &str = "other";

/// What is known of tasks that are expected.
const EXPECTATION_STATES: [&str; 3] = ["waiting", "overdue", "waited_for"];

/// The files that are read again while the broker runs.
pub(crate) const READ_AGAIN: [&str; 9] = [
    "audit_file",
    "configuration",
    "credentials",
    "certificates",
    "client_ca",
    "client_crl",
    "acme_ca",
    "traces",
    "vendor_api",
];

/// Why a callback is refused whose credential is missing, wrong, or no longer in force.
pub(crate) const REFUSALS: [&str; 11] = [
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

/// Why a connection is refused.
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

const LISTENERS: [&str; 3] = ["ingest", "grpc", "admin"];

impl Metrics {
    /// Makes every series whose labels are known beforehand.
    pub(super) fn make_series(&self) {
        self.label_callbacks();
        self.label_connections();
        self.label_log();
        self.label_files();
        self.label_late_tasks();
        self.label_cluster();
    }

    /// Makes a client's counters, before anything of the client is counted.
    pub fn name_client(&self, client: &str) {
        for kind in LOSSES {
            self.losses.with_label_values(&[client, kind]);
        }
    }

    fn label_callbacks(&self) {
        for outcome in Outcome::ALL {
            self.callbacks.with_label_values(&[outcome.as_str()]);
        }
        for cause in REFUSALS {
            self.callbacks_refused
                .with_label_values(&[cause, "", "", ""]);
        }
        for result in ["valid", "invalid", "missing"] {
            self.body_signatures.with_label_values(&[result]);
        }
        self.callback_bytes
            .with_label_values(&["unverified", "", ""]);
    }

    fn label_connections(&self) {
        for listener in LISTENERS {
            for cause in TURNED_AWAY {
                self.connections_refused
                    .with_label_values(&[listener, cause]);
            }
            self.connections_shed.with_label_values(&[listener]);
            self.connections_flooded.with_label_values(&[listener]);
        }

        for cause in [
            "overloaded",
            "health_limit",
            "foreign_origin",
            "content_type",
            "host",
        ] {
            self.calls_refused.with_label_values(&[cause]);
        }

        for cause in ["host", "foreign_origin"] {
            self.admin_refused.with_label_values(&[cause]);
        }
    }

    fn label_log(&self) {
        for outcome in ["new", "duplicate"] {
            self.after_erasure.with_label_values(&[outcome]);
        }

        for reason in ["age", "bytes"] {
            self.events_trimmed.with_label_values(&[reason]);
            self.bytes_trimmed.with_label_values(&[reason]);
        }

        for reason in ["age", "bytes", "count"] {
            self.quarantine_trimmed.with_label_values(&[reason]);
        }
        for state in ["catching_up", "live"] {
            self.subscriptions.with_label_values(&[state]);
        }
        for cause in END_CAUSES {
            self.subscriptions_ended.with_label_values(&[cause]);
        }
        for kind in LOSSES {
            self.losses.with_label_values(&["", kind]);
        }
        for result in BACKUP_RESULTS {
            self.backups_finished.with_label_values(&[result]);
        }
    }

    fn label_cluster(&self) {
        for what in ["written", "applied", "void", "foreign"] {
            self.cluster_frames.with_label_values(&[what]);
        }
        for result in ["written", "not_writer", "unreadable", "nothing"] {
            self.cluster_forwards.with_label_values(&[result]);
        }
        for why in ["connection", "silent"] {
            self.cluster_reconnects.with_label_values(&[why]);
        }
        for what in ["chain", "configuration", "credentials"] {
            self.cluster_mismatch.with_label_values(&[what]);
        }
    }

    fn label_late_tasks(&self) {
        for product in NAMED_PRODUCTS.into_iter().chain([OTHER_PRODUCT]) {
            self.reconcile_recovered.with_label_values(&[product]);
        }
        for outcome in CheckOutcome::ALL {
            self.reconcile_checks
                .with_label_values(&[OTHER_PRODUCT, outcome.as_str()]);
        }
        for state in EXPECTATION_STATES {
            self.expectations.with_label_values(&[state]);
        }
    }

    fn label_files(&self) {
        for what in READ_AGAIN {
            self.reload_refused.with_label_values(&[what]);
            for result in ["done", "refused"] {
                self.reloads.with_label_values(&[what, result]);
            }
        }

        for result in ["done", "failed"] {
            self.acme_orders.with_label_values(&[result]);
        }
        for result in ["written", "lost", "late"] {
            self.audit_records.with_label_values(&[result]);
        }
        for outcome in SpanOutcome::ALL {
            self.trace_spans.with_label_values(&[outcome.as_str()]);
        }
    }
}
