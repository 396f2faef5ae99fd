//! The limits of each value and the rules between them. Pure: looks at a typed configuration, touches nothing.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{Allowlist, Config, layers::Layers, units::duration_text};
use crate::size::size_text;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);
/// Ten years: beyond any retention, and within every calendar arithmetic.
const RETENTION_AGE_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// A day less, as an event must not become younger than the file it is in.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(3649 * 86_400);
/// hyper panics at a read buffer below this (`http1::Builder::max_buf_size`).
const READ_BUFFER_BYTES_MIN: u64 = 8 * KIB;
/// curl sends five with a callback, and a proxy adds some.
const HEADERS_MIN: u64 = 8;
/// Four clients' shares of the largest answer of `GetTask` while it is made, as stored and as sent.
const ANSWERS_BYTES_MIN: u64 = 32 * MIB;
/// What an event has beside its body as received, and what it says of that; and a quarantined callback beside its body and URL.
const REST_BYTES: u64 = 64 * KIB;
/// Four shares of a page of a listing while it is made, as stored and as sent: its least size, and the event that it ends with.
const ANSWERS_BYTES_BASE: u64 = 4 * 2 * (MIB + REST_BYTES);
/// … and that event has the body as received, and what it says.
const ANSWERS_PER_BODY: u64 = 4 * 2 * 2;

/// Reports every value out of its range and every broken rule.
pub(super) fn check(config: &Config, layers: &mut Layers) {
    for range in ranges(config).iter().filter(|range| !range.holds()) {
        let what = format!(
            "{} is out of range, which is {}",
            range.unit.text(range.value),
            range.allowed()
        );
        layers.report(
            layers.origin(range.key),
            range.key,
            what,
            "choose a value within it",
        );
    }
    check_exposure(config, layers);
    check_the_allowlist_lets_someone_in(config, layers);
    check_tls(config, layers);
    check_acme(config, layers);
    check_audit(config, layers);
    check_hosts(config, layers);
    check_listeners_differ(config, layers);
    check_one_request_fits(config, layers);
    check_one_callback_fits(config, layers);
    check_segments_go_in_time(config, layers);
}

#[derive(Clone, Copy)]
pub(super) enum Unit {
    Bytes,
    Nanoseconds,
    One,
}

impl Unit {
    pub(super) fn text(self, value: u128) -> String {
        match self {
            Self::Bytes => u64::try_from(value).map_or_else(|_| value.to_string(), size_text),
            Self::Nanoseconds => duration_text(value),
            Self::One => value.to_string(),
        }
    }
}

/// What one key may be; `max` is `None` where only the machine sets a limit.
pub(super) struct Range {
    pub(super) key: &'static str,
    pub(super) unit: Unit,
    value: u128,
    min: u128,
    max: Option<u128>,
}

impl Range {
    fn holds(&self) -> bool {
        self.value >= self.min && self.max.is_none_or(|max| self.value <= max)
    }

    fn allowed(&self) -> String {
        let min = self.unit.text(self.min);
        match self.max {
            Some(max) => format!("{min} to {}", self.unit.text(max)),
            None => format!("{min} or more"),
        }
    }
}

fn bytes(key: &'static str, value: u64, min: u64, max: impl Into<Option<u64>>) -> Range {
    Range {
        key,
        unit: Unit::Bytes,
        value: value.into(),
        min: min.into(),
        max: max.into().map(u128::from),
    }
}

fn count(key: &'static str, value: u64, min: u64, max: u64) -> Range {
    Range {
        key,
        unit: Unit::One,
        value: value.into(),
        min: min.into(),
        max: Some(max.into()),
    }
}

fn time(key: &'static str, value: Duration, min: Duration, max: Duration) -> Range {
    let (value, min, max) = (value.as_nanos(), min.as_nanos(), Some(max.as_nanos()));
    Range {
        key,
        unit: Unit::Nanoseconds,
        value,
        min,
        max,
    }
}

