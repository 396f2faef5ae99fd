//! TLS for a listener: certificates from files or from an ACME authority, replaced while connections go on.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ResolvesServerCert, WebPkiClientVerifier},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_cert::{
    Certificate,
    der::{
        Decode,
        asn1::{PrintableStringRef, Utf8StringRef},
        oid::db::rfc4519::COMMON_NAME,
    },
    ext::pkix::{SubjectAltName, name::GeneralName},
    time::Time,
};

use crate::files;

/// Largest file with a certificate and its chain: some hundred certificates.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;
/// Largest file with a key: an RSA key of 16,384 bits has 13 KiB.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Largest file with the authorities of clients: all that a browser trusts are a quarter of a MiB.
const CLIENT_CA_BYTES_MAX: u64 = 4 << 20;

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
        let seconds = |time: Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
        Ok(Self { chain, key, issued: seconds(validity.not_before), expires: seconds(validity.not_after) })
    }

    pub(in crate::server) fn certified(self) -> Result<Arc<rustls::sign::CertifiedKey>, String> {
        let key = rustls::sign::CertifiedKey::from_der(self.chain, self.key, &provider()).map_err(told)?;
        Ok(Arc::new(key))
    }
}

/// What a listener speaks TLS with, as of now.
#[derive(Debug)]
pub(in crate::server) struct Tls(RwLock<Arc<ServerConfig>>);

impl Tls {
    /// With the certificate in `files`; also until when it is good.
    pub(in crate::server) fn from_files(files: &Files, alpn: &[&[u8]]) -> Result<(Self, i64), String> {
        let (config, expires) = load(files, alpn)?;
        Ok((Self(RwLock::new(Arc::new(config))), expires))
    }

    /// With the certificates that `resolver` has.
    pub(in crate::server) fn from_resolver(resolver: Arc<dyn ResolvesServerCert>, alpn: &[&[u8]]) -> Self {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has what every version needs").with_no_client_auth();
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Self(RwLock::new(Arc::new(config)))
    }

    /// For the connections to come: what [`load`] has read.
    pub(in crate::server) fn set(&self, config: ServerConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(config).accept(stream).await
    }
}

/// The one provider of cryptography in the process.
pub(in crate::server) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads the files; also until when the certificate is good.
pub(in crate::server) fn load(files: &Files, alpn: &[&[u8]]) -> Result<(ServerConfig, i64), String> {
    let read =
        |path: &Path, bytes_max| files::read(path, bytes_max).map_err(|error| format!("{}: {error}", path.display()));
    let (chain, key) = (read(&files.certificate, CERTIFICATE_BYTES_MAX)?, read(&files.key, KEY_BYTES_MAX)?);
    let identity =
        Identity::from_pem(&chain, &key).map_err(|problem| format!("{}: {problem}", files.certificate.display()))?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("ring has what every version needs");
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let wrong = |problem: String| format!("{}: {problem}", path.display());
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&read(path, CLIENT_CA_BYTES_MAX)?) {
                roots.add(certificate.map_err(|error| wrong(told(error)))?).map_err(|error| wrong(told(error)))?;
            }
            // Not everybody has one: a token will do, and who has neither is refused with a reason that can be read.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            let verifier = verifier.allow_unauthenticated().build().map_err(|error| wrong(told(error)))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let Identity { chain, key, expires, .. } = identity;
    let config = builder.with_single_cert(chain, key);
    let mut config = config.map_err(|error| format!("{}: {error}", files.certificate.display()))?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok((config, expires))
}

/// The names that a verified certificate stands for: DNS names, URIs, and the common name.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Arc<[String]> {
    let Ok(certificate) = parse(certificate) else { return Arc::default() };
    let certificate = certificate.tbs_certificate;
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
    alternative.chain(common).collect()
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, String> {
    Certificate::from_der(certificate).map_err(|error| format!("it is no certificate: {error}"))
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
