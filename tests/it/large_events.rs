//! Events that are too large for a gRPC message: delivered without their large fields, which can be
//! read in chunks. Every client here has the default limits of gRPC libraries.

use blobcast::wire::v1::{
    Event, GetRawBodyRequest, GetTaskRequest, ListEventsRequest, SubscribeRequest, WaitTaskRequest,
    event_service_client::EventServiceClient, subscribe_request::Start,
};
use prost::Message;
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};

use crate::support::{
    CredentialsFile, Options, Server, Sub, completed, cursor_at, failed, matching, of_tasks, place,
    refusal, tasks, told, violation, with,
};

/// What gRPC libraries take by default.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

async fn start() -> Server {
    let options = Options::default()
        .set("ingest.body_bytes_max", "16MiB")
        .set("ingest.body_timeout", "60s");
    options
        .set("ingest.answer_timeout", "60s")
        .set("grpc.answers_bytes_max", "512MiB")
        .start()
        .await
}

async fn client(server: &Server) -> EventServiceClient<Channel> {
    EventServiceClient::new(server.channel().await)
}

/// One task as each call delivers it.
async fn everywhere(server: &Server, task_id: &str, include_raw: bool) -> Vec<Event> {
    let mut client = client(server).await;
    let task_id = task_id.to_owned();
    let of_task = matching(of_tasks([&task_id]));
    let mut sub = Sub::open(
        client.clone(),
        SubscribeRequest {
            include_raw,
            ..of_task.clone()
        },
    )
    .await
    .unwrap();
    let list = ListEventsRequest {
        filter: of_task.filter,
        include_raw,
        ..Default::default()
    };
    let get = GetTaskRequest {
        task_id: task_id.clone(),
        include_raw,
        ..Default::default()
    };
    let wait = WaitTaskRequest {
        task_id,
        include_raw,
        ..Default::default()
    };
    vec![
        sub.next_event().await,
        client
            .list_events(list)
            .await
            .unwrap()
            .into_inner()
            .events
            .remove(0),
        client
            .get_task(get)
            .await
            .unwrap()
            .into_inner()
            .events
            .remove(0),
        client
            .wait_task(wait)
            .await
            .unwrap()
            .into_inner()
            .event
            .unwrap(),
    ]
}

/// The body of an event, in pieces.
async fn raw_body(client: &mut EventServiceClient<Channel>, cursor: &str) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let request = GetRawBodyRequest {
            cursor: cursor.into(),
            offset: body.len() as u64,
        };
        let piece = client.get_raw_body(request).await.unwrap().into_inner();
        assert!(piece.chunk.len() <= 1024 * 1024);
        body.extend_from_slice(&piece.chunk);
        if body.len() as u64 >= piece.total_bytes {
            return body;
        }
    }
}

