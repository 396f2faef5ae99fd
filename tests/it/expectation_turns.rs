//! Clients of a broker that asks the vendor: what one of them expects or waits for delays no other.

use blobcast::{
    simulator::server::State,
    wire::v1::{ExpectTasksRequest, Expectation, Filter, Verification, WaitTaskRequest},
};

use crate::{
    permissions::{events_as, subscribe_as},
    support::{Server, VendorCase, completed, until},
};

/// A vendor, a broker that asks it ten times a second, and two clients of that.
struct House {
    case: VendorCase,
    server: Server,
    /// Expects and waits for many tasks.
    crowd: String,
    /// Has one.
    single: String,
}

impl House {
    async fn new() -> Self {
        let mut case = VendorCase::new().await;
        let crowd = case.credentials.add("client crowd --all-products").await;
        let single = case.credentials.add("client single --all-products").await;
        let options = case
            .options()
            .set("reconcile.checks_per_minute_max", 600)
            .set("reconcile.expect_within", "seedance=1s,kling=1h");
        let server = options.start().await;
        Self {
            case,
            server,
            crowd,
            single,
        }
    }

    async fn expect(&self, token: &str, ids: impl IntoIterator<Item = String>) {
        let expectation = |task_id| Expectation {
            product: "seedance".to_owned(),
            task_id,
            ..Expectation::default()
        };
        let request = ExpectTasksRequest {
            expectations: ids.into_iter().map(expectation).collect(),
        };
        let mut client = events_as(&self.server, Some(token)).await;
        client.expect_tasks(request).await.unwrap();
    }

    /// Waits for a task until the vendor's answer ends it.
    async fn wait(&self, token: &str, id: &str) {
        let request = WaitTaskRequest {
            task_id: id.to_owned(),
            product: "seedance".to_owned(),
            ..WaitTaskRequest::default()
        };
        let mut client = events_as(&self.server, Some(token)).await;
        let waited = client.wait_task(request).await.unwrap().into_inner();
        let event = waited.event.expect("it has ended");
        assert!(waited.done);
        assert_eq!(event.verification(), Verification::VendorApi);
    }

    async fn is_checking(&self) {
        until("checks", async || self.case.vendor.checks().len() >= 10).await;
    }
}

fn many(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("crowd{n}"))
}

fn tasks(product: &str, ids: impl Iterator<Item = String>) -> Filter {
    Filter {
        task_ids: ids.collect(),
        products: vec![product.to_owned()],
        ..Filter::default()
    }
}

#[tokio::test]
async fn a_client_with_many_late_tasks_delays_no_other() {
    let house = House::new().await;
    house.case.has("seedance", "expected", State::Completed);
    house.expect(&house.crowd, many(300)).await;
    house.is_checking().await;

    house.expect(&house.single, ["expected".to_owned()]).await;
    let is_asked = || {
        let checks = house.case.vendor.checks();
        checks.iter().any(|it| it.target.contains("expected"))
    };
    until("the other client's task to be asked for", async || {
        is_asked()
    })
    .await;
    let checks = house.case.vendor.checks().len();
    assert!(checks < 150, "{checks} checks came first");
}

#[tokio::test]
async fn a_client_that_waits_for_many_tasks_delays_no_other() {
    let house = House::new().await;
    house.case.has("seedance", "waited", State::Completed);
    let filter = tasks("seedance", many(300));
    let crowd = subscribe_as(&house.server, Some(&house.crowd), filter).await;
    let _crowd = crowd.unwrap();
    house.is_checking().await;

    house.wait(&house.single, "waited").await;
    let checks = house.case.vendor.checks().len();
    assert!(checks < 150, "{checks} checks came first");
}

#[tokio::test]
async fn a_client_that_waits_for_many_tasks_leaves_room_for_others() {
    let house = House::new().await;
    house.case.has("seedance", "waited", State::Completed);
    let filter = tasks("kling", many(10_000));
    let crowd = subscribe_as(&house.server, Some(&house.crowd), filter).await;
    let mut crowd = crowd.unwrap();
    until("the wait to be known", async || {
        let waited_for = "blobcast_expectations{state=\"waited_for\"}";
        house.server.metric(waited_for).await == 2_000.0
    })
    .await;

    house.wait(&house.single, "waited").await;

    // Who waits for more than its share waits for all of it as ever.
    let path = "/webhook/kling".to_owned();
    for id in many(10_000).step_by(3_333) {
        let body = completed(&id).to_string();
        let answer = house.server.http().post_to(&path, body).await;
        assert_eq!(answer.status, 200);
        assert_eq!(crowd.next_event().await.task_id, id);
    }
}
