//! The unary calls about past events and tasks: `WaitTask`, `GetTask`, `ListEvents`, `GetLogInfo`;
//! and every field of an event.

use std::{collections::VecDeque, fs, time::Duration};

use blobcast::{
    event::{Sequence, TaskId},
    store::{ReadLimits, Store},
    wire::v1::{
        self, Event, Filter, GetTaskRequest, ListEventsRequest, Order, OutputKind, TaskStatus,
        Verification, WaitTaskRequest, WaitTaskResponse, event_service_client::EventServiceClient,
    },
};
use prost_types::{Timestamp, value::Kind};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

use crate::support::{
    Node, Options, Server, bulky, completed, draft, failed, node, of_labels, of_products,
    of_statuses, of_tasks, place, places, processing, refusal, request, stored, tasks, tasks_of,
    until, violation, with, within,
};

type Client = EventServiceClient<Channel>;

fn wait_for(task_id: &str, seconds: i64) -> WaitTaskRequest {
    let timeout = Some(prost_types::Duration { seconds, nanos: 0 });
    WaitTaskRequest {
        task_id: task_id.into(),
        timeout,
        ..Default::default()
    }
}

async fn wait(client: &mut Client, request: WaitTaskRequest) -> Result<WaitTaskResponse, Status> {
    Ok(within("the task", client.wait_task(request))
        .await?
        .into_inner())
}

async fn get(client: &mut Client, task_id: &str) -> Result<Vec<Event>, Status> {
    let request = GetTaskRequest {
        task_id: task_id.into(),
        ..Default::default()
    };
    Ok(client.get_task(request).await?.into_inner().events)
}

/// All pages of a listing, each as the events it has.
async fn pages(client: &mut Client, request: ListEventsRequest) -> Vec<Vec<Event>> {
    try_pages(client, request).await.unwrap()
}

async fn try_pages(
    client: &mut Client,
    request: ListEventsRequest,
) -> Result<Vec<Vec<Event>>, Status> {
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = client
            .list_events(ListEventsRequest {
                page_token,
                ..request.clone()
            })
            .await?
            .into_inner();
        pages.push(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(pages);
        }
    }
}

async fn list(client: &mut Client, request: ListEventsRequest) -> Vec<Event> {
    pages(client, request).await.concat()
}

fn newest_first() -> ListEventsRequest {
    ListEventsRequest {
        order: Order::NewestFirst.into(),
        ..Default::default()
    }
}

