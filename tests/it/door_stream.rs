//! Streams of server-sent events, as a browser reads them: it connects again by itself, with the last id.

use blobcast::checker::{History, Observed, Stream, check};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, body::Incoming};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};

use crate::support::{
    AsObserved, CredentialsFile, Options, Server, completed, processing, until, with, within,
};

/// A server-sent event.
#[derive(Clone, Debug, Default)]
struct Sent {
    event: String,
    id: Option<String>,
    retry: Option<String>,
    data: Value,
}

/// An open stream.
struct Source {
    body: Incoming,
    read: String,
    comments: usize,
    /// What a browser would resume from.
    last_id: Option<String>,
}

async fn response(server: &Server, query: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let request = Request::get(format!("http://{}/v1/events/stream{query}", server.grpc));
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let request = request.body(Empty::new()).unwrap();
    within("an answer", client.request(request)).await.unwrap()
}

async fn problem_of(response: Response<Incoming>) -> Value {
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let body = within("the body", response.into_body().collect())
        .await
        .unwrap();
    serde_json::from_slice(&body.to_bytes()).unwrap()
}

impl Source {
    async fn open(server: &Server, query: &str, headers: &[(&str, &str)]) -> Self {
        let response = response(server, query, headers).await;
        let (head, body) = response.into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["content-type"], "text/event-stream");
        assert_eq!(head.headers["cache-control"], "no-store");
        assert_eq!(head.headers["x-accel-buffering"], "no");
        Self {
            body,
            read: String::new(),
            comments: 0,
            last_id: None,
        }
    }

    /// The next event; `None` at the end, or when the connection breaks.
    async fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some((text, rest)) = self.read.split_once("\n\n") {
                let (text, rest) = (text.to_owned(), rest.to_owned());
                self.read = rest;
                return Some(self.parse(&text));
            }
            let frame = within("an event", self.body.frame()).await?.ok()?;
            let data = frame.into_data().unwrap();
            self.read.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    fn parse(&mut self, text: &str) -> Sent {
        let mut sent = Sent::default();
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap();
            let value = value.trim_start().to_owned();
            match name {
                "" => self.comments += 1,
                "event" => sent.event = value,
                "id" => sent.id = Some(value),
                "retry" => sent.retry = Some(value),
                "data" => sent.data = serde_json::from_str(&value).unwrap(),
                _ => panic!("{line}"),
            }
        }
        self.last_id = sent.id.clone().or(self.last_id.take());
        sent
    }

    /// The next event of this name; others are passed over.
    async fn next_of(&mut self, event: &str) -> Sent {
        loop {
            let sent = self.next().await.unwrap();
            if sent.event == event {
                return sent;
            }
        }
    }
}

