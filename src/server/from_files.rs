//! What the start needs from files: all of it is read, whatever is wrong with some, so that everything wrong is told at once.
//! `check-config` reads it by the same code.

use std::sync::{Arc, Mutex};

use tonic::transport::Endpoint;

use super::{
    Addresses, credentials, lock, otlp, refusal::Refusal, secured::Secured, watch::Watched,
};
use crate::{config::Config, credentials::SharedCredentials, metrics::Metrics};

/// See the module's description.
pub(super) struct FromFiles {
    pub credentials: Arc<SharedCredentials>,
    pub secured: Secured,
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
        let secured = Secured::new(&config, metrics);
        let collector = otlp::way(&config.traces);

        match (loaded, secured, collector) {
            (Ok(loaded), Ok(mut secured), Ok(collector)) => {
                credentials.set(loaded);
                watched.append(&mut secured.watched);
                Ok(Self {
                    credentials,
                    secured,
                    collector,
                    watched,
                })
            }
            (loaded, secured, collector) => {
                let refusals = [
                    loaded.err(),
                    secured.err(),
                    collector.err().map(|refusal| vec![refusal]),
                ];
                Err(refusals.into_iter().flatten().flatten().collect())
            }
        }
    }
}
