//! Counts and logs connections that HTTP/2 has ended because their client flooded. Not every one has a line of the log.

use std::{net::IpAddr, sync::Arc};

use prometheus::IntCounter;

use crate::{metrics::Metrics, sampler::Sampler};

/// The floods of one listener.
#[derive(Clone, Debug)]
pub(in crate::server) struct Floods {
    listener: &'static str,
    counted: IntCounter,
    log: Arc<Sampler>,
}

impl Floods {
    pub(in crate::server) fn of(listener: &'static str, metrics: &Metrics) -> Self {
        let counted = metrics.connections_flooded.with_label_values(&[listener]);
        Self {
            listener,
            counted,
            log: Arc::default(),
        }
    }

    /// Notes that a connection of `client` was ended.
    pub(in crate::server) fn note(&self, client: IpAddr) {
        self.counted.inc();
        if let Some(unlogged) = self.log.due(self.listener) {
            let listener = self.listener;
            tracing::warn!(
                listener, %client, unlogged,
                "a connection was closed because of too many resets or small frames: the client floods, or cancels most calls it makes"
            );
        }
    }
}
