//! Reads the credentials file, checks that it has what the configuration needs, and warns of tenants that are not isolated.

use std::{path::Path, sync::Arc, thread, time::Duration};

use parking_lot::Mutex;

use super::{
    addresses::{Addresses, is_loopback},
    exposure,
    refusal::{Input, Refusal},
    watch::{Applied, Change, Files, Reading, Watched},
};
use crate::{
    config::{self, Allowlist, BodySignature, Config},
    credentials::{Credentials, FILE_BYTES_MAX, Intruders, SharedCredentials},
    files,
    ingest::{Rules, TrustedProxies},
};

/// An empty file is read again after this time, because a program that writes it in place truncates it first. Shorter than the time
/// limit of a read.
const EMPTY_PAUSE: Duration = Duration::from_millis(1_500);

/// Largest file with a key for the vendor's API that is read, some times the longest key: a larger one is something else.
const KEY_FILE_BYTES_MAX: u64 = 4 * 1024;

/// Names in one warning: enough to begin with, in a line that is not too long.
const NAMED_MAX: usize = 5;

/// Reads the file that the configuration names, and checks that it has what the configuration needs at each of these addresses.
pub(super) fn load(config: &Config, places: &[Addresses]) -> Result<Credentials, Vec<Refusal>> {
    let read = config.credentials_file.as_deref().map(read).transpose();
    let credentials = read.map_err(|refusal| vec![refusal])?.unwrap_or_default();
    let mut refusals = Vec::new();
    for problem in places
        .iter()
        .flat_map(|addresses| problems(config, addresses, &credentials))
    {
        let refusal = Refusal::new(Input::Credentials, problem);
        if !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    }
    if refusals.is_empty() {
        Ok(credentials)
    } else {
        Err(refusals)
    }
}

fn read(path: &Path) -> Result<Credentials, Refusal> {
    parse(path, &text(path)?)
}

/// Reads a file that may be written just now. Takes a while if the file is empty.
fn read_again(path: &Path) -> Result<Credentials, Refusal> {
    let mut found = text(path)?;
    if found.is_empty() {
        thread::sleep(EMPTY_PAUSE);
        found = text(path)?;
    }
    parse(path, &found)
}

fn text(path: &Path) -> Result<String, Refusal> {
    let unreadable =
        |error| Refusal::unreadable(Input::Credentials, "credentials_file", path, &error);
    files::read_text(path, FILE_BYTES_MAX).map_err(unreadable)
}

fn parse(path: &Path, text: &str) -> Result<Credentials, Refusal> {
    let refusal = |error: String| {
        Refusal::new(
            Input::Credentials,
            format!("credentials_file: {}: {error}", path.display()),
        )
    };
    let mut credentials = Credentials::parse(text).map_err(|error| refusal(error.to_string()))?;

    let read = |path: &Path| {
        let key = "[vendor_keys] key_file";
        files::read_text(path, KEY_FILE_BYTES_MAX)
            .map_err(|error| Refusal::unreadable(Input::Credentials, key, path, &error))
    };
    credentials.read_key_files(read, |name, path, problem| {
        let path = path.display();
        refusal(format!("[vendor_keys] {name}: key_file: {path}: {problem}"))
    })?;
    Ok(credentials)
}

/// What the configuration needs and the credentials do not have. The addresses are those of the sockets: inherited ones may listen
/// anywhere.
pub(super) fn problems(
    config: &Config,
    addresses: &Addresses,
    credentials: &Credentials,
) -> Vec<String> {
    let Config {
        ingest,
        grpc,
        admin,
        ..
    } = config;
    let mut problems = Vec::new();
    if ingest.body_signature != BodySignature::Off && !credentials.has_body_secret() {
        let needed = "ingest.body_signature needs the vendor's secret: add [body_signature] to the credentials file";
        problems.push(needed.to_owned());
    }

    let asks_something = ingest.body_signature == BodySignature::Require
        || ingest.allowlist == Allowlist::Enforce
        || credentials.verify_urls();
    if !is_loopback(addresses.ingest) && !ingest.allow_unverified && !asks_something {
        problems.push(format!(
            "ingest.listen: {} is not loopback, and nothing is asked of callbacks: add [callback_tokens] or \
             [signing_keys] to the credentials file, or set ingest.allow_unverified",
            addresses.ingest
        ));
    }

    if !is_loopback(addresses.grpc) && !grpc.allow_anonymous && !credentials.verify_clients() {
        problems.push(format!(
            "grpc.listen: {} is not loopback, and nobody is known: add [clients] to the credentials file, or set \
             grpc.allow_anonymous",
            addresses.grpc
        ));
    }

    if !is_loopback(addresses.admin) && !admin.allow_anonymous {
        problems.push(format!(
            "admin.listen: {} is not loopback: listen on 127.0.0.1, or set admin.allow_anonymous",
            addresses.admin
        ));
    }
    problems
}

/// What callbacks have to prove, by the configuration.
pub(super) fn rules(config: &Config, credentials: Arc<SharedCredentials>) -> Rules {
    let config::Ingest {
        body_signature,
        allowlist,
        allowed_networks,
        trusted_proxies,
        forwarded_header,
        ..
    } = &config.ingest;
    Rules {
        credentials,
        body_signature: *body_signature,
        allowlist: *allowlist,
        allowed: allowed_networks.clone(),
        public_url: config.public_url.clone(),
        proxies: TrustedProxies {
            networks: trusted_proxies.clone(),
            header: *forwarded_header,
        },
        bytes_per_minute_max: config.ingest.bytes_per_minute_max,
    }
}

