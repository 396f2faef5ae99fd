//! Retention: the oldest events are removed with everything that refers to them, and no sequence
//! number is ever used again.

use blobcast::{
    checker::{History, Stream, check},
    event::Filter,
    store::{ReadLimits, Store},
    wire::v1::{DiscardQuarantinedRequest, GetTaskRequest, ListQuarantineRequest, WaitTaskRequest},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    AsObserved, Options, Server, bulky, completed, draft, failed, is_on_disk, latest, node, place,
    places, processing, refusal, request, tasks, until, with,
};

async fn forgotten(server: &Server) {
    until("everything to be forgotten", async || {
        server.log_info().await.event_count == 0
    })
    .await;
}

async fn get(server: &Server, task_id: &str) -> Result<usize, (Code, String)> {
    let request = GetTaskRequest {
        task_id: task_id.into(),
        ..Default::default()
    };
    let answer = server.events().await.get_task(request).await;
    answer
        .map(|events| events.into_inner().events.len())
        .map_err(|status| refusal(&status))
}

async fn quarantined(server: &Server) -> Vec<String> {
    let mut admin = server.admin_service().await;
    let (mut bodies, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListQuarantineRequest {
            include_body: true,
            page_token,
            ..Default::default()
        };
        let page = admin.list_quarantine(request).await.unwrap().into_inner();
        bodies.extend(
            page.callbacks
                .into_iter()
                .map(|callback| String::from_utf8_lossy(&callback.body).into_owned()),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return bodies;
        }
    }
}

/// How many records a stopped broker's log has, and their bytes, by reading them.
fn counted(server: &Server) -> (u64, u64) {
    let store = Store::open(&server.data_dir(), 1024 * 1024).unwrap();
    let limits = ReadLimits {
        records_max: usize::MAX,
        bytes_max: usize::MAX,
        scanned_max: usize::MAX,
        scanned_bytes_max: usize::MAX,
    };
    let after = store.first_available().previous();
    let chunk = store
        .read_after(after, store.head(), &Filter::default(), limits)
        .unwrap();
    assert!(store.get(after).unwrap().is_none());
    (
        chunk.records.len() as u64,
        chunk.records.iter().map(|record| record.len() as u64).sum(),
    )
}

#[tokio::test]
async fn what_is_forgotten_by_age_is_gone_from_the_disk_within_a_minute() {
    const PROMPT: &str = "a portrait that nobody keeps";
    let ages = Options::default()
        .set("log.retention_age_max", "4s")
        .set("log.segment_age_max", "1s");
    let server = ages.start().await;
    let directory = server.data_dir();
    server
        .http()
        .post(&with(completed("t1"), json!({ "prompt": PROMPT })))
        .await
        .event_id();
    assert!(is_on_disk(&directory, PROMPT));

    // `until` waits for a minute at most. No other callback comes: a quiet broker removes what it has forgotten, too.
    forgotten(&server).await;
    until("the prompt to be gone from the disk", async || {
        !is_on_disk(&directory, PROMPT)
    })
    .await;
}

#[tokio::test]
async fn what_is_too_old_is_forgotten_with_all_that_pointed_at_it() {
    let server = Options::default()
        .set("log.retention_age_max", "1s")
        .start()
        .await;
    let http = server.http();
    let mut old = Vec::new();
    for body in [processing("t1"), failed("t1"), completed("t1")] {
        old.push(http.post(&body).await.event_id());
    }
    forgotten(&server).await;
    let info = server.log_info().await;
    assert_eq!(
        (
            info.first_available.as_str(),
            place(&info.head),
            info.event_bytes
        ),
        ("", 3, 0)
    );
    assert_eq!(server.log_of_events().await, []);
    let trimmed = async |reason: &str| {
        server
            .metric(&format!(
                "blobcast_events_trimmed_bytes_total{{reason=\"{reason}\"}}"
            ))
            .await
    };
    assert!(
        trimmed("age").await > 3.0 * 300.0 && trimmed("bytes").await == 0.0,
        "{}",
        trimmed("age").await
    );
    assert_eq!(
        get(&server, "t1").await,
        Err((Code::NotFound, "TASK_NOT_FOUND".into()))
    );
    let mut sub = server.subscribe(tasks(["t1"])).await;
    assert_eq!(sub.until_caught_up().await, []);
    let wait = WaitTaskRequest {
        task_id: "t1".into(),
        timeout: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    assert!(
        !server
            .events()
            .await
            .wait_task(wait)
            .await
            .unwrap()
            .into_inner()
            .done
    );

    // What is forgotten is no duplicate's original and contradicts nothing.
    let answer = http.post(&completed("t1")).await;
    assert!(!answer.duplicate() && !old.contains(&answer.event_id()));
    let event = sub.next_event().await;
    assert_eq!(
        (event.revision, event.conflict, place(&event.cursor)),
        (1, false, 4)
    );
}

#[tokio::test]
async fn a_task_keeps_the_events_that_are_young_enough_and_counts_on_from_them() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let http = server.http();
    http.post(&processing("t1")).await;
    http.post_bulky(2..12, 20_000).await;
    http.post(&failed("t1")).await;
    http.post_bulky(12..32, 20_000).await;
    let info = server.trimmed().await;
    assert!(
        place(&info.first_available) > 1 && place(&info.first_available) <= 12,
        "{}",
        info.first_available
    );
    assert_eq!(get(&server, "t1").await, Ok(1));
    assert!(http.post(&failed("t1")).await.duplicate());
    http.post(&processing("t1")).await.event_id();
    http.post(&completed("t1")).await.event_id();
    let events = server
        .subscribe(tasks(["t1"]))
        .await
        .until_caught_up()
        .await;
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.revision, event.conflict))
        .collect();
    assert_eq!(told, [(2, false), (3, false), (4, true)]);
}

