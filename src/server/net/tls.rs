//! TLS for a listener, whose certificate and authorities are replaced while connections go on. Clients' certificates are verified
//! again while their connections are open, when what vouches for them has changed.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard, RwLock};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, UnixTime},
    server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::pem_files::{Verifier, certificate, good_until, provider};
use crate::credentials::Certificate;

/// HTTP/2 by ALPN.
pub(in crate::server) const H2: &[u8] = b"h2";
/// HTTP/1.1 by ALPN.
pub(in crate::server) const HTTP_1_1: &[u8] = b"http/1.1";

/// What a listener speaks TLS with. Can be replaced while connections go on.
#[derive(Debug)]
pub(in crate::server) struct Tls {
    loaded: RwLock<Loaded>,
    /// The certificates of connected clients.
    shown: Mutex<Vec<Arc<Shown>>>,
}

/// What new connections get.
#[derive(Clone, Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// `None`: clients are not asked for certificates.
    verifier: Option<Verifier>,
}

/// A connected client's certificate, with what it takes to verify it again.
#[derive(Debug)]
struct Shown {
    /// Dropped with the connection.
    certificate: Weak<Certificate>,
    chain: Vec<CertificateDer<'static>>,
    verified: Mutex<Verified>,
    /// At the last look.
    was_good: AtomicBool,
}

#[derive(Debug)]
struct Verified {
    by: Arc<dyn ClientCertVerifier>,
    /// The last second before the next certificate in the chain expires. The chain may be good without that one.
    good_until: i64,
}

impl Tls {
    /// With one certificate. Clients are asked for theirs if there is a `verifier`.
    pub(in crate::server) fn new(
        certificate: Arc<CertifiedKey>,
        verifier: Option<Verifier>,
        alpn: &[&[u8]],
    ) -> Self {
        Self::of(only(certificate), verifier, alpn)
    }

    /// With the certificates that `resolver` chooses.
    pub(in crate::server) fn from_resolver(
        resolver: Arc<dyn ResolvesServerCert>,
        alpn: &[&[u8]],
    ) -> Self {
        Self::of(resolver, None, alpn)
    }

    fn of(
        resolver: Arc<dyn ResolvesServerCert>,
        verifier: Option<Verifier>,
        alpn: &[&[u8]],
    ) -> Self {
        let alpn = alpn.iter().map(|name| name.to_vec()).collect();
        Self {
            loaded: RwLock::new(Loaded::new(resolver, verifier, alpn)),
            shown: Mutex::default(),
        }
    }

    /// Shows this certificate from now on.
    pub(in crate::server) fn set_certificate(&self, certificate: Arc<CertifiedKey>) {
        let mut loaded = self.loaded.write();
        *loaded = Loaded::new(
            only(certificate),
            loaded.verifier.clone(),
            loaded.config.alpn_protocols.clone(),
        );
    }

    /// Verifies clients with this from now on.
    pub(in crate::server) fn set_verifier(&self, verifier: Verifier) {
        let mut loaded = self.loaded.write();
        let resolver = Arc::clone(&loaded.config.cert_resolver);
        *loaded = Loaded::new(
            resolver,
            Some(verifier),
            loaded.config.alpn_protocols.clone(),
        );
    }

    /// Whether a connected client's certificate has become bad, or good again, since the last call.
    pub(in crate::server) fn have_changed(&self, now: Timestamp) -> bool {
        let mut shown = self.shown();
        shown.retain(|shown| shown.certificate.strong_count() > 0);
        // `count`, not `any`: each change has to be seen once, so all are looked at.
        shown.iter().filter(|shown| shown.has_changed(now)).count() > 0
    }

    /// Whether some certificates have to be verified again: the verifier has changed, or a part of their chain has expired.
    pub(in crate::server) fn is_to_verify(&self, now: Timestamp) -> bool {
        let Some(verifier) = self.loaded().verifier else {
            return false;
        };
        self.shown()
            .iter()
            .any(|shown| shown.is_due(&verifier, now))
    }

    /// Verifies them again, and withdraws those that are no longer good. Takes the time of as many signatures: not for a thread that
    /// serves.
    pub(in crate::server) fn verify_again(&self, now: Timestamp) {
        let Some(verifier) = self.loaded().verifier else {
            return;
        };
        // Without the lock: no new connection waits for this.
        let due: Vec<_> = self
            .shown()
            .iter()
            .filter(|shown| shown.is_due(&verifier, now))
            .cloned()
            .collect();
        due.iter().for_each(|shown| shown.verify(&verifier, now));
    }

    /// Does the handshake. Also returns the client's certificate, if it has shown one.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<Certificate>>)> {
        let Loaded { config, verifier } = self.loaded();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let chain = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(<[_]>::to_vec)
            .unwrap_or_default();

        let certificate = match (chain.first(), verifier) {
            (Some(first), Some(verified_by)) => {
                let certificate = Arc::new(certificate(first).map_err(io::Error::other)?);
                let verified = Mutex::new(Verified {
                    by: verified_by,
                    good_until: good_until(&chain, Timestamp::now()),
                });
                self.shown().push(Arc::new(Shown {
                    certificate: Arc::downgrade(&certificate),
                    chain,
                    verified,
                    was_good: true.into(),
                }));
                Some(certificate)
            }
            _ => None,
        };
        Ok((stream, certificate))
    }

    fn loaded(&self) -> Loaded {
        self.loaded.read().clone()
    }

    fn shown(&self) -> MutexGuard<'_, Vec<Arc<Shown>>> {
        self.shown.lock()
    }
}

impl Loaded {
    fn new(
        resolver: Arc<dyn ResolvesServerCert>,
        verifier: Option<Verifier>,
        alpn: Vec<Vec<u8>>,
    ) -> Self {
        let builder =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has what every version needs");
        let builder = match &verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        };
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = alpn;
        if verifier.is_some() {
            // Sessions cannot be resumed: the certificate of a resumed session is not verified again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Self {
            config: Arc::new(config),
            verifier,
        }
    }
}

fn only(certificate: Arc<CertifiedKey>) -> Arc<dyn ResolvesServerCert> {
    Arc::new(SingleCertAndKey::from(certificate))
}

impl Shown {
    fn is_good(&self, now: Timestamp) -> bool {
        self.certificate
            .upgrade()
            .is_none_or(|certificate| certificate.is_good(now))
    }

    /// Since the last call.
    fn has_changed(&self, now: Timestamp) -> bool {
        let is_good = self.is_good(now);
        self.was_good.swap(is_good, Relaxed) != is_good
    }

    fn is_due(&self, verifier: &Arc<dyn ClientCertVerifier>, now: Timestamp) -> bool {
        let verified = self.verified();
        let is_due = !Arc::ptr_eq(&verified.by, verifier) || now.as_second() > verified.good_until;
        is_due && self.is_good(now)
    }

    /// Withdraws the certificate if `verifier` refuses it now.
    fn verify(&self, verifier: &Arc<dyn ClientCertVerifier>, now: Timestamp) {
        let Some((first, others)) = self.chain.split_first() else {
            return;
        };
        let since_1970 = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
        let is_good = verifier
            .verify_client_cert(first, others, UnixTime::since_unix_epoch(since_1970))
            .is_ok();
        *self.verified() = Verified {
            by: Arc::clone(verifier),
            good_until: good_until(&self.chain, now),
        };
        if let Some(certificate) = self.certificate.upgrade().filter(|_| !is_good) {
            certificate.withdraw();
        }
    }

    fn verified(&self) -> MutexGuard<'_, Verified> {
        self.verified.lock()
    }
}
