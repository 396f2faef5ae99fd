//! Lost callbacks: a broker that expects tasks asks the vendor's status API for those that are late, and every task ends in an answer.

use std::{
    fs,
    time::{Duration, Instant},
};

use blobcast::{
    simulator::server::{ListOrder, State, Step, Target, Task, most_within},
    wire::v1::{Event, ExpectTasksRequest, Filter, SubscribeRequest, TaskStatus, WaitTaskRequest},
};
use jiff::Timestamp;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{
    backup::{back_up, restored},
    permissions::events_as,
    support::{
        Options, Server, VENDOR_KEY as KEY, VendorCase as Case, completed, events_of, expect,
        expectation, is_recovered, key_line, reason, request, tasks_of, until, wait_task, within,
    },
};

async fn post_completed(server: &Server, product: &str, id: &str) {
    let (path, body) = (format!("/webhook/{product}"), completed(id).to_string());
    assert_eq!(server.http().post_to(&path, body).await.status, 200);
}

#[tokio::test]
async fn a_lost_callback_is_recovered_once_with_the_labels_of_its_expectation() {
    let case = Case::new().await;
    let server = case.options().start().await;
    case.has("veo", "lost", State::Completed);
    case.has("veo", "failed", State::Failed);
    let mut sub = server.subscribe(request()).await;
    expect(
        &server,
        vec![expectation("veo", "lost"), expectation("veo", "failed")],
    )
    .await;

    let mut events = sub.next_events(2).await;
    events.sort_by(|one, other| other.task_id.cmp(&one.task_id));
    assert_eq!(tasks_of(&events), ["lost", "failed"]);
    for event in &events {
        assert!(is_recovered(event), "{event:?}");
        assert_eq!(event.labels["team"], "ads");
        assert_eq!(event.credential, "vendor_key main");
    }
    assert_eq!(events[0].status(), TaskStatus::Completed);
    assert_eq!(events[0].outputs.len(), 1);
    assert_eq!(events[1].status(), TaskStatus::Failed);

    let recovered = "blobcast_reconcile_recovered_total{product=\"veo\"}";
    until("both to be counted", async || {
        server.metric(recovered).await == 2.0
    })
    .await;
    let open = "blobcast_expectations{state=\"waiting\"}";
    until("both expectations to end", async || {
        server.metric(open).await == 0.0
    })
    .await;
    assert_eq!(case.checks_of("lost"), 1);
}

#[tokio::test]
async fn waiting_is_expecting() {
    let case = Case::new().await;
    let server = case.options().start().await;
    case.has("veo", "waited", State::Completed);
    case.has("sora", "streamed", State::Completed);

    let waited = wait_task(&server, "veo", "waited", 30).await;
    assert!(waited.done);
    assert!(is_recovered(&waited.event.unwrap()));

    let mut sub = server
        .subscribe(SubscribeRequest {
            filter: Some(Filter {
                task_ids: vec!["streamed".to_owned()],
                products: vec!["sora".to_owned()],
                ..Filter::default()
            }),
            ..SubscribeRequest::default()
        })
        .await;
    let event = sub.next_event().await;
    assert_eq!(event.task_id, "streamed");
    assert!(is_recovered(&event));
}

#[tokio::test]
async fn a_stream_by_labels_has_no_task_checked() {
    let case = Case::new().await;
    let server = case.options().start().await;
    case.has("veo", "labelled", State::Completed);
    case.has("veo", "later", State::Completed);

    let _sub = server
        .subscribe(SubscribeRequest {
            filter: Some(Filter {
                task_ids: vec!["labelled".to_owned()],
                products: vec!["veo".to_owned()],
                labels: [("team".to_owned(), "ads".to_owned())].into(),
                ..Filter::default()
            }),
            ..SubscribeRequest::default()
        })
        .await;
    // Its deadline is behind that of the other.
    let waited = wait_task(&server, "veo", "later", 30).await;
    assert!(is_recovered(&waited.event.unwrap()));
    assert_eq!(case.checks_of("labelled"), 0);
}

