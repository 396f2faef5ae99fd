//! Authentication of callbacks by URL token, signed URL, body signature and client address, and the
//! answer to each refusal.

use std::io::Write;

use blobcast::{
    credentials::{TokenHash, new_secret},
    wire::v1::Verification,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;

use crate::support::{Answer, Cli, Collector, CredentialsFile, Options, Server, completed, until};

/// `openssl dgst -sha256 -hmac hunter2`, of [`SIGNED_BODY`].
const BODY_SIGNATURE: &str = "fea74d1775dd0d273c0ffc7cfcc3aebe4e807902703618e9a69661066a974241";
const SIGNED_BODY: &str = r#"{"generation_id":"signed","status":"completed"}"#;

fn options(credentials: &CredentialsFile) -> Options {
    Options::default().set("credentials_file", credentials.path().display())
}

async fn outcome(server: &Server, outcome: &str) -> f64 {
    server
        .metric(&format!(
            "blobcast_callbacks_total{{outcome=\"{outcome}\"}}"
        ))
        .await
}

async fn post(server: &Server, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::post(format!("http://{}{target}", server.ingest));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server
        .http()
        .send(
            request
                .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
                .unwrap(),
        )
        .await
        .unwrap()
}

fn task(id: &str) -> String {
    completed(id).to_string()
}

#[tokio::test]
async fn a_callback_needs_a_token_that_is_in_force() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let expired = new_secret(true);
    let hash = TokenHash::of(&expired);
    file.add_line(
        "callback_tokens",
        &format!("old = {{ token = \"{hash}\", expires = 2026-01-01 }}"),
    );
    let server = options(&file).start().await;
    for (target, reason) in [
        ("/webhook/veo".to_owned(), "unauthorized"),
        ("/webhook/veo?token=".to_owned(), "unauthorized"),
        (format!("/webhook/veo?token={token}x"), "unauthorized"),
        (format!("/webhook/veo?token={expired}"), "unauthorized"),
        (format!("/webhook/veo?tok={token}"), "unauthorized"),
    ] {
        let answer = post(&server, &target, &[], &task("t1")).await;
        assert_eq!((answer.status, answer.reason()), (401, reason), "{target}");
    }
    assert!(server.log_of_events().await.is_empty());
    let answer = post(
        &server,
        &format!("/webhook/veo?team=ads&token={token}"),
        &[],
        &task("t1"),
    )
    .await;
    assert_eq!(answer.status, 200);
    let [event] = &server.log_of_events().await[..] else {
        panic!("one event")
    };
    assert_eq!(
        (event.verification(), event.credential.as_str()),
        (Verification::UrlToken, "callback_token runblob")
    );
    assert_eq!(event.labels.keys().collect::<Vec<_>>(), ["team"]);
    assert_eq!(outcome(&server, "unauthorized").await, 5.0);
    let used = "blobcast_credential_last_used_timestamp_seconds{kind=\"callback_token\",name=\"runblob\",secret=\"current\"}";
    assert!(server.metric(used).await > 1.7e9, "last use is shown");
}

