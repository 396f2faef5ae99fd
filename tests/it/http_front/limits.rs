//! Every limit of the public listener, at its value and beyond.

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    counted, nothing_is_kept, quarantine,
    raw::{Raw, chunked, head, post},
};
use crate::support::{Options, Server, completed, reason, request, until, with, within};

const BODY_BYTES_MAX: usize = 1024 * 1024;
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// A callback with a body of so many bytes.
fn body_of(bytes: usize) -> Vec<u8> {
    let with_prompt = |length| {
        with(
            completed("t1"),
            serde_json::json!({"prompt": "x".repeat(length)}),
        )
        .to_string()
    };
    let around = with_prompt(0).len();
    let body = with_prompt(bytes - around).into_bytes();
    assert_eq!(body.len(), bytes);
    body
}

async fn too_large(server: &Server, request: Vec<u8>) {
    let before = counted(server, "body_too_large").await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(request).await;
    let reply = raw.reply().await;
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (413, "body_too_large")
    );
    assert_eq!(counted(server, "body_too_large").await, before + 1.0);
    nothing_is_kept(server).await;
}

#[tokio::test]
async fn a_body_of_1_mib_is_taken_and_one_byte_more_is_not() {
    let server = Server::start().await;
    too_large(
        &server,
        post("/webhook/veo", "", body_of(BODY_BYTES_MAX + 1)),
    )
    .await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(post("/webhook/veo", "", body_of(BODY_BYTES_MAX)))
        .await;
    assert_eq!(raw.reply().await.json()["duplicate"], false);
}

#[tokio::test]
async fn a_body_in_chunks_without_a_length_has_the_same_limit() {
    let server = Server::start().await;
    let request = |bytes, chunk| {
        let mut request = head("/webhook/veo", "transfer-encoding: chunked\r\n");
        request.extend(chunked(&body_of(bytes), chunk));
        request
    };
    too_large(&server, request(BODY_BYTES_MAX + 1, 64 * 1024)).await;
    too_large(&server, request(BODY_BYTES_MAX + 1, BODY_BYTES_MAX + 1)).await;
    // The limit is the body's: what the chunks add around it does not count.
    for (chunk, duplicate) in [(100, false), (BODY_BYTES_MAX, true)] {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(request(BODY_BYTES_MAX, chunk)).await;
        assert_eq!(raw.reply().await.json()["duplicate"], duplicate);
    }
}

#[tokio::test]
async fn the_largest_body_that_cannot_be_understood_is_quarantined_whole() {
    let server = Server::start().await;
    let body = vec![b'x'; BODY_BYTES_MAX];
    let answer = server.http().post_to("/webhook/veo", body.clone()).await;
    assert_eq!((answer.status, answer.reason()), (202, "not_json"));
    assert!(quarantine(&server).await[0].body == body);
}

/// A request whose head has so many bytes.
fn head_of(bytes: usize) -> Vec<u8> {
    let body = completed("t1").to_string();
    let with_filler = |length| {
        head(
            "/webhook/veo",
            &format!(
                "content-length: {}\r\nx: {}\r\n",
                body.len(),
                "x".repeat(length)
            ),
        )
    };
    let head = with_filler(bytes - with_filler(0).len());
    assert_eq!(head.len(), bytes);
    [head, body.into_bytes()].concat()
}

#[tokio::test]
async fn headers_of_16_kib_are_taken_and_more_are_not_read() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(head_of(HEADER_BYTES_MAX)).await;
    assert_eq!(raw.reply().await.status, 200);
    // 16 KiB of a head that would go on: answered without waiting for the rest.
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(&head_of(HEADER_BYTES_MAX + 1)[..HEADER_BYTES_MAX])
        .await;
    let reply = raw.reply().await;
    assert_eq!(reply.status, 431);
    raw.closed().await;
    until("it to be counted", || async {
        counted(&server, "headers_too_large").await == 1.0
    })
    .await;
    assert_eq!(server.log_of_events().await.len(), 1);
}

#[tokio::test]
async fn sixty_four_headers_are_taken_and_one_more_is_not() {
    let server = Server::start().await;
    let request = |count: usize| {
        // Two are there anyway: host and content-length.
        let headers: String = (2..count)
            .map(|number| format!("x-{number}: y\r\n"))
            .collect();
        post("/webhook/veo", &headers, completed("t1").to_string())
    };
    for (count, status) in [(64, 200), (65, 431)] {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(request(count)).await;
        assert_eq!(raw.reply().await.status, status);
    }
    until("it to be counted", || async {
        counted(&server, "headers_too_large").await == 1.0
    })
    .await;
}

