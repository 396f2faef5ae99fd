//! Every verb of the command line against a real broker: its output, its exit code, and its effect
//! on the log.

use std::time::{Duration, Instant};

use blobcast::{
    checker::{History, Observed, Stream, check},
    simulator::{Plan, Vendor, VendorCallback},
    vendor::sample::{Broken, PRODUCTS, SampleStatus},
    wire::v1::{Event, OutputKind, SubscriptionState},
};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    AsObserved, Cli, Endpoint, Running, Server, completed, failed, free_address, processing, until,
    with, within,
};

/// Posts a body to `/webhook/` and what follows it; the event's id.
async fn post(server: &Server, product_and_query: &str, body: &Value) -> String {
    server
        .http()
        .post_to(&format!("/webhook/{product_and_query}"), body.to_string())
        .await
        .event_id()
}

// --- listen ---

#[tokio::test]
async fn listen_prints_an_event_as_one_json_object_with_the_names_of_the_proto() {
    let server = Server::start().await;
    let body = with(
        failed("t1"),
        json!({"error": {"message": "UNSAFE_CONTENT", "details": {"score": 0.9}}}),
    );
    let event_id = post(&server, "veo?team=ads&ref=42", &body).await;
    let ran = server
        .cli("listen --from earliest --count 1 --output json")
        .run()
        .await;
    let event = &server.log_of_events().await[0];
    let received_at = event.received_at.unwrap();
    let received_at = Timestamp::new(received_at.seconds, received_at.nanos)
        .unwrap()
        .to_string();
    assert_eq!(
        ran.json_lines(),
        [json!({
            "event_id": event_id,
            "cursor": event.cursor,
            "product": "veo",
            "task_id": "t1",
            "status": "TASK_STATUS_FAILED",
            "status_text": "failed",
            "terminal": true,
            "outputs": [],
            "error": {"code": "UNSAFE_CONTENT", "message": "UNSAFE_CONTENT", "details": {"score": 0.9}},
            "prompt": "a cat",
            "model": "",
            "seed": 7,
            "created_at": "2025-12-06T21:43:03.374Z",
            "completed_at": "2025-12-06T21:44:06.143Z",
            "received_at": received_at,
            "revision": 1,
            "conflict": false,
            "corrected": false, "truncated": false,
            "product_inferred": false,
            "verification": "VERIFICATION_UNVERIFIED",
            "labels": {"ref": "42", "team": "ads"},
        })]
    );
}

#[tokio::test]
async fn listen_prints_a_line_for_people_and_no_colours_into_a_pipe() {
    let server = Server::start().await;
    post(
        &server,
        "veo",
        &with(completed("t1"), json!({"completed_at": null})),
    )
    .await;
    post(
        &server,
        "veo",
        &with(failed("t1"), json!({"completed_at": null})),
    )
    .await;
    let evil = with(
        failed("t2"),
        json!({"completed_at": null, "error": "stop\u{1b}[31m\nnow"}),
    );
    post(&server, "chatgpt-images", &evil).await;
    server
        .http()
        .post_to(
            "/webhook",
            with(processing("t3"), json!({"completed_at": null})).to_string(),
        )
        .await;
    let now = Timestamp::now().to_string();
    post(
        &server,
        "veo",
        &with(completed("t4"), json!({"completed_at": now})),
    )
    .await;
    let ran = server.cli("listen --from earliest --count 5").run().await;
    let (clocks, lines): (Vec<_>, Vec<_>) = ran
        .good()
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .unzip();
    for clock in clocks {
        // The date is there only if midnight has passed since.
        let time = clock.rsplit('T').next().unwrap();
        assert_eq!(time.len(), "23:59:59Z".len(), "{clock}");
        assert!(
            time.ends_with('Z') && time[..8].split(':').all(|part| part.parse::<u8>().is_ok()),
            "{clock}"
        );
    }
    assert_eq!(
        lines[..4],
        [
            "veo            t1 completed  https://cdn.runblob.io/videos/t1.mp4",
            "veo            t1 failed     UNSAFE_CONTENT [conflict] [revision 2]",
            "chatgpt-images t2 failed     UNSPECIFIED: stop\\u{1b}[31m\\nnow",
            "veo            t3 processing [product inferred]",
        ]
    );
    let (before, rest) = lines[4].split_once(" +").unwrap();
    let (latency, after) = rest.split_once("s ").unwrap();
    assert!(
        (0.0..60.0).contains(&latency.parse::<f64>().unwrap()),
        "{latency}"
    );
    assert_eq!(
        (before, after),
        (
            "veo            t4 completed ",
            "https://cdn.runblob.io/videos/t4.mp4"
        )
    );
    assert!(
        !ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'),
        "{ran:?}"
    );
}

#[tokio::test]
async fn filters_are_and_between_flags_and_or_within_one() {
    let server = Server::start().await;
    post(&server, "veo?team=ads", &completed("a")).await;
    post(&server, "sora?team=ads&ref=1", &failed("b")).await;
    post(&server, "veo?team=film", &failed("c")).await;
    post(&server, "kling", &processing("d")).await;
    for (flags, expected) in [
        ("", "a b c d"),
        ("--task a --task d", "a d"),
        ("--product veo", "a c"),
        ("--product sora --product kling", "b d"),
        ("--status failed", "b c"),
        ("--status processing --status completed", "a d"),
        ("--label team=ads", "a b"),
        ("--label team=film --label ref=1", "b c"),
        ("--product veo --status failed", "c"),
        ("--task a --task b --label team=ads --status failed", "b"),
        ("--product sora --status completed", ""),
    ] {
        let expected: Vec<_> = expected.split_whitespace().collect();
        let events = server
            .cli(&format!("events --output json {flags}"))
            .run()
            .await;
        assert_eq!(events.each("task_id"), expected, "events {flags}");
        if !expected.is_empty() {
            let line = format!(
                "listen --from earliest --output json --count {} {flags}",
                expected.len()
            );
            assert_eq!(
                server.cli(&line).run().await.each("task_id"),
                expected,
                "listen {flags}"
            );
        }
    }
}

