//! Certificates, keys, authorities and revocation lists, as they are read from PEM files: what they hold, and why a file cannot be
//! used.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
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

use crate::{
    credentials::Certificate,
    files,
    server::refusal::{Input, Refusal},
};

/// Largest file with a certificate and its chain: some hundred certificates.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;
/// Largest file with a key: an RSA key of 16,384 bits has 13 KiB.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Largest file with authorities: all that a browser trusts take a quarter of a MiB.
const CA_BYTES_MAX: u64 = 4 << 20;
/// Largest file with revocation lists: an entry takes some 40 bytes.
const CLIENT_CRL_BYTES_MAX: u64 = 16 << 20;

/// The files with a listener's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) struct Files {
    /// The section of the configuration that names them.
    pub listener: &'static str,
    /// The chain, PEM, the listener's own certificate first.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// The files that decide which clients' certificates are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) struct ClientFiles {
    /// The authorities that may have signed them, PEM.
    pub ca: PathBuf,
    /// Those that are revoked, PEM, one list or more.
    pub crl: Option<PathBuf>,
}

/// A certificate chain with its key, and its validity in seconds since 1970.
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

/// The one provider of cryptography in the process.
pub(in crate::server) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads a listener's certificate and its key. Also returns when the certificate expires, in seconds since 1970.
pub(in crate::server) fn load_certificate(
    files: &Files,
) -> Result<(Arc<CertifiedKey>, i64), Vec<Refusal>> {
    let (input, of) = (Input::Certificates, |name: &str| {
        format!("{}.{name}", files.listener)
    });
    let (of_chain, of_key) = (of("tls_certificate_file"), of("tls_key_file"));
    let chain = read(
        input,
        &of_chain,
        &files.certificate,
        CERTIFICATE_BYTES_MAX,
        chain_of,
    );
    let key = read(input, &of_key, &files.key, KEY_BYTES_MAX, key_of);
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
        vec![Refusal { may_settle: is_mismatch, ..Refusal::new(input, why) }]
    })?;
    Ok((certified, expires))
}

/// Decides which clients' certificates are good.
pub(in crate::server) type Verifier = Arc<dyn ClientCertVerifier>;

const CLIENT_CRL: &str = "grpc.tls_client_crl_file";

/// What decides which clients' certificates are good, as it was last read and could be used. Each part comes from a file of its own and
/// is replaced alone: a revocation must not wait for a correction of the authorities' file.
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
    next_update: Option<i64>,
}

/// The content of one of the files.
#[derive(Clone, Debug)]
pub(in crate::server) enum Part {
    Roots(Arc<RootCertStore>),
    Lists(Arc<Lists>),
}

impl Vouching {
    /// Reads both files, and makes the verifier of them.
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

    /// Whether both come from the same reads.
    pub(in crate::server) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.roots, &other.roots) && Arc::ptr_eq(&self.lists, &other.lists)
    }

    /// When the first list should be replaced, in seconds since 1970, if one says so.
    pub(in crate::server) fn next_update(&self) -> Option<i64> {
        self.lists.next_update
    }

    pub(in crate::server) fn verifier(&self) -> Result<Verifier, Refusal> {
        let (roots, lists) = (Arc::clone(&self.roots), self.lists.lists.iter().cloned());
        // Clients without a certificate are let through: a token will do, and a call with neither is refused with a reason that
        // can be read. With lists, each certificate of a chain has to be in the scope of one: without a list it may be revoked. A
        // list that is late still counts. It is better than none, and a metric shows it; to refuse every client because a job did
        // not run would be worse.
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, provider()).with_crls(lists);
        verifier.allow_unauthenticated().build().map_err(|error| {
            // Not for lack of authorities: they were read before.
            let path = self.lists.path.display();
            Refusal::new(
                Input::ClientCrl,
                format!("{CLIENT_CRL}: {path}: {error}; have the authority write it anew"),
            )
        })
    }
}

/// Reads the authorities that may have signed clients' certificates.
pub(in crate::server) fn load_client_roots(path: &Path) -> Result<Arc<RootCertStore>, Refusal> {
    load_roots(Input::ClientCa, "grpc.tls_client_ca_file", path).map(Arc::new)
}

/// Reads the lists of clients' certificates that are revoked.
pub(in crate::server) fn load_client_lists(path: &Path) -> Result<Arc<Lists>, Refusal> {
    let read = read(
        Input::ClientCrl,
        CLIENT_CRL,
        path,
        CLIENT_CRL_BYTES_MAX,
        lists_of,
    );
    read.map(|(lists, next_update)| {
        Arc::new(Lists {
            path: path.to_owned(),
            lists,
            next_update,
        })
    })
}

/// Reads authorities from a PEM file.
pub(in crate::server) fn load_roots(
    input: Input,
    key: &str,
    path: &Path,
) -> Result<RootCertStore, Refusal> {
    read(input, key, path, CA_BYTES_MAX, roots_of)
}

fn read<T>(
    input: Input,
    key: &str,
    path: &Path,
    bytes_max: u64,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, Refusal> {
    let bytes = files::read(path, bytes_max)
        .map_err(|error| Refusal::unreadable(input, key, path, &error))?;
    parse(&bytes)
        .map_err(|problem| Refusal::new(input, format!("{key}: {}: {problem}", path.display())))
}

/// Both, or every refusal.
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

    let mut next_update = None;
    for list in &lists {
        let list = CertificateList::from_der(list).map_err(|error| {
            format!("it is no revocation list: {error}; have the authority write it anew")
        })?;
        let next = list.tbs_cert_list.next_update.map(seconds);
        next_update = next_update.into_iter().chain(next).min();
    }
    Ok((lists, next_update))
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
pub(super) fn certificate(certificate: &CertificateDer<'_>) -> Result<Certificate, String> {
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

/// When the next certificate in a chain expires. Those that have expired are not needed: the chain was verified without them.
pub(super) fn good_until(chain: &[CertificateDer<'_>], now: Timestamp) -> i64 {
    let ends = chain
        .iter()
        .filter_map(|certificate| parse(certificate).ok());
    let ends = ends.map(|certificate| seconds(certificate.tbs_certificate.validity.not_after));
    ends.filter(|&end| end >= now.as_second())
        .min()
        .unwrap_or(i64::MAX)
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
