//! The credentials file, and what the configuration counts on in it.

use std::{fs, sync::Arc};

use super::{Addresses, exposure};
use crate::{
    config::{self, Config},
    credentials::{Credentials, SharedCredentials},
    ingest::{Allowlist, BodySignature, ForwardedHeader, Rules, TrustedProxies},
};

/// Largest file that is read: room for ten thousand clients.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads the file the configuration names, and checks that it has what the configuration counts on.
pub(super) fn load(config: &Config, addresses: &Addresses) -> Result<Credentials, String> {
    let credentials = read(config)?;
    check(config, addresses, &credentials)?;
    Ok(credentials)
}

fn read(config: &Config) -> Result<Credentials, String> {
    let Some(path) = &config.credentials_file else { return Ok(Credentials::default()) };
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let size = fs::metadata(path).map_err(|error| told(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(told(&format!("has more than {FILE_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|error| told(&error))?;
    Credentials::parse(&text).map_err(|error| told(&error))
}

/// Whether the credentials have what the configuration counts on. Where the listeners are is for the sockets to say: those that
/// were inherited may be anywhere.
pub(super) fn check(config: &Config, addresses: &Addresses, credentials: &Credentials) -> Result<(), String> {
    let Config { ingest, grpc, admin, .. } = config;
    if ingest.body_signature != config::BodySignature::Off && credentials.body_secret().is_none() {
        let needed = "ingest.body_signature needs the vendor's secret: add [body_signature] to the credentials file";
        return Err(needed.to_owned());
    }
    let asks_something = ingest.body_signature == config::BodySignature::Require
        || ingest.allowlist == config::Allowlist::Enforce
        || credentials.verify_urls();
    if !super::is_loopback(addresses.ingest) && !ingest.allow_unverified && !asks_something {
        return Err(format!(
            "ingest.listen: {} is not loopback, and nothing is asked of callbacks: add [callback_tokens] or \
             [signing_keys] to the credentials file, or set ingest.allow_unverified",
            addresses.ingest
        ));
    }
    if !super::is_loopback(addresses.grpc) && !grpc.allow_anonymous && !credentials.verify_clients() {
        return Err(format!(
            "grpc.listen: {} is not loopback, and nobody is known: add [clients] to the credentials file, or set \
             grpc.allow_anonymous",
            addresses.grpc
        ));
    }
    if !super::is_loopback(addresses.admin) && !admin.allow_anonymous {
        return Err(format!(
            "admin.listen: {} is not loopback: listen on 127.0.0.1, or set admin.allow_anonymous",
            addresses.admin
        ));
    }
    Ok(())
}

/// What callbacks have to show, by the configuration.
pub(super) fn rules(config: &Config, credentials: Arc<SharedCredentials>) -> Rules {
    let config::Ingest { body_signature, allowlist, allowed_networks, trusted_proxies, forwarded_header, .. } =
        &config.ingest;
    Rules {
        credentials,
        body_signature: match body_signature {
            config::BodySignature::Off => BodySignature::Off,
            config::BodySignature::Observe => BodySignature::Observe,
            config::BodySignature::Require => BodySignature::Require,
        },
        allowlist: match allowlist {
            config::Allowlist::Off => Allowlist::Off,
            config::Allowlist::Report => Allowlist::Report,
            config::Allowlist::Enforce => Allowlist::Enforce,
        },
        allowed: allowed_networks.clone(),
        proxies: TrustedProxies {
            networks: trusted_proxies.clone(),
            header: match forwarded_header {
                config::ForwardedHeader::XForwardedFor => ForwardedHeader::XForwardedFor,
                config::ForwardedHeader::Forwarded => ForwardedHeader::Forwarded,
            },
        },
        bytes_per_minute_max: config.ingest.bytes_per_minute_max,
    }
}

/// Puts what the file says by now into force. A file that can be read is taken whatever is missing in it: what it has lost is
/// refused from now on, and that is what its owner wants who removes a leaked token.
pub(super) fn reload(config: &Config, credentials: &SharedCredentials) -> Result<String, String> {
    credentials.set(read(config)?);
    exposure::warn_of_secrets(&config.credentials_file);
    let new = credentials.get();
    tell_who_is_shut_out(config, &new);
    let [callback_tokens, signing_keys, clients] = new.counts();
    Ok(format!("{callback_tokens} callback tokens, {signing_keys} signing keys, {clients} clients"))
}

fn tell_who_is_shut_out(config: &Config, credentials: &Credentials) {
    let [callback_tokens, signing_keys, clients] = credentials.counts();
    if credentials.verify_urls() && callback_tokens + signing_keys == 0 {
        tracing::warn!(
            "no callback is let in any more: the credentials file has no token and no signing key left; add one \
             (`blobcast token new callback NAME`)"
        );
    }
    if config.ingest.body_signature == config::BodySignature::Require && credentials.body_secret().is_none() {
        tracing::warn!(
            "no callback is let in any more: the credentials file has no [body_signature] left, which \
             ingest.body_signature needs; add it"
        );
    }
    if credentials.verify_clients() && clients == 0 && !config.grpc.allow_anonymous {
        tracing::warn!(
            "no call is let in any more: the credentials file has no client left; add one \
             (`blobcast token new client NAME`)"
        );
    }
}
