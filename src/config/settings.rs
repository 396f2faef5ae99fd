//! The typed values of the configuration, section by section. Pure: `units` reads the texts, `check` checks the values.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::Deserialize;

use super::units::{self, Ratio};
use crate::event::Product;

/// A configuration; one that [`super::load`] returns is within all limits. `default.toml` documents each
/// key. Comments here say only what the type adds. `None` is an empty text in the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Never empty.
    #[serde(deserialize_with = "units::path")]
    pub(crate) data_dir: PathBuf,
    /// Without a query and a trailing slash.
    #[serde(deserialize_with = "units::public_url")]
    pub(crate) public_url: Option<String>,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) ingest: Ingest,
    pub(crate) grpc: Grpc,
    pub(crate) admin: Admin,
    pub(crate) console: Console,
    pub(crate) acme: Acme,
    pub(crate) audit: Audit,
    pub(crate) log: Log,
    pub(crate) quarantine: Quarantine,
    pub(crate) cluster: Cluster,
    pub(crate) reconcile: Reconcile,
    pub(crate) hub: Hub,
    pub(crate) store: Store,
    pub(crate) shutdown: Shutdown,
    pub(crate) logging: Logging,
    pub(crate) traces: Traces,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ingest {
    #[serde(deserialize_with = "units::listen")]
    pub(crate) listen: SocketAddr,
    pub(crate) allow_unverified: bool,
    pub(crate) body_signature: BodySignature,
    pub(crate) allowlist: Allowlist,
    #[serde(deserialize_with = "units::networks")]
    pub(crate) allowed_networks: Vec<IpNet>,
    #[serde(deserialize_with = "units::networks")]
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) forwarded_header: ForwardedHeader,
    pub(crate) proxy_protocol: bool,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_certificate_file: Option<PathBuf>,
    /// Set exactly if the certificate is.
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "units::size")]
    pub(crate) bytes_per_minute_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) refusals_per_minute_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) connections_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) connections_per_address_max: u64,
    #[serde(deserialize_with = "units::size")]
    pub(crate) body_bytes_max: u64,
    #[serde(deserialize_with = "units::size")]
    pub(crate) header_bytes_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) headers_max: u64,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) header_timeout: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) idle_timeout: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) body_timeout: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) answer_timeout: Duration,
    #[serde(deserialize_with = "units::size")]
    pub(crate) inflight_bytes_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grpc {
    #[serde(deserialize_with = "units::listen")]
    pub(crate) listen: SocketAddr,
    pub(crate) allow_anonymous: bool,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_certificate_file: Option<PathBuf>,
    /// Set exactly if the certificate is.
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_key_file: Option<PathBuf>,
    /// Only with `tls_certificate_file`.
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_client_ca_file: Option<PathBuf>,
    /// Only with `tls_client_ca_file`.
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_client_crl_file: Option<PathBuf>,
    #[serde(deserialize_with = "units::count")]
    pub(crate) subscriptions_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) subscriptions_per_client_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) task_ids_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) task_ids_in_all_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) products_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) connections_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) connections_per_address_max: u64,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) keepalive_interval: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) keepalive_timeout: Duration,
    #[serde(deserialize_with = "units::size")]
    pub(crate) request_bytes_max: u64,
    #[serde(deserialize_with = "units::size")]
    pub(crate) inflight_bytes_max: u64,
    #[serde(deserialize_with = "units::size")]
    pub(crate) reading_bytes_max: u64,
    #[serde(deserialize_with = "units::size")]
    pub(crate) answers_bytes_max: u64,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) stall_timeout: Duration,
    /// Each with or without a port.
    #[serde(deserialize_with = "units::texts")]
    pub(crate) hosts: Vec<String>,
    /// Each as a browser sends it.
    #[serde(deserialize_with = "units::texts")]
    pub(crate) cors_origins: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    #[serde(deserialize_with = "units::listen")]
    pub(crate) listen: SocketAddr,
    pub(crate) allow_anonymous: bool,
    /// Each with or without a port.
    #[serde(deserialize_with = "units::texts")]
    pub(crate) hosts: Vec<String>,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_certificate_file: Option<PathBuf>,
    /// Set exactly if the certificate is.
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Console {
    pub(crate) media: Media,
    /// Each a name, with or without a port. None: any.
    #[serde(deserialize_with = "units::texts")]
    pub(crate) media_hosts: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Acme {
    #[serde(deserialize_with = "units::texts")]
    pub(crate) domains: Vec<String>,
    #[serde(deserialize_with = "units::texts")]
    pub(crate) contact: Vec<String>,
    pub(crate) directory_url: String,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) directory_ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Audit {
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) file: Option<PathBuf>,
    /// Only with `file`.
    pub(crate) required: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    #[serde(deserialize_with = "units::duration")]
    pub(crate) retention_age_max: Duration,
    #[serde(deserialize_with = "units::size")]
    pub(crate) retention_bytes_max: u64,
    /// As configured; [`Log::segment_age`] is in force.
    #[serde(deserialize_with = "units::duration")]
    pub(crate) segment_age_max: Duration,
    pub(crate) expect_existing: bool,
    #[serde(deserialize_with = "units::count")]
    pub(crate) disk_free_min_percent: u64,
}

