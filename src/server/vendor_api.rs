//! Builds the client for the vendor's status API, if the configuration asks for it.

use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::{ClientConfig, RootCertStore};

use super::{
    net::pem_files::provider,
    refusal::{Input, Refusal},
};
use crate::{
    config,
    reconcile::{paths::Paths, vendor_api::VendorApi},
};

/// The client, if it is wanted. Reads the system's certificates if they are needed; opens no connection.
pub(super) fn vendor_api(config: &config::Reconcile) -> Result<Option<Arc<VendorApi>>, Refusal> {
    if !config.enabled {
        return Ok(None);
    }

    let url = &config.base_url;
    let refusal = |problem: String| {
        let why = format!("reconcile.base_url: {url}: {problem}");
        Refusal::new(Input::Configuration, why)
    };
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has what every version needs");
    let tls = if url.starts_with("https:") {
        let no_roots = |error| {
            refusal(format!(
                "no certificate authorities to check it against: {error}; install ca-certificates, or name them by SSL_CERT_FILE"
            ))
        };
        tls.with_native_roots().map_err(no_roots)?
    } else {
        tls.with_root_certificates(RootCertStore::empty())
    };

    VendorApi::new(
        url,
        Paths::new(config.path.clone()),
        tls.with_no_client_auth(),
    )
    .map(|api| Some(Arc::new(api)))
    .map_err(|error| refusal(error.to_string()))
}
