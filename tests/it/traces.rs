//! Traces as the collector receives them: the spans that are sent, data that is never sent, and a
//! broker whose collector fails.

use std::{collections::HashSet, future::ready};

use blobcast::wire::v1::{GetLogInfoRequest, ListEventsRequest, WaitTaskRequest};
use http_body_util::Full;
use hyper::Request;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Answer, Authority, Collector, CredentialsFile, Manner, Options, Server, Span, SpanKind,
    StatusCode, attribute, completed, free_address, hex, latest, request, until,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

/// POSTs a callback that says to be part of a trace.
async fn post_traced(server: &Server, task: &str, flags: &str) -> Answer {
    let request = Request::post(format!("http://{}/webhook/veo", server.ingest))
        .header("traceparent", traceparent(flags));
    server
        .http()
        .send(
            request
                .body(Full::new(completed(task).to_string().into()))
                .unwrap(),
        )
        .await
        .unwrap()
}

fn call<T>(message: T, flags: &str) -> tonic::Request<T> {
    let mut call = tonic::Request::new(message);
    call.metadata_mut()
        .insert("traceparent", traceparent(flags).parse().unwrap());
    call
}

/// What has become of spans so far.
async fn counted(server: &Server, outcome: &str) -> f64 {
    server
        .metric(&format!(
            "blobcast_trace_spans_total{{outcome=\"{outcome}\"}}"
        ))
        .await
}

const COMPLAINT: &str = "the collector does not take spans";

#[tokio::test]
async fn a_callback_and_its_deliveries_are_one_trace() {
    let collector = Collector::start().await;
    let server = collector.options().start().await;
    let mut sub = server.subscribe(latest()).await;
    let id = sub.subscribed.subscription_id.clone();
    let answer = server.http().post(&completed("t1")).await;
    sub.next_event().await;
    let callback = collector.named("callback", 1).await.remove(0);
    let delivery = collector.named("deliver", 1).await.remove(0);
    assert_eq!(
        hex(&callback.trace_id),
        answer.headers["x-request-id"],
        "one id finds both"
    );
    assert_eq!(
        (
            callback.kind(),
            callback.parent_span_id.len(),
            callback.links.len()
        ),
        (SpanKind::Server, 0, 0)
    );
    let told = ["outcome", "product", "task_id", "event_id"]
        .map(|key| attribute(&callback, &format!("blobcast.{key}")));
    assert_eq!(told, ["accepted", "veo", "t1", &answer.event_id()]);
    assert_eq!(attribute(&callback, "http.response.status_code"), "200");
    let events: Vec<_> = callback
        .events
        .iter()
        .map(|event| event.name.as_str())
        .collect();
    assert_eq!(events, ["URL verified", "body read", "commit begun"]);
    let times: Vec<_> = callback
        .events
        .iter()
        .map(|event| event.time_unix_nano)
        .collect();
    assert!(
        times.is_sorted()
            && callback.start_time_unix_nano <= times[0]
            && times[2] <= callback.end_time_unix_nano
    );
    assert_eq!(
        (&delivery.trace_id, &delivery.parent_span_id),
        (&callback.trace_id, &callback.span_id)
    );
    assert_eq!(
        (
            delivery.kind(),
            attribute(&delivery, "blobcast.subscription_id")
        ),
        (SpanKind::Producer, id)
    );
    assert!(delivery.start_time_unix_nano <= delivery.end_time_unix_nano);
    // The call is over when its stream is.
    drop(sub);
    let call = collector
        .named("blobcast.v1.EventService/Subscribe", 1)
        .await
        .remove(0);
    assert_eq!(
        (&delivery.links[0].trace_id, &delivery.links[0].span_id),
        (&call.trace_id, &call.span_id)
    );
    let resource = collector
        .resource()
        .attributes
        .into_iter()
        .map(|attribute| attribute.key)
        .collect::<HashSet<_>>();
    assert_eq!(
        resource,
        ["service.name", "service.version", "service.instance.id"]
            .map(Into::into)
            .into()
    );
    until("all to be counted", async || {
        counted(&server, "taken").await >= 3.0
    })
    .await;
}