#[tokio::test]
async fn beyond_the_bytes_the_oldest_go_and_no_more_than_must() {
    let mut server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let http = server.http();
    http.post_bulky(0..60, 20_000).await;
    let info = server.trimmed().await;
    let log = server.log_of_events().await;
    assert_eq!(log.len() as u64, info.event_count);
    assert_eq!(
        places(&log),
        (61 - info.event_count..=60).collect::<Vec<_>>()
    );
    assert_eq!(
        (&log[0].cursor, &log.last().unwrap().cursor),
        (&info.first_available, &info.head)
    );
    let largest = 42_000;
    assert!(
        (1024 * 1024 - largest..=1024 * 1024).contains(&info.event_bytes),
        "{}",
        info.event_bytes
    );
    for number in 0..60 {
        let expected = if number >= 60 - log.len() {
            Ok(1)
        } else {
            Err((Code::NotFound, "TASK_NOT_FOUND".into()))
        };
        assert_eq!(get(&server, &format!("t{number}")).await, expected);
    }
    let gone = 60 - log.len() as u64;
    assert_eq!(
        server
            .metric("blobcast_events_trimmed_total{reason=\"bytes\"}")
            .await,
        gone as f64
    );
    // All events are of nearly the same size.
    let bytes_gone = gone * (info.event_bytes / info.event_count);
    let counted_bytes = server
        .metric("blobcast_events_trimmed_bytes_total{reason=\"bytes\"}")
        .await as u64;
    assert!(
        counted_bytes.abs_diff(bytes_gone) < 100 * gone,
        "{counted_bytes}, not {bytes_gone}"
    );
    assert_eq!(
        server
            .metric("blobcast_events_trimmed_bytes_total{reason=\"age\"}")
            .await,
        0.0
    );

    assert!(server.terminate().await.success());
    assert_eq!(counted(&server), (info.event_count, info.event_bytes));
    server.restart().await;
    assert_eq!(server.log_of_events().await, log);
    assert_eq!(server.log_info().await, info);
}

#[tokio::test]
async fn no_place_is_used_again_though_everything_was_forgotten_and_the_broker_restarted() {
    let mut server = Options::default()
        .set("log.retention_age_max", "1s")
        .start()
        .await;
    let mut used = Vec::new();
    for round in 0..4 {
        let mut sub = server.subscribe(latest()).await;
        for number in 0..3 {
            server
                .http()
                .post(&completed(&format!("t{number}")))
                .await
                .event_id();
        }
        used.extend(
            sub.next_events(3)
                .await
                .into_iter()
                .map(|event| event.cursor),
        );
        forgotten(&server).await;
        let before = server.log_info().await;
        if round % 2 == 0 {
            server.crash().await;
        } else {
            assert!(server.terminate().await.success());
            server.restart().await;
        }
        assert_eq!(server.log_info().await, before);
    }
    let places: Vec<_> = used.iter().map(|cursor| place(cursor)).collect();
    assert_eq!(places, (1..=12).collect::<Vec<_>>());
}