#[tokio::test]
async fn a_signed_url_is_good_for_what_was_signed_and_until_it_expires() {
    let mut file = CredentialsFile::new();
    file.add("signing-key k1").await;
    let server = options(&file)
        .set("public_url", "https://hooks.example.com/in")
        .start()
        .await;
    let mint = async |flags: &str| {
        server
            .cli(&format!("url {flags}"))
            .run()
            .await
            .good()
            .trim_end()
            .to_owned()
    };
    let url = mint("--product veo --label team=ads --label ref=42").await;
    let target = url.strip_prefix("https://hooks.example.com/in").unwrap();
    assert!(
        target.starts_with("/webhook/veo?ref=42&team=ads&exp="),
        "{url}"
    );
    assert_eq!(post(&server, target, &[], &task("t1")).await.status, 200);
    for forged in [
        target.replace("team=ads", "team=film"),
        target.replace("/veo", "/sora"),
        target.replace("/veo", ""),
        target.replace("kid=k1", "kid=k2"),
        format!("{target}&more=1"),
        target.split("&sig=").next().unwrap().to_owned(),
    ] {
        assert_eq!(
            post(&server, &forged, &[], &task("t2")).await.status,
            401,
            "{forged}"
        );
    }
    let [event] = &server.log_of_events().await[..] else {
        panic!("one event")
    };
    assert_eq!(
        (event.verification(), event.product.as_str()),
        (Verification::SignedUrl, "veo")
    );
    assert_eq!(event.credential, "signing_key k1");
    assert_eq!(
        event.labels,
        [
            ("ref".to_owned(), "42".to_owned()),
            ("team".to_owned(), "ads".to_owned())
        ]
        .into()
    );

    let short = mint("--ttl 1s").await;
    let target = short.strip_prefix("https://hooks.example.com/in").unwrap();
    let body = task("t3");
    until("the URL to expire", || async {
        post(&server, target, &[], &body).await.status == 410
    })
    .await;
    assert_eq!(
        post(&server, target, &[], &body).await.reason(),
        "url_expired"
    );
}

#[tokio::test]
async fn keys_are_rotated_without_a_restart_and_without_refusing_anyone() {
    let mut file = CredentialsFile::new();
    file.add("signing-key k1").await;
    let server = options(&file).start().await;
    let mint = async || {
        let minted: Value = server
            .cli("url --output json")
            .run()
            .await
            .json_lines()
            .remove(0);
        let url = minted["callback_url"].as_str().unwrap();
        let target = url[url.find("/webhook").unwrap()..].to_owned();
        (minted["key_id"].as_str().unwrap().to_owned(), target)
    };
    let (key, old) = mint().await;
    assert_eq!(key, "k1");
    file.add_line(
        "signing_keys",
        "k2 = { secret = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\", created = 9000-01-01 }",
    );
    until("the new key to sign", || async { mint().await.0 == "k2" }).await;
    let (_, new) = mint().await;
    for (target, id) in [(&old, "t1"), (&new, "t2")] {
        assert_eq!(post(&server, target, &[], &task(id)).await.status, 200);
    }
    file.remove("k1 =");
    until("the old key to go", || async {
        post(&server, &old, &[], &task("t3")).await.status == 401
    })
    .await;
    assert_eq!(post(&server, &new, &[], &task("t4")).await.status, 200);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing_and_is_reported() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let server = options(&file).start().await;
    file.write("[callback_tokens]\nrunblob = { token = \"hunter2\" }\n");
    let complaint = server
        .logged("the credentials stay as they were", 1)
        .await
        .remove(0);
    assert!(
        complaint.contains("[callback_tokens] runblob: the token is not"),
        "{complaint}"
    );
    assert!(!server.log().contains("hunter2"));
    assert_eq!(
        post(
            &server,
            &format!("/webhook/veo?token={token}"),
            &[],
            &task("t1")
        )
        .await
        .status,
        200
    );
    assert_eq!(
        post(&server, "/webhook/veo", &[], &task("t1")).await.status,
        401
    );
}

