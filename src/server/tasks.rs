//! The tasks that live as long as the broker, each with a name, and the tokens that stop them.

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// All long-lived tasks of a broker. Dropping it aborts those that still run.
#[derive(Debug, Default)]
pub(super) struct Tasks(JoinSet<&'static str>);

impl Tasks {
    /// Spawns a task. `name` reads as the subject of a sentence: "the watchdog".
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// The name of the next task that ends; `None` if all have ended.
    pub(super) async fn next_ended(&mut self) -> Option<Result<&'static str, JoinError>> {
        self.0.join_next().await
    }

    /// Waits until one more task has ended; false if none has by then.
    pub(super) async fn one_ends_before(&mut self, deadline: Instant) -> bool {
        timeout_at(deadline, self.0.join_next()).await.is_ok()
    }

    /// Waits until all tasks have ended, or until the deadline. Those that still run then are aborted when this is dropped.
    pub(super) async fn all_end_before(&mut self, deadline: Instant) {
        let all = async { while self.0.join_next().await.is_some() {} };
        let _ = timeout_at(deadline, all).await.is_ok();
    }
}

/// What stops the tasks. They stop one after the other, because a drain goes by listeners.
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// Stops the ingest listener.
    pub ingest: CancellationToken,
    /// Stops the gRPC listener.
    pub grpc: CancellationToken,
    /// Stops the admin listener and everything that runs beside the listeners.
    pub admin: CancellationToken,
}
