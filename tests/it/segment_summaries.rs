//! A listing or a subscription with a rare filter passes over segments of the log by their summaries,
//! and finds the same without them: whatever becomes of these files, and at a `kill -9`.

use std::{
    fs::{self, File},
    io::Read,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use blobcast::wire::v1::{Filter, ListEventsRequest, Order, TaskStatus};
use serde_json::json;

use crate::{
    erasure::erase,
    support::{
        Options, Seen, Server, after, bulky, completed, failed, matching, of_labels, of_products,
        of_statuses, place, places, until, with,
    },
};

const SKIPPED: &str = "blobcast_log_segments_skipped_total";
const REBUILT: &str = "blobcast_log_summaries_rebuilt_total";
/// Each takes 300 KB of the log, whose first segments have 1, 2, 4 and 8 MiB.
const PROMPT_CHARS: usize = 150_000;
const EVENTS: u64 = 70;
const OF_SORA: u64 = 33;
const FAILED: u64 = 12;
const OF_ADS: RangeInclusive<u64> = 1..=5;

/// Recent events in memory would spare a subscription the log.
fn options() -> Options {
    Options::default().set("hub.ring_bytes_max", "1MiB")
}

/// Posts the events that will be at these places.
async fn post(server: &Server, places: RangeInclusive<u64>) {
    let http = server.http();
    for number in places {
        let task_id = format!("t{number}");
        let body = if number == FAILED {
            with(
                failed(&task_id),
                json!({"prompt": "x".repeat(PROMPT_CHARS)}),
            )
        } else {
            bulky(&task_id, PROMPT_CHARS)
        };
        let product = if number == OF_SORA { "sora" } else { "veo" };
        let team = if OF_ADS.contains(&number) {
            "ads"
        } else {
            "film"
        };
        let path = format!("/webhook/{product}?ref=order-{number}&team={team}");
        http.post_to(&path, body.to_string()).await.event_id();
    }
}

async fn filled() -> Server {
    let server = options().start().await;
    post(&server, 1..=EVENTS).await;
    server
}

fn order(number: u64) -> Filter {
    of_labels([("ref".to_owned(), format!("order-{number}"))])
}

/// Filters, and the places that each selects.
fn cases() -> Vec<(Filter, Vec<u64>)> {
    let mut cases: Vec<_> = [1, 3, 4, 7, 30, 50, EVENTS]
        .map(|number| (order(number), vec![number]))
        .into();
    let ads = of_labels([("team", "ads")]);
    let either = of_labels([("team", "ads"), ("ref", "order-44")]);
    cases.extend([
        (order(EVENTS + 1), vec![]),
        (ads.clone(), OF_ADS.collect()),
        (either, OF_ADS.chain([44]).collect()),
        (of_products(["sora"]), vec![OF_SORA]),
        (of_products(["sora", "kling"]), vec![OF_SORA]),
        (of_statuses([TaskStatus::Failed]), vec![FAILED]),
        (of_statuses([TaskStatus::Processing]), vec![]),
        (
            Filter {
                products: vec!["sora".into()],
                ..ads.clone()
            },
            vec![],
        ),
        (
            Filter {
                products: vec!["veo".into()],
                ..ads
            },
            OF_ADS.collect(),
        ),
    ]);
    cases
}

/// The places that a listing in either order and a subscription find, which have to agree.
async fn found(server: &Server, filter: &Filter) -> Vec<u64> {
    let mut found = Vec::new();
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let (mut client, mut events, mut page_token) =
            (server.events().await, Vec::new(), String::new());
        loop {
            let request = ListEventsRequest {
                filter: Some(filter.clone()),
                order: order.into(),
                page_token,
                ..Default::default()
            };
            let page = client.list_events(request).await.unwrap().into_inner();
            events.extend(places(&page.events));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        if order == Order::NewestFirst {
            events.reverse();
        }
        found.push(events);
    }
    let mut sub = server.subscribe(matching(filter.clone())).await;
    found.push(places(&sub.until_caught_up().await));
    assert!(found.iter().all(|it| *it == found[0]), "{found:?}");
    found.remove(0)
}

async fn finds_everything(server: &Server, when: &str) {
    for (filter, expected) in cases() {
        assert_eq!(found(server, &filter).await, expected, "{when}: {filter:?}");
    }
}

fn files(server: &Server, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(server.data_dir().join("log")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == extension));
    paths.sort();
    paths
}