#[tokio::test]
async fn headers_that_take_too_long_are_answered_408_even_if_they_trickle() {
    let server = Options::default()
        .set("logging.level", "debug")
        .set("ingest.header_timeout", "200ms")
        .start()
        .await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send("POST /webhook/veo HTTP/1.1\r\nx: ").await;
    assert_eq!(raw.reply().await.status, 408);
    raw.closed().await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send("POST /webhook/veo HTTP/1.1\r\nx: ").await;
    let reply = raw.trickle().await;
    assert_eq!(reply.status, 408);
    let id = reply.header("x-request-id");
    assert_eq!(id.len(), 32);
    // Even of what was not read whole the log can tell, if it is asked to.
    until("its line", async || {
        server.log().contains(&format!("\"request_id\":\"{id}\""))
    })
    .await;
    until("both to be counted", || async {
        counted(&server, "header_timeout").await == 2.0
    })
    .await;
    nothing_is_kept(&server).await;
}

#[tokio::test]
async fn a_connection_that_asks_nothing_for_too_long_is_closed_without_a_word() {
    let options = Options::default()
        .set("ingest.header_timeout", "200ms")
        .set("ingest.idle_timeout", "300ms");
    let server = options.start().await;
    Raw::connect(server.ingest).await.closed().await;
    let mut used = Raw::connect(server.ingest).await;
    used.send(post("/webhook/veo", "", completed("t1").to_string()))
        .await;
    let answered = Instant::now();
    assert_eq!(used.reply().await.status, 200);
    used.closed().await;
    assert!(answered.elapsed() >= Duration::from_millis(300));
    assert_eq!(counted(&server, "header_timeout").await, 0.0);
}

#[tokio::test]
async fn a_connection_that_was_used_is_kept_while_others_come_and_go_by_the_time_for_headers() {
    let server = Options::default()
        .set("ingest.header_timeout", "200ms")
        .start()
        .await;
    let request = |task: &str| post("/webhook/veo", "", completed(task).to_string());
    let mut kept = Vec::new();
    for number in 0..50 {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(request(&format!("first-{number}"))).await;
        assert_eq!(raw.reply().await.status, 200);
        kept.push(raw);
    }
    // Connections that ask nothing show that the time has gone by, more than once.
    for _ in 0..3 {
        Raw::connect(server.ingest).await.closed().await;
    }
    for (number, raw) in kept.iter_mut().enumerate() {
        raw.send(request(&format!("second-{number}"))).await;
        assert_eq!(raw.reply().await.status, 200);
    }
    // A line end behind a body is no head.
    let ended = &mut kept[2];
    ended.send("\r\n").await;
    Raw::connect(server.ingest).await.closed().await;
    ended.send(request("third")).await;
    assert_eq!(ended.reply().await.status, 200);
    // The next head has the time for headers from its first byte on, however long it was idle before.
    let [trickling, stalled, ..] = &mut kept[..] else {
        panic!("they are there")
    };
    stalled.send(&request("t3")[..20]).await;
    trickling.send("POST /webhook/veo HTTP/1.1\r\nx: ").await;
    for reply in [trickling.trickle().await, stalled.reply().await] {
        assert_eq!((reply.status, reply.header("connection")), (408, "close"));
    }
    until("both to be counted", || async {
        counted(&server, "header_timeout").await == 2.0
    })
    .await;
    assert_eq!(server.log_of_events().await.len(), 101);
}

#[tokio::test]
async fn a_body_that_takes_too_long_is_answered_408_even_if_it_trickles() {
    let server = Options::default()
        .set("ingest.body_timeout", "200ms")
        .start()
        .await;
    let half = head("/webhook/veo", "content-length: 100000\r\n");
    let mut stalled = Raw::connect(server.ingest).await;
    stalled.send([&half[..], b"{"].concat()).await;
    let mut trickling = Raw::connect(server.ingest).await;
    trickling.send(&half).await;
    let mut chunks = Raw::connect(server.ingest).await;
    chunks
        .send(head("/webhook/veo", "transfer-encoding: chunked\r\n"))
        .await;
    chunks.send("2\r\n{}\r\n").await;
    for reply in [
        stalled.reply().await,
        trickling.trickle().await,
        chunks.reply().await,
    ] {
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (408, "body_timeout")
        );
        assert_eq!(reply.header("connection"), "close");
    }
    assert_eq!(counted(&server, "body_timeout").await, 3.0);
    nothing_is_kept(&server).await;
}

