//! `Subscribe`: where a stream starts, its events and control messages, and how it ends.

use std::{collections::HashSet, time::Duration};

use blobcast::wire::v1::{
    self, Event, Filter, OnExpired, StartPosition, SubscribeRequest, TaskStatus,
    subscribe_request::Start,
};
use prost_types::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::support::{
    Options, Seen, Server, Sub, after, bulky, completed, cursor_at, failed, latest, matching,
    of_labels, of_products, of_statuses, of_tasks, place, places, processing, refusal, request,
    tasks, tasks_of, told, until, violation, with,
};

fn since(time: Timestamp) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(Start::Since(time)),
        ..request()
    }
}

fn heartbeat(seconds: i64, nanos: i32) -> SubscribeRequest {
    SubscribeRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds, nanos }),
        ..request()
    }
}

fn expired(request: SubscribeRequest, on_expired: OnExpired) -> SubscribeRequest {
    SubscribeRequest {
        on_expired: on_expired.into(),
        ..request
    }
}

fn to_the_end(task_ids: impl IntoIterator<Item = &'static str>) -> SubscribeRequest {
    SubscribeRequest {
        until_terminal: true,
        ..tasks(task_ids)
    }
}

async fn refused(server: &Server, request: SubscribeRequest) -> Status {
    server
        .try_subscribe(request)
        .await
        .err()
        .expect("a refusal")
}

fn events(seen: Vec<Seen>) -> Vec<Event> {
    seen.into_iter()
        .filter_map(|seen| {
            if let Seen::Event(event) = seen {
                Some(event)
            } else {
                None
            }
        })
        .collect()
}

#[tokio::test]
async fn the_first_message_tells_where_the_stream_starts_and_which_limits_it_has() {
    let server = Server::start().await;
    let epoch = server.log_info().await.epoch;
    let empty = server
        .subscribe(SubscribeRequest::default())
        .await
        .subscribed;
    assert_eq!(
        (
            empty.first_available.as_str(),
            &empty.cursor,
            place(&empty.head)
        ),
        ("", &empty.head, 0)
    );
    assert_eq!(empty.epoch, epoch);

    for task in ["t1", "t2", "t3"] {
        server.http().post(&completed(task)).await;
    }
    let log = server.log_of_events().await;
    let first = server.subscribe(request()).await.subscribed;
    let second = server.subscribe(latest()).await.subscribed;
    assert_eq!((place(&first.cursor), place(&second.cursor)), (0, 3));
    assert_ne!(first.subscription_id, second.subscription_id);
    for subscribed in [first, second] {
        assert_eq!(
            (&subscribed.first_available, &subscribed.head),
            (&log[0].cursor, &log[2].cursor)
        );
        assert_eq!(subscribed.epoch, epoch);
        let limits = subscribed.limits.unwrap();
        assert_eq!(
            (limits.task_ids_max, limits.products_max, limits.labels_max),
            (10_000, 64, 16)
        );
        assert_eq!(limits.subscriptions_max, 100_000);
        assert_eq!(limits.heartbeat_interval.unwrap().seconds, 15);
    }
}

#[tokio::test]
async fn by_default_tasks_start_with_what_is_retained_of_them_and_anything_else_at_the_head() {
    let server = Server::start().await;
    let http = server.http();
    for body in [processing("mine"), completed("other"), completed("mine")] {
        http.post(&body).await;
    }
    let unset = |filter| SubscribeRequest {
        filter: Some(filter),
        ..SubscribeRequest::default()
    };
    let both = Filter {
        products: vec!["veo".into()],
        ..of_tasks(["mine"])
    };
    for filter in [of_tasks(["mine"]), both] {
        let mut sub = server.subscribe(unset(filter)).await;
        assert_eq!(tasks_of(&sub.until_caught_up().await), ["mine", "mine"]);
    }
    let others = [
        Filter::default(),
        of_products(["veo"]),
        of_statuses([TaskStatus::Completed]),
        Filter {
            labels: [("team".into(), "ads".into())].into(),
            ..of_products(["veo"])
        },
    ];
    let mut subs = Vec::new();
    for filter in others {
        let mut sub = server.subscribe(unset(filter)).await;
        assert_eq!(sub.until_caught_up().await, []);
        subs.push(sub);
    }
    subs.push(server.subscribe(SubscribeRequest::default()).await);
    http.post_to("/webhook/veo?team=ads", completed("new").to_string())
        .await;
    for mut sub in subs {
        assert_eq!(sub.next_event().await.task_id, "new");
    }
}

