//! The credentials file: read before anything is served, then watched. A file that cannot be used changes nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Config},
    credentials::{Credentials, SharedCredentials},
    ingest::{Allowlist, BodySignature, ForwardedHeader, Rules, TrustedProxies},
};

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// Largest file that is read: room for ten thousand clients.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads the file the configuration names, and checks that it has what the configuration counts on.
pub(super) fn load(config: &Config) -> Result<Credentials, String> {
    let credentials = match &config.credentials_file {
        None => Credentials::default(),
        Some(path) => read(path)?,
    };
    check(config, credentials)
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

fn check(config: &Config, credentials: Credentials) -> Result<Credentials, String> {
    let shared = Arc::new(SharedCredentials::default());
    shared.set(credentials);
    let rules = rules(config, Arc::clone(&shared));
    if rules.body_signature != BodySignature::Off && shared.get().body_secret().is_none() {
        let needed = "ingest.body_signature needs the vendor's secret: add [body_signature] to the credentials file";
        return Err(needed.to_owned());
    }
    if !super::is_loopback(config.ingest.listen) && !config.ingest.allow_unverified && !rules.verify_anything() {
        return Err(format!(
            "ingest.listen: {} is not loopback, and nothing is asked of callbacks: add [callback_tokens] or \
             [signing_keys] to the credentials file, or set ingest.allow_unverified",
            config.ingest.listen
        ));
    }
    if !super::is_loopback(config.grpc.listen) && !config.grpc.allow_anonymous && !shared.get().has_clients() {
        return Err(format!(
            "grpc.listen: {} is not loopback, and nobody is known: add [clients] to the credentials file, or set \
             grpc.allow_anonymous",
            config.grpc.listen
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

/// Puts every change of the file into force, until `stop`; `changed` is told of each, and when a client has expired.
pub(super) async fn watch(
    config: Config,
    credentials: Arc<SharedCredentials>,
    changed: impl Fn(),
    stop: CancellationToken,
) {
    let Some(path) = config.credentials_file.clone() else { return stop.cancelled().await };
    let (mut seen, mut expired) = (State::of(&path), credentials.get().expired_clients(Timestamp::now()));
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let state = State::of(&path);
        if state != seen {
            seen = state;
            reload(&config, &path, &credentials);
            changed();
        }
        let now_expired = credentials.get().expired_clients(Timestamp::now());
        if now_expired != expired {
            expired = now_expired;
            changed();
        }
    }
}

fn reload(config: &Config, path: &PathBuf, credentials: &SharedCredentials) {
    match load(config) {
        Ok(new) => {
            let [callback_tokens, signing_keys, clients] = new.counts();
            credentials.set(new);
            tracing::info!(callback_tokens, signing_keys, clients, "credentials reloaded");
        }
        Err(problem) => {
            tracing::error!(problem, ?path, "the credentials stay as they were: correct the file");
        }
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, PartialEq)]
struct State(Result<(u64, u64, std::time::SystemTime), io::ErrorKind>);

impl State {
    fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let state = || {
            let metadata = fs::metadata(path)?;
            Ok::<_, io::Error>((metadata.ino(), metadata.len(), metadata.modified()?))
        };
        Self(state().map_err(|error| error.kind()))
    }
}
