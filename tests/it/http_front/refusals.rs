//! Connections after a refusal: the next callback on it arrives, or the answer says that the
//! connection closes.

use std::time::{Duration, Instant};

use super::{counted, nothing_is_kept, raw::Raw};
use crate::support::{CredentialsFile, Options, Server, completed, until, within};

/// Each refusal that a request without a body can get: its outcome, status, and request but for the body.
struct Refused {
    outcome: &'static str,
    status: u16,
    method: &'static str,
    target: String,
    headers: &'static str,
}

/// A broker that asks for a token, the target that has it, and what it refuses.
async fn asking(options: Options) -> (Server, String, Vec<Refused>, CredentialsFile) {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let server = options
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let good = format!("/webhook/veo?token={token}");
    let refused = |outcome, status, method, target: &str, headers| {
        let target = target.to_owned();
        Refused {
            outcome,
            status,
            method,
            target,
            headers,
        }
    };
    let all = vec![
        refused("not_found", 404, "POST", "/nowhere", ""),
        refused("method_not_allowed", 405, "PUT", "/webhook/veo", ""),
        refused(
            "unsupported_encoding",
            415,
            "POST",
            &good,
            "content-encoding: br\r\n",
        ),
        refused("unauthorized", 401, "POST", "/webhook/veo", ""),
        refused(
            "foreign_origin",
            403,
            "POST",
            &good,
            "origin: https://evil.example\r\n",
        ),
    ];
    (server, good, all, file)
}

impl Refused {
    /// The head with the length of a body, or with a body in chunks.
    fn head(&self, body: Option<usize>) -> Vec<u8> {
        let Self {
            method,
            target,
            headers,
            ..
        } = self;
        let body = match body {
            Some(bytes) => format!("content-length: {bytes}"),
            None => "transfer-encoding: chunked".to_owned(),
        };
        format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{headers}{body}\r\n\r\n").into_bytes()
    }
}

/// Sends a head, and the rest when the head has been refused.
async fn send_late(server: &Server, raw: &mut Raw, refused: &Refused, head: Vec<u8>, rest: &[u8]) {
    let before = counted(server, refused.outcome).await;
    raw.send(head).await;
    until("the refusal", async || {
        counted(server, refused.outcome).await > before
    })
    .await;
    raw.send(rest).await;
}

async fn assert_lives_on(raw: &mut Raw, good: &str, task: &str) {
    raw.send(super::raw::post(good, "", completed(task).to_string()))
        .await;
    let reply = raw.reply().await;
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, ""),
        "{task}"
    );
}

#[tokio::test]
async fn a_small_body_of_a_refused_request_is_read_away_and_the_next_callback_is_taken() {
    let (server, good, refusals, _file) = asking(Options::default()).await;
    for refused in &refusals {
        let mut raw = Raw::connect(server.ingest).await;
        let Refused { outcome, .. } = refused;
        for bytes in [300, 200_000, 256 * 1024] {
            // What is read away is no request, whatever it looks like.
            let mut body = super::raw::post(&good, "", completed("smuggled").to_string());
            body.resize(bytes, b'x');
            send_late(&server, &mut raw, refused, refused.head(Some(bytes)), &body).await;
            let reply = raw.reply().await;
            assert_eq!(
                (reply.status, reply.header("connection")),
                (refused.status, ""),
                "{outcome}, {bytes} bytes"
            );
            assert_lives_on(&mut raw, &good, &format!("{outcome}-{bytes}")).await;
        }
        let chunks = super::raw::chunked(&[b'x'; 1_000], 100);
        send_late(&server, &mut raw, refused, refused.head(None), &chunks).await;
        assert_eq!(raw.reply().await.status, refused.status, "{outcome}");
        assert_lives_on(&mut raw, &good, &format!("{outcome}-chunks")).await;
    }
    let log = server.log_of_events().await;
    assert_eq!(log.len(), 4 * refusals.len());
    assert!(log.iter().all(|event| event.task_id != "smuggled"));
}

#[tokio::test]
async fn a_sender_that_was_refused_too_often_or_too_much_keeps_its_connection() {
    let options = Options::default()
        .set("ingest.refusals_per_minute_max", 1)
        .set("ingest.body_bytes_max", "100KiB");
    let (server, good, refusals, _file) = asking(options).await;
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(super::raw::post("/nowhere", "", "x")).await;
    assert_eq!(raw.reply().await.status, 404);
    let limited = Refused {
        outcome: "rate_limited",
        status: 429,
        target: "/nowhere".into(),
        ..only(refusals)
    };
    let too_large = Refused {
        outcome: "body_too_large",
        status: 413,
        target: good.clone(),
        ..limited
    };
    for (refused, bytes) in [(&limited, 300), (&limited, 200_000), (&too_large, 200_000)] {
        send_late(
            &server,
            &mut raw,
            refused,
            refused.head(Some(bytes)),
            &vec![b'x'; bytes],
        )
        .await;
        let reply = raw.reply().await;
        assert_eq!(
            (reply.status, reply.header("connection")),
            (refused.status, ""),
            "{bytes} bytes"
        );
        assert_lives_on(&mut raw, &good, &format!("{}-{bytes}", refused.outcome)).await;
    }
}