#[tokio::test]
async fn a_stream_has_every_message_with_its_name_and_cursor() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await;
    let mut source = Source::open(&server, "?position=earliest&heartbeat_interval=1s", &[]).await;
    let subscribed = source.next().await.unwrap();
    assert_eq!(subscribed.event, "subscribed");
    assert_eq!(
        subscribed.id, None,
        "it starts behind the head, so it is asked for as before"
    );
    let event = source.next().await.unwrap();
    assert_eq!(
        (&*event.event, &event.data["taskId"]),
        ("event", &json!("t1"))
    );
    assert_eq!(event.id.as_deref(), event.data["cursor"].as_str());
    assert_eq!(event.id.unwrap(), server.log_info().await.head);
    assert_eq!(source.next().await.unwrap().event, "caught_up");
    let progress = source.next().await.unwrap();
    assert_eq!((&*progress.event, source.comments), ("progress", 1));
    assert!(progress.id.is_some());

    let mut live = Source::open(&server, "?product=veo&label=team:a", &[]).await;
    assert!(live.next().await.unwrap().id.is_some(), "at the head");
    server.http().post(&completed("t2")).await;
    let labelled = completed("t3").to_string();
    server.http().post_to("/webhook/veo?team=a", labelled).await;
    assert_eq!(live.next_of("event").await.data["taskId"], "t3");

    drop((source, live));
    until("both to be gone", async || {
        server.subscriptions().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_browser_that_resumes_over_kill_9_misses_nothing_and_gets_nothing_twice() {
    let mut server = Server::start().await;
    let (mut history, mut observed, mut last) = (History::default(), Vec::new(), None::<String>);
    for round in 0..4 {
        let headers: Vec<_> = last
            .iter()
            .map(|id| ("last-event-id", id.as_str()))
            .collect();
        let mut source = Source::open(&server, "?position=earliest", &headers).await;
        let (http, tasks) = (server.http(), 0..40);
        let posting = async {
            let mut acknowledged = Vec::new();
            for number in tasks {
                let task = format!("t{round}-{number}");
                acknowledged.push(http.post(&completed(&task)).await.acknowledged(&task));
            }
            acknowledged
        };
        let reading = async {
            let mut seen = Vec::new();
            while seen.len() < 25 {
                let sent = source.next_of("event").await;
                let text = |key: &str| sent.data[key].as_str().unwrap().to_owned();
                seen.push(Observed {
                    event_id: text("eventId"),
                    cursor: text("cursor"),
                    task_id: text("taskId"),
                });
            }
            seen
        };
        let (acknowledged, seen) = tokio::join!(posting, reading);
        history.acknowledged.extend(acknowledged);
        observed.extend(seen);
        last = source.last_id;
        server.crash().await;
    }
    let headers = [("last-event-id", last.as_deref().unwrap())];
    let mut source = Source::open(&server, "?position=earliest", &headers).await;
    while observed.len() < 160 {
        let sent = source.next_of("event").await;
        let text = |key: &str| sent.data[key].as_str().unwrap().to_owned();
        observed.push(Observed {
            event_id: text("eventId"),
            cursor: text("cursor"),
            task_id: text("taskId"),
        });
    }
    // One stream: it was resumed where it was, so nothing comes twice either.
    history.streams.push(Stream {
        task_ids: None,
        observed,
    });
    let log = server.log_of_events().await;
    history.log = log.iter().map(AsObserved::observed).collect();
    assert_eq!(check(&history), []);
}

#[tokio::test]
async fn a_stream_that_is_complete_is_not_opened_again() {
    let server = Server::start().await;
    let query = "?task_id=t1&product=veo&until_terminal=true";
    let mut source = Source::open(&server, query, &[]).await;
    server.http().post(&processing("t1")).await;
    let first = source.next_of("event").await.id.unwrap();
    server.http().post(&completed("t1")).await;
    source.next_of("event").await;
    let last = source.next_of("completed").await.id.unwrap();
    assert!(source.next().await.is_none(), "it ends");

    let resumed = response(&server, query, &[("last-event-id", &last)]).await;
    assert_eq!(resumed.status(), 204);
    // What was not sent yet comes first.
    let mut source = Source::open(&server, query, &[("last-event-id", &first)]).await;
    let event = source.next_of("event").await;
    assert_eq!(event.data["status"], "TASK_STATUS_COMPLETED");
    source.next_of("completed").await;
    assert!(source.next().await.is_none());
    until("all to be gone", async || {
        server.subscriptions().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_refusal_stops_a_browser_unless_it_passes_by_itself() {
    let mut file = CredentialsFile::new();
    let token = file.add("client team --product veo").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .set("grpc.subscriptions_per_client_max", 1)
        .start()
        .await;
    let bearer = format!("Bearer {token}");
    let shown = ("authorization", bearer.as_str());
    let browser = ("accept", "text/event-stream");

    let refused = response(&server, "", &[browser]).await;
    assert_eq!(refused.status(), 401);
    assert_eq!(problem_of(refused).await["reason"], "TOKEN_INVALID");
    let malformed = response(&server, "?after=nonsense", &[shown, browser]).await;
    assert_eq!(malformed.status(), 400);
    let mut open = Source::open(&server, "", &[shown]).await;
    open.next().await.unwrap();
    let full = response(&server, "", &[shown]).await;
    assert_eq!(full.status(), 429);
    assert!(full.headers().contains_key("retry-after"));
    assert_eq!(problem_of(full).await["reason"], "SUBSCRIPTION_LIMIT");
    let mut told = Source::open(&server, "", &[shown, browser]).await;
    let problem = told.next().await.unwrap();
    assert_eq!((&*problem.event, problem.id), ("problem", None));
    assert!(problem.retry.is_some());
    assert_eq!(problem.data["reason"], "SUBSCRIPTION_LIMIT");
    assert!(told.next().await.is_none());
}

#[tokio::test]
async fn a_cursor_that_is_gone_is_410() {
    let server = Options::default()
        .set("log.retention_age_max", "1s")
        .start()
        .await;
    server.http().post(&completed("t1")).await;
    let first = server.log_of_events().await.remove(0).cursor;
    server.http().post(&completed("t2")).await;
    until("the first to be forgotten", async || {
        let available = server.log_info().await.first_available;
        available.is_empty() || available > first
    })
    .await;
    server.http().post(&completed("t3")).await;
    server.http().post(&completed("t4")).await;
    let mut gone = None;
    until("it to be refused", async || {
        let answer = response(&server, "", &[("last-event-id", &first)]).await;
        let status = answer.status();
        gone = (status == 410).then_some(answer);
        gone.is_some()
    })
    .await;
    let problem = problem_of(gone.unwrap()).await;
    assert_eq!(problem["reason"], "CURSOR_EXPIRED");
    assert!(problem["metadata"]["head"].is_string());
}

#[tokio::test]
async fn a_drain_says_where_to_resume_and_when() {
    let mut server = Server::start().await;
    server.http().post(&completed("t1")).await;
    let mut source = Source::open(&server, "", &[]).await;
    source.next_of("caught_up").await;
    let ended = server.terminate();
    let reading = async {
        let away = source.next_of("going_away").await;
        assert_eq!(away.retry.as_deref(), Some("2000"));
        assert!(away.id.is_some());
        let problem = source.next().await.unwrap();
        assert_eq!(problem.event, "problem");
        assert_eq!(problem.data["reason"], "DRAINING");
        assert!(source.next().await.is_none());
    };
    let (status, ()) = tokio::join!(ended, reading);
    assert!(status.success());
}

#[tokio::test]
async fn an_event_of_a_megabyte_comes_whole() {
    let server = Server::start().await;
    let mut source = Source::open(&server, "?include_raw", &[]).await;
    source.next_of("caught_up").await;
    let body = with(completed("t1"), json!({"prompt": "ä".repeat(400_000)}));
    assert_eq!(server.http().post(&body).await.status, 200);
    let event = source.next_of("event").await;
    assert_eq!(event.data["taskId"], "t1");
    let task = server.log_of_events().await.remove(0);
    assert_eq!(event.data["prompt"].as_str().unwrap(), task.prompt);
    server.http().post(&completed("t2")).await;
    assert_eq!(source.next_of("event").await.data["taskId"], "t2");
}
