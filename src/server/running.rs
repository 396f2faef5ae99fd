//! A running broker: serves until a request to stop, or until a start would mend something, reloads on request, and is drained at the
//! end.

use std::{pin::pin, sync::Arc};

use super::{
    addresses::Addresses,
    banner,
    cluster::Node,
    drain::{self, Drain},
    error::RunError,
    listeners::Listeners,
    reload::Reloader,
    reopen_after_failure, systemd,
    tasks::Tasks,
};
use crate::{
    config::{Config, ConfigErrors, Loaded},
    store::Store,
};

/// A running broker.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) reloader: Reloader,
    /// Of a node of a cluster.
    pub(super) node: Option<Node>,
    /// Dropping them aborts them.
    pub(super) tasks: Tasks,
    /// What is taken down at the end.
    pub(super) drain: Drain,
}

/// How serving has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The broker was stopped on request.
    Stopped,
    /// The process has to start itself anew, with these sockets.
    ToStartAnew(Listeners),
}

impl Server {
    /// Where the broker can be reached: the real ports, also where the configuration says 0.
    pub(crate) fn addresses(&self) -> Addresses {
        self.reloader.addresses
    }

    /// Waits until a node of a cluster is ready, for a short time: most are when they say so.
    pub(crate) async fn settle(&self) {
        if let Some(node) = &self.node {
            node.settle().await;
        }
    }

    /// The text that a person sees after the start.
    pub(crate) fn banner(&self, config: &Config) -> String {
        banner::text(
            config,
            &self.reloader.addresses,
            &self.reloader.sources.store,
            &self.reloader.credentials.get(),
            self.node.as_ref(),
        )
    }

    /// Serves until `shutdown` completes, or until a start of the process would mend something; then drains the broker.
    ///
    /// Whenever `hangup` completes, puts into force what `load` returns. A load may take any time: serving goes on meanwhile.
    pub(crate) async fn run_until(
        mut self,
        shutdown: impl Future<Output = ()>,
        mut hangup: impl AsyncFnMut(),
        load: impl Fn() -> Result<Loaded, ConfigErrors> + Send + Sync + 'static,
    ) -> Result<Ended, RunError> {
        let load = Arc::new(load);
        let reloader = &self.reloader;
        reloader.refusals.report_ready();

        let mut shutdown = pin!(shutdown);
        let store = Arc::clone(&reloader.sources.store);
        let mut mending = pin!(start_would_mend(store, self.node.as_ref()));
        let mended = loop {
            tokio::select! {
                () = &mut shutdown => break None,
                what = &mut mending => break Some(what),
                Some(ended) = self.tasks.next_ended() => return Err(RunError::Ended(ended?)),
                () = hangup() => {
                    systemd::reloading();
                    tokio::select! {
                        () = &mut shutdown => break None,
                        () = reloader.reload(&load) => systemd::ready(),
                    }
                }
            }
        };

        match mended {
            Some(what) => tracing::warn!("{what}: starting anew"),
            None => systemd::stopping(),
        }
        let drain_timeout = reloader.config.lock().shutdown.drain_timeout;
        let listeners = drain::drain(self.drain, self.tasks, drain_timeout, mended.is_some()).await;
        Ok(listeners.map_or(Ended::Stopped, Ended::ToStartAnew))
    }
}

/// Waits until a start of the process would mend something; says what.
async fn start_would_mend(store: Arc<Store>, node: Option<&Node>) -> &'static str {
    let left_behind = async {
        match node {
            Some(node) => node.state.has_to_start_anew().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = reopen_after_failure::is_possible(store) => "the store can be opened again",
        () = left_behind => "the cluster's stream has left this node behind",
    }
}
