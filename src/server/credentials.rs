//! The credentials file, and what the configuration counts on in it.

use std::{fs, path::Path, sync::Arc};

use super::Addresses;
use crate::{
    config::{self, Config},
    credentials::{Credentials, SharedCredentials},
    ingest::{Allowlist, BodySignature, ForwardedHeader, Rules, TrustedProxies},
};

/// Largest file that is read: room for ten thousand clients.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads the file the configuration names, and checks that it has what the configuration counts on.
pub(super) fn load(config: &Config, addresses: &Addresses) -> Result<Credentials, String> {
    let credentials = match &config.credentials_file {
        None => Credentials::default(),
        Some(path) => read(path)?,
    };
    check(config, addresses, credentials)
}

fn read(path: &Path) -> Result<Credentials, String> {
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
pub(super) fn check(config: &Config, addresses: &Addresses, credentials: Credentials) -> Result<Credentials, String> {
    let shared = Arc::new(SharedCredentials::default());
    shared.set(credentials);
    let rules = rules(config, Arc::clone(&shared));
    if rules.body_signature != BodySignature::Off && shared.get().body_secret().is_none() {
        let needed = "ingest.body_signature needs the vendor's secret: add [body_signature] to the credentials file";
        return Err(needed.to_owned());
    }
    if !super::is_loopback(addresses.ingest) && !config.ingest.allow_unverified && !rules.verify_anything() {
        return Err(format!(
            "ingest.listen: {} is not loopback, and nothing is asked of callbacks: add [callback_tokens] or \
             [signing_keys] to the credentials file, or set ingest.allow_unverified",
            addresses.ingest
        ));
    }
    if !super::is_loopback(addresses.grpc) && !config.grpc.allow_anonymous && !shared.get().has_clients() {
        return Err(format!(
            "grpc.listen: {} is not loopback, and nobody is known: add [clients] to the credentials file, or set \
             grpc.allow_anonymous",
            addresses.grpc
        ));
    }
    if !super::is_loopback(addresses.admin) && !config.admin.allow_anonymous {
        return Err(format!(
            "admin.listen: {} is not loopback: listen on 127.0.0.1, or set admin.allow_anonymous",
            addresses.admin
        ));
    }
    drop(rules);
    Ok(Arc::unwrap_or_clone(shared.get()))
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
        refusals_per_minute_max: u32::try_from(config.ingest.refusals_per_minute_max).unwrap_or(u32::MAX),
    }
}

/// Puts what the file says by now into force.
pub(super) fn reload(
    config: &Config,
    addresses: &Addresses,
    credentials: &SharedCredentials,
) -> Result<String, String> {
    let new = load(config, addresses)?;
    let [callback_tokens, signing_keys, clients] = new.counts();
    credentials.set(new);
    Ok(format!("{callback_tokens} callback tokens, {signing_keys} signing keys, {clients} clients"))
}
