//! The table of answers, row by row: status, body, headers, and what is stored.

use blobcast::wire::v1::TaskStatus;
use serde_json::json;

use super::{
    counted, nothing_is_kept,
    raw::{Raw, head, post},
};
use crate::support::{Options, Server, completed, failed, processing, until, with};

#[tokio::test]
async fn a_new_callback_is_received_and_becomes_an_event() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(post(
        "/webhook/veo?team=ads",
        "content-type: application/json\r\n",
        completed("t1").to_string(),
    ))
    .await;
    let reply = raw.reply().await;
    let log = server.log_of_events().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "application/json");
    let event_id = &log[0].event_id;
    assert_eq!(
        reply.body,
        format!(r#"{{"status":"received","event_id":"{event_id}","duplicate":false}}"#)
    );
    let event = &log[0];
    assert_eq!(
        (
            event.product.as_str(),
            event.task_id.as_str(),
            event.status()
        ),
        ("veo", "t1", TaskStatus::Completed)
    );
    assert_eq!(
        (
            event.terminal,
            event.revision,
            event.conflict,
            event.product_inferred
        ),
        (true, 1, false, false)
    );
    assert_eq!(event.outputs[0].url, "https://cdn.runblob.io/videos/t1.mp4");
    assert_eq!(event.labels, [("team".to_owned(), "ads".to_owned())].into());
    assert_eq!(counted(&server, "accepted").await, 1.0);
    assert_eq!(log.len(), 1);
}

#[tokio::test]
async fn what_a_web_page_sends_is_refused_and_counted() {
    let server = Options::default()
        .set("public_url", "https://hooks.example.com")
        .start()
        .await;
    let address = server.ingest.to_string();
    let send = async |host: &str, header: String| {
        let mut raw = Raw::connect(server.ingest).await;
        let body = completed("from-a-page").to_string();
        let length = body.len();
        raw.send(format!(
            "POST /webhook/veo HTTP/1.1\r\nhost: {host}\r\n{header}content-length: {length}\r\n\r\n{body}"
        ))
        .await;
        raw.reply().await
    };
    let of_pages = [
        ("evil.example", "origin: https://evil.example\r\n"), // a name that was made to lead here
        (&address, "origin: https://evil.example\r\n"),
        (&address, "origin: null\r\n"),
        (&address, "sec-fetch-site: cross-site\r\n"),
        (
            &address,
            "content-type: text/plain\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n",
        ),
    ];
    for (host, header) in of_pages {
        let reply = send(host, header.to_owned()).await;
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (403, "foreign_origin"),
            "{header}"
        );
    }
    nothing_is_kept(&server).await;
    assert_eq!(counted(&server, "foreign_origin").await, 5.0);

    let of_others = [
        ("any.name", String::new()),
        (&address, format!("origin: http://{address}\r\n")),
        (&address, "origin: https://hooks.example.com\r\n".to_owned()),
        (&address, "sec-fetch-site: same-origin\r\n".to_owned()),
        (&address, "sec-fetch-site: none\r\n".to_owned()),
    ];
    for (host, header) in of_others {
        assert_eq!(send(host, header.clone()).await.status, 200, "{header}");
    }
}

#[tokio::test]
async fn a_duplicate_names_the_original_is_counted_and_not_published_again() {
    let server = Server::start().await;
    let original = server.http().post(&completed("t1")).await;
    assert!(!original.duplicate());
    // What is neither status, nor output, nor error does not make it news.
    let repeated = with(
        completed("t1"),
        json!({"prompt": "another", "completed_at": null}),
    );
    let duplicate = server.http().post(&repeated).await;
    assert_eq!(
        duplicate.json,
        json!({"status": "received", "event_id": original.event_id(), "duplicate": true})
    );
    assert_eq!(server.log_of_events().await.len(), 1);
    assert_eq!(
        (
            counted(&server, "accepted").await,
            counted(&server, "duplicate").await
        ),
        (1.0, 1.0)
    );
    assert_eq!(server.metric("blobcast_duplicates_total").await, 1.0);
}

#[tokio::test]
async fn a_conflicting_end_is_received_as_the_next_revision_and_marked() {
    let server = Server::start().await;
    let http = server.http();
    for body in [completed("t1"), failed("t1")] {
        assert!(!http.post(&body).await.duplicate());
    }
    let log = server.log_of_events().await;
    let seen: Vec<_> = log
        .iter()
        .map(|event| (event.status(), event.revision, event.conflict))
        .collect();
    assert_eq!(
        seen,
        [
            (TaskStatus::Completed, 1, false),
            (TaskStatus::Failed, 2, true)
        ]
    );
    assert_eq!(server.metric("blobcast_conflicts_total").await, 1.0);
    // Neither word takes the place of the other: both are known from now on.
    for body in [completed("t1"), failed("t1")] {
        assert!(http.post(&body).await.duplicate());
    }
}

