//! A node that has started without NATS: it serves what it has, refuses every change, and looks for the stream until it is found.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{runtime, sync::oneshot, time::sleep};

use super::{
    Jetstream,
    driver::{Driver, Following, Parts},
    state::ClusterState,
};
use crate::{
    cluster::GroupId,
    nats::{Handle, Nats, StreamState},
    store::{Appender, Publish, Waited, WriteError},
};

/// The pause between two tries to find the stream: each asks all servers.
const AGAIN: Duration = Duration::from_secs(1);
/// As often as the store has to be looked after.
const TEND: Duration = Duration::from_secs(1);

/// See the module's description.
pub struct Waiting<P> {
    parts: Parts<P>,
    state: Arc<ClusterState>,
    stream: Arc<OnceLock<Handle>>,
    found: oneshot::Receiver<Following>,
    runtime: runtime::Handle,
}

impl<P> fmt::Debug for Waiting<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

impl<P: Publish> Waiting<P> {
    /// A node that could not find the stream, for this reason. It will follow on the runtime that this is called on.
    pub fn new(parts: Parts<P>, why: String) -> Self {
        let seen = parts.replica.position().seen;
        let state = ClusterState::new(parts.node.clone(), parts.me, seen, seen);
        state.awaits_stream(why);
        Self {
            parts,
            state: Arc::new(state),
            stream: Arc::default(),
            found: oneshot::channel().1, // nobody looks yet
            runtime: runtime::Handle::current(),
        }
    }

    /// What the rest of the broker sees.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// The journal of which this takes the operations.
    pub fn journal(&self, appender: Appender) -> Jetstream {
        let (state, stream) = (Arc::clone(&self.state), Arc::clone(&self.stream));
        let epoch = self.parts.replica.position().epoch;
        Jetstream::new(appender, state, stream, epoch, self.parts.times.read_wait)
    }

    /// Looks for the stream, once a second by `look`, until it is found and followed. Has to be polled while [`Self::run`] runs.
    pub fn looking<L, F>(&mut self, look: L) -> impl Future<Output = ()> + Send + use<L, F, P>
    where
        L: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(Nats, StreamState), String>> + Send,
    {
        let (sender, found) = oneshot::channel();
        self.found = found;
        let (state, me) = (Arc::clone(&self.state), self.parts.me);
        let (seen, waker) = (
            self.parts.replica.position().seen,
            self.parts.replica.waker(),
        );
        async move {
            let following = loop {
                sleep(AGAIN).await;
                let problem = match look().await {
                    Ok((nats, stream)) => {
                        match Following::start(nats, stream, me, seen, waker.clone()).await {
                            Ok(following) => break following,
                            Err(error) => error.to_string(),
                        }
                    }
                    Err(problem) => problem,
                };
                if state.awaits_stream(problem.clone()) {
                    tracing::warn!(problem, "the cluster's stream is not found yet");
                }
            };
            // An error says that the thread has ended.
            if sender.send(following).is_ok() {
                waker.wake();
            }
        }
    }

    /// Works until the store's queue is stopped.
    pub fn run(mut self) {
        let Some(following) = self.wait() else {
            return self.end();
        };
        self.state.found_stream(following.last());
        tracing::info!("the cluster's stream is found: this node follows it from here on");
        let driver = Driver::with(self.parts, self.state, following, self.runtime);
        let _ = self.stream.set(driver.handle().clone()).is_ok(); // nobody else sets it
        driver.run();
    }

    /// Refuses what comes until the stream is found; `None` if the queue is stopped before.
    fn wait(&mut self) -> Option<Following> {
        let mut newest = 0;
        loop {
            let next = || {
                newest += 1;
                GroupId(newest)
            };
            match self.parts.replica.wait(TEND, next) {
                Waited::Group(group) => {
                    let why = self.state.problem().unwrap_or_default();
                    let error = WriteError::Away(why);
                    self.parts.replica.refuse(group.id, &error);
                }
                Waited::Stopped => return None,
                Waited::Woken | Waited::TimedOut => {}
            }
            if let Ok(following) = self.found.try_recv() {
                return Some(following);
            }
            if let Err(error) = self.parts.replica.tend() {
                self.state.stop(error.to_string());
            }
        }
    }

    fn end(mut self) {
        if let Err(problem) = self.parts.replica.sync() {
            tracing::error!(%problem, "the log could not be synced at the end");
        }
    }
}
