//! `AdminService`: listing and ending subscriptions, and the quarantine: list, release, discard.

use std::collections::HashSet;

use blobcast::wire::v1::{
    DiscardQuarantinedRequest, Event, Filter, ListQuarantineRequest, ListQuarantineResponse,
    ListSubscriptionsRequest, ListSubscriptionsResponse, QuarantinedCallback,
    ReleaseQuarantinedRequest, ReleasedEvent, SubscribeRequest, Subscription, SubscriptionOrder,
    SubscriptionState, TaskStatus, WaitTaskRequest, admin_service_client::AdminServiceClient,
};
use prost::Message;
use serde_json::json;
use tonic::{Code, Status, transport::Channel};

use crate::support::{
    Options, Server, Sub, after, completed, latest, matching, of_labels, of_tasks, place,
    processing, refusal, request, tasks, told, until, violation, with,
};

type Client = AdminServiceClient<Channel>;

async fn subscriptions(client: &mut Client) -> Vec<Subscription> {
    let listed = client
        .list_subscriptions(ListSubscriptionsRequest::default())
        .await
        .unwrap();
    listed.into_inner().subscriptions
}

/// All pages of the quarantine.
async fn quarantine_pages(
    client: &mut Client,
    request: ListQuarantineRequest,
) -> Vec<Vec<QuarantinedCallback>> {
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListQuarantineRequest {
            page_token,
            ..request.clone()
        };
        let page = client.list_quarantine(request).await.unwrap().into_inner();
        pages.push(page.callbacks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return pages;
        }
    }
}

async fn quarantine(client: &mut Client) -> Vec<QuarantinedCallback> {
    quarantine_pages(
        client,
        ListQuarantineRequest {
            include_body: true,
            ..Default::default()
        },
    )
    .await
    .concat()
}

async fn release_at_once(
    client: &mut Client,
    request: ReleaseQuarantinedRequest,
) -> Result<Vec<ReleasedEvent>, Status> {
    Ok(client
        .release_quarantined(request)
        .await?
        .into_inner()
        .events)
}

/// Releases a callback, and checks that the preview says what becomes of it, or why nothing does.
async fn release_all(
    client: &mut Client,
    request: ReleaseQuarantinedRequest,
) -> Result<Vec<ReleasedEvent>, Status> {
    let preview = ReleaseQuarantinedRequest {
        validate_only: true,
        ..request.clone()
    };
    let preview = release_at_once(client, preview).await;
    let released = release_at_once(client, request).await;
    match (&preview, &released) {
        (Err(preview), Err(released)) => assert_eq!(
            (preview.code(), preview.message(), preview.details()),
            (released.code(), released.message(), released.details())
        ),
        (Ok(preview), Ok(released)) => {
            let told = |events: &[ReleasedEvent]| -> Vec<_> {
                let told = |event: &ReleasedEvent| (event.task_id.clone(), event.duplicate);
                events.iter().map(told).collect()
            };
            assert_eq!(told(preview), told(released));
            for (preview, released) in preview.iter().zip(released) {
                let event = preview.event.as_ref().expect("it is small enough");
                assert_eq!(event.task_id, preview.task_id);
                assert!(preview.duplicate || preview.event_id.is_empty());
                assert!(["", &released.event_id].contains(&&*preview.event_id));
                assert_eq!(released.event, None);
            }
        }
        differing => panic!("{differing:?}"),
    }
    released
}

/// The one event that a callback becomes.
async fn release(
    client: &mut Client,
    request: ReleaseQuarantinedRequest,
) -> Result<ReleasedEvent, Status> {
    let events = release_all(client, request).await?;
    let [event] = &events[..] else {
        panic!("{events:?}")
    };
    Ok(event.clone())
}

async fn discard(client: &mut Client, quarantine_ids: &[&str]) -> Result<u32, Status> {
    let quarantine_ids = quarantine_ids.iter().map(ToString::to_string).collect();
    Ok(client
        .discard_quarantined(DiscardQuarantinedRequest { quarantine_ids })
        .await?
        .into_inner()
        .discarded_count)
}

fn with_raw(request: SubscribeRequest) -> SubscribeRequest {
    SubscribeRequest {
        include_raw: true,
        ..request
    }
}