/// The file, if there is one, which is read again when it changes.
pub(super) fn watched(
    config: &Arc<Mutex<Config>>,
    credentials: &Arc<SharedCredentials>,
) -> Option<Watched> {
    let path = config.lock().credentials_file.clone()?;
    let (config, credentials) = (Arc::clone(config), Arc::clone(credentials));
    let in_force = Arc::clone(&credentials);
    let key_files = move || in_force.get().key_files().into_iter().collect();
    let files = Files::new([(Input::Credentials, path.clone())]).with_named(key_files);
    Some(files.watched(move || {
        let new = read_again(&path).map_err(|refusal| vec![refusal])?;
        // Here, aside: with many lines it takes a while.
        let intruders = new.intruders();
        let (config, credentials) = (Arc::clone(&config), Arc::clone(&credentials));
        let exposed = exposure::exposed_secrets([&path].into_iter().chain(&new.key_files()));
        let change: Change = Box::new(move |reading| {
            let applied = put_into_force(new, &credentials);
            exposure::warn_of(&exposed, reading);
            if reading == Reading::News {
                let (config, new) = (config.lock(), credentials.get());
                warn_of_lockout(&config, &new);
                warn_of_tenants(&config, &new, &intruders);
            }
            applied
        });
        Ok(change)
    }))
}

/// A file that can be read is put into force whatever it lacks. A credential that it no longer has is refused from now on: that is what
/// an operator wants who removes a leaked token.
fn put_into_force(new: Credentials, credentials: &SharedCredentials) -> Applied {
    let old = credentials.get();
    credentials.set(new);
    let new = credentials.get();
    let [callback_tokens, signing_keys, clients] = new.counts();
    let vendor_keys = match new.vendor_keys().count() {
        0 => String::new(),
        count => format!(", {count} vendor keys"),
    };
    let summary = format!(
        "{callback_tokens} callback tokens, {signing_keys} signing keys, {clients} clients{vendor_keys}"
    );
    Applied {
        summary,
        changes: new.changes_from(&old),
    }
}

/// Logs [`not_isolated`].
pub(super) fn warn_of_tenants(config: &Config, credentials: &Credentials, intruders: &Intruders) {
    for problem in not_isolated(config, credentials, intruders) {
        tracing::warn!(problem, "tenants are not isolated from each other");
    }
}

/// A warning for each way in which events of bound clients can be read or written by others.
pub(super) fn not_isolated(
    config: &Config,
    credentials: &Credentials,
    intruders: &Intruders,
) -> Vec<String> {
    anonymous(config, credentials)
        .into_iter()
        .chain(writers(credentials, intruders))
        .collect()
}

/// Clients are bound, and callers without a token read everything.
fn anonymous(config: &Config, credentials: &Credentials) -> Option<String> {
    let mut bound = credentials.clients_that_are_bound().peekable();
    if !config.grpc.allow_anonymous || bound.peek().is_none() {
        return None;
    }
    let named = first(
        &bound
            .map(|name| format!("client {name}"))
            .collect::<Vec<_>>(),
    );
    Some(format!(
        "grpc.allow_anonymous: a caller without a token reads every event and may call AdminService, so `products` and `labels` of \
         clients keep nothing from anybody ({named}): set it to false"
    ))
}

/// Clients are bound to labels that other callback credentials may write, too.
fn writers(credentials: &Credentials, intruders: &Intruders) -> Option<String> {
    if !credentials.has_bound_clients() {
        return None;
    }
    if !credentials.verify_urls() {
        let problem = "credentials_file: clients are bound to labels, and a callback needs no token and no signature, so anybody \
                       may write any label: add [callback_tokens] with `labels`";
        return Some(problem.to_owned());
    }
    let Intruders { found, is_all } = intruders;
    if found.is_empty() && *is_all {
        return None;
    }
    if found.is_empty() {
        let problem = "credentials_file: there are too many clients and callback credentials to compare each with each, and those \
                       compared are isolated: give tenants brokers of their own, or fewer credentials";
        return Some(problem.to_owned());
    }
    let named = first(&found.iter().map(ToString::to_string).collect::<Vec<_>>());
    Some(format!(
        "credentials_file: clients are bound to labels that others may write, by {named}: give the credential `labels` with a value \
         for each key that the client is bound to, or `products` that the client may not see, or take it out"
    ))
}

/// The first of them, and how many more there are.
fn first(names: &[String]) -> String {
    let named = names
        .iter()
        .take(NAMED_MAX)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => named,
        count => format!("{named} and {count} more"),
    }
}

/// Warns if a listener refuses every request from now on.
fn warn_of_lockout(config: &Config, credentials: &Credentials) {
    let [callback_tokens, signing_keys, clients] = credentials.counts();
    if credentials.verify_urls() && callback_tokens + signing_keys == 0 {
        tracing::warn!(
            "no callback is let in any more: the credentials file has no token and no signing key left; add one \
             (`blobcast token new callback NAME`)"
        );
    }
    if config.ingest.body_signature == BodySignature::Require && !credentials.has_body_secret() {
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
