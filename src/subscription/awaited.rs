//! Waiting for a place that this node does not have yet, because another node of the cluster has given it out. A broker that is
//! alone waits for none: there, such a place was never given out.

use std::time::Duration;

use tokio::{sync::Notify, time::timeout};

/// How long reads wait, and what wakes them.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    /// `None`: there are no other nodes.
    wait: Option<Duration>,
    rises: Notify,
}

impl Awaited {
    /// Of a node of a cluster.
    pub(crate) fn in_cluster(wait: Duration) -> Self {
        Self {
            wait: Some(wait),
            rises: Notify::new(),
        }
    }

    /// There are other nodes.
    pub(super) fn is_in_cluster(&self) -> bool {
        self.wait.is_some()
    }

    /// Wakes what waits, since the head has risen.
    pub(crate) fn rose(&self) {
        if self.wait.is_some() {
            self.rises.notify_waiters();
        }
    }

    /// Waits until the head has reached a place, as `has_it` says, as long as reads wait. False if it has not.
    pub(super) async fn reached(&self, has_it: impl Fn() -> bool) -> bool {
        if has_it() {
            return true;
        }
        let Some(wait) = self.wait else {
            return false;
        };

        let reached = async {
            loop {
                // First, so that no rise is missed between the look and the wait.
                let rises = self.rises.notified();
                if has_it() {
                    return;
                }
                rises.await;
            }
        };
        timeout(wait, reached).await.is_ok()
    }
}
