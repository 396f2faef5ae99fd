//! The JSON door on the gRPC listener, by clients that know HTTP and JSON only.

use blobcast::wire::v1::GetLogInfoRequest;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Answer, CredentialsFile, Http, Options, Server, completed, processing, until, within,
};

/// A request with a method, a target of the gRPC listener, headers, and a body.
async fn ask(
    server: &Server,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{target}", server.grpc));
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let request = request.body(Full::new(body.into())).unwrap();
    Http::new(server.grpc).send(request).await.unwrap()
}

async fn get(server: &Server, target: &str) -> Answer {
    ask(server, "GET", target, &[], "").await
}

async fn post(server: &Server, rpc: &str, body: &Value) -> Answer {
    let json = [("content-type", "application/json")];
    ask(
        server,
        "POST",
        &format!("/v1/{rpc}"),
        &json,
        body.to_string(),
    )
    .await
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let values: Vec<_> = answer.headers.get_all(name).iter().collect();
    assert_eq!(values.len(), 1, "{name}: {:?}", answer.headers);
    values[0].to_str().unwrap()
}

/// That an answer is a problem, and of what status and reason.
fn refused(answer: &Answer, status: u16, reason: Option<&str>) {
    assert_eq!(answer.status, status, "{}", answer.json);
    assert_eq!(header(answer, "content-type"), "application/problem+json");
    assert_eq!(answer.json["status"], status);
    assert_eq!(answer.json["reason"].as_str(), reason, "{}", answer.json);
    assert_eq!(answer.json["request_id"], header(answer, "x-request-id"));
    assert!(answer.json["detail"].is_string() && answer.json["title"].is_string());
}