fn of(filter: Filter) -> ListEventsRequest {
    ListEventsRequest {
        filter: Some(filter),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_wait_that_outlasts_its_call_says_that_the_task_is_not_over() {
    let server = Server::start().await;
    server.http().post(&processing("t1")).await;
    let mut request = tonic::Request::new(wait_for("t1", 3600));
    request.set_timeout(std::time::Duration::from_secs(3));
    let answer = server
        .events()
        .await
        .wait_task(request)
        .await
        .unwrap()
        .into_inner();
    assert!(!answer.done);
    assert_eq!(answer.event.unwrap().task_id, "t1");
}

#[tokio::test]
async fn waiting_for_a_task_that_is_over_answers_at_once() {
    let server = Server::start().await;
    let mut client = server.events().await;
    for body in [processing("t1"), completed("t1"), failed("t2")] {
        server.http().post(&body).await;
    }
    for (task, status) in [("t1", TaskStatus::Completed), ("t2", TaskStatus::Failed)] {
        let answer = wait(&mut client, wait_for(task, 3600)).await.unwrap();
        assert!(answer.done);
        assert_eq!(answer.event.unwrap().status(), status);
    }
}

#[tokio::test]
async fn waiting_for_a_task_answers_when_it_is_over_and_not_before() {
    let server = Server::start().await;
    let mut client = server.events().await;
    let waiting =
        tokio::spawn(async move { wait(&mut client, wait_for("t1", 3600)).await.unwrap() });
    until("the wait", async || {
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await
            == 1.0
    })
    .await;
    server.http().post(&completed("t2")).await;
    server.http().post(&processing("t1")).await;
    until("the delivery", async || {
        server.metric("blobcast_deliveries_total").await == 1.0
    })
    .await;
    assert!(!waiting.is_finished());
    let event_id = server.http().post(&completed("t1")).await.event_id();
    let answer = within("the answer", waiting).await.unwrap();
    assert_eq!(
        (answer.done, answer.event.unwrap().event_id),
        (true, event_id)
    );
}

#[tokio::test]
async fn a_wait_that_times_out_answers_with_the_latest_event_if_there_is_one() {
    let server = Server::start().await;
    let mut client = server.events().await;
    server
        .http()
        .post(&with(processing("t1"), json!({"status": "queued"})))
        .await;
    let latest = server.http().post(&processing("t1")).await.event_id();
    for seconds in [0, 1] {
        let answer = wait(&mut client, wait_for("t1", seconds)).await.unwrap();
        assert_eq!(
            (answer.done, answer.event.unwrap().event_id),
            (false, latest.clone())
        );
        let unknown = wait(&mut client, wait_for("nobody", seconds))
            .await
            .unwrap();
        assert_eq!(unknown, WaitTaskResponse::default());
    }
}

#[tokio::test]
async fn a_wait_without_patience_still_finds_what_is_retained() {
    let server = Server::start().await;
    let mut client = server.events().await;
    let event_id = server.http().post(&completed("t1")).await.event_id();
    let answer = wait(&mut client, wait_for("t1", 0)).await.unwrap();
    assert_eq!(
        (answer.done, answer.event.unwrap().event_id),
        (true, event_id)
    );
}

#[tokio::test]
async fn a_task_whose_ends_contradict_each_other_is_answered_with_the_latest_end() {
    let server = Server::start().await;
    let mut client = server.events().await;
    let mut last = String::new();
    for body in [failed("t1"), completed("t1"), processing("t1")] {
        let event_id = server.http().post(&body).await.event_id();
        last = if body["status"] == "completed" {
            event_id
        } else {
            last
        };
    }
    let answer = wait(&mut client, wait_for("t1", 3600)).await.unwrap();
    let event = answer.event.unwrap();
    assert_eq!(
        (answer.done, event.event_id, event.conflict, event.revision),
        (true, last, true, 2)
    );
}

#[tokio::test]
async fn a_wait_carries_the_body_if_asked_for_and_refuses_what_is_malformed() {
    let server = Server::start().await;
    let mut client = server.events().await;
    let body = completed("t1");
    server.http().post(&body).await;
    let with_raw = WaitTaskRequest {
        include_raw: true,
        ..wait_for("t1", 0)
    };
    let raw_body = wait(&mut client, with_raw)
        .await
        .unwrap()
        .event
        .unwrap()
        .raw_body;
    assert_eq!(raw_body, body.to_string());
    let raw_body = wait(&mut client, wait_for("t1", 0))
        .await
        .unwrap()
        .event
        .unwrap()
        .raw_body;
    assert_eq!(raw_body, "");
    for (request, field) in [
        (wait_for("", 0), "task_id"),
        (wait_for("a b", 0), "task_id"),
        (wait_for("t", -1), "timeout"),
    ] {
        assert_eq!(
            violation(&wait(&mut client, request).await.unwrap_err()),
            field
        );
    }
    assert_eq!(
        violation(&get(&mut client, "").await.unwrap_err()),
        "task_id"
    );
}

#[tokio::test]
async fn a_wait_ends_with_draining_when_the_broker_does() {
    let mut server = Server::start().await;
    let mut client = server.events().await;
    let waiting = tokio::spawn(async move { wait(&mut client, wait_for("t1", 3600)).await });
    until("the wait", async || {
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await
            == 1.0
    })
    .await;
    assert!(server.terminate().await.success());
    let status = waiting.await.unwrap().unwrap_err();
    assert_eq!(refusal(&status), (Code::Unavailable, "DRAINING".into()));
}

#[tokio::test]
async fn waits_count_against_the_limit_of_subscriptions() {
    let server = Options::default()
        .set("grpc.subscriptions_max", 1)
        .start()
        .await;
    let _open = server.subscribe(request()).await;
    let status = wait(&mut server.events().await, wait_for("t1", 1))
        .await
        .unwrap_err();
    assert_eq!(
        refusal(&status),
        (Code::ResourceExhausted, "SUBSCRIPTION_LIMIT".into())
    );
}

#[tokio::test]
async fn a_task_has_all_its_events_oldest_first_across_products() {
    let server = Server::start().await;
    let http = server.http();
    let mut client = server.events().await;
    let status = get(&mut client, "t1").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "TASK_NOT_FOUND".into()));
    let posted = [
        ("/webhook/veo", processing("t1")),
        ("/webhook/sora", completed("t1")),
        ("/webhook/veo", completed("t2")),
        ("/webhook/veo", completed("t1")),
        ("/webhook/veo", failed("t1")),
        ("/webhook/sora", completed("t1")), // a duplicate
    ];
    let mut expected = Vec::new();
    for (path, body) in &posted {
        let answer = http.post_to(path, body.to_string()).await;
        if body["generation_id"] == "t1" && !answer.duplicate() {
            expected.push(answer.event_id());
        }
    }
    let events = get(&mut client, "t1").await.unwrap();
    assert_eq!(
        events
            .iter()
            .map(|event| event.event_id.clone())
            .collect::<Vec<_>>(),
        expected
    );
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.product.as_str(), event.revision, event.conflict))
        .collect();
    assert_eq!(
        told,
        [
            ("veo", 1, false),
            ("sora", 1, false),
            ("veo", 2, false),
            ("veo", 3, true)
        ]
    );
    assert!(events.iter().all(|event| event.raw_body.is_empty()));
    let with_raw = GetTaskRequest {
        task_id: "t1".into(),
        include_raw: true,
        ..Default::default()
    };
    let events = client.get_task(with_raw).await.unwrap().into_inner().events;
    assert_eq!(events[0].raw_body, processing("t1").to_string());
}