#[tokio::test]
async fn who_is_bound_to_labels_gets_them_with_what_it_waits_for() {
    let mut case = Case::new().await;
    let token = case
        .credentials
        .add("client ads --product veo --label team=ads")
        .await;
    let server = case.options().start().await;
    case.has("veo", "waited", State::Completed);

    let mut request = tonic::Request::new(WaitTaskRequest {
        task_id: "waited".to_owned(),
        product: "veo".to_owned(),
        ..WaitTaskRequest::default()
    });
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let waited = server.events().await.wait_task(request).await.unwrap();
    let waited = waited.into_inner();
    assert!(waited.done);
    assert_eq!(waited.event.unwrap().labels["team"], "ads");
}

#[tokio::test]
async fn who_is_bound_to_other_labels_than_another_that_waits_is_shown_none_of_them() {
    let mut case = Case::new().await;
    let mut tokens = Vec::new();
    for words in ["a --label team=ads", "b --label team=film", "ops"] {
        let words = format!("client {words} --product veo");
        tokens.push(case.credentials.add(&words).await);
    }
    let server = case.options().start().await;
    case.has("veo", "waited", State::Completed);

    let wait = async |token: &String| {
        let request = WaitTaskRequest {
            task_id: "waited".to_owned(),
            product: "veo".to_owned(),
            timeout: Some(prost_types::Duration {
                seconds: 4,
                nanos: 0,
            }),
            ..WaitTaskRequest::default()
        };
        let mut client = events_as(&server, Some(token)).await;
        client.wait_task(request).await.unwrap().into_inner()
    };
    let (of_ads, of_film, of_all) =
        tokio::join!(wait(&tokens[0]), wait(&tokens[1]), wait(&tokens[2]));
    assert!(!of_ads.done && !of_film.done);
    let event = of_all.event.unwrap();
    assert!(is_recovered(&event) && event.labels.is_empty(), "{event:?}");
}

#[tokio::test]
async fn a_task_that_somebody_waits_for_is_asked_for_before_those_that_are_due_longer() {
    let case = Case::new().await;
    // One call each 1.1 s, and at most six at once.
    let options = case.options().set("reconcile.checks_per_minute_max", 60);
    let server = options.start().await;
    let ids: Vec<_> = (0..30).map(|n| format!("stored{n}")).collect();
    for id in ids.iter().map(String::as_str).chain(["waited"]) {
        case.has("seedance", id, State::Completed);
    }
    let expected = ids.iter().map(|id| expectation("seedance", id));
    expect(&server, expected.collect()).await;
    until("them to be due", async || case.checks_of("stored") > 0).await;

    let waited = wait_task(&server, "seedance", "waited", 50).await;
    assert!(is_recovered(&waited.event.unwrap()));
    let before = case.checks_of("stored");
    assert!(before < 10, "{before} others came first");
}

#[tokio::test]
async fn a_task_that_a_list_does_not_show_is_asked_for_by_itself() {
    let case = Case::new().await;
    let server = case.options().start().await;
    let empty = Step::Answer(200, "[]".into());
    case.vendor.script_always(Target::list("veo"), empty);
    let ids: Vec<_> = (0..7).map(|n| format!("lost{n}")).collect();
    for id in &ids {
        case.has("veo", id, State::Completed);
    }
    let expected = ids.iter().map(|id| expectation("veo", id));
    expect(&server, expected.collect()).await;

    let mut sub = server.subscribe(request()).await;
    assert!(sub.next_events(7).await.iter().all(is_recovered));
    assert!(case.list_calls() > 0);
    let checks: Vec<_> = ids.iter().map(|id| case.checks_of(id)).collect();
    assert_eq!(checks, [1; 7]);
}

#[tokio::test]
async fn what_a_log_expects_is_recovered_by_one_that_is_restored_from_its_backup() {
    let case = Case::new().await;
    let options = case.options().set("reconcile.expect_within", "veo=3s");
    let server = options.clone().start().await;
    case.has("veo", "lost", State::Processing);
    expect(&server, vec![expectation("veo", "lost")]).await;
    let shelf = tempfile::tempdir().unwrap();
    let file = shelf.path().join("backup");
    back_up(&server, &file).await.good();
    drop(server);
    assert!(case.vendor.set_state("veo", "lost", State::Completed));

    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    restored(&file, &data).await.good();
    let server = options.start_in(directory).await;
    let mut sub = server.subscribe(request()).await;
    let event = within("its end", async {
        loop {
            let event = sub.next_event().await;
            if event.terminal {
                break event;
            }
        }
    });
    let event = event.await;
    assert!(is_recovered(&event));
    assert_eq!(event.labels["team"], "ads");
}

