//! The configuration as its users see it: accepted values, precedence of the layers, and the
//! errors.

mod cluster;
mod default_file;
mod layers;
mod mistakes;
mod ranges;
mod reconcile;
mod listeners;
mod units;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use proptest::prelude::*;
use serde::Deserialize;
use toml::Value;

use super::{
    keys::Change,
    layers::{CLIENT_VARIABLES, Layers},
    units::{duration_text, parse_duration, parse_listen},
    *,
};
use crate::size::size_text;

/// Certificate, key, authority and revocation lists of each listener, and what is shown to NATS.
const TLS: [[&str; 4]; 4] = [
    ["ingest.tls_certificate_file", "ingest.tls_key_file", "", ""],
    [
        "grpc.tls_certificate_file",
        "grpc.tls_key_file",
        "grpc.tls_client_ca_file",
        "grpc.tls_client_crl_file",
    ],
    ["admin.tls_certificate_file", "admin.tls_key_file", "", ""],
    [
        "cluster.tls_certificate_file",
        "cluster.tls_key_file",
        "",
        "",
    ],
];

const SERVERS: (&str, &str) = ("cluster.servers", "nats://n");

fn flag(key: &str, value: &str) -> ConfigSources {
    flags(&[(key, value)])
}

/// Flags. Those of a cluster are beside its servers, without which they are refused.
fn flags(flags: &[(&str, &str)]) -> ConfigSources {
    let is_of_cluster = flags.iter().any(|(key, _)| key.starts_with("cluster."));
    let has_servers = flags.iter().any(|(key, _)| *key == SERVERS.0);
    let servers = (is_of_cluster && !has_servers).then_some(SERVERS);
    only_flags(&[servers.as_slice(), flags].concat())
}

fn only_flags(flags: &[(&str, &str)]) -> ConfigSources {
    ConfigSources {
        flags: flags
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        ..ConfigSources::default()
    }
}

fn variable(name: &str, value: &str) -> ConfigSources {
    ConfigSources {
        env: vec![(name.into(), value.into())],
        ..ConfigSources::default()
    }
}

/// Loads `text` as the user's file, with the other layers of `sources`. Errors show the file
/// without its directory.
fn load_with_file(text: &str, sources: ConfigSources) -> Result<Config, ConfigErrors> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    std::fs::write(&path, text).unwrap();
    load(&ConfigSources {
        file: Some(path),
        ..sources
    })
    .map_err(|mut errors| {
        for problem in &mut errors.problems {
            if let Origin::File(path) | Origin::Line { path, .. } = &mut problem.origin {
                *path = "blobcast.toml".into();
            }
        }
        errors
    })
}

fn load_file(text: &str) -> Result<Config, ConfigErrors> {
    load_with_file(text, ConfigSources::default())
}

fn errors_of(outcome: Result<Config, ConfigErrors>) -> Vec<String> {
    outcome
        .unwrap_err()
        .to_string()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn default_config() -> Config {
    load(&ConfigSources::default()).unwrap()
}

fn keys() -> Vec<String> {
    Layers::defaults().keys().to_vec()
}

fn variable_of(key: &str) -> String {
    format!("BLOBCAST_{}", key.replace('.', "__").to_uppercase())
}

/// `key = value` as a line of a file: quoted if the default is.
fn line_of(key: &str, value: &str) -> String {
    match Layers::defaults().default_of(key) {
        // A list or a table may also be one comma-separated text.
        Some(Value::String(_) | Value::Array(_) | Value::Table(_)) => format!("{key} = {value:?}"),
        _ => format!("{key} = {value}"),
    }
}