/// The range of every key that is a number, a size or a duration.
pub(super) fn ranges(config: &Config) -> Vec<Range> {
    let Config {
        ingest,
        grpc,
        log,
        quarantine,
        hub,
        store,
        shutdown,
        ..
    } = config;
    vec![
        count(
            "ingest.connections_max",
            ingest.connections_max,
            1,
            1_000_000,
        ),
        count(
            "ingest.connections_per_address_max",
            ingest.connections_per_address_max,
            1,
            1_000_000,
        ),
        count(
            "ingest.refusals_per_minute_max",
            ingest.refusals_per_minute_max,
            1,
            1_000_000,
        ),
        bytes(
            "ingest.bytes_per_minute_max",
            ingest.bytes_per_minute_max,
            0,
            None,
        ),
        bytes(
            "ingest.body_bytes_max",
            ingest.body_bytes_max,
            KIB,
            64 * MIB,
        ),
        bytes(
            "ingest.header_bytes_max",
            ingest.header_bytes_max,
            READ_BUFFER_BYTES_MIN,
            MIB,
        ),
        count("ingest.headers_max", ingest.headers_max, HEADERS_MIN, 1000),
        time(
            "ingest.header_timeout",
            ingest.header_timeout,
            TIMEOUT_MIN,
            TIMEOUT_MAX,
        ),
        time(
            "ingest.idle_timeout",
            ingest.idle_timeout,
            TIMEOUT_MIN,
            3600 * SECOND,
        ),
        time(
            "ingest.body_timeout",
            ingest.body_timeout,
            TIMEOUT_MIN,
            TIMEOUT_MAX,
        ),
        time(
            "ingest.answer_timeout",
            ingest.answer_timeout,
            TIMEOUT_MIN,
            TIMEOUT_MAX,
        ),
        bytes(
            "ingest.inflight_bytes_max",
            ingest.inflight_bytes_max,
            MIB,
            None,
        ),
        count(
            "grpc.subscriptions_max",
            grpc.subscriptions_max,
            1,
            10_000_000,
        ),
        count(
            "grpc.subscriptions_per_client_max",
            grpc.subscriptions_per_client_max,
            1,
            10_000_000,
        ),
        count("grpc.task_ids_max", grpc.task_ids_max, 1, 1_000_000),
        count(
            "grpc.task_ids_in_all_max",
            grpc.task_ids_in_all_max,
            1,
            100_000_000,
        ),
        count("grpc.products_max", grpc.products_max, 1, 10_000),
        count("grpc.connections_max", grpc.connections_max, 1, 1_000_000),
        count(
            "grpc.connections_per_address_max",
            grpc.connections_per_address_max,
            1,
            1_000_000,
        ),
        // Pings closer together would be most of the traffic of a quiet connection.
        time(
            "grpc.keepalive_interval",
            grpc.keepalive_interval,
            SECOND,
            3600 * SECOND,
        ),
        time(
            "grpc.keepalive_timeout",
            grpc.keepalive_timeout,
            TIMEOUT_MIN,
            TIMEOUT_MAX,
        ),
        bytes(
            "grpc.request_bytes_max",
            grpc.request_bytes_max,
            KIB,
            64 * MIB,
        ),
        bytes(
            "grpc.inflight_bytes_max",
            grpc.inflight_bytes_max,
            MIB,
            None,
        ),
        // Less would be a few events at a time.
        bytes(
            "grpc.reading_bytes_max",
            grpc.reading_bytes_max,
            8 * MIB,
            None,
        ),
        bytes(
            "grpc.answers_bytes_max",
            grpc.answers_bytes_max,
            ANSWERS_BYTES_MIN,
            None,
        ),
        time(
            "grpc.stall_timeout",
            grpc.stall_timeout,
            SECOND,
            TIMEOUT_MAX,
        ),
        time(
            "log.retention_age_max",
            log.retention_age_max,
            SECOND,
            RETENTION_AGE_MAX,
        ),
        bytes(
            "log.retention_bytes_max",
            log.retention_bytes_max,
            MIB,
            None,
        ),
        time(
            "log.segment_age_max",
            log.segment_age_max,
            SECOND,
            SEGMENT_AGE_MAX,
        ),
        count(
            "log.disk_free_min_percent",
            log.disk_free_min_percent,
            0,
            100,
        ),
        time(
            "quarantine.retention_age_max",
            quarantine.retention_age_max,
            SECOND,
            RETENTION_AGE_MAX,
        ),
        bytes(
            "quarantine.retention_bytes_max",
            quarantine.retention_bytes_max,
            MIB,
            None,
        ),
        count(
            "quarantine.retention_count_max",
            quarantine.retention_count_max,
            1,
            1_000_000_000,
        ),
        bytes("hub.ring_bytes_max", hub.ring_bytes_max, MIB, None),
        bytes("store.cache_bytes", store.cache_bytes, MIB, None),
        time(
            "shutdown.drain_timeout",
            shutdown.drain_timeout,
            SECOND,
            600 * SECOND,
        ),
    ]
}

