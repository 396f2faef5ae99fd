//! Memory for clients that do not read: it stays within its limits, and stalled clients are ended.
//! Memory under a real cgroup limit is tested by `tests/hostile/memory`.

use std::fs;

use blobcast::wire::v1::{
    BackupRequest, BackupResponse, Filter, GetTaskRequest, ListEventsRequest, ListEventsResponse,
    SubscribeRequest, SubscribeResponse, WaitTaskRequest, admin_service_client::AdminServiceClient,
    event_service_client::EventServiceClient,
};
use tokio::task::JoinHandle;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::support::{
    Options, Server, bulky, places, processing, refusal, request, tasks, told, until, with, within,
};

/// Of each event its prompt, of which it has another copy in its body.
const PROMPT_CHARS: usize = 400_000;
const EVENTS: usize = 4;
const WINDOW_BYTES: u32 = 16 * 1024;

/// Room for a few large events at a time.
fn small() -> Options {
    Options::default()
        .set("grpc.reading_bytes_max", "8MiB")
        .set("grpc.answers_bytes_max", "32MiB")
        .set("hub.ring_bytes_max", "1MiB")
        .set("grpc.stall_timeout", "1s")
}

/// A connection whose streams take little as long as nobody reads them.
async fn narrow(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let endpoint = endpoint
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(1 << 24);
    endpoint.connect().await.unwrap()
}

fn from_the_start() -> SubscribeRequest {
    SubscribeRequest {
        include_raw: true,
        ..request()
    }
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
        stalled.push(
            client
                .subscribe(from_the_start())
                .await
                .unwrap()
                .into_inner(),
        );
    }
    until("memory to be taken back", async || {
        server.metric("blobcast_reads_taken_back_total").await >= 20.0
    })
    .await;
    // Others get their turn beside them, by whatever way they read.
    let mut reader = server.subscribe(from_the_start()).await;
    assert_eq!(places(&reader.until_caught_up().await), [1, 2, 3, 4]);
    let mut of_tasks = server
        .subscribe(SubscribeRequest {
            until_terminal: true,
            ..tasks(["t0", "t3"])
        })
        .await;
    assert_eq!(places(&of_tasks.next_events(2).await), [1, 4]);

    for mut stream in stalled {
        let mut events = Vec::new();
        while events.len() < EVENTS {
            let message = within("a message", stream.message())
                .await
                .unwrap()
                .unwrap();
            if let Some(blobcast::wire::v1::subscribe_response::Content::Event(event)) =
                message.content
            {
                events.push(event);
            }
        }
        assert_eq!(places(&events), [1, 2, 3, 4]);
        for event in events {
            assert_eq!(
                (event.prompt.len(), event.raw_body.len() > PROMPT_CHARS),
                (PROMPT_CHARS, true)
            );
        }
    }
    until("all memory to be given back", async || {
        server.metric("blobcast_reading_bytes").await == 0.0
    })
    .await;
}

/// More than one read looks at, so that a filter that matches nothing of it has to read again.
const EVENTS_OF_TWO_READS: usize = 8;

/// Streams that one client begins at once, and takes nothing of. They wait for memory before they are answered. Each has its first
/// message on the way when it asks for its next read, and is not polled until the client takes it.
async fn stalled(
    server: &Server,
    streams: usize,
    request: SubscribeRequest,
) -> Vec<JoinHandle<Result<Response<Streaming<SubscribeResponse>>, Status>>> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let closed = endpoint
        .initial_stream_window_size(0)
        .connect()
        .await
        .unwrap();
    let calls = (0..streams).map(|_| {
        let (mut client, request) = (EventServiceClient::new(closed.clone()), request.clone());
        tokio::spawn(async move { client.subscribe(request).await })
    });
    calls.collect()
}

#[tokio::test]
async fn streams_that_stall_while_they_wait_for_memory_do_not_keep_what_they_are_granted() {
    let server = small().start().await;
    server
        .http()
        .post_bulky(0..EVENTS_OF_TWO_READS, PROMPT_CHARS)
        .await;
    let rare = Filter {
        products: vec!["rare".into()],
        ..Default::default()
    };
    let mut open = Vec::new();
    for call in stalled(
        &server,
        100,
        SubscribeRequest {
            filter: Some(rare),
            ..request()
        },
    )
    .await
    {
        open.push(within("an answer", call).await.unwrap().unwrap());
    }
    let mut reader = server.subscribe(from_the_start()).await;
    assert_eq!(
        within("all events", reader.until_caught_up()).await.len(),
        EVENTS_OF_TWO_READS
    );
    // All of them, also those that wait behind the reader.
    until("nobody to wait", async || {
        server.metric("blobcast_reads_waiting").await == 0.0
    })
    .await;
    until("all memory to be given back", async || {
        server.metric("blobcast_reading_bytes").await == 0.0
    })
    .await;
    drop(open);
}

