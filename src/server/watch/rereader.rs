//! Reading again on request, whatever has changed.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::hanging::{READ_TIMEOUT, already_hanging, pause_beside};
use crate::server::{aside, refusal::Input};

/// Requests that everything be read again.
#[derive(Debug)]
pub(in crate::server) struct Rereader {
    requests: mpsc::Sender<RereadRequest>,
    /// When a read of [`Rereader::read`] was given up last.
    hung_at: Mutex<Option<Instant>>,
}

/// Answered with what could not be used.
pub(super) type RereadRequest = oneshot::Sender<Vec<Input>>;

/// Where a [`Rereader`]'s requests arrive.
#[derive(Debug)]
pub(in crate::server) struct RereadRequests(pub(super) mpsc::Receiver<RereadRequest>);

impl Rereader {
    pub(in crate::server) fn new() -> (Self, RereadRequests) {
        let (sender, requests) = mpsc::channel(1); // reloads come one after the other
        let rereader = Self {
            requests: sender,
            hung_at: Mutex::default(),
        };
        (rereader, RereadRequests(requests))
    }

    /// Has all watched files read again. Returns when everything is in force or was refused, with what was refused.
    pub(in crate::server) async fn reread(&self) -> Vec<Input> {
        let (done, is_done) = oneshot::channel();
        match self.requests.send(done).await {
            Ok(()) => is_done.await.unwrap_or_default(),
            // Without a watcher the process is about to end.
            Err(_) => Vec::new(),
        }
    }

    /// Reads something that is not watched, aside. The outer error says that it takes too long.
    ///
    /// A read that hangs keeps its thread, so there are few at once, and then one in a while.
    pub(in crate::server) async fn read<T: Send + 'static>(
        &self,
        read: &Arc<impl Fn() -> T + Send + Sync + 'static>,
    ) -> Result<T, String> {
        let hanging = Arc::strong_count(read) - 1; // each has one
        let hung_at = *self.hung_at.lock();
        if let Some(pause) = pause_beside(hanging, hung_at, Instant::now()) {
            return Err(already_hanging(hanging, pause));
        }

        let read = Arc::clone(read);
        let read = aside::within(READ_TIMEOUT, move || read()).await;
        if read.is_err() {
            *self.hung_at.lock() = Some(Instant::now());
        }
        read
    }
}
