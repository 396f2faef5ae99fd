//! What subscribers see of tasks that are late: events by which the broker says so, and which end nothing.
//!
//! The events are put into the log before the broker starts.

use blobcast::{
    event::{Labels, Overdue, Product, TaskId},
    reconcile::{Asked, overdue},
    store::Draft,
    wire::v1::{
        self, SubscribeRequest, TaskStatus, Verification, WaitTaskRequest, WaitTaskResponse,
        subscribe_response::Content,
    },
};
use jiff::{Timestamp, ToSpan};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    Endpoint, Options, Server, completed, draft, matching, node, of_statuses, of_tasks, processing,
    tasks, until, within,
};

/// The event by which `veo`'s task `task_id` is late, or given up.
fn late(task_id: &str, gave_up: bool) -> Draft {
    let now = Timestamp::now();
    let (product, task_id) = (
        Product::parse("veo").unwrap(),
        TaskId::parse(task_id).unwrap(),
    );
    let asked = Asked {
        product: &product,
        task_id: &task_id,
        labels: &Labels::from([("team".into(), "ads".into())]),
        tenant: None,
        vendor_key: Some("main"),
        at: now,
    };
    let known = Overdue {
        expected_by: now - 1.hour(),
        checked_at: Some(now),
        vendor_http_status: 200,
        vendor_status: "processing".into(),
        check_count: 3,
        gave_up,
    };
    overdue::draft(&asked, known)
}

/// A broker on a log with these events.
async fn broker_with(drafts: Vec<Draft>) -> Server {
    let directory = TempDir::new().unwrap();
    let node = node(&directory.path().join("data"));
    for draft in drafts {
        let appended = within("the append", node.journal.append(draft)).await;
        assert!(!appended.unwrap().unwrap().duplicate);
    }
    (node.stop)();
    drop((node.journal, node.store));
    Options::default().start_in(directory).await
}

/// `t1` is late after a step, `t2` is given up.
async fn broker() -> Server {
    let step = draft(&processing("t1"), Timestamp::now());
    broker_with(vec![
        step,
        late("t1", false),
        late("t2", false),
        late("t2", true),
    ])
    .await
}

async fn wait(server: &Server, task_id: &str, seconds: i64) -> WaitTaskResponse {
    let request = WaitTaskRequest {
        task_id: task_id.into(),
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        product: "veo".into(),
        ..WaitTaskRequest::default()
    };
    let mut client = server.events().await;
    let answer = within("the answer", client.wait_task(request)).await;
    answer.unwrap().into_inner()
}

fn is_given_up(answer: &WaitTaskResponse) -> bool {
    let event = answer.event.as_ref().unwrap();
    event.overdue.as_ref().unwrap().gave_up
}

#[tokio::test]
async fn an_overdue_event_is_delivered_by_its_status_and_says_what_is_known() {
    let mut server = broker().await;
    server.crash().await;
    let events = server.log_of_events().await;
    let shown: Vec<_> = events
        .iter()
        .map(|event| (event.task_id.as_str(), event.status(), event.revision))
        .collect();
    assert_eq!(
        shown,
        [
            ("t1", TaskStatus::Processing, 1),
            ("t1", TaskStatus::Overdue, 2),
            ("t2", TaskStatus::Overdue, 1),
            ("t2", TaskStatus::Overdue, 2),
        ]
    );

    let given_up = &events[3];
    assert!(!given_up.terminal && !given_up.conflict && given_up.raw_body.is_empty());
    assert_eq!(given_up.verification(), Verification::Unspecified);
    assert_eq!(
        (&*given_up.credential, &given_up.labels["team"]),
        ("vendor_key main", &"ads".to_owned())
    );
    let known = given_up.overdue.as_ref().unwrap();
    assert_eq!(
        (
            known.vendor_status.as_str(),
            known.vendor_http_status,
            known.check_count,
            known.gave_up
        ),
        ("processing", 200, 3, true)
    );
    assert!(events[0].overdue.is_none());

    let position = v1::subscribe_request::Start::Position(v1::StartPosition::Earliest.into());
    let by_status = SubscribeRequest {
        start: Some(position),
        ..matching(of_statuses([TaskStatus::Overdue]))
    };
    let mut sub = server.subscribe(by_status).await;
    assert_eq!(sub.until_caught_up().await, events[1..]);
}

#[tokio::test]
async fn a_stream_until_terminal_goes_on_over_what_is_overdue() {
    let server = broker().await;
    let request = SubscribeRequest {
        until_terminal: true,
        ..tasks(["t1", "t2"])
    };
    let mut sub = server.subscribe(request).await;
    assert_eq!(sub.until_caught_up().await.len(), 4);
    server.http().post(&completed("t1")).await.event_id();
    assert_eq!(sub.next_event().await.task_id, "t1");
    server.http().post(&completed("t2")).await.event_id();
    let rest = sub.end().await.unwrap();
    let ends: Vec<_> = rest.iter().collect();
    assert!(
        matches!(ends[..], [Content::Event(event), Content::Completed(_)] if event.task_id == "t2")
    );
}

