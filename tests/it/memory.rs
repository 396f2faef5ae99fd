//! What the broker holds for clients that do not read, and what becomes of them. Memory under a real limit is for
//! `tests/hostile/memory`.

use blobcast::wire::v1::{
    BackupRequest, BackupResponse, Filter, GetTaskRequest, ListEventsRequest, SubscribeRequest, WaitTaskRequest,
    admin_service_client::AdminServiceClient, event_service_client::EventServiceClient,
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::support::{Options, Server, bulky, places, processing, refusal, request, tasks, told, until, with, within};

/// Of each event its prompt, of which it has another copy in its body.
const PROMPT_CHARS: usize = 400_000;
const EVENTS: usize = 4;
const WINDOW_BYTES: u32 = 16 * 1024;

/// Room for a few large events at a time.
fn small() -> Options {
    Options::default()
        .set("grpc.reading_bytes_max", "8MiB")
        .set("grpc.answers_bytes_max", "8MiB")
        .set("hub.ring_bytes_max", "1MiB")
        .set("grpc.stall_timeout", "1s")
}

/// A connection whose streams take little as long as nobody reads them.
async fn narrow(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(1 << 24);
    endpoint.connect().await.unwrap()
}

fn from_the_start() -> SubscribeRequest {
    SubscribeRequest { include_raw: true, ..request() }
}

#[tokio::test]
async fn streams_that_stall_give_their_memory_to_others_and_miss_nothing_when_they_go_on() {
    let server = small().start().await;
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let channel = narrow(&server).await;
    // More than there is memory for, and nobody reads.
    let mut stalled = Vec::new();
    for _ in 0..30 {
        let mut client = EventServiceClient::new(channel.clone());
        stalled.push(client.subscribe(from_the_start()).await.unwrap().into_inner());
    }
    until("memory to be taken back", async || server.metric("blobcast_reads_taken_back_total").await >= 20.0).await;
    // Others get their turn beside them, by whatever way they read.
    let mut reader = server.subscribe(from_the_start()).await;
    assert_eq!(places(&reader.until_caught_up().await), [1, 2, 3, 4]);
    let mut of_tasks = server.subscribe(SubscribeRequest { until_terminal: true, ..tasks(["t0", "t3"]) }).await;
    assert_eq!(places(&of_tasks.next_events(2).await), [1, 4]);

    for mut stream in stalled {
        let mut events = Vec::new();
        while events.len() < EVENTS {
            let message = within("a message", stream.message()).await.unwrap().unwrap();
            if let Some(blobcast::wire::v1::subscribe_response::Content::Event(event)) = message.content {
                events.push(event);
            }
        }
        assert_eq!(places(&events), [1, 2, 3, 4]);
        for event in events {
            assert_eq!((event.prompt.len(), event.raw_body.len() > PROMPT_CHARS), (PROMPT_CHARS, true));
        }
    }
    until("all memory to be given back", async || server.metric("blobcast_reading_bytes").await == 0.0).await;
}

#[tokio::test]
async fn streams_that_stall_while_they_wait_for_memory_do_not_keep_what_they_are_granted() {
    /// More than one read looks at, so that a filter that matches nothing of it has to read again.
    const EVENTS: usize = 8;
    let server = small().start().await;
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let closed = endpoint.initial_stream_window_size(0).connect().await.unwrap();
    // All at once, so that they wait for memory. Each has its first message on the way when it asks for its next read, and is
    // not polled until the client takes it.
    let rare = Filter { products: vec!["rare".into()], ..Default::default() };
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let mut client = EventServiceClient::new(closed.clone());
            let request = SubscribeRequest { filter: Some(rare.clone()), ..request() };
            tokio::spawn(async move { client.subscribe(request).await })
        })
        .collect();
    let mut stalled = Vec::new();
    for call in calls {
        stalled.push(within("an answer", call).await.unwrap().unwrap().into_inner());
    }

    let mut reader = server.subscribe(from_the_start()).await;
    assert_eq!(within("all events", reader.until_caught_up()).await.len(), EVENTS);
    drop(stalled);
    until("all memory to be given back", async || server.metric("blobcast_reading_bytes").await == 0.0).await;
    until("nobody to wait", async || server.metric("blobcast_reads_waiting").await == 0.0).await;
}

#[tokio::test]
async fn a_live_stream_that_stalls_holds_nothing_that_the_ring_has_let_go_of() {
    let server = small().start().await;
    let channel = narrow(&server).await;
    let mut client = EventServiceClient::new(channel);
    let latest = SubscribeRequest { include_raw: true, ..SubscribeRequest::default() };
    let mut stalled = client.subscribe(latest).await.unwrap().into_inner();
    until("the stream to be live", async || server.metric("blobcast_subscriptions{state=\"live\"}").await == 1.0).await;
    // Each fills the ring, so that all but the last have left it.
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let mut events = Vec::new();
    while events.len() < EVENTS {
        let message = within("a message", stalled.message()).await.unwrap().unwrap();
        if let Some(blobcast::wire::v1::subscribe_response::Content::Event(event)) = message.content {
            events.push(event);
        }
    }
    assert_eq!(places(&events), [1, 2, 3, 4]);
    assert!(events.iter().all(|event| event.prompt.len() == PROMPT_CHARS));
}

