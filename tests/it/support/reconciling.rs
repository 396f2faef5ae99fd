//! A simulated vendor, and a broker that asks it about tasks that are late.

use std::sync::Arc;

use blobcast::{
    simulator::server::{Settings, SimulatedVendor, State, Task},
    wire::v1::{
        Event, ExpectTasksRequest, Expectation, Verification, WaitTaskRequest, WaitTaskResponse,
    },
};
use jiff::Timestamp;
use tokio::net::TcpListener;

use super::{ANY_PORT, CredentialsFile, Options, Server, request, tasks_of, until};

/// The key of the broker in these tests.
pub const VENDOR_KEY: &str = "rb-0123456789";

/// A vendor, and what a broker needs to ask it.
pub struct VendorCase {
    pub vendor: Arc<SimulatedVendor>,
    pub credentials: CredentialsFile,
}

impl VendorCase {
    /// A vendor that takes [`VENDOR_KEY`] alone and has no limit of its own.
    pub async fn new() -> Self {
        Self::with(Settings {
            checks_per_minute_max: 100_000,
            ..Settings::default()
        })
        .await
    }

    /// A vendor with these settings, which takes [`VENDOR_KEY`] alone.
    pub async fn with(settings: Settings) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let settings = Settings {
            keys: vec![VENDOR_KEY.to_owned()],
            ..settings
        };
        let vendor = Arc::new(SimulatedVendor::start(listener, settings).unwrap());
        let mut case = Self {
            vendor,
            credentials: CredentialsFile::new(),
        };
        case.credentials
            .add_line("[vendor_keys]", &key_line(VENDOR_KEY));
        case
    }

    /// A broker that asks it a second after a task was expected, and quickly.
    pub fn options(&self) -> Options {
        Options::default()
            .set("credentials_file", self.credentials.path().display())
            .set("reconcile.enabled", true)
            .set("reconcile.base_url", self.vendor.base_url())
            .set("reconcile.checks_per_minute_max", 6_000)
            .set(
                "reconcile.expect_within",
                "veo=1s,sora=1s,seedance=1s,kling=4s",
            )
    }

    /// A broker whose key was tried, so that the next calls are for tasks.
    pub async fn started(&self, options: Options) -> Server {
        let server = options.start().await;
        until("the key to be tried", async || {
            let checks = self.vendor.checks();
            checks.iter().any(|it| it.http_status == 404)
        })
        .await;
        server
    }

    /// The vendor has a task in this state, and has sent no callback.
    pub fn has(&self, product: &str, id: &str, state: State) {
        self.has_since(product, id, state, Timestamp::now());
    }

    pub fn has_since(&self, product: &str, id: &str, state: State, created_at: Timestamp) {
        let task = Task::new(product, id, created_at).in_state(state, Timestamp::now());
        assert!(self.vendor.add(task));
    }

    /// Requests for the status of a task.
    pub fn checks_of(&self, id: &str) -> usize {
        let checks = self.vendor.checks();
        checks.iter().filter(|it| it.target.contains(id)).count()
    }

    /// Requests for pages of lists.
    pub fn list_calls(&self) -> usize {
        let checks = self.vendor.checks();
        checks
            .iter()
            .filter(|it| it.target.contains("limit="))
            .count()
    }
}

pub fn key_line(key: &str) -> String {
    format!("name = \"main\"\nkey = \"{key}\"")
}

pub fn expectation(product: &str, id: &str) -> Expectation {
    Expectation {
        product: product.to_owned(),
        task_id: id.to_owned(),
        labels: [("team".to_owned(), "ads".to_owned())].into(),
        ..Expectation::default()
    }
}

pub async fn expect(server: &Server, expectations: Vec<Expectation>) {
    let request = ExpectTasksRequest { expectations };
    server.events().await.expect_tasks(request).await.unwrap();
}

pub async fn wait_task(server: &Server, product: &str, id: &str, seconds: i64) -> WaitTaskResponse {
    let request = WaitTaskRequest {
        task_id: id.to_owned(),
        product: product.to_owned(),
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..WaitTaskRequest::default()
    };
    let waited = server.events().await.wait_task(request).await;
    waited.unwrap().into_inner()
}

/// The events of a task, as the log has them.
pub async fn events_of(server: &Server, id: &str) -> Vec<Event> {
    let mut all = server.log_of_events().await;
    all.retain(|event| event.task_id == id);
    all
}

/// These tasks, and no others, are recovered first.
pub async fn recovers(server: &Server, ids: &[String]) {
    let mut sub = server.subscribe(request()).await;
    let events = sub.next_events(ids.len()).await;
    assert!(events.iter().all(is_recovered), "{events:?}");
    let mut found = tasks_of(&events);
    found.sort_unstable();
    let mut ids: Vec<_> = ids.iter().map(String::as_str).collect();
    ids.sort_unstable();
    assert_eq!(found, ids);
}

pub fn is_recovered(event: &Event) -> bool {
    event.verification() == Verification::VendorApi && event.terminal
}