#[tokio::test]
async fn connections_up_to_the_limit_are_served_and_the_next_learns_when_to_return() {
    let server = Options::default()
        .set("ingest.connections_max", 2)
        .start()
        .await;
    let request = post("/webhook/veo", "", completed("t1").to_string());
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(&request).await;
        assert_eq!(raw.reply().await.status, 200);
        open.push(raw);
    }
    let mut third = Raw::connect(server.ingest).await;
    third.send(&request).await;
    let reply = third.reply().await;
    assert_eq!(
        (
            reply.status,
            reply.header("retry-after"),
            reply.header("connection")
        ),
        (503, "30", "close")
    );
    assert_eq!(
        (reply.json()["status"].as_str(), reply.reason().as_str()),
        (Some("refused"), "too_many_connections")
    );
    assert_eq!(reply.header("x-request-id").len(), 32);
    third.closed().await;
    assert_eq!(
        server
            .metric("blobcast_connections_refused_total{cause=\"full\",listener=\"ingest\"}")
            .await,
        1.0
    );
    assert_eq!(
        server
            .metric("blobcast_connections{listener=\"ingest\"}")
            .await,
        2.0
    );
    // Those that are open are served on, and a place that is given back is taken.
    open[0].send(&request).await;
    assert_eq!(open[0].reply().await.status, 200);
    open.pop();
    until("a free place", || async {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(&request).await;
        raw.reply().await.status == 200
    })
    .await;
}

#[tokio::test]
async fn bodies_beyond_what_may_be_in_memory_are_refused_until_there_is_room() {
    let server = Options::default()
        .set("ingest.inflight_bytes_max", BODY_BYTES_MAX)
        .set("ingest.body_timeout", "60s")
        .start()
        .await;
    // Announced is not sent: nobody else pays for it.
    let mut promise = Raw::connect(server.ingest).await;
    let announcement = head(
        "/webhook/veo",
        &format!("content-length: {BODY_BYTES_MAX}\r\n"),
    );
    promise.send(&announcement).await;
    assert_eq!(server.http().post(&completed("t2")).await.status, 200);

    let large = body_of(BODY_BYTES_MAX);
    promise.send(&large[..BODY_BYTES_MAX - 1]).await;
    let mut refusals = 0.0;
    let refused = within("the memory to be used up", async {
        loop {
            let answer = server.http().post(&completed("t2")).await;
            if answer.status != 200 {
                refusals += 1.0;
                return answer;
            }
            // Either of the two may find the other in its way.
            if let Ok(reply) = timeout(Duration::ZERO, promise.reply()).await {
                assert_eq!((reply.status, reply.reason().as_str()), (503, "overloaded"));
                refusals += 1.0;
                promise = Raw::connect(server.ingest).await;
                promise
                    .send([&announcement, &large[..BODY_BYTES_MAX - 1]].concat())
                    .await;
            }
        }
    })
    .await;
    assert_eq!((refused.status, refused.reason()), (503, "overloaded"));
    assert_eq!(refused.headers["retry-after"], "30");
    assert_eq!(counted(&server, "overloaded").await, refusals);
    // The one body that fits exactly is taken, and gives its room back.
    promise.send(&large[BODY_BYTES_MAX - 1..]).await;
    assert_eq!(promise.reply().await.status, 200);
    assert!(server.http().post(&completed("t2")).await.duplicate());
}

