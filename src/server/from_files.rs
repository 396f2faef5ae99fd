//! Everything that a start needs from files. All files are read, whatever is wrong with some, so that all problems are reported at once.
//! `check-config` uses the same code.

use std::sync::Arc;

use parking_lot::Mutex;
use tonic::transport::Endpoint;

use super::{
    addresses::Addresses,
    certificates::ListenersTls,
    credentials, exposure, otlp,
    refusal::Refusal,
    vendor_api::{self, vendor_api},
    watch::Watched,
};
use crate::{
    config::Config, credentials::SharedCredentials, metrics::Metrics,
    reconcile::vendor_api::VendorApi,
};

/// See the module's description.
pub(super) struct FromFiles {
    pub credentials: Arc<SharedCredentials>,
    pub tls: ListenersTls,
    /// Where traces are sent, if anywhere.
    pub collector: Option<Endpoint>,
    /// The vendor's status API, if late tasks are asked about.
    pub vendor_api: Option<Arc<VendorApi>>,
    /// The files that are read again when they change.
    pub watched: Vec<Watched>,
    /// About files that others can use, and that no key of the configuration names.
    pub warnings: Vec<String>,
}

impl FromFiles {
    /// May hang, so it has to be called aside. The credentials have to suffice for all of these addresses.
    pub(super) fn read(
        shared: &Arc<Mutex<Config>>,
        places: &[Addresses],
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Vec<Refusal>> {
        let config = shared.lock().clone();
        let credentials = Arc::new(SharedCredentials::default());
        let mut watched: Vec<_> = credentials::watched(shared, &credentials)
            .into_iter()
            .collect();
        let loaded = credentials::load(&config, places);
        let tls = ListenersTls::new(&config, metrics);
        let collector = otlp::collector(&config.traces);
        let vendor_api = vendor_api(&config.reconcile);

        match (loaded, tls, collector, vendor_api) {
            (Ok(loaded), Ok(mut tls), Ok(collector), Ok(vendor_api)) => {
                let warnings = exposure::exposed_secrets(&loaded.key_files());
                credentials.set(loaded);
                watched.append(&mut tls.watched);
                let api = vendor_api.as_ref();
                watched.extend(api.and_then(|api| vendor_api::watched(&config.reconcile, api)));
                Ok(Self {
                    warnings,
                    credentials,
                    tls,
                    collector,
                    vendor_api,
                    watched,
                })
            }
            (loaded, tls, collector, vendor_api) => {
                let refusals = [
                    loaded.err(),
                    tls.err(),
                    collector.err().map(|refusal| vec![refusal]),
                    vendor_api.err().map(|refusal| vec![refusal]),
                ];
                Err(refusals.into_iter().flatten().flatten().collect())
            }
        }
    }
}