#[tokio::test]
async fn a_task_too_large_for_one_answer_is_refused_with_the_way_out() {
    let server = Server::start().await;
    let mut client = EventServiceClient::new(server.channel().await);
    for status in ["queued", "processing", "completed", "failed", "a", "b"] {
        server
            .http()
            .post(&with(bulky("t1", 900_000), json!({"status": status})))
            .await
            .event_id();
    }
    let status = get(&mut client, "t1").await.unwrap_err();
    assert_eq!(
        refusal(&status),
        (Code::ResourceExhausted, "RESPONSE_TOO_LARGE".into())
    );
    assert!(
        status.message().contains("name the product") && status.message().contains("ListEvents"),
        "{status:?}"
    );
    // Page by page it comes, also to a client with default limits, also with the bodies.
    let listed = list(
        &mut client,
        ListEventsRequest {
            include_raw: true,
            ..of(of_tasks(["t1"]))
        },
    )
    .await;
    assert_eq!(listed.len(), 6);
    let lines = server.cli("get t1 --output json").run().await;
    assert_eq!(
        lines.each("event_id"),
        listed
            .iter()
            .map(|event| event.event_id.clone())
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_task_is_looked_up_and_waited_for_by_product_or_in_all() {
    let server = Server::start().await;
    let mut client = server.events().await;
    let http = server.http();
    http.post_to("/webhook/veo", completed("t1").to_string())
        .await
        .event_id();
    http.post_to("/webhook/sora", processing("t1").to_string())
        .await
        .event_id();
    for (product, got, waited) in [
        ("", vec!["veo", "sora"], (true, Some("veo"))),
        ("veo", vec!["veo"], (true, Some("veo"))),
        ("sora", vec!["sora"], (false, Some("sora"))),
        ("kling", vec![], (false, None)),
    ] {
        let get = GetTaskRequest {
            task_id: "t1".into(),
            product: product.into(),
            ..Default::default()
        };
        let events = client
            .get_task(get)
            .await
            .map(|answer| answer.into_inner().events);
        match &events {
            Ok(events) => assert_eq!(
                events
                    .iter()
                    .map(|event| &event.product)
                    .collect::<Vec<_>>(),
                got,
                "{product}"
            ),
            Err(status) => {
                assert_eq!(
                    (refusal(status), got.len()),
                    ((Code::NotFound, "TASK_NOT_FOUND".into()), 0)
                );
                assert!(status.message().contains("t1 of kling"), "{status:?}");
            }
        }
        let answer = wait(
            &mut client,
            WaitTaskRequest {
                product: product.into(),
                ..wait_for("t1", 0)
            },
        )
        .await
        .unwrap();
        assert_eq!(
            (
                answer.done,
                answer.event.as_ref().map(|event| event.product.as_str())
            ),
            waited,
            "{product}"
        );
    }
    let get = GetTaskRequest {
        task_id: "t1".into(),
        product: "Veo!".into(),
        ..Default::default()
    };
    assert_eq!(
        violation(&client.get_task(get).await.unwrap_err()),
        "product"
    );
    let malformed = WaitTaskRequest {
        product: "Veo!".into(),
        ..wait_for("t1", 0)
    };
    assert_eq!(
        violation(&wait(&mut client, malformed).await.unwrap_err()),
        "product"
    );
}

#[tokio::test]
async fn pages_of_any_size_cover_the_log_exactly_in_both_orders() {
    let server = Server::start().await;
    let http = server.http();
    for number in 0..300 {
        let product = ["veo", "sora"][number % 2];
        http.post_to(
            &format!("/webhook/{product}"),
            completed(&format!("t{}", number % 100)).to_string(),
        )
        .await;
    }
    for number in 0..300 {
        http.post(&processing(&format!("late{number}"))).await;
    }
    let mut client = server.events().await;
    let log = server.log_of_events().await;
    assert_eq!(places(&log), (1..=log.len() as u64).collect::<Vec<_>>());
    let backwards: Vec<_> = log.iter().rev().cloned().collect();
    for (page_size, longest) in [
        (0, 256),
        (7, 7),
        (255, 255),
        (256, 256),
        (257, 256),
        (1000, 256),
        (i32::MAX, 256),
    ] {
        let oldest = pages(
            &mut client,
            ListEventsRequest {
                page_size,
                ..Default::default()
            },
        )
        .await;
        let newest = pages(
            &mut client,
            ListEventsRequest {
                page_size,
                ..newest_first()
            },
        )
        .await;
        for pages in [&oldest, &newest] {
            assert_eq!(pages.iter().map(Vec::len).max(), Some(longest));
        }
        assert_eq!(oldest.concat(), log);
        assert_eq!(newest.concat(), backwards);
    }
    let only = |filter: &dyn Fn(&Event) -> bool| {
        log.iter()
            .filter(|event| filter(event))
            .cloned()
            .collect::<Vec<_>>()
    };
    let filters = [
        (
            of_products(["sora"]),
            only(&|event| event.product == "sora"),
        ),
        (
            of_tasks(["t3", "late7", "nobody"]),
            only(&|event| ["t3", "late7"].contains(&event.task_id.as_str())),
        ),
        (
            Filter {
                products: vec!["veo".into()],
                ..of_tasks(["t3", "t4"])
            },
            only(&|event| event.product == "veo" && ["t3", "t4"].contains(&event.task_id.as_str())),
        ),
        (
            Filter {
                statuses: vec![TaskStatus::Processing.into()],
                ..of_tasks(["t4", "late7"])
            },
            only(&|event| event.task_id == "late7"),
        ),
        (of_statuses([TaskStatus::Failed]), vec![]),
        (of_labels([("team", "ads")]), vec![]),
    ];
    for (filter, mut expected) in filters {
        for page_size in [1, 3, 0] {
            let request = ListEventsRequest {
                page_size,
                ..of(filter.clone())
            };
            assert_eq!(
                list(&mut client, request.clone()).await,
                expected,
                "{request:?}"
            );
            let request = ListEventsRequest {
                order: Order::NewestFirst.into(),
                ..request
            };
            expected.reverse();
            assert_eq!(
                list(&mut client, request.clone()).await,
                expected,
                "{request:?}"
            );
            expected.reverse();
        }
    }
}

#[tokio::test]
async fn a_page_of_one_event_at_a_time_visits_each() {
    let server = Server::start().await;
    for number in 0..10 {
        server.http().post(&completed(&format!("t{number}"))).await;
    }
    let mut client = server.events().await;
    for request in [
        ListEventsRequest::default(),
        newest_first(),
        of(of_tasks(["t1", "t2", "t8"])),
    ] {
        let all = list(&mut client, request.clone()).await;
        let pages = pages(
            &mut client,
            ListEventsRequest {
                page_size: 1,
                ..request
            },
        )
        .await;
        assert!(pages.iter().all(|page| page.len() <= 1));
        assert_eq!(pages.concat(), all);
    }
}

#[tokio::test]
async fn a_page_ends_at_about_a_mebibyte_and_has_an_event_at_least() {
    let server = Server::start().await;
    server.http().post_bulky(0..8, 300_000).await;
    server.http().post_bulky(8..10, 900_000).await;
    let mut client = EventServiceClient::new(server.channel().await);
    let log = list(&mut client, ListEventsRequest::default()).await;
    assert_eq!(log.len(), 10);
    let ids = of_tasks((0..10).map(|number| format!("t{number}")));
    for filter in [Filter::default(), ids] {
        for order in [Order::OldestFirst, Order::NewestFirst] {
            for include_raw in [false, true] {
                let request = ListEventsRequest {
                    order: order.into(),
                    include_raw,
                    ..of(filter.clone())
                };
                let pages = pages(&mut client, request).await;
                assert!(pages.len() >= 5, "{} pages for 8 MB as stored", pages.len());
                assert!(pages.iter().all(|page| !page.is_empty()));
                let mut cursors: Vec<_> = pages
                    .concat()
                    .into_iter()
                    .map(|event| event.cursor)
                    .collect();
                cursors.sort();
                assert_eq!(
                    cursors,
                    log.iter()
                        .map(|event| event.cursor.clone())
                        .collect::<Vec<_>>()
                );
            }
        }
    }
}

#[tokio::test]
async fn since_and_until_cut_the_listing_at_the_times_events_were_received() {
    let server = Server::start().await;
    for number in 0..6 {
        server
            .http()
            .post(&completed(&format!("t{}", number % 5)))
            .await;
        server
            .http()
            .post(&failed(&format!("t{}", number % 5)))
            .await;
    }
    let mut client = server.events().await;
    let log = server.log_of_events().await;
    let at = |place: usize| log[place].received_at;
    let far = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let cases = [
        (None, None, 0..10),
        (far(0), far(32_503_680_000), 0..10),
        (at(3), None, 3..10),
        (None, at(3), 0..3),
        (at(3), at(7), 3..7),
        (at(0), at(9), 0..9),
        (at(9), None, 9..10),
        (at(4), at(4), 4..4),
        (at(7), at(3), 7..7),
        (far(32_503_680_000), None, 0..0),
        (None, far(0), 0..0),
    ];
    for (since, until, range) in cases {
        for filter in [
            Filter::default(),
            of_tasks((0..5).map(|number| format!("t{number}"))),
        ] {
            for page_size in [0, 2] {
                let request = ListEventsRequest {
                    since,
                    until,
                    page_size,
                    ..of(filter.clone())
                };
                let mut listed = list(&mut client, request.clone()).await;
                assert_eq!(listed, log[range.clone()], "{request:?}");
                listed = list(
                    &mut client,
                    ListEventsRequest {
                        order: Order::NewestFirst.into(),
                        ..request
                    },
                )
                .await;
                listed.reverse();
                assert_eq!(listed, log[range.clone()]);
            }
        }
    }
}

#[tokio::test]
async fn a_page_token_fits_its_own_request_only_and_a_garbled_one_is_refused() {
    let server = Server::start().await;
    for number in 0..6 {
        server
            .http()
            .post_to(
                "/webhook/veo?a=1&b=2&c=3",
                completed(&format!("t{number}")).to_string(),
            )
            .await;
    }
    let mut client = server.events().await;
    let first = ListEventsRequest {
        page_size: 2,
        since: Some(Timestamp {
            seconds: 1,
            nanos: 0,
        }),
        ..of(Filter {
            labels: of_labels([("a", "1"), ("b", "2"), ("c", "3")]).labels,
            ..of_products(["veo", "sora"])
        })
    };
    let page = client
        .list_events(first.clone())
        .await
        .unwrap()
        .into_inner();
    let token = page.next_page_token;
    let next = ListEventsRequest {
        page_token: token.clone(),
        ..first.clone()
    };
    // The size may change, and a map has no order.
    for page_size in [0, 1, 4] {
        for _ in 0..8 {
            let filter = first.filter.clone().map(|filter| {
                let labels = filter.labels.into_iter().collect();
                Filter { labels, ..filter }
            });
            let request = ListEventsRequest {
                page_size,
                filter,
                ..next.clone()
            };
            let page = client.list_events(request).await.unwrap().into_inner();
            assert_eq!(place(&page.events[0].cursor), 3);
        }
    }
    let filter = |change: &dyn Fn(&mut Filter)| {
        let mut request = next.clone();
        change(request.filter.as_mut().unwrap());
        request
    };
    let others = [
        ListEventsRequest {
            order: Order::NewestFirst.into(),
            ..next.clone()
        },
        ListEventsRequest {
            since: None,
            ..next.clone()
        },
        ListEventsRequest {
            until: first.since,
            ..next.clone()
        },
        ListEventsRequest {
            include_raw: true,
            ..next.clone()
        },
        filter(&|filter| filter.products.truncate(1)),
        filter(&|filter| filter.task_ids.push("t1".into())),
        filter(&|filter| drop(filter.labels.insert("a".into(), "2".into()))),
        filter(&|filter| filter.statuses.push(0)),
        ListEventsRequest {
            page_token: "next".into(),
            ..next.clone()
        },
        ListEventsRequest {
            page_token: token[1..].into(),
            ..next.clone()
        },
        ListEventsRequest {
            page_token: token.to_uppercase() + "0",
            ..next.clone()
        },
        ListEventsRequest {
            page_token: "é".repeat(16),
            ..next.clone()
        },
    ];
    for request in others {
        let status = client
            .list_events(request.clone())
            .await
            .expect_err(&format!("{request:?}"));
        assert_eq!(violation(&status), "page_token", "{request:?}");
    }
    let malformed = [
        (
            ListEventsRequest {
                page_size: -1,
                ..Default::default()
            },
            "page_size",
        ),
        (
            ListEventsRequest {
                order: 3,
                ..Default::default()
            },
            "order",
        ),
        (
            ListEventsRequest {
                since: Some(Timestamp {
                    seconds: 0,
                    nanos: -1,
                }),
                ..Default::default()
            },
            "since",
        ),
        (
            ListEventsRequest {
                until: Some(Timestamp {
                    seconds: i64::MIN,
                    nanos: 0,
                }),
                ..Default::default()
            },
            "until",
        ),
        (of(of_tasks([""])), "filter.task_ids[0]"),
        (of(of_products(["-veo"])), "filter.products[0]"),
    ];
    for (request, field) in malformed {
        assert_eq!(
            violation(&client.list_events(request).await.unwrap_err()),
            field
        );
    }
    let status = client
        .list_events(of(of_products((0..65).map(|n| format!("p{n}")))))
        .await
        .unwrap_err();
    assert_eq!(
        refusal(&status),
        (Code::ResourceExhausted, "SUBSCRIPTION_LIMIT".into())
    );
}

#[tokio::test]
async fn a_listing_that_events_are_appended_to_repeats_none_and_skips_none() {
    let server = Server::start().await;
    let http = server.http();
    for number in 0..20 {
        http.post(&completed(&format!("t{number}"))).await;
    }
    let mut client = server.events().await;
    for request in [ListEventsRequest::default(), newest_first()] {
        let before = places(&server.log_of_events().await);
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        for round in 0.. {
            let page = ListEventsRequest {
                page_size: 7,
                page_token,
                ..request.clone()
            };
            let page = client.list_events(page).await.unwrap().into_inner();
            seen.extend(places(&page.events));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
            if round < 5 {
                let task = format!("order{}-{round}", request.order);
                http.post(&completed(&task)).await;
            }
        }
        if request.order() == Order::NewestFirst {
            seen.reverse();
            assert_eq!(seen, before, "what came later is newer than where it began");
        } else {
            assert_eq!(seen, places(&server.log_of_events().await));
        }
    }
}

#[tokio::test]
async fn a_page_token_that_retention_has_passed_is_refused_and_leaves_nothing_out() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let http = server.http();
    http.post_bulky(0..20, 20_000).await;
    let mut client = server.events().await;
    for (order, is_refused) in [(Order::OldestFirst, true), (Order::NewestFirst, false)] {
        let request = ListEventsRequest {
            page_size: 5,
            order: order.into(),
            ..Default::default()
        };
        let page = client
            .list_events(request.clone())
            .await
            .unwrap()
            .into_inner();
        http.post_bulky(20..120, 20_000).await;
        server.trimmed().await;
        let next = client
            .list_events(ListEventsRequest {
                page_token: page.next_page_token,
                ..request
            })
            .await;
        assert_eq!(next.is_err(), is_refused, "{order:?}");
        if let Err(refused) = next {
            let why = (Code::OutOfRange, "CURSOR_EXPIRED".to_owned());
            assert_eq!(refusal(&refused), why);
        }
    }
}

#[tokio::test]
async fn a_listing_leaves_nothing_out_however_fast_retention_runs() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let http = server.http();
    http.post_bulky(0..30, 20_000).await;
    let load = tokio::spawn(async move { http.post_bulky(30..500, 20_000).await });
    let mut client = server.events().await;
    let mut listed = 0;
    while !load.is_finished() {
        let filter = of_tasks((listed * 2..listed * 2 + 60).map(|number| format!("t{number}")));
        for request in [ListEventsRequest::default(), newest_first(), of(filter)] {
            let listed_pages = try_pages(&mut client, request.clone()).await;
            let events = match listed_pages {
                Ok(pages) => pages.concat(),
                Err(overtaken) => {
                    let why = (Code::OutOfRange, "CURSOR_EXPIRED".to_owned());
                    assert_eq!(refusal(&overtaken), why);
                    continue;
                }
            };
            let mut places = places(&events);
            if request.order() == Order::NewestFirst {
                places.reverse();
            }
            assert!(
                places.windows(2).all(|pair| pair[1] == pair[0] + 1),
                "{places:?} of {request:?}"
            );
            listed += 1;
        }
    }
    load.await.unwrap();
    assert!(listed > 50, "only {listed} raced with retention");
}

