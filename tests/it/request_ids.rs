//! Request ids: every answer has one, and with it an operator finds the log lines about that
//! request.

use std::{collections::HashSet, future::ready};

use blobcast::wire::v1::{GetLogInfoRequest, GetTaskRequest, ListEventsRequest};
use http_body_util::Full;
use hyper::{HeaderMap, Request};
use serde_json::Value;
use tonic::metadata::MetadataMap;

use crate::support::{Options, Server, completed, request, until};

const HEADER: &str = "x-request-id";

/// The lines that a request's id is on, once there is one.
async fn lines_about(server: &Server, id: &str) -> Vec<Value> {
    let mut lines = Vec::new();
    until("a line with the id", || {
        let log = server.log();
        let parsed = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines = parsed
            .filter(|line| [&line["span"]["request_id"], &line["request_id"]].contains(&&id.into()))
            .collect();
        ready(!lines.is_empty())
    })
    .await;
    lines
}

fn id_of(headers: &HeaderMap) -> String {
    let ids: Vec<_> = headers.get_all(HEADER).iter().collect();
    assert_eq!(ids.len(), 1, "{headers:?}");
    let id = ids[0].to_str().unwrap().to_owned();
    assert!(
        id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
    id
}

fn id_of_call(metadata: &MetadataMap) -> String {
    id_of(&metadata.clone().into_headers())
}

#[tokio::test]
async fn every_http_answer_has_an_id_and_the_log_has_it_too() {
    let options = Options::default()
        .set("logging.level", "info,blobcast=debug")
        .set("ingest.body_bytes_max", "1KiB");
    let server = options.start().await;
    let send = async |method: &str, path: &str, headers: &[(&str, &str)], body: String| {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", server.ingest));
        // A caller's own id is nobody's.
        let request = request.header(HEADER, "00000000000000000000000000000000");
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        server
            .http()
            .send(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap()
    };
    let good = completed("t1").to_string();
    let cases = [
        (
            200,
            "request answered",
            send("POST", "/webhook/veo", &[], good.clone()).await,
        ),
        (
            200,
            "request answered",
            send("POST", "/webhook/veo", &[], good.clone()).await,
        ),
        (
            202,
            "callback quarantined",
            send("POST", "/webhook/veo", &[], "nonsense".into()).await,
        ),
        (
            404,
            "request refused",
            send("POST", "/elsewhere", &[], good.clone()).await,
        ),
        (
            405,
            "request refused",
            send("GET", "/webhook", &[], String::new()).await,
        ),
        (
            413,
            "request refused",
            send("POST", "/webhook", &[], "x".repeat(1_025)).await,
        ),
        (
            415,
            "request refused",
            send("POST", "/webhook", &[("content-encoding", "br")], good).await,
        ),
    ];
    let mut ids = HashSet::new();
    for (status, message, answer) in &cases {
        assert_eq!(answer.status, *status, "{answer:?}");
        let id = id_of(&answer.headers);
        let lines = lines_about(&server, &id).await;
        assert!(
            lines
                .iter()
                .any(|line| line["message"].as_str().unwrap().starts_with(message)),
            "{lines:?} of {answer:?}"
        );
        assert!(ids.insert(id), "two answers with one id");
    }
    assert!(!ids.contains("00000000000000000000000000000000"));
}

#[tokio::test]
async fn a_warning_has_the_id_whatever_else_is_not_logged() {
    let server = Options::default()
        .set("logging.level", "warn,blobcast::cli=info")
        .start()
        .await;
    let answer = server.http().post_to("/webhook", "nonsense").await;
    let lines = lines_about(&server, &id_of(&answer.headers)).await;
    assert_eq!(
        (lines.len(), &lines[0]["message"]),
        (1, &"callback quarantined".into())
    );
}

#[tokio::test]
async fn every_call_has_an_id_and_the_log_has_it_too() {
    let server = Options::default()
        .set("logging.level", "debug")
        .start()
        .await;
    let mut client = server.events().await;
    let good = client
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
    let stream = client.subscribe(request()).await.unwrap();
    let not_found = client
        .get_task(GetTaskRequest {
            task_id: "t1".into(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    let malformed = ListEventsRequest {
        page_token: "?".into(),
        ..Default::default()
    };
    let malformed = client.list_events(malformed).await.unwrap_err();
    let calls = [
        (good.metadata(), "GetLogInfo", "Ok"),
        (stream.metadata(), "Subscribe", "Ok"),
        (not_found.metadata(), "GetTask", "NotFound"),
        (malformed.metadata(), "ListEvents", "InvalidArgument"),
    ];
    let mut ids = HashSet::new();
    for (metadata, method, code) in calls {
        let id = id_of_call(metadata);
        let lines = lines_about(&server, &id).await;
        assert!(
            lines
                .iter()
                .any(|line| line["message"] == "call answered" && line["code"] == code),
            "{lines:?}"
        );
        let method = format!("blobcast.v1.EventService/{method}");
        assert!(
            lines.iter().all(|line| line["span"]["method"] == *method),
            "{lines:?}"
        );
        assert!(ids.insert(id), "two calls with one id");
    }
}
