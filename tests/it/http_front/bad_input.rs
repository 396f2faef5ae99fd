//! Callbacks that cannot be understood, or only partly: the answer to each, and what is stored.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    counted, nothing_is_kept, quarantine,
    raw::{Raw, post},
};
use crate::support::{Server, completed, until};

/// Posts each (target, body), expects 202 with the reason, and finds it in quarantine as it was sent.
async fn quarantined(server: &Server, cases: Vec<(String, Vec<u8>, &str)>) {
    for (target, body, reason) in &cases {
        let answer = server.http().post_to(target, body.clone()).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        assert_eq!(
            answer.json,
            json!({"status": "quarantined", "reason": reason}),
            "{target} {shown}"
        );
        assert_eq!(answer.status, 202);
    }
    assert_eq!(counted(server, "quarantined").await, cases.len() as f64);
    assert_eq!(server.log_of_events().await, []);
    let kept = quarantine(server).await;
    assert_eq!(kept.len(), cases.len());
    for (callback, (target, body, reason)) in kept.iter().zip(&cases) {
        assert_eq!(
            (&callback.target, callback.reason.as_str()),
            (target, *reason)
        );
        assert_eq!(
            (callback.body.as_ref(), callback.body_bytes),
            (body.as_slice(), body.len() as u64)
        );
        assert!(!callback.detail.is_empty() && callback.received_at.is_some());
    }
}

fn of_body(body: impl AsRef<[u8]>, reason: &str) -> (String, Vec<u8>, &str) {
    ("/webhook/veo".to_owned(), body.as_ref().to_vec(), reason)
}

fn nested(levels: usize) -> String {
    format!(
        r#"{{"generation_id":"deep","status":"completed","x":{}{}}}"#,
        "[".repeat(levels),
        "]".repeat(levels)
    )
}