#[tokio::test]
async fn listen_begins_where_from_says() {
    let server = Server::start().await;
    for task in ["t1", "t2", "t3"] {
        post(&server, "veo", &completed(task)).await;
    }
    let log = server.log_of_events().await;
    let received_at = log[1].received_at.unwrap();
    let time = Timestamp::new(received_at.seconds, received_at.nanos).unwrap();
    for (from, expected) in [
        ("earliest".to_owned(), vec!["t1", "t2", "t3"]),
        ("2h".to_owned(), vec!["t1", "t2", "t3"]),
        (time.to_string(), vec!["t2", "t3"]),
        (log[1].cursor.clone(), vec!["t3"]),
    ] {
        let line = format!(
            "listen --from {from} --output json --count {}",
            expected.len()
        );
        assert_eq!(
            server.cli(&line).run().await.each("task_id"),
            expected,
            "--from {from}"
        );
    }
    // Without --from: what is retained of named tasks, and only what is new of anything else.
    assert_eq!(
        server
            .cli("listen --task t2 --count 1 --output json")
            .run()
            .await
            .each("task_id"),
        ["t2"]
    );
    for line in [
        "listen --output json --count 1",
        "listen --from latest --output json --count 1",
    ] {
        let listen = server.cli(line).start();
        listen.says("caught up at ").await;
        post(&server, "veo", &completed(&format!("new-{}", line.len()))).await;
        assert_eq!(
            listen.ended().await.each("task_id"),
            [format!("new-{}", line.len())]
        );
    }
}

#[tokio::test]
async fn listen_until_terminal_ends_when_each_task_is_over() {
    let server = Server::start().await;
    post(&server, "veo", &completed("a")).await;
    let listen = server
        .cli("listen --task a --task b --until-terminal --output json")
        .start();
    listen.prints_lines(1).await;
    post(&server, "veo", &processing("b")).await;
    listen.prints_lines(2).await;
    post(&server, "veo", &failed("b")).await;
    let ran = listen.ended().await;
    assert_eq!(
        ran.each("status"),
        [
            "TASK_STATUS_COMPLETED",
            "TASK_STATUS_PROCESSING",
            "TASK_STATUS_FAILED"
        ]
    );
    assert_eq!(ran.each("task_id"), ["a", "b", "b"]);
}

#[tokio::test]
async fn listen_goes_on_across_kill_9_and_misses_and_repeats_nothing() {
    let mut server = Server::start().await;
    let everything = server.cli("listen --from earliest --output json").start();
    let latest = server.cli("listen --output json").start();
    let ids = (0..100)
        .map(|number| format!("--task t{}", number * 4))
        .collect::<Vec<_>>()
        .join(" ");
    let some = server
        .cli(&format!("listen {ids} --until-terminal --output json"))
        .start();
    for listen in [&everything, &latest, &some] {
        listen.says("caught up at ").await;
    }
    let callbacks = (0..400).map(|number| {
        VendorCallback::sample(
            "veo",
            &format!("t{number}"),
            SampleStatus::Completed,
            Timestamp::UNIX_EPOCH,
        )
    });
    let plan = Plan {
        spacing: Duration::from_millis(5),
        retry_gaps: vec![Duration::from_millis(500); 4],
        ..Plan::default()
    };
    let deliveries = plan.deliveries(&callbacks.collect::<Vec<_>>());
    let base = format!("http://{}", server.ingest).parse().unwrap();
    let vendor = tokio::spawn(async move { Vendor::new(base, vec![], 16).send(deliveries).await });
    for lines in [50, 200] {
        everything.prints_lines(lines).await;
        server.crash().await;
    }
    let acknowledged = within("the vendor", vendor).await.unwrap();
    let log: Vec<_> = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    assert_eq!(log.len(), 400, "four retries outlast both restarts");
    everything.prints_lines(400).await;
    latest.prints_lines(400).await;
    let some = some.ended().await;
    assert_eq!(some.json_lines().len(), 100);
    let said = everything.stderr();
    let told = said
        .lines()
        .find_map(|line| line.split_once("; connecting again in 0."))
        .unwrap();
    assert!(
        told.0
            .starts_with(&format!("the connection to http://{} broke: ", server.grpc)),
        "{said}"
    );
    let cursor = told.1.split_once(" s from ").unwrap().1;
    assert!(
        log.iter().any(|event| event.cursor == cursor),
        "it does not go on behind an event: {said}"
    );

    let task_ids = (0..100).map(|number| format!("t{}", number * 4)).collect();
    let streams = vec![
        Stream {
            task_ids: None,
            observed: observed(&everything.json_lines()),
        },
        Stream {
            task_ids: None,
            observed: observed(&latest.json_lines()),
        },
        Stream {
            task_ids: Some(task_ids),
            observed: observed(&some.json_lines()),
        },
    ];
    assert_eq!(streams[0].observed, log);
    assert_eq!(streams[1].observed, log);
    let acknowledged = acknowledged
        .into_iter()
        .map(|one| blobcast::checker::Acknowledged {
            event_id: one.event_id.unwrap(),
            task_id: one.task_id,
        });
    assert_eq!(
        check(&History {
            acknowledged: acknowledged.collect(),
            log,
            streams,
            ..History::default()
        }),
        []
    );
}

fn observed(lines: &[Value]) -> Vec<Observed> {
    lines
        .iter()
        .map(|line| serde_json::from_value(line.clone()).unwrap())
        .collect()
}

#[tokio::test]
async fn listen_says_that_the_broker_is_going_away_and_goes_on_behind_it() {
    let mut server = Server::start().await;
    let listen = server.cli("listen --output json").start();
    listen.says("caught up at ").await;
    post(&server, "veo", &completed("t1")).await;
    listen.prints_lines(1).await;
    assert!(server.terminate().await.success());
    let cursor = listen.json_lines()[0]["cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    listen.says(&format!("from {cursor}")).await;
    assert!(
        listen
            .stderr()
            .contains("the broker is going away; connecting again in "),
        "{}",
        listen.stderr()
    );
    server.restart().await;
    post(&server, "veo", &completed("t2")).await;
    listen.prints_lines(2).await;
    assert_eq!(listen.json_lines()[1]["task_id"], "t2");
}

#[tokio::test]
async fn listen_interrupted_tells_where_to_continue() {
    let server = Server::start().await;
    post(&server, "veo", &completed("t1")).await;
    let listen = server.cli("listen --from earliest --output json").start();
    listen.says("caught up at ").await;
    listen.signal(Signal::INT);
    let ran = listen.ended().await;
    let cursor = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["cursor"].clone())
        .next();
    let cursor = cursor.unwrap().as_str().unwrap().to_owned();
    assert!(
        ran.exited(130)
            .ends_with(&format!("continue with --from {cursor}\n")),
        "{}",
        ran.stderr
    );
    post(&server, "veo", &completed("t2")).await;
    let on = server
        .cli(&format!("listen --from {cursor} --count 1 --output json"))
        .run()
        .await;
    assert_eq!(on.each("task_id"), ["t2"]);
}