/// An address that other machines can reach, unprotected, must be asked for by name.
fn check_exposure(config: &Config, layers: &mut Layers) {
    let Config {
        ingest,
        grpc,
        admin,
        ..
    } = config;
    // What the credentials file asks for is checked where it is read.
    let is_verified = ingest.allow_unverified
        || config.credentials_file.is_some()
        || ingest.allowlist == Allowlist::Enforce;
    let has_clients = grpc.allow_anonymous || config.credentials_file.is_some();
    let credentials = "name a `credentials_file` (`blobcast token new` makes its lines), ";
    let listeners = [
        (
            "ingest.listen",
            ingest.listen,
            "ingest.allow_unverified",
            is_verified,
            "make up events",
            credentials,
        ),
        (
            "grpc.listen",
            grpc.listen,
            "grpc.allow_anonymous",
            has_clients,
            "read every event",
            credentials,
        ),
        (
            "admin.listen",
            admin.listen,
            "admin.allow_anonymous",
            admin.allow_anonymous,
            "read metrics and state",
            "",
        ),
    ];
    for (key, address, consent, given, danger, protection) in listeners {
        // A consent that could not be read is reported already.
        if address.ip().to_canonical().is_loopback() || given || !layers.is_readable(consent) {
            continue;
        }
        let what = format!("{address} is not loopback: anybody who can reach it could {danger}");
        let remedy =
            format!("{protection}listen on 127.0.0.1, or set `{consent} = true` if that is wanted");
        layers.report(layers.origin(key), key, what, remedy);
    }
}

fn check_the_allowlist_lets_someone_in(config: &Config, layers: &mut Layers) {
    let key = "ingest.allowlist";
    if config.ingest.allowlist == Allowlist::Enforce && config.ingest.allowed_networks.is_empty() {
        let what = "would refuse every callback: `ingest.allowed_networks` is empty";
        layers.report(
            layers.origin(key),
            key,
            what,
            "name the networks, or choose \"report\"",
        );
    }
}

fn check_tls(config: &Config, layers: &mut Layers) {
    let Config {
        ingest,
        grpc,
        admin,
        ..
    } = config;
    for (certificate, key, files) in [
        (
            "ingest.tls_certificate_file",
            "ingest.tls_key_file",
            (&ingest.tls_certificate_file, &ingest.tls_key_file),
        ),
        (
            "grpc.tls_certificate_file",
            "grpc.tls_key_file",
            (&grpc.tls_certificate_file, &grpc.tls_key_file),
        ),
        (
            "admin.tls_certificate_file",
            "admin.tls_key_file",
            (&admin.tls_certificate_file, &admin.tls_key_file),
        ),
    ] {
        let (lonely, missing) = match files {
            (Some(_), None) => (certificate, key),
            (None, Some(_)) => (key, certificate),
            _ => continue,
        };
        let what = format!("is of no use without `{missing}`");
        layers.report(layers.origin(lonely), lonely, what, "set both, or neither");
    }
    if grpc.tls_client_ca_file.is_some() && grpc.tls_certificate_file.is_none() {
        let key = "grpc.tls_client_ca_file";
        let what = "clients show certificates within TLS only, and the listener has none";
        layers.report(
            layers.origin(key),
            key,
            what,
            "set `grpc.tls_certificate_file` and `grpc.tls_key_file`",
        );
    }
    if grpc.tls_client_crl_file.is_some() && grpc.tls_client_ca_file.is_none() {
        let key = "grpc.tls_client_crl_file";
        let what = "revokes certificates of clients, and nobody asks for those";
        layers.report(
            layers.origin(key),
            key,
            what,
            "set `grpc.tls_client_ca_file`",
        );
    }
}

