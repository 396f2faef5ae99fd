//! TLS for a listener: certificates from files or from an ACME authority, replaced while connections go on; and the certificates
//! of clients, which are verified again while their connections are open, when what vouches for them has changed.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_cert::{
    crl::CertificateList,
    der::{
        Decode,
        asn1::{PrintableStringRef, Utf8StringRef},
        oid::db::rfc4519::COMMON_NAME,
    },
    ext::pkix::{SubjectAltName, name::GeneralName},
    time::Time,
};

use crate::{credentials::Certificate, files};

/// Largest file with a certificate and its chain: some hundred certificates.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;
/// Largest file with a key: an RSA key of 16,384 bits has 13 KiB.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Largest file with the authorities of clients: all that a browser trusts are a quarter of a MiB.
const CLIENT_CA_BYTES_MAX: u64 = 4 << 20;
/// Largest file with revocation lists: an entry takes some 40 bytes.
const CLIENT_CRL_BYTES_MAX: u64 = 16 << 20;

/// HTTP/2 by ALPN.
pub(in crate::server) const H2: &[u8] = b"h2";
/// HTTP/1.1 by ALPN.
pub(in crate::server) const HTTP_1_1: &[u8] = b"http/1.1";

/// Where a listener's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) struct Files {
    /// The chain, PEM, the listener's own certificate first.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Who may have signed clients' certificates, PEM; `None`: clients are not asked for any.
    pub client_ca: Option<PathBuf>,
    /// Which of those are revoked, PEM, one list or more; only beside `client_ca`.
    pub client_crl: Option<PathBuf>,
}

impl Files {
    /// All of them.
    pub(in crate::server) fn paths(&self) -> Vec<PathBuf> {
        let Self { certificate, key, client_ca, client_crl } = self;
        [Some(certificate), Some(key), client_ca.as_ref(), client_crl.as_ref()].into_iter().flatten().cloned().collect()
    }
}

/// How long what was read is good, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Expiry {
    /// The listener's certificate.
    pub certificate: i64,
    /// When the first of the revocation lists should be replaced; `None`: there is none, or it does not say.
    pub crl: Option<i64>,
}

/// A certificate chain with its key; from and until when it is good, in seconds since 1970.
#[derive(Debug)]
pub(in crate::server) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pub issued: i64,
    pub expires: i64,
}

impl Identity {
    /// From PEM texts.
    pub(in crate::server) fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(told)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("its key: {error}"))?;
        let validity = parse(chain.first().ok_or("there is no certificate in it")?)?.tbs_certificate.validity;
        Ok(Self { chain, key, issued: seconds(validity.not_before), expires: seconds(validity.not_after) })
    }

    pub(in crate::server) fn certified(self) -> Result<Arc<rustls::sign::CertifiedKey>, String> {
        let key = rustls::sign::CertifiedKey::from_der(self.chain, self.key, &provider()).map_err(told)?;
        Ok(Arc::new(key))
    }
}

/// What a listener speaks TLS with, as of now.
#[derive(Debug)]
pub(in crate::server) struct Tls {
    loaded: RwLock<Loaded>,
    /// Of the clients that are connected and have shown one.
    shown: Mutex<Vec<Arc<Shown>>>,
}

/// What was read of the files.
#[derive(Clone, Debug)]
pub(in crate::server) struct Loaded {
    config: Arc<ServerConfig>,
    /// Whom it believes about clients; `None`: they are not asked.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// A client's certificate, with what it takes to verify it once more.
#[derive(Debug)]
struct Shown {
    /// Gone with the connection.
    certificate: Weak<Certificate>,
    chain: Vec<CertificateDer<'static>>,
    verified: Mutex<Verified>,
    /// As of the last look.
    was_good: AtomicBool,
}

#[derive(Debug)]
struct Verified {
    by: Arc<dyn ClientCertVerifier>,
    /// The last second before the next one in the chain expires; that one need not be needed.
    good_until: i64,
}

impl Tls {
    /// With the certificate in `files`; also how long that is good.
    pub(in crate::server) fn from_files(files: &Files, alpn: &[&[u8]]) -> Result<(Self, Expiry), String> {
        let (loaded, expiry) = load(files, alpn)?;
        Ok((Self { loaded: RwLock::new(loaded), shown: Mutex::default() }, expiry))
    }