#[tokio::test]
async fn listen_ends_with_what_to_do_where_trying_again_cannot_help() {
    let server = Server::start().await;
    post(&server, "veo", &completed("t1")).await;
    let cursor = server.log_of_events().await[0].cursor.clone();
    let mut of_another_log = blobcast::event::Cursor::parse(&cursor).unwrap();
    of_another_log.epoch = blobcast::event::Epoch(of_another_log.epoch.0 ^ 1);
    let ran = server
        .cli(&format!("listen --from {of_another_log}"))
        .run()
        .await;
    let said = ran.exited(1);
    assert!(
        said.starts_with("error: FAILED_PRECONDITION EPOCH_MISMATCH: "),
        "{said}"
    );
    assert!(said.contains("--from earliest"), "{said}");
}

#[tokio::test]
async fn a_command_line_that_makes_no_sense_exits_with_2_and_names_the_flag() {
    for (line, named) in [
        ("listen --until-terminal", "--until-terminal needs --task"),
        ("listen --include-raw", "--include-raw needs --output json"),
        ("listen --count 0", "--count <N>"),
        (
            "listen --from soon",
            "neither latest, earliest, a duration (2h)",
        ),
        ("listen --status finished", "[possible values: "),
        ("listen --label team", "not of the form key=value"),
        (
            "listen --label a=1 --label a=2",
            "--label a=… is given twice",
        ),
        (
            "listen --grpc-url ftp://example.com",
            "not an http:// or https:// URL",
        ),
        ("wait", "<TASK_ID>"),
        ("wait t1 --timeout soon", "write it like 10m"),
        ("trigger --product Not/A/Slug", "--product <PRODUCT>"),
        (
            "trigger --shape not-json --set a=1",
            "--set needs a whole body",
        ),
        ("trigger --body x --status failed", "cannot be used with"),
        ("trigger --rate 0", "not a number of callbacks per second"),
        (
            "events --since yesterday",
            "neither a duration (2h, 30m) nor a time",
        ),
        ("quarantine discard", "<QUARANTINE_ID>"),
        (
            "token new callback old --expires-in 0s",
            "--expires-in is at least 1s",
        ),
        (
            "token new callback old --expires-in 999ms",
            "--expires-in is at least 1s",
        ),
        ("completions tcsh", "[possible values: "),
        ("", "Usage: blobcast"),
    ] {
        let ran = Cli::new(line).run().await;
        assert!(
            ran.exited(2).contains(named),
            "`{line}` does not say `{named}`: {}",
            ran.stderr
        );
        assert_eq!(ran.stdout, "", "{line}");
    }
}

// --- token new ---

#[tokio::test]
async fn printed_lines_can_be_added_below_one_header_and_each_has_a_next_step() {
    let mut clients = "[clients]\n".to_owned();
    for (words, section, next_step) in [
        ("client billing --all-products", "[clients]", "--token-file"),
        ("client ads --product veo", "[clients]", "--token-file"),
        (
            "callback runblob",
            "[callback_tokens]",
            "/webhook/PRODUCT?token=",
        ),
        ("signing-key k1", "[signing_keys]", "`blobcast url`"),
    ] {
        let ran = Cli::new(&format!("token new {words}")).run().await;
        let printed = ran.good();
        assert!(
            printed.contains(&format!("below its header {section}"))
                && printed.contains("Next: ")
                && printed.contains(next_step),
            "{printed}"
        );
        // The header is not on a line of its own: appended twice, it would be a duplicate.
        assert!(!printed.lines().any(|line| line.trim() == section));
        let line = printed.lines().find(|line| line.contains(" = { ")).unwrap();
        if section == "[clients]" {
            clients.push_str(line);
            clients.push('\n');
        }
    }

    assert!(
        blobcast::credentials::Credentials::parse(&clients).is_ok(),
        "{clients}"
    );
}

// --- wait ---

#[tokio::test]
async fn wait_prints_the_result_urls_of_a_task_whether_it_ended_before_or_after() {
    let server = Server::start().await;
    let outputs = json!({"video_urls": ["https://x/1.mp4", "https://x/2.mp4"], "last_frame_url": "https://x/l.png"});
    let body =
        |task: &str| json!({"task_uuid": task, "status": "completed", "output": outputs.clone()});
    post(&server, "seedance", &body("before")).await;
    let ran = server.cli("wait before").run().await;
    let urls = "https://x/1.mp4\nhttps://x/2.mp4\nhttps://x/l.png\n";
    assert_eq!(
        (ran.good(), ran.stderr.as_str()),
        (urls, "product: seedance\n"),
        "it says of which product they are"
    );
    let ran = server.cli("wait before --product seedance").run().await;
    assert_eq!((ran.good(), ran.stderr.as_str()), (urls, ""));
    assert_eq!(
        server
            .cli("wait before --product sora --timeout 10ms")
            .run()
            .await
            .code,
        Some(124)
    );
    post(&server, "veo", &processing("after")).await;
    let wait = server.cli("wait after --output json").start();
    until("the wait", || async {
        !server.subscriptions().await.is_empty()
    })
    .await;
    post(&server, "seedance", &body("after")).await;
    let ran = wait.ended().await;
    assert_eq!(ran.each("status"), ["TASK_STATUS_COMPLETED"]);
    assert_eq!(
        ran.json_lines()[0]["outputs"][1],
        json!({"kind": "OUTPUT_KIND_VIDEO", "url": "https://x/2.mp4"})
    );
}

#[tokio::test]
async fn wait_exits_with_10_and_the_reason_if_the_task_failed() {
    let server = Server::start().await;
    post(&server, "veo", &failed("t1")).await;
    let ran = server.cli("wait t1").run().await;
    assert_eq!(
        (ran.exited(10), ran.stdout.as_str()),
        ("product: veo\nUNSAFE_CONTENT\n", "")
    );
    let ran = server.cli("wait t1 --output json").run().await;
    ran.exited(10);
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["error"]["code"],
        "UNSAFE_CONTENT"
    );
}

