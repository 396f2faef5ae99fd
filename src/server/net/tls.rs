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
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem, pem::PemObject,
    },
    server::{
        NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
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
    time::{Time, Validity},
};

use super::super::refusal::{Refusal, What};
use crate::{credentials::Certificate, files};

/// Largest file with a certificate and its chain: some hundred certificates.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;
/// Largest file with a key: an RSA key of 16,384 bits has 13 KiB.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Largest file with authorities: all that a browser trusts are a quarter of a MiB.
const CA_BYTES_MAX: u64 = 4 << 20;
/// Largest file with revocation lists: an entry takes some 40 bytes.
const CLIENT_CRL_BYTES_MAX: u64 = 16 << 20;

/// HTTP/2 by ALPN.
pub(in crate::server) const H2: &[u8] = b"h2";
/// HTTP/1.1 by ALPN.
pub(in crate::server) const HTTP_1_1: &[u8] = b"http/1.1";

/// Where a listener's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) struct Files {
    /// The section of the configuration that names them.
    pub listener: &'static str,
    /// The chain, PEM, the listener's own certificate first.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Where what vouches for clients comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) struct ClientFiles {
    /// Who may have signed clients' certificates, PEM.
    pub ca: PathBuf,
    /// Which of those are revoked, PEM, one list or more.
    pub crl: Option<PathBuf>,
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
        let (chain, validity) = chain_of(chain)?;
        let key = key_of(key).map_err(|error| format!("its key: {error}"))?;
        Ok(Self {
            chain,
            key,
            issued: seconds(validity.not_before),
            expires: seconds(validity.not_after),
        })
    }

    pub(in crate::server) fn certified(self) -> Result<Arc<CertifiedKey>, String> {
        self.with_its_key().map_err(told)
    }

    fn with_its_key(self) -> Result<Arc<CertifiedKey>, rustls::Error> {
        CertifiedKey::from_der(self.chain, self.key, &provider()).map(Arc::new)
    }
}

/// What a listener speaks TLS with, as of now.
#[derive(Debug)]
pub(in crate::server) struct Tls {
    loaded: RwLock<Loaded>,
    /// Of the clients that are connected and have shown one.
    shown: Mutex<Vec<Arc<Shown>>>,
}

/// What is believed about clients.
pub(in crate::server) type Verifier = Arc<dyn ClientCertVerifier>;