#[tokio::test]
async fn a_wait_goes_on_over_a_late_task_and_answers_at_once_when_it_is_given_up() {
    let server = broker().await;
    let late = wait(&server, "t1", 0).await;
    assert!(!late.done && !is_given_up(&late));
    let given_up = wait(&server, "t2", 3_600).await;
    assert!(!given_up.done && is_given_up(&given_up));

    let live = async {
        until("the wait", async || {
            server
                .metric("blobcast_subscriptions{state=\"live\"}")
                .await
                == 1.0
        })
        .await;
        server.http().post(&completed("t1")).await.event_id()
    };
    let (over, event_id) = tokio::join!(wait(&server, "t1", 3_600), live);
    let event = over.event.unwrap();
    assert_eq!(
        (over.done, event.event_id, event.revision, event.conflict),
        (true, event_id, 3, false)
    );

    // The truth may still come.
    let event_id = server.http().post(&completed("t2")).await.event_id();
    let over = wait(&server, "t2", 3_600).await;
    let event = over.event.unwrap();
    assert_eq!(
        (over.done, event.event_id, event.revision, event.conflict),
        (true, event_id, 3, false)
    );
}

#[tokio::test]
async fn a_task_that_was_given_up_and_goes_on_is_waited_for_again() {
    let server = broker_with(vec![late("t1", true)]).await;
    assert!(is_given_up(&wait(&server, "t1", 3_600).await));
    let event_id = server.http().post(&processing("t1")).await.event_id();
    let going_on = wait(&server, "t1", 1).await;
    assert_eq!(
        (going_on.done, going_on.event.unwrap().event_id),
        (false, event_id)
    );
}

#[tokio::test]
async fn the_command_line_shows_late_tasks_and_waits_until_they_are_given_up() {
    let server = broker().await;
    let ran = server.cli("wait t2 --product veo").run().await;
    let said = ran.exited(124);
    assert!(
        said.starts_with("overdue: expected by ")
            && said.contains("; processing by the vendor at "),
        "{said}"
    );
    assert!(
        said.contains(", of 3 checks; given up; the broker no longer asks for it"),
        "{said}"
    );
    assert_eq!(ran.stdout, "");

    let ran = server.cli("wait t1 --product veo --timeout 1s").run().await;
    let said = ran.exited(124);
    assert!(said.contains(", of 3 checks; waiting on\n"), "{said}");
    assert!(
        said.ends_with("not over after 1s; latest status: overdue (veo)\n"),
        "{said}"
    );

    let ran = server
        .cli("events --status overdue --output json")
        .run()
        .await;
    let gave_up: Vec<_> = ran
        .json_lines()
        .iter()
        .map(|event| event["overdue"]["gave_up"].clone())
        .collect();
    assert_eq!(gave_up, [json!(false), json!(false), json!(true)]);

    let ran = server.cli("get t1").run().await;
    let lines: Vec<_> = ran.good().lines().collect();
    assert!(
        lines[1].contains("t1 overdue    ")
            && lines[1].contains(" expected by ")
            && lines[1].ends_with("[revision 2]"),
        "{lines:?}"
    );

    let ran = server.cli("get t1 --raw").run().await;
    assert_eq!(ran.good(), processing("t1").to_string());
    let ran = server.cli("get t2 --raw").run().await;
    assert!(
        ran.exited(1)
            .contains("no event of the task with a body is retained"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn what_the_vendor_has_not_posted_is_not_forwarded() {
    let server = broker().await;
    server.http().post(&completed("t2")).await.event_id();
    let (endpoint, address) = Endpoint::answering(&[200, 200]).opened().await;
    let line = format!("listen --from earliest --count 5 --forward-to http://{address}/hook");
    let ran = server.cli(&line).run().await;
    assert_eq!(ran.good().lines().count(), 5);
    assert_eq!(
        endpoint.bodies(),
        [processing("t1"), completed("t2")].map(|body| body.to_string())
    );
}

/// Erasure covers them: they carry labels.
#[tokio::test]
async fn an_overdue_event_is_erased_with_its_task() {
    let server = broker().await;
    server.cli("erase veo t2").run().await.good();
    let mut client = server.events().await;
    let request = v1::ListEventsRequest {
        filter: Some(of_tasks(["t2"])),
        ..Default::default()
    };
    let left = client.list_events(request).await.unwrap().into_inner();
    assert!(left.events.is_empty());
    let answer = wait(&server, "t2", 0).await;
    assert_eq!(answer, WaitTaskResponse::default(), "it is not over");
}