#[tokio::test]
async fn a_stream_starts_at_either_end_at_a_time_or_behind_a_cursor() {
    let server = Server::start().await;
    for task in ["t1", "t2", "t3"] {
        server.http().post(&completed(task)).await;
    }
    let log = server.log_of_events().await;
    let received = |at: usize| log[at].received_at.unwrap();
    let far = |seconds| Timestamp { seconds, nanos: 0 };
    let cases = [
        (request(), 0),
        (latest(), 3),
        (
            SubscribeRequest {
                start: Some(Start::Position(0)),
                ..request()
            },
            3,
        ), // UNSPECIFIED is unset
        (since(far(0)), 0),
        (since(received(0)), 0),
        (since(received(1)), 1),
        (since(received(2)), 2),
        (since(far(received(2).seconds + 3600)), 3),
        (after(&cursor_at(&log[0].cursor, 0)), 0),
        (after(&log[0].cursor), 1),
        (after(&log[2].cursor), 3),
    ];
    for (request, skipped) in cases {
        let by_task = SubscribeRequest {
            filter: Some(of_tasks(["t1", "t2", "t3"])),
            ..request.clone()
        };
        let mut sub = server.subscribe(request.clone()).await;
        assert_eq!(sub.until_caught_up().await, log[skipped..], "{request:?}");
        let mut sub = server.subscribe(by_task).await;
        // Tasks have a default of their own.
        let skipped = if request.start == Some(Start::Position(0)) {
            0
        } else {
            skipped
        };
        assert_eq!(
            sub.until_caught_up().await,
            log[skipped..],
            "{request:?} with tasks"
        );
    }
}

#[tokio::test]
async fn a_filter_is_and_between_its_fields_and_or_within_one_in_the_log_and_live() {
    let server = Server::start().await;
    let http = server.http();
    let unknown = with(completed("odd"), json!({"status": "levitating"}));
    let callbacks = [
        ("/webhook/veo?team=ads", completed("a")),
        ("/webhook/veo?team=film&ref=1", failed("b")),
        ("/webhook/sora?team=ads&ref=2", processing("c")),
        ("/webhook/sora", completed("d")),
        ("/webhook/kling?ref=1", unknown),
        (
            "/webhook/kling?team=ads",
            with(completed("e"), json!({"status": "queued"})),
        ),
    ];
    let cases: [(Filter, &[&str]); 12] = [
        (Filter::default(), &["a", "b", "c", "d", "odd", "e"]),
        (of_tasks(["a", "d", "nobody"]), &["a", "d"]),
        (of_products(["veo", "kling"]), &["a", "b", "odd", "e"]),
        (
            of_statuses([TaskStatus::Completed, TaskStatus::Failed]),
            &["a", "b", "d"],
        ),
        (of_statuses([TaskStatus::Unspecified]), &["odd"]),
        (
            of_statuses([TaskStatus::Pending, TaskStatus::Processing]),
            &["c", "e"],
        ),
        (
            of_labels([("team", "ads"), ("ref", "1")]),
            &["a", "b", "c", "odd", "e"],
        ),
        (
            of_labels([("team", "Ads"), ("TEAM", "ads"), ("ads", "team")]),
            &[],
        ),
        (
            Filter {
                labels: of_labels([("team", "ads")]).labels,
                ..of_products(["sora"])
            },
            &["c"],
        ),
        (
            Filter {
                products: vec!["sora".into()],
                ..of_tasks(["a", "c", "d"])
            },
            &["c", "d"],
        ),
        (
            Filter {
                statuses: vec![TaskStatus::Completed.into()],
                ..of_tasks(["b", "d"])
            },
            &["d"],
        ),
        (
            Filter {
                products: vec!["veo".into(), "sora".into()],
                labels: of_labels([("team", "ads"), ("ref", "9")]).labels,
                statuses: of_statuses([TaskStatus::Completed, TaskStatus::Processing]).statuses,
                ..of_tasks(["a", "b", "c", "e"])
            },
            &["a", "c"],
        ),
    ];
    let mut live = Vec::new();
    for (filter, _) in &cases {
        let mut sub = server
            .subscribe(SubscribeRequest {
                filter: Some(filter.clone()),
                ..heartbeat(1, 0)
            })
            .await;
        assert_eq!(sub.until_caught_up().await, []);
        live.push(sub);
    }
    for (path, body) in &callbacks {
        http.post_to(path, body.to_string()).await.event_id();
    }
    let head = server.log_info().await.head;
    for ((filter, expected), mut sub) in cases.iter().zip(live) {
        let mut retained = server.subscribe(matching(filter.clone())).await;
        assert_eq!(
            tasks_of(&retained.until_caught_up().await),
            *expected,
            "retained, {filter:?}"
        );
        // The bookmark at the head says that no other will come.
        let mut seen = Vec::new();
        while sub.cursor != head {
            seen.extend(sub.next().await.unwrap());
        }
        assert_eq!(tasks_of(&events(seen)), *expected, "live, {filter:?}");
    }
}

#[tokio::test]
async fn caught_up_comes_once_and_names_the_head() {
    let server = Server::start().await;
    for task in ["t1", "t2"] {
        server.http().post(&completed(task)).await;
    }
    let head = server.log_info().await.head;
    for request in [
        request(),
        latest(),
        tasks(["t1"]),
        tasks(["nobody"]),
        matching(of_products(["sora"])),
    ] {
        let mut sub = server.subscribe(request.clone()).await;
        sub.until_caught_up().await;
        assert_eq!(sub.cursor, head, "{request:?}");
    }
    let mut sub = server.subscribe(heartbeat(1, 0)).await;
    let mut caught_up = 0;
    let mut beats = 0;
    while beats < 2 {
        match sub.next().await.unwrap().unwrap() {
            Seen::CaughtUp(v1::CaughtUp { time, .. }) => {
                assert!(time.is_some());
                caught_up += 1;
            }
            Seen::Progress(_) => beats += 1,
            _ => {}
        }
    }
    assert_eq!(caught_up, 1);
}