#[tokio::test]
async fn a_task_is_read_and_waited_for_by_its_address() {
    let server = Server::start().await;
    let unknown = get(&server, "/v1/tasks/t1").await;
    refused(&unknown, 404, Some("TASK_NOT_FOUND"));
    assert_eq!(unknown.json["code"], "NOT_FOUND");
    let early = get(&server, "/v1/tasks/t1?wait=0.1s").await;
    assert_eq!((early.status, early.json), (200, json!({"done": false})));

    let waiting = get(&server, "/v1/tasks/t1?product=veo&wait=50s");
    let (waited, ()) = tokio::join!(waiting, async {
        until("the wait", async || {
            !server.subscriptions().await.is_empty()
        })
        .await;
        server.http().post(&completed("t1")).await;
    });
    assert_eq!(waited.status, 200);
    assert_eq!(waited.json["done"], true);
    assert_eq!(waited.json["event"]["status"], "TASK_STATUS_COMPLETED");
    assert_eq!(header(&waited, "content-type"), "application/json");
    assert_eq!(header(&waited, "cache-control"), "no-store");

    let task = get(&server, "/v1/tasks/t1").await;
    let events = task.json["events"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    let event = &events[0];
    let of_log = &server.log_of_events().await[0];
    assert_eq!(event["eventId"], of_log.event_id);
    assert_eq!(event["cursor"], of_log.cursor);
    assert_eq!(event["outputs"][0]["url"], of_log.outputs[0].url);
    assert_eq!(event["conflict"], false, "also what is not set is there");
}

#[tokio::test]
async fn history_comes_in_pages_or_as_lines_of_all_of_them() {
    let server = Server::start().await;
    for number in 0..5 {
        server.http().post(&completed(&format!("t{number}"))).await;
    }
    server.http().post(&processing("t5")).await;

    let page = get(
        &server,
        "/v1/events?status=completed&page_size=2&order=newest_first",
    )
    .await;
    let ids = |page: &Answer| -> Vec<_> {
        let events = page.json["events"].as_array().unwrap().clone();
        events
            .iter()
            .map(|event| event["taskId"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&page), ["t4", "t3"]);
    let token = page.json["nextPageToken"].as_str().unwrap();
    let next =
        format!("/v1/events?status=completed&page_size=2&order=newest_first&page_token={token}");
    assert_eq!(ids(&get(&server, &next).await), ["t2", "t1"]);
    assert!(ids(&get(&server, "/v1/events?product=kling").await).is_empty());

    let lines = [("accept", "application/x-ndjson")];
    let export = ask(&server, "GET", "/v1/events?page_size=2", &lines, "").await;
    assert_eq!(header(&export, "content-type"), "application/x-ndjson");
    let lines: Vec<Value> = export
        .json
        .as_str()
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let cursors: Vec<_> = lines
        .iter()
        .map(|line| line["cursor"].as_str().unwrap())
        .collect();
    let of_log = server.log_of_events().await;
    assert_eq!(
        cursors,
        of_log
            .iter()
            .map(|event| &*event.cursor)
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn every_unary_rpc_is_asked_by_its_name() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await;
    let info = server.log_info().await;
    let answer = post(&server, "GetLogInfo", &json!({})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json["epoch"], info.epoch);
    assert_eq!(answer.json["eventCount"], "1", "64 bits are a string");
    let empty = ask(&server, "POST", "/v1/GetLogInfo", &[], "").await;
    assert_eq!(empty.json["head"], info.head);

    let described = get(&server, "/v1/openapi.json").await;
    assert_eq!(header(&described, "content-type"), "application/json");
    let paths = described.json["paths"].as_object().unwrap();
    assert!(paths.contains_key("/v1/GetLogInfo") && paths.contains_key("/v1/tasks/{task_id}"));

    let minted = post(&server, "MintCallbackUrl", &json!({"product": "veo"})).await;
    refused(&minted, 400, Some("SIGNING_KEY_MISSING"));
    let erased = post(
        &server,
        "EraseTask",
        &json!({"task_id": "t1", "product": "veo"}),
    )
    .await;
    assert_eq!(erased.status, 200, "{}", erased.json);
    refused(
        &get(&server, "/v1/tasks/t1").await,
        404,
        Some("TASK_NOT_FOUND"),
    );
}

#[tokio::test]
async fn a_request_that_cannot_be_meant_is_refused_with_the_next_step() {
    let server = Options::default()
        .set("grpc.request_bytes_max", "1KiB")
        .start()
        .await;
    let json = [("content-type", "application/json; charset=utf-8")];
    for (method, target, headers, body, status, reason, named) in [
        (
            "GET",
            "/v1/nothing",
            &json,
            "",
            404,
            Some("UNKNOWN_METHOD"),
            "/v1/RPC",
        ),
        ("GET", "/v1/GetLogInfo", &json, "", 405, None, "POST only"),
        ("POST", "/v1/events", &json, "{}", 405, None, "GET only"),
        (
            "POST",
            "/v1/Subscribe",
            &json,
            "{}",
            501,
            Some("UNKNOWN_METHOD"),
            "stream",
        ),
        (
            "GET",
            "/v1/events?prodcut=veo",
            &json,
            "",
            400,
            Some("INVALID_REQUEST"),
            "prodcut",
        ),
        (
            "POST",
            "/v1/GetTask",
            &json,
            r#"{"task":"t1"}"#,
            400,
            Some("INVALID_REQUEST"),
            "'task'",
        ),
        (
            "POST",
            "/v1/GetTask",
            &json,
            "{",
            400,
            Some("INVALID_REQUEST"),
            "GetTaskRequest",
        ),
        (
            "POST",
            "/v1/GetTask",
            &json,
            "{}",
            400,
            Some("INVALID_REQUEST"),
            "task_id",
        ),
        (
            "POST",
            "/v1/GetTask",
            &[("content-type", "text/plain")],
            "{}",
            415,
            None,
            "application/json",
        ),
    ] {
        let answer = ask(&server, method, target, headers, body).await;
        refused(&answer, status, reason);
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.contains(named), "{method} {target}: {detail}");
    }
    for target in ["/v1", "/v1/"] {
        refused(&get(&server, target).await, 404, Some("UNKNOWN_METHOD"));
    }
    let unset = post(&server, "GetTask", &json!({})).await;
    assert_eq!(unset.json["violations"][0]["field"], "task_id");
    let allowed = get(&server, "/v1/GetLogInfo").await;
    assert_eq!(header(&allowed, "allow"), "POST");

    let most = json!({"task_id": "x".repeat(900)});
    refused(
        &post(&server, "GetTask", &most).await,
        400,
        Some("INVALID_REQUEST"),
    );
    let more = json!({"task_id": "x".repeat(1_024)});
    let large = post(&server, "GetTask", &more).await;
    refused(&large, 413, Some("REQUEST_TOO_LARGE"));
    assert_eq!(large.json["metadata"]["limit"], "1024");
    assert_eq!(get(&server, "/v1/events").await.status, 200);
}

#[tokio::test]
async fn credentials_and_permissions_are_those_of_grpc() {
    let mut file = CredentialsFile::new();
    let token = file.add("client team --product veo").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let bearer = format!("Bearer {token}");
    let json = ("content-type", "application/json");

    for headers in [&[json][..], &[json, ("authorization", "Bearer no")]] {
        let answer = ask(&server, "POST", "/v1/GetLogInfo", headers, "{}").await;
        refused(&answer, 401, Some("TOKEN_INVALID"));
        assert_eq!(header(&answer, "www-authenticate"), "Bearer");
    }
    assert_eq!(
        server.metric("blobcast_grpc_unauthenticated_total").await,
        2.0
    );

    let shown = [json, ("authorization", bearer.as_str())];
    let answer = ask(&server, "GET", "/v1/events?product=veo", &shown, "").await;
    assert_eq!(answer.status, 200);
    let answer = ask(&server, "GET", "/v1/events?product=kling", &shown, "").await;
    refused(&answer, 403, Some("PRODUCT_DENIED"));
    assert_eq!(answer.json["metadata"]["product"], "kling");
    let answer = ask(&server, "POST", "/v1/ListSubscriptions", &shown, "{}").await;
    refused(&answer, 403, Some("ADMIN_DENIED"));
    let id = answer.json["request_id"].as_str().unwrap();
    server.logged(id, 2).await; // the refusal, and its audit record

    // A name of its own is no sign of a foreign page where a token is shown.
    let named = [
        json,
        ("authorization", bearer.as_str()),
        ("host", "blobcast.internal"),
    ];
    assert_eq!(
        ask(&server, "POST", "/v1/GetLogInfo", &named, "{}")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_web_page_gets_nothing_out_of_an_open_listener() {
    let server = Options::default()
        .set("grpc.hosts", "named.internal")
        .start()
        .await;
    for (name, value, status) in [
        ("origin", "https://evil.example", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("host", "evil.example:50051", 421),
    ] {
        let answer = ask(&server, "GET", "/v1/events", &[(name, value)], "").await;
        refused(&answer, status, None);
    }
    for (origin, status) in [
        ("http://named.internal:1", 200),
        ("http://named.internal", 403),
    ] {
        let own = [
            ("host", "named.internal:1"),
            ("origin", origin),
            ("content-type", "application/json"),
        ];
        let answer = ask(&server, "POST", "/v1/GetLogInfo", &own, "{}").await;
        assert_eq!(answer.status, status, "{origin}: {}", answer.json);
    }
    let name = [("host", "named.internal:1")];
    assert_eq!(
        ask(&server, "GET", "/v1/events", &name, "").await.status,
        200
    );
    for (cause, count) in [("foreign_origin", 3.0), ("host", 1.0)] {
        let name = format!("blobcast_grpc_calls_refused_total{{cause=\"{cause}\"}}");
        assert_eq!(server.metric(&name).await, count);
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other_and_a_slow_one_ends() {
    let server = Options::default()
        .set("ingest.header_timeout", "1s")
        .start()
        .await;
    let mut stream = TcpStream::connect(server.grpc).await.unwrap();
    let request =
        b"POST /v1/GetLogInfo HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
                    content-length: 2\r\n\r\n{}";
    for _ in 0..3 {
        stream.write_all(request).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"}") {
            let count = within("an answer", stream.read_buf(&mut read))
                .await
                .unwrap();
            assert!(count > 0, "closed after {}", String::from_utf8_lossy(&read));
        }
        assert!(read.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    drop(stream);

    let mut broken = TcpStream::connect(server.grpc).await.unwrap();
    let head = "POST /v1/GetLogInfo HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\nno length\r\n";
    broken.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the end", broken.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("INVALID_REQUEST"),
        "{answer}"
    );

    let mut slow = TcpStream::connect(server.grpc).await.unwrap();
    slow.write_all(b"GET /v1/ev").await.unwrap();
    let mut answer = String::new();
    within("the end", slow.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    until("both to be gone", async || {
        server
            .metric("blobcast_connections{listener=\"grpc\"}")
            .await
            == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_has_gone_is_not_waited_for_whatever_it_has_sent() {
    let server = Server::start().await;
    for behind in [
        "",
        "\r\n",
        "GET /v1/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(server.grpc).await.unwrap();
        let wait =
            format!("GET /v1/tasks/t1?wait=3000s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n{behind}");
        stream.write_all(wait.as_bytes()).await.unwrap();
        until("the wait", async || server.subscriptions().await.len() == 1).await;
        drop(stream);
        until("its end", async || server.subscriptions().await.is_empty()).await;
    }
}

#[tokio::test]
async fn json_comes_by_http_2_as_well() {
    let server = Server::start().await;
    let io = TcpStream::connect(server.grpc).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(io);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{}/v1/events", server.grpc));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let answer = within("an answer", sender.send_request(request))
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let body = http_body_util::BodyExt::collect(answer.into_body())
        .await
        .unwrap();
    let page: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
    assert_eq!(page["events"], json!([]));
    let client = server.events().await;
    client
        .clone()
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
}

/// The first block of shell commands of a document that has `text` in it.
fn commands(document: &str, text: &str) -> String {
    let mut blocks = document.split("```sh\n").skip(1);
    let block = blocks.find(|block| block.split("```").next().unwrap().contains(text));
    block.unwrap().split("```").next().unwrap().to_owned()
}

#[tokio::test]
async fn the_commands_of_the_documents_work() {
    let server = Server::start().await;
    server.http().post(&completed("demo-1")).await;
    let readme = commands(include_str!("../../README.md"), "/v1/tasks/demo-1");
    let first = readme.lines().next().unwrap().to_owned();
    let page = commands(include_str!("../../docs/http-api.md"), "/v1/tasks/demo-1");
    for lines in [first, page] {
        let lines = lines.replace("127.0.0.1:50051", &server.grpc.to_string());
        let mut command = std::process::Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &lines]);
        let ran = tokio::task::spawn_blocking(move || command.output());
        let ran = within("the commands", ran).await.unwrap().unwrap();
        assert!(ran.status.success(), "{lines}: {ran:?}");
        let printed = String::from_utf8(ran.stdout).unwrap();
        assert!(printed.contains("TASK_STATUS_COMPLETED"), "{printed}");
        assert!(!printed.contains("request_id"), "no problem: {printed}");
    }
}