#[tokio::test]
async fn a_trace_is_continued_from_within_and_only_linked_from_outside() {
    let collector = Collector::start().await;
    let server = collector
        .options()
        .set("logging.level", "debug")
        .start()
        .await;
    let mut client = server.events().await;
    let wait = WaitTaskRequest {
        task_id: "t1".into(),
        ..Default::default()
    };
    let waiting = tokio::spawn(async move { client.wait_task(call(wait, "01")).await.unwrap() });
    until("the wait to begin", async || {
        !server.subscriptions().await.is_empty()
    })
    .await;
    post_traced(&server, "t1", "01").await.event_id();
    assert!(waiting.await.unwrap().into_inner().done);
    let callback = collector.named("callback", 1).await.remove(0);
    assert_ne!(hex(&callback.trace_id), TRACE);
    assert!(callback.parent_span_id.is_empty());
    assert_eq!(
        [
            hex(&callback.links[0].trace_id),
            hex(&callback.links[0].span_id)
        ],
        [TRACE, PARENT]
    );
    let wait = collector
        .named("blobcast.v1.EventService/WaitTask", 1)
        .await
        .remove(0);
    assert_eq!(
        [hex(&wait.trace_id), hex(&wait.parent_span_id)],
        [TRACE, PARENT]
    );
    assert_eq!(
        (
            attribute(&wait, "rpc.system"),
            attribute(&wait, "rpc.grpc.status_code")
        ),
        ("grpc".into(), "0".into())
    );
    let delivery = collector.named("deliver", 1).await.remove(0);
    assert_eq!(
        (&delivery.trace_id, &delivery.links[0].span_id),
        (&callback.trace_id, &wait.span_id)
    );
    // The lines of the log name the trace, too.
    let traced =
        |line: &Value| line["span"]["trace_id"] == TRACE && line["message"] == "call answered";
    until("the line", async || {
        server
            .log()
            .lines()
            .any(|line| traced(&serde_json::from_str(line).unwrap()))
    })
    .await;
}

#[tokio::test]
async fn what_is_not_sampled_is_not_sent() {
    let collector = Collector::start().await;
    let mut server = collector
        .options()
        .set("traces.sampling_ratio", 0)
        .start()
        .await;
    let mut client = server.events().await;
    let mut sub = server.subscribe(latest()).await;
    // A stranger cannot turn tracing on, and neither can a known client whose own trace is not recorded.
    post_traced(&server, "t1", "01").await.event_id();
    sub.next_event().await;
    client
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
    client
        .get_log_info(call(GetLogInfoRequest::default(), "00"))
        .await
        .unwrap();
    client
        .list_events(call(ListEventsRequest::default(), "01"))
        .await
        .unwrap();
    assert!(server.terminate().await.success());
    let names: Vec<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.name)
        .collect();
    assert_eq!(names, ["blobcast.v1.EventService/ListEvents"]);
    assert!(!server.log().contains("\"trace_id\"\""));
}

#[tokio::test]
async fn traces_are_off_by_default() {
    let collector = Collector::start().await;
    // Nor does a variable that others obey turn them on.
    let options = Options::default().variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        format!("http://{}", collector.address),
    );
    let mut server = options.set("logging.level", "debug").start().await;
    post_traced(&server, "t1", "01").await.event_id();
    server
        .events()
        .await
        .get_log_info(call(GetLogInfoRequest::default(), "01"))
        .await
        .unwrap();
    assert!(server.terminate().await.success());
    assert_eq!(collector.exports(), 0);
    assert!(!server.log().contains("trace_id"));
}

#[tokio::test]
async fn an_event_from_the_log_is_part_of_no_trace() {
    let collector = Collector::start().await;
    let mut server = collector.options().start().await;
    server.http().post(&completed("t1")).await.event_id();
    server.crash().await;
    let mut sub = server.subscribe(request()).await;
    sub.next_event().await;
    server.http().post(&completed("t2")).await.event_id();
    sub.next_event().await;
    assert!(server.terminate().await.success());
    let spans = collector.spans();
    let of = |name| {
        spans
            .iter()
            .filter(|span| span.name == name)
            .collect::<Vec<_>>()
    };
    let t2 = of("callback")
        .into_iter()
        .find(|span| attribute(span, "blobcast.task_id") == "t2")
        .unwrap();
    let parents: Vec<_> = of("deliver")
        .iter()
        .map(|span| &span.parent_span_id)
        .collect();
    assert_eq!(parents, [&t2.span_id]);
}

#[tokio::test]
async fn nobody_is_traced_who_has_shown_nothing() {
    let collector = Collector::start().await;
    let mut file = CredentialsFile::new();
    file.add("client billing --product veo").await;
    let token = file.add("callback runblob").await;
    let options = collector
        .options()
        .set("credentials_file", file.path().display());
    let mut server = options
        .set("ingest.refusals_per_minute_max", 2)
        .start()
        .await;
    for (path, status) in [
        ("/webhook/veo", 401),
        ("/elsewhere", 404),
        ("/elsewhere", 429),
    ] {
        assert_eq!(
            server
                .http()
                .post_to(path, completed("t1").to_string())
                .await
                .status,
            status
        );
    }
    let refused = server
        .events()
        .await
        .get_log_info(call(GetLogInfoRequest::default(), "01"))
        .await
        .unwrap_err();
    assert!(refused.metadata().contains_key("x-request-id"));
    for unguarded in ["/no.Such/Method", "/grpc.health.v1.Health/Check"] {
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(unguarded);
        let mut client = tonic::client::Grpc::new(server.channel().await);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<GetLogInfoRequest, ()>::default();
        let answer = client
            .unary(call(GetLogInfoRequest::default(), "01"), path, codec)
            .await;
        assert_eq!(answer.is_ok(), unguarded.contains("health"), "{answer:?}");
    }
    // What is refused to somebody who is known is traced.
    let target = format!("/webhook/veo?token={token}");
    assert_eq!(server.http().post_to(&target, "nonsense").await.status, 202);
    assert!(server.terminate().await.success());
    let spans = collector.spans();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["callback"]);
    assert_eq!(attribute(&spans[0], "blobcast.outcome"), "quarantined");
    assert_eq!(
        spans[0].status, None,
        "a caller's mistake is no fault of the broker's"
    );
}

