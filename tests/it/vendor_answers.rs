//! What the broker makes of a vendor that asks for a pause, fails, or has no outputs yet.

use std::time::Duration;

use blobcast::{
    simulator::server::{SeenRequest, State, Step, Target},
    wire::v1::{Event, TaskStatus},
};
use jiff::{SignedDuration, Timestamp};

use crate::support::{
    Options, VENDOR_KEY, VendorCase, completed, events_of, expect, expectation, is_recovered,
    until, wait_task,
};

fn options(case: &VendorCase) -> Options {
    case.options()
        .set("reconcile.expect_within", "veo=1s,kling=1s,seedance=1s")
}

/// The requests for the status of one of these products' tasks, in order.
fn checks_of(case: &VendorCase, product: &str) -> Vec<SeenRequest> {
    let mut checks = case.vendor.checks();
    checks.retain(|it| it.target.contains(product) && !it.target.contains("/00000000-"));
    checks
}

/// From one request to the next.
fn gaps(checks: &[SeenRequest]) -> Vec<Duration> {
    let pairs = checks.windows(2);
    pairs.map(|pair| pair[1].at - pair[0].at).collect()
}

/// Has the vendor answer the first check with 429 like this; returns how long it was left alone then. Meanwhile another key may be
/// used.
async fn pause_after(retry_after: String) -> Duration {
    let mut case = VendorCase::new().await;
    let other = "\n[[vendor_keys]]\nname = \"other\"\nkey = \"rb-other\"";
    case.credentials.add_line("[vendor_keys]", other);
    case.vendor.set_keys([VENDOR_KEY, "rb-other"]);
    let server = case.started(options(&case)).await;
    for (product, id) in [("veo", "first"), ("veo", "second"), ("kling", "third")] {
        case.has(product, id, State::Completed);
    }
    let step = Step::Header(429, "retry-after", retry_after);
    case.vendor.script(Target::task("veo", "first"), [step]);
    expect(&server, vec![expectation("veo", "first")]).await;
    until("the first check", async || case.checks_of("first") == 1).await;

    let mut by_another = expectation("kling", "third");
    by_another.vendor_key = "other".to_owned();
    expect(&server, vec![expectation("veo", "second"), by_another]).await;
    assert!(is_recovered(
        &wait_task(&server, "veo", "second", 50).await.event.unwrap()
    ));
    assert!(is_recovered(
        &wait_task(&server, "kling", "third", 50)
            .await
            .event
            .unwrap()
    ));

    let (of_key, of_another) = (checks_of(&case, "veo"), checks_of(&case, "kling"));
    assert_eq!(of_key.len(), 2, "one was answered 429, and one recovered");
    let (first, second) = (&of_key[0], &of_key[1]);
    assert_eq!(of_another.len(), 1);
    assert!(of_another[0].at < second.at, "429 is about a key");
    second.at - first.at
}

#[tokio::test]
async fn a_vendor_that_asks_for_a_pause_is_left_alone_for_as_long() {
    let until = Timestamp::now() + SignedDuration::from_secs(13);
    let until = until.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let (seconds, date) = tokio::join!(pause_after("8".to_owned()), pause_after(until));
    let second = Duration::from_secs(1);
    // Without the header it would be 5 s.
    assert!((8 * second..13 * second).contains(&seconds), "{seconds:?}");
    assert!((6 * second..13 * second).contains(&date), "{date:?}");
}

