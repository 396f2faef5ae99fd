//! When open subscriptions are reviewed, which `rpc::permission_review` judges: whenever credentials change or expire, or a certificate
//! is no longer good.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{aside, net::tls::Tls};
use crate::{credentials::Credentials, rpc::Gate, subscription::Sources};

/// How often it is noted which credentials open streams use: an operator who rotates one looks at that over hours.
const USE_NOTED: Duration = Duration::from_secs(10);

/// Reviews all open subscriptions whenever something that lets clients in has changed. Never waits.
pub(super) struct Review {
    sources: Arc<Sources>,
    gate: Gate,
    tls: Option<Arc<Tls>>,
    /// The credentials at the last review.
    credentials: Arc<Credentials>,
    /// How many clients' credentials had expired then.
    expired: usize,
    /// Completes when certificates have been verified again.
    verifying: Option<oneshot::Receiver<()>>,
    noted_at: Instant,
}

impl Review {
    pub(super) fn new(sources: Arc<Sources>, gate: Gate, tls: Option<Arc<Tls>>) -> Self {
        let credentials = gate.credentials.get();
        gate.metrics.set_credential_expiries(credentials.expiries());
        Self {
            sources,
            gate,
            tls,
            credentials,
            expired: 0,
            verifying: None,
            noted_at: Instant::now(),
        }
    }

    /// To be called about once a second.
    pub(super) fn tick(&mut self) {
        let (credentials, now) = (self.gate.credentials.get(), self.gate.clock.earliest());
        let expired = credentials.expired_clients(now);
        self.verify_certificates(now);
        let certificates_changed = self.tls.as_ref().is_some_and(|tls| tls.have_changed(now));

        let is_reviewed = Arc::ptr_eq(&credentials, &self.credentials) && expired == self.expired;
        if !is_reviewed || certificates_changed {
            (self.credentials, self.expired) = (credentials, expired);
            self.review();
        }

        if self.noted_at.elapsed() >= USE_NOTED {
            self.noted_at = Instant::now();
            self.note_credentials_in_use();
        }
    }

    /// Verifies clients' certificates again, if that is due and is not under way.
    fn verify_certificates(&mut self, now: Timestamp) {
        let Some(tls) = self.tls.as_ref().filter(|tls| tls.is_to_verify(now)) else {
            return;
        };
        if !self.verifying.as_mut().is_none_or(is_over) {
            return;
        }

        // Not on the runtime's blocking threads: reads of the store must not delay a revocation.
        let tls = Arc::clone(tls);
        let begun = aside::spawn(move || tls.verify_again(now));
        self.verifying = begun
            .inspect_err(|error| tracing::warn!(%error, "cannot verify certificates again yet"))
            .ok();
    }

    fn review(&self) {
        self.gate
            .metrics
            .set_credential_expiries(self.credentials.expiries());
        self.sources
            .registry
            .review(&self.sources.hub, |client, filter| {
                self.gate.review(client, filter)
            });
    }

    fn note_credentials_in_use(&self) {
        for client in &self.sources.registry.clients() {
            self.gate.note_in_use(client);
        }
    }
}

fn is_over(work: &mut oneshot::Receiver<()>) -> bool {
    !matches!(work.try_recv(), Err(TryRecvError::Empty))
}
