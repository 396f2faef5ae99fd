//! The credentials file, and what the configuration counts on in it.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    Addresses, exposure, lock,
    watch::{Change, Files, Watched},
};
use crate::{
    config::{self, Config},
    credentials::{Credentials, SharedCredentials},
    files,
    ingest::{Allowlist, BodySignature, ForwardedHeader, Rules, TrustedProxies},
};

/// Largest file that is read: room for ten thousand clients.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads the file the configuration names, and checks that it has what the configuration counts on.
pub(super) fn load(config: &Config, addresses: &Addresses) -> Result<Credentials, String> {
    let credentials = config.credentials_file.as_deref().map(read).transpose()?.unwrap_or_default();
    check(config, addresses, &credentials)?;
    Ok(credentials)
}

fn read(path: &Path) -> Result<Credentials, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = files::read_text(path, FILE_BYTES_MAX).map_err(|error| told(&error))?;
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
        public_url: config.public_url.clone(),
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

/// The file, if there is one, which is read again when it changes.
pub(super) fn watched(config: &Arc<Mutex<Config>>, credentials: &Arc<SharedCredentials>) -> Option<Watched> {
    let path = lock(config).credentials_file.clone()?;
    let (config, credentials) = (Arc::clone(config), Arc::clone(credentials));
    let files = Files::new("credentials", [path.clone()]);
    Some(files.watched(move || {
        let (new, config, credentials) = (read(&path)?, Arc::clone(&config), Arc::clone(&credentials));
        exposure::warn_of_secrets([&path]);
        let change: Change = Box::new(move || put_into_force(new, &lock(&config), &credentials));
        Ok(change)
    }))
}

/// A file that can be read is taken whatever is missing in it: what it has lost is refused from now on, and that is what its owner
/// wants who removes a leaked token.
fn put_into_force(new: Credentials, config: &Config, credentials: &SharedCredentials) -> String {
    credentials.set(new);
    let new = credentials.get();
    tell_who_is_shut_out(config, &new);
    let [callback_tokens, signing_keys, clients] = new.counts();
    format!("{callback_tokens} callback tokens, {signing_keys} signing keys, {clients} clients")
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