impl Log {
    /// The age in force: a segment is never written to for longer than events are kept.
    pub(crate) fn segment_age(&self) -> Duration {
        self.segment_age_max.min(self.retention_age_max)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Quarantine {
    #[serde(deserialize_with = "units::duration")]
    pub(crate) retention_age_max: Duration,
    #[serde(deserialize_with = "units::size")]
    pub(crate) retention_bytes_max: u64,
    #[serde(deserialize_with = "units::count")]
    pub(crate) retention_count_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cluster {
    /// Empty: this broker is alone. Each begins with `nats://` or `tls://`, and has no user.
    #[serde(deserialize_with = "units::nats_servers")]
    pub(crate) servers: Vec<String>,
    /// A word of a subject.
    pub(crate) name: String,
    /// A word of a subject; empty: made of the host's name.
    pub(crate) node: String,
    #[serde(deserialize_with = "units::count")]
    pub(crate) replicas: u64,
    pub(crate) create: bool,
    /// Set exactly if the password is.
    pub(crate) user: String,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) password_file: Option<PathBuf>,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_certificate_file: Option<PathBuf>,
    /// Set exactly if the certificate is.
    #[serde(deserialize_with = "units::optional_path")]
    pub(crate) tls_key_file: Option<PathBuf>,
    /// Each without a query and a trailing slash.
    #[serde(deserialize_with = "units::monitoring_urls")]
    pub(crate) monitoring_urls: Vec<String>,
    pub(crate) sync: StreamSync,
    #[serde(deserialize_with = "units::size")]
    pub(crate) frame_bytes_max: u64,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) publish_timeout: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) forward_timeout: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) read_wait: Duration,
    /// As configured; [`Config::stream_bytes_max`] is in force.
    #[serde(deserialize_with = "units::optional_size")]
    pub(crate) stream_bytes_max: Option<u64>,
}

impl Cluster {
    /// Several brokers share one log.
    pub(crate) fn is_on(&self) -> bool {
        !self.servers.is_empty()
    }
}

impl Config {
    /// Bytes that the stream may have: room for what is retained, and for frames that hold something that is.
    pub(crate) fn stream_bytes_max(&self) -> u64 {
        let retained = self.log.retention_bytes_max;
        let derived = retained
            .saturating_add(retained / 2)
            .saturating_add(self.quarantine.retention_bytes_max);
        self.cluster.stream_bytes_max.unwrap_or(derived)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reconcile {
    /// Only with `credentials_file`.
    pub(crate) enabled: bool,
    /// Without a query and a trailing slash.
    #[serde(deserialize_with = "units::base_url")]
    pub(crate) base_url: String,
    #[serde(deserialize_with = "units::count")]
    pub(crate) checks_per_minute_max: u64,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) give_up_after: Duration,
    pub(crate) unknown_tasks: UnknownTasks,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) outage_min: Duration,
    /// Only the products that are named.
    #[serde(deserialize_with = "units::durations_by_product")]
    pub(crate) expect_within: BTreeMap<Product, Duration>,
    /// The segments between `/v1/` and `/generations/`, with the slash behind the id, if there is one.
    #[serde(deserialize_with = "units::paths_by_product")]
    pub(crate) path: BTreeMap<Product, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hub {
    #[serde(deserialize_with = "units::size")]
    pub(crate) ring_bytes_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Store {
    #[serde(deserialize_with = "units::size")]
    pub(crate) cache_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shutdown {
    #[serde(deserialize_with = "units::duration")]
    pub(crate) drain_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logging {
    /// A directive string that `tracing_subscriber::EnvFilter` accepts.
    #[serde(deserialize_with = "units::level")]
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Traces {
    /// Without a path.
    #[serde(deserialize_with = "units::otlp_endpoint")]
    pub(crate) otlp_endpoint: Option<String>,
    #[serde(deserialize_with = "units::ratio")]
    pub(crate) sampling_ratio: Ratio,
}

/// What the broker does with the vendor's signature over the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodySignature {
    /// It is ignored.
    Off,
    /// The result is recorded and counted.
    Observe,
    /// A callback without a valid signature is answered 401.
    Require,
}

/// What the broker does with callbacks from unlisted addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowlist {
    /// They are accepted.
    Off,
    /// They are accepted and counted.
    Report,
    /// They are answered 403.
    Enforce,
}

/// Whether the console shows a task's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    /// Each on a click.
    Click,
    /// At once.
    Auto,
    /// Only their links.
    Off,
}

/// The header in which trusted proxies report the client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// What a start does if a NATS server does not show that it syncs each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StreamSync {
    /// It is refused.
    Require,
    /// It warns.
    Warn,
    /// Nobody asks.
    Off,
}

/// What becomes of tasks that nobody expects, in the vendor's lists after an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UnknownTasks {
    Ignore,
    /// They become events like callbacks.
    Publish,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    /// One JSON object per line.
    Json,
}
