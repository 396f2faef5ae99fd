//! Log lines and metrics answer an operator's questions: why was a callback refused, whose
//! connection was rejected, which client is slow, disconnected, or has lost events.

use blobcast::{
    credentials::{TokenHash, new_secret},
    wire::v1::{SubscribeRequest, SubscriptionState},
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::support::{
    CredentialsFile, Options, Running, Server, completed, request, until, within,
};

/// The first line of the log that holds all of these texts.
async fn line(server: &Server, texts: &[&str]) -> Value {
    let mut found = None;
    until(&format!("a line with {texts:?}"), || {
        let log = server.log();
        found = log
            .lines()
            .find(|line| texts.iter().all(|text| line.contains(text)))
            .map(str::to_owned);
        std::future::ready(found.is_some())
    })
    .await;
    serde_json::from_str(&found.unwrap()).unwrap()
}

async fn refused(server: &Server, labels: &str) -> f64 {
    server
        .metric(&format!("blobcast_callbacks_refused_total{{{labels}}}"))
        .await
}

/// A broker that has refused callbacks for each cause, by what is behind `/webhook/`; and the secrets that were shown.
async fn refuses_for_each_cause() -> (Server, CredentialsFile, [String; 2]) {
    let mut file = CredentialsFile::new();
    let (removed, expired) = (file.add("callback removed").await, new_secret(true));
    file.add("callback stays").await;
    file.add("signing-key k1").await;
    let old = format!(
        "old = {{ token = \"{}\", expires = 2026-01-01 }}",
        TokenHash::of(&expired)
    );
    file.add_line("callback_tokens", &old);
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let mint = async |line: &str| {
        let minted = server.cli(line).run().await;
        minted
            .good()
            .trim_end()
            .split_once("/webhook/")
            .unwrap()
            .1
            .to_owned()
    };
    let (signed, late) = (
        mint("url --product veo").await,
        mint("url --product veo --ttl 1s").await,
    );

    let http = server.http();
    let post = async |target: &str| {
        let answer = http
            .post_to(&format!("/webhook/{target}"), completed("t1").to_string())
            .await;
        (answer.status, answer.json.to_string())
    };
    assert_eq!(post(&format!("veo?token={removed}")).await.0, 200);
    file.remove("removed =");
    until("it to be removed", async || {
        post(&format!("veo?token={removed}")).await.0 == 401
    })
    .await;
    until("the URL to be late", async || post(&late).await.0 == 410).await;
    let (other, changed) = (
        signed.replace("kid=k1", "kid=k9"),
        signed.replace("veo?", "sora?"),
    );
    let mut told = Vec::new();
    for target in [
        "veo",
        "veo?token=x",
        &format!("veo?token={expired}"),
        &other,
        &changed,
        "made-up?token=x",
    ] {
        let (status, body) = post(target).await;
        assert_eq!(status, 401, "{target}");
        told.push(body);
    }
    told.dedup();
    assert_eq!(told.len(), 1, "a guesser learns nothing: {told:?}");
    (server, file, [removed, expired])
}

#[tokio::test]
async fn a_refused_callback_says_why_and_whose_it_is_and_its_sender_learns_nothing() {
    let (server, _file, secrets) = refuses_for_each_cause().await;
    for (cause, credential, text) in [
        ("missing", None, "neither a token nor a signature"),
        ("unknown_token", None, "not in the credentials file"),
        ("expired", Some("callback_token old"), "has expired"),
        (
            "removed",
            Some("callback_token removed"),
            "was removed from the credentials file",
        ),
        (
            "unknown_key",
            None,
            "names a signing key that is not in the credentials file",
        ),
        ("bad_signature", None, "made for another product"),
        ("url_expired", Some("signing_key k1"), "past its `exp`"),
    ] {
        let line = line(&server, &[&format!("\"cause\":\"{cause}\"")]).await;
        assert_eq!(line["credential"].as_str(), credential, "{line}");
        assert!(line["message"].as_str().unwrap().contains(text), "{line}");
        assert_eq!(line["request_id"].as_str().unwrap().len(), 32);
        assert!(
            line["path"].as_str().unwrap().starts_with("/webhook/") && line["level"] == "WARN",
            "{line}"
        );
    }
    let unknown = line(&server, &["\"cause\":\"unknown_key\""]).await;
    assert_eq!(
        (&unknown["key_id"], &unknown["product"]),
        (&"k9".into(), &"veo".into())
    );
    let claimed = line(&server, &["\"cause\":\"bad_signature\""]).await;
    assert_eq!(claimed["key_id"], "k1", "named, not proved");
    secrets
        .iter()
        .for_each(|secret| assert!(!server.log().contains(secret)));
}

#[tokio::test]
async fn no_secret_in_a_path_gets_into_the_log_and_each_product_has_its_line() {
    let mut file = CredentialsFile::new();
    file.add("callback vendor").await;
    let removed = file.add("callback removed").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let post = async |target: &str| {
        server
            .http()
            .post_to(target, completed("t1").to_string())
            .await
            .status
    };
    assert_eq!(post(&format!("/webhook/veo?token={removed}")).await, 200);
    file.remove("removed =");
    until("it to be removed", async || {
        post(&format!("/webhook/veo?token={removed}")).await == 401
    })
    .await;

    let secret = new_secret(true);
    let long = "x".repeat(1_000);
    for (target, status) in [
        (format!("/webhook/veo&token={secret}"), 401),
        // Each for another cause, because one line is written of each.
        (format!("/webhook/veo%26sig%3D{secret}?token=x"), 401),
        (format!("/webhook/{secret}?token={removed}"), 401),
        (format!("/Webhook/veo&token={secret}"), 404),
        (format!("/webhook/{long}?exp=1&kid=k9&sig=x"), 401),
        (format!("/webhook/sora?token={removed}"), 401),
        (format!("/webhooks/kling-o1-video?token={removed}"), 404),
    ] {
        assert_eq!(post(&target).await, status, "{target}");
    }
    let near_miss = line(
        &server,
        &["\"reason\":\"not_found\"", "\"cause\":\"removed\""],
    )
    .await;
    assert_eq!(near_miss["credential"], "callback_token removed");
    let told = line(&server, &["\"cause\":\"missing\"", "\"product\":\"other\""]).await;
    assert_eq!(told["path"], "/webhook/veo");
    for (cause, product) in [
        ("unknown_token", "other"),
        ("removed", "other"),
        ("unknown_key", "other"),
        ("removed", "sora"),
    ] {
        line(
            &server,
            &[
                &format!("\"cause\":\"{cause}\""),
                &format!("\"product\":\"{product}\""),
            ],
        )
        .await;
    }
    let log = server.log();
    assert!(!log.contains(&secret) && !log.contains(&removed), "{log}");
    assert!(!log.contains(&long[..201]), "{log}");
}

#[tokio::test]
async fn refused_callbacks_are_counted_by_cause_credential_and_product_and_no_stranger_adds_a_name()
{
    let (server, _file, _) = refuses_for_each_cause().await;
    for (cause, kind, name, product) in [
        ("expired", "callback_token", "old", "veo"),
        ("bad_signature", "", "", "sora"),
        ("unknown_key", "", "", "veo"),
        ("unknown_token", "", "", "other"),
        ("unknown_token", "", "", "veo"),
        ("missing", "", "", "veo"),
    ] {
        let labels =
            format!("cause=\"{cause}\",kind=\"{kind}\",name=\"{name}\",product=\"{product}\"");
        assert_eq!(refused(&server, &labels).await, 1.0, "{labels}");
    }
    let removed = "cause=\"removed\",kind=\"callback_token\",name=\"removed\",product=\"veo\"";
    assert!(refused(&server, removed).await >= 1.0);
}

#[tokio::test]
async fn what_a_listener_does_not_speak_is_logged_with_the_next_step_and_counted() {
    let server = Options::default()
        .set("grpc.connections_per_address_max", 2_000)
        .start()
        .await;
    let cases: [(&str, &[u8], &str, &str); 4] = [
        (
            "ingest",
            b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 80\r\nPOST / HTTP/1.1\r\n\r\n",
            "proxy_header_unexpected",
            "ingest.proxy_protocol",
        ),
        (
            "ingest",
            b"\x16\x03\x01\x00\x05hello\r\n\r\n",
            "tls_unexpected",
            "use http://",
        ),
        (
            "grpc",
            b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 80\r\n",
            "proxy_header_unexpected",
            "send-proxy",
        ),
        (
            "grpc",
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "not_http2",
            "gRPC is HTTP/2",
        ),
    ];
    for (listener, bytes, cause, step) in cases {
        let address = if listener == "ingest" {
            server.ingest
        } else {
            server.grpc
        };
        for _ in 0..3 {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let _ = within("the end", stream.read_to_end(&mut Vec::new())).await;
        }
        let (of_cause, of_listener) = (
            format!("\"cause\":\"{cause}\""),
            format!("\"listener\":\"{listener}\""),
        );
        let told = line(&server, &[&of_cause, &of_listener]).await;
        assert!(
            told["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
            "{told}"
        );
        assert!(
            told["message"].as_str().unwrap().contains(step) && told["level"] == "WARN",
            "{told}"
        );
        let metric = format!(
            "blobcast_connections_refused_total{{cause=\"{cause}\",listener=\"{listener}\"}}"
        );
        until("all to be counted", async || {
            server.metric(&metric).await == 3.0
        })
        .await;
    }
}

/// A broker with a client, and what stands for it on the command line.
async fn with_client(
    name: &str,
    more: impl FnOnce(Options) -> Options,
) -> (Server, CredentialsFile, String) {
    let mut file = CredentialsFile::new();
    let token = file
        .add(&format!("client {name} --all-products --admin"))
        .await;
    let server = more(Options::default().set("credentials_file", file.path().display()))
        .start()
        .await;
    (server, file, token)
}

#[tokio::test]
async fn a_stream_is_logged_with_its_client_when_it_opens_when_it_is_refused_and_when_it_ends() {
    let (server, mut file, token) = with_client("billing", |options| options).await;
    server.http().post(&completed("t1")).await;
    let listen = |line: &str| server.cli(line).env("BLOBCAST_TOKEN", &token);
    let mut running: Running = listen("listen --from earliest --output json").start();
    running.prints_lines(1).await;
    let opened = line(
        &server,
        &["\"message\":\"subscribed\"", "\"client\":\"billing\""],
    )
    .await;
    assert!(
        opened["client_name"].as_str().unwrap().contains("blobcast"),
        "{opened}"
    );
    assert!(
        opened["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{opened}"
    );
    assert_eq!(
        opened["span"]["request_id"].as_str().unwrap().len(),
        32,
        "{opened}"
    );
    running.signal(rustix::process::Signal::INT);
    running.status().await;
    let ended = line(
        &server,
        &[
            "\"message\":\"subscription ended\"",
            "\"client\":\"billing\"",
        ],
    )
    .await;
    assert_eq!(ended["subscription_id"], opened["subscription_id"]);
    let place = |key: &str| ended[key].as_u64().unwrap();
    assert_eq!(
        (place("position"), place("lag"), place("delivered")),
        (1, 0, 1)
    );
    assert_eq!(ended["cause"], "client_gone");

    let unknown = server
        .cli("events")
        .env("BLOBCAST_TOKEN", "bcast_unknown")
        .run()
        .await;
    assert_eq!(unknown.code, Some(1));
    line(
        &server,
        &["call refused", "\"cause\":\"unknown_token\"", "ListEvents"],
    )
    .await;
    file.remove("billing =");
    file.add("client other --all-products").await;
    until("the client to be unknown", async || {
        listen("events").run().await.code == Some(1)
    })
    .await;
    let told = line(&server, &["call refused", "\"cause\":\"removed\""]).await;
    assert_eq!(
        (&told["client"], &told["level"]),
        (&"billing".into(), &"WARN".into())
    );
}

#[tokio::test]
async fn a_refused_stream_is_logged_with_the_name_it_gives_itself() {
    let (server, _file, token) =
        with_client("billing", |options| options.set("grpc.task_ids_max", 1)).await;
    let refused = server
        .cli("listen --task a --task b")
        .env("BLOBCAST_TOKEN", &token)
        .run()
        .await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let told = line(&server, &["call refused", "SUBSCRIPTION_LIMIT"]).await;
    assert_eq!(told["client"], "billing");
    assert!(
        told["client_name"].as_str().unwrap().contains("blobcast"),
        "{told}"
    );
    assert!(
        told["method"].as_str().unwrap().ends_with("/Subscribe"),
        "{told}"
    );
}

#[tokio::test]
async fn a_name_that_is_too_long_is_not_in_the_log() {
    let server = Server::start().await;
    let long = "n".repeat(100_000);
    let name = SubscribeRequest {
        client_name: long.clone(),
        ..request()
    };
    assert_eq!(
        server
            .try_subscribe(name)
            .await
            .map(|_| ())
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    let told = line(&server, &["call refused", "client_name", "Subscribe"]).await;
    assert!(told["client_name"].is_null(), "{told}");
    assert!(!server.log().contains(&long[..201]));
}

#[tokio::test]
async fn a_reader_that_stands_still_is_shown_as_stalled_and_told_and_again_when_it_reads() {
    let server = Server::start().await;
    let mut stalled = server.subscribe_narrowly(request()).await;
    server.http().post_bulky(0..100, 20_000).await;
    let state = async || server.subscriptions().await[0].state();
    until("it to be stalled", async || {
        state().await == SubscriptionState::Stalled
    })
    .await;
    assert_eq!(server.metric("blobcast_subscriptions_stalled").await, 1.0);
    let told = line(&server, &["subscription stands still"]).await;
    assert_eq!(
        (&told["client_name"], &told["level"]),
        (&"a test".into(), &"WARN".into())
    );
    assert!(told["lag"].as_u64().unwrap() > 0, "{told}");
    let shown = server.cli("subscriptions").run().await;
    assert!(shown.good().contains("stalled"), "{shown:?}");

    stalled.next_events(100).await;
    until("it to read again", async || {
        state().await == SubscriptionState::Live
    })
    .await;
    line(&server, &["subscription reads again"]).await;
    assert_eq!(server.metric("blobcast_subscriptions_stalled").await, 0.0);
    drop(stalled);
}

#[tokio::test]
async fn what_a_client_has_lost_is_counted_by_its_name_and_told() {
    let few = |options: Options| {
        options
            .set("log.retention_bytes_max", "1MiB")
            .set("ingest.body_bytes_max", "480KiB")
    };
    let (server, _file, token) = with_client("billing", few).await;
    server.http().post(&completed("t1")).await;
    let cursor = {
        let listed = server
            .cli("events --output json")
            .env("BLOBCAST_TOKEN", &token)
            .run()
            .await;
        listed.json_lines()[0]["cursor"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    server.http().post_bulky(2..70, 20_000).await;
    let losses = async |kind: &str| {
        server
            .metric(&format!(
                "blobcast_losses_total{{client=\"billing\",kind=\"{kind}\"}}"
            ))
            .await
    };
    let listen = |more: &str| {
        server
            .cli(&format!("listen --from {cursor} --output json {more}"))
            .env("BLOBCAST_TOKEN", &token)
    };
    until("the cursor to be expired", async || {
        listen("--count 1").run().await.code == Some(1)
    })
    .await;
    assert!(losses("cursor_expired").await >= 1.0);
    assert_eq!(losses("gap").await, 0.0);
    listen("--on-expired earliest --count 1").run().await.good();
    assert_eq!(losses("gap").await, 1.0);
    let told = line(
        &server,
        &[
            "events were forgotten before this client had read them",
            "cursor_expired",
        ],
    )
    .await;
    assert_eq!(
        (&told["client"], told["after"].as_u64()),
        (&"billing".into(), Some(1))
    );
    assert!(
        told["through"].as_u64().unwrap() > 1 && told["level"] == "WARN",
        "{told}"
    );
}