#[tokio::test]
async fn a_vendor_that_fails_is_left_alone_for_longer_each_time_and_callbacks_are_taken_meanwhile()
{
    let case = VendorCase::new().await;
    let server = case.started(options(&case)).await;
    let ids: Vec<_> = (0..14).map(|n| format!("lost{n}")).collect();
    for id in &ids {
        case.has("seedance", id, State::Completed);
    }
    case.vendor.script_always(Target::Checks, Step::status(502));
    let expected = ids.iter().map(|id| expectation("seedance", id));
    expect(&server, expected.collect()).await;

    // Up to six calls have begun when the third failure stops the others; 5 s later one is let through, for no task.
    let checks = || case.vendor.checks().split_off(1);
    let is_tried = |gap: &Duration| *gap > Duration::from_secs(4);
    until("another try", async || gaps(&checks()).iter().any(is_tried)).await;
    let taken = server.http().post(&completed("called-back")).await;
    assert!(!taken.duplicate());
    until("its answer", async || {
        checks().last().is_some_and(|it| it.http_status == 502)
    })
    .await;
    case.vendor.clear_scripts();

    until("the others to be recovered", async || {
        server
            .log_of_events()
            .await
            .iter()
            .filter(|it| is_recovered(it))
            .count()
            >= 7
    })
    .await;
    let failed = checks().iter().filter(|it| it.http_status == 502).count();
    assert!((4..=7).contains(&failed), "{failed} calls failed");
    let gaps = gaps(&checks());
    let (burst, tried) = gaps.split_at(failed - 2);
    assert!(!burst.iter().any(is_tried), "{gaps:?}");
    let second = Duration::from_secs(1);
    // The vendor notes each call a little after it began.
    let early = Duration::from_millis(200);
    assert!(
        (5 * second - early..9 * second).contains(&tried[0]),
        "{gaps:?}"
    );
    assert!(
        (10 * second - early..14 * second).contains(&tried[1]),
        "{gaps:?}"
    );
}

fn statuses(events: &[Event]) -> Vec<TaskStatus> {
    events.iter().map(Event::status).collect()
}

/// Its last check is when it is given up.
#[tokio::test]
async fn a_task_that_is_completed_without_outputs_is_taken_as_it_is_before_it_is_given_up() {
    let case = VendorCase::new().await;
    let options = options(&case).set("reconcile.give_up_after", "2s");
    let server = options.start().await;
    case.has("veo", "empty", State::CompletedWithoutOutputs);
    expect(&server, vec![expectation("veo", "empty")]).await;

    let waited = wait_task(&server, "veo", "empty", 50).await;
    assert!(waited.done);
    let event = waited.event.unwrap();
    assert!(is_recovered(&event) && event.outputs.is_empty());
    assert_eq!(event.labels["team"], "ads");
    let events = events_of(&server, "empty").await;
    assert_eq!(
        statuses(&events),
        [TaskStatus::Overdue, TaskStatus::Completed]
    );
    assert!(!events[0].overdue.as_ref().unwrap().gave_up);
    assert_eq!(case.checks_of("empty"), 2);
}

#[tokio::test]
#[ignore = "takes three minutes"]
async fn a_task_that_is_completed_without_outputs_is_checked_five_times_more_and_then_taken() {
    let case = VendorCase::new().await;
    let server = case.started(options(&case)).await;
    let empty = State::CompletedWithoutOutputs;
    case.has("seedance", "empty", empty);
    case.has("seedance", "filled", empty);
    let expected = ["empty", "filled"].map(|id| expectation("seedance", id));
    expect(&server, expected.into()).await;

    for count in 1..=6 {
        until("the next check", async || case.checks_of("empty") >= count).await;
        if count == 3 {
            let filled = State::Completed;
            until("its third check", async || case.checks_of("filled") >= 3).await;
            assert!(case.vendor.set_state("seedance", "filled", filled));
        }
    }
    for (id, count, is_empty) in [("empty", 6, true), ("filled", 4, false)] {
        let event = wait_task(&server, "seedance", id, 50).await.event.unwrap();
        assert!(is_recovered(&event), "{event:?}");
        let found = (case.checks_of(id), event.outputs.is_empty());
        assert_eq!(found, (count, is_empty), "{id}");
        let events = events_of(&server, id).await;
        assert_eq!(
            statuses(&events),
            [TaskStatus::Overdue, TaskStatus::Completed]
        );
    }
    let second = Duration::from_secs(1);
    let mut checks = checks_of(&case, "seedance");
    checks.retain(|it| it.target.contains("empty"));
    let gaps = gaps(&checks);
    assert!(
        gaps.iter()
            .all(|gap| (27 * second..36 * second).contains(gap)),
        "{gaps:?}"
    );
}