/// What was read of the files.
#[derive(Clone, Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// `None`: clients are not asked for certificates.
    verifier: Option<Verifier>,
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
    /// With one certificate; clients are asked for theirs if there is a `verifier`.
    pub(in crate::server) fn new(
        certificate: Arc<CertifiedKey>,
        verifier: Option<Verifier>,
        alpn: &[&[u8]],
    ) -> Self {
        Self::of(only(certificate), verifier, alpn)
    }

    /// With the certificates that `resolver` has.
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

    /// Shows this one from now on.
    pub(in crate::server) fn set_certificate(&self, certificate: Arc<CertifiedKey>) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        *loaded = Loaded::new(
            only(certificate),
            loaded.verifier.clone(),
            loaded.config.alpn_protocols.clone(),
        );
    }

    /// Believes this one about clients from now on.
    pub(in crate::server) fn set_verifier(&self, verifier: Verifier) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let resolver = Arc::clone(&loaded.config.cert_resolver);
        *loaded = Loaded::new(
            resolver,
            Some(verifier),
            loaded.config.alpn_protocols.clone(),
        );
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
        let Some(verifier) = self.loaded().verifier else {
            return false;
        };
        self.shown()
            .iter()
            .any(|shown| shown.is_due(&verifier, now))
    }

    /// Does that, and withdraws those that are not good any more. It takes the time of as many signatures: not for a thread that
    /// serves.
    pub(in crate::server) fn verify_again(&self, now: Timestamp) {
        let Some(verifier) = self.loaded().verifier else {
            return;
        };
        // Without the lock: nobody who connects is to wait for it.
        let due: Vec<_> = self
            .shown()
            .iter()
            .filter(|shown| shown.is_due(&verifier, now))
            .cloned()
            .collect();
        due.iter().for_each(|shown| shown.verify(&verifier, now));
    }

    /// Speaks with a client; also the certificate that it has shown, if it has.
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
        self.loaded
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn shown(&self) -> MutexGuard<'_, Vec<Arc<Shown>>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
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
            // A session that is resumed brings its certificate with it, which is not verified again.
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
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the next certificate in a chain expires. Those that have already are not needed: what was verified was so without them.
fn good_until(chain: &[CertificateDer<'_>], now: Timestamp) -> i64 {
    let ends = chain
        .iter()
        .filter_map(|certificate| parse(certificate).ok());
    let ends = ends.map(|certificate| seconds(certificate.tbs_certificate.validity.not_after));
    ends.filter(|&end| end >= now.as_second())
        .min()
        .unwrap_or(i64::MAX)
}

/// The one provider of cryptography in the process.
pub(in crate::server) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads a listener's certificate and its key; also until when it is good, in seconds since 1970.
pub(in crate::server) fn load_certificate(
    files: &Files,
) -> Result<(Arc<CertifiedKey>, i64), Vec<Refusal>> {
    let (what, of) = (What::Certificates, |name: &str| {
        format!("{}.{name}", files.listener)
    });
    let (of_chain, of_key) = (of("tls_certificate_file"), of("tls_key_file"));
    let chain = read(
        what,
        &of_chain,
        &files.certificate,
        CERTIFICATE_BYTES_MAX,
        chain_of,
    );
    let key = read(what, &of_key, &files.key, KEY_BYTES_MAX, key_of);
    let ((chain, validity), key) = both(chain, key)?;

    let (issued, expires) = (seconds(validity.not_before), seconds(validity.not_after));
    let certified = Identity { chain, key, issued, expires }.with_its_key().map_err(|error| {
        let is_mismatch = matches!(error, rustls::Error::InconsistentKeys(_));
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let why = if is_mismatch {
            format!("{of_key}: {key} is not the key of {certificate}; put the two that belong together there")
        } else {
            format!("{of_key}: {key} cannot be used: {error}; make one of a usual kind, RSA or P-256")
        };
        vec![Refusal { may_settle: is_mismatch, ..Refusal::new(what, why) }]
    })?;
    Ok((certified, expires))
}

const CLIENT_CRL: &str = "grpc.tls_client_crl_file";

/// What vouches for clients, as it was read last and could be used. Each part comes from a file of its own, and is replaced alone: a
/// revocation must not wait until somebody mends the authorities' file.
#[derive(Clone, Debug)]
pub(in crate::server) struct Vouching {
    roots: Arc<RootCertStore>,
    lists: Arc<Lists>,
}

/// Lists of revoked certificates.
#[derive(Debug, Default)]
pub(in crate::server) struct Lists {
    path: PathBuf,
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// When the first of them should be replaced, in seconds since 1970, if one says so.
    replaced: Option<i64>,
}

/// What one of the files holds.
#[derive(Clone, Debug)]
pub(in crate::server) enum Part {
    Roots(Arc<RootCertStore>),
    Lists(Arc<Lists>),
}

impl Vouching {
    /// Reads both files; also what to verify clients with.
    pub(in crate::server) fn load(files: &ClientFiles) -> Result<(Self, Verifier), Vec<Refusal>> {
        let lists = files.crl.as_deref().map(load_client_lists).transpose();
        let (roots, lists) = both(load_client_roots(&files.ca), lists)?;
        let vouching = Self {
            roots,
            lists: lists.unwrap_or_default(),
        };
        let verifier = vouching.verifier().map_err(|refusal| vec![refusal])?;
        Ok((vouching, verifier))
    }

    pub(in crate::server) fn with(&self, part: Part) -> Self {
        match part {
            Part::Roots(roots) => Self {
                roots,
                lists: Arc::clone(&self.lists),
            },
            Part::Lists(lists) => Self {
                roots: Arc::clone(&self.roots),
                lists,
            },
        }
    }

    /// Whether it is of the same reads.
    pub(in crate::server) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.roots, &other.roots) && Arc::ptr_eq(&self.lists, &other.lists)
    }

    /// See [`Lists::replaced`].
    pub(in crate::server) fn lists_replaced(&self) -> Option<i64> {
        self.lists.replaced
    }

    pub(in crate::server) fn verifier(&self) -> Result<Verifier, Refusal> {
        let (roots, lists) = (Arc::clone(&self.roots), self.lists.lists.iter().cloned());
        // Not everybody has one: a token will do, and who has neither is refused with a reason that can be read. With lists, each
        // certificate of a chain has to be in the scope of one: what nobody answers for may be revoked. A list that is late still
        // counts: it is better than none, and the metric tells; to refuse everybody for a job that did not run would be worse.
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, provider()).with_crls(lists);
        verifier.allow_unauthenticated().build().map_err(|error| {
            // There are authorities: they were read before.
            let path = self.lists.path.display();
            Refusal::new(
                What::ClientCrl,
                format!("{CLIENT_CRL}: {path}: {error}; have the authority write it anew"),
            )
        })
    }
}

/// Reads who may have signed clients' certificates.
pub(in crate::server) fn load_client_roots(path: &Path) -> Result<Arc<RootCertStore>, Refusal> {
    load_roots(What::ClientCa, "grpc.tls_client_ca_file", path).map(Arc::new)
}

