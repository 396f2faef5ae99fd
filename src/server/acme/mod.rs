//! The ingest listener's certificate from an ACME authority (RFC 8555), proved by TLS-ALPN-01 (RFC 8737) on the listener itself: no
//! second port, no second program. Ordered when there is none, and again when a third of its life is left.

mod authorities;
mod failure;
mod resolver;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(super) use self::{
    authorities::Authorities,
    resolver::{ACME_TLS, Resolver},
};
use self::{
    failure::{at, problem_at},
    resolver::proof,
};
use super::{aside, net::pem_files::Identity};
use crate::{
    audit::{self, Audit},
    config, files,
    metrics::Metrics,
    store::Clock,
};

/// How often it is checked at least whether the certificate is due: clocks are set, and machines sleep.
const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// Time for a whole order. The authority's check and its signature have 30 s each, and no request has a time-out of its own.
const ORDER_TIMEOUT: Duration = Duration::from_secs(90);
/// Pause after a failed order, doubled with each further one: authorities refuse clients that ask too often.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(6 * 3600);
/// A certificate is renewed when one part in so many of its life is left.
const RENEWAL_PART: i64 = 3;
/// How an authority says that it does not know an account (RFC 8555, section 6.7).
const NO_SUCH_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
/// Below the data directory.
pub(in crate::server) const DIRECTORY: &str = "acme";
/// Files in the directory.
const ACCOUNT_FILE: &str = "account.json";
const CERTIFICATE_FILE: &str = "certificate.json";
/// Largest file that is read: a hundred times an account, or a chain with its key.
const KEPT_BYTES_MAX: u64 = 1 << 20;
/// How long a file may take to be read or written, with a sync of a busy disk.
const FILE_TIMEOUT: Duration = Duration::from_secs(10);

/// Orders and keeps the certificate.
pub(in crate::server) struct Acme {
    config: config::Acme,
    authorities: Arc<Authorities>,
    directory: PathBuf,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    /// From and until when the certificate in use is good, in seconds since 1970.
    life: Option<(i64, i64)>,
}

/// A certificate as it is kept. One of another authority is not used: after a trial with a test authority the real one's is wanted.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory_url: String,
    domains: Vec<String>,
    chain: String,
    key: String,
}

/// An account as it is kept. It is good at one authority only.
#[derive(Serialize, Deserialize)]
struct KeptAccount {
    directory_url: String,
    credentials: AccountCredentials,
}

impl Acme {
    /// Takes up the certificate that is kept below `data_dir`, if it is of this authority and for these domains.
    pub(in crate::server) fn new(
        config: &config::Acme,
        data_dir: &Path,
        authorities: Authorities,
        metrics: Arc<Metrics>,
    ) -> (Self, Arc<Resolver>) {
        let resolver = Arc::<Resolver>::default();
        let (config, authorities) = (config.clone(), Arc::new(authorities));
        let (directory, in_use) = (data_dir.join(DIRECTORY), Arc::clone(&resolver));
        let mut acme = Self {
            config,
            authorities,
            directory,
            resolver: in_use,
            metrics,
            life: None,
        };
        if let Some(kept) = acme.kept()
            && let Err(error) = acme.put_into_use(&kept)
        {
            tracing::warn!(%error, "the kept certificate cannot be used: ordering another");
        }
        (acme, resolver)
    }

