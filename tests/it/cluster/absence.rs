//! Nodes that were away: longer than the stream keeps.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::quarantine;
use crate::support::{NatsOptions, NatsServer, Options, Server, completed, place, tasks_of, until};

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