#[tokio::test]
async fn a_stalled_live_stream_falls_behind_says_by_how_much_and_catches_up_without_a_gap() {
    let server = Options::default()
        .set("hub.ring_bytes_max", "1MiB")
        .start()
        .await;
    for request in [latest(), tasks((0..400).map(|number| format!("t{number}")))] {
        let mut stalled = server.subscribe_narrowly(request.clone()).await;
        let start = stalled.until_caught_up().await.len();
        let head = place(&server.log_info().await.head);
        let from = usize::try_from(head).unwrap();
        server.http().post_bulky(from..from + 150, 20_000).await;
        let end = place(&server.log_info().await.head);
        let (mut last, mut behind, mut caught_up) = (head, 0, false);
        while last < end || !caught_up {
            match stalled.next().await.unwrap().unwrap() {
                Seen::Event(event) => {
                    assert_eq!(place(&event.cursor), last + 1);
                    last += 1;
                }
                Seen::FellBehind(v1::FellBehind { cursor, lag, time }) => {
                    assert_eq!(place(&cursor), last);
                    assert!((1..=end - last).contains(&lag), "{lag} of {}", end - last);
                    assert!(time.is_some());
                    (behind, caught_up) = (behind + 1, false);
                }
                Seen::CaughtUp(v1::CaughtUp { cursor, .. }) => {
                    assert_eq!(place(&cursor), last);
                    caught_up = true;
                }
                _ => {}
            }
        }
        assert!(behind > 0, "{request:?} began with {start}");
    }
}

#[tokio::test]
async fn a_start_in_the_future_means_the_same_as_in_a_listing() {
    let server = Server::start().await;
    let from = jiff::Timestamp::now() + Duration::from_secs(2);
    let from = Timestamp {
        seconds: from.as_second(),
        nanos: 0,
    };
    let mut subs = [
        server.subscribe(since(from)).await,
        server
            .subscribe(SubscribeRequest {
                filter: Some(of_products(["veo"])),
                ..since(from)
            })
            .await,
    ];
    let list = || v1::ListEventsRequest {
        since: Some(from),
        ..Default::default()
    };
    let listed = async || {
        server
            .events()
            .await
            .list_events(list())
            .await
            .unwrap()
            .into_inner()
            .events
    };
    // Until the time has come.
    let mut posted = 0;
    until("an event of that time", async || {
        server
            .http()
            .post(&completed(&format!("t{posted}")))
            .await
            .event_id();
        posted += 1;
        listed().await.len() == 3
    })
    .await;
    assert!(posted > 3, "some were early");
    let expected = listed().await;
    for sub in &mut subs {
        assert_eq!(places(&sub.next_events(3).await), places(&expected));
    }
}

#[tokio::test]
async fn the_heartbeat_has_a_default_and_is_clamped_visibly() {
    let server = Server::start().await;
    let cases = [
        (0, 0, 1),
        (0, 999_999_999, 1),
        (1, 0, 1),
        (30, 0, 30),
        (45, 0, 45),
        (46, 0, 45),
        (86_400, 0, 45),
    ];
    for (seconds, nanos, effective) in cases {
        let limits = server
            .subscribe(heartbeat(seconds, nanos))
            .await
            .subscribed
            .limits
            .unwrap();
        assert_eq!(
            limits.heartbeat_interval,
            Some(prost_types::Duration {
                seconds: effective,
                nanos: 0
            })
        );
    }
    let limits = server.subscribe(request()).await.subscribed.limits.unwrap();
    assert_eq!(
        limits.heartbeat_interval,
        Some(prost_types::Duration {
            seconds: 15,
            nanos: 0
        })
    );
}

#[tokio::test]
async fn a_quiet_stream_beats_with_the_head_as_its_bookmark() {
    let server = Server::start().await;
    let mut sub = server
        .subscribe(SubscribeRequest {
            filter: Some(of_products(["sora"])),
            ..heartbeat(1, 0)
        })
        .await;
    server.http().post(&completed("t1")).await;
    let head = server.log_info().await.head;
    let progress = loop {
        if let Seen::Progress(progress) = sub.next().await.unwrap().unwrap()
            && progress.head == head
        {
            break progress;
        }
    };
    assert_eq!(progress.cursor, head);
    assert!(progress.time.is_some());
}