    /// Keeps the certificate fresh until `stop`. It is due when both the log's clock and the machine's say so: a wrong clock must not
    /// waste orders, which authorities limit by the week.
    pub(in crate::server) async fn run(
        mut self,
        clock: Arc<Clock>,
        audit: Arc<Audit>,
        stop: CancellationToken,
    ) {
        let mut retry = RETRY_MIN;
        loop {
            let mut pause = self.due_in(&clock).min(PERIOD_MAX);
            if pause.is_zero() {
                let ordered = tokio::select! {
                    () = stop.cancelled() => return,
                    ordered = timeout(ORDER_TIMEOUT, self.order(&clock)) => ordered,
                };
                self.resolver.challenges().clear();

                let ordered = ordered
                    .unwrap_or_else(|_| Err("the authority does not answer in time".to_owned()));
                let result = if ordered.is_ok() { "done" } else { "failed" };
                self.metrics.acme_orders.with_label_values(&[result]).inc();
                match ordered {
                    Ok(()) => {
                        retry = RETRY_MIN;
                        self.record(&audit);
                    }
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

    /// Records that another certificate is in use.
    fn record(&self, audit: &Arc<Audit>) {
        let mut entry = audit.entry("certificates");
        let until = self
            .life
            .and_then(|(_, until)| Timestamp::from_second(until).ok());
        entry.note("by", "acme");
        entry.note("domains", self.config.domains.clone());
        entry.note("expires", until.map(|until| until.to_string()));
        entry.end_now(audit::OK);
    }

    /// How long it is until the certificate is due.
    fn due_in(&self, clock: &Clock) -> Duration {
        let due = self
            .life
            .map_or(0, |(from, until)| until - (until - from) / RENEWAL_PART);
        Duration::from_secs(u64::try_from(due - clock.earliest().as_second()).unwrap_or(0))
    }

    async fn order(&mut self, clock: &Clock) -> Result<(), String> {
        tracing::info!(domains = ?self.config.domains, "ordering a certificate");
        let mut order = self.new_order().await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(at("an authorization"))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge =
                challenge.ok_or("the authority offers no tls-alpn-01 for this domain")?;
            let domain = challenge.identifier().to_string();
            let proof = proof(&domain, challenge.key_authorization().digest().as_ref())?;
            self.resolver.challenges().insert(domain, proof);
            challenge.set_ready().await.map_err(at("the challenge"))?;
        }

        let patience = RetryPolicy::default();
        let checked = order.poll_ready(&patience).await;
        if !matches!(checked, Ok(OrderStatus::Ready)) {
            let findings = findings(&mut order)
                .await
                .or(checked.err().map(at("the order")))
                .unwrap_or_default();
            let question = "does port 443 of each domain lead to this listener?";
            return Err(format!(
                "the authority's check has failed: {findings}; {question}"
            ));
        }

        let key = order.finalize().await.map_err(at("the signing request"))?;
        let chain = order
            .poll_certificate(&patience)
            .await
            .map_err(at("the certificate"))?;
        let config::Acme {
            domains,
            directory_url,
            ..
        } = self.config.clone();
        let kept = Kept {
            directory_url,
            domains,
            chain,
            key,
        };
        self.put_into_use(&kept)?;
        self.save(CERTIFICATE_FILE, &kept)
            .await
            .map_err(problem_at("the certificate cannot be kept"))?;

        // Checked here, because the next order would follow at once.
        let is_fresh = !self.due_in(clock).is_zero();
        is_fresh
            .then_some(())
            .ok_or("the new certificate is due already: is this machine's clock right?".to_owned())
    }

    async fn new_order(&self) -> Result<Order, String> {
        let identifiers: Vec<_> = self
            .config
            .domains
            .iter()
            .cloned()
            .map(Identifier::Dns)
            .collect();
        let new = NewOrder::new(&identifiers);

        let order = match self.account().await?.new_order(&new).await {
            Err(instant_acme::Error::Api(problem))
                if problem.r#type.as_deref() == Some(NO_SUCH_ACCOUNT) =>
            {
                tracing::warn!("the authority does not know the kept account: making another");
                let path = self.directory.join(ACCOUNT_FILE);
                let removed = aside::within(FILE_TIMEOUT, move || files::remove(&path)).await;
                let removed =
                    removed.and_then(|removed| removed.map_err(|error| error.to_string()));
                removed.map_err(problem_at("the kept account"))?;
                self.account().await?.new_order(&new).await
            }
            order => order,
        };
        order.map_err(at("the order"))
    }

    fn put_into_use(&mut self, kept: &Kept) -> Result<(), String> {
        let identity = Identity::from_pem(kept.chain.as_bytes(), kept.key.as_bytes())?;
        let (issued, expires) = (identity.issued, identity.expires);
        self.resolver.set_current(identity.certified()?);
        self.life = Some((issued, expires));
        self.metrics
            .certificate_expiry
            .with_label_values(&["ingest"])
            .set(expires);
        tracing::info!(domains = ?kept.domains, expires, "certificate in use");
        Ok(())
    }

    async fn account(&self) -> Result<Account, String> {
        let config::Acme {
            directory_url,
            contact,
            ..
        } = &self.config;
        let (authorities, path) = (
            Arc::clone(&self.authorities),
            self.directory.join(ACCOUNT_FILE),
        );
        let read = move || {
            (
                authorities.builder(),
                files::read(&path, KEPT_BYTES_MAX).ok(),
            )
        };

        let (builder, kept) = aside::within(FILE_TIMEOUT, read)
            .await
            .map_err(problem_at("the kept account"))?;
        let builder = builder.map_err(problem_at(
            "the authority's own certificate cannot be checked",
        ))?;
        let kept = kept.and_then(|json| serde_json::from_slice::<KeptAccount>(&json).ok());
        if let Some(kept) = kept.filter(|kept| kept.directory_url == *directory_url) {
            return builder
                .from_credentials(kept.credentials)
                .await
                .map_err(at("the authority"));
        }

        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder
            .create(&new, directory_url.clone(), None)
            .await
            .map_err(at("a new account"))?;
        self.save(
            ACCOUNT_FILE,
            &KeptAccount {
                directory_url: directory_url.clone(),
                credentials,
            },
        )
        .await
        .map_err(problem_at("the account cannot be kept"))?;
        Ok(account)
    }

    fn kept(&self) -> Option<Kept> {
        let json = files::read(&self.directory.join(CERTIFICATE_FILE), KEPT_BYTES_MAX).ok()?;
        let config::Acme {
            domains,
            directory_url,
            ..
        } = &self.config;
        let is_wanted =
            |kept: &Kept| kept.domains == *domains && kept.directory_url == *directory_url;
        serde_json::from_slice(&json).ok().filter(is_wanted)
    }

    async fn save(&self, name: &'static str, value: &impl Serialize) -> Result<(), String> {
        let json = serde_json::to_vec(value).map_err(|error| error.to_string())?;
        let directory = self.directory.clone();
        let saved = aside::within(FILE_TIMEOUT, move || {
            files::replace_private(&directory, name, &json)
        })
        .await?;
        saved.map_err(|error| error.to_string())
    }
}

/// The authority's own words for what is wrong with the domains.
async fn findings(order: &mut Order) -> Option<String> {
    let mut findings = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if let Ok(state) = authorization.refresh().await {
            let problems = state
                .challenges
                .iter()
                .filter_map(|challenge| challenge.error.as_ref());
            findings.extend(problems.map(|problem| format!("{}: {problem}", state.identifier())));
        }
    }
    (!findings.is_empty()).then(|| findings.join("; "))
}