#[tokio::test]
async fn low_disk_refuses_callbacks_until_there_is_space_and_still_serves_what_is_kept() {
    let mut server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    server.terminate().await;
    // No disk is free altogether, so this is too little on every machine.
    server
        .restart_with(Options::default().set("log.disk_free_min_percent", 100))
        .await;
    for body in [
        completed("t1").to_string(),
        completed("t2").to_string(),
        "nonsense".to_owned(),
    ] {
        let answer = server.http().post_to("/webhook/veo", body).await;
        assert_eq!((answer.status, answer.reason()), (503, "disk_low"));
        assert_eq!(answer.headers["retry-after"], "30");
    }
    assert_eq!(counted(&server, "disk_low").await, 3.0);
    let (status, text) = server.admin_get("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("free some space"), "{text}");
    let (status, text) = server.admin_get("/readyz/ingest").await;
    assert!(status == 503 && text.contains("free some space"), "{text}");
    assert_eq!(
        server.admin_get("/readyz/grpc").await,
        (200, "ready\n".into()),
        "readers go on to be served"
    );
    assert!(
        server
            .cli("healthcheck --listener ingest")
            .run()
            .await
            .stdout
            .contains("free some space")
    );
    server.cli("healthcheck --listener grpc").run().await.good();
    assert_eq!(server.admin_get("/livez").await.0, 200);
    assert_eq!(server.metric("blobcast_store_writable").await, 0.0);
    assert_eq!(server.log_of_events().await.len(), 1);

    server.terminate().await;
    server
        .restart_with(Options::default().set("log.disk_free_min_percent", 0))
        .await;
    assert_eq!(server.admin_get("/readyz").await.0, 200);
    assert!(!server.http().post(&completed("t2")).await.duplicate());
    assert_eq!(quarantine(&server).await, []);
}

/// A broker whose data directory is gone refuses everything until it is back, and then starts anew on it by itself.
async fn assert_refuses_until_it_is_back(server: Server, replaced: bool) {
    let (data_dir, moved) = (server.data_dir(), server.data_dir().with_extension("moved"));
    for body in [
        completed("t1").to_string(),
        completed("t2").to_string(),
        "nonsense".to_owned(),
    ] {
        let answer = server.http().post_to("/webhook/veo", body).await;
        assert_eq!((answer.status, answer.reason()), (503, "store_failed"));
        assert_eq!(answer.headers["retry-after"], "30");
    }
    let (status, text) = server.admin_get("/readyz").await;
    assert_eq!(status, 503);
    assert!(
        text.contains("the data directory was removed or replaced"),
        "{text}"
    );
    assert_eq!(server.admin_get("/livez").await.0, 200);
    let (pid, mut stream) = (server.pid(), server.subscribe(request()).await);
    stream.until_caught_up().await;

    if replaced {
        fs::remove_dir(&data_dir).unwrap();
    }
    fs::rename(moved, data_dir).unwrap();
    let (_, status) = stream.end().await.unwrap_err();
    assert_eq!(
        reason(&status),
        "DRAINING",
        "streams are told to come again"
    );
    until("it to be ready again", async || {
        let answer = server
            .http()
            .try_post_to("/webhook/veo", completed("t1").to_string())
            .await;
        answer.is_ok_and(|answer| answer.status == 200 && answer.duplicate())
    })
    .await;
    assert!(!server.http().post(&completed("t2")).await.duplicate());
    assert_eq!(
        server.pid(),
        pid,
        "the same process, as its supervisor sees it"
    );
    until("a word", async || server.log().contains("starting anew")).await;
}

#[tokio::test]
async fn nothing_is_acknowledged_once_the_data_directory_is_removed() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    fs::rename(server.data_dir(), server.data_dir().with_extension("moved")).unwrap();
    assert_refuses_until_it_is_back(server, false).await;
}

#[tokio::test]
async fn a_data_directory_that_is_replaced_is_noticed_without_a_callback() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    fs::rename(server.data_dir(), server.data_dir().with_extension("moved")).unwrap();
    fs::create_dir(server.data_dir()).unwrap();
    until("it to be noticed", async || {
        server.metric("blobcast_store_writable").await == 0.0
    })
    .await;
    assert_refuses_until_it_is_back(server, true).await;
}