#[tokio::test]
async fn a_client_with_many_streams_that_wait_for_memory_keeps_nobody_else_waiting() {
    let server = small().start().await;
    server
        .http()
        .post_bulky(0..EVENTS_OF_TWO_READS, PROMPT_CHARS)
        .await;
    // Each has its memory for half a second, and two or three fit at a time: together a minute and more.
    let _calls = stalled(&server, 300, from_the_start()).await;
    let waiting = async || server.metric("blobcast_reads_waiting").await;
    until("them to wait", async || waiting().await > 280.0).await;
    let mut reader = server.subscribe(from_the_start()).await;
    assert_eq!(
        within("all events", reader.until_caught_up()).await.len(),
        EVENTS_OF_TWO_READS
    );
    assert!(
        waiting().await > 100.0,
        "it has waited for the streams of the other client"
    );
}

/// So many large events that it shows in the broker's memory if each is kept by somebody.
const MANY_EVENTS: usize = 40;

/// By how much the broker's memory may grow where each of [`MANY_EVENTS`] would be kept otherwise: an event has its prompt, and the
/// body as received. The rest of that is for what the allocator keeps on a busy machine: 21 MB of 32 were seen.
const GROWTH_BYTES_MAX: u64 = (MANY_EVENTS * 2 * PROMPT_CHARS * 3 / 4) as u64;

/// Memory that the broker has been given, other than for files, after `work` less than before.
async fn growth(server: &Server, work: impl Future<Output = ()>) -> u64 {
    let anonymous = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB"))
            .unwrap();
        1_024 * kilobytes.trim().parse::<u64>().unwrap()
    };
    let before = anonymous();
    work.await;
    anonymous().saturating_sub(before)
}

#[tokio::test]
async fn live_streams_that_stall_hold_nothing_that_the_ring_has_let_go_of() {
    let server = small().start().await;
    let http = server.http();
    // Caches, and what the allocator keeps, have their size after that.
    http.post_bulky(0..MANY_EVENTS, PROMPT_CHARS).await;
    let channel = narrow(&server).await;
    let mut stalled = Vec::new();
    let work = async {
        for number in MANY_EVENTS..2 * MANY_EVENTS {
            let mut client = EventServiceClient::new(channel.clone());
            let latest = SubscribeRequest {
                include_raw: true,
                ..SubscribeRequest::default()
            };
            stalled.push(client.subscribe(latest).await.unwrap().into_inner());
            let live = stalled.len() as f64;
            until("it to wait", async || {
                server
                    .metric("blobcast_subscriptions{state=\"live\"}")
                    .await
                    == live
            })
            .await;
            // Each stream has a part of another event, which the next one pushes out of the ring.
            http.post_bulky(number..number + 1, PROMPT_CHARS).await;
        }
    };
    let grown = growth(&server, work).await;
    assert!(grown < GROWTH_BYTES_MAX, "{grown}");

    let mut events = Vec::new();
    while events.len() < EVENTS {
        let message = within("a message", stalled[0].message())
            .await
            .unwrap()
            .unwrap();
        if let Some(blobcast::wire::v1::subscribe_response::Content::Event(event)) = message.content
        {
            events.push(event);
        }
    }
    assert_eq!(places(&events), [41, 42, 43, 44]);
    assert!(
        events
            .iter()
            .all(|event| event.prompt.len() == PROMPT_CHARS)
    );
}

#[tokio::test]
async fn an_event_that_retention_takes_while_a_client_has_half_of_it_ends_the_stream_with_its_reason()
 {
    let server = small()
        .set("log.retention_bytes_max", "2MiB")
        .set("ingest.body_bytes_max", "900KiB")
        .start()
        .await;
    // The second pushes the first out of the ring, so that it is read from the log.
    server.http().post_bulky(0..2, PROMPT_CHARS).await;
    let mut client = EventServiceClient::new(narrow(&server).await);
    let mut stalled = client
        .subscribe(from_the_start())
        .await
        .unwrap()
        .into_inner();
    within("subscribed", stalled.message()).await.unwrap();
    // The event is read, and its memory is taken back as nobody takes the rest.
    until("memory to be taken back", async || {
        server.metric("blobcast_reads_taken_back_total").await > 0.0
    })
    .await;
    server.http().post_bulky(2..8, PROMPT_CHARS).await;
    server.trimmed().await;
    assert_eq!(
        refusal(&ending(&mut stalled).await),
        (Code::OutOfRange, "CURSOR_EXPIRED".to_owned())
    );
}

