//! Connections that were ended because their client flooded: each is counted, and the log has a line now and then.

use std::{net::IpAddr, sync::Arc};

use prometheus::IntCounter;

use crate::{metrics::Metrics, sampler::Sampler};

/// Of one listener.
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

    /// A connection of `client` was ended.
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