#[tokio::test]
async fn a_task_whose_callback_came_is_not_asked_for() {
    let case = Case::new().await;
    let server = case.options().start().await;
    // So many that a list would be asked for.
    let came: Vec<_> = (0..7).map(|n| format!("came{n}")).collect();
    for id in came.iter().map(String::as_str).chain(["waited", "lost"]) {
        case.has("kling", id, State::Completed);
    }
    let expected = came.iter().map(|id| expectation("kling", id));
    expect(&server, expected.collect()).await;
    let waits = wait_task(&server, "kling", "waited", 30);
    let callbacks = async {
        for id in &came {
            post_completed(&server, "kling", id).await;
        }
        post_completed(&server, "kling", "waited").await;
    };
    let (waited, ()) = tokio::join!(waits, callbacks);
    assert!(waited.done);

    // Its deadline is behind theirs.
    expect(&server, vec![expectation("kling", "lost")]).await;
    let waited = wait_task(&server, "kling", "lost", 30).await;
    assert!(is_recovered(&waited.event.unwrap()));
    assert_eq!((case.checks_of("came"), case.checks_of("waited")), (0, 0));
    assert_eq!(case.list_calls(), 0);
}

#[tokio::test]
async fn a_callback_that_comes_after_its_answer_is_the_same_event() {
    let case = Case::new().await;
    let server = case.options().start().await;
    let url = format!("http://{}/webhook/veo", server.ingest);
    for (id, state) in [("late", State::Completed), ("late-failed", State::Failed)] {
        let mut task = Task::new("veo", id, Timestamp::now()).in_state(state, Timestamp::now());
        task.callback_url = Some(url.parse().unwrap());
        assert!(case.vendor.add(task));
        expect(&server, vec![expectation("veo", id)]).await;
        assert!(wait_task(&server, "veo", id, 30).await.done);

        let sent = case.vendor.send_callback("veo", id);
        assert!(sent.await.is_some());
        let events = events_of(&server, id).await;
        assert!(is_recovered(&events[0]));
        assert!(events.iter().all(|event| !event.conflict), "{events:?}");
        let most = if state == State::Failed { 2 } else { 1 }; // a reason may be added
        assert!(events.len() <= most, "{events:?}");
    }
}

#[tokio::test]
async fn an_answer_that_comes_after_its_callback_is_the_same_event() {
    let case = Case::new().await;
    let server = case.options().start().await;
    let url = format!("http://{}/webhook/veo", server.ingest);
    let mut task = Task::new("veo", "raced", Timestamp::now());
    task = task.in_state(State::Completed, Timestamp::now());
    task.callback_url = Some(url.parse().unwrap());
    assert!(case.vendor.add(task));
    let slow = Step::Slow(Duration::from_secs(1), Box::new(Step::Truth));
    case.vendor.script(Target::task("veo", "raced"), [slow]);
    expect(&server, vec![expectation("veo", "raced")]).await;

    until("a check to be under way", async || {
        case.checks_of("raced") == 1
    })
    .await;
    assert!(case.vendor.send_callback("veo", "raced").await.is_some());
    let outcome = "blobcast_reconcile_checks_total{outcome=\"over\",product=\"veo\"}";
    until("its answer", async || server.metric(outcome).await == 1.0).await;

    // The next event is behind all that follows from the answer.
    post_completed(&server, "veo", "next").await;
    let events = events_of(&server, "raced").await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(!is_recovered(&events[0]));
    let recovered = "blobcast_reconcile_recovered_total{product=\"veo\"}";
    assert_eq!(server.metric(recovered).await, 0.0);
}

