//! TLS of the three listeners: where each has its certificate from, and that it is read again when it changes.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;

use super::{
    acme::{self, ACME_TLS, Acme},
    exposure,
    lock::lock,
    net::{
        Entrance,
        tls::{self, H2, HTTP_1_1, Part, Tls, Vouching},
    },
    numbers::usize_of,
    refusal::{Refusal, What},
    watch::{Change, Files, News, Watched},
};
use crate::{config::Config, metrics::Metrics};

/// What is spoken on each listener.
const INGEST_ALPN: &[&[u8]] = &[H2, HTTP_1_1];
const INGEST_ACME_ALPN: &[&[u8]] = &[H2, HTTP_1_1, ACME_TLS];
/// The second only to answer clients that speak nothing else; see `net::preface`.
const GRPC_ALPN: &[&[u8]] = &[H2, HTTP_1_1];
const ADMIN_ALPN: &[&[u8]] = &[HTTP_1_1];

/// What each listener speaks TLS with; `None`: it does not.
pub(super) struct ListenersTls {
    ingest: Option<Arc<Tls>>,
    pub grpc: Option<Arc<Tls>>,
    pub admin: Option<Arc<Tls>>,
    /// Keeps the ingest listener's certificate fresh.
    pub acme: Option<Acme>,
    /// The files that are read again when they change.
    pub watched: Vec<Watched>,
}

impl ListenersTls {
    /// Reads what the configuration names: all of it, whatever is wrong with some.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, Vec<Refusal>> {
        let Config {
            ingest,
            grpc,
            admin,
            acme,
            ..
        } = config;
        let mut tls = Self {
            ingest: None,
            grpc: None,
            admin: None,
            acme: None,
            watched: Vec::new(),
        };
        let files = |listener, certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
            Some(tls::Files {
                listener,
                certificate: certificate.clone()?,
                key: key.clone()?,
            })
        };
        let of_ingest = files("ingest", &ingest.tls_certificate_file, &ingest.tls_key_file);
        let of_grpc = files("grpc", &grpc.tls_certificate_file, &grpc.tls_key_file);
        let of_admin = files("admin", &admin.tls_certificate_file, &admin.tls_key_file);
        let of_clients = grpc.tls_client_ca_file.clone();
        let of_clients = of_clients.map(|ca| tls::ClientFiles {
            ca,
            crl: grpc.tls_client_crl_file.clone(),
        });

        let mut refusals = Vec::new();
        let mut read = |files, clients, alpn| {
            tls.read(files, clients, alpn, metrics)
                .unwrap_or_else(|wrong| {
                    refusals.extend(wrong);
                    None
                })
        };
        let (ingest, grpc) = (
            read(of_ingest, None, INGEST_ALPN),
            read(of_grpc, of_clients, GRPC_ALPN),
        );
        let admin = read(of_admin, None, ADMIN_ALPN);
        (tls.ingest, tls.grpc, tls.admin) = (ingest, grpc, admin);
        if !acme.domains.is_empty() {
            match acme::Authorities::load(acme) {
                Ok(authorities) => tls.order(config, authorities, metrics),
                Err(refusal) => refusals.push(refusal),
            }
        }
        if refusals.is_empty() {
            Ok(tls)
        } else {
            Err(refusals)
        }
    }

    /// Has the public listener's certificate from an authority.
    fn order(
        &mut self,
        config: &Config,
        mut authorities: acme::Authorities,
        metrics: &Arc<Metrics>,
    ) {
        self.watched.extend(authorities.watched());
        let (acme, resolver) = Acme::new(
            &config.acme,
            &config.data_dir,
            authorities,
            Arc::clone(metrics),
        );
        self.ingest = Some(Arc::new(Tls::from_resolver(resolver, INGEST_ACME_ALPN)));
        self.acme = Some(acme);
    }

    fn read(
        &mut self,
        files: Option<tls::Files>,
        clients: Option<tls::ClientFiles>,
        alpn: &'static [&'static [u8]],
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Arc<Tls>>, Vec<Refusal>> {
        let Some(files) = files else { return Ok(None) };
        // Looked at before they are read, so that no change is missed.
        let watched = Files::new(
            [&files.certificate, &files.key].map(|path| (What::Certificates, path.clone())),
        );
        let of_clients = clients.map(|clients| {
            let of =
                |what: What, path: Option<PathBuf>| path.map(|path| Files::new([(what, path)]));
            (
                [
                    of(What::ClientCa, Some(clients.ca.clone())),
                    of(What::ClientCrl, clients.crl.clone()),
                ],
                clients,
            )
        });
        let certificate = tls::load_certificate(&files);
        let verifier = of_clients
            .as_ref()
            .map(|(_, clients)| Vouching::load(clients))
            .transpose();
        let ((certificate, expires), vouching) = match (certificate, verifier) {
            (Ok(certificate), Ok(verifier)) => (certificate, verifier),
            (certificate, verifier) => {
                return Err([certificate.err(), verifier.err()]
                    .into_iter()
                    .flatten()
                    .flatten()
                    .collect());
            }
        };

        note_expiry(expires, files.listener, metrics);
        let (vouching, verifier) = vouching.unzip();
        note_next_lists(
            vouching.as_ref().and_then(Vouching::lists_replaced),
            metrics,
        );
        let tls = Arc::new(Tls::new(certificate, verifier, alpn));
        self.watched
            .push(watch_certificate(watched, files, &tls, metrics));
        let of_clients = of_clients.zip(vouching);
        let of_clients = of_clients.map(|((watched, clients), vouching)| {
            watch_clients(watched, clients, vouching, &tls, metrics)
        });
        self.watched.extend(of_clients.into_iter().flatten());
        Ok(Some(tls))
    }

    /// What the public listener asks of a connection first.
    pub(super) fn ingest_entrance(&self, config: &Config) -> Entrance {
        let ingest = &config.ingest;
        let each_max = usize_of(ingest.connections_per_address_max);
        Entrance::shared(
            each_max,
            &ingest.trusted_proxies,
            ingest.proxy_protocol,
            self.ingest.clone(),
        )
    }

    /// What the listener for internal services asks of a connection first. No address is a proxy's here: the share is wide
    /// enough for those who come through one.
    pub(super) fn grpc_entrance(&self, config: &Config) -> Entrance {
        Entrance::shared(
            usize_of(config.grpc.connections_per_address_max),
            &[],
            false,
            self.grpc.clone(),
        )
    }
}