#[tokio::test]
async fn the_signature_over_the_body_is_observed_or_required() {
    let mut file = CredentialsFile::new();
    file.add_line("body_signature", "secret = \"hunter2\"");
    let upper = BODY_SIGNATURE.to_uppercase();
    let prefixed = format!("sha256={BODY_SIGNATURE}");
    let wrong = format!("{}{}", &BODY_SIGNATURE[1..], &BODY_SIGNATURE[..1]);
    let good: [&[(&str, &str)]; 3] = [
        &[("x-runblob-signature", BODY_SIGNATURE)],
        &[("X-RunBlob-Signature", &prefixed)],
        &[("x-runblob-signature", &upper)],
    ];
    let bad: [&[(&str, &str)]; 4] = [
        &[],
        &[("x-runblob-signature", &wrong)],
        &[("x-runblob-signature", "")],
        &[("x-runblob-signature", &BODY_SIGNATURE[1..])],
    ];
    for (mode, refused) in [("observe", 200), ("require", 401)] {
        let server = options(&file)
            .set("ingest.body_signature", mode)
            .start()
            .await;
        for (statuses, headers) in [(refused, &bad[..]), (200, &good[..])] {
            for headers in headers {
                assert_eq!(
                    post(&server, "/webhook/veo", headers, SIGNED_BODY)
                        .await
                        .status,
                    statuses,
                    "{headers:?}"
                );
            }
        }
        for (result, count) in [("valid", 3.0), ("invalid", 3.0), ("missing", 1.0)] {
            let metric = format!("blobcast_body_signatures_total{{result=\"{result}\"}}");
            assert_eq!(server.metric(&metric).await, count, "{mode} {result}");
        }
        let log = server.log_of_events().await;
        let first = match mode {
            "observe" => (Verification::Unverified, ""),
            _ => (Verification::BodySignature, "body_signature"),
        };
        let seen: Vec<_> = log
            .iter()
            .map(|event| (event.verification(), event.credential.as_str()))
            .collect();
        assert_eq!(seen, [first], "{mode}");
    }
}

#[tokio::test]
async fn the_signature_may_be_over_a_body_as_it_came_or_as_it_is_decompressed() {
    let mut file = CredentialsFile::new();
    file.add_line("body_signature", "secret = \"hunter2\"");
    let server = options(&file)
        .set("ingest.body_signature", "require")
        .start()
        .await;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(SIGNED_BODY.as_bytes()).unwrap();
    let compressed = encoder.finish().unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"hunter2");
    let over_wire: String = ring::hmac::sign(&key, &compressed)
        .as_ref()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    for (signature, status) in [
        (BODY_SIGNATURE, 200),
        (&over_wire, 200),
        (&BODY_SIGNATURE.replace('a', "b"), 401),
    ] {
        let request = Request::post(format!("http://{}/webhook/veo", server.ingest))
            .header("content-encoding", "gzip");
        let request = request.header("x-runblob-signature", signature);
        let request = request
            .body(Full::new(Bytes::from(compressed.clone())))
            .unwrap();
        assert_eq!(
            server.http().send(request).await.unwrap().status,
            status,
            "{signature}"
        );
    }
}

#[tokio::test]
async fn callbacks_from_unlisted_addresses_are_reported_or_refused() {
    let proxied = |mode: &str| {
        let options = Options::default()
            .set("ingest.allowlist", mode)
            .set("ingest.trusted_proxies", "127.0.0.0/8");
        options.set("ingest.allowed_networks", "198.51.100.0/24,2001:db8::/32")
    };
    for (mode, status) in [("report", 200), ("enforce", 403)] {
        let server = proxied(mode).start().await;
        for (client, status) in [
            ("198.51.100.7", 200),
            ("203.0.113.9, 198.51.100.7, 127.0.0.9", 200),
            ("2001:db8::7", 200),
            ("203.0.113.9", status),
            ("198.51.100.7, 203.0.113.9", status),
            ("nonsense", status),
        ] {
            let answer = post(
                &server,
                "/webhook/veo",
                &[("x-forwarded-for", client)],
                &task("t1"),
            )
            .await;
            assert_eq!(answer.status, status, "{mode} {client}");
        }
        assert_eq!(
            server
                .metric("blobcast_callbacks_from_unlisted_addresses_total")
                .await,
            3.0
        );
    }
}

