//! Frames of the stream, as NATS has them: when they come, and one that only a later version reads.

use base64::{Engine, prelude::BASE64_STANDARD};
use blobcast::{
    cluster::{FORMAT, forgotten_before},
    event::{Epoch, Sequence},
};
use bytes::Bytes;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::refusal;
use crate::support::{NatsOptions, NatsServer, completed, free_address, until};

/// The writer ticks when so long nothing has come.
const TICK_SECONDS: f64 = 2.0;

/// A message of the stream, and when NATS has taken it; `None` if it is removed.
async fn message(nats: &NatsServer, sequence: u64) -> Option<(Timestamp, Bytes)> {
    let asked = json!({ "seq": sequence });
    let answer = nats.api("STREAM.MSG.GET.BLOBCAST_main", &asked).await;
    let message = answer.get("message")?;
    let data = BASE64_STANDARD.decode(message["data"].as_str()?).unwrap();
    Some((message["time"].as_str()?.parse().unwrap(), data.into()))
}

/// How many messages the stream has had.
async fn last(nats: &NatsServer) -> u64 {
    let info = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await;
    info["state"]["last_seq"].as_u64().unwrap()
}

#[tokio::test]
async fn an_idle_node_forgets_by_frames_that_follow_each_other_at_once() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    std::fs::write(&path, "").unwrap();
    let options = nats.node("a").set("ingest.body_bytes_max", "64KiB");
    let options = options.variable("BLOBCAST_CONFIG", path.display());
    let node = options.start().await;
    node.ready().await;
    let load = "trigger --count 4000 --rate 100000";
    assert_eq!(node.cli(load).run().await.good().lines().count(), 4_000);
    let before = last(&nats).await;

    std::fs::write(&path, "[log]\nretention_bytes_max = \"1MiB\"\n").unwrap();
    node.signal(Signal::HUP);
    // One frame forgets 256 events at most.
    node.trimmed().await;
    let epoch = Epoch(u64::from_str_radix(&node.log_info().await.epoch, 16).unwrap());
    let (mut times, mut forgotten) = (Vec::new(), Sequence(1));
    for sequence in before + 1..=last(&nats).await {
        if let Some((time, bytes)) = message(&nats, sequence).await
            && let Some(first) = forgotten_before(epoch, &bytes)
            && first > forgotten
        {
            forgotten = first;
            times.push(time);
        }
    }
    let took = (times[times.len() - 1] - times[0])
        .total(jiff::Unit::Second)
        .unwrap();
    assert!(times.len() > 3, "{times:?}");
    let by_ticks = (times.len() - 1) as f64 * TICK_SECONDS;
    assert!(took < by_ticks / 2.0, "{took} s, {times:?}");
}

#[tokio::test]
async fn a_frame_of_a_later_version_stops_a_node_and_asks_for_an_upgrade() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let node = nats.node("a").start().await;
    node.ready().await;
    node.http().post(&completed("t1")).await.event_id();
    let client = async_nats::connect(nats.url()).await.unwrap();
    let (_, frame) = message(&nats, last(&nats).await).await.unwrap();
    let mut newer = frame.to_vec();
    newer[6..8].copy_from_slice(&(FORMAT + 1).to_le_bytes());
    client
        .publish("blobcast.main.log", newer.into())
        .await
        .unwrap();
    client.flush().await.unwrap();

    let told = format!(
        "the stream has a frame of format {}, which a later version reads: upgrade this node",
        FORMAT + 1
    );
    until("the end", async || {
        node.metric("blobcast_cluster_hole").await > 0.0
    })
    .await;
    let (status, why) = node.admin_get("/readyz").await;
    assert!(status == 503 && why.contains(&told), "{status} {why}");
    assert_eq!(node.http().post(&completed("t2")).await.status, 503);
    assert_eq!(node.log_of_events().await.len(), 1, "it serves what it has");

    // One that begins with such a frame does not start.
    let purge = json!({ "seq": last(&nats).await });
    let purged = nats.api("STREAM.PURGE.BLOBCAST_main", &purge).await;
    assert!(purged.get("error").is_none(), "{purged}");
    let directory = tempfile::tempdir().unwrap();
    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(nats.node("b").command(directory.path(), listen)).await;
    assert!(said.contains(&told), "{said}");
}