#[tokio::test]
async fn an_expired_cursor_is_refused_or_announces_a_gap_as_the_client_chose() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    server.http().post_bulky(0..20, 100_000).await;
    let info = server.trimmed().await;
    let log = server.log_of_events().await;
    assert!(
        log.len() > 1 && place(&log[0].cursor) > 2,
        "retention has left {}",
        log.len()
    );
    let old = cursor_at(&info.head, 1);
    let by_task = || SubscribeRequest {
        filter: Some(of_tasks((0..20).map(|n| format!("t{n}")))),
        ..after(&old)
    };

    for request in [after(&old), by_task()] {
        for on_expired in [OnExpired::Unspecified, OnExpired::Fail] {
            let status = refused(&server, expired(request.clone(), on_expired)).await;
            assert_eq!(
                refusal(&status),
                (Code::OutOfRange, "CURSOR_EXPIRED".into())
            );
            assert_eq!(told(&status, "first_available"), info.first_available);
            assert_eq!(told(&status, "head"), info.head);
        }

        let mut sub = server
            .subscribe(expired(request.clone(), OnExpired::Earliest))
            .await;
        assert_eq!(sub.subscribed.cursor, old);
        let Some(Seen::Gap(gap)) = sub.next().await.unwrap() else {
            panic!("no gap")
        };
        assert_eq!(
            (gap.after, place(&gap.through)),
            (old.clone(), place(&info.first_available) - 1)
        );
        assert_eq!(gap.reason, "CURSOR_EXPIRED");
        assert_eq!(sub.until_caught_up().await, log);

        let mut sub = server
            .subscribe(expired(request.clone(), OnExpired::Latest))
            .await;
        let Some(Seen::Gap(gap)) = sub.next().await.unwrap() else {
            panic!("no gap")
        };
        assert_eq!((gap.after, gap.through), (old.clone(), info.head.clone()));
        assert_eq!(sub.until_caught_up().await, []);
    }
    // The place right before the oldest event has lost nothing.
    let edge = cursor_at(&info.head, place(&info.first_available) - 1);
    assert_eq!(
        server.subscribe(after(&edge)).await.until_caught_up().await,
        log
    );
    let mut sub = server
        .subscribe(expired(after(&edge), OnExpired::Latest))
        .await;
    assert_eq!(
        sub.until_caught_up().await,
        log,
        "no gap where nothing is missing"
    );
}

/// Opens streams, stalls them, and lets retention pass where they are. Returns the places each has seen, its gaps, its end.
async fn passed_by_retention(
    on_expired: OnExpired,
    by_task: bool,
) -> (Vec<u64>, Vec<(u64, u64)>, Option<Status>) {
    let server = Options::default()
        .set("log.retention_bytes_max", "4MiB")
        .set("hub.ring_bytes_max", "1MiB")
        .start()
        .await;
    let http = server.http();
    http.post_bulky(0..90, 20_000).await;
    let filter = of_tasks(
        (0..300)
            .map(|number| format!("t{number}"))
            .filter(|_| by_task),
    );
    let mut stalled = server
        .subscribe_narrowly(expired(matching(filter), on_expired))
        .await;
    let mut seen = vec![place(&stalled.next_event().await.cursor)];
    http.post_bulky(90..290, 20_000).await;
    let info = server.trimmed().await;
    assert!(place(&info.first_available) > 100);
    let mut gaps = Vec::new();
    loop {
        match stalled.next().await {
            Ok(Some(Seen::Event(event))) => seen.push(place(&event.cursor)),
            Ok(Some(Seen::Gap(gap))) => gaps.push((place(&gap.after), place(&gap.through))),
            Ok(Some(Seen::CaughtUp(at))) if at.cursor == info.head => return (seen, gaps, None),
            Ok(seen) => assert!(
                seen.is_some(),
                "a stream without until_terminal ends with an error"
            ),
            Err(status) => return (seen, gaps, Some(status)),
        }
    }
}

#[tokio::test]
async fn retention_that_passes_a_stalled_stream_ends_it_with_a_clear_error() {
    for by_task in [false, true] {
        let (seen, gaps, end) = passed_by_retention(OnExpired::Fail, by_task).await;
        assert_eq!(
            refusal(&end.unwrap()),
            (Code::OutOfRange, "CURSOR_EXPIRED".into())
        );
        assert_eq!(
            seen,
            (1..=seen.len() as u64).collect::<Vec<_>>(),
            "what came came without a hole"
        );
        assert!(gaps.is_empty());
    }
}

#[tokio::test]
async fn a_stream_that_is_overtaken_within_an_event_ends_as_expired_and_its_loss_is_counted() {
    let options = Options::default()
        .set("log.retention_bytes_max", "4MiB")
        .set("hub.ring_bytes_max", "1MiB");
    let server = options.start().await;
    let mut stalled = server
        .subscribe_narrowly(expired(request(), OnExpired::Earliest))
        .await;
    // Larger than what the client lets the broker send, so it has a part of it.
    server.http().post_bulky(0..1, 500_000).await;
    until("the event to be begun", async || {
        server.subscriptions().await[0].delivered_count == 1
    })
    .await;
    server.http().post_bulky(1..200, 30_000).await;
    server.trimmed().await;
    let (seen, status) = stalled.end().await.unwrap_err();
    assert_eq!(
        refusal(&status),
        (Code::OutOfRange, "CURSOR_EXPIRED".into()),
        "{seen:?}"
    );
    until("its end to be counted", async || {
        server
            .metric("blobcast_subscriptions_ended_total{cause=\"expired\"}")
            .await
            == 1.0
    })
    .await;
    assert_eq!(
        server
            .metric("blobcast_losses_total{client=\"\",kind=\"overtaken\"}")
            .await,
        1.0
    );
    let ended = server.logged("subscription ended", 1).await.remove(0);
    assert!(
        ended.contains("\"cause\":\"expired\"") && ended.contains("\"position\":0,"),
        "{ended}"
    );
}

#[tokio::test]
async fn retention_that_passes_a_stalled_stream_is_announced_as_a_gap_and_nothing_else_is_missing()
{
    for by_task in [false, true] {
        let (seen, gaps, end) = passed_by_retention(OnExpired::Earliest, by_task).await;
        assert!(end.is_none(), "{end:?}");
        assert!(!gaps.is_empty());
        let forgotten = gaps.iter().flat_map(|&(from, to)| from + 1..=to);
        let mut accounted: Vec<_> = seen.iter().copied().chain(forgotten).collect();
        assert!(seen.is_sorted());
        accounted.sort_unstable();
        assert_eq!(
            accounted,
            (1..=290).collect::<Vec<_>>(),
            "each place is delivered or in a gap, once"
        );
    }
}

