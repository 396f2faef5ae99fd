//! The certificates of the ingest listener with ACME: the one in use, and the proofs for TLS-ALPN-01 (RFC 8737).

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard, RwLock};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    pki_types::PrivatePkcs8KeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::failure::at;
use crate::server::net::pem_files::provider;

/// What an authority offers by ALPN when it checks a domain, and no other client does.
pub(in crate::server) const ACME_TLS: &[u8] = b"acme-tls/1";

/// Chooses the certificate for a handshake: an authority's check gets the proof, every other client the certificate.
#[derive(Debug, Default)]
pub(in crate::server) struct Resolver {
    current: RwLock<Option<Arc<CertifiedKey>>>,
    /// A proof for each domain that is being checked.
    challenges: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_check = hello
            .alpn()
            .is_some_and(|mut names| names.any(|name| name == ACME_TLS));
        if is_check {
            return self.challenges().get(hello.server_name()?).cloned();
        }
        self.current.read().clone()
    }
}

impl Resolver {
    /// Shows this certificate from now on.
    pub(super) fn set_current(&self, certificate: Arc<CertifiedKey>) {
        *self.current.write() = Some(certificate);
    }

    pub(super) fn challenges(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.challenges.lock()
    }
}

/// The proof that this listener answers for a domain: a certificate that only an authority's check is shown.
pub(super) fn proof(domain: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let mut params = CertificateParams::new([domain.to_owned()]).map_err(at("the proof"))?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(at("the proof"))?;
    let certificate = params
        .self_signed(&key)
        .map_err(at("the proof"))?
        .der()
        .clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(at("the proof"))?;
    // Not `from_der`: it reads the certificate, and refuses the proof as a critical extension that it does not know.
    Ok(Arc::new(CertifiedKey::new(vec![certificate], key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_can_be_shown_although_it_has_a_critical_extension() {
        let proof = proof("hooks.example.com", &[7; 32]).unwrap();
        for part in [&b"hooks.example.com"[..], &[7; 32]] {
            assert!(proof.cert[0].windows(part.len()).any(|found| found == part));
        }
    }
}
