//! A vendor in trouble: what stops the broker's checks, for how long, and what must not.

use std::time::Duration;

use blobcast::simulator::server::{State, Step, Target, Task};
use bytes::Bytes;
use jiff::Timestamp;

use crate::support::{
    Server, VENDOR_KEY, VendorCase, events_of, expect, expectation, is_recovered, until, wait_task,
};

const PAUSED: &str = "blobcast_vendor_paused{key=\"main\"}";

/// The vendor has these tasks, and no list shows them; the broker expects them, and checks them in this order.
async fn expect_all(case: &VendorCase, server: &Server, ids: &[String]) {
    for id in ids {
        case.has("seedance", id, State::Completed);
    }
    let expected = ids.iter().map(|id| expectation("seedance", id));
    expect(server, expected.collect()).await;
}

fn ids(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}{n}")).collect()
}

async fn recovered(server: &Server, id: &str) {
    until(id, async || {
        events_of(server, id).await.iter().any(is_recovered)
    })
    .await;
}

#[tokio::test]
async fn late_answers_that_ask_for_a_pause_do_not_silence_the_broker() {
    let case = VendorCase::new().await;
    let server = case.started(case.options()).await;
    let slow = |seconds, step| Step::Slow(Duration::from_secs(seconds), Box::new(step));
    // The first of four calls has the key pause for 5 s. The others are answered while the fifth, which tries it, is under way.
    let steps = [
        Step::too_many(1),
        slow(7, Step::too_many(1)),
        slow(7, Step::too_many(1)),
        slow(7, Step::too_many(1)),
        slow(4, Step::Truth),
    ];
    let ids = ids("t", 6);
    for (id, step) in ids.iter().zip(steps) {
        case.vendor.script(Target::task("seedance", id), [step]);
    }
    expect_all(&case, &server, &ids).await;
    recovered(&server, "t4").await;
    recovered(&server, "t5").await;
    server.logged("too many calls of the key", 1).await;
}

#[tokio::test]
async fn one_failure_of_the_vendor_stops_no_other_task_whatever_pause_it_asks_for() {
    let case = VendorCase::new().await;
    let server = case.started(case.options()).await;
    let hour = Step::Header(503, "retry-after", "3600".to_owned());
    case.vendor.script(Target::task("seedance", "t0"), [hour]);
    expect_all(&case, &server, &ids("t", 1)).await;
    until("its check", async || case.checks_of("t0") == 1).await;

    expect_all(&case, &server, &["other".to_owned()]).await;
    recovered(&server, "other").await;
    assert_eq!(server.metric(PAUSED).await, 0.0);
}

#[tokio::test]
async fn a_vendor_that_fails_three_times_is_left_alone_for_as_long_as_it_asks_and_that_is_shown() {
    let case = VendorCase::new().await;
    let server = case.started(case.options()).await;
    let pause = Step::Header(503, "retry-after", "7".to_owned());
    case.vendor.script_always(Target::Checks, pause);
    expect_all(&case, &server, &ids("t", 9)).await;
    server.logged("the vendor's API fails", 1).await;
    until("the pause", async || server.metric(PAUSED).await == 1.0).await;
    until("answers to all that have begun", async || {
        let checks = case.vendor.checks();
        checks.iter().all(|it| it.http_status != 0)
    })
    .await;
    case.vendor.clear_scripts();

    recovered(&server, "t8").await;
    until("its end", async || server.metric(PAUSED).await == 0.0).await;
    server.logged("the vendor's API answers again", 1).await;
    let checks = case.vendor.checks();
    let gaps = checks[1..].windows(2).map(|pair| pair[1].at - pair[0].at);
    let longest = gaps.max().unwrap();
    let seconds = Duration::from_millis(6_800)..Duration::from_secs(11);
    assert!(seconds.contains(&longest), "{longest:?}");
}

#[tokio::test]
async fn tasks_that_always_fail_do_not_stop_the_others() {
    let case = VendorCase::new().await;
    let server = case.started(case.options()).await;
    let bad = ids("bad", 12);
    for id in &bad {
        let target = Target::task("seedance", id);
        case.vendor.script_always(target, Step::status(500));
    }
    let all = [bad, ids("good", 3)].concat();
    expect_all(&case, &server, &all).await;
    recovered(&server, "good2").await;
    assert!(case.checks_of("/00000000-") > 1, "the host was probed");
}

#[tokio::test]
async fn a_page_of_a_proxy_that_forbids_does_not_have_a_key_refused() {
    let case = VendorCase::new().await;
    let server = case.started(case.options()).await;
    let page = Bytes::from_static(b"<html><h1>403 Forbidden</h1></html>");
    case.vendor
        .script_always(Target::Checks, Step::Answer(403, page));
    expect_all(&case, &server, &ids("t", 9)).await;
    server.logged("the vendor's API fails", 1).await;
    case.vendor.clear_scripts();

    recovered(&server, "t8").await;
    let usable = "blobcast_vendor_key_usable{key=\"main\"}";
    assert_eq!(server.metric(usable).await, 1.0);
    assert!(!server.log().contains("refuses the key"));
}

#[tokio::test]
async fn a_task_that_is_waited_for_is_asked_for_with_each_key_in_turn() {
    let mut case = VendorCase::new().await;
    let other = "\n[[vendor_keys]]\nname = \"other\"\nkey = \"rb-other\"";
    case.credentials.add_line("[vendor_keys]", other);
    case.vendor.set_keys([VENDOR_KEY, "rb-other"]);
    let server = case.started(case.options()).await;
    let now = Timestamp::now();
    let theirs = Task::new("seedance", "theirs", now).in_state(State::Completed, now);
    assert!(case.vendor.add(Task {
        key: Some("rb-other".to_owned()),
        ..theirs
    }));

    let waited = wait_task(&server, "seedance", "theirs", 50).await;
    assert!(waited.done);
    let event = waited.event.unwrap();
    assert!(is_recovered(&event));
    assert_eq!(event.credential, "vendor_key other");
    assert_eq!(case.checks_of("theirs"), 2);
}
