//! The JSON door for web pages of other origins, and tickets for their streams.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};

use crate::support::{
    Answer, CredentialsFile, Http, Options, Server, completed, tasks, until, within,
};

const APP: &str = "https://app.example.com";

async fn ask(
    server: &Server,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{target}", server.grpc));
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let body = if method == "POST" {
        body.to_string()
    } else {
        String::new()
    };
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    Http::new(server.grpc).send(request).await.unwrap()
}

/// Status, headers, and the beginning of the body of a stream.
async fn begin(server: &Server, query: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, String) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::get(format!("http://{}/v1/events/stream{query}", server.grpc));
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let request = request.body(Full::default()).unwrap();
    let answer = within("an answer", client.request(request)).await.unwrap();
    let (head, mut body) = answer.into_parts();
    let mut read = String::new();
    while !read.contains("event: event\n") && !read.contains("\"status\":4") {
        let Some(frame) = within("a frame", body.frame()).await else {
            break;
        };
        let data = frame.unwrap().into_data().unwrap();
        read.push_str(std::str::from_utf8(&data).unwrap());
    }
    (head.status.as_u16(), head.headers, read)
}

#[tokio::test]
async fn a_page_of_a_known_origin_may_ask_and_no_other() {
    let server = Options::default()
        .set("grpc.cors_origins", APP)
        .start()
        .await;
    let page = [("origin", APP), ("sec-fetch-site", "cross-site")];
    let answer = ask(&server, "GET", "/v1/events", &page, &Value::Null).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["access-control-allow-origin"], APP);
    assert_eq!(answer.headers["vary"], "origin");
    let exposed = answer.headers["access-control-expose-headers"]
        .to_str()
        .unwrap();
    assert!(exposed.contains("x-request-id"));
    let missing = ask(&server, "GET", "/v1/tasks/t1", &page, &Value::Null).await;
    assert_eq!((missing.status, missing.reason()), (404, "TASK_NOT_FOUND"));
    assert_eq!(
        missing.headers["access-control-allow-origin"], APP,
        "errors can be read, too"
    );

    let preflight = [
        ("origin", APP),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type",
        ),
    ];
    let allowed = ask(
        &server,
        "OPTIONS",
        "/v1/GetLogInfo",
        &preflight,
        &Value::Null,
    )
    .await;
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.headers["access-control-allow-origin"], APP);
    let headers = allowed.headers["access-control-allow-headers"]
        .to_str()
        .unwrap();
    assert!(headers.contains("authorization") && headers.contains("content-type"));

    for origin in [
        "https://evil.example",
        "null",
        "https://app.example.com.evil.example",
    ] {
        let other = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
        ];
        let asked = ask(&server, "OPTIONS", "/v1/GetLogInfo", &other, &Value::Null).await;
        assert_eq!(asked.status, 405);
        assert!(!asked.headers.contains_key("access-control-allow-origin"));
        let refused = ask(&server, "GET", "/v1/events", &other[..1], &Value::Null).await;
        assert_eq!(refused.status, 403, "{origin}");
        assert!(!refused.headers.contains_key("access-control-allow-origin"));
    }
    let both = [("origin", APP), ("origin", "https://evil.example")];
    assert_eq!(
        ask(&server, "GET", "/v1/events", &both, &Value::Null)
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn a_ticket_opens_one_stream_with_the_permissions_of_its_client() {
    let mut file = CredentialsFile::new();
    let token = file.add("client team --product veo").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    server.http().post(&completed("t1")).await;
    let bearer = format!("Bearer {token}");
    let json = ("content-type", "application/json");
    let shown = [json, ("authorization", bearer.as_str())];
    let request = json!({"filter": {"task_ids": ["t1"]}, "position": "START_POSITION_EARLIEST"});
    let issue =
        async |request: &Value| ask(&server, "POST", "/v1/stream-tickets", &shown, request).await;

    let unknown = ask(&server, "POST", "/v1/stream-tickets", &[json], &request).await;
    assert_eq!((unknown.status, unknown.reason()), (401, "TOKEN_INVALID"));
    let issued = issue(&request).await;
    assert_eq!(issued.status, 200, "{}", issued.json);
    assert_eq!(issued.json["expires_in"], "60s");
    let query = format!("?ticket={}", issued.json["ticket"].as_str().unwrap());
    let (status, headers, text) = begin(&server, &query, &[]).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(headers["content-type"], "text/event-stream");
    assert!(text.contains(r#""taskId":"t1""#), "{text}");

    let (status, _, text) = begin(&server, &query, &[]).await;
    assert!(
        status == 401 && text.contains("TOKEN_INVALID"),
        "used: {text}"
    );
    let both = format!("{query}&product=veo");
    assert_eq!(begin(&server, &both, &[]).await.0, 400);

    let other = json!({"filter": {"products": ["kling"]}});
    let issued = issue(&other).await;
    let query = format!("?ticket={}", issued.json["ticket"].as_str().unwrap());
    let (status, _, text) = begin(&server, &query, &[]).await;
    assert!(status == 403 && text.contains("PRODUCT_DENIED"), "{text}");

    let malformed = issue(&json!({"filters": {}})).await;
    assert_eq!(
        (malformed.status, malformed.reason()),
        (400, "INVALID_REQUEST")
    );
    let large = json!({"filter": {"task_ids": ["x".repeat(20_000)]}});
    let large = issue(&large).await;
    assert_eq!((large.status, large.reason()), (413, "REQUEST_TOO_LARGE"));
    assert_eq!(large.json["metadata"]["limit"], "16384");
    let detail = large.json["detail"].as_str().unwrap();
    assert!(detail.contains("several tickets"), "{detail}");

    let mut codes = Vec::new();
    for _ in 0..130 {
        codes.push(issue(&request).await.status);
    }
    assert_eq!(codes.iter().filter(|&&code| code == 200).count(), 128);
    assert_eq!(codes.last(), Some(&429));
}

#[tokio::test]
async fn a_client_that_may_only_back_up_gets_the_description_and_no_event() {
    let mut file = CredentialsFile::new();
    let token = file.add("client nightly --backup").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    server.http().post(&completed("t1")).await;
    let bearer = format!("Bearer {token}");
    let shown = [
        ("content-type", "application/json"),
        ("authorization", bearer.as_str()),
    ];
    let read = async |target: &str| ask(&server, "GET", target, &shown, &Value::Null).await;
    let described = read("/v1/openapi.json").await;
    assert_eq!(described.status, 200, "as by reflection");
    for target in ["/v1/events", "/v1/tasks/t1", "/v1/tasks/t1?wait=1s"] {
        let refused = read(target).await;
        assert_eq!((refused.status, refused.reason()), (403, "PRODUCT_DENIED"));
    }

    for filter in [json!({}), json!({"products": ["veo"]})] {
        let wanted = json!({"filter": filter, "position": "START_POSITION_EARLIEST"});
        let issued = ask(&server, "POST", "/v1/stream-tickets", &shown, &wanted).await;
        let query = format!("?ticket={}", issued.json["ticket"].as_str().unwrap());
        let (status, _, text) = begin(&server, &query, &[]).await;
        assert!(status == 403 && text.contains("PRODUCT_DENIED"), "{text}");
    }
}

#[tokio::test]
async fn a_ticket_is_not_used_up_by_a_refusal_that_passes() {
    let server = Options::default()
        .set("grpc.subscriptions_max", "1")
        .start()
        .await;
    server.http().post(&completed("t1")).await;
    let json = [("content-type", "application/json")];
    let wanted = json!({"position": "START_POSITION_EARLIEST"});
    let issued = ask(&server, "POST", "/v1/stream-tickets", &json, &wanted).await;
    let query = format!("?ticket={}", issued.json["ticket"].as_str().unwrap());

    let open = server.subscribe(tasks(["t2"])).await;
    let source = [("accept", "text/event-stream")];
    let (status, _, text) = begin(&server, &query, &source).await;
    assert!(status == 200 && text.contains("event: problem"), "{text}");
    assert!(text.contains("retry: "), "{text}");
    drop(open);
    until("room", async || server.subscriptions().await.is_empty()).await;
    let (status, _, text) = begin(&server, &query, &source).await;
    assert!(status == 200 && text.contains(r#""taskId":"t1""#), "{text}");
    assert_eq!(begin(&server, &query, &source).await.0, 401);
}
