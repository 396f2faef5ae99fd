//! Erasing a task removes its content from the log's files, the database's files, memory and every
//! answer, and nothing else.

use std::fs;

use blobcast::{
    checker::{History, Stream, check},
    wire::v1::{
        self, DiscardQuarantinedRequest, EraseTaskRequest, GetRawBodyRequest, GetTaskRequest,
        ListEventsRequest, ReleaseQuarantinedRequest, SubscribeRequest, WaitTaskRequest,
    },
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::support::{
    AsObserved, Cli, CredentialsFile, Options, Seen, Server, completed, failed, is_on_disk, place,
    places, processing, refusal, request, tasks, tasks_of, until, with,
};

pub async fn erase(server: &Server, product: &str, task_id: &str) -> Result<u32, Status> {
    let request = EraseTaskRequest {
        product: product.into(),
        task_id: task_id.into(),
    };
    Ok(server
        .admin_service()
        .await
        .erase_task(request)
        .await?
        .into_inner()
        .erased_count)
}

pub fn saying(body: Value, prompt: &str) -> Value {
    with(body, json!({ "prompt": prompt }))
}

/// What a reader who has missed nothing is shown.
async fn shown(server: &Server) -> Vec<u64> {
    let mut sub = server
        .subscribe(SubscribeRequest {
            include_raw: true,
            ..request()
        })
        .await;
    places(&sub.until_caught_up().await)
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one task, looked at from every side")]
async fn an_erased_task_is_gone_from_every_file_and_every_answer_and_stays_so() {
    const SECRET: &str = "a portrait of Erika Mustermann";
    let mut server = Server::start().await;
    let http = server.http();
    http.post(&saying(processing("t1"), SECRET))
        .await
        .event_id();
    http.post(&saying(completed("t2"), "a cat"))
        .await
        .event_id();
    let erased = http.post(&saying(completed("t1"), SECRET)).await.event_id();
    // Another product's task of the same name is another task.
    http.post_to(
        "/webhook/sora",
        saying(completed("t1"), "a dog").to_string(),
    )
    .await
    .event_id();
    let before = server.log_info().await;
    let seen = server.log_of_events().await;
    let cursors: Vec<_> = seen.iter().map(|event| event.cursor.clone()).collect();
    let stream = Stream {
        task_ids: None,
        observed: seen.iter().map(AsObserved::observed).collect(),
    };
    let gone = [0, 2].map(|at| seen[at].event_id.clone());
    assert!(is_on_disk(&server.data_dir(), SECRET));

    let ran = server.cli("erase veo t1").run().await;
    assert!(
        ran.good().starts_with("2 events erased, "),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stderr
            .contains("backups that were taken before still contain them"),
        "{}",
        ran.stderr
    );
    assert_eq!(server.metric("blobcast_events_erased_total").await, 2.0);
    for round in 0..3 {
        assert!(!is_on_disk(&server.data_dir(), SECRET) && is_on_disk(&server.data_dir(), "a cat"));
        let info = server.log_info().await;
        assert_eq!(
            (info.event_count, &info.head),
            (before.event_count, &before.head)
        );
        assert!(
            info.event_bytes < before.event_bytes - 2 * SECRET.len() as u64,
            "{}",
            info.event_bytes
        );
        let mut events = server.events().await;
        let get = GetTaskRequest {
            task_id: "t1".into(),
            product: "veo".into(),
            ..Default::default()
        };
        assert_eq!(
            refusal(&events.get_task(get).await.unwrap_err()),
            (Code::NotFound, "TASK_NOT_FOUND".into())
        );
        let get = GetTaskRequest {
            task_id: "t1".into(),
            ..Default::default()
        };
        assert_eq!(
            events.get_task(get).await.unwrap().into_inner().events[0].product,
            "sora"
        );
        let log = server.log_of_events().await;
        assert_eq!(
            (places(&log), shown(&server).await),
            (vec![2, 4], vec![2, 4])
        );
        let log = log.iter().map(AsObserved::observed).collect();
        let (streams, erased) = (vec![stream.clone()], gone.clone().into());
        assert_eq!(
            check(&History {
                log,
                streams,
                erased,
                ..History::default()
            }),
            []
        );
        for newest_first in [v1::Order::NewestFirst, v1::Order::OldestFirst] {
            for task_ids in [vec![], vec!["t1".to_owned()]] {
                let filter = v1::Filter {
                    task_ids,
                    products: vec!["veo".into()],
                    ..Default::default()
                };
                let list = ListEventsRequest {
                    order: newest_first.into(),
                    filter: Some(filter.clone()),
                    ..Default::default()
                };
                let listed = events.list_events(list).await.unwrap().into_inner().events;
                let expected: &[_] = if filter.task_ids.is_empty() {
                    &[2]
                } else {
                    &[]
                };
                assert_eq!(places(&listed), expected);
            }
        }
        let raw = GetRawBodyRequest {
            cursor: cursors[2].clone(),
            ..Default::default()
        };
        assert_eq!(
            refusal(&events.get_raw_body(raw).await.unwrap_err()),
            (Code::NotFound, "EVENT_NOT_FOUND".into())
        );
        let wait = WaitTaskRequest {
            task_id: "t1".into(),
            product: "veo".into(),
            timeout: Some(prost_types::Duration {
                seconds: 600,
                nanos: 0,
            }),
            ..Default::default()
        };
        // Nobody waits for what was said and erased.
        let waited = events.wait_task(wait).await.unwrap().into_inner();
        assert!(waited.done && waited.event.is_none());
        // To a stream that ends with the task, it is over.
        let mut sub = server
            .subscribe(SubscribeRequest {
                until_terminal: true,
                ..crate::support::matching(v1::Filter {
                    task_ids: vec!["t1".into()],
                    products: vec!["veo".into()],
                    ..Default::default()
                })
            })
            .await;
        let seen = sub.end().await.unwrap();
        assert!(
            matches!(&seen[..], [.., Seen::Completed { .. }])
                && !seen.iter().any(|it| matches!(it, Seen::Event(_)))
        );
        assert_eq!(
            erase(&server, "veo", "t1").await.unwrap(),
            0,
            "to erase it again is no error"
        );
        match round {
            0 => server.crash().await,
            1 => {
                assert!(server.terminate().await.success());
                server.restart().await;
            }
            _ => {}
        }
    }

    // A repetition brings nothing back and is reported. A new task is a new event and is reported, too.
    let http = server.http();
    let again = http.post(&saying(completed("t1"), SECRET)).await;
    assert!(
        again.duplicate() && again.event_id() == erased && !is_on_disk(&server.data_dir(), SECRET)
    );
    assert!(
        !http
            .post(&saying(failed("t1"), "of nobody"))
            .await
            .duplicate()
    );
    let event = server.log_of_events().await.pop().unwrap();
    assert_eq!(
        (place(&event.cursor), event.revision, event.conflict),
        (5, 3, true)
    );
    for outcome in ["new", "duplicate"] {
        let counted = format!("blobcast_callbacks_after_erasure_total{{outcome=\"{outcome}\"}}");
        assert_eq!(server.metric(&counted).await, 1.0);
    }
    until("the line about new content", || {
        std::future::ready(
            server
                .log()
                .contains("has brought new content of an erased task"),
        )
    })
    .await;
    assert_eq!(erase(&server, "veo", "t1").await.unwrap(), 1);
    assert_eq!(places(&server.log_of_events().await), [2, 4]);
}

#[tokio::test]
async fn what_is_discarded_or_released_from_quarantine_is_gone_from_every_file() {
    let mut server = Server::start().await;
    let http = server.http();
    for text in [
        "nonsense of Alice",
        "nonsense of Bob",
        "nonsense of Carol",
        "nonsense of Dave",
    ] {
        assert_eq!(
            http.post_to("/webhook/veo", text).await.reason(),
            "not_json"
        );
    }
    // The index knows where it lies, and nothing of it.
    assert!(is_on_disk(
        &server.data_dir().join("log"),
        "nonsense of Alice"
    ));
    let elsewhere = |server: &Server| is_on_disk(&server.data_dir().join("index"), "nonsense of");
    assert!(!elsewhere(&server));
    server.crash().await;
    let mut admin = server.admin_service().await;
    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec!["1".into(), "3".into(), "9".into()],
    };
    assert_eq!(
        admin
            .discard_quarantined(discard)
            .await
            .unwrap()
            .into_inner()
            .discarded_count,
        2
    );
    let release = ReleaseQuarantinedRequest {
        quarantine_id: "4".into(),
        body: saying(completed("t4"), "of Dave, repaired")
            .to_string()
            .into(),
        ..Default::default()
    };
    admin.release_quarantined(release).await.unwrap();
    for round in 0..3 {
        let on_disk = |name: &str| is_on_disk(&server.data_dir(), &format!("nonsense of {name}"));
        // The raw body of what was released stays the vendor's, in the event.
        assert_eq!(
            ["Alice", "Bob", "Carol", "Dave"].map(on_disk),
            [false, true, false, round < 2]
        );
        assert!(!elsewhere(&server));
        let list = v1::ListQuarantineRequest {
            include_body: true,
            ..Default::default()
        };
        let listed = server
            .admin_service()
            .await
            .list_quarantine(list)
            .await
            .unwrap()
            .into_inner()
            .callbacks;
        assert_eq!(
            listed
                .iter()
                .map(|callback| &*callback.body)
                .collect::<Vec<_>>(),
            [b"nonsense of Bob"]
        );
        match round {
            0 => server.crash().await,
            1 => assert_eq!(erase(&server, "veo", "t4").await.unwrap(), 1),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_reader_who_stands_still_is_not_handed_what_was_erased_meanwhile() {
    // More than the transport takes of a stream that is not read.
    const EVENTS: usize = 60;
    let server = Options::default()
        .set("grpc.keepalive_interval", "1h")
        .start()
        .await;
    let mut live = server
        .subscribe_narrowly(SubscribeRequest {
            include_raw: true,
            ..request()
        })
        .await;
    let mut behind = server
        .subscribe_narrowly(SubscribeRequest {
            include_raw: true,
            ..request()
        })
        .await;
    live.until_caught_up().await;
    behind.until_caught_up().await;
    server.http().post_bulky(0..EVENTS, 20_000).await;
    // What the transport has been handed cannot be taken back: the first ones. The last ones wait in the ring.
    until("the streams to stand still", async || {
        let first = server.metric("blobcast_deliveries_total").await;
        tokio::task::yield_now().await;
        first > 0.0 && first == server.metric("blobcast_deliveries_total").await
    })
    .await;
    let last = EVENTS - 1;
    assert_eq!(erase(&server, "veo", &format!("t{last}")).await.unwrap(), 1);
    assert_eq!(
        erase(&server, "veo", &format!("t{}", last - 5))
            .await
            .unwrap(),
        1
    );
    server.http().post(&completed("end")).await.event_id();
    for sub in [&mut live, &mut behind] {
        let mut tasks = Vec::new();
        while tasks.last().is_none_or(|task| task != "end") {
            tasks.push(sub.next_event().await.task_id);
        }
        let expected: Vec<_> = (0..EVENTS)
            .filter(|number| ![last, last - 5].contains(number))
            .map(|number| format!("t{number}"))
            .collect();
        assert_eq!(tasks[..tasks.len() - 1], expected);
    }
}

#[tokio::test]
async fn a_backup_taken_behind_an_erasure_has_nothing_of_it_and_its_restored_log_knows_the_repetition()
 {
    const SECRET: &str = "a portrait of Erika Mustermann";
    let server = Server::start().await;
    let erased = server
        .http()
        .post(&saying(completed("t1"), SECRET))
        .await
        .event_id();
    server.http().post(&completed("t2")).await.event_id();
    server.http().post_to("/webhook/veo", "nonsense").await;
    erase(&server, "veo", "t1").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup");
    server.cli("backup").arg(&file).run().await.good();
    assert!(!String::from_utf8_lossy(&fs::read(&file).unwrap()).contains(SECRET));
    Cli::new("restore")
        .arg(&file)
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .run()
        .await
        .good();
    let mut restored = Options::default().start_in(directory).await;
    for _ in 0..2 {
        assert_eq!(tasks_of(&restored.log_of_events().await), ["t2"]);
        let again = restored.http().post(&saying(completed("t1"), SECRET)).await;
        assert!(again.duplicate() && again.event_id() == erased);
        let quarantined = restored.log_info().await.quarantine_count;
        assert_eq!(
            (
                quarantined,
                restored
                    .subscribe(tasks(["t1"]))
                    .await
                    .until_caught_up()
                    .await
                    .len()
            ),
            (1, 0)
        );
        restored.crash().await;
    }
}

#[tokio::test]
async fn erasing_needs_an_administrator_who_may_see_the_product_and_a_task_that_is_there() {
    let mut credentials = CredentialsFile::new();
    let veo = credentials.add("client veo --product veo --admin").await;
    let reader = credentials.add("client reader --all-products").await;
    let server = Options::default()
        .set("credentials_file", credentials.path().display())
        .start()
        .await;
    server.http().post(&completed("t1")).await.event_id();
    server
        .http()
        .post_to("/webhook/sora", completed("t1").to_string())
        .await
        .event_id();
    for (token, line, said) in [
        (&reader, "erase veo t1", "ADMIN_DENIED"),
        (&veo, "erase sora t1", "PRODUCT_DENIED"),
        (&veo, "erase veo t2", "TASK_NOT_FOUND"),
    ] {
        let ran = server.cli(line).env("BLOBCAST_TOKEN", token).run().await;
        assert!(ran.exited(1).contains(said), "{line}: {}", ran.stderr);
    }
    let ran = server
        .cli("erase veo t1")
        .env("BLOBCAST_TOKEN", &veo)
        .run()
        .await;
    assert!(ran.good().starts_with("1 event erased, "), "{}", ran.stdout);
}
