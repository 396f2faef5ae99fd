//! One row for each key: the range of its value, and whether a reload applies a new value. Pure.

use std::{collections::BTreeMap, time::Duration};

use xxhash_rust::xxh3::xxh3_64;

use super::{settings::Config, units::duration_text};
use crate::{event::Product, size::size_text};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);
const CONNECTIONS_MAX: u64 = 1_000_000;
const SUBSCRIPTIONS_MAX: u64 = 10_000_000;
/// Ten years: longer than any retention, and safe in calendar arithmetic.
const RETENTION_AGE_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// A day less: an event must not expire before its segment does.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(3649 * 86_400);
/// hyper panics at a read buffer below this (`http1::Builder::max_buf_size`).
const READ_BUFFER_BYTES_MIN: u64 = 8 * KIB;
/// curl sends five headers with a callback, and a proxy adds some.
const HEADERS_MIN: u64 = 8;
/// Four times (one client has a quarter) the largest answer of `GetTask`, as stored and as sent.
pub(super) const ANSWERS_BYTES_MIN: u64 = 32 * MIB;
/// With less, streams read a few events at a time.
const READING_BYTES_MIN: u64 = 8 * MIB;

/// Keys that have to be the same on all nodes of a cluster: the node that writes decides by its own, any node may be the next one, and
/// a callback or a client may come to each. Also all keys of the sections below.
pub(super) const OF_ALL_NODES: [&str; 10] = [
    "ingest.allow_unverified",
    "ingest.body_signature",
    "ingest.allowlist",
    "ingest.allowed_networks",
    "ingest.body_bytes_max",
    "grpc.allow_anonymous",
    "log.retention_age_max",
    "log.retention_bytes_max",
    "log.segment_age_max",
    "cluster.stream_bytes_max",
];
const SECTIONS_OF_ALL_NODES: [&str; 2] = ["quarantine.", "reconcile."];

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// The dotted name.
    pub name: &'static str,
    /// When a new value takes effect.
    pub change: Change,
    range: Option<Range>,
    differs: fn(&Config, &Config) -> bool,
    take_up: fn(&mut Config, &Config),
    describe: fn(&Config, &Config) -> String,
    show: fn(&Config) -> String,
}

/// When a new value of a key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// After a reload. None of these keys holds a secret: a reload logs their values.
    Reload,
    /// After a restart.
    Restart,
}

use Change::{Reload, Restart};

/// The range of a key's value.
#[derive(Debug)]
struct Range {
    limits: Limits,
    values: fn(&Config) -> Vec<Measured<'_>>,
}

/// A value in the unit of its key's limits; of a table also for which product it is.
type Measured<'a> = (Option<&'a str>, u128);

#[derive(Clone, Copy, Debug)]
struct Limits {
    unit: Unit,
    min: u128,
    /// `None` where only the machine sets a limit.
    max: Option<u128>,
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Bytes,
    Nanoseconds,
    One,
}

impl Key {
    /// The range of its value, as text; `None` if the value is no number, size or duration.
    pub fn range(&self) -> Option<String> {
        Some(self.range.as_ref()?.limits.to_string())
    }

    /// The problem with the key's value, if it is out of range.
    pub(super) fn out_of_range(&self, config: &Config) -> Option<String> {
        let Range { limits, values } = self.range.as_ref()?;
        let is_within =
            |value: u128| value >= limits.min && limits.max.is_none_or(|max| value <= max);
        let (name, value) = values(config)
            .into_iter()
            .find(|(_, value)| !is_within(*value))?;

        let of = name.map_or_else(String::new, |name| format!("{name}: "));
        let value = limits.unit.text(value);
        Some(format!("{of}{value} is out of range, which is {limits}"))
    }
}

impl Unit {
    fn text(self, value: u128) -> String {
        match self {
            Self::Bytes => u64::try_from(value).map_or_else(|_| value.to_string(), size_text),
            Self::Nanoseconds => duration_text(value),
            Self::One => value.to_string(),
        }
    }
}

impl std::fmt::Display for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let min = self.unit.text(self.min);
        match self.max {
            Some(max) => write!(f, "{min} to {}", self.unit.text(max)),
            None => write!(f, "{min} or more"),
        }
    }
}

const fn bytes(min: u64, max: u64) -> Limits {
    Limits {
        max: Some(max as u128),
        ..bytes_from(min)
    }
}

const fn bytes_from(min: u64) -> Limits {
    Limits {
        unit: Unit::Bytes,
        min: min as u128,
        max: None,
    }
}

const fn count(min: u64, max: u64) -> Limits {
    Limits {
        unit: Unit::One,
        min: min as u128,
        max: Some(max as u128),
    }
}

const fn time(min: Duration, max: Duration) -> Limits {
    Limits {
        unit: Unit::Nanoseconds,
        min: min.as_nanos(),
        max: Some(max.as_nanos()),
    }
}