fn of(quarantine_id: &str) -> ReleaseQuarantinedRequest {
    ReleaseQuarantinedRequest {
        quarantine_id: quarantine_id.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_subscription_is_listed_with_what_it_asked_for_and_where_it_is() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    assert_eq!(subscriptions(&mut admin).await, []);
    let filter = Filter {
        products: vec!["veo".into()],
        statuses: vec![TaskStatus::Completed.into(), TaskStatus::Unspecified.into()],
        labels: of_labels([("team", "ads")]).labels,
        ..of_tasks((0..20).map(|number| format!("t{number}")))
    };
    let request = SubscribeRequest {
        client_name: "billing ü".into(),
        ..matching(filter.clone())
    };
    let mut sub = server.subscribe(request).await;
    sub.until_caught_up().await;
    for number in 0..3 {
        server
            .http()
            .post_to(
                "/webhook/veo?team=ads",
                completed(&format!("t{number}")).to_string(),
            )
            .await;
    }
    server.http().post(&completed("other")).await;
    sub.next_events(3).await;

    let [listed] = &subscriptions(&mut admin).await[..] else {
        panic!("one subscription")
    };
    assert_eq!(listed.subscription_id, sub.subscribed.subscription_id);
    assert_eq!(listed.client_name, "billing ü");
    let peer: std::net::SocketAddr = listed.peer.parse().unwrap();
    assert!(peer.ip().is_loopback() && peer.port() != 0);
    let shown = listed.filter.clone().unwrap();
    assert_eq!((shown.task_ids.len(), listed.task_id_count), (16, 20));
    assert!(shown.task_ids.iter().all(|id| filter.task_ids.contains(id)));
    assert_eq!(
        (shown.products, shown.statuses, shown.labels),
        (filter.products, filter.statuses, filter.labels)
    );
    assert_eq!(listed.state(), SubscriptionState::Live);
    assert_eq!(listed.delivered_count, 3);
    assert_eq!(
        (place(&listed.cursor), listed.lag),
        (4, 0),
        "what does not concern it is no lag"
    );
    assert!(listed.opened_at.is_some());

    drop(sub);
    until("the end", async || {
        subscriptions(&mut admin).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_stalled_subscription_shows_its_state_and_its_lag() {
    let server = Server::start().await;
    server.http().post_bulky(0..200, 20_000).await;
    let mut admin = server.admin_service().await;
    let mut stalled = server.subscribe(request()).await;
    stalled.next_event().await;
    // The default windows of a client take a part of the 4 MB, and no more until it reads on.
    let mut listed = Subscription::default();
    until("the stall", async || {
        let before = std::mem::replace(&mut listed, subscriptions(&mut admin).await.remove(0));
        listed == before
    })
    .await;
    // Stalled, if the machine has taken 10 s to get here.
    assert!(
        [SubscriptionState::CatchingUp, SubscriptionState::Stalled].contains(&listed.state()),
        "{listed:?}"
    );
    assert!(listed.lag > 0);
    assert_eq!(
        (listed.lag, listed.delivered_count),
        (200 - place(&listed.cursor), place(&listed.cursor))
    );

    stalled.until_caught_up().await;
    let listed = subscriptions(&mut admin).await.remove(0);
    assert_eq!(
        (listed.state(), listed.lag, listed.delivered_count),
        (SubscriptionState::Live, 0, 200)
    );
}

#[tokio::test]
async fn a_live_subscription_that_is_not_read_shows_its_lag() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    // Small ones, so that a read of the ring has many of them.
    server.http().post_bulky(0..10, 1_000).await;
    let mut stalled = server.subscribe_narrowly(latest()).await;
    assert_eq!(stalled.until_caught_up().await, []);
    server.http().post_bulky(10..410, 1_000).await;
    // Stalled behind single events, and then, when it has read a few, in the middle of many that were read at once.
    for read in [0, 100] {
        stalled.next_events(read).await;
        let mut listed = Subscription::default();
        until("the stall", async || {
            let before = std::mem::replace(&mut listed, subscriptions(&mut admin).await.remove(0));
            listed == before
        })
        .await;
        assert!(
            [SubscriptionState::Live, SubscriptionState::Stalled].contains(&listed.state()),
            "{listed:?}"
        );
        assert!(listed.lag > 0);
        assert_eq!(
            (listed.lag, listed.delivered_count),
            (410 - place(&listed.cursor), place(&listed.cursor) - 10)
        );
        assert_eq!(
            server.metric("blobcast_subscription_lag_events_max").await,
            listed.lag as f64
        );
    }
    stalled.next_events(300).await;
    until("the lag to be made up", async || {
        subscriptions(&mut admin).await[0].lag == 0
    })
    .await;
    assert_eq!(subscriptions(&mut admin).await[0].delivered_count, 400);
}

#[tokio::test]
async fn subscriptions_are_paged_oldest_first() {
    let server = Server::start().await;
    let (mut admin, client) = (server.admin_service().await, server.events().await);
    let mut open = Vec::new();
    for number in 0..5 {
        let request = SubscribeRequest {
            client_name: format!("c{number}"),
            ..latest()
        };
        open.push(Sub::open(client.clone(), request).await.unwrap());
    }
    let (mut names, mut page_token) = (Vec::new(), String::new());
    for _ in 0..10 {
        let request = ListSubscriptionsRequest {
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let page = admin
            .list_subscriptions(request)
            .await
            .unwrap()
            .into_inner();
        assert!(page.subscriptions.len() <= 2);
        names.extend(
            page.subscriptions
                .into_iter()
                .map(|listed| listed.client_name),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4"]);
    let negative = ListSubscriptionsRequest {
        page_size: -1,
        ..Default::default()
    };
    assert_eq!(
        violation(&admin.list_subscriptions(negative).await.unwrap_err()),
        "page_size"
    );
    let garbled = ListSubscriptionsRequest {
        page_token: "2".into(),
        ..Default::default()
    };
    assert_eq!(
        violation(&admin.list_subscriptions(garbled).await.unwrap_err()),
        "page_token"
    );
}

#[tokio::test]
async fn the_quarantine_shows_what_came_and_why_it_is_there() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let posted: [(&str, &[u8], &str); 5] = [
        (
            "/webhook/veo?team=ads&token=s3cret&sig=x",
            b"{not json \xff",
            "not_json",
        ),
        ("/webhook", b"[]", "not_an_object"),
        ("/webhook/veo", b"{\"status\":\"completed\"}", "no_task_id"),
        (
            "/webhook/Veo!",
            b"{\"id\":\"t1\",\"status\":\"completed\"}",
            "bad_product",
        ),
        (
            "/webhook/veo?=x",
            b"{\"id\":\"t1\",\"status\":\"completed\"}",
            "bad_labels",
        ),
    ];
    for (path, body, reason) in &posted {
        let answer = server
            .http()
            .post_to(path, bytes::Bytes::from_static(body))
            .await;
        assert_eq!((answer.status, answer.reason()), (202, *reason));
    }
    let targets = [
        "/webhook/veo?team=ads",
        "/webhook",
        "/webhook/veo",
        "/webhook/Veo!",
        "/webhook/veo?=x",
    ];
    let kept = quarantine(&mut admin).await;
    assert_eq!(kept.len(), posted.len());
    for ((callback, (_, body, reason)), target) in kept.iter().zip(posted).zip(targets) {
        assert_eq!(
            (callback.reason.as_str(), callback.target.as_str()),
            (reason, target)
        );
        assert_eq!(
            (callback.body.as_ref(), callback.body_bytes),
            (body, body.len() as u64)
        );
        assert!(!callback.detail.is_empty() && callback.received_at.is_some());
    }
    let ids: HashSet<_> = kept
        .iter()
        .map(|callback| &callback.quarantine_id)
        .collect();
    assert_eq!(ids.len(), kept.len());
    let bare = quarantine_pages(&mut admin, ListQuarantineRequest::default())
        .await
        .concat();
    assert!(bare.iter().all(|callback| callback.body.is_empty()));
    assert_eq!(
        bare.iter().map(|callback| callback.body_bytes).sum::<u64>(),
        11 + 2 + 22 + 2 * 32
    );
    assert_eq!(
        server.log_of_events().await,
        [],
        "nothing of it is an event"
    );
}

#[tokio::test]
async fn the_quarantine_is_paged_by_count_and_by_bytes() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let http = server.http();
    for number in 0..7 {
        http.post_to("/webhook/veo", format!("small {number}"))
            .await;
    }
    for (page_size, lengths) in [
        (3, vec![3, 3, 1]),
        (7, vec![7]),
        (8, vec![7]),
        (0, vec![7]),
        (1, vec![1; 7]),
    ] {
        let request = ListQuarantineRequest {
            page_size,
            include_body: true,
            ..Default::default()
        };
        let pages = quarantine_pages(&mut admin, request).await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
        let bodies: Vec<_> = pages
            .concat()
            .into_iter()
            .map(|callback| callback.body)
            .collect();
        assert_eq!(
            bodies,
            (0..7)
                .map(|number| format!("small {number}"))
                .collect::<Vec<_>>()
        );
    }
    for number in 0..6 {
        http.post_to("/webhook/veo", format!("{number}{}", "x".repeat(500_000)))
            .await;
    }
    for include_body in [false, true] {
        let request = ListQuarantineRequest {
            include_body,
            ..Default::default()
        };
        let pages = quarantine_pages(&mut admin, request).await;
        assert_eq!(pages.iter().map(Vec::len).sum::<usize>(), 13);
        assert!(pages.len() >= 3, "3 MB in {} pages", pages.len());
    }
    let negative = ListQuarantineRequest {
        page_size: -1,
        ..Default::default()
    };
    assert_eq!(
        violation(&admin.list_quarantine(negative).await.unwrap_err()),
        "page_size"
    );
    let garbled = ListQuarantineRequest {
        page_token: "x".into(),
        ..Default::default()
    };
    assert_eq!(
        violation(&admin.list_quarantine(garbled).await.unwrap_err()),
        "page_token"
    );
}

#[tokio::test]
async fn a_page_of_the_quarantine_counts_more_than_bodies() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let http = server.http();
    let target = format!("/webhook/veo?x={}", "y".repeat(15_000));
    for number in 0..100 {
        assert_eq!(http.post_to(&target, number.to_string()).await.status, 202);
    }
    let mut request = ListQuarantineRequest::default();
    let mut count = 0;
    while count < 100 {
        let page = admin
            .list_quarantine(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(
            page.encoded_len() <= 1024 * 1024 + 16 * 1024,
            "{} bytes",
            page.encoded_len()
        );
        count += page.callbacks.len();
        request.page_token = page.next_page_token;
    }
    assert_eq!((count, request.page_token.as_str()), (100, ""));
}

#[tokio::test]
async fn any_client_takes_a_page_of_the_quarantine_and_large_bodies_come_where_they_are_asked_for()
{
    let options = Options::default()
        .set("ingest.body_bytes_max", "8MiB")
        .set("ingest.body_timeout", "60s");
    let server = options
        .set("ingest.answer_timeout", "60s")
        .set("grpc.answers_bytes_max", "512MiB")
        .start()
        .await;
    let mut admin = server.admin_service().await;
    let fitting = 4 * 1024 * 1024 - 128 * 1024;
    for length in [fitting, fitting + 1, 10] {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", "x".repeat(length))
                .await
                .status,
            202
        );
    }
    let lengths = |kept: &[QuarantinedCallback]| {
        kept.iter()
            .map(|callback| (callback.body_bytes as usize, callback.body.len()))
            .collect::<Vec<_>>()
    };
    let kept = quarantine(&mut admin).await;
    assert_eq!(
        lengths(&kept),
        [(fitting, fitting), (fitting + 1, 0), (10, 10)]
    );

    let large = ListQuarantineRequest {
        include_body: true,
        include_large_bodies: true,
        ..Default::default()
    };
    let mut taking = admin.clone().max_decoding_message_size(9 * 1024 * 1024);
    let kept = quarantine_pages(&mut taking, large).await.concat();
    assert_eq!(
        lengths(&kept),
        [(fitting, fitting), (fitting + 1, fitting + 1), (10, 10)]
    );
    let shown = server
        .cli(&format!(
            "quarantine show {} --output body",
            kept[1].quarantine_id
        ))
        .run()
        .await;
    assert_eq!((shown.code, shown.stdout.len()), (Some(0), fitting + 1));
}

#[tokio::test]
async fn a_released_callback_becomes_an_event_with_the_corrections_and_is_gone() {
    let mut server = Server::start().await;
    let mut admin = server.admin_service().await;
    let body = with(completed("x"), json!({"generation_id": null}));
    let target = format!("/webhook/Veo!?{}=1", "k".repeat(65));
    assert_eq!(
        server
            .http()
            .post_to(&target, body.to_string())
            .await
            .status,
        202
    );
    let kept = quarantine(&mut admin).await.remove(0);
    let mut live = server.subscribe(tasks(["t9"])).await;

    // Each correction alone is not enough.
    let all = ReleaseQuarantinedRequest {
        product: "veo".into(),
        task_id: "t9".into(),
        drop_labels: true,
        ..of(&kept.quarantine_id)
    };
    let too_few = [
        (of(&kept.quarantine_id), "bad_product"),
        (
            ReleaseQuarantinedRequest {
                product: String::new(),
                ..all.clone()
            },
            "bad_product",
        ),
        (
            ReleaseQuarantinedRequest {
                drop_labels: false,
                ..all.clone()
            },
            "bad_labels",
        ),
        (
            ReleaseQuarantinedRequest {
                task_id: String::new(),
                ..all.clone()
            },
            "no_task_id",
        ),
    ];
    for (request, reason) in too_few {
        let status = release(&mut admin, request).await.unwrap_err();
        assert_eq!(
            refusal(&status),
            (Code::FailedPrecondition, "NOT_UNDERSTOOD".into())
        );
        assert_eq!(told(&status, "reason"), reason);
    }
    assert_eq!(
        quarantine(&mut admin).await,
        std::slice::from_ref(&kept),
        "what was refused stays"
    );

    let released = release(&mut admin, all.clone()).await.unwrap();
    assert!(!released.duplicate);
    let event = live.next_event().await;
    assert_eq!(
        (&event.event_id, event.product.as_str()),
        (&released.event_id, "veo")
    );
    assert!(event.labels.is_empty() && !event.product_inferred && event.corrected);
    // When the callback was received is when the event was, whenever somebody looked at it.
    let micros = |time: prost_types::Timestamp| (time.seconds, time.nanos / 1000);
    assert_eq!(event.received_at.map(micros), kept.received_at.map(micros));
    let log = server.log_of_events().await;

    for _ in 0..2 {
        assert_eq!(quarantine(&mut admin).await, []);
        let status = release(&mut admin, all.clone()).await.unwrap_err();
        assert_eq!(
            refusal(&status),
            (Code::NotFound, "QUARANTINE_NOT_FOUND".into())
        );
        assert_eq!(server.log_of_events().await, log);
        assert_eq!(server.log_info().await.quarantine_count, 0);
        server.crash().await;
        admin = server.admin_service().await;
    }
}

#[tokio::test]
async fn a_released_callback_that_the_log_already_has_is_a_duplicate_and_leaves_the_quarantine() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let event_id = server.http().post(&completed("t1")).await.event_id();
    server
        .http()
        .post_to("/webhook/Veo", completed("t1").to_string())
        .await;
    let kept = quarantine(&mut admin).await.remove(0);
    let request = ReleaseQuarantinedRequest {
        product: "veo".into(),
        ..of(&kept.quarantine_id)
    };
    let released = release(&mut admin, request).await.unwrap();
    assert_eq!(
        released,
        ReleasedEvent {
            event_id,
            task_id: "t1".into(),
            duplicate: true,
            event: None
        }
    );
    assert_eq!(quarantine(&mut admin).await, []);
    assert_eq!(server.log_of_events().await.len(), 1);
}

#[tokio::test]
async fn a_preview_shows_the_events_and_writes_nothing() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let known = server.http().post(&processing("t1")).await.event_id();
    server.http().post(&completed("t2")).await;
    let array = json!([
        processing("t1"),
        completed("t1"),
        completed("t1"),
        with(
            completed("t2"),
            json!({"video_url": "https://cdn.runblob.io/videos/other.mp4"})
        ),
        completed("t3"),
    ]);
    let posted = server
        .http()
        .post_to("/webhook/veo?team=ads", array.to_string())
        .await;
    assert_eq!(posted.status, 202);
    let kept = quarantine(&mut admin).await.remove(0);
    let (log, info) = (server.log_of_events().await, server.log_info().await);

    let request = ReleaseQuarantinedRequest {
        validate_only: true,
        ..of(&kept.quarantine_id)
    };
    let preview = release_at_once(&mut admin, request.clone()).await.unwrap();
    assert_eq!(
        release_at_once(&mut admin, request).await.unwrap(),
        preview,
        "each time the same"
    );
    let shown: Vec<_> = preview
        .iter()
        .map(|one| (one.task_id.as_str(), one.duplicate, one.event_id.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("t1", true, known.as_str()),
            ("t1", false, ""),
            ("t1", true, ""),
            ("t2", false, ""),
            ("t3", false, ""),
        ]
    );
    assert_eq!(server.log_of_events().await, log);
    assert_eq!(server.log_info().await, info);
    assert_eq!(quarantine(&mut admin).await, std::slice::from_ref(&kept));

    release_all(&mut admin, of(&kept.quarantine_id))
        .await
        .unwrap();
    let appended = server.log_of_events().await.split_off(log.len());
    let appended = appended.into_iter().map(|event| Event {
        event_id: String::new(),
        cursor: String::new(),
        ..event
    });
    let previewed = preview.into_iter().filter(|one| !one.duplicate);
    let previewed: Vec<_> = previewed.filter_map(|one| one.event).collect();
    assert_eq!(previewed, appended.collect::<Vec<_>>());
    let numbers: Vec<_> = previewed
        .iter()
        .map(|event| (event.revision, event.conflict))
        .collect();
    assert_eq!(numbers, [(2, false), (2, true), (1, false)]);
}

#[tokio::test]
async fn a_dry_run_prints_what_would_become_of_a_callback() {
    let server = Server::start().await;
    let body = with(completed("x"), json!({"generation_id": null}));
    server
        .http()
        .post_to("/webhook/veo", body.to_string())
        .await;
    let ran = server
        .cli("quarantine release 1 --task-id t9 --dry-run --output json")
        .run()
        .await;
    assert!(ran.stderr.contains("nothing was released"), "{ran:?}");
    let event: serde_json::Value = serde_json::from_str(ran.good()).unwrap();
    assert_eq!(
        (&event["task_id"], &event["status"]),
        (&json!("t9"), &json!("TASK_STATUS_COMPLETED"))
    );
    let ran = server.cli("quarantine release 1 --dry-run").run().await;
    assert!(ran.exited(1).contains("--task-id"));
    assert_eq!(server.log_info().await.quarantine_count, 1);
    assert_eq!(server.log_of_events().await, []);
}

#[tokio::test]
async fn who_follows_a_task_and_who_waits_for_it_is_listed() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let named = |name: &str, request: SubscribeRequest| SubscribeRequest {
        client_name: name.to_owned(),
        ..request
    };
    let mut following = server
        .subscribe(named("following", tasks(["t1", "t2"])))
        .await;
    let _other = server.subscribe(named("other", tasks(["t3"]))).await;
    let _all = server.subscribe(named("all", latest())).await;
    following.until_caught_up().await;
    let mut client = server.events().await;
    let waiting = tokio::spawn(async move {
        let request = WaitTaskRequest {
            task_id: "t1".into(),
            ..Default::default()
        };
        client.wait_task(request).await
    });

    let of_task = |task_id: &str, client: &str| ListSubscriptionsRequest {
        task_id: task_id.into(),
        client: client.into(),
        ..Default::default()
    };
    let names = async |client: &mut Client, request: ListSubscriptionsRequest| {
        let listed = client.list_subscriptions(request).await.unwrap();
        let listed = listed.into_inner().subscriptions.into_iter();
        listed.map(|one| one.client_name).collect::<Vec<_>>()
    };
    until("the wait", async || {
        names(&mut admin, of_task("t1", "")).await == ["following", "WaitTask"]
    })
    .await;
    let by_lag = ListSubscriptionsRequest {
        order: SubscriptionOrder::LagFirst.into(),
        ..of_task("t1", "")
    };
    assert_eq!(names(&mut admin, by_lag).await.len(), 2);
    let of_client = of_task("t1", "WaitTask");
    assert_eq!(names(&mut admin, of_client).await, ["WaitTask"]);
    assert_eq!(names(&mut admin, of_task("t2", "")).await, ["following"]);
    assert_eq!(names(&mut admin, of_task("t4", "")).await, [""; 0]);
    let malformed = admin.list_subscriptions(of_task("a b", "")).await;
    assert_eq!(violation(&malformed.unwrap_err()), "task_id");

    let ran = server.cli("subscriptions --task-id t1").run().await;
    let printed = ran.good();
    assert!(
        printed.contains("following") && printed.contains("WaitTask") && !printed.contains("other"),
        "{printed}"
    );
    let none = server.cli("subscriptions --task-id t4").run().await;
    assert!(none.stderr.contains("nobody waits for it"), "{none:?}");

    server.http().post(&completed("t1")).await;
    assert!(waiting.await.unwrap().unwrap().into_inner().done);
    until("the end of the wait", async || {
        names(&mut admin, of_task("t1", "")).await == ["following"]
    })
    .await;
}

