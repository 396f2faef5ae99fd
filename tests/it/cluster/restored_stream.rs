//! Streams that have lost their end, and nodes that cannot see that by themselves: they hear it of the others.

use std::time::Duration;

use async_nats::Client;
use blobcast::wire::v1::GetTaskRequest;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::interval;
use tokio_stream::StreamExt;
use tokio_util::task::AbortOnDropHandle;

use super::{import::transfer, refusal, status_of};
use crate::support::{
    NatsOptions, NatsServer, Server, completed, free_address, reason, tasks_of, until, within,
};

const HOLE: &str = "blobcast_cluster_hole";

async fn reason_of_unknown(node: &Server) -> String {
    let request = GetTaskRequest {
        task_id: "unknown".into(),
        ..Default::default()
    };
    reason(&node.events().await.get_task(request).await.unwrap_err())
}

/// As restored from a copy that has the first message alone: it is the same stream.
async fn restore(nats: &NatsServer) {
    let client = async_nats::connect(nats.url()).await.unwrap();
    let ask = async |subject: &str, body: Bytes| {
        let answer = client.request(subject.to_owned(), body);
        within("an answer", answer).await.unwrap().payload
    };
    let message = ask("$JS.API.DIRECT.GET.BLOBCAST_main", r#"{"seq":1}"#.into()).await;
    let config = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await["config"].take();
    nats.api("STREAM.DELETE.BLOBCAST_main", &Value::Null).await;
    nats.api("STREAM.CREATE.BLOBCAST_main", &config).await;
    ask("blobcast.main.log", message).await;
}

/// Announces again and again, under the name z, what the node `like` does, but for `frame`.
async fn announce(nats: &NatsServer, like: &str, frame: u64) -> AbortOnDropHandle<()> {
    let client: Client = async_nats::connect(nats.url()).await.unwrap();
    let subject = format!("blobcast.main.nodes.{like}");
    let mut said = client.subscribe(subject).await.unwrap();
    let said = within("the node", said.next()).await.unwrap();
    let mut presence: Value = serde_json::from_slice(&said.payload).unwrap();
    presence["author"] = "00".into();
    presence["frame"] = frame.into();
    let presence = Bytes::from(presence.to_string());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut every = interval(Duration::from_millis(200));
        loop {
            every.tick().await;
            let shown = client.publish("blobcast.main.nodes.z", presence.clone());
            shown.await.unwrap();
        }
    }))
}

#[tokio::test]
async fn a_node_that_has_less_than_others_does_not_go_on_with_a_stream_that_has_lost_its_end() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let first = nats.node("a").start().await;
    for number in 0..3 {
        first.http().post(&completed(&format!("t{number}"))).await;
    }
    restore(&nats).await;

    let second = nats.node("b").set("cluster.read_wait", "3s").start().await;
    assert_eq!(reason_of_unknown(&second).await, "STORE_BEHIND");
    let answer = second.http().post(&completed("t4")).await;
    assert_eq!((answer.status, answer.reason()), (503, "stream_away"));
    until("both to notice", async || {
        first.metric(HOLE).await == 1.0 && second.metric(HOLE).await == 1.0
    })
    .await;
    let (_, why) = second.admin_get("/readyz").await;
    assert!(why.contains("and node a has message"), "{why}");
    assert_eq!(tasks_of(&first.log_of_events().await), ["t0", "t1", "t2"]);
    assert!(second.log_of_events().await.is_empty());
    let info = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await;
    assert_eq!(info["state"]["last_seq"], 1, "nobody has written");
}

#[tokio::test]
async fn nodes_of_a_stream_that_was_made_anew_go_on_whatever_those_of_the_old_one_say() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut first = nats.node("a").start().await;
    first.http().post(&completed("t1")).await.event_id();
    let mut second = nats.node("b").start().await;
    second.has_place(1).await;
    for number in 0..20 {
        first
            .http()
            .post(&completed(&format!("more-{number}")))
            .await;
    }
    first.terminate().await;
    let deleted = nats.api("STREAM.DELETE.BLOBCAST_main", &Value::Null).await;
    assert_eq!(deleted["success"], true, "{deleted}");
    until("the hole", async || second.metric(HOLE).await == 1.0).await;
    let healed = transfer(&nats, "heal --keep-epoch", &first.data_dir()).await;
    assert_eq!(healed.code, Some(0), "{}", healed.stderr);

    // The second one still runs, and has more frames than the new stream.
    let third = nats.node("c").start().await;
    third.ready().await;
    third.http().post(&completed("t2")).await.event_id();
    assert_eq!(tasks_of(&third.log_of_events().await).len(), 22);
    until("the node of the old stream", async || {
        let status = status_of(&third).await;
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .any(|it| it["name"] == "b" && it["mismatches"] == json!(["stream"]))
    })
    .await;
    let text = third.cli("cluster status").run().await;
    assert!(
        text.stderr.contains("b has read another stream than c"),
        "{text:?}"
    );
    assert_eq!(
        third
            .metric("blobcast_cluster_mismatch{what=\"chain\"}")
            .await,
        0.0
    );

    second.terminate().await;
    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(nats.node("b").command(&second.data_dir(), listen)).await;
    assert!(said.contains("was read from another stream"), "{said}");
    let (status, _) = third.admin_get("/readyz").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_node_that_announces_what_nobody_has_stops_no_cluster_that_runs() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut node = nats.node("a").start().await;
    node.http().post(&completed("t1")).await.event_id();
    let _broken = announce(&nats, "a", u64::MAX).await;
    until("the broken one", async || {
        let status = status_of(&node).await;
        status["nodes"].as_array().unwrap().len() == 2
    })
    .await;
    node.http().post(&completed("t2")).await.event_id();
    assert_eq!(reason_of_unknown(&node).await, "TASK_NOT_FOUND");

    // Nor one that joins it, for the others write on.
    let mut joins = nats.node("b").start().await;
    joins.has_place(2).await;
    joins.http().post(&completed("t3")).await.event_id();
    until("that it knows better", async || {
        reason_of_unknown(&joins).await == "TASK_NOT_FOUND"
    })
    .await;

    // Where nobody writes, it has to be believed.
    joins.terminate().await;
    node.crash().await;
    until("that it tells", async || node.metric(HOLE).await == 1.0).await;
    let (_, why) = node.admin_get("/readyz").await;
    assert!(why.contains("and node z has message"), "{why}");
}