#[tokio::test]
async fn retention_that_passes_a_stalled_stream_can_send_it_to_the_head() {
    for by_task in [false, true] {
        let (seen, gaps, end) = passed_by_retention(OnExpired::Latest, by_task).await;
        assert!(end.is_none(), "{end:?}");
        assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
        assert_eq!(gaps, [(seen.len() as u64, 290)]);
    }
}

#[tokio::test]
async fn a_start_that_the_broker_chose_never_expires_however_fast_retention_runs() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let http = server.http();
    http.post_bulky(0..30, 20_000).await;
    let load = tokio::spawn(async move { http.post_bulky(30..600, 20_000).await });
    let mut opened = 0;
    while !load.is_finished() {
        // A connection for each round: the client's own library ends one on which it has dropped a thousand busy streams.
        let client = server.events().await;
        for request in [
            tasks([format!("t{}", opened * 3)]),
            request(),
            since(Timestamp::default()),
        ] {
            let mut sub = Sub::open(client.clone(), request.clone()).await.unwrap();
            // The stream is as good as its word: what is behind the cursor that it began with comes, whatever retention does.
            match sub.next().await {
                Ok(Some(Seen::Event(event))) if request.filter.is_none() => {
                    assert_eq!(place(&event.cursor), place(&sub.subscribed.cursor) + 1);
                }
                Ok(Some(Seen::Event(_) | Seen::CaughtUp(_))) => {}
                other => panic!("{request:?}: {other:?}"),
            }
            opened += 1;
        }
    }
    load.await.unwrap();
    assert!(opened > 50, "only {opened} raced with retention");
}

#[tokio::test]
async fn until_terminal_ends_with_ok_once_every_task_is_over() {
    let server = Server::start().await;
    let http = server.http();
    for body in [processing("t1"), completed("t2")] {
        http.post(&body).await;
    }
    let mut sub = server.subscribe(to_the_end(["t1", "t2", "t3"])).await;
    assert_eq!(tasks_of(&sub.until_caught_up().await), ["t1", "t2"]);
    http.post(&failed("t3")).await;
    http.post(&processing("t1")).await;
    http.post(&completed("t1")).await;
    let seen = sub.end().await.unwrap();
    let Some(Seen::Completed(completed)) = seen.last() else {
        panic!("no `completed`: {seen:?}")
    };
    assert_eq!(completed.cursor, server.log_info().await.head);
    assert_eq!(tasks_of(&events(seen)), ["t3", "t1"]);
}

#[tokio::test]
async fn until_terminal_counts_what_was_over_before_it_started() {
    let server = Server::start().await;
    for task in ["t1", "t2"] {
        server.http().post(&completed(task)).await;
    }
    let head = server.log_info().await.head;
    let starts = [
        None,
        Some(Start::AfterCursor(head)),
        Some(Start::Position(StartPosition::Latest.into())),
    ];
    for (start, expected) in starts.into_iter().zip([2, 0, 0]) {
        let mut sub = server
            .subscribe(SubscribeRequest {
                start: start.clone(),
                ..to_the_end(["t1", "t2"])
            })
            .await;
        let seen = sub
            .end()
            .await
            .unwrap_or_else(|(seen, status)| panic!("{start:?}: {status:?} after {seen:?}"));
        assert!(matches!(seen.last(), Some(Seen::Completed(_))));
        assert_eq!(events(seen).len(), expected, "{start:?}");
    }
}

#[tokio::test]
async fn until_terminal_ends_also_if_the_filter_hides_the_last_event() {
    let server = Server::start().await;
    let http = server.http();
    http.post(&processing("t1")).await;
    let filters = [
        Filter {
            statuses: vec![TaskStatus::Processing.into()],
            ..of_tasks(["t1"])
        },
        Filter {
            labels: [("team".into(), "ads".into())].into(),
            ..of_tasks(["t1"])
        },
    ];
    let open = |filter| SubscribeRequest {
        filter: Some(filter),
        ..to_the_end(["t1"])
    };
    let mut live = Vec::new();
    for filter in &filters {
        live.push(server.subscribe(open(filter.clone())).await);
    }
    http.post(&completed("t1")).await;
    for (filter, mut live) in filters.iter().zip(live) {
        let mut late = server.subscribe(open(filter.clone())).await;
        for sub in [&mut live, &mut late] {
            let seen = sub.end().await.unwrap();
            assert!(matches!(seen.last(), Some(Seen::Completed(_))));
            let hidden = events(seen).into_iter().any(|event| event.terminal);
            assert!(!hidden, "{filter:?}");
        }
    }
}

