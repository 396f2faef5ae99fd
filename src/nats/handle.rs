//! What a node has done at NATS. No method waits, but those that are `async`.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    error::NatsError,
    event::RequestId,
    publisher::Publication,
    requests::{Reply, Request},
    slot::Slot,
    stream::StreamState,
    watch::{State, Watched},
};
use crate::cluster::{Author, GroupId};

/// Carries out what a node decides; what comes of it are [`super::Event`]s. Its tasks end with its last copy.
#[derive(Clone)]
pub struct Handle {
    pub(super) orders: Orders,
    pub(super) client: async_nats::Client,
    pub(super) watched: Watched,
    pub(super) _tasks: Arc<Vec<AbortOnDropHandle<()>>>,
}

/// Where the tasks find what there is to do.
#[derive(Clone)]
pub(super) struct Orders {
    pub(super) publish: Slot<Publication>,
    pub(super) fetch: Slot<u64>,
    pub(super) follow: Slot<u64>,
    pub(super) purge: Slot<u64>,
    pub(super) presence: Slot<Bytes>,
    pub(super) reconnect: Arc<Notify>,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) replies: mpsc::Sender<Reply>,
    pub(super) serves: watch::Sender<bool>,
}

impl Handle {
    /// Publishes a message, on condition that the stream's last sequence is `expected`. One at a time: another one replaces it, and
    /// nothing is said of the one before any more, if nothing was said yet. The same one may be published again and again.
    pub fn publish(&self, expected: u64, chain: u64, bytes: Bytes) {
        self.orders.publish.put(Publication {
            expected,
            chain,
            bytes,
        });
    }

    /// Gets a message that the stream has, sooner than the follower may. Another one replaces it. If no server has it for a while,
    /// nothing comes of it.
    pub fn fetch(&self, sequence: u64) {
        self.orders.fetch.put(sequence);
    }

    /// Asks another node. Returns whether it was taken: more than 16 are not, and nothing comes of those.
    #[must_use]
    pub fn request(&self, group: GroupId, to: Author, bytes: Bytes) -> bool {
        let request = Request { group, to, bytes };
        self.orders.requests.try_send(request).is_ok()
    }

    /// Answers another node. If too many answers wait, it is dropped: that node's time runs out then.
    pub fn reply(&self, id: RequestId, bytes: Bytes) {
        if self.orders.replies.try_send(Reply { id, bytes }).is_err() {
            tracing::debug!("an answer to another node found no place");
        }
    }

    /// Shows this node's presence once.
    pub fn presence(&self, bytes: Bytes) {
        self.orders.presence.put(bytes);
    }

    /// Connects to the next server.
    pub fn reconnect(&self) {
        self.orders.reconnect.notify_one();
    }

    /// Goes on with the message at this sequence.
    pub fn follow_from(&self, sequence: u64) {
        self.orders.follow.put(sequence);
    }

    /// Removes every message up to this sequence, and itself, from the stream. Another call replaces one that is not carried out yet.
    pub fn purge(&self, through: u64) {
        self.orders.purge.put(through);
    }

    /// Takes no more requests of other nodes. Those that have arrived still come.
    pub fn stop_serving(&self) {
        self.orders.serves.send_replace(false);
    }

    /// What was last seen of connection and stream.
    pub fn state(&self) -> State {
        self.watched.state()
    }

    /// Asks the stream's leader now.
    pub async fn look(&self) -> Result<StreamState, NatsError> {
        self.watched.look().await
    }

    /// Waits until what was handed over is sent, as far as that is possible within `time`.
    pub async fn drain(&self, time: Duration) {
        let sent = async {
            let orders = &self.orders;
            let replies = orders.replies.reserve_many(orders.replies.max_capacity());
            // All places are free, so all answers were taken out.
            drop(replies.await);
            self.client.flush().await
        };
        let _ = timeout(time, sent).await.is_ok();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}
