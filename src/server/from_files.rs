//! What the start needs from files: all of it is read, whatever is wrong with some, so that everything wrong is told at once.
//! `check-config` reads it by the same code.

use std::sync::{Arc, Mutex};

use tonic::transport::Endpoint;

use super::{
    addresses::Addresses, credentials, lock::lock, otlp, refusal::Refusal, tls::ListenersTls,
    watch::Watched,
};
use crate::{config::Config, credentials::SharedCredentials, metrics::Metrics};

/// See the module's description.
pub(super) struct FromFiles {
    pub credentials: Arc<SharedCredentials>,
    pub tls: ListenersTls,
    /// The way to the collector of traces, if there is one.
    pub collector: Option<Endpoint>,
    /// What is read again when it changes.
    pub watched: Vec<Watched>,
}

impl FromFiles {
    /// May wait for any time: to be called aside. The credentials have to do for all of these places.
    pub(super) fn read(
        shared: &Arc<Mutex<Config>>,
        places: &[Addresses],
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Vec<Refusal>> {
        let config = lock(shared).clone();
        let credentials = Arc::new(SharedCredentials::default());
        let mut watched: Vec<_> = credentials::watched(shared, &credentials)
            .into_iter()
            .collect();
        let loaded = credentials::load(&config, places);
        let tls = ListenersTls::new(&config, metrics);
        let collector = otlp::way(&config.traces);

        match (loaded, tls, collector) {
            (Ok(loaded), Ok(mut tls), Ok(collector)) => {
                credentials.set(loaded);
                watched.append(&mut tls.watched);
                Ok(Self {
                    credentials,
                    tls,
                    collector,
                    watched,
                })
            }
            (loaded, tls, collector) => {
                let refusals = [
                    loaded.err(),
                    tls.err(),
                    collector.err().map(|refusal| vec![refusal]),
                ];
                Err(refusals.into_iter().flatten().flatten().collect())
            }
        }
    }
}
