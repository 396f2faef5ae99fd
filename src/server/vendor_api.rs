//! Builds the client for the vendor's status API, if the configuration asks for it.

use std::{env, sync::Arc};

use hyper_rustls::ConfigBuilderExt;
use rustls::{ClientConfig, RootCertStore};

use super::{
    net::pem_files::provider,
    refusal::{Input, Refusal},
    watch::{Applied, Change, Files, Watched},
};
use crate::{
    config,
    reconcile::{paths::Paths, vendor_api::VendorApi},
};

/// Variables by which other programs find a proxy for https.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// The client, if it is wanted. Reads the system's certificates if they are needed; opens no connection.
pub(super) fn vendor_api(config: &config::Reconcile) -> Result<Option<Arc<VendorApi>>, Refusal> {
    if !config.enabled {
        return Ok(None);
    }
    let url = &config.base_url;
    VendorApi::new(url, Paths::new(config.path.clone()), tls(config)?)
        .map(|api| Some(Arc::new(api)))
        .map_err(|error| refusal(Input::Configuration, url, &error.to_string()))
}

/// The certificates that the vendor is checked with. They are read again on request only.
pub(super) fn watched(config: &config::Reconcile, api: &Arc<VendorApi>) -> Option<Watched> {
    let (config, api) = (config.clone(), Arc::clone(api));
    is_checked(&config).then(|| {
        Files::on_demand(Input::VendorApi).watched(move || {
            let tls = tls(&config).map_err(|refusal| vec![refusal])?;
            let api = Arc::clone(&api);
            let change: Change = Box::new(move |_| {
                api.trust(tls);
                Applied {
                    summary: "for the next call".to_owned(),
                    changes: Vec::new(),
                }
            });
            Ok(change)
        })
    })
}

/// Says that a proxy in the environment is not used. Its address is not shown: it may have a password.
pub(super) fn unused_proxy(config: &config::Reconcile) -> Option<String> {
    let is_set = |name: &&str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let name = PROXY_VARIABLES.into_iter().find(is_set)?;
    (config.enabled && is_checked(config)).then(|| {
        format!(
            "{name} is set, and the vendor's API is asked without a proxy: if it cannot be reached \
             directly, have an internal reverse proxy pass requests on to it, and set \
             reconcile.base_url to that proxy's URL"
        )
    })
}

fn is_checked(config: &config::Reconcile) -> bool {
    config.base_url.starts_with("https:")
}

fn tls(config: &config::Reconcile) -> Result<ClientConfig, Refusal> {
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has what every version needs");
    let tls = if is_checked(config) {
        let no_roots = |error| {
            let problem = format!(
                "no certificate authorities to check it against: {error}; install ca-certificates, or name them by SSL_CERT_FILE"
            );
            refusal(Input::VendorApi, &config.base_url, &problem)
        };
        tls.with_native_roots().map_err(no_roots)?
    } else {
        tls.with_root_certificates(RootCertStore::empty())
    };
    Ok(tls.with_no_client_auth())
}

fn refusal(input: Input, url: &str, problem: &str) -> Refusal {
    Refusal::new(input, format!("reconcile.base_url: {url}: {problem}"))
}