/// The status that a stream ends with.
async fn ending<T>(stream: &mut Streaming<T>) -> Status {
    loop {
        match within("a message", stream.message()).await {
            Ok(message) => assert!(message.is_some(), "the stream has ended well"),
            Err(status) => return status,
        }
    }
}

/// Large answers on a connection all of whose window is taken by a stream that is never read, so that none of them gets through.
struct Unread {
    calls: Vec<JoinHandle<Result<Response<ListEventsResponse>, Status>>>,
    _hog: Streaming<SubscribeResponse>,
}

impl Unread {
    const CALLS: usize = 8;
    /// For so many of them a share has room while the last is made.
    const HELD_MAX: usize = 3;

    async fn on(server: &Server) -> Self {
        server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
        let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(65_535);
        let mut client = EventServiceClient::new(endpoint.connect().await.unwrap());
        let _hog = client
            .subscribe(from_the_start())
            .await
            .unwrap()
            .into_inner();
        let calls = (0..Self::CALLS).map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.list_events(list()).await })
        });
        Self {
            calls: calls.collect(),
            _hog,
        }
    }
}

fn list() -> ListEventsRequest {
    ListEventsRequest {
        include_raw: true,
        ..Default::default()
    }
}

async fn refused_and_stalled(server: &Server) -> (f64, f64) {
    let refused = server.metric("blobcast_answers_refused_total").await;
    (
        refused,
        server.metric("blobcast_answers_stalled_total").await,
    )
}

#[tokio::test]
async fn answers_that_nobody_reads_are_few_and_others_get_theirs_meanwhile() {
    let server = small().set("grpc.stall_timeout", "5m").start().await;
    let unread = Unread::on(&server).await;
    // What a share has no room for is refused, and none of that size is ever taken.
    until("answers to be refused", async || {
        refused_and_stalled(&server).await.0 >= (Unread::CALLS - Unread::HELD_MAX) as f64
    })
    .await;
    assert_eq!(
        refused_and_stalled(&server).await,
        ((Unread::CALLS - Unread::HELD_MAX) as f64, 0.0)
    );
    assert!(
        server.metric("blobcast_answer_bytes").await <= 8.0 * 1024.0 * 1024.0,
        "more than a share"
    );
    // Another client has a share of its own.
    let page = within("a page", server.events().await.list_events(list()))
        .await
        .unwrap()
        .into_inner();
    assert!(!page.events.is_empty());
    let mut reasons = Vec::new();
    for call in unread.calls {
        if call.is_finished() {
            reasons.push(refusal(&call.await.unwrap().unwrap_err()).1);
        }
    }
    assert_eq!(reasons, ["ANSWERS_LIMIT"; Unread::CALLS - Unread::HELD_MAX]);
}

#[tokio::test]
async fn answers_that_nobody_reads_are_ended_and_give_their_memory_to_the_next() {
    let server = small().start().await;
    let unread = Unread::on(&server).await;
    until("answers to be ended", async || {
        refused_and_stalled(&server).await.1 >= 3.0
    })
    .await;
    drop(unread);
    until("the memory of answers to be given back", async || {
        server.metric("blobcast_answer_bytes").await == 0.0
    })
    .await;
}

async fn begin_backup(channel: &Channel) -> Result<Streaming<BackupResponse>, Status> {
    let mut client = AdminServiceClient::new(channel.clone());
    Ok(client.backup(BackupRequest {}).await?.into_inner())
}