/// Reads which of those are revoked.
pub(in crate::server) fn load_client_lists(path: &Path) -> Result<Arc<Lists>, Refusal> {
    let read = read(
        What::ClientCrl,
        CLIENT_CRL,
        path,
        CLIENT_CRL_BYTES_MAX,
        lists_of,
    );
    read.map(|(lists, replaced)| {
        Arc::new(Lists {
            path: path.to_owned(),
            lists,
            replaced,
        })
    })
}

/// Reads authorities from a PEM file.
pub(in crate::server) fn load_roots(
    what: What,
    key: &str,
    path: &Path,
) -> Result<RootCertStore, Refusal> {
    read(what, key, path, CA_BYTES_MAX, roots_of)
}

fn read<T>(
    what: What,
    key: &str,
    path: &Path,
    bytes_max: u64,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, Refusal> {
    let bytes = files::read(path, bytes_max)
        .map_err(|error| Refusal::unreadable(what, key, path, &error))?;
    parse(&bytes)
        .map_err(|problem| Refusal::new(what, format!("{key}: {}: {problem}", path.display())))
}

/// Both, or what is wrong with either.
fn both<A, B>(one: Result<A, Refusal>, other: Result<B, Refusal>) -> Result<(A, B), Vec<Refusal>> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (one, other) => Err(one.err().into_iter().chain(other.err()).collect()),
    }
}

fn chain_of(text: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Validity), String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| no_pem(&error))?;
    let first = chain
        .first()
        .ok_or("there is no certificate in it; write the chain as PEM, its own first")?;
    let validity = parse(first)?.tbs_certificate.validity;
    Ok((chain, validity))
}

fn key_of(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound
            if text
                .windows(ENCRYPTED.len())
                .any(|found| found == ENCRYPTED) =>
        {
            "it is encrypted; write it without a passphrase, with `openssl pkey`".to_owned()
        }
        pem::Error::NoItemsFound => "there is no private key in it; write it as PEM".to_owned(),
        error => no_pem(&error),
    })
}

fn roots_of(text: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let added = roots.add(certificate.map_err(|error| no_pem(&error))?);
        added.map_err(|error| {
            format!(
                "number {} in it is no authority's certificate ({error}); take it out",
                roots.len() + 1
            )
        })?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in it; write the authorities as PEM".to_owned());
    }
    Ok(roots)
}

/// Lists of revoked certificates, and when the first of them should be replaced.
fn lists_of(
    text: &[u8],
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Option<i64>), String> {
    let lists = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|error| no_pem(&error))?;
    if lists.is_empty() {
        return Err("there is no revocation list in it; write the authority's as PEM".to_owned());
    }

    let mut replaced = None;
    for list in &lists {
        let list = CertificateList::from_der(list).map_err(|error| {
            format!("it is no revocation list: {error}; have the authority write it anew")
        })?;
        let next = list.tbs_cert_list.next_update.map(seconds);
        replaced = replaced.into_iter().chain(next).min();
    }
    Ok((lists, replaced))
}

/// Never quotes the text: it may be a key.
fn no_pem(error: &pem::Error) -> String {
    let problem = match error {
        pem::Error::MissingSectionEnd { .. } => "it ends too early",
        pem::Error::Base64Decode(_) => "it is damaged",
        _ => "it is not PEM",
    };
    format!("{problem}; copy it once more, whole")
}

/// What a verified certificate stands for: DNS names, URIs, and the common name.
fn certificate(certificate: &CertificateDer<'_>) -> Result<Certificate, String> {
    let certificate = parse(certificate)?.tbs_certificate;
    let alternative = certificate
        .get::<SubjectAltName>()
        .ok()
        .flatten()
        .map(|(_, names)| names.0)
        .unwrap_or_default();
    let alternative = alternative.into_iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
        _ => None,
    });
    let subject = certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let common = subject
        .filter(|attribute| attribute.oid == COMMON_NAME)
        .filter_map(|attribute| {
            let utf8 = attribute
                .value
                .decode_as::<Utf8StringRef<'_>>()
                .map(|text| text.as_str().to_owned());
            utf8.or_else(|_| {
                attribute
                    .value
                    .decode_as::<PrintableStringRef<'_>>()
                    .map(|text| text.as_str().to_owned())
            })
            .ok()
        });
    Ok(Certificate::new(
        alternative.chain(common).collect(),
        seconds(certificate.validity.not_after),
    ))
}

fn seconds(time: Time) -> i64 {
    i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
}

fn parse(certificate: &CertificateDer<'_>) -> Result<x509_cert::Certificate, String> {
    x509_cert::Certificate::from_der(certificate)
        .map_err(|error| format!("it is no certificate: {error}"))
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