#[tokio::test]
async fn a_sender_that_is_refused_too_often_must_slow_down_and_no_other() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let options = options(&file).set("ingest.refusals_per_minute_max", 3);
    let server = options
        .set("ingest.trusted_proxies", "127.0.0.1")
        .start()
        .await;
    let from = async |client: &str, target: &str| {
        let answer = post(&server, target, &[("x-forwarded-for", client)], &task("t1")).await;
        (
            answer.status,
            answer
                .headers
                .get("retry-after")
                .map(|value| value.to_str().unwrap().to_owned()),
        )
    };
    for target in ["/webhook/veo", "/nowhere", "/webhook/veo?token=x"] {
        assert!([401, 404].contains(&from("203.0.113.9", target).await.0));
    }
    for target in ["/webhook/veo", "/nowhere"] {
        assert_eq!(
            from("203.0.113.9", target).await,
            (429, Some("60".to_owned()))
        );
    }
    assert_eq!(
        from("203.0.113.10", "/webhook/veo").await.0,
        401,
        "another address"
    );
    assert_eq!(
        from("203.0.113.9", &format!("/webhook/veo?token={token}"))
            .await
            .0,
        200,
        "what is authentic passes"
    );
    assert_eq!(outcome(&server, "rate_limited").await, 2.0);
    // A flood is one line in the log, not thousands.
    for _ in 0..50 {
        from("203.0.113.9", "/webhook/veo").await;
    }
    until("a line", async || server.log().contains("rate_limited")).await;
    let lines = server
        .log()
        .lines()
        .filter(|line| line.contains("rate_limited"))
        .count();
    assert!((1..=5).contains(&lines), "{lines} lines");
}

#[tokio::test]
async fn what_is_released_from_quarantine_is_as_verified_as_it_was() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let server = options(&file).start().await;
    let answer = post(
        &server,
        &format!("/webhook/veo?token={token}"),
        &[],
        r#"{"status":"completed"}"#,
    )
    .await;
    assert_eq!(answer.status, 202);
    server
        .cli("quarantine release 1 --task-id t1")
        .run()
        .await
        .good();
    let event = server.log_of_events().await.remove(0);
    assert_eq!(
        (event.verification(), event.credential.as_str()),
        (Verification::UrlToken, "callback_token runblob")
    );
}

#[tokio::test]
async fn beyond_loopback_nothing_is_served_that_asks_nothing_of_callbacks() {
    let refused = async |file: &CredentialsFile| {
        let serve = Cli::new(
            "serve --ingest-listen 0.0.0.0:0 --grpc-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0",
        );
        let directory = tempfile::tempdir().unwrap();
        let serve = serve.arg("--data-dir").arg(directory.path().join("data"));
        serve
            .env("BLOBCAST_CREDENTIALS_FILE", file.path().display())
            .run()
            .await
    };
    let mut file = CredentialsFile::new();
    file.add("client billing --product veo").await;
    let told = refused(&file).await;
    assert!(
        told.exited(1)
            .contains("nothing is asked of callbacks: add [callback_tokens]"),
        "{told:?}"
    );
    let token = file.add("callback runblob").await;
    let exposed = [
        ([0, 0, 0, 0], 0).into(),
        ([127, 0, 0, 1], 0).into(),
        ([127, 0, 0, 1], 0).into(),
    ];
    // Refusals are many below, while a change is waited for.
    let server = options(&file)
        .set("ingest.refusals_per_minute_max", 1_000_000)
        .start_on(exposed)
        .await;
    let target = format!("/webhook/veo?token={token}");
    assert_eq!(post(&server, &target, &[], &task("t1")).await.status, 200);
    // The last token can be withdrawn as any other: then nobody is let in, rather than everybody.
    file.remove("runblob");
    until("the withdrawal", || async {
        post(&server, &target, &[], &task("t2")).await.status == 401
    })
    .await;
    assert_eq!(
        post(&server, "/webhook/veo", &[], &task("t2")).await.status,
        401
    );
    until("the warning", || async {
        server.log().contains("no callback is let in any more")
    })
    .await;
    let another = format!("/webhook/veo?token={}", file.add("callback another").await);
    until("another token", || async {
        post(&server, &another, &[], &task("t2")).await.status == 200
    })
    .await;
    assert_eq!(post(&server, &target, &[], &task("t3")).await.status, 401);
}

