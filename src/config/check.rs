//! The range of each value and the rules between keys.
//!
//! Pure: reads a typed configuration and reports problems. Files that a key names are checked where
//! they are read.

use std::net::{Ipv4Addr, SocketAddr};

#[cfg(test)]
use super::keys::ANSWERS_BYTES_MIN;
use super::{
    keys::KEYS,
    layers::Layers,
    problem::Origin,
    settings::{Allowlist, Config, Log},
    units::duration_text,
};
use crate::size::size_text;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Size of an event beside its raw body and the fields read from it; also of a quarantined callback
/// beside its body and URL.
const REST_BYTES: u64 = 64 * KIB;
/// Four times a page of a listing, as stored and as sent: the page's size limit, and the event that
/// exceeds it …
const ANSWERS_BYTES_BASE: u64 = 4 * 2 * (MIB + REST_BYTES);
/// … which has its raw body and the fields read from it.
const ANSWERS_PER_BODY: u64 = 4 * 2 * 2;

/// Reports every value out of its range and every broken rule.
pub(super) fn check(config: &Config, layers: &mut Layers) {
    for key in KEYS {
        if let Some(what) = key.out_of_range(config) {
            let origin = layers.origin(key.name);
            layers.report(origin, key.name, what, "choose a value within it");
        }
    }

    check_exposure(config, layers);
    check_the_allowlist_lets_someone_in(config, layers);
    check_tls(config, layers);
    check_acme(config, layers);
    check_audit(config, layers);
    super::check_cluster::check(config, layers);
    check_reconcile(config, layers);
    check_hosts(config, layers);
    check_origins(config, layers);
    check_listeners_differ(config, layers);
    check_one_request_fits(config, layers);
    check_one_callback_fits(config, layers);
    check_segments_go_in_time(config, layers);
}

/// A listener that other machines can reach without credentials needs an explicit consent.
fn check_exposure(config: &Config, layers: &mut Layers) {
    let Config {
        ingest,
        grpc,
        admin,
        ..
    } = config;

    // Whether the credentials file protects the listener is checked where it is read.
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
        // A consent that cannot be read is reported already.
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

/// The keys for the vendor's API are in the credentials file.
fn check_reconcile(config: &Config, layers: &mut Layers) {
    let key = "reconcile.enabled";
    let has_credentials =
        config.credentials_file.is_some() || !layers.is_readable("credentials_file");
    if config.reconcile.enabled && !has_credentials {
        let what = "needs a key for the vendor's API, and there is no `credentials_file`";
        let remedy = "name one with a [[vendor_keys]] (`blobcast token new vendor-key` makes its lines), or leave it off";
        layers.report(layers.origin(key), key, what, remedy);
    }
}

fn check_hosts(config: &Config, layers: &mut Layers) {
    let is_host = |host: &str| {
        let (name, port) = host
            .split_once(':')
            .map_or((host, None), |(name, port)| (name, Some(port)));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        !name.is_empty()
            && name.bytes().all(allowed)
            && port.is_none_or(|port| port.parse::<u16>().is_ok())
    };
    for (key, hosts, port) in [
        ("grpc.hosts", &config.grpc.hosts, 50051),
        ("admin.hosts", &config.admin.hosts, 9090),
        ("console.media_hosts", &config.console.media_hosts, 443),
    ] {
        let Some(wrong) = hosts.iter().find(|host| !is_host(host)) else {
            continue;
        };
        let what = format!("{wrong:?} is no name of a host, with or without a port");
        let remedy = format!("write it like blobcast.internal or blobcast.internal:{port}");
        layers.report(layers.origin(key), key, what, &remedy);
    }
}

fn check_origins(config: &Config, layers: &mut Layers) {
    let key = "grpc.cors_origins";
    let is_origin = |origin: &str| {
        let host = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://"));
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b);
        host.is_some_and(|host| !host.is_empty() && host.bytes().all(allowed))
    };
    if let Some(wrong) = config.grpc.cors_origins.iter().find(|it| !is_origin(it)) {
        let what = format!("{wrong:?} is no origin as a browser sends it");
        let remedy = "write scheme, host in lower case, and the port unless it is the scheme's own: https://app.example.com";
        layers.report(layers.origin(key), key, what, remedy);
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

        // Report the key that was set, not a default.
        let blamed = if layers.origin(key) == Origin::Default {
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

/// A segment is removed once its last event has expired. If it is written to for longer than events
/// are kept, its first event stays on disk for more than twice that time. The default of
/// `log.segment_age_max` adapts by itself.
fn check_segments_go_in_time(config: &Config, layers: &mut Layers) {
    let (key, age_key) = ("log.segment_age_max", "log.retention_age_max");
    let Log {
        segment_age_max,
        retention_age_max,
        ..
    } = &config.log;
    let is_set = layers.origin(key) != Origin::Default;
    if is_set && segment_age_max >= retention_age_max && layers.is_readable(age_key) {
        let [age, kept] =
            [segment_age_max, retention_age_max].map(|age| duration_text(age.as_nanos()));
        let what = format!(
            "{age} is not less than `{age_key}`, {kept}: events would be on the disk for twice as long as kept"
        );
        layers.report(layers.origin(key), key, what, "lower it, or leave it out");
    }
}

/// A log smaller than one event would remove it as soon as it was acknowledged. An answer that
/// needs more than a client's share of memory would wait for other clients to read theirs.
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

    // Each limit needs `base` bytes plus `times` bodies.
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
        // If no body fits, the limit itself is out of its range and already reported.
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

/// Memory for answers with which a client's share, a quarter, has room for the largest answer. A
/// test in `rpc` compares it with the numbers there.
#[cfg(test)]
pub(crate) fn answers_bytes_min(body_bytes_max: u64) -> u64 {
    ANSWERS_BYTES_BASE
        .saturating_add(body_bytes_max.saturating_mul(ANSWERS_PER_BODY))
        .max(ANSWERS_BYTES_MIN)
}
