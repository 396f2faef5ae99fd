//! The configuration's values, section by section, as types. Pure; a value's text is read in [`super::units`].

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::Deserialize;

use super::units::{self, Ratio};

/// A configuration. One that [`super::load`] returned is within all limits; `default.toml` tells what happens at each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory of the event log and the quarantine; never empty.
    #[serde(deserialize_with = "units::path")]
    pub data_dir: PathBuf,
    /// What the vendor reaches the ingest listener by: http or https, no query, no trailing slash. `None`: derive it.
    #[serde(deserialize_with = "units::public_url")]
    pub public_url: Option<String>,
    /// Tokens, keys and clients; `None`: none.
    #[serde(deserialize_with = "units::optional_path")]
    pub credentials_file: Option<PathBuf>,
    /// The public listener.
    pub ingest: Ingest,
    /// The listener for internal services.
    pub grpc: Grpc,
    /// The listener for operators.
    pub admin: Admin,
    /// The public listener's certificate.
    pub acme: Acme,
    /// Who did what.
    pub audit: Audit,
    /// The event log.
    pub log: Log,
    /// Callbacks that were not understood.
    pub quarantine: Quarantine,
    /// The live path.
    pub hub: Hub,
    /// The embedded database.
    pub store: Store,
    /// What happens on SIGTERM.
    pub shutdown: Shutdown,
    /// The broker's own diagnostics.
    pub logging: Logging,
    /// Where the time of a request goes.
    pub traces: Traces,
}

/// The public listener, for callbacks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Address; loopback unless `allow_unverified`.
    #[serde(deserialize_with = "units::listen")]
    pub listen: SocketAddr,
    /// Whether it may listen beyond loopback although callbacks are not verified.
    pub allow_unverified: bool,
    /// What is made of the signature over the body.
    pub body_signature: BodySignature,
    /// What is made of the address a callback comes from.
    pub allowlist: Allowlist,
    /// Where callbacks may come from.
    #[serde(deserialize_with = "units::networks")]
    pub allowed_networks: Vec<IpNet>,
    /// Who is believed about whom they pass on.
    #[serde(deserialize_with = "units::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Where they say it.
    pub forwarded_header: ForwardedHeader,
    /// Whether connections of trusted proxies begin with a PROXY header.
    pub proxy_protocol: bool,
    /// The certificate chain, PEM; `None`: no certificate from a file.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_certificate_file: Option<PathBuf>,
    /// Its key, PEM; there exactly if the certificate is.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_key_file: Option<PathBuf>,
    /// Bytes that one credential may bring in a minute for one product; 0: any.
    #[serde(deserialize_with = "units::size")]
    pub bytes_per_minute_max: u64,
    /// Refused requests of one address in a minute before it gets 429.
    #[serde(deserialize_with = "units::count")]
    pub refusals_per_minute_max: u64,
    /// Open TCP connections.
    #[serde(deserialize_with = "units::count")]
    pub connections_max: u64,
    /// Those of one address.
    #[serde(deserialize_with = "units::count")]
    pub connections_per_address_max: u64,
    /// Bytes of one body.
    #[serde(deserialize_with = "units::size")]
    pub body_bytes_max: u64,
    /// Bytes of the request line and the headers together.
    #[serde(deserialize_with = "units::size")]
    pub header_bytes_max: u64,
    /// Headers of one request.
    #[serde(deserialize_with = "units::count")]
    pub headers_max: u64,
    /// Time for all headers to arrive.
    #[serde(deserialize_with = "units::duration")]
    pub header_timeout: Duration,
    /// Time between an answer and the next request on its connection.
    #[serde(deserialize_with = "units::duration")]
    pub idle_timeout: Duration,
    /// Time for the body to arrive after the headers.
    #[serde(deserialize_with = "units::duration")]
    pub body_timeout: Duration,
    /// Time for a callback to become durable.
    #[serde(deserialize_with = "units::duration")]
    pub answer_timeout: Duration,
    /// Bytes of all bodies held in memory at once; at least `body_bytes_max`.
    #[serde(deserialize_with = "units::size")]
    pub inflight_bytes_max: u64,
}

/// The listener for internal services.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    /// Address; loopback unless `allow_anonymous`.
    #[serde(deserialize_with = "units::listen")]
    pub listen: SocketAddr,
    /// Whether unauthenticated clients are let in, wherever it listens.
    pub allow_anonymous: bool,
    /// The certificate chain, PEM; `None`: no TLS.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_certificate_file: Option<PathBuf>,
    /// Its key, PEM; there exactly if the certificate is.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_key_file: Option<PathBuf>,
    /// Who signs clients' certificates, PEM; only with TLS.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Which of those certificates are revoked, PEM; only with `tls_client_ca_file`.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_client_crl_file: Option<PathBuf>,
    /// Open streams on this broker.
    #[serde(deserialize_with = "units::count")]
    pub subscriptions_max: u64,
    /// Those of one client.
    #[serde(deserialize_with = "units::count")]
    pub subscriptions_per_client_max: u64,
    /// Task ids in one filter.
    #[serde(deserialize_with = "units::count")]
    pub task_ids_max: u64,
    /// Task ids in the filters of all open streams.
    #[serde(deserialize_with = "units::count")]
    pub task_ids_in_all_max: u64,
    /// Products in one filter.
    #[serde(deserialize_with = "units::count")]
    pub products_max: u64,
    /// Open TCP connections.
    #[serde(deserialize_with = "units::count")]
    pub connections_max: u64,
    /// Those of one address.
    #[serde(deserialize_with = "units::count")]
    pub connections_per_address_max: u64,
    /// Silence after which a connection is pinged.
    #[serde(deserialize_with = "units::duration")]
    pub keepalive_interval: Duration,
    /// Time for the ping's answer.
    #[serde(deserialize_with = "units::duration")]
    pub keepalive_timeout: Duration,
    /// Bytes of one request message.
    #[serde(deserialize_with = "units::size")]
    pub request_bytes_max: u64,
    /// Bytes of all requests that are arriving; at least `request_bytes_max`.
    #[serde(deserialize_with = "units::size")]
    pub inflight_bytes_max: u64,
    /// Bytes that all streams hold of what they read from the log.
    #[serde(deserialize_with = "units::size")]
    pub reading_bytes_max: u64,
    /// Bytes of all answers that clients have not taken.
    #[serde(deserialize_with = "units::size")]
    pub answers_bytes_max: u64,
    /// How long a client may take nothing of an answer or a backup.
    #[serde(deserialize_with = "units::duration")]
    pub stall_timeout: Duration,
}

