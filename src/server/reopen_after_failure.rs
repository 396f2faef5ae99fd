//! Waits until a store that has failed, because the disk was full, read-only or broken, can be opened again. Only a new start can tell
//! what has reached the disk, so the process starts itself anew and hands its sockets on.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};

use crate::store::{Health, Store};

/// How often it is checked whether the disk can be written again.
const PERIOD: Duration = Duration::from_secs(2);

/// Waits until the store has failed, and could be opened again.
pub(super) async fn is_possible(store: Arc<Store>) {
    loop {
        sleep(PERIOD).await;
        if !matches!(store.health(), Health::Failed(_)) {
            continue;
        }
        let store = Arc::clone(&store);
        match spawn_blocking(move || store.can_reopen_after_failure()).await {
            Ok(Ok(())) => return,
            Ok(Err(problem)) => tracing::debug!(problem, "the store stays closed"),
            Err(_) => return std::future::pending().await, // the runtime is shutting down
        }
    }
}