    /// With the certificates that `resolver` has.
    pub(in crate::server) fn from_resolver(resolver: Arc<dyn ResolvesServerCert>, alpn: &[&[u8]]) -> Self {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has what every version needs").with_no_client_auth();
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let loaded = Loaded { config: Arc::new(config), verifier: None };
        Self { loaded: RwLock::new(loaded), shown: Mutex::default() }
    }

    /// From now on: what [`load`] has read.
    pub(in crate::server) fn set(&self, loaded: Loaded) {
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
    }

    /// Whether there are certificates of connected clients that were good when this was asked last, and are not any more, or
    /// the other way round.
    pub(in crate::server) fn have_changed(&self, now: Timestamp) -> bool {
        let mut shown = self.shown();
        shown.retain(|shown| shown.certificate.strong_count() > 0);
        // Looks at all of them: each change is told once.
        shown.iter().filter(|shown| shown.has_changed(now)).count() > 0
    }

    /// Whether some of them have to be verified again: what vouches for them has changed, or a part of their chain has expired.
    pub(in crate::server) fn is_to_verify(&self, now: Timestamp) -> bool {
        let Some(verifier) = self.loaded().verifier else { return false };
        self.shown().iter().any(|shown| shown.is_due(&verifier, now))
    }

    /// Does that, and withdraws those that are not good any more. It takes the time of as many signatures: not for a thread that
    /// serves.
    pub(in crate::server) fn verify_again(&self, now: Timestamp) {
        let Some(verifier) = self.loaded().verifier else { return };
        // Without the lock: nobody who connects is to wait for it.
        let due: Vec<_> = self.shown().iter().filter(|shown| shown.is_due(&verifier, now)).cloned().collect();
        due.iter().for_each(|shown| shown.verify(&verifier, now));
    }