#[tokio::test]
async fn an_event_that_no_client_takes_comes_without_its_large_fields_and_the_body_in_pieces() {
    let server = start().await;
    let prompt = with(
        completed("prompt"),
        json!({"prompt": "x".repeat(9_000_000)}),
    );
    let raw = with(completed("raw"), json!({"prompt": "y".repeat(3_000_000)}));
    let details =
        json!({"error": {"message": "UNSAFE_CONTENT", "details": {"why": "z".repeat(3_000_000)}}});
    let details = with(failed("details"), details);
    let outputs: Vec<_> = (0..60_000)
        .map(|number| format!("https://cdn.example/{number:0>80}.png"))
        .collect();
    let outputs =
        json!({"generation_id": "outputs", "status": "completed", "result_image_urls": outputs});
    for body in [&prompt, &raw, &details, &outputs] {
        server.http().post(body).await.event_id();
    }

    for (body, include_raw, truncated) in [
        (&prompt, false, true),
        (&prompt, true, true),
        (&raw, false, false),
        (&raw, true, true),
        (&details, false, true),
        (&details, true, true),
        (&outputs, false, true),
        (&outputs, true, true),
    ] {
        let task_id = body["generation_id"].as_str().unwrap();
        let delivered = everywhere(&server, task_id, include_raw).await;
        for event in &delivered {
            assert_eq!(event.truncated, truncated, "{task_id} {include_raw}");
            assert_eq!(
                (event.task_id.as_str(), event.terminal, event.revision),
                (task_id, true, 1)
            );
            assert!(event.encoded_len() < MESSAGE_BYTES_MAX);
            assert_eq!(event, &delivered[0], "each call says the same");
        }
        let [event, ..] = &delivered[..] else {
            panic!("{delivered:?}")
        };
        let kept = (
            event.prompt.len(),
            event.outputs.len(),
            event.raw_body.len(),
        );
        let expected = match task_id {
            "prompt" => (0, 1, 0),
            "raw" => (3_000_000, 1, 0),
            "details" => (
                "a cat".len(),
                0,
                if include_raw {
                    body.to_string().len()
                } else {
                    0
                },
            ),
            _ => (0, 0, 0),
        };
        assert_eq!(kept, expected, "{task_id} {include_raw}");
        assert!(
            event
                .error
                .as_ref()
                .is_none_or(|error| error.details.is_none() && error.message == "UNSAFE_CONTENT")
        );
        assert_eq!(
            raw_body(&mut client(&server).await, &event.cursor).await,
            body.to_string().into_bytes()
        );
    }
}

#[tokio::test]
async fn events_go_on_behind_one_that_was_too_large() {
    let server = start().await;
    let request = SubscribeRequest {
        include_raw: true,
        ..tasks(["t0", "t1", "t2"])
    };
    let mut live = Sub::open(client(&server).await, request).await.unwrap();
    server.http().post(&completed("t0")).await;
    server
        .http()
        .post(&with(
            completed("t1"),
            json!({"prompt": "x".repeat(6_000_000)}),
        ))
        .await
        .event_id();
    server.http().post(&completed("t2")).await;
    let seen: Vec<_> = live
        .next_events(3)
        .await
        .iter()
        .map(|event| (event.task_id.clone(), event.truncated))
        .collect();
    assert_eq!(
        seen,
        [
            ("t0".into(), false),
            ("t1".into(), true),
            ("t2".into(), false)
        ]
    );
    let request = SubscribeRequest {
        start: Some(Start::Position(
            blobcast::wire::v1::StartPosition::Earliest.into(),
        )),
        include_raw: true,
        ..crate::support::request()
    };
    let mut again = Sub::open(client(&server).await, request).await.unwrap();
    assert_eq!(
        again
            .next_events(3)
            .await
            .iter()
            .filter(|event| event.truncated)
            .count(),
        1
    );
}