#[tokio::test]
async fn a_release_with_malformed_corrections_or_of_nothing_is_refused() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    server.http().post_to("/webhook/veo", "x").await;
    let id = quarantine(&mut admin).await.remove(0).quarantine_id;
    let malformed = [
        (of(""), "quarantine_id"),
        (of("first"), "quarantine_id"),
        (
            ReleaseQuarantinedRequest {
                product: "Veo".into(),
                ..of(&id)
            },
            "product",
        ),
        (
            ReleaseQuarantinedRequest {
                task_id: "a b".into(),
                ..of(&id)
            },
            "task_id",
        ),
        (
            ReleaseQuarantinedRequest {
                status: "ok".into(),
                ..of(&id)
            },
            "status",
        ),
    ];
    for (request, field) in malformed {
        assert_eq!(
            violation(&release(&mut admin, request).await.unwrap_err()),
            field
        );
    }
    for id in ["0", "999", "18446744073709551615"] {
        let status = release(&mut admin, of(id)).await.unwrap_err();
        assert_eq!(
            refusal(&status),
            (Code::NotFound, "QUARANTINE_NOT_FOUND".into())
        );
    }
}

#[tokio::test]
async fn discarding_deletes_what_exists_and_counts_it() {
    let mut server = Server::start().await;
    let mut admin = server.admin_service().await;
    for number in 0..5 {
        server
            .http()
            .post_to("/webhook/veo", format!("bad {number}"))
            .await;
    }
    let ids: Vec<_> = quarantine(&mut admin)
        .await
        .into_iter()
        .map(|callback| callback.quarantine_id)
        .collect();
    assert_eq!(
        discard(&mut admin, &[&ids[1], &ids[3], &ids[1], "999"])
            .await
            .unwrap(),
        2
    );
    assert_eq!(discard(&mut admin, &[&ids[1]]).await.unwrap(), 0);
    for _ in 0..2 {
        let left = quarantine(&mut admin).await;
        assert_eq!(
            left.iter()
                .map(|callback| &callback.body[..])
                .collect::<Vec<_>>(),
            [b"bad 0", b"bad 2", b"bad 4"]
        );
        assert_eq!(server.log_info().await.quarantine_count, 3);
        server.crash().await;
        admin = server.admin_service().await;
    }
    // A number is never given twice.
    server.http().post_to("/webhook/veo", "bad 5").await;
    let newest = quarantine(&mut admin).await.pop().unwrap();
    assert!(!ids.contains(&newest.quarantine_id));

    let most = vec!["999"; 256];
    assert_eq!(discard(&mut admin, &most).await.unwrap(), 0);
    for bad in [vec![], vec!["999"; 257], vec!["1", "one"]] {
        assert_eq!(
            violation(&discard(&mut admin, &bad).await.unwrap_err()),
            "quarantine_ids"
        );
    }
}

