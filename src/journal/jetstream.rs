//! The journal of a node of a cluster: its operations become frames of a stream in NATS JetStream, which all nodes follow.
//!
//! An operation goes into the store's queue, as on a machine that is alone. What differs is the thread that takes it: the [`Driver`]
//! owns the store's [`Replica`], this node's [`Protocol`], and a handle to NATS. It hands what happens to the protocol, and carries
//! out what comes back, in order: decide, publish, apply, hand over, answer. The protocol knows no clock; the driver has the
//! times.
//!
//! - `waiting` is the thread of a node that has not found the stream yet.
//! - `driver` is the thread: it waits, and tells the protocol what has happened.
//! - `outputs` carries out what the protocol says.
//! - `timing` knows what is due when.
//! - `upkeep` looks at the stream, and `hearing` at other nodes.
//! - `open_groups` are the groups that wait for an answer, `reply` is what the writer tells a node about one of its groups.
//! - `state` is what probes, metrics and people see; `presence` is what nodes tell each other for them, `lag` how long this one is
//!   behind, `skew` how far their clocks are apart, and `common` what has to be the same on all.
//!
//! [`Protocol`]: crate::cluster::Protocol
//! [`Replica`]: crate::store::Replica

mod common;
mod driver;
mod hearing;
mod lag;
mod open_groups;
mod outputs;
mod presence;
mod reply;
mod skew;
mod state;
mod timing;
mod upkeep;
mod waiting;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

pub use common::{Common, SayCommon};
pub use driver::{Driver, Parts};
pub use state::{ClusterState, OtherNode, Overview};
use tokio::time::{sleep, timeout};
pub use waiting::Waiting;

use super::{Answer, CatchingUp, Journal, Local};
use crate::{
    event::{Epoch, Product, TaskId},
    nats::Handle,
    store::{
        Appended, Appender, Backup, Draft, Erased, Erasure, Expected, NewExpectation,
        NewQuarantined, Retention, Whose,
    },
};

/// How often the stream is asked for its end again. Its leader may be some milliseconds behind this node.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The times of a node.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a frame may be without an answer.
    pub publish_timeout: Duration,
    /// How long an operation may wait: as long as a callback does.
    pub answer_timeout: Duration,
    /// How long a read may wait for what other nodes have answered.
    pub read_wait: Duration,
}

/// See the module's description.
#[derive(Debug)]
pub struct Jetstream {
    queue: Local,
    state: Arc<ClusterState>,
    /// Once it is found.
    stream: Arc<OnceLock<Handle>>,
    epoch: Epoch,
    read_wait: Duration,
}

impl Jetstream {
    pub(super) fn new(
        appender: Appender,
        state: Arc<ClusterState>,
        stream: Arc<OnceLock<Handle>>,
        epoch: Epoch,
        read_wait: Duration,
    ) -> Self {
        Self {
            queue: Local::new(appender),
            state,
            stream,
            epoch,
            read_wait,
        }
    }

    /// Waits until this node has what the stream has now.
    async fn reach_the_end(&self) -> bool {
        if !self.state.is_connected() || self.state.is_stopped() {
            return false;
        }
        let reached = async {
            let last = self.find_end().await?;
            self.state.has_seen(last).await;
            Some(())
        };
        matches!(timeout(self.read_wait, reached).await, Ok(Some(())))
    }

    /// The stream's last message. A stream that ends before what it is known to have had does not say what others have answered: it
    /// has lost its end, or its leader is cut off.
    async fn find_end(&self) -> Option<u64> {
        self.state.has_listened().await;
        let known = self.state.last();
        loop {
            let stream = self.stream.get()?.look().await.ok()?;
            if stream.epoch != self.epoch {
                return None;
            }
            if stream.last >= known {
                return Some(stream.last);
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Journal for Jetstream {
    fn append(&self, draft: Draft) -> Answer {
        self.queue.append(draft)
    }

    fn quarantine(&self, mut new: NewQuarantined) -> Answer<u64> {
        new.header.idempotency_key = Some(fastrand::u64(..));
        self.queue.quarantine(new)
    }

    fn release(&self, number: u64, drafts: Vec<Draft>) -> Answer<Vec<Appended>> {
        self.queue.release(number, drafts)
    }

    fn discard(&self, numbers: Vec<u64>) -> Answer<u32> {
        self.queue.discard(numbers)
    }

    fn erase(&self, erasure: Erasure) -> Answer<Erased> {
        self.queue.erase(erasure)
    }

    fn expect(&self, new: Vec<NewExpectation>) -> Answer<Vec<Expected>> {
        self.queue.expect(new)
    }

    fn end_expectations(&self, tasks: Vec<(Product, TaskId)>, whose: Whose) -> Answer<u32> {
        self.queue.end_expectations(tasks, whose)
    }

    fn overdue(&self, number: u64, draft: Draft, gives_up: bool) -> Answer<Option<Appended>> {
        self.queue.overdue(number, draft, gives_up)
    }

    fn retain(&self, retention: Retention) {
        self.queue.retain(retention);
    }

    fn backup(&self) -> Answer<Backup> {
        self.queue.backup()
    }

    fn probe(&self) -> Answer<()> {
        self.queue.probe()
    }

    fn is_writer(&self) -> bool {
        self.state.is_writer()
    }

    fn catch_up(&self) -> Option<CatchingUp<'_>> {
        Some(Box::pin(self.reach_the_end()))
    }
}