    /// Speaks with a client; also the certificate that it has shown, if it has.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<Certificate>>)> {
        let Loaded { config, verifier } = self.loaded();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
        let certificate = match (chain.first(), verifier) {
            (Some(first), Some(verified_by)) => {
                let certificate = Arc::new(certificate(first).map_err(io::Error::other)?);
                let verified =
                    Mutex::new(Verified { by: verified_by, good_until: good_until(&chain, Timestamp::now()) });
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
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn shown(&self) -> MutexGuard<'_, Vec<Arc<Shown>>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn is_good(&self, now: Timestamp) -> bool {
        self.certificate.upgrade().is_none_or(|certificate| certificate.is_good(now))
    }

    /// Since this was asked last.
    fn has_changed(&self, now: Timestamp) -> bool {
        let is_good = self.is_good(now);
        self.was_good.swap(is_good, Relaxed) != is_good
    }

    fn is_due(&self, verifier: &Arc<dyn ClientCertVerifier>, now: Timestamp) -> bool {
        let verified = self.verified();
        let is_due = !Arc::ptr_eq(&verified.by, verifier) || now.as_second() > verified.good_until;
        is_due && self.is_good(now)
    }

    /// Withdraws the certificate if `verifier` does not believe it now.
    fn verify(&self, verifier: &Arc<dyn ClientCertVerifier>, now: Timestamp) {
        let Some((first, others)) = self.chain.split_first() else { return };
        let since_1970 = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
        let is_good = verifier.verify_client_cert(first, others, UnixTime::since_unix_epoch(since_1970)).is_ok();
        *self.verified() = Verified { by: Arc::clone(verifier), good_until: good_until(&self.chain, now) };
        if let Some(certificate) = self.certificate.upgrade().filter(|_| !is_good) {
            certificate.withdraw();
        }
    }

    fn verified(&self) -> MutexGuard<'_, Verified> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the next certificate in a chain expires. Those that have already are not needed: what was verified was so without them.
fn good_until(chain: &[CertificateDer<'_>], now: Timestamp) -> i64 {
    let ends = chain.iter().filter_map(|certificate| parse(certificate).ok());
    let ends = ends.map(|certificate| seconds(certificate.tbs_certificate.validity.not_after));
    ends.filter(|&end| end >= now.as_second()).min().unwrap_or(i64::MAX)
}

/// The one provider of cryptography in the process.
pub(in crate::server) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads the files; also how long they are good.
pub(in crate::server) fn load(files: &Files, alpn: &[&[u8]]) -> Result<(Loaded, Expiry), String> {
    let (chain, key) = (read(&files.certificate, CERTIFICATE_BYTES_MAX)?, read(&files.key, KEY_BYTES_MAX)?);
    let Identity { chain, key, expires, .. } = Identity::from_pem(&chain, &key).map_err(in_file(&files.certificate))?;
    let (verifier, crl) = match &files.client_ca {
        None => (None, None),
        Some(path) => {
            let (lists, replaced) = files.client_crl.as_deref().map(revoked).transpose()?.unwrap_or_default();
            (Some(verifier(path, lists)?), replaced)
        }
    };

    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("ring has what every version needs");
    let builder = match &verifier {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(told).map_err(in_file(&files.certificate))?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    if verifier.is_some() {
        // A session that is resumed brings its certificate with it, which is not verified again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }

    Ok((Loaded { config: Arc::new(config), verifier }, Expiry { certificate: expires, crl }))
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    files::read(path, bytes_max).map_err(told).map_err(in_file(path))
}

fn in_file(path: &Path) -> impl Fn(String) -> String {
    let path = path.display().to_string();
    move |problem| format!("{path}: {problem}")
}

/// Who believes the authorities in a file about clients, but for what is revoked.
fn verifier(
    path: &Path,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read(path, CLIENT_CA_BYTES_MAX)?) {
        let added = certificate.map_err(told).and_then(|certificate| roots.add(certificate).map_err(told));
        added.map_err(in_file(path))?;
    }
    // Not everybody has one: a token will do, and who has neither is refused with a reason that can be read. With lists, each
    // certificate of a chain has to be in the scope of one: what nobody answers for may be revoked. A list that is late still
    // counts: it is better than none, and the metric tells; to refuse everybody for a job that did not run would be worse.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).with_crls(lists);
    verifier.allow_unauthenticated().build().map_err(told).map_err(in_file(path))
}

/// Lists of revoked certificates, and when the first of them should be replaced.
fn revoked(path: &Path) -> Result<(Vec<CertificateRevocationListDer<'static>>, Option<i64>), String> {
    let (wrong, text) = (in_file(path), read(path, CLIENT_CRL_BYTES_MAX)?);
    let lists: Vec<_> =
        CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(told).map_err(&wrong)?;
    if lists.is_empty() {
        return Err(wrong("there is no revocation list in it".to_owned()));
    }

    let mut replaced = None;
    for list in &lists {
        let list =
            CertificateList::from_der(list).map_err(|error| wrong(format!("it is no revocation list: {error}")))?;
        let next = list.tbs_cert_list.next_update.map(seconds);
        replaced = replaced.into_iter().chain(next).min();
    }
    Ok((lists, replaced))
}

/// What a verified certificate stands for: DNS names, URIs, and the common name.
fn certificate(certificate: &CertificateDer<'_>) -> Result<Certificate, String> {
    let certificate = parse(certificate)?.tbs_certificate;
    let alternative = certificate.get::<SubjectAltName>().ok().flatten().map(|(_, names)| names.0).unwrap_or_default();
    let alternative = alternative.into_iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
        _ => None,
    });
    let subject = certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let common = subject.filter(|attribute| attribute.oid == COMMON_NAME).filter_map(|attribute| {
        let utf8 = attribute.value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
        utf8.or_else(|_| attribute.value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned()))
            .ok()
    });
    Ok(Certificate::new(alternative.chain(common).collect(), seconds(certificate.validity.not_after)))
}

fn seconds(time: Time) -> i64 {
    i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
}

fn parse(certificate: &CertificateDer<'_>) -> Result<x509_cert::Certificate, String> {
    x509_cert::Certificate::from_der(certificate).map_err(|error| format!("it is no certificate: {error}"))
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