#[tokio::test]
async fn what_is_one_event_too_many_for_its_task_can_be_released_at_once() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let http = server.http();
    let event = |number: usize| with(completed("t1"), json!({"status": format!("step {number}")}));
    for number in 0..128 {
        http.post(&event(number)).await.event_id();
    }
    assert_eq!(http.post(&event(128)).await.reason(), "too_many_events");
    let kept = quarantine(&mut admin).await.remove(0);
    assert_eq!(
        (kept.reason.as_str(), kept.detail.contains("release")),
        ("too_many_events", true),
        "{}",
        kept.detail
    );
    let mut live = server.subscribe(after(&server.log_info().await.head)).await;
    let released = release(&mut admin, of(&kept.quarantine_id)).await.unwrap();
    let event = live.next_event().await;
    assert_eq!(
        (event.event_id, event.revision, event.corrected),
        (released.event_id, 129, false)
    );
}

#[tokio::test]
async fn every_reason_has_a_correction_that_helps_and_the_listing_and_the_refusal_name_it() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let good = completed("t1").to_string();
    let repaired = |body: &str| ReleaseQuarantinedRequest {
        body: body.to_owned().into(),
        ..of("")
    };
    let deep = format!("{{\"id\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let cases: [(&str, &str, &str, ReleaseQuarantinedRequest); 9] = [
        (
            "/webhook/veo",
            "{\"id\": \"t1\", \"status\": \"done\"",
            "--body",
            repaired(&good),
        ),
        ("/webhook/veo", &deep, "--body", repaired(&good)),
        ("/webhook/veo", "17", "--body", repaired(&good)),
        ("/webhook/veo", "[]", "--body", repaired(&good)),
        (
            "/webhook/veo",
            "{\"status\":\"done\"}",
            "--task-id",
            ReleaseQuarantinedRequest {
                task_id: "t1".into(),
                ..of("")
            },
        ),
        (
            "/webhook/veo",
            "{\"id\":\"a b\",\"status\":\"done\"}",
            "--task-id",
            ReleaseQuarantinedRequest {
                task_id: "t1".into(),
                ..of("")
            },
        ),
        (
            "/webhook/veo",
            "{\"id\":\"t1\"}",
            "--status",
            ReleaseQuarantinedRequest {
                status: " Expired".into(),
                ..of("")
            },
        ),
        (
            "/webhook/Veo",
            &good,
            "--product",
            ReleaseQuarantinedRequest {
                product: "veo".into(),
                ..of("")
            },
        ),
        (
            "/webhook/veo?=x",
            &good,
            "--drop-labels",
            ReleaseQuarantinedRequest {
                drop_labels: true,
                ..of("")
            },
        ),
    ];
    for (target, body, remedy, correction) in cases {
        assert_eq!(
            server.http().post_to(target, body.to_owned()).await.status,
            202,
            "{body}"
        );
        let kept = quarantine(&mut admin).await.remove(0);
        assert!(kept.detail.contains(remedy), "{remedy}: {}", kept.detail);
        let refused = release(&mut admin, of(&kept.quarantine_id))
            .await
            .unwrap_err();
        assert!(
            refused.message().contains(remedy),
            "{remedy}: {}",
            refused.message()
        );
        assert_eq!(told(&refused, "reason"), kept.reason);

        let mut live = server
            .subscribe(with_raw(after(&server.log_info().await.head)))
            .await;
        let request = ReleaseQuarantinedRequest {
            quarantine_id: kept.quarantine_id,
            ..correction
        };
        let released = release(&mut admin, request.clone()).await.unwrap();
        assert_eq!(released.task_id, "t1");
        if !released.duplicate {
            let event = live.next_event().await;
            assert!(event.corrected, "{remedy}");
            assert_eq!(
                (&event.event_id, &event.raw_body[..]),
                (&released.event_id, body.as_bytes()),
                "as it came"
            );
            let expected = if request.status.is_empty() {
                TaskStatus::Completed
            } else {
                TaskStatus::Failed
            };
            assert_eq!(event.status(), expected);
        }
        assert_eq!(quarantine(&mut admin).await, []);
    }
}

