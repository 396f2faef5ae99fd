//! Lists of the vendor's that cannot be walked through: they cost a few calls, and their tasks are asked for one by one.

use std::time::{Duration, Instant};

use blobcast::{
    simulator::server::{Settings, SimulatedVendor, State, Step, Target, Task},
    wire::v1::{ExpectTasksRequest, Expectation, Verification},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{CredentialsFile, Options, Server, completed, request, tasks_of, until, with};

/// A vendor, and a broker that asks it.
struct Case {
    vendor: SimulatedVendor,
    server: Server,
    _credentials: CredentialsFile,
}

impl Case {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings {
            keys: vec!["rb-0123456789".to_owned()],
            checks_per_minute_max: 100_000,
            ..Settings::default()
        };
        let vendor = SimulatedVendor::start(listener, settings).unwrap();
        let mut credentials = CredentialsFile::new();
        let line = "name = \"main\"\nkey = \"rb-0123456789\"";
        credentials.add_line("[vendor_keys]", line);
        let server = Options::default()
            .set("credentials_file", credentials.path().display())
            .set("reconcile.enabled", true)
            .set("reconcile.base_url", vendor.base_url())
            .set("reconcile.checks_per_minute_max", 6_000)
            .set("reconcile.outage_min", "1s")
            .start()
            .await;
        Self {
            vendor,
            server,
            _credentials: credentials,
        }
    }

    /// Expects tasks that the vendor has completed, and of which it has sent no callback. They are late as soon as can be.
    async fn expect(&self, ids: &[String]) {
        let now = Timestamp::now();
        for id in ids {
            let task = Task::new("veo", id, now).in_state(State::Completed, now);
            assert!(self.vendor.add(task));
        }
        let expectation = |task_id: &String| Expectation {
            product: "veo".to_owned(),
            task_id: task_id.clone(),
            expect_within: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
            ..Expectation::default()
        };
        let request = ExpectTasksRequest {
            expectations: ids.iter().map(expectation).collect(),
        };
        let mut client = self.server.events().await;
        client.expect_tasks(request).await.unwrap();
    }

    /// All tasks are recovered.
    async fn recovers(&self, ids: &[String]) {
        let mut sub = self.server.subscribe(request()).await;
        let events = sub.next_events(ids.len()).await;
        let is_answer = |verification| verification == Verification::VendorApi;
        assert!(events.iter().all(|it| is_answer(it.verification())));
        let mut found = tasks_of(&events);
        found.sort_unstable();
        let mut ids: Vec<_> = ids.iter().map(String::as_str).collect();
        ids.sort_unstable();
        assert_eq!(found, ids);
    }

    /// Requests for pages of lists.
    fn list_calls(&self) -> usize {
        let checks = self.vendor.checks();
        let lists = checks.iter().filter(|it| it.target.contains("limit="));
        lists.count()
    }
}

fn lost(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("lost{n}")).collect()
}

#[tokio::test]
async fn a_list_that_is_refused_after_an_outage_is_asked_for_once() {
    let mut case = Case::new().await;
    case.expect(&lost(1)).await;
    let away = Instant::now();
    case.server.terminate().await;
    case.vendor
        .script_always(Target::list("veo"), Step::status(403));
    until("the outage to be one", async || {
        away.elapsed() > Duration::from_millis(1_100)
    })
    .await;
    case.server.restart_elsewhere().await;

    case.recovers(&lost(1)).await;
    assert_eq!(case.list_calls(), 1);
    let usable = "blobcast_vendor_key_usable{key=\"main\"}";
    assert_eq!(case.server.metric(usable).await, 1.0);
}

#[tokio::test]
async fn a_list_that_shows_the_same_page_at_every_offset_is_left_after_the_second() {
    let case = Case::new().await;
    let now = Timestamp::now().to_string();
    let listed =
        (0..100).map(|n| with(completed(&format!("other{n}")), json!({"created_at": now})));
    let page = Value::Array(listed.collect()).to_string();
    case.vendor
        .script_always(Target::list("veo"), Step::Answer(200, page.into()));

    case.expect(&lost(40)).await;
    case.recovers(&lost(40)).await;
    assert_eq!(case.list_calls(), 2);
}