#[tokio::test]
async fn the_log_describes_itself_and_keeps_its_identity_over_restarts() {
    let mut server = Options::default()
        .set("log.retention_age_max", "2h")
        .set("log.retention_bytes_max", "3MiB")
        .start()
        .await;
    let empty = server.log_info().await;
    assert_eq!(
        (empty.first_available.as_str(), place(&empty.head)),
        ("", 0)
    );
    assert_eq!(
        (empty.event_count, empty.event_bytes, empty.quarantine_count),
        (0, 0, 0)
    );
    assert_eq!(empty.retention_age_max.unwrap().seconds, 7200);
    assert_eq!(empty.retention_bytes_max, 3 * 1024 * 1024);

    let http = server.http();
    let mut bytes = 0;
    for body in [completed("t1"), completed("t2"), completed("t1")] {
        http.post(&body).await;
        let info = server.log_info().await;
        assert!(info.event_bytes >= bytes);
        bytes = info.event_bytes;
    }
    http.post_to("/webhook/veo", "not json").await;
    let info = server.log_info().await;
    let log = server.log_of_events().await;
    assert_eq!((info.event_count, info.quarantine_count), (2, 1));
    assert_eq!(
        (&info.first_available, &info.head),
        (&log[0].cursor, &log[1].cursor)
    );
    assert_eq!(info.epoch, empty.epoch);

    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(server.log_info().await, info);
    server.crash().await;
    assert_eq!(server.log_info().await, info);
    assert_eq!(server.log_of_events().await, log);
    assert_ne!(Server::start().await.log_info().await.epoch, info.epoch);
}