#[tokio::test]
async fn revisions_count_what_a_product_says_about_a_task() {
    let server = Server::start().await;
    let http = server.http();
    let pending = with(processing("t1"), json!({"status": "pending"}));
    for body in [&pending, &processing("t1"), &pending, &completed("t1")] {
        http.post(body).await.event_id();
    }
    assert!(
        !http
            .post_to("/webhook/sora", completed("t1").to_string())
            .await
            .duplicate(),
        "another product's task"
    );
    let log = server.log_of_events().await;
    let seen: Vec<_> = log
        .iter()
        .map(|event| (event.product.as_str(), event.revision, event.conflict))
        .collect();
    assert_eq!(
        seen,
        [
            ("veo", 1, false),
            ("veo", 2, false),
            ("veo", 3, false),
            ("sora", 1, false)
        ]
    );
}

#[tokio::test]
async fn a_product_that_the_url_does_not_name_is_inferred_and_marked() {
    let server = Server::start().await;
    for (path, task) in [
        ("/webhook", "t1"),
        ("/webhook/", "t2"),
        ("/webhook//", "t3"),
        ("/webhook?team=ads", "t4"),
    ] {
        server
            .http()
            .post_to(path, completed(task).to_string())
            .await
            .event_id();
    }
    let log = server.log_of_events().await;
    assert!(
        log.iter()
            .all(|event| event.product == "veo" && event.product_inferred),
        "{log:?}"
    );
    assert_eq!(log.len(), 4);
}

#[tokio::test]
async fn other_methods_are_answered_to_post() {
    let server = Server::start().await;
    for (number, method) in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"]
        .iter()
        .enumerate()
    {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(format!(
            "{method} /webhook/veo HTTP/1.1\r\nhost: test\r\naccept: */*\r\n\r\n"
        ))
        .await;
        let reply = raw.try_reply_to(method).await.unwrap();
        assert_eq!(
            (reply.status, reply.header("allow")),
            (405, "POST"),
            "{method}"
        );
        if *method != "HEAD" {
            assert_eq!(
                (reply.json()["status"].as_str(), reply.reason().as_str()),
                (Some("refused"), "method_not_allowed")
            );
        }
        assert_eq!(
            counted(&server, "method_not_allowed").await,
            number as f64 + 1.0
        );
    }
    nothing_is_kept(&server).await;
}