#[tokio::test]
async fn forgetting_survives_kill_9_at_any_moment() {
    let mut server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let mut posted = 0;
    for round in 0..5 {
        let http = server.http();
        let load = tokio::spawn(async move {
            for number in 0..200 {
                let body = bulky(&format!("t{round}-{number}"), 20_000).to_string();
                if http.try_post_to("/webhook/veo", body).await.is_err() {
                    break;
                }
            }
        });
        until("a trim", async || {
            server
                .metric("blobcast_events_trimmed_total{reason=\"bytes\"}")
                .await
                > 0.0
        })
        .await;
        server.kill();
        load.await.unwrap();
        let (count, bytes) = counted(&server);
        server.restart().await;
        let info = server.trimmed().await;
        assert!(info.event_count <= count && info.event_bytes <= bytes);
        let log = server.log_of_events().await;
        assert_eq!(log.len() as u64, info.event_count);
        assert!(place(&info.head) > posted);
        posted = place(&info.head);
        assert_eq!(
            get(&server, "t0-0").await,
            Err((Code::NotFound, "TASK_NOT_FOUND".into()))
        );
        for event in log {
            assert_eq!(get(&server, &event.task_id).await, Ok(1));
        }
    }
}

#[tokio::test]
async fn trimming_under_load_refuses_and_loses_no_callback() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let mut live = server.subscribe(latest()).await;
    let senders = (0..8).map(|sender| {
        let http = server.http();
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0..75 {
                let task = format!("t{sender}-{number}");
                acknowledged.push(http.post(&bulky(&task, 10_000)).await.acknowledged(&task));
            }
            acknowledged
        })
    });
    let senders: Vec<_> = senders.collect();
    let observed: Vec<_> = live
        .next_events(600)
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    let mut acknowledged = Vec::new();
    for sender in senders {
        acknowledged.extend(sender.await.unwrap());
    }
    let info = server.trimmed().await;
    let log: Vec<_> = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    assert_eq!(
        log,
        observed[600 - log.len()..],
        "what is left is the newest of what came"
    );
    assert_eq!(info.event_count, log.len() as u64);
    assert_eq!(
        server
            .metric("blobcast_events_trimmed_total{reason=\"bytes\"}")
            .await,
        (600 - log.len()) as f64
    );
    let streams = vec![Stream {
        task_ids: None,
        observed: observed.clone(),
    }];
    // To the checker the stream's view is the log: it saw all, the log keeps the end.
    assert_eq!(
        check(&History {
            acknowledged,
            log: observed,
            streams,
            ..History::default()
        }),
        []
    );
}

#[tokio::test]
async fn a_smaller_limit_takes_effect_at_the_next_start() {
    let mut server = Options::default().start().await;
    server.http().post_bulky(0..60, 20_000).await;
    assert_eq!(server.log_info().await.event_count, 60);
    assert!(server.terminate().await.success());
    server
        .restart_with(
            Options::default()
                .set("log.retention_bytes_max", "1MiB")
                .set("ingest.body_bytes_max", "480KiB"),
        )
        .await;
    let info = server.trimmed().await;
    assert_eq!(
        server
            .subscribe(request())
            .await
            .until_caught_up()
            .await
            .len() as u64,
        info.event_count
    );
}

#[tokio::test]
async fn a_start_says_what_its_clock_would_forget_while_that_can_be_prevented() {
    let directory = tempfile::tempdir().unwrap();
    let node = node(&directory.path().join("data"));
    for (task, days) in [("t1", 5), ("t2", 4), ("t3", 2)] {
        let received_at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        node.journal
            .append(draft(&completed(task), received_at))
            .await
            .unwrap()
            .unwrap();
    }
    (node.stop)();
    drop((node.journal, node.store));

    // By the machine's clock it was off for two days, and nobody knows yet whether that is right.
    let mut server = Options::default()
        .set("log.retention_age_max", "3d")
        .start_in(directory)
        .await;
    let told = "too old by this machine's clock";
    until("a word", async || server.log().contains(told)).await;
    let log = server.log();
    let line: Value =
        serde_json::from_str(log.lines().find(|line| line.contains(told)).unwrap()).unwrap();
    assert_eq!(
        (
            &line["level"],
            &line["events"],
            &line["quarantined"],
            &line["minutes"]
        ),
        (&json!("ERROR"), &json!(2), &json!(0), &json!(5))
    );
    assert!(
        line["message"]
            .as_str()
            .unwrap()
            .contains("set it right or stop the broker before that"),
        "{line}"
    );
    assert_eq!(server.log_info().await.event_count, 3, "not yet");

    // Where that is little or nothing, it is no error.
    server.terminate().await;
    server
        .restart_with(Options::default().set("log.retention_age_max", "6d"))
        .await;
    until("a word", async || {
        server.log().contains("nothing is forgotten by age until")
    })
    .await;
    assert!(!server.log().contains(told), "{}", server.log());
}

