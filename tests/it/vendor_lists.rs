//! Lists of the vendor's that cannot be walked through: they cost a few calls, and their tasks are asked for one by one.

use std::time::{Duration, Instant};

use blobcast::{
    simulator::server::{State, Step, Target},
    wire::v1::Expectation,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::{Server, VendorCase, completed, expect, expectation, recovers, until, with};

/// A vendor, and a broker that asks it.
struct Case {
    of_vendor: VendorCase,
    server: Server,
}

impl Case {
    async fn new() -> Self {
        let of_vendor = VendorCase::new().await;
        let options = of_vendor.options().set("reconcile.outage_min", "1s");
        let server = options.start().await;
        Self { of_vendor, server }
    }

    /// Expects tasks that the vendor has completed, and of which it has sent no callback. They are late as soon as can be.
    async fn expect(&self, ids: &[String]) {
        for id in ids {
            self.of_vendor.has("veo", id, State::Completed);
        }
        let expectation = |id: &String| Expectation {
            expect_within: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
            ..expectation("veo", id)
        };
        expect(&self.server, ids.iter().map(expectation).collect()).await;
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
    case.of_vendor
        .vendor
        .script_always(Target::list("veo"), Step::status(403));
    until("the outage to be one", async || {
        away.elapsed() > Duration::from_millis(1_100)
    })
    .await;
    case.server.restart_elsewhere().await;

    recovers(&case.server, &lost(1)).await;
    assert_eq!(case.of_vendor.list_calls(), 1);
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
    case.of_vendor
        .vendor
        .script_always(Target::list("veo"), Step::Answer(200, page.into()));

    case.expect(&lost(40)).await;
    recovers(&case.server, &lost(40)).await;
    assert_eq!(case.of_vendor.list_calls(), 2);
}