#[tokio::test]
async fn an_array_is_released_as_several_events_or_not_at_all() {
    let mut server = Server::start().await;
    let mut admin = server.admin_service().await;
    let bodies: Vec<_> = (0..3)
        .map(|number| format!("{{ \"id\": \"t{number}\", \"status\": \"failed\" }}"))
        .collect();
    let array = format!("\u{feff}[{}, {}]", bodies.join(" ,"), bodies[0]);
    assert_eq!(
        server
            .http()
            .post_to("/webhook/veo?team=ads", array.clone())
            .await
            .reason(),
        "not_an_object"
    );
    let kept = quarantine(&mut admin).await.remove(0);
    let of_one = ReleaseQuarantinedRequest {
        task_id: "t".into(),
        ..of(&kept.quarantine_id)
    };
    let broken = ReleaseQuarantinedRequest {
        body: "[{\"id\":\"t\",\"status\":\"done\"},{}]".into(),
        ..of(&kept.quarantine_id)
    };
    let many = ReleaseQuarantinedRequest {
        body: format!("[{}1]", "1,".repeat(256)).into(),
        ..of(&kept.quarantine_id)
    };
    let unbalanced = ReleaseQuarantinedRequest {
        body: "[]]".into(),
        ..of(&kept.quarantine_id)
    };
    for (request, reason, words) in [
        (unbalanced, "not_json", "repaired"),
        (of_one, "not_an_object", "4 elements"),
        (broken, "no_task_id", "element 1 of the body"),
        (many, "not_an_object", "at most 256 events"),
    ] {
        let refused = release_all(&mut admin, request).await.unwrap_err();
        assert_eq!(
            refusal(&refused),
            (Code::FailedPrecondition, "NOT_UNDERSTOOD".into())
        );
        assert_eq!(
            (
                told(&refused, "reason").as_str(),
                refused.message().contains(words)
            ),
            (reason, true),
            "{refused:?}"
        );
    }
    assert_eq!(
        quarantine(&mut admin).await,
        std::slice::from_ref(&kept),
        "what was refused stays"
    );
    assert_eq!(
        server.log_of_events().await,
        [],
        "and nothing of it is an event"
    );

    let released = release_all(&mut admin, of(&kept.quarantine_id))
        .await
        .unwrap();
    let each: Vec<_> = released
        .iter()
        .map(|event| (event.task_id.as_str(), event.duplicate))
        .collect();
    assert_eq!(
        each,
        [("t0", false), ("t1", false), ("t2", false), ("t0", true)]
    );
    for _ in 0..2 {
        let mut live = server.subscribe(with_raw(request())).await;
        for (event, body) in released.iter().zip(&bodies) {
            let got = live.next_event().await;
            assert_eq!(
                (&got.event_id, &got.raw_body[..]),
                (&event.event_id, body.as_bytes())
            );
            assert_eq!(
                (got.labels.len(), got.corrected),
                (1, false),
                "its URL is its URL, and nothing was corrected"
            );
        }
        assert_eq!(quarantine(&mut admin).await, []);
        server.crash().await;
        admin = server.admin_service().await;
    }

    // A repaired body becomes several, too; their raw body is what came.
    server
        .http()
        .post_to("/webhook/veo", "{\"id\": \"a\", ")
        .await;
    let kept = quarantine(&mut admin).await.remove(0);
    let body = format!(
        "[{}]",
        bodies[1..]
            .join(",")
            .replace("t1", "t8")
            .replace("t2", "t9")
    );
    let request = ReleaseQuarantinedRequest {
        body: body.into(),
        ..of(&kept.quarantine_id)
    };
    let mut live = server
        .subscribe(with_raw(after(&server.log_info().await.head)))
        .await;
    assert_eq!(release_all(&mut admin, request).await.unwrap().len(), 2);
    for task in ["t8", "t9"] {
        let event = live.next_event().await;
        assert_eq!(
            (event.task_id.as_str(), event.corrected, &event.raw_body),
            (task, true, &kept.body)
        );
    }
}