#[tokio::test]
async fn an_event_that_retention_takes_while_a_client_has_half_of_it_ends_the_stream_with_its_reason() {
    let server = small().set("log.retention_bytes_max", "2MiB").start().await;
    // The second pushes the first out of the ring, so that it is read from the log.
    server.http().post_bulky(0..2, PROMPT_CHARS).await;
    let mut client = EventServiceClient::new(narrow(&server).await);
    let mut stalled = client.subscribe(from_the_start()).await.unwrap().into_inner();
    within("subscribed", stalled.message()).await.unwrap();
    // The event is read, and its memory is taken back as nobody takes the rest.
    until("memory to be taken back", async || server.metric("blobcast_reads_taken_back_total").await > 0.0).await;
    server.http().post_bulky(2..8, PROMPT_CHARS).await;
    server.trimmed().await;
    let ended = async {
        while within("a message", stalled.message()).await?.is_some() {}
        Ok::<_, Status>(())
    };
    let status = ended.await.unwrap_err();
    let is_cut_off = status.code() == Code::Internal && status.message().contains("EOF");
    assert!(is_cut_off || refusal(&status).1 == "CURSOR_EXPIRED", "{status:?}");
}

#[tokio::test]
async fn answers_that_nobody_reads_are_few_and_are_ended_and_others_get_theirs_meanwhile() {
    let server = small().start().await;
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let list = ListEventsRequest { include_raw: true, ..Default::default() };
    // On one connection, all of whose window a stream that is never read has taken.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(65_535);
    let hogged = endpoint.connect().await.unwrap();
    let mut client = EventServiceClient::new(hogged.clone());
    let _hog = client.subscribe(from_the_start()).await.unwrap();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, list) = (EventServiceClient::new(hogged.clone()), list.clone());
            tokio::spawn(async move { client.list_events(list).await })
        })
        .collect();
    let refused = async || {
        server.metric("blobcast_answers_refused_total").await + server.metric("blobcast_answers_stalled_total").await
    };
    until("answers to be refused or ended", async || refused().await >= 2.0).await;
    // Another client has a share of its own.
    let page = within("a page", server.events().await.list_events(list)).await.unwrap().into_inner();
    assert!(!page.events.is_empty());
    drop(calls);
    drop(hogged);
    until("the memory of answers to be given back", async || server.metric("blobcast_answer_bytes").await == 0.0).await;
}

async fn begin_backup(channel: &Channel) -> Result<Streaming<BackupResponse>, Status> {
    let mut client = AdminServiceClient::new(channel.clone());
    Ok(client.backup(BackupRequest {}).await?.into_inner())
}

#[tokio::test]
async fn open_backups_are_few_for_each_client_and_in_all() {
    let server = Options::default().set("grpc.stall_timeout", "5m").start().await;
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let [first, second, third] = [narrow(&server).await, narrow(&server).await, narrow(&server).await];
    let mut open = Vec::new();
    for channel in [&first, &first] {
        open.push(begin_backup(channel).await.unwrap());
    }
    let refused = begin_backup(&first).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::ResourceExhausted, "BACKUP_LIMIT".to_owned()));
    assert_eq!((told(&refused, "limit"), told(&refused, "share")), ("4".to_owned(), "2".to_owned()));
    for channel in [&second, &second] {
        open.push(begin_backup(channel).await.unwrap());
    }
    assert_eq!(refusal(&begin_backup(&third).await.unwrap_err()).1, "BACKUP_LIMIT");
    assert_eq!(server.metric("blobcast_backups").await, 4.0);
    // One that has ended makes room.
    let mut whole = open.pop().unwrap();
    while within("a chunk", whole.message()).await.unwrap().is_some() {}
    until("a place", async || server.metric("blobcast_backups").await < 4.0).await;
    begin_backup(&third).await.unwrap();
}

#[tokio::test]
async fn a_backup_that_nobody_takes_is_ended_and_keeps_nothing_on_the_disk() {
    let server = small().start().await;
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let mut stalled = begin_backup(&narrow(&server).await).await.unwrap();
    assert_eq!(server.metric("blobcast_backups").await, 1.0);
    until("the backup to be ended", async || server.metric("blobcast_backups").await == 0.0).await;
    assert!(server.metric("blobcast_answers_stalled_total").await >= 1.0);
    let ended = async {
        while within("a chunk", stalled.message()).await?.is_some() {}
        Ok::<_, Status>(())
    };
    // Mostly within a chunk, of which the client then tells that it was cut off.
    let status = ended.await.unwrap_err();
    let is_cut_off = status.code() == Code::Internal && status.message().contains("EOF");
    assert!(is_cut_off || refusal(&status).1 == "ANSWER_STALLED", "{status:?}");
}

#[tokio::test]
async fn waits_hold_no_events_while_they_wait_and_have_them_when_they_answer() {
    let server = small().start().await;
    let http = server.http();
    http.post(&with(processing("t"), serde_json::json!({"prompt": "x".repeat(PROMPT_CHARS)}))).await.event_id();
    let wait = |seconds| WaitTaskRequest {
        task_id: "t".into(),
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    // In their time-out they give what there is, which was not held.
    let early = server.events().await.wait_task(wait(1)).await.unwrap().into_inner();
    assert_eq!((early.done, early.event.unwrap().prompt.len()), (false, PROMPT_CHARS));
    let client = server.events().await;
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let (mut client, wait) = (client.clone(), wait(60));
            tokio::spawn(async move { client.wait_task(wait).await })
        })
        .collect();
    until("them to wait", async || server.metric("blobcast_subscriptions{state=\"live\"}").await == 20.0).await;
    until("nothing to be held", async || server.metric("blobcast_reading_bytes").await == 0.0).await;
    http.post(&bulky("t", PROMPT_CHARS)).await.event_id();
    for answer in waiting {
        let answer = within("an answer", answer).await.unwrap().unwrap().into_inner();
        assert_eq!((answer.done, answer.event.unwrap().prompt.len()), (true, PROMPT_CHARS));
    }
    let task = server
        .events()
        .await
        .get_task(GetTaskRequest { task_id: "t".into(), include_raw: true, ..Default::default() })
        .await;
    assert_eq!(task.unwrap().into_inner().events.len(), 2);
}