#[tokio::test]
async fn a_rich_callback_arrives_with_every_field() {
    let server = Server::start().await;
    let before = Timestamp::from(std::time::SystemTime::now());
    let body = json!({
        "task_uuid": "0193-ü",
        "status": "Completed",
        "output": {"video_urls": ["https://x/1.mp4", "https://x/2.mp4"], "last_frame_url": "https://x/last.png"},
        "result": "https://x/model.glb",
        "prompt": "a \"cat\"\n\u{1F600}",
        "model": "kling-o3-video-10s-pro",
        "seed": -9_007_199_254_740_993_i64,
        "created_at": "2025-12-06T21:43:03.374Z",
        "completed_at": "2025-12-06T21:44:06.000001Z",
    });
    let target = "/webhook/kling-o3-video?team=ads&ref=order%2042&token=s3cret&empty=";
    let event_id = server
        .http()
        .post_to(target, body.to_string())
        .await
        .event_id();
    let mut event = server.subscribe(request()).await.next_event().await;
    let received_at = event.received_at.take().unwrap();
    let seconds =
        |time: Timestamp| Duration::new(time.seconds as u64, time.nanos as u32).as_secs_f64();
    assert!(
        (seconds(before)..seconds(before) + 60.0).contains(&seconds(received_at)),
        "{received_at:?}"
    );
    let output = |kind: OutputKind, url: &str| v1::Output {
        kind: kind.into(),
        url: url.into(),
    };
    let labels = [("team", "ads"), ("ref", "order 42"), ("empty", "")];
    let expected = Event {
        event_id,
        cursor: server.log_info().await.head,
        product: "kling-o3-video".into(),
        task_id: "0193-ü".into(),
        status: TaskStatus::Completed.into(),
        status_text: "Completed".into(),
        terminal: true,
        outputs: vec![
            output(OutputKind::Video, "https://x/1.mp4"),
            output(OutputKind::Video, "https://x/2.mp4"),
            output(OutputKind::Image, "https://x/last.png"),
            output(OutputKind::Other, "https://x/model.glb"),
        ],
        error: None,
        prompt: "a \"cat\"\n\u{1F600}".into(),
        model: "kling-o3-video-10s-pro".into(),
        seed: Some(-9_007_199_254_740_993),
        created_at: Some(Timestamp {
            seconds: 1_765_057_383,
            nanos: 374_000_000,
        }),
        completed_at: Some(Timestamp {
            seconds: 1_765_057_446,
            nanos: 1_000,
        }),
        received_at: None,
        revision: 1,
        conflict: false,
        product_inferred: false,
        verification: Verification::Unverified.into(),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        raw_body: bytes::Bytes::new(),
        corrected: false,
        truncated: false,
        credential: String::new(),
        overdue: None,
    };
    assert_eq!(event, expected);
}