#[tokio::test]
async fn a_client_that_may_see_an_event_reads_its_body_up_to_the_end() {
    let mut file = CredentialsFile::new();
    let (veo, sora) = (
        file.add("client veo --product veo").await,
        file.add("client sora --product sora").await,
    );
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let body = completed("t1").to_string();
    server
        .http()
        .post_to("/webhook/veo", body.clone())
        .await
        .event_id();
    let read = async |token: &str, cursor: &str, offset: u64| {
        let mut request = tonic::Request::new(GetRawBodyRequest {
            cursor: cursor.into(),
            offset,
        });
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        Ok::<_, tonic::Status>(
            client(&server)
                .await
                .get_raw_body(request)
                .await?
                .into_inner(),
        )
    };
    let mut request = tonic::Request::new(ListEventsRequest::default());
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {veo}").parse().unwrap());
    let events = client(&server)
        .await
        .list_events(request)
        .await
        .unwrap()
        .into_inner()
        .events;
    let cursor = &events[0].cursor;

    let whole = read(&veo, cursor, 0).await.unwrap();
    assert_eq!(
        (&whole.chunk[..], whole.total_bytes),
        (body.as_bytes(), body.len() as u64)
    );
    assert_eq!(read(&veo, cursor, 5).await.unwrap().chunk, body[5..]);
    assert_eq!(
        read(&veo, cursor, body.len() as u64).await.unwrap().chunk,
        ""
    );
    assert_eq!(
        violation(&read(&veo, cursor, body.len() as u64 + 1).await.unwrap_err()),
        "offset"
    );
    assert_eq!(
        violation(&read(&veo, cursor, u64::MAX).await.unwrap_err()),
        "offset"
    );
    assert_eq!(violation(&read(&veo, "x", 0).await.unwrap_err()), "cursor");
    let not_found = (Code::NotFound, "EVENT_NOT_FOUND".into());
    assert_eq!(
        refusal(&read(&sora, cursor, 0).await.unwrap_err()),
        not_found
    );
    assert_eq!(
        refusal(&read(&veo, &cursor_at(cursor, 0), 0).await.unwrap_err()),
        not_found
    );
    let ahead = read(&veo, &cursor_at(cursor, place(cursor) + 1), 0)
        .await
        .unwrap_err();
    assert_eq!(refusal(&ahead), (Code::OutOfRange, "CURSOR_AHEAD".into()));
    assert!(read("wrong", cursor, 0).await.is_err());
}

#[tokio::test]
async fn the_command_line_has_the_whole_body_of_a_truncated_event() {
    let server = start().await;
    let body = with(completed("t1"), json!({"prompt": "x".repeat(6_000_000)})).to_string();
    server
        .http()
        .post_to("/webhook/veo", body.clone())
        .await
        .event_id();
    assert!(
        server.cli("get t1 --raw").run().await.good() == body,
        "the body, and nothing else"
    );
    assert!(
        server
            .cli("get t1")
            .run()
            .await
            .good()
            .contains("[truncated]")
    );
    let is_whole = |line: &Value| line["raw_body"] == body.as_str() && line["truncated"] == true;
    for line in ["get t1", "events", "listen --from earliest --count 1"] {
        let lines = server
            .cli(&format!("{line} --include-raw --output json"))
            .run()
            .await
            .json_lines();
        assert!(lines.len() == 1 && is_whole(&lines[0]), "{line}");
    }
    assert!(
        server
            .cli("get nothing --raw")
            .run()
            .await
            .exited(1)
            .contains("no event of the task")
    );
}

#[tokio::test]
async fn the_way_out_of_an_answer_that_is_too_large_names_only_what_helps() {
    let server = start().await;
    for status in ["queued", "processing", "completed"] {
        let body = with(
            completed("t1"),
            json!({"status": status, "prompt": "x".repeat(1_500_000)}),
        );
        server.http().post(&body).await.event_id();
    }
    let mut client = client(&server).await;
    for (product, include_raw) in [("", false), ("", true), ("veo", false), ("veo", true)] {
        let request = GetTaskRequest {
            task_id: "t1".into(),
            include_raw,
            product: product.into(),
        };
        let refused = client.get_task(request).await.unwrap_err();
        assert_eq!(
            refusal(&refused),
            (Code::ResourceExhausted, "RESPONSE_TOO_LARGE".into())
        );
        assert!(told(&refused, "limit").parse::<usize>().unwrap() < MESSAGE_BYTES_MAX);
        let advised = |advice: &str| refused.message().contains(advice);
        assert_eq!(
            (
                advised("name the product"),
                advised("leave out include_raw")
            ),
            (product.is_empty(), include_raw)
        );
        assert!(advised("ListEvents") && advised("filter.task_ids"));
    }
    // The advice helps.
    let (mut events, mut page_token) = (0, String::new());
    loop {
        let filter = Some(of_tasks(["t1"]));
        let request = ListEventsRequest {
            filter,
            include_raw: true,
            page_token,
            ..Default::default()
        };
        let page = client.list_events(request).await.unwrap().into_inner();
        events += page.events.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(events, 3);
}