#[tokio::test]
async fn wait_exits_with_124_and_what_is_known_if_the_task_is_not_over_in_time() {
    let server = Server::start().await;
    let ran = server.cli("wait t1 --timeout 50ms").run().await;
    assert_eq!(
        (ran.exited(124), ran.stdout.as_str()),
        ("not over after 50ms; no event of this task yet\n", "")
    );
    post(&server, "veo", &processing("t1")).await;
    let ran = server.cli("wait t1 --timeout 0s").run().await;
    assert_eq!(
        ran.exited(124),
        "not over after 0s; latest status: processing (veo)\n"
    );
}

#[tokio::test]
async fn wait_goes_on_across_a_restart_of_the_broker() {
    let mut server = Server::start().await;
    let wait = server.cli("wait t1").start();
    until("the wait", || async {
        !server.subscriptions().await.is_empty()
    })
    .await;
    server.kill();
    wait.says("trying again in ").await;
    server.restart().await;
    post(&server, "veo", &completed("t1")).await;
    assert_eq!(
        wait.ended().await.good(),
        "https://cdn.runblob.io/videos/t1.mp4\n"
    );
}

#[tokio::test]
async fn wait_exits_with_1_where_no_broker_of_ours_answers() {
    // A gRPC server, but of something else.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming(incoming),
    );
    let ran = Cli::new(&format!("wait t1 --grpc-url http://{address}"))
        .run()
        .await;
    let last = ran.exited(1).lines().last().unwrap();
    assert!(
        last.starts_with("error: UNIMPLEMENTED") && last.contains("see --grpc-url"),
        "{ran:?}"
    );
}

// --- trigger ---

/// What the event of a product's sample says: kinds of the outputs, and the codes of `failed`, `timeout`, and
/// `moderation_blocked`, from VENDOR.md.
fn expectations(product: &str) -> (&'static [OutputKind], [&'static str; 3]) {
    use OutputKind::{Image, Video};
    match product {
        "veo" => (
            &[Video],
            ["UNSAFE_CONTENT", "TIMEOUT", "MODERATION_BLOCKED"],
        ),
        "kling" => (&[Video], ["UNSPECIFIED", "TIMEOUT", "MODERATION_BLOCKED"]),
        "kling-o1-video" | "kling-o3-video" => (
            &[Video],
            ["CONTENT_POLICY_VIOLATION", "TIMEOUT", "MODERATION_BLOCKED"],
        ),
        "kling-o1-photo" | "kling-o3-photo" => (
            &[Image],
            ["CONTENT_POLICY_VIOLATION", "TIMEOUT", "MODERATION_BLOCKED"],
        ),
        "gemini" | "chatgpt-images" => (
            &[Image],
            ["MODERATION_FAILED", "TIMEOUT", "MODERATION_BLOCKED"],
        ),
        "sora" => (&[Video], ["UNSPECIFIED", "TIMEOUT", "MODERATION_BLOCKED"]),
        "seedance" => (
            &[Video, Image],
            ["GENERATION_FAILED", "TIMEOUT", "MODERATION_BLOCKED"],
        ),
        "a-product-of-tomorrow" => (
            &[Video],
            ["GENERATION_FAILED", "TIMEOUT", "MODERATION_BLOCKED"],
        ),
        other => panic!("{other} has no expectations"),
    }
}

#[tokio::test]
async fn trigger_sends_every_product_in_every_status_as_the_event_it_should_be() {
    let server = Server::start().await;
    for product in PRODUCTS.into_iter().chain(["a-product-of-tomorrow"]) {
        for status in SampleStatus::ALL {
            let (status, expected) = (status.as_str(), status.task_status());
            let task = format!("{product}-{status}");
            let line = format!("trigger --product {product} --status {status} --task-id {task}");
            let ran = server.cli(&line).run().await;
            let events = server.cli(&format!("get {task} --output json")).run().await;
            let [event] = &events.json_lines()[..] else {
                panic!("{events:?}")
            };
            let answer =
                json!({"status": "received", "event_id": event["event_id"], "duplicate": false});
            let answered = ran
                .good()
                .strip_prefix(&format!("{task} 200 "))
                .unwrap_or_else(|| panic!("{ran:?}"));
            assert_eq!(serde_json::from_str::<Value>(answered).unwrap(), answer);
            assert_event(event, product, status, expected.as_str());
        }
    }
}

fn assert_event(event: &Value, product: &str, status: &str, expected: &str) {
    let (kinds, codes) = expectations(product);
    assert_eq!(
        (&event["product"], &event["product_inferred"]),
        (&json!(product), &json!(false))
    );
    assert_eq!(
        event["status"],
        format!("TASK_STATUS_{}", expected.to_uppercase()),
        "{event}"
    );
    assert_eq!(
        event["terminal"],
        matches!(expected, "completed" | "failed"),
        "{event}"
    );
    let outputs: Vec<_> = event["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|output| output["kind"].clone())
        .collect();
    let kinds: &[OutputKind] = if expected == "completed" { kinds } else { &[] };
    assert_eq!(
        outputs,
        kinds
            .iter()
            .map(|kind| json!(kind.as_str_name()))
            .collect::<Vec<_>>(),
        "{event}"
    );
    let code = match status {
        "failed" => Some(codes[0]),
        "timeout" => Some(codes[1]),
        "moderation-blocked" => Some(codes[2]),
        _ => None,
    };
    assert_eq!(
        event
            .get("error")
            .map(|error| error["code"].as_str().unwrap()),
        code,
        "{event}"
    );
}

#[tokio::test]
async fn trigger_sends_the_old_hosts_shape() {
    let server = Server::start().await;
    for (status, expected) in [
        ("completed", "TASK_STATUS_COMPLETED"),
        ("failed", "TASK_STATUS_FAILED"),
    ] {
        server
            .cli(&format!(
                "trigger --shape legacy --status {status} --task-id {status}"
            ))
            .run()
            .await
            .good();
        let ran = server
            .cli(&format!("get {status} --output json --include-raw"))
            .run()
            .await;
        let event = &ran.json_lines()[0];
        assert_eq!(event["status"], expected);
        let body: Value = serde_json::from_str(event["raw_body"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&body["task_id"], &body["success"]),
            (&json!(status), &json!(status == "completed"))
        );
    }
}

#[tokio::test]
async fn trigger_sends_every_broken_shape_into_quarantine() {
    let server = Server::start().await;
    for kind in Broken::ALL {
        let reason = kind.unreadable().reason();
        let ran = server
            .cli(&format!("trigger --shape {} --task-id t1", kind.as_str()))
            .run()
            .await;
        let answer = json!({"status": "quarantined", "reason": reason});
        let answered = ran.good().strip_prefix("t1 202 ").unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(answered).unwrap(),
            answer,
            "{}",
            kind.as_str()
        );
    }
    let listed = server.cli("quarantine list --output json").run().await;
    assert_eq!(
        listed.each("reason"),
        Broken::ALL.map(|kind| kind.unreadable().reason())
    );
    assert_eq!(server.log_of_events().await, []);
}