#[tokio::test]
async fn a_failure_arrives_with_its_reasons_and_a_contradiction_is_marked() {
    let server = Server::start().await;
    let http = server.http();
    let error = json!({
        "code": "unsafe_content",
        "message": "blocked by a filter",
        "details": {"score": 0.5, "tags": ["a", null, true], "nested": {"n": 1}},
    });
    http.post_to("/webhook", completed("t1").to_string()).await;
    http.post_to(
        "/webhook",
        with(failed("t1"), json!({"error": error})).to_string(),
    )
    .await;
    let events = server.log_of_events().await;
    assert_eq!(tasks_of(&events), ["t1", "t1"]);
    let [done, failed] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(
        (
            done.revision,
            done.conflict,
            done.error.is_none(),
            done.terminal
        ),
        (1, false, true, true)
    );
    assert_eq!(
        (failed.revision, failed.conflict, failed.terminal),
        (2, true, true)
    );
    assert_eq!(failed.status(), TaskStatus::Failed);
    assert!(done.product_inferred && failed.product_inferred);
    assert_eq!(failed.outputs, []);
    let error = failed.error.clone().unwrap();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("UNSAFE_CONTENT", "blocked by a filter")
    );
    let details = error.details.unwrap().fields;
    assert_eq!(details["score"].kind, Some(Kind::NumberValue(0.5)));
    let Some(Kind::ListValue(tags)) = &details["tags"].kind else {
        panic!("{details:?}")
    };
    let kinds: Vec<_> = tags
        .values
        .iter()
        .map(|value| value.kind.clone().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            Kind::StringValue("a".into()),
            Kind::NullValue(0),
            Kind::BoolValue(true)
        ]
    );
    let Some(Kind::StructValue(nested)) = &details["nested"].kind else {
        panic!("{details:?}")
    };
    assert_eq!(nested.fields["n"].kind, Some(Kind::NumberValue(1.0)));
}

