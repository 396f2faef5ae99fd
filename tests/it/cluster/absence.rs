//! Nodes that were away, longer than the stream keeps, and nodes that start while NATS is away.

use std::{fs, path::Path};

use blobcast::wire::v1::GetTaskRequest;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{quarantine, refusal};
use crate::support::{
    NatsOptions, NatsServer, Options, Server, completed, free_address, latest, place, reason,
    tasks_of, until,
};

/// Frames behind which a node that was away cannot go on: more than it had itself, and as many as the stream forgets at least.
const FORGOTTEN_MIN: u64 = 100;
/// Each has a frame of its own. The log forgets by segments of 32 MiB, and the stream with it: this fills two.
const COUNT: usize = 1_300;

/// A node that keeps little.
fn small(nats: &NatsServer, name: &str) -> Options {
    nats.node(name)
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "64KiB")
}

async fn first_of_stream(nats: &NatsServer) -> u64 {
    let info = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await;
    info["state"]["first_seq"].as_u64().unwrap()
}

/// Has the log forget what there was, and the stream with it.
async fn forget(nats: &NatsServer, node: &Server) {
    node.http().post_bulky(0..COUNT, 30_000).await;
    until("the stream to forget", async || {
        first_of_stream(nats).await > FORGOTTEN_MIN
    })
    .await;
}

/// The folders of logs that a node has set aside.
fn set_aside(data_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(data_dir.join("log")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("older-")).collect()
}

/// Two nodes with one event and one callback in quarantine.
async fn two(nats: &NatsServer) -> [Server; 2] {
    let [first, second] = [
        small(nats, "a").start().await,
        small(nats, "b").start().await,
    ];
    first.ready().await;
    first.http().post(&completed("old")).await.event_id();
    let nonsense = first.http().post_to("/webhook/veo", "nonsense").await;
    assert_eq!(nonsense.status, 202);
    second.ready().await;
    second.has_place(1).await;
    until("the quarantine", async || {
        quarantine(&second).await.len() == 1
    })
    .await;
    [first, second]
}

/// That the second has what the first has, and nothing else.
async fn have_one_log([first, second]: [&Server; 2]) {
    let head = place(&first.log_info().await.head);
    second.has_place(head).await;
    let (theirs, mine) = (first.log_of_events().await, second.log_of_events().await);
    assert!(!mine.is_empty() && mine.len() < COUNT);
    assert_eq!(mine, theirs);
    assert_eq!(quarantine(second).await, quarantine(first).await);
    assert_eq!(quarantine(second).await.len(), 1);
    let directory = second.data_dir();
    until("the old log to go", async || {
        set_aside(&directory).is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_node_that_was_away_for_longer_than_the_stream_keeps_reads_it_from_its_beginning() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let [first, mut second] = two(&nats).await;
    assert!(second.terminate().await.success());
    forget(&nats, &first).await;

    second.restart().await;
    second.ready().await;
    assert!(second.log().contains("its log is set aside"));
    have_one_log([&first, &second]).await;
    // As one that has never been away.
    second.terminate().await;
    second.restart().await;
    second.ready().await;
    assert!(!second.log().contains("its log is set aside"));
    first.http().post(&completed("new")).await.event_id();
    have_one_log([&first, &second]).await;
}

#[tokio::test]
async fn a_node_that_slept_for_longer_than_the_stream_keeps_starts_anew() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let [first, second] = two(&nats).await;
    second.pause().await;
    forget(&nats, &first).await;
    second.signal(Signal::CONT);

    until("the second start", async || {
        second.log().matches("\"message\":\"ready\"").count() == 2
    })
    .await;
    second.ready().await;
    assert!(second.log().contains("its log is set aside"));
    have_one_log([&first, &second]).await;
}

#[tokio::test]
async fn a_node_whose_events_somebody_has_purged_keeps_them_and_takes_nothing() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut node = nats.node("a").start().await;
    node.ready().await;
    node.http().post(&completed("t1")).await.event_id();
    node.kill();
    // Frames of another node that this one has not; then the beginning of the stream goes, and nothing is forgotten by that.
    let mut other = nats.node("b").start().await;
    other.ready().await;
    for task in ["t2", "t3"] {
        other.http().post(&completed(task)).await.event_id();
    }
    let before = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await;
    let last = before["state"]["last_seq"].as_u64().unwrap();
    other.terminate().await;
    let purged = nats
        .api("STREAM.PURGE.BLOBCAST_main", &json!({ "seq": last }))
        .await;
    assert_eq!(purged["success"], true, "{purged}");

    node.restart().await;
    let (status, why) = node.admin_get("/readyz").await;
    assert!(status == 503 && why.contains("hole"), "{why}");
    assert_eq!(tasks_of(&node.log_of_events().await), ["t1"]);
    assert!(set_aside(&node.data_dir()).is_empty());
    let answer = node.http().post(&completed("t4")).await;
    assert_eq!((answer.status, answer.reason()), (503, "stream_away"));
}

