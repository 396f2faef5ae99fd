//! The guarantees of the README, one test for each.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use blobcast::{
    checker::{Acknowledged, History, Observed, Stream, check},
    wire::v1::{self, SubscribeRequest, subscribe_request::Start},
};
use tonic::Code;

use crate::support::{
    AsObserved, Options, Seen, Server, Sub, bulky, completed, failed, latest, matching,
    of_products, processing, reason, request, tasks, within,
};

fn after(cursor: &str) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(Start::AfterCursor(cursor.into())),
        ..request()
    }
}

#[tokio::test]
async fn durable_before_200_a_callback_survives_kill_9_right_after_its_answer() {
    let mut server = Server::start().await;
    let mut kept = Vec::new();
    for round in 0..5 {
        let task = format!("t{round}");
        kept.push(
            server
                .http()
                .post(&completed(&task))
                .await
                .acknowledged(&task),
        );
        server.crash().await;
    }
    let log = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    assert_eq!(
        check(&History {
            acknowledged: kept,
            log,
            streams: vec![],
            ..History::default()
        }),
        []
    );
}

#[tokio::test]
async fn durable_before_200_a_quarantined_callback_survives_kill_9_right_after_its_answer() {
    let mut server = Server::start().await;
    for round in 1..=5 {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", format!("nonsense {round}"))
                .await
                .status,
            202
        );
        server.crash().await;
        let request = v1::ListQuarantineRequest {
            include_body: true,
            ..Default::default()
        };
        let kept = server
            .admin_service()
            .await
            .list_quarantine(request)
            .await
            .unwrap()
            .into_inner()
            .callbacks;
        let bodies: Vec<_> = kept
            .iter()
            .map(|callback| String::from_utf8_lossy(&callback.body))
            .collect();
        assert_eq!(
            bodies,
            (1..=round)
                .map(|n| format!("nonsense {n}"))
                .collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn durable_before_200_duplicates_racing_their_original_are_one_event_that_survives_kill_9() {
    let mut server = Server::start().await;
    let http = server.http();
    let body = completed("t1");
    // All at once, so that duplicates meet their original still on its way to the disk.
    let posts = (0..50).map(|_| http.post(&body));
    let answers = within("all answers", futures(posts)).await;
    server.crash().await;
    let log = server.log_of_events().await;
    assert_eq!(log.len(), 1);
    assert!(
        answers
            .iter()
            .all(|answer| answer.event_id() == log[0].event_id)
    );
    assert_eq!(
        answers.iter().filter(|answer| !answer.duplicate()).count(),
        1
    );
}

#[tokio::test]
async fn durable_before_visible_what_a_subscriber_saw_is_there_after_kill_9() {
    let mut server = Server::start().await;
    for round in 0..5 {
        let mut live = server
            .subscribe(tasks((0..20).map(|n| format!("t{round}-{n}"))))
            .await;
        let http = server.http();
        let post = tokio::spawn(async move {
            for n in 0..20 {
                if http
                    .try_post_to(
                        "/webhook/veo",
                        completed(&format!("t{round}-{n}")).to_string(),
                    )
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        let seen = live.next_events(7).await;
        server.crash().await;
        post.await.unwrap();
        let log: HashSet<_> = server
            .log_of_events()
            .await
            .iter()
            .map(AsObserved::observed)
            .collect();
        assert!(
            seen.iter().all(|event| log.contains(&event.observed())),
            "seen and gone: {seen:?}"
        );
    }
}

#[tokio::test]
async fn race_free_a_task_is_found_whether_its_callback_came_before_or_after() {
    let server = Server::start().await;
    let mut early = server.subscribe(tasks(["t1"])).await;
    assert_eq!(early.until_caught_up().await, []);
    let event_id = server.http().post(&completed("t1")).await.event_id();
    assert_eq!(early.next_event().await.event_id, event_id);
    let mut late = server.subscribe(tasks(["t1"])).await;
    assert_eq!(late.next_event().await.event_id, event_id);
}

#[tokio::test]
async fn race_free_a_thousand_tasks_subscribed_while_their_callbacks_race_them() {
    let server = Server::start().await;
    let client = server.events().await;
    let http = server.http();
    let races = (0..1_000).map(|number| {
        let (client, http) = (client.clone(), http.clone());
        async move {
            let task = format!("t{number}");
            let body = completed(&task);
            let post = http.post(&body);
            let wait = async {
                let mut sub = crate::support::Sub::open(client, tasks([&task]))
                    .await
                    .unwrap();
                sub.next_event().await
            };
            let (answer, event) = tokio::join!(post, wait);
            assert_eq!(answer.event_id(), event.event_id);
        }
    });
    within("every subscriber's event", futures(races)).await;
}

#[tokio::test]
async fn ordered_unique_complete_and_resumable_from_every_cursor_of_a_log() {
    let server = Server::start().await;
    let http = server.http();
    let mut acknowledged = Vec::new();
    for number in 0..60 {
        let task = format!("t{}", number % 20);
        let body = [processing(&task), failed(&task), completed(&task)][number / 20].clone();
        acknowledged.push(http.post(&body).await.acknowledged(&task));
    }
    let log: Vec<_> = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    let mut streams = Vec::new();
    let start = server.subscribe(request()).await.subscribed.cursor;
    for (place, cursor) in [start]
        .into_iter()
        .chain(log.iter().map(|event| event.cursor.clone()))
        .enumerate()
    {
        let events = server
            .subscribe(after(&cursor))
            .await
            .until_caught_up()
            .await;
        let observed: Vec<_> = events.iter().map(AsObserved::observed).collect();
        assert_eq!(observed, log[place..], "behind cursor {place}");
        streams.push(Stream {
            task_ids: None,
            observed,
        });
        let some = ["t3", "t4"].map(str::to_owned);
        let of_tasks = SubscribeRequest {
            filter: tasks(&some).filter,
            ..after(&cursor)
        };
        let events = server.subscribe(of_tasks).await.until_caught_up().await;
        let observed = events.iter().map(AsObserved::observed).collect();
        streams.push(Stream {
            task_ids: Some(some.into()),
            observed,
        });
    }
    assert_eq!(
        check(&History {
            acknowledged,
            log,
            streams,
            ..History::default()
        }),
        []
    );
}

#[tokio::test]
async fn resumable_a_client_that_disconnects_after_every_message_misses_nothing() {
    let server = Server::start().await;
    let http = server.http();
    let mut acknowledged = Vec::new();
    let (mut cursor, mut observed) = (
        server.subscribe(request()).await.subscribed.cursor,
        Vec::new(),
    );
    for number in 0..40 {
        let task = format!("t{number}");
        acknowledged.push(http.post(&completed(&task)).await.acknowledged(&task));
        let mut sub = server.subscribe(after(&cursor)).await;
        // Alternately behind an event and behind whatever comes next.
        for _ in 0..=number % 2 {
            if observed.len() < acknowledged.len()
                && let Some(Seen::Event(event)) = sub.next().await.unwrap()
            {
                observed.push(event.observed());
            }
        }
        cursor = sub.cursor.clone();
    }
    observed.extend(
        server
            .subscribe(after(&cursor))
            .await
            .until_caught_up()
            .await
            .iter()
            .map(AsObserved::observed),
    );
    let log = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    let streams = vec![Stream {
        task_ids: None,
        observed,
    }];
    assert_eq!(
        check(&History {
            acknowledged,
            log,
            streams,
            ..History::default()
        }),
        []
    );
}

#[tokio::test]
async fn resumable_expired_future_foreign_and_garbled_cursors_are_clear_errors() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let http = server.http();
    let first = server.subscribe(request()).await.subscribed.cursor;
    let big = "x".repeat(200_000);
    for number in 0..20 {
        http.post(&crate::support::with(
            completed(&format!("t{number}")),
            serde_json::json!({"prompt": big}),
        ))
        .await;
    }
    crate::support::until("retention", || async {
        server
            .metric("blobcast_events_trimmed_total{reason=\"bytes\"}")
            .await
            > 0.0
    })
    .await;

    let expired = server.try_subscribe(after(&first)).await.err().unwrap();
    assert_eq!(
        (expired.code(), reason(&expired)),
        (Code::OutOfRange, "CURSOR_EXPIRED".into())
    );
    let info = tonic_types::StatusExt::get_details_error_info(&expired).unwrap();
    let log = server.log_of_events().await;
    assert_eq!(info.metadata["head"], log.last().unwrap().cursor);
    assert_eq!(info.metadata["first_available"], log[0].cursor);

    let other = Server::start().await;
    other.http().post(&completed("t1")).await;
    let foreign = server
        .try_subscribe(after(&other.log_of_events().await[0].cursor))
        .await
        .err()
        .unwrap();
    assert_eq!(
        (foreign.code(), reason(&foreign)),
        (Code::FailedPrecondition, "EPOCH_MISMATCH".into())
    );

    let ahead = other
        .try_subscribe(after(&future(&other).await))
        .await
        .err()
        .unwrap();
    assert_eq!(
        (ahead.code(), reason(&ahead)),
        (Code::OutOfRange, "CURSOR_AHEAD".into())
    );

    let garbled = server
        .try_subscribe(after(&log[0].cursor[1..]))
        .await
        .err()
        .unwrap();
    assert_eq!(garbled.code(), Code::InvalidArgument);
    let violations = tonic_types::StatusExt::get_details_bad_request(&garbled)
        .unwrap()
        .field_violations;
    assert_eq!(violations[0].field, "after_cursor");
}

/// A well-formed cursor of the server's log, one behind its head.
async fn future(server: &Server) -> String {
    let head = server.log_of_events().await.last().unwrap().cursor.clone();
    let mut cursor = blobcast::event::Cursor::parse(&head).unwrap();
    cursor.sequence = cursor.sequence.next();
    cursor.to_string()
}

#[tokio::test]
async fn bookmarkable_progress_means_that_every_matching_event_up_to_it_was_sent() {
    let server = Server::start().await;
    let http = server.http();
    let heartbeat_interval = Some(prost_types::Duration {
        seconds: 1,
        nanos: 0,
    });
    let mut sub = server
        .subscribe(SubscribeRequest {
            heartbeat_interval,
            ..tasks(["mine"])
        })
        .await;
    for number in 0..30 {
        http.post(&completed(&format!("other-{number}"))).await;
    }
    let head = server.log_of_events().await.last().unwrap().cursor.clone();
    // Nothing of it concerns this stream, and still its bookmark moves to the head.
    let bookmark = loop {
        if let Some(Seen::Progress(progress)) = sub.next().await.unwrap()
            && progress.head == head
        {
            break progress.cursor;
        }
    };
    assert_eq!(bookmark, head);
    drop(sub);
    let event_id = http.post(&completed("mine")).await.event_id();
    let mut resumed = server
        .subscribe(SubscribeRequest {
            filter: tasks(["mine"]).filter,
            ..after(&bookmark)
        })
        .await;
    assert_eq!(resumed.next_event().await.event_id, event_id);
}

#[tokio::test]
async fn isolated_a_stalled_subscription_costs_nobody_anything_and_misses_nothing() {
    // 16 MB: many times what the ring, the windows and the buffers of a stream hold together.
    let history = stalled_under_load(vec![latest()], 20_000, |posted| posted < 800).await;
    assert_eq!(check(&history), []);
}

#[tokio::test]
#[ignore = "takes three minutes"]
async fn isolated_subscriptions_stalled_for_three_minutes_of_load_miss_nothing() {
    let end = Instant::now() + Duration::from_secs(180);
    let some = (0..10_000).step_by(2).map(|number| format!("t{number}"));
    let stalled = vec![
        latest(),
        request(),
        matching(of_products(["veo"])),
        tasks(some),
        latest(),
    ];
    let history = stalled_under_load(stalled, 2_000, |_| Instant::now() < end).await;
    let seen: Vec<_> = history
        .streams
        .iter()
        .map(|stream| stream.observed.len())
        .collect();
    println!("{} events; the streams saw {seen:?}", history.log.len());
    assert_eq!(check(&history), []);
}

/// Posts for as long as told to, while one stream reads along and the others do not read at all; then they read on.
async fn stalled_under_load(
    stalled: Vec<SubscribeRequest>,
    prompt_chars: usize,
    goes_on: impl Fn(usize) -> bool,
) -> History {
    const AT_ONCE: usize = 8;
    // For three minutes more comes than one URL may bring.
    let options = Options::default()
        .set("hub.ring_bytes_max", "1MiB")
        .set("ingest.bytes_per_minute_max", 0);
    let server = options.start().await;
    let http = server.http();
    let mut reader = server.subscribe(latest()).await;
    let mut streams = Vec::new();
    for request in stalled {
        let mut stream = server.subscribe(request.clone()).await;
        assert_eq!(stream.until_caught_up().await, []);
        let task_ids = request
            .filter
            .map(|filter| HashSet::from_iter(filter.task_ids))
            .filter(|ids| !ids.is_empty());
        streams.push((stream, task_ids));
    }
    let (mut acknowledged, mut observed) = (Vec::new(), Vec::new());
    while goes_on(acknowledged.len()) {
        let first = acknowledged.len();
        let posts = (first..first + AT_ONCE).map(|number| {
            let (http, task) = (&http, format!("t{number}"));
            async move {
                http.post(&bulky(&task, prompt_chars))
                    .await
                    .acknowledged(&task)
            }
        });
        acknowledged.extend(within("the answers", futures(posts)).await);
        observed.extend(
            reader
                .next_events(AT_ONCE)
                .await
                .iter()
                .map(AsObserved::observed),
        );
    }
    let mut history = History {
        acknowledged,
        streams: vec![Stream {
            task_ids: None,
            observed,
        }],
        ..History::default()
    };
    let head = server.log_info().await.head;
    for (mut stream, task_ids) in streams {
        let observed = read_on(&mut stream, &head).await;
        let wanted = |event: &&Acknowledged| {
            task_ids
                .as_ref()
                .is_none_or(|ids| ids.contains(&event.task_id))
        };
        assert_eq!(
            observed.len(),
            history.acknowledged.iter().filter(wanted).count()
        );
        history.streams.push(Stream { task_ids, observed });
    }
    history.log = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    history
}

/// What a stream that has been stalled until now sees up to the place that is the head now.
async fn read_on(stalled: &mut Sub, head: &str) -> Vec<Observed> {
    let (mut observed, mut fell_behind) = (Vec::new(), false);
    // Texts of cursors sort like places. A bookmark at the head says that no more will come.
    while stalled.cursor.as_str() < head {
        match stalled.next().await.unwrap() {
            Some(Seen::Event(event)) => observed.push(event.observed()),
            Some(Seen::FellBehind(v1::FellBehind { lag, .. })) => {
                assert!(lag > 0);
                fell_behind = true;
            }
            Some(_) => {}
            None => panic!("the stream has ended"),
        }
    }
    assert!(
        fell_behind,
        "the ring has moved past a reader that stalled for so long"
    );
    observed
}

#[tokio::test]
async fn isolated_a_vanished_subscription_is_given_back() {
    let server = Server::start().await;
    let mut subs = Vec::new();
    for number in 0..20 {
        subs.push(server.subscribe(tasks([format!("t{number}")])).await);
    }
    let open = || async {
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await
    };
    crate::support::until("20 live subscriptions", || async { open().await == 20.0 }).await;
    drop(subs);
    crate::support::until("none", || async { open().await == 0.0 }).await;
}

#[tokio::test]
async fn at_least_once_an_event_keeps_its_id_on_every_delivery() {
    let mut server = Server::start().await;
    let event_id = server.http().post(&completed("t1")).await.event_id();
    for _ in 0..3 {
        assert_eq!(
            server
                .subscribe(tasks(["t1"]))
                .await
                .next_event()
                .await
                .event_id,
            event_id
        );
        server.crash().await;
    }
}

#[tokio::test]
async fn a_cursor_never_names_another_event_also_after_crashes_in_the_middle_of_bursts() {
    let mut server = Server::start().await;
    let mut history = History::default();
    for round in 0..6 {
        let http = server.http();
        let mut sub = server.subscribe(request()).await;
        let posts = (0..200).map(|number| {
            let (http, task) = (http.clone(), format!("t{round}-{number}"));
            tokio::spawn(async move {
                let answer = http
                    .try_post_to("/webhook/veo", completed(&task).to_string())
                    .await
                    .ok()?;
                (answer.status == 200).then(|| answer.acknowledged(&task))
            })
        });
        let posts: Vec<_> = posts.collect();
        let seen = sub.next_events(round * 150 + 20).await;
        server.kill();
        for post in posts {
            history.acknowledged.extend(post.await.unwrap());
        }
        let observed = seen.iter().map(AsObserved::observed).collect();
        history.streams.push(Stream {
            task_ids: None,
            observed,
        });
        server.restart().await;
        // A repeated callback finds its event, or makes the one that was not durable.
        let task = format!("t{round}-0");
        history.acknowledged.push(
            server
                .http()
                .post(&completed(&task))
                .await
                .acknowledged(&task),
        );
    }
    history.log = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    assert_eq!(check(&history), []);
    assert_eq!(
        history
            .log
            .iter()
            .map(|event| &event.task_id)
            .collect::<HashSet<_>>()
            .len(),
        history.log.len()
    );
}

/// Runs all at once on this task.
async fn futures<T>(all: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = all
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(|cx| {
        let mut left = 0;
        for (future, result) in &mut pending {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => left += 1,
                }
            }
        }
        if left == 0 {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending
        .into_iter()
        .map(|(_, result)| result.unwrap())
        .collect()
}