#[tokio::test]
async fn what_a_callback_does_not_say_is_absent_from_its_event() {
    let server = Server::start().await;
    server
        .http()
        .post_to("/webhook/veo", r#"{"id": 17, "status": "levitating"}"#)
        .await
        .event_id();
    let event = server.log_of_events().await.remove(0);
    assert_eq!(
        (event.task_id.as_str(), event.status_text.as_str()),
        ("17", "levitating")
    );
    assert_eq!(
        (event.status(), event.terminal),
        (TaskStatus::Unspecified, false)
    );
    assert_eq!(
        (event.prompt.as_str(), event.model.as_str(), event.seed),
        ("", "", None)
    );
    assert_eq!(
        (event.created_at, event.completed_at, event.error),
        (None, None, None)
    );
    assert!(event.outputs.is_empty() && event.labels.is_empty() && !event.product_inferred);
}

/// No bound but what is set beside it.
const UNLIMITED: ReadLimits = ReadLimits {
    records_max: usize::MAX,
    bytes_max: usize::MAX,
    scanned_max: usize::MAX,
    scanned_bytes_max: usize::MAX,
};

/// Fills a directory, by itself. Each event is received a second after the one before.
async fn filled(bodies: impl IntoIterator<Item = Value>) -> (TempDir, Node) {
    let directory = tempfile::tempdir().unwrap();
    let node = node(&directory.path().join("data"));
    let start = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let mut appending = VecDeque::new();
    for (number, body) in (0..).zip(bodies) {
        let received_at = start + jiff::SignedDuration::from_secs(number);
        appending.push_back(node.journal.append(draft(&body, received_at)));
        if appending.len() > 100 {
            appending.pop_front().unwrap().await.unwrap().unwrap();
        }
    }
    for appended in appending {
        appended.await.unwrap().unwrap();
    }
    (directory, node)
}

async fn server_on((directory, node): (TempDir, Node)) -> Server {
    (node.stop)();
    drop((node.journal, node.store));
    Options::default().start_in(directory).await
}

/// The same on a log whose segments are all read: directories keep their summaries from being written.
async fn server_without_summaries((directory, node): (TempDir, Node)) -> Server {
    (node.stop)();
    drop((node.journal, node.store));
    let entries = fs::read_dir(directory.path().join("data/log")).unwrap();
    let mut segments: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    // One that is made ahead begins with zeros.
    segments.retain(|path| fs::read(path).unwrap()[..8] != [0; 8]);
    segments.sort();
    segments.pop();
    for sealed in segments {
        fs::create_dir(sealed.with_extension("summary")).unwrap();
    }
    Options::default().start_in(directory).await
}

/// Where reads end one behind the other, forwards and backwards, if nothing matches.
fn reads(store: &Store, limits: ReadLimits) -> [Vec<u64>; 2] {
    let nothing = blobcast::event::Filter {
        task_ids: [TaskId::parse("nobody").unwrap()].into(),
        ..Default::default()
    };
    let (first, head) = (Sequence(1), store.head());
    let (mut after, mut before, mut ends) = (Sequence(0), head.next(), [vec![], vec![]]);
    while after < head {
        let chunk = store.read_after(after, head, &nothing, limits).unwrap();
        assert!(chunk.records.is_empty());
        after = chunk.scanned_to;
        ends[0].push(after.0);
    }
    while before > first {
        let chunk = store.read_before(before, first, &nothing, limits).unwrap();
        assert!(chunk.records.is_empty());
        before = chunk.scanned_to;
        ends[1].push(before.0);
    }
    ends
}

#[tokio::test]
async fn a_read_looks_at_so_many_events_and_bytes_and_one_event_at_least() {
    let (_directory, node) = filled((0..10).map(|number| completed(&format!("t{number}")))).await;
    let each = stored(&node.store)[0].len();
    assert!(
        stored(&node.store)
            .iter()
            .all(|record| record.len() == each)
    );
    let count = |scanned_max| ReadLimits {
        scanned_max,
        ..UNLIMITED
    };
    let bytes = |scanned_bytes_max| ReadLimits {
        scanned_bytes_max,
        ..UNLIMITED
    };
    let (one_by_one, by_three, by_four) = (
        [(1..=10).collect(), (1..=10).rev().collect()],
        [vec![3, 6, 9, 10], vec![8, 5, 2, 1]],
        [vec![4, 8, 10], vec![7, 3, 1]],
    );
    let cases = [
        (UNLIMITED, &[vec![10], vec![1]]),
        (count(10), &[vec![10], vec![1]]),
        (count(4), &by_four),
        (count(3), &by_three),
        (count(0), &one_by_one),
        (bytes(3 * each + 1), &by_four),
        (bytes(3 * each), &by_three),
        (bytes(2 * each + 1), &by_three),
        (bytes(0), &one_by_one),
    ];
    for (limits, ends) in cases {
        assert_eq!(reads(&node.store, limits), *ends, "{limits:?}");
    }
    (node.stop)();
}

#[tokio::test]
async fn a_page_looks_at_16384_events_and_ends_early_where_they_do_not_match() {
    const LAST: usize = 16_384;
    let bodies = (0..=LAST).map(|number| {
        let task = format!("t{number}");
        if number == 0 || number == LAST {
            failed(&task)
        } else {
            completed(&task)
        }
    });
    let server = server_without_summaries(filled(bodies).await).await;
    let mut client = server.events().await;
    let ends = list(&mut client, of(of_statuses([TaskStatus::Failed]))).await;
    assert_eq!(
        places(&ends),
        [1, LAST as u64 + 1],
        "both ends are found, however little lies between"
    );
    let received = |at: usize| ends[at].received_at;
    let one_less = [
        ListEventsRequest {
            until: received(1),
            ..Default::default()
        },
        ListEventsRequest {
            since: received(0).map(|time| Timestamp {
                seconds: time.seconds + 1,
                ..time
            }),
            ..Default::default()
        },
    ];
    let of_status = |status, request: &ListEventsRequest| ListEventsRequest {
        filter: Some(of_statuses([status])),
        ..request.clone()
    };
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let whole = ListEventsRequest {
            order: order.into(),
            ..Default::default()
        };
        let mut lengths = async |request| {
            pages(&mut client, request)
                .await
                .iter()
                .map(Vec::len)
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(of_status(TaskStatus::Failed, &whole)).await, [1, 1]);
        assert_eq!(
            lengths(of_status(TaskStatus::Pending, &whole)).await,
            [0, 0]
        );
        for part in &one_less {
            let part = ListEventsRequest {
                order: order.into(),
                ..part.clone()
            };
            assert_eq!(lengths(of_status(TaskStatus::Failed, &part)).await, [1]);
            assert_eq!(lengths(of_status(TaskStatus::Pending, &part)).await, [0]);
        }
    }
}

#[tokio::test]
async fn a_page_about_tasks_looks_at_16384_of_their_events_and_ends_early_where_they_do_not_match()
{
    const LAST: usize = 16_384;
    const TASKS: usize = 300; // of one task 64 terminal events are found
    let bodies = (0..=LAST).map(|number| {
        let body = with(
            completed(&format!("t{}", number % TASKS)),
            json!({"video_url": format!("https://x/{number}")}),
        );
        let end = json!({"status": "failed", "error": {"message": format!("REASON_{number}")}});
        if number == 0 || number == LAST {
            with(body, end)
        } else {
            body
        }
    });
    let server = server_on(filled(bodies).await).await;
    let mut client = server.events().await;
    let tasks = of_tasks((0..TASKS).map(|number| format!("t{number}")));
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let mut lengths = async |status: TaskStatus| {
            let filter = Filter {
                statuses: vec![status.into()],
                ..tasks.clone()
            };
            let request = ListEventsRequest {
                filter: Some(filter),
                order: order.into(),
                ..Default::default()
            };
            pages(&mut client, request)
                .await
                .iter()
                .map(Vec::len)
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(TaskStatus::Failed).await, [1, 1]);
        assert_eq!(lengths(TaskStatus::Pending).await, [0, 0]);
    }
    let listed = list(&mut client, of(tasks)).await;
    assert!(
        places(&listed).into_iter().eq(1..=LAST as u64 + 1),
        "page by page everything is reached"
    );
}

