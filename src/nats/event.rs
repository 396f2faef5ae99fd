//! What happens at NATS, as a node's journal hears of it.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::cluster::GroupId;

/// What has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The stream has this message. Messages come in their order from the sequence on that was asked for, and again from there after
    /// [`super::Handle::follow_from`]. If one is left out, the stream has it no more. One that was fetched comes out of order.
    Message {
        /// Its place in the stream.
        sequence: u64,
        /// The message.
        bytes: Bytes,
    },
    /// A message was stored.
    Acked {
        /// As it was published.
        chain: u64,
        /// Its place in the stream.
        sequence: u64,
    },
    /// This try to publish a message has stored nothing, because the stream ends with another sequence than was expected. An earlier
    /// try may have stored it.
    Refused {
        /// As it was published.
        chain: u64,
        /// With what the stream ends, by its leader's word. One that is cut off may say too little, for seconds.
        last: Option<u64>,
    },
    /// It is not known whether a message was stored. If the same one is published again, that is slowed down.
    Unanswered {
        /// As it was published.
        chain: u64,
        /// Why.
        why: Doubt,
    },
    /// Another node asks for something.
    Request {
        /// For the answer.
        id: RequestId,
        /// What it asks.
        bytes: Bytes,
    },
    /// What became of a request to another node.
    Replied {
        /// As it was asked.
        group: GroupId,
        /// The answer.
        reply: Result<Bytes, NoReply>,
    },
    /// A node shows that it is there; also this one. These are left out while nobody takes events.
    Presence {
        /// Its name, as far as a subject can have it.
        node: String,
        /// What it shows.
        bytes: Bytes,
    },
    /// Everything up to this sequence was removed from the stream.
    Purged {
        /// The last one that was to be removed.
        through: u64,
    },
    /// The connection to the servers was lost, or is there again.
    Connected(bool),
    /// The stream is not the one that it was. Nothing that follows belongs to the log.
    Fatal(String),
}

/// Why it is not known whether a message was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No answer in time.
    NoAnswer,
    /// The stream has no leader.
    NoLeader,
    /// There is no connection, or it was lost.
    Disconnected,
    /// The stream or the servers' disks are full.
    Full(String),
    /// Something else.
    Other(String),
}

/// Why there is no answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// That node is not there, or takes none.
    NobodyThere,
    /// No answer in time.
    TimedOut,
    /// There is no connection, or it was lost.
    Disconnected,
    /// It could not be sent, as when it is too large.
    NotSent,
}

/// Names a request of another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub(super) String);

/// Where events go: a bounded queue, and what wakes its reader. Messages, answers and requests wait for a place in it.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Events {
    /// `wake` is called after each event, and must not block.
    pub fn new(sender: mpsc::Sender<Event>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { sender, wake }
    }

    /// Waits for a place. Without a reader the event is dropped: then nobody drives this node any more.
    pub(super) async fn send(&self, event: Event) {
        if self.sender.send(event).await.is_ok() {
            (self.wake)();
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").finish_non_exhaustive()
    }
}