/// A value that has a range, or several of them with their names.
trait Quantity {
    fn quantities(&self) -> Vec<(Option<&str>, u128)>;
}

impl Quantity for u64 {
    fn quantities(&self) -> Vec<(Option<&str>, u128)> {
        vec![(None, (*self).into())]
    }
}

impl Quantity for Option<u64> {
    fn quantities(&self) -> Vec<(Option<&str>, u128)> {
        self.iter().flat_map(Quantity::quantities).collect()
    }
}

impl Quantity for Duration {
    fn quantities(&self) -> Vec<(Option<&str>, u128)> {
        vec![(None, self.as_nanos())]
    }
}

impl Quantity for BTreeMap<Product, Duration> {
    fn quantities(&self) -> Vec<(Option<&str>, u128)> {
        self.iter()
            .map(|(product, time)| (Some(product.as_str()), time.as_nanos()))
            .collect()
    }
}

macro_rules! keys {
    ($($first:ident $(. $rest:ident)*: $change:ident $(, $limits:expr)?;)*) => {
        /// Every key, in the order of the default file.
        pub static KEYS: &[Key] = &[$(Key {
            name: concat!(stringify!($first) $(, ".", stringify!($rest))*),
            change: $change,
            range: keys!(@range ($first $(. $rest)*) $($limits)?),
            differs: |old, new| old.$first $(.$rest)* != new.$first $(.$rest)*,
            take_up: |old, new| old.$first $(.$rest)*.clone_from(&new.$first $(.$rest)*),
            describe: |old, new| format!("{:?} -> {:?}", old.$first $(.$rest)*, new.$first $(.$rest)*),
            show: |config| format!("{:?}", config.$first $(.$rest)*),
        }),*];
    };
    (@range ($($path:tt)+)) => { None };
    (@range ($($path:tt)+) $limits:expr) => {
        Some(Range { limits: $limits, values: |config| config.$($path)+.quantities() })
    };
}