#[tokio::test]
async fn bodies_that_cannot_be_understood_are_quarantined_as_they_came() {
    let server = Server::start().await;
    let mut invalid_utf8 = completed("t1").to_string().into_bytes();
    let place = invalid_utf8
        .windows(5)
        .position(|window| window == b"a cat")
        .unwrap();
    invalid_utf8[place] = 0xff;
    let long_id = json!({"generation_id": "x".repeat(129), "status": "completed"}).to_string();
    let cases = vec![
        of_body("", "not_json"),
        of_body("nonsense", "not_json"),
        of_body("{\"generation_id\":\"t1\",\"status\":\"comp", "not_json"),
        of_body("generation_id=t1&status=completed", "not_json"),
        of_body(format!("{} trailing", completed("t1")), "not_json"),
        of_body(invalid_utf8, "not_json"),
        of_body(nested(10_000), "not_json"),
        of_body("[".repeat(10_000), "not_json"),
        of_body("[]", "not_an_object"),
        of_body("\"t1\"", "not_an_object"),
        of_body("17", "not_an_object"),
        of_body("null", "not_an_object"),
        of_body("{}", "no_task_id"),
        of_body(r#"{"status":"completed"}"#, "no_task_id"),
        of_body(
            r#"{"generation_id":null,"status":"completed"}"#,
            "no_task_id",
        ),
        of_body(r#"{"generation_id":"","status":"completed"}"#, "no_task_id"),
        of_body(
            r#"{"generation_id":"a b","status":"completed"}"#,
            "bad_task_id",
        ),
        of_body(
            r#"{"generation_id":"a\u0000b","status":"completed"}"#,
            "bad_task_id",
        ),
        of_body(
            r#"{"generation_id":"\ud83d","status":"completed"}"#,
            "bad_task_id",
        ),
        of_body(long_id, "bad_task_id"),
        of_body(r#"{"generation_id":"t1"}"#, "no_status"),
        of_body(r#"{"generation_id":"t1","status":null}"#, "no_status"),
    ];
    quarantined(&server, cases).await;
}

#[tokio::test]
async fn products_outside_the_pattern_are_quarantined_and_those_at_its_edge_are_taken() {
    let server = Server::start().await;
    let longest = "p".repeat(63);
    let bad = [
        "p".repeat(64),
        "Veo".into(),
        "kling_o1".into(),
        "-veo".into(),
        "ve%6f".into(),
        "v.eo".into(),
        "%00".into(),
    ];
    let case = |product: &String| {
        (
            format!("/webhook/{product}"),
            completed("t1").to_string().into_bytes(),
            "bad_product",
        )
    };
    quarantined(&server, bad.iter().map(case).collect()).await;
    for product in [
        longest.as_str(),
        "v",
        "0",
        "veo-",
        "3--d",
        "a-product-of-tomorrow",
    ] {
        server
            .http()
            .post_to(&format!("/webhook/{product}"), completed("t1").to_string())
            .await
            .event_id();
        let log = server.log_of_events().await;
        let newest = log.last().unwrap();
        assert_eq!(
            (newest.product.as_str(), newest.product_inferred),
            (product, false)
        );
    }
    // A slash at the end names the same product, and so the same task.
    assert!(
        server
            .http()
            .post_to(&format!("/webhook/{longest}/"), completed("t1").to_string())
            .await
            .duplicate()
    );
}

/// `count` different labels with a key of `key` and a value of `value` characters.
fn labels(count: usize, key: usize, value: usize) -> String {
    let label = |number| format!("{number:k>key$}={}", "v".repeat(value));
    (0..count).map(label).collect::<Vec<_>>().join("&")
}

#[tokio::test]
async fn labels_over_a_limit_are_quarantined_and_those_at_it_are_kept() {
    let server = Server::start().await;
    let bad = [
        labels(17, 2, 2),
        labels(1, 65, 2),
        labels(1, 2, 257),
        "=value".to_owned(),
    ];
    let case = |query: &String| {
        (
            format!("/webhook/veo?{query}"),
            completed("t1").to_string().into_bytes(),
            "bad_labels",
        )
    };
    quarantined(&server, bad.iter().map(case).collect()).await;

    let full = labels(16, 64, 256);
    let odd = "empty&team=first&team=last&ref=a%26b+c&%C3%A9t%C3%A9=%F0%9F%98%80";
    // Characters, not bytes: each of these has two or more, and three times as many once it is encoded.
    let wide = format!("{}={}", "%C3%A9".repeat(64), "%C3%A9".repeat(256));
    for (number, query) in [full.as_str(), odd, &wide].into_iter().enumerate() {
        let body = completed(&format!("t{number}")).to_string();
        server
            .http()
            .post_to(&format!("/webhook/veo?{query}"), body)
            .await
            .event_id();
    }
    let log = server.log_of_events().await;
    assert_eq!(log[0].labels.len(), 16);
    assert!(
        log[0]
            .labels
            .iter()
            .all(|(key, value)| (key.len(), value.len()) == (64, 256))
    );
    let expected = [
        ("empty", ""),
        ("team", "last"),
        ("ref", "a&b c"),
        ("été", "😀"),
    ];
    assert_eq!(
        log[1].labels,
        expected
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    );
    assert_eq!(log[2].labels, [("é".repeat(64), "é".repeat(256))].into());
}

#[tokio::test]
async fn secret_parameters_are_kept_nowhere() {
    const SECRET: &str = "Zq7hush5Xw9never2Bt4tell";
    let mut server = Server::start().await;
    let query = format!("team=ads&token={SECRET}&%73ig={SECRET}&exp={SECRET}&kid={SECRET}");
    server
        .http()
        .post_to(
            &format!("/webhook/veo?{query}"),
            completed("t1").to_string(),
        )
        .await
        .event_id();
    let answer = server
        .http()
        .post_to(&format!("/webhook/veo?{query}"), "nonsense")
        .await;
    assert_eq!(answer.status, 202);
    let bad = server
        .http()
        .post_to(
            &format!("/webhook/Veo?token={SECRET}"),
            completed("t1").to_string(),
        )
        .await;
    assert_eq!(bad.status, 202);

    assert_eq!(
        server.log_of_events().await[0].labels,
        [("team".to_owned(), "ads".to_owned())].into()
    );
    let targets: Vec<_> = quarantine(&server)
        .await
        .into_iter()
        .map(|callback| callback.target)
        .collect();
    assert_eq!(targets, ["/webhook/veo?team=ads", "/webhook/Veo"]);
    assert!(!server.admin_get("/metrics").await.1.contains(SECRET));
    server.terminate().await;
    assert!(!server.log().contains(SECRET));
    // The directory holds the other callback's bytes, so the search would find what is there.
    assert!(
        holds(&server.data_dir(), b"nonsense"),
        "a search that finds nothing proves nothing"
    );
    assert!(!holds(&server.data_dir(), SECRET.as_bytes()));
}

/// True if any file under the directory has the bytes.
fn holds(directory: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        std::fs::read(&path)
            .unwrap()
            .windows(bytes.len())
            .any(|window| window == bytes)
    })
}

#[tokio::test]
async fn the_content_type_does_not_matter_if_the_body_is_json() {
    let server = Server::start().await;
    let types = [
        "",
        "content-type: text/plain\r\n",
        "content-type: application/x-www-form-urlencoded\r\n",
        "content-type: application/json; charset=utf-8\r\n",
        "content-type: \r\n",
        "content-type: \u{ff}\r\n",
    ];
    for (number, headers) in types.into_iter().enumerate() {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(post(
            "/webhook/veo",
            headers,
            completed(&format!("t{number}")).to_string(),
        ))
        .await;
        assert_eq!(raw.reply().await.status, 200, "{headers:?}");
    }
    assert_eq!(server.log_of_events().await.len(), types.len());
}

#[tokio::test]
async fn odd_json_that_can_be_understood_is_an_event() {
    let server = Server::start().await;
    let post = async |body: &str| {
        server
            .http()
            .post_to("/webhook/veo", body.to_owned())
            .await
            .event_id()
    };
    // Of duplicate keys the last counts.
    post(r#"{"generation_id":"a","status":"failed","generation_id":"t0","status":"completed"}"#)
        .await;
    let huge = format!(
        r#"{{"generation_id":"t1","status":"completed","seed":1e400,"x":{},"y":-1e-400}}"#,
        "9".repeat(10_000)
    );
    post(&huge).await;
    post(r#"{"generation_id":123456789012345678901234567890,"status":"completed","seed":9007199254740993}"#).await;
    // Two levels less than all that may be nested: the object, and the array within it.
    post(&nested(127)).await;
    post(" \r\n\t{\"generation_id\":\"t4\",\"status\":\"completed\"}\n ").await;
    let log = server.log_of_events().await;
    let seen: Vec<_> = log
        .iter()
        .map(|event| (event.task_id.as_str(), event.seed))
        .collect();
    let big = "123456789012345678901234567890";
    assert_eq!(
        seen,
        [
            ("t0", None),
            ("t1", None),
            (big, Some(9_007_199_254_740_993)),
            ("deep", None),
            ("t4", None)
        ]
    );
    let answer = server.http().post_to("/webhook/veo", nested(128)).await;
    assert_eq!((answer.status, answer.reason()), (202, "not_json"));
}

#[tokio::test]
async fn what_is_not_http_is_refused_counted_and_harms_nobody() {
    let server = Server::start().await;
    let garbage: [&[u8]; 4] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /webhook/veo\r\n\r\n",
        b"POST /webhook/veo HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /webhook/veo HTTP/1.1\r\ncontent-length: one\r\n\r\n{}",
    ];
    for bytes in garbage {
        let mut raw = Raw::connect(server.ingest).await;
        raw.send(bytes).await;
        let reply = raw.reply().await;
        assert_eq!(reply.status, 400, "{reply:?}");
        raw.closed().await;
    }
    let all = garbage.len() as f64;
    until("all to be counted", || async {
        counted(&server, "malformed_request").await == all
    })
    .await;
    nothing_is_kept(&server).await;
    let answer: Value = server.http().post(&completed("t1")).await.json;
    assert_eq!(answer["duplicate"], false);
}