fn check_acme(config: &Config, layers: &mut Layers) {
    let key = "acme.domains";
    if config.acme.domains.is_empty() {
        return;
    }
    if config.ingest.tls_certificate_file.is_some() {
        let what = "the public listener has a certificate by `ingest.tls_certificate_file`";
        layers.report(layers.origin(key), key, what, "choose one of the two");
    }
    let is_name = |name: &str| {
        let label = |label: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            (1..=63).contains(&label.len()) && label.bytes().all(allowed)
        };
        name.len() <= 253
            && name.contains('.')
            && name.split('.').all(label)
            && name.parse::<Ipv4Addr>().is_err()
    };
    if let Some(wrong) = config.acme.domains.iter().find(|name| !is_name(name)) {
        let what = format!(
            "{wrong:?} is no domain that can be proved: not an address, a wildcard or a URL"
        );
        layers.report(
            layers.origin(key),
            key,
            what,
            "write it like hooks.example.com",
        );
    }
}

fn check_audit(config: &Config, layers: &mut Layers) {
    let key = "audit.required";
    if config.audit.required && config.audit.file.is_none() {
        let what = "is of no use without `audit.file`: lines of the log may be lost";
        layers.report(
            layers.origin(key),
            key,
            what,
            "name a file, or leave it off",
        );
    }
}

fn check_hosts(config: &Config, layers: &mut Layers) {
    let key = "admin.hosts";
    let is_host = |host: &str| {
        let (name, port) = host
            .split_once(':')
            .map_or((host, None), |(name, port)| (name, Some(port)));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        !name.is_empty()
            && name.bytes().all(allowed)
            && port.is_none_or(|port| port.parse::<u16>().is_ok())
    };
    if let Some(wrong) = config.admin.hosts.iter().find(|host| !is_host(host)) {
        let what = format!("{wrong:?} is no name of a host, with or without a port");
        layers.report(
            layers.origin(key),
            key,
            what,
            "write it like blobcast.internal or blobcast.internal:9090",
        );
    }
}

fn check_listeners_differ(config: &Config, layers: &mut Layers) {
    let listeners = [
        ("ingest.listen", config.ingest.listen),
        ("grpc.listen", config.grpc.listen),
        ("admin.listen", config.admin.listen),
    ];
    // Port 0 is a different free port each time.
    let same = |a: SocketAddr, b: SocketAddr| a == b && a.port() != 0;
    for (index, (key, address)) in listeners.into_iter().enumerate() {
        let Some((other, _)) = listeners
            .into_iter()
            .take(index)
            .find(|(_, other)| same(*other, address))
        else {
            continue;
        };
        // The one that was set is the one to change.
        let blamed = if layers.origin(key) == super::Origin::Default {
            other
        } else {
            key
        };
        let what = format!(
            "{address} is also the address of `{}`",
            if blamed == key { other } else { key }
        );
        layers.report(
            layers.origin(blamed),
            blamed,
            what,
            "give each listener its own port",
        );
    }
}