/// Segments that nothing is appended to any more; one that is made ahead begins with zeros.
fn sealed(server: &Server) -> usize {
    let is_used = |path: &PathBuf| {
        let mut bytes = [0; 8];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
        read.is_ok() && bytes != [0; 8]
    };
    files(server, "log").iter().filter(|it| is_used(it)).count() - 1
}

async fn summarized(server: &Server) {
    until("the summaries", async || {
        files(server, "summary").len() == sealed(server)
    })
    .await;
}

#[tokio::test]
async fn a_rare_filter_finds_the_same_with_all_summaries_with_some_and_with_damaged_ones() {
    let mut server = filled().await;
    summarized(&server).await;
    assert!(sealed(&server) >= 4);
    let before = server.metric(SKIPPED).await;
    finds_everything(&server, "with all summaries").await;
    // Three reads for each label, of which at least three in four segments have nothing.
    assert!(server.metric(SKIPPED).await - before >= 3.0 * 7.0 * 3.0);
    assert_eq!(server.metric(REBUILT).await, 0.0);

    for is_killed in [false, true] {
        if is_killed {
            server.kill();
        }
        let paths = files(&server, "summary");
        fs::remove_file(&paths[0]).unwrap();
        damage(&paths[1]);
        fs::copy(&paths[3], &paths[2]).unwrap();
        if is_killed {
            server.restart().await;
        }
        finds_everything(
            &server,
            "with one lost, one damaged and one of another segment",
        )
        .await;
        if !is_killed {
            // A broker that nothing comes to writes them behind the next commit.
            server.http().post(&completed("another")).await.event_id();
        }
        until("three summaries to be made again", async || {
            server.metric(REBUILT).await == 3.0
        })
        .await;
        summarized(&server).await;
        finds_everything(&server, "with all again").await;
    }
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_broker_that_is_killed_while_it_writes_summaries_loses_no_event_to_them() {
    let mut server = options().start().await;
    let mut next = 1;
    while next <= EVENTS {
        // Right behind the commit that sealed a segment: its summary may be there, in part, or not.
        let before = sealed(&server);
        while next <= EVENTS && sealed(&server) == before {
            post(&server, next..=next).await;
            next += 1;
        }
        server.crash().await;
    }
    finds_everything(&server, "after the crashes").await;
    summarized(&server).await;
    finds_everything(&server, "with all summaries").await;
}

#[tokio::test]
async fn a_stream_that_passes_over_segments_keeps_its_cursor() {
    let mut server = filled().await;
    summarized(&server).await;
    let mut sub = server.subscribe(matching(order(4))).await;
    assert_eq!(places(&sub.until_caught_up().await), [4]);
    // Up to the head, whatever was passed over.
    assert_eq!(place(&sub.cursor), EVENTS);
    server.terminate().await;
    let cursor = loop {
        match sub.next().await.unwrap().expect("a stream that says why") {
            Seen::GoingAway(going_away) => break going_away.cursor,
            Seen::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(place(&cursor), EVENTS);
    server.restart().await;
    post(&server, EVENTS + 1..=EVENTS + 1).await;

    // From between two segments, and from within one.
    for first in [1, 2, 3, 9, 40, EVENTS] {
        let request = |filter: Filter| blobcast::wire::v1::SubscribeRequest {
            filter: Some(filter),
            ..after(&crate::support::cursor_at(&cursor, first))
        };
        let mut sub = server.subscribe(request(order(EVENTS + 1))).await;
        assert_eq!(places(&sub.until_caught_up().await), [EVENTS + 1]);
        let expected: Vec<_> = OF_ADS.filter(|&number| number > first).collect();
        let mut sub = server
            .subscribe(request(of_labels([("team", "ads")])))
            .await;
        assert_eq!(places(&sub.until_caught_up().await), expected, "{first}");
        assert_eq!(place(&sub.cursor), EVENTS + 1);
    }
}

#[tokio::test]
async fn an_erased_label_is_in_no_summary() {
    let server = filled().await;
    summarized(&server).await;
    let path = files(&server, "summary")[0].clone();
    let before = fs::read(&path).unwrap();
    assert_eq!(erase(&server, "veo", "t2").await.unwrap(), 1);
    assert_ne!(fs::read(&path).ok(), Some(before.clone()));
    summarized(&server).await;
    assert_ne!(fs::read(&path).unwrap(), before);
    assert_eq!(found(&server, &order(2)).await, [0; 0]);
    assert_eq!(found(&server, &order(1)).await, [1]);
    assert_eq!(server.metric(REBUILT).await, 0.0);
}