#[tokio::test]
async fn the_quarantine_forgets_by_age() {
    let server = Options::default()
        .set("quarantine.retention_age_max", "1s")
        .start()
        .await;
    for number in 0..5 {
        server
            .http()
            .post_to("/webhook/veo", format!("bad {number}"))
            .await;
    }
    server.http().post(&completed("t1")).await;
    until("the quarantine to be empty", async || {
        server.log_info().await.quarantine_count == 0
    })
    .await;
    assert_eq!(quarantined(&server).await, [""; 0]);
    assert_eq!(
        server
            .metric("blobcast_quarantine_trimmed_total{reason=\"age\"}")
            .await,
        5.0
    );
    assert_eq!(server.metric("blobcast_quarantine_bytes").await, 0.0);
    assert_eq!(
        server.log_of_events().await.len(),
        1,
        "events have a retention of their own"
    );
}

#[tokio::test]
async fn the_quarantine_forgets_by_bytes_the_oldest_and_no_more_than_must() {
    let server = Options::default()
        .set("quarantine.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let http = server.http();
    for number in 0..200 {
        http.post_to("/webhook/veo", format!("small {number}"))
            .await;
    }
    for number in 0..10 {
        http.post_to(
            "/webhook/veo",
            format!("large {number} {}", "x".repeat(100_000)),
        )
        .await;
    }
    http.post_to("/webhook/veo", format!("last {}", "x".repeat(30_000)))
        .await;
    let bytes = async || server.metric("blobcast_quarantine_bytes").await;
    until("retention", async || bytes().await <= 1024.0 * 1024.0).await;
    let kept = quarantined(&server).await;
    assert_eq!(
        kept.iter().filter(|body| body.starts_with("large")).count(),
        10
    );
    let forgotten = 211 - kept.len();
    assert!(
        (1..200).contains(&forgotten),
        "some of the small ones are enough, not {forgotten}"
    );
    assert_eq!(kept[0], format!("small {forgotten}"), "the oldest go");
    assert!(bytes().await > 1024.0 * 1024.0 - 1_000.0);
    assert_eq!(server.log_info().await.quarantine_count, kept.len() as u64);
}

#[tokio::test]
async fn the_quarantine_forgets_by_count_the_oldest_and_no_more_than_must() {
    let server = Options::default()
        .set("quarantine.retention_count_max", 3)
        .start()
        .await;
    let kept = async |number: u64| {
        server
            .http()
            .post_to("/webhook/veo", format!("bad {number}"))
            .await;
        until("retention", async || {
            server.log_info().await.quarantine_count <= 3
        })
        .await;
        quarantined(&server).await
    };
    assert_eq!(kept(1).await, ["bad 1"]);
    assert_eq!([kept(2).await.len(), kept(3).await.len()], [2, 3]);
    assert_eq!(kept(4).await, ["bad 2", "bad 3", "bad 4"]);
    assert_eq!(kept(5).await, ["bad 3", "bad 4", "bad 5"]);
    assert_eq!(
        server
            .metric("blobcast_quarantine_trimmed_total{reason=\"count\"}")
            .await,
        2.0
    );
}

#[tokio::test]
async fn a_low_disk_takes_nothing_but_still_forgets_and_discards() {
    let mut server = Options::default().start().await;
    server.http().post_bulky(0..60, 20_000).await;
    for number in 1..=3 {
        server
            .http()
            .post_to("/webhook/veo", format!("bad {number}"))
            .await;
    }
    assert!(server.terminate().await.success());
    // No disk is free altogether, so this is too little on every machine.
    let low = Options::default()
        .set("log.disk_free_min_percent", 100)
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB");
    server.restart_with(low).await;
    let info = server.trimmed().await;
    assert!(info.event_count < 60);
    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec!["1".into(), "3".into()],
    };
    let discarded = server
        .admin_service()
        .await
        .discard_quarantined(discard)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(discarded.discarded_count, 2);
    for body in [completed("t1").to_string(), "bad 4".to_owned()] {
        let answer = server.http().post_to("/webhook/veo", body).await;
        assert_eq!((answer.status, answer.reason()), (503, "disk_low"));
    }
    server.crash().await;
    assert_eq!(quarantined(&server).await, ["bad 2"]);
    let after = server.log_info().await;
    assert_eq!(
        (after.head, after.event_count),
        (info.head, info.event_count)
    );
}