fn only(refusals: Vec<Refused>) -> Refused {
    refusals.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_large_body_is_taken_to_its_end_so_that_the_refusal_arrives() {
    const BYTES: usize = 3_000_000;
    let (server, good, mut refusals, _file) = asking(Options::default()).await;
    let header = "";
    refusals.push(Refused {
        outcome: "body_too_large",
        status: 413,
        method: "POST",
        target: good,
        headers: header,
    });
    for refused in &refusals {
        for chunked in [false, true] {
            let mut raw = Raw::connect(server.ingest).await;
            let body = vec![b'x'; BYTES];
            let body = if chunked {
                super::raw::chunked(&body, 8192)
            } else {
                body
            };
            raw.send(refused.head((!chunked).then_some(BYTES))).await;
            // Nobody looks for an answer before all is sent.
            within("the body to be taken", raw.try_send(&body))
                .await
                .unwrap();
            let reply = raw.reply().await;
            assert_eq!(
                (reply.status, reply.header("connection")),
                (refused.status, "close"),
                "{}",
                refused.outcome
            );
            raw.closed().await;
        }
    }
    nothing_is_kept(&server).await;
}

#[tokio::test]
async fn a_body_without_bounds_is_refused_and_not_taken_to_its_end() {
    const BYTES: usize = 100 * 1024 * 1024;
    let (server, _, refusals, _file) = asking(Options::default()).await;
    for refused in &refusals {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(refused.head(Some(BYTES))).await;
        let sent = within(
            "the connection to be closed",
            raw.try_send(&vec![b'x'; BYTES]),
        )
        .await;
        assert!(sent.is_err(), "64 MiB are enough");
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(refused.head(Some(BYTES))).await;
        raw.send([b'x'; 10_000]).await;
        let reply = raw.reply().await; // a reader that looks at once
        assert_eq!(
            (reply.status, reply.header("connection")),
            (refused.status, "close"),
            "{}",
            refused.outcome
        );
    }
}

#[tokio::test]
async fn who_waits_for_100_continue_is_refused_at_once_and_told_that_it_was_the_last_answer() {
    let (server, _, refusals, _file) = asking(Options::default()).await;
    for refused in &refusals {
        let mut raw = Raw::connect(server.ingest).await;
        let head = String::from_utf8(refused.head(Some(300))).unwrap();
        raw.send(head.replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n"))
            .await;
        let reply = raw.reply().await;
        assert_eq!(
            (reply.status, reply.header("connection")),
            (refused.status, "close"),
            "{}",
            refused.outcome
        );
        raw.closed().await;
    }
}

#[tokio::test]
async fn a_body_that_trickles_behind_a_refusal_is_not_waited_for() {
    let (server, _, refusals, _file) = asking(Options::default()).await;
    for refused in refusals {
        let mut raw = Raw::connect(server.ingest).await;
        let begun = Instant::now();
        raw.send(refused.head(Some(300))).await;
        let reply = raw.trickle().await;
        assert_eq!(
            (reply.status, reply.header("connection")),
            (refused.status, "close"),
            "{}",
            refused.outcome
        );
        // Far less than there is for a body that is wanted.
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test]
async fn the_admin_listener_refuses_in_the_same_way() {
    let server = Server::start().await;
    let request = |bytes: usize| {
        format!("POST /nothing HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {bytes}\r\n\r\n")
    };
    let mut raw = Raw::connect(server.admin).await;
    for _ in 0..3 {
        raw.send(request(300)).await;
        raw.send([b'x'; 300]).await;
        let reply = raw.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (404, ""));
    }
    raw.send(request(3_000_000)).await;
    within("the body to be taken", raw.try_send(&vec![b'x'; 3_000_000]))
        .await
        .unwrap();
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (404, "close"));
}

#[tokio::test]
async fn a_load_balancers_check_is_answered_and_learns_no_more() {
    let options = Options::default().set("ingest.refusals_per_minute_max", 1);
    let (server, ..) = asking(options).await;
    for (method, version) in [
        ("GET", "1.1"),
        ("HEAD", "1.1"),
        ("OPTIONS", "1.0"),
        ("GET", "1.0"),
        ("GET", "1.1"),
    ] {
        let mut raw = Raw::connect(server.ingest).await;
        let host = if version == "1.0" {
            ""
        } else {
            "host: test\r\n"
        };
        raw.send(format!("{method} / HTTP/{version}\r\n{host}\r\n"))
            .await;
        let reply = raw.try_reply_to(method).await.unwrap();
        assert_eq!(reply.status, 200, "{method}");
        let sentence = if method == "HEAD" {
            ""
        } else {
            "blobcast takes RunBlob's callbacks here, by POST to /webhook/PRODUCT.\n"
        };
        assert_eq!(reply.body, sentence);
        assert_eq!(reply.header("x-request-id").len(), 32);
    }
    let answer = server
        .http()
        .post_to("/", completed("t1").to_string())
        .await;
    assert_eq!(answer.status, 404);
    assert_eq!(counted(&server, "accepted").await, 0.0);
    nothing_is_kept(&server).await;
}