#[tokio::test]
async fn a_node_that_starts_without_nats_serves_what_it_has_and_goes_on_once_it_is_there() {
    let Some(mut nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let [mut first, second] = [nats.node("a").start().await, nats.node("b").start().await];
    first.ready().await;
    first.http().post(&completed("t1")).await.event_id();
    first.has_place(1).await;
    first.terminate().await;
    second.ready().await;
    second.http().post(&completed("t2")).await.event_id();
    nats.kill();

    first.restart().await;
    let (status, why) = first.admin_get("/readyz").await;
    assert!(status == 503 && why.contains("could be reached"), "{why}");
    assert_eq!(first.admin_get("/livez").await.0, 200);
    assert_eq!(first.metric("blobcast_cluster_connected").await, 0.0);
    assert_eq!(tasks_of(&first.log_of_events().await), ["t1"]);
    let answer = first.http().post(&completed("t3")).await;
    assert_eq!((answer.status, answer.reason()), (503, "stream_away"));
    let unknown = GetTaskRequest {
        task_id: "t2".into(),
        ..Default::default()
    };
    let missed = first.events().await.get_task(unknown).await.unwrap_err();
    assert_eq!(reason(&missed), "STORE_BEHIND", "another node may have it");
    let mut sub = first.subscribe(latest()).await;

    nats.run();
    assert_eq!(sub.next_event().await.task_id, "t2");
    first.ready().await;
    first.http().post(&completed("t3")).await.event_id();
    second.has_place(3).await;
    let log = first.log_of_events().await;
    assert_eq!(tasks_of(&log), ["t1", "t2", "t3"]);
    assert_eq!(second.log_of_events().await, log);
}

#[tokio::test]
async fn a_node_that_starts_without_nats_and_ends_before_it_is_there_has_lost_nothing() {
    let Some(mut nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut node = nats.node("a").start().await;
    node.ready().await;
    node.http().post(&completed("t1")).await.event_id();
    node.terminate().await;
    nats.kill();
    node.restart().await;
    assert!(node.terminate().await.success());
    nats.run();
    node.restart().await;
    node.ready().await;
    assert_eq!(tasks_of(&node.log_of_events().await), ["t1"]);
}

#[tokio::test]
async fn a_node_that_finds_another_stream_than_the_one_of_its_log_serves_it_and_takes_nothing() {
    let Some(mut nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut node = nats.node("a").start().await;
    node.ready().await;
    node.http().post(&completed("t1")).await.event_id();
    node.terminate().await;
    // Once with no stream, and once with one that another node has made.
    let deleted = nats.api("STREAM.DELETE.BLOBCAST_main", &Value::Null).await;
    assert_eq!(deleted["success"], true, "{deleted}");
    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(nats.node("a").command(&node.data_dir(), listen)).await;
    assert!(said.contains("there is no stream BLOBCAST_main"), "{said}");
    let info = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await;
    assert_eq!(info["error"]["err_code"], 10_059, "it was not made: {info}");

    nats.kill();
    node.restart().await;
    nats.run();
    until("the missing stream", async || {
        let (_, why) = node.admin_get("/readyz").await;
        why.contains("there is no stream BLOBCAST_main")
    })
    .await;
    let other = nats.node("b").start().await;
    other.ready().await;
    let hole = "blobcast_cluster_hole";
    until("the other stream", async || node.metric(hole).await == 1.0).await;
    let (_, why) = node.admin_get("/readyz").await;
    let epoch = other.log_info().await.epoch;
    assert!(why.contains(&epoch), "{why}");
    assert_eq!(tasks_of(&node.log_of_events().await), ["t1"]);
}