#[tokio::test]
async fn until_terminal_counts_the_ends_of_the_filters_products_only() {
    let server = Server::start().await;
    let http = server.http();
    let post = async |product: &str, body: Value| {
        http.post_to(&format!("/webhook/{product}"), body.to_string())
            .await
            .event_id();
    };
    post("veo", completed("t1")).await;
    let filter = Filter {
        products: vec!["sora".into()],
        ..of_tasks(["t1"])
    };
    let request = SubscribeRequest {
        filter: Some(filter),
        ..to_the_end(["t1"])
    };
    let head = Start::AfterCursor(server.log_info().await.head);
    let mut open = Vec::new();
    for start in [None, Some(head)] {
        let mut sub = server
            .subscribe(SubscribeRequest {
                start,
                ..request.clone()
            })
            .await;
        assert_eq!(sub.until_caught_up().await, []);
        open.push(sub);
    }
    post("veo", failed("t1")).await;
    post("sora", processing("t1")).await;
    post("sora", completed("t1")).await;
    for mut sub in open {
        let seen = sub.end().await.unwrap();
        assert!(matches!(seen.last(), Some(Seen::Completed(_))));
        let statuses: Vec<_> = events(seen)
            .iter()
            .map(|event| (event.product.clone(), event.status()))
            .collect();
        let of_sora = [TaskStatus::Processing, TaskStatus::Completed]
            .map(|status| ("sora".to_owned(), status));
        assert_eq!(statuses, of_sora);
    }
}

#[tokio::test]
async fn who_wants_all_of_what_comes_most_of_it_or_little_sees_the_same_events() {
    let server = Server::start().await;
    let raw = |request| SubscribeRequest {
        include_raw: true,
        ..request
    };
    let live = |filter| SubscribeRequest {
        filter: Some(filter),
        ..latest()
    };
    let wanted = [
        live(Filter::default()),
        live(of_products(["veo"])),
        live(of_products(["sora"])),
        raw(latest()),
    ];
    let mut subs = Vec::new();
    for request in &wanted {
        let mut sub = server.subscribe(request.clone()).await;
        assert_eq!(sub.until_caught_up().await, []);
        subs.push(sub);
    }
    // At once, so that they are committed in groups: mostly of one product, and some large enough to be handed on as they are.
    let mut posts = JoinSet::new();
    for number in 0..300 {
        let http = server.http();
        let path = if number % 5 == 0 {
            "/webhook/sora"
        } else {
            "/webhook/veo"
        };
        let body = bulky(
            &format!("t{number}"),
            if number % 50 == 0 { 9_000 } else { 200 },
        );
        posts.spawn(async move { http.post_to(path, body.to_string()).await.event_id() });
    }
    posts.join_all().await;
    let log = server.log_of_events().await;
    assert_eq!(log.len(), 300);
    for (request, mut sub) in wanted.into_iter().zip(subs) {
        let products = request.filter.unwrap_or_default().products;
        let is_wanted = |event: &&Event| products.is_empty() || products.contains(&event.product);
        let expected: Vec<_> = log.iter().filter(is_wanted).cloned().collect();
        let mut seen = sub.next_events(expected.len()).await;
        assert!(
            seen.iter()
                .all(|event| event.raw_body.is_empty() != request.include_raw)
        );
        seen.iter_mut().for_each(|event| event.raw_body.clear());
        assert_eq!(seen, expected, "{products:?}");
    }
}

#[tokio::test]
async fn a_body_comes_exactly_as_received_and_only_if_asked_for() {
    let server = Server::start().await;
    let body = "{ \"status\":\"completed\",\t\"generation_id\": \"t1\", \"unknown\": [1, 2.50],\n\"video_url\":\"https://x/ü.mp4\" } ";
    let mut live = server
        .subscribe(SubscribeRequest {
            include_raw: true,
            ..latest()
        })
        .await;
    server.http().post_to("/webhook/veo", body).await.event_id();
    let mut retained = server
        .subscribe(SubscribeRequest {
            include_raw: true,
            ..tasks(["t1"])
        })
        .await;
    for sub in [&mut live, &mut retained] {
        assert_eq!(sub.next_event().await.raw_body, body.as_bytes());
    }
    assert_eq!(
        server
            .subscribe(request())
            .await
            .next_event()
            .await
            .raw_body,
        ""
    );
}