#[tokio::test]
async fn the_last_that_is_withdrawn_shuts_everybody_out_until_a_restart() {
    let mut file = CredentialsFile::new();
    let target = format!("/webhook/veo?token={}", file.add("callback runblob").await);
    let mut server = options(&file).start().await;
    file.remove("runblob");
    until("the withdrawal", || async {
        post(&server, &target, &[], &task("t1")).await.status == 401
    })
    .await;
    assert_eq!(
        post(&server, "/webhook/veo", &[], &task("t1")).await.status,
        401
    );
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(
        post(&server, "/webhook/veo", &[], &task("t1")).await.status,
        200,
        "loopback asks for nothing"
    );

    file.add_line("body_signature", "secret = \"hunter2\"");
    let server = options(&file)
        .set("ingest.body_signature", "require")
        .start()
        .await;
    let signed = async || {
        post(
            &server,
            "/webhook/veo",
            &[("x-runblob-signature", BODY_SIGNATURE)],
            SIGNED_BODY,
        )
        .await
    };
    assert_eq!(signed().await.status, 200);
    file.remove("hunter2");
    until("the withdrawal", || async { signed().await.status == 401 }).await;
    until("the warning", || async {
        server.log().contains("has no [body_signature] left")
    })
    .await;
}

#[tokio::test]
async fn secrets_are_in_no_log_trace_metric_listing_error_or_answer() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let key = file.add("signing-key k1").await;
    let client = file.add("client operator --all-products --admin").await;
    let (secret, wrong) = ("whisper-whisper", "mumble-mumble");
    file.add_line("body_signature", &format!("secret = \"{secret}\""));
    let collector = Collector::start().await;
    let endpoint = format!("http://{}", collector.address);
    let options = options(&file)
        .set("logging.level", "trace")
        .set("traces.otlp_endpoint", endpoint);
    let (directory, options) = (
        tempfile::tempdir().unwrap(),
        options.set("ingest.body_signature", "observe"),
    );
    let audit_file = directory.path().join("audit.jsonl");
    let mut server = options
        .set("audit.file", audit_file.display())
        .start()
        .await;
    let ask =
        async |line: &str, token: &str| server.cli(line).env("BLOBCAST_TOKEN", token).run().await;
    let minted = ask("url --product veo", &client)
        .await
        .good()
        .trim_end()
        .to_owned();
    let signature = minted.split("&sig=").nth(1).unwrap().to_owned();
    let targets = [
        format!("/webhook/veo?token={token}"),
        format!("/webhook/veo?token={token}&bad=\u{20}"),
        minted[minted.find("/webhook").unwrap()..].to_owned(),
        format!("/webhook/veo?token={token}x"),
        format!("/webhook/veo?exp=1&kid=k1&sig={signature}"),
    ];
    let mut shown = String::new();
    for target in &targets {
        for body in [task("t1"), "no JSON, but hush-hush".to_owned()] {
            let headers = [("x-runblob-signature", wrong)];
            shown += &format!(
                "{:?}",
                post(&server, &target.replace(' ', "%20"), &headers, &body).await
            );
        }
    }
    shown += &server.admin_get("/metrics").await.1;
    for line in [
        "quarantine list",
        "quarantine show 1",
        "events",
        "subscriptions",
    ] {
        shown += ask(&format!("{line} --output json"), &client).await.good();
        shown += &format!("{:?}", ask(line, &format!("{client}x")).await);
    }
    file.add_line("clients", &format!("spare = {{ secret = \"{wrong}\" }}"));
    until("the complaint", || async {
        server.log().contains("the credentials stay as they were")
    })
    .await;
    assert!(server.terminate().await.success());
    shown += &server.log();
    let records = std::fs::read_to_string(&audit_file).unwrap();
    assert!(
        records.contains("MintCallbackUrl") && records.contains("\"refused\""),
        "{records}"
    );
    shown += &records;
    let spans = collector.spans();
    let traced = spans.iter().filter(|span| span.name == "callback").count();
    assert_eq!(
        traced, 6,
        "those that are authentic; what is not traced proves nothing"
    );
    shown += &format!("{spans:?}");
    for secret in [&token, &key, &signature, &client, secret, wrong] {
        assert!(!shown.contains(secret), "a secret is shown");
    }
    assert!(!server.log().contains("hush-hush") && !format!("{spans:?}").contains("hush-hush"));
}
