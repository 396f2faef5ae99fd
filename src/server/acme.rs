//! The public listener's certificate from an ACME authority (RFC 8555), proved by TLS-ALPN-01 (RFC 8737) on the listener itself:
//! no second port, no second program. Ordered when there is none, and again when a third of its life is left.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus,
    RetryPolicy,
};
use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::net::tls::Identity;
use crate::{config, metrics::Metrics};

/// What an authority offers by ALPN when it checks a domain, and nobody else does.
pub(super) const ACME_TLS: &[u8] = b"acme-tls/1";
/// How often it is looked whether the certificate is due.
const PERIOD: Duration = Duration::from_secs(60);
/// Pause after a failed order, doubled with each further one: authorities refuse who asks too often.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(6 * 3600);
/// A certificate is renewed when this part of its life is left.
const RENEWAL_PART: i64 = 3;

/// Finds the certificate for a handshake: an authority's check gets the proof, everybody else the certificate.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    current: RwLock<Option<Arc<CertifiedKey>>>,
    challenges: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_check = hello.alpn().is_some_and(|mut names| names.any(|name| name == ACME_TLS));
        if is_check {
            let challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
            return challenges.get(hello.server_name()?).cloned();
        }
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Orders and keeps the certificate.
pub(super) struct Acme {
    config: config::Acme,
    directory: PathBuf,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    /// Of the certificate in use: from and until when it is good, in seconds since 1970.
    life: Option<(i64, i64)>,
}

/// A certificate as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    domains: Vec<String>,
    chain: String,
    key: String,
}

/// An account as it is kept; good at one authority only.
#[derive(Serialize, Deserialize)]
struct KeptAccount {
    directory_url: String,
    credentials: AccountCredentials,
}

impl Acme {
    /// Takes up the certificate that is kept below `data_dir`, if it is for these domains.
    pub(super) fn new(config: &config::Acme, data_dir: &Path, metrics: Arc<Metrics>) -> (Self, Arc<Resolver>) {
        let resolver = Arc::<Resolver>::default();
        let (config, directory) = (config.clone(), data_dir.join("acme"));
        let mut acme = Self { config, directory, resolver: Arc::clone(&resolver), metrics, life: None };
        if let Some(kept) = acme.kept()
            && let Err(error) = acme.put_into_use(&kept)
        {
            tracing::warn!(%error, "the certificate that was kept cannot be used: ordering another");
        }
        (acme, resolver)
    }

    /// Keeps the certificate fresh until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut retry = RETRY_MIN;
        loop {
            let mut pause = PERIOD;
            if self.is_due() {
                let ordered = tokio::select! {
                    () = stop.cancelled() => return,
                    ordered = self.order() => ordered,
                };
                let result = if ordered.is_ok() { "done" } else { "failed" };
                self.metrics.acme_orders.with_label_values(&[result]).inc();
                match ordered {
                    Ok(()) => retry = RETRY_MIN,
                    Err(error) => {
                        tracing::error!(error, retry_seconds = retry.as_secs(), "no certificate");
                        pause = retry;
                        retry = (retry * 2).min(RETRY_MAX);
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    fn is_due(&self) -> bool {
        self.life.is_none_or(|(from, until)| Timestamp::now().as_second() >= until - (until - from) / RENEWAL_PART)
    }

    async fn order(&mut self) -> Result<(), String> {
        tracing::info!(domains = ?self.config.domains, "ordering a certificate");
        let account = self.account().await?;
        let identifiers: Vec<_> = self.config.domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await.map_err(at("the order"))?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(at("an authorization"))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.ok_or("the authority offers no tls-alpn-01 for this domain")?;
            let domain = challenge.identifier().to_string();
            let proof = proof(&domain, challenge.key_authorization().digest().as_ref())?;
            self.resolver.challenges.lock().unwrap_or_else(PoisonError::into_inner).insert(domain, proof);
            challenge.set_ready().await.map_err(at("the challenge"))?;
        }
        let patience = RetryPolicy::default();
        let status = order.poll_ready(&patience).await.map_err(at("the authority's check"))?;
        self.resolver.challenges.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if status != OrderStatus::Ready {
            return Err(
                "the authority's check has failed: does port 443 of each domain lead to this listener?".to_owned()
            );
        }
        let key = order.finalize().await.map_err(at("the signing request"))?;
        let chain = order.poll_certificate(&patience).await.map_err(at("the certificate"))?;
        let kept = Kept { domains: self.config.domains.clone(), chain, key };
        self.put_into_use(&kept)?;
        self.save("certificate.json", &kept).map_err(at("the certificate cannot be kept"))
    }

    fn put_into_use(&mut self, kept: &Kept) -> Result<(), String> {
        let identity = Identity::from_pem(kept.chain.as_bytes(), kept.key.as_bytes())?;
        let (issued, expires) = (identity.issued, identity.expires);
        *self.resolver.current.write().unwrap_or_else(PoisonError::into_inner) = Some(identity.certified()?);
        self.life = Some((issued, expires));
        self.metrics.certificate_expiry.with_label_values(&["ingest"]).set(expires);
        tracing::info!(domains = ?kept.domains, expires, "certificate in use");
        Ok(())
    }

    async fn account(&self) -> Result<Account, String> {
        let config::Acme { directory_url, directory_ca_file, contact, .. } = &self.config;
        let builder = match directory_ca_file {
            Some(path) => Account::builder_with_root(path),
            None => Account::builder(),
        };
        let builder = builder.map_err(at("the authority's own certificate cannot be checked"))?;
        let kept = fs::read(self.directory.join("account.json")).ok();
        let kept = kept.and_then(|json| serde_json::from_slice::<KeptAccount>(&json).ok());
        if let Some(kept) = kept.filter(|kept| kept.directory_url == *directory_url) {
            return builder.from_credentials(kept.credentials).await.map_err(at("the account that was kept"));
        }
        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) =
            builder.create(&new, directory_url.clone(), None).await.map_err(at("a new account"))?;
        self.save("account.json", &KeptAccount { directory_url: directory_url.clone(), credentials })
            .map_err(at("the account cannot be kept"))?;
        Ok(account)
    }

    fn kept(&self) -> Option<Kept> {
        let json = fs::read(self.directory.join("certificate.json")).ok()?;
        serde_json::from_slice::<Kept>(&json).ok().filter(|kept| kept.domains == self.config.domains)
    }

    /// For the owner's eyes only, and never half written.
    fn save(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let new = self.directory.join(format!("{name}.new"));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(new, self.directory.join(name))
    }
}

/// A certificate that only an authority's check is shown.
fn proof(domain: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let mut params = CertificateParams::new([domain.to_owned()]).map_err(at("the proof"))?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(at("the proof"))?;
    let certificate = params.self_signed(&key).map_err(at("the proof"))?;
    Identity::from_der(certificate.der().clone(), key.serialize_der()).and_then(Identity::certified)
}

/// Says at which step something failed.
fn at<E: std::fmt::Display>(step: &str) -> impl Fn(E) -> String {
    move |error| format!("{step}: {error}")
}
