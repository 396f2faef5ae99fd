//! A simulated vendor as a server: tasks that take their time and end, their callbacks, and the status API.
//!
//! [`SimulatedVendor`] answers like RunBlob where RunBlob's pages say how, and may be scripted to answer in worse ways. `blobcast
//! vendor` and the tests use it. What is not documented is decided here: any path of the status API that is not as documented is
//! redirected to the one that is, as RunBlob's web framework does; lists show the newest task first; a list has no tasks of
//! sub-products. Everything is in memory, and bounded. Knows the broker only by the callback URLs of requests.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use blobcast::simulator::server::{Settings, SimulatedVendor, State, Step, Target, Task};
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let vendor = SimulatedVendor::start(listener, Settings::default())?;
//! vendor.add(Task::new("veo", "t1", jiff::Timestamp::now()));
//! vendor.script(Target::task("veo", "t1"), [Step::too_many(7), Step::State(State::Processing)]);
//! // … the code under test asks vendor.base_url() …
//! assert!(vendor.requests().iter().all(|request| request.key.as_deref() == Some("key")));
//! # Ok(()) }
//! ```

mod answer;
mod connections;
mod generate;
mod happened;
mod life;
mod lot;
mod paths;
mod replies;
mod requests;
mod script;
mod settings;
mod shared;
mod tasks;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, sync::mpsc};

use self::{happened::Reporter, shared::Shared, tasks::Full};
pub use self::{
    happened::{CallbackResult, Happened, What},
    requests::{SeenRequest, most_within},
    script::{Step, Target},
    settings::{CHECKS_PER_MINUTE_MAX, ListOrder, Settings, TASKS_MAX, TEXT_BYTES_MAX},
    tasks::{State, Task},
};
use super::send::DeliveryOutcome;

/// A simulated vendor that runs until it is dropped.
#[derive(Debug)]
pub struct SimulatedVendor {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl SimulatedVendor {
    /// Starts on a listener. Has to be called within a runtime.
    pub fn start(listener: TcpListener, settings: Settings) -> io::Result<Self> {
        Self::start_with(listener, settings, Reporter::default())
    }

    /// Like [`SimulatedVendor::start`], with a stream of what happens. What is not read in time is left out, and counted.
    pub fn start_watched(
        listener: TcpListener,
        settings: Settings,
    ) -> io::Result<(Self, mpsc::Receiver<Happened>)> {
        let (reporter, happened) = Reporter::with_reader();
        Ok((Self::start_with(listener, settings, reporter)?, happened))
    }

    fn start_with(
        listener: TcpListener,
        settings: Settings,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(settings, reporter));
        shared.spawn(connections::serve(listener, Arc::clone(&shared)));
        Ok(Self { shared, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL of its API: `http://127.0.0.1:8090`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends all connections, tasks and callbacks. Afterwards the port refuses connections.
    pub async fn stop(self) {
        self.shared.stop();
        self.shared.stopped().await;
    }

    /// Adds a task, or replaces one. It stays in its state until [`SimulatedVendor::set_state`], and its callback is sent only by
    /// [`SimulatedVendor::send_callback`]. Returns false if too many tasks are open.
    pub fn add(&self, task: Task) -> bool {
        !matches!(self.shared.tasks.lock().add(task, true), Err(Full))
    }

    /// A task, if it is remembered.
    pub fn task(&self, product: &str, id: &str) -> Option<Task> {
        self.shared.tasks.lock().get(product, id).cloned()
    }

    /// Puts a task into another state. Returns false if there is no such task.
    pub fn set_state(&self, product: &str, id: &str, state: State) -> bool {
        let mut tasks = self.shared.tasks.lock();
        tasks.set_state(product, id, state, Shared::now()).is_some()
    }

    /// Sends a task's callback now, in its present state, with all attempts. `None` if there is no such task.
    pub async fn send_callback(&self, product: &str, id: &str) -> Option<DeliveryOutcome> {
        let task = self.task(product, id)?;
        Some(life::deliver(&self.shared, &task).await)
    }

    /// The numbers of tasks that are remembered, and of those that have not ended or whose callbacks are not settled.
    pub fn counts(&self) -> (usize, usize) {
        self.shared.tasks.lock().counts()
    }

    /// Appends answers to coming requests, one for each.
    pub fn script(&self, target: Target, steps: impl IntoIterator<Item = Step>) {
        self.shared.scripts.lock().then(target, steps);
    }

    /// Sets the answer to all requests after the steps of [`SimulatedVendor::script`].
    pub fn script_always(&self, target: Target, step: Step) {
        self.shared.scripts.lock().always(target, step);
    }

    /// Removes all scripts.
    pub fn clear_scripts(&self) {
        self.shared.scripts.lock().clear();
    }

    /// Replaces the keys that are accepted; none: any key.
    pub fn set_keys(&self, keys: impl IntoIterator<Item = impl Into<String>>) {
        *self.shared.keys.lock() = keys.into_iter().map(Into::into).collect();
    }

    /// Sets the order of lists.
    pub fn set_list_order(&self, order: ListOrder) {
        *self.shared.list_order.lock() = order;
    }

    /// The last 10,000 requests, in the order in which they came.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.shared.record.lock().all()
    }

    /// The requests of the status API among [`SimulatedVendor::requests`].
    pub fn checks(&self) -> Vec<SeenRequest> {
        let mut requests = self.requests();
        requests.retain(SeenRequest::is_check);
        requests
    }

    /// Forgets the requests so far. Limits of keys still count them.
    pub fn clear_requests(&self) {
        self.shared.record.lock().clear();
    }
}

impl Drop for SimulatedVendor {
    fn drop(&mut self) {
        self.shared.stop();
    }
}