#[tokio::test]
async fn what_the_broker_cannot_do_is_an_error() {
    let collector = Collector::start().await;
    // No disk that holds anything is as free as that.
    let mut server = collector
        .options()
        .set("log.disk_free_min_percent", 100)
        .start()
        .await;
    assert_eq!(server.http().post(&completed("t1")).await.status, 503);
    assert!(server.terminate().await.success());
    let span: Span = collector.spans().remove(0);
    assert_eq!(span.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(attribute(&span, "blobcast.outcome"), "disk_low");
}

#[tokio::test]
async fn a_collector_that_is_away_or_refuses_is_one_line_and_a_number() {
    let away = free_address();
    let server = Options::default()
        .set("traces.otlp_endpoint", format!("http://{away}"))
        .start()
        .await;
    for (number, lost) in [("t1", 1.0), ("t2", 2.0)] {
        server.http().post(&completed(number)).await.event_id();
        until("the span to be lost", async || {
            counted(&server, "lost").await == lost
        })
        .await;
    }
    let complaint = server.logged(COMPLAINT, 1).await.remove(0);
    assert!(complaint.contains("Connection refused"), "{complaint}");

    let manners = [
        Manner::Refuse,
        Manner::TakeAllBut(1),
        Manner::Take,
        Manner::Refuse,
    ];
    let collector = Collector::that(&manners).await;
    let server = collector.options().start().await;
    for (number, outcome, count, said) in [
        ("t1", "lost", 1.0, "not from you"),
        // The same trouble still.
        ("t2", "refused", 1.0, "not from you"),
        ("t3", "taken", 1.0, "the collector takes spans again"),
        ("t4", "lost", 2.0, "not from you"),
    ] {
        server.http().post(&completed(number)).await.event_id();
        until(outcome, async || counted(&server, outcome).await == count).await;
        until(said, || ready(server.log().contains(said))).await;
    }
    server.logged(COMPLAINT, 2).await;
    assert_eq!(
        (
            counted(&server, "taken").await,
            counted(&server, "dropped").await
        ),
        (1.0, 0.0)
    );
}

#[tokio::test]
async fn a_collector_that_hangs_delays_nobody_and_what_is_too_much_for_the_queue_is_dropped() {
    let collector = Collector::that(&[Manner::Hang]).await;
    let mut server = collector.options().start().await;
    let client = server.events().await;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut sub = crate::support::Sub::open(client.clone(), latest())
            .await
            .unwrap();
        readers.spawn(async move { sub.next_events(100).await.len() });
    }
    // More than wait and are under way: ten thousand deliveries, and as many callbacks as each reader gets.
    for number in 0..100 {
        server
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.unwrap(), 100);
    }
    until("some to be dropped", async || {
        counted(&server, "dropped").await >= 1_000.0
    })
    .await;
    assert_eq!(counted(&server, "taken").await, 0.0);
    server.signal(Signal::TERM);
    assert!(server.ended().await.success());
    until("its last words", || {
        ready(
            server
                .log()
                .contains("the last spans were not taken in time"),
        )
    })
    .await;
}

#[tokio::test]
async fn the_end_sends_what_is_left() {
    let collector = Collector::start().await;
    let mut server = collector.options().start().await;
    for number in 0..600 {
        server
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    assert!(server.terminate().await.success());
    assert_eq!(collector.spans().len(), 600, "more than one batch");
}

#[tokio::test]
async fn a_collector_behind_tls_is_trusted_as_the_system_says() {
    let authority = Authority::new();
    let collector = Collector::secured(&authority.issue("collector", "localhost")).await;
    let url = format!("https://localhost:{}", collector.address.port());
    let options = Options::default().set("traces.otlp_endpoint", url);
    let server = options
        .clone()
        .variable("SSL_CERT_FILE", authority.ca_file().display())
        .start()
        .await;
    server.http().post(&completed("t1")).await.event_id();
    collector.named("callback", 1).await;
    let stranger = Authority::new();
    let server = options
        .variable("SSL_CERT_FILE", stranger.ca_file().display())
        .start()
        .await;
    server.http().post(&completed("t1")).await.event_id();
    until("the span to be lost", async || {
        counted(&server, "lost").await == 1.0
    })
    .await;
    assert_eq!(collector.spans().len(), 1);
}
