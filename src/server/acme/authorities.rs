//! The certificate authorities that the ACME server's own certificate is checked against: the system's, or those of a file, which is
//! read again when it changes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use instant_acme::{Account, AccountBuilder};
use parking_lot::RwLock;
use rustls::ClientConfig;

use super::failure::at;
use crate::{
    config,
    server::{
        net::pem_files::{load_roots, provider},
        refusal::{Input, Refusal},
        watch::{Applied, Change, Files, Watched},
    },
};

/// The certificate authorities that the ACME server's own certificate is checked against.
pub(in crate::server) struct Authorities {
    /// The file, and those in force; `None`: the system's.
    own: Option<(PathBuf, Arc<RwLock<Arc<ClientConfig>>>)>,
    /// The file as it was before it was read.
    files: Option<Files>,
}

impl Authorities {
    /// Reads what the configuration names.
    pub(in crate::server) fn load(config: &config::Acme) -> Result<Self, Refusal> {
        let Some(path) = config.directory_ca_file.clone() else {
            return Ok(Self {
                own: None,
                files: None,
            });
        };
        let files = Files::new([(Input::AcmeCa, path.clone())]);
        let in_force = Arc::new(RwLock::new(trusting(&path)?));
        Ok(Self {
            own: Some((path, in_force)),
            files: Some(files),
        })
    }

    /// The file, if there is one, which is read again when it changes.
    pub(in crate::server) fn watched(&mut self) -> Option<Watched> {
        let (path, in_force) = self.own.clone()?;
        let read = move || {
            let (new, in_force) = (
                trusting(&path).map_err(|refusal| vec![refusal])?,
                Arc::clone(&in_force),
            );
            let change: Change = Box::new(move |_| {
                *in_force.write() = new;
                Applied {
                    summary: "for the next order".to_owned(),
                    changes: Vec::new(),
                }
            });
            Ok(change)
        };
        Some(self.files.take()?.watched(read))
    }

    /// Connects to the ACME server. May read the system's certificates.
    pub(super) fn builder(&self) -> Result<AccountBuilder, String> {
        let Some((_, in_force)) = &self.own else {
            return Account::builder().map_err(at("the system's certificates"));
        };
        let config = ClientConfig::clone(&in_force.read());
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .build();
        Ok(Account::builder_with_http(Box::new(
            Client::builder(TokioExecutor::new()).build(connector),
        )))
    }
}

fn trusting(path: &Path) -> Result<Arc<ClientConfig>, Refusal> {
    let roots = load_roots(Input::AcmeCa, "acme.directory_ca_file", path)?;
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("ring has what every version needs");
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}