#[tokio::test]
async fn a_quarantined_callback_is_released_once_however_many_try() {
    let server = Server::start().await;
    let body = with(completed("x"), json!({"generation_id": null}));
    for round in 0..20 {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", body.to_string())
                .await
                .status,
            202
        );
        let id = quarantine(&mut server.admin_service().await)
            .await
            .remove(0)
            .quarantine_id;
        let attempt = |name: &'static str| {
            let request = ReleaseQuarantinedRequest {
                task_id: format!("{name}{round}"),
                ..of(&id)
            };
            let admin = server.admin_service();
            async move { release_at_once(&mut admin.await, request).await }
        };
        let (one, other) = tokio::join!(attempt("a"), attempt("b"));
        let refused = one
            .as_ref()
            .err()
            .or(other.as_ref().err())
            .expect("one of them comes too late");
        assert_eq!(
            refusal(refused),
            (Code::NotFound, "QUARANTINE_NOT_FOUND".into())
        );
        assert!(one.is_ok() || other.is_ok());
        assert_eq!(server.log_of_events().await.len(), round + 1);
    }
}

#[tokio::test]
async fn a_page_token_for_a_place_behind_the_last_gives_an_empty_last_page() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let _open = [
        server.subscribe(latest()).await,
        server.subscribe(latest()).await,
    ];
    for number in 0..2 {
        server
            .http()
            .post_to("/webhook/veo", format!("bad {number}"))
            .await;
    }
    let request = ListSubscriptionsRequest {
        page_size: 1,
        ..Default::default()
    };
    let token = admin
        .list_subscriptions(request)
        .await
        .unwrap()
        .into_inner()
        .next_page_token;
    for place in [u64::MAX, u64::MAX - 1, 2] {
        let page_token = format!("{place:016x}{}", &token[16..]);
        let request = ListSubscriptionsRequest {
            page_size: 1,
            page_token,
            ..Default::default()
        };
        let page = admin
            .list_subscriptions(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(page, ListSubscriptionsResponse::default(), "{place}");
    }
    let request = ListQuarantineRequest {
        page_size: 1,
        ..Default::default()
    };
    let token = admin
        .list_quarantine(request)
        .await
        .unwrap()
        .into_inner()
        .next_page_token;
    for place in [u64::MAX, u64::MAX - 1, 2] {
        let page_token = format!("{place:016x}{}", &token[16..]);
        let request = ListQuarantineRequest {
            page_size: 1,
            page_token,
            ..Default::default()
        };
        let page = admin.list_quarantine(request).await.unwrap().into_inner();
        assert_eq!(page, ListQuarantineResponse::default(), "{place}");
    }
}