keys! {
    data_dir: Restart;
    public_url: Restart;
    credentials_file: Restart;

    ingest.listen: Restart;
    ingest.allow_unverified: Restart;
    ingest.body_signature: Reload;
    ingest.allowlist: Reload;
    ingest.allowed_networks: Reload;
    ingest.trusted_proxies: Restart;
    ingest.forwarded_header: Restart;
    ingest.proxy_protocol: Restart;
    ingest.tls_certificate_file: Restart;
    ingest.tls_key_file: Restart;
    ingest.refusals_per_minute_max: Restart, count(1, 1_000_000);
    ingest.bytes_per_minute_max: Reload, bytes_from(0);
    ingest.connections_max: Restart, count(1, CONNECTIONS_MAX);
    ingest.connections_per_address_max: Restart, count(1, CONNECTIONS_MAX);
    ingest.body_bytes_max: Restart, bytes(KIB, 64 * MIB);
    ingest.header_bytes_max: Restart, bytes(READ_BUFFER_BYTES_MIN, MIB);
    ingest.headers_max: Restart, count(HEADERS_MIN, 1000);
    ingest.header_timeout: Restart, time(TIMEOUT_MIN, TIMEOUT_MAX);
    ingest.idle_timeout: Restart, time(TIMEOUT_MIN, HOUR);
    ingest.body_timeout: Restart, time(TIMEOUT_MIN, TIMEOUT_MAX);
    ingest.answer_timeout: Restart, time(TIMEOUT_MIN, TIMEOUT_MAX);
    ingest.inflight_bytes_max: Restart, bytes_from(MIB);

    grpc.listen: Restart;
    grpc.allow_anonymous: Restart;
    grpc.tls_certificate_file: Restart;
    grpc.tls_key_file: Restart;
    grpc.tls_client_ca_file: Restart;
    grpc.tls_client_crl_file: Restart;
    grpc.subscriptions_max: Restart, count(1, SUBSCRIPTIONS_MAX);
    grpc.subscriptions_per_client_max: Restart, count(1, SUBSCRIPTIONS_MAX);
    grpc.task_ids_max: Restart, count(1, 1_000_000);
    grpc.task_ids_in_all_max: Restart, count(1, 100_000_000);
    grpc.products_max: Restart, count(1, 10_000);
    grpc.connections_max: Restart, count(1, CONNECTIONS_MAX);
    grpc.connections_per_address_max: Restart, count(1, CONNECTIONS_MAX);
    // Pings closer together would be most of the traffic of a quiet connection.
    grpc.keepalive_interval: Restart, time(SECOND, HOUR);
    grpc.keepalive_timeout: Restart, time(TIMEOUT_MIN, TIMEOUT_MAX);
    grpc.request_bytes_max: Restart, bytes(KIB, 64 * MIB);
    grpc.inflight_bytes_max: Restart, bytes_from(MIB);
    grpc.reading_bytes_max: Restart, bytes_from(READING_BYTES_MIN);
    grpc.answers_bytes_max: Restart, bytes_from(ANSWERS_BYTES_MIN);
    grpc.stall_timeout: Restart, time(SECOND, TIMEOUT_MAX);
    grpc.hosts: Restart;
    grpc.cors_origins: Restart;

    admin.listen: Restart;
    admin.allow_anonymous: Restart;
    admin.hosts: Restart;
    admin.tls_certificate_file: Restart;
    admin.tls_key_file: Restart;

    console.media: Restart;
    console.media_hosts: Restart;

    acme.domains: Restart;
    acme.contact: Restart;
    acme.directory_url: Restart;
    acme.directory_ca_file: Restart;

    audit.file: Restart;
    audit.required: Restart;

    log.retention_age_max: Reload, time(SECOND, RETENTION_AGE_MAX);
    log.retention_bytes_max: Reload, bytes_from(MIB);
    log.segment_age_max: Reload, time(SECOND, SEGMENT_AGE_MAX);
    log.expect_existing: Restart;
    log.disk_free_min_percent: Reload, count(0, 100);

    quarantine.retention_age_max: Reload, time(SECOND, RETENTION_AGE_MAX);
    quarantine.retention_bytes_max: Reload, bytes_from(MIB);
    quarantine.retention_count_max: Reload, count(1, 1_000_000_000);

    cluster.servers: Restart;
    cluster.name: Restart;
    cluster.node: Restart;
    cluster.replicas: Restart, count(1, 5);
    cluster.create: Restart;
    cluster.user: Restart;
    cluster.password_file: Restart;
    cluster.tls_ca_file: Restart;
    cluster.tls_certificate_file: Restart;
    cluster.tls_key_file: Restart;
    cluster.monitoring_urls: Restart;
    cluster.sync: Restart;
    cluster.frame_bytes_max: Restart, bytes(64 * KIB, 8 * MIB);
    cluster.publish_timeout: Restart, time(TIMEOUT_MIN, TIMEOUT_MAX);
    cluster.forward_timeout: Restart, time(TIMEOUT_MIN, TIMEOUT_MAX);
    cluster.read_wait: Restart, time(Duration::ZERO, TIMEOUT_MAX);
    cluster.stream_bytes_max: Restart, bytes_from(MIB);

    reconcile.enabled: Restart;
    reconcile.base_url: Restart;
    reconcile.checks_per_minute_max: Restart, count(1, 6_000);
    reconcile.give_up_after: Restart, time(SECOND, Duration::from_secs(30 * 86_400));
    reconcile.unknown_tasks: Restart;
    reconcile.outage_min: Restart, time(SECOND, Duration::from_secs(86_400));
    reconcile.expect_within: Restart, time(SECOND, Duration::from_secs(7 * 86_400));
    reconcile.path: Restart;

    hub.ring_bytes_max: Restart, bytes_from(MIB);

    store.cache_bytes: Restart, bytes_from(MIB);

    shutdown.drain_timeout: Restart, time(SECOND, Duration::from_secs(600));

    logging.level: Reload;
    logging.format: Restart;

    traces.otlp_endpoint: Restart;
    traces.sampling_ratio: Restart;
}

impl Config {
    /// The configuration in force after a running broker with this one has reloaded `new`.
    #[must_use]
    pub(crate) fn take_up(&self, new: &Self) -> Self {
        let mut in_force = self.clone();
        for key in of(Reload) {
            (key.take_up)(&mut in_force, new);
        }
        in_force
    }

    /// A hash of the value of each key that has to be the same on all nodes of a cluster.
    pub(crate) fn of_all_nodes(&self) -> BTreeMap<String, String> {
        let hash = |key: &Key| {
            let value = xxh3_64((key.show)(self).as_bytes());
            (key.name.to_owned(), format!("{value:016x}"))
        };
        KEYS.iter()
            .filter(|key| is_of_all_nodes(key.name))
            .map(hash)
            .collect()
    }

    /// The changes that a reload of `new` applies, as `KEY: OLD -> NEW`.
    pub(crate) fn changes_to(&self, new: &Self) -> Vec<String> {
        of(Reload)
            .filter(|key| (key.differs)(self, new))
            .map(|key| format!("{}: {}", key.name, (key.describe)(self, new)))
            .collect()
    }
}

fn is_of_all_nodes(name: &str) -> bool {
    OF_ALL_NODES.contains(&name)
        || SECTIONS_OF_ALL_NODES
            .iter()
            .any(|section| name.starts_with(section))
}

/// Keys that differ and need a restart.
pub(crate) fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    of(Restart)
        .filter(|key| (key.differs)(old, new))
        .map(|key| key.name)
        .collect()
}

fn of(change: Change) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.change == change)
}
