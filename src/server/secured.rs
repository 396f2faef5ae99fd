//! TLS of the three listeners: where each has its certificate from, and that it is read again when it changes.

use std::{path::PathBuf, sync::Arc};

use super::{
    acme::{ACME_TLS, Acme},
    exposure,
    net::{
        Entrance,
        tls::{self, Expiry, H2, HTTP_1_1, Tls},
    },
    usize_of,
    watch::{Change, Files, Watched},
};
use crate::{config::Config, metrics::Metrics};

/// What is spoken on each listener.
const INGEST_ALPN: &[&[u8]] = &[H2, HTTP_1_1];
const INGEST_ACME_ALPN: &[&[u8]] = &[H2, HTTP_1_1, ACME_TLS];
const GRPC_ALPN: &[&[u8]] = &[H2];
const ADMIN_ALPN: &[&[u8]] = &[HTTP_1_1];

/// What each listener speaks TLS with; `None`: it does not.
pub(super) struct Secured {
    ingest: Option<Arc<Tls>>,
    pub grpc: Option<Arc<Tls>>,
    pub admin: Option<Arc<Tls>>,
    /// Keeps the ingest listener's certificate fresh.
    pub acme: Option<Acme>,
    /// The files that are read again when they change.
    pub watched: Vec<Watched>,
}

impl Secured {
    /// Reads what the configuration names.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, String> {
        let Config { ingest, grpc, admin, acme, data_dir, .. } = config;
        let mut secured = Self { ingest: None, grpc: None, admin: None, acme: None, watched: Vec::new() };
        let files = |certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
            let (certificate, key) = (certificate.clone()?, key.clone()?);
            Some(tls::Files { certificate, key, client_ca: None, client_crl: None })
        };
        let of_ingest = files(&ingest.tls_certificate_file, &ingest.tls_key_file);
        let of_grpc = files(&grpc.tls_certificate_file, &grpc.tls_key_file);
        let (client_ca, client_crl) = (grpc.tls_client_ca_file.clone(), grpc.tls_client_crl_file.clone());
        let of_grpc = of_grpc.map(|files| tls::Files { client_ca, client_crl, ..files });
        let of_admin = files(&admin.tls_certificate_file, &admin.tls_key_file);
        secured.ingest = secured.read("ingest", of_ingest, INGEST_ALPN, metrics)?;
        secured.grpc = secured.read("grpc", of_grpc, GRPC_ALPN, metrics)?;
        secured.admin = secured.read("admin", of_admin, ADMIN_ALPN, metrics)?;
        if !acme.domains.is_empty() {
            let (acme, resolver) = Acme::new(acme, data_dir, Arc::clone(metrics));
            secured.ingest = Some(Arc::new(Tls::from_resolver(resolver, INGEST_ACME_ALPN)));
            secured.acme = Some(acme);
        }
        Ok(secured)
    }

    fn read(
        &mut self,
        listener: &'static str,
        files: Option<tls::Files>,
        alpn: &'static [&'static [u8]],
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Arc<Tls>>, String> {
        let Some(files) = files else { return Ok(None) };
        let watched = Files::new("certificates", files.paths());
        let (tls, expiry) = Tls::from_files(&files, alpn)?;
        note(expiry, listener, metrics);
        let tls = Arc::new(tls);

        let (in_use, metrics) = (Arc::clone(&tls), Arc::clone(metrics));
        self.watched.push(watched.watched(move || {
            let (loaded, expiry) = tls::load(&files, alpn)?;
            exposure::warn_of_secrets([&files.key]);
            let (tls, metrics) = (Arc::clone(&in_use), Arc::clone(&metrics));
            let change: Change = Box::new(move || {
                tls.set(loaded);
                note(expiry, listener, &metrics);
                format!("{listener} listener")
            });
            Ok(change)
        }));
        Ok(Some(tls))
    }

    /// What the public listener asks of a connection first.
    pub(super) fn ingest_entrance(&self, config: &Config) -> Entrance {
        let ingest = &config.ingest;
        let each_max = usize_of(ingest.connections_per_address_max);
        Entrance::shared(each_max, &ingest.trusted_proxies, ingest.proxy_protocol, self.ingest.clone())
    }

    /// What the listener for internal services asks of a connection first. No address is a proxy's here: the share is wide
    /// enough for those who come through one.
    pub(super) fn grpc_entrance(&self, config: &Config) -> Entrance {
        Entrance::shared(usize_of(config.grpc.connections_per_address_max), &[], false, self.grpc.clone())
    }
}

fn note(expiry: Expiry, listener: &str, metrics: &Metrics) {
    metrics.certificate_expiry.with_label_values(&[listener]).set(expiry.certificate);
    if let Some(replaced) = expiry.crl {
        metrics.crl_next_update.set(replaced);
    }
}