#[tokio::test]
async fn a_page_looks_at_16_mib_and_ends_early_where_they_do_not_match() {
    const PAGE_BYTES: usize = 16 * 1024 * 1024;
    // Their length does not depend on their number.
    let body = |number: usize| bulky(&format!("t{}", 100 + number), 100_000);
    let (_directory, one) = filled([body(0)]).await;
    (one.stop)();
    let last = PAGE_BYTES.div_ceil(stored(&one.store)[0].len());
    let server = server_without_summaries(filled((0..=last).map(body)).await).await;
    let mut client = server.events().await;
    let newest = client
        .list_events(ListEventsRequest {
            page_size: 1,
            ..newest_first()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(place(&newest.events[0].cursor), last as u64 + 1);
    for order in [Order::OldestFirst, Order::NewestFirst] {
        for (until, count) in [(None, 2), (newest.events[0].received_at, 1)] {
            let filter = of_statuses([TaskStatus::Failed]);
            let tasks = of_tasks((0..=last).map(|number| format!("t{}", 100 + number))).task_ids;
            for filter in [
                filter.clone(),
                Filter {
                    task_ids: tasks,
                    ..filter
                },
            ] {
                let request = ListEventsRequest {
                    order: order.into(),
                    until,
                    ..of(filter)
                };
                assert_eq!(pages(&mut client, request).await, vec![vec![]; count]);
            }
        }
    }
}

#[tokio::test]
async fn a_page_token_for_a_place_that_the_log_does_not_have_is_refused() {
    let server = Server::start().await;
    for number in 0..4 {
        server.http().post(&completed(&format!("t{number}"))).await;
    }
    let mut client = server.events().await;
    let all = || of_tasks((0..4).map(|number| format!("t{number}")));
    for request in [
        ListEventsRequest::default(),
        newest_first(),
        of(all()),
        ListEventsRequest {
            filter: Some(all()),
            ..newest_first()
        },
    ] {
        let request = ListEventsRequest {
            page_size: 2,
            ..request
        };
        let token = client
            .list_events(request.clone())
            .await
            .unwrap()
            .into_inner()
            .next_page_token;
        let binding = &token[16..];
        for place in [u64::MAX, u64::MAX - 1, 1 << 63, 5] {
            let page_token = format!("{place:016x}{binding}");
            let status = client
                .list_events(ListEventsRequest {
                    page_token,
                    ..request.clone()
                })
                .await
                .unwrap_err();
            assert_eq!(violation(&status), "page_token", "{place} of {request:?}");
        }
        // What lies within is a page like any other.
        for place in 0..=4 {
            let page_token = format!("{place:016x}{binding}");
            let page = client
                .list_events(ListEventsRequest {
                    page_token,
                    ..request.clone()
                })
                .await
                .unwrap()
                .into_inner();
            let newest_first = request.order() == Order::NewestFirst;
            let mut behind: Vec<u64> = if newest_first {
                (1..place).rev().collect()
            } else {
                (place + 1..=4).collect()
            };
            behind.truncate(2);
            assert_eq!(places(&page.events), behind, "{place} of {request:?}");
        }
    }
}

#[tokio::test]
async fn a_wait_for_ever_is_a_wait_like_any_other() {
    let server = Server::start().await;
    let mut client = server.events().await;
    let waiting =
        tokio::spawn(async move { wait(&mut client, wait_for("t1", i64::MAX)).await.unwrap() });
    until("the wait", async || {
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await
            == 1.0
    })
    .await;
    server.http().post(&completed("t1")).await;
    assert!(within("the answer", waiting).await.unwrap().done);
}

#[tokio::test]
async fn tasks_with_more_events_than_a_subscription_holds_places_for_are_delivered_whole_and_in_order()
 {
    // The index is asked again behind 16,384 places.
    const TASKS: usize = 130; // each may have 128 events that are not terminal
    const EVENTS: u64 = 16_500;
    let task = |number: usize| format!("t{}", number % TASKS);
    let body = |number: usize| {
        with(
            processing(&task(number)),
            json!({"video_url": format!("https://v/{number}")}),
        )
    };
    let server = server_on(filled((0..EVENTS as usize).map(body)).await).await;
    let mut sub = server.subscribe(tasks((0..TASKS).map(task))).await;
    let delivered = sub.until_caught_up().await;
    let expected: Vec<_> = (1..=EVENTS).collect();
    assert_eq!(places(&delivered), expected);
    server.http().post(&completed("t3")).await.event_id();
    assert_eq!(sub.next_event().await.task_id, "t3");
}

#[tokio::test]
async fn a_task_shows_how_often_its_events_were_repeated() {
    let mut server = Server::start().await;
    let get = async |server: &Server| {
        let request = GetTaskRequest {
            task_id: "t1".into(),
            ..Default::default()
        };
        let answer = server.events().await.get_task(request).await;
        answer.unwrap().into_inner()
    };
    server.http().post(&processing("t1")).await;
    server.http().post(&completed("t1")).await;
    assert_eq!(get(&server).await.repetitions, []);

    for _ in 0..3 {
        assert!(server.http().post(&completed("t1")).await.duplicate());
    }
    let task = get(&server).await;
    let [repetition] = &task.repetitions[..] else {
        panic!("{task:?}")
    };
    assert_eq!(
        (&repetition.cursor, repetition.count),
        (&task.events[1].cursor, 3)
    );
    let last_at = repetition.last_received_at.unwrap();
    let first_at = task.events[1].received_at.unwrap();
    assert!((last_at.seconds, last_at.nanos) > (first_at.seconds, first_at.nanos));
    let ran = server.cli("get t1").run().await;
    assert!(
        ran.stderr
            .contains("veo revision 2 was repeated 3 times, the last time at "),
        "{ran:?}"
    );

    server.crash().await;
    assert_eq!(get(&server).await.repetitions, [], "it is in memory only");
}