#[tokio::test]
async fn on_sigterm_every_stream_learns_where_to_resume_and_ends_as_draining() {
    let mut server = Server::start().await;
    server.http().post(&completed("t1")).await;
    let head = server.log_info().await.head;
    let mut subs = Vec::new();
    for request in [
        request(),
        latest(),
        tasks(["t1"]),
        tasks(["nobody"]),
        to_the_end(["nobody"]),
    ] {
        let mut sub = server.subscribe(request).await;
        sub.until_caught_up().await;
        subs.push(sub);
    }
    server.signal(rustix::process::Signal::TERM);
    for mut sub in subs {
        let (seen, status) = sub.end().await.unwrap_err();
        let Some(Seen::GoingAway(going_away)) = seen.last() else {
            panic!("no `going_away`: {seen:?}")
        };
        assert_eq!(going_away.cursor, head);
        assert!(going_away.reconnect_after.unwrap().seconds >= 1);
        assert_eq!(refusal(&status), (Code::Unavailable, "DRAINING".into()));
        assert!(
            status
                .get_details_retry_info()
                .unwrap()
                .retry_delay
                .unwrap()
                >= Duration::from_secs(1)
        );
    }
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn the_final_status_does_not_queue_behind_undelivered_events() {
    let mut server = Server::start().await;
    server.http().post_bulky(0..150, 20_000).await;
    let mut stalled = server.subscribe_narrowly(request()).await;
    let first = place(&stalled.next_event().await.cursor);
    server.signal(rustix::process::Signal::TERM);
    until("the drain", async || {
        server.log().contains("ending streams")
    })
    .await;
    let (seen, status) = stalled.end().await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Unavailable, "DRAINING".into()));
    let Some(Seen::GoingAway(going_away)) = seen.last().cloned() else {
        panic!("no `going_away`")
    };
    let places = places(&events(seen));
    let last = places.last().copied().unwrap_or(first);
    assert_eq!(places, (first + 1..=last).collect::<Vec<_>>());
    assert_eq!(
        place(&going_away.cursor),
        last,
        "the cursor is that of the last event that came"
    );
    assert!(
        last < 100,
        "only what was on its way comes before the end, not {last} of 150 events"
    );
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn the_deadline_of_the_call_ends_a_quiet_stream_and_a_busy_one() {
    let server = Server::start().await;
    let http = server.http();
    let mut client = server.events().await;
    let load = tokio::spawn(async move {
        for number in 0.. {
            http.post(&completed(&format!("t{number}"))).await;
        }
    });
    for filter in [of_tasks(["nobody"]), Filter::default()] {
        let mut call = Request::new(matching(filter));
        call.set_timeout(Duration::from_secs(1));
        let mut stream = client.subscribe(call).await.unwrap().into_inner();
        let status = crate::support::within("the deadline", async {
            loop {
                match stream.message().await {
                    Ok(message) => assert!(message.is_some(), "a stream does not end with OK"),
                    Err(status) => return status,
                }
            }
        });
        assert_eq!(status.await.code(), Code::DeadlineExceeded);
    }
    load.abort();
}

#[tokio::test]
async fn as_many_streams_as_allowed_are_open_and_a_cancelled_one_makes_room() {
    let server = Options::default()
        .set("grpc.subscriptions_max", 3)
        .start()
        .await;
    let client = server.events().await;
    let open = || Sub::open(client.clone(), request());
    let mut subs = Vec::new();
    for _ in 0..3 {
        subs.push(open().await.unwrap());
    }
    let status = open().await.err().unwrap();
    assert_eq!(
        refusal(&status),
        (Code::ResourceExhausted, "SUBSCRIPTION_LIMIT".into())
    );
    let said = ["limit", "open", "setting"].map(|key| told(&status, key));
    assert_eq!(said, ["3", "3", "grpc.subscriptions_max"]);
    assert_eq!(subs[0].subscribed.limits.unwrap().subscriptions_max, 3);
    subs.pop();
    until("room for another", async || open().await.is_ok()).await;
}