#[tokio::test]
async fn a_late_task_is_overdue_once_given_up_once_and_may_still_end() {
    let case = Case::new().await;
    let server = case
        .options()
        .set("reconcile.give_up_after", "2s")
        .start()
        .await;
    case.has("veo", "slow", State::Processing);
    expect(&server, vec![expectation("veo", "slow")]).await;

    let waited = wait_task(&server, "veo", "slow", 50).await;
    assert!(!waited.done);
    let last = waited.event.unwrap().overdue.unwrap();
    assert!(last.gave_up);
    assert_eq!(last.vendor_http_status, 200);
    assert_eq!(last.vendor_status, "processing");
    assert_eq!(last.check_count, 2);

    post_completed(&server, "veo", "slow").await;
    let events = events_of(&server, "slow").await;
    let statuses: Vec<_> = events.iter().map(Event::status).collect();
    let expected = [
        TaskStatus::Overdue,
        TaskStatus::Overdue,
        TaskStatus::Completed,
    ];
    assert_eq!(statuses, expected);
    assert_eq!(events[0].labels["team"], "ads");
    let overdue = |event: &Event| event.overdue.as_ref().unwrap().gave_up;
    assert!(!overdue(&events[0]) && overdue(&events[1]));
    let given_up = &events[1];
    let by = given_up.overdue.as_ref().unwrap().expected_by.unwrap();
    let at = given_up.received_at.unwrap();
    let late = (at.seconds - by.seconds) * 1_000_000_000 + i64::from(at.nanos - by.nanos);
    assert!(
        late >= 2_000_000_000,
        "given up {late} ns after its deadline"
    );
    assert!(!events[2].conflict);
    assert!(wait_task(&server, "veo", "slow", 1).await.done);
}

#[tokio::test]
async fn nothing_but_the_vendors_word_ends_a_task() {
    let case = Case::new().await;
    let server = case.options().start().await;
    let page = Step::Answer(200, "<html>completed</html>".into());
    let answers = [
        ("missing", None, 404, ""),
        ("broken", Some(Step::status(500)), 500, ""),
        ("cut", Some(Step::Truncated), 0, ""),
        ("huge", Some(Step::Huge(2 << 20)), 0, ""),
        (
            "moved",
            Some(Step::redirect("http://127.0.0.1:1/")),
            302,
            "",
        ),
        ("proxied", Some(page), 200, ""),
        ("odd", Some(status("sleeping")), 200, "sleeping"),
        ("odder", Some(status("")), 200, ""),
    ];
    for (id, step, ..) in &answers {
        if let Some(step) = step {
            case.has("seedance", id, State::Completed);
            case.vendor
                .script_always(Target::task("seedance", id), step.clone());
        }
    }
    let ids = answers.iter().map(|(id, ..)| *id);
    expect(&server, ids.map(|id| expectation("seedance", id)).collect()).await;

    let mut sub = server.subscribe(request()).await;
    for event in sub.next_events(answers.len()).await {
        let (.., status, word) = answers
            .iter()
            .find(|(id, ..)| *id == event.task_id)
            .expect("one of these tasks");
        assert_eq!(event.status(), TaskStatus::Overdue, "{event:?}");
        let overdue = event.overdue.as_ref().unwrap();
        let said = (overdue.vendor_http_status, &*overdue.vendor_status);
        assert_eq!(said, (*status, *word), "{}", event.task_id);
        assert_eq!(overdue.check_count, 1);
    }

    // A task that is only waited for is late, too.
    case.has("seedance", "waited", State::Processing);
    let waited = wait_task(&server, "seedance", "waited", 8).await;
    assert!(!waited.done);
    assert_eq!(waited.event.unwrap().status(), TaskStatus::Overdue);
}

/// The true answer with another status word.
fn status(word: &str) -> Step {
    Step::fields(serde_json::json!({ "status": word }))
}

#[tokio::test]
async fn a_broker_that_is_not_asked_to_asks_nobody() {
    let case = Case::new().await;
    let off = case.options().set("reconcile.enabled", false);
    let server = off.start().await;
    case.has("veo", "waited", State::Completed);
    let request = ExpectTasksRequest {
        expectations: vec![expectation("veo", "waited")],
    };
    let refused = server.events().await.expect_tasks(request).await;
    assert_eq!(reason(&refused.unwrap_err()), "RECONCILE_OFF");
    assert!(!wait_task(&server, "veo", "waited", 2).await.done);
    assert_eq!(case.vendor.requests(), []);

    // Nor one without a key.
    let mut keyless = Case::new().await;
    keyless.credentials.remove("main");
    let server = keyless.options().start().await;
    keyless.has("veo", "waited", State::Completed);
    let request = ExpectTasksRequest {
        expectations: vec![expectation("veo", "waited")],
    };
    let refused = server.events().await.expect_tasks(request).await;
    assert_eq!(reason(&refused.unwrap_err()), "RECONCILE_OFF");
    assert!(!wait_task(&server, "veo", "waited", 2).await.done);
    assert_eq!(keyless.vendor.requests(), []);
}

