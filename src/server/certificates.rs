//! TLS of the three listeners: where each gets its certificate from, and how it is read again when it changes.

use std::{path::PathBuf, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::{
    acme::{self, ACME_TLS, Acme},
    exposure,
    net::{
        Entrance,
        pem_files::{self, Part, Vouching},
        tls::{H2, HTTP_1_1, Tls},
    },
    numbers::usize_of,
    refusal::{Input, Refusal},
    watch::{Applied, Change, Files, Watched},
};
use crate::{config::Config, metrics::Metrics};

/// The protocols of each listener.
const INGEST_ALPN: &[&[u8]] = &[H2, HTTP_1_1];
const INGEST_ACME_ALPN: &[&[u8]] = &[H2, HTTP_1_1, ACME_TLS];
/// HTTP/1.1 only to answer clients that speak nothing else; see `net::preface`.
const GRPC_ALPN: &[&[u8]] = &[H2, HTTP_1_1];
const ADMIN_ALPN: &[&[u8]] = &[HTTP_1_1];

/// TLS of each listener; `None` if it speaks plain text.
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
    /// Reads all files that the configuration names, whatever is wrong with some.
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
        let of_ingest = files("ingest", &ingest.tls_certificate_file, &ingest.tls_key_file);
        let of_grpc = files("grpc", &grpc.tls_certificate_file, &grpc.tls_key_file);
        let of_admin = files("admin", &admin.tls_certificate_file, &admin.tls_key_file);
        let of_clients = grpc
            .tls_client_ca_file
            .clone()
            .map(|ca| pem_files::ClientFiles {
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
        let ingest = read(of_ingest, None, INGEST_ALPN);
        let grpc = read(of_grpc, of_clients, GRPC_ALPN);
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

    /// Gets the ingest listener's certificate from an ACME authority.
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

    /// Reads the files of one listener, and watches them from now on.
    fn read(
        &mut self,
        files: Option<pem_files::Files>,
        clients: Option<pem_files::ClientFiles>,
        alpn: &'static [&'static [u8]],
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Arc<Tls>>, Vec<Refusal>> {
        let Some(files) = files else { return Ok(None) };

        // Their stamps are taken before they are read, so that no change is missed.
        let paths = [&files.certificate, &files.key];
        let watched = Files::new(paths.map(|path| (Input::Certificates, path.clone())));
        let watched_of_clients = clients.as_ref().map(|clients| {
            let one = |input, path: &Option<PathBuf>| {
                path.clone().map(|path| Files::new([(input, path)]))
            };
            [
                one(Input::ClientCa, &Some(clients.ca.clone())),
                one(Input::ClientCrl, &clients.crl),
            ]
        });

        let certificate = pem_files::load_certificate(&files);
        let vouching = clients.as_ref().map(Vouching::load).transpose();
        let ((certificate, expires), vouching) = match (certificate, vouching) {
            (Ok(certificate), Ok(vouching)) => (certificate, vouching),
            (certificate, vouching) => {
                let refusals = [certificate.err(), vouching.err()];
                return Err(refusals.into_iter().flatten().flatten().collect());
            }
        };

        note_expiry(expires, files.listener, metrics);
        let (vouching, verifier) = vouching.unzip();
        note_next_lists(vouching.as_ref().and_then(Vouching::next_update), metrics);
        let tls = Arc::new(Tls::new(certificate, verifier, alpn));

        let of_certificate = watch_certificate(watched, files, &tls, metrics);
        self.watched.push(of_certificate);
        if let (Some(watched), Some(clients), Some(vouching)) =
            (watched_of_clients, clients, vouching)
        {
            let of_clients = watch_clients(watched, clients, vouching, &tls, metrics);
            self.watched.extend(of_clients);
        }
        Ok(Some(tls))
    }

    /// What a connection to the ingest listener has to pass first.
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

    /// What a connection to the gRPC listener has to pass first. No proxies are trusted here: the share of an address is wide enough for
    /// the clients behind one.
    pub(super) fn grpc_entrance(&self, config: &Config) -> Entrance {
        Entrance::shared(
            usize_of(config.grpc.connections_per_address_max),
            &[],
            false,
            self.grpc.clone(),
        )
    }
}

/// The files of one listener, if the configuration names both.
fn files(
    listener: &'static str,
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
) -> Option<pem_files::Files> {
    Some(pem_files::Files {
        listener,
        certificate: certificate.clone()?,
        key: key.clone()?,
    })
}

/// Puts a certificate into force when its files have changed.
fn watch_certificate(
    watched: Files,
    files: pem_files::Files,
    tls: &Arc<Tls>,
    metrics: &Arc<Metrics>,
) -> Watched {
    let (in_use, metrics) = (Arc::clone(tls), Arc::clone(metrics));
    watched.watched(move || {
        let (certificate, expires) = pem_files::load_certificate(&files)?;
        let exposed = exposure::exposed_secrets([&files.key]);
        let (tls, metrics, listener) = (Arc::clone(&in_use), Arc::clone(&metrics), files.listener);
        let change: Change = Box::new(move |reading| {
            exposure::warn_of(&exposed, reading);
            tls.set_certificate(certificate);
            note_expiry(expires, listener, &metrics);
            let until = Timestamp::from_second(expires).unwrap_or_default();
            Applied {
                summary: format!("{listener} listener"),
                changes: vec![format!("{listener} good until {until}")],
            }
        });
        Ok(change)
    })
}

/// Puts the authorities and the revocation lists for clients into force when their files have changed, each for itself: a problem with
/// the one file does not hold up the other.
fn watch_clients(
    [of_ca, of_crl]: [Option<Files>; 2],
    clients: pem_files::ClientFiles,
    vouching: pem_files::Vouching,
    tls: &Arc<Tls>,
    metrics: &Arc<Metrics>,
) -> impl Iterator<Item = Watched> {
    let pem_files::ClientFiles { ca, crl } = clients;
    let vouched = Arc::new(Vouched {
        vouching: Mutex::new(vouching),
        tls: Arc::clone(tls),
        metrics: Arc::clone(metrics),
    });
    let of_lists = Arc::clone(&vouched);
    let roots = of_ca.map(|watched| {
        watched.watched(move || {
            let roots = pem_files::load_client_roots(&ca).map_err(|refusal| vec![refusal])?;
            vouched.change(Part::Roots(roots))
        })
    });
    let lists = of_crl.zip(crl).map(|(watched, path)| {
        watched.watched(move || {
            let lists = pem_files::load_client_lists(&path).map_err(|refusal| vec![refusal])?;
            of_lists.change(Part::Lists(lists))
        })
    });
    roots.into_iter().chain(lists)
}

/// What decides which certificates of a listener's clients are good.
struct Vouched {
    vouching: Mutex<Vouching>,
    tls: Arc<Tls>,
    metrics: Arc<Metrics>,
}

impl Vouched {
    /// Replaces one part, and leaves the other as it is in force.
    fn change(self: &Arc<Self>, part: Part) -> Result<Change, Vec<Refusal>> {
        let read = self.vouching.lock().with(part.clone());
        let verifier = read.verifier().map_err(|refusal| vec![refusal])?;
        let vouched = Arc::clone(self);
        let change: Change = Box::new(move |_| {
            let mut vouching = vouched.vouching.lock();
            *vouching = vouching.with(part);
            // The other part may have been replaced meanwhile. Then the verifier is made again, in milliseconds, of parts that have
            // been in one before.
            let anew = (!vouching.is(&read))
                .then(|| vouching.verifier().expect("each part could be used before"));
            vouched.tls.set_verifier(anew.unwrap_or(verifier));
            note_next_lists(vouching.next_update(), &vouched.metrics);
            Applied {
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