#[tokio::test]
async fn a_filter_takes_as_many_values_as_its_limits_say_and_not_one_more() {
    let server = Server::start().await;
    let ids = |count: usize| of_tasks((0..count).map(|number| format!("{number:0>128}")));
    let products = |count: usize| of_products((0..count).map(|number| format!("p{number}")));
    let labels =
        |count: usize| of_labels((0..count).map(|number| (format!("k{number}"), "v".into())));
    let last = ids(10_000).task_ids.pop().unwrap();
    let mut subs = Vec::new();
    for filter in [ids(10_000), products(64), labels(16)] {
        subs.push(server.subscribe(matching(filter)).await);
    }
    for (filter, limit) in [
        (ids(10_001), "10000"),
        (products(65), "64"),
        (labels(17), "16"),
    ] {
        let status = refused(&server, matching(filter)).await;
        assert_eq!(
            refusal(&status),
            (Code::ResourceExhausted, "SUBSCRIPTION_LIMIT".into())
        );
        assert_eq!(told(&status, "limit"), limit);
    }
    server
        .http()
        .post_to("/webhook/p63?k15=v", completed(&last).to_string())
        .await
        .event_id();
    for mut sub in subs {
        assert_eq!(sub.next_event().await.task_id, last);
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused_with_the_field_that_is() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await;
    let head = server.log_info().await.head;
    let of = |filter: Filter| matching(filter);
    let statuses = |numbers: Vec<i32>| {
        of(Filter {
            statuses: numbers,
            ..Filter::default()
        })
    };
    let time = |seconds, nanos| since(Timestamp { seconds, nanos });
    let cases = [
        (of(of_tasks(["good", ""])), "filter.task_ids[1]"),
        (of(of_tasks(["two words"])), "filter.task_ids[0]"),
        (of(of_tasks(["a".repeat(129)])), "filter.task_ids[0]"),
        (
            of(of_products(["veo", "kling", "Veo"])),
            "filter.products[2]",
        ),
        (of(of_products(["p".repeat(64)])), "filter.products[0]"),
        (statuses(vec![3, 6]), "filter.statuses[1]"),
        (statuses(vec![-1]), "filter.statuses[0]"),
        (
            of(of_labels([("k".repeat(65), String::new())])),
            "filter.labels",
        ),
        (
            of(of_labels([("k".into(), "v".repeat(257))])),
            "filter.labels",
        ),
        (after(""), "after_cursor"),
        (after("latest"), "after_cursor"),
        (after(&head.to_uppercase()), "after_cursor"),
        (after(&format!("{head}0")), "after_cursor"),
        (time(i64::MAX, 0), "since"),
        (time(0, -1), "since"),
        (time(0, 1_000_000_000), "since"),
        (heartbeat(-1, 0), "heartbeat_interval"),
        (heartbeat(0, -1), "heartbeat_interval"),
        (
            SubscribeRequest {
                start: Some(Start::Position(3)),
                ..request()
            },
            "position",
        ),
        (
            SubscribeRequest {
                on_expired: 4,
                ..request()
            },
            "on_expired",
        ),
        (
            SubscribeRequest {
                until_terminal: true,
                ..request()
            },
            "until_terminal",
        ),
        (
            SubscribeRequest {
                until_terminal: true,
                ..matching(of_products(["veo"]))
            },
            "until_terminal",
        ),
        (
            SubscribeRequest {
                client_name: "n".repeat(129),
                ..request()
            },
            "client_name",
        ),
    ];
    for (request, field) in cases {
        assert_eq!(
            violation(&refused(&server, request.clone()).await),
            field,
            "{request:?}"
        );
    }
    let longest = SubscribeRequest {
        client_name: "é".repeat(128),
        ..matching(of_tasks(["é".repeat(128)]))
    };
    server.subscribe(longest).await;
}

#[tokio::test]
async fn a_task_named_twice_is_delivered_once() {
    let server = Server::start().await;
    let mut live = server.subscribe(tasks(["t1", "t2", "t1"])).await;
    for task in ["t1", "t2"] {
        server.http().post(&completed(task)).await;
    }
    let mut retained = server.subscribe(tasks(["t1", "t2", "t1"])).await;
    for sub in [&mut live, &mut retained] {
        let seen = sub.next_events(2).await;
        assert_eq!(
            seen.iter()
                .map(|event| &event.event_id)
                .collect::<HashSet<_>>()
                .len(),
            2
        );
    }
}

#[tokio::test]
async fn an_event_of_the_largest_body_reaches_a_client_with_default_limits() {
    let server = Server::start().await;
    let mut default = v1::event_service_client::EventServiceClient::new(server.channel().await);
    let mut body = bulky("t1", 0);
    let room = 1024 * 1024 - body.to_string().len();
    body["prompt"] = "x".repeat(room).into();
    server.http().post(&body).await.event_id();
    let with_raw = SubscribeRequest {
        include_raw: true,
        ..request()
    };
    let mut stream = default.subscribe(with_raw).await.unwrap().into_inner();
    let event = loop {
        if let Some(Seen::Event(event)) = stream.message().await.unwrap().unwrap().content {
            break event;
        }
    };
    assert_eq!(
        (event.prompt.len(), event.raw_body.len()),
        (room, 1024 * 1024)
    );
}

#[tokio::test]
async fn details_that_would_outgrow_a_message_stay_in_the_body_and_stop_no_subscriber() {
    let server = Server::start().await;
    let mut default = v1::event_service_client::EventServiceClient::new(server.channel().await);
    // A number takes 2 bytes in the body, and 11 in the details of an event: 5 MB, where clients take 4.
    let numbers = vec![1; 500_000];
    let large = with(
        failed("t1"),
        json!({"error": {"code": "X", "message": "a sentence", "details": {"numbers": numbers}}}),
    );
    server.http().post(&large).await.event_id();
    server.http().post(&completed("t2")).await.event_id();
    let mut stream = default
        .subscribe(SubscribeRequest {
            include_raw: true,
            ..request()
        })
        .await
        .unwrap()
        .into_inner();
    let mut events = Vec::new();
    while events.len() < 2 {
        if let Some(Seen::Event(event)) = stream.message().await.unwrap().unwrap().content {
            events.push(event);
        }
    }
    let error = events[0].error.clone().unwrap();
    assert_eq!(
        (error.code.as_str(), error.message.as_str(), error.details),
        ("X", "a sentence", None)
    );
    assert_eq!(events[0].raw_body, large.to_string());
}

#[tokio::test]
async fn details_that_nest_deeper_than_a_decoder_goes_stop_no_subscriber() {
    let server = Server::start().await;
    let nested = (0..100).fold(json!(1), |inner, _| json!({ "a": inner }));
    let deep = with(
        failed("t1"),
        json!({"error": {"message": "UNSAFE_CONTENT", "details": nested}}),
    );
    server.http().post(&deep).await.event_id();
    server.http().post(&completed("t2")).await.event_id();
    let events = server.subscribe(request()).await.until_caught_up().await;
    assert_eq!(tasks_of(&events), ["t1", "t2"]);
    assert_eq!(events[0].error.as_ref().unwrap().code, "UNSAFE_CONTENT");
}

#[tokio::test]
async fn more_than_may_read_far_ahead_at_once_miss_nothing_also_behind_stalled_ones() {
    const MORE_THAN_WIDE_READERS: usize = 33;
    let server = Options::default()
        .set("hub.ring_bytes_max", "1MiB")
        .start()
        .await;
    for number in 0..400 {
        let prompt = json!({"prompt": "x".repeat(10_000)});
        server
            .http()
            .post(&with(completed(&format!("t{number}")), prompt))
            .await
            .event_id();
    }
    let log = server.log_of_events().await;
    let mut stalled = Vec::new();
    for _ in 0..MORE_THAN_WIDE_READERS {
        stalled.push(server.subscribe_narrowly(request()).await);
    }
    assert_eq!(
        server.subscribe(request()).await.until_caught_up().await,
        log
    );
    for mut sub in stalled {
        assert_eq!(sub.until_caught_up().await, log);
    }
}