#[tokio::test]
async fn the_budget_of_a_key_is_kept_from_the_first_call() {
    let case = Case::new().await;
    // One call each 643 ms, and up to 12 at once for a key that was quiet.
    let server = case
        .options()
        .set("reconcile.checks_per_minute_max", 120)
        .start()
        .await;
    let ids: Vec<_> = (0..30).map(|n| format!("t{n}")).collect();
    for id in &ids {
        case.has("seedance", id, State::Processing);
    }
    expect(
        &server,
        ids.iter().map(|id| expectation("seedance", id)).collect(),
    )
    .await;

    until("twelve calls", async || case.vendor.checks().len() >= 12).await;
    let most = most_within(
        &case.vendor.checks(),
        Some(KEY),
        Duration::from_millis(2_500),
    );
    assert!(most <= 6, "{most} calls in 2.5 s");
}

#[tokio::test]
async fn many_late_tasks_are_found_by_lists() {
    for order in [ListOrder::NewestFirst, ListOrder::OldestFirst] {
        let case = Case::new().await;
        case.vendor.set_list_order(order);
        let server = case.options().start().await;
        let old = Timestamp::now() - jiff::SignedDuration::from_hours(24);
        for n in 0..450 {
            case.has_since("veo", &format!("old{n}"), State::Completed, old);
        }
        let ids: Vec<_> = (0..250).map(|n| format!("lost{n}")).collect();
        for id in &ids {
            case.has("veo", id, State::Completed);
        }
        expect(
            &server,
            ids.iter().map(|id| expectation("veo", id)).collect(),
        )
        .await;

        let mut sub = server.subscribe(request()).await;
        let events = sub.next_events(ids.len()).await;
        assert!(events.iter().all(is_recovered));
        let lists = case.list_calls();
        assert!(
            (3..=12).contains(&lists),
            "{lists} calls for lists, {order:?}"
        );
        let checks = case.vendor.checks().len() - lists;
        assert!(checks <= 20, "{checks} tasks were asked for by themselves");
    }
}

#[tokio::test]
async fn a_key_that_is_refused_is_not_used_until_it_changes() {
    let mut case = Case::new().await;
    case.vendor.set_keys(["another"]);
    let server = case.options().start().await;
    let usable = "blobcast_vendor_key_usable{key=\"main\"}";
    case.has("veo", "lost", State::Completed);
    expect(&server, vec![expectation("veo", "lost")]).await;
    server.logged("the vendor refuses the key", 1).await;
    until("the key to be unusable", async || {
        server.metric(usable).await == 0.0
    })
    .await;
    let calls = case.vendor.checks().len();

    case.credentials.remove("main");
    case.credentials
        .add_line("[vendor_keys]", &key_line("another"));
    let waited = wait_task(&server, "veo", "lost", 50).await;
    assert!(is_recovered(&waited.event.unwrap()));
    until("the key to be usable", async || {
        server.metric(usable).await == 1.0
    })
    .await;

    let checks = case.vendor.checks();
    let refused = checks.iter().filter(|it| it.key.as_deref() == Some(KEY));
    assert_eq!(refused.count(), calls, "the refused key was not used again");
}

#[tokio::test]
async fn a_wait_that_began_before_there_was_a_key_is_served_when_one_comes() {
    let mut case = Case::new().await;
    case.credentials.remove("main");
    let other = format!("{}\nproducts = [\"sora\"]", key_line(KEY));
    case.credentials.add_line("[vendor_keys]", &other);
    let server = case.options().start().await;
    case.has("veo", "lost", State::Completed);

    let waits = wait_task(&server, "veo", "lost", 30);
    let key_comes = async {
        let waited_for = "blobcast_expectations{state=\"waited_for\"}";
        until("the wait to be known", async || {
            server.metric(waited_for).await == 1.0
        })
        .await;
        case.credentials.remove("main");
        case.credentials.add_line("[vendor_keys]", &key_line(KEY));
    };
    let (waited, ()) = tokio::join!(waits, key_comes);
    assert!(is_recovered(&waited.event.unwrap()));
}