#[tokio::test]
async fn trigger_sets_fields_adds_labels_and_sends_any_body() {
    let server = Server::start().await;
    let trigger =
        server.cli("trigger --product seedance --task-id t1 --label team=ads --label ref=42");
    let trigger = trigger
        .arg("--set")
        .arg("output.last_frame_url=null")
        .arg("--set")
        .arg("seed=99");
    trigger
        .arg("--set")
        .arg("prompt=two words")
        .run()
        .await
        .good();
    let ran = server.cli("get t1 --output json").run().await;
    let event = &ran.json_lines()[0];
    assert_eq!(event["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&event["seed"], &event["prompt"]),
        (&json!(99), &json!("two words"))
    );
    assert_eq!(event["labels"], json!({"team": "ads", "ref": "42"}));

    let directory = tempfile::tempdir().unwrap();
    let (file, body) = (
        directory.path().join("callback.json"),
        format!("{}\n", completed("t2")),
    );
    std::fs::write(&file, &body).unwrap();
    let ran = server.cli("trigger --body").arg(&file).run().await;
    assert!(ran.good().starts_with("t2 200 "), "{ran:?}");
    let ran = server.cli("get t2 --output json --include-raw").run().await;
    assert_eq!(ran.each("raw_body"), [body]);

    let ran = server
        .cli("trigger --product sora --body -")
        .stdin("nonsense")
        .run()
        .await;
    assert!(ran.good().starts_with("- 202 "), "{ran:?}");
    let ran = server.cli("trigger --body /no/such/file").run().await;
    assert!(
        ran.exited(1).starts_with(
            "error: cannot read --body /no/such/file: No such file or directory (os error 2); correct the path"
        ),
        "{ran:?}"
    );
}

#[tokio::test]
async fn trigger_repeats_and_spaces_callbacks() {
    let server = Server::start().await;
    let started = Instant::now();
    let ran = server
        .cli("trigger --count 5 --rate 20 --duplicate 1")
        .run()
        .await;
    // Ten callbacks have nine gaps of 50 ms.
    assert!(
        started.elapsed() >= Duration::from_millis(450),
        "{:?}",
        started.elapsed()
    );
    let answers: Vec<_> = ran
        .good()
        .lines()
        .map(|line| line.split_once(" 200 ").unwrap())
        .collect();
    let answers: Vec<(&str, Value)> = answers
        .into_iter()
        .map(|(task, answer)| (task, serde_json::from_str(answer).unwrap()))
        .collect();
    assert_eq!(answers.len(), 10);
    assert_eq!(
        answers
            .iter()
            .filter(|(_, answer)| answer["duplicate"] == true)
            .count(),
        5
    );
    let mut tasks: Vec<_> = server
        .log_of_events()
        .await
        .into_iter()
        .map(|event| event.task_id)
        .collect();
    tasks.dedup();
    assert_eq!(tasks.len(), 5);
    assert!(
        tasks
            .iter()
            .all(|task| answers.iter().filter(|(of, _)| of == task).count() == 2)
    );
}

#[tokio::test]
async fn trigger_exits_with_1_unless_everything_was_taken_and_tries_again_if_asked() {
    let nowhere = free_address();
    let ran = Cli::new(&format!(
        "trigger --task-id t1 --ingest-url http://{nowhere}"
    ))
    .run()
    .await;
    let said = ran.exited(1);
    assert!(
        said.contains("is `blobcast serve` running? use --ingest-url"),
        "{ran:?}"
    );

    let endpoint = Endpoint::answering(&[503, 500]);
    endpoint.open(nowhere).await;
    let line = format!("trigger --task-id t1 --ingest-url http://{nowhere}/hook");
    let ran = Cli::new(&line).run().await;
    ran.exited(1);
    assert!(ran.stdout.starts_with("t1 503"), "{ran:?}");
    let ran = Cli::new(&format!("{line} --retry --retry-interval 1ms"))
        .run()
        .await;
    assert_eq!(ran.good(), "t1 204 (2 attempts)\n");
}

// --- get, events ---

#[tokio::test]
async fn get_prints_a_tasks_history_oldest_first_and_exits_with_1_if_there_is_none() {
    let server = Server::start().await;
    for body in [processing("t1"), completed("t2"), completed("t1")] {
        post(&server, "veo", &body).await;
    }
    let ran = server.cli("get t1 --output json").run().await;
    assert_eq!(
        ran.each("status"),
        ["TASK_STATUS_PROCESSING", "TASK_STATUS_COMPLETED"]
    );
    assert_eq!(ran.json_lines()[1]["revision"], 2);
    assert_eq!(server.cli("get t1").run().await.good().lines().count(), 2);
    let ran = server.cli("get t3").run().await;
    let said = ran.exited(1);
    assert!(
        said.starts_with("error: NOT_FOUND") && said.contains("`blobcast wait`"),
        "{said}"
    );
}

#[tokio::test]
async fn events_pages_limits_orders_and_cuts_by_time() {
    let server = Server::start().await;
    server
        .cli("trigger --count 600 --rate 10000")
        .run()
        .await
        .good();
    // One after the other, so that the order of their arrival is that of the log.
    server.cli("trigger --count 20").run().await.good();
    let log: Vec<_> = server.log_of_events().await;
    let ids = |events: &[Event]| {
        events
            .iter()
            .map(|event| event.event_id.clone())
            .collect::<Vec<_>>()
    };
    let all = server.cli("events --output json").run().await;
    assert_eq!(all.each("event_id"), ids(&log));
    let newest = server
        .cli("events --order newest --limit 300 --output json")
        .run()
        .await;
    let mut reversed = log.clone();
    reversed.reverse();
    assert_eq!(newest.each("event_id"), ids(&reversed[..300]));
    let time = |event: &Event| {
        let at = event.received_at.unwrap();
        Timestamp::new(at.seconds, at.nanos).unwrap()
    };
    let (since, until) = (time(&log[605]), time(&log[615]));
    let some = server
        .cli(&format!(
            "events --since {since} --until {until} --output json"
        ))
        .run()
        .await;
    assert_eq!(some.each("event_id"), ids(&log[605..615]));
    assert_eq!(server.cli("events --until 1h").run().await.good(), "");
}

// --- quarantine ---

#[tokio::test]
async fn quarantine_shows_releases_and_discards_what_was_not_understood() {
    let server = Server::start().await;
    let ran = server.cli("quarantine list").run().await;
    assert_eq!(
        (ran.good(), ran.stderr.as_str()),
        ("", "the quarantine is empty\n")
    );
    let body = json!({"status": "completed", "video_url": "https://x/1.mp4"}).to_string();
    server
        .http()
        .post_to("/webhook/veo?team=ads", body.clone())
        .await;
    server.http().post_to("/webhook/sora", "<html>\u{7}").await;
    server
        .http()
        .post_to("/webhook/NOT-A-SLUG", completed("t3").to_string())
        .await;

    let listed = server.cli("quarantine list --output json").run().await;
    let ids = listed.each("quarantine_id");
    assert_eq!(
        listed.each("reason"),
        ["no_task_id", "not_json", "bad_product"]
    );
    assert_eq!(
        listed.each("target"),
        [
            "/webhook/veo?team=ads",
            "/webhook/sora",
            "/webhook/NOT-A-SLUG"
        ]
    );
    let table = server.cli("quarantine list").run().await;
    let rows: Vec<Vec<_>> = table
        .good()
        .lines()
        .map(|line| line.split_whitespace().take(5).collect())
        .collect();
    assert_eq!(rows[0], ["ID", "RECEIVED", "REASON", "BYTES", "TARGET"]);
    assert_eq!(
        (rows[2][0], &rows[2][2..]),
        (ids[1].as_str(), &["not_json", "7", "/webhook/sora"][..])
    );

    let shown = server
        .cli(&format!("quarantine show {}", ids[1]))
        .run()
        .await;
    assert!(shown.good().ends_with("\n<html>\\u{7}\n"), "{shown:?}");
    let shown = server
        .cli(&format!("quarantine show {} --output body", ids[0]))
        .run()
        .await;
    assert_eq!(shown.good(), body);
    let shown = server
        .cli(&format!("quarantine show {} --output json", ids[0]))
        .run()
        .await;
    assert_eq!(shown.each("raw_body"), [body]);
    let ran = server.cli("quarantine show 424242").run().await;
    assert!(
        ran.exited(1)
            .contains("`blobcast quarantine list` shows what is"),
        "{ran:?}"
    );

    // What is wrong is still wrong, until it is corrected.
    let ran = server
        .cli(&format!("quarantine release {}", ids[0]))
        .run()
        .await;
    assert!(
        ran.exited(1)
            .contains("release it with its `task_id` (--task-id)"),
        "{ran:?}"
    );
    let ran = server
        .cli(&format!("quarantine release {} --task-id t1", ids[0]))
        .run()
        .await;
    let event_id = ran.good().trim_end().to_owned();
    let got = server.cli("get t1 --output json").run().await;
    assert_eq!(got.each("event_id"), [event_id]);
    assert_eq!(got.json_lines()[0]["labels"], json!({"team": "ads"}));
    server
        .cli(&format!("quarantine release {} --product kling", ids[2]))
        .run()
        .await
        .good();
    assert_eq!(
        server
            .cli("get t3 --output json")
            .run()
            .await
            .each("product"),
        ["kling"]
    );
    let ran = server
        .cli(&format!("quarantine release {} --task-id t1", ids[0]))
        .run()
        .await;
    assert!(
        ran.exited(1)
            .contains("`blobcast quarantine list` shows what there is"),
        "{ran:?}"
    );

    // A body that nobody can read is repaired, and stays what the event came from.
    let repaired = tempfile::NamedTempFile::new().unwrap();
    let release = |flags: &str| {
        server
            .cli(&format!("quarantine release {} {flags} --body", ids[1]))
            .arg(repaired.path())
            .run()
    };
    let ran = release("").await;
    assert!(ran.exited(1).contains("--body is empty"), "{ran:?}");
    std::fs::write(
        repaired.path(),
        r#"[{"id": "t4"}, {"id": "t5", "video_url": "https://x/5.mp4"}]"#,
    )
    .unwrap();
    let ran = release("").await;
    assert!(
        ran.exited(1).contains("element 0 of the body: no status"),
        "{ran:?}"
    );
    release("--status whatever").await.exited(2);
    let ran = release("--status rejected").await;
    let event_ids: Vec<_> = ran.good().lines().map(str::to_owned).collect();
    for (task, event_id) in ["t4", "t5"].iter().zip(event_ids) {
        let got = server
            .cli(&format!("get {task} --include-raw --output json"))
            .run()
            .await;
        assert_eq!(got.each("event_id"), [event_id]);
        assert_eq!(
            (got.each("raw_body"), got.each("status_text")),
            (vec!["<html>\u{7}".to_owned()], vec!["rejected".to_owned()])
        );
        assert_eq!(got.json_lines()[0]["corrected"], true);
        let pretty = server.cli(&format!("get {task}")).run().await;
        assert!(pretty.good().contains("corrected"), "{pretty:?}");
    }

    server.http().post_to("/webhook/sora", "{").await;
    let ids = [
        ids[0].clone(),
        server
            .cli("quarantine list --output json")
            .run()
            .await
            .each("quarantine_id")
            .remove(0),
    ];
    let ran = server
        .cli(&format!("quarantine discard {} 424242", ids[1]))
        .run()
        .await;
    ran.exited(1);
    assert_eq!(ran.stdout, "1 of 2 discarded\n");
    assert!(
        ran.stderr.contains("the others are not in quarantine")
            && ran.stderr.contains("`blobcast quarantine list`"),
        "{ran:?}"
    );
    assert_eq!(server.cli("quarantine list").run().await.good(), "");
}

// --- subscriptions, healthcheck, completions, man ---

#[tokio::test]
async fn subscriptions_tells_who_listens_to_what_and_how_far_behind() {
    let server = Server::start().await;
    let ran = server.cli("subscriptions").run().await;
    assert_eq!(
        (ran.good(), ran.stderr.as_str()),
        ("", "no subscription is open\n")
    );
    let one = server
        .cli("listen --product veo --status failed --name")
        .arg("the dashboard")
        .start();
    one.says("caught up at ").await;
    let two = server.cli("listen --task t1 --task t2").start();
    two.says("caught up at ").await;
    post(&server, "veo", &failed("t9")).await;
    one.prints_lines(1).await;
    until("both are live", || async {
        server
            .subscriptions()
            .await
            .iter()
            .all(|one| one.state() == SubscriptionState::Live && one.lag == 0)
    })
    .await;
    let lines = server
        .cli("subscriptions --output json")
        .run()
        .await
        .json_lines();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["client_name"], "the dashboard");
    assert_eq!(lines[0]["state"], "SUBSCRIPTION_STATE_LIVE");
    assert_eq!(
        (&lines[0]["lag"], &lines[0]["delivered_count"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(
        lines[0]["filter"]["statuses"],
        json!(["TASK_STATUS_FAILED"])
    );
    let task_ids = lines[1]["filter"]["task_ids"].as_array().unwrap();
    assert!(
        task_ids.len() == 2 && task_ids.contains(&json!("t1")) && task_ids.contains(&json!("t2")),
        "{task_ids:?}"
    );
    assert_eq!(lines[0]["cursor"], server.log_of_events().await[0].cursor);
    let table = server.cli("subscriptions").run().await;
    let rows: Vec<_> = table.good().lines().collect();
    assert!(
        rows[0].starts_with("ID ") && rows[0].ends_with("  FILTER"),
        "{table:?}"
    );
    assert!(
        rows[1].ends_with("  products=veo statuses=failed"),
        "{table:?}"
    );
    assert!(
        rows[2].contains("  blobcast listen  ") && rows[2].ends_with("  tasks=2 ids"),
        "{table:?}"
    );
    // Columns line up.
    let column = rows[0].find("FILTER").unwrap();
    assert_eq!(rows[1].find("products="), Some(column));
    drop((one, two));
    until("both are gone", || async {
        server.subscriptions().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn cluster_status_of_a_broker_that_is_alone_says_so_and_what_to_do() {
    let server = Server::start().await;
    for line in ["cluster status", "cluster status --output json"] {
        let ran = server.cli(line).run().await;
        let said = ran.exited(1);
        for part in [
            "is alone",
            "--grpc-url",
            "serve --cluster",
            "docs/cluster.md",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(ran.stdout, "");
    }
    assert_eq!(server.log_info().await.cluster, None);
}

#[tokio::test]
async fn healthcheck_says_ready_or_why_not() {
    let mut server = Server::start().await;
    assert_eq!(server.cli("healthcheck").run().await.good(), "ready\n");
    server.kill();
    let ran = server.cli("healthcheck --timeout 2s").run().await;
    let said = ran.exited(1);
    assert!(
        said.contains("is `blobcast serve` running? use --admin-url"),
        "{said}"
    );
    let ran = Cli::new("healthcheck --admin-url ftp://127.0.0.1:1")
        .run()
        .await;
    assert!(
        ran.exited(2).contains("not an http:// or https:// URL"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn completions_are_there_for_every_shell_and_bash_takes_them() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = Cli::new(&format!("completions {shell}")).run().await;
        assert!(ran.good().contains("forward-to"), "{shell}");
    }
    let script = Cli::new("completions bash").run().await.stdout;
    // Completes `blobcast lis` as a shell would.
    let try_it = "COMP_WORDS=(blobcast lis); COMP_CWORD=1; _blobcast blobcast lis blobcast; echo \"${COMPREPLY[*]}\"";
    match std::process::Command::new("bash")
        .arg("-c")
        .arg(format!("{script}\n{try_it}"))
        .output()
    {
        Ok(done) => assert_eq!(
            String::from_utf8_lossy(&done.stdout).trim(),
            "listen",
            "{done:?}"
        ),
        Err(error) => eprintln!("skipped: no bash: {error}"),
    }
}

#[tokio::test]
async fn man_writes_a_page_for_each_command() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("share/man/man1");
    let ran = Cli::new("man").arg(&pages).run().await;
    assert_eq!(
        (ran.good(), ran.stderr.contains(" man pages are in ")),
        ("", true),
        "{ran:?}"
    );

    let read = |name: &str| {
        std::fs::read_to_string(pages.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let (all, listen, new) = (
        read("blobcast.1"),
        read("blobcast-listen.1"),
        read("blobcast-token-new-client.1"),
    );
    for section in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "SUBCOMMANDS",
        "\"EXIT STATUS\"",
        "ENVIRONMENT",
        "FILES",
    ] {
        assert!(
            all.contains(&format!("\n.SH {section}\n")),
            "blobcast.1 has no {section}: {all}"
        );
    }
    assert!(
        listen.contains(r"\fB\-\-forward\-to\fR") && listen.contains("\n.SH EXAMPLES\n.EX\n"),
        "{listen}"
    );
    assert!(new.contains(r"\fBblobcast\-token\-new\fR(1)"), "{new}");

    // Again, over those that are there; and where nothing can be made.
    Cli::new("man").arg(&pages).run().await.good();
    let ran = Cli::new("man").arg(pages.join("blobcast.1")).run().await;
    assert!(
        ran.exited(1)
            .contains("blobcast.1: name a directory of yours: "),
        "{ran:?}"
    );
}

// --- everything ---

#[tokio::test]
async fn a_reader_who_has_had_enough_is_no_error() {
    let server = Server::start().await;
    server
        .cli("trigger --count 300 --rate 10000")
        .run()
        .await
        .good();
    server.http().post_to("/webhook/veo", "not json").await;
    for line in [
        "listen --from earliest",
        "listen --from earliest --output json",
        "events",
        "quarantine list",
        "trigger --count 100",
        "completions zsh",
        "check-config",
        "check-config --print-default",
    ] {
        // Closed before or while it writes; what is written after that fails.
        for bytes in [0, 1] {
            let mut running: Running = server.cli(line).start_with_stdout_closed_after(bytes);
            // What it wrote before the reader left may have fitted into the pipe, so there is more to write.
            let more = async {
                for number in 0.. {
                    post(
                        &server,
                        "veo",
                        &completed(&format!("{line}-{bytes}-{number}").replace(' ', "_")),
                    )
                    .await;
                }
            };
            let status = tokio::select! {
                status = running.status() => status,
                () = more => unreachable!("there is always more"),
            };
            assert_eq!(
                (status.code(), running.stderr().contains("error")),
                (Some(0), false),
                "{line}: {running:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_address_without_a_broker_is_named_with_the_next_step() {
    let nowhere = free_address();
    for line in [
        "get t1",
        "events",
        "overview",
        "refusals",
        "subscriptions",
        "configuration",
        "credentials",
        "cluster status",
        "quarantine list",
        "quarantine discard 1",
    ] {
        let ran = Cli::new(&format!("{line} --grpc-url {nowhere}"))
            .run()
            .await;
        let said = ran.exited(1);
        assert!(
            said.starts_with(&format!("error: cannot reach http://{nowhere}: ")),
            "{line}: {said}"
        );
        assert!(said.contains("refused"), "{line}: {said}");
        assert!(
            said.ends_with("is `blobcast serve` running? use --grpc-url\n"),
            "{line}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // These wait for it to come.
    let listen = Cli::new(&format!("listen --grpc-url {nowhere}")).start();
    listen
        .says("is `blobcast serve` running? use --grpc-url; connecting again in ")
        .await;
    let ran = Cli::new(&format!("wait t1 --timeout 10ms --grpc-url {nowhere}"))
        .run()
        .await;
    assert!(
        ran.exited(1)
            .contains("is `blobcast serve` running? use --grpc-url; trying again in "),
        "{ran:?}"
    );
    let last = ran.stderr.lines().last().unwrap();
    assert!(
        last.starts_with(&format!(
            "error: no broker has answered within 10ms: cannot reach http://{nowhere}"
        )),
        "{last}"
    );
}

#[tokio::test]
async fn every_verb_has_help_with_what_it_is_for() {
    let verbs = "serve check-config size listen wait trigger get events overview refusals quarantine subscriptions configuration credentials cluster url token backup \
                 restore healthcheck completions man";
    let all = Cli::new("--help").run().await;
    for verb in verbs.split(' ') {
        assert!(
            all.good().contains(&format!("\n  {verb} ")),
            "{verb} is not in the help"
        );
        let short = Cli::new(&format!("{verb} -h")).run().await;
        assert!(short.good().contains("Usage: blobcast"), "{verb}");
        let long = Cli::new(&format!("{verb} --help")).run().await;
        let words = |text: &str| text.split_whitespace().count();
        assert!(words(long.good()) >= words(&short.stdout), "{verb}");
        let is_option = ["get", "events", "listen"].contains(&verb);
        assert_eq!(long.stdout.contains("--include-raw"), is_option, "{verb}");
        assert!(
            short.stdout.lines().all(|line| line.chars().count() <= 110),
            "{verb}: {}",
            short.stdout
        );
    }
    let version = Cli::new("--version").run().await;
    assert_eq!(
        version.good(),
        concat!("blobcast ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[tokio::test]
async fn flags_go_before_variables_where_the_broker_is() {
    let (server, other) = (Server::start().await, Server::start().await);
    post(&server, "veo", &completed("t1")).await;
    let ran = other
        .cli(&format!("events --output json --grpc-url {}", server.grpc))
        .run()
        .await;
    assert_eq!(ran.each("task_id"), ["t1"]);
    assert_eq!(other.cli("events --output json").run().await.good(), "");
}

#[tokio::test]
async fn no_complaint_about_the_command_line_repeats_a_password() {
    for line in [
        "listen --grpc-url ftp://user:hunter2@broker",
        "listen --grpc-url=user:hunter2@broker:x",
        "get t1 --grpc-url http://user:hunter2@broker:x",
        "get t1 --grpc-url http://a:1,http://user:hunter2@broker:x",
        "get t1 --grpc-url http://user:hunt,hunter2@a:1,ftp://user:hunter2@b,http://c",
        "healthcheck --admin-url ftp://user:hunter2@broker/",
        "trigger --ingest-url http://user:hun/ter2hunter2@broker?token=hunter2",
        "listen --forward-to ftp://user:hunter2@hook",
        "listen --forward-to user:hunter2@hook:x",
        "listen http://user:hunter2@broker",
        "listen --http://user:hunter2@broker",
        "listen --grpc-ulr=http://user:hunter2@broker",
        "listen --output http://user:hunter2@broker",
        "wait t1 http://user:hunter2@broker",
        "http://user:hunter2@broker",
        "serve --public-url http://user:hunter2@broker",
        "serve --traces-otlp-endpoint http://user:hunter2@broker",
    ] {
        let ran = Cli::new(line).run().await;
        assert!(ran.code.is_some_and(|code| code != 0), "{line}: {ran:?}");
        // Without a terminal `serve` tells it as a line of its log.
        let told = if line.starts_with("serve") {
            "\"level\":\"ERROR\""
        } else {
            "error: "
        };
        assert!(
            !ran.stderr.contains("hunter2") && ran.stderr.contains(told),
            "{line}: {}",
            ran.stderr
        );
    }
    for (variable, line) in [
        ("BLOBCAST_GRPC_URL", "get t1"),
        ("BLOBCAST_ADMIN_URL", "healthcheck"),
        ("BLOBCAST_INGEST_URL", "trigger"),
    ] {
        let wrong = Cli::new(line)
            .env(variable, "ftp://user:hunter2@broker")
            .run()
            .await;
        assert!(
            wrong.code == Some(2) && wrong.stderr.contains("'ftp://…@broker'"),
            "{variable}: {}",
            wrong.stderr
        );
        assert!(
            !wrong.stderr.contains("hunter2"),
            "{variable}: {}",
            wrong.stderr
        );
        let help = Cli::new(&format!("{line} --help"))
            .env(variable, "http://user:hunter2@broker")
            .run()
            .await;
        assert!(
            help.code == Some(0) && !help.stdout.contains("hunter2"),
            "{variable}: {}",
            help.stdout
        );
    }
}
