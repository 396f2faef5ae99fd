//! What the connections of one simulated vendor, its tasks and its owner share.

use std::sync::{Arc, OnceLock};

use hyper::Uri;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    happened::{Reporter, What},
    requests::{Budgets, Record},
    script::Scripts,
    settings::{ListOrder, Settings},
    tasks::Tasks,
};
use crate::simulator::send::Sender;

/// Requests for new tasks whose bodies are read at the same time; further ones wait. A body may have images in it.
const BODIES_MAX: usize = 4;
/// Attempts at callbacks at the same time; further ones wait. Well below the connections that a broker allows.
const ATTEMPTS_IN_FLIGHT_MAX: usize = 256;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    /// The only keys that are accepted; empty: any key.
    pub(super) keys: Mutex<Vec<String>>,
    pub(super) list_order: Mutex<ListOrder>,
    pub(super) tasks: Mutex<Tasks>,
    pub(super) scripts: Mutex<Scripts>,
    pub(super) record: Mutex<Record>,
    pub(super) budgets: Mutex<Budgets>,
    pub(super) reporter: Reporter,
    pub(super) bodies: Semaphore,
    pub(super) attempts: Semaphore,
    senders: Senders,
    /// Everything that has been spawned.
    spawned: TaskTracker,
    stop: CancellationToken,
}

/// Reading the system's root certificates takes a while, so it is done once, and only for https.
#[derive(Debug, Default)]
struct Senders {
    http: OnceLock<Sender>,
    https: OnceLock<Sender>,
}

impl Shared {
    pub(super) fn new(settings: Settings, reporter: Reporter) -> Self {
        Self {
            keys: Mutex::new(settings.keys.clone()),
            list_order: Mutex::new(settings.list_order),
            tasks: Mutex::new(Tasks::new(settings.tasks_max)),
            scripts: Mutex::default(),
            record: Mutex::default(),
            budgets: Mutex::default(),
            reporter,
            bodies: Semaphore::new(BODIES_MAX),
            attempts: Semaphore::new(ATTEMPTS_IN_FLIGHT_MAX),
            senders: Senders::default(),
            spawned: TaskTracker::new(),
            stop: CancellationToken::new(),
            settings,
        }
    }

    /// The vendor's clock.
    pub(super) fn now() -> Timestamp {
        Timestamp::now()
    }

    pub(super) fn report(&self, what: What) {
        self.reporter.report(Self::now(), what);
    }

    pub(super) fn sender(&self, url: &Uri) -> &Sender {
        let sender = if url.scheme_str() == Some("https") {
            &self.senders.https
        } else {
            &self.senders.http
        };
        sender.get_or_init(|| Sender::new(url))
    }

    /// Runs something until it ends or the vendor stops.
    pub(super) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.spawned.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    /// Ends everything that was spawned, soon.
    pub(super) fn stop(&self) {
        self.stop.cancel();
        self.spawned.close();
    }

    /// Waits until everything has ended after [`Shared::stop`].
    pub(super) async fn stopped(&self) {
        self.spawned.wait().await;
    }
}