#[tokio::test]
async fn the_admin_listener_has_limits_of_its_own() {
    let server = Server::start().await;
    let request =
        |headers: &str| format!("GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}\r\n");
    let ask = async |request: String| {
        let mut raw = Raw::connect(server.admin).await;
        raw.send(request).await;
        let status = raw.reply().await.status;
        (raw, status)
    };
    // One is there anyway: host.
    let count = |count: usize| {
        (1..count)
            .map(|number| format!("x-{number}: y\r\n"))
            .collect::<String>()
    };
    let bytes = |bytes: usize| format!("x: {}\r\n", "y".repeat(bytes - request("x: \r\n").len()));
    assert_eq!(request(&bytes(HEADER_BYTES_MAX)).len(), HEADER_BYTES_MAX);
    for (headers, status) in [
        (count(64), 200),
        (count(65), 431),
        (bytes(HEADER_BYTES_MAX), 200),
        (bytes(HEADER_BYTES_MAX + 1), 431),
    ] {
        assert_eq!(
            ask(request(&headers)).await.1,
            status,
            "{} bytes",
            headers.len()
        );
    }

    let open = || async {
        server
            .metric("blobcast_connections{listener=\"admin\"}")
            .await
    };
    until("nobody else to be connected", || async {
        open().await == 1.0
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..128 {
        let (raw, status) = ask(request("")).await;
        assert_eq!(status, 200);
        open.push(raw);
    }
    let (mut excess, status) = ask(request("")).await;
    assert_eq!(status, 503);
    excess.closed().await;
    open.pop();
    until("a free place", || async { ask(request("")).await.1 == 200 }).await;
}

#[tokio::test]
async fn the_admin_listener_answers_to_addresses_localhost_and_its_hosts_and_to_no_page() {
    let server = Options::default()
        .set("admin.hosts", "metrics.internal,forwarded.internal:19090")
        .start()
        .await;
    let (admin, port) = (server.admin, server.admin.port());
    let ask = async |path: &str, headers: &str| {
        let mut raw = Raw::connect(admin).await;
        raw.send(format!("GET {path} HTTP/1.1\r\n{headers}\r\n"))
            .await;
        raw.reply().await
    };
    let ours = [
        admin.to_string(),
        "10.0.0.1".into(),
        format!("localhost:{port}"),
        "metrics.internal:1".into(),
    ];
    for host in ours
        .iter()
        .map(String::as_str)
        .chain(["forwarded.internal:19090", "metrics.internal"])
    {
        for path in ["/livez", "/metrics"] {
            assert_eq!(
                ask(path, &format!("host: {host}\r\n")).await.status,
                200,
                "{host}"
            );
        }
    }
    // A load balancer's probe may say nothing.
    let mut raw = Raw::connect(admin).await;
    raw.send("GET /livez HTTP/1.0\r\n\r\n").await;
    assert_eq!(raw.reply().await.status, 200);

    let others = [
        "evil.example",
        "localhost:1",
        "forwarded.internal",
        "metrics.internal.evil.example",
    ];
    for host in others {
        for path in ["/livez", "/readyz", "/metrics", "/version", "/", "/nothing"] {
            let reply = ask(path, &format!("host: {host}\r\n")).await;
            assert_eq!(reply.status, 421, "{path} at {host}");
            assert!(
                reply.body.contains("admin.hosts") && !reply.body.contains("epoch"),
                "{}",
                reply.body
            );
        }
    }
    let reply = ask("http://evil.example/version", &format!("host: {admin}\r\n")).await;
    assert_eq!(reply.status, 421, "by its target");
    let refused = async |cause: &str| {
        server
            .metric(&format!(
                "blobcast_admin_refused_total{{cause=\"{cause}\"}}"
            ))
            .await
    };
    assert_eq!(
        (refused("host").await, refused("foreign_origin").await),
        (25.0, 0.0)
    );

    let of_page = |more: &str| format!("host: {admin}\r\nsec-fetch-site: cross-site\r\n{more}");
    assert_eq!(
        ask("/readyz", &of_page("sec-fetch-mode: no-cors\r\n"))
            .await
            .status,
        403,
        "an image"
    );
    assert_eq!(
        ask(
            "/version",
            &format!("host: {admin}\r\norigin: http://evil.example\r\n")
        )
        .await
        .status,
        403
    );
    assert_eq!(
        ask("/version", &of_page("sec-fetch-mode: navigate\r\n"))
            .await
            .status,
        200,
        "a link"
    );
    assert_eq!(refused("foreign_origin").await, 2.0);
    // One line for each cause, however many there are.
    let told = server
        .logged("refused a request to the admin listener", 2)
        .await;
    assert!(
        told[0].contains(r#""cause":"host","name":"evil.example""#),
        "{told:?}"
    );
    assert!(told[1].contains(r#""cause":"foreign_origin""#), "{told:?}");
}

#[tokio::test]
async fn a_silent_connection_gives_way_to_a_callback() {
    let server = Options::default()
        .set("ingest.connections_max", 2)
        .set("ingest.header_timeout", "60s")
        .start()
        .await;
    let mut known = Raw::connect(server.ingest).await;
    known
        .send(post("/webhook/veo", "", completed("t1").to_string()))
        .await;
    assert_eq!(known.reply().await.status, 200);
    let mut silent = Raw::connect(server.ingest).await;
    silent
        .send("POST /webhook/veo HTTP/1.1\r\nhost: x\r\n")
        .await;
    until("both to be in", async || {
        server
            .metric("blobcast_connections{listener=\"ingest\"}")
            .await
            == 2.0
    })
    .await;
    let mut new = Raw::connect(server.ingest).await;
    new.send(post("/webhook/veo", "", completed("t2").to_string()))
        .await;
    assert_eq!(new.reply().await.status, 503, "it has a moment to go on");
    until("the callback to be taken", async || {
        new = Raw::connect(server.ingest).await;
        new.send(post("/webhook/veo", "", completed("t2").to_string()))
            .await;
        new.reply().await.status == 200
    })
    .await;
    silent.closed().await;
    assert_eq!(
        server
            .metric("blobcast_connections_shed_total{listener=\"ingest\"}")
            .await,
        1.0
    );
    // Both have brought a callback a moment ago, and stay.
    known
        .send(post("/webhook/veo", "", completed("t1").to_string()))
        .await;
    assert_eq!(known.reply().await.status, 200);
    let mut excess = Raw::connect(server.ingest).await;
    assert_eq!(excess.reply().await.status, 503);
    for raw in [&mut known, &mut new] {
        raw.send(post("/webhook/veo", "", completed("t3").to_string()))
            .await;
        assert_eq!(raw.reply().await.status, 200);
    }
}

/// Keeps asking on all these connections until somebody else is answered 200 on a new one.
async fn ask_until_another_is_let_in(asking: &mut [Raw], ask: &[u8], other: impl AsyncFn() -> u16) {
    until("another one to be let in", async || {
        for raw in &mut *asking {
            raw.send(ask).await;
            let _ = raw.try_reply_to("GET").await.is_some();
        }
        other().await == 200
    })
    .await;
}

#[tokio::test]
async fn strangers_that_keep_asking_give_way_to_a_callback() {
    // Neither a refusal nor a load balancer's check makes anybody known.
    for path in ["/x", "/"] {
        let server = Options::default()
            .set("ingest.connections_max", 3)
            .start()
            .await;
        let mut asking = Vec::new();
        for _ in 0..3 {
            asking.push(Raw::connect(server.ingest).await);
        }
        ask_until_another_is_let_in(&mut asking, &get(path), async || {
            let mut raw = Raw::connect(server.ingest).await;
            raw.send(post("/webhook/veo", "", completed("t1").to_string()))
                .await;
            raw.reply().await.status
        })
        .await;
        assert!(
            server
                .metric("blobcast_connections_shed_total{listener=\"ingest\"}")
                .await
                >= 1.0
        );
    }
}

#[tokio::test]
async fn probes_are_answered_beside_connections_that_keep_asking() {
    let server = Server::start().await;
    let mut asking = Vec::new();
    for _ in 0..128 {
        asking.push(Raw::connect(server.admin).await);
    }
    ask_until_another_is_let_in(&mut asking, &get("/livez"), async || {
        let mut raw = Raw::connect(server.admin).await;
        raw.send(get("/livez")).await;
        raw.try_reply_to("GET")
            .await
            .map_or(0, |reply| reply.status)
    })
    .await;
    assert!(
        server
            .metric("blobcast_connections_shed_total{listener=\"admin\"}")
            .await
            >= 1.0
    );
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_gives_its_place_back() {
    let server = Options::default()
        .set("ingest.connections_max", 2)
        .start()
        .await;
    let mut deaf = Vec::new();
    for _ in 0..2 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(server.ingest).await.unwrap();
        let questions = b"GET /webhook HTTP/1.1\r\nhost: test\r\n\r\n".repeat(1_000);
        // Until the broker does not read on, because it cannot answer.
        until("both ways to be full", async || {
            let sent = tokio::time::timeout(Duration::from_millis(100), stream.writable()).await;
            sent.is_err() || stream.try_write(&questions).is_err()
        })
        .await;
        deaf.push(stream);
    }
    until("a free place", async || {
        let answer = server
            .http()
            .try_post_to("/webhook/veo", completed("t1").to_string())
            .await;
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

/// A connection that says by a PROXY header whom it is for.
async fn on_behalf_of(server: &Server, client: &str) -> Raw {
    let mut raw = Raw::connect(server.ingest).await;
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    let server_address = if client.contains(':') {
        "::1"
    } else {
        "127.0.0.1"
    };
    raw.send(format!(
        "PROXY {family} {client} {server_address} 4711 443\r\n"
    ))
    .await;
    raw
}

#[tokio::test]
async fn a_load_balancer_says_by_a_proxy_header_whom_it_passes_on() {
    let options = Options::default()
        .set("ingest.proxy_protocol", true)
        .set("ingest.trusted_proxies", "127.0.0.0/8");
    let options = options
        .set("ingest.allowlist", "enforce")
        .set("ingest.allowed_networks", "198.51.100.0/24");
    let server = options.start().await;
    for (client, status) in [
        ("198.51.100.7", 200),
        ("203.0.113.9", 403),
        ("2001:db8::7", 403),
    ] {
        let mut raw = on_behalf_of(&server, client).await;
        raw.send(post("/webhook/veo", "", completed("t1").to_string()))
            .await;
        assert_eq!(raw.reply().await.status, status, "{client}");
    }
    // A connection without the header that it has to send is not served, whatever else it sends.
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(post(
        "/webhook/veo",
        "x-forwarded-for: 198.51.100.7\r\n",
        completed("t2").to_string(),
    ))
    .await;
    assert!(raw.try_reply().await.is_none());
    let refused =
        "blobcast_connections_refused_total{cause=\"proxy_header_missing\",listener=\"ingest\"}";
    server
        .logged("a trusted proxy sends no PROXY header", 1)
        .await; // it is counted before
    assert_eq!(server.metric(refused).await, 1.0);
}

#[tokio::test]
async fn a_stranger_is_not_asked_for_a_proxy_header_and_not_believed_one() {
    let options = Options::default()
        .set("ingest.proxy_protocol", true)
        .set("ingest.trusted_proxies", "198.51.100.0/24");
    let server = options.start().await;
    assert_eq!(server.http().post(&completed("t1")).await.status, 200);
    let mut raw = on_behalf_of(&server, "198.51.100.7").await;
    raw.send(post("/webhook/veo", "", completed("t2").to_string()))
        .await;
    assert_eq!(raw.reply().await.status, 400, "it is no HTTP");
    server
        .logged(
            "begins with a PROXY header, which is not expected of this address",
            1,
        )
        .await;
    let refused =
        "blobcast_connections_refused_total{cause=\"proxy_header_unexpected\",listener=\"ingest\"}";
    assert_eq!(server.metric(refused).await, 1.0);
}

#[tokio::test]
async fn one_address_has_its_share_of_the_connections_and_no_more() {
    let options = Options::default()
        .set("ingest.proxy_protocol", true)
        .set("ingest.trusted_proxies", "127.0.0.0/8");
    let server = options
        .set("ingest.connections_per_address_max", 2)
        .start()
        .await;
    let ask = async |client: &str| {
        let mut raw = on_behalf_of(&server, client).await;
        raw.send(post("/webhook/veo", "", completed("t1").to_string()))
            .await;
        let status = raw.try_reply().await.map(|reply| reply.status);
        (raw, status)
    };
    let (one, two) = (ask("198.51.100.7").await, ask("198.51.100.7").await);
    assert_eq!((one.1, two.1), (Some(200), Some(200)));
    assert_eq!(ask("198.51.100.7").await.1, None, "closed without a word");
    assert_eq!(
        ask("198.51.100.8").await.1,
        Some(200),
        "nobody else is the worse for it"
    );
    drop(one);
    until("the share to come back", async || {
        ask("198.51.100.7").await.1 == Some(200)
    })
    .await;
    let refused = "blobcast_connections_refused_total{cause=\"address_share\",listener=\"ingest\"}";
    until("it to be counted", async || {
        server.metric(refused).await >= 1.0
    })
    .await;
}
