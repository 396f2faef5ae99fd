//! The text that a person sees after the start: each address with its audience, and commands to paste. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use super::{addresses::Addresses, cluster::Node};
use crate::{config::Config, credentials::Credentials, nats::Synced, store::Store};

/// A callback to try the broker with; its task id is in the lines that show it.
const BODY: &str = r#"{"generation_id":"demo-1","status":"completed","video_url":"https://cdn.runblob.io/videos/demo-1.mp4"}"#;
const FILTER: &str = r#"{"filter":{"task_ids":["demo-1"],"products":["veo"]}}"#;
/// Shown where there is no `public_url`: the vendor calls from the internet.
const NOT_PUBLIC: &str = "
               (for this machine; for RunBlob put an HTTPS proxy in front, and name it by --public-url)";

pub(super) fn text(
    config: &Config,
    addresses: &Addresses,
    store: &Store,
    credentials: &Credentials,
    node: Option<&Node>,
) -> String {
    let rows = rows(config, addresses, store, node);
    let base = callback_base(config, addresses);
    let hint = if config.public_url.is_none() {
        NOT_PUBLIC
    } else {
        ""
    };
    let token = token_place(credentials);
    let Try {
        curl,
        grpcurl,
        listen,
    } = Try::new(config, addresses, credentials, token);

    format!(
        "blobcast {version} is ready

{rows}
callback_url   {base}/webhook/veo{token}{hint}

Send a callback:
  {curl}
See it:
  {grpcurl}
  {listen}

",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Secrets are not kept, so they cannot be shown. The place of one can.
fn token_place(credentials: &Credentials) -> &'static str {
    if credentials.verify_urls() {
        "?token=CALLBACK_TOKEN"
    } else {
        ""
    }
}

/// The same for the console, which shows it before the first callback.
pub(super) fn shown(config: &Config, addresses: &Addresses, credentials: &Credentials) -> Value {
    let token = token_place(credentials);
    let Try {
        curl,
        grpcurl,
        listen,
    } = Try::new(config, addresses, credentials, token);
    json!({
        "callbackUrl": format!("{}/webhook/veo{token}", callback_base(config, addresses)),
        "curl": curl,
        "grpcurl": grpcurl,
        "listen": listen,
        "grpcAddress": from_here(addresses.grpc),
        "grpcTls": config.grpc.tls_certificate_file.is_some(),
        "needsToken": credentials.verify_clients() && !config.grpc.allow_anonymous,
    })
}

/// A line for each address, one for the data, and two of a node of a cluster.
fn rows(config: &Config, addresses: &Addresses, store: &Store, node: Option<&Node>) -> String {
    let Addresses {
        ingest,
        grpc,
        admin,
    } = addresses;
    let ingest_scheme = scheme(ingest_has_tls(config));
    let admin_scheme = scheme(config.admin.tls_certificate_file.is_some());
    let events = store.summary().event_count;
    let mut rows = vec![
        (
            "console",
            format!("{admin_scheme}://{}/ui/", from_here(*admin)),
            "for people: `blobcast console` prints a link where a login is needed".to_owned(),
        ),
        (
            "callbacks",
            format!("{ingest_scheme}://{ingest}/webhook/PRODUCT"),
            "for RunBlob: the only address to make public".to_owned(),
        ),
        (
            "gRPC",
            grpc.to_string(),
            "for your services: blobcast.v1.EventService".to_owned(),
        ),
        (
            "admin",
            format!("{admin_scheme}://{admin}"),
            "for operators: /livez /readyz /metrics /version".to_owned(),
        ),
        (
            "data",
            config.data_dir.display().to_string(),
            format!("log {}, {events} events", store.epoch()),
        ),
    ];
    rows.extend(node.into_iter().flat_map(|node| cluster_rows(config, node)));

    let width = rows
        .iter()
        .map(|(_, place, _)| place.chars().count())
        .max()
        .unwrap_or_default();
    rows.iter()
        .map(|(what, place, audience)| format!("  {what:<12} {place:<width$}   {audience}\n"))
        .collect()
}

/// What the node has found at NATS, and which nodes there are.
fn cluster_rows(config: &Config, node: &Node) -> [(&'static str, String, String); 2] {
    let cluster = &config.cluster;
    let stream = node.stream.as_ref().map_or_else(
        || "not found yet".to_owned(),
        |(stream, synced)| {
            let leader = stream.leader.as_ref();
            let leader = leader.map_or_else(String::new, |leader| format!(", leader {leader}"));
            let synced = match synced {
                Synced::Shown => "synced",
                Synced::NotShown => "sync not shown",
            };
            format!("{}{leader}, {synced}", counted(stream.replicas, "replica"))
        },
    );
    let servers = format!(
        "{}; stream BLOBCAST_{}: {stream}",
        counted(cluster.servers.len(), "server"),
        cluster.name,
    );

    let overview = node.state.overview();
    let mut names = overview.nodes;
    if let Some(own) = names.first_mut() {
        own.push_str(" (this one)");
    }
    let writer = overview.writer.as_deref().unwrap_or("not known yet");
    let behind = counted(
        usize::try_from(overview.behind).unwrap_or(usize::MAX),
        "frame",
    );
    [
        (
            "cluster",
            format!("{}, node {}", cluster.name, node.name),
            servers,
        ),
        (
            "nodes",
            names.join(", "),
            format!("writer {writer}; {behind} behind"),
        ),
    ]
}

fn counted(count: usize, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// Commands to try the broker with, ready to paste.
struct Try {
    curl: String,
    grpcurl: String,
    listen: String,
}

impl Try {
    fn new(config: &Config, addresses: &Addresses, credentials: &Credentials, token: &str) -> Self {
        let ingest_here = from_here(addresses.ingest);
        let ingest_scheme = scheme(ingest_has_tls(config));
        let url = format!("{ingest_scheme}://{ingest_here}/webhook/veo{token}");
        let url = if token.is_empty() {
            url
        } else {
            format!("'{url}'")
        };

        let grpc_here = from_here(addresses.grpc);
        let (grpc_scheme, plaintext) = match &config.grpc.tls_certificate_file {
            Some(_) => ("https", ""),
            None => ("http", "-plaintext "),
        };
        let needs_token = credentials.verify_clients() && !config.grpc.allow_anonymous;
        let (bearer, variable) = if needs_token {
            (
                "-H 'authorization: Bearer CLIENT_TOKEN' ",
                "BLOBCAST_TOKEN=CLIENT_TOKEN ",
            )
        } else {
            ("", "")
        };

        Self {
            curl: format!("curl -H 'content-type: application/json' -d '{BODY}' {url}"),
            grpcurl: format!(
                "grpcurl {plaintext}{bearer}-d '{FILTER}' {grpc_here} blobcast.v1.EventService/Subscribe"
            ),
            listen: format!(
                "{variable}blobcast listen --product veo --task demo-1 --grpc-url {grpc_scheme}://{grpc_here}"
            ),
        }
    }
}

/// What callback URLs begin with.
pub(super) fn callback_base(config: &Config, addresses: &Addresses) -> String {
    let here = || {
        format!(
            "{}://{}",
            scheme(ingest_has_tls(config)),
            from_here(addresses.ingest)
        )
    };
    config.public_url.clone().unwrap_or_else(here)
}

fn ingest_has_tls(config: &Config) -> bool {
    config.ingest.tls_certificate_file.is_some() || !config.acme.domains.is_empty()
}

fn scheme(has_tls: bool) -> &'static str {
    if has_tls { "https" } else { "http" }
}

/// The address as it is reached from this machine: the one that stands for all interfaces cannot be connected to.
fn from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_stands_for_all_is_reached_by_loopback() {
        let here = |address: &str| from_here(address.parse().unwrap()).to_string();
        assert_eq!(here("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(here("[::]:80"), "[::1]:80");
        assert_eq!(here("192.0.2.1:80"), "192.0.2.1:80");
    }
}