/// Shows the certificate that is there when it has changed.
fn watch_certificate(
    watched: Files,
    files: tls::Files,
    tls: &Arc<Tls>,
    metrics: &Arc<Metrics>,
) -> Watched {
    let (in_use, metrics) = (Arc::clone(tls), Arc::clone(metrics));
    watched.watched(move || {
        let (certificate, expires) = tls::load_certificate(&files)?;
        exposure::warn_of_secrets([&files.key]);
        let (tls, metrics, listener) = (Arc::clone(&in_use), Arc::clone(&metrics), files.listener);
        let change: Change = Box::new(move || {
            tls.set_certificate(certificate);
            note_expiry(expires, listener, &metrics);
            let until = Timestamp::from_second(expires).unwrap_or_default();
            News {
                summary: format!("{listener} listener"),
                changes: vec![format!("{listener} good until {until}")],
            }
        });
        Ok(change)
    })
}

/// Believes the authorities and the lists that are there when they have changed, each for itself: what cannot be used of the one
/// holds nothing of the other back.
fn watch_clients(
    [of_ca, of_crl]: [Option<Files>; 2],
    clients: tls::ClientFiles,
    vouching: tls::Vouching,
    tls: &Arc<Tls>,
    metrics: &Arc<Metrics>,
) -> impl Iterator<Item = Watched> {
    let tls::ClientFiles { ca, crl } = clients;
    let vouched = Arc::new(Vouched {
        vouching: Mutex::new(vouching),
        tls: Arc::clone(tls),
        metrics: Arc::clone(metrics),
    });
    let of_lists = Arc::clone(&vouched);
    let roots = of_ca.map(|watched| {
        watched.watched(move || {
            let roots = tls::load_client_roots(&ca).map_err(|refusal| vec![refusal])?;
            vouched.change(Part::Roots(roots))
        })
    });
    let lists = of_crl.zip(crl).map(|(watched, path)| {
        watched.watched(move || {
            let lists = tls::load_client_lists(&path).map_err(|refusal| vec![refusal])?;
            of_lists.change(Part::Lists(lists))
        })
    });
    roots.into_iter().chain(lists)
}

/// What vouches for the clients of a listener.
struct Vouched {
    vouching: Mutex<Vouching>,
    tls: Arc<Tls>,
    metrics: Arc<Metrics>,
}

impl Vouched {
    /// Puts a part beside the other one that is in force.
    fn change(self: &Arc<Self>, part: Part) -> Result<Change, Vec<Refusal>> {
        let read = lock(&self.vouching).with(part.clone());
        let verifier = read.verifier().map_err(|refusal| vec![refusal])?;
        let vouched = Arc::clone(self);
        let change: Change = Box::new(move || {
            let mut vouching = lock(&vouched.vouching);
            *vouching = vouching.with(part);
            // The other part may be a new one by now. That takes milliseconds, and both have been in a verifier.
            let anew = (!vouching.is(&read))
                .then(|| vouching.verifier().expect("each part could be used before"));
            vouched.tls.set_verifier(anew.unwrap_or(verifier));
            note_next_lists(vouching.lists_replaced(), &vouched.metrics);
            News {
                summary: "grpc listener".to_owned(),
                changes: Vec::new(),
            }
        });
        Ok(change)
    }
}

fn note_expiry(expires: i64, listener: &str, metrics: &Metrics) {
    metrics
        .certificate_expiry
        .with_label_values(&[listener])
        .set(expires);
}

fn note_next_lists(replaced: Option<i64>, metrics: &Metrics) {
    if let Some(replaced) = replaced {
        metrics.crl_next_update.set(replaced);
    }
}