#[tokio::test]
async fn a_browser_gets_a_page_that_says_what_the_url_is_for() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send("GET /webhook HTTP/1.1\r\nhost: test\r\naccept: text/html,application/xhtml+xml,*/*;q=0.8\r\n\r\n").await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("allow")), (405, "POST"));
    assert!(
        reply.header("content-type").starts_with("text/html"),
        "{reply:?}"
    );
    assert!(
        reply.body.starts_with("<!doctype html>") && reply.body.contains("callback_url"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn unknown_paths_are_not_found_and_the_admin_routes_are_among_them() {
    let server = Server::start().await;
    let paths = [
        "/",
        "/veo",
        "/my-webhook",
        "/webhoo/veo",
        "/metrics",
        "/readyz",
        "/favicon.ico",
    ];
    for path in paths {
        let answer = server
            .http()
            .post_to(path, completed("t1").to_string())
            .await;
        assert_eq!(
            (answer.status, answer.reason()),
            (404, "not_found"),
            "{path}"
        );
        assert_eq!(answer.json["status"], "refused");
    }
    assert_eq!(counted(&server, "not_found").await, paths.len() as f64);
    nothing_is_kept(&server).await;
}

#[tokio::test]
async fn urls_signed_anew_and_an_added_reason_are_revisions_and_no_conflict_also_after_a_crash() {
    let mut server = Server::start().await;
    let signed = |query: &str| {
        with(
            completed("t1"),
            json!({"video_url": format!("https://x/1.mp4?{query}")}),
        )
    };
    let failed = |error: serde_json::Value| json!({"id": "t2", "status": "failed", "error": error});
    let last_words = [
        (signed("sig=a"), false),
        (signed("sig=b&exp=1"), false),
        (
            with(completed("t1"), json!({"video_url": "https://x/1.mp4"})),
            false,
        ),
        (
            with(
                completed("t1"),
                json!({"video_url": "https://x/2.mp4?sig=a"}),
            ),
            true,
        ),
        (failed(json!(null)), false),
        (failed(json!("TASK_FAILED")), false),
        (failed(json!("upstream down")), true),
    ];
    for (body, _) in &last_words {
        assert!(!server.http().post(body).await.duplicate(), "{body}");
        server.crash().await;
    }
    for (body, _) in &last_words {
        assert!(
            server.http().post(body).await.duplicate(),
            "a true repeat of any is one: {body}"
        );
    }
    let log = server.log_of_events().await;
    let conflicts: Vec<_> = log.iter().map(|event| event.conflict).collect();
    assert_eq!(conflicts, last_words.map(|(_, conflict)| conflict));
    assert_eq!(
        log.iter().map(|event| event.revision).collect::<Vec<_>>(),
        [1, 2, 3, 4, 1, 2, 3]
    );
}

#[tokio::test]
async fn completed_tasks_without_an_output_are_events_counted_by_product_and_logged() {
    let server = Server::start().await;
    let of_product =
        |product: &str| format!("blobcast_completed_without_output_total{{product=\"{product}\"}}");
    assert_eq!(
        server.metric(&of_product("veo")).await,
        0.0,
        "there from the start"
    );
    for number in 0..3 {
        let without = json!({"id": format!("t{number}"), "status": "completed", "video_url": "see the console"});
        for _ in 0..2 {
            assert_eq!(
                server
                    .http()
                    .post_to("/webhook/veo", without.to_string())
                    .await
                    .status,
                200
            );
        }
    }
    for body in [completed("t4"), failed("t5"), processing("t6")] {
        assert_eq!(server.http().post(&body).await.status, 200);
    }
    assert_eq!(
        server.metric(&of_product("veo")).await,
        3.0,
        "new events, not repeats"
    );
    assert_eq!(
        server
            .log_of_events()
            .await
            .iter()
            .filter(|event| event.outputs.is_empty())
            .count(),
        5
    );
    // A flood is one line.
    server.logged("its callback has no output", 1).await;

    // Senders name products, so only so many are counted by name.
    for number in 0..80 {
        let body = json!({"id": format!("p{number}"), "status": "completed"}).to_string();
        server
            .http()
            .post_to(&format!("/webhook/p{number}"), body)
            .await;
    }
    assert_eq!(server.metric(&of_product("p0")).await, 1.0);
    assert_eq!(
        server.metric(&of_product("other")).await,
        80.0 - (64.0 - 11.0)
    );
}

#[tokio::test]
async fn who_has_said_everything_and_sends_no_more_is_answered_all_the_same() {
    let server = Server::start().await;
    for number in 0..20 {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(post(
            "/webhook/veo",
            "",
            completed(&format!("t{number}")).to_string(),
        ))
        .await;
        raw.finish().await;
        assert_eq!(raw.reply().await.status, 200);
        raw.closed().await;
    }
}

#[tokio::test]
async fn pipelined_requests_on_one_connection_are_answered_in_order() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.ingest).await;
    let mut requests = Vec::new();
    for number in 0..20 {
        let body = if number % 4 == 3 {
            "nonsense".into()
        } else {
            completed(&format!("t{number}")).to_string()
        };
        requests.extend(post("/webhook/veo", "", body));
    }
    requests.extend(b"GET /nowhere HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    raw.send(requests).await;
    let mut event_ids = Vec::new();
    for number in 0..20 {
        let reply = raw.reply().await;
        assert_eq!(reply.status, if number % 4 == 3 { 202 } else { 200 });
        event_ids.extend(reply.json()["event_id"].as_str().map(str::to_owned));
    }
    assert_eq!(raw.reply().await.status, 404);
    raw.closed().await;
    let log: Vec<_> = server
        .log_of_events()
        .await
        .into_iter()
        .map(|event| event.event_id)
        .collect();
    assert_eq!(log, event_ids);
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed_unless_it_asks_to_keep_alive() {
    let server = Server::start().await;
    let request = |task, headers| {
        let request = post("/webhook/veo", headers, completed(task).to_string());
        String::from_utf8(request)
            .unwrap()
            .replace("HTTP/1.1", "HTTP/1.0")
    };
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(request("t1", "connection: keep-alive\r\n")).await;
    assert_eq!(raw.reply().await.status, 200);
    raw.send(request("t2", "")).await;
    assert_eq!(raw.reply().await.status, 200);
    raw.closed().await;
    assert_eq!(server.log_of_events().await.len(), 2);
}

#[tokio::test]
async fn who_expects_100_continue_gets_it_before_sending_the_body() {
    let server = Server::start().await;
    let body = completed("t1").to_string();
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(head(
        "/webhook/veo",
        &format!("expect: 100-continue\r\ncontent-length: {}\r\n", body.len()),
    ))
    .await;
    assert_eq!(raw.reply().await.status, 100);
    raw.send(&body).await;
    assert_eq!(raw.reply().await.status, 200);
    // What will be refused anyway is refused before its body is sent.
    for (target, header, status) in [
        ("/webhook/veo", "content-length: 1048577\r\n", 413),
        // The largest that HTTP libraries take.
        (
            "/webhook/veo",
            "content-length: 18446744073709551613\r\n",
            413,
        ),
        (
            "/webhook/veo",
            "content-length: 9\r\ncontent-encoding: br\r\n",
            415,
        ),
        ("/nowhere", "content-length: 9\r\n", 404),
    ] {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(head(target, &format!("expect: 100-continue\r\n{header}")))
            .await;
        assert_eq!(raw.reply().await.status, status);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing_and_its_repetition_is_new() {
    let server = Server::start().await;
    let body = completed("t1").to_string();
    for cut in [0, 1, body.len() - 1] {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(head(
            "/webhook/veo",
            &format!("content-length: {}\r\n", body.len()),
        ))
        .await;
        raw.send(&body[..cut]).await;
        drop(raw);
    }
    // A whole JSON text, but not the whole body: its end is missing, and who knows what that said.
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(head("/webhook/veo", "transfer-encoding: chunked\r\n"))
        .await;
    raw.send(format!("{:x}\r\n{body}\r\n", body.len())).await;
    raw.finish().await;
    let reply = raw.reply().await;
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (400, "body_aborted")
    );
    until("4 bodies given up", || async {
        counted(&server, "body_aborted").await == 4.0
    })
    .await;
    nothing_is_kept(&server).await;
    assert!(!server.http().post(&completed("t1")).await.duplicate());
}

#[tokio::test]
async fn draining_answers_503_to_what_still_comes_and_finishes_what_came_before() {
    let mut server = Options::default()
        .set("ingest.body_timeout", "60s")
        .set("ingest.header_timeout", "60s")
        .start()
        .await;
    let body = completed("t1").to_string();
    let whole = post("/webhook/veo", "", &body);
    let later = post("/webhook/veo", "", completed("t2").to_string());

    let mut in_body = Raw::connect(server.ingest).await;
    in_body.send(&whole[..whole.len() - 1]).await;
    let mut without_end = Raw::connect(server.ingest).await;
    without_end.send(&later[..later.len() - 1]).await;
    let mut in_head = Raw::connect(server.ingest).await;
    in_head.send(&later[..20]).await;
    let mut used_in_head = Raw::connect(server.ingest).await;
    used_in_head
        .send(post("/webhook/veo", "", completed("t0").to_string()))
        .await;
    assert_eq!(used_in_head.reply().await.status, 200);
    used_in_head.send(&later[..20]).await;
    let mut idle = Raw::connect(server.ingest).await;
    idle.send(post("/webhook/veo", "", completed("t0").to_string()))
        .await;
    assert_eq!(idle.reply().await.status, 200);
    // Connections are taken up in order, so the one that was answered last shows that the others are known.

    server.signal(rustix::process::Signal::TERM);
    until("the drain", || async {
        server.admin_get("/readyz").await.0 == 503
    })
    .await;
    in_body.send(&whole[whole.len() - 1..]).await;
    let kept = in_body.reply().await;
    assert_eq!(kept.status, 200);
    // A client that does not finish its request gets an answer that says so, long before the other limit.
    for mut unfinished in [in_head, used_in_head, without_end] {
        let reply = unfinished.reply().await;
        assert_eq!(
            (
                reply.status,
                reply.header("retry-after"),
                reply.reason().as_str()
            ),
            (503, "5", "draining")
        );
    }
    idle.closed().await;
    assert!(server.ended().await.success());

    server.restart().await;
    let log = server.log_of_events().await;
    assert_eq!(
        log.iter()
            .map(|event| event.task_id.as_str())
            .collect::<Vec<_>>(),
        ["t0", "t1"]
    );
    assert_eq!(log[1].event_id, kept.json()["event_id"]);
}