/// The listener for operators and probes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Address; loopback unless `allow_anonymous`.
    #[serde(deserialize_with = "units::listen")]
    pub listen: SocketAddr,
    /// Whether it may listen beyond loopback.
    pub allow_anonymous: bool,
    /// Names that it is asked by, with or without a port, besides addresses and `localhost`.
    #[serde(deserialize_with = "units::texts")]
    pub hosts: Vec<String>,
    /// The certificate chain, PEM; `None`: no TLS.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_certificate_file: Option<PathBuf>,
    /// Its key, PEM; there exactly if the certificate is.
    #[serde(deserialize_with = "units::optional_path")]
    pub tls_key_file: Option<PathBuf>,
}

/// The public listener's certificate from an ACME authority.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// What the certificate is for; empty: off.
    #[serde(deserialize_with = "units::texts")]
    pub domains: Vec<String>,
    /// Whom the authority may warn, as URLs.
    #[serde(deserialize_with = "units::texts")]
    pub contact: Vec<String>,
    /// The authority.
    pub directory_url: String,
    /// Who signs the authority's own certificate, PEM; `None`: the system knows.
    #[serde(deserialize_with = "units::optional_path")]
    pub directory_ca_file: Option<PathBuf>,
}

/// Records of who did what.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// JSON lines, beside the log; `None`: the log only.
    #[serde(deserialize_with = "units::optional_path")]
    pub file: Option<PathBuf>,
    /// Whether calls that cannot be recorded in the file are refused; only with a file.
    pub required: bool,
}

/// The event log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Age up to which events are kept.
    #[serde(deserialize_with = "units::duration")]
    pub retention_age_max: Duration,
    /// Bytes of events kept.
    #[serde(deserialize_with = "units::size")]
    pub retention_bytes_max: u64,
    /// Age up to which the newest file of the log is written to, as it was set: see [`Log::segment_age`].
    #[serde(deserialize_with = "units::duration")]
    pub segment_age_max: Duration,
    /// Whether a start without a log is refused.
    pub expect_existing: bool,
    /// Free disk space in percent below which callbacks are answered 503; 0 is off.
    #[serde(deserialize_with = "units::count")]
    pub disk_free_min_percent: u64,
}

impl Log {
    /// Age up to which the newest file of the log is written to: no longer than events are kept.
    pub fn segment_age(&self) -> Duration {
        self.segment_age_max.min(self.retention_age_max)
    }
}

/// Callbacks that were authentic but not understood.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    /// Age up to which they are kept.
    #[serde(deserialize_with = "units::duration")]
    pub retention_age_max: Duration,
    /// Bytes kept.
    #[serde(deserialize_with = "units::size")]
    pub retention_bytes_max: u64,
    /// Callbacks kept.
    #[serde(deserialize_with = "units::count")]
    pub retention_count_max: u64,
}

/// The live path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// Bytes of events in the ring.
    #[serde(deserialize_with = "units::size")]
    pub ring_bytes_max: u64,
}

/// The embedded database.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Bytes of memory for cached blocks.
    #[serde(deserialize_with = "units::size")]
    pub cache_bytes: u64,
}

/// What happens on SIGTERM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Time for streams and commits to finish before the rest is cut off.
    #[serde(deserialize_with = "units::duration")]
    pub drain_timeout: Duration,
}

/// The broker's own diagnostics.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    /// A directive string that `tracing_subscriber::EnvFilter` accepts.
    #[serde(deserialize_with = "units::level")]
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

/// Traces of callbacks, calls and deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// The collector, http or https, without a path; `None`: off.
    #[serde(deserialize_with = "units::otlp_endpoint")]
    pub otlp_endpoint: Option<String>,
    /// The share of requests that are recorded.
    #[serde(deserialize_with = "units::ratio")]
    pub sampling_ratio: Ratio,
}

/// What is made of the vendor's signature over the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodySignature {
    /// Not looked at.
    Off,
    /// Noted and counted.
    Observe,
    /// Without a good one: 401.
    Require,
}

/// What is made of the address a callback comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowlist {
    /// Not looked at.
    Off,
    /// Others are counted.
    Report,
    /// Others: 403.
    Enforce,
}

/// Where trusted proxies name their client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// How the diagnostics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}
