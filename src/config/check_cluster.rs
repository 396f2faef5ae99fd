//! The rules between the keys of `[cluster]`. Pure; files are checked where they are read.

use super::{layers::Layers, settings::Config};

/// Longest name of a cluster: it is part of the names of subjects and of the stream.
const NAME_BYTES_MAX: usize = 32;
/// Longest name of a node, as host names have it.
const NODE_BYTES_MAX: usize = 64;

/// Reports every broken rule.
pub(super) fn check(config: &Config, layers: &mut Layers) {
    check_has_servers(config, layers);
    check_names(config, layers);
    check_pairs(config, layers);
}

/// Without servers this broker is alone. A key of the section that says otherwise must not be ignored: what was meant as a node
/// would take callbacks into a log of its own.
fn check_has_servers(config: &Config, layers: &mut Layers) {
    const SERVERS: &str = "cluster.servers";
    if config.cluster.is_on() || !layers.is_readable(SERVERS) {
        return;
    }
    let set = layers.set_in("cluster");
    for key in set.iter().filter(|key| *key != SERVERS) {
        let what = format!("is of no use without `{SERVERS}`: this broker would be alone");
        let remedy = "name the NATS servers (--cluster), or leave it out";
        layers.report(layers.origin(key), key, what, remedy);
    }
}

/// The names are words of subjects.
fn check_names(config: &Config, layers: &mut Layers) {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    let cluster = &config.cluster;
    for (key, name, bytes_max, may_be_empty) in [
        ("cluster.name", &cluster.name, NAME_BYTES_MAX, false),
        ("cluster.node", &cluster.node, NODE_BYTES_MAX, true),
    ] {
        let is_name = name.len() <= bytes_max && name.bytes().all(allowed);
        if is_name && (may_be_empty || !name.is_empty()) {
            continue;
        }
        let what =
            format!("{name:?} is no name: it has 1 to {bytes_max} of a-z, A-Z, 0-9, - and _");
        layers.report(layers.origin(key), key, what, "choose another one");
    }
}

fn check_pairs(config: &Config, layers: &mut Layers) {
    let cluster = &config.cluster;
    let (user, password) = (!cluster.user.is_empty(), cluster.password_file.is_some());
    let certificate = cluster.tls_certificate_file.is_some();
    for (first, is_set, second, is_second_set) in [
        ("cluster.user", user, "cluster.password_file", password),
        (
            "cluster.tls_certificate_file",
            certificate,
            "cluster.tls_key_file",
            cluster.tls_key_file.is_some(),
        ),
    ] {
        let (lonely, missing) = match (is_set, is_second_set) {
            (true, false) => (first, second),
            (false, true) => (second, first),
            _ => continue,
        };
        if layers.is_readable(missing) {
            let what = format!("is of no use without `{missing}`");
            layers.report(layers.origin(lonely), lonely, what, "set both, or neither");
        }
    }
}