fn check_one_request_fits(config: &Config, layers: &mut Layers) {
    let Config { ingest, grpc, .. } = config;
    for (key, all, one_key, one) in [
        (
            "ingest.inflight_bytes_max",
            ingest.inflight_bytes_max,
            "ingest.body_bytes_max",
            ingest.body_bytes_max,
        ),
        (
            "grpc.inflight_bytes_max",
            grpc.inflight_bytes_max,
            "grpc.request_bytes_max",
            grpc.request_bytes_max,
        ),
    ] {
        if all < one && layers.is_readable(one_key) {
            let what = format!(
                "{} is less than `{one_key}`, {}",
                size_text(all),
                size_text(one)
            );
            layers.report(
                layers.origin(key),
                key,
                what,
                "raise it, or lower the other: one must fit",
            );
        }
    }
}

/// A file of the log goes when all that is in it is forgotten: with a longer age the oldest would stay for more than twice as long as
/// it is kept. The default gives way by itself.
fn check_segments_go_in_time(config: &Config, layers: &mut Layers) {
    let (key, age_key) = ("log.segment_age_max", "log.retention_age_max");
    let super::Log {
        segment_age_max,
        retention_age_max,
        ..
    } = &config.log;
    let is_set = layers.origin(key) != super::Origin::Default;
    if is_set && segment_age_max >= retention_age_max && layers.is_readable(age_key) {
        let [age, kept] =
            [segment_age_max, retention_age_max].map(|age| duration_text(age.as_nanos()));
        let what = format!(
            "{age} is not less than `{age_key}`, {kept}: events would be on the disk for twice as long as kept"
        );
        layers.report(layers.origin(key), key, what, "lower it, or leave it out");
    }
}

/// A log that is smaller than one event forgets it as soon as it is answered, and an answer with it may need memory that another
/// client's unread answers have.
fn check_one_callback_fits(config: &Config, layers: &mut Layers) {
    let Config {
        ingest,
        grpc,
        log,
        quarantine,
        ..
    } = config;
    let key = "ingest.body_bytes_max";
    if !layers.is_readable(key) {
        return;
    }
    let forgotten = "a callback of that size would be forgotten as soon as it was answered";
    let beside = ingest.header_bytes_max.saturating_add(REST_BYTES);
    // Each needs so much, and so many times the body.
    for (all_key, all, base, times, what) in [
        (
            "log.retention_bytes_max",
            log.retention_bytes_max,
            REST_BYTES,
            2,
            forgotten,
        ),
        (
            "quarantine.retention_bytes_max",
            quarantine.retention_bytes_max,
            beside,
            1,
            forgotten,
        ),
        (
            "grpc.answers_bytes_max",
            grpc.answers_bytes_max,
            ANSWERS_BYTES_BASE,
            ANSWERS_PER_BODY,
            "one client's unread answers with callbacks of that size could keep all others' waiting",
        ),
    ] {
        let needed = base.saturating_add(ingest.body_bytes_max.saturating_mul(times));
        // A smaller one is out of its range.
        let body_bytes = all.saturating_sub(base) / times / KIB * KIB;
        if all >= needed || body_bytes == 0 {
            continue;
        }
        let what = format!(
            "{} is too little for `{key}`, {}: {what}",
            size_text(all),
            size_text(ingest.body_bytes_max)
        );
        let needed = size_text(needed.div_ceil(MIB).saturating_mul(MIB));
        let remedy = format!(
            "raise it to {needed}, or lower `{key}` to {}",
            size_text(body_bytes)
        );
        layers.report(layers.origin(all_key), all_key, what, remedy);
    }
}

/// For the test in `rpc` that these are its own numbers: memory for answers at which one client's unread ones keep nobody waiting, if bodies have so many bytes: a client's share, a
/// quarter, has room for the largest answer (`rpc`).
#[cfg(test)]
pub(crate) fn answers_bytes_min(body_bytes_max: u64) -> u64 {
    ANSWERS_BYTES_BASE
        .saturating_add(body_bytes_max.saturating_mul(ANSWERS_PER_BODY))
        .max(ANSWERS_BYTES_MIN)
}