#[tokio::test]
async fn a_key_that_is_refused_for_one_task_is_used_for_the_others() {
    let case = Case::new().await;
    let server = case.options().start().await;
    let usable = "blobcast_vendor_key_usable{key=\"main\"}";
    until("the key to be usable", async || {
        server.metric(usable).await == 1.0
    })
    .await;
    case.has("veo", "odd", State::Completed);
    case.has("veo", "lost", State::Completed);
    case.vendor
        .script_always(Target::task("veo", "odd"), Step::status(403));
    expect(&server, vec![expectation("veo", "odd")]).await;
    server.logged("has refused it for a task", 1).await;

    expect(&server, vec![expectation("veo", "lost")]).await;
    let waited = wait_task(&server, "veo", "lost", 30).await;
    assert!(is_recovered(&waited.event.unwrap()));
    until("the key to be usable", async || {
        server.metric(usable).await == 1.0
    })
    .await;
    assert_eq!(
        case.checks_of("00000000-0000-0000"),
        2,
        "at the start, and for the task"
    );
}

#[tokio::test]
async fn a_broker_that_is_killed_between_an_answer_and_its_commit_asks_again() {
    let case = Case::new().await;
    let mut server = case.options().start().await;
    for n in 0..5_u64 {
        let id = format!("lost{n}");
        case.has("veo", &id, State::Completed);
        expect(&server, vec![expectation("veo", &id)]).await;
        until("the answer", async || case.checks_of(&id) > 0).await;
        let moment = Instant::now();
        until("a moment in or behind the commit", async || {
            moment.elapsed() >= Duration::from_millis(3 * n)
        })
        .await;
        server.crash().await;

        let waited = wait_task(&server, "veo", &id, 30).await;
        assert!(is_recovered(&waited.event.unwrap()));
        assert_eq!(events_of(&server, &id).await.len(), 1, "{id}");
    }
}

/// A broker that is away for longer than `reconcile.outage_min`, while these tasks end and nobody repeats their callbacks.
async fn outage(case: &Case, options: Options, ids: &[String]) -> Server {
    let options = options
        .set("reconcile.expect_within", "veo=1h")
        .set("reconcile.outage_min", "1s");
    let mut server = options.start().await;
    for id in ids {
        case.has("veo", id, State::Processing);
    }
    expect(
        &server,
        ids.iter().map(|id| expectation("veo", id)).collect(),
    )
    .await;
    server.terminate().await;

    let away = Instant::now();
    for id in ids {
        assert!(case.vendor.set_state("veo", id, State::Completed));
    }
    case.has("veo", "unknown", State::Completed);
    until("the outage to be one", async || {
        away.elapsed() > Duration::from_millis(1_100)
    })
    .await;
    server.restart_elsewhere().await;
    server
}

#[tokio::test]
async fn a_note_of_the_time_that_cannot_be_read_stops_nothing() {
    let case = Case::new().await;
    let mut server = case.options().start().await;
    case.has("veo", "lost", State::Completed);
    server.terminate().await;

    let data = server.data_dir();
    let note = data.join("last-there.json");
    fs::remove_file(&note).unwrap();
    for path in [note, data.join("last-there.json.new")] {
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    server.restart().await;
    let waited = wait_task(&server, "veo", "lost", 30).await;
    assert!(is_recovered(&waited.event.unwrap()));
    server.logged("cannot note the time", 1).await;
    assert!(server.terminate().await.success());
}

#[tokio::test]
async fn after_an_outage_lists_are_read_when_a_good_key_comes() {
    let mut case = Case::new().await;
    case.vendor.set_keys(["another"]);
    let server = outage(&case, case.options(), &["lost".to_owned()]).await;
    server.logged("the vendor refuses the key", 1).await;

    case.credentials.remove("main");
    case.credentials
        .add_line("[vendor_keys]", &key_line("another"));
    let mut sub = server.subscribe(request()).await;
    let event = within("the lost one", sub.next_event()).await;
    assert!(is_recovered(&event));
    assert_eq!(
        (event.task_id.as_str(), case.checks_of("lost")),
        ("lost", 0)
    );
}

#[tokio::test]
async fn after_an_outage_unknown_tasks_are_published_on_request() {
    let case = Case::new().await;
    let options = case.options().set("reconcile.unknown_tasks", "publish");
    let server = outage(&case, options, &["lost".to_owned()]).await;

    let mut sub = server.subscribe(request()).await;
    let events = within("both", sub.next_events(2)).await;
    let unknown = events.iter().find(|event| event.task_id == "unknown");
    let unknown = unknown.expect("what nobody expects is there, too");
    assert!(is_recovered(unknown));
    assert!(unknown.labels.is_empty());
}