#[tokio::test]
async fn open_backups_are_few_for_each_client_and_in_all() {
    let server = Options::default()
        .set("grpc.stall_timeout", "5m")
        .start()
        .await;
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let [first, second, third] = [
        narrow(&server).await,
        narrow(&server).await,
        narrow(&server).await,
    ];
    let mut open = Vec::new();
    for channel in [&first, &first] {
        open.push(begin_backup(channel).await.unwrap());
    }
    let refused = begin_backup(&first).await.unwrap_err();
    assert_eq!(
        refusal(&refused),
        (Code::ResourceExhausted, "BACKUP_LIMIT".to_owned())
    );
    assert_eq!(
        (told(&refused, "limit"), told(&refused, "share")),
        ("4".to_owned(), "2".to_owned())
    );
    for channel in [&second, &second] {
        open.push(begin_backup(channel).await.unwrap());
    }
    assert_eq!(
        refusal(&begin_backup(&third).await.unwrap_err()).1,
        "BACKUP_LIMIT"
    );
    assert_eq!(server.metric("blobcast_backups").await, 4.0);
    let failed_at = server
        .metric("blobcast_backup_last_failure_timestamp_seconds")
        .await;
    assert_eq!(
        failed_at, 0.0,
        "a call that is refused is no backup that has failed"
    );
    // One that has ended makes room.
    let mut whole = open.pop().unwrap();
    while within("a chunk", whole.message()).await.unwrap().is_some() {}
    until("a place", async || {
        server.metric("blobcast_backups").await < 4.0
    })
    .await;
    begin_backup(&third).await.unwrap();
}

#[tokio::test]
async fn a_backup_that_nobody_takes_is_ended_and_keeps_nothing_on_the_disk() {
    let server = small().start().await;
    server.http().post_bulky(0..EVENTS, PROMPT_CHARS).await;
    let mut stalled = begin_backup(&narrow(&server).await).await.unwrap();
    assert_eq!(server.metric("blobcast_backups").await, 1.0);
    until("the backup to be ended", async || {
        server.metric("blobcast_backups").await == 0.0
    })
    .await;
    assert!(server.metric("blobcast_answers_stalled_total").await >= 1.0);
    assert_eq!(refusal(&ending(&mut stalled).await).1, "ANSWER_STALLED");
}

#[tokio::test]
async fn waits_hold_no_events_while_they_wait_and_have_them_when_they_answer() {
    let server = small().start().await;
    let http = server.http();
    let in_progress = |task_id: &str| {
        with(
            processing(task_id),
            serde_json::json!({"prompt": "x".repeat(PROMPT_CHARS)}),
        )
    };
    http.post(&in_progress("t")).await.event_id();
    let wait = |task_id, seconds| WaitTaskRequest {
        task_id,
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    // In their time-out they give what there is, which was not held.
    let early = server
        .events()
        .await
        .wait_task(wait("t".into(), 1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (early.done, early.event.unwrap().prompt.len()),
        (false, PROMPT_CHARS)
    );
    let client = server.events().await;
    let waiting = |tasks: Vec<String>| {
        let calls = tasks.into_iter().map(|task_id| {
            let (mut client, wait) = (client.clone(), wait(task_id, 60));
            tokio::spawn(async move { client.wait_task(wait).await })
        });
        calls.collect::<Vec<_>>()
    };
    // What was read from the log.
    let of_one = waiting(vec!["t".to_owned(); 20]);
    until("them to wait", async || {
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await
            == 20.0
    })
    .await;
    until("nothing to be held", async || {
        server.metric("blobcast_reading_bytes").await == 0.0
    })
    .await;
    http.post(&bulky("t", PROMPT_CHARS)).await.event_id();
    for answer in of_one {
        let answer = within("an answer", answer)
            .await
            .unwrap()
            .unwrap()
            .into_inner();
        assert_eq!(
            (answer.done, answer.event.unwrap().prompt.len()),
            (true, PROMPT_CHARS)
        );
    }

    // What has come meanwhile, and has left the ring.
    let post_each = async |name: &str| {
        for number in 0..MANY_EVENTS {
            http.post(&in_progress(&format!("{name}{number}")))
                .await
                .event_id();
        }
    };
    post_each("nobody-waits").await;
    let of_many = waiting(
        (0..MANY_EVENTS)
            .map(|number| format!("waits{number}"))
            .collect(),
    );
    let many = MANY_EVENTS as f64;
    until("them to wait", async || {
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await
            == many
    })
    .await;
    let grown = growth(&server, post_each("waits")).await;
    assert!(grown < GROWTH_BYTES_MAX, "{grown}");
    drop(of_many);
    let task = server
        .events()
        .await
        .get_task(GetTaskRequest {
            task_id: "t".into(),
            include_raw: true,
            ..Default::default()
        })
        .await;
    assert_eq!(task.unwrap().into_inner().events.len(), 2);
}
