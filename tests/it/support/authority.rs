//! A certificate authority for tests, and the certificate files that a broker and its clients need.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

/// An authority, with a directory for its files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A unique name, since revocation lists are matched by it.
        let name = format!("a test's authority {}", uuid::Uuid::new_v4());
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self {
            issuer,
            directory: tempfile::tempdir().unwrap(),
        };
        fs::write(authority.ca_file(), authority.issuer.pem()).unwrap();
        authority
    }

    /// The authority's own certificate, PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Issues a certificate for a DNS name. Existing files are replaced.
    pub fn issue(&self, file: &str, name: &str) -> Issued {
        self.issue_with(file, name, |_| {})
    }

    /// Like [`Authority::issue`], with a validity; also returns the Unix time of its last valid
    /// second.
    pub fn issue_for(&self, file: &str, name: &str, validity: Duration) -> (Issued, u64) {
        let expires = (SystemTime::now() + validity)
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(expires);
        (
            self.issue_with(file, name, |params| params.not_after = not_after),
            expires,
        )
    }

    /// Like [`Authority::issue`], with a serial number for revocation.
    pub fn issue_numbered(&self, file: &str, name: &str, number: u64) -> Issued {
        self.issue_with(file, name, |params| {
            params.serial_number = Some(SerialNumber::from(number));
        })
    }

    /// Writes a revocation list with these serial numbers, whose next update is in 2099.
    pub fn revoke(&self, numbers: &[u64]) -> PathBuf {
        let revoked = numbers.iter().map(|&number| RevokedCertParams {
            serial_number: SerialNumber::from(number),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.directory.path().join("revoked.pem");
        replace(&path, &list.signed_by(&self.issuer).unwrap().pem().unwrap());
        path
    }

    fn issue_with(
        &self,
        file: &str,
        name: &str,
        with: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        with(&mut params);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("common {name}"));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| self.directory.path().join(format!("{file}.{end}"));
        let issued = Issued {
            certificate: path("pem"),
            key: path("key"),
        };
        for (path, text) in [
            (&issued.certificate, certificate.pem()),
            (&issued.key, key.serialize_pem()),
        ] {
            replace(path, &text);
        }
        issued
    }
}

/// Replaces a file atomically.
pub fn replace(path: &std::path::Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}
